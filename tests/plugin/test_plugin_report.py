"""
The table, the file, the comparison; and that nothing happens where nothing is asked.
"""

from __future__ import annotations

import json

import pytest

from memguard.pytest_plugin._report import Higher, Taken, higher

pytest_plugins = ["pytester"]
MIB = 1024**2

TESTS = """
    import pytest

    def test_large():
        b"x" * 12_000_000

    def test_middle():
        b"x" * 6_000_000

    def test_small():
        pass

    def test_that_fails():
        b"x" * 3_000_000
        assert False
    """


def entry(peak_mib, meter="kernel"):
    return {"peak_bytes": peak_mib * MIB, "kept_bytes": 0, "seconds": 0.1, "meter": meter}


def test_a_run_is_compared_and_saved(pytester):
    pytester.makepyfile(test_it=TESTS)
    meter = json.loads(first_save(pytester))["tests"]["test_it.py::test_small"]["meter"]
    before = {"test_it.py::test_large": entry(4, meter), "test_it.py::test_middle": entry(20, meter)}
    pytester.path.joinpath("base.json").write_text(json.dumps({"memguard": 1, "tests": before}))

    run = pytester.runpytest_subprocess(
        "-q", "--deselect=test_it.py::test_that_fails", "--memguard-compare=base.json", "--memguard-top=2"
    )

    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.assert_outcomes(passed=3, deselected=1)
    run.stdout.fnmatch_lines(
        [
            "*= memory of tests =*",
            "*peak * kept * seconds * test",
            "* 11.* MiB * test_it.py::test_large",
            "* 5.* MiB * test_it.py::test_middle",
            "*= peaks higher than before =*",
            "* 4 MiB -> * 11.* MiB  test_it.py::test_large",
        ]
    )
    run.stdout.no_fnmatch_line("*test_small")


def first_save(pytester):
    run = pytester.runpytest_subprocess("-q", "--memguard-save=base.json")
    run.stdout.fnmatch_lines(["memguard: wrote what 3 tests took to *base.json"])
    run.stdout.no_fnmatch_line("*memory of tests*")
    assert [path.name for path in pytester.path.glob("base*")] == ["base.json"]
    return pytester.path.joinpath("base.json").read_text()


@pytest.mark.parametrize(
    ("before", "now", "tolerance", "expected"),
    [
        pytest.param(10, 11, 0.0, [], id="1 MiB more is noise"),
        pytest.param(10, 12, 0.1, [Higher("test", 10 * MIB, 12 * MIB)], id="2 MiB more than 10"),
        pytest.param(100, 109, 0.1, [], id="9 % more"),
        pytest.param(100, 111, 0.1, [Higher("test", 100 * MIB, 111 * MIB)], id="11 % more"),
        pytest.param(10, 5, 0.0, [], id="less"),
    ],
)
def test_a_peak_is_higher_beyond_the_tolerance(before, now, tolerance, expected):
    was, taken = Taken(before * MIB, 0, 0.1, "kernel"), Taken(now * MIB, 0, 0.1, "kernel")

    assert higher({"test": was}, {"test": taken}, lambda peak: tolerance * peak) == expected
    assert higher({}, {"test": taken}, lambda peak: 0) == []
    assert higher({"test": was._replace(meter="tracemalloc")}, {"test": taken}, lambda peak: 0) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memguard-compare=missing.json"], "*missing.json*--memguard-save writes such a file*"),
        (["--memguard-compare=other.json"], "*other.json was not written by --memguard-save*"),
        (["--memguard-top=-1"], "*--memguard-top takes a number of tests, got -1"),
        (["--memguard", "--memguard-tolerance=10"], "*--memguard-tolerance: *write '10%'*"),
        (["-o", "memory_budget=much"], "*ini value memory_budget: 'much' is not a size*"),
    ],
)
def test_a_wrong_option_is_said_at_once(pytester, arguments, said):
    pytester.makefile(".json", other="[]")

    run = pytester.runpytest_inprocess(*arguments)

    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([said])


def test_nothing_is_loaded_where_nothing_is_asked(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.delenv("PYTEST_PLUGINS")
    pytester.makeconftest(
        """
        import sys

        def pytest_terminal_summary(terminalreporter):
            loaded = sorted(name for name in sys.modules if name.startswith("memguard"))
            terminalreporter.write_line(f"loaded {loaded}")
        """
    )
    pytester.makepyfile("def test_it(): pass")

    run = pytester.runpytest_subprocess("-q")

    run.stdout.fnmatch_lines(["loaded [[]'memguard', 'memguard.pytest_plugin']"])
    run.stdout.no_fnmatch_line("*memory of tests*")


def test_the_markers_are_registered(pytester):
    run = pytester.runpytest_inprocess("--markers")

    run.stdout.fnmatch_lines(["@pytest.mark.memory_budget(peak, [*], kept=None): *", "@pytest.mark.no_memory_leak(*"])
