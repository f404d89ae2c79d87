"""Sections -> standings with intervals and letters, as text, Markdown and JSON. Never one table for two protocols."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench import tables
from vla_bench.chains import (
    ChainSummary,
    are_chains,
    broken_sentence,
    chain_summary,
    compare_apart,
    compare_pairs,
    interval_of,
    length_text,
    links_of,
    span_text,
)
from vla_bench.compare.pairing import same_scene, scenes_in
from vla_bench.rendering.renderers import MARK
from vla_bench.report.published import CALVIN, LIBERO, NOTICE, CalvinRow, LiberoRow
from vla_bench.report.sections import Entrant, Found, Section, find_runs, sections_of, short_checkpoint
from vla_bench.stats.many import holm, letters
from vla_bench.stats.paired import mcnemar, paired_difference
from vla_bench.stats.rates import Interval, bounds, wilson
from vla_bench.stats.tasks import TaskMean, clustered_rate
from vla_bench.stats.unpaired import boschloo, fisher, newcombe_difference
from vla_bench.store.runs import KEY
from vla_bench.text import (
    for_markdown,
    for_terminal,
    markdown_code,
    markdown_list,
    markdown_table,
    terminal_text,
    widths,
)

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
BOSCHLOO_UP_TO = 200
"""Episodes of both together: Boschloo's test takes 0.05 s for 50 episodes an arm and 5 s for 500; beyond, Fisher's."""
HEADER = ("policy", "checkpoint", "successes", "rate", "95 % interval", "tasks like these", "letters", "p50 ms", "Hz")
LETTERS_EXPLAINED = (
    f"Letters: policies that share one are not told apart (paired McNemar test, of chains the sign-flip test of their "
    f"lengths, or an unpaired test where they share no episode; Holm over all pairs, alpha {ALPHA:g})."
)
_RATES_EXPLAINED = (
    "The 95 % interval (Wilson) speaks of these tasks; “tasks like these” (mean over tasks, Korn and Graubard) also of "
    "other tasks of the kind."
)
_CHAINS_EXPLAINED = (
    "Average length: instructions done in a row, with its 95 % interval (likelihood ratio). The columns 1, 2, ... are "
    "chains with at least so many done."
)


@dataclass(frozen=True)
class Standing:
    """One line of a leaderboard. Rates are fractions; None where nothing was judged or measured."""

    label: str
    policy: str
    checkpoint: str
    arguments: tuple[str, ...]
    successes: int
    episodes: int
    """Judged ones."""
    rate: float | None
    interval: Interval
    """Wilson's, of all episodes pooled: speaks of these tasks."""
    like_these: TaskMean | None
    """Mean over tasks, for tasks like these; None for fewer than two tasks."""
    tasks: int
    """Tasks with a verdict."""
    broken: int
    bounds: Interval
    """The rate if all broken episodes had failed, and if all had succeeded."""
    letters: str
    latency_p50_ms: float | None
    """Median wall time per policy call, cold calls left out."""
    attainable_hz: float | None
    date: str
    """Day on which its newest run began."""
    runs: tuple[str, ...]
    chains: ChainSummary | None = None
    """How many instructions were done in a row, which ranks chains; None for single instructions."""
    other_pixels: bool = False
    """Whether its pictures are not known to have the pixels that most episodes of the board have: then it is marked."""

    @property
    def name(self) -> str:
        """The label, and a mark where the board's first note speaks of it."""
        return f"{self.label} {MARK}" if self.other_pixels else self.label


@dataclass(frozen=True)
class Comparison:
    """Two entrants of a section, the one with the higher rate first."""

    a: str
    b: str
    pairs: int
    """Episodes that both have a verdict for, from the same scene."""
    unequal_scenes: int
    """Common judged episodes left out because their scenes are not shown to be equal."""
    a_only: int
    b_only: int
    test: str
    """McNemar, Boschloo or Fisher; of chains sign-flip or permutation."""
    p: float
    p_holm: float
    """p-value after Holm's correction for all comparisons of the section."""
    difference: float
    """Rate of A minus rate of B over what was tested; of chains the average length."""
    interval: Interval
    """Tango's when paired, Newcombe's when not; 95 %, not corrected for the number of comparisons."""
    links: int = 0
    """Instructions per chain; 0 when rates were compared."""


