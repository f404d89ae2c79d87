"""Files that anybody may have written -> values of the declared types, or one sentence that says what is wrong.

Readers check here, once: whoever gets a value from here may rely on its type, on finite numbers and on shallow nesting.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vla_bench.errors import UsageError, unreadable

T = TypeVar("T")
Read = Callable[[object, str], Any]
"""(value, what it is called in errors) -> the value as its type has it. Raises Misfit."""

LONGEST = 2**24
"""Bytes of a line or of a JSON file: Python takes up to thirty times as many for what they hold."""
DEEPEST = 32
"""Levels of nesting in what has no declared type."""
_SHOWN = 40
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Misfit(ValueError):
    """Raised for a value that is not of the declared type: says its name, what was got and what was expected."""


class Newer(Misfit):
    """Raised for a record that is sound but for fields which are not known here: a newer version wrote it."""


# --- files ---


def open_file(file: Path, folder: Path | None = None) -> BinaryIO:
    """The regular file, open for reading; with a folder, it has to lie in it, links followed.

    Nothing else is opened: a pipe would wait, a device may never end. Raises FileNotFoundError, and UsageError.
    """
    try:
        if (kind := stat.S_IFMT(os.stat(file).st_mode)) != stat.S_IFREG:
            raise UsageError(f"{file} is {_KINDS.get(kind, 'no file')}, expected a file: restore it.")
        if folder is not None and not is_inside(file, folder):
            raise UsageError(f"{file} is a link that leaves {folder}, so it is not read: put the file itself there.")
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # should it have become a pipe
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # a NUL in its name is a ValueError
        raise unreadable(file, error) from error
    return os.fdopen(descriptor, "rb")


def is_inside(file: Path, folder: Path) -> bool:
    """Whether the file lies in the folder once links are followed."""
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def lines_of(file: Path, folder: Path | None = None) -> Iterator[bytes]:
    """Every line with its end, which the last one may lack; none when there is no such file.

    Raises UsageError as `open_file`, and for a line of more than LONGEST bytes.
    """
    with suppress(FileNotFoundError), open_file(file, folder) as stream:
        number = 0
        while line := _taken(partial(stream.readline, LONGEST + 1), file):
            number += 1
            if len(line) > LONGEST:
                raise UsageError(f"{file} line {number} has more than {LONGEST} bytes: restore it.")
            yield line


def content_of(file: Path, folder: Path | None = None) -> bytes:
    """The file's content, at most LONGEST bytes. Raises FileNotFoundError, and UsageError as `open_file`."""
    with open_file(file, folder) as stream:
        content = _taken(partial(stream.read, LONGEST + 1), file)
    if len(content) > LONGEST:
        raise UsageError(f"{file} has more than {LONGEST} bytes: restore it.")
    return content


def _taken(read: Callable[[], bytes], file: Path) -> bytes:
    try:
        return read()
    except OSError as error:
        raise unreadable(file, error) from error


def parsed(text: bytes | str) -> object:
    """The JSON value. Raises Misfit, also for NaN and Infinity, which are no JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise Misfit("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError, Misfit) as error:
        raise Misfit(str(error)) from error
    except ValueError:  # the only other reason
        raise Misfit("a number has too many digits") from None


def _no_constant(name: str) -> object:
    raise Misfit(f"{name} is no JSON")


# --- types ---


def typed(kind: type[T], value: object, name: str = "") -> T:
    """The JSON value as that type: lists become tuples, objects dataclasses. Raises Misfit, or Newer.

    Numbers are finite, whole ones have at most 64 bits, and a field without a default has to be there.
    """
    read: Read = reader(cast(Any, kind))
    return cast(T, read(value, name))


@cache
def reader(kind: Any) -> Read:
    """What reads a value of that type: a dataclass, str, int, float, bool, None, object, a union or Literal of these,
    tuple[X, ...], or a Mapping with names of fields."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(cast(type, kind))
    if origin in (Union, types.UnionType):
        return _union(inner)
    if origin is Literal:
        return _literal(inner)
    if origin is tuple and inner[1:] == (...,):
        return _list(reader(inner[0]))
    if origin is not None and issubclass(origin, Mapping) and inner[0] is str:
        return _object(reader(inner[1]))
    return _SIMPLE[kind]


def _text(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    raise _other(value, name, "a text")


def _integer(value: object, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    raise _other(value, name, "a whole number of 64 bits")


def _number(value: object, name: str) -> float:
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return float(value)
    raise _other(value, name, "a finite number")


def _truth(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise _other(value, name, "true or false")


def _null(value: object, name: str) -> None:
    if value is not None:
        raise _other(value, name, "null")


def _anything(value: object, name: str, depth: int = DEEPEST) -> object:
    """The value, whatever it is made of, without what most of its readers cannot take."""
    if isinstance(value, float):
        return _number(value, name)
    if isinstance(value, int) and not -(2**64) < value < 2**64:
        raise _other(value, name, "a number of 64 bits")
    if isinstance(value, list | dict):
        if depth == 0:
            raise Misfit(f"{name} is nested too deeply")
        for inner, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _anything(entry, f"{name}.{inner}", depth - 1)
    return value


_SIMPLE: Mapping[Any, Read] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _truth,
    None: _null,
    type(None): _null,
    object: _anything,
}


def _union(kinds: tuple[Any, ...]) -> Read:
    readers = tuple(map(reader, kinds))

    def read(value: object, name: str) -> object:
        said = list[str]()
        for one in readers:
            try:
                return one(value, name)
            except Misfit as error:  # noqa: PERF203 the first nearly always fits
                said.append(str(error).rpartition(", expected ")[2])
        raise _other(value, name, " or ".join(said))

    return read


def _literal(known: tuple[object, ...]) -> Read:
    def read(value: object, name: str) -> object:
        if any(type(value) is type(one) and value == one for one in known):
            return value
        raise _other(value, name, " or ".join(map(repr, known)))

    return read


def _list(entry: Read) -> Read:
    def read(value: object, name: str) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise _other(value, name, "a list")
        return tuple([entry(one, f"{name}.{number}") for number, one in enumerate(value)])

    return read


def _object(entry: Read) -> Read:
    def read(value: object, name: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise _other(value, name, "an object")
        return {inner: entry(one, f"{name}.{inner}") for inner, one in value.items()}

    return read


def _dataclass(kind: type[Any]) -> Read:
    hints, known = get_type_hints(kind), dataclasses.fields(kind)
    readers = {field.name: reader(hints[field.name]) for field in known if field.init}
    missing = dataclasses.MISSING
    needed = {field.name for field in known if field.default is missing and field.default_factory is missing}

    def read(value: object, name: str) -> object:
        if not isinstance(value, dict):
            raise _other(value, name, "an object")
        inside = f"{name}." if name else ""
        if lacking := needed - value.keys():
            raise Misfit(f"{inside}{min(lacking)} is missing")
        found = {field: readers[field](one, f"{inside}{field}") for field, one in value.items() if field in readers}
        if unknown := value.keys() - readers.keys():
            raise Newer(f"{inside}{_shown(min(unknown))} is not known to this vla-bench")
        return kind(**found)

    return read


def _other(value: object, name: str, expected: str) -> Misfit:
    return Misfit(f"{name[:200] or 'it'} is {_shown(value)}, expected {expected}")


def _shown(value: object) -> str:
    """The value in a few letters, whatever its size."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_SHOWN:
        return f"a number of {value.bit_length()} bits"
    return json.dumps(value)
