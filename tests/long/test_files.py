"""
Files for real: killed at any instant, in a small container, on file systems that share extents, on a full disk.

Long because of 300 kills, of gigabytes, and of file systems that are made for it. What cannot run here says so.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uploader

from memguard import (
    UNGUARDED,
    AssemblyError,
    InsufficientDiskError,
    UnsafeNameError,
    UploadNotFoundError,
    UploadStore,
    assemble,
    measure_peak,
)
from memguard.cli._box import make_box

pytestmark = [
    pytest.mark.long("files"),
    pytest.mark.skipif(sys.platform != "linux", reason="it is a matter of Linux"),
]
MIB = 1024**2
UPLOADER = Path(uploader.__file__)
ASSEMBLER = UPLOADER.with_name("assembler.py")
CAT = 'cat "$0"/* > "$1"'
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")


# ----- killed


class Killed:
    """One upload that is killed, and what it had acknowledged until then."""

    def __init__(self, folder, number, chance):
        self.root, self.out = folder / "store", folder / "out"
        for path in (self.root, self.out):
            path.mkdir(exist_ok=True)
        self.dest = self.out / f"film-{number}.mp4"
        self.chunk_bytes = chance.choice([4096, 8192, 16384, 65536])
        self.chunks = chance.choice([20, 60])
        self.whole = uploader.whole(self.chunk_bytes, self.chunks)
        self.name = f"film-{number}"
        self.words = set()

    def run(self, seconds, threads=3):
        """Let it run for *seconds*, then kill it; tell whether it was killed before its end."""
        arguments = [self.root, self.dest, self.name, self.chunk_bytes, self.chunks, threads, "random"]
        command = [sys.executable, UPLOADER, *map(str, arguments)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            first = child.stdout.read1(6) if select.select([child.stdout], [], [], 60)[0] else b""
            assert first == b"ready\n", child.stderr.read()
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
            self.words |= set((child.stdout.read() + b"").decode().split())
            errors = child.stderr.read().decode()
        assert not errors
        return child.returncode == -signal.SIGKILL

    def acknowledged(self):
        return {int(word) for word in self.words if word.isdigit()}

    def piece(self, index):
        return self.whole[index * self.chunk_bytes : (index + 1) * self.chunk_bytes]


def store_of(folder):
    return UploadStore(folder / "store", breaker=UNGUARDED)


def check_after_kill(job, store):
    """Look at what is left of it, as the next process does; return the upload, if it was begun."""
    if job.dest.exists():
        assert job.dest.read_bytes() == job.whole
    try:
        upload = store.open(job.name)
    except UploadNotFoundError:
        assert "created" not in job.words
        assert not job.dest.exists()
        return None
    assert job.acknowledged() <= set(range(job.chunks)) - set(upload.missing)
    data = store.root / job.name / "data"
    there = data if data.exists() else job.dest
    found = there.read_bytes()
    for index in set(range(job.chunks)) - set(upload.missing):
        assert found[index * job.chunk_bytes :][: len(job.piece(index))] == job.piece(index)
    return upload


def test_killed_at_300_random_instants_no_acknowledged_chunk_is_lost_and_nothing_is_left_behind(tmp_path):
    chance, store, kills, number = random.Random(7), store_of(tmp_path), 0, 0
    stages = dict.fromkeys(["not begun", "receiving", "published"], 0)
    while kills < 300:
        number += 1
        job = Killed(tmp_path, number, chance)
        for _ in range(chance.choice([1, 2, 3])):
            if not job.run(chance.uniform(0, 0.05 if job.chunks == 60 else 0.02)):
                break
            kills += 1
            upload = check_after_kill(job, store)
            stages["not begun" if upload is None else "published" if job.dest.exists() else "receiving"] += 1
            if upload is not None:
                upload.close()
        if chance.random() < 0.5:  # the next process goes on; else nobody ever comes back
            wanted = {"total_bytes": len(job.whole), "chunk_bytes": job.chunk_bytes, "content_id": job.name}
            with store.create(job.name, **wanted) as upload:
                for index in upload.missing:
                    upload.write_chunk(index, job.piece(index))
                upload.finish(job.dest)
            assert job.dest.read_bytes() == job.whole
        store.remove_stale(older_than=0)
        assert list(store.root.iterdir()) == []
        assert {path.name for path in job.out.iterdir()} <= {job.dest.name}
        job.dest.unlink(missing_ok=True)

    print(f"\n{kills} kills of {number} uploads: {stages}")
    assert min(stages.values()) > 5


@pytest.mark.parametrize("mode", ["new", "overwrite"])
@pytest.mark.parametrize("disk", ["same", "other"])
@pytest.mark.parametrize("then", ["finish", "remove"])
def test_killed_at_every_call_of_finish_the_file_is_whole_or_absent_and_finish_can_be_called_again(
    tmp_path, mode, disk, then, other_disk
):
    out = tmp_path / "out" if disk == "same" else other_disk
    out.mkdir(exist_ok=True)
    dest, store, number, killed = out / "film.mp4", store_of(tmp_path), 0, True
    whole = uploader.whole(4096, 20)
    while killed:
        number += 1
        for path in out.iterdir():
            path.unlink()
        if mode == "overwrite":
            dest.write_bytes(b"before")
        with store.create("film", total_bytes=len(whole), chunk_bytes=4096) as upload:
            for index in upload.missing:
                upload.write_chunk(index, whole[index * 4096 : (index + 1) * 4096])
        command = [sys.executable, UPLOADER, store.root, dest, "film", "4096", "20", "1", str(number), mode]
        child = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        killed = child.returncode == -signal.SIGKILL
        assert killed or (child.returncode, child.stdout) == (0, "finished\n"), child.stderr
        before = b"before" if mode == "overwrite" else None
        there = dest.read_bytes() if dest.exists() else None
        assert there in ([whole, before] if killed else [whole])

        if then == "finish":
            with store.open("film") as upload:
                upload.finish(dest, overwrite=mode == "overwrite")
            there = whole
        store.remove_stale(older_than=0)

        assert (dest.read_bytes() if dest.exists() else None) == there, f"killed before call {number}"
        assert list(store.root.iterdir()) == [], f"killed before call {number}"
        assert {path.name for path in out.iterdir()} <= {dest.name}, f"killed before call {number}"
    print(f"\n{mode}, {disk} disk, {then}: {number - 1} calls")
    assert number > 20


@pytest.fixture
def other_disk(tmp_path):
    """A folder on another file system than *tmp_path*."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system here")
    folder = shm / f"files-{os.getpid()}"
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# ----- in a small container


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """500 files of 2 MB: a GB."""
    folder, block = tmp_path_factory.mktemp("parts"), os.urandom(2 * MIB)
    for index in range(500):
        (folder / f"{index:03}").write_bytes(index.to_bytes(8, "big") + block[8:])
    os.sync()
    yield folder
    shutil.rmtree(folder)


