"""Which OpenGL draws the images on a machine without a screen, and does it work? Imports no simulator.

robosuite forces MUJOCO_GL=egl at import unless it is osmesa or glx already (robosuite 1.4.0 utils/binding_utils.py:37),
so `use_backend` has to run before the first import of robosuite or mujoco.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from vla_bench.errors import UsageError, unknown_name
from vla_bench.process.watch import mortal
from vla_bench.rendering.pixels import View, paint, pixel_hash
from vla_bench.rendering.renderers import Drawn
from vla_bench.rendering.simulators import can_be_written, user_cache
from vla_bench.types import Quality

_ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "osmesa": {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
    "egl": {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"},
    "glfw": {"MUJOCO_GL": "glx", "PYOPENGL_PLATFORM": "glx"},  # robosuite turns glfw into egl and leaves glx alone
    "cgl": {"MUJOCO_GL": "cgl"},
}
_LIBRARIES = {"osmesa": "OSMesa", "egl": "EGL"}  # preferred first: same pixels
_IMAGE_PX = 256
_SETTING = "" if multiprocessing.parent_process() else os.environ.get("MUJOCO_GL", "")
"""What the user asked for: `use_backend` has not been called yet. A worker inherits what was chosen."""
_ROOT = Path(__file__).parents[2]  # vla_bench is importable here, and files of the user's are not
_LONGEST_ANSWER_S = 60
_SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/> <geom type="plane" size="1 1 .1" rgba=".2 .4 .8 1"/>
  <body pos="0 0 .3"><geom type="box" size=".2 .2 .2" rgba=".9 .3 .1 1"/></body>
</worldbody></mujoco>
"""


@dataclass(frozen=True)
class GlProbe:
    """What came of rendering a small scene with one back end."""

    backend: str
    works: bool
    renderer: str = ""
    """GL_RENDERER, for example `llvmpipe (LLVM 15.0.6, 256 bits)`."""
    render_ms: float = 0.0
    """Median wall time of one 256x256 image, read back."""
    error: str = ""
    render_probe: str = ""
    """Hash of the probe scene's pictures, where they were asked for."""


def choose_backend(environ: Mapping[str, str] = os.environ) -> str:
    """The back end a run would use: "osmesa", "egl", "glfw" or "cgl" (macOS). Looks for libraries, opens no context.

    Raises UsageError for an unknown MUJOCO_GL, and when there is nothing to render with.
    """
    asked = environ.get("MUJOCO_GL", "").strip().lower()
    if asked:
        name = "glfw" if asked == "glx" else asked
        if name not in _ENVIRONMENT:
            raise unknown_name("MUJOCO_GL", asked, _ENVIRONMENT)
        return name
    if sys.platform == "darwin":
        return "cgl"
    if _nvidia_driver() and _has_library("EGL_nvidia"):  # containers often get the driver without its graphics part
        return "egl"
    for name, library in _LIBRARIES.items():
        if _has_library(library):
            return name
    raise UsageError(f"No headless OpenGL was found (neither OSMesa nor EGL). {install_advice()}")


def use_backend() -> str:
    """The chosen back end, now set in MUJOCO_GL and PYOPENGL_PLATFORM. Call it before importing a simulator."""
    backend = choose_backend()
    os.environ.update(_ENVIRONMENT[backend])
    if not can_be_written(user_cache()):  # where Mesa keeps shaders, or else says in every process that it cannot
        os.environ.setdefault("MESA_SHADER_CACHE_DISABLE", "true")
    return backend


@functools.cache
def renderer(views: tuple[View, ...]) -> Drawn:
    """The renderer of a run, such as "egl llvmpipe", and the hash of the probe scene in these views. Nothing where
    there are none. Rendered once, in a child process, so that no context of this one is disturbed.

    A driver's version is left out: the probe tells whether it matters. Raises UsageError when nothing can be rendered.
    """
    if not views:
        return Drawn()
    found = probe(use_backend(), views=views)
    if not found.works:
        raise unusable(found.backend, found.error)
    return Drawn(f"{found.backend} {found.renderer.split('(')[0].split('/')[0]}".strip(), found.render_probe)


