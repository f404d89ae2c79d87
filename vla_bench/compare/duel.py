"""Two policies on the same episodes, in turn, until it is clear who is better.

The order is fixed before anything runs: trial 0 of every task, then trial 1, ... After every pair the e-value
(`paired_e_value`) is looked at; it may be, that is what it is for. Only the longest prefix of the order whose pairs are
all complete counts, not whatever happens to be done: with several workers short episodes are done first, and short
ones are successes, so completion order favours whoever is faster. The verdict is therefore the same with any number of
workers, and after any number of interruptions.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from vla_bench.compare.comparison import EXIT_CODES, Verdict, check_alpha, level
from vla_bench.compare.pairing import counted, episode_name, policy_title, same_scene, scene_of
from vla_bench.config import ALIASES, EPISODE_TIMEOUT_S, RunConfig, digest, folder_name
from vla_bench.errors import EXIT_BROKEN, EXIT_INTERRUPTED, PolicyFailure, UsageError
from vla_bench.process.foreign import contained
from vla_bench.process.paths import TakesPaths, UserPath, returning
from vla_bench.process.watch import board
from vla_bench.rendering.renderers import MARK, drawn, likeness
from vla_bench.rollout import Rollout
from vla_bench.runner import (
    MAX_BROKEN_IN_A_ROW,
    Job,
    finish,
    keep,
    other_pixels,
    play,
    prepare,
    record_seconds,
    tell_board,
)
from vla_bench.stats.anytime import confidence_sequence, paired_confidence_sequence, paired_e_value
from vla_bench.stats.rates import Interval
from vla_bench.store.runs import ERRORS, RunStore
from vla_bench.tables import cause, films_lost
from vla_bench.text import terminal_text
from vla_bench.types import Episode, EpisodeResult


@dataclass(frozen=True)
class DuelConfig(TakesPaths):
    """Play two policies on the same episodes until it is clear who is better."""

    policy_a: Positional[Annotated[str, arg(metavar="POLICY_A")]]
    """A name from `vla-bench list policies`, or an import path module:Class."""
    policy_b: Positional[Annotated[str, arg(metavar="POLICY_B")]]
    """The other one; it may be the same with another checkpoint or other arguments."""
    suite: str
    """A name from `vla-bench list suites`, or an import path module:function."""
    checkpoint_a: UserPath | None = None
    """Where the weights of A are."""
    checkpoint_b: UserPath | None = None
    """Where the weights of B are."""
    policy_args_a: tuple[str, ...] = ()
    """name=value ... for the constructor of A."""
    policy_args_b: tuple[str, ...] = ()
    """name=value ... for the constructor of B."""
    suite_args: tuple[str, ...] = ()
    """name=value ... for the suite."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this task, by name or index; may be given again. All tasks of the suite when absent."""
    episodes: int | None = None
    """Trials per task; every trial the suite defines when absent (50 for LIBERO)."""
    first_trial: int = 0
    """Number of the first trial."""
    max_episodes: int | None = None
    """Most pairs to play; all that are planned when absent."""
    alpha: float = 0.05
    """Chance of naming a winner where there is none, however often one looks; 1 / alpha of evidence decides."""
    seed: int = 0
    """Of the policies' noise and, where a suite draws its scenes, of the scenes."""
    chunking: Literal["receding", "temporal", "adaptive"] = "receding"
    """Of both policies, as in vla-bench run."""
    execute: int | None = None
    """Actions played per inference, of both policies; when absent, as in vla-bench run."""
    workers: str = "1"
    """Simulator processes: a number, or auto for one per CPU core. 1 runs in this process."""
    batch_size: int = 8
    """Most observations a policy answers in one call."""
    timeout: float | None = None
    """Seconds one policy call may take; no limit when absent."""
    episode_timeout: float = EPISODE_TIMEOUT_S
    """Seconds a simulator may take for one attempt at an episode, the policy's time aside, before it is ended."""
    video: Literal["none", "failures", "all"] = "none"
    """Film these episodes."""
    out: UserPath | None = None
    """Directory for the runs a and b; results/duel_<policies>_<suite>_<hash of the configuration> when absent."""
    overwrite: bool = False
    """Delete what an earlier duel left there and start again."""
    json: bool = False
    """Print the result as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        if self.max_episodes is not None and self.max_episodes < 1:
            raise UsageError(f"--max-episodes should be at least 1, got {self.max_episodes}.")

    def path(self) -> Path:
        """Where the two runs are: `out`, or a name that the same configuration always gets."""
        if self.out is not None:
            return Path(self.out)
        identities = [config.identity() for config in self._configs(Path())]
        names = [self.policy_a, self.policy_b, ALIASES.get(self.suite, self.suite)]
        hashed = digest({"a": identities[0], "b": identities[1]})[:6]
        return Path("results") / "_".join(["duel", *map(folder_name, names), hashed])

    def configs(self) -> tuple[RunConfig, RunConfig]:
        """The two runs: ordinary ones, in the directories a and b."""
        return self._configs(self.path())

    def _configs(self, root: Path) -> tuple[RunConfig, RunConfig]:
        a = RunConfig(
            policy=self.policy_a,
            suite=self.suite,
            checkpoint=self.checkpoint_a,
            policy_args=self.policy_args_a,
            suite_args=self.suite_args,
            task=self.task,
            episodes=self.episodes,
            first_trial=self.first_trial,
            seed=self.seed,
            chunking=self.chunking,
            execute=self.execute,
            workers=self.workers,
            batch_size=self.batch_size,
            timeout=self.timeout,
            episode_timeout=self.episode_timeout,
            video=self.video,
            out=str(root / "a"),
            overwrite=self.overwrite,
        )
        other = {"policy": self.policy_b, "checkpoint": self.checkpoint_b, "policy_args": self.policy_args_b}
        return a, replace(a, **other, out=str(root / "b"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Score:
    """What the pairs so far say, in the order of the plan."""

    alpha: float
    seen: int = 0
    """Pairs of the order taken in, those without a verdict included."""
    pairs: int = 0
    """Pairs with two verdicts."""
    successes_a: int = 0
    successes_b: int = 0
    a_only: int = 0
    b_only: int = 0
    unjudged: int = 0
    unlike: int = 0
    """Pairs whose episodes are not known to be painted with the same pixels: they count, and are told."""
    mismatched: str = ""
    """The episode whose scene was not the same for both: the duel is off."""

    @property
    def e_value(self) -> float:
        return paired_e_value(self.a_only, self.b_only)

    @property
    def decided(self) -> bool:
        return self.e_value >= 1 / self.alpha

    @property
    def over(self) -> bool:
        return self.decided or bool(self.mismatched)

    def after(self, a: EpisodeResult, b: EpisodeResult) -> Score:
        """The score with one more pair. A pair without a verdict says nothing and is counted."""
        seen = replace(self, seen=self.seen + 1)
        if a.success is None or b.success is None:
            return replace(seen, unjudged=self.unjudged + 1)
        if not same_scene(*(scene_of(row.scene_fingerprint, row.start_fingerprint) for row in (a, b))):
            return replace(seen, mismatched=episode_name(a.task, a.trial, a.seed, a.perturbation))
        return replace(
            seen,
            pairs=self.pairs + 1,
            unlike=self.unlike + (likeness(drawn(a), drawn(b)) != "equal"),
            successes_a=self.successes_a + a.success,
            successes_b=self.successes_b + b.success,
            a_only=self.a_only + (a.success and not b.success),
            b_only=self.b_only + (b.success and not a.success),
        )


@dataclass(frozen=True)
class Duel:
    """How a duel ended."""

    policy_a: Positional[Annotated[str, arg(metavar="POLICY_A")]]
    policy_b: Positional[Annotated[str, arg(metavar="POLICY_B")]]
    path: Path
    verdict: Verdict
    score: Score
    planned: int
    """Rollouts of the plan: two per pair."""
    played: int
    """Rollouts of the plan that are stored, of earlier sessions too."""
    interrupted: bool = False
    failure: str = ""
    """What stopped the duel, when that was a policy or a simulator."""
    cause: str = ""
    """The first error that left an episode without a verdict, and where its traceback is."""
    films_lost: str = ""
    """How many films asked for could not be made, and why."""
    notes: tuple[str, ...] = ()


Watch = Callable[[Score, int], None]
"""Told the score and the number of planned pairs, at the start and after every rollout."""


def duel(config: DuelConfig, watch: Watch = lambda score, pairs: None) -> Duel:
    """Play, pair by pair, what is not yet stored, until the e-value decides. Ctrl-C ends it early, losing nothing.

    Raises UsageError for what the user can mend.
    """
    with returning(), contained():
        return _duel(config, watch)


def _duel(config: DuelConfig, watch: Watch) -> Duel:
    jobs = [prepare(run) for run in config.configs()]
    order = trial_major(jobs[0].episodes)[: config.max_episodes]
    folders = [str(job.config.path()) for job in jobs]
    with board().writing(*folders), _open(jobs[0], order) as store_a, _open(jobs[1], order) as store_b:
        board().limit_episodes(config.episode_timeout)
        for store in (store_a, store_b):
            tell_board(store)
        corners = (_Corner(jobs[0], store_a), _Corner(jobs[1], store_b))
        other = [note for corner in corners for note in other_pixels(corner.job, corner.store, corner.todo(order))]
        fight = _Fight(corners, order, Score(config.alpha), watch)
        fight.run()
        policy_a, policy_b = (policy_title(job.info.identity) for job in jobs)
        _record_ending(fight, (policy_a, policy_b))
    return Duel(
        policy_a=policy_a,
        policy_b=policy_b,
        path=config.path(),
        verdict=_verdict(fight.score),
        score=fight.score,
        planned=2 * len(order),
        played=len(store_a.rows(order)) + len(store_b.rows(order)),
        interrupted=fight.interrupted,
        failure=fight.failure,
        cause=_cause(corners),
        films_lost=" ".join(filter(None, map(_films_lost, corners))),
        notes=(*store_a.notes, *store_b.notes, *other),
    )


def trial_major(episodes: Sequence[Episode]) -> list[Episode]:
    """The first trial of every task, then the second of every task, ...: a duel that stops early has seen all tasks."""
    return sorted(episodes, key=lambda episode: episode.trial)


@dataclass
class _Corner:
    """One policy's side: its run, and the rows that count."""

    job: Job
    store: RunStore
    rows: dict[Episode, EpisodeResult] = field(default_factory=dict)
    """Verdicts of earlier sessions, and all rows of this one: a broken episode is tried again before it counts."""
    seconds: float = 0.0
    broken_in_a_row: int = 0

    def __post_init__(self) -> None:
        stored = self.store.rows(self.job.episodes)
        self.rows = {row.episode: row for row in stored if row.success is not None}

    def todo(self, order: Sequence[Episode]) -> list[Episode]:
        """What it has not played yet."""
        return [episode for episode in order if episode not in self.rows]

    def take(self, rollout: Rollout) -> None:
        row = rollout.result
        keep(rollout, self.job.config, self.store)
        self.rows[row.episode] = row
        self.broken_in_a_row = self.broken_in_a_row + 1 if row.success is None else 0

    def draw(self, rollouts: Generator[Rollout]) -> bool:
        """Take the next rollout; False when there is none. A policy's failure leaves its traceback in the run."""
        started = time.perf_counter()
        try:
            self.take(next(rollouts))
        except StopIteration:
            return False
        except PolicyFailure as failure:
            self.store.log_error(str(failure), "".join(traceback.format_exception(failure)))
            raise
        finally:
            self.seconds += time.perf_counter() - started
        record_seconds(self.store, self.seconds)
        return True


