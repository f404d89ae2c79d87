"""Whatever is wrong with a run on disk is a sentence about that run, and the others are shown."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from fuzz import Exceeded, bounded, damage_file, fresh_copy, png_bomb, replace_file
from made_runs import INFO, as_before, call, episode, made_run
from PIL import Image

from vla_bench.cli import main
from vla_bench.compare.baseline import read_baseline
from vla_bench.errors import UsageError
from vla_bench.report import page as report
from vla_bench.report.sections import find_runs, load_run
from vla_bench.store.integrity import protocol_hash
from vla_bench.store.runs import RunStore, read_actions, read_info, record_actions
from vla_bench.types import EpisodeResult, Grounding, Inference

SECONDS, MEGABYTES = 60, 1000
"""What a command may take of one damaged run; the machine may be busy."""


def no_figures(*_: object) -> Iterator[report.Drawing]:
    """In place of those that take most of a report's time."""
    return iter(())


def _told(task: str, trial: int) -> list[Inference]:
    """Two calls with stages and attention."""
    return [
        replace(
            call(task, trial, 0, 5.0 + number),
            inference=number,
            cold=number == 0,
            stages={"vision": 1.5, "decode": 3.0},
            grounding=Grounding(0.25, 0.125, True) if number else Grounding(None, 0.125, None),
        )
        for number in range(2)
    ]


def _row(task: str, trial: int, verdicts: Sequence[bool | None]) -> EpisodeResult:
    """The verdicts in turn, a failure with a film; chains in the task of that name."""
    row = replace(episode(task, trial, verdicts[trial % len(verdicts)]), inferences=2, renderer="egl llvmpipe")
    return replace(row, subgoals=("open", "push"), subgoals_done=1) if task == "chain" else row


def _film(run: Path, row: EpisodeResult) -> None:
    film = run / row.video
    film.parent.mkdir(exist_ok=True)
    film.write_bytes(b"\0\0\0 ftypisom" + bytes(100))
    Image.fromarray(np.full((30, 80, 3), 7, np.uint8)).save(film.with_suffix(".png"))


def whole_run(path: Path, tasks: Sequence[str], verdicts: Sequence[bool | None]) -> Path:
    """A run with everything that a run may hold: it was resumed, a duel played it, one episode is in the spool."""
    identity, plan = {**INFO.identity, "policy": path.name}, {**INFO.plan, "stopped_by": "duel"}
    provenance = {**INFO.provenance, "started": "2026-01-02T03:04:05+00:00"}
    rows = [_row(task, trial, verdicts) for task in tasks for trial in range(6)]
    for half in (rows[:-1], rows[-1:]):
        run = RunStore.open(path, replace(INFO, identity=identity, plan=plan, provenance=provenance))
        run.record_provenance(run_seconds=12.5, duel={"policies": ["a", "b"], "verdict": "A better", "pairs": 9})
        for row in half:
            run.append(row, _told(row.task, row.trial))
            record_actions(path, row.episode, np.ones((3, 2), np.float32))
            if row.video:
                _film(path, row)
        run.log_error("RuntimeError", "it fell")
        if half == rows[:-1]:
            run.close()
    killed = fresh_copy(path, path.with_name("killed"))
    run.close()
    shutil.rmtree(path)
    return killed.rename(path)


# --- cases ---


def edited(file: Path, **changes: object) -> None:
    """Fields of run.json, or of the first row, replaced by values, or by the JSON texts of `Raw`."""
    first, *others = (
        [file.read_text(encoding="utf-8")] if file.suffix == ".json" else file.read_text("utf-8").split("\n")
    )
    text = json.dumps({**json.loads(first), **changes})
    file.write_text("\n".join([re.sub(r'"RAW (.*?) RAW"', lambda raw: raw[1], text), *others]), encoding="utf-8")


def of_info(**changes: object) -> Callable[[Path], None]:
    return lambda run: edited(run / "run.json", **changes)


def of_row(**changes: object) -> Callable[[Path], None]:
    return lambda run: edited(run / "episodes.jsonl", **changes)


def of_kind(name: str, kind: str) -> Callable[[Path], object]:
    return lambda run: replace_file(run / name, kind)


