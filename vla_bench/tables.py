"""Rows of a run -> tables and text. Values in, values out; only `load` and `load_summary` read files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vla_bench.chains import ChainSummary, Share, broken_sentence, chain_summary, length_text, span_text
from vla_bench.grounding.table import HEADER as GROUNDING_HEADER
from vla_bench.grounding.table import TITLE, GroundingRow, grounding_rows, grounding_text
from vla_bench.rendering.renderers import MARK, Drawn, pixels_sentence, within
from vla_bench.stats.rates import Interval, bounds, percentile, samples_needed, wilson
from vla_bench.store import runs as store
from vla_bench.store.lock import is_held
from vla_bench.store.runs import RunInfo
from vla_bench.store.status import Status, incomplete
from vla_bench.text import aligned, for_markdown_line, markdown_table, shorten, terminal_text, visible, widths
from vla_bench.types import EpisodeResult
from vla_bench.video import NOT_FILMED

T = TypeVar("T")

if TYPE_CHECKING:
    import pandas as pd

PERCENTILES = (50, 95, 99)
TERMINAL_WIDTH = 100
LONGEST_CAUSE = 300  # characters of an error message on the screen; errors.log has it whole
HEADER = ("task", "successes", "rate", "95 % interval", "mean steps", "broken")


@dataclass(frozen=True)
class TaskRow:
    """One line of the table of tasks."""

    task: str
    episodes: int
    """Judged ones: a broken episode is neither success nor failure."""
    successes: int
    rate: float | None
    """successes / episodes; None when no episode has a verdict, as is mean_steps."""
    low: float
    """Ends of the 95 % Wilson interval of the rate."""
    high: float
    mean_steps: float | None
    """Control steps of judged episodes, failed ones included."""
    broken: int


@dataclass(frozen=True)
class LatencySummary:
    """Time per policy call, cold ones left out. Percentiles are None when samples are too few for them."""

    n: int
    missing: int
    """Calls that judged episodes count but inferences.parquet does not hold."""
    cold: int
    cold_max_ms: float | None
    inference_ms: dict[str, float | None]
    """p50, p95 and p99 of the wall time of the batched call that answered it."""
    action_ms: dict[str, float | None]
    """The same, each call's time divided by the actions executed from it: hides the stall between chunks."""
    needed: dict[str, int]
    """Samples that each percentile takes (MLPerf's rule at 99 % confidence)."""
    mean_ms: float | None
    """Mean wall time of the call that answered it."""
    stages_ms: dict[str, float]
    """Mean milliseconds per stage over the calls that timed it."""
    mean_batch: float | None
    mean_executed: float | None
    """Actions executed per call."""
    attainable_hz: float | None
    """Executed actions per second of policy time: the control rate if nothing else took time."""
    control_hz: float


@dataclass(frozen=True)
class WallSplit:
    """Where the wall time of all episodes went: set-up, render, physics, policy and other, which is the rest."""

    seconds: dict[str, float]
    shares: dict[str, float]
    """Of their sum; all 0 when no time was spent."""


@dataclass(frozen=True)
class Throughput:
    """Judged episodes per minute, of the whole run or, when its wall time is not known, of one worker."""

    episodes_per_minute: float | None
    per_worker: bool


@dataclass(frozen=True)
class RunSummary:
    """Everything `vla-bench show` says about a run."""

    title: str
    tasks: tuple[TaskRow, ...]
    overall: TaskRow
    bounds: Interval
    """Success rate if every broken episode had failed, and if every one had succeeded."""
    latency: LatencySummary
    throughput: Throughput
    wall: WallSplit
    chains: ChainSummary | None = None
    """How many instructions were done in a row; None for suites of single instructions."""
    grounding: tuple[GroundingRow, ...] = ()
    """Whether the policy looked at what it was to manipulate; empty when it did not tell its attention."""
    cause: str = ""
    """The first error that left an episode without a verdict, and where its traceback is."""
    notes: tuple[str, ...] = ()
    """That the run is not complete; how the duel ended that played it; how many actions were out of bounds, if any."""
    status: Status | None = None
    """How its last session ended; None where neither run.json nor the plan tells what is missing."""
    pixels: str = ""
    """A sentence, after the mark that the tables' headers have, when not all pixels are known to be the same."""

    def _repr_markdown_(self) -> str:
        """What Jupyter shows."""
        return render_markdown(self)


