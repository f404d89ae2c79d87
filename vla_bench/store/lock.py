"""The lock on a folder that one process may write to, and who holds it.

The kernel's own lock (flock) goes with the process, however it ends. Where a file system has none (NFS and Lustre as
some are mounted), a file stands for it that only one process can create; it names its maker, so that what a dead one
left is known as such on the same machine.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from vla_bench.errors import WHERE_IT_RUNS, UsageError
from vla_bench.process.foreign import forget, keep_private
from vla_bench.store.files import make_folder, write

LOCK, STAND_IN = ".lock", ".lock.held"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` says where there is no such thing."""


@dataclass(frozen=True)
class Holder:
    """Who writes to a folder, as the lock's file tells it."""

    pid: int
    host: str
    since: str
    """Local time, to the second."""
    system: str
    """Tells a host's boots and containers apart: process numbers mean something within one alone. "" if unknown."""
    begun: str
    """When the process was started, in the clock ticks of its system: numbers are used again. "" if unknown."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_here(self) -> bool:
        return bool(self.system) and (self.host, self.system) == (socket.gethostname(), _system())

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return _begun(self.pid) != self.begun


class Found(NamedTuple):
    """What has become of a locked folder."""

    there: bool
    """Whether it is where it was."""
    replaced: bool
    """Whether there is something else now."""
    locked: bool
    """Whether its lock's file is, too."""
    place: str
    """Where the folder is now, as far as the system tells; "" where it is deleted or that is unknown."""
    folder: int
    """The descriptor of the folder, wherever it is."""


class Lock:
    """Holds the lock until `release`, or until the process ends. A forked child does not hold it."""

    def __init__(self, path: Path, file: Path, descriptor: int, note: str = "") -> None:
        self._path, self._file = path, file
        self.note = note
        """A sentence for the screen; empty where the kernel keeps the lock."""
        self._folder = keep_private(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._descriptor = keep_private(descriptor)

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def find(self) -> Found:
        """What has become of the folder."""
        there, locked = _is_at(self._path, self._folder), _is_at(self._file, self._descriptor)
        return Found(
            there, not there and self._path.exists(), locked, "" if there else _place_of(self._folder), self._folder
        )

    def release(self) -> None:
        if not self.held:
            return
        with suppress(OSError):
            if self._file.name == LOCK:
                os.ftruncate(self._descriptor, 0)
            elif _is_at(self._file, self._descriptor):
                os.unlink(self._file)
        with suppress(OSError):
            import fcntl

            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # closing is not enough where a child holds a copy
        for descriptor in (self._descriptor, self._folder):
            forget(descriptor)
            with suppress(OSError):
                os.close(descriptor)
        self._descriptor = self._folder = -1


def take(path: Path) -> Lock:
    """The lock on that folder, which is made if need be. Raises UsageError that says who holds it, and OSError."""
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(WHERE_IT_RUNS) from error
    make_folder(path)
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        why_not = _lock(descriptor)
        if why_not is None:
            _sign(descriptor)
            return Lock(path, path / LOCK, descriptor)
        if isinstance(why_not, BlockingIOError):
            raise UsageError(f"Another process {_who_holds(path / LOCK, descriptor)}, or choose another --out.")
        if why_not.errno not in NO_LOCKS:
            raise why_not
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return _stand_in(path, why_not)


def is_held(path: Path) -> bool:
    """Whether a process writes to that folder now, as far as that can be told from here."""
    if (holder := _read(path / STAND_IN)) is None and (holder := _read(path / LOCK)) is None:
        return False
    if holder.is_here or (path / STAND_IN).exists():
        return not holder.is_gone
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _lock(descriptor, shared=True) is not None  # let go of when it is closed
    finally:
        os.close(descriptor)


def _lock(descriptor: int, shared: bool = False) -> OSError | None:
    """Why the kernel does not lock the file; None once it has."""
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def _who_holds(file: Path, descriptor: int) -> str:
    """`(process 7 on a, since ...) is writing to RUN: wait for it`, or what is known of it."""
    holder = _read(file)
    if holder is None:
        return f"is writing to {file.parent}: wait for it"
    if not holder.is_gone:
        return f"({holder}) is writing to {file.parent}: wait for it"
    heirs = ", ".join(map(str, _openers(descriptor))) or "which cannot be found"
    return (
        f"holds the lock of {file.parent}: the one that was writing ({holder}) has ended, a child that it left "
        f"({heirs}) lives on: end that"
    )


def _openers(descriptor: int) -> Iterator[int]:
    """Numbers of the processes that have that file open, as far as this user may see."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            files = [file for file in (process / "fd").iterdir() if _is_at(file, descriptor)]
            if files and int(process.name) != os.getpid():
                yield int(process.name)


# Where the kernel has no locks


def _stand_in(path: Path, why: OSError) -> Lock:
    """A lock by a file that is there as long as somebody holds it."""
    file = path / STAND_IN
    note = f"The disk of {path} has no locks ({why.strerror}), so {file} keeps others from writing to it."
    if (holder := _read(file)) is not None and holder.is_gone:
        _clear(file, holder)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        who = f" ({holder})" if (holder := _read(file)) else ""
        raise UsageError(
            f"Another process{who} is writing to {path}: wait for it, or choose another --out. The disk has no locks "
            f"({why.strerror}), so if that process has ended, delete {file}."
        ) from error
    try:
        _sign(descriptor)
        return Lock(path, file, descriptor, note)
    except BaseException:
        os.close(descriptor)
        os.unlink(file)
        raise


def _clear(file: Path, gone: Holder) -> None:
    """Removes what a dead process left, and nobody else's: whoever is faster has put a new file there."""
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(file, aside)
        if _read(aside) != gone:
            with suppress(FileExistsError):
                os.link(aside, file)
        os.unlink(aside)


# Who and where


def _sign(descriptor: int) -> None:
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    holder = Holder(os.getpid(), socket.gethostname(), now, _system(), _begun(os.getpid()))
    os.ftruncate(descriptor, 0)
    write(descriptor, json.dumps(asdict(holder)).encode())


def _read(file: Path) -> Holder | None:
    """None where nobody has signed (yet)."""
    try:
        return Holder(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _system() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() + os.readlink(
            "/proc/self/ns/pid"
        )
    except OSError:
        return ""


def _begun(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the path leads to what is open under that descriptor."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _place_of(descriptor: int) -> str:
    try:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
    return "" if place.endswith(" (deleted)") else place
