"""
The log of this package. What is logged is told on the way: a handler that fails does not fail the work.
"""

from __future__ import annotations

import logging
from typing import Any

from memguard.interrupts import is_interrupt

_logger = logging.getLogger("memguard")


class Log:
    """The logger called "memguard", of which nothing but an interrupt comes back."""

    def log(self, level: int, text: str, *args: object, **more: Any) -> None:
        """Log *text* % *args* as :meth:`logging.Logger.log` does."""
        more["stacklevel"] = more.get("stacklevel", 1) + 1
        try:
            _logger.log(level, text, *args, **more)
        except BaseException as error:
            if is_interrupt(error):
                raise

    def debug(self, text: str, *args: object) -> None:
        """Log what helps to find a fault."""
        self.log(logging.DEBUG, text, *args, stacklevel=2)

    def info(self, text: str, *args: object) -> None:
        """Log what is as it should be."""
        self.log(logging.INFO, text, *args, stacklevel=2)

    def warning(self, text: str, *args: object) -> None:
        """Log what somebody should look at."""
        self.log(logging.WARNING, text, *args, stacklevel=2)

    def exception(self, text: str, *args: object) -> None:
        """Log an error with the exception that is being handled."""
        self.log(logging.ERROR, text, *args, stacklevel=2, exc_info=True)

    def shows(self, level: int) -> bool:
        """Tell whether anybody would see it."""
        return _logger.isEnabledFor(level)


log = Log()
