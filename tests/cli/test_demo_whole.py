from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from memguard.cli import _demo as demo_module
from memguard.cli import main
from memguard.cli._demo import demo
from memguard.cli._demo_jobs import main as job

MIB = 1024**2
MESSY = '\ufeffFirst Name;firstName;Note\n Zoë  ;N/A;"a; b\nc"\n\nshort\nlong;1;2;3; none ;"say ""hi"""\n'
TIDY = 'first_name,first_name_2,note\nZoë,,a; b c\nshort\nlong,1,2,3,,"say ""hi"""\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Temporary files of the demo go below tmp_path, where the test sees what is left of them."""
    kept = tmp_path / "temporary"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_module, "_disk", lambda: None)
    yield kept
    assert list(kept.iterdir()) == []


def test_the_demo_runs_both_ways_checks_and_reports(capfd, tmp_path):
    assert main(["demo", "--rows", "2000"]) == 0

    out = capfd.readouterr().out
    assert "output checked: 2,000 rows equal" in out
    assert "The naive way survived" in out
    assert "hard limit 256 MiB by" in out
    assert "<svg" in (tmp_path / "memguard-demo.html").read_text(encoding="utf-8")


def test_the_demo_takes_the_users_own_table(capfd, tmp_path):
    own = tmp_path / "own.csv"
    own.write_text(MESSY, encoding="utf-8")

    assert main(["demo", "--csv", str(own), "--report", "own.html"]) == 0

    assert "output checked: 3 rows equal" in capfd.readouterr().out
    assert own.read_text(encoding="utf-8") == MESSY
    assert (tmp_path / "own.html").exists()


@pytest.mark.parametrize("kind", ["auto", "rlimit"])
def test_what_is_too_large_for_the_naive_way_is_not_for_memguard(kind, capfd, tmp_path):
    assert demo(None, 18_000, 40 * MIB, tmp_path / "r.html", box_kind=kind) == 0

    out = capfd.readouterr().out
    assert "killed by the kernel (SIGKILL)" in out or "MemoryError" in out
    assert "output checked: 18,000 rows equal" in out


def test_both_ways_produce_the_same_table(capfd, tmp_path):
    (tmp_path / "in.csv").write_text(MESSY, encoding="utf-8")

    assert job(["naive", "in.csv", "naive.json"]) == 0
    assert job(["memguard", "in.csv", "out.csv", "--total", "3"]) == 0

    assert json.loads(Path("naive.json").read_text())["csv"] == TIDY
    assert Path("out.csv").read_text(encoding="utf-8") == TIDY
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last["rows"] == 3
    assert set(last) == {"rows", "peak_bytes", "start_bytes", "seconds"}


@pytest.mark.parametrize("text", ["", "only,a,header\n", "alone\nx\nNA\n"])
def test_a_table_of_almost_nothing_is_fine(text, tmp_path):
    (tmp_path / "in.csv").write_text(text, encoding="utf-8")

    assert main(["demo", "--csv", "in.csv"]) == 0


def test_bytes_that_are_not_utf8_come_through(tmp_path):
    Path("in.csv").write_bytes(b"a,b\n\xff\xfe,x\n")

    assert job(["memguard", "in.csv", "out.csv"]) == 0

    assert Path("out.csv").read_bytes() == b"a,b\n\xff\xfe,x\n"


def test_a_field_without_end_fails_with_a_sentence_and_leaves_no_output(capfd, tmp_path):
    Path("in.csv").write_text('a,b\n1,"' + "x" * (17 * MIB), encoding="utf-8")

    assert job(["memguard", "in.csv", "out.csv"]) == 1

    assert "field larger than field limit" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("out*")) == []


def test_a_failed_job_fails_the_demo_and_its_words_are_shown(capfd):
    Path("in.csv").write_text('a,b\n1,"' + "x" * (17 * MIB), encoding="utf-8")

    assert main(["demo", "--csv", "in.csv"]) == 1

    out = capfd.readouterr().out
    assert "failed with exit status 1" in out
    assert "memguard: Error: field larger than field limit" in out


def test_a_wrong_output_fails_the_demo(capfd, monkeypatch):
    def wrong(*_arguments):
        raise demo_module.WrongOutputError("row 7")

    monkeypatch.setattr(demo_module, "check_output", wrong)

    assert main(["demo", "--rows", "10"]) == 1
    assert "The output is wrong: row 7" in capfd.readouterr().out


def test_an_interrupt_leaves_no_file_and_no_child(monkeypatch):
    boxes, children = [], []

    def interrupted(process, _way, box, _began):
        boxes.append(box)
        children.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "_watch", interrupted)

    assert main(["demo", "--rows", "10"]) == 130

    assert children[0].returncode is not None
    assert not getattr(boxes[0], "directory", Path("none")).exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--csv", "missing.csv"], "missing.csv is not a file"),
        (["--limit", "1 MiB"], "less than Python itself takes"),
        (["--report", "no/such/folder.html"], "cannot be written"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(arguments, reason, capfd):
    assert main(["demo", *arguments]) == 2

    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--rows", "many"], ["--limit", "256m"]])
def test_an_argument_that_cannot_be_read_is_repeated(arguments, capfd):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *arguments])

    assert repr(arguments[1]) in capfd.readouterr().err


def test_where_no_box_can_be_made_the_demo_says_so(monkeypatch, capfd):
    def no_box(*_arguments, **_keywords):
        raise OSError("no box here")

    monkeypatch.setattr(demo_module, "make_box", no_box)

    assert main(["demo", "--rows", "10"]) == 2
    assert "no box here" in capfd.readouterr().err
