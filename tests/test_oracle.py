"""The oracle solves tasks from privileged state, and looking ahead leaves no trace."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_bench.errors import UsageError
from vla_bench.registry import make_suite
from vla_bench.types import Episode, Float32, Suite, Task

oracle = importlib.import_module("vla_bench.policies.oracle.policy")
grasping = importlib.import_module("vla_bench.policies.oracle.grasps")
shapes = importlib.import_module("vla_bench.policies.oracle.shapes")
scenes = importlib.import_module("vla_bench.policies.oracle.scene")
SUITE: Suite = importlib.import_module("vla_bench.envs.robosuite").suite()


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    pytest.importorskip("robosuite")
    env = SUITE.make_env(SUITE.task("Lift"), ())
    yield env
    env.close()


def actions_until_success(suite: Suite, env: Any, trial: int, knock_at: int = -1) -> Float32:
    """(n, 7) actions of the oracle; at step `knock_at` Lift's cube is torn away and put down elsewhere."""
    policy = oracle.Oracle(suite)
    policy.attach(env)
    observation = env.reset_trial(trial, seed=0)
    policy.reset([0], [Episode(suite.name, env.task.name, trial, 0)])
    actions = []
    for step in range(env.task.max_steps):
        (chunk,) = policy.infer([observation])
        actions.append(chunk.actions)
        observation, _, success, *_ = env.advance(chunk.actions)
        if success:
            return np.concatenate(actions)
        if step == knock_at:
            joint = env.raw.cube.joints[0]
            env.raw.sim.data.set_joint_qpos(joint, [0.06, -0.06, 0.822, np.cos(0.2), 0.0, 0.0, np.sin(0.2)])
    pytest.fail(f"trial {trial} of {env.task.name} was not solved")


@pytest.mark.sim
@pytest.mark.parametrize("trial", range(5))
def test_oracle_lifts_the_cube_wherever_it_lies(env: Any, trial: int) -> None:
    actions = actions_until_success(SUITE, env, trial)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0


@pytest.mark.sim
def test_oracle_does_the_same_again(env: Any) -> None:
    first, again = (actions_until_success(SUITE, env, trial=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.sim
def test_oracle_starts_over_when_the_cube_slips_out(env: Any) -> None:
    undisturbed = len(actions_until_success(SUITE, env, trial=0))
    assert len(actions_until_success(SUITE, env, trial=0, knock_at=undisturbed - 3)) > undisturbed


@pytest.mark.sim
def test_looking_ahead_leaves_the_real_trajectory_bit_equal(env: Any) -> None:
    """The oracle looks ahead before it acts; its actions alone, played without it, end in the same bits."""
    actions = actions_until_success(SUITE, env, trial=2)
    looked = env.fingerprint(), env.raw.sim.data.qpos.copy()
    env.reset_trial(2, 0)
    assert env.advance(actions).success
    assert env.fingerprint() == looked[0]
    np.testing.assert_array_equal(env.raw.sim.data.qpos, looked[1])


@pytest.mark.sim
def test_what_is_imagined_is_what_will_happen(env: Any) -> None:
    env.reset_trial(0, 0)
    scene = scenes.Scene(env, SUITE.action)
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 7)).astype(np.float32)
    before = scene.data.qpos.copy()
    with scene.imagine() as play:
        for action in actions:
            play(action)
        imagined = scene.data.qpos.copy()
        with scene.imagine() as deeper:
            deeper(actions[0])
        np.testing.assert_array_equal(scene.data.qpos, imagined)
    np.testing.assert_array_equal(scene.data.qpos, before)
    assert not np.array_equal(imagined, before)
    env.advance(actions)
    np.testing.assert_array_equal(scene.data.qpos, imagined)


@pytest.mark.sim
def test_what_takes_longer_than_the_episode_is_not_imagined_to_its_end(env: Any) -> None:
    env.reset_trial(0, 0)
    env.advance(np.zeros((env.task.max_steps - 20, 7), np.float32))
    scene = scenes.Scene(env, SUITE.action)
    with scene.imagine() as play:
        assert not scenes.play_out(scene, itertools.repeat(np.zeros(7, np.float32)), play)
        assert scene.over
    assert scene.steps_imagined == 20
    assert not scene.over