@dataclass(frozen=True)
class Board:
    """One section's table."""

    suite: str
    protocol_hash: str
    perturbation: str
    title: str
    standings: tuple[Standing, ...]
    """Best first."""
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    renderer: str = ""
    """What painted it, where runs of other pixels are on other boards."""


class Leaderboard(NamedTuple):
    """All sections of a results folder."""

    boards: tuple[Board, ...]
    unreadable: tuple[str, ...]
    libero: tuple[LiberoRow, ...]
    """Published rows of the families that were run."""
    calvin: tuple[CalvinRow, ...]


def load_leaderboard(results: str | Path, strict_renderer: bool = False) -> Leaderboard:
    """The leaderboard of all runs under that folder. Raises UsageError when there is none to read."""
    return leaderboard_of(find_runs(results), strict_renderer)


def leaderboard_of(found: Found, strict_renderer: bool = False) -> Leaderboard:
    """One board per suite, protocol hash and perturbation; if asked for, also per renderer of other pixels."""
    boards = tuple(board_of(section) for section in sections_of(found.runs, strict_renderer))
    suites = [board.suite for board in boards]
    libero = LIBERO if any(suite.startswith("libero") for suite in suites) else ()
    calvin = CALVIN if any(suite.startswith("calvin") for suite in suites) else ()
    return Leaderboard(boards, found.unreadable, libero, calvin)


def board_of(section: Section) -> Board:
    """Standings, best first, and every pairwise comparison."""
    links = max((links_of(entrant.episodes) for entrant in section.entrants), default=0)
    standings = sorted((_standing(entrant, section.control_hz, links) for entrant in section.entrants), key=_best_first)
    judged = [standing.label for standing in standings if standing.episodes]
    comparisons = _compare_all(section, judged)
    lettered = dict(zip(judged, _letters(judged, comparisons), strict=True))
    unequal = sum(comparison.unequal_scenes > 0 for comparison in comparisons)
    scenes = f"{unequal} of {len(comparisons)} comparisons leave out episodes whose scenes are not shown to be equal."
    notes = [*section.notes, *([scenes] if unequal else [])]
    return Board(
        section.suite,
        section.protocol_hash,
        section.perturbation,
        section.title,
        tuple(
            replace(
                standing,
                letters=lettered.get(standing.label, ""),
                other_pixels=standing.label in section.other_pixels,
            )
            for standing in standings
        ),
        comparisons,
        tuple(notes),
        section.renderer,
    )


# --- standings ---


def _standing(entrant: Entrant, control_hz: float, links: int) -> Standing:
    judged = entrant.episodes[entrant.episodes["success"].notna()]
    n, successes = len(judged), int(judged["success"].sum())
    broken = len(entrant.episodes) - n
    by_task = [rows.to_numpy(float) for _, rows in judged.groupby("task")["success"]]
    latency = tables.latency(entrant.inferences, entrant.episodes, control_hz)
    return Standing(
        label=entrant.label,
        policy=entrant.policy,
        checkpoint=entrant.checkpoint,
        arguments=entrant.arguments,
        successes=successes,
        episodes=n,
        rate=successes / n if n else None,
        interval=wilson(successes, n),
        like_these=clustered_rate(by_task) if len(by_task) > 1 else None,
        tasks=len(by_task),
        broken=broken,
        bounds=bounds(successes, n - successes, broken),
        letters="",
        latency_p50_ms=latency.inference_ms["p50"],
        attainable_hz=latency.attainable_hz,
        date=max(run.started for run in entrant.runs).date().isoformat(),
        runs=tuple(str(run.path) for run in entrant.runs),
        chains=chain_summary(entrant.episodes, links),
    )


def _best_first(standing: Standing) -> tuple[bool, float, int, str]:
    """By rate, of chains by average length, then by episodes; those without a verdict last."""
    score = standing.chains.mean_length if standing.chains else standing.rate
    return score is None, -(score or 0.0), -standing.episodes, standing.label


def broken_lines(board: Board) -> list[str]:
    """A sentence with both bounds for everyone who has broken episodes."""
    return [_broken_line(standing) for standing in board.standings if standing.broken]


