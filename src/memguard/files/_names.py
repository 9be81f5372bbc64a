"""
Names that clients send: refused where they would leave the directory, or mean something else on another platform.
Never changed: two names that become one would be one upload.
"""

from __future__ import annotations

import re

from memguard.errors import UnsafeNameError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_name(name: str) -> str:
    """
    Return *name* if it is safe as the name of a file on every platform.

    Raises:
        UnsafeNameError: It holds anything but letters, digits, dots, underscores and hyphens, begins with none of the
            first two, ends with a dot, is longer than 127 characters, or is a device of Windows.
    """
    given: object = name
    if not (isinstance(given, str) and _NAME.fullmatch(given)) or given.endswith(".") or _RESERVED.fullmatch(given):
        raise UnsafeNameError(
            f"{name!r} is no safe name: use 1 to 127 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return given
