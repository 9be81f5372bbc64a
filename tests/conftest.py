"""
What must hold after every test is checked here, not remembered in each.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memguard.sampling import memory_limit, memory_usage
from memguard.settings import settings

FDS = Path("/proc/self/fd")


def open_files() -> dict[str, str]:
    """Descriptors of this process and what they name; the kept ones of the shared machine reader left out."""
    if not FDS.exists():
        return {}
    found = {}
    for entry in FDS.iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if not target.startswith(("/proc/", "/sys/fs/cgroup")):
            found[entry.name] = target
    return found


def segments() -> set[str]:
    shm = Path("/dev/shm")
    return {path.name for path in shm.iterdir() if "memguard" in path.name} if shm.exists() else set()


@pytest.fixture(autouse=True, scope="session")
def _the_shared_reader_is_open() -> None:
    memory_usage()
    memory_limit()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(_the_shared_reader_is_open) -> Iterator[None]:
    """
    A memory guard that leaks threads or descriptors is no guard: look after every test.
    """
    threads, files, shared = set(threading.enumerate()), open_files(), segments()

    yield

    left = [t for t in threading.enumerate() if t not in threads]
    for thread in left:
        thread.join(30)
    assert [t for t in left if t.is_alive()] == []
    new = set(open_files()) - set(files)
    if new:
        gc.collect()
        new = {name: target for name, target in open_files().items() if name not in files}
    assert not new
    assert segments() <= shared


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests read no settings of the person who runs them."""
    for name in list(os.environ):
        if name.startswith("MEMGUARD_"):
            monkeypatch.delenv(name)
    settings.cache_clear()
    yield
    settings.cache_clear()
