"""Files that are whole or not there, and on the disk once a function returns.

What writes a run calls the operating system here alone, by `os.NAME`, and in `lock`: tests put an `os` in its place
that fails, or that tells what a power cut would leave.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}
"""What file systems say that sync no folders (FUSE, CIFS), and folders that may not be listed: these names are as
durable as that system makes them."""


class ChangedByOthers(OSError):
    """A file that only this process appends to is not as it left it."""

    def __init__(self, file: Path) -> None:
        super().__init__(errno.EBUSY, "another program changed it meanwhile", str(file))


def append(file: Path, content: bytes, size: int | None = None) -> int:
    """The file's size once the content is at its end, durably and whole: whatever interrupts it, nothing of it stays.

    Raises OSError; ChangedByOthers, and nothing is written, for a file that has not the `size` it was left with.
    """
    with opened(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
        before = os.fstat(descriptor).st_size
        if size is not None and before != size:
            raise ChangedByOthers(file)
        try:
            write(descriptor, content)
            os.fsync(descriptor)
            if before == 0:
                sync_folder(file.parent)  # a new file's name is durable only with its folder
        except BaseException:
            with suppress(OSError):  # a half line is cut off when the file is next opened
                os.ftruncate(descriptor, before)
            raise
    return before + len(content)


def write_whole(file: Path, content: bytes) -> None:
    """The content becomes the file all at once, durably: a reader sees the old file or the new one. Raises OSError."""
    with replacing(file) as temporary, opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        write(descriptor, content)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path whose content becomes `file` all at once, durably, unless the block raises."""
    temporary = temporary_of(file)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(file.parent)


def temporary_of(file: Path) -> Path:
    return file.with_name(file.name + ".tmp")


def make_folder(path: Path) -> None:
    """The folder, and those above it that are missing, with names that are durable. Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        with suppress(FileExistsError):
            os.mkdir(path)
    sync_folder(path.parent)  # whoever made it may have been stopped before that


def remove(file: Path) -> None:
    """No file of that name, whether or not there was one. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(file)


def sync(file: Path) -> None:
    with opened(file, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in it durable, where the file system can."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def sync_tree(path: Path) -> None:
    """Makes the folder durable with all that is in it. Raises OSError."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync_folder(Path(folder))


@contextmanager
def opened(file: Path, flags: int) -> Iterator[int]:
    """The file's descriptor, closed afterwards. A pipe in its place is an error instead of waiting for a reader."""
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write(descriptor: int, content: bytes) -> None:
    """All of it, in as many parts as the system takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def truncate(descriptor: int, size: int) -> None:
    os.ftruncate(descriptor, size)
