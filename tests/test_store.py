import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from made_runs import as_before

from vla_bench.errors import UsageError
from vla_bench.store import files
from vla_bench.store import runs as store
from vla_bench.store.runs import (
    RunInfo,
    RunStore,
    read_actions,
    read_episodes,
    read_inferences,
    read_info,
    record_actions,
)
from vla_bench.types import Episode, EpisodeResult, Inference

INFO = RunInfo(
    identity={"policy": "zero", "suite": "tiny", "seed": 0, "policy_args": {"scale": 0.5}, "chunks": (1, 8)},
    plan={"tasks": ["lift"], "episodes": 3},
    protocol={"settle": 10},
    protocol_hash="363dd9d83ba7",
    provenance={"mujoco": "3.2.3"},
    control_hz=20.0,
)


def result(trial: int, success: bool | None = True, steps: int = 7, task: str = "lift") -> EpisodeResult:
    latencies: tuple[float, float] = (0.1 + 0.2, 1e-9)
    wall, setup, physics, render, policy = 1.1, 0.1, 0.2, 0.3, 0.4
    times = (wall, setup, physics, render, policy, steps / 20)
    return EpisodeResult("tiny", task, trial, 0, "", success, 0, steps, 2, *latencies, *times, "scene", "final")


def calls(trial: int, latency_ms: float = 5.0, task: str = "lift") -> list[Inference]:
    stages = {"vision": 1.5, "decode": 3.0}
    return [Inference(task, trial, 0, number, latency_ms, 0.5, 2, 4, number == 0, stages) for number in range(2)]


def trials_of(path: Path) -> list[tuple[int, int]]:
    """(trial, inference) of every stored inference."""
    frame = read_inferences(path)
    return sorted(zip(frame["trial"].tolist(), frame["inference"].tolist(), strict=True))


def filled(path: Path, trials: int = 2) -> Path:
    with RunStore.open(path, INFO) as run:
        for trial in range(trials):
            run.append(result(trial), calls(trial))
    return path


# --- round trips ---


def test_what_is_appended_is_what_is_read(tmp_path: Path) -> None:
    rows = [result(0), result(1, success=False), result(2, success=None)]
    rows[2] = replace(rows[2], error="MujocoException", message='half "quoted"\nand ünïcode \ud800')
    with RunStore.open(tmp_path / "run", INFO) as run:
        for row in rows:
            run.append(row, calls(row.trial))
        assert run.done() == {rows[0].episode, rows[1].episode}
    assert read_episodes(tmp_path / "run") == rows
    assert read_episodes(tmp_path / "run" / "episodes.jsonl") == rows
    assert len(pd.read_json(tmp_path / "run" / "episodes.jsonl", lines=True)) == 3


def test_run_info_survives_the_disk(tmp_path: Path) -> None:
    info = replace(INFO, identity={**INFO.identity, "chunks": [1, 8]})
    RunStore.open(tmp_path, info).close()
    assert replace(read_info(tmp_path), checksums=None) == info
    assert not list(tmp_path.glob("*.tmp"))


def test_inferences_are_the_same_before_and_after_closing(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), calls(0))
        run.append(result(1), calls(1, latency_ms=9.25))
        before = read_inferences(tmp_path)
        assert not (tmp_path / "inferences.parquet").exists()
    assert not (tmp_path / "inferences.partial.jsonl").exists()
    pd.testing.assert_frame_equal(before, read_inferences(tmp_path))
    assert before["latency_ms"].tolist() == [5.0, 5.0, 9.25, 9.25]
    assert before["stage_vision_ms"].tolist() == [1.5] * 4
    assert before["cold"].tolist() == [True, False] * 2


def test_a_run_without_inferences_has_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), [])
    frame = read_inferences(tmp_path)
    assert len(frame) == 0
    assert set(frame) == set(store.INFERENCE_DTYPES)


def test_stages_that_come_and_go_between_sessions_leave_gaps(tmp_path: Path) -> None:
    filled(tmp_path, trials=1)
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(1), [replace(call, stages={"flow": 2.0}) for call in calls(1)])
    frame = read_inferences(tmp_path)
    assert frame["stage_flow_ms"].isna().tolist() == [True, True, False, False]
    assert frame["stage_vision_ms"].isna().tolist() == [False, False, True, True]


