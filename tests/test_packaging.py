"""What pyproject.toml declares is what the disk holds: a package left out vanishes from the wheel without a word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = {"tests", "benchmarks", "scripts", "docs", "reports", "results", "build", "dist"}


def declared(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder_of(package: str, placed: Mapping[str, str]) -> str:
    """Where setuptools looks for it: `placed` has those that stand elsewhere, with all that is in them."""
    above, _, name = package.rpartition(".")
    return placed.get(package) or (f"{folder_of(above, placed)}/{name}" if above else name)


def mismatches(root: Path) -> list[str]:
    """One sentence per package or module that only the disk or only pyproject.toml knows."""
    tool = declared(root)
    folders = {name: root / folder_of(name, tool.get("package-dir", {})) for name in tool["packages"]}
    on_disk = {
        source.parent
        for top in root.iterdir()
        if top.is_dir() and top.name.isidentifier() and top.name not in NOT_SHIPPED
        for source in top.rglob("*.py")
    }
    modules = {path.stem for path in root.glob("*.py")} - {"setup", "conftest"} - set(tool.get("py-modules", []))
    gone = [name for name, folder in folders.items() if not (folder / "__init__.py").is_file()]
    return [
        *(f"{folder.relative_to(root)}/ holds Python but is in no package" for folder in on_disk - {*folders.values()}),
        *(f"{name} is declared but {folders[name].relative_to(root)}/ is no package" for name in gone),
        *(f"{name}.py is at the top level but not in py-modules" for name in sorted(modules)),
    ]


def test_every_package_on_disk_is_declared_and_every_declared_one_exists():
    assert mismatches(ROOT) == []


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("pkg/new/__init__.py", "pkg/new/ holds Python but is in no package"),
        ("pkg/forgotten_init/module.py", "pkg/forgotten_init/ holds Python but is in no package"),
        ("extra/models/net.py", "extra/models/ holds Python but is in no package"),
        ("tool.py", "tool.py is at the top level but not in py-modules"),
    ],
)
def test_a_forgotten_package_or_module_would_be_found(tmp_path, path, complaint):
    placed = 'package-dir = { "pkg.extra" = "extra" }\n'
    toml = f'[tool.setuptools]\npackages = ["pkg", "pkg.extra", "pkg.extra.room"]\n{placed}'
    (tmp_path / "pyproject.toml").write_text(toml)
    for file in ("pkg/__init__.py", "extra/__init__.py", "extra/room/__init__.py", "tests/test_a.py", ".venv/lib/a.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert mismatches(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert mismatches(tmp_path) == [complaint]


def test_a_declared_package_that_is_gone_would_be_found(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.setuptools]\npackages = ["gone"]\n')
    assert mismatches(tmp_path) == ["gone is declared but gone/ is no package"]


@pytest.mark.parametrize("name", ["envs", "policies"])
def test_adapters_cannot_be_imported_a_second_time_from_the_repository_root(name):
    child = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert f"ImportError: import vla_bench.{name}, not {name}" in child.stderr


@pytest.mark.parametrize("name", ["vla_bench.envs", "vla_bench.policies"])
def test_adapters_are_importable_under_their_installed_name(name):
    child = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "vla_bench/py.typed"])
def test_the_files_that_make_a_distribution_whole_exist(name):
    assert (ROOT / name).is_file()
