"""A baseline: the episodes of a run, small enough to commit, to hold later runs against."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vla_bench.compare.pairing import counted, episode_name, machine, policy_title
from vla_bench.errors import UsageError, unwritable
from vla_bench.store.files import make_folder, write_whole
from vla_bench.store.records import Misfit, Newer, lines_of, parsed, typed
from vla_bench.store.runs import (
    KEY,
    RunInfo,
    modern_protocol,
    read_inferences,
    read_info,
    refuse_impossible,
    refuse_long_chain,
)
from vla_bench.tables import incomplete_note, latency, load, status_of

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

FORMAT = 2


@dataclass(frozen=True)
class BaselineEpisode:
    """One line of a baseline file, after the first."""

    suite: str
    task: str
    trial: int
    seed: int
    perturbation: str
    success: bool
    steps: int
    scene_fingerprint: str
    final_fingerprint: str
    subgoals_done: int = 0
    subgoals: tuple[str, ...] = ()
    """Of a chain. For an episode of one instruction this is empty, the number above 0, and neither is written."""
    renderer: str = ""
    """As in a run's row, and the next two; what is empty is not written."""
    render_probe: str = ""
    start_fingerprint: str = ""


@dataclass(frozen=True)
class Baseline:
    """A run to hold others against. The file's first line has all but the episodes, and `"baseline": 2`."""

    suite: str
    policy: str
    """Name, checkpoint and arguments."""
    protocol_hash: str
    protocol: dict[str, object]
    latency_p50_ms: float | None
    """Median wall time per policy call, cold ones left out; None when none was timed."""
    machine: str
    successes: int
    episodes: tuple[BaselineEpisode, ...]


def frame(baseline: Baseline) -> pd.DataFrame:
    """The baseline's episodes with the columns that pairing needs."""
    import pandas as pd

    columns = [field.name for field in fields(BaselineEpisode)]
    return pd.DataFrame([asdict(row) for row in baseline.episodes], columns=columns).assign(video="")


def read_baseline(file: str | Path) -> Baseline:
    """The baseline in that file. Raises UsageError that names a corrupt line."""
    file = Path(file)
    if not os.path.lexists(file):
        advice = f"write it with vla-bench check RUN --baseline {file} --update"
        raise UsageError(f"The baseline {file} does not exist: {advice}.")
    lines = enumerate(lines_of(file), 1)
    _, first = next(lines, (1, b""))
    header, renderer = _parsed(file, 1, first, _header)
    episodes = [_parsed(file, number, line, partial(_episode, renderer=renderer)) for number, line in lines]
    baseline = replace(header, episodes=tuple(episodes))
    _refuse_strange(file, baseline)
    return baseline


def make_baseline(run: str | Path) -> Baseline:
    """The baseline that this run would be. Raises UsageError for a run with episodes that have no verdict."""
    info, episodes = read_info(run), load(run)
    if broken := int(episodes["success"].isna().sum()):
        raise UsageError(
            f"{run} has {counted(broken, 'episode')} without a verdict, so it is no baseline: run its command again."
        )
    if unfinished := incomplete_note(run, status_of(info, episodes), str(run)):
        raise UsageError(f"{unfinished} It is no baseline until it is complete.")
    planned = info.plan.get("planned", len(episodes))
    if isinstance(planned, int) and len(episodes) < planned:
        raise UsageError(f"{run} has {len(episodes)} of {planned} episodes, so it is no baseline: finish it first.")
    is_chain = episodes["subgoals"].map(bool).astype(bool)
    ordered = episodes.assign(subgoals_done=episodes["subgoals_done"].where(is_chain, 0)).sort_values(list(KEY))
    columns = [field.name for field in fields(BaselineEpisode)]
    rows = [BaselineEpisode(*row) for row in ordered[columns].astype({"success": bool}).itertuples(index=False)]
    return Baseline(
        suite=str(info.identity.get("suite", "?")),
        policy=policy_title(info.identity),
        protocol_hash=info.protocol_hash,
        protocol=info.protocol,
        latency_p50_ms=latency_p50(run, info, episodes),
        machine=machine(info),
        successes=sum(row.success for row in rows),
        episodes=tuple(rows),
    )


def write_baseline(baseline: Baseline, file: str | Path) -> None:
    """Replaces the file all at once: a reader sees the old baseline or the new one. Raises UsageError."""
    file = Path(file)
    header = {"baseline": FORMAT, **asdict(replace(baseline, episodes=())), "episodes": len(baseline.episodes)}
    lines = [json.dumps(line, separators=(",", ":")) for line in (header, *map(_line, baseline.episodes))]
    try:
        make_folder(file.parent)
        write_whole(file, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise unwritable(file, error) from error


def _line(episode: BaselineEpisode) -> dict[str, object]:
    line = asdict(episode)
    empty = {name for name in ("renderer", "render_probe") if not line[name]}
    empty |= set() if episode.subgoals else {"subgoals", "subgoals_done"}
    return {name: line[name] for name in line if name not in empty}


def describe(baseline: Baseline) -> str:
    """`fakes:Walker: 18 of 20 on toy, protocol 0123456789ab`."""
    return (
        f"{baseline.policy}: {baseline.successes} of {len(baseline.episodes)} on {baseline.suite}, "
        f"protocol {baseline.protocol_hash}"
    )


def latency_p50(run: str | Path, info: RunInfo, episodes: pd.DataFrame) -> float | None:
    """Median milliseconds per policy call, cold ones left out; None when none was timed."""
    return latency(read_inferences(run), episodes, info.control_hz).inference_ms["p50"]


def _header(line: object) -> tuple[Baseline, str]:
    """All but the episodes, and the renderer that painted those which do not tell theirs."""
    written = line.get("baseline") if isinstance(line, dict) else None
    if not isinstance(line, dict) or not isinstance(written, int):
        raise Misfit("the first line of a baseline says which format it has")
    if written > FORMAT:
        raise Newer(f"format {written}")
    header = typed(Baseline, {name: value for name, value in line.items() if name != "baseline"} | {"episodes": []})
    settings, hashed, renderer = modern_protocol(header.protocol, header.protocol_hash)
    return replace(header, protocol=settings, protocol_hash=hashed), renderer


def _episode(line: object, renderer: str) -> BaselineEpisode:
    episode = typed(BaselineEpisode, {"renderer": renderer, **line} if isinstance(line, dict) else line)
    names = (episode.suite, episode.task, episode.perturbation, *episode.subgoals)
    refuse_impossible(names, (episode.trial, episode.steps, episode.subgoals_done))
    refuse_long_chain(episode.subgoals_done, episode.subgoals)
    return episode


def _parsed(file: Path, number: int, line: bytes, parse: Callable[[object], T]) -> T:
    try:
        return parse(parsed(line))
    except Newer as error:
        raise UsageError(f"{file} was written by a newer vla-bench ({error}): upgrade this one.") from error
    except Misfit as error:
        what = "is no baseline" if number == 1 else f"line {number} is corrupt"
        raise UsageError(f"{file} {what} ({error}): restore it, or write it again with --update.") from error


def _refuse_strange(file: Path, baseline: Baseline) -> None:
    """Raises UsageError for a file without episodes or with one of them twice."""
    if not baseline.episodes:
        raise UsageError(f"{file} holds no episodes: write it again with --update.")
    keys = Counter((row.suite, row.task, row.trial, row.seed, row.perturbation) for row in baseline.episodes)
    if twice := next((key for key, times in keys.items() if times > 1), None):
        raise UsageError(f"{file} holds {episode_name(*twice[1:])} twice: restore it, or write it with --update.")
