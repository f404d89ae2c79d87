"""A run that is not what was written is found, and what is wrong with it is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import INFO, as_before, call, episode, made_run

from vla_bench.cli import main
from vla_bench.errors import UsageError
from vla_bench.store import runs as store
from vla_bench.store.integrity import at_the_end, begin, damages, is_sound, line_of, sound_lines
from vla_bench.store.runs import RunStore, read_episodes, read_inferences, read_info

REPOSITORY = Path(__file__).parent.parent
TOLD = begin({"policy": "pi0"}, {"suite": "toy"})


def chain(count: int = 6) -> list[bytes]:
    lines, told = list[bytes](), TOLD
    for trial in range(count):
        line = line_of({"trial": trial, "success": True}, told)
        lines.append(line.text.encode())
        told = replace(told, last=line.checksum)
    return lines


def said(lines: list[bytes], before: list[bytes] | None = None) -> list[str]:
    """What is found in the lines, of which run.json counted those `before`."""
    return damages(lines, at_the_end(chain() if before is None else before, TOLD))


def flipped(line: bytes) -> bytes:
    return line.replace(b"true", b"null")


# --- lines ---


def test_lines_as_they_were_written_are_sound_and_more_may_have_come_since() -> None:
    assert said(chain()) == []
    for counted in range(6):
        assert said(chain(), chain(counted)) == []
    assert all(is_sound(line, TOLD.first) for line in chain())


@pytest.mark.parametrize("number", range(1, 7))
def test_a_changed_line_is_named_and_no_other(number: int) -> None:
    lines = chain()
    lines[number - 1] = flipped(lines[number - 1])
    assert said(lines) == [f"line {number} was changed after it was written"]


@pytest.mark.parametrize("number", range(2, 6))
def test_a_lost_line_in_the_middle_is_named_by_those_around_it(number: int) -> None:
    lines = chain()
    del lines[number - 1]
    expected = f"line {number} does not follow line {number - 1}: lines between them are missing, or were moved"
    assert said(lines) == [expected]


def test_lost_ends_doubled_moved_and_strange_lines_are_found() -> None:
    a, b, c, d, e, f = chain()
    assert said([b, c, d, e, f]) == [
        "line 1 is not the first that was stored: lines before it are missing, or were moved"
    ]
    assert said([a, b, c, d]) == ["lacks the last of the 6 lines that were stored"]
    assert said([]) == ["lacks the last of the 6 lines that were stored"]
    assert [said_.partition(" does not")[0] for said_ in said([a, b, b, c, d, e, f])] == ["line 3"]
    assert [said_.partition(" does not")[0] for said_ in said([a, c, b, d, e, f])] == ["line 2", "line 3", "line 4"]
    for strange in (b"", b"{}", b'{"trial": 9, "success": true}', a[:-1], b"\xff" * 80):
        assert said([a, b, strange, c, d, e, f]) == ["line 3 carries no checksum: it was changed, or put in"]
    assert said([a, b, flipped(c), e, f]) == [
        "line 3 was changed after it was written",
        "line 4 does not follow line 3: lines between them are missing, or were moved",
    ]


def test_the_lines_of_a_run_of_other_identity_or_protocol_are_not_sound_here() -> None:
    for other in (begin({"policy": "pi1"}, {"suite": "toy"}), begin({"policy": "pi0"}, {"suite": "boy"})):
        assert not any(is_sound(line, other.first) for line in chain())


def test_sound_lines_are_kept_once_each_and_in_their_order() -> None:
    a, b, c, d, e, f = chain()
    told = at_the_end(chain(), TOLD)
    assert sound_lines([a, b, c, d, e, f], told) == [a, b, c, d, e, f]
    assert sound_lines([b, a, f, flipped(c), a, d, b"{}", f, e], told) == [a, b, d, e, f]
    assert sound_lines([f, d, a], told) == [a, f, d]
    old = [b'{"trial": 0}', b'{"trial": 1}']
    begun = replace(TOLD, unchecked=2)
    new = line_of({"trial": 2}, at_the_end(old, begun)).text.encode()
    told = at_the_end([*old, new], begun)
    assert sound_lines([*old, new], told) == [*old, new]
    assert sound_lines(old, at_the_end(old, begun)) == old
    assert sound_lines([old[0], flipped(old[0]), new], told) == sound_lines([old[1], new], told) == [new]


def test_every_changed_byte_is_found() -> None:
    whole = b"\n".join(chain(3))
    for place in range(len(whole)):
        other = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert said(other.split(b"\n"), chain(3)), (place, other)


def test_a_number_json_cannot_hold_makes_no_line() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        line_of({"wall_s": float("nan")}, TOLD)


# --- runs ---


def filled(path: Path, outcomes: str = "1101") -> Path:
    return made_run(path, {"lift": outcomes}, latency_ms=5.0)


def edit(file: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))


def flip_the_third(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"success": false', b'"success": true'), *lines[3:]]


def commands(run: Path, other: Path, baseline: Path) -> list[list[str]]:
    return [
        ["show", str(run)],
        ["compare", str(other), str(run)],
        ["check", str(run), "--baseline", str(baseline)],
        ["check", str(run), "--baseline", str(run / "new.jsonl"), "--update"],
        ["report", str(run), "--out", str(run / "page")],
    ]


@pytest.mark.parametrize("kind", ["row", "run.json", "parquet"])
def test_every_reader_refuses_a_changed_run_in_a_sentence_that_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    good, bad, baseline = filled(tmp_path / "good"), filled(tmp_path / "bad"), tmp_path / "base.jsonl"
    assert main(["check", str(good), "--baseline", str(baseline), "--update"]) == 0
    if kind == "row":
        edit(bad / "episodes.jsonl", flip_the_third)
        expected = f"{bad}/episodes.jsonl line 3 was changed after it was written: vla-bench fsck {bad} says"
    elif kind == "run.json":
        edit(bad / "run.json", lambda lines: [line.replace(b'"suite": "toy"', b'"suite": "boy"') for line in lines])
        expected = f"{bad}/run.json was changed after it was written: vla-bench fsck {bad} says"
    else:
        read_inferences(bad).assign(latency_ms=1.0).to_parquet(bad / "inferences.parquet")
        expected = f"{bad}/inferences.parquet was changed after it was written: restore it, or delete it"
    capsys.readouterr()
    for command in commands(bad, good, baseline):
        assert main(command) == 64, command
        printed = capsys.readouterr()
        assert expected in printed.err, command
        assert (printed.out, printed.err.count("\n")) == ("", 1)
    with pytest.raises(UsageError, match="was changed after it was written"):
        RunStore.open(bad, INFO)
    assert main(["leaderboard", str(tmp_path), "--json"]) == 0
    board = json.loads(capsys.readouterr().out)
    assert [expected in line for line in board["unreadable"]] == [True]
    runs = [run for standing in board["sections"][0]["standings"] for run in standing["runs"]]
    assert str(good) in runs
    assert str(bad) not in runs


def test_lines_that_end_as_on_windows_are_no_change(tmp_path: Path) -> None:
    rows = read_episodes(filled(tmp_path / "run"))
    edit(tmp_path / "run" / "episodes.jsonl", lambda lines: [line[:-1] + b"\r\n" for line in lines])
    assert read_episodes(tmp_path / "run") == rows


def test_rows_of_another_run_with_the_same_command_are_found(tmp_path: Path) -> None:
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b", "1111")
    shutil.copy(a / "episodes.jsonl", b)
    with pytest.raises(UsageError, match="lacks the last of the 4 lines that were stored"):
        read_episodes(b)


def test_a_line_of_the_spool_that_was_changed_is_found(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, INFO) as run:
        for trial in range(3):
            run.append(replace(episode("lift", trial, True), inferences=1), [call("lift", trial, 0, 5.0)])
        edit(
            tmp_path / store.SPOOL,
            lambda lines: [*lines[:1], lines[1].replace(b'"batch": 1', b'"batch": 2'), *lines[2:]],
        )
        with pytest.raises(UsageError, match=r"partial\.jsonl line 2 was changed after it was written"):
            read_inferences(tmp_path)
    assert "line 2 was changed after it was written" in run.notes[0]
    assert len(read_episodes(tmp_path)) == 3


# --- run.json ---


def leaves(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Where the values are that are not themselves filled."""
    if isinstance(value, dict | list) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))
    else:
        yield path