def insist_on_library() -> None:
    """Raises UsageError when MuJoCo could not even be imported: the back end's library is missing, or its device is.

    Cheap, and it finds less than `probe`: a policy that looks at nothing needs no more.
    """
    backend = choose_backend()
    library = _LIBRARIES.get(backend)
    if library and not _has_library(library):
        raise unusable(backend, _not_installed(library))
    if backend == "egl" and (said := device_problem()):
        raise unusable(backend, said)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Inside OpenGL is called for the first time: its errors become one sentence if the back end does not work here."""
    try:
        yield
    except (UsageError, ModuleNotFoundError):
        raise
    except Exception as error:
        found = probe(choose_backend())
        if found.works:
            raise
        raise unusable(found.backend, found.error) from error


def unusable(backend: str, why: str) -> UsageError:
    """The sentence of a run that would need that back end, which does not work here."""
    setting = f" (MUJOCO_GL is {_SETTING})" if _SETTING else ""
    advice = "Unset MUJOCO_GL; vla-bench doctor says what works here." if _SETTING else install_advice()
    advice = "vla-bench doctor says what works here." if "MUJOCO_EGL_DEVICE_ID" in why else advice
    return UsageError(f"Nothing can be rendered with {backend}{setting}: {why.rstrip('.')}. {advice}")


def device_problem(environ: Mapping[str, str] = os.environ) -> str:
    """What is wrong with the EGL device that was asked for, and what to do; empty when nothing is.

    MuJoCo looks for it when it is imported (mujoco/egl/__init__.py), robosuite for a second condition of its own
    (robosuite 1.4.0 utils/binding_utils.py:30).
    """
    asked, visible = environ.get("MUJOCO_EGL_DEVICE_ID"), environ.get("CUDA_VISIBLE_DEVICES", "")
    if asked is None:
        return ""
    count = _egl_devices()
    if not count:
        return f"MUJOCO_EGL_DEVICE_ID is {asked!r} and EGL names no device here: unset it"
    if not asked.isdecimal() or int(asked) >= count:
        one = f"has one device here, number {count - 1}" if count == 1 else f"has {count} devices here, from 0 on"
        return f"MUJOCO_EGL_DEVICE_ID is {asked!r} and EGL {one}: unset it"
    if visible and asked not in visible:
        return f"MUJOCO_EGL_DEVICE_ID is {asked!r}, which is none of CUDA_VISIBLE_DEVICES ({visible}): unset it"
    return ""


def _egl_devices() -> int:
    """How many devices EGL has, asked in a child process; 0 when it does not say."""
    try:
        child = _asked(["devices"], {}, _LONGEST_ANSWER_S)
    except subprocess.TimeoutExpired:
        return 0
    lines = child.stdout.split()
    return int(lines[-1]) if child.returncode == 0 and lines and lines[-1].isdecimal() else 0


def _count_egl_devices() -> int:
    egl, count = ctypes.CDLL("libEGL.so.1"), ctypes.c_int()
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    query(egl.eglGetProcAddress(b"eglQueryDevicesEXT"))(0, None, ctypes.byref(count))
    return count.value


def _not_installed(library: str) -> str:
    return f"lib{library}.so is not installed"


def probe(backend: str, timeout_s: float = _LONGEST_ANSWER_S, views: Sequence[View] = ()) -> GlProbe:
    """Whether that back end renders a tiny MuJoCo scene, tried in a child process: drivers may crash or hang.

    With views the probe scene is painted instead, and not timed.
    """
    if backend not in _ENVIRONMENT:
        raise unknown_name("GL back end", backend, _ENVIRONMENT)
    if backend == "egl" and _has_library("EGL") and (said := device_problem()):
        return GlProbe(backend, works=False, error=said)
    try:
        child = _asked(["render", backend, json.dumps(views)], _ENVIRONMENT[backend], timeout_s)
    except subprocess.TimeoutExpired:
        return GlProbe(backend, works=False, error=f"no image after {timeout_s:g} s")
    if child.returncode != 0:
        return GlProbe(backend, works=False, error=_death(child))
    result = GlProbe(**json.loads(child.stdout.splitlines()[-1]))  # drivers may print lines of their own before it
    library = _LIBRARIES.get(backend)
    if not result.works and library and not _has_library(library):  # PyOpenGL calls this an AttributeError
        return GlProbe(backend, works=False, error=_not_installed(library))
    return result


def missing_packages_command() -> str:
    """The apt-get line that installs what rendering and OpenCV lack here; "" when nothing is missing or apt is."""
    if not shutil.which("apt-get"):
        return ""
    opencv = _missing_for_opencv()
    renderers = [[]] if any(map(_has_library, _LIBRARIES.values())) else _renderer_packages()
    if not opencv and renderers == [[]]:
        return ""
    sudo = "" if os.geteuid() == 0 else "sudo "
    installs = [f"{sudo}apt-get install -y {' '.join([*opencv, *packages])}" for packages in renderers]
    return f"{sudo}apt-get update && " + (installs[0] if len(installs) == 1 else f"({' || '.join(installs)})")


def install_advice() -> str:
    """What to type, or without apt what to look for, so that images can be rendered."""
    command = missing_packages_command()
    if command:
        return f"Install it with: {command}"
    return (
        "Install OSMesa (libOSMesa.so) or EGL with a driver (libEGL.so and Mesa's or NVIDIA's libEGL_*.so),"
        " or set MUJOCO_GL to a back end that works here (osmesa, egl, or glfw where there is a screen)."
    )


def _renderer_packages() -> list[list[str]]:
    """Package lists to try in turn: newer distributions lack libosmesa6, and before `apt-get update` apt knows none."""
    osmesa, egl = ["libosmesa6"], ["libegl1", "libegl-mesa0"]
    if _apt_knows("libosmesa6"):
        return [osmesa]
    return [egl] if _apt_knows("libegl1") else [osmesa, egl]


def _missing_for_opencv() -> list[str]:
    """Packages of the libraries that opencv-python's cv2.abi3.so links to and does not carry (read with ldd)."""
    packages = {"GL": "libgl1", "gthread-2.0": "libglib2.0-0"}
    return [package for library, package in packages.items() if not _has_library(library)]


