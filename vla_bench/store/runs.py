"""One run on disk: run.json, episodes.jsonl (the source of truth) and inferences.parquet.

`append` makes an episode durable in two fsynced steps: its row and inferences go to a spool as one line, then the row
goes to episodes.jsonl. A spooled line counts only when its row is the last one of that episode in episodes.jsonl, so a
crash between the steps leaves an orphan that no reader sees, and the repeated episode cannot be doubled. `close` folds
the spool into the parquet file; readers see the same table before, during and after. Whatever is read is held against
its checksums (`integrity`).
"""

from __future__ import annotations

import difflib
import io
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from vla_bench.errors import UsageError, in_a_line, lacks_memory, unreadable, unwritable
from vla_bench.process.foreign import insist_on_process, is_ctrl_c
from vla_bench.rendering.renderers import without_renderer
from vla_bench.secrets import hidden, hidden_in, redacted
from vla_bench.store.files import append, opened, remove, temporary_of, truncate, write, write_whole
from vla_bench.store.integrity import (
    Chain,
    Checksums,
    at_the_end,
    begin,
    checksum,
    checksum_of,
    damages_of_info,
    is_sound,
    line_of,
    protocol_hash,
    sealed,
    without_ends,
)
from vla_bench.store.lock import LOCK, STAND_IN, Found, Lock, take
from vla_bench.store.records import LONGEST, Misfit, Newer, content_of, lines_of, open_file, parsed, typed
from vla_bench.store.status import State, Status
from vla_bench.text import for_log, for_terminal
from vla_bench.types import Episode, EpisodeResult, Float32, Inference

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
_END = 1 << 16  # bytes; longer than a line

SCHEMA = 3
RUN = "run.json"
EPISODES = "episodes.jsonl"
SPOOL = "inferences.partial.jsonl"
INFERENCES = "inferences.parquet"
ACTIONS = "actions.jsonl"
VIDEOS = "videos"
ERRORS = "errors.log"
CHOICE = ("task", "episodes", "first_trial", "planned")
"""What of a plan chooses the episodes."""
KEY = tuple(field.name for field in fields(Episode))
"""The columns that identify an episode, in episodes and inferences alike."""
INFERENCE_DTYPES = {
    "suite": "str",
    "task": "str",
    "trial": "int64",
    "seed": "int64",
    "perturbation": "str",
    "inference": "int64",
    "latency_ms": "float64",
    "queue_ms": "float64",
    "batch": "int64",
    "executed": "int64",
    "cold": "bool",
}
"""The fixed columns of inferences.parquet; a float64 `stage_<name>_ms` follows for every stage a policy times, and
float64 `grounding_share`, `grounding_chance` and `grounding_hit` where it tells its attention."""
TEXTS = tuple(name for name, kind in INFERENCE_DTYPES.items() if kind == "str")
MOST = 10**12
"""Of steps, calls, seconds and milliseconds of one episode: no damage is told from the truth by less."""
MOST_SUBGOALS = 100
LONGEST_NAME = 1000
SPARE_CALLS = 1_000_000
"""Rows that inferences.parquet may have beyond the inferences that the episodes count."""
MOST_BYTES = 2000
"""Of a row of inferences.parquet."""


@dataclass(frozen=True)
class RunInfo:
    """What run.json says. `identity` and `protocol` decide the numbers; `plan` may differ when a run is resumed."""

    identity: dict[str, object]
    """Policy, checkpoint, policy_args, suite, suite_args, seed, chunking: plain JSON values."""
    plan: dict[str, object]
    """Tasks, episodes, first trial, workers."""
    protocol: dict[str, object]
    protocol_hash: str
    provenance: dict[str, object]
    """Versions, hardware, command, git state, `run_seconds`."""
    control_hz: float
    schema: int = SCHEMA
    status: Status | None = None
    """None for a run of an older vla-bench, as is the next one."""
    checksums: Checksums | None = None


DETAILS: Mapping[str, Any] = {
    "identity.policy": str,
    "identity.suite": str,
    "plan.planned": int,
    "provenance.started": str,
    "provenance.run_seconds": float,
    "provenance.machine": Mapping[str, object],
    "provenance.renderer": str,
    "provenance.earlier": tuple[Mapping[str, object], ...],
    "provenance.duel": Mapping[str, object],
    "provenance.duel.policies": tuple[str, ...],
}
"""The type of what may be in a RunInfo's groups, if it is there."""


class Protocol(NamedTuple):
    """What decides states and verdicts, its hash, and the renderer that older runs counted to it."""

    settings: dict[str, object]
    hash: str
    renderer: str


