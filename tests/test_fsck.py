"""What is sound of a run is told from what is not, and saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_runs import INFO, as_before, call, episode, made_run
from test_integrity import edit, filled, flip_the_third, grown
from test_status import PLANNED, config, ended

from vla_bench.cli import main
from vla_bench.doctor.fsck import examine, recover
from vla_bench.errors import UsageError
from vla_bench.report.sections import load_run
from vla_bench.runner import run
from vla_bench.store import runs as store
from vla_bench.store.runs import RunStore, read_episodes, read_inferences, read_info
from vla_bench.tables import load_summary


def damages_of(path: Path) -> list[str]:
    """What is wrong with it, paths cut off."""
    return [said.replace(f"{path}/", "") for said in examine(path)[0].damages]


def trials(path: Path) -> list[int]:
    return [row.trial for row in read_episodes(path)]


def lose_and_flip(lines: list[bytes]) -> list[bytes]:
    """The second row flipped, the third lost."""
    return [lines[0], lines[1].replace(b'"success": true', b'"success": false'), *lines[3:]]


# --- what is told ---


def test_sound_old_and_growing_runs_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, old = filled(tmp_path / "sound"), as_before(filled(tmp_path / "old"))
    with RunStore.open(tmp_path / "growing", INFO) as growing:
        growing.append(replace(episode("lift", 0, True), inferences=1), [call("lift", 0, 0, 5.0)])
        (tmp_path / "growing" / "episodes.jsonl").open("a").write('{"suite": "t')
        assert main(["fsck", str(tmp_path)]) == 0
        growing._sizes.clear()  # what was added is not this process's
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{tmp_path}/growing: sound: 1 row, 1 inference",
        "  It is being written to now.",
        f"  {tmp_path}/growing/episodes.jsonl ends in half a line, which is cut off when the run goes on.",
        f"{old}: an older vla-bench wrote it, without checksums; it can be read: 4 rows, 4 inferences",
        f"{sound}: sound: 4 rows, 4 inferences",
    ]


def test_every_damage_is_named_at_once_and_nothing_is_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = filled(tmp_path / "run", "110101")
    edit(path / "episodes.jsonl", lambda lines: flip_the_third([*lines[:4], lines[5]]))
    edit(path / "run.json", lambda lines: [line.replace(b'"abacus"', b'"cray"') for line in lines])
    (path / "inferences.parquet").unlink()
    before = {file: file.read_bytes() for file in sorted(path.iterdir())}
    assert main(["fsck", str(path)]) == 4
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: DAMAGED: 4 of 5 rows and 0 inferences are sound",
        f"  {path}/run.json was changed after it was written.",
        f"  {path}/episodes.jsonl line 3 was changed after it was written.",
        f"  {path}/episodes.jsonl line 5 does not follow line 4: lines between them are missing, or were moved.",
        f"  {path}/inferences.parquet is missing.",
        "  The timings of 4 policy calls of sound episodes are not there.",
        f"  vla-bench fsck {path} --recover OUT writes what is sound to a new folder.",
    ]
    assert {file: file.read_bytes() for file in sorted(path.iterdir())} == before
    assert main(["fsck", str(path), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["recovered"] is None
    assert told["runs"][0]["state"] == "damaged"
    assert (told["runs"][0]["lines"], told["runs"][0]["sound_lines"]) == (5, 4)
    assert len(told["runs"][0]["damages"]) == 4


def test_a_duel_and_a_folder_of_runs_are_examined_run_by_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "d" / "a")
    edit(filled(tmp_path / "d" / "b") / "episodes.jsonl", flip_the_third)
    assert main(["fsck", str(tmp_path / "d"), str(tmp_path / "d" / "a" / "run.json")]) == 4
    said = capsys.readouterr().out
    assert (said.count("a: sound"), said.count("b: DAMAGED: 3 of 4 rows")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist: give the directory that `vla-bench run` wrote, or a folder of such."),
        (["empty"], "empty holds no run: give the directory"),
        (["a", "b", "--recover", "out"], "--recover takes one run, got 2: name the one to save."),
        (["a", "--recover", "b"], "b is not empty: choose another folder."),
        (["a", "--recover", "a/run.json"], "run.json is not empty: choose another folder."),
        (["lost", "--recover", "out"], "Nothing of lost can be saved, for nothing says what was run: lost/run.json is"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in "ab":
        filled(Path(name))
    (as_before(filled(Path("lost"))) / "run.json").unlink()
    assert main(["fsck", *arguments]) == 64
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["episodes.jsonl", "run.json", "inferences.parquet", "inferences.partial.jsonl"])
def test_whatever_a_file_of_the_run_is_it_is_told(tmp_path: Path, kind: str) -> None:
    import os

    path = filled(tmp_path / "run")
    (path / kind).unlink(missing_ok=True)
    os.mkfifo(path / kind)
    examined, _ = examine(path)
    assert f"{path / kind} is a pipe, expected a file" in " ".join(examined.damages)


# --- what is saved ---


def test_what_is_sound_is_saved_and_goes_on_to_the_same_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(tmp_path / "run", episodes=3, video="all"))
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    edit(tmp_path / "run" / "episodes.jsonl", lose_and_flip)
    with pytest.raises(UsageError, match=r"line 2 was changed .* --recover OUT"):
        run(config(tmp_path / "run", episodes=3, video="all"))
    assert main(["fsck", str(tmp_path / "run"), "--recover", str(tmp_path / "saved")]) == 0
    assert f"What is sound is in {tmp_path / 'saved'}: the run's command with --out" in capsys.readouterr().out
    assert main(["fsck", str(tmp_path / "saved")]) == 0
    assert "This run was interrupted: 4 of 6 planned episodes" in load_summary(tmp_path / "saved").notes[0]
    recovered = read_info(tmp_path / "saved").provenance["recovered"]
    assert isinstance(recovered, dict)
    assert len(recovered["left_out"]) == 2
    assert len(list((tmp_path / "saved" / "videos").iterdir())) == len(list((whole / "videos").iterdir()))
    outcome = run(config(tmp_path / "saved", episodes=3, video="all"))
    assert (outcome.judged, outcome.broken) == (6, 0)
    found, expected = ({row.episode: row for row in read_episodes(path)} for path in (tmp_path / "saved", whole))
    assert {key: (row.success, row.final_fingerprint) for key, row in found.items()} == {
        key: (row.success, row.final_fingerprint) for key, row in expected.items()
    }
    assert len(read_inferences(tmp_path / "saved")) == len(read_inferences(whole))
    assert main(["fsck", str(tmp_path / "saved")]) == 0


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda lines: lines, [0, 1, 2, 3]),
        (lambda lines: lines[1:], [1, 2, 3]),
        (lambda lines: lines[:2], [0, 1]),
        (lambda lines: [lines[2], lines[0], lines[3], lines[1]], [0, 1, 2, 3]),
        (lambda lines: [*lines, lines[0], b'{"strange": 1}\n'], [0, 1, 2, 3]),
        (lambda lines: [*lines[:3], lines[3][:-60] + b"\n"], [0, 1, 2]),
        (flip_the_third, [0, 1, 3]),
        (lambda _: [], []),
    ],
)
def test_rows_that_are_sound_are_saved_with_their_timings(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], kept: list[int]
) -> None:
    edit(filled(tmp_path / "run") / "episodes.jsonl", damage)
    recover(tmp_path / "run", tmp_path / "saved")
    with RunStore.open(tmp_path / "saved", INFO) as saved:
        assert sorted(one.trial for one in saved.done()) == kept
        assert [row.trial for row in saved.rows([episode("lift", trial, True).episode for trial in kept])] == kept
    assert read_inferences(tmp_path / "saved")["trial"].tolist() == kept


def test_changed_timings_are_left_out_and_those_in_the_spool_line_by_line(tmp_path: Path) -> None:
    path = filled(tmp_path / "run")
    with RunStore.open(path, INFO) as run_:
        for trial in (4, 5):
            run_.append(replace(episode("lift", trial, True), inferences=1), [call("lift", trial, 0, 5.0)])
        killed = shutil.copytree(path, tmp_path / "killed")
    edit(killed / store.SPOOL, lambda lines: [lines[0].replace(b'"batch": 1', b'"batch": 2'), lines[1]])
    pd.read_parquet(killed / "inferences.parquet").assign(latency_ms=1.0).to_parquet(killed / "inferences.parquet")
    changed = "was changed after it was written: restore it, or delete"
    assert damages_of(killed) == [
        f"inferences.partial.jsonl line 1 {changed} that line to go on without its timings.",
        f"inferences.parquet {changed} it to go on without these timings.",
    ]
    recover(killed, tmp_path / "saved")
    assert trials(tmp_path / "saved") == [0, 1, 2, 3, 4, 5]
    assert read_inferences(tmp_path / "saved")["trial"].tolist() == [5]


def test_a_run_that_an_older_version_began_is_saved_as_far_as_it_is_sound(tmp_path: Path) -> None:
    sound = recover(grown(tmp_path / "sound"), tmp_path / "a")
    assert (sound.state, trials(tmp_path / "a")) == ("sound", [0, 1, 2, 3, 4, 5])
    edit(grown(tmp_path / "old") / "episodes.jsonl", flip_the_third)
    recover(tmp_path / "old", tmp_path / "b")
    assert trials(tmp_path / "b") == [4, 5]  # of the first four nobody knows which it was
    unchecked = recover(as_before(filled(tmp_path / "older")), tmp_path / "c")
    assert (unchecked.state, trials(tmp_path / "c")) == ("without checksums", [0, 1, 2, 3])
    assert examine(tmp_path / "c")[0].state == "sound"


def test_rows_prove_identity_and_protocol_where_something_else_of_run_json_was_changed(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", "complete", "1101")
    edit(path / "run.json", lambda lines: [line.replace(b'"workers": "1"', b'"workers": "9"') for line in lines])
    recover(path, tmp_path / "saved")
    info = read_info(tmp_path / "saved")
    assert (info.identity, info.protocol, info.control_hz) == (INFO.identity, INFO.protocol, INFO.control_hz)
    assert trials(tmp_path / "saved") == [0, 1, 2, 3]


@pytest.mark.parametrize("lost", ["deleted", "garbage", "identity", "protocol"])
def test_rows_whose_run_json_is_lost_are_taken_up_by_their_own_command_alone(tmp_path: Path, lost: str) -> None:
    run(config(tmp_path / "run"))
    file = tmp_path / "run" / "run.json"
    if lost == "deleted":
        file.unlink()
    elif lost == "garbage":
        file.write_bytes(b"\0" * 100)
    else:
        told = json.loads(file.read_text())
        told[lost]["version" if lost == "protocol" else "seed"] = 9
        file.write_text(json.dumps(told))
    examined = recover(tmp_path / "run", tmp_path / "saved")
    assert examined.sound_lines == 4
    said = f"{tmp_path / 'saved'} was recovered without what says what was run: give the run's command with --out"
    with pytest.raises(UsageError, match=said):
        load_run(tmp_path / "saved")
    with pytest.raises(UsageError, match="holds recovered rows of another run, by their checksums"):
        run(config(tmp_path / "saved", policy_args=("speed=0.1",)))
    outcome = run(config(tmp_path / "saved", episodes=3))
    assert (outcome.judged, outcome.planned) == (6, 6)
    assert examine(tmp_path / "saved")[0].damages == ()


def test_rows_of_another_run_are_not_saved(tmp_path: Path) -> None:
    other = replace(INFO, identity={**INFO.identity, "policy": "other"})
    strange = made_run(tmp_path / "other", {"push": "11"}, info=other)
    path = filled(tmp_path / "run")
    (path / "episodes.jsonl").write_bytes(
        (path / "episodes.jsonl").read_bytes() + (strange / "episodes.jsonl").read_bytes()
    )
    assert damages_of(path) == [f"episodes.jsonl line {n} was changed after it was written." for n in (5, 6)]
    recover(path, tmp_path / "saved")
    assert {row.task for row in read_episodes(tmp_path / "saved")} == {"lift"}


def test_a_complete_run_without_damage_stays_complete_when_it_is_saved(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", "complete", "1101")
    recover(path, tmp_path / "saved")
    found = read_info(tmp_path / "saved").status
    assert found is not None
    assert (found.state, found.judged, found.planned) == ("complete", 4, len(PLANNED))
