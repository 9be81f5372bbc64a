from __future__ import annotations

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
