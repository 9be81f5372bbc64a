"""
A cached function as an object: it is called like the function, and binds like one.

Whether the first argument is an object whose results are kept apart, and that a key must not hold, is decided by how
the function is reached: through an object (``__get__``), or through the class that it was defined in
(``__set_name__``). A static method is reached in neither way.

Both are partials: to call one is a step in C, and :mod:`inspect` looks through it.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

from memguard.caching._memory import CacheInfo, Memory
from memguard.caching._wrapper import Wrappers


class CachedObject(functools.partial[Any]):
    """A function that remembers its results."""

    _memory: Memory
    _wrappers: Wrappers
    _owners: weakref.WeakSet[type]
    cache: MutableMapping[Any, Any]
    cache_info: Callable[[], CacheInfo]
    cache_clear: Callable[[], None]

    def __set_name__(self, owner: type, name: str) -> None:
        self._belongs_to(owner)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return BoundObject(self._wrappers.method, instance)

    def _belongs_to(self, owner: type) -> None:
        """Take the first argument for an object where it is one of *owner*'s."""
        self._owners.add(owner)
        # The one way to change what a partial calls.
        self.__setstate__((self._wrappers.for_owners(self._is_own), (), {}, self.__dict__))  # type: ignore[attr-defined]

    def _is_own(self, args: tuple[Any, ...]) -> bool:
        return bool(args) and any(issubclass(type(args[0]), owner) for owner in self._owners)

    def call_unhashable(self, error: TypeError, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """
        Call with arguments that make no key: of a property, whose first one is an object, as it turns out here.

        Raises:
            TypeError: *error*, if it is none.
        """
        if self._is_own(args) or not args or not self._is_property_of(type(args[0])):
            raise error
        self._belongs_to(type(args[0]))
        return self(*args, **kwargs)

    def _is_property_of(self, kind: type) -> bool:
        found = (value for base in kind.__mro__ for value in vars(base).values())
        return any(isinstance(value, property) and value.fget is self for value in found)

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the result for these arguments; tell whether there was one."""
        key = self._wrappers.method_key if self._is_own(args) else self._wrappers.plain_key
        return self._memory.forget(key(*args, **kwargs))

    def invalidate_for(self, instance: Any, *args: Any, **kwargs: Any) -> bool:
        """Forget the result of the method of *instance*."""
        return self._memory.forget(self._wrappers.method_key(instance, *args, **kwargs))

    def __repr__(self) -> str:
        return f"<cached {self.__wrapped__!r}>"

    def __reduce__(self) -> str:
        return str(self.__qualname__)  # by its name, as functions are

    def __copy__(self) -> CachedObject:
        return self

    def __deepcopy__(self, memo: object) -> CachedObject:
        return self

    __wrapped__: Any
    __qualname__: str


class BoundObject(functools.partial[Any]):
    """A cached method of one object."""

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> CachedObject:
        found: CachedObject = self.func.cached  # type: ignore[attr-defined]
        return found

    def invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forget the result for these arguments; tell whether there was one."""
        forgotten: bool = self.__func__.invalidate_for(self.args[0], *args, **kwargs)
        return forgotten

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.__func__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundObject):
            return False
        same: bool = self.func is other.func and self.__self__ is other.__self__
        return same

    def __hash__(self) -> int:
        return hash((id(self.func), id(self.args[0])))

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {self.args[0]!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.args[0], self.__func__.__name__)
