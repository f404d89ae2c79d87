"""A command in processes of its own, forked from the test's, that can be killed at an instant of its work."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import fakes

from vla_bench.cli import main
from vla_bench.process import watch
from vla_bench.store import aftermath

INSTANTS: Sequence[tuple[Any, str]] = (
    (os, "fsync"),
    (os, "replace"),
    (os, "unlink"),
    (os, "mkdir"),
    (fakes.ToyEnv, "reset_trial"),
    (fakes.ToyEnv, "advance"),
    (fakes.ToyEnv, "close"),
    (fakes.Walker, "reset"),
    (fakes.Walker, "infer"),
    (fakes.Lessons, "step"),
)
"""What an instant is: that one of these is called."""


class Ended(NamedTuple):
    """How a command ended: what had come of its processes when none was left."""

    code: int
    """Negative for a signal."""
    said: str
    seconds: float
    """From the signal to the end of the last process."""


class Doom(NamedTuple):
    """What is sent to whom when the working process is about to do its n-th thing."""

    instant: int
    number: int
    watching: bool = True
    """Whether the watching process gets it, or the working one itself."""

    def strike(self) -> None:
        os.kill(os.getppid() if self.watching else os.getpid(), self.number)
        signal.pause()  # nothing happens before it has arrived, and is sent again if it had before this


def watched(work: Callable[[], int], number: int = 0) -> Ended:
    """How a command ends that does that work; with a number, its watching process gets that signal once it is ready."""
    reading, writing = os.pipe()
    watching = os.fork()
    if watching == 0:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        for stop in watch.stops():
            signal.signal(stop, signal.SIG_DFL)
        sys.stdout = sys.stderr = open(writing, "w", buffering=1, closefd=False)  # noqa: SIM115
        os._exit(watch.command(work, aftermath.tell))
    os.close(writing)
    with open(reading, encoding="utf-8", buffering=1) as said:
        if number:
            assert said.readline() == "ready\n"
            os.kill(watching, number)
        started = time.monotonic()
        text = said.read()  # to its end: no process is left that could write
    _, status = os.waitpid(watching, 0)
    return Ended(os.waitstatus_to_exitcode(status), text, time.monotonic() - started)


def doomed(arguments: Sequence[str], doom: Doom) -> Ended:
    """How the command ends that is struck at that instant."""

    def work() -> int:
        count = itertools.count(1)
        for owner, name in INSTANTS:
            setattr(owner, name, _struck(getattr(owner, name), count, doom))
        return main(arguments)

    return watched(work)


def _struck(function: Callable[..., Any], count: Iterator[int], doom: Doom) -> Callable[..., Any]:
    @functools.wraps(function)
    def struck(*arguments: Any, **named: Any) -> Any:
        if next(count) == doom.instant:
            doom.strike()
        return function(*arguments, **named)

    return struck


def count_instants(arguments: Sequence[str]) -> int:
    """How many instants the command has when nothing disturbs it."""
    reading, writing = os.pipe()

    def work() -> int:
        count = itertools.count(0)
        for owner, name in INSTANTS:
            setattr(owner, name, _struck(getattr(owner, name), count, Doom(-1, 0)))
        code = main(arguments)
        os.write(writing, str(next(count)).encode())
        return code

    ended = watched(work)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        assert ended.code in (0, 2), ended.said
        return int(said.read())
