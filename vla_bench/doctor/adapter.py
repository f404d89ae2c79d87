"""Is a policy's adapter sound: cheap probes against an expert, each finding with what to look at.

`vla-bench doctor --policy P --suite S`. The policy is shown what the expert saw and never acts, so a hundred questions
tell what hundreds of failed episodes would not.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_bench.doctor import probe
from vla_bench.doctor.inputs import Confusion, confusions
from vla_bench.doctor.machine import Check
from vla_bench.doctor.probe import Moments, Reading
from vla_bench.doctor.sights import (
    Sight,
    Tell,
    Tour,
    ask,
    ask_alone,
    ask_together,
    oracle_expert,
    recorded_expert,
    stacked,
)
from vla_bench.errors import PolicyFailure, UsageError
from vla_bench.inference import LocalPolicy, check_compatible
from vla_bench.process.foreign import contained
from vla_bench.process.paths import absolute, returning
from vla_bench.registry import make_policy, make_suite
from vla_bench.rollout import attach
from vla_bench.runner import select_tasks
from vla_bench.types import Float32, Observation, Policy, PolicySpec, Suite, Task

TASKS = 3  # of a suite, when none is named
SCREEN = 3  # confusions are tried at every third moment first
FINALISTS = 4  # and these many at all of them
FEW = 6  # moments for the questions of the kind: does the answer change?
ROUNDING = 1e-2  # of the largest answer: bfloat16 keeps 8 bits


@dataclass(frozen=True)
class Patient:
    """The policy, the moments of the expert at which it is asked, and what it answered."""

    spec: PolicySpec
    tour: Tour
    answers: LocalPolicy
    sights: Sequence[Sight]
    chunks: Sequence[Float32]


@dataclass(frozen=True)
class Examination:
    """Whom to examine, and on what."""

    policy: str
    suite: str
    task: Sequence[str] = ()
    checkpoint: str | None = None
    policy_args: Sequence[str] = ()
    suite_args: Sequence[str] = ()
    recording: str | None = None
    """The expert's actions; the suite's oracle when absent."""
    episodes: int = 8


def examine(asked: Examination, tell: Tell = lambda _: None) -> list[Check]:
    """Every finding, in reading order. Raises UsageError for what is no fault of the adapter."""
    with returning(), contained():
        return _examine(asked, tell)


def _examine(asked: Examination, tell: Tell) -> list[Check]:
    suite = make_suite(asked.suite, asked.suite_args)
    tasks = _tasks(suite, asked.task)
    policy = make_policy(asked.policy, suite, asked.checkpoint, asked.policy_args)
    try:
        check_compatible(policy, suite)
    except UsageError as error:
        return [
            Check("conventions", False, str(error), "say in spec what the model was trained for, and convert to it")
        ]
    tell("an expert plays, its episodes are played again and the policy is asked: one to three minutes in all.")
    if asked.recording is None:
        expert = oracle_expert(suite, tasks, asked.episodes, tell)
    else:
        expert = recorded_expert(str(absolute(asked.recording)), suite, tasks, asked.episodes)
    return examine_policy(policy, Tour(suite, policy.spec, expert, attach(policy)), tell)


def _tasks(suite: Suite, wanted: Sequence[str]) -> list[Task]:
    """Those named, or `TASKS` of the suite at equal distances."""
    if wanted:
        return select_tasks(suite, wanted)
    picked = np.linspace(0, len(suite.tasks) - 1, min(TASKS, len(suite.tasks))).round().astype(int)
    return [suite.tasks[index] for index in picked]


def examine_policy(policy: Policy, tour: Tour, tell: Tell = lambda _: None) -> list[Check]:
    """Every finding about a policy that agrees with the suite's conventions. Raises UsageError for a useless expert."""
    findings = [Check("conventions", True, "actions, cameras and state are the suite's")]
    answers, name, sights = LocalPolicy(policy), policy.spec.name, list[Sight]()
    tell(f"{len(tour.expert.solved)} episodes of {tour.expert.name} are played again for {name} to look at.")
    if not policy.spec.privileged:
        sights += tour
        tell(f"{name} is asked at {len(sights)} moments.")
    try:  # a privileged policy looks into the simulator, which must stand at the moment
        chunks = ask(answers, _noted(tour, sights) if policy.spec.privileged else sights, tell=tell)
    except (UsageError, PolicyFailure) as error:
        return [*findings, _unanswered(error)]
    findings += _references(tour)
    shown = [row for row, sight in enumerate(sights) if tour.ended[sight.episode].success]
    patient = Patient(policy.spec, tour, answers, [sights[row] for row in shown], [chunks[row] for row in shown])
    try:
        return [*findings, _chunks(patient), *_habits(patient), *_comparison(patient, tell)]
    except (UsageError, PolicyFailure) as error:
        return [*findings, _unanswered(error)]


