"""A broken adapter is named by its fault, a sound one passes, and what is neither is not accused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reach_world
from marks import slow
from scipy.spatial.transform import Rotation

from vla_bench.chunking import RecedingHorizon
from vla_bench.cli import main
from vla_bench.data.recording import Recorded
from vla_bench.doctor import probe
from vla_bench.doctor.adapter import examine_policy
from vla_bench.doctor.inputs import confusions, orientation
from vla_bench.doctor.machine import Check, exit_code
from vla_bench.doctor.probe import Moments, Reading
from vla_bench.doctor.sights import Ending, Expert, Sight, Tour, oracle_expert
from vla_bench.errors import UsageError
from vla_bench.inference import LocalPolicy
from vla_bench.registry import make_policy, make_suite
from vla_bench.rollout import Actor, Rollout, Stage, attach
from vla_bench.types import ActionChunk, Episode, Float32, Observation, Policy, PolicySpec, Suite

SUITE = reach_world.suite()


@pytest.fixture(scope="module")
def expert() -> Expert:
    """Six episodes in the toy world, all solved."""
    stage = Stage(SUITE, ("table",), Actor(LocalPolicy(reach_world.Reacher(SUITE, chunk=1)), RecedingHorizon()))
    rollouts = [stage.play(Episode(SUITE.name, task, trial, 0)) for task in SUITE.names for trial in range(3)]
    assert all(rollout.result.success for rollout in rollouts)
    return Expert("the expert", len(rollouts), {rollout.result.episode: recorded(rollout) for rollout in rollouts})


def recorded(rollout: Rollout) -> Recorded:
    return Recorded(rollout.actions, True, rollout.result.final_fingerprint)


def examined(policy: Policy, expert: Expert, suite: Suite = SUITE) -> list[Check]:
    return examine_policy(policy, Tour(suite, policy.spec, expert, attach(policy)))


def faults(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if check.ok is False}


def notes(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if check.ok is None}


@pytest.mark.parametrize(
    ("broken", "topic", "said"),
    [
        ("GripperReversed", "gripper", "sign reversed"),
        ("GripperFromZero", "gripper", "answers 0.00 and 1.00 for its two commands"),
        ("QuaternionReordered", "orientation", "quaternion order: x y z w is read as w x y z"),
        slow("AnswerReordered", "rotation", "the quaternion of the answered rotation: w x y z is read as x y z w"),
        ("UpsideDown", "picture", "the model sees table upside down"),
        slow("Mirrored", "picture", "the model sees table mirrored left to right"),
        slow("BlueForRed", "picture", "the model sees table blue for red"),
        ("StillNormalised", "un-normalisation", "rotation z x 11.1"),
        ("InMetres", "un-normalisation", "translation x x 0.05, translation y x 0.05, translation z x 0.05"),
        ("PaddedChunk", "chunk", "of the 8 actions of a chunk, those from number 4 on are worse"),
        slow("LongerChunk", "chunk", "spec.chunk is 8, but it answers with 16 actions"),
        slow("ReversedChunk", "chunk", "the actions of a chunk come last first"),
        slow("HandFrame", "axes", "its translation (x, -y, -z) and its rotation (x, -y, -z)"),
        slow("AxesExchanged", "axes", "its translation (y, x, z)"),
        ("NotANumber", "answers", "returned nan in action"),
        slow("Restless", "repeatable", "asked the same again with the same seed"),
        ("Mixed", "batch", "6 observations in one call are answered differently"),
        ("HalfBlind", "inputs", "no answer changes with camera wall"),
    ],
)
def test_a_broken_adapter_is_named_by_its_fault_and_by_no_other(
    broken: str, topic: str, said: str, expert: Expert
) -> None:
    checks = examined(getattr(reach_world, broken)(SUITE), expert)
    assert list(faults(checks)) == [topic]
    assert said in faults(checks)[topic]
    assert exit_code(checks) == 4
    assert all(check.fix for check in checks if check.ok is False)


class Shaken:
    """A policy that is not as good as the expert, behind any adapter: its model errs by a new amount each time."""

    def __init__(self, inner: reach_world.Reacher) -> None:
        self.spec, self.inner, self.sound_plan = inner.spec, inner, inner.plan
        inner.gain, inner.plan = 0.2, self.plan  # type: ignore[method-assign]

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None: ...

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._one(seen) for seen in observations]

    def _one(self, seen: Observation) -> ActionChunk:
        self.rng = np.random.default_rng(seen.seed)
        (chunk,) = self.inner.infer([seen])
        return chunk

    def plan(self, seen: Observation) -> np.ndarray:
        error = np.concatenate([self.rng.normal(0, 0.2, 3), self.rng.normal(0, 0.04, 3), [0]])
        return self.sound_plan(seen) + error


@pytest.mark.parametrize(
    ("broken", "topic"),
    [
        ("GripperReversed", "gripper"),
        slow("QuaternionReordered", "orientation"),
        slow("UpsideDown", "picture"),
        slow("InMetres", "un-normalisation"),
        slow("PaddedChunk", "chunk"),
    ],
)
def test_the_fault_is_named_in_a_mediocre_policy_too(broken: str, topic: str, expert: Expert) -> None:
    assert list(faults(examined(Shaken(getattr(reach_world, broken)(SUITE)), expert))) == [topic]


@pytest.mark.parametrize(
    "sound",
    [reach_world.Reacher(SUITE), reach_world.Reacher(SUITE, 0.15), Shaken(reach_world.Reacher(SUITE))],
    ids=["the expert", "a slow one", "a mediocre one"],
)
def test_a_sound_adapter_passes(sound: Policy, expert: Expert) -> None:
    checks = examined(sound, expert)
    assert faults(checks) == {}
    assert {"translation", "rotation", "gripper"} <= {check.name for check in checks if check.ok}
    assert exit_code(checks) == 0


@pytest.mark.parametrize("weights", range(4))
def test_an_untrained_network_is_called_that_and_not_accused(weights: int, expert: Expert) -> None:
    checks = examined(reach_world.Untrained(SUITE, weights), expert)
    assert faults(checks) == {}
    assert "nothing it answers resembles the expert" in notes(checks)["resemblance"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zero", "it answers the same whatever it is shown: (0, 0, 0, 0, 0, 0, -1)"),
        ("random", "noise, drawn from the seed alone"),
    ],
)
def test_what_looks_at_nothing_is_said_to(name: str, said: str, expert: Expert) -> None:
    checks = examined(make_policy(name, SUITE), expert)
    assert faults(checks) == {}
    assert said in notes(checks)["inputs"]
    assert "nothing it answers resembles the expert" in notes(checks)["resemblance"]


def test_two_faults_are_both_named_where_they_do_not_hide_each_other(expert: Expert) -> None:
    class Both(reach_world.UpsideDown, reach_world.GripperReversed): ...

    assert list(faults(examined(Both(SUITE), expert))) == ["picture", "gripper"]


def test_two_episodes_are_too_few_to_accuse(expert: Expert) -> None:
    few = expert._replace(solved=dict(list(expert.solved.items())[:2]))
    checks = examined(Shaken(reach_world.AxesExchanged(SUITE)), few)
    assert faults(checks) == {}
    assert "more --episodes may tell" in notes(checks)["translation"]


# Statistics


def moments(actions: Sequence[np.ndarray]) -> Moments:
    """Asked at every step of those episodes."""
    episode = np.concatenate([np.full(len(a), number) for number, a in enumerate(actions)])
    step = np.concatenate([np.arange(len(a)) for a in actions])
    return Moments(SUITE.action, tuple(a.astype(np.float32) for a in actions), episode, step)


def wandering(rng: np.random.Generator, length: int = 40) -> np.ndarray:
    """(length, 7) as a hand moves: each step much like the one before."""
    steps, out = rng.normal(size=(length, 7)), np.zeros((length, 7))
    for t in range(1, length):
        out[t] = 0.9 * out[t - 1] + 0.43 * steps[t]
    return out


def test_wanted_actions_are_those_of_the_same_episode_and_unknown_outside_it() -> None:
    first, second = np.arange(21.0).reshape(3, 7), 100 + np.arange(14.0).reshape(2, 7)
    wanted = moments([first, second]).wanted(np.array([-1, 0, 2]))
    assert wanted.shape == (5, 3, 7)
    np.testing.assert_array_equal(wanted[:, 1], np.concatenate([first, second]))
    np.testing.assert_array_equal(wanted[0, 2], first[2])
    np.testing.assert_array_equal(wanted[4, 0], second[0])
    assert np.isnan(wanted[[0, 3], 0]).all()
    assert np.isnan(wanted[1:, 2]).all()


def test_unrelated_answers_are_rarely_taken_for_the_experts_although_both_wander() -> None:
    """At 99.9 % the intervals of 200 pairs of unrelated series miss 0 at most a few times."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(200):
        at = moments([wandering(rng) for _ in range(8)])
        answers = np.concatenate([wandering(rng) for _ in range(8)])[:, None]
        found = probe.agreements(Reading("", "", "", answers), at)
        assert not probe.resembles(found)
        missed += not found["gripper"].low <= 0 <= found["gripper"].high
    assert missed <= 4