class RunStore:
    """The one writer of a run directory. `notes` collects sentences for the screen."""

    def __init__(
        self, path: Path, info: RunInfo, previous: RunInfo | None, lock: Lock, planned: Sequence[Episode] | None = None
    ) -> None:
        self.path, self.notes = path, list(filter(None, [lock.note]))
        self.previous = previous
        """What run.json said before a resume."""
        self._lock = lock
        self._owner = os.getpid()
        if _mend(path / EPISODES):
            self.notes.append(f"{path / EPISODES} ended in half a line, now cut off: that episode runs again.")
        _mend(path / SPOOL)
        self._results = _results(path, previous) if previous else {}
        self._sizes = {name: _size(path / name) for name in (EPISODES, SPOOL)}
        """Of what only this process appends to."""
        self._planned = None if planned is None else frozenset(planned)
        continued = replace(_continued(info, previous), checksums=self._checksums_now(info))
        self.info = replace(continued, status=self._status_now())
        self._write_info()

    @classmethod
    def open(
        cls, path: str | Path, info: RunInfo, overwrite: bool = False, planned: Sequence[Episode] | None = None
    ) -> RunStore:
        """The run at `path`, begun or resumed. `overwrite` first deletes what an earlier run left, and nothing else.

        `planned` are the episodes that make it complete; run.json then says how many of them are done, and how it ends.

        Raises UsageError when the directory is not a run, holds another run, or another process is writing to it.
        """
        path = Path(path)
        with _failure(path):
            _refuse_foreign(path)
            lock = take(path)
            try:
                return cls(path, info, _previous(path, info, overwrite), lock, planned)
            except BaseException:
                lock.release()
                raise

    def append(self, result: EpisodeResult, inferences: Sequence[Inference]) -> None:
        """Makes an episode durable; with a verdict, its inferences too. A later row for the same episode replaces it.

        Raises UsageError when the disk does not take it: no half line is left then, and earlier episodes are safe.
        """
        if any((call.task, call.trial, call.seed) != (result.task, result.trial, result.seed) for call in inferences):
            raise ValueError(f"Inferences of another episode came with {result.episode}.")
        result = replace(result, error=hidden(result.error), message=hidden(result.message))
        row, told, status = asdict(result), self._told(), self.info.status
        spooled = {"row": row, "inferences": [hidden_in(asdict(call)) for call in inferences]}
        line = line_of(row, told)
        if result.success is not None:
            self._append_line(SPOOL, line_of(spooled, told).text)
        self._append_line(EPISODES, line.text)
        if status and self._planned and result.episode in self._planned:
            status = status.counting(result, self._results.get(result.episode))
        self._results[result.episode] = result
        told = replace(told, rows=told.rows + 1, last=line.checksum)
        self.info = replace(self.info, checksums=told, status=status)
        self.insist_in_place()

    def done(self) -> set[Episode]:
        """The episodes that have a verdict."""
        return _judged(self._results)

    def rows(self, episodes: Sequence[Episode]) -> list[EpisodeResult]:
        """The stored rows of these episodes, in their order; those without a row are left out."""
        return [self._results[episode] for episode in episodes if episode in self._results]

    def log_error(self, heading: str, trace: str) -> None:
        """Keeps a traceback for whoever wants to mend what broke; where that fails, a note."""
        insist_on_process(self._owner)
        with self.noting(), _failure(self.path / ERRORS):
            append(self.path / ERRORS, f"{for_terminal(hidden(heading))}\n{for_log(hidden(trace))}\n\n".encode())

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A UsageError inside becomes a note: what could not be written is no reason to lose what is to be told."""
        try:
            yield
        except UsageError as error:
            self.notes.append(str(error))

    def keep_provenance(self) -> None:
        """Puts back what run.json said before this session, which played nothing."""
        if self.previous is not None:
            self.info = replace(self.info, provenance=self.previous.provenance)
            self._write_info()

    def record_provenance(self, **facts: object) -> None:
        """Adds facts that are known only later (`run_seconds`) to run.json."""
        self.info = replace(self.info, provenance={**self.info.provenance, **facts})
        self._write_info()

    def insist_in_place(self) -> None:
        """Raises UsageError, telling what is lost, when the run is not where it was or not as this process left it."""
        if self._is_in_place():
            return
        found = self._lock.find()
        whole = self._sizes == {name: _size(name, found.folder) for name in self._sizes}
        raise UsageError(f"{self.path} {_what_became(found, whole, len(self._results))}")

    def _is_in_place(self) -> bool:
        found = self._lock.find()
        return found.there and found.locked and self._sizes == {name: _size(self.path / name) for name in self._sizes}

    def finish(self, state: State) -> None:
        """How the session ends, for run.json to say once it is closed; nothing where no episodes were planned."""
        if self.info.status:
            self.info = replace(self.info, status=replace(self.info.status, state=state))

    def close(self) -> None:
        """Folds the spool into inferences.parquet and lets go of the run. A failure is noted and loses nothing.

        What the disk holds is what counts from then on: an interrupt may have come between it and this process.
        """
        if not self._lock.held:
            return
        try:
            if self._is_in_place():
                self._results = _results(self.path, self.info)
                self._recount()
                self._compact()
        except (OSError, UsageError) as error:
            stay = f"The inferences stay in {self.path / SPOOL} until the next run: "
            self.notes.append(f"{stay if (self.path / SPOOL).exists() else ''}{error}")
        finally:
            self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self.insist_in_place()
            else:
                self.finish("interrupted" if is_ctrl_c(error) else "failed")
        finally:
            self.close()

    def _compact(self) -> None:
        """Folds the spool into inferences.parquet. While that is replaced, run.json allows for the old and the new."""
        if not (self.path / SPOOL).exists():
            self._write_info()
            return
        content = _parquet_of(_inferences(self.path, self._results, self.info))
        self._allow_inferences(*self._told().inferences, checksum(content))
        write_whole(self.path / INFERENCES, content)
        self._sizes.pop(SPOOL, None)  # this process takes it away itself
        remove(self.path / SPOOL)
        self._allow_inferences(checksum(content))

    def _allow_inferences(self, *sums: str) -> None:
        self.info = replace(self.info, checksums=replace(self._told(), inferences=sums))
        self._write_info()

    def _told(self) -> Checksums:
        assert self.info.checksums is not None
        return self.info.checksums

    def _checksums_now(self, info: RunInfo) -> Checksums:
        """Of the files as they are; the rows have been checked. Raises UsageError for inferences that were changed."""
        told, lines = self.previous.checksums if self.previous else None, [*stored_lines(self.path / EPISODES)]
        if told is None:
            told = replace(begin(info.identity, info.protocol), unchecked=len(lines))
        own = _checksum_of(self.path / INFERENCES)
        if told.inferences and own not in told.inferences:
            if own:
                raise UsageError(_changed_inferences(self.path))
            self.notes.append(f"{self.path / INFERENCES} is missing: the timings of stored episodes are left out.")
        return replace(at_the_end(lines, told), inferences=(own,))

    def _recount(self) -> None:
        """Brings what run.json will say to what the disk holds."""
        told, status = at_the_end([*stored_lines(self.path / EPISODES)], self._told()), self._status_now()
        state: State = self.info.status.state if self.info.status else ""
        self.info = replace(self.info, checksums=told, status=status and replace(status, state=state))

    def _status_now(self) -> Status | None:
        if self._planned is None:
            return None
        rows = [self._results[episode] for episode in self._planned & self._results.keys()]
        judged = sum(row.success is not None for row in rows)
        return Status("started", len(self._planned), judged, len(rows) - judged)

    def _append_line(self, name: str, line: str) -> None:
        safe = f"; {len(self._results)} episodes are safe, the same command again plays the others"
        with self._writing(name, safe) as file:
            self._sizes.pop(name, None)  # until it is known again: an interrupt may come in between
            self._sizes[name] = append(file, line.encode() + b"\n")

    def _write_info(self) -> None:
        with self._writing(RUN) as file:
            write_whole(file, _text_of(self.info))

    @contextmanager
    def _writing(self, name: str, then: str = "") -> Iterator[Path]:
        """The file of that name, if the run is in place. Raises UsageError, also when it cannot be written."""
        insist_on_process(self._owner)
        self.insist_in_place()
        try:
            yield self.path / name
        except OSError as error:
            self.insist_in_place()  # which explains it better
            raise unwritable(self.path / name, error, then) from error


def record_ending(path: str | Path, state: State) -> None:
    """Says in run.json how a session ended whose process could not. Raises UsageError, also when there is another."""
    if not (Path(path) / RUN).exists():
        return
    with _failure(Path(path)):
        lock = take(Path(path))
        try:
            info = read_info(path)
            if info.status and info.status.state == "started":
                write_whole(Path(path) / RUN, _text_of(replace(info, status=replace(info.status, state=state))))
        finally:
            lock.release()


def read_info(path: str | Path) -> RunInfo:
    """What run.json of that run says, of an older one as if it were written today.

    Raises UsageError, also for one that is not as it was written, or does not say what was run.
    """
    directory = _run_directory(path)
    if (info := _read_info(directory)).identity:
        return info
    raise UsageError(
        f"{directory} was recovered without what says what was run: give the run's command with --out {directory}."
    )


def _read_info(directory: Path) -> RunInfo:
    """The same, also where it does not say what was run."""
    info, damages = read_doubtful_info(directory)
    if damages:
        raise UsageError(f"{damages[0][:-1]}: {_ask_fsck(directory)}")
    return info


def read_doubtful_info(directory: Path) -> tuple[RunInfo, list[str]]:
    """What run.json there says, whether or not it was written so, and a sentence for all that shows that it was not.

    Raises UsageError for what no run.json says.
    """
    file = directory / RUN
    try:
        found = parsed(content_of(file, directory))
        return _modern(_parse_info(found)), [f"{file} {said}." for said in damages_of_info(found)]
    except FileNotFoundError as error:
        raise UsageError(f"{file} is a link to nothing: restore it or choose another run.") from error
    except Newer as error:
        raise UsageError(f"{file} was written by a newer vla-bench ({error}): upgrade this one.") from error
    except Misfit as error:
        raise UsageError(f"{file} is not what vla-bench writes ({error}): restore it or choose another run.") from error


def _parse_info(found: object) -> RunInfo:
    """What that JSON says, its DETAILS too. Raises Misfit; Newer for a later schema."""
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise Newer(f"schema {schema}")
    info = typed(RunInfo, without_ends(found))
    if not 1e-3 <= info.control_hz <= 1e6:
        raise Misfit(f"control_hz is {info.control_hz:g}, expected 0.001 to 1,000,000")
    refuse_impossible([info.protocol_hash])
    for name, kind in DETAILS.items():
        group, *path = name.split(".")
        value: object = getattr(info, group)
        while path and isinstance(value, Mapping) and path[0] in value:
            value = value[path.pop(0)]
        if not path:
            typed(kind, value, name)
    return info


def _text_of(info: RunInfo) -> bytes:
    """What run.json says of it."""
    facts = asdict(info) | {"provenance": hidden_in(info.provenance)}
    known = {name: value for name, value in facts.items() if value is not None}
    return (json.dumps(sealed(known), indent=2, allow_nan=False) + "\n").encode()


def modern_protocol(protocol: Mapping[str, Any], hashed: str) -> Protocol:
    """The protocol as it would be recorded today: the renderer counted to it once, and is a row's now."""
    settings, renderer = without_renderer(protocol)
    return Protocol(settings, protocol_hash(settings) if renderer else hashed, renderer)


