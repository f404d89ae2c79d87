"""File systems that lack locks or folder syncs, folders that go away, and disks that can only be read."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import fakes
import pytest
from faulty_disk import ERRORS, Failing, System, Tape, use
from test_store import INFO, calls, result

from vla_bench.cli import main
from vla_bench.errors import UsageError
from vla_bench.store import files, lock
from vla_bench.store.runs import RunStore, read_episodes
from vla_bench.types import ActionChunk, Observation, Suite

NEVER = 2**22 + 1  # no process has such a number


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as refusal:
        RunStore.open(path, INFO)
    return str(refusal.value)


def without_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


# --- who holds the lock ---


def test_whoever_holds_the_lock_is_named(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO):
        said = refused(tmp_path)
        assert f"Another process (process {os.getpid()} on " in said
        assert f"is writing to {tmp_path}: wait for it, or choose another --out." in said
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\0"])
def test_a_lock_that_nobody_signed_is_held_all_the_same(tmp_path: Path, text: str) -> None:
    with RunStore.open(tmp_path, INFO):
        (tmp_path / ".lock").write_text(text)
        assert refused(tmp_path).startswith(f"Another process is writing to {tmp_path}")


def dying_with(path: Path, fork: Callable[[], int]) -> int:
    """Another process opens the run, has a child by that call, and is killed; the child's number."""
    reading, writing = os.pipe()
    if (parent := os.fork()) == 0:
        try:
            run = RunStore.open(path, INFO)
            if (child := fork()) == 0:
                signal.pause()
            os.write(writing, str(child).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(run is None)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -signal.SIGKILL
    return int(os.read(reading, 9))


def test_a_forked_child_that_outlives_the_run_holds_no_lock(tmp_path: Path) -> None:
    child = dying_with(tmp_path, os.fork)
    try:
        os.kill(child, 0)
        RunStore.open(tmp_path, INFO).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_python_did_not_fork_is_named_when_it_holds_the_lock(tmp_path: Path) -> None:
    child = dying_with(tmp_path, ctypes.CDLL(None).fork)
    try:
        said = refused(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
    assert f"has ended, a child that it left ({child}) lives on: end that, or choose another --out." in said


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        if (child := os.fork()) == 0:
            run.append(result(0), calls(0))  # which ends it
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        run.append(result(1), calls(1))
    assert [row.trial for row in read_episodes(tmp_path)] == [1]


# --- no locks ---


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_a_file_stands_for_one_and_that_is_told(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, code)
    with RunStore.open(tmp_path, INFO) as run:
        (note,) = run.notes
        assert note.startswith(f"The disk of {tmp_path} has no locks ({os.strerror(code)}), so {tmp_path}/.lock.held ")
        run.append(result(0), calls(0))
        assert f"Another process (process {os.getpid()} on " in (said := refused(tmp_path))
        assert said.endswith(f"so if that process has ended, delete {tmp_path}/.lock.held.")
    assert not (tmp_path / ".lock.held").exists()
    RunStore.open(tmp_path, INFO).close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_lock_that_fails_otherwise_ends_in_a_sentence(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, code)
    assert refused(tmp_path).startswith(f"Could not write to {tmp_path} ({os.strerror(code)}): ")


def signed(path: Path, **changes: object) -> None:
    path.mkdir(exist_ok=True)
    with files.opened(path / ".lock.held", os.O_RDWR | os.O_CREAT) as descriptor:
        lock._sign(descriptor)
    told = json.loads((path / ".lock.held").read_text())
    (path / ".lock.held").write_text(json.dumps({**told, **changes}))


@pytest.mark.parametrize("changes", [{"pid": NEVER}, {"begun": "1"}])
def test_what_a_dead_process_left_in_place_of_a_lock_is_cleared(
    tmp_path: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, errno.ENOSYS)
    signed(tmp_path, **changes)
    with RunStore.open(tmp_path, INFO):
        assert json.loads((tmp_path / ".lock.held").read_text())["pid"] == os.getpid()
    assert [file.name for file in tmp_path.glob(".lock*")] == [".lock"]


@pytest.mark.parametrize("changes", [{}, {"pid": NEVER, "host": "else"}, {"pid": NEVER, "system": "other boot"}])
def test_what_may_be_alive_is_not_cleared(
    tmp_path: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, errno.ENOSYS)
    signed(tmp_path, **changes)
    assert f"delete {tmp_path}/.lock.held" in refused(tmp_path)
    assert (tmp_path / ".lock.held").exists()


def test_a_lock_that_another_took_meanwhile_is_not_cleared(tmp_path: Path) -> None:
    """Two processes find what a dead one left; the slower one must not remove what the faster one put there."""
    signed(tmp_path, pid=NEVER)
    dead = lock._read(tmp_path / ".lock.held")
    assert dead is not None
    signed(tmp_path)
    lock._clear(tmp_path / ".lock.held", dead)
    assert lock._read(tmp_path / ".lock.held") != dead
    assert [file.name for file in tmp_path.iterdir()] == [".lock.held"]


# --- a folder that goes away ---


def delete(path: Path) -> None:
    shutil.rmtree(path)


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def restore_old(path: Path) -> None:
    shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.with_name("copy").rename(path)


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def change_places(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()


def delete_rows(path: Path) -> None:
    (path / "episodes.jsonl").unlink()


def add_a_row(path: Path) -> None:
    with (path / "episodes.jsonl").open("a") as stream:
        stream.write("{}\n")


def delete_lock(path: Path) -> None:
    (path / ".lock").unlink()


DELETED = "was deleted while the run was writing to it: the 2 stored episodes are lost"
REPLACED = "was replaced by another folder while the run was writing to it: the 2 stored episodes were in the old one"
MOVED = "moved while the run was writing to it: the 2 stored episodes are there"
CHANGED = "was changed by another program while the run was writing to it"
BECAME = [
    (delete, DELETED),
    (empty, REPLACED),
    (restore_old, REPLACED),
    (move, MOVED),
    (change_places, MOVED),
    (delete_rows, CHANGED),
    (add_a_row, CHANGED),
    (delete_lock, "lost its lock while the run was writing to it: the 2 stored episodes are safe"),
]


@pytest.mark.parametrize(("happens", "said"), BECAME)
def test_a_run_whose_folder_goes_away_is_noticed_and_told_what_is_lost(
    tmp_path: Path, happens: Callable[[Path], None], said: str
) -> None:
    run = RunStore.open(tmp_path / "run", INFO)
    run.append(result(0), calls(0))
    run.append(result(1), calls(1))
    happens(run.path)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(UsageError) as refusal:
        run.append(result(2), calls(2))
    run.close()
    assert said in str(refusal.value)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize(("happens", "said"), BECAME)
def test_it_is_noticed_after_the_last_row_too(tmp_path: Path, happens: Callable[[Path], None], said: str) -> None:
    run = RunStore.open(tmp_path / "run", INFO)
    run.append(result(0), calls(0))
    run.append(result(1), calls(1))
    happens(run.path)
    with pytest.raises(UsageError) as refusal:
        run.__exit__(None, None, None)
    assert said in str(refusal.value)


class Meddler(fakes.Walker):
    """A Walker that does something to a folder before its fifth call: two episodes are stored by then."""

    def __init__(self, suite: Suite, folder: str, deed: str) -> None:
        super().__init__(suite)
        self.folder, self.deed = Path(folder), globals()[deed]

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        if len(self.batches) == 7:
            self.deed(self.folder)
        return super().infer(observations)


@pytest.mark.parametrize(("happens", "said"), BECAME)
def test_a_command_never_says_that_what_is_gone_is_stored(
    tmp_path: Path, happens: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    command = ["run", "--policy", "test_disks:Meddler", "--suite", "fakes:suite", "--episodes", "2", "--out", str(path)]
    assert main([*command, "--policy-args", f"folder={path}", f"deed={happens.__name__}"]) == 64
    told = capsys.readouterr()
    assert said in told.err
    assert "of 4 episodes are stored" not in told.err
    assert told.out == ""


def test_commands_that_read_a_run_write_nothing_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So all of them work on a disk that can only be read."""
    monkeypatch.chdir(tmp_path)
    assert (
        main(["run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--episodes", "1", "--out", "runs/a"]) == 0
    )
    assert main(["check", "runs/a", "--baseline", "b.jsonl", "--update"]) == 0
    before = [(file, os.stat(file).st_mtime_ns) for file in sorted([tmp_path / "runs", *tmp_path.rglob("runs/**/*")])]
    assert main(["show", "runs/a"]) == 0
    assert main(["leaderboard", "runs"]) == 0
    assert main(["compare", "runs/a", "runs/a"]) == 2
    assert main(["check", "runs/a", "--baseline", "b.jsonl", "--undecided", "pass"]) == 0
    assert (
        main(["run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--episodes", "1", "--out", "runs/a"]) == 0
    )
    capsys.readouterr()
    assert [(file, os.stat(file).st_mtime_ns) for file, _ in before] == [(file, time) for file, time in before]
    assert len(before) == len([tmp_path / "runs", *tmp_path.rglob("runs/**/*")])


# --- files that are replaced: baselines, run.json, pages, leaderboards, settings and logs of a training ---


def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, system = tmp_path / "file", System()
    use(system, monkeypatch)
    files.write_whole(file, b"old")
    for at, name in enumerate(system.calls):
        for code in ERRORS[name]:
            file.write_bytes(b"old")
            use(Failing(at, code), monkeypatch)
            with suppress(OSError):
                files.write_whole(file, b"new")
                assert file.read_bytes() == b"new"
            assert file.read_bytes() in (b"old", b"new")
            assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_replaced_is_the_new_one_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape(tmp_path, lambda: 0)
    use(tape, monkeypatch)
    files.write_whole(tmp_path / "file", b"old")
    begun = len(tape.crashes)
    files.write_whole(tmp_path / "file", b"new")
    files.sync_folder(tmp_path)
    during, after = tape.crashes[begun:], tape.crashes[-1]
    left = [dict(one.content) for crash in during for one in crash.left.values()]
    assert {content["file"] for content in left} == {b"old", b"new"}
    assert all(dict(one.content) == {"file": b"new"} for one in after.left.values())


@pytest.mark.parametrize("deep", ["a", "a/b/c"])
def test_a_new_folder_is_there_after_a_power_cut(deep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape(tmp_path, lambda: 0)
    use(tape, monkeypatch)
    files.make_folder(tmp_path / deep)
    files.sync_folder(tmp_path)
    assert all(dict(one.content).keys() >= {deep} for one in tape.crashes[-1].left.values())
