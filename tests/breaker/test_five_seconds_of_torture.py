"""
The torture of the long suite for a few seconds, always with the same seed: what must hold at any speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "long" / "torture.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its signals and children are those of POSIX")
def test_everything_at_once_leaves_the_books_at_0():
    command = [sys.executable, str(TORTURE), "--seed", "1", "--seconds", "5", "--no-ages"]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)

    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-20_000:]