def _modern(info: RunInfo) -> RunInfo:
    """The same with today's protocol; a renderer that was in it goes to the provenance, for rows that tell none."""
    settings, hashed, renderer = modern_protocol(info.protocol, info.protocol_hash)
    facts = {**info.provenance, "renderer": renderer} if renderer else info.provenance
    identity, facts = _without_secrets(info.identity), _without_secrets(facts)
    return replace(info, identity=identity, protocol=settings, protocol_hash=hashed, provenance=facts)


def _without_secrets(facts: dict[str, object]) -> dict[str, object]:
    """The same identity or session: earlier versions wrote the values of secrets there."""
    kept = dict(facts)
    for name in ("policy_args", "suite_args"):
        if isinstance(arguments := facts.get(name), list):
            kept[name] = redacted(map(str, arguments))
    if isinstance(command := facts.get("command"), str):
        kept["command"] = " ".join(redacted(command.split(" ")))
    if isinstance(earlier := facts.get("earlier"), list):
        kept["earlier"] = [_without_secrets(one) if isinstance(one, dict) else one for one in earlier]
    return kept


def write_anew(path: Path, info: RunInfo, rows: Sequence[EpisodeResult], inferences: pd.DataFrame) -> None:
    """A run of those rows in a folder that is new or empty, run.json last. Raises UsageError."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} is not empty: choose another folder.")
    told = replace(info.checksums or begin(info.identity, info.protocol), unchecked=0)
    told, lines = replace(told, rows=len(rows), last=told.first), list[str]()
    for row in rows:
        line = line_of(asdict(row), told)
        told = replace(told, last=line.checksum)
        lines.append(line.text + "\n")
    with _failure(path):
        lock = take(path)
        try:
            write_whole(path / EPISODES, "".join(lines).encode())
            write_whole(path / INFERENCES, content := _parquet_of(inferences))
            told = replace(told, inferences=(checksum(content),))
            write_whole(path / RUN, _text_of(replace(info, schema=SCHEMA, checksums=told)))
        finally:
            lock.release()


def _renderer_before(info: RunInfo) -> str:
    """What painted those rows that do not tell, as far as an earlier session said; "" where none did."""
    earlier = info.provenance.get("earlier")
    sessions = [info.provenance, *(earlier if isinstance(earlier, list) else [])]
    named = (session.get("renderer") for session in sessions if isinstance(session, Mapping))
    return next((name for name in named if isinstance(name, str)), "")


def read_episodes(path: str | Path) -> list[EpisodeResult]:
    """The last row of every episode, in the order they first came. Raises UsageError, also when there is none."""
    directory = _run_directory(path)
    if results := _results(directory, read_info(directory)):
        return list(results.values())
    raise UsageError(f"{directory} holds no finished episode yet: run its command again.")


def finished(path: Path, info: RunInfo, episodes: Sequence[Episode]) -> list[EpisodeResult]:
    """The rows of those episodes where all have a verdict and nothing is left to write; none otherwise.

    Raises UsageError when the directory holds another run.
    """
    if not (path / RUN).is_file() or (path / SPOOL).exists() or temporary_of(path / RUN).exists():
        return []
    there = _read_info(path)
    _refuse_other_run(path, there, info)
    results = _results(path, there)
    ended = there.status is not None and there.status.state == "complete"  # else run.json has that still to say
    other = any(there.plan.get(name) != info.plan.get(name) for name in CHOICE)
    if not ended or other or not _judged(results) >= {*episodes}:
        return []
    return [results[episode] for episode in episodes]


def read_inferences(path: str | Path) -> pd.DataFrame:
    """One row per policy call of every episode with a verdict; may be empty. Stages are columns `stage_<name>_ms`."""
    directory = _run_directory(path)
    info = read_info(directory)
    return _inferences(directory, _results(directory, info), info)


def record_actions(path: str | Path, episode: Episode, actions: Float32) -> None:
    """Appends the float32 (n, A) actions of one episode to that file, or to actions.jsonl in that directory."""
    if actions.ndim != 2:
        raise ValueError(f"Actions must have the shape (n, A), got {actions.shape}.")
    file = _actions_file(path)
    with _failure(file):
        _mend(file)
        line = {**asdict(episode), "actions": actions.astype(np.float32).tolist()}
        append(file, json.dumps(line, allow_nan=False).encode() + b"\n")


def read_actions(path: str | Path) -> dict[Episode, Float32]:
    """The recorded actions, float32 (n, A), of every episode. Raises UsageError, also when there are none."""
    file = _actions_file(path)
    if actions := dict(_records(file, stored_lines(file, anywhere=True), _parse_actions)):
        return actions
    raise UsageError(f"{file} holds no recorded actions: record some first, or give the file that has them.")


# --- opening ---


def _refuse_foreign(path: Path) -> None:
    """Raises UsageError when `path` holds something, but no run: before anything is created there."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, expected a directory: choose another --out.")
    leftovers = {LOCK, STAND_IN, temporary_of(path / RUN).name}  # of a run that was killed in its first moment
    if path.exists() and not (path / RUN).exists() and {entry.name for entry in path.iterdir()} - leftovers:
        raise UsageError(f"{path} is not empty and holds no {RUN}, so it is not a run: choose another --out.")


