"""Two runs on the same episodes: which policy is better, and how sure is that.

Episodes are pairs when suite, task, trial, seed and perturbation are equal and both have a verdict on the same scene,
which the fingerprints prove. Rows in, a Comparison out; only `compare` reads files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from vla_bench.chains import LengthComparison, Lengths, are_chains, compare_pairs, links_of, span_text
from vla_bench.compare.pairing import (
    Discordant,
    Pairing,
    counted,
    discordant_episodes,
    episode_name,
    machine,
    named,
    pair_rows,
    pairing_sentence,
    pixels_note,
    policy_title,
    protocol_objections,
    refused_pixels,
    with_paths,
)
from vla_bench.errors import EXIT_DONE, EXIT_NOT_COMPARABLE, EXIT_UNDECIDED, UsageError
from vla_bench.grounding.table import GroundingDifference, grounding_differences
from vla_bench.stats.anytime import paired_e_value
from vla_bench.stats.chains import exact_sign_flip
from vla_bench.stats.many import holm
from vla_bench.stats.paired import mcnemar, mcnemar_midp, paired_difference
from vla_bench.stats.planning import pairs_needed
from vla_bench.stats.rates import Interval
from vla_bench.store.runs import KEY, RunInfo, read_inferences, read_info
from vla_bench.tables import incomplete_note, load, marked, status_of, stopping_notes
from vla_bench.text import (
    aligned,
    for_markdown,
    for_markdown_line,
    markdown_list,
    markdown_table,
    shorten,
    terminal_text,
)

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["A better", "B better", "undecided", "not comparable"]
EXIT_CODES: Mapping[Verdict, int] = {
    "A better": EXIT_DONE,
    "B better": EXIT_DONE,
    "undecided": EXIT_UNDECIDED,
    "not comparable": EXIT_NOT_COMPARABLE,
}
DRAWS = 1000  # of the bootstrap: its 95 % ends then vary by a few per cent of the interval's width
MANY = 50  # lines that a list in a text has
POWER = 0.8
LEAST_DIFFERENCE = 0.01  # planning for less takes seconds to compute, and tens of thousands of episodes to play
WIDTH = 100
HEADER = ("task", "A", "B", "A - B", "interval", "A:B only", "p (Holm)", "better")


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    path: str = ""
    policy: str = ""
    """Name, arguments and checkpoint."""
    protocol_hash: str = ""


@dataclass(frozen=True)
class PairedRow:
    """One task, or all of them: A against B on the same episodes."""

    task: str
    pairs: int
    successes_a: int
    successes_b: int
    a_only: int
    """Pairs in which A succeeded and B failed."""
    b_only: int
    difference: float | None
    """Success rate of A minus that of B; None without pairs."""
    low: float
    """Ends of the interval of the difference (Tango's score interval) at confidence 1 - alpha."""
    high: float
    p: float
    """Exact McNemar test, two-sided."""
    mid_p: float
    p_holm: float
    """`p`, adjusted for the number of tasks; overall it is `p`."""
    e_value: float
    """Evidence that stays valid however often one looks; decides at 1 / alpha."""
    verdict: Verdict


@dataclass(frozen=True)
class LatencyComparison:
    """Wall time per policy call over the paired episodes, cold calls left out."""

    n_a: int
    """Calls."""
    n_b: int
    median_a_ms: float
    median_b_ms: float
    ratio: float
    """Median of A / median of B."""
    low: float | None
    """Ends of its bootstrap interval at confidence 1 - alpha, whole episodes drawn again; None below two episodes."""
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """All that `vla-bench compare` says."""

    a: Side
    b: Side
    verdict: Verdict
    reason: str
    alpha: float
    objections: tuple[str, ...]
    """Why the runs are not comparable; with `forced` they were compared all the same."""
    forced: bool
    pairing: Pairing
    overall: PairedRow | None
    """None when there is nothing to compare, or it must not be."""
    tasks: tuple[PairedRow, ...]
    """Of chains: those with at least 1, 2, ... instructions done, instead of tasks."""
    discordant: tuple[Discordant, ...]
    latency: LatencyComparison | None
    notes: tuple[str, ...]
    pixels: str = ""
    """A sentence, after the mark that the table's header has, when not all pixels are known to be the same."""
    lengths: LengthComparison | None = None
    """Instructions done in a row, which decide when the episodes are chains; None for all others."""
    grounding: tuple[GroundingDifference, ...] = ()
    """Where both told their attention."""


def compare(
    run_a: str | Path, run_b: str | Path, alpha: float = 0.05, force: bool = False, strict_renderer: bool = False
) -> Comparison:
    """The comparison of the runs in those directories. Raises UsageError."""
    info_a, info_b = read_info(run_a), read_info(run_b)
    episodes_a, episodes_b = load(run_a), load(run_b)
    comparison = compare_rows(
        with_paths(episodes_a, run_a),
        with_paths(episodes_b, run_b),
        *(read_inferences(run) for run in (run_a, run_b)),
        sides=(_side(info_a, run_a), _side(info_b, run_b)),
        alpha=alpha,
        objections=protocol_objections(info_a.protocol, info_b.protocol, info_a.protocol_hash, info_b.protocol_hash),
        force=force,
        strict_renderer=strict_renderer,
        latency_notes=_circumstances(info_a, info_b),
    )
    unfinished = (
        incomplete_note(run_a, status_of(info_a, episodes_a), "A"),
        incomplete_note(run_b, status_of(info_b, episodes_b), "B"),
    )
    notes = (*comparison.notes, *filter(None, unfinished), *stopping_notes([info_a, info_b]))
    return replace(comparison, notes=notes)


def compare_rows(
    a: pd.DataFrame,
    b: pd.DataFrame,
    calls_a: pd.DataFrame | None = None,
    calls_b: pd.DataFrame | None = None,
    *,
    sides: tuple[Side, Side] = (Side(), Side()),
    alpha: float = 0.05,
    objections: Sequence[str] = (),
    force: bool = False,
    strict_renderer: bool = False,
    latency_notes: Sequence[str] = (),
) -> Comparison:
    """The comparison of two tables of episodes (columns as in episodes.jsonl) and, if given, of their inferences."""
    check_alpha(alpha)
    rows, pairing = pair_rows(a, b)
    pixels = pixels_note(pairing, {"A": a, "B": b})
    strict = refused_pixels(pairing, pixels) if strict_renderer else []
    objections = (*objections, *_pairing_objections(pairing, a, b), *strict)
    refused = bool(objections) and not (force and len(rows))
    overall = None if refused or rows.empty else _paired_row("overall", rows, alpha)
    links = max(links_of(a), links_of(b)) if overall is not None and are_chains(a) else 0
    chains = compare_pairs(*_lengths(rows), links, 1 - alpha) if links else None
    tasks = () if overall is None else _at_least_rows(rows, chains.links, alpha) if chains else _task_rows(rows, alpha)
    latency, grounding = None, tuple[GroundingDifference, ...]()
    if overall is not None and calls_a is not None and calls_b is not None:
        latency = compare_latency(calls_a, calls_b, rows, alpha)
        grounding = grounding_differences(calls_a, calls_b, rows, alpha)
    return Comparison(
        *sides,
        verdict="not comparable" if refused else _verdict(overall, chains, alpha),
        reason=" ".join(objections) if refused else _reason(overall, chains, pairing, alpha),
        alpha=alpha,
        objections=objections,
        forced=bool(objections) and not refused,
        pairing=pairing,
        overall=overall,
        tasks=tasks,
        discordant=() if overall is None else discordant_episodes(rows),
        latency=latency,
        notes=(*(latency_notes if latency else ()), *_cautions(overall, chains, pairing, alpha)),
        pixels=pixels,
        lengths=chains,
        grounding=grounding,
    )


def decide(a_only: int, b_only: int, p: float, alpha: float) -> Verdict:
    """Who is better according to that p-value."""
    if p > alpha:
        return "undecided"
    return "A better" if a_only > b_only else "B better"


def check_alpha(alpha: float) -> None:
    """Raises UsageError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise UsageError(f"--alpha should be above 0 and below 1, got {alpha}.")


def compare_latency(
    calls_a: pd.DataFrame, calls_b: pd.DataFrame, pairs: pd.DataFrame, alpha: float = 0.05
) -> LatencyComparison | None:
    """The latency of A over that of B in these pairs; None when either was not timed."""
    a, b = (_warm(calls, pairs) for calls in (calls_a, calls_b))
    if not len(a) or not len(b):
        return None
    median_a, median_b = (float(np.median(calls["latency_ms"])) for calls in (a, b))
    if median_b <= 0:
        return None
    low, high = _ratio_interval(a, b, alpha) or (None, None)
    return LatencyComparison(len(a), len(b), median_a, median_b, median_a / median_b, low, high)


# --- output ---


def exit_code(comparison: Comparison) -> int:
    """0 when one is better, 2 undecided, 3 not comparable."""
    return EXIT_CODES[comparison.verdict]


def to_json(comparison: Comparison) -> dict[str, object]:
    """The comparison as plain JSON values; rates and differences as fractions, null for what is not known."""
    return asdict(comparison)


def render_text(comparison: Comparison) -> str:
    """The comparison for a terminal of 100 columns."""
    sections = [
        [f"{name}  {_title(side)}" for name, side in (("A", comparison.a), ("B", comparison.b)) if side.path],
        [pairing_sentence(comparison.pairing)],
        _forced_lines(comparison),
        _table(comparison),
        _pixels_lines(comparison),
        _discordant_lines(comparison),
        aligned(grounding) if (grounding := _grounding_rows(comparison)) else [],
        _latency_lines(comparison.latency, comparison.alpha),
        list(comparison.notes),
        [f"{_headline(comparison)} {comparison.reason}"],
    ]
    return terminal_text(sections)


def render_markdown(comparison: Comparison) -> str:
    """Verdict, table and discordant episodes for a README or a pull request, with full names."""
    parts = [
        [f"**{_headline(comparison)}** {for_markdown(comparison.reason)}"],
        _paragraphs([pairing_sentence(comparison.pairing)]),
        _paragraphs(_forced_lines(comparison)),
    ]
    if comparison.overall:
        shown = comparison.tasks if comparison.lengths else (*comparison.tasks, comparison.overall)
        parts.append([markdown_table([_header(comparison), *((row.task, *_cells(row)) for row in shown)])])
        parts.append(_paragraphs(_length_lines(comparison)))
    grounding = _grounding_rows(comparison)
    parts += [
        _paragraphs(_pixels_lines(comparison)),
        [markdown_list(_discordant_lines(comparison)[1:])],
        [markdown_table(grounding)] if grounding else [],
        _paragraphs(_latency_lines(comparison.latency, comparison.alpha)),
        _paragraphs(comparison.notes),
    ]
    return "\n\n".join(filter(None, map("\n".join, parts)))


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [for_markdown_line(line) for line in lines]


def level(alpha: float) -> str:
    """The confidence that goes with alpha, as in `95 % interval`."""
    return f"{100 * (1 - alpha):g} %"


def probability(p: float) -> str:
    """Two significant digits; never 0."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _forced_lines(comparison: Comparison) -> list[str]:
    if not comparison.forced:
        return []
    return [f"NOT COMPARABLE, compared only because --force said so. {' '.join(comparison.objections)}"]


def _headline(comparison: Comparison) -> str:
    forced = " (forced)" if comparison.forced else ""
    return f"{comparison.verdict[0].upper()}{comparison.verdict[1:]}{forced}."


def _title(side: Side) -> str:
    return f"{side.policy}, {side.path}, protocol {side.protocol_hash}"


def _header(comparison: Comparison) -> tuple[str, ...]:
    return marked(HEADER, comparison.pixels)


def _pixels_lines(comparison: Comparison) -> list[str]:
    return [comparison.pixels] if comparison.pixels and comparison.overall else []


def _table(comparison: Comparison) -> list[str]:
    if comparison.overall is None:
        return []
    if comparison.lengths:
        return [
            *aligned([_header(comparison), *([row.task, *_cells(row)] for row in comparison.tasks)]),
            *_length_lines(comparison),
        ]
    rows = (*comparison.tasks, comparison.overall)
    cells = [HEADER[1:], *map(_cells, rows)]
    room = WIDTH - sum(3 + max(map(len, column)) for column in zip(*cells, strict=True))
    names = [_header(comparison)[0], *shorten([row.task for row in comparison.tasks], max(room, 12)), "overall"]
    header, rule, *lines, total = aligned([[name, *row] for name, row in zip(names, cells, strict=True)])
    row = comparison.overall
    return [
        *(header, rule, *lines, rule, total),
        f"{level(comparison.alpha)} intervals; overall McNemar's exact p {probability(row.p)}, mid-p "
        f"{probability(row.mid_p)}; e-value {row.e_value:.3g}, {1 / comparison.alpha:.3g} decides at any time",
    ]


def _length_lines(comparison: Comparison) -> list[str]:
    if (found := comparison.lengths) is None:
        return []
    return [
        f"average length of {found.links}: A {found.mean_a:.2f}, B {found.mean_b:.2f}; A - B {found.difference:+.2f}, "
        f"{level(comparison.alpha)} interval {span_text(found.low, found.high)}"
    ]


def _cells(row: PairedRow) -> tuple[str, ...]:
    difference = "-" if row.difference is None else f"{100 * row.difference:+.1f} pp"
    return (
        f"{row.successes_a}/{row.pairs}",
        f"{row.successes_b}/{row.pairs}",
        difference,
        f"{100 * row.low:+.1f} – {100 * row.high:+.1f}",
        f"{row.a_only}:{row.b_only}",
        probability(row.p_holm),
        {"A better": "A", "B better": "B"}.get(row.verdict, "-"),
    )


def _discordant_lines(comparison: Comparison) -> list[str]:
    """A heading and one line per episode that ended differently."""
    shown = comparison.discordant[:MANY]
    lines = [f"{_one(episode)}{_films(episode)}" for episode in shown]
    if (hidden := len(comparison.discordant) - len(shown)) > 0:
        lines.append(f"and {hidden} more, which --json lists")
    return [f"{counted(len(comparison.discordant), 'episode')} ended differently:", *lines] if lines else []


def _one(episode: Discordant) -> str:
    name = episode_name(episode.task, episode.trial, episode.seed, episode.perturbation)
    return f"{name}: only {episode.better} succeeded"


def _films(episode: Discordant) -> str:
    films = {"A": episode.video_a, "B": episode.video_b}
    return "".join(f", {name} {film}" for name, film in films.items() if film)


def _latency_lines(latency: LatencyComparison | None, alpha: float) -> list[str]:
    if latency is None:
        return []
    interval = "" if latency.low is None else f", {level(alpha)} interval {latency.low:.2f} – {latency.high:.2f}"
    return [
        f"latency per inference, median: A {latency.median_a_ms:.3g} ms ({latency.n_a} calls), "
        f"B {latency.median_b_ms:.3g} ms ({latency.n_b} calls); A / B {latency.ratio:.2f}{interval}"
    ]


def _grounding_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Header and rows; empty where there is nothing to say."""
    header = ("attention within what is manipulated", "A", "B", "A - B", "interval", "pairs")
    rows = [
        (
            f"{'share' if one.measure == 'share' else 'hits'}, {one.task}",
            f"{100 * one.mean_a:.1f} %",
            f"{100 * one.mean_b:.1f} %",
            f"{100 * one.difference:+.1f} pp",
            "-" if one.low is None or one.high is None else f"{100 * one.low:+.1f} – {100 * one.high:+.1f}",
            str(one.pairs),
        )
        for one in comparison.grounding
    ]
    return [header, *rows] if rows else []


# --- parts ---


def _paired_row(task: str, rows: pd.DataFrame, alpha: float) -> PairedRow:
    n, won_a, won_b = len(rows), int(rows["success_a"].sum()), int(rows["success_b"].sum())
    both = int((rows["success_a"] & rows["success_b"]).sum())
    a_only, b_only = won_a - both, won_b - both
    p = mcnemar(a_only, b_only)
    return PairedRow(
        task,
        n,
        won_a,
        won_b,
        a_only,
        b_only,
        (won_a - won_b) / n if n else None,
        *paired_difference(a_only, b_only, n, 1 - alpha),
        p=p,
        mid_p=mcnemar_midp(a_only, b_only),
        p_holm=p,
        e_value=min(paired_e_value(a_only, b_only), sys.float_info.max),
        verdict=decide(a_only, b_only, p, alpha),
    )


def _task_rows(pairs: pd.DataFrame, alpha: float) -> tuple[PairedRow, ...]:
    return _holm_rows([_paired_row(str(task), rows, alpha) for task, rows in pairs.groupby("task", sort=False)], alpha)


def _at_least_rows(pairs: pd.DataFrame, links: int, alpha: float) -> tuple[PairedRow, ...]:
    a, b = _lengths(pairs)
    found = {k: pairs.assign(success_a=a >= k, success_b=b >= k) for k in range(1, links + 1)}
    return _holm_rows([_paired_row(f"at least {k}", rows, alpha) for k, rows in found.items()], alpha)


def _lengths(pairs: pd.DataFrame) -> tuple[Lengths, Lengths]:
    return pairs["subgoals_done_a"].to_numpy(np.int64), pairs["subgoals_done_b"].to_numpy(np.int64)


def _holm_rows(rows: Sequence[PairedRow], alpha: float) -> tuple[PairedRow, ...]:
    adjusted = [float(p) for p in holm([row.p for row in rows])]
    return tuple(
        replace(row, p_holm=p, verdict=decide(row.a_only, row.b_only, p, alpha))
        for row, p in zip(rows, adjusted, strict=True)
    )


def _verdict(overall: PairedRow | None, chains: LengthComparison | None, alpha: float) -> Verdict:
    if chains:
        ahead = chains.difference > 0
        return decide(int(ahead), int(not ahead), chains.p, alpha)
    return overall.verdict if overall else "undecided"


def _reason(overall: PairedRow | None, chains: LengthComparison | None, pairing: Pairing, alpha: float) -> str:
    if overall is None:
        return "No episode has a verdict in both runs."
    if chains and chains.longer_a + chains.longer_b:
        compared = "above" if chains.p > alpha else "at most"
        return (
            f"A got further in {chains.longer_a} of {chains.pairs} paired chains, B in {chains.longer_b}: the exact "
            f"sign-flip test of the lengths gives p {probability(chains.p)}, {compared} {alpha:g}."
        )
    if not overall.a_only + overall.b_only:
        same = " and in the same state, bit for bit" if pairing.identical == overall.pairs else ""
        return f"No pair tells them apart: {_all_of(overall.pairs)} ended alike{same}."
    compared = "above" if overall.verdict == "undecided" else "at most"
    return (
        f"Only A succeeded in {overall.a_only} of {overall.pairs} paired episodes, only B in {overall.b_only}: "
        f"McNemar's exact p is {probability(overall.p)}, {compared} {alpha:g}."
    )


def _all_of(count: int) -> str:
    return "the only one" if count == 1 else f"all {count}"


def _pairing_objections(pairing: Pairing, a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    objections = []
    if pairing.mismatched:
        count = len(pairing.mismatched)
        objections.append(
            f"{counted(count, 'episode')} did not start from the same scene in both: {named(pairing.mismatched)}."
        )
    if not pairing.paired + pairing.unjudged + len(pairing.mismatched):
        objections.append(f"No episode is in both{_unlike(a, b)}: run both with the same suite, tasks and seed.")
    return objections


def _unlike(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """The first part of an episode's identity that no episode of A shares with one of B."""
    for name in ("suite", "seed", "perturbation", "task", "trial"):
        in_a, in_b = ({str(value) for value in frame[name]} for frame in (a, b))
        if in_a and in_b and not in_a & in_b:
            return f" ({name} {named(sorted(in_a))} in A, {named(sorted(in_b))} in B)"
    return ""


def _cautions(overall: PairedRow | None, chains: LengthComparison | None, pairing: Pairing, alpha: float) -> list[str]:
    """What a reader of the verdict should know besides."""
    if overall is None:
        return []
    if chains:
        return _fragile_lengths(chains, pairing.unjudged, alpha)
    return [*_fragility(overall, pairing.unjudged, alpha), *_outlook(overall, alpha)]


def _fragility(overall: PairedRow, unjudged: int, alpha: float) -> list[str]:
    """Whether the episodes without a verdict could have turned a decision: all of them taken against it."""
    if not unjudged or overall.verdict == "undecided":
        return []
    more, fewer = sorted((overall.a_only, overall.b_only), reverse=True)
    holds = mcnemar(more, fewer + unjudged) <= alpha and more > fewer + unjudged
    return [f"The verdict {'holds' if holds else 'may not hold'} if all {unjudged} without a verdict went against it."]


def _fragile_lengths(chains: LengthComparison, unjudged: int, alpha: float) -> list[str]:
    """The same of chains: those without a verdict done wholly by the one that looks worse, and not by the other."""
    if not unjudged or chains.p > alpha:
        return []
    against = -chains.links if chains.difference > 0 else chains.links
    apart = [*chains.apart, *[against] * unjudged]
    holds = exact_sign_flip(apart) <= alpha and sum(apart) * chains.difference > 0
    return [f"The verdict {'holds' if holds else 'may not hold'} if all {unjudged} without a verdict went against it."]


def _outlook(overall: PairedRow, alpha: float) -> list[str]:
    """How many pairs would decide, if the difference is what it looks like."""
    if overall.verdict != "undecided" or abs(overall.difference or 0) < LEAST_DIFFERENCE:
        return []
    needed = pairs_needed(overall.a_only / overall.pairs, overall.b_only / overall.pairs, POWER, alpha)
    if needed <= overall.pairs:
        return []
    return [f"If the difference is as large as it looks, about {needed} paired episodes show it ({POWER:.0%} power)."]


def _circumstances(a: RunInfo, b: RunInfo) -> list[str]:
    """What makes latencies of the two runs differ without the policies."""
    facts = {"machine": (machine(a), machine(b))}
    facts |= {name: (str(a.plan.get(name)), str(b.plan.get(name))) for name in ("workers", "batch_size")}
    differing = {name: values for name, values in facts.items() if values[0] != values[1]}
    return [f"Latencies differ for another reason too, {name}: A {a}, B {b}." for name, (a, b) in differing.items()]


def _side(info: RunInfo, path: str | Path) -> Side:
    return Side(str(path), policy_title(info.identity), info.protocol_hash)


def _warm(calls: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """`latency_ms` of the calls that were not cold, and the number of the pair (`pair`) each belongs to."""
    numbered = pairs[list(KEY)].assign(pair=range(len(pairs)))
    of_pairs = calls.merge(numbered, on=list(KEY))
    return of_pairs.loc[~of_pairs["cold"].astype(bool), ["latency_ms", "pair"]]


def _ratio_interval(a: pd.DataFrame, b: pd.DataFrame, alpha: float) -> Interval | None:
    """Percentile bootstrap of the ratio of medians. Calls of one episode resemble each other: episodes are drawn."""
    episodes = np.union1d(a["pair"], b["pair"])
    if len(episodes) < 2:
        return None
    rng, even = np.random.default_rng(0), np.full(len(episodes), 1 / len(episodes))
    counts = rng.multinomial(len(episodes), even, DRAWS)
    medians_a, medians_b = (_medians(calls, episodes, counts) for calls in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = medians_a / medians_b
    ratios = ratios[np.isfinite(ratios)]
    return Interval(*map(float, np.quantile(ratios, [alpha / 2, 1 - alpha / 2]))) if len(ratios) else None


def _medians(calls: pd.DataFrame, episodes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(draws,) median latency when every call counts as often as its episode was drawn; NaN where none was."""
    ordered = calls.sort_values("latency_ms")
    values, owners = ordered["latency_ms"].to_numpy(), np.searchsorted(episodes, ordered["pair"].to_numpy())
    found = np.full(len(counts), np.nan)
    for draw, weights in enumerate(counts):
        reached = np.cumsum(weights[owners])
        if reached[-1]:
            found[draw] = values[np.searchsorted(reached, reached[-1] / 2)]
    return found
