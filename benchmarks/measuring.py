"""
What the benchmarks share: contenders that take turns, medians, a table, and a JSON file with versions.

Nothing here passes or fails: a missed target is a figure like the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import statistics
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import memguard

RESULTS = Path(__file__).resolve().parent / "results"
NOT_INSTALLED = "not installed"

Measure: TypeAlias = Callable[[], float]
"""Measures once and returns the figure."""


def in_turns(contenders: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """
    Return what each of *contenders* measured in each round.

    All have their turn before one has its next, in a new order each round, so that noise hits all alike. A first
    round warms up and is not kept.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    chance = random.Random(1)
    for number in range(rounds + 1):
        chance.shuffle(order)
        for name in order:
            figure = contenders[name]()
            if number:
                figures[name].append(figure)
    return figures


def timed(statement: str, times: int, *, before: str = "pass", **names: object) -> Measure:
    """
    Return what measures nanoseconds per execution of *statement*.

    Garbage collection is on, as in life. *before* is run once ahead of the clock.
    """
    timer = timeit.Timer(statement, f"import gc; gc.enable(); {before}", globals=names)
    return lambda: timer.timeit(times) / times * 1e9


def paired(left: Sequence[float], right: Sequence[float], how: Callable[[float, float], float]) -> float:
    """Return the median over the rounds of *how* the two figures of a round relate."""
    return statistics.median(how(a, b) for a, b in zip(left, right, strict=True))


def peer(name: str) -> ModuleType | None:
    """Return the module *name*, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def environment_of_child(compiled: str) -> dict[str, str]:
    """
    Return the environment of a fresh interpreter that keeps its compiled files in the folder *compiled*.

    After a first run it finds them there, as after an installation, whatever this environment says of them.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"PYTHONPYCACHEPREFIX": compiled}


def read_options(doc: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line of a benchmark asks for: ``json`` and ``quick``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write here, not to benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes: shows that it works")
    return parser.parse_args(arguments)


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One line of the table.

    Attributes:
        label: What was measured.
        values: One figure a round, in *unit*.
        versus: The label of the figure that this one is held against; empty for none.
    """

    label: str
    values: Sequence[float]
    unit: str
    versus: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    def quartiles(self) -> tuple[float, float]:
        """Return what bounds the middle half of the rounds."""
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True, slots=True)
class Target:
    """
    What memguard claims.

    Attributes:
        bound: The most that *value* may be; the least, if *at_least*.
        met: Whether this run kept to it.
    """

    claim: str
    value: float
    unit: str
    bound: float
    at_least: bool = False
    met: bool = field(init=False)

    def __post_init__(self) -> None:
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        object.__setattr__(self, "met", met)

    def __str__(self) -> str:
        sign, verdict = ">=" if self.at_least else "<=", "met" if self.met else "MISSED"
        return f"{verdict:<6}  {self.claim}: {self.value:,.3g} {self.unit} (target {sign} {self.bound:,g} {self.unit})"


class Report:
    """
    The figures of one benchmark; :meth:`finish` prints and writes them.

    Args:
        name: The script's, without ``bench_``.
        options: Of the command line.
        peers: Distributions that stand beside memguard, for their versions.
    """

    def __init__(self, name: str, options: argparse.Namespace, peers: Iterable[str] = ()) -> None:
        self._name = name
        self._options = options
        self._peers = {peer: _version(peer) for peer in peers}
        self._figures: dict[str, Figure] = {}
        self._targets: list[Target] = []
        self._notes: dict[str, Any] = {}
        self._load_before = _load()

    def add(self, label: str, values: Sequence[float], unit: str, *, versus: str = "") -> None:
        """Add a line of the table."""
        self._figures[label] = Figure(label, values, unit, versus)

    def add_all(self, figures: Mapping[str, Sequence[float]], unit: str, *, versus: str = "") -> None:
        """Add a line for each of *figures*, all held against the one labelled *versus*."""
        for label, values in figures.items():
            self.add(label, values, unit, versus="" if label == versus else versus)

    def target(self, claim: str, value: float, unit: str, bound: float, *, at_least: bool = False) -> None:
        """Hold *value* against a claim."""
        self._targets.append(Target(claim, value, unit, bound, at_least))

    def note(self, name: str, value: object) -> None:
        """Note a circumstance that the figures depend on."""
        self._notes[name] = value

    def finish(self) -> None:
        """Print the table, and write the JSON file."""
        print(f"\n== {self._name}{' (quick: too short to count)' if self._options.quick else ''}")
        print("\n".join(self._lines()))
        path = self._options.json or RESULTS / f"{self._name}{'-quick' if self._options.quick else ''}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._result(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _lines(self) -> Iterable[str]:
        width = max(map(len, self._figures), default=0)
        for label, figure in self._figures.items():
            low, high = figure.quartiles()
            line = f"{label:<{width}}  {figure.median:>11,.4g} {figure.unit:<4} {f'[{low:,.4g} .. {high:,.4g}]':>22}"
            ratio = self._ratio(figure)
            yield line if ratio is None else f"{line}  {ratio:8.3g} x {figure.versus}"
        yield from (f"{name}: {NOT_INSTALLED}" for name, version in self._peers.items() if version == NOT_INSTALLED)
        yield from (f"{name}: {value}" for name, value in self._notes.items())
        yield from map(str, self._targets)

    def _ratio(self, figure: Figure) -> float | None:
        other = self._figures.get(figure.versus)
        return figure.median / other.median if other and other.median else None

    def _result(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "quick": self._options.quick,
            "versions": _versions() | self._peers,
            "load_average": {"before": self._load_before, "after": _load()},
            "notes": self._notes,
            "targets": [asdict(target) | {"text": str(target)} for target in self._targets],
            "figures": [self._figure(figure) for figure in self._figures.values()],
        }

    def _figure(self, figure: Figure) -> dict[str, Any]:
        low, high = figure.quartiles()
        known = {"label": figure.label, "unit": figure.unit, "rounds": len(figure.values)}
        rounded = {"median": figure.median, "low_quartile": low, "high_quartile": high}
        ratio = self._ratio(figure)
        compared = {} if ratio is None else {"versus": figure.versus, "ratio": _short(ratio)}
        return known | {name: _short(value) for name, value in rounded.items()} | compared


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _versions() -> dict[str, Any]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memguard": memguard.__version__,
    }