def _what_became(found: Found, whole: bool, rows: int) -> str:
    """What to tell of a run that is not in place; `whole` if all its rows are in the folder that was opened."""
    episodes = f"the {rows} stored episodes"
    if not whole and found.there:
        return (
            "was changed by another program while the run was writing to it: end that and run the same command again."
        )
    if not whole and found.replaced:
        return (
            f"was replaced by another folder while the run was writing to it: {episodes} were in the old one, which is "
            "deleted. The same command again plays what the new one lacks."
        )
    if not whole:
        return f"was deleted while the run was writing to it: {episodes} are lost, the same command again plays them."
    if found.there:
        return f"lost its lock while the run was writing to it: {episodes} are safe. Run the same command again."
    if found.place:
        return (
            f"was moved to {found.place} while the run was writing to it: {episodes} are there. Run it with that --out."
        )
    return f"was moved or deleted while the run was writing to it, and {episodes} with it: run the same command again."


def _previous(path: Path, info: RunInfo, overwrite: bool) -> RunInfo | None:
    """The run that is resumed, None when a new one begins."""
    if not (path / RUN).exists():
        return None
    if overwrite:
        _erase(path, *read_doubtful_info(path))  # a run.json of some other tool means hands off
        return None
    previous = _read_info(path)
    _refuse_other_run(path, previous, info)
    return previous


