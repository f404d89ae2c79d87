"""Environments keep their promises: trials repeat bit for bit, nothing leaks, and mistakes are sentences.

What is said of all suites is parametrised over the registry: everything on one suite of each class, on the others that
a trial repeats; `-m slow` says everything of the others too. That a scene equals upstream's is in test_envs_truth.py.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from marks import slow
from numpy.typing import NDArray

import vla_bench  # noqa: F401 registers the tasks
from vla_bench.errors import UsageError
from vla_bench.geometry import axis_angle_from_quat
from vla_bench.gym import env_id
from vla_bench.registry import SUITES, make_suite
from vla_bench.types import Env, Float32, Observation, Suite, Task

core = importlib.import_module("vla_bench.envs.robosuite_core")
libero = importlib.import_module("vla_bench.envs.libero")

pytestmark = pytest.mark.sim

LIBERO = [name for name, path in SUITES.items() if path.startswith("vla_bench.envs.libero:")]
CHAINS = ["calvin_a", "calvin_b", "calvin_c", "calvin_d"]
# The task of each suite that is tried: one with much to go wrong where there is one, else the first.
CHOSEN = {
    "robosuite": 1,  # a scene that is compiled once; Lift's, compiled at every reset, is in test_envs_truth.py
    "libero_spatial": 4,  # a drawer that starts open
    "libero_goal": 7,  # a stove
    "libero_10": 2,  # a stove
}
TRIAL, SEED = 3, 5


def chosen_task(suite: Suite) -> Task:
    return suite.tasks[CHOSEN.get(suite.name, 0)]


def random_actions(suite: Suite, steps: int = 30, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, suite.action.dim)).astype(np.float32)


# A trial, in a process that has seen nothing else


def told(env: Env, suite: Suite) -> dict[str, str]:
    """All that can be seen of one trial: scene, state, images, and what 30 actions made of it."""
    first = env.reset_trial(TRIAL, SEED)
    scene = env.fingerprint()
    last = env.advance(random_actions(suite)).observation
    return {"scene": scene, "first": _digest(first), "final": env.fingerprint(), "last": _digest(last)}


def _digest(observation: Observation) -> str:
    digest = hashlib.sha256(observation.state.tobytes())
    for name in sorted(observation.images):
        digest.update(observation.images[name].tobytes())
    return digest.hexdigest()


def _tell(suite_name: str) -> None:
    """What the child process prints: the trial, and whether Python's and NumPy's global streams were left alone."""
    suite = make_suite(suite_name)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    env = suite.make_env(chosen_task(suite), [camera.name for camera in suite.cameras])
    seen = told(env, suite)
    env.close()
    after = random.getstate(), np.random.get_state()  # noqa: NPY002
    print(json.dumps({**seen, "streams": "kept" if repr(before) == repr(after) else "moved"}))


if __name__ == "__main__":
    _tell(sys.argv[1])
    sys.exit()


class Made(NamedTuple):
    """One task's environment, made through Gymnasium and used by all tests of its suite, one after the other."""

    suite: Suite
    env: Any
    fresh: dict[str, str]
    """What a process of its own tells of the trial."""


WHOLE = ("robosuite", "libero_10", "calvin_d", "tiny")  # one of each class
OTHERS = [name for name in SUITES if name not in (*WHOLE, "calvin_pybullet")]  # which has its own, in test_calvin.py


