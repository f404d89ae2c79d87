"""A leaderboard as the file its name announces: text, Markdown, JSON, CSV, LaTeX or a web page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vla_bench.report.leaderboard import (
    LETTERS_EXPLAINED,
    Board,
    Leaderboard,
    Standing,
    broken_lines,
    published_tables,
    render_markdown,
    render_text,
    scores_explained,
    standings_table,
    to_json,
    unreadable_lines,
)
from vla_bench.text import csv_text, for_html, for_latex, json_text

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}:root{color-scheme:light dark}"
)


def render_json(leaderboard: Leaderboard) -> str:
    """All of it, for programs."""
    return json_text(to_json(leaderboard), indent=2, allow_nan=False)


def render_csv(leaderboard: Leaderboard) -> str:
    """A row per policy of every suite and protocol, rates as fractions, empty where unknown; no published numbers."""
    rows = [_csv_row(board, standing) for board in leaderboard.boards for standing in board.standings]
    links = max((len(standing.chains.at_least) for board in leaderboard.boards for standing in board.standings
                 if standing.chains), default=0)  # fmt: skip
    columns = [*_csv_row(leaderboard.boards[0], leaderboard.boards[0].standings[0])]
    columns += [name for n in range(1, links + 1) if (name := f"at_least_{n}") not in columns]
    return csv_text(columns, rows).rstrip("\n")


def _csv_row(board: Board, standing: Standing) -> dict[str, object]:
    chains = standing.chains
    at_least = {f"at_least_{n}": share.rate for n, share in enumerate(chains.at_least, 1)} if chains else {}
    return {
        "suite": board.suite,
        "perturbation": board.perturbation,
        "protocol_hash": board.protocol_hash,
        "renderer": board.renderer,
        "policy": standing.label,
        "checkpoint": standing.checkpoint,
        "arguments": " ".join(standing.arguments),
        "successes": standing.successes,
        "episodes": standing.episodes,
        "rate": standing.rate,
        "low": standing.interval.low,
        "high": standing.interval.high,
        "tasks": standing.tasks,
        "broken": standing.broken,
        "other_pixels": int(standing.other_pixels),
        "letters": standing.letters,
        "latency_p50_ms": standing.latency_p50_ms,
        "attainable_hz": standing.attainable_hz,
        "date": standing.date,
        "average_length": chains.mean_length if chains else None,
        "average_length_low": chains.low if chains else None,
        "average_length_high": chains.high if chains else None,
        **at_least,
    }


def render_latex(leaderboard: Leaderboard) -> str:
    """A table environment per board, its notes below, for a paper; needs no package beyond LaTeX's own."""
    tables = [
        _latex_table(f"{board.title}, protocol {board.protocol_hash}. {scores_explained(board)} {LETTERS_EXPLAINED}",
                     standings_table(board), [*board.notes, *broken_lines(board)])
        for board in leaderboard.boards
    ]  # fmt: skip
    tables += [_latex_table(title, rows, ()) for title, rows in published_tables(leaderboard)]
    return "\n\n".join([*tables, *(f"% {for_latex(line)}" for line in unreadable_lines(leaderboard))])


def _latex_table(caption: str, rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    head, *body = (" & ".join(map(for_latex, row)) + r" \\" for row in rows)
    return "\n".join(
        [
            r"\begin{table}\centering\footnotesize",
            rf"\caption{{{for_latex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            *(r"\hline", head, r"\hline", *body, r"\hline"),
            r"\end{tabular}",
            *(rf"\par {for_latex(note)}" for note in notes),
            r"\end{table}",
        ]
    )


def render_html(leaderboard: Leaderboard) -> str:
    """A page of tables without scripts or links; `vla-bench report` makes the one with figures."""
    parts = ["<h1>Leaderboard</h1>", *map(_paragraph, dict.fromkeys(map(scores_explained, leaderboard.boards)))]
    parts.append(_paragraph(LETTERS_EXPLAINED))
    for board in leaderboard.boards:
        parts += [f"<h2>{for_html(board.title)}, protocol <code>{for_html(board.protocol_hash)}</code></h2>"]
        parts += [_html_table(standings_table(board)), *map(_paragraph, [*board.notes, *broken_lines(board)])]
    for title, rows in published_tables(leaderboard):
        parts += [f"<h2>{for_html(title)}</h2>", _html_table(rows)]
    parts += map(_paragraph, unreadable_lines(leaderboard))
    head = f'<meta charset="utf-8"><title>Leaderboard</title><style>{_STYLE}</style>'
    return "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *parts, "</body></html>"])


def _paragraph(text: str) -> str:
    return f"<p>{for_html(text)}</p>"


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [f"<tr>{''.join(f'<td>{for_html(cell)}</td>' for cell in row)}</tr>" for row in body]
    titles = "".join(f'<th scope="col">{for_html(cell)}</th>' for cell in head)
    return "\n".join([f"<table><thead><tr>{titles}</tr></thead><tbody>", *lines, "</tbody></table>"])


FORMATS: Mapping[str, Callable[[Leaderboard], str]] = {
    ".csv": render_csv,
    ".html": render_html,
    ".json": render_json,
    ".md": render_markdown,
    ".tex": render_latex,
    ".txt": render_text,
}
"""Ending of a file's name -> what writes it."""
