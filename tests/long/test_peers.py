"""
The peers' own tests against ours: cachetools, functools, async-lru and lru-dict, through a thin adapter.

Long because the tests are fetched from the package index when they are run; without it that is said, and skipped. Each
test that fails stands in a table with its reason. None of them loses, repeats or mixes up a result.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long("peers")
HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
SECONDS = 300
NOT_THERE = "a bound of none, zero or less is refused: a cache without room is a mistake"
REJECTED = "a value that is too large is counted and not stored; no ValueError"
COUNTS = "cache_clear() leaves the counts of hits and misses: they are of the function's life"
LOCKS = "the decorator has a lock of its own and takes none"
FLIGHT = "one computation for all callers of one key; an endless recursion is an error"
NAMES = "a name that ours has not"

FUNCTOOLS = "import unittest\nimport peer_adapters\nfrom test import test_functools\n\n\n"
FUNCTOOLS += "class TestOurs(test_functools.TestLRU, unittest.TestCase):\n    module = peer_adapters\n"

PEERS = {
    "cachetools": (
        ["tests/test_lru.py", "tests/test_ttl.py", "tests/test_cached.py"],
        {
            r"test_(copy|deepcopy|pickle)_maxsize|test_maxsize_(zero|negative)|zero_size": NOT_THERE,
            r"test_(getsizeof_(param|subclass)|lru_getsizeof|copy_getsizeof)": REJECTED,
            r"test_missing": "no __missing__ hook: setdefault, or the decorator",
            r"test_defaults|test_popitem_exception_context|test_decorator_repr": "another repr, another context",
            r"test_ttl(_(clear|copy|expire|iter_expired|timer|tuple_key|deepcopy_timer))?$": "a timer that is entered",
            r"test_ttl_datetime": "a time to live is seconds",
            r"test_ttl_iter_modify": "iteration goes over the keys as they were, and forgives changes",
            r"test_decorator_(attributes|clear|cond|lock|info|method)": LOCKS,
            r"CustomCacheTest|InvalidCacheTest": "a cache is a mutable mapping that counts",
        },
    ),
    "async-lru": (
        ["tests", "--ignore=tests/test_internals.py", "--ignore=tests/test_thread_safety.py"],
        {
            r"cache_contains|test_size|dict_not_shared|pending_task|ttl_callback": NAMES,
            r"test_cache_(clear|info|close)|test_close|test_exception|zero_max_size": COUNTS,
            r"test_key|jitter|not_callable": "the adapter has no key= and no jitter=",
            r"invalidate_cache_for_method": "wrapper.invalidate of a method takes the object, or is called through it",
            r"partial": "a partial method is no coroutine function for the adapter",
        },
    ),
    "lru-dict": (
        ["test/test_lru.py"],
        {
            r"test_(callback|pop|stats)": NAMES,
        },
    ),
    "functools": (
        ["test_ours.py"],
        {
            r"test_(copy|deepcopy|pickle|lru_cache_decoration)": "the module has functions at its top that ours has not",
            r"test_lru$|maxsize_negative|reentrancy_with_len": NOT_THERE,
            r"test_lru_with_(keyword_args|maxsize_none)": COUNTS,
            r"test_lru_bug_35780|threaded2": FLIGHT,
            r"hash_only_once": "a key is hashed more than once; the result is the same",
        },
    ),
}


def fetched(peer: str, folder: Path) -> Path:
    """Return where the tests of *peer* are; skip if they cannot be had."""
    if peer == "functools":
        pytest.importorskip("test.test_functools", reason="this interpreter has no tests of its own")
        (folder / "test_ours.py").write_text(FUNCTOOLS)
        return folder
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", peer]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], check=False, capture_output=True).returncode:
        command[0] = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [*command, "--dest", str(folder)], check=False, capture_output=True, text=True, timeout=SECONDS
    )
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        print(f"\n{peer}: its tests cannot be had: {done.stderr.strip()[-200:]}")
        pytest.skip(f"the tests of {peer} cannot be had from the package index")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("peer", PEERS)
def test_what_fails_of_a_peer_s_tests_fails_for_a_reason(peer, tmp_path):
    arguments, reasons = PEERS[peer]
    root = fetched(peer, tmp_path)
    options = ["-q", "-rfE", "--tb=no", "-p", "no:asyncio", "-p", "peer_adapters", "-p", "no:cacheprovider"]
    out = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, "--rootdir=.", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{SOURCE}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    ).stdout
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
    passed = re.search(r"(\d+) passed", out)

    assert passed, out[-2000:]
    print(f"\n{peer}: {passed[1]} passed, {len(failed)} failed")
    unexplained = []
    for name in failed:
        reason = next((reason for pattern, reason in reasons.items() if re.search(pattern, name)), None)
        print(f"  {name.rpartition('::')[2]:<60} {reason}")
        unexplained += [name] * (reason is None)
    assert unexplained == []
