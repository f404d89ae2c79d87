"""What of a run on disk is as it was written, and a new folder with that alone.

A row is sound when its checksum fits (`integrity`); in runs of an older vla-bench, which have none, if it can be read.
Where run.json was damaged, identity and protocol are believed if the checksums of the rows, which cover them, say that
they are what was played. Else the rows are saved without: the command that is given to go on has to fit them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from tyro.conf import Positional, arg

from vla_bench.compare.pairing import counted
from vla_bench.errors import EXIT_BROKEN, EXIT_DONE, UsageError, unwritable
from vla_bench.process.paths import TakesPaths, UserPath
from vla_bench.store import runs as store
from vla_bench.store.integrity import Checksums, begin, damages, ends_of, is_sound, protocol_hash, sound_lines
from vla_bench.store.lock import is_held
from vla_bench.store.runs import ACTIONS, EPISODES, ERRORS, INFERENCES, RUN, VIDEOS, RunInfo
from vla_bench.tables import incomplete_note
from vla_bench.text import terminal_text
from vla_bench.types import Episode, EpisodeResult

if TYPE_CHECKING:
    import pandas as pd

State = Literal["sound", "without checksums", "damaged"]
MANY = 50  # lines that a list in a text has
_NOT_SAID = RunInfo({}, {}, {}, protocol_hash({}), {}, 1.0)
"""In place of a run.json that does not say what was run."""


@dataclass(frozen=True)
class FsckConfig(TakesPaths):
    """Say what of runs is as it was written. Exit code 0: everything, 4: not everything."""

    runs: Positional[Annotated[tuple[UserPath, ...], arg(metavar="RUN ...")]]
    """Run directories, or folders of them."""
    recover: UserPath | None = None
    """Write what is sound of the run to this new folder, which resumes as any run does. Exit code 0: it is there."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True)
class Examined:
    """What was found in the folder of a run."""

    path: str
    state: State
    lines: int
    """Of episodes.jsonl."""
    sound_lines: int
    inferences: int
    """Timings of policy calls that are sound."""
    damages: tuple[str, ...]
    """A sentence for each thing that is not as it was written."""
    notes: tuple[str, ...]
    """What else there is to know."""


class Sound(NamedTuple):
    """What of a run is sound."""

    info: RunInfo | None
    """None where neither run.json nor the rows say what was run, or prove what somebody else says."""
    rows: Sequence[EpisodeResult]
    """In the order they were stored; the last of an episode counts."""
    inferences: pd.DataFrame


def run_folders(paths: Sequence[str | Path]) -> list[Path]:
    """The folders of those runs, and of the runs below. Raises UsageError for a path where there is none."""
    return list(dict.fromkeys(folder for path in paths for folder in _run_folders(Path(path))))


def _run_folders(path: Path) -> list[Path]:
    folder = path.parent if path.is_file() else path
    found = sorted(Path(here) for here, _, files in os.walk(folder) if {RUN, EPISODES} & set(files))
    if not found:
        what = "holds no run" if folder.exists() else "does not exist"
        raise UsageError(f"{path} {what}: give the directory that `vla-bench run` wrote, or a folder of such.")
    return found


def examine(folder: Path) -> tuple[Examined, Sound]:
    """What is sound in that folder, and what is not. Changes nothing."""
    info, of_info = _info(folder)
    lines, of_lines = _lines(folder)
    told = _told(info, lines, doubtful=bool(of_info))
    kept, of_rows = _rows(folder, info, told, lines, doubtful=bool(of_info))
    last = {row.episode: row for row in kept}
    inferences, of_inferences = _inferences(folder, info, told, last, doubtful=bool(of_info))
    found = (*of_info, *of_lines, *of_rows, *of_inferences)
    state: State = "damaged" if found else "sound" if told else "without checksums"
    notes = (*_notes(folder, info, last, inferences), *(_half(folder) if not of_lines else []))
    examined = Examined(str(folder), state, len(lines), len(kept), len(inferences), found, notes)
    return examined, Sound(_trusted(info, told, doubtful=bool(of_info)), kept, inferences)


def recover(folder: Path, out: Path) -> Examined:
    """What was found in the folder, once what is sound of it is a run in the folder `out`. Raises UsageError."""
    examined, sound = examine(folder)
    if sound.info is None:
        raise UsageError(
            f"Nothing of {folder} can be saved, for nothing says what was run: {' '.join(examined.damages)} "
            "Restore what was changed, or run its command again with another --out."
        )
    facts = {"from": str(folder), "left_out": list(examined.damages[:MANY])}
    info = replace(sound.info, provenance={**sound.info.provenance, "recovered": facts})
    judged = sum(row.success is not None for row in {row.episode: row for row in sound.rows}.values())
    if info.status and examined.damages:
        known = min(judged, info.status.planned)
        info = replace(info, status=replace(info.status, state="interrupted", judged=known, errored=0))
    store.write_anew(out, info, sound.rows, sound.inferences)
    _copy_beside(folder, out)
    return examined


def exit_code(found: Sequence[Examined]) -> int:
    """0 when everything is as it was written, as far as that can be told, else 4."""
    return EXIT_BROKEN if any(one.damages for one in found) else EXIT_DONE


# --- parts ---


def _info(folder: Path) -> tuple[RunInfo | None, list[str]]:
    """What run.json says, and why that cannot be trusted."""
    if not os.path.lexists(folder / RUN):
        return None, [f"{folder / RUN} is missing."]
    try:
        return store.read_doubtful_info(folder)
    except UsageError as error:
        return None, [str(error)]


def _lines(folder: Path) -> tuple[list[bytes], list[str]]:
    """The lines of episodes.jsonl, or why they cannot be read."""
    try:
        return list(store.stored_lines(folder / EPISODES)), []
    except UsageError as error:
        return [], [str(error)]


