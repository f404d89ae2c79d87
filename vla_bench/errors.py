"""Errors the user sees as one sentence; everything else keeps its traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from importlib import metadata
from pathlib import PurePath
from typing import TYPE_CHECKING

from vla_bench.secrets import hidden

if TYPE_CHECKING:
    from packaging.requirements import Requirement

WHERE_IT_RUNS = "vla-bench runs on Linux and macOS; on Windows it runs in WSL (the Windows Subsystem for Linux)."

EXIT_DONE = 0
EXIT_REGRESSION = 1
EXIT_UNDECIDED = 2
EXIT_NOT_COMPARABLE = 3
EXIT_BROKEN = 4  # episodes without a verdict, films that were asked for, a policy, simulator or machine with a fault
EXIT_USAGE = 64  # sysexits.h EX_USAGE
EXIT_BUG = 70  # sysexits.h EX_SOFTWARE: never mistaken for a verdict
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it; 143 by SIGTERM and 129 by SIGHUP where `watch` knows it
_LONGEST_MESSAGE = 1000  # characters; the whole is in errors.log


class UsageError(Exception):
    """Raised when the user can fix it: says what was got, what was expected and what to do."""


class PolicyFailure(Exception):
    """Raised when the policy raised or overran its time: the run stops, the episode stays unjudged."""


class Interrupted(KeyboardInterrupt):
    """Raised by Ctrl-C: code of others may raise a KeyboardInterrupt of its own."""


class MissingPackage(UsageError):
    """Raised when an optional simulator or model package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: {install_command(extra, anew=[package])}")


def install_command(extra: str, anew: Iterable[str] = ()) -> str:
    """The line that installs what `vla-bench[extra]` lacks here, and `anew` whatever its state, by their own names.

    The versions are those the installed vla-bench asks for: there is no distribution of it to take the extra from.
    """
    asked = _asked_for(extra)
    if not asked:
        return f"pip install '.[{extra}]' in a clone of vla-bench"
    wanted = [one for one in asked if one.name in anew or not _is_here(one)]
    named = sorted({f"'{one.name}{one.specifier}'" for one in wanted or asked})
    return f"pip install {' '.join(named)}"


def _asked_for(extra: str) -> list[Requirement]:
    """What that extra adds to vla-bench on this Python, extras it is made of included; empty without its metadata."""
    added = [one for one in declared_requirements() if one.marker and one.marker.evaluate({"extra": extra})
             and not one.marker.evaluate({"extra": ""})]  # fmt: skip
    inner = [more for one in added if one.name == "vla-bench" for name in one.extras for more in _asked_for(name)]
    return [*(one for one in added if one.name != "vla-bench"), *inner]


def declared_requirements() -> list[Requirement]:
    """What the installed vla-bench asks for, with all extras; empty when it is not installed."""
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in metadata.requires("vla-bench") or []]
    except metadata.PackageNotFoundError:
        return []


def _is_here(wanted: Requirement) -> bool:
    try:
        return metadata.version(wanted.name) in wanted.specifier
    except metadata.PackageNotFoundError:
        return False


def message_of(error: BaseException) -> str:
    """What somebody else's error says, in one line without secrets and full stop; empty when it says nothing."""
    try:
        said = hidden(" ".join(str(error).split())).rstrip(".")
    except BaseException:  # their __str__
        return ""
    return said if len(said) <= _LONGEST_MESSAGE else f"{said[:_LONGEST_MESSAGE]}..."


LITTLE_MEMORY = "This process got no more memory: end other programs, allow more (ulimit -v), or run less at once."
_LITTLE_MEMORY = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory", "can't start new thread")


def lacks_memory(error: BaseException | None) -> bool:
    """Whether it came from a lack of memory, for which loaders and threads have words of their own."""
    while error is not None:
        said = str(error) if isinstance(error, (ImportError, OSError, RuntimeError)) else ""
        if isinstance(error, MemoryError) or any(words in said for words in _LITTLE_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_a_line(error: BaseException) -> str:
    """Kind and message: `ValueError: no such joint`."""
    return ": ".join(filter(None, [type(error).__name__, message_of(error)]))


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
    if not names:
        listing = " There is none."
    return UsageError(f"Unknown {kind} {got!r}.{hint}{listing}")


def too_many_files(error: OSError, advice: str = "") -> UsageError:
    """An error for a process (EMFILE) or a machine (ENFILE) that may open no further file."""
    if error.errno == errno.ENFILE:
        return UsageError("This machine may open no more files: end other programs.")
    return UsageError(f"This process may open no more files (ulimit -n): {advice}allow more with ulimit -n 1024.")


_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota there is used up, delete something",
    errno.EFBIG: "files may not grow that large here, see ulimit -f",
    errno.EROFS: "that disk can only be read, choose another place",
    errno.EACCES: "you may not write there, choose another place",
    errno.EPERM: "you may not write there, choose another place",
    errno.EIO: "the disk is failing, see dmesg and choose another place",
    errno.ENOENT: "a folder of that path is missing, choose another place",
    errno.ENOTDIR: "a part of that path is a file, choose another place",
    errno.EISDIR: "that is a folder, choose another place",
    errno.ESTALE: "the network disk has lost it, mount it again",
    errno.ENOTCONN: "the disk is no longer mounted, mount it again",
}


def unreadable(file: object, error: Exception) -> UsageError:
    """An error for a file that the system did not open or read."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_files(error)
    return UsageError(f"Cannot read {file}: {getattr(error, 'strerror', None) or error}.")


def unwritable(file: object, error: OSError, then: str = "") -> UsageError:
    """An error for a file that the system did not take, with what to do about that reason; `then` ends the sentence."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return too_many_files(error)
    advice = _ADVICE.get(error.errno or 0, "choose another place")
    return UsageError(f"Could not write to {file} ({error.strerror or error}): {advice}{then}.")
