"""
Wraps a function so that each call of it runs inside something that is entered and left: a reservation, a measurement.

All four kinds of function. What :mod:`inspect` says of a function stays true of its wrapper; what is sent to or thrown
into a generator reaches it.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias

Kind: TypeAlias = Literal["plain", "coroutine", "generator", "async generator"]


class Around(Protocol):
    """What a call runs inside of."""

    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def activate(self) -> None:
        """Hear that a generator begins or goes on with a step, in the context of whoever asked for it."""
        ...

    def deactivate(self) -> None:
        """Hear that the step is over."""
        ...


Surround: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Around]
"""Makes what one call runs inside of, from the call's arguments."""


def kind_of(fn: Callable[..., Any]) -> Kind:
    """Return what a call of *fn* gives; partials and objects with an async ``__call__`` count as what they wrap."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    for candidate in (fn, type(fn).__call__):
        if inspect.iscoroutinefunction(candidate):
            return "coroutine"
        if inspect.isasyncgenfunction(candidate):
            return "async generator"
        if inspect.isgeneratorfunction(candidate):
            return "generator"
    return "plain"


def wrap(fn: Callable[..., Any], surround: Surround, *, plain: Callable[[Any], Any] | None = None) -> Any:
    """
    Return *fn*, each call of which runs inside what *surround* makes for it.

    A generator is entered at its first step and left when it is exhausted or closed. A plain function that returns
    something which is only begun (a coroutine, a future or task, a generator) is left when that is over. Of a
    ``staticmethod`` or ``classmethod`` the function is wrapped.

    Args:
        fn: Any of the four kinds of function.
        surround: Called with the arguments of the call.
        plain: Makes what takes the wrapper's place where *fn* is a plain function, from that wrapper.
    """
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(wrap(fn.__func__, surround, plain=plain))
    make = {
        "plain": _plain,
        "coroutine": _coroutine,
        "generator": _generator,
        "async generator": _async_generator,
    }
    kind = kind_of(fn)
    wrapper = make[kind](fn, surround)
    if plain is not None and kind == "plain":
        wrapper = plain(wrapper)
    return functools.update_wrapper(wrapper, fn)


def _plain(fn: Any, surround: Surround) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        held = surround(args, kwargs)
        held.__enter__()
        try:
            held.activate()
            try:
                result = fn(*args, **kwargs)
            finally:
                held.deactivate()
            begun = _is_begun(result)
        except BaseException as error:
            held.__exit__(type(error), error, error.__traceback__)
            raise
        if begun:
            return _until_over(result, held)
        held.__exit__(None, None, None)
        return result

    return wrapper


def _is_begun(result: object) -> bool:
    """Tell whether *result* is work that is only begun. Looks at its type alone: no code of its own runs."""
    kind = type(result)
    return hasattr(kind, "__await__") or hasattr(kind, "add_done_callback") or kind in _STEPS


_STEPS = {types.GeneratorType: "gi", types.AsyncGeneratorType: "ag", types.CoroutineType: "cr"}
"""What runs step by step, with the prefix of its attributes."""


def _is_untouched(result: Any) -> bool:
    """Tell whether *result* runs step by step and has not begun: then something else can stand for it."""
    prefix = _STEPS.get(type(result))
    if prefix is None or getattr(result, f"{prefix}_frame") is None:
        return False
    return not getattr(result, f"{prefix}_suspended", False)  # an async generator tells that from 3.12 on


def _until_over(result: Any, held: Around) -> Any:
    """Return *result*, or what stands for it, so that *held* is left when it is over."""
    if hasattr(type(result), "add_done_callback"):  # a future or a task: others may wait for it as well
        result.add_done_callback(lambda _: held.__exit__(None, None, None))
        return result
    if _is_untouched(result):
        entered = _Entered(held)
        if isinstance(result, types.GeneratorType):
            return _generator(lambda: result, lambda _args, _kwargs: entered)()
        if isinstance(result, types.AsyncGeneratorType):
            return _async_generator(lambda: result, lambda _args, _kwargs: entered)()
        return _awaited(lambda: result, held)
    # Another awaitable may be more than that (`async with connect() as c`), and what somebody has begun is that one's:
    # it stays what it is, until it is garbage.
    try:
        weakref.finalize(result, held.__exit__, None, None, None).atexit = False
    except TypeError:
        held.__exit__(None, None, None)
    return result


def _coroutine(fn: Any, surround: Surround) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        held = surround(args, kwargs)
        await held.__aenter__()
        return await _awaited(lambda: fn(*args, **kwargs), held)

    return wrapper


async def _awaited(make: Callable[[], Any], held: Around) -> Any:
    """Await what *make* returns inside of *held*, which is entered already; leave it at the end."""
    try:
        held.activate()
        try:
            result = await make()
        finally:
            held.deactivate()
    except BaseException as error:
        held.__exit__(type(error), error, error.__traceback__)
        raise
    held.__exit__(None, None, None)
    return result


def _generator(fn: Any, surround: Surround) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with surround(args, kwargs) as held:
            # A generator shares its caller's context: only while a step runs is this the one around.
            held.deactivate()
            inner = fn(*args, **kwargs)
            onward: Callable[[], Any] = functools.partial(next, inner)
            step = onward
            try:
                while True:
                    held.activate()
                    try:
                        value = step()
                    finally:
                        held.deactivate()
                        step = onward  # an error that was thrown in keeps the locals of failed work
                    try:
                        sent = yield value
                    except GeneratorExit:
                        return _closed(inner, held)
                    except BaseException as error:
                        step = functools.partial(inner.throw, error)
                    else:
                        step = functools.partial(inner.send, sent)
            except StopIteration as stop:
                return stop.value
            finally:
                _closed(inner, held)

    return wrapper


def _closed(inner: Any, held: Around) -> Any:
    """Close *inner*; return what that returns, from CPython 3.13 on what the generator returned."""
    held.activate()
    try:
        return inner.close()
    finally:
        held.deactivate()


def _async_generator(fn: Any, surround: Surround) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with surround(args, kwargs) as held:
            held.deactivate()
            inner = fn(*args, **kwargs)
            onward: Callable[[], Any] = inner.__anext__
            step = onward
            try:
                while True:
                    held.activate()
                    try:
                        value = await step()
                    finally:
                        held.deactivate()
                        step = onward  # likewise
                    try:
                        sent = yield value
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(inner.athrow, error)
                    else:
                        step = functools.partial(inner.asend, sent)
            except StopAsyncIteration:
                return
            finally:
                held.activate()
                try:
                    await inner.aclose()
                finally:
                    held.deactivate()

    return wrapper


class _Entered:
    """Stands for *held* where it is entered already."""

    def __init__(self, held: Around) -> None:
        self._held = held

    def __enter__(self) -> Around:
        return self._held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Around:
        return self._held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    def activate(self) -> None:
        self._held.activate()

    def deactivate(self) -> None:
        self._held.deactivate()
