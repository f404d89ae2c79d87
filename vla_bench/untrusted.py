"""Files that others wrote: read within bounds, and whatever is wrong with one becomes one sentence that names it."""

from __future__ import annotations

import json
import reprlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_bench.errors import MissingPackage, UsageError, in_a_line
from vla_bench.store.records import open_file

MB = 2**20
MOST_JSON = 16 * MB
"""Bytes of a JSON file; the largest known index of shards has 9 million."""
_MOST_CONTAINERS = 10**6
"""Lists and objects in one JSON text: each takes 64 bytes and more of memory for two of the file."""
_LONGEST = 600
"""Characters of a message; what a file holds may be quoted in it."""
_LONGEST_CAUSE = 200

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120


def brief(value: object) -> str:
    """The value as Python writes it, in about 120 characters however large it is."""
    return _BRIEF.repr(value)


@contextmanager
def reading(source: str | Path, what: str) -> Iterator[None]:
    """Whatever content makes its readers raise inside is a UsageError that names `source`, which should be `what`.

    A UsageError from inside stays as it is, but is one line, not too long, and names the source as well.
    """
    try:
        yield
    except MissingPackage:
        raise
    except UsageError as error:
        said = " ".join(str(error).split())
        named = said if str(source) in said else f"{source}: {said}"
        if named != str(error) or len(named) > _LONGEST:
            raise UsageError(_cut(named, _LONGEST)) from error
        raise
    except Exception as error:  # every library has classes of its own for each kind of damage
        raise UsageError(
            f"{source} cannot be read as {what} ({_cut(in_a_line(error), _LONGEST_CAUSE)}); is it truncated? Download "
            "it again."
        ) from error


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def read_bytes(file: Path, most: int, what: str) -> bytes:
    """The content of a regular file. Raises UsageError where there is none, or it has more than `most` bytes."""
    try:
        stream = open_file(file)
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}; expected {what}.") from None
    with reading(file, what), stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UsageError(f"{file} has more than {most:,} bytes, more than {what} has; it is another file or damaged.")
    return content


def read_json(file: Path, most: int = MOST_JSON) -> Any:
    """The value in that file. Raises UsageError for a missing, damaged or overlarge one."""
    return parse_json(read_bytes(file, most, "JSON"), file)


def parse_json(content: bytes, source: str | Path) -> Any:
    """The value of that JSON text in UTF-8. Raises UsageError, also for more values than any such file has."""
    if content.count(b"[") + content.count(b"{") > _MOST_CONTAINERS:
        raise UsageError(f"{source} holds more than {_MOST_CONTAINERS:,} lists and objects; it is no such file.")
    with reading(source, "JSON"):
        return json.loads(content.decode("utf-8"))


def insist_on_stored(archive: zipfile.ZipFile, source: Path) -> None:
    """Raises UsageError unless the archive's members are stored as they are: compressed ones may expand without end,
    and so may members that lie on each other.
    """
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED:
            raise UsageError(f"{source} has {brief(member.filename)} compressed, which it never is; do not use it.")
    if sum(member.file_size for member in archive.infolist()) > source.stat().st_size:
        raise UsageError(f"{source} promises more bytes than it has; is it truncated? Download it again.")
