"""Code of others, as the engine runs it in its own process: what it does there decides neither exit codes nor rows.

Policies, simulators and suites may end the process, raise what is no `Exception`, fork, or close standard output.
Wherever the engine calls them it does so inside `foreign_code`, and asks `is_theirs` whose fault an error is. What no
Python can hold (`_exit` in C, a segmentation fault, SIGKILL) costs nothing that is stored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from vla_bench.errors import EXIT_BROKEN, Interrupted, PolicyFailure, UsageError
from vla_bench.process.watch import is_watched, open_closed_descriptors

_end_process = os._exit
_calls = threading.local()
_private: set[int] = set()


@contextmanager
def contained() -> Iterator[None]:
    """Inside, nobody's `os._exit` ends this process unsaid, and Ctrl-C is told from a KeyboardInterrupt of theirs."""
    if os._exit is not _end_process:
        yield
        return
    owner = os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != owner:
            _end_process(status)
        _refuse_to_leave(status)

    os._exit = leave
    try:
        with _ctrl_c_as_ours():
            yield
    finally:
        os._exit = _end_process


def _refuse_to_leave(status: int) -> NoReturn:
    """Raises SystemExit where the engine waits for an answer; in a thread of theirs ends the process as a failure."""
    if _depth() or threading.current_thread() is threading.main_thread():
        raise SystemExit(f"os._exit({status})")
    if is_watched():  # then it is told how far the run has come
        _end_process(status)
    with suppress(BaseException):
        print(f"vla-bench: a thread of a policy or suite called os._exit({status}).", file=sys.stderr, flush=True)
    _end_process(EXIT_BROKEN)


def _depth() -> int:
    """How many `foreign_code` this thread is in."""
    return int(getattr(_calls, "depth", 0))


@contextmanager
def _ctrl_c_as_ours() -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _on_ctrl_c)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _on_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_ctrl_c(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    interrupt()


def interrupt() -> NoReturn:
    """Raises Interrupted, for the handler of a signal."""
    _calls.interrupted = _depth() > 0  # whoever runs now may catch it and go on
    raise Interrupted


def is_theirs(error: BaseException) -> bool:
    """Whether an error that came out of `foreign_code` is its own fault: no sentence of ours, and not Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        handler = signal.getsignal(signal.SIGINT)
        ours = is_watched() or handler is _on_ctrl_c or handler in (signal.SIG_IGN, signal.SIG_DFL)
        return ours and handler is not signal.default_int_handler and not isinstance(error, Interrupted)
    return not isinstance(error, (UsageError, PolicyFailure))


def is_ctrl_c(error: BaseException | None) -> bool:
    """Whether the user pressed it, or asked the process to stop in another way: no KeyboardInterrupt of theirs."""
    return isinstance(error, KeyboardInterrupt) and not is_theirs(error)


@contextmanager
def foreign_code() -> Iterator[None]:
    """Somebody else's code runs inside. A process that it forks ends here, and a Ctrl-C that it caught is raised."""
    owner, depth = os.getpid(), _depth()
    _calls.depth = depth + 1
    try:
        yield
    except BaseException as error:
        if os.getpid() != owner:
            _end_child(error)
        raise
    else:
        if os.getpid() != owner:
            _end_process(0)
    finally:
        _calls.depth = depth
        open_closed_descriptors()
        if depth == 0:
            _raise_what_was_caught()


def _raise_what_was_caught() -> None:
    caught, _calls.interrupted = getattr(_calls, "interrupted", False), False
    if caught:
        raise Interrupted from None


def _end_child(error: BaseException) -> NoReturn:
    """As Python ends a process of its own for that error, without the handlers that are the parent's."""
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr, flush=True)
    elif not isinstance(error, SystemExit):
        traceback.print_exc()
    _end_process(code if isinstance(code, int) else int(code is not None))


def insist_on_process(owner: int) -> None:
    """Ends this process unless it is that one: foreign code forked it, and what is to be written is the parent's."""
    if os.getpid() != owner:
        _end_process(EXIT_BROKEN)


def keep_private(descriptor: int) -> int:
    """That descriptor, which processes forked from this one cannot use and do not hold open."""
    _private.add(descriptor)
    return descriptor


def forget(descriptor: int) -> None:
    """To be called before a private descriptor is closed."""
    _private.discard(descriptor)


def _let_go() -> None:
    """In a forked process: its copies lead nowhere, so that locks and pipes are the parent's alone."""
    if not _private:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in _private:
        with suppress(OSError):
            os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)
    _private.clear()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_let_go)
