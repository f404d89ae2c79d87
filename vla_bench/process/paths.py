"""Paths as users give them: ~ is expanded, and names that no file can have are refused before anything is done."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from vla_bench.errors import UsageError

T = TypeVar("T")


class _Marker:
    """What marks the annotation of a path."""


UserPath = Annotated[str, _Marker()]
"""The type of a configuration's field that takes a path, or paths."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of every file system in use and of Linux
_SHOWN = 40
_homes: list[str] = []


class TakesPaths:
    """A frozen dataclass whose fields of the type `UserPath` are expanded and checked when it is made."""

    def __post_init__(self) -> None:
        for name in path_fields(type(self)):
            object.__setattr__(self, name, _each(getattr(self, name), user_path))


def path_fields(config: type[Any]) -> list[str]:
    """Names of the fields that take paths."""
    hints = get_type_hints(config, include_extras=True)
    return [field.name for field in dataclasses.fields(config) if _takes_path(hints[field.name])]


def user_path(text: str) -> str:
    """The path with ~ expanded. Raises UsageError for one that no file can have."""
    path, shown = os.path.expanduser(text), repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    if "\0" in path:
        raise UsageError(f"The path {shown} holds a NUL character, which no file's name may: give another.")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"The path {shown} cannot be written in this machine's locale: set LC_ALL=C.UTF-8.") from None
    longest = max(map(len, encoded.split(b"/")))
    if longest > _LONGEST_NAME or len(encoded) > _LONGEST_PATH:
        long = f"a name of {longest} bytes" if longest > _LONGEST_NAME else f"{len(encoded)} bytes"
        raise UsageError(
            f"The path {shown} has {long}; a name has at most {_LONGEST_NAME}, a path {_LONGEST_PATH}: give another."
        )
    return path


def absolute(path: str | None) -> str | None:
    """The path from the root on, so that whoever changes the working folder later does not move it."""
    return None if path is None else str(Path(home(), path))


@contextmanager
def returning() -> Iterator[None]:
    """The working folder is afterwards what it was before, whatever a policy or a suite does to it.

    Inside, `home` tells it. Raises UsageError where there is none.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        raise UsageError("The working folder was deleted: cd to one that is there.") from None
    _homes.append(folder)
    try:
        yield
    finally:
        _homes.pop()
        with suppress(OSError):  # it was deleted meanwhile
            os.chdir(folder)


@contextmanager
def at_home() -> Iterator[None]:
    """Inside the working folder is the one where the command was given, which relative paths in its arguments mean.

    Afterwards it is what it was before, or where the code inside has gone.
    """
    before = there = home()
    with suppress(FileNotFoundError):  # somebody deleted the one that he had gone to
        before = os.getcwd()
    os.chdir(there)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if os.getcwd() == there:
                os.chdir(before)


def home() -> str:
    """Where the relative paths of a command start from: the working folder at the outermost `returning`."""
    return _homes[0] if _homes else os.getcwd()


def _takes_path(annotation: Any) -> bool:
    if any(isinstance(extra, _Marker) for extra in getattr(annotation, "__metadata__", ())):
        return True
    return any(_takes_path(part) for part in get_args(annotation))


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(change(one) for one in value)
    return change(value) if isinstance(value, str) else value
