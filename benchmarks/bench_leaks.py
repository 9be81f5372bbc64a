"""
How many leaks are found, how many healthy processes are called leaking, after how long, and what a sample costs.

Beside memguard stand comparing the ends of the window (1.5 times), linear regression, and Mann-Kendall's test with
the slope of Theil and Sen, as they are usually put to it, over a window of 60 samples. Each judges while samples come
in, those that take long at every fifth. A leak counts as found if the alarm came after it began and stands at the end;
a healthy series counts against a detector if there is an alarm at its end, and is named apart if there ever was one.

The series are seeded; tuning has not seen their seeds, nor the shapes of the last table. No leak among them grows by
half within one window, as few do in life: comparing the ends finds none. With ``--traces DIR`` recorded processes are
judged as well:
``DIR/labels.json`` maps names to ``label`` ("leak" or "no-leak"), ``hardness`` ("undecidable" is left out),
``loop_start_index``, ``onset_index`` and perhaps ``cause``; ``DIR/traces/NAME.csv`` holds ``t_seconds``, ``rss_bytes``
and perhaps ``python_blocks``, ``malloc_in_use_bytes``, ``malloc_free_bytes``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leak_shapes import Sample, healthy_series, leaking_series
from measuring import Report, read_options

import memguard

WINDOW = 60
SEEDS = (9001, 9002, 9003)
SLOW_EVERY = 5
LEAST_GROWTH = 0.01


class Detector(Protocol):
    """What takes samples and says whether there is a leak."""

    def see(self, sample: Sample) -> bool:
        """Take *sample*."""
        ...


class Memguard:
    """memguard, with all signals or resident size alone."""

    def __init__(self, *, inside: bool) -> None:
        self.detector = memguard.LeakDetector(WINDOW)
        self._inside = inside

    def see(self, sample: Sample) -> bool:
        """Take *sample*."""
        if not self._inside:
            return self.detector.update(sample.seconds, sample.rss_bytes)
        return self.detector.update(
            sample.seconds,
            sample.rss_bytes,
            python_blocks=sample.python_blocks,
            malloc_in_use_bytes=sample.malloc_in_use_bytes,
            malloc_free_bytes=sample.malloc_free_bytes,
        )


class OverWindow:
    """A rule over the last samples of resident size, asked at every *every*-th."""

    def __init__(self, rule: Callable[[Sequence[float], Sequence[int]], bool], every: int = 1) -> None:
        self._rule = rule
        self._every = every
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._sizes: deque[int] = deque(maxlen=WINDOW)
        self._seen = 0
        self._alarm = False

    def see(self, sample: Sample) -> bool:
        """Take *sample*."""
        self._seconds.append(sample.seconds)
        self._sizes.append(sample.rss_bytes)
        self._seen += 1
        if len(self._sizes) == WINDOW and self._seen % self._every == 0:
            self._alarm = self._rule(list(self._seconds), list(self._sizes))
        return self._alarm


def ends(_seconds: Sequence[float], sizes: Sequence[int]) -> bool:
    """Tell whether the last is 1.5 times the first."""
    return sizes[-1] >= 1.5 * sizes[0]


def regression(seconds: Sequence[float], sizes: Sequence[int]) -> bool:
    """Tell whether a straight line explains 80 % of the variance and rises by 1 % or more."""
    slope, start = statistics.linear_regression(seconds, sizes)
    if slope * (seconds[-1] - seconds[0]) < LEAST_GROWTH * sizes[0]:
        return False
    mean = statistics.fmean(sizes)
    total = sum((size - mean) ** 2 for size in sizes)
    left = sum((size - start - slope * at) ** 2 for at, size in zip(seconds, sizes, strict=True))
    return left <= 0.2 * total


def mann_kendall(seconds: Sequence[float], sizes: Sequence[int]) -> bool:
    """Tell whether the series rises at p < 0.01, and by 1 % or more by the median slope of all pairs."""
    count = len(sizes)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    score = sum((sizes[j] > sizes[i]) - (sizes[j] < sizes[i]) for i, j in pairs)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    if (score - 1) / deviation < 2.326:
        return False
    slope = statistics.median(
        (sizes[j] - sizes[i]) / (seconds[j] - seconds[i]) for i, j in pairs if seconds[j] > seconds[i]
    )
    return slope * (seconds[-1] - seconds[0]) >= LEAST_GROWTH * sizes[0]


CONTENDERS: dict[str, Callable[[], Detector]] = {
    "memguard, all signals": lambda: Memguard(inside=True),
    "memguard, resident size": lambda: Memguard(inside=False),
    "ends, 1.5 times": lambda: OverWindow(ends),
    "linear regression": lambda: OverWindow(regression, SLOW_EVERY),
    "Mann-Kendall, Theil-Sen": lambda: OverWindow(mann_kendall, SLOW_EVERY),
}


@dataclass(frozen=True, slots=True)
class Case:
    """Samples and the truth; alarms before *start* do not count, those from there to *onset* are false."""

    name: str
    leaks: bool
    cause: str | None
    start: int
    onset: int
    samples: Sequence[Sample]


@dataclass(slots=True)
class Score:
    """How a detector did over cases, and what it took."""

    found: int = 0
    missed: int = 0
    false: int = 0
    healthy: int = 0
    ever_alarmed: int = 0
    causes: int = 0
    causes_right: int = 0
    delays: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0

    @property
    def precision(self) -> float:
        """Alarms that were right."""
        return self.found / max(1, self.found + self.false)

    @property
    def recall(self) -> float:
        """Leaks that were found."""
        return self.found / max(1, self.found + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.found / max(1, 2 * self.found + self.false + self.missed)

    def judge(self, case: Case, make: Callable[[], Detector]) -> None:
        """Feed *case* to a new detector."""
        detector = make()
        began = time.perf_counter()
        alarms = [detector.see(sample) for sample in case.samples]
        self.seconds += time.perf_counter() - began
        self.samples += len(alarms)
        if case.leaks:
            self._leak(case, alarms, detector)
        else:
            self._healthy(case, alarms)

    def _leak(self, case: Case, alarms: Sequence[bool], detector: Detector) -> None:
        early = case.onset > case.start and any(alarms[case.start : case.onset])
        if early or not alarms[-1]:
            self.missed += 1
            self.wrong.append(f"missed: {case.name}")
            return
        self.found += 1
        self.delays.append(alarms.index(True) - case.onset)
        if isinstance(detector, Memguard) and case.cause:
            self.causes += 1
            self.causes_right += detector.detector.report().cause == case.cause

    def _healthy(self, case: Case, alarms: Sequence[bool]) -> None:
        self.healthy += 1
        if any(alarms[case.start :]):
            self.ever_alarmed += 1
            self.wrong.append(f"{'false' if alarms[-1] else 'passing'}: {case.name}")
        self.false += alarms[-1]

    def row(self, name: str) -> dict[str, Any]:
        """Return the line of the table."""
        return {
            "detector": name,
            "precision": round(self.precision, 3),
            "recall": round(self.recall, 3),
            "F1": round(self.f1, 3),
            "healthy alarmed": f"{self.ever_alarmed} of {self.healthy}",
            "delay in samples": statistics.median(self.delays) if self.delays else None,
            "us per sample": round(self.seconds / self.samples * 1e6, 2),
            "cause right": f"{self.causes_right} of {self.causes}" if name.endswith("all signals") else "",
        }


def seeded(seed: int, each: int, *, unseen: bool = False) -> list[Case]:
    """Return the series of one seed: *each* of every healthy shape, and about as many leaks."""
    leaks = leaking_series(seed, 2 * each, unseen=unseen)
    series = [*healthy_series(seed, each, unseen=unseen), *leaks]
    return [Case(one.name, one.leaks, one.cause, 0, one.onset, one.samples) for one in series]


def recorded(folder: Path) -> list[Case]:
    """Return the traces under *folder* that can be decided."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    cases = []
    for name, truth in labels.items():
        if truth["hardness"].startswith("undecidable"):
            continue
        with (folder / "traces" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            samples = [_sample(row) for row in csv.DictReader(file)]
        start = truth["loop_start_index"]
        onset = start if truth["onset_index"] is None else truth["onset_index"]
        cases.append(Case(name, truth["label"] == "leak", truth.get("cause"), start, onset, samples))
    return cases


def _sample(row: dict[str, str]) -> Sample:
    inside = (row.get("python_blocks"), row.get("malloc_in_use_bytes"), row.get("malloc_free_bytes"))
    blocks, in_use, free = (None if text is None else int(text) for text in inside)
    return Sample(float(row["t_seconds"]), int(row["rss_bytes"]), blocks, in_use, free)


def compare(cases: Sequence[Case], contenders: Iterable[str]) -> dict[str, Score]:
    """Return how each contender did over *cases*."""
    scores = {name: Score() for name in contenders}
    for case in cases:
        for name, score in scores.items():
            score.judge(case, CONTENDERS[name])
    return scores


def table(scores: dict[str, Score]) -> str:
    """Return *scores* as lines of text."""
    rows = [score.row(name) for name, score in scores.items()]
    widths = {column: max(len(column), *(len(str(row[column])) for row in rows)) for column in rows[0]}
    lines = [{column: column for column in widths}, *rows]
    return "\n".join(["", *("  ".join(f"{line[name]!s:<{width}}" for name, width in widths.items()) for line in lines)])


def time_to_limit(seed: int, each: int) -> list[float]:
    """Return, for even leaks under noise, the time to the limit as reported by the true one, at the first alarm."""
    ratios = []
    for series in leaking_series(seed, each):
        if not series.bytes_per_second:
            continue
        detector = Memguard(inside=False)
        for sample in series.samples:
            if detector.see(sample):
                limit = sample.rss_bytes + int(series.bytes_per_second * 3600)
                left = detector.detector.report(limit).seconds_to_limit
                ratios.append(math.inf if left is None else left / 3600)
                break
    return ratios


def report_cost(case: Case) -> float:
    """Return the microseconds that a report takes."""
    detector = Memguard(inside=True)
    for sample in case.samples:
        detector.see(sample)
    began = time.perf_counter()
    for _ in range(200):
        detector.detector.report(1 << 40)
    return (time.perf_counter() - began) / 200 * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--traces", type=Path, nargs="+", default=[])
    own, rest = parser.parse_known_args(arguments)
    options = read_options(__doc__, rest)
    report = Report("leaks", options)
    seeds, each = (SEEDS[:1], 2) if options.quick else (SEEDS, 20)
    scores: dict[str, list[Score]] = {name: [] for name in CONTENDERS}
    for seed in seeds:
        got = compare(seeded(seed, each), CONTENDERS)
        report.note(f"seeded series, seed {seed}", table(got))
        for name, score in got.items():
            scores[name].append(score)
    for name, of_seeds in scores.items():
        report.add(f"{name}: F1", [score.f1 for score in of_seeds], "")
        ever = [score.ever_alarmed / score.healthy * 100 for score in of_seeds]
        report.add(f"{name}: healthy ever alarmed", ever, "%")
        report.add(f"{name}: sample", [score.seconds / score.samples * 1e6 for score in of_seeds], "us")
    unseen_shapes(report, seeds[0], each)
    claims(report, scores["memguard, all signals"], scores["memguard, resident size"])
    report.target("a report", report_cost(seeded(SEEDS[0], 1)[-1]), "us", 100)
    ratios = [ratio for seed in seeds for ratio in time_to_limit(seed, each)]
    off = statistics.median(abs(ratio - 1) for ratio in ratios) * 100
    report.target("time to the limit, median error, even leaks", off, "%", 20)
    for folder in own.traces:
        traces(report, folder)
    report.finish()


def unseen_shapes(report: Report, seed: int, each: int) -> None:
    """Judge shapes that no constant was chosen by."""
    got = compare(seeded(seed, 2 * each, unseen=True), CONTENDERS)
    report.note("shapes that tuning has not seen", table(got))
    score = got["memguard, all signals"]
    ever = score.ever_alarmed / score.healthy * 100
    report.target("F1, all signals, shapes that tuning has not seen", score.f1, "", 0.97, at_least=True)
    report.target("healthy series ever alarmed, such shapes", ever, "%", 1)


def claims(report: Report, inside: Sequence[Score], resident: Sequence[Score]) -> None:
    """Hold the seeded series against what memguard claims."""
    healthy = sum(score.healthy for score in inside)
    ever = sum(score.ever_alarmed for score in inside) / healthy * 100
    causes = sum(score.causes_right for score in inside) / sum(score.causes for score in inside)
    report.target("F1, all signals", statistics.median(score.f1 for score in inside), "", 0.97, at_least=True)
    report.target("F1, resident size", statistics.median(score.f1 for score in resident), "", 0.97, at_least=True)
    report.target("healthy series ever alarmed, all signals", ever, "%", 1)
    report.target("cause named right", causes, "", 0.9, at_least=True)
    cost = statistics.median(score.seconds / score.samples * 1e6 for score in inside)
    report.target("a sample, all signals", cost, "us", 10)


def traces(report: Report, folder: Path) -> None:
    """Judge the recorded processes under *folder*."""
    cases = recorded(folder)
    known = all(sample.python_blocks is not None for case in cases for sample in case.samples[:1])
    got = compare(cases, [name for name in CONTENDERS if known or "all signals" not in name])
    report.note(f"recorded processes, {folder.name}", table(got))
    best = next(iter(got.values()))
    report.note(f"wrong, {folder.name}", ", ".join(best.wrong) or "none")
    report.target(f"F1, traces {folder.name}", best.f1, "", 0.98 if known else 0.9, at_least=True)


if __name__ == "__main__":
    main()
