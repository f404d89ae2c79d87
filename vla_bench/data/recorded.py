"""Recorded episodes from any file that holds some: of `run --record-actions`, of `collect`, published HDF5."""

from __future__ import annotations

from pathlib import Path

from vla_bench.data.hdf5 import ENDINGS, read_hdf5
from vla_bench.data.lerobot import INFO, read_lerobot
from vla_bench.data.recording import Recorded
from vla_bench.errors import UsageError
from vla_bench.store.runs import ACTIONS, read_actions
from vla_bench.types import Episode, Suite

HDF5, LEROBOT = "hdf5", "lerobot"
"""Folders in what `collect` writes."""


def read_recorded(path: str | Path, suite: Suite) -> dict[Episode, Recorded]:
    """Every episode in that file or folder. Raises UsageError, also when there is none or its actions do not fit."""
    path = Path(path)
    recorded = _read(path, suite)
    if not recorded:
        raise UsageError(f"{path} holds no recorded episodes: collect some first, or give the file that has them.")
    widths = {episode.actions.shape[1] for episode in recorded.values() if len(episode.actions)}
    if wrong := sorted(widths - {suite.action.dim}):
        raise UsageError(f"{path} has actions of {wrong} numbers, the suite's have {suite.action.dim}.")
    return recorded


def _read(path: Path, suite: Suite) -> dict[Episode, Recorded]:
    if path.is_file():
        if path.suffix in ENDINGS:
            return read_hdf5(path, suite)
        return {episode: Recorded(actions) for episode, actions in read_actions(path).items()}
    if (path / INFO).is_file():
        return read_lerobot(path)
    if path.is_dir() and any(file.suffix in ENDINGS for file in path.iterdir()):
        return read_hdf5(path, suite)
    if (path / ACTIONS).is_file():
        return {episode: Recorded(actions) for episode, actions in read_actions(path / ACTIONS).items()}
    for folder in (HDF5, LEROBOT):
        if (path / folder).is_dir():
            return _read(path / folder, suite)
    raise UsageError(
        f"replay needs --checkpoint FILE or FOLDER, doctor --recording: what run --record-actions or collect wrote, or "
        f"LIBERO's HDF5 demonstrations; got {str(path)!r}."
    )