def digest_of(paths):
    hasher, buffer = hashlib.sha256(), memoryview(bytearray(256 * 1024))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                hasher.update(buffer[:got])
    return "sha256:" + hasher.hexdigest()


def forget(paths):
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def run_in_box(label, command):
    """Run *command* in a container of 64 MiB; return the peak of all that counted against that, and the refusals."""
    try:
        box = make_box(64 * MIB, kind="cgroup")
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    with box:
        began = time.perf_counter()
        out = subprocess.run(
            box.command(list(map(str, command))), capture_output=True, text=True, timeout=300, check=False
        )
        seconds = time.perf_counter() - began
        peak, failures = box.peak_bytes(), box.directory / "memory.failcnt"
        failed = int(failures.read_text()) if failures.exists() else 0
    print(f"\n{label:<36} {seconds:5.2f} s, peak {peak / MIB:.1f} MiB, {failed} failures to reclaim")
    assert out.returncode == 0, (out.returncode, out.stderr)
    return peak, failed


@pytest.mark.parametrize(
    ("how", "checked", "most_mib"),
    [("assemble", False, 20), ("upload", False, 20), ("assemble", True, 20), ("threads", False, 24)],
    ids=["assemble", "upload", "assemble with sha256", "upload in threads"],
)
def test_a_gb_takes_20_mib_of_a_container_page_cache_included(tmp_path, parts, how, checked, most_mib):
    paths, dest = sorted(parts.iterdir()), tmp_path / "whole"
    digest = digest_of(paths)

    forget(paths)
    run_in_box("cat", ["/bin/sh", "-c", CAT, parts, dest])
    dest.unlink()
    forget(paths)
    checksum = [digest] if checked else []
    peak, failed = run_in_box(
        f"{how}{' with sha256' * checked}", [sys.executable, ASSEMBLER, how, parts, dest, *checksum]
    )

    assert digest_of([dest]) == digest
    dest.unlink()
    assert failed == 0
    assert peak <= most_mib * MIB


