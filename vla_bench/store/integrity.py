"""Checksums of a run: a row's covers its text, its run and the row before, run.json's itself and the other files.

A line of episodes.jsonl ends in `"after": A, "checksum": C`. C is over the text of the line up to there, A included,
and over what run.json calls `first`, which stands for identity and protocol; A is the checksum of the line before, of
the first line `first`. So a line that was changed or is another run's is told from lines that are lost or moved, and
the others are known to be sound. Run.json counts the lines and names the checksum of the last: a lost end is found too.
It counts after they are stored: a run that was killed may hold more.

Lines of runs that an older vla-bench began end in neither. Once such a run is resumed, they are covered together by the
first line that follows, and by run.json.

This finds damage and careless edits. It is no signature: who makes all checksums anew is not found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
from typing import BinaryIO, NamedTuple

from vla_bench.config import digest

DIGITS = 16
SINCE = 3
"""The schema of run.json that has checksums."""
_OWN = re.compile(rb', "checksum": "([0-9a-f]{16})"\}')
_ENDS = re.compile(rb', "after": "([0-9a-f]{16})"' + _OWN.pattern)
_LENGTH_OF_OWN, _LENGTH_OF_ENDS = 33, 62  # bytes that these match


@dataclass(frozen=True)
class Checksums:
    """What run.json says of the files beside it."""

    first: str
    """What the first line of episodes.jsonl comes after: a checksum of identity and protocol, as they were then."""
    unchecked: int = 0
    """How many lines an older vla-bench wrote, which come first and have no checksums."""
    rows: int = 0
    """How many lines were stored by then."""
    last: str = ""
    """The checksum of the last of these; without one, that of the first line's predecessor."""
    inferences: tuple[str, ...] = ()
    """Checksums that inferences.parquet may have, "" where it may be missing; nothing is known of it when empty."""


class Ends(NamedTuple):
    """How a line with a checksum ends."""

    after: str
    checksum: str


class Line(NamedTuple):
    """A line to write, without its newline."""

    text: str
    checksum: str


def checksum(data: bytes) -> str:
    """16 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def checksum_of(stream: BinaryIO) -> str:
    """The same of what is in an open file."""
    digest_ = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(1 << 20):
        digest_.update(block)
    stream.seek(0)
    return digest_.hexdigest()[:DIGITS]


# --- rows ---


def begin(identity: Mapping[str, object], protocol: Mapping[str, object]) -> Checksums:
    """Those of a run without rows."""
    first = digest({"identity": identity, "protocol": protocol})[:DIGITS]
    return Checksums(first, last=first)


def line_of(record: Mapping[str, object], told: Checksums) -> Line:
    """The record as the line that comes next. Raises ValueError for a number that JSON cannot hold."""
    body = json.dumps({**record, "after": told.last}, allow_nan=False)[:-1]
    own = checksum(told.first.encode() + body.encode())
    return Line(f'{body}, "checksum": "{own}"}}', own)


def without_ends(record: object) -> object:
    """A parsed line as it was before `line_of`, or run.json's content before `sealed`."""
    if not isinstance(record, dict):
        return record
    return {name: value for name, value in record.items() if name not in ("after", "checksum")}


def ends_of(line: bytes) -> Ends | None:
    """What the line says of itself; None when it carries no checksum."""
    found = _ENDS.fullmatch(line, max(0, len(line) - _LENGTH_OF_ENDS))
    return Ends(found[1].decode(), found[2].decode()) if found else None


def is_sound(line: bytes, first: str) -> bool:
    """Whether the line carries a checksum, and is as it was written to that run."""
    ends = ends_of(line)
    return ends is not None and _own(line, first) == ends.checksum


def _own(line: bytes, first: str) -> str:
    """The checksum of what stands before that of the line."""
    return checksum(first.encode() + line[:-_LENGTH_OF_OWN])


