from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from memguard.cli import main


def test_info_names_the_limit_and_the_room(capsys):
    assert main(["info"]) == 0

    out = capsys.readouterr().out
    assert "tightest limit" in out
    assert "room left" in out


def test_a_missing_command_is_an_error():
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_the_package_is_a_command():
    out = subprocess.run(
        [sys.executable, "-W", "error", "-m", "memguard", "info"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "room left" in out.stdout


def test_a_worker_process_may_import_the_command_without_running_it(capsys):
    importlib.import_module("memguard.__main__")

    assert capsys.readouterr().out == ""
