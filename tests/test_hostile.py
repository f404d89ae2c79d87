"""Runs whose names and messages try to be commands: to terminals, CI, Markdown, pages, spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import INFO, call, episode, of_protocol
from markdown_it import MarkdownIt
from test_report import Tags, embedded
from test_text import is_command

from vla_bench.cli import main
from vla_bench.doctor import machine as doctor
from vla_bench.pytest_plugin import verdict
from vla_bench.report.leaderboard import load_leaderboard
from vla_bench.report.leaderboard_files import FORMATS
from vla_bench.store.runs import RunStore
from vla_bench.text import visible

LINE = "::error file=a.py,line=1::INJECTED"
EVIL = (
    f"x\n{LINE} ##[error]no\x1b[2J\x1b]0;title\x07\u202e\u200b|**b**<img src=x onerror=alert(1)>`[a](//evil)%0A\r\x00"
)
TASKS = (LINE, '=HYPERLINK("//evil")', EVIL)
MODULE = """
import dataclasses
import fakes

EVIL, TASKS = VALUES

def suite(name):
    toy = fakes.suite(EVIL)
    tasks = tuple(dataclasses.replace(toy.tasks[0], name=task, instructions=(task,), trials=2) for task in TASKS)
    return dataclasses.replace(toy, tasks=tasks)

class Bad(fakes.Walker):
    \"\"\"EVIL\"\"\"
    def __init__(self, suite, arg: str = ""):
        super().__init__(suite)
        self.spec = dataclasses.replace(self.spec, name=EVIL, note=EVIL)
    def reset(self, slots, episodes):
        if episodes[0].task == TASKS[1]:
            raise KeyError(EVIL)

class Lazy(Bad):
    def reset(self, slots, episodes): pass
    def infer(self, observations):
        return [dataclasses.replace(chunk, actions=0 * chunk.actions) for chunk in super().infer(observations)]
"""


def evil_run(folder: Path, policy: str, verdicts: dict[int, bool | None], protocol: str = "") -> Path:
    """A run of which everything that somebody else may name is hostile; trial -> verdict of each task."""
    identity = {"policy": policy, "checkpoint": EVIL, "policy_args": [f"arg={EVIL}"], "suite": EVIL}
    provenance = {"command": EVIL, "machine": {"cpu": EVIL, "cores": policy}, "started": "2026-01-01T00:00:00+00:00"}
    duel = {"policies": [EVIL, EVIL], "verdict": EVIL, "pairs": 3, "planned": 9}
    tasks = [[task, EVIL, 9, 9] for task in TASKS]
    info = replace(
        of_protocol({**INFO.protocol, EVIL: protocol, "tasks": tasks}),
        identity={**INFO.identity, **identity},
        plan={**INFO.plan, "stopped_by": "duel"},
        provenance={**provenance, "duel": duel},
    )
    with RunStore.open(folder, info) as store:
        for task in TASKS:
            for trial, success in verdicts.items():
                broken = {"error": EVIL, "message": f"{EVIL} \ud800"} if success is None else {}
                row = replace(episode(task, trial, success, final=policy), suite=EVIL, perturbation=EVIL, **broken)
                row = replace(row, inferences=1, renderer=f"osmesa {policy}", video=EVIL[:-1] if row.video else "")
                store.append(row, [replace(call(task, trial, 0, 5.0), stages={EVIL: 2.0})])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    evil_run(root / "runs/a", EVIL, dict.fromkeys(range(12), True))
    evil_run(root / "runs/b", LINE, {**dict.fromkeys(range(11), False), 11: None})
    evil_run(root / "other/c", "=1+1", {0: True, 1: False}, protocol=EVIL)
    evil_run(root / "other/d", "@user", {0: False, 1: False})
    for name in (f"{LINE[:9]}\n::x::", "\x1b[2J\u202e"):
        folder = root / "runs" / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({EVIL: 1}), encoding="utf-8")
    assert main(["check", str(root / "runs/a"), "--baseline", str(root / "base.jsonl"), "--update"]) == 0
    return root


@pytest.fixture(autouse=True)
def _in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """What a test's commands have printed to both streams, once it is over; nothing of it is a command to anybody."""
    said: list[str] = []
    yield said
    printed = capsys.readouterr()
    said += [printed.out, printed.err]
    insist_on_safe_lines("".join(said))


