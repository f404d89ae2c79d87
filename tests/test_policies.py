"""Contracts of the sanity policies: zero, random and replay."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_bench.chunking import AdaptiveEnsemble, Chunking, RecedingHorizon, TemporalEnsemble
from vla_bench.errors import UsageError
from vla_bench.store.runs import record_actions
from vla_bench.types import Episode, Float32, Observation, Suite

baselines = importlib.import_module("vla_bench.policies.baselines")
replay = importlib.import_module("vla_bench.policies.replay")
SUITE: Suite = importlib.import_module("vla_bench.envs.robosuite").suite()
DIM = SUITE.action.dim


def seen(slot: int = 0, seed: int = 0) -> Observation:
    return Observation(images={}, state=np.zeros(8, np.float32), instruction="lift the cube", slot=slot, seed=seed)


def lift(trial: int, seed: int = 0) -> Episode:
    return Episode("robosuite", "Lift", trial, seed)


def recorded(trial: int, steps: int) -> Float32:
    return np.random.default_rng(trial).uniform(-1, 1, (steps, DIM)).astype(np.float32)


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """Three episodes of Lift, of 5, 6 and 7 actions."""
    path = tmp_path / "actions.jsonl"
    for trial in range(3):
        record_actions(path, lift(trial), recorded(trial, 5 + trial))
    return str(path)


# --- zero and random ---


@pytest.mark.parametrize("policy", [baselines.Zero(SUITE), baselines.Random(SUITE), baselines.Random(SUITE, chunk=3)])
def test_baselines_answer_one_legal_chunk_per_observation_and_read_no_camera(policy: Any) -> None:
    policy.reset([0, 1], [lift(0), lift(1)])
    chunks = policy.infer([seen(0, 1), seen(1, 2)])
    assert policy.spec.action == SUITE.action
    assert policy.spec.cameras == ()
    assert len(chunks) == 2
    for chunk in chunks:
        assert chunk.actions.shape == (policy.spec.chunk, DIM)
        assert chunk.actions.dtype == np.float32
        assert np.abs(chunk.actions).max() <= 1.0


@pytest.mark.parametrize(("gripper", "opening"), [("close_positive", -1.0), ("close_negative", 1.0)])
def test_zero_stands_still_with_the_gripper_open(gripper: Any, opening: float) -> None:
    suite = replace(SUITE, action=replace(SUITE.action, gripper=gripper))
    (chunk,) = baselines.Zero(suite).infer([seen()])
    np.testing.assert_array_equal(chunk.actions, [[0, 0, 0, 0, 0, 0, opening]])


def test_zero_refuses_suites_where_zeros_are_a_place() -> None:
    with pytest.raises(UsageError, match="absolute_pose"):
        baselines.Zero(replace(SUITE, action=replace(SUITE.action, control="absolute_pose")))


def test_random_depends_on_the_observations_seed_and_on_nothing_else() -> None:
    policy = baselines.Random(SUITE)
    alone = policy.infer([seen(0, seed=7)])[0].actions
    batched = policy.infer([seen(0, seed=3), seen(5, seed=7)])
    np.testing.assert_array_equal(batched[1].actions, alone)
    np.testing.assert_array_equal(baselines.Random(SUITE).infer([seen(1, seed=7)])[0].actions, alone)
    assert not np.array_equal(batched[0].actions, alone)


def test_random_fills_the_action_space() -> None:
    actions = baselines.Random(SUITE, chunk=2000).infer([seen()])[0].actions
    assert (actions.min(axis=0) < -0.98).all()
    assert (actions.max(axis=0) > 0.98).all()
    assert np.abs(actions.mean(axis=0)).max() < 0.1


def test_random_refuses_an_empty_chunk() -> None:
    with pytest.raises(UsageError, match="got 0"):
        baselines.Random(SUITE, chunk=0)


# --- replay ---


@pytest.mark.parametrize("chunking", [RecedingHorizon(), RecedingHorizon(1), TemporalEnsemble(0.3), AdaptiveEnsemble()])
def test_replay_plays_the_recording_exactly_under_every_chunking(recording: str, chunking: Chunking) -> None:
    policy = replay.Replay(SUITE, recording)
    policy.reset([0], [lift(2)])
    past: tuple[Float32, ...] = ()
    played: list[Float32] = []
    for _ in range(7):
        actions, past = chunking.play(past, policy.infer([seen()])[0].actions)
        played.extend(actions)
    np.testing.assert_array_equal(played, recorded(2, 7))


def test_replay_refuses_to_lose_its_place(recording: str) -> None:
    policy = replay.Replay(SUITE, recording)
    policy.reset([0], [lift(0)])
    with pytest.raises(UsageError, match="execute 8"):
        RecedingHorizon(8).play((), policy.infer([seen()])[0].actions)


def test_replay_keeps_one_place_per_slot(recording: str) -> None:
    policy = replay.Replay(SUITE, recording)
    policy.reset([3, 9], [lift(0), lift(1)])
    policy.infer([seen(9)])
    second, first = policy.infer([seen(9), seen(3)])
    np.testing.assert_array_equal(second.actions, recorded(1, 6)[1:2])
    np.testing.assert_array_equal(first.actions, recorded(0, 5)[:1])


def test_replay_starts_over_at_reset_and_leaves_other_slots_alone(recording: str) -> None:
    policy = replay.Replay(SUITE, recording)
    policy.reset([0, 1], [lift(0), lift(1)])
    policy.infer([seen(0), seen(1)])
    policy.reset([0], [lift(0)])
    first, second = policy.infer([seen(0), seen(1)])
    np.testing.assert_array_equal(first.actions, recorded(0, 5)[:1])
    np.testing.assert_array_equal(second.actions, recorded(1, 6)[1:2])


def test_replay_holds_still_with_the_last_gripper_command_when_the_recording_ends(recording: str) -> None:
    policy = replay.Replay(SUITE, recording)
    policy.reset([0], [lift(0)])
    for _ in range(5):
        policy.infer([seen()])
    for _ in range(3):
        (chunk,) = policy.infer([seen()])
        np.testing.assert_array_equal(chunk.actions[0], [0, 0, 0, 0, 0, 0, recorded(0, 5)[-1, -1]])
        assert chunk.actions.dtype == np.float32


def test_replay_of_an_episode_without_actions_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "actions.jsonl"
    record_actions(path, lift(0), np.zeros((0, DIM), np.float32))
    policy = replay.Replay(SUITE, str(path))
    policy.reset([0], [lift(0)])
    np.testing.assert_array_equal(policy.infer([seen()])[0].actions, [[0, 0, 0, 0, 0, 0, -1]])


def test_replay_names_the_missing_episode_and_the_nearest_recorded_one(recording: str) -> None:
    policy = replay.Replay(SUITE, recording)
    with pytest.raises(UsageError, match=r"task Lift trial 2 seed 5; .* 3 episodes, the nearest .* trial 2 seed 0"):
        policy.reset([0], [lift(2, seed=5)])


def test_replay_needs_a_file(tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "nothing.jsonl")):
        with pytest.raises(UsageError, match="needs --checkpoint FILE"):
            replay.Replay(SUITE, path)


def test_replay_refuses_actions_of_another_width(recording: str) -> None:
    with pytest.raises(UsageError, match=r"actions of \[7\] numbers, the suite's have 8"):
        replay.Replay(replace(SUITE, action=replace(SUITE.action, dim=8)), recording)


def test_replay_is_identified_by_what_it_plays(recording: str) -> None:
    before = replay.Replay(SUITE, recording).spec
    record_actions(recording, lift(3), recorded(3, 4))
    after = replay.Replay(SUITE, recording).spec
    assert len(before.checkpoint) == 64
    assert before.checkpoint != after.checkpoint
    assert before.chunk == 1
