"""Runs -> a folder: index.html (one self-contained page), report.md, episodes.csv, tasks.csv and figures/.

Every suite, protocol hash and perturbation has a section of its own; nothing is averaged over sections.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from vla_bench.chains import interval_of, length_text, span_text
from vla_bench.errors import UsageError, message_of, unwritable
from vla_bench.grounding.table import GroundingRow, estimate_text
from vla_bench.report import data as report_data
from vla_bench.report import plots
from vla_bench.report.leaderboard import (
    ALPHA,
    LETTERS_EXPLAINED,
    Board,
    Comparison,
    Standing,
    board_of,
    broken_lines,
    comparisons_table,
    difference_text,
    interval_text,
    links_on,
    number,
    p_text,
    percent,
    scores_explained,
    span,
    standings_table,
)
from vla_bench.report.sections import Entrant, Found, Run, Section, as_json, load_runs, sections_of, short_checkpoint
from vla_bench.stats.rates import Interval
from vla_bench.store.files import write_whole
from vla_bench.store.records import open_file
from vla_bench.store.runs import KEY
from vla_bench.tables import utf8
from vla_bench.text import (
    for_csv,
    for_html,
    for_markdown,
    for_markdown_line,
    json_text,
    markdown_code,
    markdown_list,
    markdown_table,
    visible,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAGE = "index.html"
FIRST_FILMS = 4  # seen at once
MOST_FILMS = 12  # shown per section; all are linked from its table of episodes
FILM_BYTES = 1_500_000  # of all film strips together, shared among the sections: the page stays below 5 MB
STRIP_WIDTH = 1600  # pixels
LARGEST_STRIP = 40_000_000  # pixels; eight stills of two full-HD cameras have 9 million
VERDICTS = {False: 0, True: 1, None: 2}
"""As assets/report.js names them: failure, success, broken."""

GROUNDING_EXPLAINED = (
    "Share: of the policy’s attention, what lies within the pixels of what is being manipulated. Chance: that share if "
    "attention were spread evenly over its cells. Hits: calls whose most attended point lies within (pointing game). "
    "Means over episodes with 95 % intervals; calls with nothing of it in view are left out and counted."
)


class Drawing(NamedTuple):
    """One figure of a section."""

    name: str
    """Of its files, without ending."""
    caption: str
    remark: str
    svg: str
    """For use inside the page."""
    wide: bool = False


class Film(NamedTuple):
    """The film of an episode that was not solved."""

    label: str
    link: str
    """From the report's folder, quoted."""
    strip: str
    """A data URL, empty when there is no strip."""


@dataclass(frozen=True, eq=False)
class Chapter:
    """A section with everything that is printed about it."""

    id: str
    section: Section
    board: Board
    entrants: tuple[Entrant, ...]
    """In the order of the standings."""
    looks: plots.Looks
    """Of its labels; a policy has one number on the whole page, in tables and figures."""
    rates: pd.DataFrame

    @property
    def names(self) -> dict[str, str]:
        """Label -> as tables show it, marked where its pixels are not known to be the others'."""
        return {standing.label: standing.name for standing in self.board.standings}


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    strict_renderer: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """The page written into the folder `out`, beside its tables and figures; `tell` gets a sentence for every run that
    is left out because it cannot be read, as the page does. Raises UsageError, before writing, when none can be read,
    and for a folder that cannot be written."""
    if not runs:
        raise UsageError("A report needs at least one run directory: vla-bench report RUN ... --out FOLDER.")
    found, folder = load_runs(runs), Path(out)
    for why in found.unreadable:
        tell(f"Left out: {why}")
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        _write_all(found, folder, strict_renderer)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder / PAGE


def _write_all(found: Found, folder: Path, strict_renderer: bool) -> None:
    chapters = _chapters(found, strict_renderer)
    drawings = {chapter.id: list(_draw(chapter, folder / "figures")) for chapter in chapters}
    _write(folder / "report.md", _markdown(chapters, drawings, found))
    _write(folder / "episodes.csv", _csv(_episode_rows(chapters)))
    _write(folder / "tasks.csv", _csv(_task_rows(chapters)))
    _write(folder / PAGE, _page(chapters, drawings, found, folder))