def ordered(names: Sequence[str], slow: Sequence[str] = OTHERS) -> list[Any]:
    """Parameters for `made`; in the order of EVERY the scenes are built once each."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


ON_ROBOSUITE = ("robosuite", "libero_10", *(name for name in LIBERO if name in OTHERS))
EVERY = (*ON_ROBOSUITE, "calvin_d", "tiny", *(name for name in OTHERS if name not in ON_ROBOSUITE))
on_robosuite = pytest.mark.parametrize("made", ordered(ON_ROBOSUITE), indirect=True, scope="module")


@pytest.fixture(scope="module", params=ordered(EVERY))
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    child = subprocess.Popen([sys.executable, __file__, request.param], stdout=subprocess.PIPE, text=True)
    suite = make_suite(request.param)
    env = gymnasium.make(env_id(suite.name, chosen_task(suite).name, suite.version), render_mode="rgb_array").unwrapped
    out, _ = child.communicate()
    assert child.returncode == 0
    yield Made(suite, env, json.loads(out.splitlines()[-1]))
    env.close()


def test_a_trial_in_a_reused_scene_is_the_trial_of_a_fresh_process(made: Made) -> None:
    suite, env = made.suite, made.env
    env.reset_trial(0, 0)
    env.advance(random_actions(suite, steps=20, seed=1))
    env.reset_trial(suite.tasks[0].trials - 1, 1)
    env.advance(random_actions(suite, steps=7, seed=2))
    again = told(env, suite)
    assert again == {what: made.fresh[what] for what in again}


# test_envs_truth.py holds libero_goal's against upstream, in a scene that is used again
@pytest.mark.parametrize(
    "name", [name if name == "calvin_a" else slow(name) for name in OTHERS if name != "libero_goal"]
)
def test_a_trial_repeats_in_every_other_suite(name: str) -> None:
    suite = make_suite(name)
    env = suite.make_env(chosen_task(suite), [camera.name for camera in suite.cameras])
    fresh = told(env, suite)
    env.reset_trial(0, 0)
    env.advance(random_actions(suite, steps=20, seed=1))
    assert told(env, suite) == fresh
    assert_observed(env.reset_trial(0, 0), suite)
    env.close()


@on_robosuite
def test_a_trial_is_the_same_after_one_that_ended_early(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    env = made.env
    env.reset_trial(0, 0)
    _succeed(env)
    after = env.advance(random_actions(made.suite, steps=9))
    if made.suite.name == "libero_goal":
        assert (after.success, after.truncated, after.steps) == (True, False, 1)
    else:
        monkeypatch.setattr(env.raw, "_check_success", lambda: True)
        assert env.advance(random_actions(made.suite, steps=9)).steps == 1
        monkeypatch.undo()
    again = told(env, made.suite)
    assert again == {what: made.fresh[what] for what in again}


def _succeed(env: Any) -> None:
    """Do by hand what ends the task, or changes how its scene looks."""
    data, model = env.raw.sim.data, env.raw.sim.model
    knob = "flat_stove_1_button"
    if knob in model.joint_names:
        data.qpos[model.get_joint_qpos_addr(knob)] = 1.0


@on_robosuite
def test_a_trial_is_the_same_after_the_model_was_changed(made: Made) -> None:
    env = made.env
    env.reset_trial(0, 0)
    model = env.raw.sim.model._model
    for field in ("body_mass", "body_pos", "geom_friction", "geom_rgba", "light_diffuse", "cam_fovy", "dof_damping"):
        getattr(model, field)[:] *= 1.1
    env.advance(random_actions(made.suite, steps=3))
    again = told(env, made.suite)
    assert again == {what: made.fresh[what] for what in again}


@on_robosuite
@pytest.mark.parametrize(("field", "value"), [("qpos", np.nan), ("qvel", np.inf), ("qpos", 1e12), ("qvel", 1e12)])
def test_a_diverging_state_is_an_error_and_the_next_trial_is_sound(made: Made, field: str, value: float) -> None:
    env = made.env
    env.reset_trial(TRIAL, SEED)
    scene = env.fingerprint()
    getattr(env.raw.sim.data, field)[0] = value
    with pytest.raises(core.SimulationDiverged, match=env.task.name):
        env.advance(random_actions(made.suite, steps=2))
    env.reset_trial(TRIAL, SEED)
    assert env.fingerprint() == scene


@on_robosuite
def test_an_action_that_is_no_number_is_an_error_and_the_next_trial_is_sound(made: Made) -> None:
    env = made.env
    for component in (0, 5, 6):
        actions = random_actions(made.suite, steps=2)
        actions[1, component] = np.nan
        env.reset_trial(0, 0)
        with pytest.raises(core.SimulationDiverged):
            env.advance(actions)
    again = told(env, made.suite)
    assert again == {what: made.fresh[what] for what in again}


def test_the_global_random_streams_are_left_alone(made: Made) -> None:
    assert made.fresh["streams"] == "kept"


def test_every_trial_has_a_scene_of_its_own(made: Made) -> None:
    prints = []
    for trial in (0, 1, 2, chosen_task(made.suite).trials - 1):
        made.env.reset_trial(trial, 0)
        prints.append(made.env.fingerprint())
    assert len(set(prints)) == len(prints)


def test_the_seed_changes_the_scene_where_trials_are_drawn_and_only_there(made: Made) -> None:
    prints = []
    for seed in (0, 1):
        made.env.reset_trial(0, seed)
        prints.append(made.env.fingerprint())
    assert (prints[0] == prints[1]) == (made.suite.name in [*LIBERO, *CHAINS, "tiny"])


@on_robosuite
def test_the_fingerprint_sees_state_and_scene(made: Made) -> None:
    env = made.env
    env.reset_trial(0, 0)
    data, model = env.raw.sim.data._data, env.raw.sim.model._model
    prints = {env.fingerprint()}
    for array in (data.qpos, data.qvel, data.ctrl, model.body_pos, model.geom_rgba, model.body_mass):
        before = array.copy()
        array[-1] += 1e-9 if array.dtype == np.float64 else 1e-3
        prints.add(env.fingerprint())
        array[:] = before
        prints.add(env.fingerprint())
    assert len(prints) == 7


@pytest.mark.parametrize("made", ordered(["tiny"]), indirect=True, scope="module")
def test_memory_does_not_grow_with_the_trials(made: Made) -> None:
    assert_memory_stays(made, 8)


@pytest.mark.slow
@pytest.mark.parametrize("made", ordered(WHOLE[:2]), indirect=True, scope="module")
def test_memory_does_not_grow_with_many_trials(made: Made) -> None:
    assert_memory_stays(made, {"robosuite": 40, "libero_10": 20}[made.suite.name])


def assert_memory_stays(made: Made, trials: int) -> None:
    resident_mb = []
    for trial in range(trials):
        made.env.reset_trial(trial, 0)
        made.env.advance(random_actions(made.suite, steps=1))
        gc.collect()  # garbage of earlier tests in this process is not what is measured
        resident_mb.append(_resident_mb())
    growth = np.sort(np.diff(resident_mb[2:]))
    assert growth[:-2].sum() < 25  # a leak comes with every trial; the two largest steps may be the allocator's


def _resident_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("trial", [-1, 1_000_000])
def test_a_trial_out_of_range_is_a_usage_error(made: Made, trial: int) -> None:
    with pytest.raises(UsageError, match=rf"has trials 0 to \d+, got {trial}\.$"):
        made.env.reset_trial(trial, 0)


def test_an_action_of_another_shape_is_a_usage_error(made: Made) -> None:
    made.env.reset_trial(0, 0)
    for shape in ((6,), (8,), (), (1, 7)):
        with pytest.raises(UsageError, match="takes actions of shape"):
            made.env.step(np.zeros(shape, np.float32))
        with pytest.raises(UsageError, match="takes actions of shape"):
            made.env.advance(np.zeros((*shape, 2), np.float32))


def test_an_unknown_reset_option_is_a_usage_error(made: Made) -> None:
    with pytest.raises(UsageError, match=r"'trial' and 'seed', got 'trail'\.$"):
        made.env.reset(options={"trail": 1})


def test_an_episode_is_truncated_at_the_step_limit(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 40
    env = getattr(made.env.unwrapped, "inner", made.env.unwrapped)
    monkeypatch.setattr(env, "task", replace(chosen_task(made.suite), max_steps=limit))
    made.env.reset_trial(0, 0)
    still = np.zeros((limit - 1, made.suite.action.dim), np.float32)
    after = made.env.advance(still)
    assert (after.steps, after.success, after.truncated) == (limit - 1, False, False)
    after = made.env.advance(still[:5])
    assert (after.steps, after.success, after.truncated) == (1, False, True)


def test_observations_are_what_the_suite_says(made: Made) -> None:
    assert_observed(made.env.reset_trial(0, 0), made.suite)


def test_mujoco_paints_as_finely_as_the_suite_says(made: Made) -> None:
    """The probe scene is painted so; CALVIN's model takes these numbers from where its suite does."""
    made.env.reset_trial(0, 0)
    env = getattr(made.env.unwrapped, "inner", made.env.unwrapped)
    if hasattr(env, "raw"):
        quality = env.raw.sim.model._model.vis.quality
        assert (quality.shadowsize, quality.offsamples) in made.suite.mujoco_quality