def insist_on_safe_lines(printed: str) -> None:
    assert printed.strip()
    assert printed.replace("\n", "").isprintable()
    assert not [line for line in printed.split("\n") if is_command(line)]
    assert "INJECTED" not in printed or "\\x3a:error" in printed or ":error file" in printed


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    insist_on_safe_lines(printed.out + printed.err)
    return printed.out.split("\n")


# Terminals


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["show", "runs/a"], 0),
        (["show", "runs/b"], 0),
        (["show", "runs/b", "--markdown"], 0),
        (["show", "runs/b", "--json"], 0),
        (["compare", "runs/a", "runs/b"], 0),
        (["compare", "runs/a", "runs/b", "--markdown"], 0),
        (["compare", "runs/a", "other/c"], 3),
        (["compare", "runs/a", "other/c", "--force", "--json"], 2),
        (["compare", "runs/a", "runs/b", "--strict-renderer"], 3),
        (["leaderboard", "runs"], 0),
        (["leaderboard", "runs", "--strict-renderer", "--markdown"], 0),
        (["leaderboard", "other", "--json"], 0),
        (["check", "runs/a", "--baseline", "base.jsonl"], 0),
        (["check", "runs/a", "--baseline", "new.jsonl", "--update"], 0),
        (["show", f"runs/{LINE[:9]}\n::x::"], 64),
        (["show", EVIL.replace("\0", "").replace("/", "")], 64),
        (["list", LINE], 64),
        (["list", "tasks", LINE], 64),
        (["run", "--policy", f"{LINE}\n{LINE}", "--suite", EVIL.replace("\0", "")], 64),
        (["run", f"--{LINE}", EVIL], 64),
        (["run", "--policy", "random", "--suite", "tiny", "--episodes", f"{LINE}\n{LINE}"], 64),
    ],
)
def test_no_line_of_a_command_is_another_command(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], code: int
) -> None:
    monkeypatch.chdir(runs)
    capsys.readouterr()
    assert main(command) == code
    lines = lines_of(capsys)
    if "--json" in command:
        json.loads("\n".join(lines))