def test_a_sparse_part_of_20_gb_costs_no_memory(tmp_path):
    if shutil.disk_usage(tmp_path).free < 25 * 1024**3:
        pytest.skip("25 GB of disk are needed")
    part, dest = tmp_path / "part", tmp_path / "whole"
    part.touch()
    assemble([os.devnull], tmp_path / "warm", checksum="crc32", durable=False)

    for checksum, gb in ((None, 20), ("crc32", 20)):
        os.truncate(part, gb * 1024**3)
        with measure_peak() as used:
            assemble([part], dest, checksum=checksum, durable=False)
        size = dest.stat().st_size
        dest.unlink()
        print(f"\n{gb} GB, checksum {checksum}: {used.seconds:.1f} s, {used.peak_bytes / MIB:.2f} MiB")
        assert size == gb * 1024**3
        assert used.peak_bytes <= MIB


# ----- file systems


def tool(name, package, folder):
    """Return the command *name* and its environment; from the distribution's package where it is not installed."""
    if found := shutil.which(name, path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin"):
        return found, None
    try:
        subprocess.run(
            ["apt-get", "download", "-q", *package], cwd=folder, capture_output=True, timeout=120, check=True
        )
        for deb in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, folder / "root"], capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"there is no {name} here, nor can {package[0]} be had")
    libraries = ":".join(str(path) for path in (folder / "root").glob("**/*-linux-gnu") if path.is_dir())
    return str(next((folder / "root").glob(f"**/{name}"))), {**os.environ, "LD_LIBRARY_PATH": libraries}


def mount(kind, source, folder, options):
    folder.mkdir()
    out = subprocess.run(
        ["mount", "-t", kind, "-o", options, source, folder], capture_output=True, text=True, check=False
    )
    if out.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {out.stderr.strip()}")


def unmount(folder):
    subprocess.run(["umount", folder], check=True, capture_output=True)


@pytest.fixture(
    params=[("xfs", "xfsprogs", "libinih1", "liburcu8"), ("btrfs", "btrfs-progs")], ids=lambda each: each[0]
)
def sharing_disk(request, tmp_path):
    """A file system whose files may share their extents."""
    kind, *packages = request.param
    (tmp_path / "tools").mkdir()
    command, environ = tool(f"mkfs.{kind}", packages, tmp_path / "tools")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(2 * 1024**3)
    out = subprocess.run([command, image], env=environ, capture_output=True, text=True, check=False)
    if out.returncode:
        pytest.skip(f"mkfs.{kind} fails here: {out.stderr.strip()}")
    mount(kind, image, folder, "loop")
    yield folder
    unmount(folder)
    image.unlink()