def of_parquet(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        change(pd.read_parquet(run / "inferences.parquet")).to_parquet(run / "inferences.parquet")

    return damage


DEEP = f"RAW {'[' * 100_000}{']' * 100_000} RAW"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "protocol is a list": (
        of_info(protocol=[]),
        r"run.json is not what .*protocol is a list of 0, expected an object",
    ),
    "identity null": (of_info(identity=None), "identity is null, expected an object"),
    "provenance null": (of_info(provenance=None), "provenance is null, expected an object"),
    "plan null": (of_info(plan=None), "plan is null, expected an object"),
    "hash 5": (of_info(protocol_hash=5), "protocol_hash is 5, expected a text"),
    "hash of half a surrogate": (of_info(protocol_hash="\ud800"), r"UTF-8, got '\\ud800'"),
    "rate NaN": (of_info(control_hz="RAW NaN RAW"), "NaN is no JSON"),
    "rate infinite": (of_info(control_hz="RAW 1e999 RAW"), "control_hz is Infinity, expected a finite number"),
    "rate 0": (of_info(control_hz=0), "control_hz is 0, expected 0.001 to"),
    "nested deeply": (of_info(plan=DEEP), "nested too deeply"),
    "a number of 5000 digits": (of_info(plan=f"RAW {'9' * 5000} RAW"), "too many digits"),
    "seconds infinite": (
        of_info(provenance={"run_seconds": "RAW 1e999 RAW"}),
        "run_seconds is Infinity, expected a finite",
    ),
    "duel without names": (of_info(provenance={"duel": {"policies": 5}}), "duel.policies is 5, expected a list"),
    "newer run.json": (of_info(colour="red"), "written by a newer vla-bench .*'colour' is not known.*: upgrade"),
    "newer row": (of_row(tactile=3), "line 1 is of a newer vla-bench .*'tactile' is not known.*: upgrade"),
    "task in a list": (of_row(task=["x"]), "line 1 is corrupt .task is a list of 1, expected a text"),
    "half a surrogate": (of_row(task="\ud800"), r"UTF-8, got '\\ud800'"),
    "a name without end": (of_row(task="a" * 5000), "names have at most 1000 letters"),
    "steps in a text": (of_row(steps="12"), "steps is '12', expected a whole number"),
    "steps negative": (of_row(steps=-1), "counts are 0 to 1000000000000, got -1"),
    "steps true": (of_row(steps=True), "steps is true, expected a whole number"),
    "seed of 70 bits": (of_row(seed=2**69), "seed is 590295810358705651712, expected a whole number of 64 bits"),
    "seconds in a text": (of_row(wall_s="x"), "wall_s is 'x', expected a finite number"),
    "seconds beyond all sums": (of_row(wall_s=1e308), "times are at most"),
    "more done than there was": (of_row(subgoals_done=10**9), "of 0 subgoals were done"),
    "row nested deeply": (of_row(message=DEEP), "line 1 is corrupt .nested too deeply"),
    "episodes a number": (
        lambda run: (run / "episodes.jsonl").write_text("5\n"),
        "line 1 is corrupt .it is 5, expected an",
    ),
    "no run.json": (of_kind("run.json", "gone"), r"is not a run \(it holds no run.json\)"),
    "run.json a pipe": (of_kind("run.json", "pipe"), "run.json is a pipe, expected a file"),
    "run.json outside": (of_kind("run.json", "link outside"), "run.json is a link that leaves"),
    "run.json dangling": (of_kind("run.json", "dangling"), "run.json is a link to nothing"),
    "episodes a pipe": (of_kind("episodes.jsonl", "pipe"), "episodes.jsonl is a pipe, expected a file"),
    "episodes a socket": (of_kind("episodes.jsonl", "socket"), "episodes.jsonl is a socket, expected a file"),
    "episodes a device": (of_kind("episodes.jsonl", "device"), "episodes.jsonl is a device, expected a file"),
    "episodes a hole": (of_kind("episodes.jsonl", "huge"), "episodes.jsonl line 1 has more than 16777216 bytes"),
    "episodes a loop": (of_kind("episodes.jsonl", "loop"), "Cannot read .*episodes.jsonl: Too many levels"),
    "inferences a pipe": (of_kind("inferences.parquet", "pipe"), "inferences.parquet is a pipe, expected a file"),
    "inferences outside": (of_kind("inferences.parquet", "link outside"), "inferences.parquet is a link that leaves"),
    "inferences a hole": (
        of_kind("inferences.parquet", "huge"),
        "inferences.parquet has 68719476736 bytes for at",
    ),
    "times in texts": (of_parquet(lambda rows: rows.assign(latency_ms="x")), "inferences.parquet cannot be read"),
    "times infinite": (of_parquet(lambda rows: rows.assign(latency_ms=np.inf)), "times are at most"),
    "times missing": (of_parquet(lambda rows: rows.assign(latency_ms=np.nan)), "a time is no number"),
    "calls without end": (
        of_parquet(lambda rows: rows.loc[np.zeros(1_100_000, int)]),
        "1100000 rows in .* bytes, where the episodes have at most 10000..",
    ),
    "a task of 30 MB": (of_parquet(lambda rows: rows.assign(task="a" * 30_000_000)[:1]), "1 rows in 30...... bytes"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_run_is_a_sentence_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, said = CASES[case]
    for name in ("good", "bad"):
        made_run(tmp_path / name, {"lift": "110"}, latency_ms=5.0)
    damage(as_before(tmp_path / "bad"))
    with bounded(SECONDS, MEGABYTES):
        (run,), (why,) = find_runs(tmp_path)
    assert run.path.name == "good"
    assert re.search(said, why), why
    assert len(why) < 600
    assert main(["show", str(tmp_path / "bad")]) == 64
    assert capsys.readouterr().err == f"vla-bench: {why}\n"


def test_what_readers_do_not_need_may_be_anything(tmp_path: Path) -> None:
    run = as_before(made_run(tmp_path / "run", {"lift": "110"}, latency_ms=5.0))
    protocol = {"tasks": [1, [], [["x"]], "lift", ["lift", 2]], "simulator": 5}
    edited(run / "run.json", protocol=protocol, protocol_hash=protocol_hash(protocol))
    edited(run / "episodes.jsonl", message="\ud800" * 10_000, scene_fingerprint="")
    replace_file(run / ".lock", "pipe")
    assert len(load_run(run).episodes) == 3


def test_rows_that_name_no_instructions_are_read_beside_chains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "_draw", no_figures)
    for name, longest in (("good", 1), ("bad", 7)):
        run = as_before(whole_run(tmp_path / name, ("lift", "chain"), (True, False)))
        edited(run / "episodes.jsonl", subgoals_done=longest)
        assert main(["check", name, "--baseline", f"{name}.jsonl", "--update"]) == 0
    for command, codes in READERS.values():
        assert complaints(command, codes - {64}, capsys) == []


def test_a_report_names_the_run_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_draw", no_figures)
    for name in ("good", "bad"):
        made_run(tmp_path / name, {"lift": "110"})
    replace_file(tmp_path / "bad" / "run.json", "empty")
    assert main(["report", str(tmp_path / "good"), str(tmp_path / "bad"), "--out", str(tmp_path / "out")]) == 0
    assert re.fullmatch(r"vla-bench: Left out: .*bad/run.json is not what .*\n", capsys.readouterr().err)
    assert "bad/run.json is not what" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path / "bad"), "--out", str(tmp_path / "out")]) == 64
    assert main(["report", str(tmp_path / "good"), str(tmp_path / "typo"), "--out", str(tmp_path / "out")]) == 64


