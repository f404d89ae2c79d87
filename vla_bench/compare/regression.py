"""The gate: is this run as good as the baseline, episode for episode? What CI asks.

The rule. The margin is the loss of success that you accept; alpha is the chance of a false pass, and of a false alarm.
`lost` are the episodes that only the baseline solved, `gained` those that only the run solved.

1. Not comparable: another protocol, an episode that began on another scene, or no episode in common; if asked for
   (--strict-renderer), also pictures that are not known to have the same pixels, which else are only marked.
2. Pass, unchanged: every episode of the baseline ended in the same state of the simulator, bit for bit, after as many
   steps. Then the policy did the same as before, so there is no difference to be unsure of, however few episodes.
3. Otherwise, for all episodes together and again for every task:
   pass        every episode of the baseline has a verdict, and the loss is below the margin at confidence 1 - alpha:
               the lower end of the paired interval (Tango's, two-sided 1 - 2 alpha) of the success rate of the run
               minus that of the baseline is above -margin.
               This also passes a loss that is certain but smaller than the margin: the margin says it is accepted.
   regression  no pass, and McNemar's exact one-sided test finds the run worse: its p-value, for tasks after Holm, is at
               most alpha. It must do so even if all episodes without a verdict had succeeded.
   undecided   neither.
4. The verdict is `regression` if all together, a task or the latency has regressed, else that of all together.
5. With `undecided="pass"` an undecided gate counts as passed, unless an episode of the baseline has no verdict.

Of chains, the instructions done in a row count instead of success: the loss is the share of a chain's instructions
that the run does less on average (interval of the mean by `stats.chains.mean_interval`), the test is the exact
sign-flip test of the paired lengths, and `lost` are the chains in which the run did less.

So an unchanged policy raises a false alarm with a chance of at most alpha for all together and alpha for all tasks; a
pass is wrong with a chance of about alpha. The interval's end alone never makes a regression: where both tests speak,
the exact one is the one whose error is guaranteed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vla_bench.compare.baseline import Baseline, frame, latency_p50, read_baseline
from vla_bench.compare.comparison import check_alpha, probability
from vla_bench.compare.pairing import (
    Discordant,
    counted,
    discordant_episodes,
    episode_name,
    identical,
    machine,
    named,
    pair_rows,
    pixels_note,
    protocol_objections,
    refused_pixels,
    with_paths,
)
from vla_bench.errors import EXIT_DONE, EXIT_NOT_COMPARABLE, EXIT_REGRESSION, EXIT_UNDECIDED, UsageError
from vla_bench.stats.chains import exact_sign_flip, mean_interval
from vla_bench.stats.many import holm
from vla_bench.stats.paired import mcnemar, paired_difference
from vla_bench.store.runs import KEY, RunInfo, read_info
from vla_bench.tables import incomplete_note, load, marked, status_of, stopping_notes
from vla_bench.text import (
    aligned,
    for_markdown_line,
    for_terminal,
    markdown_list,
    markdown_table,
    shorten,
    terminal_text,
)

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["pass", "regression", "undecided", "not comparable"]
Undecided = Literal["pass", "fail"]
EXIT_CODES: Mapping[Verdict, int] = {
    "pass": EXIT_DONE,
    "regression": EXIT_REGRESSION,
    "undecided": EXIT_UNDECIDED,
    "not comparable": EXIT_NOT_COMPARABLE,
}
MOST_MORE = 5000  # pairs that are foreseen; LIBERO's largest suite has 4500
MANY = 50  # lines that a list in a text has
WIDTH = 100
HEADER = ("task", "baseline", "run", "change", "interval", "lost:gained", "p (Holm)", "verdict")
_NOT_PLAYED = "What it has not played counts neither for it nor against it."


@dataclass(frozen=True)
class GateRow:
    """One task, or all of them: the run against the baseline."""

    task: str
    episodes: int
    """Of the baseline."""
    missing: int
    """Of these, without a verdict in the run: not played, or broken."""
    baseline_successes: int
    """Among the pairs: episodes with a verdict in both. So are run_successes, gained and lost."""
    run_successes: int
    gained: int
    lost: int
    unchanged: int
    """Pairs that ended in the same state, bit for bit."""
    difference: float | None
    """Success rate of the run minus that of the baseline; None without pairs."""
    low: float
    """Ends of its interval at confidence 1 - 2 alpha."""
    high: float
    p_worse: float
    """McNemar's exact one-sided test that the run is worse; episodes without a verdict counted as successes."""
    p_holm: float
    """`p_worse`, adjusted for the number of tasks; for all together it is `p_worse`."""
    verdict: Verdict
    seconds: float
    """Wall time of the run's episodes."""
    links: int = 0
    """Instructions per chain: then the next two and `difference` are of lengths; 0 for single instructions."""
    baseline_length: float | None = None
    """Mean number of instructions done in a row, over the pairs; None unless these are chains."""
    run_length: float | None = None
    least_margin: float | None = None
    """The loss that so many pairs exclude when all end alike: no smaller margin lets a policy pass that has changed."""
    more_needed: int | None = None
    """Of an undecided row, all together: about so many more pairs decide if they end like these; None if unknown."""

    @property
    def pairs(self) -> int:
        return self.episodes - self.missing