def assert_observed(observation: Observation, suite: Suite) -> None:
    assert observation.state.shape == (len(suite.state),)
    assert observation.state.dtype == np.float32
    if suite.name not in CHAINS:  # whose trials have sentences of their own
        assert observation.instruction == chosen_task(suite).instructions[0]
    assert list(observation.images) == [camera.name for camera in suite.cameras]
    for camera in suite.cameras:
        image = observation.images[camera.name]
        assert (image.shape, image.dtype) == ((camera.height, camera.width, 3), np.uint8)
        assert image.std() > 10, "there is something to see"


# What check_env warns of and why it stays: a pose has no bounds that a simulator would keep.
UNBOUNDED = (
    "A Box observation space minimum value is -infinity. This is probably too low.",
    "A Box observation space maximum value is infinity. This is probably too high.",
)


@pytest.mark.parametrize("made", ordered(EVERY, [*OTHERS, "libero_10", "tiny"]), indirect=True, scope="module")
def test_gymnasium_finds_nothing_wrong(made: Made) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in UNBOUNDED:
            warnings.filterwarnings("ignore", message=rf".*{message}")
        check_env(made.env)


# Cameras and contexts


@pytest.mark.parametrize("name", ["robosuite", pytest.param("libero_object", marks=pytest.mark.slow)])
def test_one_camera_gives_the_same_picture_as_two(name: str) -> None:
    suite = make_suite(name)
    env = suite.make_env(chosen_task(suite), ["agentview", "robot0_eye_in_hand"])
    both = env.reset_trial(1, 0)
    env.close()
    env = suite.make_env(chosen_task(suite), ["robot0_eye_in_hand"])
    one = env.reset_trial(1, 0)
    env.close()
    assert list(one.images) == ["robot0_eye_in_hand"]
    np.testing.assert_array_equal(one.images["robot0_eye_in_hand"], both.images["robot0_eye_in_hand"])


