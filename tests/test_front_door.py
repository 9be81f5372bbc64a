from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memguard


def test_the_table_and_the_typed_imports_name_the_same():
    tree = ast.parse(Path(memguard.__file__).read_text())
    typed = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("memguard.")
        for alias in node.names
    }

    assert typed == {(home, name) for home, names in memguard._HOMES.items() for name in names}


@pytest.mark.parametrize("name", memguard.__all__)
def test_every_public_name_loads(name):
    assert getattr(memguard, name) is not None
    assert name in dir(memguard)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        memguard.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        pytest.param("", ["asyncio", "multiprocessing", "psutil", "dataclasses", "inspect"], id="importing"),
        pytest.param(
            "with memguard.default_breaker().reserve('1 MiB', timeout=1): pass",
            ["asyncio", "multiprocessing", "psutil"],
            id="a breaker without a loop",
        ),
    ],
)
def test_what_needs_no_heavy_module_loads_none(code, heavy):
    code = f"import sys, memguard\n{code}\nprint([m for m in {heavy} if m in sys.modules])"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert out.stdout.strip() == "[]"
