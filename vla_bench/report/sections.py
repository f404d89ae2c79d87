"""Runs -> sections of entrants that may be compared: same suite, same protocol hash, same perturbation.

An entrant is one policy with one checkpoint and one set of arguments. All its runs in a section count, every episode
once: where several runs hold it, the newest verdict does, and `notes` say so. A broken row never replaces a verdict.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vla_bench.errors import UsageError, in_a_line
from vla_bench.rendering.renderers import LIKENESSES, Drawn, Likeness, between, likeness, pixels_sentence, within
from vla_bench.shipped import name_of
from vla_bench.store import runs as store
from vla_bench.store.runs import KEY, RunInfo
from vla_bench.store.status import Status
from vla_bench.tables import declared_tasks, drawn_in, incomplete_note, load, status_of, stopping_notes, utf8

if TYPE_CHECKING:
    import pandas as pd

_TRACES = {store.RUN, store.INFERENCES, store.SPOOL}
"""Of a run, whatever else is missing; other tools write an episodes.jsonl too."""
SHORT = 8  # hex digits of a checkpoint's sha256 that are shown


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory, read."""

    path: Path
    info: RunInfo
    episodes: pd.DataFrame
    """The columns of EpisodeResult; `success` is <NA> where there is no verdict."""
    inferences: pd.DataFrame
    """The columns of inferences.parquet."""
    status: Status | None = None
    """How far it has come; None where that is not known."""

    @property
    def started(self) -> datetime:
        """When its last session began; when episodes.jsonl was written last, if run.json does not say."""
        try:
            said = datetime.fromisoformat(str(self.info.provenance["started"]))
            return said if said.tzinfo else said.replace(tzinfo=timezone.utc)
        except (KeyError, ValueError):
            return datetime.fromtimestamp((self.path / store.EPISODES).stat().st_mtime, timezone.utc)

    @property
    def machine(self) -> str:
        """What it ran on, as far as run.json says."""
        machine = self.info.provenance.get("machine")
        if not isinstance(machine, Mapping):
            return ""
        parts = [f"{part} {name}" if name == "cores" else str(part) for name, part in machine.items()]
        return ", ".join(reversed(parts))


class Found(NamedTuple):
    """What a results folder holds."""

    runs: tuple[Run, ...]
    unreadable: tuple[str, ...]
    """A sentence for every run directory that was left out."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """One policy in one section."""

    label: str
    """Unique in its section."""
    policy: str
    checkpoint: str
    """sha256 of the weights, or where they lie when that is not known; empty when there are none."""
    arguments: tuple[str, ...]
    runs: tuple[Run, ...]
    """Oldest first."""
    episodes: pd.DataFrame
    """Every episode once; the column `run` is the position in `runs`."""
    inferences: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def identity(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes it the same entrant in another section."""
        return self.policy, self.checkpoint, self.arguments

    @cached_property
    def drawn(self) -> set[Drawn]:
        """What painted its judged episodes."""
        return drawn_in(self.episodes)

    @cached_property
    def keys(self) -> set[tuple[object, ...]]:
        """Its episodes, broken ones included."""
        return set(self.episodes[list(KEY)].itertuples(index=False, name=None))


@dataclass(frozen=True, eq=False)
class Section:
    """Entrants whose numbers may stand in one table."""

    suite: str
    protocol_hash: str
    perturbation: str
    protocol: Mapping[str, object]
    control_hz: float
    entrants: tuple[Entrant, ...]
    notes: tuple[str, ...]
    """What a reader must know: other pixels or protocols, merged runs, unequal sets of episodes, several machines."""
    other_pixels: frozenset[str] = frozenset()
    """Labels of those that are not known to be painted with the pixels that most episodes have."""
    renderer: str = ""
    """What painted it, where runs of other pixels are in other sections."""

    @property
    def title(self) -> str:
        """Suite and perturbation, and what painted it if that was asked to matter."""
        painted = f", rendered by {self.renderer}" if self.renderer else ""
        return f"{self.suite}{f' / {self.perturbation}' if self.perturbation else ''}{painted}"

    @property
    def tasks(self) -> list[str]:
        """In the order of the suite; those the protocol does not name come last, as they were met."""
        met = dict.fromkeys(str(task) for entrant in self.entrants for task in entrant.episodes["task"].unique())
        order = declared_tasks(self.protocol)
        return [task for task in order if task in met] + [task for task in met if task not in order]


