"""A run: the full list of episodes is fixed first, then played, each row stored as soon as it is known."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from vla_bench.config import RunConfig, describe
from vla_bench.errors import PolicyFailure, UsageError, unknown_name
from vla_bench.inference import LocalPolicy, check_compatible
from vla_bench.pool import Pool, WorkerSetup, origin_of, worker_count
from vla_bench.process.foreign import contained
from vla_bench.process.paths import absolute, home, returning
from vla_bench.process.watch import board
from vla_bench.registry import make_policy, make_suite, policy_code, suite_code, telling
from vla_bench.rendering.gl import renderer, use_backend
from vla_bench.rendering.pixels import views_of
from vla_bench.rendering.renderers import Drawn, between, drawn, pixels_sentence, without_renderer
from vla_bench.rollout import Actor, Filming, Keeper, Rollout, Stage, attach
from vla_bench.secrets import hidden, hidden_in, names
from vla_bench.shipped import note_on
from vla_bench.store.integrity import protocol_hash
from vla_bench.store.provenance import content_hash, gather, stamps
from vla_bench.store.runs import RunInfo, RunStore, finished, record_actions
from vla_bench.tables import cause, films_lost
from vla_bench.types import Episode, EpisodeResult, Policy, PolicySpec, Suite, Task

MAX_ATTEMPTS = 3  # an episode that breaks simulator or harness three times stays unjudged
MAX_BROKEN_IN_A_ROW = 3  # then it is not the episode: the run stops instead of trying all the others


class Watcher(Protocol):
    """Who is told how a run goes."""

    def start(self, path: Path, total: int, rows: Sequence[EpisodeResult], notes: Sequence[str]) -> None: ...

    def row(self, row: EpisodeResult) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def start(self, path: Path, total: int, rows: Sequence[EpisodeResult], notes: Sequence[str]) -> None:
        del path, total, rows, notes

    def row(self, row: EpisodeResult) -> None:
        del row


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    path: Path
    planned: int
    judged: int
    broken: int
    interrupted: bool
    failure: str = ""
    """What the policy did wrong, when that stopped the run."""
    cause: str = ""
    """The first error that left an episode without a verdict."""
    films_lost: str = ""
    """How many films asked for could not be made, and why."""
    notes: tuple[str, ...] = ()


def plan(suite: Suite, config: RunConfig) -> list[Episode]:
    """All episodes of the run, task by task. Raises UsageError for tasks and trials that do not exist."""
    tasks = select_tasks(suite, config.task)
    return [Episode(suite.name, task.name, trial, config.seed) for task in tasks for trial in _trials(task, config)]


def select_tasks(suite: Suite, wanted: Sequence[str]) -> list[Task]:
    """The tasks of those names or indices, in the suite's order; all of them when none is wanted."""
    if not wanted:
        return list(suite.tasks)
    names = {_task_name(suite, text) for text in wanted}
    return [task for task in suite.tasks if task.name in names]


def _task_name(suite: Suite, text: str) -> str:
    if text in suite.names:
        return text
    if text.isdecimal():
        if int(text) < len(suite.tasks):
            return suite.tasks[int(text)].name
        raise UsageError(f"{suite.name} has tasks 0 to {len(suite.tasks) - 1}, got {text}.")
    raise unknown_name(f"task of {suite.name}", text, suite.names)


def _trials(task: Task, config: RunConfig) -> range:
    episodes = task.trials - config.first_trial if config.episodes is None else config.episodes
    last = config.first_trial + episodes
    if episodes < 1 or last > task.trials:
        raise UsageError(
            f"{task.name} has trials 0 to {task.trials - 1}, got --first-trial {config.first_trial}"
            f"{'' if config.episodes is None else f' --episodes {config.episodes}'}."
        )
    return range(config.first_trial, last)


def protocol(suite: Suite, config: RunConfig) -> dict[str, object]:
    """Everything besides the policy that decides states and verdicts, as JSON values. Needs the simulator's package.

    Which renderer makes the pictures is not in it: that is recorded in every row, and compared by its pixels.
    """
    with telling(f"The suite {suite.name!r} does not say what it consists of"):
        simulator = dict(suite.provenance())
    settings = {
        "suite": suite.name,
        "version": suite.version,
        "tasks": [[task.name, *task.instructions, task.max_steps, task.trials] for task in suite.tasks],
        "action": dataclasses.asdict(suite.action),
        "state": list(suite.state),
        "cameras": [[camera.name, camera.height, camera.width] for camera in suite.cameras],
        "control_hz": suite.control_hz,
        "settings": dict(suite.protocol),
        "simulator": hidden_in(simulator),
        "chunking": describe(config.make_chunking()),
        **_code_of_suite(config.suite),
    }
    as_stored = json.loads(json.dumps(settings, allow_nan=False))
    return without_renderer(as_stored)[0]