def used_bytes(folder):
    subprocess.run(["sync", "-f", folder], check=True)
    disk = os.statvfs(folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


@needs_root
def test_where_extents_can_be_shared_nothing_is_copied(sharing_disk):
    paths = [sharing_disk / f"{index:03}" for index in range(200)]
    for path in paths:
        path.write_bytes(os.urandom(2 * MIB))
    before = used_bytes(sharing_disk)

    sharing, durable = [], []
    for number in range(10):
        began = time.perf_counter()
        assemble(paths, sharing_disk / "whole", overwrite=number > 0, durable=number % 2 > 0)
        (durable if number % 2 else sharing).append((time.perf_counter() - began) * 1000)
    extra = used_bytes(sharing_disk) - before
    began = time.perf_counter()
    with (sharing_disk / "copy").open("wb") as copy:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, copy, 256 * 1024)
        cached = (time.perf_counter() - began) * 1000
        os.fsync(copy.fileno())
    copying = (time.perf_counter() - began) * 1000

    ratio = copying / min(durable)
    print(
        f"\n400 MB: {min(sharing):.1f} ms, durable {min(durable):.1f} ms; {extra} bytes more; copied to the page cache"
    )
    print(f"{cached:.0f} ms, to the disk {copying:.0f} ms: {ratio:.0f} times")
    assert digest_of([sharing_disk / "whole"]) == digest_of(paths)
    assert extra <= 4 * MIB  # what describes the extents
    assert ratio >= 20


@needs_root
def test_what_is_shared_needs_no_room(sharing_disk):
    paths = [sharing_disk / f"{index:03}" for index in range(200)]
    for path in paths:
        path.write_bytes(os.urandom(2 * MIB))
    number = 0
    while used_bytes(sharing_disk) and shutil.disk_usage(sharing_disk).free > 370 * MIB:
        number += 1
        (sharing_disk / f"filler-{number}").write_bytes(bytes(32 * MIB))

    for number, given in enumerate([paths, iter(paths), iter([paths[0], *paths])]):
        assemble(given, sharing_disk / f"whole-{number}")
    assert digest_of([sharing_disk / "whole-0"]) == digest_of([sharing_disk / "whole-1"]) == digest_of(paths)
    odd = sharing_disk / "odd"
    odd.write_bytes(b"odd")
    with pytest.raises(InsufficientDiskError):
        assemble([odd, *paths], sharing_disk / "copied")
    assert not (sharing_disk / "copied").exists()


@pytest.fixture
def small_disk(tmp_path):
    """8 MiB."""
    folder = tmp_path / "small"
    mount("tmpfs", "tmpfs", folder, "size=8m")
    yield folder
    unmount(folder)


def leftovers(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@needs_root
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, small_disk):
    part = tmp_path / "part"
    part.write_bytes(bytes(3 * MIB))
    for given, error in [([part] * 4, InsufficientDiskError), (iter([part] * 4), InsufficientDiskError)]:
        with pytest.raises(error, match="small"):
            assemble(given, small_disk / "whole")
        assert leftovers(small_disk) == []
    with Path("/dev/zero").open("rb") as endless, pytest.raises(OSError) as failed:
        assemble([f"/dev/fd/{endless.fileno()}"], small_disk / "whole")
    assert failed.value.errno == errno.ENOSPC
    assert leftovers(small_disk) == []

    store = UploadStore(small_disk / "store", min_free_bytes=0, breaker=UNGUARDED)
    with pytest.raises(InsufficientDiskError):
        store.create("film", total_bytes="9 MiB", chunk_bytes="1 MiB")
    assert leftovers(small_disk) == ["store"]


@needs_root
def test_a_chunk_that_the_disk_cannot_take_does_not_count_and_can_come_again(small_disk):
    store = UploadStore(small_disk / "store", min_free_bytes=0, reserve_space=False, breaker=UNGUARDED)
    filler = small_disk / "filler"
    with store.create("film", total_bytes="4 MiB", chunk_bytes="1 MiB") as upload:
        filler.write_bytes(bytes(6 * MIB))
        outcomes = []
        for index in range(4):
            try:
                upload.write_chunk(index, bytes(MIB))
                outcomes.append(None)
            except OSError as error:
                outcomes.append(error.errno)
        assert errno.ENOSPC in outcomes
        assert upload.missing == tuple(index for index, outcome in enumerate(outcomes) if outcome)

        filler.unlink()
        for index in upload.missing:
            upload.write_chunk(index, bytes(MIB))
        upload.finish(small_disk / "film")
    assert (small_disk / "film").read_bytes() == bytes(4 * MIB)