def _write(file: Path, text: str) -> None:
    """Half surrogates, which a simulator's message may hold, become question marks."""
    write_whole(file, text.encode("utf-8", "replace"))


def _chapters(found: Found, strict_renderer: bool = False) -> list[Chapter]:
    sections = sections_of(found.runs, strict_renderer)
    boards = [board_of(section) for section in sections]
    played = [
        report_data.entrants_in(section, [standing.label for standing in board.standings])
        for section, board in zip(sections, boards, strict=True)
    ]
    return [
        Chapter(f"s{n}", section, board, tuple(entrants), looks, report_data.task_rates(entrants, section.tasks))
        for n, (section, board, entrants, looks) in enumerate(
            zip(sections, boards, played, _looks(played), strict=True), 1
        )
    ]


def _looks(played: Sequence[Sequence[Entrant]]) -> list[plots.Looks]:
    """Per section, the numbers of its labels.

    An entrant (policy, checkpoint, arguments) has one number on the whole page, and so have entrants of one label in
    different sections; entrants of one section never share one.
    """
    numbers, by_label, looks = dict[object, int](), dict[str, int](), list[plots.Looks]()
    for entrants in played:
        own = {entrant.label: numbers[entrant.identity] for entrant in entrants if entrant.identity in numbers}
        for entrant in entrants:
            number = own.get(entrant.label, by_label.get(entrant.label))
            if number is None or (entrant.label not in own and number in own.values()):
                number = _new_look({*numbers.values()}, own)
            own[entrant.label] = number
            numbers.setdefault(entrant.identity, number)
            by_label.setdefault(entrant.label, number)
        looks.append({entrant.label: own[entrant.label] for entrant in entrants})
    return looks


def _new_look(taken: set[int], beside: plots.Looks) -> int:
    """The first number that is free on the page and, while there are colours left, has none of this section's."""
    colours = len(plots.SERIES)
    near = {number % colours for number in beside.values()}
    free = (number for number in itertools.count() if number not in taken)
    return next(number for number in free if len(near) == colours or number % colours not in near)


# --- figures ---


def _draw(chapter: Chapter, folder: Path) -> Iterator[Drawing]:
    """Every figure for which there is something to draw, also written to `folder`."""
    entrants, hz = chapter.entrants, chapter.section.control_hz
    tasks, policies = chapter.rates["task"].nunique(), len(entrants)

    def saved(ax: Axes, name: str, caption: str, remark: str) -> Drawing:
        stem = f"{chapter.id}_{_slug(chapter.section.title)}_{name}"
        svg = plots.inline_svg(plots.save(ax, folder / stem), stem, f"{caption}, {chapter.section.title}")
        return Drawing(stem, caption, remark, svg)

    forest = plots.forest(chapter.rates, plots.new_axes(plots.forest_size(tasks, policies)), chapter.looks)
    yield saved(forest, "rates", "Success rate per task", "with 95 % Wilson intervals")._replace(wide=True)
    if policies > 1 and tasks > 1:
        heat = plots.heatmap(chapter.rates, plots.new_axes(plots.heatmap_size(tasks, policies)))
        yield saved(heat, "heatmap", "Tasks by policies", "success rate in percent")._replace(wide=True)
    solved = report_data.solved_curves(entrants)
    if len(solved):
        curve = plots.success_over_steps(solved, plots.new_axes(plots.CURVE_SIZE), chapter.looks)
        bands = ", with 95 % intervals" if policies <= plots.MOST_BANDS else ""
        yield saved(curve, "solved", "Time to success", f"episodes solved within so many steps{bands}")
    latencies = report_data.latency_curves(entrants, hz)
    if len(latencies):
        curve = plots.latency_ecdf(latencies, plots.new_axes(plots.CURVE_SIZE), chapter.looks)
        yield saved(curve, "latency", "Latency", "without cold calls; percentiles where there are enough calls")
    stages = report_data.stage_means(entrants, hz)
    if (stages["stage"] != report_data.REST).any():
        bars = plots.stage_bars(stages, plots.new_axes(plots.bars_size(policies)))
        yield saved(bars, "stages", "Where a policy call’s time goes", "mean per stage")
    told = report_data.grounding_curves(entrants)
    if len(told):
        curve = plots.grounding_over_steps(told, plots.new_axes(plots.CURVE_SIZE), chapter.looks)
        bands = ", with 95 % intervals" if policies <= plots.MOST_BANDS else ""
        yield saved(curve, "grounding", "Grounding", f"attention within what is manipulated{bands}; dotted: chance")
    split = report_data.wall_shares(entrants)
    if split["seconds"].sum() > 0:
        bars = plots.wall_split(split, plots.new_axes(plots.bars_size(policies)))
        yield saved(bars, "time", "Where the episodes’ time goes", "share of wall time")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "suite"