class Chain:
    """Follows the lines from the first on."""

    def __init__(self, told: Checksums) -> None:
        self._told, self._before, self._number, self._bare = told, told.first, 0, 0
        self._complete = told.last == told.first

    def take(self, line: bytes) -> str:
        """What is wrong with the next line, as a predicate of the file: `line 3 was changed`; empty when nothing is."""
        self._number += 1
        said, self._before = self._look(line, ends_of(line))
        self._complete = self._complete or self._before == self._told.last
        return said

    def _look(self, line: bytes, ends: Ends | None) -> tuple[str, str]:
        """What is wrong, and what the line after this one should come after; empty where that is not known."""
        number, told = self._number, self._told
        if ends is None and number <= told.unchecked:
            self._bare = number
            return "", _folded(self._before, line)
        if ends is None:
            return f"line {number} carries no checksum: it was changed, or put in", ""
        if _own(line, told.first) != ends.checksum:
            return f"line {number} was changed after it was written", ends.checksum
        follows = not self._before or ends.after == self._before
        return "" if follows else _breach(number, self._bare, told.unchecked), ends.checksum

    def end(self) -> str:
        """What is wrong after the last line."""
        return "" if self._complete else f"lacks the last of the {self._told.rows} lines that were stored"


def damages(lines: Iterable[bytes], told: Checksums) -> list[str]:
    """Whatever is not as it was written, from top to bottom, as predicates of the file."""
    chain = Chain(told)
    return list(filter(None, [*map(chain.take, lines), chain.end()]))


def sound_lines(lines: Sequence[bytes], told: Checksums) -> list[bytes]:
    """Those that are as they were written, once each, in the order in which they were as far as they tell it."""
    bare = list(takewhile(lambda line: ends_of(line) is None, lines[: told.unchecked]))
    ends_of_line = {line: ends for line in lines if is_sound(line, told.first) and (ends := ends_of(line))}
    followers: dict[str, list[bytes]] = {}
    for line, ends in ends_of_line.items():
        followers.setdefault(ends.after, []).append(line)
    folded, checksums = reduce(_folded, bare, told.first), {ends.checksum for ends in ends_of_line.values()}
    ordered = list(bare) if folded in (told.last, *followers) else []
    todo = [folded, *(after for after in followers if after not in checksums)]  # what they follow is not among them
    while todo:
        next_ = followers.pop(todo.pop(0), [])
        ordered += next_
        todo = [*(ends_of_line[line].checksum for line in next_), *todo]
    return ordered


def _breach(number: int, bare: int, unchecked: int) -> str:
    """What is said of a sound line that is in the wrong place, where the last line without a checksum is `bare`."""
    if number == bare + 1 and unchecked:
        bare_lines = f"the {unchecked} lines without checksums"
        return f"line {number} does not follow {bare_lines}: some were changed, or lines are missing"
    if number == 1:
        return "line 1 is not the first that was stored: lines before it are missing, or were moved"
    return f"line {number} does not follow line {number - 1}: lines between them are missing, or were moved"


def _folded(before: str, line: bytes) -> str:
    """Stands for a line without a checksum, and all before it."""
    return checksum(before.encode() + line)


def at_the_end(lines: Sequence[bytes], told: Checksums) -> Checksums:
    """The same with those lines counted, which are sound."""
    last = reduce(_folded, lines[: told.unchecked], told.first)
    ends = ends_of(lines[-1]) if len(lines) > told.unchecked else None
    return replace(told, rows=len(lines), last=ends.checksum if ends else last)


# --- run.json ---


def sealed(info: Mapping[str, object]) -> dict[str, object]:
    """The content of run.json, as it comes back from a file, with its checksum."""
    content = json.loads(json.dumps(info, allow_nan=False))
    return {**content, "checksum": digest(content)[:DIGITS]}


def damages_of_info(found: object) -> Iterator[str]:
    """What is not as it was written in the content of run.json, as predicates of it: `carries no checksum`."""
    if not isinstance(found, dict):
        return
    content = {name: value for name, value in found.items() if name != "checksum"}
    said, schema = found.get("checksum"), found.get("schema")
    if said is None and isinstance(schema, int) and schema >= SINCE:
        yield "carries no checksum, so it was changed after it was written"
    elif said is not None and said != digest(content)[:DIGITS]:
        yield "was changed after it was written"
    yield from damages_of_protocol(found.get("protocol"), found.get("protocol_hash"))


def damages_of_protocol(protocol: object, said: object) -> Iterator[str]:
    """Of a protocol that is not the one whose hash stands beside it."""
    if isinstance(protocol, Mapping) and (own := protocol_hash(protocol)) != said:
        yield f"says that its protocol_hash is {said!r}, and its protocol has {own!r}, so it was changed"


def protocol_hash(protocol: Mapping[str, object]) -> str:
    """12 hex digits of SHA-256 over the protocol as canonical JSON."""
    return digest(protocol)[:12]
