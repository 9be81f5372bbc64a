"""
Makes the wrapper of a cached function: a function of the same signature, written for it.

A wrapper for any signature costs twice to five times as much at each hit, nearly all of it for building the key. So it
is written as text and compiled, as dataclasses and named tuples are. All names in it that are not parameters have a
prefix that no parameter has.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import CodeType
from typing import Any, NamedTuple

from memguard.caching._keys import PLAIN_KEYS
from memguard.caching._memory import Memory
from memguard.caching._views import MISSING

_INLINE = """\
        if {plain}:
            {p}entry = {p}data.get({p}key)
            if {p}entry is not None and {p}entries.ages is None:
                try:
                    {p}value = {p}entry.value
                    {p}entries.ticks = {p}entry.used = {p}entries.ticks + 1
                    return {p}value
                except {p}AttributeError:
                    pass
"""
"""What LRUCache.get does without ages, without the call of it."""

_SOURCE = """\
{a}def wrapper({header}):
    {p}key = {key}
    try:
{inline}        {p}value = {p}get({p}key, {p}MISSING)
    except {p}TypeError as {p}error:
        return {w}{p}unhashable({p}error, ({args}), {kwargs})
    if {p}value is not {p}MISSING:
        return {p}value
    return {w}{p}miss({p}key, ({args}), {kwargs})

def make_key({header}):
    return {key}
"""


class Wrappers:
    """
    The wrappers of one function: for a call of it, and for a call of it as a method.

    Args:
        memory: Of the function.
        key: Makes the key from the arguments, if that is the program's own business.
        inline: Whether the cache is one of ours that is read without a call.

    Attributes:
        plain: Takes all arguments into the key.
        plain_key: Makes that key.
    """

    def __init__(self, memory: Memory, key: Callable[..., Any] | None, *, inline: bool) -> None:
        self._memory = memory
        self._key = key
        self._inline = inline
        self._object: Any = None
        self.plain, self.plain_key = self._made(method=False)

    def belong_to(self, cached: Any) -> None:
        """Say whose they are."""
        self._object = cached

    @functools.cached_property
    def _for_methods(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        wrapper, key = self._made(method=True)
        wrapper.cached = self._object  # type: ignore[attr-defined]
        return wrapper, key

    @property
    def method(self) -> Callable[..., Any]:
        """Takes a token for the first argument into the key."""
        return self._for_methods[0]

    @property
    def method_key(self) -> Callable[..., Any]:
        """Makes that key."""
        return self._for_methods[1]

    def for_owners(self, is_own: Callable[[tuple[Any, ...]], bool]) -> Callable[..., Any]:
        """Return what takes the one or the other, by whether *is_own* says that the arguments begin with an object."""
        plain, method = self.plain, self.method

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs) if is_own(args) else plain(*args, **kwargs)

        async def awrapper(*args: Any, **kwargs: Any) -> Any:
            return await (method(*args, **kwargs) if is_own(args) else plain(*args, **kwargs))

        return functools.update_wrapper(awrapper if self._memory.is_async else wrapper, self._memory.fn)

    def _made(self, *, method: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
        memory = self._memory
        if self._key is not None:
            return _with_key(memory, self._key)
        names = {
            "get": memory.store.get,
            "miss": memory.miss,
            "MISSING": MISSING,
            "token": memory.tokens,
            "unhashable": self._call_unhashable,
        }
        if self._inline:
            names |= {"data": memory.store._data, "entries": memory.store._entries}
            # Looked up at each call: the cache may begin to keep ages, and then it gets in another way.
            names["get"] = lambda key, default: memory.store.get(key, default)  # noqa: PLW0108
        return write(memory.fn, names, is_async=memory.is_async, method=method, inline=self._inline)

    def _call_unhashable(self, error: TypeError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._object.call_unhashable(error, args, kwargs)


def _with_key(memory: Memory, key: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        made = key(*args, **kwargs)
        value = memory.store.get(made, MISSING)
        return memory.miss(made, args, kwargs) if value is MISSING else value

    async def awrapper(*args: Any, **kwargs: Any) -> Any:
        made = key(*args, **kwargs)
        value = memory.store.get(made, MISSING)
        return await memory.miss(made, args, kwargs) if value is MISSING else value

    return functools.update_wrapper(awrapper if memory.is_async else wrapper, memory.fn), key


def _in_order(kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return names and values as they were given: a function may go by their order."""
    return tuple(kwargs.items())


class Shape(NamedTuple):
    """
    How the text of a wrapper is put together from a signature.

    Attributes:
        header: Between the brackets of ``def``.
        key: Builds the key from the parameters.
        plain: Tells whether all of the key is plain, see ``_keys``; empty where that takes longer.
        args: Passes the positional ones on.
        kwargs: Passes the others on.
        defaults: The default values, by the names that *header* uses.
    """

    header: str
    key: str
    plain: str
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
            parts.append(f"{prefix}in_order({name})")
        else:
            header.append(text)
            parts.append(f"{prefix}token({name})" if method and number == 0 else name)
            (kwargs if parameter.kind is Parameter.KEYWORD_ONLY else args).append(
                f"{name!r}: {name}" if parameter.kind is Parameter.KEYWORD_ONLY else name
            )
    header += marks.get(len(parameters), [])
    single = len(parts) == 1 and parameters[0].kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    key = parts[0] if single else f"({''.join(f'{part}, ' for part in parts)})"
    several = any(each.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for each in parameters)
    names = [f"{prefix}key" if single else f"{prefix}key[{number}]" for number in range(len(parts))]
    plain = " and ".join(f"{prefix}type({name}) in {prefix}plain" for name in names) or "True"
    return Shape(
        ", ".join(header),
        key,
        "" if several else plain,
        "".join(f"{each}, " for each in args),
        f"{{{', '.join(kwargs)}}}",
        defaults,
    )


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
        names: What the wrapper uses: ``get``, ``miss``, ``unhashable``, ``MISSING``; ``token`` for a method; ``data``
            and ``entries`` if *inline*.
        is_async: Whether ``miss`` is to be awaited.
        method: Whether the first parameter is an object that the key must not hold.
        inline: Whether the cache is one of ours that is read without a call.
    """
    prefix = "_memguard_"
    while any(name.startswith(prefix) for name in inspect.signature(fn).parameters):
        prefix += "_"
    names = names | {"in_order": _in_order, "AttributeError": AttributeError, "TypeError": TypeError}
    names |= {"type": type, "plain": PLAIN_KEYS}
    shape = shape_of(fn, prefix, method=method)
    source = _SOURCE.format(
        p=prefix,
        a="async " if is_async else "",
        w="await " if is_async else "",
        inline=_INLINE.format(p=prefix, plain=shape.plain) if inline and shape.plain else "",
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