def test_inferences_of_episodes_that_differ_only_in_perturbation_stay_apart(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), calls(0, 1.0))
        run.append(replace(result(0), perturbation="dark"), calls(0, 2.0))
    assert read_inferences(tmp_path).groupby("perturbation")["latency_ms"].mean().to_dict() == {"": 1.0, "dark": 2.0}


def test_provenance_known_only_later_is_added(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.record_provenance(run_seconds=12.5)
    assert read_info(tmp_path).provenance == {"mujoco": "3.2.3", "run_seconds": 12.5}


# --- resuming ---


def test_the_same_identity_resumes_with_the_new_plan_and_provenance(tmp_path: Path) -> None:
    filled(tmp_path)
    new = replace(INFO, plan={"episodes": 50}, provenance={"mujoco": "3.2.3", "host": "b"})
    with RunStore.open(tmp_path, new) as run:
        assert {episode.trial for episode in run.done()} == {0, 1}
        assert run.previous is not None
        assert run.previous.plan == INFO.plan
        run.append(result(2), calls(2))
    assert read_info(tmp_path).plan == new.plan
    assert read_info(tmp_path).provenance == {**new.provenance, "earlier": [INFO.provenance]}
    assert trials_of(tmp_path) == [(trial, call) for trial in range(3) for call in range(2)]


def test_another_identity_is_refused_naming_every_difference(tmp_path: Path) -> None:
    filled(tmp_path)
    other = replace(INFO, identity={**INFO.identity, "seed": 1, "policy_args": {"scale": 0.7, "tempo": 2}})
    with pytest.raises(UsageError) as refusal:
        RunStore.open(tmp_path, other)
    message = str(refusal.value)
    assert "seed is 0 there and 1 here" in message
    assert "policy_args.scale is 0.5 there and 0.7 here" in message
    assert "policy_args.tempo is not set there and 2 here" in message
    assert "policy is" not in message
    assert "chunks" not in message  # a tuple here is a list there
    assert "--out" in message
    assert "--overwrite" in message
    assert read_info(tmp_path).identity["seed"] == 0


def test_another_protocol_is_refused_naming_the_setting(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(
        UsageError, match=r"protocol\.settle is 10 there and 0 here; protocol_hash is '363dd9d83ba7' there"
    ):
        RunStore.open(tmp_path, replace(INFO, protocol={"settle": 0}, protocol_hash="def"))


def test_the_last_row_of_an_episode_wins(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0, success=None), calls(0, 1.0))
        assert run.done() == set()
        run.append(result(0, steps=8), calls(0, 2.0))
        run.append(result(0, steps=9), calls(0, 3.0))
    assert [row.steps for row in read_episodes(tmp_path)] == [9]
    assert read_inferences(tmp_path)["latency_ms"].tolist() == [3.0, 3.0]
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0, success=None), [])
        assert run.done() == set()
    assert trials_of(tmp_path) == []


# --- whose directory it is ---


def test_overwrite_deletes_the_run_and_spares_the_users_files(tmp_path: Path) -> None:
    filled(tmp_path)
    record_actions(tmp_path, result(0).episode, np.zeros((2, 7), np.float32))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "lift_0.mp4").write_bytes(b"")
    (tmp_path / "notes.md").write_text("mine")
    with RunStore.open(tmp_path, replace(INFO, identity={"policy": "random"}), overwrite=True) as run:
        assert run.done() == set()
        assert run.previous is None
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert {entry.name for entry in tmp_path.iterdir()} == {"notes.md", "run.json", ".lock"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_is_no_run_is_refused_untouched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "episodes.jsonl").write_text("precious")
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        RunStore.open(tmp_path, INFO, overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["episodes.jsonl"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_run_json_of_another_tool_is_refused_untouched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run.json").write_text('{"wandb": 1}')
    (tmp_path / "videos").mkdir()
    with pytest.raises(UsageError, match="not what vla-bench writes"):
        RunStore.open(tmp_path, INFO, overwrite)
    assert (tmp_path / "run.json").read_text() == '{"wandb": 1}'
    assert (tmp_path / "videos").is_dir()


def test_a_run_killed_before_its_first_file_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "run.json.tmp").write_text("{")
    RunStore.open(tmp_path, INFO).close()
    assert read_info(tmp_path).protocol_hash == INFO.protocol_hash


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UsageError, match="is a file"):
        RunStore.open(tmp_path / "run", INFO)
    with pytest.raises(UsageError, match="Could not write"):
        RunStore.open(tmp_path / "run" / "below", INFO)


