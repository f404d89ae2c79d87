"""Which episodes of two runs are pairs: the same episode, judged in both, on the same scene.

The same episode means that suite, task, trial, seed and perturbation are equal; the fingerprints prove the scene.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vla_bench.rendering.renderers import Drawn, Likeness, least_alike, pixels_sentence, within
from vla_bench.store.runs import KEY, RunInfo
from vla_bench.tables import drawn_in

if TYPE_CHECKING:
    import pandas as pd

FEW = 10  # things that a sentence names one by one


@dataclass(frozen=True)
class Pairing:
    """What became of the episodes of both runs."""

    paired: int
    """In both, with verdicts, on the same scene."""
    only_a: int
    only_b: int
    unjudged: int
    """In both, but without a verdict in at least one."""
    mismatched: tuple[str, ...]
    """Episodes in both, whose scenes were not the same or are not known."""
    identical: int
    """Pairs that ended in the same state of the simulator, bit for bit."""
    pixels: Likeness = "equal"
    """Whether both episodes of all pairs were painted with the same pixels."""


@dataclass(frozen=True)
class Discordant:
    """An episode in which one succeeded and the other failed."""

    task: str
    trial: int
    seed: int
    perturbation: str
    better: Literal["A", "B"]
    steps_a: int
    steps_b: int
    video_a: str
    """Path of the film, empty when there is none."""
    video_b: str


class Pairs(NamedTuple):
    """`rows` has one row per pair: the columns of KEY, all others twice, ending in _a and _b, in the order of A."""

    rows: pd.DataFrame
    pairing: Pairing


def pair_rows(a: pd.DataFrame, b: pd.DataFrame) -> Pairs:
    """The episodes that both tables judged on the same scene, and what became of the others."""
    a, b = _keyed(a), _keyed(b)
    both = a.merge(b, on=list(KEY), suffixes=("_a", "_b"))
    judged = both[both["success_a"].notna() & both["success_b"].notna()]
    begun = zip(scenes_in(judged, "_a"), scenes_in(judged, "_b"), strict=True)
    proven = np.array([same_scene(*pair) for pair in begun], bool)
    rows, strangers = judged[proven], judged[~proven]
    rows = rows.astype({"success_a": bool, "success_b": bool}).reset_index(drop=True)
    pairing = Pairing(
        paired=len(rows),
        only_a=len(a) - len(both),
        only_b=len(b) - len(both),
        unjudged=len(both) - len(judged),
        mismatched=tuple(episode_name(*key) for key in zip(*(strangers[name] for name in KEY[1:]), strict=True)),
        identical=identical(rows),
        pixels=_pixels(rows),
    )
    return Pairs(rows, pairing)


def scene_of(scene_fingerprint: str, start_fingerprint: str) -> frozenset[str]:
    """What tells the scene of a row from others."""
    return frozenset({scene_fingerprint, start_fingerprint} - {""})


def scenes_in(rows: pd.DataFrame, side: str = "") -> list[frozenset[str]]:
    """`scene_of` every row; the names of its columns end in `side`."""
    return [*map(scene_of, rows[f"scene_fingerprint{side}"], rows[f"start_fingerprint{side}"])]


def same_scene(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether both are proven to be one scene. After settling it may differ in its last digits between kinds of CPU."""
    return not a.isdisjoint(b)


def pixels_note(pairing: Pairing, episodes: Mapping[str, pd.DataFrame]) -> str:
    """A sentence when pairs, or the episodes of one run, were not painted with the same pixels; `episodes` by name."""
    painted = {name: drawn_in(rows) for name, rows in episodes.items()}
    if pairing.pixels != "equal":
        return pixels_sentence(pairing.pixels, painted)
    said = (pixels_sentence(within(drawn), {name: drawn}) for name, drawn in painted.items())
    return next(filter(None, said), "")


def refused_pixels(pairing: Pairing, said: str) -> list[str]:
    """The objection of --strict-renderer to pairs of other pixels."""
    return [f"--strict-renderer takes equal pixels only. {said}"] if pairing.pixels != "equal" else []


def _pixels(rows: pd.DataFrame) -> Likeness:
    columns = [f"{name}_{side}" for side in "ab" for name in Drawn._fields]
    found = rows[columns].drop_duplicates().itertuples(index=False, name=None)
    return least_alike((Drawn(*row[:2]), Drawn(*row[2:])) for row in found)


