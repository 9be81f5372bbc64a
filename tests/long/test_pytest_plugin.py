"""
The pytest plugin beside other plugins, and the same verdicts twenty times over.

Long because of the repetition, and because it needs pytest-xdist, pytest-asyncio and pytest-rerunfailures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.long("plugin")

PLUGIN = Path(__file__).parent.parent / "plugin"
TIMES = 20

EDGE = """
import pytest

MIB = 1024**2
PINNED = []


def one_call(mib):
    b"x" * (mib * MIB)


def joined(mib):
    b"".join([b"x" * MIB] * (mib - 1))


def small_objects(mib):
    sorted(range(mib * MIB // 40))


def medium_objects(mib):
    rows = [None] * (mib * MIB // (2016 + 8))
    for at in range(len(rows)):
        rows[at] = b"%1967d" % at


@pytest.fixture(scope="module", autouse=True, params=[False, True], ids=["fresh", "fragmented"])
def heap(request):
    if request.param:
        objects = [bytes(number % 3000) for number in range(60_000)]
        PINNED.append(objects[::97])


@pytest.mark.memory_budget("64 MiB")
@pytest.mark.parametrize("time", range(20))
@pytest.mark.parametrize("mib", [63, 65])
@pytest.mark.parametrize("take", [one_call, joined, small_objects, medium_objects])
def test_edge(take, mib, time):
    take(mib)
"""


def outcomes(pytester, *arguments):
    """Run pytest; return the outcome of each test by its id, and the run."""
    run = pytester.runpytest_subprocess("-q", "-rA", *arguments)
    found = {}
    for line in run.outlines:
        outcome, _, rest = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR", "XFAIL"):
            found[rest.split(" - ")[0]] = outcome
    return found, run


def test_one_mib_over_fails_and_one_under_passes_20_of_20_times(pytester):
    pytester.makepyfile(test_it=EDGE)

    found, _ = outcomes(pytester, "-p", "no:asyncio")

    assert len(found) == 2 * 4 * 2 * TIMES
    wrong = [name for name, outcome in found.items() if (outcome == "FAILED") != ("-65-" in name)]
    print(f"{len(found) - len(wrong)} of {len(found)} right")
    assert wrong == []


@pytest.fixture(scope="session")
def sources():
    namespace = {}
    for name in ("leaks", "budgets"):
        exec((PLUGIN / f"test_plugin_{name}.py").read_text(), namespace)
    return namespace


def test_the_verdicts_are_the_same_in_the_workers_of_xdist(pytester, sources):
    pytester.makepyfile(test_leaks=sources["LEAKS"], test_clean=sources["CLEAN"], test_it=sources["BUDGETS"])

    alone, _ = outcomes(pytester, "-p", "no:asyncio")
    spread, run = outcomes(pytester, "-p", "no:asyncio", "-n2", "--memguard-top=3", "--memguard-save=base.json")

    assert spread == alone
    assert list(alone.values()).count("FAILED") == 13 + len(sources["OVER"])
    run.stdout.fnmatch_lines(["*= memory of tests =*", "* MiB * test_it.py::test_no_limit"])
    saved = json.loads(pytester.path.joinpath("base.json").read_text())["tests"]
    assert saved.keys() == {name for name, outcome in spread.items() if outcome == "PASSED"}
    again = pytester.runpytest_subprocess(
        "-q", "-n2", "-p", "no:asyncio", "--memguard-compare=base.json", "test_clean.py"
    )
    again.stdout.fnmatch_lines(["memguard: no peak is higher than before in 14 tests; 0 are new"])


def test_leaks_are_told_from_caches_20_of_20_times(pytester, sources):
    pytester.makepyfile(test_leaks=sources["LEAKS"], test_clean=sources["CLEAN"])
    wrong = []

    for _ in range(TIMES):
        found, _ = outcomes(pytester, "-p", "no:asyncio")
        assert len(found) == 27
        wrong += [name for name, outcome in found.items() if (outcome == "FAILED") != name.startswith("test_leaks")]

    print(f"{27 * TIMES - len(wrong)} of {27 * TIMES} right")
    assert wrong == []


ASYNC = """
import asyncio
import pytest

MIB = 1024**2
KEPT = []
pytestmark = pytest.mark.MARK


@pytest.mark.memory_budget("8 MiB")
@pytest.mark.parametrize("mib", [7, 9])
async def test_budget(mib):
    await asyncio.sleep(0)
    b"x" * (mib * MIB)
    await asyncio.sleep(0)


@pytest.mark.no_memory_leak
async def test_leak():
    await asyncio.sleep(0)
    KEPT.append(object())


@pytest.mark.no_memory_leak
async def test_clean():
    await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))


@pytest.mark.no_memory_leak
async def test_tasks_that_end_by_themselves():
    asyncio.get_running_loop().create_task(asyncio.sleep(0))


async def test_block(memory_budget):
    with memory_budget("8 MiB") as used:
        await asyncio.sleep(0)
        b"x" * (7 * MIB)
    assert used.peak_bytes > 6 * MIB
"""


@pytest.mark.parametrize(
    ("mark", "arguments"),
    [
        pytest.param("asyncio", ["-o", "asyncio_default_fixture_loop_scope=function"], id="pytest-asyncio"),
        pytest.param("anyio", ["-p", "no:asyncio"], id="anyio"),
    ],
)
def test_coroutines_are_measured_and_repeated(pytester, mark, arguments):
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    pytester.makepyfile(test_it=ASYNC.replace("MARK", mark))

    found, _ = outcomes(pytester, *arguments)

    failed = {name.partition("::")[2] for name, outcome in found.items() if outcome == "FAILED"}
    assert failed == {"test_budget[9]", "test_leak"}
    assert len(found) == 6


def test_one_that_is_run_again_is_measured_again(pytester):
    pytester.makepyfile(
        test_it="""
        import pytest
        TIMES = []

        @pytest.mark.flaky(reruns=2)
        @pytest.mark.memory_budget("8 MiB")
        def test_flaky():
            TIMES.append(1)
            b"x" * (12_000_000 if len(TIMES) < 3 else 4_000_000)

        @pytest.mark.flaky(reruns=1)
        @pytest.mark.memory_budget("8 MiB")
        def test_always():
            b"x" * 12_000_000
        """
    )

    run = pytester.runpytest_subprocess("-q", "-p", "no:asyncio", "--memguard", "--memguard-save=base.json", "-rR")

    run.assert_outcomes(passed=1, failed=1)
    assert run.parseoutcomes()["rerun"] == 3
    saved = json.loads(pytester.path.joinpath("base.json").read_text())["tests"]
    assert list(saved) == ["test_it.py::test_flaky"]
    assert 3 < saved["test_it.py::test_flaky"]["peak_bytes"] / 1024**2 < 5


def test_the_verdicts_are_the_same_under_coverage(pytester, sources):
    pytester.makepyfile(test_leaks=sources["LEAKS"], test_clean=sources["CLEAN"], test_it=sources["BUDGETS"])
    plain, _ = outcomes(pytester, "-p", "no:asyncio")
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", "-rA", "-p", "no:asyncio"]

    out = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, timeout=600, check=False).stdout

    covered = {
        line.split(" ", 1)[1].split(" - ")[0]: line.split(" ", 1)[0]
        for line in out.splitlines()
        if line.startswith(("PASSED ", "FAILED ", "ERROR ", "XFAIL "))
    }
    assert covered == plain


def test_loading_the_plugin_takes_less_than_5_ms():
    code = "import pytest, time; began = time.perf_counter(); import memguard.pytest_plugin; print(time.perf_counter() - began)"

    took = [
        float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
        )
        for _ in range(11)
    ]

    print(f"{statistics.median(took) * 1000:.2f} ms")
    assert statistics.median(took) < 0.005