# --- films ---


def bomb(file: Path) -> None:
    file.write_bytes(png_bomb(14_000, 14_000))


def postscript(file: Path) -> None:
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n/x 1 def\n")


def secret(file: Path) -> None:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(file.parents[2] / "secret.png")
    file.unlink()
    file.symlink_to(file.parents[2] / "secret.png")


def kind(name: str) -> Callable[[Path], object]:
    return lambda file: replace_file(file, name)


STRIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bomb": (bomb, "lift_0.png is left out: it has more than 40000000 pixels"),
    "postscript": (postscript, "lift_0.png is left out: it is no PNG"),
    "secret": (secret, "lift_0.png is a link that leaves"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:60]), "lift_0.png is left out: "),
    "pipe": (kind("pipe"), "lift_0.png is a pipe, expected a file"),
    "device": (kind("device"), "lift_0.png is a device, expected a file"),
}


@pytest.mark.parametrize("case", STRIPS)
def test_a_strip_that_is_no_picture_of_the_run_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    damage, said = STRIPS[case]
    run = made_run(tmp_path / "run", {"lift": "000"})
    for trial in range(3):
        _film(run, episode("lift", trial, False))
    damage(run / "videos" / "lift_0.png")
    monkeypatch.setattr(report, "_draw", no_figures)
    page, left_out = page_of(run, tmp_path / "out")
    assert page.count('<img src="data:image/jpeg') == 2
    assert page.count("../run/videos/lift_0.mp4") > 0
    assert len(left_out) == 1
    assert said in left_out[0]


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ("a\0b", "Cannot read "),
        ("b" * 300 + ".mp4", "Cannot read "),
        ("videos", "videos is a folder, expected a file"),
        ("/etc/passwd", "passwd is a link that leaves"),
        ("../other/videos/lift_0.mp4", "is a link that leaves"),
        ("videos/gone.mp4", ""),
    ],
)
def test_a_film_that_is_none_of_the_run_is_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: str, said: str
) -> None:
    other, run = made_run(tmp_path / "other", {"lift": "0"}), as_before(made_run(tmp_path / "run", {"lift": "0"}))
    _film(other, episode("lift", 0, False))
    _film(run, episode("lift", 0, False))
    edited(run / "episodes.jsonl", video=video)
    monkeypatch.setattr(report, "_draw", no_figures)
    page, left_out = page_of(run, tmp_path / "out")
    assert ".mp4" not in "".join(re.findall('href="[^"]*"', page))
    assert [said in why for why in left_out] == [True] * bool(said)