def _noted(tour: Tour, sights: list[Sight]) -> Iterator[Sight]:
    for sight in tour:
        sights.append(sight)
        yield sight


def _unanswered(error: UsageError | PolicyFailure) -> Check:
    if error.__cause__ is None:
        return Check("answers", False, str(error), "the adapter must answer every observation so")
    frame = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    return Check("answers", False, str(error), f"look at {frame.filename}, line {frame.lineno}, and what it was given")


def _references(tour: Tour) -> list[Check]:
    """The rows to compare with: how the expert did, and whether its actions do the same again.

    Raises UsageError when no episode succeeds again: nothing can be held against that.
    """
    (name, tried, solved), ended = tour.expert, tour.ended
    again = sum(ending.success for ending in ended.values())
    if again == 0:
        raise UsageError(
            f"None of the {len(solved)} episodes of {name} succeeds when it is played again: they are no expert's, "
            f"or of another version of {tour.suite.name}; record some anew, or leave --recording out."
        )
    tasks = len({episode.task for episode in solved})
    done = sum(bool(recorded.success) for recorded in solved.values())
    scope = f"{tried} episode{'s' * (tried != 1)} of {tasks} task{'s' * (tasks != 1)}"
    outcome = f"{done} of {tried} succeeded" if done else "it does not say which succeeded"
    marked = [e for e, recorded in solved.items() if recorded.final_fingerprint]
    equal = sum(ended[e].fingerprint == solved[e].final_fingerprint for e in marked)
    states = f", {equal} of {len(marked)} final states equal to the bit" if marked else ""
    left_out = "" if again == len(solved) else "; the others are left out"
    return [
        Check("expert", True if done in (0, tried) else None, f"{name}, {scope}: {outcome}"),
        Check(
            "replay",
            True if (again, equal) == (len(solved), len(marked)) else None,
            f"its actions played again: {again} of {len(solved)} succeed{states}{left_out}",
        ),
    ]


def _chunks(patient: Patient) -> Check:
    lengths, told = sorted({len(chunk) for chunk in patient.chunks}), patient.spec.chunk
    if lengths == [told]:
        asked = f"asked at {len(patient.sights)} moments"
        return Check("answers", True, f"{asked}: finite, {told} action{'s' * (told != 1)} each")
    said = f"spec.chunk is {told}, but it answers with {' or '.join(map(str, lengths))} actions"
    return Check("chunk", False, said, "say in spec.chunk what the model was trained to predict, and answer that")


# Habits: does the answer change, and with what