@dataclass
class _Fight:
    """The loop: rollouts in, score out."""

    corners: tuple[_Corner, _Corner]
    order: Sequence[Episode]
    score: Score
    watch: Watch
    interrupted: bool = False
    failure: str = ""

    def run(self) -> None:
        """Play until the score is over or the order is, the user interrupts or a policy or simulator fails."""
        self._count()
        rounds = self._in_turn() if self.corners[0].job.workers <= 1 else self._in_windows()
        try:
            while not (self.score.over or self.failure) and (corner := next(rounds, None)):
                self._count()
                self.failure = _hopeless(corner)
        except KeyboardInterrupt:
            self.interrupted = True
        except PolicyFailure as failure:
            self.failure = str(failure)
        finally:
            rounds.close()
            for corner in self.corners:
                with corner.store.noting():
                    record_seconds(corner.store, corner.seconds)

    def _count(self) -> None:
        """Take in the pairs that have become complete at the end of the prefix, until the score is over."""
        a, b = (corner.rows for corner in self.corners)
        while not self.score.over and self.score.seen < len(self.order):
            episode = self.order[self.score.seen]
            if episode not in a or episode not in b:
                break
            self.score = self.score.after(a[episode], b[episode])
        self.watch(self.score, len(self.order))

    def _in_turn(self) -> Generator[_Corner]:
        """In this process: an episode by A, then the same by B, then the next. Yields whose rollout is in."""
        with _Streams(self.corners, self.order) as streams:
            for episode in self.order:
                for corner, stream in zip(self.corners, streams, strict=True):
                    if episode not in corner.rows and corner.draw(stream):
                        yield corner

    def _in_windows(self) -> Generator[_Corner]:
        """With workers: a window of the order by A, then the same by B; within it in any order.

        A simulator that waits for its turn would be billed for it, so only one policy plays at a time. A window gives
        every worker something to do, and is as short as that allows: what it holds beyond the decision is lost.
        """
        tasks = len({episode.task for episode in self.order})
        size = max(tasks, 2 * max(corner.job.workers for corner in self.corners))
        for start in range(0, len(self.order), size):
            window = self.order[start : start + size]
            for corner in self.corners:
                with _Streams((corner,), window) as (stream,):
                    while corner.draw(stream):
                        yield corner


