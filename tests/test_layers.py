"""Imports point one way (docs: DESIGN section 1), and nothing heavy is imported before it is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    {
        "types",
        "errors",
        "process.foreign",
        "process.screen",
        "process.paths",
        "text",
        "secrets",
        "store.files",
        "store.lock",
        "process.watch",
        "store.records",
        "untrusted",
    },
    {"training.learning"},
    {
        "config",
        "geometry",
        "registry",
        "shipped",
        "chunking",
        "store.runs",
        "store.integrity",
        "store.status",
        "store.provenance",
        "store.source",
        "stats.rates",
        "rendering.gl",
        "rendering.pixels",
        "rendering.renderers",
        "rendering.simulators",
        "video",
        "report.published",
    }
    | {"grounding.scoring", "grounding.table", "grounding.overlay"}
    | {f"stats.{topic}" for topic in ("anytime", "chains", "many", "paired", "planning", "tasks", "unpaired")},
    {"rollout", "chains", "tables", "gym", "data.recording"},
    {"data.demonstrations", "data.hdf5", "data.lerobot", "data.recorded"},
    {"inference", "pool", "runner", "report.plots", "report.sections"},
    {
        "report.page",
        "report.data",
        "report.leaderboard",
        "report.leaderboard_files",
        "training.convert",
        "compare.pairing",
        "compare.comparison",
        "compare.baseline",
        "compare.regression",
        "compare.ci",
        "compare.duel",
        "doctor.machine",
        "data.collect",
        "training.train",
        "training.log",
        "training.data",
        "doctor.probe",
        "doctor.inputs",
        "doctor.sights",
        "doctor.adapter",
        "doctor.fsck",
    },
    {"store.aftermath"},
    {"cli", "pytest_plugin"},
    {"__init__", "__main__"},
)
"""The engine, lowest first: a module imports from its own layer or a lower one, never in a circle."""
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
ADAPTERS = ("envs", "policies")
FOR_ADAPTERS = {
    "types",
    "errors",
    "store.files",
    "training.learning",
    "text",
    "untrusted",
    "geometry",
    "stats.rates",
    "chunking",
    "rendering.gl",
    "rendering.simulators",
}
"""Nouns and pure helpers."""
EXCEPTIONS = {("policies/replay.py", "data.recorded"), ("policies/noisy.py", "registry")}
"""Replay plays the actions of stored episodes; noise is put on the actions of any other policy."""
MODELS = {"torch", "torchvision", "transformers", "diffusers", "safetensors", "tokenizers"}
HEAVY = {"robosuite", "libero", "mujoco", "matplotlib", "pandas", "h5py", "pyarrow"} | MODELS
WITHOUT_A_MODEL = {"__init__", "baselines", "replay", "noisy"}
"""Policies that run where no torch is installed. The others are classes of modules, and no model waits to be defined;
`vla-bench list policies` reads what they say of themselves without importing them."""


def imported(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, runs when the module is imported) for every import statement of that source."""
    for node, at_import in _statements(ast.parse(source), at_import=True):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield base, at_import
            yield from ((f"{base}.{alias.name}", at_import) for alias in node.names)  # may be a module, may be a name


def _statements(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, at_import
        runs_later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), at_import=False)
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), at_import)
        else:
            yield from _statements(child, at_import and not runs_later)


def ours(source: str, package: str) -> set[str]:
    """What it imports of this repository: `rollout`, `store.runs`, `policies.oracle.policy`, or `top-level envs`, a
    mistake. A room that is named alone counts as what it holds."""
    names = set()
    for name, _ in imported(source, package):
        first, *rest = name.split(".")
        if first in ADAPTERS:
            names.add(f"top-level {first}")
        elif first == "vla_bench" and rest:
            names.add(_module(rest))
    return names - {""}


def _module(parts: list[str]) -> str:
    """The longest beginning of that name that is a module; the first part where none is (`__version__`)."""
    for length in range(len(parts), 0, -1):
        place = "/".join(parts[:length]) if parts[0] in ADAPTERS else "vla_bench/" + "/".join(parts[:length])
        if (ROOT / f"{place}.py").is_file():
            return ".".join(parts[:length])
        if (ROOT / place).is_dir() and length == len(parts):
            return "" if parts[0] not in ADAPTERS or len(parts) > 1 else parts[0]
    return ".".join(parts[:2]) if parts[0] in ADAPTERS else parts[0]


def violations(path: str, source: str) -> list[str]:
    """What that source must not import, one sentence each; `path` is relative to the repository root."""
    folder, *rest = path.removesuffix(".py").split("/")
    module = ".".join(rest)
    package = ".".join(["vla_bench", *([folder] if folder in ADAPTERS else []), *rest[:-1]])
    if folder in ADAPTERS:
        allowed = FOR_ADAPTERS | {name for file, name in EXCEPTIONS if file == path}
        found = {name for name in ours(source, package) if name not in allowed and name.split(".")[0] != folder}
    else:
        found = {name for name in ours(source, package) if _rank(name) > RANK.get(module, -1)}
    models = folder == "policies" and module not in WITHOUT_A_MODEL and rest[0] != "oracle"
    forbidden = HEAVY - MODELS if models else HEAVY
    heavy = {name.split(".")[0] for name, at_import in imported(source, package) if at_import} & forbidden
    return sorted(f"{path} imports {name}" for name in found | {f"{name} at module level" for name in heavy})


def _rank(name: str) -> int:
    """The layer of a name imported from vla_bench; what is no module (`__version__`) may be imported by all."""
    adapter = name.startswith(ADAPTERS) or name.startswith("top-level")
    is_module = adapter or (ROOT / "vla_bench" / f"{name.replace('.', '/')}.py").exists()
    return RANK.get(name, len(LAYERS) if is_module else -1)