@dataclass(frozen=True)
class LatencyGate:
    """Median wall time per policy call against the baseline's."""

    run_ms: float | None
    baseline_ms: float | None
    ratio: float | None
    limit: float | None
    """The largest accepted ratio; None when no limit was set."""
    verdict: Verdict


@dataclass(frozen=True)
class Gate:
    """What `vla-bench check` says."""

    verdict: Verdict
    reasons: tuple[str, ...]
    run: str
    baseline: str
    suite: str
    margin: float
    alpha: float
    overall: GateRow | None
    """None when the two are not comparable; `tasks` and `discordant` are empty then."""
    tasks: tuple[GateRow, ...]
    discordant: tuple[Discordant, ...]
    """Episodes that ended differently: A is the run, B the baseline."""
    latency: LatencyGate
    notes: tuple[str, ...] = ()
    undecided: Undecided = "fail"
    """What an undecided gate counts as."""
    incomplete: str = ""
    """A sentence when the run is not complete. The first of the reasons says it too."""
    pixels: str = ""
    """A sentence, after the mark that the table's header has, when not all pixels are known to be the same. The last of
    the reasons says it too."""

    @property
    def passed(self) -> bool:
        """Whether CI may go on: point 5 of the rule."""
        let_go = self.undecided == "pass" and self.verdict == "undecided" and self.overall and not self.overall.missing
        return self.verdict == "pass" or bool(let_go)

    @property
    def message(self) -> str:
        """The verdict and why, in a few sentences that can be printed."""
        accepted = ", which counts as passed" if self.passed and self.verdict != "pass" else ""
        return for_terminal(f"{_capital(self.verdict)}{accepted}: {' '.join(self.reasons)}")


def check(
    run: str | Path,
    baseline: str | Path,
    margin: float = 0.05,
    alpha: float = 0.05,
    max_latency_ratio: float | None = None,
    *,
    undecided: Undecided = "fail",
    strict_renderer: bool = False,
) -> Gate:
    """The verdict on the run in that directory. Raises UsageError."""
    if undecided not in get_args(Undecided):
        raise UsageError(f"undecided should be pass or fail, got {undecided!r}.")
    info, episodes, against = read_info(run), load(run), read_baseline(baseline)
    gate = check_rows(
        with_paths(episodes, run),
        against,
        margin,
        alpha,
        objections=protocol_objections(
            against.protocol, info.protocol, against.protocol_hash, info.protocol_hash, ("the baseline", "the run")
        ),
        timing=judge_latency(latency_p50(run, info, episodes), against.latency_p50_ms, max_latency_ratio),
        strict_renderer=strict_renderer,
    )
    notes = (*gate.notes, *_other_machine(info, against), *stopping_notes([info]))
    unfinished = incomplete_note(run, status_of(info, episodes), "The run")
    reasons = (*([f"{unfinished} {_NOT_PLAYED}"] if unfinished else []), *gate.reasons)
    named_gate = replace(gate, run=str(run), baseline=str(baseline), notes=notes, undecided=undecided)
    return replace(named_gate, reasons=reasons, incomplete=unfinished)