class _Streams:
    """For every corner the rollouts of what it has not played yet; they are closed at the end."""

    def __init__(self, corners: Sequence[_Corner], episodes: Sequence[Episode]) -> None:
        self._streams = [play(corner.job, corner.todo(episodes)) for corner in corners]

    def __enter__(self) -> list[Generator[Rollout]]:
        return self._streams

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.close()


def _open(job: Job, order: Sequence[Episode]) -> RunStore:
    info = replace(job.info, plan={**job.info.plan, "stopped_by": "duel"})
    return RunStore.open(job.config.path(), info, job.config.overwrite, order)


def _record_ending(fight: _Fight, policies: tuple[str, str]) -> None:
    """Leaves in both runs how the duel ended: whoever reads them later has to know whether it stopped early."""
    score = fight.score
    ending = {"policies": policies, "verdict": _verdict(score), "pairs": score.seen, "planned": len(fight.order)}
    for corner in fight.corners:
        with corner.store.noting():
            corner.store.record_provenance(duel=ending)
            finish(corner.store, fight.interrupted, bool(fight.failure))


def _hopeless(corner: _Corner) -> str:
    """Why there is no use in going on; empty when there is."""
    if corner.broken_in_a_row < MAX_BROKEN_IN_A_ROW:
        return ""
    last = list(corner.rows.values())[-1]
    name = policy_title(corner.job.info.identity)
    return (
        f"{corner.broken_in_a_row} episodes of {name} in a row could not be judged, the last for "
        f"{cause([(last.error, last.message)])}."
    )