def test_only_one_process_writes_to_a_run(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO), pytest.raises(UsageError, match="Another process"):
        RunStore.open(tmp_path, INFO)
    RunStore.open(tmp_path, INFO).close()


def test_a_forked_worker_that_lingers_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    run = RunStore.open(tmp_path, INFO)
    if (child := os.fork()) == 0:
        signal.pause()
    run.close()
    try:
        RunStore.open(tmp_path, INFO).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_failed_open_lets_go_of_the_lock(tmp_path: Path) -> None:
    filled(tmp_path)
    for _ in range(2):
        with pytest.raises(UsageError, match="another run"):
            RunStore.open(tmp_path, replace(INFO, identity={}))
    RunStore.open(tmp_path, INFO).close()


# --- crashes ---


def test_a_half_written_last_line_is_cut_off_with_a_note(tmp_path: Path) -> None:
    whole = (as_before(filled(tmp_path)) / "episodes.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first + 1, len(whole) - 1, 7):
        (tmp_path / "episodes.jsonl").write_bytes(whole[:end])
        assert [row.trial for row in read_episodes(tmp_path)] == [0]
    with RunStore.open(tmp_path, INFO) as run:
        assert {episode.trial for episode in run.done()} == {0}
        assert len(run.notes) == 1
        assert "runs again" in run.notes[0]
        run.append(result(1), calls(1))
    assert [row.trial for row in read_episodes(tmp_path)] == [0, 1]
    assert trials_of(tmp_path) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    file = filled(tmp_path) / "episodes.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert len(read_episodes(tmp_path)) == 2
    with RunStore.open(tmp_path, INFO) as run:
        assert run.notes == []
        assert len(run.done()) == 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("garbage", [b"{", b'{"suite": "tiny"}', b"5", b"\xff", b"", b"[]"])
def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path, garbage: bytes) -> None:
    file = as_before(filled(tmp_path, trials=3)) / "episodes.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], garbage, lines[2], b""]))
    with pytest.raises(UsageError, match=r"episodes\.jsonl line 2 is corrupt"):
        read_episodes(tmp_path)
    with pytest.raises(UsageError, match=r"episodes\.jsonl line 2 is corrupt"):
        RunStore.open(tmp_path, INFO)


def test_a_success_that_is_no_verdict_is_corrupt(tmp_path: Path) -> None:
    file = as_before(filled(tmp_path)) / "episodes.jsonl"
    file.write_text(file.read_text().replace('"success": true', '"success": "yes"'))
    with pytest.raises(UsageError, match="success is 'yes'"):
        read_episodes(tmp_path)


def killed_at(path: Path, appends: int, half: bool) -> None:
    """Another process writes episodes until SIGKILL hits it: after so many appended lines, or midway in the last."""
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    append, count = files.append, 0

    def dying(file: Path, line: bytes) -> int:
        nonlocal count
        count += 1
        size = append(file, line[:40] if half and count == appends else line)
        if count == appends:
            os.kill(os.getpid(), signal.SIGKILL)
        return size

    try:
        store.append = dying
        run = RunStore.open(path, INFO)
        for trial in range(9):
            run.append(result(trial), calls(trial, latency_ms=100.0))
    finally:
        os._exit(1)