def test_a_correlation_is_numpys() -> None:
    rng = np.random.default_rng(1)
    at = moments([wandering(rng) for _ in range(8)])
    expert = np.concatenate(at.actions)
    answers = 3 * expert + rng.normal(size=expert.shape) + 7
    found = probe.agreements(Reading("", "", "", answers[:, None]), at)
    assert found["gripper"].r == pytest.approx(np.corrcoef(answers[:, -1], expert[:, -1])[0, 1])
    assert found["gripper"].low < found["gripper"].r < found["gripper"].high
    assert found["gripper"].influence.mean() == pytest.approx(0, abs=1e-9)


def test_an_entry_the_expert_does_not_use_is_left_out() -> None:
    actions = [wandering(np.random.default_rng(2)) * [1, 1, 0.01, 0, 0, 0, 1] for _ in range(3)]
    assert moments(actions).live == {"translation": [0, 1], "gripper": [6]}


# What it is shown instead


def observation(suite: Suite) -> Observation:
    rng = np.random.default_rng(3)
    images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in suite.cameras}
    state = rng.normal(0, 0.5, len(suite.state)).astype(np.float32)
    return Observation(images, state, "go", earlier=(Observation(images, state + 1, "go"),))


@pytest.mark.parametrize("name", ["robosuite", "libero_spatial", "calvin_d"])
def test_the_orientation_is_found_in_every_suites_state(name: str) -> None:
    suite = make_suite(name)
    assert orientation(suite.state)[0] == [3, 4, 5]


