"""The damage that `fuzz` does is repeatable, is damage, and its bounds hold."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random

import pytest
from fuzz import (
    KINDS,
    VALUES,
    Exceeded,
    bounded,
    damage_tree,
    damaged,
    damaged_json,
    damaged_lines,
    fresh_copy,
    png_bomb,
    replace_file,
)

RUN = b'{"identity": {"policy": "pi0", "args": [1, {"a": null}]}, "hz": 10.0}'


def test_a_seed_does_the_same_damage_every_time(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "run.json").write_bytes(RUN)
    (tmp_path / "sound" / "rows.jsonl").write_bytes(RUN + b"\n" + RUN + b"\n")
    said = [damage_tree(fresh_copy(tmp_path / "sound", tmp_path / "copy"), Random(seed)) for seed in range(60)]
    assert said == [damage_tree(fresh_copy(tmp_path / "sound", tmp_path / "copy"), Random(seed)) for seed in range(60)]
    assert len(set(said)) > 50


@pytest.mark.parametrize("damage", [damaged, damaged_json, damaged_lines])
def test_nearly_all_damage_changes_the_content(damage: object) -> None:
    content = RUN + b"\n" + RUN.replace(b"pi0", b"zero") + b"\n" if damage is damaged_lines else RUN
    unchanged = sum(damage(content, Random(seed)).content == content for seed in range(300))  # type: ignore[operator]
    assert unchanged < 60  # things may be exchanged with themselves


def test_damage_to_json_reaches_every_place_and_leaves_the_others() -> None:
    found = [damaged_json(RUN, Random(seed)) for seed in range(500)]
    for place in ("all", "identity", "identity.policy", "identity.args", "identity.args.1.a", "hz"):
        assert {f"{place} taken away", f"{place} doubled", f"{place} moved"} & {said for _, said in found}
        assert any(said.startswith(f"{place} replaced by ") for _, said in found)
    assert all(b'"policy": "pi0"' in content for content, said in found if said.startswith("hz replaced"))


def test_strange_values_are_json_unless_they_are_too_long_for_it() -> None:
    for value in VALUES:
        if len(value) < 5000:
            json.loads(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_take_the_place_of_a_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert replace_file(tmp_path / "file", kind) == f"{kind} in its place"
    assert (tmp_path / "file").exists() == (kind not in ("gone", "loop", "dangling"))


def test_what_waits_or_takes_memory_is_stopped() -> None:
    with pytest.raises(Exceeded, match="too long"), bounded(0.1, 100):
        time.sleep(20)
    with pytest.raises(Exceeded, match="MB of memory"), bounded(20, 300):
        bytes(b"x" * 450_000_000)
    with pytest.raises(MemoryError), bounded(20, 300):
        bytes(b"x" * 1_200_000_000)
    with bounded(20, 100):
        bytes(b"x" * 10_000_000)


def test_a_small_file_holds_a_large_picture() -> None:
    assert len(png_bomb(14_000, 14_000)) < 50_000