@pytest.mark.parametrize("when", ["after", "half"])
@pytest.mark.parametrize("appends", [1, 2, 3, 4])
def test_a_kill_anywhere_loses_at_most_the_episode_it_hit_and_doubles_none(
    tmp_path: Path, appends: int, when: str
) -> None:
    killed_at(tmp_path, appends, half=when == "half")
    survivors = (appends - (when == "half")) // 2
    seen = [(trial, call) for trial in range(survivors) for call in range(2)]
    assert trials_of(tmp_path) == seen
    with RunStore.open(tmp_path, INFO) as run:
        assert {episode.trial for episode in run.done()} == set(range(survivors))
        for trial in range(survivors, 3):
            run.append(result(trial, steps=70), calls(trial))
        live = trials_of(tmp_path)
    assert live == trials_of(tmp_path) == [(trial, call) for trial in range(3) for call in range(2)]
    assert read_inferences(tmp_path)["latency_ms"].tolist() == [100.0] * 2 * survivors + [5.0] * 2 * (3 - survivors)


def test_a_crash_between_compaction_and_removal_of_the_spool_doubles_nothing(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), calls(0))
        run.append(result(1), calls(1))
        spool = (tmp_path / "inferences.partial.jsonl").read_bytes()
    (tmp_path / "inferences.partial.jsonl").write_bytes(spool)
    assert trials_of(tmp_path) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    RunStore.open(tmp_path, INFO).close()
    assert trials_of(tmp_path) == [(0, 0), (0, 1), (1, 0), (1, 1)]


# --- full disks ---


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a write fails half done with EFBIG, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 100])
@pytest.mark.parametrize("file", ["episodes.jsonl", "inferences.partial.jsonl"])
def test_a_write_the_disk_refuses_leaves_no_half_line(tmp_path: Path, file: str, room: int) -> None:
    inferences = calls(2) if file == "inferences.partial.jsonl" else []
    judged = True if inferences else None
    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), calls(0))
        run.append(result(1), calls(1))
        before = (tmp_path / file).read_bytes()
        with file_size_limit(len(before) + room), pytest.raises(UsageError, match="2 episodes are safe") as refusal:
            run.append(result(2, judged), inferences)
        assert file in str(refusal.value)
        assert "same command again" in str(refusal.value)
        assert (tmp_path / file).read_bytes() == before
        assert len(run.done()) == 2
        run.append(result(2), calls(2))
    assert [row.trial for row in read_episodes(tmp_path)] == [0, 1, 2]
    assert len(trials_of(tmp_path)) == 6


def test_an_interrupt_in_the_middle_of_a_write_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with RunStore.open(tmp_path, INFO) as run:
        run.append(result(0), calls(0))
        before = (tmp_path / "episodes.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run.append(result(1, success=None), [])
        assert (tmp_path / "episodes.jsonl").read_bytes() == before


def test_a_compaction_the_disk_refuses_keeps_the_spool_and_says_so(tmp_path: Path) -> None:
    run = RunStore.open(tmp_path, INFO)
    run.append(result(0), calls(0))
    with file_size_limit(64):
        run.close()
    assert "inferences.partial.jsonl" in run.notes[0]
    assert {entry.name for entry in tmp_path.iterdir()} == {"run.json", ".lock", "episodes.jsonl", store.SPOOL}
    assert trials_of(tmp_path) == [(0, 0), (0, 1)]
    RunStore.open(tmp_path, INFO).close()
    assert not (tmp_path / store.SPOOL).exists()
    assert trials_of(tmp_path) == [(0, 0), (0, 1)]


def test_a_number_json_cannot_hold_is_a_bug_and_leaves_no_trace(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        with pytest.raises(ValueError, match="JSON compliant"):
            run.append(replace(result(0), success=None, wall_s=float("nan")), [])
        with pytest.raises(ValueError, match="another episode"):
            run.append(result(0), calls(1))
    assert not (tmp_path / "episodes.jsonl").exists()


# --- what is not there ---


@pytest.mark.parametrize("read", [read_info, read_episodes, read_inferences])
def test_reading_what_is_no_run_says_so_in_one_sentence(tmp_path: Path, read: object) -> None:
    filled(tmp_path / "pi0_libero")
    with pytest.raises(UsageError, match=r"does not exist: .* Did you mean .*pi0_libero\?"):
        read(tmp_path / "pi0_liberu")  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"is not a run \(it holds no run\.json\)"):
        read(tmp_path)  # type: ignore[operator]


def test_reading_a_run_without_episodes_says_so(tmp_path: Path) -> None:
    RunStore.open(tmp_path, INFO).close()
    with pytest.raises(UsageError, match="holds no finished episode yet"):
        read_episodes(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}}'])