@pytest.mark.parametrize("name", ["robosuite", "calvin_d"])
def test_every_change_alters_one_kind_of_input_now_and_earlier(name: str) -> None:
    suite = make_suite(name)
    seen = observation(suite)
    for confusion in confusions(PolicySpec("any", suite.action, suite.cameras, suite.state), suite.state):
        changed = confusion.change(seen)
        for before, after in ((seen, changed), (seen.earlier[0], changed.earlier[0])):
            same_state = np.array_equal(before.state, after.state)
            same_images = all(np.array_equal(before.images[c], after.images[c]) for c in before.images)
            assert (same_images, same_state) == ((False, True) if confusion.topic == "picture" else (True, False))
            assert after.state.dtype == np.float32
            assert all(image.shape == before.images[c].shape for c, image in after.images.items())


def test_a_reordered_quaternion_makes_up_for_the_adapter_that_reads_it_in_that_order() -> None:
    spec = PolicySpec("any", SUITE.action, (), SUITE.state)
    wrong = reach_world.QuaternionReordered(SUITE).sense
    seen = observation(SUITE)
    made_up = [
        wrong(confusion.change(seen)).state[3:6]
        for confusion in confusions(spec, SUITE.state)
        if "x y z w is read as w x y z" in confusion.fault
    ]
    assert len(made_up) == 1
    off = Rotation.from_rotvec(made_up[0]) * Rotation.from_rotvec(seen.state[3:6]).inv()
    assert off.magnitude() < 1e-5


