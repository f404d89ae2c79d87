"""The oracle does every CALVIN task and whole chains from privileged state."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from marks import slow

from vla_bench.errors import UsageError
from vla_bench.types import Episode, Float32, Suite, Transition

oracle = importlib.import_module("vla_bench.policies.oracle.policy")
planning = importlib.import_module("vla_bench.policies.oracle.calvin")
hands = importlib.import_module("vla_bench.policies.oracle.calvin_hand")
skills = importlib.import_module("vla_bench.policies.oracle.calvin_skills")
scripts = importlib.import_module("vla_bench.policies.oracle.calvin_tasks")
calvin = importlib.import_module("vla_bench.envs.calvin.env")
tasks = importlib.import_module("vla_bench.envs.calvin.tasks")
SINGLES: Suite = calvin.single_tasks()
CHAINS: Suite = calvin.suite("calvin_d")
UNSTACKED_THEN_LIFTED = 47
"""A chain in which the block taken off another one is to be lifted from the table next."""


@pytest.fixture(scope="module")
def chains() -> Iterator[Any]:
    pytest.importorskip("robosuite")
    env = CHAINS.make_env(CHAINS.task("chains"), ())
    yield env
    env.close()


@pytest.fixture(scope="module")
def table(chains: Any) -> Any:
    return chains.table


def played(env: Any, suite: Suite, trial: int, task: str, noise: float = 0.0) -> tuple[Float32, int]:
    """(n, 7) actions of the oracle and how many tasks they did, with normal noise of that size on what is executed."""
    policy = oracle.Oracle(suite)
    policy.attach(env)
    episode, rng = Episode(suite.name, task, trial, 0), np.random.default_rng(0)
    after = Transition(env.reset_trial(trial, 0), 0, False, False, 0, False, 0.0, 0.0)
    policy.reset([0], [episode])
    actions: list[Float32] = []
    while not (after.success or after.truncated):
        (chunk,) = policy.infer([after.observation])
        actions.append(chunk.actions[0])
        disturbed = chunk.actions + noise * np.append(rng.standard_normal(6), 0).astype(np.float32)
        after = env.advance(disturbed)
        if after.instruction_changed:
            policy.reset([0], [episode])
    return np.array(actions), after.subgoals_done


@pytest.mark.sim
@pytest.mark.parametrize("starts", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", [task if n % 3 == 0 else slow(task) for n, task in enumerate(SINGLES.names)])
def test_oracle_does_every_task_from_its_first_starts(task: str, starts: int) -> None:
    pytest.importorskip("robosuite")
    env = SINGLES.make_env(SINGLES.task(task), ())
    episodes = [played(env, SINGLES, trial, task) for trial in range(starts)]
    env.close()
    done = [solved for _, solved in episodes]
    assert all(done[:5])
    assert sum(done) >= 0.9 * starts
    actions = np.concatenate([each for each, _ in episodes])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert set(actions[:, 6].tolist()) <= {-1.0, 1.0}


@pytest.mark.sim
def test_oracle_does_a_chain_and_the_same_again(chains: Any) -> None:
    first, done = played(chains, CHAINS, trial=0, task="chains")
    assert done == 5
    np.testing.assert_array_equal(played(chains, CHAINS, trial=0, task="chains")[0], first)


@pytest.mark.slow
@pytest.mark.sim
def test_oracle_leaves_the_scene_so_that_the_next_task_can_begin(chains: Any) -> None:
    assert played(chains, CHAINS, UNSTACKED_THEN_LIFTED, "chains")[1] == 5


@pytest.mark.slow
@pytest.mark.sim
def test_oracle_goes_on_when_its_motions_are_disturbed(chains: Any) -> None:
    undisturbed, _ = played(chains, CHAINS, trial=2, task="chains")
    actions, done = played(chains, CHAINS, trial=2, task="chains", noise=0.3)
    assert done == 5
    assert len(actions) != len(undisturbed)


@pytest.mark.sim
def test_looking_ahead_leaves_the_simulator_as_it_was(chains: Any) -> None:
    chains.reset_trial(3, 0)
    before = chains.fingerprint(), chains.table.record(), chains.table.robot_obs().tolist()
    plan = planning.Planner(chains, hands.Hand(chains.table, CHAINS.action), 10_000).plan()
    assert [choice.task for choice in plan] == list(chains.tasks)
    assert (chains.fingerprint(), chains.table.record(), chains.table.robot_obs().tolist()) == before


@pytest.mark.sim
def test_a_plan_that_may_not_look_far_gets_as_far_as_it_looked(chains: Any) -> None:
    chains.reset_trial(3, 0)
    plan = planning.Planner(chains, hands.Hand(chains.table, CHAINS.action), 1).plan()
    assert 0 < len(plan) < 5


@pytest.mark.sim
@pytest.mark.parametrize(
    "goal", [(0.2, -0.12, 0.5, 1.0, 0.0), (-0.2, -0.05, 0.62, 2.0, 0.6), (0.15, -0.4, 0.4, 0.1, 0.0)]
)
def test_hand_moves_to_a_pose(table: Any, goal: tuple[float, ...]) -> None:
    table.reset()
    hand, pose = hands.Hand(table, CHAINS.action), hands.Pose(*goal)
    for action in hands.move(hand, pose, hands.OPEN):
        planning.play(table, action)
    np.testing.assert_allclose(table.robot_obs()[:3], pose.position, atol=0.003)
    roll, pitch, yaw = table.robot_obs()[3:6]
    ahead = [
        math.cos(yaw) * math.sin(pitch) * math.cos(roll) + math.sin(yaw) * math.sin(roll),
        math.sin(yaw) * math.sin(pitch) * math.cos(roll) - math.cos(yaw) * math.sin(roll),
        math.cos(pitch) * math.cos(roll),
    ]  # third column of Rz(yaw) Ry(pitch) Rx(roll): where the fingers point
    np.testing.assert_allclose(ahead, pose.forward, atol=0.03)


def block(degrees: float, length: float = 0.08) -> Any:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return hands.Thing("pink", np.array([0.1, -0.1, 0.46]), rotation, np.array([length, 0.04, 0.04]) / 2, frozenset())


@pytest.mark.parametrize("degrees", [-170, -90, -30, 0, 45, 90, 120])
def test_a_long_block_is_grasped_across_its_length(degrees: float) -> None:
    (pose,) = skills.grasps(block(degrees))
    fingers = np.array([math.sin(pose.yaw), -math.cos(pose.yaw), 0])
    assert abs(fingers @ block(degrees).rotation[:, 0]) < 1e-9
    assert 0 <= pose.yaw <= math.pi


@pytest.mark.parametrize("degrees", [-170, -30, 20, 90])
def test_a_cube_is_grasped_on_the_faces_that_turn_the_hand_least(degrees: float) -> None:
    first, second = skills.grasps(block(degrees, length=0.04))
    assert abs(first.yaw - math.pi / 2) <= math.pi / 4 + 1e-9
    assert math.isclose(abs(first.yaw - second.yaw), math.pi / 2)


def test_drawing_back_undoes_going_forward() -> None:
    pose = hands.Pose(0.1, 0.0, 0.5, 1.2, 0.7)
    moved = pose.at(pose.position + 0.1 * pose.forward)
    np.testing.assert_allclose(moved.drawn_back(0.1), pose)
    np.testing.assert_allclose(hands.Pose(0, 0, 0).forward, [0, 0, -1])
    assert hands.Pose(0, 0, 0, tilt=0.5).forward[1] > 0, "tilted, it points into the cabinet"


def test_a_block_reaches_as_far_as_its_corners() -> None:
    thing = block(30)
    corners = thing.position + np.array(np.meshgrid(*([-1, 1],) * 3)).reshape(3, 8).T * thing.half @ thing.rotation.T
    for direction in (np.array([1.0, 0, 0]), np.array([0, 0.6, 0.8])):
        assert math.isclose(thing.reach(direction), max((corners - thing.position) @ direction))
    assert math.isclose(thing.bottom, min(corners[:, 2]))
    np.testing.assert_allclose(thing.face(np.array([1.0, 0, 0])).normal, thing.rotation[:, 0])


@pytest.mark.parametrize("past", [-0.05, -0.01, 0.002])
@pytest.mark.parametrize("above", [0.0, 0.003])
def test_clearances_of_a_level_block_are_read_off_its_faces(past: float, above: float) -> None:
    base = block(0, length=0.04)
    top = base._replace(position=base.position + np.array([0.04 + past, 0, 0.04 + above]))
    np.testing.assert_allclose(skills._clearances(top, base, np.array([1.0, 0, 0])), [past, above], atol=1e-12)


def test_a_tilted_block_above_the_other_is_as_high_as_its_lowest_part_there() -> None:
    base, angle = block(0, length=0.04), 0.02
    c, s = math.cos(angle), math.sin(angle)
    nose_down = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    top = base._replace(position=base.position + np.array([0.02, 0, 0.042]), rotation=nose_down)
    _, above = skills._clearances(top, base, np.array([1.0, 0, 0]))
    assert 0.001 < above < 0.002
    assert top.bottom - base.position[2] - 0.02 < above, "its nose hangs lower, past the edge"


RESTING = frozenset({tasks.TABLE_TOP})
HELD = frozenset({("robot", "finger1"), ("robot", "finger2")})


def record(robot: frozenset[str] = frozenset(), **contacts: frozenset[Any]) -> Any:
    still = (0.0, 0.0, 0.0)
    blocks = {
        colour: tasks.Block(still, (0.0, 0.0, 0.0, 1.0), still, still, contacts.get(colour, RESTING))
        for colour in tasks.COLOURS
    }
    return tasks.Record(blocks, robot, 0.0, 0.0, 0.0, 0.0, False, False)


@pytest.mark.parametrize(
    ("task", "yes", "no"),
    [
        ("push_red_block_left", record(), record(red=HELD)),
        ("lift_red_block_table", record(), record(red=frozenset({tasks.CABINET_FLOOR}))),
        ("lift_red_block_slider", record(red=frozenset({tasks.CABINET_FLOOR})), record()),
        ("lift_red_block_drawer", record(red=HELD | {tasks.DRAWER}), record(red=HELD)),
        ("place_in_drawer", record(frozenset({"red"}), red=HELD), record(frozenset({"red", "table"}), red=HELD)),
        ("place_in_slider", record(frozenset({"red"}), red=HELD), record(frozenset({"red"}), red=HELD | RESTING)),
        ("push_into_drawer", record(red=HELD), record(red=HELD, blue=HELD | RESTING, pink=HELD)),
    ],
)
def test_a_task_can_be_begun_only_where_its_condition_can_come_true(task: str, yes: Any, no: Any) -> None:
    assert scripts.ready(task, yes)
    assert not scripts.ready(task, no)


def test_other_tasks_can_always_be_begun() -> None:
    assert scripts.ready("rotate_red_block_left", record(red=HELD))
    assert scripts.ready("open_drawer", record())
    assert scripts.ready("turn_on_led", record())


def test_oracle_says_where_it_cannot_look_ahead() -> None:
    class Recorded:
        table = object()

    with pytest.raises(UsageError, match=r"calvin_a, _b, _c, _d or calvin_tasks\.$"):
        planning.script_of("chains")(Recorded(), CHAINS.action)