def _code_of_suite(name: str) -> dict[str, object]:
    """Of one that does not come with vla-bench: its code decides what counts as success."""
    code = suite_code(name)
    return {"code": "".join(code)} if code.file else {}


class Job(NamedTuple):
    """A run that is ready to be played: everything is made and checked, nothing is written yet."""

    config: RunConfig
    suite: Suite
    policy: Policy
    answers: LocalPolicy
    """The policy as the engine calls it. One for the whole run: it counts the cold calls."""
    info: RunInfo
    episodes: list[Episode]
    workers: int
    folder: str
    """Where the command was given: what its arguments are relative to."""
    drawn: Drawn
    """What renders its pictures here."""
    keeper: Keeper | None = None


def anchored(config: RunConfig) -> RunConfig:
    """The same run, which writes to the same places wherever the working folder is by then."""
    return replace(config, out=absolute(str(config.path())), record_actions=absolute(config.record_actions))


def prepare(config: RunConfig, keeper: Keeper | None = None) -> Job:
    """Suite, policy and plan of the run. Raises UsageError for what the user can mend."""
    located, folder, checkpoint = anchored(config), home(), absolute(config.checkpoint)
    suite = make_suite(config.suite, config.suite_args)
    episodes = plan(suite, config)
    workers = min(worker_count(config.workers), len(episodes))
    settings = protocol(suite, config)
    if suite.mujoco_quality:
        use_backend()  # before a policy imports MuJoCo
    before = stamps(checkpoint)
    policy = make_policy(config.policy, suite, config.checkpoint, config.policy_args)
    check_compatible(policy, suite)
    code = policy_code(config.policy)
    told = policy.spec.checkpoint
    content = "" if _is_hash(told) else content_hash(checkpoint)
    if stamps(checkpoint) != before:
        raise UsageError(f"{config.checkpoint} was changed while it was read: run this again when nobody writes to it.")
    info = RunInfo(
        identity={
            **config.identity(),
            "weights": hidden(told) or content,
            "content": content if told else "",
            "code": code.file,
            "imports": code.imports,
        },
        plan={**config.plan(), "planned": len(episodes)},
        protocol=settings,
        protocol_hash=protocol_hash(settings),
        provenance={**gather(), **hidden_in(_told_by(policy))},
        control_hz=suite.control_hz,
    )
    answers = LocalPolicy(policy, config.timeout)
    rendered_by = _rendered_by(suite, policy, keeper)
    return Job(located, suite, policy, answers, info, episodes, workers, folder, rendered_by, keeper)


def _rendered_by(suite: Suite, policy: Policy, keeper: Keeper | None) -> Drawn:
    """What renders the pictures of this run; nothing where nobody looks at any, or they are not MuJoCo's."""
    views = views_of(suite)
    return renderer(views) if policy.spec.cameras or keeper is not None else Drawn()


def _is_hash(told: str) -> bool:
    """Whether what a policy tells of its checkpoint changes with the weights."""
    return bool(re.fullmatch("[0-9a-f]{40,64}", told))


def _about(policy: Policy) -> str:
    """What its weights are, where the user did not name them."""
    return policy.spec.note or note_on(policy.spec.checkpoint)


def _told_by(policy: Policy) -> dict[str, object]:
    """What its numbers have to be read with: what its weights are, and how many actions it usually plays."""
    told = {"weights": _about(policy), "usually_executes": policy.spec.execute}
    return {name: value for name, value in told.items() if value}


def _weights(policy: Policy) -> list[str]:
    return [f"{policy.spec.name}: {_about(policy)}."] if _about(policy) else []


