"""Names and messages are text to whoever reads them: terminals, CI, Markdown, HTML, XML, spreadsheets, LaTeX, JSON."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from vla_bench.text import (
    aligned,
    csv_text,
    for_csv,
    for_html,
    for_latex,
    for_markdown,
    for_markdown_line,
    for_terminal,
    json_text,
    markdown_code,
    markdown_list,
    markdown_table,
    shorten,
    terminal_text,
    visible,
)

EVERY_LETTER = "".join(map(chr, [*range(0x20000), *range(0xE0000, 0xE0200)]))
"""But for planes in which there is nothing of interest."""
WITHOUT_SHAPE = (
    "\n\r\t\v\x00\x07\x1b\x7f\x85\x9b\u00ad\u034f\u061c\u115f\u1160\u200b\u200d\u202e\u2028\u2066\u2069\u3164"
)
WITHOUT_SHAPE += "\ufe0f\ufeff\uffa0\ud800\U000e0041\U000e0101"
PIECES = [
    *"aZ09 \t\n_*`[]()<>|$~#@+-=!&;:.,/\\'\"{}^%†π…é",
    *("**", "__", "~~", "```", "](", "![", "<img src=x onerror=alert(1)>", "</td>", "<!--", "&lt;", "&#60;", "&amp;"),
    *("https://evil.example", "HTTP://x", "ftp://x", "www.evil.example", "a@b.example", "@user", "#12", "- ", "1. "),
    *("1) ", "---", "===", "> ", "# ", "    ", "[a]: http://x", "::error::", "##[error]", "\x1b[2J", "\u202e", "%0A"),
]


def hostile(seed: int, count: int) -> list[str]:
    """Texts of a few pieces each, the same for the same seed."""
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 7))) for _ in range(count)]


# Letters


def test_whatever_has_no_shape_is_shown_by_its_number_and_the_rest_as_it_is() -> None:
    shown = visible(EVERY_LETTER)
    assert shown.isprintable()
    assert not set(shown) & set(WITHOUT_SHAPE)
    assert visible("lift the “red” cube: 60 %, π0.5, 立方体 → ok") == "lift the “red” cube: 60 %, π0.5, 立方体 → ok"
    assert visible("a\nb\x1b[2J\u202ec\U000e0041") == r"a\nb\x1b[2J\u202ec\U000e0041"
    assert visible(shown) == shown


def test_xml_holds_every_letter_that_is_shown() -> None:
    element = ElementTree.Element("case", name=visible(EVERY_LETTER))
    element.text = visible(EVERY_LETTER)
    found = ElementTree.fromstring(ElementTree.tostring(element))
    assert found.text == found.get("name") == visible(EVERY_LETTER)


def test_html_shows_every_letter_as_text_between_tags_and_in_attributes() -> None:
    class Seen(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.attributes: list[tuple[str, str | None]] = []
            self.tags, self.text = 0, ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.attributes, self.tags = attrs, self.tags + 1

        def handle_data(self, data: str) -> None:
            self.text += data

    given = EVERY_LETTER + "\"'><script>alert(1)</script>&lt;" + "".join(hostile(1, 200))
    seen = Seen()
    seen.feed(f'<p title="{for_html(given)}">{for_html(given)}</p>')
    seen.close()
    assert (seen.tags, seen.attributes, seen.text) == (1, [("title", visible(given))], visible(given))


# Terminals and logs


def is_command(line: str) -> bool:
    """As actions/runner reads a line of a log (src/Runner.Common/ActionCommand.cs)."""
    return line.lstrip().startswith("::") or "##[" in line


@pytest.mark.parametrize(
    "text", ["::error::x", "  ::add-mask::x", "\n::error::x", "\u00a0::x", "##[error]x", "a ##[add-path]/x", "###[x]"]
)
def test_no_line_is_a_command_to_github(text: str) -> None:
    assert any(map(is_command, text.split("\n")))
    shown = for_terminal(text)
    assert not any(map(is_command, shown.split("\n")))
    assert for_terminal(shown) == shown


@pytest.mark.parametrize("text", ["##vso[task.setvariable]x", "##teamcity[buildStatus]"])
def test_no_line_is_a_command_to_others(text: str) -> None:
    assert not re.search(r"##\w*\[", for_terminal(text))


def test_what_is_no_command_stays() -> None:
    assert for_terminal("fakes:Walker::x, # 1, [a], a::b") == "fakes:Walker::x, # 1, [a], a::b"


def test_a_name_makes_no_line_of_its_own_in_a_table_or_a_paragraph() -> None:
    names = ["::error::x\n::error::y", "lift", *hostile(2, 300)]
    lines = aligned([("task", "rate"), *((name, f"\n{name}") for name in names)])
    printed = "\n".join([*lines, terminal_text([[f"{name} is worse.", f"  {name}"] for name in names])])
    assert len(lines) == len(names) + 2
    assert len(printed.split("\n")) == len(lines) + 3 * len(names) - 1
    assert set(map(len, lines)) == {len(lines[0])}
    assert printed.replace("\n", "").isprintable()
    assert not any(map(is_command, printed.split("\n")))


def test_names_are_cut_to_what_is_seen_of_them() -> None:
    assert shorten(["a\x1b[2J", "bb"], 5) == ["a\\…2J", "bb"]
    assert max(map(len, shorten(hostile(3, 100), 20))) <= 20


# Markdown

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def printed(markdown: str, *structure: str) -> list[str]:
    """The texts that Markdown prints where it makes nothing but that structure."""
    tokens = MARKDOWN.parse(markdown)
    made = {token.tag for token in tokens if token.type != "inline"}
    assert made <= set(structure), (markdown, made)
    texts = [token for token in tokens if token.type == "inline"]
    inner = [child for token in texts for child in token.children or ()]
    assert {child.type for child in inner} <= {"text"}, (markdown, inner)
    return ["".join(child.content for child in token.children or ()).replace("\u200b", "") for token in texts]


def test_markdown_prints_every_text_as_it_is_and_makes_nothing_of_it() -> None:
    texts = [visible(text).strip() or "-" for text in hostile(4, 1500)]
    table = markdown_table([("task", "rate"), *((text, text) for text in texts)])
    cells = printed(table, "table", "thead", "tbody", "tr", "th", "td")
    assert cells[2:] == [text for text in texts for _ in range(2)]
    assert printed(markdown_list(texts), "ul", "li", "p") == texts
    assert printed("\n\n".join(map(for_markdown_line, texts)), "p") == texts
    assert printed("\n\n".join(f"## On {for_markdown(text)}, protocol" for text in texts), "h2") == [
        f"On {text}, protocol" for text in texts
    ]


def test_github_makes_no_link_mention_or_formula_of_a_text() -> None:
    """What its extensions look for (github/cmark-gfm, extensions/autolink.c): `://` after a scheme, `www.`, `@`."""
    shown = "\n".join(map(for_markdown, hostile(5, 3000))).replace("&#8203;", "\u200b")
    bare = re.sub(r"\\.", "\\\\", shown)  # without what is escaped
    assert not re.search(r"(?i)(https?|ftp)://|www\.\w|@\w|#\w|\$", bare)


@pytest.mark.parametrize("text", ["0123456789ab", "`", "a``b`", "``", "x` <img src=x onerror=alert(1)>", "a\nb\u202e"])
def test_code_ends_where_it_should(text: str) -> None:
    tokens = MARKDOWN.parseInline(f"protocol {markdown_code(text)}!")[0].children or []
    assert [(token.type, token.content) for token in tokens] == [
        ("text", "protocol "),
        ("code_inline", visible(text)),
        ("text", "!"),
    ]


def test_what_markdown_would_not_touch_stays_legible() -> None:
    plain = "put_the_bowl_on_the_plate: 84.7 % (p < 0.0001), A - B +6.7 pp, -1.4 – +14.9, 3/5"
    assert for_markdown(plain) == for_markdown_line(plain) == plain


# Spreadsheets


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", '=HYPERLINK("x")'])
def test_a_spreadsheet_computes_no_text(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text(["a", "b"], [{"a": text, "b": "x,;y"}])))
    assert row["a"][0] in "'\\"
    assert row["a"].removeprefix("'") == visible(text)
    assert row["b"] == "x,;y"


def test_numbers_stay_numbers_in_csv() -> None:
    rows = [{"a": -1.5, "b": 3, "c": None, "d": True}, {"a": float("nan"), "b": -7}]
    assert csv_text(["a", "b", "c", "d"], rows) == "a,b,c,d\n-1.5,3,,True\nnan,-7,,\n"
    assert for_csv("lift - now = 3") == "lift - now = 3"


# LaTeX


def test_latex_has_no_command_or_option_of_a_text() -> None:
    assert for_latex(r"a_b & 50 % \input{x} $y$ #1 ~ ^^M") == (
        r"a\_b \& 50 \% \textbackslash{}input\{x\} \$y\$ \#1 \textasciitilde{} \textasciicircum{}\textasciicircum{}M"
    )
    assert for_latex("[2cm]*\n") == r"{[}2cm{]}{*}\textbackslash{}n"


# JSON


def test_json_is_exact_and_shows_what_has_no_shape_by_number() -> None:
    letters = re.sub(
        "[\ud800-\udfff]+", "\udce9", EVERY_LETTER
    )  # two halves beside each other would be read as a whole
    given = {"task": letters, letters[-99:]: [1, -0.5, None, "π\n"]}
    said = json_text(given, indent=1)
    assert json.loads(said) == given
    assert said.replace("\n", "").isprintable()
    assert "π" in said
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"), allow_nan=False)