def load(path: str | Path) -> pd.DataFrame:
    """The episodes of a run, one row each, in the suite's order of tasks, whatever the order they were finished in.

    `success` is <NA> where there is no verdict, `out_of_bounds` where it was not counted. Raises UsageError.
    """
    import pandas as pd

    columns = [field.name for field in fields(EpisodeResult)]
    place = {task: number for number, task in enumerate(declared_tasks(store.read_info(path).protocol))}
    results = sorted(store.read_episodes(path), key=lambda row: place.get(row.task, 0))
    rows = [{name: utf8(getattr(result, name)) for name in columns} for result in results]
    return pd.DataFrame(rows, columns=columns).astype({"success": "boolean", "out_of_bounds": "Int64"})


def utf8(value: T) -> T | str:
    """The value; of a text what UTF-8 can hold: pandas refuses half a surrogate, and messages may have some."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()
    return value


def declared_tasks(protocol: Mapping[str, object]) -> list[str]:
    """The names in the protocol's list of [name, instructions ..., steps, trials], in the suite's order."""
    tasks = protocol.get("tasks")
    listed = tasks if isinstance(tasks, list | tuple) else []
    return [str(task[0]) for task in listed if isinstance(task, list | tuple) and task]


def drawn_in(episodes: pd.DataFrame) -> set[Drawn]:
    """What painted the judged ones of these episodes."""
    if not set(Drawn._fields) <= set(episodes):
        return {Drawn()}
    judged = episodes.loc[episodes["success"].notna(), list(Drawn._fields)].drop_duplicates()
    return {Drawn(*map(str, row)) for row in judged.itertuples(index=False, name=None)}


def status_of(info: RunInfo, episodes: pd.DataFrame) -> Status | None:
    """What run.json says, of an older run what its plan and its episodes say; None where that is nothing."""
    planned = info.plan.get("planned")
    if info.status or not isinstance(planned, int) or info.plan.get("stopped_by") == "duel":
        return info.status
    judged = int(episodes["success"].notna().sum())
    return Status("", planned, judged, len(episodes) - judged)


def incomplete_note(path: str | Path, status: Status | None, run: str = "This run") -> str:
    """The sentence on a run that is not complete; empty for one that is, or of which that is not known."""
    if status is None or status.complete:
        return ""
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    return incomplete(status, status.state == "started" and is_held(folder), run)


def stopping_notes(infos: Iterable[RunInfo]) -> list[str]:
    """What a reader has to know of runs that duels played: a sentence per duel."""
    played = [info for info in infos if info.plan.get("stopped_by") == "duel"]
    return list(dict.fromkeys(_duel_note(info.provenance.get("duel")) for info in played))


def _duel_note(ending: object) -> str:
    """How that duel ended, from what it left in run.json; older runs, in which it left nothing, get a hedged one."""
    too_sure = "p-values and intervals made for a fixed number of episodes look too sure here; the e-value holds."
    if not isinstance(ending, Mapping):
        return f"A duel played these runs. If it ended as soon as they differed enough, {too_sure}"
    policies, seen, planned = ending.get("policies", ()), ending.get("pairs"), ending.get("planned")
    who = f"The duel of {' and '.join(map(str, policies))}"
    if ending.get("verdict") == "not comparable":
        return f"{who} was called off after {seen} of {planned} pairs: their scenes differed."
    if ending.get("verdict") == "undecided":
        all_played = f"ended undecided with all {planned} pairs played: it stopped nothing early."
        return (
            f"{who} {all_played if seen == planned else f'was broken off undecided after {seen} of {planned} pairs.'}"
        )
    if seen == planned:
        return f"{who} was decided by the last of its {planned} pairs: it stopped nothing early."
    return f"{who} ended as soon as they differed enough, after {seen} of {planned} pairs: {too_sure}"


def _bounds_notes(episodes: pd.DataFrame) -> list[str]:
    """A sentence on the actions that the robot could not do as asked, if there were any."""
    counted = episodes[episodes["out_of_bounds"].notna()]
    outside, steps = int(counted["out_of_bounds"].sum()), int(counted["steps"].sum())
    if not outside:
        return []
    return [
        f"{outside:,} of {steps:,} control steps ({100 * outside / steps:.1f} %) had an action outside the bounds of "
        "the action space, which most simulators clip."
    ]


def load_summary(path: str | Path) -> RunSummary:
    """The summary of the run in that directory. Raises UsageError."""
    summary = summary_of(store.read_info(path), load(path), store.read_inferences(path))
    traces = Path(path) / store.ERRORS
    return replace(
        summary,
        cause=f"{summary.cause}; traceback in {traces}" if summary.cause else "",
        notes=(*filter(None, [incomplete_note(path, summary.status)]), *summary.notes),
    )


def summary_of(info: RunInfo, episodes: pd.DataFrame, inferences: pd.DataFrame) -> RunSummary:
    """All tables of one run."""
    total, drawn = _task_row("overall", episodes), drawn_in(episodes)
    seconds = info.provenance.get("run_seconds")
    policy, suite = (info.identity.get(name, "?") for name in ("policy", "suite"))
    return RunSummary(
        title=f"{policy} on {suite}, protocol {info.protocol_hash[:12]}",
        tasks=_task_rows(episodes),
        overall=total,
        bounds=bounds(total.successes, total.episodes - total.successes, total.broken),
        latency=latency(inferences, episodes, info.control_hz),
        throughput=throughput(episodes, seconds if isinstance(seconds, int | float) else None),
        wall=wall_split(episodes),
        chains=chain_summary(episodes),
        grounding=grounding(inferences, episodes),
        cause=_cause_in(episodes),
        notes=(*stopping_notes([info]), *_bounds_notes(episodes)),
        status=status_of(info, episodes),
        pixels=pixels_sentence(within(drawn), {"this run": drawn}),
    )


def cause(errors: Sequence[tuple[str, str]]) -> str:
    """`RuntimeError: it fell (2 of 3)`: the first of the (class, message) of broken episodes, and how many it hit."""
    if not errors:
        return ""
    name, message = errors[0]
    said = f"{name}: {message}".strip(" .:") or "no error was noted"
    said = visible(said)
    short = said if len(said) <= LONGEST_CAUSE else said[: LONGEST_CAUSE - 1] + "…"
    hit = [error for error, _ in errors].count(name)
    return f"{short} ({hit} of {len(errors)})" if len(errors) > 1 else short


def films_lost(rows: Iterable[EpisodeResult], path: Path) -> str:
    """The sentence on the films of that run which could not be made; empty when none was lost."""
    said = [row.message.removeprefix(NOT_FILMED) for row in rows if row.message.startswith(NOT_FILMED)]
    if not said:
        return ""
    split = [text.partition(": ") for text in said]
    return (
        f"{len(said)} {'video' if len(said) == 1 else 'videos'} could not be rendered: "
        f"{cause([(name, message) for name, _, message in split])}; traceback in {path / store.ERRORS}. The episodes "
        "are stored; --overwrite plays and films them again."
    )


def _cause_in(episodes: pd.DataFrame) -> str:
    broken = episodes[episodes["success"].isna()]
    return cause([*zip(broken["error"].map(str), broken["message"].map(str), strict=True)])


def grounding(inferences: pd.DataFrame, episodes: pd.DataFrame) -> tuple[GroundingRow, ...]:
    """Per task in the order of the episodes, and overall: shares and hits of the policy's attention."""
    return grounding_rows(inferences, list(map(str, episodes["task"].unique())))