def _continued(info: RunInfo, previous: RunInfo | None) -> RunInfo:
    """The information of a session, with the run's earlier sessions and the seconds they took."""
    if previous is None:
        return info
    before = dict(previous.provenance)
    earlier = before.pop("earlier", [])
    sessions = [*(earlier if isinstance(earlier, list) else []), before]
    seconds = {"run_seconds": before["run_seconds"]} if "run_seconds" in before else {}
    return replace(info, provenance={**info.provenance, **seconds, "earlier": sessions})


def _refuse_other_run(path: Path, there: RunInfo, here: RunInfo) -> None:
    """Raises UsageError that names every field in which the two runs differ."""
    if not there.identity:
        _insist_on_first(path, there, here)
        return
    asked = _since(there.identity, here.identity, "content", "imports")
    if "imports" not in there.identity and there.identity.get("code") == "":
        asked["code"] = ""  # of a plug-in's name the code was not recorded before imports were
    same = _are_same_weights(there.identity, asked)  # then it does not matter how their path was written
    differences = _differences(there.identity, asked | ({"checkpoint": there.identity["checkpoint"]} if same else {}))
    before = _since(there.protocol, here.protocol, "code")
    told = _differences(there.protocol, before, "protocol.")
    if there.protocol_hash != here.protocol_hash and (told or before == here.protocol):
        differences += told
        differences += [f"protocol_hash is {there.protocol_hash!r} there and {here.protocol_hash!r} here"]
    if differences:
        what = "; ".join(differences)
        raise UsageError(f"{path} holds another run: {what}. Choose another --out, or --overwrite to start again.")


def _insist_on_first(path: Path, there: RunInfo, here: RunInfo) -> None:
    """Raises UsageError unless the rows, which were recovered without what says what was run, are this run's."""
    if there.checksums is None or there.checksums.first != begin(here.identity, here.protocol).first:
        raise UsageError(
            f"{path} holds recovered rows of another run, by their checksums: give the command that they were played "
            "with, or choose another --out."
        )


def _since(there: Mapping[str, object], here: Mapping[str, object], *names: str) -> dict[str, object]:
    """`here` without those names that runs of an earlier version do not have: they are resumed without asking."""
    return {name: value for name, value in here.items() if name in there or name not in names}


def _are_same_weights(there: Mapping[str, object], here: Mapping[str, object]) -> bool:
    known = bool(there.get("weights")) and "checkpoint" in there
    return known and all(there.get(name, "") == here.get(name, "") for name in ("weights", "content"))


def _differences(there: Mapping[str, object], here: Mapping[str, object], prefix: str = "") -> list[str]:
    """One phrase per leaf in which two JSON values differ, as they would look after a round trip through a file."""
    old, new = _leaves(there, prefix), _leaves(here, prefix)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} is {old.get(name, 'not set')} there and {new.get(name, 'not set')} here" for name in names]


def _leaves(values: Mapping[str, object], prefix: str) -> dict[str, str]:
    """Dotted name -> JSON text of every value that is not itself a (filled) mapping."""
    leaves = dict[str, str]()
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = json.dumps(value, sort_keys=True, allow_nan=False)
    return leaves


def _erase(path: Path, there: RunInfo, damages: Sequence[str]) -> None:
    """Deletes what a run leaves except run.json, which is replaced next and no longer promises the rest.

    Inferences go first: they need their rows.
    """
    if there.checksums and not damages:
        nothing = replace(there.checksums, rows=0, last=there.checksums.first, inferences=())
        status = there.status and replace(there.status, state="started", judged=0, errored=0)
        write_whole(path / RUN, _text_of(replace(there, checksums=nothing, status=status)))
    for name in (SPOOL, INFERENCES, temporary_of(path / INFERENCES).name, ACTIONS, ERRORS, EPISODES):
        remove(path / name)
    if (path / VIDEOS).is_dir() and not (path / VIDEOS).is_symlink():
        shutil.rmtree(path / VIDEOS)