def circles(imports: dict[str, set[str]]) -> set[str]:
    """Modules that reach themselves."""

    def reach(module: str, seen: set[str]) -> set[str]:
        for name in imports.get(module, set()) - seen:
            seen |= {name}
            reach(name, seen)
        return seen

    return {module for module in imports if module in reach(module, set())}


def sources() -> list[str]:
    folders = ("vla_bench", *ADAPTERS)
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: str) -> str:
    """As `ours` names it; an `__init__` is none."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts[1:] if parts[0] == "vla_bench" else parts)


def graph() -> dict[str, set[str]]:
    """Every module to those it imports."""
    found = {}
    for path in sources():
        parts = path.split("/")
        package = ".".join([*(["vla_bench"] if parts[0] in ADAPTERS else []), *parts[:-1]])
        found[module_of(path)] = ours((ROOT / path).read_text(), package)
    return {module: {name for name in names if name in found} for module, names in found.items()}


def room_of(module: str) -> str:
    """The folder that it stands in with others, or itself."""
    parts = module.split(".")
    alone = 2 if parts[0] in ADAPTERS else 1
    return ".".join(parts[:alone])


@pytest.mark.parametrize("path", sources())
def test_imports_point_one_way_and_heavy_ones_wait(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_every_engine_module_has_its_layer():
    engine = {module_of(path) for path in sources() if path.startswith("vla_bench/")}
    engine = {module for module in engine if "__init__" not in module or module == "__init__"}
    assert engine - set(RANK) == set(), "give the new module its place in LAYERS"
    assert set(RANK) - engine == {"__main__"}, "there is no such module"


def test_no_modules_import_each_other_in_a_circle():
    assert circles(graph()) == set()


def test_no_rooms_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for module, names in graph().items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, names))
    assert circles({room: names - {room} for room, names in rooms.items()}) == set()


@pytest.mark.parametrize("folder", ["vla_bench", *ADAPTERS])
def test_a_room_has_at_most_twenty_modules(folder):
    for room in {path.parent for path in (ROOT / folder).rglob("*.py")}:
        modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 20, room


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("vla_bench/stats/rates.py", "from vla_bench.runner import run", "vla_bench/stats/rates.py imports runner"),
        ("vla_bench/stats/rates.py", "from vla_bench import rollout", "vla_bench/stats/rates.py imports rollout"),
        ("vla_bench/store/runs.py", "from ..report import page", "vla_bench/store/runs.py imports report.page"),
        ("vla_bench/store/runs.py", "def f():\n    from .. import cli", "vla_bench/store/runs.py imports cli"),
        ("vla_bench/runner.py", "def f():\n    import vla_bench.envs", "vla_bench/runner.py imports envs"),
        ("vla_bench/runner.py", "if True:\n    from .policies import oracle", "vla_bench/runner.py imports policies"),
        ("vla_bench/cli.py", "import envs.robosuite", "vla_bench/cli.py imports top-level envs"),
        ("envs/x.py", "from envs import robosuite", "envs/x.py imports top-level envs"),
        ("envs/x.py", "from vla_bench.rollout import run_episode", "envs/x.py imports rollout"),
        ("envs/x.py", "from ..registry import suite", "envs/x.py imports registry"),
        ("envs/x.py", "from vla_bench.policies import oracle", "envs/x.py imports policies"),
        ("policies/x.py", "from vla_bench.store import read_actions", "policies/x.py imports store"),
        ("policies/x.py", "def f():\n    from vla_bench.envs.libero import X", "policies/x.py imports envs.libero"),
        (
            "policies/oracle/policy.py",
            "import torch.nn as nn",
            "policies/oracle/policy.py imports torch at module level",
        ),
        ("policies/x.py", "import mujoco", "policies/x.py imports mujoco at module level"),
        ("vla_bench/runner.py", "import transformers", "vla_bench/runner.py imports transformers at module level"),
        ("envs/x.py", "class A:\n    import mujoco", "envs/x.py imports mujoco at module level"),
        (
            "envs/x.py",
            "try:\n    from robosuite import make\nexcept E: ...",
            "envs/x.py imports robosuite at module level",
        ),
        ("vla_bench/tables.py", "from pandas import DataFrame", "vla_bench/tables.py imports pandas at module level"),
        (
            "vla_bench/report/plots.py",
            "if TYPE_CHECKING:\n    import torch\nelse:\n    import matplotlib",
            "vla_bench/report/plots.py imports matplotlib at module level",
        ),
    ],
)
def test_a_violation_would_be_found(path, source, complaint):
    assert complaint in violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vla_bench/runner.py", "from vla_bench.rollout import run_episode\nfrom . import store, types"),
        ("vla_bench/stats/rates.py", "import numpy as np\nfrom vla_bench.types import Suite"),
        ("vla_bench/report/plots.py", "def f():\n    import matplotlib.pyplot as plt"),
        ("vla_bench/tables.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas as pd"),
        ("vla_bench/registry.py", "SUITES = {'robosuite': 'vla_bench.envs.robosuite:suite'}"),
        ("envs/x.py", "from .robosuite import base\nfrom ..geometry import pose\nimport scipy"),
        ("envs/x.py", "from vla_bench.envs.robosuite_core import Core\nfrom vla_bench.rendering import gl"),
        ("policies/replay.py", "from vla_bench.data.recorded import read_recorded"),
        ("policies/oracle/policy.py", "async def f():\n    import torch"),
        ("policies/x.py", "import torch"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
