"""Seeded damage for what readers find on disk, and bounds for what they may take over it.

    damage = Random(seed)                         # the same seed does the same damage
    said = damage_tree(folder, damage)            # one file below it, in a way that fits its name; `said` tells which
    said = damage_file(file, damage)              # that file
    content, said = damaged(content, damage)      # any bytes
    content, said = damaged_json(content, damage) # one place of a JSON text, the rest untouched
    content, said = damaged_lines(content, damage)  # JSONL: one line, or which lines there are
    with bounded(seconds=20, megabytes=1000):     # raises Exceeded, which no `except Exception` catches
        read(folder)

Every function that damages says in a few words what it did, for the message of the test that fails. `Random(seed)`
alone decides, so that a seed in that message is the whole recipe.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

DEEP = 100_000
"""Levels of nesting."""
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "0.5", "-0.0", "5e-324", "1e308", "1e999", "-1e999", "NaN", "Infinity"),
    *("-Infinity", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "9" * 400, "9" * 5000),
    *('""', '"x"', '"0"', '"true"', '"None"', r'"\ud800"', r'"\u0000"', r'"a\u0000b"', r'"\u202e"', r'"\u001b[2J"'),
    *(r'"a\nb"', '"../../.."', '"/etc/passwd"', '"/dev/zero"', '"."', f'"{"é" * 5000}"', r'"x\n::error::y"'),
    *('"<img src=x onerror=alert(1)>"', '"=1+1"', '"2026-99-99"', '"9999-12-31T23:59:59+14:00"', r'"`|*_\\"'),
    *("[]", "{}", "[null]", "[[]]", "[1, 2]", '["x"]', '[["x"]]', '{"": null}', '{"x": 1}', '{"name": {"name": []}}'),
    *("[" * DEEP + "]" * DEEP, '{"":' * DEEP + "1" + "}" * DEEP, f"[{'{},' * 100_000}0]", f'"{"a" * 3_000_000}"'),
)
"""JSON texts, some of which only Python reads, that a value may be replaced by."""
NAMES = ("", "x", "name", "schema", "version", r"\ud800", r"\u0000", "__class__", "a" * 3000)
"""Names of fields that are added, as JSON writes them."""


class Damage(NamedTuple):
    """Damaged content, and what was done to it."""

    content: bytes
    said: str


# --- bytes ---


def damaged(content: bytes, damage: Random) -> Damage:
    """The bytes with one to four of them changed, or a stretch cut out, cut off, doubled, zeroed, or put in."""
    how: Callable[[bytes, Random], Damage] = damage.choice(
        (_flipped, _flipped, _cut_off, _cut_out, _doubled, _zeroed, _put_in)
    )
    return how(content, damage)


def _flipped(content: bytes, damage: Random) -> Damage:
    changed, places = bytearray(content or b"\0"), []
    for _ in range(damage.randint(1, 4)):
        places.append(damage.randrange(len(changed)))
        changed[places[-1]] ^= damage.randint(1, 255)
    return Damage(bytes(changed), f"bytes {places} changed")


def _cut_off(content: bytes, damage: Random) -> Damage:
    size = damage.choice((0, 1, damage.randint(0, len(content)), max(0, len(content) - damage.randint(1, 9))))
    return Damage(content[:size], f"cut off after {size} bytes")


def _cut_out(content: bytes, damage: Random) -> Damage:
    start, end = _stretch(content, damage)
    return Damage(content[:start] + content[end:], f"bytes {start} to {end} cut out")


def _doubled(content: bytes, damage: Random) -> Damage:
    start, end = _stretch(content, damage)
    return Damage(content[:end] + content[start:], f"bytes {start} to {end} doubled")


def _zeroed(content: bytes, damage: Random) -> Damage:
    start, end = _stretch(content, damage)
    return Damage(content[:start] + bytes(end - start) + content[end:], f"bytes {start} to {end} zeroed")


def _put_in(content: bytes, damage: Random) -> Damage:
    place = damage.choice((0, len(content), damage.randint(0, len(content))))
    what = damage.choice(
        (b"\0", b"\n", b"\xef\xbb\xbf", b"\xff\xff\xff\xff", b"\r", damage.randbytes(100), bytes(5000))
    )
    return Damage(content[:place] + what + content[place:], f"{what[:8]!r} ({len(what)} bytes) put in at {place}")


def _stretch(content: bytes, damage: Random) -> tuple[int, int]:
    start = damage.randint(0, len(content))
    return start, min(len(content), start + damage.choice((1, 8, 64, 4096)))


# --- JSON ---


class _Raw(str):
    """JSON text that is written as it stands."""


class _Fields(list[tuple[_Raw, Any]]):
    """A JSON object with its names, written out, as often as they come."""


class _Place(NamedTuple):
    """One entry of a list or of an object."""

    holder: list[Any]
    index: int
    path: str


def damaged_json(content: bytes, damage: Random) -> Damage:
    """The JSON text with one value replaced, taken away, doubled or moved, or a field added; `damaged` if it is none.

    Replaced values are of any type and size: see `VALUES`. Doubled fields keep their name, so that it is there twice.
    """
    try:
        tree = json.loads(content, object_pairs_hook=lambda pairs: _Fields((_Raw(json.dumps(n)), v) for n, v in pairs))
    except (ValueError, RecursionError):
        return damaged(content, damage)
    top: list[Any] = [tree]
    places = [_Place(top, 0, "all"), *_places(tree, "")]
    said = _change(damage.choice(places), damage)
    return Damage(_text(top[0]).encode() if top else b"", said)


def _places(value: Any, path: str) -> Iterator[_Place]:
    if isinstance(value, list):
        for index, entry in enumerate(value):
            name, inner = (json.loads(entry[0]), entry[1]) if isinstance(value, _Fields) else (index, entry)
            yield _Place(value, index, here := f"{path}.{name}".lstrip("."))
            yield from _places(inner, here)


def _change(place: _Place, damage: Random) -> str:
    holder, index, path = place
    value = holder[index][1] if isinstance(holder, _Fields) else holder[index]
    how = damage.choice(("replaced", "replaced", "replaced", "taken away", "doubled", "moved", "added"))
    if how == "taken away":
        del holder[index]
    elif how == "doubled":
        holder.insert(index, holder[index])
        if isinstance(holder, _Fields):
            _put(holder, index + damage.randint(0, 1), new := _strange(damage))
            return f"{path} there twice, once as {new[:40]}"
    elif how == "moved" and len(holder) > 1:
        other = damage.randrange(len(holder))
        theirs = holder[other][1] if isinstance(holder, _Fields) else holder[other]
        _put(holder, index, theirs)
        _put(holder, other, value)
    elif how == "added" and isinstance(value, list):
        new = _strange(damage)
        value.append((_Raw(f'"{damage.choice(NAMES)}"'), new) if isinstance(value, _Fields) else new)
        return f"{new[:40]} added to {path}"
    else:
        _put(holder, index, new := _strange(damage))
        return f"{path} replaced by {new[:40]}"
    return f"{path} {how}"


def _put(holder: list[Any], index: int, value: Any) -> None:
    holder[index] = (holder[index][0], value) if isinstance(holder, _Fields) else value


def _strange(damage: Random) -> _Raw:
    return _Raw(damage.choice(VALUES))


def _text(value: Any) -> str:
    if isinstance(value, _Raw):
        return value
    if isinstance(value, _Fields):
        return "{" + ", ".join(f"{name}: {_text(inner)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)


def damaged_lines(content: bytes, damage: Random) -> Damage:
    """The JSONL text with one line damaged, or with lines taken away, doubled, swapped, emptied or put in."""
    lines = content.splitlines(keepends=True) or [b""]
    here, there = damage.randrange(len(lines)), damage.randrange(len(lines))
    how = damage.choice(("damaged",) * 6 + ("taken away", "doubled", "swapped", "emptied", "bytes"))
    said = f"line {here + 1} {how}"
    if how == "damaged":
        line, what = damaged_json(lines[here], damage)
        lines[here], said = line + b"\n", f"line {here + 1}: {what}"
    elif how == "taken away":
        del lines[here]
    elif how == "doubled":
        lines.insert(there, lines[here])
    elif how == "swapped":
        lines[here], lines[there] = lines[there], lines[here]
    elif how == "emptied":
        lines[here] = damage.choice((b"\n", b"\r\n", b" \n", b"\0\n", b"{}\n", b"[]\n", b"null\n"))
    else:
        return damaged(content, damage)
    return Damage(b"".join(lines), said)


# --- files ---


def damage_tree(folder: Path, damage: Random) -> str:
    """Damages one file below the folder as `damage_file` does; says which and how."""
    file = damage.choice(sorted(entry for entry in folder.rglob("*") if entry.is_file() and not entry.is_symlink()))
    return f"{file.relative_to(folder)}: {damage_file(file, damage)}"


def damage_file(file: Path, damage: Random) -> str:
    """Damages the content of the file as its name asks for or, one time in six, what kind of file it is."""
    if damage.random() < 1 / 6:
        return replace_file(file, damage.choice(KINDS))
    by_name = {".json": damaged_json, ".jsonl": damaged_lines}.get(file.suffix, damaged)
    change = damaged if damage.random() < 1 / 6 else by_name
    content, said = change(file.read_bytes(), damage)
    file.write_bytes(content)
    return said


KINDS = (
    "gone",
    "empty",
    "folder",
    "pipe",
    "socket",
    "device",
    "huge",
    "loop",
    "dangling",
    "link outside",
    "unreadable",
)


def replace_file(file: Path, kind: str) -> str:
    """Puts something of that kind in the place of the file; says so. `huge` is a hole of 64 GiB."""
    content = file.read_bytes()
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{(there := os.open(file.parent, os.O_RDONLY))}/{file.name}")  # paths are short
            os.close(there)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "huge":
        file.touch()
        os.truncate(file, 2**36)
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "dangling":
        file.symlink_to("nowhere")
    elif kind == "link outside":
        file.symlink_to("/etc/passwd")
    elif kind == "unreadable":  # except by root
        file.write_bytes(content)
        file.chmod(0)
    return f"{kind} in its place"


def fresh_copy(source: Path, target: Path) -> Path:
    """The tree again, whatever the last damage left at `target`."""
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target, symlinks=True))


# --- bombs ---


def png_bomb(width: int, height: int) -> bytes:
    """A black picture of so many pixels, one bit each; 196 million of them are 24 kB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = zlib.compress(bytes((1 + -(-width // 8)) * height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# --- bounds ---


class Exceeded(BaseException):
    """Raised for what took too long or too much memory."""


@contextmanager
def bounded(seconds: float, megabytes: int) -> Iterator[None]:
    """What runs inside takes at most that long, and at most so much more memory than was in use before.

    Raises Exceeded: in the midst of a call that waits or computes for too long, at its end for memory. What would take
    twice that memory gets MemoryError, so that the machine stays alive. For the main thread of a process.
    """
    before = _status("VmRSS")
    room = (_status("VmSize") + 2 * megabytes) * 2**20
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    former = signal.signal(signal.SIGALRM, _too_long)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
    resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    if (took := _status("VmHWM") - before) > megabytes:
        raise Exceeded(f"It took {took} MB of memory, expected at most {megabytes}.")


def _too_long(_: int, frame: FrameType | None) -> None:
    where = f" in {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
    raise Exceeded(f"It took too long{where}.")


def _status(name: str) -> int:
    """Megabytes, as Linux counts them for this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found, f"no {name} in /proc/self/status"
    return int(found[1]) // 1024