def _cause(corners: Sequence[_Corner]) -> str:
    """What broke first, of A before B, and where its traceback is; empty when nothing did."""
    for corner in corners:
        if broken := [(row.error, row.message) for row in corner.rows.values() if row.success is None]:
            return f"{cause(broken)}; traceback in {corner.store.path / ERRORS}"
    return ""


def _films_lost(corner: _Corner) -> str:
    return "" if corner.job.config.video == "none" else films_lost(corner.rows.values(), corner.store.path)


def _verdict(score: Score) -> Verdict:
    if score.mismatched:
        return "not comparable"
    if not score.decided:
        return "undecided"
    return "A better" if score.a_only > score.b_only else "B better"


# --- output ---


def exit_code(result: Duel) -> int:
    """0 decided, 2 undecided, 3 not comparable, 4 when episodes, policies or films broke, 130 interrupted."""
    if result.interrupted:
        return EXIT_INTERRUPTED
    if result.failure or result.score.unjudged or result.films_lost:
        return EXIT_BROKEN
    return EXIT_CODES[result.verdict]


def rates(score: Score) -> tuple[Interval, Interval, Interval]:
    """Intervals of the rates of A and B and of their difference that hold although the duel stopped when it liked."""
    confidence = 1 - score.alpha
    return (
        confidence_sequence(score.successes_a, score.pairs, confidence),
        confidence_sequence(score.successes_b, score.pairs, confidence),
        paired_confidence_sequence(score.a_only, score.b_only, score.pairs, confidence),
    )


