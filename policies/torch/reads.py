"""Which files of a checkpoint were read: they alone decide what a policy does, and are what its hash is taken over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_files: ContextVar[set[Path] | None] = ContextVar("_files", default=None)


@contextmanager
def noting_reads() -> Iterator[None]:
    """Inside, or while a function so decorated runs, `files_read` tells what the readers have read since."""
    token = _files.set(set())
    try:
        yield
    finally:
        _files.reset(token)


def note_read(file: Path) -> None:
    """To be called by whoever reads a file of a checkpoint."""
    files = _files.get()
    if files is not None:
        files.add(file)


def files_read(folder: Path) -> list[Path]:
    """The files in that folder, or below it, that were read so far."""
    return sorted(file for file in _files.get() or () if folder in file.parents)
