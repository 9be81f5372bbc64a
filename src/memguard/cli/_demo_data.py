"""
The table of the headline job: contacts of a CRM, as messy as people type them.

Deterministic: the same rows on every machine, without a clock. Fast: all of a row but its number comes from a pool.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path

HEADLINE_ROWS = 219_696
"""As many as the job had that gave the project its name; 26 columns, about 86 MB."""

COLUMNS = (
    "Contact ID", "First Name", "Last  Name", "E-mail", "Phone", "Mobile", "Company", "Job Title", "Street", "City",
    "Postal Code", "Country", "Region", "Created At", "Last Contacted", "Owner", "Lead Source", "Status", "Score",
    "Annual Revenue", "Employees", "Newsletter", "Language", "Tags", "Notes", "Record Hash",
)  # fmt: skip

_POOL = 1009
"""A prime: rows that follow each other differ, and every fragment comes up as often."""

_FIRST = ("Ana", "José", "Zoë", "Łukasz", "Mária", "Jürgen", "Nguyễn", "Søren", "Chloé", "Иван", "美咲", "Olu", "Sam")
_LAST = ("García", "Müller", "O'Brien", "van der Berg", "Šimić", "Åkesson", "Петров", "田中", "Smith", "Lee", "D'Souza")
_CITIES = ("São Paulo", "Zürich", "Kraków", "New  York", "Tromsø", "Den Haag", "Reykjavík", "Łódź", "Paris")
_COUNTRIES = ("Brasil", "Schweiz", "Polska", "USA", "Norge", "Nederland", "Ísland", "France")
_TITLES = ("Head of Purchasing", "CTO", "Sales  Manager", "Engineer", "Assistant to the Board", "Owner")
_WORDS = ("met", "at", "the", "fair", "wants", "an", "offer", "call", "back", "after", "Easter", "renewal", "pending")
_NOTHING = ("", "N/A", "NA", "null", "None", "-", " n/a ", "  ")


def write_contacts(path: Path, rows: int = HEADLINE_ROWS) -> None:
    """Write *rows* contacts to *path* as CSV in UTF-8."""
    pool = _fragments(random.Random(219_696))  # noqa: S311 - a table, not a secret
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(_line(COLUMNS))
        for start in range(0, rows, _POOL):
            numbers = range(start + 1, min(start + _POOL, rows) + 1)
            file.writelines(f"{number},{rest}" for number, rest in zip(numbers, pool, strict=False))


def _fragments(rng: random.Random) -> list[str]:
    """Return the rest of a row after its number, many times."""
    return [_line([_mess(rng, value) for value in _contact(rng)]) for _ in range(_POOL)]


def _line(fields: tuple[str, ...] | list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def _contact(rng: random.Random) -> list[str]:
    pick: Callable[[tuple[str, ...]], str] = rng.choice
    first, last = pick(_FIRST), pick(_LAST)
    company = f"{pick(_LAST)} & {pick(_LAST)} {pick(('GmbH', 'Ltd.', 'S.A.', 'AB', 'Inc'))}"
    notes = " ".join(rng.choices(_WORDS, k=rng.randint(10, 27)))
    if rng.random() < 0.1:
        notes = notes.replace(" ", ", ", 1)
    if rng.random() < 0.05:
        notes = notes.replace(" ", "\n", 1)
    if rng.random() < 0.05:
        notes = f'"{pick(_WORDS)}", {notes}'
    return [
        first,
        last,
        f"{first}.{last}.{rng.randint(1, 9999)}@example.com".replace(" ", ""),
        f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(100_000, 999_999)}",
        f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(100_000, 999_999)}",
        company,
        pick(_TITLES),
        f"{pick(_LAST)} street  {rng.randint(1, 250)}",
        pick(_CITIES),
        f"{rng.randint(0, 99_999):05d}",
        pick(_COUNTRIES),
        pick(("North", "South", "East", "West", "Central")),
        f"20{rng.randint(10, 25)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T08:{rng.randint(10, 59)}:00Z",
        f"20{rng.randint(10, 25)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}T17:{rng.randint(10, 59)}:00Z",
        f"{pick(_FIRST)} {pick(_LAST)}",
        pick(("web form", "trade fair", "referral", "cold  call", "import 2019")),
        pick(("lead", "customer", "lost", "Do Not Contact")),
        f"{rng.random() * 100:.2f}",
        f"{rng.randint(10_000, 99_999_999)}.00",
        str(rng.randint(1, 20_000)),
        pick(("yes", "no")),
        pick(("pt-BR", "de-CH", "pl", "en-US", "nb", "nl", "is", "fr")),
        ";".join(rng.sample(("vip", "newsletter", "2024", "reseller", "event", "gdpr-ok"), k=rng.randint(1, 4))),
        notes,
        f"{rng.getrandbits(128):032x}",
    ]


def _mess(rng: random.Random, value: str) -> str:
    """Return *value* as somebody in a hurry entered it."""
    chance = rng.random()
    if chance < 0.12:
        return rng.choice(_NOTHING)
    if chance < 0.20:
        return f"  {value} "
    if chance < 0.25:
        return value.replace(" ", "   ")
    return value