def summarize(episodes: pd.DataFrame) -> pd.DataFrame:
    """The columns of TaskRow, one row per task in the order tasks first came."""
    return _frame(_task_rows(episodes))


def overall(episodes: pd.DataFrame) -> pd.DataFrame:
    """The columns of TaskRow in one row: all episodes pooled, which speaks of these tasks, not of tasks like these."""
    return _frame([_task_row("overall", episodes)])


def latency(inferences: pd.DataFrame, episodes: pd.DataFrame, control_hz: float) -> LatencySummary:
    """How fast the policy answered. Columns as in inferences.parquet and episodes.jsonl."""
    is_cold = inferences["cold"].astype(bool)
    warm, cold_ms = inferences[~is_cold], inferences.loc[is_cold, "latency_ms"]
    played = warm[warm["executed"] > 0]
    counted = int(episodes.loc[episodes["success"].notna(), "inferences"].sum())
    return LatencySummary(
        n=len(warm),
        missing=max(0, counted - len(inferences)),
        cold=len(cold_ms),
        cold_max_ms=float(cold_ms.max()) if len(cold_ms) else None,
        inference_ms=_percentiles(warm["latency_ms"]),
        action_ms=_percentiles(played["latency_ms"] / played["executed"]),
        needed={"p50": 1} | {f"p{p}": samples_needed(p) for p in PERCENTILES if p != 50},
        mean_ms=_mean(warm["latency_ms"]),
        stages_ms=_stages(warm),
        mean_batch=_mean(warm["batch"]),
        mean_executed=_mean(warm["executed"]),
        attainable_hz=_ratio(warm["executed"].sum(), warm["latency_ms"].sum() / 1000),
        control_hz=control_hz,
    )


