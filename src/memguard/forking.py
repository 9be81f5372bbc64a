"""
What a forked child must forget: locks that a thread of the parent may hold, and whatever such threads were at.

One place that registers with the interpreter, instead of one for each kind of object. Nothing of memguard is called
here but the objects themselves.

See:
    :func:`os.register_at_fork`; what a child inherits is in ``man 2 fork``: only the thread that forked.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger("memguard")


class Forgetful(Protocol):
    """What another process's threads may have left half done."""

    def _forget_threads(self) -> None:
        """Begin anew without them: in the child, before anything else of it runs. Takes no lock of the parent's."""
        ...


# A plain dict: each operation on it is one step of the interpreter, so a fork never finds it half changed, and the
# collector may drop an entry at any moment. It keeps the order of registration.
_known: dict[int, weakref.ref[Forgetful]] = {}
_numbers = itertools.count()


def forget_in_child(obj: Forgetful) -> None:
    """
    Call ``obj._forget_threads()`` in every forked child, as long as *obj* lives.

    Objects are called in the order in which they came here. One that raises is logged, the others are still called.

    Args:
        obj: Held weakly.
    """
    number = next(_numbers)
    known = _known  # at interpreter exit the module may be empty before the last object dies

    def forget(_: object) -> None:
        known.pop(number, None)

    known[number] = weakref.ref(obj, forget)


def _after_in_child() -> None:
    for reference in list(_known.values()):
        obj = reference()
        if obj is not None:
            _contained(obj._forget_threads)


def _contained(forget: Callable[[], None]) -> None:
    try:
        forget()
    except BaseException:
        try:
            _log.exception("memguard: %r cannot begin anew in this forked child", forget)
        except BaseException:  # noqa: S110 - a log handler of somebody else's; the next object comes first
            pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
