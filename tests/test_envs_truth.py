"""Ours is upstream, bit for bit: states, proprioception, success and every image, whatever the length of the chunks.

Upstream's own loop runs in a process of its own per episode, because robosuite never makes its GL context current: with
a second renderer in its process its images would be wrong, and the comparison with them. These processes are forks of
one (this file as a script) that has imported upstream, rendered nothing, and uses nothing of vla_bench. Ours plays the
same actions meanwhile, in this process.

Rendering is nearly all of the time, so in most cases upstream's `sim.render` answers black where nobody compares. That
this changes nothing else is part of what is tested: in the cases with `all_pictures` upstream renders at every step
while ours renders at few, and states and pictures agree all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

CAMERAS = ("agentview", "robot0_eye_in_hand")
SETTLE_ACTION = [0, 0, 0, 0, 0, 0, -1]  # ten times after set_init_state: openvla's run_libero_eval.py, openpi's main.py
STEPS = 100
Actions = NDArray[np.float32]  # (n, 7)


# Upstream's loop, in the child process


def _play_upstream(wish: dict[str, Any], out: Path) -> None:
    """Everything upstream says about one episode: arrays with one row for the start and one per action."""
    actions = np.array(wish["actions"], dtype=np.float64)
    start = _start_robosuite if wish["suite"] == "robosuite" else _start_libero
    shutter = Shutter(wish["pictures"])
    env, raw, observation = start(wish, shutter)
    rows = [_row(raw, observation)]
    for step, action in enumerate(actions, start=1):
        shutter.open_at(step)
        observation, *_ = env.step(action)
        rows.append(_row(raw, observation))
    scene = {"body_pos": raw.sim.model.body_pos, "body_quat": raw.sim.model.body_quat}
    scene |= {"geom_size": raw.sim.model.geom_size, "site_rgba": raw.sim.model.site_rgba}
    np.savez(out, **scene, **{key: np.stack([row[key] for row in rows]) for key in rows[0]})


class Shutter:
    """Upstream's `sim.render` in this process: black while closed. Without `pictures` it stays open."""

    def __init__(self, pictures: list[int] | None) -> None:
        from robosuite.utils.binding_utils import MjSim

        self._pictures = pictures
        self._open = pictures is None
        render = MjSim.render
        MjSim.render = lambda *args, **sizes: render(*args, **sizes) if self._open else _black(**sizes)

    def open_at(self, step: int) -> None:
        self._open = self._pictures is None or step in self._pictures


def _black(width: int, height: int, **others: Any) -> NDArray[np.uint8]:
    del others
    return np.zeros((height, width, 3), dtype=np.uint8)


def _start_libero(wish: dict[str, Any], shutter: Shutter) -> tuple[Any, Any, Any]:
    from libero.libero import benchmark
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark(wish["suite"])()
    number = suite.get_task_names().index(wish["task"])
    env = OffScreenRenderEnv(
        bddl_file_name=suite.get_task_bddl_file_path(number), camera_heights=256, camera_widths=256
    )
    env.seed(wish["seed"])
    env.reset()
    observation = env.set_init_state(suite.get_task_init_states(number)[wish["trial"]])
    for _ in range(9):
        env.step(SETTLE_ACTION)
    shutter.open_at(0)
    observation, *_ = env.step(SETTLE_ACTION)
    return env, env.env, observation


def _start_robosuite(wish: dict[str, Any], shutter: Shutter) -> tuple[Any, Any, Any]:
    import robosuite

    env = robosuite.make(
        wish["task"],
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        control_freq=20,
        has_renderer=False,
        camera_names=list(CAMERAS),
        camera_heights=256,
        camera_widths=256,
    )
    np.random.seed(wish["seed"])  # noqa: NPY002 robosuite draws from the global stream
    shutter.open_at(0)
    return env, env, env.reset()