def _habits(patient: Patient) -> Iterator[Check]:
    if patient.spec.privileged:
        yield Check("inputs", None, "it reads the simulator itself: not asked what it looks at")
        return
    few = _few(patient.sights)
    alone = [ask_alone(patient.answers, sight, sight.observation) for sight in few]
    repeatable = _repeatable(patient.spec, alone, [ask_alone(patient.answers, s, s.observation) for s in few])
    yield repeatable
    if repeatable.ok:
        yield _batch(patient.spec, alone, ask_together(patient.answers, few))
    others = [few[(i + len(few) // 2) % len(few)].observation for i in range(len(few))]
    if _same(patient.chunks):
        action = ", ".join(f"{value:g}" for value in patient.chunks[0][0])
        yield Check("inputs", None, f"it answers the same whatever it is shown: ({action})")
    elif _unchanged(patient.answers, few, alone, others):
        noise = not _equal(alone, [ask_alone(patient.answers, sight, sight.observation, seed=2) for sight in few])
        said = "noise, drawn from the seed alone" if noise else "a script that only its episode decides"
        yield Check("inputs", None, f"its answers do not depend on what it is shown: {said}")
    else:
        yield from _reads(patient, few, alone, others)


def _few(sights: Sequence[Sight]) -> list[Sight]:
    """`FEW` of them at equal distances."""
    return [sights[int(i)] for i in np.linspace(0, len(sights) - 1, min(FEW, len(sights))).round()]


def _repeatable(spec: PolicySpec, first: Sequence[Float32], again: Sequence[Float32]) -> Check:
    if _equal(first, again):
        return Check("repeatable", True, "the same question and seed, the same answer")
    off = f"asked the same again with the same seed, its answers differ by up to {_distance(first, again):.2g}"
    if not spec.deterministic:
        return Check("repeatable", None, f"{off}; its spec says so")
    fix = "draw noise from np.random.default_rng(observation.seed), put the model in eval mode, forget in reset"
    return Check("repeatable", False, off, fix)


def _batch(spec: PolicySpec, alone: Sequence[Float32], together: Sequence[Float32]) -> Check:
    off = _distance(alone, together)
    largest = max(float(np.abs(chunk).max()) for chunk in alone)
    if off == 0:
        return Check("batch", True, f"{len(alone)} observations in one call are answered as one by one")
    if off <= ROUNDING * largest or not spec.deterministic:
        return Check(
            "batch", None, f"in one call, {len(alone)} observations are answered differently by up to {off:.2g}"
        )
    said = f"{len(alone)} observations in one call are answered differently than one by one, by up to {off:.2g}"
    return Check("batch", False, said, "keep memory by observation.slot, pad with a mask, answer in the order asked")


def _reads(
    patient: Patient, few: Sequence[Sight], alone: Sequence[Float32], others: Sequence[Observation]
) -> Iterator[Check]:
    """Whether it looks at all that its spec says it reads, and at the sentence."""
    parts = [(f"camera {camera.name}", _with_image(camera.name)) for camera in patient.spec.cameras]
    parts += [("state", _with_state)] if patient.spec.state else []
    ignored = [
        name
        for name, swap in parts
        if _unchanged(patient.answers, few, alone, [swap(s.observation, o) for s, o in zip(few, others, strict=True)])
    ]
    if ignored:
        said = f"no answer changes with {' or '.join(ignored)}, which its spec says it reads"
        yield Check(
            "inputs", False, said, "pass it on to the model, or leave it out of spec (unread pictures cost time)"
        )
    elif parts:
        yield Check("inputs", True, f"its answers depend on {', '.join(name for name, _ in parts)}")
    sentences = {sentence for task in patient.tour.suite.tasks for sentence in task.instructions}
    swapped = [_with_instruction(sight.observation, sentences) for sight in few]
    if len(sentences) > 1 and _unchanged(patient.answers, few, alone, swapped):
        yield Check("instruction", None, "no answer changes with the instruction: right for a policy of one task only")


Swap = Callable[[Observation, Observation], Observation]
"""(what was seen, what was seen elsewhere) -> the first with a part of the second."""


def _with_image(camera: str) -> Swap:
    def swap(seen: Observation, other: Observation) -> Observation:
        shown = {**seen.images, camera: 255 - other.images[camera]}
        return replace(seen, images=shown, earlier=tuple(swap(past, other) for past in seen.earlier))

    return swap


def _with_state(seen: Observation, other: Observation) -> Observation:
    return replace(seen, state=other.state, earlier=tuple(_with_state(past, other) for past in seen.earlier))


def _with_instruction(seen: Observation, sentences: set[str]) -> Observation:
    other = min(sentences - {seen.instruction}, default=seen.instruction)
    return replace(seen, instruction=other, earlier=tuple(replace(past, instruction=other) for past in seen.earlier))


def _unchanged(
    answers: LocalPolicy, few: Sequence[Sight], alone: Sequence[Float32], shown: Sequence[Observation]
) -> bool:
    return _equal(alone, [ask_alone(answers, sight, seen) for sight, seen in zip(few, shown, strict=True)])


def _same(chunks: Sequence[Float32]) -> bool:
    return _equal([chunks[0]] * len(chunks), chunks)


def _equal(some: Sequence[Float32], others: Sequence[Float32]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def _distance(some: Sequence[Float32], others: Sequence[Float32]) -> float:
    """The largest difference; infinite where the lengths differ."""
    pairs = zip(some, others, strict=True)
    return max(float(np.abs(a - b).max()) if a.shape == b.shape else float("inf") for a, b in pairs)


# Comparison with the expert


def _comparison(patient: Patient, tell: Tell) -> Iterator[Check]:
    moments = _moments(patient)
    given = Reading("", "", "", stacked(patient.chunks))
    before = probe.agreements(given, moments)
    explained = _explained(patient, given, moments, tell)
    reading = explained[0] if explained else given
    faults = _explanation(explained, given, moments)
    if (held := probe.held_reading(reading, moments)) is not None:
        faults.append(Check(held.topic, False, held.fault, held.fix))
        reading = held
    if reading.topic == "chunk":  # of a chunk that is wrong somewhere, only the first action says sign and size
        reading = reading._replace(answers=reading.answers[:, :1])
    if probe.resembles(probe.agreements(reading, moments)):
        sized = [*probe.gripper_faults(reading, moments), *probe.size_faults(reading, moments)]
        faults += [Check(fault.topic, False, fault.detail, fault.fix) for fault in sized]
    elif not faults:
        said = f"nothing it answers resembles the expert ({probe.magnitudes(given, moments)})"
        fix = "an untrained policy is so, and one with several faults at once; none can be named"
        yield Check("resemblance", None, said, fix, inconclusive=True)
    yield from faults
    yield from (_group(name, before, bool(faults)) for name in probe.groups(patient.tour.suite.action))


def _moments(patient: Patient) -> Moments:
    actions = tuple(recorded.actions for recorded in patient.tour.expert.solved.values())
    numbers, steps = (np.array(column) for column in zip(*((s.number, s.step) for s in patient.sights), strict=True))
    return Moments(patient.tour.suite.action, actions, numbers.astype(np.intp), steps.astype(np.intp))


def _explanation(explained: Sequence[Reading], given: Reading, moments: Moments) -> list[Check]:
    """The best explanation as a finding, with those that explain as much."""
    if not explained:
        return []
    best, *ties = explained
    before, after = probe.agreements(given, moments), probe.agreements(best, moments)
    gains = [
        f"{name} {before[name]} becomes {after[name]}" for name in before if after[name].r > before[name].r + probe.FAR
    ]
    rivals = f"; or {'; or '.join(tie.fault for tie in ties)}" if ties else ""
    return [
        Check(best.topic, False, f"{best.fault} (undone, the agreement of {', of '.join(gains)}){rivals}", best.fix)
    ]


def _explained(patient: Patient, given: Reading, moments: Moments, tell: Tell) -> list[Reading]:
    """The faults that explain why it does not answer like the expert; none when it does."""
    found = probe.agreements(given, moments)
    if all((abs(a.r) if name == "gripper" else a.r) > 1 - probe.FAR for name, a in found.items()):  # its sign: later
        return []
    readings = probe.answer_readings(given, moments)
    if not patient.spec.privileged:
        readings += _input_readings(patient, given, moments, tell)
    return probe.named(given, readings, moments)


def _input_readings(patient: Patient, given: Reading, moments: Moments, tell: Tell) -> list[Reading]:
    """What it answers when each confusion is made up for; the unpromising ones are asked at few moments only."""
    rows = np.arange(0, len(patient.sights), SCREEN)
    few = replace(moments, episode=moments.episode[rows], step=moments.step[rows])
    before = given._replace(answers=given.answers[rows])
    hopeful: list[tuple[float, Confusion]] = []
    known = confusions(patient.spec, patient.tour.suite.state)
    tell(f"it does not answer like the expert: {len(known)} confusions are undone, each at {len(rows)} moments.")
    for confusion in known:
        tried = _shown(patient.answers, [patient.sights[int(row)] for row in rows], confusion)
        if probe.promising(before, tried, few):
            hopeful.append((probe.overall(probe.agreements(tried, few)), confusion))
    hopeful.sort(key=lambda pair: pair[0], reverse=True)
    return [_shown(patient.answers, patient.sights, confusion) for _, confusion in hopeful[:FINALISTS]]


def _shown(answers: LocalPolicy, sights: Sequence[Sight], confusion: Confusion) -> Reading:
    chunks = ask(answers, sights, confusion.change)
    return Reading(confusion.topic, confusion.fault, confusion.fix, stacked(chunks))


def _group(name: str, found: dict[str, probe.Agreement], faulty: bool) -> Check:
    if name not in found:
        return Check(name, None, "cannot tell: the expert hardly uses it here")
    if found[name].alike:
        return Check(name, True, f"agrees with the expert's: correlation {found[name]}")
    why = "see the fault" if faulty else "more --episodes may tell" if found[name].high >= probe.ALIKE else "unlike"
    return Check(name, None, f"does not agree with the expert's: correlation {found[name]}; {why}")