def test_a_folder_removed_meanwhile_is_a_clear_error(tmp_path):
    store, out = store_of(tmp_path), tmp_path / "out"
    out.mkdir()
    with store.create("film", total_bytes=8, chunk_bytes=4) as upload:
        upload.write_chunk(0, b"1234")
        upload.write_chunk(1, b"5678")
        out.rmdir()
        with pytest.raises(FileNotFoundError, match="out"):
            upload.finish(out / "film")
        with pytest.raises(FileNotFoundError, match="out"):
            assemble([UPLOADER], out / "film")
        shutil.rmtree(store.root)
        for call in (
            lambda: upload.write_chunk(0, b"1234"),
            lambda: upload.missing,
            lambda: upload.finish(out / "film"),
        ):
            with pytest.raises(UploadNotFoundError, match="film"):
                call()
    assert leftovers(tmp_path) == []


NOBODY = """
import os, sys
import memguard
root, part, out = sys.argv[1:]
store = memguard.UploadStore(root, breaker=memguard.UNGUARDED)
upload = store.create("film", total_bytes=4, chunk_bytes=4)
upload.write_chunk(0, b"1234")
os.setgid(65534); os.setuid(65534)
for call in (
    lambda: memguard.assemble([part], out),
    lambda: upload.finish(out),
    lambda: store.open("film"),
    lambda: store.create("other", total_bytes=4, chunk_bytes=4),
):
    try:
        call()
    except PermissionError as error:
        print(error.filename)
"""


@needs_root
def test_permissions_lost_meanwhile_are_a_clear_error(tmp_path):
    part, out = tmp_path / "part", tmp_path / "out"
    out.mkdir()
    part.write_bytes(b"x")
    for folder in (*list(tmp_path.parents)[:2], tmp_path, out):
        folder.chmod(0o755)
    command = [sys.executable, "-c", NOBODY, tmp_path / "store", part, out / "film"]
    child = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)

    told = child.stdout.split()
    assert (child.returncode, len(told)) == (0, 4), child.stderr
    assert all(str(tmp_path) in path for path in told)
    assert leftovers(tmp_path) == ["out", "part", "store", "store/film", "store/film/data", "store/film/journal"]


# ----- what clients send

ODD = [
    "..",
    "/",
    "\\",
    "\0",
    "~",
    "%2e",
    " ",
    ".",
    "-",
    "a",
    "COM1",
    ":",
    "\n",
    "é",
    "\u202e",
    "\ud800",
    "nul.",
    "*",
    "$(x)",
]


def test_a_thousand_odd_names_and_indexes_touch_nothing_outside(tmp_path):
    chance, store = random.Random(11), UploadStore(tmp_path / "in" / "store", breaker=UNGUARDED)
    outside = tmp_path / "in" / "outside"
    outside.write_bytes(b"untouched")
    taken = 0
    for _ in range(1000):
        name = "".join(chance.choice([*ODD, chr(chance.randrange(1, 500))]) for _ in range(chance.randrange(9)))
        for call in (store.open, lambda given: store.create(given, total_bytes=8, chunk_bytes=4)):
            try:
                call(name).close()
                taken += 1
            except (UnsafeNameError, UploadNotFoundError):
                pass
    assert all(path.is_dir() and path.parent == store.root for path in store.root.iterdir())

    with store.create("film", total_bytes=8, chunk_bytes=4) as upload:
        for _ in range(1000):
            index = chance.choice(
                [-1, 2, chance.randrange(2, 2**80), -chance.randrange(2**80), 0.0, "0", None, True, b"0"]
            )
            with pytest.raises((IndexError, TypeError)):
                upload.write_chunk(index, b"1234")
        assert upload.missing == (0, 1)
        with pytest.raises(AssemblyError):
            upload.finish(tmp_path / "film")

    print(f"\n{taken} of the names were fine")
    assert outside.read_bytes() == b"untouched"
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["outside", "store"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