# --- tables on disk ---


def _episode_rows(chapters: Sequence[Chapter]) -> pd.DataFrame:
    """All episodes with policy, checkpoint, protocol hash and run directory in front."""
    import pandas as pd

    frames = [_with_origin(chapter, entrant) for chapter in chapters for entrant in chapter.entrants]
    return pd.concat(frames, ignore_index=True)


def _with_origin(chapter: Chapter, entrant: Entrant) -> pd.DataFrame:
    rows = entrant.episodes.rename(columns={"run": "run_directory"})
    directories = [utf8(str(run.path)) for run in entrant.runs]
    origin = {
        "policy": entrant.label,
        "checkpoint": entrant.checkpoint,
        "protocol_hash": chapter.section.protocol_hash,
        "run_directory": [directories[n] for n in rows["run_directory"]],
    }
    rows = rows.assign(**origin, subgoals=rows["subgoals"].map(" ".join))
    return rows[[*origin, *(column for column in rows if column not in origin)]]


def _task_rows(chapters: Sequence[Chapter]) -> pd.DataFrame:
    """Rate, interval and counts of every policy on every task, and on all tasks of the section."""
    import pandas as pd

    frames = [
        chapter.rates.assign(
            suite=chapter.section.suite,
            perturbation=chapter.section.perturbation,
            protocol_hash=chapter.section.protocol_hash,
            policy=chapter.rates["policy"].astype("str"),
        )
        for chapter in chapters
    ]
    rows = pd.concat(frames, ignore_index=True)
    first = ["suite", "protocol_hash", "perturbation", "policy", "task"]
    return rows[[*first, *(column for column in rows if column not in first)]]


def _csv(rows: pd.DataFrame) -> str:
    import pandas as pd

    texts = [name for name in map(str, rows) if not pd.api.types.is_numeric_dtype(rows[name])]
    return str(rows.assign(**{name: rows[name].map(_csv_cell) for name in texts}).to_csv(index=False))


def _csv_cell(value: object) -> object:
    return for_csv(value) if isinstance(value, str) else value


# --- Markdown ---


def _markdown(chapters: Sequence[Chapter], drawings: Mapping[str, Sequence[Drawing]], found: Found) -> str:
    parts = [f"# {for_markdown(_title(chapters))}", *(f"Left out: {for_markdown(why)}" for why in found.unreadable)]
    for chapter in chapters:
        board = chapter.board
        parts += [f"## {for_markdown(board.title)}, protocol {markdown_code(board.protocol_hash)}"]
        notes = [*board.notes, *broken_lines(board)]
        parts += [for_markdown_line(_verdict(board)), *([markdown_list(notes)] if notes else [])]
        parts += [markdown_table(standings_table(board)), LETTERS_EXPLAINED]
        parts += [markdown_table(comparisons_table(board))] if board.comparisons else []
        parts += [f"![{drawing.caption}](figures/{drawing.name}.png)" for drawing in drawings[chapter.id]]
        parts += ["### Rates per task", markdown_table(_tasks_table(chapter))]
        parts += ["### Latency", markdown_table(_latency_table(chapter))]
        if grounding := _grounding_table(chapter):
            parts += ["### Grounding", GROUNDING_EXPLAINED, markdown_table(grounding)]
        parts += ["### Protocol", _fenced(chapter.section.protocol)]
        parts += ["### Provenance", *(_fenced(as_json(run)["provenance"]) for run in _runs(chapter))]
    return "\n\n".join(parts) + "\n"


