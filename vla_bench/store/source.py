"""The code behind a policy or suite of the user's own: its file, and the local modules it imports, however deep.

Local is what is neither Python's own, nor installed in site-packages, nor vla-bench. Imports are read from the source,
those inside functions included, so that the answer does not depend on what has already run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from vla_bench.errors import UsageError
from vla_bench.store.provenance import content_hash

_first: dict[str, tuple[ModuleSpec | None, str]] = {}
"""What the file of each imported module was when it was asked for first."""
_INSTALLED = {"site-packages", "dist-packages"}


def code_hash(module: ModuleType) -> str:
    """16 hex digits of SHA-256 over the module's own file; empty where it has none. Raises as `imports_hash`."""
    return _hash_of(module.__name__, module.__file__)


def imports_hash(module: ModuleType) -> str:
    """16 hex digits of SHA-256 over names and contents of the local modules it imports; empty where there is none.

    Raises UsageError when a file is another than the one that this process has imported.
    """
    files = local_imports(module)
    if not files:
        return ""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name} {_hash_of(name, str(file))}\n".encode())
    return digest.hexdigest()[:16]


def _hash_of(name: str, file: str | None) -> str:
    """Of a module's file. What is imported already stays what it was, whatever its file says by now."""
    found, loaded = content_hash(file), sys.modules.get(name)
    if loaded is None:
        return found
    before = _first.get(name)
    if before is None or before[0] is not loaded.__spec__:  # it has been imported, or reloaded, since
        _first[name] = loaded.__spec__, found
    elif before[1] != found:
        raise UsageError(
            f"{file} was changed after it had been imported, and what plays is the old code: start a new process."
        )
    return found


def local_imports(module: ModuleType) -> dict[str, Path]:
    """Name to file of every local module that it imports, directly or through others; itself left out."""
    found: dict[str, Path] = {}
    todo = [(module.__name__, Path(module.__file__ or ""))]
    while todo:
        name, file = todo.pop()
        for other in _imported(name, file):
            place = _local_file(other)
            if place is not None and other not in found and place != Path(module.__file__ or ""):
                found[other] = place
                todo.append((other, place))
    return found


def _imported(name: str, file: Path) -> Iterator[str]:
    """Absolute names of what that source imports, packages above it included; some may be no modules."""
    if file.suffix != ".py" or not file.is_file():
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # ValueError: a NUL byte, before Python 3.12
        return  # it imports nothing, and whoever imports it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _local_file(name: str) -> Path | None:
    """The file of that module, when it is local."""
    first = name.partition(".")[0]
    if first in ("", "vla_bench", *sys.builtin_module_names) or first in sys.stdlib_module_names:
        return None
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None) if loaded is not None else getattr(_spec(name), "origin", None)
    if not origin or not Path(origin).is_file() or _INSTALLED & set(Path(origin).parts):
        return None
    return Path(origin)


def _spec(name: str) -> ModuleSpec | None:
    """Where the module is, found without importing the packages above it."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for n in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(".".join([first, *rest[: n + 1]]), spec.submodule_search_locations)
    except (ImportError, ValueError):  # ValueError: a module that says nothing of where it is from
        return None
    return spec