def test_a_corrupt_run_json_is_named(tmp_path: Path, text: str) -> None:
    (filled(tmp_path) / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json is not what vla-bench writes"):
        read_info(tmp_path)


def test_a_run_of_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    (filled(tmp_path) / "run.json").write_text(json.dumps({"schema": store.SCHEMA + 1, "novelty": 1}))
    with pytest.raises(UsageError, match="upgrade"):
        read_info(tmp_path)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), UsageError, "ulimit -n"),
        (
            OSError(errno.EIO, "Input/output error"),
            UsageError,
            r"Cannot read .*: Input/output error\.$",
        ),
        (MemoryError(), MemoryError, "^$"),
    ],
)
def test_a_table_that_the_machine_cannot_read_now_is_not_to_be_deleted(
    tmp_path: Path, error: Exception, raised: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    filled(tmp_path)
    monkeypatch.setattr(pyarrow.parquet, "read_metadata", fails)
    with pytest.raises(raised, match=said) as caught:
        read_inferences(tmp_path)
    assert "delete" not in str(caught.value)


def test_a_corrupt_parquet_file_is_named_and_does_not_stop_the_run(tmp_path: Path) -> None:
    (filled(tmp_path) / "inferences.parquet").write_bytes(b"PAR1")
    as_before(tmp_path)
    with pytest.raises(UsageError, match=r"inferences\.parquet cannot be read"):
        read_inferences(tmp_path)
    run = RunStore.open(tmp_path, INFO)
    run.append(result(2), calls(2))
    run.close()
    assert "cannot be read" in run.notes[0]
    pd.DataFrame({"a": [1]}).to_parquet(as_before(tmp_path) / "inferences.parquet")
    with pytest.raises(UsageError, match=r"no column batch, cold"):
        read_inferences(tmp_path)


# --- actions ---


def test_actions_come_back_bit_for_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 7000, dtype=np.uint32)
    actions = bits.view(np.float32)[np.isfinite(bits.view(np.float32))][:6300].reshape(-1, 7)
    edges = np.array([[0.1, -0.0, 1e-45, 3.4028235e38]], np.float32)
    first, second = result(0).episode, Episode("tiny", "lift", 0, 0, "dark")
    record_actions(tmp_path / "actions.jsonl", first, actions)
    record_actions(tmp_path, second, edges)
    found = read_actions(tmp_path)
    assert found[first].dtype == np.float32
    assert found[first].tobytes() == actions.tobytes()
    assert found[second].tobytes() == edges.tobytes()


def test_the_last_recording_of_an_episode_wins_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    episode, file = result(0).episode, tmp_path / "recorded.jsonl"
    record_actions(file, episode, np.zeros((3, 2), np.float32))
    record_actions(file, episode, np.ones((1, 2), np.float32))
    with open(file, "a") as stream:
        stream.write('{"suite": "ti')
    assert read_actions(file)[episode].tolist() == [[1.0, 1.0]]
    record_actions(file, result(1).episode, np.ones((0, 2), np.float32))
    assert [len(actions) for actions in read_actions(file).values()] == [1, 0]


@pytest.mark.parametrize("line", ["{}", "5", '{"actions": [[1], [1, 2]]}', '{"actions": [1.0]}', '{"actions": null}'])
def test_corrupt_actions_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "actions.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=r"actions\.jsonl line 1 is corrupt"):
        read_actions(tmp_path)


def test_missing_actions_are_a_sentence_and_a_wrong_shape_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no recorded actions"):
        read_actions(tmp_path)
    with pytest.raises(UsageError, match="Could not write"):
        record_actions(tmp_path / "no" / "where.jsonl", result(0).episode, np.zeros((1, 7), np.float32))
    with pytest.raises(ValueError, match="shape"):
        record_actions(tmp_path, result(0).episode, np.zeros(7, np.float32))


def test_rows_are_one_line_of_strict_json_each(tmp_path: Path) -> None:
    lines = (filled(tmp_path) / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1]
