"""
Exceptions that come from outside what was running: whoever calls somebody else's code may contain its own errors, not
these.
"""

from __future__ import annotations

import inspect
from types import FrameType


def is_interrupt(error: BaseException) -> bool:
    """
    Tell whether *error* came from outside what was running: a ``KeyboardInterrupt``, or raised by a signal handler.

    A handler is called with the frame that it interrupted, which no other function is: Celery's time limit and a
    ``sys.exit`` on SIGTERM are told so from what a listener raises by itself.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame
        if frame.f_back is not None and _was_given(frame, frame.f_back):
            return True
        step = step.tb_next
    return False


def _was_given(frame: FrameType, caller: FrameType) -> bool:
    """Tell whether the function of *frame* got *caller* as an argument, as signal handlers do."""
    code, seen = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    for name in code.co_varnames[:count]:
        value = seen.get(name)
        if value is caller or (type(value) is tuple and any(each is caller for each in value)):
            return True
    return False