@pytest.mark.sim
def test_oracle_gives_up_after_so_much_planning(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_MOST_IMAGINED", 500)
    env.reset_trial(0, 0)
    scene = scenes.Scene(env, SUITE.action)
    plans = 0
    while not scene.given_up:
        assert scene.steps_imagined < scene.patience(1000) <= 500
        plans += 1
    assert 1 < plans < 10


@pytest.mark.sim
@pytest.mark.parametrize(
    ("suite_name", "task"),
    [
        pytest.param("robosuite", "Stack", marks=pytest.mark.slow),
        pytest.param("robosuite", "Door", marks=pytest.mark.slow),
        pytest.param("robosuite", "NutAssemblySquare", marks=pytest.mark.slow),
        pytest.param("libero_goal", "turn_on_the_stove", marks=pytest.mark.slow),
        pytest.param("libero_goal", "put_the_bowl_on_the_stove", marks=pytest.mark.slow),
        pytest.param("libero_goal", "open_the_middle_drawer_of_the_cabinet", marks=pytest.mark.slow),
        pytest.param(  # slid: its rim cannot be gripped
            "libero_goal", "push_the_plate_to_the_front_of_the_stove", marks=pytest.mark.slow
        ),
        pytest.param(  # too tall to stand in there
            "libero_90", "KITCHEN_SCENE5_put_the_ketchup_in_the_top_drawer_of_the_cabinet", marks=pytest.mark.slow
        ),
        (
            "libero_10",
            "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it",
        ),  # can stick out
    ],
)
def test_oracle_solves_one_task_of_each_kind(suite_name: str, task: str) -> None:
    pytest.importorskip("robosuite" if suite_name == "robosuite" else "libero")
    suite = make_suite(suite_name)
    env = suite.make_env(suite.task(task), ())
    try:
        actions = actions_until_success(suite, env, trial=0)
        end = env.fingerprint()
        env.reset_trial(0, 0)
        assert env.advance(actions).success
        assert env.fingerprint() == end, "looking ahead left a trace"
    finally:
        env.close()


def test_oracle_says_what_it_can_do() -> None:
    with pytest.raises(UsageError, match=r"cannot do Wipe of robosuite; .* begin with: robosuite, libero"):
        oracle.Oracle(SUITE).reset([0], [Episode("robosuite", "Wipe", 0, 0)])
    with pytest.raises(UsageError, match="cannot do any task of moon"):
        oracle.Oracle(replace(SUITE, name="moon", tasks=(Task("CRATER", ("jump",), 520, 50),)))


@pytest.mark.parametrize("task", SUITE.names)
def test_oracle_has_a_script_for_every_task_of_robosuite(task: str) -> None:
    assert oracle.script_of("robosuite", task) is not None


def test_oracle_is_privileged_and_looks_at_no_picture() -> None:
    spec = oracle.Oracle(SUITE).spec
    assert spec.privileged
    assert spec.deterministic
    assert spec.cameras == ()
    assert spec.chunk == 1


def test_hand_rotations_are_rotations_that_turn_at_most_a_quarter_from_home() -> None:
    for yaw in np.random.default_rng(0).uniform(-np.pi, np.pi, 20):
        home = Rotation.from_euler("ZX", [yaw, np.pi]).as_matrix()
        for rotation in grasping.hand_rotations(home, np.array([1.0, 0.0, 0.0])):
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(rotation) == pytest.approx(1.0)
            np.testing.assert_allclose(rotation[:, 2], [0.0, 0.0, -1.0], atol=1e-9)
            assert Rotation.from_matrix(rotation @ home.T).magnitude() <= np.pi / 2 + 1e-9


def test_a_leaning_hand_points_outwards() -> None:
    outwards = np.array([0.6, 0.8, 0.0])
    for rotation in grasping.hand_rotations(np.diag([1.0, -1.0, -1.0]), outwards, (0.35,)):
        assert rotation[:, 2] @ outwards == pytest.approx(np.sin(0.35))


# Shapes, against the formula of a signed distance


KINDS = {"sphere": 2, "capsule": 3, "ellipsoid": 4, "cylinder": 5, "box": 6}


def _model(kind: int, size: list[float]) -> tuple[Any, Any]:
    turn = Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix()
    model = SimpleNamespace(
        geom_contype=np.ones(1), geom_conaffinity=np.ones(1), geom_type=np.array([kind]), geom_size=np.array([size]),
        geom_rbound=np.array([np.linalg.norm(size) * 2]), geom_bodyid=np.array([1]),
    )  # fmt: skip
    return model, SimpleNamespace(geom_xpos=np.array([[0.1, -0.2, 0.3]]), geom_xmat=turn.reshape(1, 9))


@pytest.mark.sim
@pytest.mark.parametrize("kind", KINDS)
def test_solids_agree_with_mujoco_rays(kind: str) -> None:
    """A point is inside exactly if a ray from it to far away leaves the shape once: MuJoCo's ray is the reference."""
    mujoco = pytest.importorskip("mujoco")
    size = [0.05, 0.03, 0.08]
    model, data = _model(KINDS[kind], size)
    points = data.geom_xpos[0] + np.random.default_rng(1).uniform(-0.15, 0.15, (400, 3))
    inside = shapes.Solids(model).inside(data, points, [0])
    assert 5 < inside.sum() < 395
    for point, claimed in zip(points, inside, strict=True):
        hits = [
            mujoco.mju_rayGeom(data.geom_xpos[0], data.geom_xmat[0], np.array(size), point, np.array(ray), KINDS[kind])
            for ray in itertools.product((-1.0, 1.0), (-0.7, 0.6), (-0.5, 0.4))
        ]
        assert claimed == all(hit >= 0 for hit in hits)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_a_shape_lie_in_it(kind: str) -> None:
    model, data = _model(KINDS[kind], [0.05, 0.03, 0.08])
    solids = shapes.Solids(model)
    points = data.geom_xpos[0] + solids.samples(0) @ data.geom_xmat[0].reshape(3, 3).T
    assert len(points) > 50
    assert solids.inside(data, points, [0], 1e-3).all()
