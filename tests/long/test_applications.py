"""
Whole applications, written from the README, beside a limit that kills each of them without memguard. Long because each
is run again and again, and works for seconds or minutes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from memguard.cli._box import make_box

pytestmark = pytest.mark.long("applications")
MIB = 1024**2
APPLICATIONS = Path(__file__).with_name("applications.py")
TIMES = 3
SECONDS = 300.0
TOO_LATE = 124
IMAGES, POOLS, TABLES = 256, 256, 200  # MiB of the boxes


@dataclass(frozen=True)
class Run:
    """What became of an application."""

    status: int
    said: str
    errors: str
    seconds: float
    peak: int
    killed: int

    @property
    def alive(self) -> bool:
        return self.status == 0 and not self.killed

    @property
    def complete(self) -> bool:
        done, _, wanted = self.said.partition(" of ")
        return bool(done) and done == wanted


def once(name: str, way: str, mebibytes: int, folder: Path) -> Run:
    with (
        make_box(mebibytes * MIB, kind="cgroup") as box,
        # Files, not pipes: workers that outlive a killed parent would hold a pipe open.
        tempfile.TemporaryFile("w+") as said,
        tempfile.TemporaryFile("w+") as errors,
    ):
        command = box.command([sys.executable, str(APPLICATIONS), name, way, str(folder)])
        began = time.monotonic()
        with subprocess.Popen(command, stdout=said, stderr=errors) as process:
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                status = TOO_LATE
        took = time.monotonic() - began
        said.seek(0)
        errors.seek(0)
        text = said.read().strip(), errors.read()
        run = Run(status, *text, took, box.peak_bytes() or 0, box.oom_kills() or 0)
    for result in folder.glob("out.*"):
        result.unlink()
    return run


def compare(name: str, mebibytes: int, folder: Path) -> None:
    """Run the application once without memguard and TIMES with it, print a line of the table, and judge."""
    plain = once(name, "plain", mebibytes, folder)
    runs = [once(name, "guarded", mebibytes, folder) for _ in range(TIMES)]

    without = "killed" if plain.killed else f"ended with {plain.status}: {plain.said}"
    print(
        f"\n| {name} | {mebibytes} MiB | {TIMES} runs | alive {sum(run.alive for run in runs)} | "
        f"complete {sum(run.complete for run in runs)} | {', '.join(f'{run.seconds:.1f}' for run in runs)} s | "
        f"peak {max(run.peak for run in runs) // MIB} MiB | without: {without} |"
    )
    assert all(run.alive and run.complete for run in runs), [(run.status, run.said, run.errors[-3000:]) for run in runs]
    assert plain.killed, "the limit is no test: it is kept without memguard, too"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pictures")
    noise = image.effect_noise((1000, 750), 60).convert("RGB")

    def save(name, width, height):
        noise.resize((width, height)).save(folder / name, "JPEG")

    save("equal.jpg", 4000, 3000)
    for number in range(8):
        save(f"mixed{number}.jpg", 500 * (number + 1), 375 * (number + 1))
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of 400 MB, and beside it how many rows it has."""
    folder = tmp_path_factory.mktemp("table")
    rows, written = 0, 0
    with (folder / "table.csv").open("w", encoding="utf-8") as file:
        file.write("id,name,city,note,amount\n")
        while written < 400_000_000:
            lines = "".join(
                f"{number},name {number},city {number % 977},{number * 7919:060d},{number / 8}\n"
                for number in range(rows, rows + 10_000)
            )
            written += file.write(lines)
            rows += 10_000
    (folder / "rows").write_text(str(rows))
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("cost", ["computed", "learned"])
@pytest.mark.parametrize("sizes", ["equal", "mixed"])
def test_80_clients_at_once_get_their_images_from_a_threaded_service(sizes, cost, pictures):
    compare(f"{sizes} images, {cost} cost", IMAGES, pictures)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_chunks_in_a_pool_of_eight_are_all_done(pool, tmp_path):
    compare(f"chunks in {pool}", POOLS, tmp_path)


def test_a_producer_faster_than_its_consumers_waits_until_done_callbacks_give_bytes_back(tmp_path):
    compare("producer", POOLS, tmp_path)


def test_a_csv_file_of_400_mb_gets_into_sqlite(table):
    compare("CSV into SQLite", TABLES, table)


def test_a_csv_file_of_400_mb_becomes_parquet_by_way_of_pandas(table):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    compare("pandas into Parquet", TABLES, table)