def identical(rows: pd.DataFrame) -> int:
    """How many pairs ended alike, after as many steps, in the same and known state of the simulator."""
    known = rows["final_fingerprint_a"] != ""
    same = [rows[f"{name}_a"] == rows[f"{name}_b"] for name in ("final_fingerprint", "steps", "success")]
    return int((known & same[0] & same[1] & same[2]).sum())


def episode_name(task: str, trial: int, seed: int, perturbation: str) -> str:
    """How texts call an episode: `Lift trial 3`; a seed that is not 0 and a perturbation are added."""
    seeded = f" seed {seed}" if seed else ""
    return f"{task} trial {trial}{seeded}{f' {perturbation}' if perturbation else ''}"


def discordant_episodes(rows: pd.DataFrame) -> tuple[Discordant, ...]:
    """The pairs that ended differently, in the order of the rows."""
    differing = rows[rows["success_a"] != rows["success_b"]]
    return tuple(
        Discordant(
            task=row["task"],
            trial=int(row["trial"]),
            seed=int(row["seed"]),
            perturbation=row["perturbation"],
            better="A" if row["success_a"] else "B",
            steps_a=int(row["steps_a"]),
            steps_b=int(row["steps_b"]),
            video_a=row["video_a"],
            video_b=row["video_b"],
        )
        for row in differing.to_dict("records")
    )


def protocol_objections(
    a: Mapping[str, object], b: Mapping[str, object], hash_a: str, hash_b: str, names: tuple[str, str] = ("A", "B")
) -> tuple[str, ...]:
    """A sentence that names what differs, when the hashes do."""
    if hash_a == hash_b:
        return ()
    first, second = names
    fields = [
        f"{name} is {old} in {first} and {new} in {second}" for name, (old, new) in _differences(a, b, "").items()
    ]
    what = "; ".join([*fields[:FEW], *([f"and {len(fields) - FEW} more"] if len(fields) > FEW else [])])
    return (f"The protocols differ ({hash_a} in {first}, {hash_b} in {second}){': ' if what else ''}{what}.",)


# --- words ---


def pairing_sentence(pairing: Pairing, a: str = "A", b: str = "B") -> str:
    """How many episodes are paired, and what became of the others."""
    parts = [counted(pairing.paired, "paired episode")]
    others = {f"only in {a}": pairing.only_a, f"only in {b}": pairing.only_b, "without a verdict": pairing.unjudged}
    parts += [f"{count} {what}" for what, count in others.items() if count]
    if pairing.mismatched:
        parts.append(f"{len(pairing.mismatched)} on different scenes ({named(pairing.mismatched)})")
    return "; ".join(parts) + "."


def named(things: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = [f"and {len(things) - FEW} more"] if len(things) > FEW else []
    return ", ".join([*things[:FEW], *more])


def counted(count: int, what: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def policy_title(identity: Mapping[str, object]) -> str:
    """Name, checkpoint and arguments of the policy: `pi0 weights.pt steps=5`."""
    arguments = identity.get("policy_args")
    listed = arguments if isinstance(arguments, list) else []
    return " ".join(str(part) for part in (identity.get("policy", "?"), identity.get("checkpoint"), *listed) if part)


def machine(info: RunInfo) -> str:
    """System, processor and cores the run was made on."""
    facts = info.provenance.get("machine")
    return ", ".join(map(str, facts.values())) if isinstance(facts, Mapping) else "unknown"


def with_paths(episodes: pd.DataFrame, run: str | Path) -> pd.DataFrame:
    """The rows with the paths of their films as seen from here."""
    root = Path(run).parent if Path(run).is_file() else Path(run)
    return episodes.assign(video=[str(root / film) if film else "" for film in episodes["video"]])


# --- parts ---


def _keyed(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per episode, the last; keys of types that merge even in an empty table."""
    keys: Mapping[str, str] = {"suite": "str", "task": "str", "trial": "int64", "seed": "int64", "perturbation": "str"}
    untold = {name: "" for name in Drawn._fields if name not in rows}
    return rows.assign(**untold).drop_duplicates(list(KEY), keep="last").astype(keys)


def _differences(a: object, b: object, name: str) -> dict[str, tuple[str, str]]:
    """Dotted name -> both values as JSON, for every leaf in which they differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        parts = [_differences(a.get(key), b.get(key), f"{name}.{key}" if name else key) for key in {**a, **b}]
        return {leaf: values for part in parts for leaf, values in part.items()}
    return {} if a == b else {name: (_brief(a), _brief(b))}


def _brief(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
