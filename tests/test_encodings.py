"""Texts are UTF-8 on every machine: no file is opened in whatever encoding the terminal has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file
    for folder in ("vla_bench", "envs", "policies", "scripts", "benchmarks")
    for file in ROOT.glob(f"{folder}/**/*.py")
]
OTHERS = ("os", "Image", "Picture", "Pillow", "RunStore", "tarfile", "zipfile", "wave", "webbrowser")
"""Whose `open` opens no text file of ours."""


def texts_without_encoding(source: str) -> Iterator[int]:
    """Lines that open, read or write text without naming its encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_text(node) and "encoding" not in {word.arg for word in node.keywords}:
            yield node.lineno


def _is_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    if name in ("run", "Popen", "check_output"):
        return any(word.arg in ("text", "universal_newlines") for word in call.keywords)
    owner = getattr(call.func, "value", None)
    if name != "open" or getattr(owner, "id", "") in OTHERS or getattr(owner, "attr", "") in OTHERS:
        return False
    modes = [arg.value for arg in [*call.args, *(w.value for w in call.keywords)] if isinstance(arg, ast.Constant)]
    return isinstance(call.func, ast.Name | ast.Attribute) and not any(
        "b" in mode for mode in modes if isinstance(mode, str)
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf_8(file: Path) -> None:
    assert list(texts_without_encoding(file.read_text(encoding="utf-8"))) == []


def test_a_text_without_an_encoding_is_found() -> None:
    found = texts_without_encoding(
        "open('a')\np.open('r')\np.read_text()\np.open('rb')\nos.open(p, 0)\nrun(c, text=True)"
    )
    assert list(found) == [1, 2, 3, 6]