def _played(config: RunConfig, spec: PolicySpec) -> list[str]:
    """How many actions of a chunk are played, where that is left to the checkpoint."""
    if not spec.checkpoint or spec.chunk == 1 or config.execute is not None or config.chunking != "receding":
        return []
    count = spec.execute or spec.chunk
    why = "for its checkpoint does not say" if spec.execute is None else "as its checkpoint says"
    return [f"{spec.name} plays {count} of the {spec.chunk} actions it answers, {why}; --execute changes that."]


def _kept_nowhere(config: RunConfig) -> list[str]:
    """A sentence on arguments that are secrets."""
    found = names((*config.policy_args, *config.suite_args))
    if not found:
        return []
    return [f"Kept nowhere, as secrets are: {', '.join(found)}. Runs that differ in nothing else count as one."]


def run(config: RunConfig, watcher: Watcher | None = None, keeper: Keeper | None = None) -> Outcome:
    """Play what is not yet stored of the run, and say how it ended. Ctrl-C ends it early, losing nothing.

    The keeper sees every episode that is played before its row is stored.

    Raises UsageError for what the user can mend.
    """
    with returning(), contained():
        return _run(config, watcher or Silent(), keeper)


def _run(config: RunConfig, watcher: Watcher, keeper: Keeper | None) -> Outcome:
    path, job = config.path(), prepare(config, keeper)
    told = [*_weights(job.policy), *_played(config, job.policy.spec), *_kept_nowhere(config)]
    if not config.overwrite and (rows := finished(job.config.path(), job.info, job.episodes)):
        watcher.start(path, len(job.episodes), rows, [*told, *_not_again(job, [])])
        return _outcome(job, path, rows)
    folder = job.config.path()
    with board().writing(str(folder)), RunStore.open(folder, job.info, config.overwrite, job.episodes) as store:
        board().limit_episodes(config.episode_timeout)
        tell_board(store)
        todo = [episode for episode in job.episodes if episode not in store.done()]
        notes = [*told, *store.notes, *_not_again(job, todo), *other_pixels(job, store, todo)]
        watcher.start(path, len(job.episodes), store.rows(job.episodes), notes)
        ending = _consume(play(job, todo), job.config, store, watcher)
        finish(store, ending.interrupted, bool(ending.failure))
    return _outcome(job, path, store.rows(job.episodes), ending, store.notes)


def _outcome(
    job: Job, path: Path, rows: Sequence[EpisodeResult], ending: _Ending | None = None, notes: Sequence[str] = ()
) -> Outcome:
    broken = [(row.error, row.message) for row in rows if row.success is None]
    return Outcome(
        path,
        len(job.episodes),
        len(rows) - len(broken),
        len(broken),
        *(ending or _Ending()),
        cause=cause(broken),
        films_lost="" if job.config.video == "none" else films_lost(rows, job.config.path()),
        notes=tuple(notes),
    )


def _not_again(job: Job, todo: Sequence[Episode]) -> list[str]:
    """What is asked for now but was not when the stored episodes were played."""
    stored = len(job.episodes) - len(todo)
    wanted = [("--record-actions", job.config.record_actions), ("--video", job.config.video != "none")]
    return [
        f"{flag} is for episodes still to play: the {stored} stored ones stay as they are."
        for flag, on in wanted
        if on and stored
    ]


def other_pixels(job: Job, store: RunStore, todo: Sequence[Episode]) -> list[str]:
    """A sentence when what is still to play is painted with other pixels than what is stored."""
    there = {drawn(row) for row in store.rows(job.episodes) if row.success is not None}
    found = between(there, {job.drawn})
    said = pixels_sentence(found, {"the stored episodes": there, "those still to play": {job.drawn}})
    return [said] if said and todo else []


def play(job: Job, todo: Sequence[Episode]) -> Generator[Rollout]:
    """One rollout per episode: in order with one worker, as they are finished with more. Close it to stop early."""
    with contextlib.closing(_serial(job, todo) if job.workers <= 1 else _pooled(job, todo)) as rollouts:
        for rollout in rollouts:
            yield rollout._replace(result=replace(rollout.result, **job.drawn._asdict()))


class _Ending(NamedTuple):
    interrupted: bool = False
    failure: str = ""


