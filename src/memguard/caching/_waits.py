"""
Which tasks wait for a task: straight, or by way of gather, wait, wait_for, shield or a group.

A task knows whom to tell when it is done. From what each of them is made of follows who waits behind it.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_OUTER = ("outer", "waiter")
"""What asyncio's own callbacks call the future that they complete."""


def waiting_for(task: Any, told_by: Callable[[Any], Iterable[Any]]) -> set[Any]:
    """
    Return the tasks and futures that cannot go on before *task* is done.

    Args:
        task: A task.
        told_by: Returns the futures that a task completes beside itself.
    """
    futures = sys.modules["asyncio"].Future
    seen: set[Any] = set()
    following = [task]
    while following:
        done = following.pop()
        callbacks = [callback for callback, _ in getattr(done, "_callbacks", None) or ()]
        for each in (*told_by(done), *(told for callback in callbacks for told in _told_by(callback))):
            if isinstance(each, futures) and each not in seen:
                seen.add(each)
                following.append(each)
    return seen


def _told_by(callback: Any) -> Iterator[Any]:
    """Return the futures that *callback*, of a future that is done, lets go on."""
    if isinstance(callback, partial):
        yield from callback.args
    elif isinstance(callback, FunctionType):
        for name, cell in zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=True):
            if name in _OUTER:
                yield _content(cell)
    elif hasattr(callback, "__self__"):
        yield callback.__self__  # a task of asyncio's in Python
        yield getattr(callback.__self__, "_parent_task", None)  # a group
    else:
        yield from gc.get_referents(callback)  # a task of asyncio's in C


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
