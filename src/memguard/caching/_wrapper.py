"""
Makes the wrapper of a cached function: a function of the same signature, written for it.

A wrapper for any signature costs twice to five times as much at each hit, nearly all of it for building the key. So it
is written as text and compiled, as dataclasses and named tuples are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from types import CodeType
from typing import Any, NamedTuple

_INLINE = """\
    if key in {p}data and {p}entries.direct:
        try:
            value = {p}data[key]
            {p}touch(key)
        except KeyError:
            pass
        else:
            {p}cache._hits += 1
            return value
"""
"""What LRUCache.get does without ages, without the call of it."""

_SOURCE = """\
{a}def wrapper({header}):
    key = {key}
{inline}    value = {p}get(key, {p}MISSING)
    if value is not {p}MISSING:
        return value
    return {w}{p}miss(key, ({args}), {kwargs})

def make_key({header}):
    return {key}
"""


class Shape(NamedTuple):
    """
    How the text of a wrapper is put together from a signature.

    Attributes:
        header: Between the brackets of ``def``.
        key: Builds the key from the parameters.
        args: Passes the positional ones on.
        kwargs: Passes the others on.
        defaults: The default values, by the names that *header* uses.
    """

    header: str
    key: str
    args: str
    kwargs: str
    defaults: dict[str, Any]


def shape_of(fn: Callable[..., Any], prefix: str, *, method: bool) -> Shape:
    """
    Return how the wrapper of *fn* is put together.

    Args:
        fn: The function.
        prefix: Of all names that are not parameters.
        method: Whether the first parameter is an object that the key must not hold.
    """
    header, parts, args, kwargs, defaults = [], [], [], [], {}
    parameters = list(inspect.signature(fn).parameters.values())
    marks = _marks(parameters)
    for number, parameter in enumerate(parameters):
        name = parameter.name
        header += marks.get(number, [])
        text = name
        if parameter.default is not Parameter.empty:
            text += f"={prefix}d{number}"
            defaults[f"{prefix}d{number}"] = parameter.default
        if parameter.kind is Parameter.VAR_POSITIONAL:
            header.append(f"*{name}")
            args.append(f"*{name}")
            parts.append(name)
        elif parameter.kind is Parameter.VAR_KEYWORD:
            header.append(f"**{name}")
            kwargs.append(f"**{name}")
            parts.append(f"tuple(sorted({name}.items()))")
        else:
            header.append(text)
            parts.append(f"{prefix}token({name})" if method and number == 0 else name)
            (kwargs if parameter.kind is Parameter.KEYWORD_ONLY else args).append(
                f"{name!r}: {name}" if parameter.kind is Parameter.KEYWORD_ONLY else name
            )
    header += marks.get(len(parameters), [])
    single = len(parts) == 1 and parameters[0].kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    key = parts[0] if single else f"({''.join(f'{part}, ' for part in parts)})"
    return Shape(", ".join(header), key, "".join(f"{each}, " for each in args), f"{{{', '.join(kwargs)}}}", defaults)


def _marks(parameters: list[Parameter]) -> dict[int, list[str]]:
    """Return where ``/`` and ``*`` stand, by the number of the parameter that follows."""
    marks: dict[int, list[str]] = {}
    positional = sum(each.kind is Parameter.POSITIONAL_ONLY for each in parameters)
    if positional:
        marks.setdefault(positional, []).append("/")
    named = [number for number, each in enumerate(parameters) if each.kind is Parameter.KEYWORD_ONLY]
    if named and not any(each.kind is Parameter.VAR_POSITIONAL for each in parameters):
        marks.setdefault(named[0], []).append("*")
    return marks


def write(
    fn: Callable[..., Any], names: dict[str, Any], *, is_async: bool, method: bool, inline: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """
    Return the wrapper of *fn*, and what makes the key of a call.

    Args:
        fn: The function.
        names: What the wrapper uses: ``get``, ``miss``, ``MISSING``; ``token`` for a method; ``data``, ``entries``,
            ``touch`` and ``cache`` if *inline*.
        is_async: Whether ``miss`` is to be awaited.
        method: Whether the first parameter is an object that the key must not hold.
        inline: Whether the cache is one of ours that is read without a call.
    """
    prefix = "_memguard_"
    shape = shape_of(fn, prefix, method=method)
    source = _SOURCE.format(
        p=prefix,
        a="async " if is_async else "",
        w="await " if is_async else "",
        inline=_INLINE.format(p=prefix) if inline else "",
        header=shape.header,
        key=shape.key,
        args=shape.args,
        kwargs=shape.kwargs,
    )
    space = shape.defaults | {f"{prefix}{name}": value for name, value in names.items()}
    exec(_compiled(source), space)  # noqa: S102 - our own text; of the program's, names of parameters only
    wrapper: Callable[..., Any] = space["wrapper"]
    return functools.update_wrapper(wrapper, fn), space["make_key"]


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> CodeType:
    # Functions of the same signature share it.
    return compile(source, "<memguard.cached>", "exec")