def page_of(run: Path, out: Path) -> tuple[str, list[str]]:
    """The page of a report, and what it says was left out."""
    with bounded(SECONDS, MEGABYTES):
        page = report.write_report([run], out).read_text(encoding="utf-8")
    notes = re.search(r"<ul class=\"notes\">(.*?)</ul>", page.split("<section", 1)[0])
    return page, re.findall("<li>(.*?)</li>", notes[1]) if notes else []


# --- fuzz ---

READERS: dict[str, tuple[str, set[int]]] = {
    "show": ("show bad", {0, 64}),
    "show json": ("show bad --json", {0, 64}),
    "show markdown": ("show bad --markdown", {0, 64}),
    "compare": ("compare good bad", {0, 2, 3, 64}),
    "compare json": ("compare bad good --json --force", {0, 2, 3, 64}),
    "check": ("check bad --baseline good.jsonl --junit out/junit.xml", {0, 1, 2, 3, 64}),
    "check json": ("check bad --baseline good.jsonl --json", {0, 1, 2, 3, 64}),
    "check itself": ("check bad --baseline bad.jsonl", {0, 1, 2, 3, 64}),
    "baseline": ("check good --baseline bad.jsonl", {0, 1, 2, 3, 64}),
    "new baseline": ("check bad --baseline out/new.jsonl --update", {0, 64}),
    "leaderboard": ("leaderboard .", {0}),
    "leaderboard json": ("leaderboard . --json", {0}),
    "leaderboard page": ("leaderboard . --out out/board.html --strict-renderer", {0}),
    "report": ("report good bad --out out/report", {0}),
}
"""Commands in a folder with the runs `good` and `bad` and a baseline of each, and how they may end."""
WEIGHTS = {"run.json": 6, "episodes.jsonl": 6, "inferences.parquet": 3, "inferences.partial.jsonl": 3, "bad.jsonl": 2}
"""Of the files that are damaged; any other has 0.5."""