def check_rows(
    episodes: pd.DataFrame,
    baseline: Baseline,
    margin: float = 0.05,
    alpha: float = 0.05,
    *,
    objections: Sequence[str] = (),
    timing: LatencyGate | None = None,
    strict_renderer: bool = False,
) -> Gate:
    """The verdict on a table of episodes (columns as in episodes.jsonl) by the rule above."""
    _check_limits(margin, alpha)
    timing = timing or judge_latency(None, None, None)
    rows, pairing = pair_rows(episodes, against := frame(baseline))
    pixels = pixels_note(pairing, {"the run": episodes, "the baseline": against})
    strict = refused_pixels(pairing, pixels) if strict_renderer else []
    objections = (*objections, *_scene_objections(pairing.mismatched), *strict)
    if not objections and not pairing.paired + pairing.unjudged:
        objections = ("No episode of the baseline is in the run: run it with the same suite, tasks and seed.",)
    named_gate = Gate("not comparable", objections, "", "", baseline.suite, margin, alpha, None, (), (), timing)
    if objections:
        return named_gate
    missing = _without(against, rows)
    overall = _foreseen(_judged(_gate_row("overall", rows, missing, alpha), margin, alpha), rows, margin, alpha)
    tasks = _task_rows(rows, missing, list(dict.fromkeys(against["task"])), margin, alpha)
    verdict = _verdict(overall, tasks, timing)
    extra = (
        [f"{counted(pairing.only_a, 'episode')} only in the run, not in the baseline: left out."]
        if pairing.only_a
        else []
    )
    return replace(
        named_gate,
        verdict=verdict,
        reasons=(*_reasons(overall, tasks, timing, margin, alpha), *([pixels] if pixels else [])),
        overall=overall,
        tasks=tasks,
        discordant=discordant_episodes(rows),
        notes=tuple(extra),
        pixels=pixels,
    )


def judge_latency(run_ms: float | None, baseline_ms: float | None, limit: float | None) -> LatencyGate:
    """Regression when the ratio is above the limit, undecided when there is a limit but no ratio."""
    if limit is not None and not limit > 0:
        raise UsageError(f"--max-latency-ratio should be more than 0, got {limit}.")
    ratio = run_ms / baseline_ms if run_ms is not None and baseline_ms else None
    verdict: Verdict = "pass"
    if limit is not None:
        verdict = "undecided" if ratio is None else "regression" if ratio > limit else "pass"
    return LatencyGate(run_ms, baseline_ms, ratio, limit, verdict)


def exit_code(gate: Gate) -> int:
    """0 pass, 1 regression, 2 undecided unless that counts as passed, 3 not comparable."""
    return EXIT_DONE if gate.passed else EXIT_CODES[gate.verdict]


# --- output ---


def to_json(gate: Gate) -> dict[str, object]:
    """The gate as plain JSON values, null for what is not known."""
    return asdict(gate)


def render_text(gate: Gate) -> str:
    """The gate for a terminal of 100 columns, the verdict last."""
    sections = [_table(gate), listed(gate), _latency_lines(gate), list(gate.notes), [gate.message]]
    return terminal_text(sections)