def _broken_line(standing: Standing) -> str:
    if standing.chains:
        return f"{standing.label}: {broken_sentence(standing.chains, standing.broken)}"
    worst, best = (f"{100 * rate:.1f} %" for rate in standing.bounds)
    episodes = "episode" if standing.broken == 1 else "episodes"
    return (
        f"{standing.label}: {standing.broken} broken {episodes} without a verdict; the rate is {worst} if all of them "
        f"fail, {best} if all succeed."
    )


# --- comparisons ---


def _compare_all(section: Section, best_first: Sequence[str]) -> tuple[Comparison, ...]:
    entrants = {entrant.label: entrant for entrant in section.entrants}
    links = max((links_of(entrants[label].episodes) for label in best_first), default=0)
    scores, scenes = _side_by_side([entrants[label] for label in best_first])
    found = [
        _compare(a, b, scores[:, [i, j]], scenes[:, [i, j]], links)
        for (i, a), (j, b) in itertools.combinations(enumerate(best_first), 2)
    ]
    adjusted = holm([comparison.p for comparison in found])
    return tuple(replace(comparison, p_holm=float(p)) for comparison, p in zip(found, adjusted, strict=True))


def _side_by_side(entrants: Sequence[Entrant]) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """(episodes, entrants): success as 1 or 0, of chains the instructions done, NaN where there is no verdict; and the
    scene (`scene_of`), NaN where there is no such row."""
    import pandas as pd

    if not entrants:
        return np.zeros((0, 0)), np.zeros((0, 0), object)
    indexed = [entrant.episodes.set_index(list(KEY)) for entrant in entrants]
    chains = any(are_chains(entrant.episodes) for entrant in entrants)
    scores = pd.concat([_scores(rows, chains) for rows in indexed], axis=1)
    scenes = pd.concat([pd.Series(scenes_in(rows), rows.index, object) for rows in indexed], axis=1)
    return scores.to_numpy(float), scenes.to_numpy(object)


def _scores(rows: pd.DataFrame, chains: bool) -> pd.Series[float]:
    verdicts = rows["success"].astype("float64")
    return rows["subgoals_done"].where(verdicts.notna()).astype("float64") if chains else verdicts


def _compare(a: str, b: str, scores: NDArray[np.float64], scenes: NDArray[np.object_], links: int) -> Comparison:
    """The test of one pair; `scores` and `scenes` are (episodes, 2)."""
    both = ~np.isnan(scores).any(axis=1)
    same = np.zeros(len(scenes), bool)
    same[both] = [same_scene(a, b) for a, b in scenes[both]]
    unequal = int(both.sum() - same.sum())
    if links > 1:
        return replace(_compare_lengths(a, b, scores, same, links), unequal_scenes=unequal)
    paired = scores[same].astype(bool)
    if not len(paired):
        return _unpaired(a, b, scores, unequal)
    a_only = int((paired[:, 0] & ~paired[:, 1]).sum())
    b_only = int((~paired[:, 0] & paired[:, 1]).sum())
    p, n = mcnemar(a_only, b_only), len(paired)
    interval = paired_difference(a_only, b_only, n)
    return Comparison(a, b, n, unequal, a_only, b_only, "McNemar", p, p, (a_only - b_only) / n, interval)


def _compare_lengths(a: str, b: str, scores: NDArray[np.float64], same: NDArray[np.bool_], links: int) -> Comparison:
    first, second = (column[~np.isnan(column)].astype(np.int64) for column in scores.T)
    paired = scores[same].astype(np.int64)
    found = compare_pairs(paired[:, 0], paired[:, 1], links) if len(paired) else compare_apart(first, second, links)
    return Comparison(
        a,
        b,
        found.pairs,
        0,
        found.longer_a,
        found.longer_b,
        "sign-flip" if found.pairs else "permutation",
        found.p,
        found.p,
        found.difference,
        Interval(found.low, found.high),
        links,
    )


def _unpaired(a: str, b: str, verdicts: NDArray[np.float64], unequal: int) -> Comparison:
    (k_a, n_a), (k_b, n_b) = ((int(np.nansum(own)), int((~np.isnan(own)).sum())) for own in verdicts.T)
    test, name = (boschloo, "Boschloo") if n_a + n_b <= BOSCHLOO_UP_TO else (fisher, "Fisher")
    p = test(k_a, n_a, k_b, n_b)
    interval = newcombe_difference(k_a, n_a, k_b, n_b)
    return Comparison(a, b, 0, unequal, 0, 0, name, p, p, k_a / n_a - k_b / n_b, interval)