def test_looking_back_gives_the_observations_that_single_steps_had() -> None:
    suite = make_suite("robosuite")
    env = suite.make_env(chosen_task(suite), ["agentview"])
    env.look_back(3)
    first = env.reset_trial(1, 0)
    actions = random_actions(suite, steps=5)
    singly = [first, *(env.advance(action[None]).observation for action in actions)]
    env.reset_trial(1, 0)
    at_once = [first, env.advance(actions[:1]).observation, env.advance(actions[1:]).observation]
    env.close()
    for then, steps in zip(at_once, ([0, 0], [0, 0], [3, 4]), strict=True):
        assert [_digest(seen) for seen in then.earlier] == [_digest(singly[step]) for step in steps]
    assert _digest(at_once[-1]) == _digest(singly[-1])


@pytest.mark.parametrize("name", ["robosuite", slow("libero_object")])
def test_without_cameras_no_opengl_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core.import_robosuite()
    mujoco = importlib.import_module("mujoco")

    def refuse(*args: object) -> None:
        pytest.fail(f"a GL context was asked for: {args}")

    monkeypatch.setattr(mujoco, "GLContext", refuse)
    monkeypatch.setattr(mujoco, "MjrContext", refuse)
    suite = make_suite(name)
    env: Any = suite.make_env(chosen_task(suite), ())
    assert env.reset_trial(0, 0).images == {}
    assert env.advance(random_actions(suite, steps=3)).observation.images == {}
    assert env._painter is None
    env.close()


