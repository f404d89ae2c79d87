"""Errors the user sees as one sentence; everything else keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import PurePath

EXIT_DONE = 0
EXIT_REGRESSION = 1
EXIT_UNDECIDED = 2
EXIT_NOT_COMPARABLE = 3
EXIT_BROKEN = 4  # episodes left without a verdict, or films that were asked for
EXIT_USAGE = 64  # sysexits.h EX_USAGE
EXIT_BUG = 70  # sysexits.h EX_SOFTWARE: never mistaken for a verdict
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UsageError(Exception):
    """Raised when the user can fix it: says what was got, what was expected and what to do."""


class PolicyFailure(Exception):
    """Raised when the policy raised or overran its time: the run stops, the episode stays unjudged."""


class MissingPackage(UsageError):
    """Raised when an optional simulator or model package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'vla-bench[{extra}]'")


def check_ending(flag: str, file: str | None, known: Iterable[str]) -> None:
    """Raises UsageError for a file whose name announces what will not be in it."""
    endings = sorted(known)
    if file is not None and PurePath(file).suffix not in endings:
        listed = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
        raise UsageError(f"{flag} should name a file that ends in {listed}, got {file}.")


def unknown_name(kind: str, got: str, known: Iterable[str]) -> UsageError:
    """An error naming `got`, the nearest known names, and all of them when they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    listing = f" Known: {', '.join(names)}." if len(names) <= 20 else f" There are {len(names)} of them."
    return UsageError(f"Unknown {kind} {got!r}.{hint}{listing}")
