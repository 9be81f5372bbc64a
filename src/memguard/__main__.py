"""Runs ``python -m memguard``."""

from memguard.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
