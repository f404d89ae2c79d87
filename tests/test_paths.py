"""Docs, docstrings and comments point to no file that is not in the repository."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = {
    "vla_bench",
    "envs",
    "policies",
    "tests",
    "docs",
    "reports",
    "benchmarks",
    "scripts",
    "requirements",
    "facts",
    "shared",
}
"""The repository's folders; facts and shared are where the authors keep notes that are not published."""
SUFFIXES = "md|py|sh|jsonl|json|png|svg|html|txt|toml|css|js"
ELSEWHERE = {"reports/demo/index.html", "scripts/serve_policy.py"}
"""What make demo makes; openpi's server."""
MAKERS = {"test_layers.py", "test_packaging.py", "test_readme.py", Path(__file__).name}
"""Tests that make files of such names, or name files that are not to be there."""
IN_WORDS = re.compile(rf"(?<![\w./:-])((?:{'|'.join(sorted(TOP))})/[\w./-]*\.(?:{SUFFIXES}))\b")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def tracked() -> list[Path]:
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip("this is no clone")
    return [ROOT / line for line in told.stdout.splitlines()]


def pointers(file: Path) -> Iterator[tuple[str, Path]]:
    """Every path that the file's text names, and where it would be: links as seen from the file."""
    text = file.read_text(encoding="utf-8")
    yield from ((name, ROOT / name) for name in IN_WORDS.findall(text))
    if file.suffix == ".md":
        yield from ((name, file.parent / name) for name in LINK.findall(text))


def dead(file: Path) -> list[str]:
    return [name for name, path in pointers(file) if not path.exists() and name not in ELSEWHERE]


def test_every_path_in_docs_docstrings_and_comments_exists() -> None:
    written = [
        file
        for file in tracked()
        if file.suffix in {".md", ".py", ".sh", ".toml", ".yml"} and file.exists() and "tests/data" not in str(file)
    ]
    assert len(written) > 100
    found = {file.name: lost for file in written if file.name not in MAKERS and (lost := dead(file))}
    assert found == {}


def test_a_dead_pointer_would_be_found(tmp_path: Path) -> None:
    text = (
        "see facts/libero.md, [this](gone.md#x), [that](https://a.b/c.md), docs/nowhere.md and openpi's examples/a.py"
    )
    (tmp_path / "page.md").write_text(text)
    assert dead(tmp_path / "page.md") == ["facts/libero.md", "docs/nowhere.md", "gone.md"]