def to_json(result: Duel) -> dict[str, object]:
    """The duel as plain JSON values; the intervals are fractions."""
    score = result.score
    names = ("interval_a", "interval_b", "interval_difference")
    intervals = {name: list(interval) for name, interval in zip(names, rates(score), strict=True)}
    known = {"e_value": score.e_value, "decides_at": 1 / score.alpha, "saved": result.planned - result.played}
    return {**asdict(result), "path": str(result.path), **known, **intervals}


def render_text(result: Duel) -> str:
    """The duel for a terminal, the verdict last."""
    score = result.score
    a, b, _ = rates(score)
    sections = [
        [
            _line("A", result.policy_a, score.successes_a, score.pairs, a),
            _line("B", result.policy_b, score.successes_b, score.pairs, b),
            f"{level(score.alpha)} intervals that hold whenever one stops{f' {MARK}' if score.unlike else ''}",
        ]
        if score.pairs
        else [f"A  {result.policy_a}", f"B  {result.policy_b}"],
        [_spent(result), *_whereabouts(result)],
        [*_unjudged(result), *_unlike(score), _sentence(result)],
    ]
    return terminal_text(sections)


def _line(name: str, policy: str, successes: int, pairs: int, interval: Interval) -> str:
    rate, ends = 100 * successes / pairs, f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return f"{name}  {successes}/{pairs}  {rate:.1f} % {ends}  {policy}"


def _spent(result: Duel) -> str:
    """Rollouts played and, when the duel is decided, saved."""
    saved = result.planned - result.played
    rest = f": {saved} saved" if result.score.decided and saved else ""
    return f"{result.played} of {result.planned} planned rollouts were played{rest}."


def _whereabouts(result: Duel) -> list[str]:
    """Where the runs are, and what a later comparison of them does not know."""
    early = " Its p-value does not know that the duel stops when decided; its e-value does." * result.score.decided
    return [f"vla-bench compare {result.path / 'a'} {result.path / 'b'} lists the episodes.{early}"]


def _unjudged(result: Duel) -> list[str]:
    if not result.score.unjudged:
        return []
    pairs = f"{counted(result.score.unjudged, 'pair')} without a verdict did not count"
    return [f"{pairs}: {result.cause}; the same command tries again."]


def _unlike(score: Score) -> list[str]:
    if not score.unlike:
        return []
    return [
        f"{MARK} In {score.unlike} of {score.pairs} pairs the pictures of A and B are not known to have the same "
        "pixels: that alone can change what a policy that looks at them does."
    ]


def _sentence(result: Duel) -> str:
    score = result.score
    if score.mismatched:
        return f"Not comparable. {score.mismatched} did not start from the same scene for both."
    evidence = (
        f"Only A succeeded in {score.a_only} of {score.pairs} pairs, only B in {score.b_only}: the e-value is "
        f"{score.e_value:.3g}, and {1 / score.alpha:.3g} decides."
    )
    return f"{result.verdict[0].upper()}{result.verdict[1:]}. {evidence}"