def wall_split(episodes: pd.DataFrame) -> WallSplit:
    """Where the time went, broken episodes included: they took it too."""
    columns = {"set-up": "setup_s", "render": "render_s", "physics": "physics_s", "policy": "policy_s"}
    seconds = {name: float(episodes[column].sum()) for name, column in columns.items()}
    seconds["other"] = max(0.0, float(episodes["wall_s"].sum()) - sum(seconds.values()))
    total = sum(seconds.values())
    return WallSplit(seconds, {name: part / total if total else 0.0 for name, part in seconds.items()})


def throughput(episodes: pd.DataFrame, run_seconds: float | None) -> Throughput:
    """The pace of a run that took `run_seconds` of wall time over all its sessions; per worker when that is None."""
    seconds = episodes["wall_s"].sum() if run_seconds is None else run_seconds
    return Throughput(_ratio(episodes["success"].count() * 60, seconds), per_worker=run_seconds is None)


# --- output ---


def to_json(summary: RunSummary) -> dict[str, object]:
    """The summary as plain JSON values, full task names, rates as fractions, null for what is not known."""
    return {**asdict(summary), "bounds": summary.bounds._asdict()}


def render_text(summary: RunSummary) -> str:
    """The summary for a terminal of 100 columns."""
    sections = [
        [summary.title],
        _table(summary),
        _grounding_lines(summary.grounding),
        _latency_lines(summary.latency),
        _speed_lines(summary),
        list(summary.notes),
    ]
    return terminal_text(sections)


def render_markdown(summary: RunSummary) -> str:
    """The table of tasks, or of chains, for a README or a paper, with full names."""
    notes = [*filter(None, [summary.pixels]), *summary.notes]
    return "\n\n".join([*_markdown_tables(summary), *map(for_markdown_line, notes)])


