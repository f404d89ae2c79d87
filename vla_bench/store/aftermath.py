"""What is said and written of a process that could not say it itself: it hung, crashed, or was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vla_bench.errors import EXIT_BROKEN, EXIT_BUG, EXIT_INTERRUPTED, UsageError
from vla_bench.process.watch import End, death
from vla_bench.text import for_log, for_terminal


def tell(end: End) -> int:
    """Says what the process could not say, and writes it to the runs it was writing to; the exit code."""
    runs: Mapping[str, str] = end.told.get("runs", {})
    code, said = end.result, end.asked and end.told.get("said")
    if code is None:
        code = EXIT_INTERRUPTED if end.asked else EXIT_BROKEN if _is_known(end) else EXIT_BUG
        if not said:  # else it was only to print a table
            _say(end, runs)
    for run in runs:
        _record(Path(run), "interrupted" if end.asked else "failed")
    return code


def _is_known(end: End) -> bool:
    """Whether somebody else's code, or the machine, is known to have ended it."""
    at_work = end.told.get("runs") or end.turn or end.told.get("doing")
    return bool(at_work or end.overdue or end.signal == signal.SIGKILL)


def _say(end: End, runs: Mapping[str, str]) -> None:
    kept = [keep_stacks(Path(run), why_it_ended(end), end.stacks) for run in runs if end.stacks]
    if end.stacks and not any(kept):
        print(for_log(end.stacks), file=sys.stderr)
    done = [*runs.values(), *filter(None, [end.told.get("done")])]
    where = [f"where it was is in {file}" for file in kept if file][:1]
    sentence = f"{'; '.join([why_it_ended(end), *done, *where])}. {_advice(end) if done else ''}".rstrip()
    begun = "\n" * bool(done)  # below the progress bar
    print(f"{begun}vla-bench: {for_terminal(sentence)}", file=sys.stderr)


def _record(run: Path, state: Literal["interrupted", "failed"]) -> None:
    with contextlib.suppress(OSError, UsageError, MemoryError, ImportError):  # then it stays as one that is killed
        from vla_bench.store.runs import record_ending  # takes a second, and the user has been told

        record_ending(run, state)


def why_it_ended(end: End) -> str:
    """The reason, as the beginning of a sentence."""
    if end.asked:
        return "interrupted" if not end.turn else f"interrupted {_during(end)}, which did not end by itself"
    policy, method = end.told.get("policy", ""), end.told.get("method", "")
    if end.overdue and end.overdue.who == "policy":
        return (
            f"The policy {policy!r} took longer than --timeout {end.overdue.limit_s:g} s in {method} and could not be "
            "stopped there, so its process was ended"
        )
    if end.overdue and end.overdue.who == "simulator":
        limit = f"{end.overdue.limit_s:g} s"
        return (
            f"The simulator took longer than --episode-timeout {limit} for {end.told.get('episode', '')} and was ended"
        )
    if end.overdue:
        return f"The process did not end and was ended; the last call of the policy was {method} of {policy!r}"
    how = death(-end.signal if end.signal else end.status)
    if not end.turn and (doing := end.told.get("doing")):
        return f"{doing}: the process {how}"
    return f"The process {how} {_during(end)}".rstrip()


def _during(end: End) -> str:
    if end.turn == "policy":
        return f"in {end.told.get('method', '')} of the policy {end.told.get('policy', '')!r}"
    return f"while the simulator played {end.told.get('episode', '')}" if end.turn else ""


def _advice(end: End) -> str:
    if end.overdue and end.overdue.who == "simulator" and not end.asked:
        return "The same command resumes; with --workers 2 it also tries such an episode again, and goes on without it."
    return "The same command resumes."


def keep_stacks(run: Path, heading: str, stacks: str) -> Path | None:
    """The run's errors.log with the stacks added; None where they could not be."""
    try:
        from vla_bench.store.runs import ERRORS

        with (run / ERRORS).open("ab") as log:
            log.write(f"{for_terminal(heading)}\n{for_log(stacks)}\n\n".encode())
            os.fsync(log.fileno())
    except (OSError, MemoryError, ImportError):
        return None
    return run / ERRORS