def _told(info: RunInfo | None, lines: Sequence[bytes], doubtful: bool) -> Checksums | None:
    """What run.json says of the lines, or what they say themselves where that is doubtful; None without checksums."""
    told = info.checksums if info else None
    if not doubtful:
        return told
    ends = ends_of(lines[0]) if lines else None
    for guess in filter(None, (told, Checksums(ends.after) if ends else None)):
        if any(is_sound(line, guess.first) for line in lines):
            return replace(guess, rows=0, last=guess.first)
    return None


def _rows(
    folder: Path, info: RunInfo | None, told: Checksums | None, lines: Sequence[bytes], doubtful: bool
) -> tuple[list[EpisodeResult], list[str]]:
    """The sound rows, and what is wrong with the others."""
    file = folder / EPISODES
    if told is None and doubtful and lines:
        return [], [f"{file} has no checksums that could show what it belongs to."]
    found = [f"{file} {said}." for said in damages(lines, told)] if told else []
    numbers = {line: number for number, line in reversed([*enumerate(lines, 1)])}
    rows = list[EpisodeResult]()
    for line in sound_lines(lines, told) if told else lines:
        try:
            rows.append(store.parse_row(file, numbers[line], line, info or _NOT_SAID))
        except UsageError as error:  # noqa: PERF203 each is told
            found.append(str(error))
    return rows, found


def _inferences(
    folder: Path,
    info: RunInfo | None,
    told: Checksums | None,
    rows: Mapping[Episode, EpisodeResult],
    doubtful: bool,
) -> tuple[pd.DataFrame, list[str]]:
    """The sound timings, and what is wrong with the others."""
    file = folder / INFERENCES
    there = file.exists()
    known = told.inferences if told else ()
    if doubtful and there and not known:  # a checksum that fits no file, for nothing says which would
        told = replace(told or Checksums(""), inferences=("unknown",))
    frame, found = store.sound_inferences(folder, rows, replace(info or _NOT_SAID, checksums=told))
    missing = [f"{file} is missing."] if known and "" not in known and not there else []
    return frame, [*missing, *found]


def _trusted(info: RunInfo | None, told: Checksums | None, doubtful: bool) -> RunInfo | None:
    """What can be said of what was run."""
    if info and not doubtful:
        return info
    if told is None:
        return None
    if info and begin(info.identity, info.protocol).first == told.first:
        played_at = info.protocol.get("control_hz")
        control_hz = float(played_at) if isinstance(played_at, int | float) else info.control_hz
        hashed = protocol_hash(info.protocol)
        return replace(info, protocol_hash=hashed, control_hz=control_hz, status=None, checksums=told)
    return replace(_NOT_SAID, checksums=told)


def _notes(
    folder: Path, info: RunInfo | None, rows: Mapping[Episode, EpisodeResult], inferences: pd.DataFrame
) -> list[str]:
    notes = [incomplete_note(folder, info.status)] if info else []
    if info and not info.identity:
        notes.append(f"It does not say what was run: the run's command with --out {folder} goes on with it.")
    if is_held(folder):
        notes.append("It is being written to now.")
    expected = sum(row.inferences for row in rows.values() if row.success is not None)
    if expected > len(inferences):
        lacking = counted(expected - len(inferences), "policy call")
        notes.append(f"The timings of {lacking} of sound episodes are not there.")
    return list(filter(None, notes))


def _half(folder: Path) -> list[str]:
    file = folder / EPISODES
    return [f"{file} ends in half a line, which is cut off when the run goes on."] if store.ends_in_half(file) else []


def _copy_beside(folder: Path, out: Path) -> None:
    """Films, recorded actions and tracebacks, which no checksum covers. Raises UsageError."""
    films = sorted((folder / VIDEOS).iterdir()) if (folder / VIDEOS).is_dir() else []
    for file in (folder / ERRORS, folder / ACTIONS, *films):
        if file.is_file() and not file.is_symlink():
            try:
                target = out / file.relative_to(folder)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
            except OSError as error:
                raise unwritable(target, error) from error


# --- output ---


def to_json(found: Sequence[Examined], recovered: str | None) -> dict[str, object]:
    """The same as plain JSON values, and where what is sound was written."""
    return {"runs": [asdict(one) for one in found], "recovered": recovered}


def render_text(found: Sequence[Examined], recovered: str | None) -> str:
    """A line per run that is sound, the damages of the others, for a terminal."""
    sections = [line for one in found for line in _lines_of(one, recovered is None)]
    saved = f"What is sound is in {recovered}: the run's command with --out {recovered} goes on with it."
    return terminal_text([sections, [saved] if recovered else []])


def _lines_of(one: Examined, advise: bool) -> list[str]:
    kept = f"{counted(one.sound_lines, 'row')}, {counted(one.inferences, 'inference')}"
    if one.state == "sound":
        return [f"{one.path}: sound: {kept}", *_indented(one.notes)]
    if one.state == "without checksums":
        said = "an older vla-bench wrote it, without checksums; it can be read"
        return [f"{one.path}: {said}: {kept}", *_indented(one.notes)]
    shown = one.damages[:MANY]
    more = [f"and {len(one.damages) - len(shown)} more, which --json lists"] if len(one.damages) > len(shown) else []
    advice = [f"vla-bench fsck {one.path} --recover OUT writes what is sound to a new folder."] if advise else []
    said = f"{one.sound_lines} of {counted(one.lines, 'row')} and {counted(one.inferences, 'inference')} are sound"
    return [f"{one.path}: DAMAGED: {said}", *_indented([*shown, *more, *one.notes, *advice])]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