def test_whatever_is_edited_in_run_json_is_found_and_another_layout_is_none(tmp_path: Path) -> None:
    file = filled(tmp_path) / "run.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found, sort_keys=True))
    before = read_info(tmp_path)
    for path in leaves(found):
        edited = json.loads(json.dumps(found))
        inside = edited
        for step in path[:-1]:
            inside = inside[step]
        inside[path[-1]] = "edited" if path != ("schema",) else 2
        file.write_text(json.dumps(edited))
        with pytest.raises(UsageError, match=r"run\.json"):
            read_info(tmp_path)
    del found["checksum"]
    file.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="carries no checksum, so it was changed"):
        read_info(tmp_path)
    assert before.protocol_hash == INFO.protocol_hash


def test_an_edited_protocol_is_found_in_a_run_without_checksums_too(tmp_path: Path) -> None:
    file = as_before(filled(tmp_path)) / "run.json"
    edit(file, lambda lines: [line.replace(b'"RecedingHorizon"', b'"TemporalEnsemble"') for line in lines])
    said = r"says that its protocol_hash is '3fdcd6ce3cdf', and its protocol has '\w{12}', so it was changed"
    with pytest.raises(UsageError, match=said):
        read_info(tmp_path)


def test_the_committed_runs_are_what_was_written() -> None:
    runs = sorted(file.parent for file in REPOSITORY.glob("reports/*/runs/*/run.json"))
    assert len(runs) > 30
    for run in runs:
        info = read_info(run)
        assert info.checksums is None
        assert len(read_episodes(run)) == info.plan["planned"]