def _apt_knows(package: str) -> bool:
    return subprocess.run(["apt-cache", "show", package], capture_output=True, check=False).returncode == 0


def _has_library(name: str) -> bool:
    """Whether the loader would find lib<name>.so, its folders in LD_LIBRARY_PATH included."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    if any(any(folder.glob(f"lib{name}.so*")) for folder in folders):
        return True
    return ctypes.util.find_library(name) is not None


def _nvidia_driver() -> bool:
    files = ("/proc/driver/nvidia/version", "/dev/nvidiactl")
    return any(Path(file).exists() for file in files) or shutil.which("nvidia-smi") is not None


def _death(child: subprocess.CompletedProcess[str]) -> str:
    if child.returncode < 0:
        return f"the process died of signal {-child.returncode}"
    return (child.stderr.strip().splitlines() or ["it failed without a message"])[-1]


def _asked(
    arguments: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """`main` with those arguments in a child process, once it has ended. Raises TimeoutExpired."""
    return subprocess.run(
        _child_command(arguments, timeout_s),
        env={**os.environ, **environment},
        cwd=_ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _child_command(arguments: Sequence[str], timeout_s: float) -> list[str]:
    return [sys.executable, "-c", mortal("from vla_bench.rendering.gl import main; main()", timeout_s), *arguments]


def _render(backend: str) -> GlProbe:
    import mujoco
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, _IMAGE_PX, _IMAGE_PX)
    times_ms = []
    for _ in range(6):
        start = time.perf_counter()
        renderer.update_scene(data)
        image = renderer.render()
        times_ms.append(1000 * (time.perf_counter() - start))
    blank = bool(image.min() == image.max())
    return GlProbe(
        backend,
        works=not blank,
        renderer=(GL.glGetString(GL.GL_RENDERER) or b"").decode(errors="replace"),
        render_ms=statistics.median(times_ms[1:]),  # the first image compiles shaders
        error="the image is blank" if blank else "",
    )


def _paint_probe(backend: str, views: Sequence[View]) -> GlProbe:
    images, name = paint(views)
    works = all(image.min() < image.max() for image in images)
    return GlProbe(
        backend,
        works,
        renderer=name,
        error="" if works else "the image is blank",
        render_probe=pixel_hash(images) if works else "",
    )


def _answer_probe(backend: str, views: Sequence[View]) -> NoReturn:
    """End this child process after printing one JSON line; leaving in haste avoids EGL's tracebacks at exit."""
    try:
        result = _paint_probe(backend, views) if views else _render(backend)
    except Exception as error:
        result = GlProbe(backend, works=False, error=f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(result)), flush=True)
    os._exit(0)


def _check() -> int:
    """0 if rendering works and OpenCV has its libraries, after saying so; scripts/setup.sh asks."""
    missing = _missing_for_opencv()
    if missing:
        print(f"opencv-python needs the packages {' and '.join(missing)}")
        return 1
    try:
        result = probe(choose_backend())
    except UsageError as error:
        print(error)
        return 1
    print(
        f"rendering with {result.backend}: {result.error or f'{result.renderer}, {result.render_ms:.1f} ms per image'}"
    )
    return 0 if result.works else 1


def main() -> NoReturn:
    """`[render BACKEND VIEWS | devices | packages]`, for the child processes and for scripts/setup.sh.

    Not for `python -m`: the package imports this module itself, and runpy warns of a second one.
    """
    match sys.argv[1:]:
        case ["render", backend, views]:
            _answer_probe(backend, [View(height, width, Quality(*fine)) for height, width, fine in json.loads(views)])
        case ["devices"]:
            print(_count_egl_devices())
            sys.exit(0)
        case ["packages"]:
            print(missing_packages_command())
            sys.exit(0)
        case _:
            sys.exit(_check())
