"""
What is held to which budget, and what a failure says.
"""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

BUDGETS = """
import unittest
import pytest

MIB = 1024**2
KEPT = []

pytestmark = pytest.mark.memory_budget("64 MiB")


def one_call(mib):
    b"x" * (mib * MIB)


def joined(mib):
    b"".join([b"x" * MIB] * (mib - 1))


def small_objects(mib):
    sorted(range(mib * MIB // 40))  # 32 bytes for each number, and 8 in the list


@pytest.mark.parametrize("take", [one_call, joined, small_objects])
@pytest.mark.parametrize("mib", [63, 65])
def test_module(take, mib):
    take(mib)


@pytest.fixture
def large():
    return b"x" * (90 * MIB)


def test_set_up_is_not_counted(large):
    assert large


@pytest.mark.memory_budget("6 MiB")
class TestClass:
    @pytest.mark.parametrize("mib", [4, 8])
    def test_class(self, mib):
        one_call(mib)

    @pytest.mark.memory_budget("12 MiB")
    @pytest.mark.parametrize("mib", [8, 16, pytest.param(17, marks=pytest.mark.memory_budget("20 MiB"))])
    def test_function(self, mib):
        one_call(mib)


@pytest.mark.memory_budget(lambda mib, extra=0: (mib + 2) * MIB, kept=None)
@pytest.mark.parametrize("mib", [4, 30])
def test_callable(mib):
    one_call(mib)


@pytest.mark.memory_budget(None)
def test_no_limit():
    one_call(90)


@pytest.mark.memory_budget("64 MiB", kept="3 MiB")
@pytest.mark.parametrize("keep", [False, True])
def test_kept(keep):
    rows = [{"number": number} for number in range(40_000)]
    rows.append(rows)  # garbage, unless it is kept
    if keep:
        KEPT.append(rows)


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.memory_budget("6 MiB")
def test_xfail():
    one_call(8)


@pytest.mark.memory_budget("6 MiB")
def test_its_own_failure_wins():
    one_call(8)
    assert 1 == 2


class TestCase(unittest.TestCase):
    def setUp(self):
        self.large = b"x" * (20 * MIB)

    @pytest.mark.memory_budget("6 MiB")
    def test_case_within(self):
        one_call(4)

    @pytest.mark.memory_budget("6 MiB")
    def test_case_over(self):
        one_call(8)


class TestAsyncCase(unittest.IsolatedAsyncioTestCase):
    @pytest.mark.memory_budget("6 MiB")
    async def test_async_within(self):
        one_call(4)

    @pytest.mark.memory_budget("6 MiB")
    async def test_async_over(self):
        one_call(8)


def test_block(memory_budget):
    with memory_budget("6 MiB", kept="1 MiB") as used:
        one_call(4)
    assert 3.5 * MIB < used.peak_bytes < 4.5 * MIB
    assert used.kept_bytes < MIB
    assert used.seconds > 0
    with pytest.raises(AssertionError, match="the block is over its memory budget: a peak of 8 MiB"), memory_budget("6 MiB"):
        one_call(8)
    with pytest.raises(KeyError), memory_budget("6 MiB"):
        one_call(8)
        raise KeyError
"""

OVER = [
    "test_module[65-one_call]",
    "test_module[65-joined]",
    "test_module[65-small_objects]",
    "TestClass::test_class[8]",
    "TestClass::test_function[16]",
    "test_kept[True]",
    "test_its_own_failure_wins",
    "TestCase::test_case_over",
    "TestAsyncCase::test_async_over",
]


def test_a_budget_fails_what_takes_more_and_nothing_else(pytester):
    pytester.makepyfile(test_it=BUDGETS)

    run = pytester.runpytest_subprocess("-q", "-rf")

    failed = [line.split(" - ")[0] for line in run.outlines if line.startswith("FAILED ")]
    assert sorted(failed) == sorted(f"FAILED test_it.py::{name}" for name in OVER)
    run.assert_outcomes(failed=len(OVER), passed=14, xfailed=1)
    text = run.stdout.str()
    assert "test_case_over is over its memory budget: a peak of " in text
    assert ", the limit is 6 MiB (" in text
    assert "kept memory of " in text
    assert "  builtins.dict: +" in text
    assert "assert 1 == 2" in text


def test_the_ini_file_sets_the_budget_of_tests_without_a_marker(pytester):
    pytester.makeini("[pytest]\nmemory_budget = 6 MiB\n")
    pytester.makepyfile(
        """
        import pytest

        def test_over():
            b"x" * 8_000_000

        @pytest.mark.memory_budget("20 MiB")
        def test_has_its_own():
            b"x" * 8_000_000

        def test_within():
            b"x" * 4_000_000
        """
    )

    run = pytester.runpytest_subprocess("-q")

    run.assert_outcomes(failed=1, passed=2)
    run.stdout.fnmatch_lines(["test_over is over its memory budget: a peak of 7.* MiB, the limit is 6 MiB (*"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("memory_budget('512m')", "*memory_budget: '512m' has two meanings*"),
        ("memory_budget()", "*memory_budget: it missing 1 required*"),
        ("memory_budget(True)", "*memory_budget: True is not a size*"),
        ("memory_budget(lambda rows: rows)", "*the test has no parameter rows; it has none"),
        ("no_memory_leak(repeat=0)", "no_memory_leak takes repeat and warmup, calls from 1 on; got repeat=0"),
        ("no_memory_leak(times=3)", "no_memory_leak takes repeat and warmup, calls from 1 on; got times=3"),
    ],
)
def test_a_marker_that_makes_no_sense_fails_its_test(pytester, marker, said):
    pytester.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_it(): pass")

    run = pytester.runpytest_inprocess("-q")

    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines([said])


def test_the_function_is_itself_again_after_its_call(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def function(request):
            before = request.node.obj
            yield
            assert request.node.obj == before

        @pytest.mark.memory_budget("64 MiB")
        class TestIt:
            def test_it(self, function): pass
        """
    )

    pytester.runpytest_inprocess("-q").assert_outcomes(passed=1)