# --- runs of an older vla-bench ---


def grown(path: Path) -> Path:
    """A run of four rows that an older vla-bench began, and this one resumed with two more."""
    as_before(filled(path))
    made_run(path, {"lift": "----01"}, latency_ms=5.0)
    return path


def test_a_run_of_an_older_version_is_resumed_and_covered_from_then_on(tmp_path: Path) -> None:
    run = grown(tmp_path / "run")
    told = read_info(run).checksums
    assert told is not None
    assert (told.unchecked, told.rows) == (4, 6)
    assert [row.success for row in read_episodes(run)] == [True, True, False, True, False, True]
    assert len(read_inferences(run)) == 6
    filled(run, "------1")
    assert len(read_episodes(run)) == 7


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            flip_the_third,
            "line 5 does not follow the 4 lines without checksums: some were changed, or lines are missing",
        ),
        (lambda lines: lines[1:], "line 4 does not follow the 4 lines without checksums"),
        (lambda lines: lines[4:], "line 1 does not follow the 4 lines without checksums"),
        (lambda lines: [*lines[:4], lines[5]], "line 5 does not follow the 4 lines"),
        (lambda lines: lines[:5], "lacks the last of the 6 lines"),
        (lambda lines: lines[:4], "lacks the last of the 6 lines"),
        (lambda lines: [*lines, lines[0]], "line 7 carries no checksum"),
    ],
)
def test_damage_to_such_a_run_is_found(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], expected: str
) -> None:
    edit(grown(tmp_path / "run") / "episodes.jsonl", change)
    with pytest.raises(UsageError, match=expected):
        read_episodes(tmp_path / "run")


