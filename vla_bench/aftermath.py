"""What is said and written of a process that could not say it itself: it hung, crashed, or was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vla_bench.errors import EXIT_BROKEN, EXIT_BUG, EXIT_INTERRUPTED, UsageError
from vla_bench.store import ERRORS, read_episodes, read_info
from vla_bench.text import for_log, for_terminal
from vla_bench.watch import End, death


def tell(end: End) -> int:
    """Prints the sentence on the end of a command, leaves stacks in errors.log, and returns the exit code."""
    runs = [Path(run) for run in end.told.get("runs", ())]
    kept = [keep_stacks(run, why_it_ended(end), end.stacks) for run in runs if end.stacks]
    if end.stacks and not any(kept):
        print(for_log(end.stacks), file=sys.stderr)
    where = [f"where it was is in {run / ERRORS}" for run, there in zip(runs, kept, strict=False) if there]
    facts = [*map(how_far, runs), *where[:1]]
    begun = "\n" * bool(runs)  # below the progress bar
    said = f"{why_it_ended(end)}{_listed(facts)} {_advice(end, runs)}".rstrip()
    print(f"{begun}vla-bench: {for_terminal(said)}", file=sys.stderr)
    if end.asked:
        return EXIT_INTERRUPTED
    known = runs or end.turn or end.told.get("doing") or end.overdue or end.signal == signal.SIGKILL
    return EXIT_BROKEN if known else EXIT_BUG


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
    how = death(-end.signal if end.signal else end.code)
    if not end.turn and (doing := end.told.get("doing")):
        return f"{doing}: the process {how}"
    return f"The process {how} {_during(end)}".rstrip()


def _during(end: End) -> str:
    if end.turn == "policy":
        return f"in {end.told.get('method', '')} of the policy {end.told.get('policy', '')!r}"
    return f"while the simulator played {end.told.get('episode', '')}" if end.turn else ""


def _advice(end: End, runs: Sequence[Path]) -> str:
    if not runs:
        return ""
    if end.overdue and end.overdue.who == "simulator" and not end.asked:
        return "The same command resumes; with --workers 2 it also tries such an episode again, and goes on without it."
    return "The same command resumes."


def _listed(facts: Sequence[str]) -> str:
    return "".join(f"; {fact}" for fact in facts) + "."


def how_far(run: Path) -> str:
    """How many of a run's episodes are stored."""
    try:
        planned = read_info(run).plan.get("planned")
    except UsageError:
        return f"what is stored is in {run}"
    judged = 0
    with contextlib.suppress(UsageError):  # there is none yet
        judged = sum(row.success is not None for row in read_episodes(run))
    return f"{judged} of {planned} episodes are stored in {run}"


def keep_stacks(run: Path, heading: str, stacks: str) -> bool:
    """Whether the stacks could be added to the run's errors.log."""
    try:
        with (run / ERRORS).open("ab") as log:
            log.write(f"{for_terminal(heading)}\n{for_log(stacks)}\n\n".encode())
            os.fsync(log.fileno())
    except OSError:
        return False
    return True