def test_environments_in_one_process_do_not_paint_into_each_other() -> None:
    suite = make_suite("robosuite")
    cameras = [camera.name for camera in suite.cameras]
    door = suite.make_env(suite.task("Door"), cameras)
    alone = told(door, suite)
    for closed in (True, False):
        stack = suite.make_env(suite.task("Stack"), cameras)
        stack.reset_trial(0, 0)
        assert told(door, suite) == alone
        if closed:
            stack.close()
            stack.close()
        del stack
        gc.collect()
        assert told(door, suite) == alone
    door.close()


@pytest.mark.parametrize("name", ["Stack", *map(slow, ("Lift", "Door", "NutAssemblySquare", "PickPlaceCan"))])
def test_a_scene_that_is_not_compiled_again_is_as_if_it_had_been(name: str) -> None:
    suite = make_suite("robosuite")
    env, other = (suite.make_env(suite.task(name), ()) for _ in range(2))
    env.reset_trial(0, 0)
    env.raw.sim.model._model.body_mass[:] *= 1.1
    env.advance(random_actions(suite, steps=3))
    env.reset_trial(2, 1)
    other.reset_trial(2, 1)
    assert np.array_equal(bytes_of(env), bytes_of(other))
    assert env.fingerprint() == other.fingerprint()


def bytes_of(env: Any) -> NDArray[np.uint8]:
    """The whole compiled model, as MuJoCo writes it to a file."""
    mujoco, model = importlib.import_module("mujoco"), env.raw.sim.model._model
    buffer = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer


OLD_CPU = {
    "OPENBLAS_CORETYPE": "Prescott",  # adds in another order than with AVX
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",  # has another sine
}


def test_where_a_scene_starts_from_is_told_alike_on_every_cpu() -> None:
    """As it is in results/baselines/, where the scene settled to other last digits than on many a CPU."""
    code = (
        "from vla_bench.registry import make_suite; suite = make_suite('tiny');"
        "env = suite.make_env(suite.task('turn_on_the_stove'), ()); env.reset_trial(3, 0); print(env.start_fingerprint)"
    )
    for cpu in ({}, OLD_CPU):
        child = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **cpu}, capture_output=True, text=True, check=True
        )
        assert child.stdout.strip() == "e2c4355f828fd844", cpu


# Gymnasium's registry


