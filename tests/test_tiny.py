"""The suite `tiny`: one convention for three simulators, fixed evaluation states, an expert that solves them all."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_bench.config import RunConfig
from vla_bench.data.collect import CollectConfig, collect
from vla_bench.errors import UsageError
from vla_bench.registry import describe_suite_arguments, make_suite
from vla_bench.runner import prepare
from vla_bench.types import Episode, Float32, Suite

tiny = importlib.import_module("vla_bench.envs.tiny")
tiny_calvin = importlib.import_module("vla_bench.envs.tiny_calvin")
oracle = importlib.import_module("vla_bench.policies.oracle.policy")

Float64 = NDArray[np.float64]
TASKS = ("lift_the_cube", "turn_on_the_stove", "open_the_drawer")
SPLITS = ("eval", "train")


@pytest.fixture(scope="module")
def suites() -> dict[str, Suite]:
    """Their scenes are built once for all tests."""
    return {split: make_suite("tiny", [f"split={split}"]) for split in SPLITS}


@pytest.fixture(params=TASKS)
def env(request: pytest.FixtureRequest, suites: dict[str, Suite]) -> Iterator[Any]:
    yield from opened(suites["eval"], request.param)


def opened(suite: Suite, task: str) -> Iterator[Any]:
    env: Any = suite.make_env(suite.task(task), tiny.CAMERAS)
    cameras = env.inner._cameras
    yield env
    env.inner._cameras = cameras  # see `blind`
    env.close()


def blind(env: Any) -> Any:
    """The same, painting nothing."""
    env.inner._cameras = ()
    return env


# What it says


def test_actions_and_state_are_robosuites_and_pictures_are_small() -> None:
    made, robosuite = make_suite("tiny"), make_suite("robosuite")
    assert (made.action, made.state, made.control_hz) == (robosuite.action, robosuite.state, robosuite.control_hz)
    assert [(c.name, c.height, c.width) for c in made.cameras] == [("view", 64, 64), ("wrist", 64, 64)]
    assert made.names == TASKS
    assert len({task.instructions for task in made.tasks}) == 3
    assert {task.trials for task in made.tasks} == {50}
    assert {task.trials for task in make_suite("tiny", ["split=train"]).tasks} == {10_000}


@pytest.mark.sim
def test_splits_have_protocols_of_their_own() -> None:
    hashes = [
        prepare(RunConfig("zero", "tiny", suite_args=arguments)).info.protocol_hash
        for arguments in ((), ("split=eval",), ("split=train",), ("resolution=32",))
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_its_arguments_are_listed_and_checked() -> None:
    assert "split: eval | train" in describe_suite_arguments("tiny")
    with pytest.raises(UsageError, match="split should be eval"):
        make_suite("tiny", ["split=test"])
    with pytest.raises(UsageError, match="resolution must be >= 1, got 0"):
        make_suite("tiny", ["resolution=0"])


@pytest.mark.sim
def test_provenance_names_all_that_decides_the_numbers() -> None:
    told = make_suite("tiny").provenance()
    for other in ("robosuite", "libero_goal", "calvin_tasks"):
        assert make_suite(other).provenance().items() <= told.items()


# Actions of CALVIN's side


def targets(number: int) -> Iterator[tuple[Float64, np.random.Generator]]:
    """Euler angles in which the hand may be: pointing down to level, turned anyhow."""
    for seed in range(number):
        rng = np.random.default_rng(seed)
        yield np.array([rng.uniform(-4, 4), rng.uniform(-1.4, 1.4), rng.uniform(-6, 6)]), rng


def rotation(euler: Float64) -> Rotation:
    return Rotation.from_euler("xyz", euler)


def test_a_rotation_vector_turns_the_target_as_scipy_does() -> None:
    for euler, rng in targets(200):
        vector = rng.normal(size=3)
        vector *= rng.uniform(0, 0.008) / np.linalg.norm(vector)  # at a pitch of 1.4 yaw turns six times as far
        action = np.concatenate([rng.uniform(-0.4, 0.4, 3), vector / 0.5, [1.0]])
        relative = tiny_calvin.to_relative(action, euler)
        assert np.abs(relative).max() <= 1.0
        np.testing.assert_allclose(relative[:3] * 0.02, action[:3] * 0.05, atol=1e-12)
        after, wanted = rotation(euler + 0.05 * relative[3:6]), Rotation.from_rotvec(vector) * rotation(euler)
        assert (after * wanted.inv()).magnitude() < 1e-9


def test_an_action_there_and_back_is_the_same() -> None:
    for euler, rng in targets(200):
        relative = np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0])).astype(np.float32)
        ours = tiny_calvin.from_relative(relative, euler)
        assert ours.dtype == np.float32
        turned = rotation(euler + 0.05 * relative[3:6].astype(float)) * rotation(euler).inv()
        np.testing.assert_allclose(ours[3:6] * 0.5, turned.as_rotvec(), atol=1e-6)
        again = tiny_calvin.to_relative(ours.astype(np.float64), euler)
        np.testing.assert_allclose(again, relative, atol=2e-5)


def test_nothing_asked_is_nothing_done() -> None:
    for euler, _ in targets(20):
        np.testing.assert_allclose(tiny_calvin.to_relative(np.zeros(7), euler)[:6], 0, atol=1e-12)
        assert not tiny_calvin.from_relative(np.zeros(7, np.float32), euler)[:6].any()


def test_what_is_asked_beyond_calvins_full_step_is_cut_at_it() -> None:
    euler = np.array([math.pi, 0.0, 1.5])
    relative = tiny_calvin.to_relative(np.array([1.0, -1.0, 0.4, 0.0, 0.0, 1.0, -1.0]), euler)
    np.testing.assert_allclose(relative, [1, -1, 1, 0, 0, 1, 1], atol=1e-12)


def test_beyond_one_is_one_as_in_robosuite() -> None:
    for euler, rng in targets(20):
        action = rng.uniform(-15, 15, 7)
        cut = tiny_calvin.to_relative(np.clip(action, -1, 1), euler)
        np.testing.assert_array_equal(tiny_calvin.to_relative(action, euler), cut)


@pytest.mark.parametrize(("ours", "calvins"), [(1.0, -1.0), (0.01, -1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_the_gripper_closes_above_zero(ours: float, calvins: float) -> None:
    action = np.array([0, 0, 0, 0, 0, 0, ours])
    assert tiny_calvin.to_relative(action, np.zeros(3))[6] == calvins


# The same numbers mean the same in all three


@pytest.mark.sim
def test_observations_are_what_the_suite_says(env: Any) -> None:
    made = make_suite("tiny")
    observation = env.reset_trial(0, 0)
    assert observation.instruction == made.task(env.task.name).instructions[0]
    assert list(observation.images) == ["view", "wrist"]
    for image in observation.images.values():
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        assert image.std() > 20, "there is something to see"
    assert (observation.state.shape, observation.state.dtype) == ((8,), np.float32)
    assert np.linalg.norm(observation.state[3:6]) == pytest.approx(math.pi, abs=0.3), "the hand points down"
    left, right = observation.state[6:]
    assert 0.015 < left < 0.041
    assert right == pytest.approx(-left, abs=1e-3)


@pytest.mark.sim
def test_what_is_manipulated_can_be_seen(env: Any) -> None:
    env.record(1)
    env.reset_trial(0, 0)
    env.advance(np.zeros((1, 7), np.float32))
    shots = list(env.shots())
    assert [shot.step for shot in shots] == [0, 1]
    assert list(shots[0].images) == list(shots[0].masks) == ["view", "wrist"]
    assert all(mask.shape == (64, 64) for mask in shots[0].masks.values())
    assert shots[0].masks["view"].sum() >= 9
    assert [list(frame.images) for frame in env.film()] == [["view", "wrist"]] * 2
    assert {name: mask.tolist() for name, mask in env.gaze().items()} == {
        name: mask.tolist() for name, mask in shots[1].masks.items()
    }


@pytest.mark.sim
@pytest.mark.parametrize("axis", range(3))
def test_a_translation_moves_the_hand_along_the_worlds_axis(env: Any, axis: int) -> None:
    before = blind(env).reset_trial(0, 0).state[:3]
    sign = -1.0 if axis == 1 and env.task.name == "open_the_drawer" else 1.0  # away from the cabinet
    moved = env.advance(repeated(axis, 0.4 * sign, 8)).observation.state[:3] - before
    assert np.argmax(np.abs(moved)) == axis
    assert moved[axis] * sign > 0.015


@pytest.mark.sim
@pytest.mark.parametrize("axis", range(3))
def test_a_rotation_turns_the_hand_about_the_worlds_axis(env: Any, axis: int) -> None:
    before = Rotation.from_rotvec(blind(env).reset_trial(0, 0).state[3:6])
    after = Rotation.from_rotvec(env.advance(repeated(3 + axis, 0.1, 8)).observation.state[3:6])
    turned = (after * before.inv()).as_rotvec()
    assert np.argmax(np.abs(turned)) == axis
    assert turned[axis] > 0.03


@pytest.mark.sim
def test_one_closes_the_fingers_and_minus_one_opens_them(env: Any) -> None:
    blind(env).reset_trial(0, 0)
    closed = env.advance(repeated(6, 1.0, 16)).observation.state[6:]
    opened = env.advance(repeated(6, -1.0, 16)).observation.state[6:]
    np.testing.assert_allclose(closed, 0, atol=0.003)
    np.testing.assert_allclose(opened, [0.04, -0.04], atol=0.003)


def repeated(component: int, value: float, steps: int) -> Float32:
    actions = np.zeros((steps, 7), np.float32)
    actions[:, 6] = -1.0
    actions[:, component] = value
    return actions


@pytest.mark.sim
def test_twenty_control_steps_are_a_second(env: Any) -> None:
    blind(env).reset_trial(0, 0)
    data = env.inner.table.data if hasattr(env.inner, "table") else env.inner.raw.sim.data
    before = data.time
    env.advance(np.zeros((20, 7), np.float32))
    assert data.time - before == pytest.approx(20 / make_suite("tiny").control_hz)


@pytest.mark.sim
def test_calvins_state_is_its_own_in_robosuites_terms(suites: dict[str, Suite]) -> None:
    for env in opened(suites["eval"], "open_the_drawer"):
        state = blind(env).reset_trial(1, 0).state
        robot_obs = env.inner.table.robot_obs()
        np.testing.assert_allclose(state[:3], robot_obs[:3], atol=1e-6)
        off = Rotation.from_rotvec(state[3:6]) * Rotation.from_euler("xyz", robot_obs[3:6]).inv()
        assert off.magnitude() < 1e-5
        assert state[6] - state[7] == pytest.approx(robot_obs[6], abs=1e-6)


# Initial states


@pytest.mark.sim
def test_evaluation_states_are_the_same_for_every_seed_and_training_states_are_others(
    env: Any, suites: dict[str, Suite]
) -> None:
    fixed = [start(env, trial, seed) for trial, seed in ((0, 0), (49, 0), (0, 2**63 - 1))]
    assert fixed[2] == fixed[0]
    for training in opened(suites["train"], env.task.name):
        drawn = [start(training, trial, seed) for trial, seed in ((0, 0), (0, 1), (9_999, 0), (0, 0))]
    assert drawn[3] == drawn[0]
    assert len({*fixed, *drawn}) == 5


def start(env: Any, trial: int, seed: int) -> tuple[str, bytes]:
    state = blind(env).reset_trial(trial, seed).state
    return env.fingerprint(), state.tobytes()


@pytest.mark.sim
def test_liberos_evaluation_states_are_the_published_ones(suites: dict[str, Suite]) -> None:
    (ours,) = (start(env, 7, 5) for env in opened(suites["eval"], "turn_on_the_stove"))
    goal = make_suite("libero_goal")
    env = goal.make_env(goal.task("turn_on_the_stove"), ())
    state = env.reset_trial(7, 0).state
    assert ours == (env.fingerprint(), state.tobytes())
    env.close()


# The expert


@pytest.mark.sim
def test_the_oracle_solves_it_and_its_actions_replay_to_the_bit(env: Any) -> None:
    cameras = env.inner._cameras
    for trial in (0, 1):
        actions = solved(blind(env), trial)
        assert len(actions) < 0.75 * env.task.max_steps
        env.inner._cameras = cameras
        assert env.gaze()["wrist"].sum() > 100, "in the end the hand is there"
        ends = env.fingerprint()
        blind(env).reset_trial(trial, 5)
        chunks = [actions[at : at + 8] for at in range(0, len(actions), 8)]
        successes = [env.advance(chunk).success for chunk in chunks]
        assert successes == [False] * (len(chunks) - 1) + [True]
        assert env.fingerprint() == ends


def solved(env: Any, trial: int) -> Float32:
    """(T, 7) what the oracle did, to success."""
    expert, actions = oracle.Oracle(make_suite("tiny")), []
    observation = env.reset_trial(trial, 0)
    expert.attach(env)
    expert.reset([0], [Episode("tiny", env.task.name, trial, 0)])
    while True:
        actions.append(expert.infer([observation])[0].actions[0])
        after = env.advance(actions[-1][None])
        if after.success:
            return np.stack(actions)
        assert not after.truncated


@pytest.mark.slow
@pytest.mark.sim
def test_a_collected_episode_holds_both_pictures_and_replays_to_the_bit(tmp_path: Path) -> None:
    asked = CollectConfig(
        "tiny", 1, str(tmp_path / "out"), ("open_the_drawer",), suite_args=("split=train",), format="hdf5"
    )
    assert collect(asked).kept == 1
    with h5py.File(tmp_path / "out/hdf5/open_the_drawer_demo.hdf5") as archive:
        demo = archive["data/demo_0"]
        assert set(demo["gaze/body"].asstr()) == {"drawer_link"}
        assert demo["obs/view_rgb"].shape == demo["obs/wrist_rgb"].shape == (len(demo["actions"]), 64, 64, 3)
        actions, ends = demo["actions"][:], demo.attrs["final_fingerprint"]
    made = make_suite("tiny", ["split=train"])
    for env in opened(made, "open_the_drawer"):
        blind(env).reset_trial(0, 0)
        assert env.advance(actions.astype(np.float32)).success
        assert env.fingerprint() == ends


# Scenes are kept


@pytest.mark.sim
def test_a_closed_environment_leaves_its_scene_to_the_next(suites: dict[str, Suite]) -> None:
    made = make_suite("tiny")
    task = made.task("open_the_drawer")
    first = made.make_env(task, ("view",))
    first.look_back(3)
    first.record(1)
    first.reset_trial(0, 0)
    other = made.make_env(task, ("view",))
    assert other.inner is not first.inner  # type: ignore[attr-defined]
    first.close()
    first.close()
    again = made.make_env(task, ("view",))
    assert again.inner is first.inner  # type: ignore[attr-defined]
    assert again.reset_trial(0, 0).earlier == ()
    assert list(again.film()) == []
    assert made.make_env(task, ()).inner is not first.inner  # type: ignore[attr-defined]


@pytest.mark.sim
def test_a_scene_that_failed_is_not_used_again() -> None:
    made = make_suite("tiny")
    task = made.task("open_the_drawer")
    first: Any = made.make_env(task, ())
    first.reset_trial(0, 0)
    first.inner.table.data.qpos[0] = np.nan
    with pytest.raises(RuntimeError, match="diverged"):
        first.advance(np.zeros((2, 7), np.float32))
    first.close()
    again: Any = made.make_env(task, ())
    assert again.inner is not first.inner