def _markdown_tables(summary: RunSummary) -> list[str]:
    if summary.chains:
        return [markdown_table(rows) for rows in _chain_tables(summary.chains, summary.pixels)]
    rows = [(row.task, *_cells(row)) for row in summary.tasks]
    total = " | ".join(f"**{cell}**" for cell in ("overall", *_cells(summary.overall)))
    return [f"{markdown_table([marked(HEADER, summary.pixels), *rows])}\n| {total} |"]


def marked(header: tuple[str, ...], pixels: str) -> tuple[str, ...]:
    """The header of a table, with the mark of the sentence on its pixels if there is one."""
    return (f"{header[0]} {MARK}", *header[1:]) if pixels else header


def _table(summary: RunSummary) -> list[str]:
    if not summary.overall.episodes + summary.overall.broken:
        return ["No episode has finished yet."]
    if summary.chains:
        return _chain_lines(summary.chains, summary)
    cells = [HEADER[1:], *(_cells(row) for row in (*summary.tasks, summary.overall))]
    room = TERMINAL_WIDTH - sum(width + len(" | ") for width in widths(cells))
    first = marked(HEADER, summary.pixels)[0]
    names = [first, *shorten([row.task for row in summary.tasks], room), "overall"]
    header, rule, *lines, total = aligned([[name, *row] for name, row in zip(names, cells, strict=True)])
    return [header, rule, *lines, rule, total, *_broken_lines(summary), *filter(None, [summary.pixels])]


def _chain_lines(chains: ChainSummary, summary: RunSummary) -> list[str]:
    in_a_row, each = _chain_tables(chains, summary.pixels)
    broken = summary.overall.broken
    lines = [*aligned(in_a_row), *([broken_sentence(chains, broken), f"  {summary.cause}."] if broken else [])]
    lines += [summary.pixels] if summary.pixels else []
    return [*lines, "", *aligned(each)] if len(each) > 1 else lines