def load_run(path: str | Path) -> Run:
    """The run in that directory. Raises UsageError, also when it has no finished episode."""
    info, episodes, inferences = store.read_info(path), load(path), store.read_inferences(path)
    path = Path(path)
    return Run(path.parent if path.is_file() else path, info, episodes, inferences, status_of(info, episodes))


def find_runs(results: str | Path) -> Found:
    """Every run under that folder, itself included. Raises UsageError when there is none that can be read."""
    folder = Path(results)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a directory: give the folder that holds run directories, as results does.")
    found = _found(_run_folders(folder))
    if not found.runs:
        why = (
            f"none that can be read: {found.unreadable[0]}" if found.unreadable else f"none (no {store.RUN} anywhere)."
        )
        raise UsageError(f"{folder} should hold runs, and has {why} Make one with `vla-bench run`.")
    return found


def load_runs(paths: Sequence[str | Path]) -> Found:
    """The runs of those directories, each a run or a folder of runs. Raises UsageError for a path where there is none,
    and when none can be read."""
    runs, unreadable = list[Run](), list[str]()
    for path in dict.fromkeys(map(Path, paths)):
        if _is_run(path):
            found = _found([path])
        elif _run_folders(path):
            found = find_runs(path)
        else:
            found = Found((load_run(path),), ())
        runs += found.runs
        unreadable += found.unreadable
    if not runs and unreadable:
        raise UsageError(unreadable[0])
    unique = {run.path.resolve(): run for run in runs}
    return Found(tuple(unique.values()), tuple(unreadable))


def _is_run(path: Path) -> bool:
    folder = path.parent if path.is_file() else path
    return any(os.path.lexists(folder / name) for name in _TRACES)


def _run_folders(folder: Path) -> list[Path]:
    """Those at and below it that hold a run, or what is left of one."""
    return sorted(Path(path) for path, folders, files in os.walk(folder) if _TRACES & {*folders, *files})


def _found(paths: Iterable[Path]) -> Found:
    loaded = [_try_load(path) for path in paths]
    unreadable = tuple(why for why in loaded if isinstance(why, str))
    return Found(tuple(run for run in loaded if isinstance(run, Run)), unreadable)


def _try_load(path: Path) -> Run | str:
    """The run, or the sentence that says why it cannot be read: no run keeps others from being shown."""
    try:
        return load_run(path)
    except UsageError as error:
        return str(error)
    except Exception as error:
        return f"{path} cannot be read, which is a fault of vla-bench ({in_a_line(error)}): please report it."


def sections_of(runs: Iterable[Run], strict_renderer: bool = False) -> tuple[Section, ...]:
    """The runs by suite, protocol hash and perturbation, in alphabetical order of these; if asked for, also by what
    painted them, unless that is known to paint the same pixels."""
    parts = dict[tuple[str, str, str], list[Run]]()
    for run in runs:
        for (suite, perturbation), rows in run.episodes.groupby(["suite", "perturbation"], sort=False):
            key = (str(suite), run.info.protocol_hash, str(perturbation))
            parts.setdefault(key, []).append(_part(run, rows))
    protocols = {(suite, hashed): parts[suite, hashed, more][0].info.protocol for suite, hashed, more in parts}
    painted = {key: _by_pixels(parts[key]) if strict_renderer else {"": parts[key]} for key in sorted(parts)}
    return tuple(
        _section(key, its_runs, protocols, renderer, [other for other in groups if other != renderer])
        for key, groups in painted.items()
        for renderer, its_runs in groups.items()
    )


