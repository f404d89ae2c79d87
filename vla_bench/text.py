"""Text as its reader takes it: names, messages and paths are somebody else's, and terminals, Markdown, spreadsheets and
CI read some letters as commands.

One function per reader. Each gives one line in which every letter can be seen: what has no shape of its own (line
breaks, escape sequences, letters of no width or that turn the direction of writing) appears by its number, as in
Python's repr. Only JSON stays exact, for its own escapes are read back.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_WITHOUT_SHAPE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Of Unicode's Default_Ignorable_Code_Point, those that `str.isprintable` lets pass."""
_CI_COMMAND = re.compile(r"^\s*:(?=:)|#(?=#\w*\[)")
"""What GitHub's runner takes for a command: a line that begins with `::` and, anywhere in a line, `##[`
(actions/runner, src/Runner.Common/ActionCommand.cs). Azure's `##vso[` and TeamCity's `##teamcity[` are like it."""
_MARKDOWN = re.compile(r"[\\`*\[|$~]|<(?=\S)|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<=[A-Za-z]):(?=//)|(?<=www)\.")
"""What Markdown reads as formatting, a tag, an entity or an address; GitHub also as mathematics. An underscore between
letters is none of these."""
_MENTION = re.compile(r"[@#](?=\w)")
"""What GitHub makes a link of after it has read the Markdown, and mailto: a backslash does not help."""
_BLOCK = re.compile(r"^(?:[-+=#>]|\d{1,9}(?=[.)]))")
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""First letters of what a spreadsheet computes (OWASP, CSV injection), also in their full width."""
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # the argument of a line break, where a row begins with it
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "“": "``",
    "”": "''",
    "’": "'",
    "…": r"\ldots{}",
    "†": r"\dag{}",
    "π": r"$\pi$",
    "α": r"$\alpha$",
    "₀": "$_0$",
}
"""What LaTeX reads as a command, and what its default fonts do not have."""

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the header."""


def visible(text: str) -> str:
    r"""The text in one line of letters that can be seen: `\n`, `\x1b` or `\u202e` for what cannot. XML can hold it."""
    return text if text.isascii() and text.isprintable() else text.translate(_SEEN)


class _Seen(dict[int, str]):
    """What is shown of a letter, by its code; worked out when first asked for."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        shown = letter.isprintable() and not _WITHOUT_SHAPE.match(letter)
        self[code] = letter if shown else letter.encode("unicode_escape").decode("ascii")
        return self[code]


_SEEN = _Seen()


def for_terminal(text: str) -> str:
    """The text as a line, or a part of one, that neither a terminal nor the log of a CI obeys."""
    return _CI_COMMAND.sub(lambda found: f"{found[0][:-1]}\\x{ord(found[0][-1]):02x}", visible(text))


def for_log(text: str) -> str:
    """Lines, as of a traceback, each as `for_terminal`; only the line breaks are made."""
    return "\n".join(map(for_terminal, text.rstrip("\n").split("\n")))


def for_markdown(text: str) -> str:
    """The text as a cell, or as a part of a line, that Markdown prints as it is: no formatting, tag or link."""
    said = _MARKDOWN.sub(r"\\\g<0>", visible(text))
    return _MENTION.sub(r"\g<0>&#8203;", said)


def for_markdown_line(text: str) -> str:
    """The same as a paragraph or an item of its own, which may not begin like a list, a heading or a rule either."""
    return _BLOCK.sub(lambda found: f"\\{found[0]}" if not found[0].isdecimal() else f"{found[0]}\\",
                      for_markdown(text.strip()))  # fmt: skip


def markdown_code(text: str) -> str:
    """The text as code within a line."""
    said = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", said)), default=0))
    room = " " if said.startswith("`") or said.endswith("`") else ""
    return f"{fence}{room}{said}{room}{fence}"


def for_html(text: str) -> str:
    """The text between tags, or in an attribute with quotes."""
    return escape(visible(text))


def for_csv(text: str) -> str:
    """The text as a cell that a spreadsheet shows and does not compute: behind an apostrophe where it would."""
    said = visible(text)
    return f"'{said}" if said.startswith(_FORMULA) else said


def for_latex(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter) for letter in visible(text))


def json_text(value: object, indent: int | None = None, allow_nan: bool = True) -> str:
    """The value as JSON in its own letters; those without shape are written by number, which JSON reads back."""
    said = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan, default=str)
    return said if said.isascii() else "".join(map(_seen_in_json, said))


def _seen_in_json(letter: str) -> str:
    return letter if letter == "\n" or visible(letter) == letter else json.dumps(letter)[1:-1]


# --- tables and paragraphs ---


def terminal_text(sections: Iterable[Sequence[str]]) -> str:
    """Sections of lines, those without lines left out, with an empty line between two."""
    return "\n\n".join("\n".join(map(for_terminal, lines)) for lines in sections if lines)


def aligned(rows: Table) -> list[str]:
    """Lines of a table for a terminal: the first column to the left, the others to the right."""
    shown = [[for_terminal(cell) for cell in row] for row in rows]
    first, *others = widths(shown)
    lines = [
        " | ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for name, *cells in shown
    ]
    return [lines[0], "-+-".join("-" * width for width in (first, *others)), *lines[1:]]


def widths(rows: Table) -> list[int]:
    """Letters of the longest cell of every column."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def shorten(names: Sequence[str], width: int) -> list[str]:
    """Names of at most `width` letters, cut near the middle where it keeps as many of them as can be distinct."""
    names = [visible(name) for name in names]

    def cut(name: str, head: int) -> str:
        tail = width - 1 - head
        return name if len(name) <= width else f"{name[:head]}…{name[len(name) - tail :]}"

    def merit(head: int) -> tuple[int, int]:
        return len({cut(name, head) for name in names}), -abs(2 * head - width)

    best = max(range(width), key=merit)
    return [cut(name, best) for name in names]


def markdown_table(rows: Table) -> str:
    """A table of Markdown, numbers to the right."""
    first, *others = [[for_markdown(cell) for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(first) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (first, rule, *others))


def markdown_list(lines: Iterable[str]) -> str:
    """Items of Markdown."""
    return "\n".join(f"- {for_markdown_line(line)}" for line in lines)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """CSV of those columns: numbers as they are, nothing for None or what a row lacks, texts as `for_csv`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: for_csv(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
                     for row in rows)  # fmt: skip
    return text.getvalue()
