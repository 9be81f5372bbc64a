from __future__ import annotations

import csv
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from memguard.cli import _demo, _demo_jobs
from memguard.cli._demo import is_in_memory
from memguard.cli._demo_check import WrongOutputError, check_output
from memguard.cli._demo_data import write_contacts
from memguard.cli._demo_jobs import naive, normalise, normalise_header, snake_case, sniff_delimiter
from memguard.cli._demo_report import Run, Sample, chart, fate, page, second_ticks, size_ticks, table, text_table

MIB = 1024**2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("  a  b\n c ", "a b c", id="blanks collapse"),
        pytest.param(" n/a ", "", id="a form of nothing is empty"),
        pytest.param("NULL", "", id="in capitals too"),
        pytest.param("-", "", id="a dash is nothing"),
        pytest.param("nancy", "nancy", id="a name that begins like nothing stays"),
        pytest.param("0", "0", id="zero is something"),
    ],
)
def test_values_are_normalised(value, expected):
    assert normalise(value) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("First  Name", "first_name"),
        ("firstName", "first_name"),
        ("E-mail", "e_mail"),
        ("Größe", "größe"),
        (" ", "column"),
    ],
)
def test_column_names_become_snake_case(name, expected):
    assert snake_case(name) == expected


def test_column_names_are_unique_even_beside_a_numbered_one():
    assert normalise_header(["a", "A", "a_2", "a"]) == ["a", "a_2", "a_2_2", "a_3"]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [("a;b\n1;2\n3;4\n", ";"), ("a\tb\n1\t2\n", "\t"), ("alone\nhere\n", ","), ("", ",")],
)
def test_the_delimiter_is_sniffed_or_a_comma(sample, expected):
    assert sniff_delimiter(sample) == expected


def test_the_table_is_the_same_each_time_and_messy(tmp_path):
    for name in ("one", "two"):
        write_contacts(tmp_path / name, 1500)

    text = (tmp_path / "one").read_text(encoding="utf-8")
    assert text == (tmp_path / "two").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert len(rows) == 1501
    assert {len(row) for row in rows} == {26}
    assert {"N/A", "NA", "null", "None", "-", ""} <= {value for row in rows for value in row}
    assert any("\n" in value for row in rows for value in row)
    assert any("," in value for row in rows for value in row)


def test_the_naive_way_says_what_it_has_done(tmp_path):
    (tmp_path / "in").write_text("A,B\n 1 ,NA\n", encoding="utf-8")
    told = []

    assert naive(tmp_path / "in", tmp_path / "out", told.append) == 1

    assert told == [1]
    assert json.loads((tmp_path / "out").read_text())["csv"] == "a,b\n1,\n"


def checked(tmp_path, source, target):
    (tmp_path / "in").write_text(source, encoding="utf-8", newline="")
    (tmp_path / "out").write_text(target, encoding="utf-8", newline="")
    return check_output(tmp_path / "in", tmp_path / "out")


def test_a_right_output_passes_the_check(tmp_path):
    assert checked(tmp_path, 'A;B\n x ;"say ""hi"", you"\nNA;2\n', 'a,b\nx,"say ""hi"", you"\n,2\n') == 2


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("a,b\n1,2\n", "fewer"),
        ("a,b\n1,2\n3,4\n5,6\n", "more"),
        ("a,b\n1,2\n3,5\n", "row 2 should be"),
        ("a,a\n1,2\n3,4\n", "the columns"),
        ('a,b\n1,2\n3,"4\n', "not a line of CSV"),
    ],
)
def test_a_wrong_output_fails_the_check(tmp_path, target, reason):
    with pytest.raises(WrongOutputError, match=reason):
        checked(tmp_path, "A,B\n1,2\n3,4\n", target)


@pytest.mark.parametrize(
    ("status", "oom_killed", "words"),
    [
        (0, False, "finished"),
        (3, False, "MemoryError"),
        (-signal.SIGKILL, True, "killed by the kernel (SIGKILL)"),
        (-signal.SIGKILL, False, "killed (SIGKILL)"),
        (128 + signal.SIGSEGV, False, "killed (SIGSEGV)"),
        (1, False, "failed with exit status 1"),
    ],
)
def test_an_exit_status_is_told_in_words(status, oom_killed, words):
    assert fate(status, oom_killed=oom_killed) == words


def test_size_ticks_are_round_binary_sizes_below_the_limit():
    assert size_ticks(256 * MIB) == [0, 64 * MIB, 128 * MIB, 192 * MIB]
    assert size_ticks(300 * MIB) == [0, 64 * MIB, 128 * MIB, 192 * MIB, 256 * MIB]