def test_registering_every_task_imports_no_simulator() -> None:
    name = "vla_bench/libero_10.KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it-v1"
    code = (
        f"import sys, gymnasium, vla_bench; gymnasium.spec({name!r});"
        "print(*{'robosuite', 'mujoco', 'libero', 'torch', 'OpenGL'} & set(sys.modules))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout.strip()) == (0, ""), child.stderr


def test_every_task_is_registered() -> None:
    names = [env_id(name, task.name, make_suite(name).version) for name in SUITES for task in make_suite(name).tasks]
    assert len(set(names)) == len(names) > 130
    assert set(names) <= set(gymnasium.registry)


# robosuite's own functions


@pytest.mark.parametrize("forced", [1, 2])
@pytest.mark.parametrize("control_hz", [20.0, 10.0, 30.0, 50.0])
def test_the_clock_samples_when_robosuites_observables_do(control_hz: float, forced: int) -> None:
    core.import_robosuite()
    observables = importlib.import_module("robosuite.utils.observables")
    readings = []

    @observables.sensor(modality="test")
    def count(cache: dict[str, Any]) -> float:
        readings.append(cache)
        return 0.0

    observable = observables.Observable("count", count, sampling_rate=control_hz)
    clock = core.SampleClock(control_hz, 0.002)
    for number in range(forced):
        observable.update(0.002, {}, force=True)
        if number:
            clock.force()
    theirs, ours = [], []
    for _ in range(10_000):
        before = len(readings)
        observable.update(0.002, {})
        theirs.append(len(readings) > before)
        ours.append(clock.tick())
    assert ours == theirs
    assert sum(ours) == pytest.approx(10_000 * 0.002 * control_hz, rel=0.05)


def test_axis_angle_equals_robosuites() -> None:
    core.import_robosuite()
    theirs = importlib.import_module("robosuite.utils.transform_utils").quat2axisangle
    quats = np.random.default_rng(0).normal(size=(1000, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    w = [1.0, -1.0, 1.0 + 1e-15, -1.0 - 1e-15, 1.0 + 1e-6, -1.0 - 1e-6, 1.0 - 1e-16, 1.0 - 1e-12, -1.0 + 1e-12, 0.0]
    edges = [[x, 2 * x, -x, one] for one in w for x in (0.0, 1e-12, 1e-9)]
    for quat in [*quats, *np.array(edges)]:
        np.testing.assert_array_equal(axis_angle_from_quat(quat), theirs(quat.copy()))


# LIBERO


@pytest.mark.parametrize("name", LIBERO)
def test_tasks_and_sentences_are_the_installed_packages(name: str) -> None:
    libero.import_libero()
    benchmark = importlib.import_module("libero.libero.benchmark").get_benchmark(name)()
    tasks = [benchmark.get_task(number) for number in range(benchmark.get_num_tasks())]
    suite = make_suite(name)
    assert list(suite.names) == [task.name for task in tasks]
    assert [task.instructions for task in suite.tasks] == [(task.language,) for task in tasks]


@pytest.mark.parametrize("name", LIBERO)
def test_every_task_has_fifty_different_initial_states(name: str) -> None:
    for task in make_suite(name).tasks:
        states = libero.initial_states(name, task.name)
        assert states.shape[0] == task.trials == 50
        assert states.dtype == np.float64
        assert np.isfinite(states).all()
        assert len(np.unique(states, axis=0)) == 50


def test_fixtures_stand_the_same_in_all_trials_and_elsewhere_with_another_seed() -> None:
    poses = {}
    for fixture_seed in (0, 1):
        suite = make_suite("libero_goal", [f"fixture_seed={fixture_seed}"])
        env: Any = suite.make_env(suite.tasks[0], ())
        model = env.raw.sim.model
        bodies = [model.body_name2id(fixture.root_body) for fixture in env.raw.fixtures_dict.values()]
        assert len(bodies) >= 3, "cabinet, stove, rack"
        assert libero.initial_states(suite.name, suite.tasks[0].name).shape[1] == 1 + model.nq + model.nv
        for trial in (0, 1, 49, 0):
            env.reset_trial(trial, trial)
            env.advance(random_actions(suite, steps=5))
            pose = (model.body_pos[bodies].tobytes(), model.body_quat[bodies].tobytes())
            assert poses.setdefault(fixture_seed, pose) == pose
        env.close()
    assert poses[0] != poses[1]


@pytest.mark.parametrize("columns", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_initial_states_of_another_model_are_a_usage_error(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_suite("libero_object")
    right = libero.initial_states(suite.name, suite.tasks[0].name)
    wrong = np.resize(right, (50, right.shape[1] + columns))
    monkeypatch.setattr(libero, "initial_states", lambda *_: wrong)
    with pytest.raises(UsageError, match=rf"have shape \(50, {wrong.shape[1]}\), its model needs \(n, 110\)"):
        suite.make_env(suite.tasks[0], ())


def official_file(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_official_state_files_are_read_without_torch(module: bytes, tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(50, 77))
    data = re.sub(rb"numpy\._?core\.multiarray", module, pickle.dumps(states, protocol=2))
    assert module in data
    read = libero.read_torch_states(official_file(tmp_path / "task.pruned_init", data))
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, states)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_state_file_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    file = official_file(tmp_path / "evil.pruned_init", pickle.dumps(Harmful(tmp_path / "ran"), protocol=2))
    with pytest.raises(UsageError, match=r"it asks for (posix|os)\.system"):
        libero.read_torch_states(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a zip"])
def test_a_missing_or_broken_state_file_is_a_usage_error(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "task.pruned_init"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="is not a file of LIBERO initial states"):
        libero.read_torch_states(file)


def test_a_state_file_without_an_array_is_a_usage_error(tmp_path: Path) -> None:
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("archive/version", "3\n")
    (tmp_path / "empty.pruned_init").write_bytes(empty.getvalue())
    with pytest.raises(UsageError, match="is not a file of LIBERO initial states"):
        libero.read_torch_states(tmp_path / "empty.pruned_init")
