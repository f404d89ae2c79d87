"""A system under the store that fails where a test says, or tells what a power cut would leave on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vla_bench.store import files, lock

CALLS = ("open", "write", "fsync", "ftruncate", "close", "replace", "rename", "unlink", "link", "mkdir", "flock")


class System:
    """Stands for `os` and `fcntl.flock`; every call of CALLS goes through `call` with its number. Nothing is synced for
    real, which would take most of the time."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._descriptors = set[int]()
        self._flock = fcntl.flock

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(os, name)
        own = {"flock": self._flock, "fsync": lambda _: None, "open": self._open, "close": self._close}
        real = own.get(name) or getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            return self.call(
                len(self.calls) - 1, name, lambda *changed: real(*(changed or arguments), **named), arguments
            )

        return counted

    def call(self, number: int, name: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return do()

    def end(self) -> None:
        """Closes what is open, as the end of the process would."""
        for descriptor in list(self._descriptors):
            self._close(descriptor)

    def _open(self, *arguments: Any) -> int:
        descriptor = os.open(*arguments)
        self._descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        os.close(descriptor)


class Failing(System):
    """The call of that number fails with that error, and with `for_good` all later ones that would change the disk."""

    def __init__(self, at: int, code: int, for_good: bool = False) -> None:
        super().__init__()
        self.at, self.code, self.for_good = at, code, for_good

    def call(self, number: int, name: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        changes = name not in ("close", "flock") and not (
            name == "open" and not arguments[1] & (os.O_CREAT | os.O_RDWR)
        )
        if number != self.at and not (self.for_good and number > self.at and changes):
            return do()
        if name == "close":
            do()  # the descriptor is gone all the same
        if name == "write":
            do(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])  # half of it is there
        raise OSError(self.code, os.strerror(self.code))


class Short(System):
    """No write takes more than seven bytes."""

    def call(self, number: int, name: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return do(arguments[0], bytes(arguments[1])[:7]) if name == "write" else do()


class Unsynced(System):
    """A file system that syncs no folders, and says so with that error."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def call(self, number: int, name: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "fsync" and stat.S_ISDIR(os.fstat(*arguments).st_mode):
            raise OSError(self.code, os.strerror(self.code))
        return do()


def use(system: System, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "os", system)
    patch.setattr(lock, "os", system)
    patch.setattr(fcntl, "flock", system.flock)


ERRORS: Mapping[str, tuple[int, ...]] = {
    "open": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL),
    "ftruncate": (errno.EIO, errno.EROFS),
    "close": (errno.EIO, errno.EDQUOT),
    "replace": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "rename": (errno.EIO,),
    "unlink": (errno.EIO, errno.EROFS),
    "link": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES),
    "flock": (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EIO),
}
"""What each call may say."""


# What a power cut leaves


@dataclass
class Disk:
    """Files by number, and names in folders; each as written, and as known to be on the disk."""

    written: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    names: dict[Path, dict[str, int]] = field(default_factory=dict)
    """Of every folder; a folder in it has the number -1."""
    synced_names: dict[Path, dict[str, int]] = field(default_factory=dict)


class Left(NamedTuple):
    """What is found after a crash: the content of files by their path in the folder, and folders as None."""

    content: tuple[tuple[str, bytes | None], ...]


class Crash(NamedTuple):
    """A moment at which it may come."""

    told: int
    """What was announced by then."""
    left: Mapping[str, Left]
    """By the kind of crash."""


class Tape(System):
    """Does what is asked, and keeps what a crash between calls could leave of the folder `root`, which is there."""

    def __init__(self, root: Path, told: Callable[[], int]) -> None:
        """`told` counts what has been announced so far."""
        super().__init__()
        self.root, self.disk = root, Disk(names={root: {}}, synced_names={root: {}})
        self._opened: dict[int, tuple[Path, int]] = {}
        self._told = told
        self.crashes: list[Crash] = []
        """Just before each call."""

    def call(self, number: int, name: str, do: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self.crashes.append(Crash(self._told(), dict(self._crashes())))
        returned = do()
        getattr(self, f"_on_{name}", lambda *_: None)(returned, *arguments)
        return returned

    def _on_open(self, descriptor: int, path: Path, flags: int, *_: int) -> None:
        path = Path(path)
        if path in self.disk.names:
            self._opened[descriptor] = (path, -1)
        elif path.parent in self.disk.names:
            names = self.disk.names[path.parent]
            if path.name not in names:
                names[path.name] = len(self.disk.written)
                self.disk.written[names[path.name]] = self.disk.synced[names[path.name]] = b""
            if flags & os.O_TRUNC:
                self.disk.written[names[path.name]] = b""
            self._opened[descriptor] = (path, names[path.name])

    def _on_close(self, _: None, descriptor: int) -> None:
        self._opened.pop(descriptor, None)

    def _on_write(self, taken: int, descriptor: int, content: bytes) -> None:
        _, number = self._opened[descriptor]
        self.disk.written[number] += bytes(content)[:taken]

    def _on_ftruncate(self, _: None, descriptor: int, size: int) -> None:
        _, number = self._opened[descriptor]
        self.disk.written[number] = self.disk.written[number][:size]

    def _on_fsync(self, _: None, descriptor: int) -> None:
        if descriptor not in self._opened:
            return  # of what is above the folder
        path, number = self._opened[descriptor]
        if number < 0:
            self.disk.synced_names[path] = dict(self.disk.names[path])
        else:
            self.disk.synced[number] = self.disk.written[number]

    def _on_replace(self, _: None, source: Path, target: Path) -> None:
        names = self.disk.names[Path(source).parent]
        names[Path(target).name] = names.pop(Path(source).name)

    def _on_unlink(self, _: None, path: Path) -> None:
        self.disk.names[Path(path).parent].pop(Path(path).name)

    def _on_mkdir(self, _: None, path: Path) -> None:
        self.disk.names[Path(path).parent][Path(path).name] = -1
        self.disk.names[Path(path)], self.disk.synced_names[Path(path)] = {}, {}

    def _crashes(self) -> Iterator[tuple[str, Left]]:
        disk = self.disk
        yield "the process alone", self._left(disk.names, lambda synced, written: written)
        yield "nothing unsynced is there", self._left(disk.synced_names, lambda synced, written: synced)
        yield "names without contents", self._left(disk.names, lambda synced, written: synced)
        yield "contents without names", self._left(disk.synced_names, lambda synced, written: written)
        yield "half of what was written last", self._left(disk.names, _torn)
        yield "sizes without contents", self._left(disk.names, _zeros)
        yield "every other sector", self._left(disk.names, _sectors)

    def _left(self, names: Mapping[Path, Mapping[str, int]], content: Callable[[bytes, bytes], bytes]) -> Left:
        found: dict[str, bytes | None] = {}
        folders = [self.root]
        for folder in folders:
            for name, number in names[folder].items():
                inside = str((folder / name).relative_to(self.root))
                if number < 0:
                    folders.append(folder / name)
                    found[inside] = None
                else:
                    found[inside] = content(self.disk.synced[number], self.disk.written[number])
        return Left(tuple(sorted(found.items())))


def _unsynced(synced: bytes, written: bytes) -> int:
    """Where what is not known to be on the disk begins."""
    return len(synced) if written.startswith(synced) else 0


def _torn(synced: bytes, written: bytes) -> bytes:
    start = _unsynced(synced, written)
    return written[: start + (len(written) - start) // 2]


def _zeros(synced: bytes, written: bytes) -> bytes:
    start = _unsynced(synced, written)
    return written[:start] + bytes(len(written) - start)


def _sectors(synced: bytes, written: bytes) -> bytes:
    """Of sectors of 512 bytes every second one is still zeros."""
    start = _unsynced(synced, written)
    kept = bytearray(written)
    for first in range(start // 512 * 512, len(written), 1024):
        kept[max(first, start) : first + 512] = bytes(len(kept[max(first, start) : first + 512]))
    return bytes(kept)


def lay_out(left: Left, root: Path) -> None:
    """Puts it into that empty folder."""
    for name, content in left.content:
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