def _run_directory(path: str | Path) -> Path:
    """The directory of the run at `path`, which may also be a file in it. Raises UsageError."""
    path = Path(path)
    directory = path.parent if path.is_file() else path
    if os.path.lexists(directory / RUN):
        return directory
    near = difflib.get_close_matches(path.name, [run.parent.name for run in path.parent.glob(f"*/{RUN}")])
    hint = f" Did you mean {' or '.join(str(path.parent / name) for name in near)}?" if near else ""
    what = f"is not a run (it holds no {RUN})" if path.exists() else "does not exist"
    raise UsageError(f"{path} {what}: give the directory that `vla-bench run` wrote.{hint}")


# --- rows ---


def _results(directory: Path, info: RunInfo) -> dict[Episode, EpisodeResult]:
    """The last row of every episode. Raises UsageError, also when the lines are not those that were stored."""
    file, parse = directory / EPISODES, partial(_parse_result, renderer=_renderer_before(info))
    lines = stored_lines(file)
    if info.checksums:
        lines = _checked(file, lines, info.checksums)
    return {result.episode: result for result in _records(file, lines, parse)}


def _checked(file: Path, lines: Iterable[bytes], told: Checksums) -> Iterator[bytes]:
    """The lines. Raises UsageError at the first that is not as it was written, and for those that are missing."""
    chain = Chain(told)
    for line in lines:
        if said := chain.take(line):
            raise UsageError(f"{file} {said}: {_ask_fsck(file.parent)}")
        yield line
    if said := chain.end():
        raise UsageError(f"{file} {said}: {_ask_fsck(file.parent)}")


def _ask_fsck(directory: Path) -> str:
    return f"vla-bench fsck {directory} says what is sound, and saves it with --recover OUT."


def _judged(results: Mapping[Episode, EpisodeResult]) -> set[Episode]:
    return {episode for episode, result in results.items() if result.success is not None}


def _parse_result(row: object, renderer: str) -> EpisodeResult:
    """The row; one of an older run, which does not name its renderer, was rendered by that one."""
    row = without_ends(row)
    result = typed(EpisodeResult, {"renderer": renderer, **row} if isinstance(row, dict) else row)
    latencies = (result.latency_mean_ms, result.latency_max_ms)
    seconds = (result.wall_s, result.setup_s, result.physics_s, result.render_s, result.policy_s, result.sim_s)
    refuse_impossible(
        (result.suite, result.task, result.perturbation, result.video, *result.subgoals),
        (result.trial, result.subgoals_done, result.steps, result.inferences, result.attempts),
        (*latencies, *seconds),
    )
    refuse_long_chain(result.subgoals_done, result.subgoals)
    return result


def refuse_impossible(names: Sequence[str], counts: Sequence[int] = (), numbers: Sequence[float] = ()) -> None:
    """Raises Misfit for what no episode can have, and for what tables and figures cannot take."""
    if wrong := next((name for name in names if len(name) > LONGEST_NAME or not _is_utf8(name)), None):
        raise Misfit(f"names have at most {LONGEST_NAME} letters, all of them UTF-8, got {wrong[:40]!r}")
    if (wrong_count := next((count for count in counts if not 0 <= count <= MOST), None)) is not None:
        raise Misfit(f"counts are 0 to {MOST}, got {wrong_count}")
    if (wrong_time := next((number for number in numbers if abs(number) > MOST), None)) is not None:
        raise Misfit(f"times are at most {MOST}, got {wrong_time:g}")


def refuse_long_chain(done: int, subgoals: Sequence[str]) -> None:
    """Raises Misfit for more subgoals than an episode has, or can have; rows of older chains do not name theirs."""
    if done > (len(subgoals) or MOST_SUBGOALS) or len(subgoals) > MOST_SUBGOALS:
        raise Misfit(f"{done} of {len(subgoals)} subgoals were done")


