"""
``python -m memguard``: the command line.
"""

from memguard.cli._main import main

__all__ = ["main"]
