"""The oracle solves robosuite's Lift from privileged state."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_bench.errors import UsageError
from vla_bench.types import Episode, Float32, Suite, Task

oracle = importlib.import_module("vla_bench.policies.oracle")
SUITE: Suite = importlib.import_module("vla_bench.envs.robosuite").suite()


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    pytest.importorskip("robosuite")
    env = SUITE.make_env(SUITE.task("Lift"), ())
    yield env
    env.close()


def actions_until_success(env: Any, trial: int, knock_at: int = -1) -> Float32:
    """(n, 7) actions of the oracle; at step `knock_at` the cube is torn away and put down elsewhere."""
    policy = oracle.Oracle(SUITE)
    policy.attach(env)
    observation = env.reset_trial(trial, seed=0)
    policy.reset([0], [Episode("robosuite", "Lift", trial, 0)])
    actions = []
    for step in range(200):
        (chunk,) = policy.infer([observation])
        actions.append(chunk.actions)
        observation, _, success, *_ = env.advance(chunk.actions)
        if success:
            return np.concatenate(actions)
        if step == knock_at:
            joint = env.raw.cube.joints[0]
            env.raw.sim.data.set_joint_qpos(joint, [0.06, -0.06, 0.822, np.cos(0.2), 0.0, 0.0, np.sin(0.2)])
    pytest.fail(f"trial {trial} was not solved within 200 steps")


@pytest.mark.sim
@pytest.mark.parametrize("trial", range(5))
def test_oracle_lifts_the_cube_wherever_it_lies(env: Any, trial: int) -> None:
    actions = actions_until_success(env, trial)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0


@pytest.mark.sim
def test_oracle_does_the_same_again(env: Any) -> None:
    np.testing.assert_array_equal(actions_until_success(env, trial=1), actions_until_success(env, trial=1))


@pytest.mark.sim
def test_oracle_starts_over_when_the_cube_slips_out(env: Any) -> None:
    undisturbed = len(actions_until_success(env, trial=0))
    assert len(actions_until_success(env, trial=0, knock_at=undisturbed - 3)) > undisturbed


def test_oracle_says_what_it_can_do() -> None:
    with pytest.raises(UsageError, match=r"cannot do Stack; the oracle can do: Lift\.$"):
        oracle.Oracle(SUITE).reset([0], [Episode("robosuite", "Stack", 0, 0)])
    with pytest.raises(UsageError, match=r"any task of libero_10; the oracle can do: Lift\.$"):
        oracle.Oracle(replace(SUITE, name="libero_10", tasks=(Task("KITCHEN", ("turn on the stove",), 520, 50),)))


def test_oracle_is_privileged_and_looks_at_no_picture() -> None:
    spec = oracle.Oracle(SUITE).spec
    assert spec.privileged
    assert spec.deterministic
    assert spec.cameras == ()
    assert spec.chunk == 1


def test_hand_points_down_along_a_face_and_turns_at_most_45_degrees() -> None:
    for yaw, hand_yaw in np.random.default_rng(0).uniform(-np.pi, np.pi, (200, 2)):
        box = Rotation.from_euler("ZX", [yaw, np.pi / 2 * round(yaw)]).as_matrix()  # any side may lie on the table
        hand = Rotation.from_euler("ZX", [hand_yaw, np.pi]).as_matrix()
        goal = oracle._downwards(box, hand)
        np.testing.assert_allclose(goal @ goal.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(goal) == pytest.approx(1.0)
        np.testing.assert_allclose(goal[:, 2], [0.0, 0.0, -1.0], atol=1e-9)
        assert np.abs(box.T @ goal[:, 0]).max() == pytest.approx(1.0)
        assert Rotation.from_matrix(goal @ hand.T).magnitude() <= np.pi / 4 + 1e-9