def render_markdown(gate: Gate) -> str:
    """Verdict, table and discordant episodes for a step summary or a pull request, with full names."""
    parts = [f"### vla-bench check: {gate.verdict}", for_markdown_line(" ".join(gate.reasons))]
    if gate.overall:
        parts.append(
            markdown_table([_header(gate), *((row.task, *_cells(row)) for row in (*gate.tasks, gate.overall))])
        )
    parts.append(markdown_list(listed(gate)[1:]))
    parts += ["\n".join(map(for_markdown_line, lines)) for lines in (_latency_lines(gate), gate.notes)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _header(gate: Gate) -> tuple[str, ...]:
    return marked(HEADER, gate.pixels)


def _table(gate: Gate) -> list[str]:
    if gate.overall is None:
        return []
    cells = [HEADER[1:], *map(_cells, (*gate.tasks, gate.overall))]
    room = WIDTH - sum(3 + max(map(len, column)) for column in zip(*cells, strict=True))
    names = [_header(gate)[0], *shorten([row.task for row in gate.tasks], max(room, 12)), "overall"]
    header, rule, *lines, total = aligned([[name, *row] for name, row in zip(names, cells, strict=True)])
    return [header, rule, *lines, rule, total]


def _cells(row: GateRow) -> tuple[str, ...]:
    change = "-" if row.difference is None else f"{100 * row.difference:+.1f} pp"
    solved = (f"{row.baseline_successes}/{row.pairs}", f"{row.run_successes}/{row.pairs}")
    lengths = tuple("-" if length is None else f"{length:.2f}" for length in (row.baseline_length, row.run_length))
    return (
        *(lengths if row.links else solved),
        change,
        f"{100 * row.low:+.1f} – {100 * row.high:+.1f}",
        f"{row.lost}:{row.gained}",
        probability(row.p_holm),
        row.verdict,
    )


def listed(gate: Gate) -> list[str]:
    """A heading and one line per episode that ended differently, lost ones first."""
    ordered = sorted(gate.discordant, key=lambda episode: episode.better == "A")
    lines = [_line(episode) for episode in ordered[:MANY]]
    if (hidden := len(ordered) - len(lines)) > 0:
        lines.append(f"and {hidden} more, which --json lists")
    return [f"{len(ordered)} ended differently than in the baseline:", *lines] if lines else []


def _line(episode: Discordant) -> str:
    name = episode_name(episode.task, episode.trial, episode.seed, episode.perturbation)
    return f"{'gained' if episode.better == 'A' else 'lost'}: {name}{f', {episode.video_a}' if episode.video_a else ''}"


def _latency_lines(gate: Gate) -> list[str]:
    return [latency_sentence(gate.latency)] if gate.latency.ratio is not None else []


def latency_sentence(timing: LatencyGate) -> str:
    limit = "" if timing.limit is None else f" (accepted: {timing.limit:g})"
    if timing.ratio is None:
        lacking = "the run" if timing.run_ms is None else "the baseline"
        return f"The latency cannot be checked{limit}: no inference of {lacking} was timed."
    return (
        f"The median latency per inference is {timing.run_ms:.3g} ms, {timing.ratio:.2f} times the baseline's "
        f"{timing.baseline_ms:.3g} ms{limit}."
    )


def task_story(gate: Gate, row: GateRow) -> list[str]:
    """What happened in a task: the counts, then the episodes that ended differently."""
    found = [_line(episode) for episode in gate.discordant if episode.task == row.task]
    return [_row_sentence(row, "Of this task the run"), *found]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# --- the rule ---


def _gate_row(task: str, rows: pd.DataFrame, missing: pd.DataFrame, alpha: float) -> GateRow:
    """Everything but the verdict. In `rows`, A is the run and B the baseline."""
    links = max(map(len, [*rows["subgoals_b"], *missing["subgoals"]]), default=0)
    if links:  # where a row does not name all
        links = max(links, *rows["subgoals_done_a"], *rows["subgoals_done_b"], *missing["subgoals_done"])
    change = _change_of_lengths(rows, missing, links, alpha) if links else _change_of_rates(rows, missing, alpha)
    means = [float(rows[f"subgoals_done_{side}"].mean()) if links and len(rows) else None for side in "ba"]
    return GateRow(
        task,
        len(rows) + len(missing),
        len(missing),
        int(rows["success_b"].sum()),
        int(rows["success_a"].sum()),
        change.gained,
        change.lost,
        identical(rows),
        change.difference,
        change.low,
        change.high,
        p_worse=change.p_worse,
        p_holm=change.p_worse,
        verdict="undecided",
        seconds=float(rows["wall_s"].sum()),
        links=links,
        baseline_length=means[0],
        run_length=means[1],
    )


class _Change(NamedTuple):
    """As the fields of the same names in GateRow."""

    gained: int
    lost: int
    difference: float | None
    low: float
    high: float
    p_worse: float


def _change_of_rates(rows: pd.DataFrame, missing: pd.DataFrame, alpha: float) -> _Change:
    n, run_won, baseline_won = len(rows), int(rows["success_a"].sum()), int(rows["success_b"].sum())
    both = int((rows["success_a"] & rows["success_b"]).sum())
    gained, lost = run_won - both, baseline_won - both
    at_best = gained + int((~missing["success"].astype(bool)).sum())
    interval = paired_difference(gained, lost, n, 1 - 2 * alpha)
    difference = (run_won - baseline_won) / n if n else None
    return _Change(gained, lost, difference, *interval, p_worse=mcnemar(at_best, lost, "less"))


def _change_of_lengths(rows: pd.DataFrame, missing: pd.DataFrame, links: int, alpha: float) -> _Change:
    """In shares of a chain; the run at its best does all of every chain without a verdict."""
    apart = (rows["subgoals_done_a"] - rows["subgoals_done_b"]).to_numpy(np.int64)
    at_best = np.concatenate([apart, links - missing["subgoals_done"].to_numpy(np.int64)])
    low, high = mean_interval(apart, (-links, links), 1 - 2 * alpha)
    return _Change(
        int((apart > 0).sum()),
        int((apart < 0).sum()),
        float(apart.mean()) / links if len(apart) else None,
        low / links,
        high / links,
        p_worse=exact_sign_flip(at_best, "less"),
    )


def _judged(row: GateRow, margin: float, alpha: float) -> GateRow:
    """The row with its verdict: points 2 and 3 of the rule."""
    complete = row.missing == 0 and row.episodes > 0
    if complete and (row.unchanged == row.pairs or row.low > -margin):
        return replace(row, verdict="pass")
    return replace(row, verdict="regression" if row.p_holm <= alpha else "undecided")


def _foreseen(row: GateRow, rows: pd.DataFrame, margin: float, alpha: float) -> GateRow:
    """The row with what its number of pairs can show, and about how many more decide if they end like these."""
    if not row.pairs:
        return row
    won = "subgoals_done" if row.links else "success"
    apart = np.sort(rows[f"{won}_a"].to_numpy(np.int64) - rows[f"{won}_b"].to_numpy(np.int64))
    undecided = row.verdict == "undecided" and not row.missing
    return replace(
        row,
        least_margin=-_tails(np.zeros_like(apart), row.links, alpha).low,
        more_needed=_more_needed(apart, row.links, margin, alpha) if undecided else None,
    )


def _more_needed(apart: NDArray[np.int64], links: int, margin: float, alpha: float) -> int | None:
    """How many pairs more would pass or be a regression, if outcomes keep their shares; None for over MOST_MORE."""

    def decided(pairs: int) -> bool:
        found = _tails(apart[np.arange(pairs) * len(apart) // pairs], links, alpha)
        return found.low > -margin or found.p_worse <= alpha

    short, enough = len(apart), 2 * len(apart)
    while not decided(enough):
        short, enough = enough, 2 * enough
        if short - len(apart) >= MOST_MORE:
            return None
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if decided(middle) else (middle, enough)
    more = enough - len(apart)
    return more if more <= MOST_MORE else None


class _Tails(NamedTuple):
    low: float
    p_worse: float


def _tails(apart: NDArray[np.int64], links: int, alpha: float) -> _Tails:
    """As the fields of the same names in GateRow, from the pairs' differences, all of which have a verdict."""
    if links:
        low = mean_interval(apart, (-links, links), 1 - 2 * alpha).low / links
        return _Tails(low, exact_sign_flip(apart, "less"))
    gained, lost = int((apart > 0).sum()), int((apart < 0).sum())
    return _Tails(paired_difference(gained, lost, len(apart), 1 - 2 * alpha).low, mcnemar(gained, lost, "less"))


def _task_rows(
    rows: pd.DataFrame, missing: pd.DataFrame, tasks: Sequence[str], margin: float, alpha: float
) -> tuple[GateRow, ...]:
    found = [_gate_row(task, rows[rows["task"] == task], missing[missing["task"] == task], alpha) for task in tasks]
    adjusted = [float(p) for p in holm([row.p_worse for row in found])]
    return tuple(_judged(replace(row, p_holm=p), margin, alpha) for row, p in zip(found, adjusted, strict=True))


def _verdict(overall: GateRow, tasks: Sequence[GateRow], timing: LatencyGate) -> Verdict:
    """Point 4 of the rule; a latency that cannot be checked leaves a pass undecided."""
    if "regression" in {row.verdict for row in (overall, *tasks)} | {timing.verdict}:
        return "regression"
    return "undecided" if timing.verdict == "undecided" else overall.verdict


def _reasons(
    overall: GateRow, tasks: Sequence[GateRow], timing: LatencyGate, margin: float, alpha: float
) -> tuple[str, ...]:
    regressed = [row.task for row in tasks if row.verdict == "regression"]
    return (
        _overall_sentence(overall, margin, alpha),
        *([f"Worse in {named(regressed)}."] if regressed else []),
        *([latency_sentence(timing)] if timing.verdict != "pass" else []),
    )


def _overall_sentence(row: GateRow, margin: float, alpha: float) -> str:
    if row.missing == 0 and row.unchanged == row.pairs:
        return f"Unchanged: {_all_of(row.pairs)} ended in the same state as in the baseline, bit for bit."
    counts = _row_sentence(row, "The run")
    if row.verdict == "pass":
        known = ", a loss that is certain but within the margin" if row.p_holm <= alpha else ""
        return f"{counts} The loss is below {100 * margin:g} points at {100 * (1 - alpha):g} % confidence{known}."
    if row.verdict == "regression":
        test = "the exact one-sided sign-flip p" if row.links else "McNemar's exact one-sided p"
        return f"{counts} It is worse: {test} is {probability(row.p_worse)}, at most {alpha:g}."
    if row.missing:
        return f"{counts} A pass takes all of them: run the missing ones."
    return (
        f"{counts} At {100 * (1 - alpha):g} % confidence the loss is below {ceil(-1000 * row.low) / 10:g} points, more "
        f"than the {100 * margin:g} accepted. {_outlook(row)}"
    )


def _outlook(row: GateRow) -> str:
    """What would decide."""
    best = ceil(1000 * (row.least_margin or 0.0)) / 10
    able = f"{counted(row.pairs, 'episode')} can exclude a loss of {best:g} points at best"
    if row.more_needed is None:
        return f"{_capital(able)}; at these rates not even {MOST_MORE} more would decide."
    return (
        f"{_capital(able)}; if they go on like this, about {row.more_needed} more, in the baseline too, would decide."
    )


def _row_sentence(row: GateRow, who: str) -> str:
    missing = f", and has no verdict on {row.missing}" if row.missing else ""
    if row.links:
        return (
            f"{who} did less in {row.lost} and more in {row.gained} of {row.episodes} chains of the baseline{missing}."
        )
    return f"{who} lost {row.lost} and gained {row.gained} of {row.episodes} episodes of the baseline{missing}."


def _all_of(count: int) -> str:
    return "the only episode" if count == 1 else f"all {count} episodes"


def _scene_objections(mismatched: Sequence[str]) -> list[str]:
    if not mismatched:
        return []
    return [f"Not on the scene of the baseline: {named(mismatched)}."]


def _without(baseline: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The baseline's episodes that are not among the pairs."""
    marked = baseline.merge(rows[list(KEY)], on=list(KEY), how="left", indicator=True)
    return marked[marked["_merge"] == "left_only"]


def _check_limits(margin: float, alpha: float) -> None:
    check_alpha(alpha)
    if not alpha < 0.5:
        raise UsageError(f"--alpha should be below 0.5, got {alpha}.")
    if not 0 <= margin < 1:
        raise UsageError(f"--margin should be at least 0 and below 1, got {margin}.")


def _other_machine(info: RunInfo, baseline: Baseline) -> list[str]:
    if machine(info) == baseline.machine:
        return []
    return [f"The latencies are of different machines: the run {machine(info)}, the baseline {baseline.machine}."]
