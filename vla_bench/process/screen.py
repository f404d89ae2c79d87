"""What a command prints to: results to standard output, alone; everything else to standard error.

Neither can stop a command. What a terminal cannot show is shown in ASCII, a stream that is closed, full or no longer
read takes no more, and what others print to standard output, in Python or below it, goes to standard error.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from vla_bench.process.foreign import forget, keep_private
from vla_bench.process.watch import open_closed_descriptors
from vla_bench.secrets import hidden

_ASCII = "vla-bench-ascii"
_STAND_INS = {"–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "±": "+-", "≥": ">=", "≤": "<=", "→": "->", "…": "..."}
_STAND_INS |= {"π": "pi", "α": "alpha", "█": "#", "│": "|", "─": "-", "’": "'", "“": '"', "”": '"'}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """The letters that the terminal lacks, each as a like one or by its number."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    shown = (_STAND_INS.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(shown), error.end


codecs.register_error(_ASCII, _in_ascii)


class Screen:
    """A text stream whose `write` and `flush` never raise; `lost` is the reason once it takes nothing any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        if self.lost is None:
            encoding = self._stream.encoding or "utf-8"
            try:
                self._stream.write(hidden(text).encode(encoding, _ASCII).decode(encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def close(self) -> None:
        """Nothing: it is not theirs who print here to close."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError | ValueError) -> None:
        self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
        with suppress(OSError, ValueError):  # what it still holds must not fail again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


_results: list[Screen] = []
_messages: list[Screen] = []


def results() -> TextIO:
    """Where results are printed: standard output, as it was before `own_streams`."""
    return cast(TextIO, _results[-1]) if _results else sys.stdout


def messages() -> TextIO:
    """Where everything else is printed: standard error, also where somebody else has put another in its place."""
    return cast(TextIO, _messages[-1]) if _messages else sys.stderr


@contextmanager
def own_streams(for_good: bool = False) -> Iterator[Screen]:
    """Standard output is for `results` inside, and both streams are safe to print to.

    With `for_good` nothing is put back: what the end of the process prints is no result either.
    """
    open_closed_descriptors()
    before = sys.stdout, sys.stderr
    errors = Screen(sys.stderr or _nowhere())
    with _kept_apart(sys.stdout or _nowhere(), for_good) as stream:
        screen = Screen(stream)
        _results.append(screen)
        _messages.append(errors)
        sys.stdout = sys.stderr = cast(TextIO, errors)
        try:
            yield screen
        finally:
            screen.flush()
            errors.flush()
            _results.remove(screen)
            _messages.remove(errors)
            if not for_good:
                sys.stdout, sys.stderr = before


@contextmanager
def _kept_apart(stdout: TextIO, for_good: bool) -> Iterator[TextIO]:
    """Standard output under another descriptor; its own one leads to standard error meanwhile, or for good."""
    if not _is_descriptor_1(stdout):
        yield stdout
        return
    with suppress(OSError):
        stdout.flush()
    kept = keep_private(os.dup(1))
    os.dup2(2, 1)
    buffering = 1 if stdout.isatty() else -1
    stream = open(kept, "w", encoding=stdout.encoding, buffering=buffering)  # noqa: SIM115 closing it fails on a full disk
    try:
        yield stream
    finally:
        for one in (stream, stdout):  # what was printed to `sys.__stdout__` waits in the latter
            with suppress(OSError, ValueError):
                one.flush()
        if not for_good:
            os.dup2(kept, 1)
        forget(kept)
        with suppress(OSError):
            stream.close()


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