VARIANTS: dict[str, Sequence[bool | None]] = {"judged": (True, False), "broken": (True, False, None), "sealed": (True,)}
"""Verdicts in the run `bad`. Only the last has checksums: in the others damage gets as far as the values."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each variant with the runs `good` and `bad` and a baseline of each."""
    folder = tmp_path_factory.mktemp("sound")
    good = whole_run(folder / "good", ("lift",), (True, False))
    judged = whole_run(folder / "bad", ("lift", "chain"), (True, False))
    for run in (good, judged):
        assert main(["check", str(run), "--baseline", f"{run}.jsonl", "--update"]) == 0
    shutil.rmtree(judged)
    for name, verdicts in VARIANTS.items():
        bad = whole_run(folder / name / "bad", ("lift", "chain"), verdicts)
        if name != "sealed":
            as_before(bad)
        fresh_copy(good, folder / name / "good")
        for baseline in folder.glob("*.jsonl"):
            shutil.copy(baseline, folder / name)
    return folder


def damage_run(folder: Path, damage: Random) -> str:
    """Damages one file of the run `bad` or its baseline, one time in four a second one."""
    said = []
    for _ in range(damage.choice((1, 1, 1, 2))):
        files = sorted(file for file in (folder / "bad").rglob("*") if file.is_file() and not file.is_symlink())
        files = [file for file in [*files, folder / "bad.jsonl"] if file.is_file() and not file.is_symlink()]
        (file,) = damage.choices(files, [WEIGHTS.get(file.name, 0.5) for file in files])
        said.append(f"{file.relative_to(folder)}: {damage_file(file, damage)}")
    return "; ".join(said)


def strict(text: str) -> object:
    """The JSON value; NaN and Infinity are none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def complaints(command: str, codes: set[int], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is wrong with how that command ended; what it needs is in the working folder."""
    with bounded(SECONDS, MEGABYTES):
        code = main(command.split())
    said = capsys.readouterr()
    found = [f"exit code {code}"] * (code not in codes)
    if code == 64:
        found += [f"not one sentence: {said.err}"] * (
            not said.err.startswith("vla-bench: ") or said.err.count("\n") != 1
        )
        found += [f"and a table: {said.out}"] * bool(said.out)
    elif "--json" in command:
        strict(said.out)
    found += [f"{word!r} in {said}" for word in ("Traceback", "fault of vla-bench", "Warning") if word in str(said)]
    return [f"{command}: {one}" for one in found]


def _errors(read: Callable[[], object]) -> list[str]:
    """What that raised, UsageError aside."""
    try:
        with contextlib.suppress(UsageError), bounded(SECONDS, MEGABYTES):
            read()
    except (Exception, Exceeded):
        return [traceback.format_exc()]
    return []


def _resumed() -> None:
    """As a writer takes up the run."""
    with RunStore.open("bad", read_info("bad")) as run:
        run.log_error("RuntimeError", "it fell again")
        run.append(row := _row("lift", 7, (True,)), _told(row.task, row.trial))


def survive(sound: Path, work: Path, seed: int, names: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every reader comes to a documented end with the damage of that seed."""
    os.chdir(fresh_copy(sound / list(VARIANTS)[seed % 3], work))
    said = damage_run(work, Random(seed))
    found = [one for name in names for one in complaints(*READERS[name], capsys)]
    reads = (partial(load_run, "bad"), partial(read_baseline, "bad.jsonl"), partial(read_actions, "bad"), _resumed)
    found += [one for read in reads for one in _errors(read)]
    assert not found, f"seed {seed}, {said}: {found}"


def test_the_undamaged_runs_are_read_by_all(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh_copy(sound / "judged", tmp_path / "work"))
    monkeypatch.setattr(report, "_draw", no_figures)
    for command, codes in READERS.values():
        assert complaints(command, codes - {64}, capsys) == []


def test_no_damage_to_a_run_ends_in_more_than_a_sentence(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # and back at the end
    monkeypatch.setattr(report, "_draw", no_figures)
    names = list(READERS)
    for seed in range(100):
        survive(sound, tmp_path / "work", seed, [] if seed % 4 else [names[seed // 4 % len(names)]], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_damage_of_two_thousand_to_a_run_ends_in_more_than_a_sentence(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, names = report._draw, list(READERS)
    for seed in range(1000 + 200 * part, 1200 + 200 * part):
        monkeypatch.setattr(report, "_draw", draw if seed % 20 == 0 else no_figures)
        survive(sound, tmp_path / "work", seed, names[seed // 3 % 3 :: 3], capsys)
