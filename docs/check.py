"""
Checks the documentation: ``python3 dev.py docs``.

    snippets    the Python of README.md and docs/*.md runs: a page at a time, in order, in one namespace
    links       what a page links to exists, headings included
    reference   docs/reference.md names each public name, and each parameter with its default
    variables   docs/settings.md names each MEMGUARD_* variable, and no page one that nobody reads
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import memguard
import memguard.testing

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| `([\w.]+)(\(.*?\))?` \|", re.MULTILINE)
_VARIABLE = re.compile(r"MEMGUARD_[A-Z_]+")


def snippets(page: Path) -> Iterator[str]:
    """Run the snippets of *page* as one program; each stands on the line that it has on the page."""
    text, program, at = page.read_text(encoding="utf-8"), "", 0
    for found in _SNIPPET.finditer(text):
        program += "\n" * text.count("\n", at, found.start(1)) + found[1]
        at = found.end(1)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MEMGUARD_")}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / page.name
        script.write_text(program, encoding="utf-8")
        command = [sys.executable, "-W", "error", script.name]
        out = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if out.returncode:
        yield f"a snippet fails:\n{out.stdout}{out.stderr}"


def links(page: Path) -> Iterator[str]:
    """Tell of links within the repository that lead nowhere."""
    for target in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        if "://" in target:
            continue
        if not file.exists():
            yield f"there is no {target}"
        elif heading and heading not in headings(file):
            yield f"{target}: there is no such heading"


def headings(page: Path) -> set[str]:
    """Return the anchors of *page*, as the forges make them."""
    found = _HEADING.findall(_FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def reference(page: Path) -> Iterator[str]:
    """Hold the rows of the reference against what can be imported."""
    rows = dict(_ROW.findall(page.read_text(encoding="utf-8")))
    yield from (f"there is no row for {name}" for name in memguard.__all__ if name not in rows)
    for name, told in rows.items():
        try:
            thing = look_up(name)
        except AttributeError:
            yield f"nothing public is called {name}"
            continue
        if told and told != (right := signature(thing, bound=name.count("."))):
            yield f"it is {name}{right}"


def look_up(name: str) -> Any:
    """Return what *name* stands for: a public name, an attribute of one, or something of memguard.testing."""
    first, *rest = name.split(".")
    thing = getattr(memguard if first in memguard.__all__ else memguard.testing, first)
    for attribute in rest:
        thing = getattr(thing, attribute)
    return thing


def signature(thing: Any, *, bound: int) -> str:
    """Return the parameters of *thing* with their defaults, without types, and without the *bound* first ones."""
    kept = list(inspect.signature(thing).parameters.values())[bound:]
    text = str(inspect.Signature([each.replace(annotation=each.empty) for each in kept]))
    return re.sub(r"<built-in function (\w+)>", r"\1", text)


def variables(page: Path) -> Iterator[str]:
    """Tell of variables that nobody reads, and in settings.md of those that are missing."""
    known = set(_VARIABLE.findall(Path(inspect.getfile(memguard)).with_name("settings.py").read_text()))
    told = set(_VARIABLE.findall(page.read_text(encoding="utf-8")))
    yield from (f"nobody reads {name}" for name in sorted(told - known))
    if page.name == "settings.md":
        yield from (f"{name} is missing" for name in sorted(known - told))


def main() -> int:
    """Check every page; print what is wrong and return how much that is."""
    checks = [snippets, links, variables]
    wrong = [(page, words) for page in PAGES for check in checks for words in check(page)]
    wrong += [(ROOT / "docs/reference.md", words) for words in reference(ROOT / "docs/reference.md")]
    for page, words in wrong:
        print(f"{page.relative_to(ROOT)}: {words}")
    print(f"{len(PAGES)} pages, {len(wrong)} faults")
    return len(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