# The command


def test_doctor_names_the_fault_of_a_policy_against_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, file = ["--suite", "reach_world:suite"], str(tmp_path / "expert.jsonl")
    played = ["run", "--policy", "reach_world:Reacher", *world, "--episodes", "4", "--record-actions", file]
    assert main([*played, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    asked = ["doctor", *world, "--recording", file, "--policy"]
    assert main([*asked, "reach_world:GripperReversed", "--json"]) == 4
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert [check["name"] for check in said["checks"] if check["ok"] is False] == ["gripper"]
    assert main([*asked, "reach_world:Reacher"]) == 0
    assert "No problem found." in capsys.readouterr().out
    assert main([*asked, "replay", "--checkpoint", file]) == 0
    assert "a script that only its episode decides" in capsys.readouterr().out
    assert main([*asked, "zero"]) == 0
    assert capsys.readouterr().out.endswith("Nothing can be concluded: see resemblance.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "zero"], "with both --policy and --suite"),
        (["--policy", "zero", "--suite", "reach_world:suite"], "The oracle cannot do any task of reach_world:suite"),
        (["--policy", "zero", "--suite", "reach_world:suite", "--recording", "no.jsonl"], "/no.jsonl'."),
        (["--policy", "zero", "--suite", "reach_world:suite", "--episodes", "0"], "--episodes should be at least 1"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 64
    assert said in capsys.readouterr().err


def test_a_policy_of_another_convention_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--policy", "test_probe:Metric", "--suite", "reach_world:suite"]) == 4
    assert "convert in the policy's own file" in capsys.readouterr().out


class Metric(reach_world.Reacher):
    """Says that its actions are metres."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite)
        self.spec = replace(self.spec, action=replace(suite.action, scale_m=1.0))


# The references


def test_the_report_says_how_the_expert_did_and_that_its_actions_do_the_same_again(expert: Expert) -> None:
    found = {check.name: check for check in examined(make_policy("zero", SUITE), expert)}
    assert (found["expert"].ok, found["replay"].ok) == (True, True)
    assert found["expert"].detail == "the expert, 6 episodes of 2 tasks: 6 of 6 succeeded"
    assert found["replay"].detail == "its actions played again: 6 of 6 succeed, 6 of 6 final states equal to the bit"


def test_an_episode_that_ends_otherwise_when_played_again_is_said_and_left_out(expert: Expert) -> None:
    first, *others = expert.solved
    cut = {first: expert.solved[first]._replace(actions=expert.solved[first].actions[:-1])}
    checks = examined(make_policy("zero", SUITE), expert._replace(solved=cut | {e: expert.solved[e] for e in others}))
    said = notes(checks)["replay"]
    assert said.startswith("its actions played again: 5 of 6 succeed, 5 of 6 final states equal to the bit")
    assert "left out" in said


def test_an_expert_that_never_succeeds_again_is_refused(expert: Expert) -> None:
    cut = {episode: Recorded(told.actions[:2]) for episode, told in expert.solved.items()}
    with pytest.raises(UsageError, match="None of the 6 episodes"):
        examined(make_policy("zero", SUITE), expert._replace(solved=cut))


class Raising(reach_world.Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen)[:, 7]


def test_a_policy_that_raises_is_a_fault_with_the_line_to_look_at(expert: Expert) -> None:
    (fault,) = [check for check in examined(Raising(SUITE), expert) if check.ok is False]
    assert "IndexError" in fault.detail
    assert Path(__file__).name in fault.fix


# The real thing


class Kept(Tour):
    """Sights that were seen once, for every policy that looks at the same cameras."""

    sights: Sequence[Sight] = ()

    def __iter__(self) -> Iterator[Sight]:
        self.ended = {e: Ending(True, told.final_fingerprint) for e, told in self.expert.solved.items()}
        yield from self.sights


class Memory:
    """Does what the oracle did where things looked most alike: goes by the pictures, turns by the state."""

    def __init__(self, suite: Suite, expert: Expert, sights: Sequence[Sight]) -> None:
        self.spec = PolicySpec("memory", suite.action, suite.cameras[:1], suite.state, reach_world.CHUNK)
        self.broken = ""
        self.pictures = np.array([self._picture(sight.observation) for sight in sights])
        self.states = np.array([sight.observation.state[:6] for sight in sights])
        self.chunks = [self._future(expert.solved[sight.episode].actions, sight.step) for sight in sights]

    def _future(self, actions: Float32, step: int) -> np.ndarray:
        rows = np.minimum(step + np.arange(self.spec.chunk), len(actions) - 1)
        return np.array(actions[rows])

    def _picture(self, seen: Observation) -> np.ndarray:
        return np.concatenate([image[::4, ::4].ravel().astype(float) for image in seen.images.values()])

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None: ...

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(self._adapted(seen)) for seen in observations]

    def _adapted(self, seen: Observation) -> Float32:
        if self.broken == "picture":
            seen = replace(seen, images={name: image[::-1] for name, image in seen.images.items()})
        if self.broken == "orientation":
            state = seen.state.copy()
            quat = Rotation.from_rotvec(state[3:6]).as_quat()
            state[3:6] = Rotation.from_quat(np.roll(quat, -1)).as_rotvec()
            seen = replace(seen, state=state)
        chunk = self._recall(seen)
        if self.broken == "gripper":
            chunk[:, -1] *= -1
        if self.broken == "un-normalisation":
            chunk[:, :6] *= [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
        if self.broken == "chunk":
            chunk[2:] = 0
        return chunk.astype(np.float32)

    def _recall(self, seen: Observation) -> np.ndarray:
        place = np.abs(self.pictures - self._picture(seen)).sum(axis=1).argmin()
        turn = self._nearest_turn(seen.state)
        chunk = self.chunks[place].copy()
        chunk[:, 3:6] = self.chunks[turn][:, 3:6]
        return chunk

    def _nearest_turn(self, state: Float32) -> int:
        """Rotations compared as such: the same one has many axis-angles."""
        turns = Rotation.from_rotvec(self.states[:, 3:6]).inv() * Rotation.from_rotvec(state[3:6])
        return int(turns.magnitude().argmin())


@pytest.fixture(scope="module")
def lift() -> Suite:
    pytest.importorskip("robosuite")
    return make_suite("robosuite", ["resolution=64"])


@pytest.fixture(scope="module")
def lifting(lift: Suite) -> Expert:
    """The oracle in eight episodes of Lift."""
    return oracle_expert(lift, [lift.task("Lift")], 8, print)


@pytest.mark.slow
@pytest.mark.sim
def test_the_oracle_itself_passes_and_ends_in_the_same_states_again(lift: Suite) -> None:
    checks = examined(make_policy("oracle", lift), oracle_expert(lift, [lift.task("Lift")], 4, print), lift)
    assert faults(checks) == {}
    assert {"expert", "replay", "translation", "rotation", "gripper"} <= {check.name for check in checks if check.ok}


@pytest.fixture(scope="module")
def lifted(lift: Suite, lifting: Expert) -> Kept:
    """What a policy with one camera sees of them."""
    spec = PolicySpec("any", lift.action, lift.cameras[:1], lift.state)
    seen = Tour(lift, spec, lifting)
    kept = Kept(lift, spec, lifting)
    kept.sights = list(seen)
    return kept


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "gripper", "orientation", "picture", "un-normalisation", "chunk"])
def test_each_fault_is_named_on_the_real_lift(broken: str, lifted: Kept, lift: Suite, lifting: Expert) -> None:
    memory = Memory(lift, lifting, lifted.sights)
    memory.broken = broken
    checks = examine_policy(memory, lifted)
    assert list(faults(checks)) == ([broken] if broken else [])