def test_damage_to_such_a_run_before_a_row_was_added_is_found(tmp_path: Path) -> None:
    as_before(filled(tmp_path))
    RunStore.open(tmp_path, INFO).close()
    edit(tmp_path / "episodes.jsonl", flip_the_third)
    with pytest.raises(UsageError, match="lacks the last of the 4 lines"):
        read_episodes(tmp_path)


# --- inferences ---


def test_a_run_whose_timings_were_deleted_goes_on_without_them(tmp_path: Path) -> None:
    (filled(tmp_path) / "inferences.parquet").unlink()
    assert len(read_inferences(tmp_path)) == 0
    with RunStore.open(tmp_path, INFO) as run:
        assert run.notes == [f"{tmp_path}/inferences.parquet is missing: the timings of stored episodes are left out."]
        run.append(replace(episode("lift", 4, True), inferences=1), [call("lift", 4, 0, 5.0)])
    assert read_inferences(tmp_path)["trial"].tolist() == [4]
    with RunStore.open(tmp_path, INFO) as run:
        assert run.notes == []


def test_a_reader_that_is_overtaken_by_the_end_of_a_session_reads_on(tmp_path: Path) -> None:
    filled(tmp_path)
    with RunStore.open(tmp_path, INFO) as run:
        run.append(replace(episode("lift", 4, True), inferences=1), [call("lift", 4, 0, 5.0)])
        info = read_info(tmp_path)
    assert len(store._inferences(tmp_path, store._results(tmp_path, info), info)) == 5


def killed(work: Callable[[], object], at: int) -> bool:
    """Does the work in another process, which dies before it replaces or removes a file so often. Whether it died."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        count, originals = 0, (os.replace, os.unlink)

        def dying(original: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: object, **named: object) -> None:
                nonlocal count
                count += 1
                if count > at:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*arguments, **named)

            return call

        os.replace, os.unlink = map(dying, originals)  # type: ignore[assignment]
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_kill_at_any_moment_of_closing_leaves_a_sound_run(tmp_path: Path) -> None:
    filled(tmp_path / "before")
    for at in range(20):
        run = shutil.copytree(tmp_path / "before", tmp_path / str(at))
        ended = not killed(lambda run=run: made_run(run, {"lift": "----1"}, latency_ms=5.0), at)  # type: ignore[misc]
        rows = read_episodes(run)
        assert len(read_inferences(run)) == len(rows) in (4, 5)
        made_run(run, {"lift": "----1"[: 5 if len(rows) == 4 else 4]}, latency_ms=5.0)
        assert len(read_inferences(run)) == len(read_episodes(run)) == 5
        if ended:
            assert at == 5  # run.json, again, the parquet file, the spool, run.json
            return
    pytest.fail("it never came to its end")


def test_a_kill_at_any_moment_of_overwriting_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    filled(tmp_path / "before")
    for at in range(20):
        run = shutil.copytree(tmp_path / "before", tmp_path / str(at))
        ended = not killed(lambda run=run: RunStore.open(run, INFO, overwrite=True).close(), at)  # type: ignore[misc]
        with RunStore.open(run, INFO) as resumed:
            done = len(resumed.done())
            assert done in (0, 4)
            assert resumed.notes in (
                [],
                [f"{run}/inferences.parquet is missing: the timings of stored episodes are left out."],
            )
        if ended:
            assert done == 0
            return
    pytest.fail("it never came to its end")


def test_a_damaged_run_can_be_overwritten(tmp_path: Path) -> None:
    edit(filled(tmp_path) / "episodes.jsonl", flip_the_third)
    edit(tmp_path / "run.json", lambda lines: [line.replace(b'"seed": 0', b'"seed": 1') for line in lines])
    with RunStore.open(tmp_path, INFO, overwrite=True) as run:
        run.append(episode("lift", 0, True), [])
    assert len(read_episodes(tmp_path)) == 1
