"""What was recorded of an episode, whatever the file: enough to play it again and to compare how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import Episode, EpisodeResult, Float32

Float64 = NDArray[np.float64]


class Beginning(NamedTuple):
    """Where an episode began that is none of the suite's trials."""

    state: Float64
    """(1 + nq + nv,) time, positions and velocities of the simulator."""
    fixtures: Mapping[str, tuple[Float64, Float64]]
    """Body name to position and quaternion (wxyz) of what stands fast in its scene."""


class Recorded(NamedTuple):
    """One recorded episode."""

    actions: Float32
    """(T, A) as executed."""
    success: bool | None = None
    """None where the file does not say."""
    final_fingerprint: str = ""
    """Of the simulator after the last action; empty where the file does not say."""
    beginning: Beginning | None = None
    """None where the suite's own trial is the beginning."""


def compare_outcomes(rows: Sequence[EpisodeResult], recorded: Mapping[Episode, Recorded]) -> str:
    """One sentence: how many replays ended as recorded, and in the same state to the bit; empty if nothing is known."""
    judged = [(row, recorded[row.episode]) for row in rows if row.success is not None and row.episode in recorded]
    known = [(row, then) for row, then in judged if then.success is not None]
    if not known:
        return ""
    same = sum(row.success == then.success for row, then in known)
    succeeded, before = sum(bool(row.success) for row, _ in known), sum(bool(then.success) for _, then in known)
    said = (
        f"replayed {len(known)} episodes: {succeeded} succeeded, {before} had when recorded; {same} came out the same"
    )
    marked = [(row, then) for row, then in known if then.final_fingerprint]
    if marked:
        equal = sum(row.final_fingerprint == then.final_fingerprint for row, then in marked)
        said += f"; {equal} of {len(marked)} final states are equal to the bit"
    return said + "."