def _letters(labels: Sequence[str], comparisons: Sequence[Comparison]) -> list[str]:
    position = {label: n for n, label in enumerate(labels)}
    differs = np.zeros((len(labels), len(labels)), bool)
    for comparison in comparisons:
        i, j = position[comparison.a], position[comparison.b]
        differs[i, j] = differs[j, i] = comparison.p_holm < ALPHA
    return letters(differs) if labels else []


# --- output ---


def to_json(leaderboard: Leaderboard) -> dict[str, object]:
    """Plain JSON values: rates as fractions, null for what is not known, published numbers in percent and apart."""
    return {
        "sections": [_board_json(board) for board in leaderboard.boards],
        "unreadable": list(leaderboard.unreadable),
        "published": {
            "notice": NOTICE,
            "libero": [row._asdict() for row in leaderboard.libero],
            "calvin": [row._asdict() for row in leaderboard.calvin],
        },
    }


def _board_json(board: Board) -> dict[str, object]:
    found = asdict(board)
    for standing, plain in zip(board.standings, found["standings"], strict=True):
        like = standing.like_these
        plain["interval"], plain["bounds"] = standing.interval._asdict(), standing.bounds._asdict()
        plain["like_these"] = None if like is None else {**like._asdict(), "interval": like.interval._asdict()}
    for comparison, plain in zip(board.comparisons, found["comparisons"], strict=True):
        plain["interval"] = comparison.interval._asdict()
    return found


def render_text(leaderboard: Leaderboard) -> str:
    """Aligned tables for a terminal."""
    sections = [section for board in leaderboard.boards for section in _board_lines(board)]
    if reference := published_tables(leaderboard):
        titled = [[title, *_aligned(rows)] for title, rows in reference]
        sections += [[f"=== Reference: {NOTICE} ==="], *titled]
    return terminal_text([*sections, *([line] for line in unreadable_lines(leaderboard))])


def render_markdown(leaderboard: Leaderboard) -> str:
    """The same for a README."""
    explained = dict.fromkeys(map(scores_explained, leaderboard.boards))
    parts = ["# Leaderboard", *explained, LETTERS_EXPLAINED, *map(_board_markdown, leaderboard.boards)]
    if reference := published_tables(leaderboard):
        parts.append(f"## Reference: {NOTICE}")
        parts += [f"{title}\n\n{markdown_table(rows)}" for title, rows in reference]
    parts += [markdown_list(unreadable_lines(leaderboard))] if leaderboard.unreadable else []
    return "\n\n".join(parts)


def cells(standing: Standing) -> tuple[str, ...]:
    """What HEADER announces."""
    like = standing.like_these
    return (
        standing.name,
        short_checkpoint(standing.checkpoint) or "-",
        f"{standing.successes}/{standing.episodes}",
        percent(standing.rate),
        span(standing.interval),
        span(like.interval) if like else "-",
        standing.letters or "-",
        number(standing.latency_p50_ms),
        number(standing.attainable_hz),
    )


def chain_cells(standing: Standing, links: int) -> tuple[str, ...]:
    """What `chain_header` announces."""
    chains = standing.chains
    rates = [percent(share.rate) for share in chains.at_least] if chains else ["-"] * links
    return (
        standing.name,
        short_checkpoint(standing.checkpoint) or "-",
        str(standing.episodes),
        *rates,
        length_text(chains) if chains else "-",
        span_text(*interval_of(chains)) if chains else "-",
        standing.letters or "-",
        number(standing.latency_p50_ms),
        number(standing.attainable_hz),
    )


def chain_header(links: int) -> tuple[str, ...]:
    """Of a board of chains: the columns `1` to `5` are chains with at least so many instructions done."""
    counts = map(str, range(1, links + 1))
    return ("policy", "checkpoint", "chains", *counts, "average length", "95 % interval", *HEADER[-3:])


def links_on(board: Board) -> int:
    """Instructions per chain; 0 on a board of single instructions."""
    return max((standing.chains.links for standing in board.standings if standing.chains), default=0)


def scores_explained(board: Board) -> str:
    """What its columns of scores and intervals mean."""
    return _CHAINS_EXPLAINED if links_on(board) else _RATES_EXPLAINED