def test_second_ticks_are_round_times():
    assert second_ticks(4.3) == [0, 1, 2, 3, 4]
    assert second_ticks(0.5) == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert second_ticks(1e9) == [0]


def a_run(way="memguard", status=0, **changes):
    fields = {
        "oom_killed": status != 0, "seconds": 2.0, "peak_bytes": 25 * MIB, "grown_bytes": 9 * MIB, "rows": 1000,
        "samples": (Sample(0.0, 0), Sample(2.0, 256 * MIB)),
    }  # fmt: skip
    return Run(way, status, **{**fields, **changes})


def test_the_table_names_the_numbers_and_the_end():
    text = text_table(table([a_run("naive", -9, grown_bytes=None), a_run()]))

    assert "killed by the kernel (SIGKILL)  1,000 read" in text
    assert "25 MiB" in text
    assert "unknown" in text


def test_the_chart_draws_nothing_above_the_limit():
    drawn = chart([a_run()], 256 * MIB)

    assert 'points="80.0,320.0 700.0,50.0"' in drawn
    assert 'class="limit" x1="80" x2="700" y1="50" y2="50"' in drawn
    assert "limit 256 MiB" in drawn


def test_a_kill_has_a_mark_and_its_word_on_the_chart():
    assert "killed by the kernel (SIGKILL)</text>" in chart([a_run("naive", -9)], 256 * MIB)
    assert "killed" not in chart([a_run()], 256 * MIB)


def test_a_run_without_samples_is_drawn_without_a_line():
    assert "polyline" not in chart([a_run(samples=(), seconds=0.0)], 256 * MIB)


def test_the_page_escapes_what_it_is_given_and_loads_nothing():
    text = page([a_run("<b>")], 256 * MIB, kind="k & c", job="<i>", remarks=["<script>"])

    assert "&lt;b&gt;" in text
    assert "k &amp; c" in text
    assert "<script" not in text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(("folder", "expected"), [("/tmp/x", True), ("/var/tmp", False), ("/tmpfoo", False)])
def test_a_folder_in_memory_is_known_by_its_mount(folder, expected):
    mounts = "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /tmp rw shared:1 - tmpfs tmpfs rw\ngarbled\n"

    assert is_in_memory(folder, mounts) is expected


def test_on_a_terminal_progress_is_one_line_that_is_rewritten(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = _demo._Line("memguard")

    line.show("1 row")
    line.show("2 rows")  # too soon after the first
    line.end()
    line.end()

    assert capsys.readouterr().out == "\rmemguard: 1 row\x1b[K\n"


def test_output_is_not_written_to_a_folder_in_memory(monkeypatch):
    usual = tempfile.gettempdir()
    monkeypatch.setattr(_demo, "is_in_memory", lambda folder, mounts: folder == usual)
    monkeypatch.setattr(_demo.os, "access", lambda folder, mode: True)
    assert _demo._disk() in {"/var/tmp", str(Path.cwd())} - {usual}

    for in_memory in (True, False):
        monkeypatch.setattr(_demo, "is_in_memory", lambda folder, mounts, answer=in_memory: answer)
        assert _demo._disk() is None


def test_where_no_mounts_can_be_read_the_usual_folder_is_taken(monkeypatch):
    def missing(path, **options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)

    assert _demo._disk() is None


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_a_demo_that_is_terminated_ends_as_one_that_is_interrupted():
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught, _demo._terminated_is_interrupted():
        signal.raise_signal(signal.SIGTERM)

    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with _demo._terminated_is_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)

    assert seen == [before]


def test_the_output_goes_to_the_disk_while_it_is_written(tmp_path, monkeypatch):
    """
    Pages of output that are not written yet count as used.
    """
    sizes = []
    monkeypatch.setattr(_demo_jobs, "_SYNC_BYTES", 1)
    monkeypatch.setattr(_demo_jobs.os, "fsync", lambda number: sizes.append(_demo_jobs.os.fstat(number).st_size))
    monkeypatch.setattr(_demo_jobs, "_CHUNK_ROWS", 1)
    (tmp_path / "in").write_text("A,B\n1,2\n3,4\n", encoding="utf-8")

    assert _demo_jobs.memguard(tmp_path / "in", tmp_path / "out", lambda done: None) == 2

    assert sizes == [8, 12, 12]


def test_where_the_kernel_keeps_no_peak_the_job_is_looked_at_now_and_then(monkeypatch):
    monkeypatch.setattr("memguard.sampling._peak._KernelMark.works", staticmethod(lambda: False))

    assert _demo_jobs._measurement().meter == "sampled"