def _fenced(value: object) -> str:
    return f"```json\n{json_text(value, indent=1)}\n```"


# --- the page ---


def _page(chapters: Sequence[Chapter], drawings: Mapping[str, Sequence[Drawing]], found: Found, folder: Path) -> str:
    films = _Films(folder, FILM_BYTES // len(chapters))
    sections = [_section(chapter, drawings[chapter.id], films) for chapter in chapters]
    contents = "".join(
        f'<li><a href="#{chapter.id}">{for_html(chapter.board.title)}</a> '
        f"<code>{for_html(chapter.board.protocol_hash)}</code></li>"
        for chapter in chapters
    )
    return _fill(
        _asset("report.html"),
        title=for_html(_title(chapters)),
        css=_asset("report.css"),
        js=_asset("report.js"),
        facts=_facts(chapters),
        warnings=_notes([*(f"Left out: {why}" for why in found.unreadable), *films.notes]),
        contents=f'<ul class="contents">{contents}</ul>' if len(chapters) > 1 else "",
        sections="\n".join(sections),
        footer=_footer(),
    )


def _section(chapter: Chapter, drawings: Sequence[Drawing], films: _Films) -> str:
    board, section = chapter.board, chapter.section
    shown = films.of(chapter)
    return _fill(
        _asset("section.html"),
        id=chapter.id,
        title=for_html(board.title),
        hash=for_html(board.protocol_hash),
        verdict=for_html(_verdict(board)),
        notes=_notes(board.notes),
        standings=_standings(chapter),
        legend=_legend(board),
        comparisons=_folded("Every pair of policies", _table(comparisons_table(board))) if board.comparisons else "",
        figures=f'<div class="figures">{"".join(map(_figure, drawings))}</div>',
        films=_gallery(shown) if shown else "",
        episodes=_episodes_json(chapter, films),
        tasks=_table(_tasks_table(chapter)),
        latency=_table(_latency_table(chapter)),
        grounding=_grounding(chapter),
        protocol=_facts_table(section.protocol),
        provenance="".join(map(_provenance, _runs(chapter))),
    )


def _fill(template: str, **values: str) -> str:
    """The template with {{name}} replaced, once: braces inside the values stay."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match.group(1)], template)


def _asset(name: str) -> str:
    return (Path(__file__).parents[1] / "assets" / name).read_text(encoding="utf-8")


def _title(chapters: Sequence[Chapter]) -> str:
    policies = list(dict.fromkeys(entrant.policy for chapter in chapters for entrant in chapter.entrants))
    suites = list(dict.fromkeys(chapter.section.suite for chapter in chapters))
    return f"{_listed(policies, 'policies')} on {_listed(suites, 'suites')}"


def _listed(names: Sequence[str], plural: str) -> str:
    if len(names) > 3:
        return f"{len(names)} {plural}"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _facts(chapters: Sequence[Chapter]) -> str:
    standings = [standing for chapter in chapters for standing in chapter.board.standings]
    dates = sorted(standing.date for standing in standings)
    machines = {run.machine for chapter in chapters for run in _runs(chapter)} - {""}
    broken = sum(standing.broken for standing in standings)
    facts = {
        "policies": str(len({number for chapter in chapters for number in chapter.looks.values()})),
        "episodes": f"{sum(standing.episodes for standing in standings):,}{f' and {broken} broken' if broken else ''}",
        "tasks": str(sum(len(chapter.section.tasks) for chapter in chapters)),
        "run on": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        "machine": "; ".join(sorted(machines)) if 0 < len(machines) <= 2 else f"{len(machines)} different ones",
    }
    if not machines:
        del facts["machine"]
    return "".join(f"<div><dt>{name}</dt><dd>{for_html(value)}</dd></div>" for name, value in facts.items())


def _verdict(board: Board) -> str:
    """The first thing to know: who is best, and from whom it is not told apart."""
    judged = [standing for standing in board.standings if standing.episodes]
    if not judged:
        return "No episode has a verdict: all of them broke."
    best, *others = judged
    said = f"{_achieved(best, ' episodes')}, 95 % interval {_interval(best)}."
    if not others:
        return said
    if len(others) == 1:
        return f"{said} {_against(board.comparisons[0], others[0])}"
    return f"{said} {_among(board, best, others)}"


def _achieved(standing: Standing, unit: str = "") -> str:
    """What it did, without interval and full stop."""
    if standing.chains:
        return (
            f"{standing.label} does {length_text(standing.chains)} instructions in a row in {standing.episodes} chains"
        )
    return f"{standing.label} solves {standing.successes} of {standing.episodes}{unit}: {percent(standing.rate)}"


def _interval(standing: Standing) -> str:
    return span_text(*interval_of(standing.chains)) if standing.chains else span(standing.interval)


def _among(board: Board, best: Standing, others: Sequence[Standing]) -> str:
    """Who is not behind the one with the highest rate."""
    mine = [comparison for comparison in board.comparisons if comparison.a == best.label]
    if better := [found.b for found in mine if found.p_holm < ALPHA and found.difference < 0]:
        return f"But on the episodes they share, {', '.join(better)} does better."
    equal = [other.label for other in others if set(other.letters) & set(best.letters)]
    if not equal:
        return f"That is more than each of the {len(others)} others, also after Holm's correction."
    if len(equal) == len(others):
        return "No other policy is told apart from it."
    return f"Not told apart from it: {', '.join(equal)}."


def _against(comparison: Comparison, other: Standing) -> str:
    """The second of two, and how sure the difference is."""
    told = "They differ" if comparison.p_holm < ALPHA else "They are not told apart"
    paired = f"{comparison.pairs} paired episodes, {comparison.test}"
    how = paired if comparison.pairs else f"unpaired, {comparison.test}"
    difference = difference_text(comparison).replace(" pp", " percentage points")
    apart = interval_text(comparison).replace(" pp", "").replace(" – ", " to ")
    return f"{_achieved(other)}. {told}: {difference} ({apart}), p {p_text(comparison.p)} ({how})."


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{for_html(note)}</li>" for note in notes)}</ul>' if notes else ""


def _standings(chapter: Chapter) -> str:
    """The table of policies, each rate with its interval drawn to scale; columns that say nothing are left out."""
    columns = [_standing_cells(standing, chapter) for standing in chapter.board.standings]
    said = {name: {cells[name] for cells in columns} for name in columns[0]}
    names = [name for name in said if said[name] - {"–", "0"} and (name != "date" or len(said[name]) > 1)]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(f"<tr>{''.join(f'<td>{cells[name]}</td>' for name in names)}</tr>" for cells in columns)
    return f'<table class="standings"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _standing_cells(standing: Standing, chapter: Chapter) -> dict[str, str]:
    colour = f"var(--series-{chapter.looks[standing.label] % len(plots.SERIES)})"
    like, checkpoint = standing.like_these, for_html(short_checkpoint(standing.checkpoint))
    if links_on(chapter.board):
        like = None
    return {
        "policy": f'<span class="swatch" style="background:{colour}"></span>{for_html(standing.name)}',
        **_score_cells(standing, links_on(chapter.board), colour),
        "tasks like these": span(like.interval) if like else "–",
        "letters": for_html(standing.letters) or "–",
        "p50 ms": number(standing.latency_p50_ms),
        "Hz": number(standing.attainable_hz),
        "broken": _broken_cell(standing),
        "checkpoint": f'<code title="{for_html(standing.checkpoint)}">{checkpoint}</code>' if checkpoint else "–",
        "date": standing.date,
    }


def _score_cells(standing: Standing, links: int, colour: str) -> dict[str, str]:
    """The rate, of chains the average length, with its interval and what it is made of."""
    if not links:
        return {
            "rate": f'<span class="rate">{percent(standing.rate)}</span>',
            "": _interval_bar(standing.rate, standing.interval, colour),
            "95 % interval": span(standing.interval),
            "solved": f"{standing.successes}/{standing.episodes}",
        }
    chains = standing.chains
    if chains is None or chains.mean_length is None:
        return dict.fromkeys(["average length", "", "95 % interval", *map(str, range(1, links + 1)), "chains"], "–")
    scaled = Interval(chains.low / links, chains.high / links)
    return {
        "average length": f'<span class="rate">{length_text(chains)}</span>',
        "": _interval_bar(chains.mean_length / links, scaled, colour),
        "95 % interval": _interval(standing),
        **{str(k): percent(share.rate) for k, share in enumerate(chains.at_least, 1)},
        "chains": str(chains.chains),
    }


def _interval_bar(rate: float | None, interval: Interval, colour: str) -> str:
    low, high = (100 * end for end in interval)
    dot = "" if rate is None else f'<b style="left:{100 * rate:.1f}%;background:{colour}"></b>'
    bar = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%;background:{colour}"></i>'
    return f'<span class="interval" aria-hidden="true">{bar}{dot}</span>'


def _broken_cell(standing: Standing) -> str:
    return f'<span class="broken">{standing.broken}: {span(standing.bounds)}</span>' if standing.broken else "0"


def _legend(board: Board) -> str:
    times = "p50: median time of a policy call. Hz: actions executed per second of policy time."
    parts = [scores_explained(board), times]
    if board.comparisons:
        parts.append(LETTERS_EXPLAINED)
    if any(standing.broken for standing in board.standings):
        parts.append(
            "Broken episodes have no verdict; beside their number, the share of solved ones if all failed and if all "
            "succeeded."
        )
    return for_html(" ".join(parts))


def _figure(drawing: Drawing) -> str:
    links = "".join(f' <a href="figures/{drawing.name}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
    caption = f"<figcaption><b>{drawing.caption}</b> <span>{for_html(drawing.remark)}</span>{links}</figcaption>"
    return f'<figure{" class=wide" * drawing.wide}>{caption}<div class="drawing">{drawing.svg}</div></figure>'


def _folded(title: str, content: str) -> str:
    return f'<details><summary>{for_html(title)}</summary><div class="scroll">{content}</div></details>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    """An HTML table whose first row is the header."""
    head = "".join(f'<th scope="col">{for_html(cell)}</th>' for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{for_html(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _tasks_table(chapter: Chapter) -> list[tuple[str, ...]]:
    header = ("task", "policy", "solved", "rate", "95 % interval", "mean steps", "broken")
    rates = chapter.rates.sort_values("overall", kind="stable")
    return [header, *(_task_cells(row, chapter.names) for row in rates.to_dict("records"))]


def _task_cells(row: Mapping[Hashable, Any], names: Mapping[str, str]) -> tuple[str, ...]:
    judged = row["episodes"] > 0
    return (
        row["task"],
        names[row["policy"]],
        f"{row['successes']}/{row['episodes']}",
        percent(row["rate"]) if judged else "–",
        span(Interval(row["low"], row["high"])),
        f"{row['mean_steps']:.1f}" if row["mean_steps"] == row["mean_steps"] else "–",
        str(row["broken"]),
    )


def _latency_table(chapter: Chapter) -> list[tuple[str, ...]]:
    header = (
        "policy",
        "calls",
        "cold",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "p50 ms per action",
        "actions per call",
        "batch",
        "Hz",
    )
    return [header, *_latency_rows(chapter)]


def _latency_rows(chapter: Chapter) -> Iterator[tuple[str, ...]]:
    for label, found in report_data.latency_rows(chapter.entrants, chapter.section.control_hz):
        tails = [
            number(ms) if ms is not None else f"needs {found.needed[name]} calls"
            for name, ms in found.inference_ms.items()
        ]
        per_action = number(found.action_ms["p50"])
        means = (number(found.mean_executed), number(found.mean_batch), number(found.attainable_hz))
        yield (label, f"{found.n:,}", str(found.cold), *tails, per_action, *means)


def _grounding_table(chapter: Chapter) -> list[tuple[str, ...]]:
    """Empty where no policy told its attention."""
    rows = report_data.grounding_rows(chapter.entrants)
    header = ("task", "policy", "episodes", "calls", "out of view", "share %", "chance %", "share / chance", "hits %")
    return [header, *(_grounding_cells(chapter.names[label], row) for label, row in rows)] if rows else []


def _grounding_cells(label: str, row: GroundingRow) -> tuple[str, ...]:
    estimates = ((row.share, 100), (row.chance, 100), (row.ratio, 1), (row.hits, 100))
    counts = (str(row.episodes), f"{row.inferences:,}", f"{row.without:,}")
    return row.task, label, *counts, *(estimate_text(found, scale) for found, scale in estimates)


def _grounding(chapter: Chapter) -> str:
    if not (rows := _grounding_table(chapter)):
        return ""
    explained = f'<p class="fine">{for_html(GROUNDING_EXPLAINED)}</p>'
    return _folded("Grounding: what the policies looked at", f"{explained}{_table(rows)}")


def _facts_table(values: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{for_html(name)}</td><td>{for_html(_text(value))}</td></tr>" for name, value in values.items()
    )
    return f'<table class="facts-table"><tbody>{rows}</tbody></table>'


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)


def _provenance(run: Run) -> str:
    said = json_text(as_json(run) | {"protocol": run.info.protocol_hash}, indent=1)
    return f"<details><summary><code>{for_html(str(run.path))}</code></summary><pre>{escape(said)}</pre></details>"


def _runs(chapter: Chapter) -> list[Run]:
    return [run for entrant in chapter.entrants for run in entrant.runs]


def _footer() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        release = version("vla-bench")
    except PackageNotFoundError:
        release = ""
    return (
        f'Made by vla-bench {for_html(release)}. The same numbers: <a href="report.md">report.md</a>, '
        '<a href="episodes.csv">episodes.csv</a>, <a href="tasks.csv">tasks.csv</a>, <a href="figures/">figures</a>.'
    )


# --- episodes for the page's table ---


def _episodes_json(chapter: Chapter, films: _Films) -> str:
    """Columns as lists, every text once: what assets/report.js reads. Safe inside a script element."""
    import pandas as pd

    rows = pd.concat([entrant.episodes.assign(policy=entrant.label) for entrant in chapter.entrants])
    strings = _Strings()
    links = [films.link(chapter.entrants, row) for row in _filmed(rows)]
    errors = [f"{error}: {said}".strip(": ") for error, said in zip(rows["error"], rows["message"], strict=True)]
    columns = {
        "policy": [strings.index(text) for text in rows["policy"]],
        "task": [strings.index(text) for text in rows["task"]],
        "trial": rows["trial"].tolist(),
        "seed": rows["seed"].tolist(),
        "result": [VERDICTS[None if pd.isna(verdict) else bool(verdict)] for verdict in rows["success"]],
        "steps": rows["steps"].tolist(),
        "calls": rows["inferences"].tolist(),
        "ms": rows["latency_mean_ms"].round(2).tolist(),
        "wall": rows["wall_s"].round(2).tolist(),
        "film": [strings.index(link) for link in links],
        "error": [strings.index(text) for text in errors],
        "differs": _differs(rows),
    }
    plain = json.dumps({"strings": strings.texts, "columns": columns}, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Strings:
    """Texts by number; the empty one is -1."""

    def __init__(self) -> None:
        self._numbers = dict[str, int]()

    def index(self, text: str) -> int:
        return self._numbers.setdefault(visible(text), len(self._numbers)) if text else -1

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def _differs(rows: pd.DataFrame) -> list[int]:
    """1 where policies ended the same episode differently."""
    verdicts = rows.groupby(list(KEY))["success"].transform("nunique")
    return [int(count > 1) for count in verdicts]


# --- films ---


class _Row(NamedTuple):
    policy: str
    run: int
    video: str


def _filmed(rows: pd.DataFrame) -> list[_Row]:
    return [_Row(*values) for values in rows[list(_Row._fields)].itertuples(index=False, name=None)]


class _Films:
    """Links and strips of films, as seen from the report's folder; strips until a section's bytes are spent."""

    def __init__(self, folder: Path, bytes_per_section: int) -> None:
        self._folder, self._bytes = folder.resolve(), bytes_per_section
        self._refused = dict[str, None]()

    @property
    def notes(self) -> list[str]:
        """A sentence for the first films and strips that were left out because they are not what a run holds."""
        told = list(self._refused)
        more = [f"And {len(told) - MOST_FILMS} more films or strips."] if len(told) > MOST_FILMS else []
        return [*told[:MOST_FILMS], *more]

    def link(self, entrants: Sequence[Entrant], row: _Row) -> str:
        """The quoted relative path of the row's film, empty when there is none inside its run."""
        film = self._path(entrants, row)
        return quote(os.fsencode(os.path.relpath(film, self._folder))) if film else ""

    def of(self, chapter: Chapter) -> list[Film]:
        """Films of failed and broken episodes, turn by turn from every policy and task."""
        rows = [entrant.episodes.assign(policy=entrant.label) for entrant in chapter.entrants]
        lost = [frame[(frame["video"] != "") & ~frame["success"].fillna(False)] for frame in rows]
        films, left = list[Film](), self._bytes
        for turn in _turns([group for frame in lost for _, group in frame.groupby("task", sort=False)]):
            row = _Row(turn["policy"], turn["run"], turn["video"])
            film = self._path(chapter.entrants, row)
            if film and len(films) < MOST_FILMS:
                label = f"{turn['policy']}: {turn['task']}, trial {turn['trial']}, {turn['steps']} steps"
                data = self._strip(film, left)
                films.append(Film(label, self.link(chapter.entrants, row), _data_url(data)))
                left -= len(data)
        return films

    def _path(self, entrants: Sequence[Entrant], row: _Row) -> Path | None:
        """Where the film lies; None when it is gone or not a file inside its run."""
        if not row.video:
            return None
        run = next(entrant for entrant in entrants if entrant.label == row.policy).runs[row.run]
        try:
            open_file(film := run.path / row.video, run.path).close()
        except FileNotFoundError:
            return None
        except UsageError as error:
            self._refused[str(error)] = None
            return None
        return film.resolve()

    def _strip(self, film: Path, most: int) -> bytes:
        """The strip beside the film as `_thumbnail` makes it; nothing when there is none to show."""
        strip = film.with_suffix(".png")
        try:
            return _thumbnail(strip, film.parent, most)
        except FileNotFoundError:
            pass
        except UsageError as error:
            self._refused[str(error)] = None
        return b""


def _turns(groups: Sequence[pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """The first row of every group, then the second, and so on."""
    for depth in range(max(map(len, groups), default=0)):
        for group in groups:
            if depth < len(group):
                yield {str(name): value for name, value in group.iloc[depth].items()}


def _thumbnail(strip: Path, folder: Path, most: int) -> bytes:
    """The picture as a JPEG of at most STRIP_WIDTH pixels; nothing when that has more bytes.

    Raises FileNotFoundError, and UsageError for what is no PNG of a sensible size in that folder.
    """
    import warnings

    from PIL import Image

    with open_file(strip, folder) as stream, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(stream, formats=["PNG"]) as picture:
                if picture.width * picture.height > LARGEST_STRIP:
                    raise Image.DecompressionBombError
                small = picture.convert("RGB")
        except Exception as error:  # damaged pictures make Pillow raise errors of many kinds
            raise UsageError(f"The film strip {strip} is left out: {_fault(error)}.") from error
    small.thumbnail((STRIP_WIDTH, STRIP_WIDTH))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=72, optimize=True)
    return data.getvalue() if data.tell() <= most else b""


def _fault(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {LARGEST_STRIP} pixels"
    return "it is no PNG" if isinstance(error, UnidentifiedImageError) else message_of(error) or "it is damaged"


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def _gallery(films: Sequence[Film]) -> str:
    """The first strips, the others folded away."""
    shown = [
        f'<figure><a class="film" href="{for_html(film.link)}">{_picture(film)}</a>'
        f"<figcaption>{for_html(film.label)}</figcaption></figure>"
        for film in films
    ]
    first, more = "".join(shown[:FIRST_FILMS]), "".join(shown[FIRST_FILMS:])
    folded = f'<details><summary>{len(shown) - FIRST_FILMS} more</summary><div class="films">{more}</div></details>'
    heading = '<h3>Episodes that were not solved</h3><p class="fine">The table of episodes links to every film.</p>'
    return f'{heading}<div class="films">{first}</div>{folded if more else ""}'


def _picture(film: Film) -> str:
    if not film.strip:
        return "watch the film"
    return f'<img src="{film.strip}" alt="{for_html(f"Film strip of {film.label}")}" loading="lazy">'