def test_json_is_exact(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(runs)
    capsys.readouterr()
    main(["show", "runs/b", "--json"])
    assert {task["task"] for task in json.loads(capsys.readouterr().out)["tasks"]} == set(TASKS)


def test_the_verdict_is_annotated_once_per_task_whatever_its_name(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    capsys.readouterr()
    junit, summary = tmp_path / "j.xml", tmp_path / "summary.md"
    assert main(["check", "runs/b", "--baseline", "base.jsonl", "--junit", str(junit)]) == 1
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    commands = [line for line in printed.split("\n") if is_command(line)]
    assert [command.partition("::")[2].partition(" ")[0] for command in commands] == ["error"] * 4
    titles = [re.match(r"::error title=([^:,]*)::", command)[1] for command in commands]  # type: ignore[index]
    assert titles[0] == "vla-bench%3A regression"
    assert "%0A" not in "".join(titles)
    suite = ElementTree.parse(junit).getroot()[0]
    assert [case.get("name") for case in suite] == [*map(visible, TASKS), "overall"]
    made = {token.tag for token in MarkdownIt("commonmark").enable("table").parse(summary.read_text("utf-8"))}
    assert made <= {"", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    insist_on_plain_markdown(summary.read_text("utf-8"))


def insist_on_plain_markdown(markdown: str, *code: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    assert not [token for token in tokens if token.type == "html_block"]
    inner = {child.type for token in tokens for child in token.children or ()}
    assert inner <= {"text", "strong_open", "strong_close", "softbreak", *code}


def test_the_pytest_plugin_tells_its_verdict_in_a_line(runs: Path) -> None:
    found = verdict({"run": "runs/b", "baseline": "base.jsonl"}, runs, runs / "unused")
    insist_on_safe_lines(found.message)
    assert "\n" not in found.message


# Files


def test_a_leaderboard_is_text_in_every_format(runs: Path) -> None:
    board = load_leaderboard(runs)
    text = {ending: render(board) for ending, render in FORMATS.items()}
    assert all(said.replace("\n", "").isprintable() for said in text.values())
    insist_on_plain_markdown(text[".md"], "code_inline")
    rows = list(csv.DictReader(io.StringIO(text[".csv"])))
    assert {row["policy"].removeprefix("'") for row in rows} >= {visible(EVIL), "=1+1", "@user"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@", "+"))]
    assert all(float(row["rate"]) >= 0 for row in rows)
    assert not [attributes for tag, attributes in Tags(text[".html"]).seen if tag in ("img", "a", "script")]
    sections = json.loads(text[".json"])["sections"]
    assert EVIL in {standing["policy"] for board in sections for standing in board["standings"]}
    assert not re.search(r"(?<!\\)(?:\\\\)*[$#]|<img|\\\\\s*\[", text[".tex"].replace(r"$\pi$", "").replace("$_0$", ""))


def test_a_report_is_text_in_every_file(runs: Path, tmp_path: Path, told: list[str]) -> None:
    assert main(["report", str(runs / "runs"), "--out", str(tmp_path / "out")]) == 0
    page, markdown = ((tmp_path / "out" / name).read_text("utf-8") for name in ("index.html", "report.md"))
    tags = Tags(page)
    assert not [attributes for tag, attributes in tags.seen if tag == "img" or "onerror" in attributes]
    assert page.replace("\n", "").isprintable()
    assert {visible(task) for task in TASKS} <= {text for table in embedded(page) for text in table["strings"]}
    assert markdown.replace("\n", "").isprintable()
    insist_on_plain_markdown(markdown, "code_inline", "image")
    for name in ("episodes.csv", "tasks.csv"):
        rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / name).read_text("utf-8"))))
        assert {row["task"] for row in rows} >= {LINE, f"'{TASKS[1]}", visible(EVIL)}
        assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@", "+", "\t", "\r"))]
    for figure in (tmp_path / "out" / "figures").glob("*.svg"):
        ElementTree.parse(figure)
    assert told == []


# Doctor, list and what is played


def test_findings_and_listings_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = doctor.render_text([doctor.Check(f"plug-in {EVIL}", False, EVIL, EVIL)])
    insist_on_safe_lines(printed)
    assert len(printed.split("\n")) == 4


def test_what_is_played_is_told_and_kept_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "villain.py").write_text(MODULE.replace("VALUES", repr((EVIL, TASKS))), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    toy = ["--suite", "villain:suite", "--episodes", "2"]
    assert main(["run", "--policy", "villain:Bad", *toy, "--policy-args", f"arg={LINE}", "--out", "bad"]) == 4
    printed = capsys.readouterr()
    insist_on_safe_lines((printed.out + printed.err).replace("\r", "\n"))
    log = (tmp_path / "bad" / "errors.log").read_text("utf-8")
    insist_on_safe_lines(log)
    assert "KeyError" in log
    assert main(["duel", "villain:Lazy", "fakes:Walker", *toy, "--out", "duel"]) in (0, 2)
    printed = capsys.readouterr()
    insist_on_safe_lines((printed.out + printed.err).replace("\r", "\n"))
    assert main(["list", "tasks", "villain:suite"]) == 0
    assert len(lines_of(capsys)) == len(TASKS) + 2
    del sys.modules["villain"]