def _consume(rollouts: Generator[Rollout], config: RunConfig, store: RunStore, watcher: Watcher) -> _Ending:
    """Store every rollout as it comes, until they end, the user interrupts or the policy fails."""
    started, in_a_row, played = time.perf_counter(), 0, 0
    try:
        for rollout in rollouts:
            keep(rollout, config, store)
            record_seconds(store, time.perf_counter() - started)
            played += 1
            watcher.row(rollout.result)
            in_a_row = in_a_row + 1 if rollout.result.success is None else 0
            if in_a_row == MAX_BROKEN_IN_A_ROW:
                last = cause([(rollout.result.error, rollout.result.message)])
                return _Ending(failure=f"{in_a_row} episodes in a row could not be judged, the last for {last}.")
    except KeyboardInterrupt:
        return _Ending(interrupted=True)
    except PolicyFailure as failure:
        store.log_error(str(failure), "".join(traceback.format_exception(failure)))
        return _Ending(failure=str(failure))
    finally:
        rollouts.close()
        if not played:
            with store.noting():
                store.keep_provenance()
    return _Ending()


def finish(store: RunStore, interrupted: bool, failed: bool) -> None:
    """Says in run.json how the session ended: with a failure too where episodes ended in an error."""
    errored = store.info.status is not None and store.info.status.errored > 0
    store.finish("interrupted" if interrupted else "failed" if failed or errored else "complete")


def record_seconds(store: RunStore, seconds: float) -> None:
    """Adds the wall time of this session to what run.json says of earlier ones."""
    earlier = store.previous.provenance.get("run_seconds", 0.0) if store.previous else 0.0
    store.record_provenance(run_seconds=round(float(str(earlier)) + seconds, 3))


def tell_board(store: RunStore) -> None:
    """How far the run has come: for whoever has to say so when this process no longer can."""
    if status := store.info.status:
        said = f"{status.judged} of {status.planned} episodes are stored in {store.path}"
        board().stored(str(store.path), said)


def keep(rollout: Rollout, config: RunConfig, store: RunStore) -> None:
    """Store the row, the inferences and, where asked for or needed, actions and traceback."""
    if config.record_actions and rollout.result.success is not None:
        record_actions(config.record_actions, rollout.result.episode, rollout.actions)
    store.append(rollout.result, rollout.inferences)
    tell_board(store)
    if rollout.trace:
        store.log_error(str(rollout.result.episode), rollout.trace)


def _serial(job: Job, todo: Sequence[Episode]) -> Generator[Rollout]:
    """Simulator and policy in this process."""
    config, policy = job.config, job.policy
    cameras = [camera.name for camera in policy.spec.cameras]
    actor = Actor(job.answers, config.make_chunking(policy.spec.execute))
    filming = Filming(config.video, config.path())
    stage = Stage(
        job.suite,
        cameras,
        actor,
        attach(policy),
        filming=filming,
        history=policy.spec.history,
        keeper=job.keeper,
    )
    try:
        for episode in todo:
            yield _attempted(stage, episode)
            if stage.interrupted:
                raise KeyboardInterrupt
    finally:
        with board().simulator("the end of the run"):
            stage.close()


def _attempted(stage: Stage, episode: Episode) -> Rollout:
    """The first rollout of the episode with a verdict, or the last of `MAX_ATTEMPTS`."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        with board().simulator(f"{episode.task} trial {episode.trial}"):
            rollout = stage.play(episode)
        if rollout.result.success is not None or attempt == MAX_ATTEMPTS:
            return rollout._replace(result=replace(rollout.result, attempts=attempt))
    raise AssertionError("unreachable")


def _pooled(job: Job, todo: Sequence[Episode]) -> Generator[Rollout]:
    """Simulators in processes of their own, the policy here."""
    config, policy = job.config, job.policy
    recipe = (config.policy, config.checkpoint, config.policy_args, config.timeout)
    setups = [
        WorkerSetup(
            suite=config.suite,
            suite_args=config.suite_args,
            cameras=policy.spec.cameras,
            history=policy.spec.history,
            chunking=config.make_chunking(policy.spec.execute),
            filming=Filming(config.video, config.path()),
            slot=slot,
            folder=job.folder,
            episode_timeout_s=config.episode_timeout,
            privileged=recipe if policy.spec.privileged else None,
            keeper=job.keeper,
        )
        for slot in range(job.workers)
    ]
    origin = origin_of(setups[0])  # of all: they differ in their slots alone
    setups = [replace(setup, origin=origin) for setup in setups]
    yield from Pool(setups, job.answers, config.batch_size, MAX_ATTEMPTS).rollouts(todo)