def _is_utf8(text: str) -> bool:
    """Half surrogates are not: tables cannot hold them."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True)
class _Spooled:
    """One line of the spool."""

    row: Mapping[str, object]
    inferences: tuple[Inference, ...]


def _parse_spooled(line: object, renderer: str) -> tuple[EpisodeResult, list[dict[str, object]]]:
    spooled = typed(_Spooled, without_ends(line))
    result = _parse_result(spooled.row, renderer)
    return result, [_columns(call) | asdict(result.episode) for call in spooled.inferences]


def _columns(call: Inference) -> dict[str, object]:
    """One row of the table: stages and grounding become columns of their own."""
    times = (call.latency_ms, call.queue_ms, *call.stages.values())
    refuse_impossible(tuple(call.stages), (call.inference, call.batch, call.executed), times)
    own = {name: value for name, value in vars(call).items() if name not in ("stages", "grounding")}
    own |= {f"stage_{name}_ms": ms for name, ms in call.stages.items()}
    grounding = vars(call.grounding) if call.grounding else {}
    return own | {f"grounding_{name}": math.nan if value is None else float(value) for name, value in grounding.items()}


@dataclass(frozen=True)
class _Acted(Episode):
    """One line of recorded actions."""

    actions: object = ()


def _parse_actions(row: object) -> tuple[Episode, Float32]:
    acted = typed(_Acted, row)
    try:
        with np.errstate(over="ignore"):
            actions = np.array(acted.actions, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise Misfit(f"actions are no table of numbers: {error}") from error
    if (actions.ndim != 2 and actions.size) or not np.isfinite(actions).all():
        raise Misfit(f"actions are {actions.dtype} of the shape {actions.shape}, expected finite ones, (n, A)")
    episode = Episode(acted.suite, acted.task, acted.trial, acted.seed, acted.perturbation)
    return episode, actions.reshape(len(actions), -1) if actions.size else np.zeros((0, 0), np.float32)


def _actions_file(path: str | Path) -> Path:
    return Path(path) / ACTIONS if Path(path).is_dir() else Path(path)


# --- inferences ---


def _inferences(directory: Path, results: Mapping[Episode, EpisodeResult], info: RunInfo) -> pd.DataFrame:
    """Parquet and spool as one table, without the rows of episodes that lack a verdict. Raises UsageError."""
    table, damages = sound_inferences(directory, results, info)
    if damages:
        raise UsageError(damages[0])
    return table


def sound_inferences(
    directory: Path, results: Mapping[Episode, EpisodeResult], info: RunInfo
) -> tuple[pd.DataFrame, list[str]]:
    """What can be read of them and is as it was written, and a sentence for all that cannot or is not."""
    import pandas as pd

    spooled, damages = _spooled(directory, results, info)
    most = SPARE_CALLS + sum(min(result.inferences, SPARE_CALLS // 10) for result in results.values())
    try:
        stored = _read_parquet(directory, most, info.checksums)
    except UsageError as error:
        stored, damages = _frame([]), [*damages, str(error)]
    keep = _judged(results) - spooled.keys()
    kept = [Episode(*key) in keep for key in zip(*(stored[name].tolist() for name in KEY), strict=True)]
    stored = stored.loc[np.array(kept, bool)].astype(dict.fromkeys(TEXTS, "str"))
    frames = [stored, _frame([call for calls in spooled.values() for call in calls])]
    return pd.concat([frame for frame in frames if len(frame)] or [_frame([])], ignore_index=True), damages


def _spooled(
    directory: Path, results: Mapping[Episode, EpisodeResult], info: RunInfo
) -> tuple[dict[Episode, list[dict[str, object]]], list[str]]:
    """The calls of those spooled rows that are among the results, and what is wrong with the other lines.

    Where an older vla-bench began, it may have spooled some without checksums.
    """
    file, told, parse = directory / SPOOL, info.checksums, partial(_parse_spooled, renderer=_renderer_before(info))
    spooled, damages = dict[Episode, list[dict[str, object]]](), list[str]()
    try:
        for number, line in enumerate(stored_lines(file), 1):
            if told and not told.unchecked and not is_sound(line, told.first):
                changed = f"{file} line {number} was changed after it was written"
                damages.append(f"{changed}: restore it, or delete that line to go on without its timings.")
                continue
            row, calls = _record(file, number, line, parse)
            if results.get(row.episode) == row:
                spooled[row.episode] = calls
    except UsageError as error:
        damages.append(str(error))
    return spooled, damages


def _parquet_of(frame: pd.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.to_parquet(written, engine="pyarrow", index=False)
    return written.getvalue()


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with every column, the fixed ones first; of the others, what a call lacks is NaN."""
    import pandas as pd

    others = dict.fromkeys(name for row in rows for name in row if name not in INFERENCE_DTYPES)
    return pd.DataFrame(rows, columns=[*INFERENCE_DTYPES, *others]).astype(
        {**INFERENCE_DTYPES, **dict.fromkeys(others, "float64")}
    )


def _read_parquet(directory: Path, most: int, told: Checksums | None) -> pd.DataFrame:
    """The stored table, its texts as categories. Raises UsageError, also for one of more rows than `most`, or that is
    not what was written."""
    file = directory / INFERENCES
    try:
        stream = open_file(file, file.parent)
    except FileNotFoundError:
        return _frame([])
    with stream:
        if (size := os.fstat(stream.fileno()).st_size) > most * MOST_BYTES:
            raise UsageError(f"{file} has {size} bytes for at most {most} inferences: delete it, or restore it.")
        if told and told.inferences:
            _insist_on_inferences(directory, checksum_of(stream), told)
        try:
            return _table(stream, most)
        except Exception as error:  # damaged files make pyarrow raise errors of nearly every kind
            if lacks_memory(error):
                raise
            if isinstance(error, OSError) and error.errno:
                raise unreadable(file, error) from error
            said = in_a_line(error) if type(error) is not Misfit else error
            raise UsageError(f"{file} cannot be read ({said}): delete it to go on without these timings.") from error