def _row(raw: Any, observation: dict[str, Any]) -> dict[str, Any]:
    from robosuite.utils.transform_utils import quat2axisangle

    rotation = quat2axisangle(observation["robot0_eef_quat"].copy())
    parts = [observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]]
    flames = [name for name in raw.sim.model.site_names if name.endswith("_burner")]
    return {
        "qpos": raw.sim.data.qpos.copy(),
        "qvel": raw.sim.data.qvel.copy(),
        "state": np.concatenate(parts).astype(np.float32),
        "success": bool(raw._check_success()),
        "burns": any(raw.sim.model.site_rgba[raw.sim.model.site_name2id(name), 3] > 0 for name in flames),
        **{camera: observation[f"{camera}_image"][::-1] for camera in CAMERAS},  # upright
    }


def _serve() -> None:
    """Plays one wish a line, each in a fork, and says a line when its file is there: empty, or what went wrong."""
    wishes, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # upstream asks and prints while it is imported
    os.dup2(2, 1)
    import robosuite  # noqa: F401
    from libero.libero import benchmark, envs  # noqa: F401

    for line in wishes:
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print("" if status == 0 else f"upstream ended with {status}, see above", file=answers, flush=True)
            continue
        try:
            wish = json.loads(line)
            _play_upstream(wish, Path(wish["out"]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":  # before vla_bench is imported
    _serve()
    sys.exit()


# Ours, and the comparison

from vla_bench.registry import SUITES, make_suite  # noqa: E402
from vla_bench.rendering.gl import use_backend  # noqa: E402
from vla_bench.types import Episode, Float32, Frame  # noqa: E402

core = importlib.import_module("vla_bench.envs.robosuite_core")
oracle = importlib.import_module("vla_bench.policies.oracle.policy")

pytestmark = pytest.mark.sim


class Case(NamedTuple):
    suite: str
    task: int | str
    trial: int
    all_pictures: bool = False
    fixture_seed: int = 0
    steps: int = STEPS

    @property
    def name(self) -> str:
        return str(self.task) if isinstance(self.task, str) else make_suite(self.suite).names[self.task]


RANDOM = [
    Case("libero_spatial", 4, 1),  # a bowl in an open drawer
    Case("libero_object", 0, 2),
    Case("libero_goal", 0, 49, fixture_seed=1),
    Case("libero_10", 0, 1, all_pictures=True),
    Case("libero_10", 3, 0),  # an open drawer that has to be shut
    Case("libero_90", 79, 3),
    Case("robosuite", "Lift", 1, all_pictures=True),
    Case("robosuite", "Stack", 2),
    Case("robosuite", "Door", 3),
    Case("robosuite", "NutAssemblySquare", 4),
    Case("robosuite", "PickPlaceCan", 5),
]
LIFT = Case("robosuite", "Lift", 0)
STOVE = Case("libero_goal", "turn_on_the_stove", 0)
STOVE_AND_POT = Case("libero_10", "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it", 0)
SOON = 10
# Each simulator with all pictures at every push; test_libero_sampled.py has one with its fixtures elsewhere.
CASES = [
    *(case._replace(steps=SOON) for case in RANDOM if case.all_pictures),
    *(pytest.param(case, marks=pytest.mark.slow) for case in RANDOM),
]
ALL = frozenset(range(STEPS + 1))
SOME = frozenset(range(11)) | frozenset(range(20, STEPS + 1, 10))


def test_every_suite_with_an_upstream_is_compared() -> None:
    adapters = ("vla_bench.envs.libero:", "vla_bench.envs.robosuite:")
    assert {name for name, path in SUITES.items() if path.startswith(adapters)} == {case.suite for case in RANDOM}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.suite}-{case.task}-{case.trial}-{case.steps}")
def test_random_actions_do_what_they_do_upstream(case: Case, upstream: Upstream) -> None:
    steps = case.steps
    actions = np.random.default_rng(case.trial).uniform(-1, 1, (steps, 7)).astype(np.float32)
    with upstream(case, actions, None if case.all_pictures else SOME) as answer, ours(case) as env:
        single = played(env, case, actions, [1] * steps, SOME)
        env.record(every=1 if case.all_pictures else steps + 1)
        chunked = played(env, case, actions, [10] * (steps // 10), SOME)
        film = list(env.film())
        theirs = answer.result()
        assert_same_scene(env, theirs)
    assert_same(single, theirs, steps)
    assert_same(chunked, theirs, steps)
    assert_same_film(film, theirs, steps + 1 if case.all_pictures else 1)


@pytest.mark.parametrize("case", [LIFT, pytest.param(STOVE, marks=pytest.mark.slow)], ids=["Lift", "stove"])
def test_an_episode_ends_at_the_step_of_upstreams_success(case: Case, upstream: Upstream) -> None:
    with ours(case) as env:
        script = SCRIPTS[case](env)
        solved = len(script)
        size = 10 if solved % 10 else 9  # so that success comes in the middle of a chunk
        actions = np.concatenate([script, np.tile(script[-1], (size, 1))])
        ends = {*range(0, solved, size), solved}
        with upstream(case, actions, ends) as answer:
            single = played(env, case, actions, [1] * len(actions), ())
            chunked = played(env, case, actions, [size] * (solved // size + 1), ALL)
    theirs = answer.result()
    assert theirs["success"].argmax() == solved
    assert solved < len(actions) == len(theirs["success"]) - 1, "upstream goes on"
    assert chunked[-1].step - chunked[-2].step < size, "the last chunk was cut short"
    assert_same(single, theirs, solved)
    assert_same(chunked, theirs, solved)


@pytest.mark.slow
def test_the_flame_is_in_the_same_pictures_as_upstream(upstream: Upstream) -> None:
    with ours(STOVE_AND_POT) as env:
        script = turn_on_the_stove(env)
        lit = len(script)
        actions = np.concatenate([script, np.tile(script[-1], (12, 1))])
        with upstream(STOVE_AND_POT, actions, range(lit - 6, len(actions) + 1)) as answer:
            single = played(env, STOVE_AND_POT, actions, [lit - 3] + [1] * 15, range(lit - 3, len(actions) + 1))
            chunked = played(env, STOVE_AND_POT, actions, [lit - 6, 10, 8], range(lit - 6, len(actions) + 1))
    theirs = answer.result()
    assert theirs["burns"].argmax() == lit
    assert theirs["burns"][lit:].all()
    assert_same(single, theirs, len(actions))
    assert_same(chunked, theirs, len(actions))
    # The flame is lit after that step's picture was taken: it shows from the next step on.
    red = {row.step: int(row.images["agentview"][..., 0].sum()) for row in single if row.images}
    assert red[lit + 1] - red[lit] > 3 * abs(red[lit] - red[lit - 1])


# Ours


class Row(NamedTuple):
    """What ours says after `step` actions. No images where none were asked for."""

    step: int
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    state: Float32
    success: bool
    images: dict[str, NDArray[np.uint8]]


@contextmanager
def ours(case: Case) -> Iterator[Any]:
    libero = case.suite != "robosuite"
    suite = make_suite(case.suite, [f"fixture_seed={case.fixture_seed}"] if libero else [])
    env = suite.make_env(suite.task(case.name), CAMERAS)
    yield env
    env.close()


def played(env: Any, case: Case, actions: Actions, sizes: Sequence[int], pictures: Collection[int] = ALL) -> list[Row]:
    """The start and the end of every chunk, until success; with images where a chunk is to end at one of `pictures`."""
    with looking(env, 0 in pictures):
        observation = env.reset_trial(case.trial, 0)
    rows = [_our_row(env, 0, observation, success=False)]
    for size in sizes:
        step = rows[-1].step
        with looking(env, step + size in pictures):
            after = env.advance(actions[step : step + size])
        rows.append(_our_row(env, step + after.steps, after.observation, after.success))
        if after.success:
            break
    return rows


@contextmanager
def looking(env: Any, wanted: bool) -> Iterator[None]:
    cameras = env._cameras
    env._cameras = cameras if wanted else ()
    yield
    env._cameras = cameras


def _our_row(env: Any, step: int, observation: Any, success: bool) -> Row:
    data = env.raw.sim.data._data
    return Row(step, data.qpos.copy(), data.qvel.copy(), observation.state, success, dict(observation.images))


# The comparison


class Upstream:
    """The process that plays upstream's episodes."""

    def __init__(self, folder: Path) -> None:
        use_backend()
        self._file = folder / "upstream.npz"
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @contextmanager
    def __call__(self, case: Case, actions: Actions, pictures: Collection[int] | None) -> Iterator[Any]:
        """A future with upstream's arrays, with pictures after those steps or after all; it runs beside the block."""
        seed = core.scene_seed(0, case.trial) if case.suite == "robosuite" else case.fixture_seed
        wish = {"suite": case.suite, "task": case.name, "trial": case.trial, "seed": seed, "actions": actions.tolist()}
        wish["pictures"] = None if pictures is None else sorted(pictures)
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(self._ask, {**wish, "out": str(self._file)})

    def _ask(self, wish: dict[str, Any]) -> dict[str, NDArray[Any]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(wish), file=self._process.stdin)
        assert self._process.stdout.readline() == "\n", "upstream's process says why on stderr"
        with np.load(self._file) as archive:
            arrays = dict(archive)
        self._file.unlink()  # 40 MB of pictures
        return arrays

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with closing(Upstream(tmp_path_factory.mktemp("upstream"))) as served:
        yield served


def assert_same(rows: Sequence[Row], theirs: dict[str, NDArray[Any]], last: int) -> None:
    assert rows[-1].step == last
    for row in rows:
        where = f"after {row.step} steps"
        for what in ("qpos", "qvel", "state"):
            assert_bits(getattr(row, what), theirs[what][row.step], f"{what} {where}")
        for camera, image in row.images.items():
            assert_bits(image, theirs[camera][row.step], f"{camera} {where}")
        assert row.success == theirs["success"][row.step], where


def assert_same_film(film: Sequence[Frame], theirs: dict[str, NDArray[Any]], frames: int) -> None:
    assert len(film) == frames
    for step, images in film:
        for camera, image in images.items():
            assert_bits(image, theirs[camera][step], f"film of {camera} after {step} steps")


def assert_bits(got: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), what
    difference = np.abs(got.astype(float) - expected.astype(float)).max()
    assert got.tobytes() == expected.tobytes(), f"{what}: differs by up to {difference}"


def assert_same_scene(env: Any, theirs: dict[str, NDArray[Any]]) -> None:
    """Fixture poses, which no state holds, and sizes, which robosuite redraws."""
    model = env.raw.sim.model._model
    for field in ("body_pos", "body_quat", "geom_size", "site_rgba"):
        assert_bits(getattr(model, field), theirs[field], field)


# Scripts that make things happen


def lift(env: Any) -> Actions:
    """The oracle's actions until success in trial 0."""
    policy = oracle.Oracle(make_suite("robosuite"))
    policy.attach(env)
    actions = []
    with looking(env, False):
        observation = env.reset_trial(0, 0)
        policy.reset([0], [Episode("robosuite", "Lift", 0, 0)])
        for _ in range(200):
            (chunk,) = policy.infer([observation])
            actions.append(chunk.actions)
            if env.advance(chunk.actions).success:
                return np.concatenate(actions)
    pytest.fail("the oracle did not lift the cube")


def turn_on_the_stove(env: Any) -> Actions:
    """Take the knob from above and turn it until the burner is on, in trial 0."""
    with looking(env, False):
        env.reset_trial(0, 0)
        data, model = env.raw.sim.data, env.raw.sim.model
        angle = model.get_joint_qpos_addr("flat_stove_1_button")
        actions = []
        for action in _knob_turned(oracle.Arm(env.raw, core.ACTION), model.body_name2id("flat_stove_1_button")):
            actions.append(action)
            env.advance(action[None])
            if data.qpos[angle] >= 0.5:
                return np.stack(actions)
    pytest.fail("the knob was not turned")


def _knob_turned(arm: Any, knob: int) -> Iterator[Float32]:
    turn = np.array([0, 0, 0, 0, 0, 1, oracle.CLOSE], dtype=np.float32)
    at = arm.raw.sim.data.body_xpos[knob].copy()
    for height in (0.1, 0.03):
        goal = oracle.Pose(at + np.array([0.01, 0.0, height]), arm.pose.rotation)
        while np.linalg.norm(arm.off_by(goal)[0]) > 0.012:
            yield arm.towards(goal, oracle.OPEN)
    for _ in range(10):
        yield np.array([0, 0, 0, 0, 0, 0, oracle.CLOSE], dtype=np.float32)
    for _ in range(60):
        yield turn


SCRIPTS = {LIFT: lift, STOVE: turn_on_the_stove}