def _chain_tables(chains: ChainSummary, pixels: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Instructions done in a row with their mean, and every instruction; headers first."""
    in_a_row = [
        marked(("instructions done in a row", "chains", "rate", "95 % interval"), pixels),
        *map(_share_cells, chains.at_least),
        ("average length", str(chains.chains), length_text(chains), span_text(chains.low, chains.high)),
    ]
    return in_a_row, [
        marked(("instruction", "done", "rate", "95 % interval"), pixels),
        *map(_share_cells, chains.subtasks),
    ]


def _share_cells(share: Share) -> tuple[str, ...]:
    rate = "-" if share.rate is None else f"{100 * share.rate:.1f} %"
    return share.name, f"{share.done}/{share.n}", rate, f"{100 * share.low:.1f} – {100 * share.high:.1f} %"


def _cells(row: TaskRow) -> tuple[str, ...]:
    rate = "-" if row.rate is None else f"{100 * row.rate:.1f} %"
    steps = "-" if row.mean_steps is None else f"{row.mean_steps:.1f}"
    interval = f"{100 * row.low:.1f} – {100 * row.high:.1f} %"
    return f"{row.successes}/{row.episodes}", rate, interval, steps, str(row.broken)


def _broken_lines(summary: RunSummary) -> list[str]:
    if not (broken := summary.overall.broken):
        return []
    worst, best = (f"{100 * rate:.1f} %" for rate in summary.bounds)
    said = f"{broken} broken, so without a verdict: the rate is {worst} if all of them fail, {best} if all succeed."
    return [said, f"  {summary.cause}."]


def _grounding_lines(rows: Sequence[GroundingRow]) -> list[str]:
    if not rows:
        return []
    cells = [grounding_text(row)[1:] for row in rows]
    room = TERMINAL_WIDTH - sum(width + len(" | ") for width in widths([GROUNDING_HEADER[1:], *cells]))
    names = shorten([row.task for row in rows], room)
    without = rows[-1].without
    said = [f"left out: {without} inferences with nothing of it in view (+)"] if without else []
    return [TITLE, *aligned([GROUNDING_HEADER, *([n, *c] for n, c in zip(names, cells, strict=True))]), *said]


def _latency_lines(latency: LatencySummary) -> list[str]:
    missing = [f"left out: {latency.missing} inferences, whose timings were not kept"] if latency.missing else []
    if not latency.n + latency.cold:
        return [*missing, "No inference was timed."]
    cold = f"left out: {latency.cold} cold inferences, the slowest {_number(latency.cold_max_ms)} ms"
    return [
        *_percentile_table(latency),
        *_stage_table(latency),
        *([cold] if latency.cold else []),
        *missing,
        f"per inference, mean: {_number(latency.mean_executed)} actions, batch of {_number(latency.mean_batch)}",
        f"attainable control rate: {_number(latency.attainable_hz)} Hz; the suite's: {latency.control_hz:g} Hz",
    ]


def _percentile_table(latency: LatencySummary) -> list[str]:
    """Both kinds of latency, and what the percentiles that are not given still need."""
    kinds = {"per inference": latency.inference_ms, "per action": latency.action_ms}
    rows = [[name, *map(_number, values.values())] for name, values in kinds.items()]
    lacking = [name for name, ms in latency.inference_ms.items() if ms is None]
    needs = [f"{name}: needs {latency.needed[name]} inferences, have {latency.n}" for name in lacking]
    return [*aligned([["latency, ms", *latency.needed], *rows]), *needs]


def _stage_table(latency: LatencySummary) -> list[str]:
    """Where a call's mean time goes, as pi0's Table I has it; the rest is batch mates, checks and what is untimed."""
    if not latency.stages_ms or latency.mean_ms is None:
        return []
    rest = max(0.0, latency.mean_ms - sum(latency.stages_ms.values()))
    parts = {**latency.stages_ms, "rest": rest, "whole": latency.mean_ms}
    rows = [[name, _number(ms), f"{100 * ms / latency.mean_ms:.0f} %"] for name, ms in parts.items()]
    return ["", *aligned([["stage", "mean, ms", "share"], *rows]), ""]


def _speed_lines(summary: RunSummary) -> list[str]:
    pace, lines = summary.throughput, []
    if pace.episodes_per_minute is not None:
        whom = " per worker" if pace.per_worker else ""
        lines.append(f"speed: {_number(pace.episodes_per_minute)} episodes per minute{whom}")
    if any(summary.wall.shares.values()):
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in summary.wall.shares.items())
        lines.append(f"wall time: {shares}")
    return lines


def _number(value: float | None) -> str:
    """Three digits where they matter."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# --- parts ---


def _task_rows(episodes: pd.DataFrame) -> tuple[TaskRow, ...]:
    return tuple(_task_row(str(task), rows) for task, rows in episodes.groupby("task", sort=False))


def _task_row(task: str, episodes: pd.DataFrame) -> TaskRow:
    judged = episodes[episodes["success"].notna()]
    n, successes = len(judged), int(judged["success"].sum())
    low, high = wilson(successes, n)
    steps = _mean(judged["steps"])
    return TaskRow(task, n, successes, _ratio(successes, n), low, high, steps, broken=len(episodes) - n)


def _frame(rows: Sequence[TaskRow]) -> pd.DataFrame:
    import pandas as pd

    columns = [field.name for field in fields(TaskRow)]
    frame = pd.DataFrame([asdict(row) for row in rows], columns=columns)
    return frame.astype({"rate": "float64", "mean_steps": "float64"})


def _percentiles(samples: pd.Series[float]) -> dict[str, float | None]:
    return {f"p{p}": percentile(samples.to_numpy(), p) for p in PERCENTILES}


def _stages(warm: pd.DataFrame) -> dict[str, float]:
    """Stage name -> mean milliseconds, for the columns `stage_<name>_ms` that hold something."""
    columns = [name for name in map(str, warm) if name.startswith("stage_") and warm[name].notna().any()]
    return {name.removeprefix("stage_").removesuffix("_ms"): float(warm[name].mean()) for name in columns}


def _mean(values: pd.Series[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