def _table(stream: BinaryIO, most: int) -> pd.DataFrame:
    """The table in an open parquet file. Raises errors of any kind where it is damaged, or too large to be true."""
    import pyarrow.parquet as pq

    about = pq.read_metadata(stream)
    names = about.schema.to_arrow_schema().names
    if missing := INFERENCE_DTYPES.keys() - set(names):
        raise Misfit(f"no column {', '.join(sorted(missing))}")
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    size, rows = sum(group.total_byte_size for group in groups), sum(group.num_rows for group in groups)
    others = [name for name in names if name.startswith(("stage_", "grounding_"))]
    if rows > most or size > 20_000_000 + 16 * rows * len(names):
        raise Misfit(f"{rows} rows in {size} bytes, where the episodes have at most {most} inferences")
    parquet = pq.ParquetFile(stream, metadata=about, read_dictionary=list(TEXTS))
    numbers = {name: kind for name, kind in INFERENCE_DTYPES.items() if kind != "str"}
    # Without threads: pyarrow waits for ever for those that it could not start for lack of memory.
    table = parquet.read([*INFERENCE_DTYPES, *others], use_threads=False)
    frame: pd.DataFrame = table.to_pandas(use_threads=False, ignore_metadata=True)
    frame = frame.astype({**numbers, **dict.fromkeys(others, "float64")})
    times = ["latency_ms", "queue_ms"]
    if len(frame):
        counts = frame[["inference", "batch", "executed"]].to_numpy()
        refuse_impossible(others, (counts.min(), counts.max()), frame[[*times, *others]].abs().max().dropna().tolist())
    if frame[times].isna().any(axis=None):
        raise Misfit("a time is no number")
    return frame


def _insist_on_inferences(directory: Path, own: str, told: Checksums) -> None:
    """Raises UsageError for a parquet file of a checksum that run.json does not tell."""
    if own not in told.inferences:
        now = read_info(directory).checksums  # of a session that has ended since
        if now is None or own not in now.inferences:
            raise UsageError(_changed_inferences(directory))


def _changed_inferences(directory: Path) -> str:
    file = directory / INFERENCES
    return f"{file} was changed after it was written: restore it, or delete it to go on without these timings."


def _checksum_of(file: Path) -> str:
    """That of the file in the run; empty when there is none. Raises UsageError as `open_file`."""
    try:
        with open_file(file, file.parent) as stream:
            return checksum_of(stream)
    except FileNotFoundError:
        return ""


# --- files ---


@contextmanager
def _failure(file: Path) -> Iterator[None]:
    """Turns an OSError inside into a UsageError that names the file, the reason and what to do."""
    try:
        yield
    except OSError as error:
        raise unwritable(file, error) from error


def _records(file: Path, lines: Iterable[bytes], parse: Callable[[object], T]) -> Iterator[T]:
    """Every line of that JSONL file, parsed. UsageError names a corrupt one."""
    return (_record(file, number, line, parse) for number, line in enumerate(lines, 1))


def _record(file: Path, number: int, line: bytes, parse: Callable[[object], T]) -> T:
    try:
        return parse(parsed(line))
    except Newer as error:
        raise UsageError(f"{file} line {number} is of a newer vla-bench ({error}): upgrade this one.") from error
    except Misfit as error:
        raise UsageError(f"{file} line {number} is corrupt ({error}): restore it or delete that line.") from error


def parse_row(file: Path, number: int, line: bytes, info: RunInfo) -> EpisodeResult:
    """The row in that line of that run's file. Raises UsageError."""
    return _record(file, number, line, partial(_parse_result, renderer=_renderer_before(info)))


def stored_lines(file: Path, anywhere: bool = False) -> Iterator[bytes]:
    """All lines of a run's file but what was half written after them, as `_split` tells it; without their ends.

    The file may be a link that leads `anywhere`, or else only within its folder.
    """
    last = b""
    for line in lines_of(file, None if anywhere else file.parent):
        if last:
            yield _bare(last)
        last = line
    lines, tail = _split(last)
    if lines or _is_json(tail):
        yield _bare(last)


def ends_in_half(file: Path) -> bool:
    """Whether a line was half written at its end."""
    last = b"".join(deque(lines_of(file, file.parent), maxlen=1))
    lines, tail = _split(last)
    return bool(last) and not lines and not _is_json(tail)


def _bare(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _is_json(line: bytes) -> bool:
    """Whether a line is whole: no beginning of a JSON object is itself JSON."""
    try:
        parsed(line)
    except Misfit:
        return False
    return True


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """The lines, and what was half written after them.

    That is also a last line in which sectors are zeros: they did not reach the disk before a power cut.
    """
    *lines, tail = content.split(b"\n")
    return (lines[:-1], lines[-1] + b"\n") if not tail and lines and b"\0" in lines[-1] else (lines, tail)


def _mend(file: Path) -> bool:
    """Whether a half-written last line had to be cut off; a whole one that lacks only its newline gets it."""
    if not file.exists():
        return False
    with opened(file, os.O_RDWR | os.O_APPEND) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(-min(size, _END), os.SEEK_END)
        if not size or ((end := stream.read()).endswith(b"\n") and b"\0" not in end):
            return False
        stream.seek(start := max(0, size - LONGEST - 2))
        lines, tail = _split(stream.read())
        if start and not lines:  # longer than any that was written; readers will say so
            return False
        if whole := _is_json(tail):
            write(descriptor, b"\n")
        else:
            truncate(descriptor, size - len(tail))
        return not whole


def _size(name: str | Path, folder: int | None = None) -> int:
    """Bytes of that file, 0 when there is none; in the folder open under that descriptor."""
    try:
        return os.stat(name, dir_fd=folder).st_size
    except OSError:
        return 0
