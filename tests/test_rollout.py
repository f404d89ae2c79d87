"""One episode: the loop, the actor, what the policy may and may not answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import fakes
import gymnasium
import numpy as np
import pytest

from vla_bench.chunking import AdaptiveEnsemble, RecedingHorizon, TemporalEnsemble
from vla_bench.errors import PolicyFailure, UsageError
from vla_bench.inference import COLD_CALLS, LocalPolicy, check_compatible
from vla_bench.rollout import Actor, Rollout, Stage, inference_seed, out_of_bounds
from vla_bench.types import Camera, Env, Episode, Task

SUITE = fakes.suite()
EPISODE = Episode("toy", "east", 3, seed=7)


def play(policy: fakes.Walker, chunking: object = None, episode: Episode = EPISODE) -> Rollout:
    actor = Actor(LocalPolicy(policy), chunking or RecedingHorizon())  # type: ignore[arg-type]
    return Stage(SUITE, ["eye"], actor, None).play(episode)


def replayed(rollout: Rollout) -> np.ndarray:
    env = SUITE.make_env(SUITE.task("east"), [])
    env.reset_trial(EPISODE.trial, EPISODE.seed)
    for action in rollout.actions:
        env.advance(action[None])
    return np.asarray(env.position)  # type: ignore[attr-defined]


@pytest.mark.parametrize("chunking", [RecedingHorizon(), RecedingHorizon(3), TemporalEnsemble(), AdaptiveEnsemble()])
def test_the_recorded_actions_are_those_executed(chunking: object) -> None:
    rollout = play(fakes.Walker(SUITE), chunking)
    assert len(rollout.actions) == rollout.result.steps == sum(call.executed for call in rollout.inferences)
    assert replayed(rollout)[0] > 5
    assert replayed(rollout._replace(actions=rollout.actions[:-1]))[0] <= 5


BOUNDED = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_steps_whose_action_lies_outside_the_action_space_are_counted_and_rounding_is_not() -> None:
    actions = np.float32([[1, -1], [1.0000001, -1.005], [1.02, 0], [0, -3e38], [3e38, -3e38]])
    assert out_of_bounds(BOUNDED, actions) == 3
    assert out_of_bounds(gymnasium.spaces.Box(-np.inf, np.inf, (2,)), actions) == 0
    assert out_of_bounds(None, actions) is out_of_bounds(gymnasium.spaces.Discrete(4), actions) is None
    assert out_of_bounds(gymnasium.spaces.Box(-1, 1, (7,)), actions) is None


@pytest.mark.parametrize(("speed", "counted"), [(0.5, 0), (1.5, 4)])
def test_a_row_says_how_many_of_its_executed_actions_were_out_of_bounds(speed: float, counted: int) -> None:
    class Bounded(fakes.ToyEnv):
        action_space = BOUNDED

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return Bounded(task, cameras, None, "")

    actor = Actor(LocalPolicy(fakes.Walker(SUITE, speed, chunk=16)), RecedingHorizon())
    row = Stage(replace(SUITE, make_env=make_env), ["eye"], actor).play(EPISODE).result
    assert row.success
    assert row.out_of_bounds == counted, f"of {row.steps} played, those beyond the success not counted"
    assert play(fakes.Walker(SUITE, speed)).result.out_of_bounds is None, "the toy has no action space"


def test_an_episode_ends_at_success_in_the_middle_of_a_chunk() -> None:
    rollout = play(fakes.Walker(SUITE, chunk=16))
    assert rollout.result.success
    assert rollout.result.steps < 16
    assert rollout.inferences[-1].executed == rollout.result.steps


def test_an_episode_ends_at_the_step_limit_in_the_middle_of_a_chunk() -> None:
    rollout = play(fakes.Walker(SUITE, speed=-0.5, chunk=16))
    assert rollout.result.success is False
    assert rollout.result.steps == SUITE.tasks[0].max_steps
    assert [call.executed for call in rollout.inferences] == [16, 4]


def test_a_policy_sees_the_control_steps_before_though_chunks_are_played_open_loop() -> None:
    policy = fakes.Historian(SUITE)
    actor = Actor(LocalPolicy(policy), RecedingHorizon())
    rollout = Stage(SUITE, ["eye"], actor, None, history=3).play(EPISODE)
    positions = [policy.seen[0].state, *(policy.seen[0].state + np.cumsum(rollout.actions, axis=0))]
    starts = np.cumsum([0, *(call.executed for call in rollout.inferences[:-1])])
    assert len(starts) > 1
    for start, seen in zip(starts, policy.seen, strict=True):
        steps = [max(0, start - back) for back in (2, 1)]
        np.testing.assert_allclose([then.state for then in seen.earlier], [positions[i] for i in steps], atol=1e-5)
        assert [then.images["eye"][0, 0, 0] - policy.seen[0].images["eye"][0, 0, 0] for then in seen.earlier] == steps


def test_simulated_time_is_steps_over_the_control_rate() -> None:
    result = play(fakes.Walker(SUITE)).result
    assert result.sim_s == pytest.approx(result.steps / 10.0)


def test_noise_seeds_differ_between_inferences_and_episodes_and_repeat() -> None:
    seeds = {inference_seed(replace(EPISODE, trial=trial), index) for trial in range(20) for index in range(20)}
    assert len(seeds) == 400
    assert inference_seed(EPISODE, 4) == inference_seed(EPISODE, 4)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_same_episode_gives_the_same_row_whatever_came_before() -> None:
    policy = fakes.Walker(SUITE)
    actor = Actor(LocalPolicy(policy), RecedingHorizon())
    stage = Stage(SUITE, ["eye"], actor, None)
    first = stage.play(EPISODE)
    stage.play(replace(EPISODE, task="farther"))
    again = stage.play(EPISODE)
    assert np.array_equal(first.actions, again.actions)
    assert first.result.final_fingerprint == again.result.final_fingerprint
    assert first.result.scene_fingerprint == again.result.scene_fingerprint != first.result.final_fingerprint


def test_the_first_calls_of_a_process_are_marked_cold() -> None:
    calls = play(fakes.Walker(SUITE, chunk=1)).inferences
    assert [call.cold for call in calls] == [index < COLD_CALLS for index in range(len(calls))]


def test_stage_times_reach_the_inference_rows() -> None:
    assert play(fakes.Walker(SUITE)).inferences[0].stages == {"think": 1.5}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("width", "shape (4, 3), expected float32 (H >= 1, 2)"),
        ("float64 width", "shape (4, 6), expected float32 (H >= 1, 2)"),
        ("flat", "shape (2,)"),
        ("empty", "shape (0, 2)"),
        ("nan", "nan in action 1, entry 1"),
        ("inf", "inf in action 0, entry 0"),
        ("huge", "1e+300 in action 0, entry 0"),
        ("ragged", "actions that are no array"),
        ("text", "dtype <U1"),
        ("none", "NoneType from infer"),
        ("array", "ndarray of shape (4, 2) from infer"),
        ("few", "0 chunks"),
        ("plain", "list of float"),
    ],
)
def test_a_wrong_answer_stops_the_run_before_the_simulator_sees_it(how: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"The policy 'walker' returned") as caught:
        play(fakes.Faulty(SUITE, how))
    assert said in str(caught.value)


def test_a_policy_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(PolicyFailure, match=r"'walker' raised KeyError in infer: 'left_arm'"):
        play(fakes.Faulty(SUITE, "raise"))


def test_a_slow_policy_is_stopped() -> None:
    policy = fakes.Faulty(SUITE, "slow")
    stage = Stage(SUITE, [], Actor(LocalPolicy(policy, timeout_s=0.2), RecedingHorizon()), None)
    with pytest.raises(PolicyFailure, match=r"longer than --timeout 0.2 s in infer"):
        stage.play(EPISODE)


def test_a_time_limit_changes_nothing_for_a_policy_within_it() -> None:
    slow = Stage(SUITE, [], Actor(LocalPolicy(fakes.Walker(SUITE), 5.0), RecedingHorizon()), None).play(EPISODE)
    assert np.array_equal(slow.actions, play(fakes.Walker(SUITE)).actions)


def test_float64_actions_of_the_right_shape_are_played() -> None:
    class Doubled(fakes.Walker):
        def infer(self, observations):  # type: ignore[no-untyped-def]
            return [replace(chunk, actions=chunk.actions.astype(np.float64)) for chunk in super().infer(observations)]

    assert np.array_equal(play(Doubled(SUITE)).actions, play(fakes.Walker(SUITE)).actions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": replace(fakes.ACTION, gripper="close_negative")}, "gripper='close_negative'"),
        ({"cameras": (Camera("wrist", 4, 4),)}, "reads camera wrist 4x4, the suite 'toy' has eye 4x4"),
        ({"cameras": (Camera("eye", 8, 8),)}, "reads camera eye 8x8"),
        ({"state": ("y", "x")}, "reads the state"),
    ],
)
def test_a_policy_that_means_something_else_is_refused(change: dict[str, object], said: str) -> None:
    policy = fakes.Walker(SUITE)
    policy.spec = replace(policy.spec, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="The policy 'walker'") as caught:
        check_compatible(policy, SUITE)
    assert said in str(caught.value)


@pytest.mark.parametrize("stages", [None, {"vision": float("nan")}, {"vision": "fast"}])
def test_stages_that_are_no_times_are_refused(stages: object) -> None:
    class Slow(fakes.Walker):
        def infer(self, observations):  # type: ignore[no-untyped-def]
            return [replace(chunk, stages=stages) for chunk in super().infer(observations)]

    with pytest.raises(UsageError, match="expected a name and milliseconds"):
        play(Slow(SUITE))


def test_a_policy_that_exits_is_a_failure_of_the_policy() -> None:
    class Quitter(fakes.Walker):
        def infer(self, observations):  # type: ignore[no-untyped-def]
            raise SystemExit(3)

    for timeout_s in (None, 5.0):
        stage = Stage(SUITE, [], Actor(LocalPolicy(Quitter(SUITE), timeout_s), RecedingHorizon()))
        with pytest.raises(PolicyFailure, match=r"'walker' raised SystemExit in infer: 3\."):
            stage.play(EPISODE)