def differences(here: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    """One phrase per leaf in which two protocols differ: `name a here, b there`."""
    ours, theirs = _leaves(here), _leaves(there)
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return [f"{name} is {ours.get(name, 'not set')} here, {theirs.get(name, 'not set')} there" for name in names]


# --- entrants ---


def _part(run: Run, rows: pd.DataFrame) -> Run:
    """The run with these episodes only."""
    if len(rows) == len(run.episodes):
        return run
    inferences = run.inferences.merge(rows[list(KEY)], on=list(KEY))
    return Run(run.path, run.info, rows.reset_index(drop=True), inferences, run.status)


def _by_pixels(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """What painted them -> the runs, or parts of runs, that are known to have the same pixels. Episodes for which
    nothing was painted are with all of them. One group, named "", where all have the same pixels."""
    groups, unpainted = list[list[tuple[Drawn, Run]]](), list[Run]()
    for run in runs:
        for painted, rows in run.episodes.groupby(list(Drawn._fields), sort=False):
            drawn, part = Drawn(*map(str, painted)), _part(run, rows)
            if not drawn.renderer:
                unpainted.append(part)
            elif alike := [group for group in groups if all(likeness(drawn, other) == "equal" for other, _ in group)]:
                alike[0].append((drawn, part))
            else:
                groups.append([(drawn, part)])
    if len(groups) < 2:
        return {"": list(runs)}
    names = [str(group[0][0]) for group in groups]
    told = [name if names.count(name) == 1 else f"{name} {n}" for n, name in enumerate(names, 1)]
    return {name: [*(part for _, part in group), *unpainted] for name, group in zip(told, groups, strict=True)}


def _section(
    key: tuple[str, str, str],
    runs: Sequence[Run],
    protocols: Mapping[tuple[str, str], Mapping[str, object]],
    renderer: str,
    other_renderers: Sequence[str],
) -> Section:
    suite, hashed, perturbation = key
    by_identity = dict[tuple[str, str, tuple[str, ...]], list[Run]]()
    for run in sorted(runs, key=lambda run: (run.started, str(run.path))):
        by_identity.setdefault(_identity(run.info), []).append(run)
    labels = _labels(list(by_identity))
    entrants = tuple(
        _entrant(label, identity, its_runs)
        for label, (identity, its_runs) in zip(labels, by_identity.items(), strict=True)
    )
    protocol, control_hz = runs[0].info.protocol, runs[0].info.control_hz
    pixels = pixels_sentence(_likeness_of(entrants), _painted(entrants))
    notes = (
        *([pixels] if pixels else []),
        *(f"Not comparable with what is rendered by {other}: --strict-renderer." for other in other_renderers),
        *_other_protocols(suite, hashed, protocols),
        *(note for entrant in entrants for note in entrant.notes),
        *_unequal_episodes(entrants),
        *_several_machines(entrants),
        *_incomplete(entrants),
        *stopping_notes(run.info for run in runs),
    )
    marked = _other_pixels(entrants) if pixels else frozenset[str]()
    return Section(suite, hashed, perturbation, protocol, control_hz, entrants, notes, marked, renderer)


def _painted(entrants: Sequence[Entrant]) -> dict[str, frozenset[Drawn]]:
    """Labels -> what painted all these; those for which nothing was painted are left out."""
    labels = dict[frozenset[Drawn], list[str]]()
    for entrant in entrants:
        if drawn := frozenset(one for one in entrant.drawn if one.renderer):
            labels.setdefault(drawn, []).append(entrant.label)
    return {", ".join(own): drawn for drawn, own in labels.items()}


def _likeness_of(entrants: Sequence[Entrant]) -> Likeness:
    """The least likeness of any two of them, or within one."""
    found = {within(entrant.drawn) for entrant in entrants}
    found |= {between(a.drawn, b.drawn) for a, b in combinations(entrants, 2)}
    return max(found, key=LIKENESSES.index, default="equal")


def _other_pixels(entrants: Sequence[Entrant]) -> frozenset[str]:
    """Labels of those that are not known to be painted wholly as most of the painted episodes are."""
    import pandas as pd

    rows = pd.concat([entrant.episodes for entrant in entrants])
    counts = rows.loc[rows["renderer"] != "", list(Drawn._fields)].value_counts(sort=True)
    usual = {Drawn(*map(str, counts.index[0]))}
    return frozenset(entrant.label for entrant in entrants if between(entrant.drawn, usual) != "equal")


def _identity(info: RunInfo) -> tuple[str, str, tuple[str, ...]]:
    """Policy, checkpoint, arguments."""
    identity = info.identity
    checkpoint = identity.get("weights") or identity.get("checkpoint") or ""
    arguments = identity.get("policy_args") or ()
    if isinstance(arguments, Mapping):
        arguments = [f"{name}={value}" for name, value in arguments.items()]
    listed = arguments if isinstance(arguments, list | tuple) else [arguments]
    return (
        utf8(str(identity.get("policy", "?"))),
        utf8(str(checkpoint)),
        tuple(sorted(utf8(str(one)) for one in listed)),
    )


def _labels(identities: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[str]:
    """The shortest of policy; policy and checkpoint; policy, checkpoint and arguments that tells them apart."""
    forms = [
        (
            policy,
            f"{policy} {short_checkpoint(weights)}".strip(),
            " ".join([policy, short_checkpoint(weights), *arguments]),
        )
        for policy, weights, arguments in identities
    ]
    labels = [next((form for n, form in enumerate(own) if _once(form, n, forms)), own[-1]) for own in forms]
    return [label if labels.count(label) == 1 else f"{label} ({n + 1})" for n, label in enumerate(labels)]


def _once(form: str, n: int, forms: Sequence[tuple[str, ...]]) -> bool:
    return sum(other[n] == form for other in forms) == 1


def short_checkpoint(checkpoint: str) -> str:
    """The name of one that comes along; else the first digits of a hash, or the end of a path."""
    if name := name_of(checkpoint):
        return name
    is_hash = len(checkpoint) >= 40 and all(letter in "0123456789abcdef" for letter in checkpoint)
    return checkpoint[:SHORT] if is_hash else Path(checkpoint).name


def _entrant(label: str, identity: tuple[str, str, tuple[str, ...]], runs: Sequence[Run]) -> Entrant:
    import pandas as pd

    rows = pd.concat([run.episodes.assign(run=n) for n, run in enumerate(runs)], ignore_index=True)
    kept = _newest_verdicts(rows) if len(runs) > 1 else rows
    frames = [_calls_of(run, kept[kept["run"] == n]) for n, run in enumerate(runs)]
    inferences = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    return Entrant(label, *identity, tuple(runs), kept, inferences, tuple(_merge_notes(label, rows, kept, runs)))


def _newest_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per episode, in the order they came: the last with a verdict, the last of all when none has one."""
    judged_last = rows.iloc[rows["success"].notna().to_numpy().argsort(kind="stable")]
    return judged_last.drop_duplicates(list(KEY), keep="last").sort_index().reset_index(drop=True)


def _calls_of(run: Run, kept: pd.DataFrame) -> pd.DataFrame:
    """The inferences of those of its episodes that count."""
    return run.inferences if len(kept) == len(run.episodes) else run.inferences.merge(kept[list(KEY)], on=list(KEY))


# --- notes ---


def _merge_notes(label: str, rows: pd.DataFrame, kept: pd.DataFrame, runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return []
    if not (repeated := rows[rows.duplicated(list(KEY), keep=False)]).size:
        return [f"{label}: {len(runs)} runs with different episodes, taken together."]
    verdicts = repeated.dropna(subset="success").groupby(list(KEY))["success"].nunique()
    changed, times = int((verdicts > 1).sum()), len(repeated.drop_duplicates(list(KEY)))
    ended = f"; {changed} of them ended differently before" if changed else ""
    return [f"{label}: {times} of {len(kept)} episodes are in several of its runs, the newest verdict counts{ended}."]


def _other_protocols(suite: str, hashed: str, protocols: Mapping[tuple[str, str], Mapping[str, object]]) -> list[str]:
    """What separates this section from the others of the same suite."""
    here = protocols[suite, hashed]
    others = {other: protocol for (name, other), protocol in protocols.items() if name == suite and other != hashed}
    return [
        f"Not comparable with protocol {other}: {'; '.join(differences(here, protocol)) or 'the hashes differ'}."
        for other, protocol in others.items()
    ]


def _unequal_episodes(entrants: Sequence[Entrant]) -> list[str]:
    """Who did not play every episode of the section: its rate speaks of its own episodes only."""
    union = set[tuple[object, ...]]().union(*(entrant.keys for entrant in entrants))
    return [
        f"{entrant.label} has {len(entrant.keys)} of the {len(union)} episodes seen here; its rate is over those alone."
        for entrant in entrants
        if len(entrant.keys) < len(union)
    ]


def _incomplete(entrants: Sequence[Entrant]) -> list[str]:
    """A sentence for every run that did not come to its end."""
    runs = [(run, f"{entrant.label}: the run {run.path}") for entrant in entrants for run in entrant.runs]
    return [note for run, who in runs if (note := incomplete_note(run.path, run.status, who))]


def _several_machines(entrants: Sequence[Entrant]) -> list[str]:
    machines = {run.machine for entrant in entrants for run in entrant.runs}
    return (
        [f"Latencies come from {len(machines)} different machines: do not compare them."] if len(machines) > 1 else []
    )


# --- protocols ---


def _leaves(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Dotted name -> short JSON text of every value that is not itself a filled mapping."""
    leaves = dict[str, str]()
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = _brief(json.dumps(value, sort_keys=True, default=str))
    return leaves


def _brief(text: str, most: int = 60) -> str:
    """The text, or its beginning and a digest that still tells it from others."""
    if len(text) <= most:
        return text
    from hashlib import sha256

    return f"{text[: most - 20]}… (sha256 {sha256(text.encode()).hexdigest()[:8]})"


def as_json(run: Run) -> dict[str, object]:
    """run.json's content with the directory."""
    return {"path": str(run.path), **asdict(run.info)}