def standings_table(board: Board) -> list[tuple[str, ...]]:
    """Header and one row per standing; `broken` and `date` come last."""
    links = links_on(board)
    rows = [chain_cells(standing, links) if links else cells(standing) for standing in board.standings]
    header = (*(chain_header(links) if links else HEADER), "broken", "date")
    return [header, *((*row, str(of.broken), of.date) for row, of in zip(rows, board.standings, strict=True))]


def comparisons_table(board: Board) -> list[tuple[str, ...]]:
    """Header and one row per pair of policies."""
    alone = ("A further", "B further") if links_on(board) else ("A alone", "B alone")
    header = ("A", "B", "pairs", *alone, "A - B", "95 % interval", "test", "p", "p (Holm)")
    names = {standing.label: standing.name for standing in board.standings}
    return [header, *(_comparison_cells(comparison, names) for comparison in board.comparisons)]


def _comparison_cells(comparison: Comparison, names: Mapping[str, str]) -> tuple[str, ...]:
    paired = comparison.pairs > 0
    return (
        names[comparison.a],
        names[comparison.b],
        str(comparison.pairs),
        str(comparison.a_only) if paired else "-",
        str(comparison.b_only) if paired else "-",
        difference_text(comparison),
        interval_text(comparison),
        comparison.test,
        p_text(comparison.p).removeprefix("= "),
        p_text(comparison.p_holm).removeprefix("= "),
    )


def difference_text(comparison: Comparison) -> str:
    """In percentage points, of chains in instructions."""
    return f"{comparison.difference:+.2f}" if comparison.links else f"{100 * comparison.difference:+.1f} pp"


def interval_text(comparison: Comparison) -> str:
    """Both ends of the difference's interval."""
    low, high = comparison.interval
    return f"{low:+.2f} – {high:+.2f}" if comparison.links else f"{100 * low:+.1f} – {100 * high:+.1f} pp"


def _board_lines(board: Board) -> list[list[str]]:
    title = f"=== {board.title}, protocol {board.protocol_hash} ==="
    notes = [f"  {note}" for note in (*board.notes, *broken_lines(board))]
    return [[title], _aligned(standings_table(board)), notes]


def _board_markdown(board: Board) -> str:
    title = f"## {for_markdown(board.title)}, protocol {markdown_code(board.protocol_hash)}"
    notes = [*board.notes, *broken_lines(board)]
    return "\n\n".join(filter(None, [title, markdown_table(standings_table(board)), markdown_list(notes)]))


def published_tables(leaderboard: Leaderboard) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(title, rows with header) of every family with published numbers."""
    found = []
    if leaderboard.libero:
        header = ("method", "spatial", "object", "goal", "long", "mean", "read in", "source")
        rows = [
            (row.method, *map(_plain, (row.spatial, row.object, row.goal, row.long, row.mean)), row.read, row.source)
            for row in leaderboard.libero
        ]
        found.append((f"LIBERO, success in percent ({NOTICE})", [header, *rows]))
    if leaderboard.calvin:
        columns = ("method", "split", "1", "2", "3", "4", "5", "mean length", "read in", "source")
        calvin = [
            (row.method, row.split, *map(_plain, row.at_least), f"{row.length:.2f}", row.read, row.source)
            for row in leaderboard.calvin
        ]
        found.append((f"CALVIN, percent of chains with at least 1 to 5 done ({NOTICE})", [columns, *calvin]))
    return found


def unreadable_lines(leaderboard: Leaderboard) -> list[str]:
    """A sentence for every run directory that was left out."""
    return [f"Left out: {why}" for why in leaderboard.unreadable]


def percent(rate: float | None) -> str:
    """One digit after the point."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def span(interval: Interval) -> str:
    """Both ends, in percent."""
    return f"{100 * interval.low:.1f} – {100 * interval.high:.1f} %"


def number(value: float | None) -> str:
    """Three digits where they matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def p_text(p: float) -> str:
    """With its relation; never a bare 0, and never rounded over the level it is compared with."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}" if round(p, 4) != ALPHA else f"= {p:.6f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns whose first row is the header: the first to the left, the others to the right."""
    shown = [[for_terminal(cell) for cell in row] for row in rows]
    first, *others = widths(shown)
    lines = [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for name, *cells in shown
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
