"""Grounding: where attention falls is counted right, costs no latency, and shows in table, report and film."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from made_runs import INFO, as_before, call, episode
from marks import slow
from scipy import stats

from vla_bench import tables
from vla_bench.chunking import RecedingHorizon
from vla_bench.compare.comparison import compare, render_markdown, render_text
from vla_bench.config import RunConfig
from vla_bench.errors import UsageError
from vla_bench.grounding.overlay import HEAT, LINE, heated, outlined, overlaid
from vla_bench.grounding.scoring import inside_total, score
from vla_bench.grounding.table import COLUMNS, grounding_rows
from vla_bench.inference import LocalPolicy, check_chunks
from vla_bench.registry import make_suite
from vla_bench.report.data import STRETCHES, grounding_curves
from vla_bench.report.page import write_report
from vla_bench.report.sections import Entrant
from vla_bench.rollout import Actor, run_episode
from vla_bench.runner import run
from vla_bench.store.runs import RunStore, read_inferences
from vla_bench.types import (
    ActionChunk,
    Attention,
    Camera,
    Env,
    Episode,
    Frame,
    Grounding,
    Inference,
    Mask,
    Observation,
    PolicySpec,
    Recorder,
    Shot,
    Suite,
    Task,
)

FINE = 2**3 * 3 * 5**2 * 7 * 11  # points along a picture's side: every cell and pixel of these tests has a whole number


def by_points(given: Attention, mask: Mask) -> tuple[float, float]:
    """(within the region, inside the picture) of that attention, by counting FINE x FINE points of the picture."""
    (rows, columns), (left, top, right, bottom) = given.weights.shape, given.box
    down = counted(rows, top, bottom, mask.shape[0])
    across = counted(columns, left, right, mask.shape[1])
    points = np.einsum("rc,ry,cx->yx", given.weights.astype(float), down, across)
    return float(points[mask].sum()), float(points.sum())


def counted(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """(cells, pixels): of every cell's points, those that every pixel has."""
    at = (np.arange(FINE) + 0.5) / FINE
    cell = np.floor((at - start) / (end - start) * cells).astype(int)
    inside = (cell >= 0) & (cell < cells)
    counts = np.zeros((cells, pixels))
    np.add.at(counts, (cell[inside], (at[inside] * pixels).astype(int)), 1)
    return counts / ((end - start) * FINE / cells)


def grid(seed: int, rows: int, columns: int) -> np.ndarray:
    weights = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)
    return weights / (3 * weights.sum())


def region(seed: int, height: int, width: int) -> Mask:
    return np.random.default_rng(seed).random((height, width)) < 0.3


BOXES = [(0, 0, 1, 1), (0.25, 0, 0.75, 1), (-0.25, 0, 1.25, 1), (0.2, -0.5, 0.8, 0.5), (0.1, 0.3, 1, 1.2)]


# --- one answer ---


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(3, 5), (4, 2), (1, 1)])
def test_share_and_chance_are_sums_over_points(box: tuple[float, float, float, float], shape: tuple[int, int]) -> None:
    attention = {"a": Attention(grid(1, *shape), box), "b": Attention(grid(2, 2, 4))}
    gaze = {"a": region(3, 7, 11), "b": region(4, 4, 6)}
    found = score(attention, gaze)
    sums = np.sum([by_points(attention[camera], gaze[camera]) for camera in gaze], axis=0)
    assert found.share == pytest.approx(sums[0] / sums[1], rel=1e-5)
    even = {camera: replace(given, weights=np.ones_like(given.weights)) for camera, given in attention.items()}
    sums = np.sum([by_points(even[camera], gaze[camera]) for camera in gaze], axis=0)
    assert found.chance == pytest.approx(sums[0] / sums[1], rel=1e-5)


def test_numbers_of_a_small_case_by_hand() -> None:
    weights = np.float32([[0.1, 0.4], [0.2, 0.1]])
    mask = np.zeros((4, 4), bool)
    mask[0, 2:], mask[2, 0] = True, True  # half of the second cell, a quarter of the third
    assert score({"eye": Attention(weights)}, {"eye": mask}) == Grounding(
        pytest.approx((0.4 / 2 + 0.2 / 4) / 0.8), pytest.approx(3 / 16), False
    )
    mask[1, 3] = True
    assert score({"eye": Attention(weights)}, {"eye": mask}).hit is True


@pytest.mark.parametrize("box", BOXES)
def test_even_attention_has_the_share_of_chance(box: tuple[float, float, float, float]) -> None:
    attention = {
        "static": Attention(np.full((4, 5), 1 / 40, np.float32), box),
        "wrist": Attention(np.full((4, 5), 1 / 40, np.float32)),
    }
    found = score(attention, {"static": region(0, 20, 20), "wrist": region(1, 8, 8)})
    assert found.share == pytest.approx(found.chance, rel=1e-6)


def test_a_small_picture_of_as_many_cells_counts_as_much() -> None:
    cells = {name: Attention(np.full((2, 2), 1 / 8, np.float32)) for name in ("static", "wrist")}
    gaze = {"static": np.zeros((200, 200), bool), "wrist": np.ones((84, 84), bool)}
    assert score(cells, gaze).chance == pytest.approx(0.5)


def test_the_point_is_the_first_heaviest_cell_centred_in_a_picture() -> None:
    everywhere = {"a": np.ones((6, 6), bool), "b": np.zeros((6, 6), bool)}
    a, b = Attention(np.float32([[0.1, 0.2]])), Attention(np.float32([[0.2]]))
    assert score({"a": a, "b": b}, everywhere).hit is True
    assert score({"b": b, "a": a}, everywhere).hit is False
    outside = Attention(np.float32([[0.6, 0.1]]), (-0.6, 0.0, 1.0, 1.0))  # the first cell ends at 0.2
    assert score({"a": a, "b": outside}, everywhere).hit is True
    half = np.zeros((6, 6), bool)
    half[:, 3:] = True
    assert [score({"a": Attention(np.float32([[0.1, 0.2, 0.1]]), box)}, {"a": half}).hit for box in BOXES[:1]] == [True]
    assert score({"a": Attention(np.float32([[0.1, 0.2, 0.1]]), (0, 0, 0.9, 1))}, {"a": half}).hit is False


def test_what_is_not_in_view_has_no_value() -> None:
    eye = {"eye": Attention(grid(0, 3, 3))}
    for gaze in ({"eye": np.zeros((6, 6), bool)}, {}, {"other": np.ones((6, 6), bool)}):
        assert score(eye, gaze) == Grounding(None, 0.0, None)
    nothing = score({"eye": Attention(np.zeros((2, 2), np.float32))}, {"eye": np.ones((6, 6), bool)})
    assert nothing == Grounding(None, 1.0, None)
    beside = score({"eye": Attention(grid(0, 2, 2), (1.5, 0, 2, 1))}, {"eye": np.ones((6, 6), bool)})
    assert beside == Grounding(None, 0.0, None)


# --- what a policy may say ---

SPEC = PolicySpec("walker", fakes.ACTION, (fakes.CAMERA,))


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (np.zeros((2, 2)), r"that is ndarray of shape \(2, 2\), expected a mapping of camera names to Attention"),
        (None, "that is NoneType, expected a mapping"),
        ({"eye": np.zeros((2, 2), np.float32)}, "expected a mapping of camera names to Attention"),
        ({"nose": Attention(grid(0, 2, 2))}, "to 'nose', expected cameras it reads: eye"),
        ({"eye": Attention(np.zeros(3, np.float32))}, r"to eye of ndarray of shape \(3,\) and dtype float32, expected"),
        ({"eye": Attention(np.zeros((0, 3), np.float32))}, r"of shape \(0, 3\)"),
        ({"eye": Attention(np.ones((2, 2), int))}, "dtype int64, expected float32"),
        ({"eye": Attention(np.float32([[0.5, -0.1]]))}, "with the weight -0.1, expected finite numbers of at least 0"),
        ({"eye": Attention(np.float32([[0.5, np.nan]]))}, "with the weight nan"),
        ({"eye": Attention(np.float32([[0.5, 0.6]]))}, "sums to 1.1 over its pictures, expected at most 1; divide"),
        (
            {"eye": Attention(grid(0, 2, 2), (0.5, 0, 0.5, 1))},
            r"with the box \(0.5, 0, 0.5, 1\), expected left < right",
        ),
        ({"eye": Attention(grid(0, 2, 2), (0, 0, 1))}, r"with the box \(0, 0, 1\)"),
    ],
)
def test_an_attention_that_means_nothing_is_refused(attention: object, said: str) -> None:
    chunk = ActionChunk(np.zeros((1, 2), np.float32), attention=attention)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"^The policy 'walker' returned an attention.*{said}"):
        check_chunks([chunk], 1, SPEC)


def test_only_what_lies_inside_the_pictures_must_sum_to_one() -> None:
    padded = Attention(np.full((1, 4), 0.45), (-0.5, 0.0, 1.5, 1.0))
    checked = check_chunks([ActionChunk(np.zeros((1, 2), np.float32), attention={"eye": padded})], 1, SPEC)
    assert inside_total(checked[0].attention["eye"]) == pytest.approx(0.9)
    assert checked[0].attention["eye"].weights.dtype == np.float32


# --- a run ---


class GazeToy(fakes.ToyEnv):
    """A toy with something in view of its eye; there is nothing of it while `steps` is 4 to 7."""

    def gaze(self) -> dict[str, Mask]:
        mask = np.zeros((4, 4), bool)
        mask[: 1 + self.trial % 3, :2] = not 4 <= self.steps < 8
        return {"eye": mask}

    @property
    def attended(self) -> tuple[str, ...]:
        return ()

    def shots(self) -> Iterator[Shot]:
        for step in self.reel[:: self.every]:
            mask = np.zeros((64, 64), bool)
            mask[8:40, 8:40] = True
            seen = self.past[step]
            grey = np.full((64, 64, 3), 90, np.uint8)
            yield Shot(step, {"eye": grey}, {"eye": mask}, (), seen.state, np.zeros(7), np.zeros(3), seen.instruction)


def suite(name: str = "seen toy", max_steps: int = 18) -> Suite:
    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return GazeToy(task, cameras, None, "raise")

    return replace(fakes.suite(name, max_steps), make_env=make_env)


class Gazer(fakes.Walker):
    """A Walker that tells where it looks: at random, from the observation's seed."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [
            replace(chunk, attention={"eye": Attention(grid(observation.seed, 2, 2), (0.0, 0.0, 1.0, 1.0))})
            for chunk, observation in zip(super().infer(observations), observations, strict=True)
        ]


def played(out: Path, policy: str = "test_grounding:Gazer", **changes: object) -> Path:
    settings = {"suite": "test_grounding:suite", "episodes": 3, "policy_args": ("speed=0.4",), **changes}
    run(RunConfig(policy=policy, out=str(out), **settings))  # type: ignore[arg-type]
    return out


@pytest.mark.slow
def test_workers_and_one_process_ground_alike(tmp_path: Path) -> None:
    alone = read_inferences(played(tmp_path / "alone"))
    pooled = read_inferences(played(tmp_path / "pooled", workers="2", batch_size=2))
    keys = ["task", "trial", "inference"]
    one, two = (frame.sort_values(keys)[[*keys, *COLUMNS]].reset_index(drop=True) for frame in (alone, pooled))
    np.testing.assert_array_equal(one[list(COLUMNS)], two[list(COLUMNS)])
    assert len(one) == len(two) > 20
    assert one["grounding_share"].isna().tolist() == (one["inference"] == 1).tolist()
    assert one["grounding_share"].nunique() == len(one) - 6


def test_stored_numbers_are_those_of_what_was_asked_and_seen() -> None:
    env = suite().make_env(suite().tasks[0], ("eye",))
    actor = Actor(LocalPolicy(Gazer(suite())), RecedingHorizon())
    done = run_episode(env, actor, Episode("seen toy", "east", 2, 0), 10.0, 0.0)
    for call_ in done.inferences:
        assert call_.grounding is not None
        assert call_.grounding.chance == (0 if call_.inference == 1 else 3 * 2 / 16)
    assert actor.attention == []


def test_a_suite_that_does_not_say_where_things_are_gives_no_value(tmp_path: Path) -> None:
    found = read_inferences(played(tmp_path, suite="fakes:suite"))
    assert found["grounding_share"].isna().all()
    assert (found["grounding_chance"] == 0).all()
    row = tables.load_summary(tmp_path).grounding[-1]
    assert (row.episodes, row.inferences, row.without, row.share) == (0, 0, len(found), None)


def test_without_attention_nothing_is_asked_stored_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: GazeToy) -> dict[str, Mask]:
        raise AssertionError("asked without need")

    monkeypatch.setattr(GazeToy, "gaze", never)
    monkeypatch.setattr(GazeToy, "shots", never)
    out = played(tmp_path / "run", policy="fakes:Walker", video="all")
    assert not set(read_inferences(out)) & set(COLUMNS)
    summary = tables.load_summary(out)
    assert summary.grounding == ()
    assert "attention" not in tables.render_text(summary)
    assert "pointing game" not in write_report([out], tmp_path / "report").read_text()
    assert {film.suffix for film in (out / "videos").iterdir()} == {".mp4", ".png"}


def test_inferences_of_runs_from_before_read_on(tmp_path: Path) -> None:
    killed = RunStore.open(tmp_path, INFO)
    killed.append(episode("lift", 0, True), [call("lift", 0, 0, 5.0)])
    killed._lock.release()
    spool = as_before(tmp_path) / "inferences.partial.jsonl"
    line = json.loads(spool.read_text())
    del line["inferences"][0]["grounding"]
    spool.write_text(json.dumps(line) + "\n")
    with RunStore.open(tmp_path, INFO) as store:
        store.append(episode("lift", 1, True), [grounded("lift", 1, 0, (0.2, 0.1, True))])
    found = read_inferences(tmp_path)
    assert found["grounding_share"].tolist() == pytest.approx([np.nan, 0.2], nan_ok=True)
    assert found["grounding_hit"].tolist() == pytest.approx([np.nan, 1.0], nan_ok=True)
    assert tables.load_summary(tmp_path).grounding[0].inferences == 1


# --- tables ---


Values = tuple[float | None, float, bool | None]  # share, chance, hit
Told = Mapping[str, Sequence[Sequence[Values]]]
TOLD: Told = {
    "lift": [
        [(0.1, 0.05, False), (0.3, 0.15, True), (None, 0.0, None)],
        [(0.4, 0.1, True)],
        [(0.2, 0.2, False), (0.2, 0.1, True)],
        [(None, 0.0, None)],
    ],
    "door": [[(0.5, 0.25, True)]],
}


def grounded(task: str, trial: int, number: int, values: Values) -> Inference:
    return replace(call(task, trial, 0, 5.0), inference=number, grounding=Grounding(*values))


def told_run(path: Path, told: Told = TOLD) -> Path:
    with RunStore.open(path, replace(INFO, identity={**INFO.identity, "policy": path.name})) as store:
        for task, trials in told.items():
            for trial, calls in enumerate(trials):
                rows = [grounded(task, trial, number, values) for number, values in enumerate(calls)]
                store.append(replace(episode(task, trial, True), inferences=len(rows)), rows)
    return path


def test_rows_are_means_over_episodes_with_students_t(tmp_path: Path) -> None:
    lift, door, total = tables.load_summary(told_run(tmp_path / "a")).grounding
    assert (lift.task, lift.episodes, lift.inferences, lift.without) == ("lift", 3, 5, 2)
    assert (total.task, total.episodes, total.inferences, total.without) == ("overall", 4, 6, 2)
    share, chance = np.array([0.2, 0.4, 0.2]), np.array([0.1, 0.1, 0.15])
    for found, values in ((lift.share, share), (lift.chance, chance)):
        expected = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        assert found is not None
        assert found.mean == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((max(0, expected[0]), expected[1]))
    assert door.share is not None
    assert (door.share.mean, door.share.low, door.share.high) == (0.5, None, None)
    assert total.hits is not None
    assert total.hits.mean == pytest.approx(np.mean([0.5, 1, 0.5, 1]))


def test_the_ratio_of_means_has_the_interval_of_its_linear_part(tmp_path: Path) -> None:
    ratio = tables.load_summary(told_run(tmp_path / "a")).grounding[0].ratio
    share, chance = np.array([0.2, 0.4, 0.2]), np.array([0.1, 0.1, 0.15])
    expected = share.sum() / chance.sum()
    error = np.sqrt(((share - expected * chance) ** 2).sum() / 2 / 3) / chance.mean()
    assert ratio is not None
    assert ratio.mean == pytest.approx(expected)
    assert ratio.high == pytest.approx(expected + stats.t.ppf(0.975, 2) * error)
    assert ratio.low == pytest.approx(max(0.0, expected - stats.t.ppf(0.975, 2) * error))


def test_hits_of_episodes_that_agree_are_as_sure_as_so_many_single_points(tmp_path: Path) -> None:
    told: Told = {"lift": [[(0.1, 0.1, False)] * 50] * 3}
    hits = tables.load_summary(told_run(tmp_path / "a", told)).grounding[0].hits
    assert hits is not None
    assert (hits.mean, hits.low) == (0.0, 0.0)
    assert hits.high == pytest.approx(stats.binomtest(0, 3).proportion_ci(0.95, "exact").high)


def test_show_prints_the_rows_in_a_hundred_columns_and_as_json(tmp_path: Path) -> None:
    summary = tables.load_summary(told_run(tmp_path / "a", {f"{task}_{'x' * 60}": told for task, told in TOLD.items()}))
    lines = tables.render_text(summary).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("attention within"))
    assert max(map(len, lines[place : place + 7])) <= 100
    assert "33.33" not in lines[place + 3]
    assert lines[place + 3].split("|")[1].strip().startswith("26.67 (")
    assert lines[place + 3].endswith("5 (+2)")
    assert "left out: 2 inferences with nothing of it in view (+)" in lines
    found = json.loads(json.dumps(tables.to_json(summary)))["grounding"]
    assert found[0]["share"]["mean"] == pytest.approx(0.8 / 3)


def test_tasks_without_attention_have_no_row(tmp_path: Path) -> None:
    frame = read_inferences(told_run(tmp_path / "a"))
    assert [row.task for row in grounding_rows(frame, ["door", "other"])] == ["door"]
    assert grounding_rows(frame.drop(columns=list(COLUMNS)), ["door"]) == ()


def test_two_policies_are_compared_on_the_episodes_in_which_both_have_a_value(tmp_path: Path) -> None:
    other: Told = {"lift": [[(0.1, 0.1, True)], [(0.1, 0.1, True)], [(None, 0.1, None)], [(0.9, 0.1, True)]]}
    other |= {"door": [[(0.7, 0.1, False)]]}
    found = compare(told_run(tmp_path / "a"), told_run(tmp_path / "b", other))
    measures = [(one.measure, one.task, one.pairs) for one in found.grounding]
    assert measures == [(m, t, n) for m in ("share", "hit") for t, n in (("lift", 2), ("door", 1), ("overall", 3))]
    lift, door, total, *hits = found.grounding
    differences = np.array([0.2 - 0.1, 0.4 - 0.1, 0.5 - 0.7])
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (total.mean_a, total.mean_b) == pytest.approx((1.1 / 3, 0.9 / 3))
    assert (total.difference, total.low, total.high) == pytest.approx((differences.mean(), *expected))
    assert (door.difference, door.low, door.high) == (pytest.approx(-0.2), None, None)
    assert [one.difference for one in hits] == pytest.approx([-0.25, 1.0, (-0.5 + 0 + 1) / 3])
    assert lift.low == -1.0  # the t interval of two pairs is wider than a difference of shares can be
    for said in (render_text(found), render_markdown(found)):
        assert "share, door" in said
        assert "-20.0 pp" in said


def test_a_policy_that_tells_nothing_is_compared_without_attention(tmp_path: Path) -> None:
    silent = told_run(tmp_path / "b", {"lift": [[(None, 0.0, None)]] * 4})
    assert compare(told_run(tmp_path / "a"), silent).grounding == ()


def test_the_report_of_two_runs_shows_both_side_by_side(tmp_path: Path) -> None:
    runs = [told_run(tmp_path / name) for name in ("looks", "stares")]
    page = write_report(runs, tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Grounding: what the policies looked at" in page
    rows = [line for line in text.split("### Grounding")[1].splitlines() if line.startswith("| lift")]
    assert [line.split("|")[2].strip() for line in rows] == ["looks", "stares"]
    assert [line.split("|")[6].strip()[:7] for line in rows] == ["26.67 ("] * 2
    assert list((tmp_path / "report" / "figures").glob("*_grounding.svg"))


def test_curves_are_means_over_episodes_in_stretches_of_the_longest(tmp_path: Path) -> None:
    found = tables.load(told_run(tmp_path / "a")), read_inferences(tmp_path / "a")
    entrant = Entrant("a", "a", "", (), (), *found, ())
    curve = grounding_curves([entrant])  # 7 steps per inference: of three, the last at step 14 has no value
    width = (7 + 1) / STRETCHES
    assert curve["step"].tolist() == pytest.approx([width / 2, 17.5 * width])
    assert curve["share"].tolist() == pytest.approx([(0.1 + 0.4 + 0.2 + 0.5) / 4, (0.3 + 0.2) / 2])
    assert curve["chance"].tolist() == pytest.approx([(0.05 + 0.1 + 0.2 + 0.25) / 4, (0.15 + 0.1) / 2])
    half = stats.t.ppf(0.975, 1) * stats.sem([0.3, 0.2])
    assert curve["high"].tolist()[1] == pytest.approx(0.25 + half)


# --- films ---


def test_heat_grows_by_doublings_and_even_attention_shows_none() -> None:
    image = np.full((4, 8, 3), 100, np.uint8)
    np.testing.assert_array_equal(heated(image, Attention(np.full((2, 2), 0.1, np.float32)), 0.1), image)
    np.testing.assert_array_equal(heated(image, Attention(np.zeros((2, 2), np.float32)), 0.0), image)
    hot = heated(image, Attention(np.float32([[0.1, 0.2, 0.8, 6.4]])), 0.1)[0, ::2].astype(int)
    share = (hot[:, 1] - 100) / (HEAT[1] - 100)
    np.testing.assert_allclose(share, [0, 0.25, 0.75, 0.75], atol=0.01)


def test_heat_lies_where_the_box_says() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    hot = heated(image, Attention(np.float32([[1.0]]), (0.5, -1.0, 2.0, 0.5)), 0.01).any(axis=2)
    expected = np.zeros((10, 20), bool)
    expected[:5, 10:] = True
    np.testing.assert_array_equal(hot, expected)


def test_the_outline_is_the_inner_border() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:5, 2:7] = True
    line = (outlined(np.zeros((8, 8, 3), np.uint8), mask) == LINE).all(axis=2)
    inner = np.zeros((8, 8), bool)
    inner[1:4, 3:6] = True
    np.testing.assert_array_equal(line, mask & ~inner)


def test_a_frame_shows_the_latest_answer() -> None:
    answers = [{"eye": Attention(np.float32([[1, 0]]))}, {"eye": Attention(np.float32([[0, 1]]))}]
    grey = np.full((4, 4, 3), 90, np.uint8)
    shots = [(Frame(step, {"eye": grey, "other": grey}), {}) for step in (0, 4, 5, 8, 12)]
    left = []
    for frame in overlaid(shots, [0, 5], answers):
        left.append(bool((frame.images["eye"][:, 0] != grey[:, 0]).any()))
        np.testing.assert_array_equal(frame.images["other"], grey)
    assert left == [True, True, False, False, False]


def test_a_film_of_a_policy_that_tells_shows_heat_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_bench import video

    shown = []
    compose = video.compose
    monkeypatch.setattr(video, "compose", lambda *given: shown.append(compose(*given)) or shown[-1])
    played(tmp_path / "run", video="all", task=("east",), episodes=1)
    pictures = [picture[:256:4, :256:4] for picture in shown]  # 64 px, shown four times as large
    told = [(picture == LINE).all(axis=2).sum() for picture in pictures]
    assert set(told) == {4 * 31}
    assert any((picture[..., 0] > 100).any() for picture in pictures)
    band = shown[0][256:].reshape(-1, 3).tolist()
    assert list(HEAT) in band
    assert list(LINE) in band


# --- simulators ---


@pytest.mark.sim
@pytest.mark.parametrize(
    ("name", "arguments", "task"),
    [
        ("robosuite", ("resolution=64",), "Lift"),
        slow("calvin_tasks", (), "open_drawer"),
        slow("tiny", (), "lift_the_cube"),
    ],
)
def test_gaze_is_the_mask_of_the_last_picture_and_leaves_the_simulator(
    name: str, arguments: tuple[str, ...], task: str
) -> None:
    made = make_suite(name, arguments)
    cameras = [camera.name for camera in made.cameras]
    env = made.make_env(made.task(task), cameras)
    assert isinstance(env, Recorder)
    env.record(1)
    env.reset_trial(0, 0)
    steps = np.zeros((3, 7), np.float32)
    steps[:, 2] = -1
    masks = []
    for _ in range(2):
        before = env.fingerprint()
        masks.append(env.gaze())
        assert env.fingerprint() == before
        pictures = env.advance(steps).observation.images
    masks.append(env.gaze())
    shots = list(env.shots())[::3]
    assert [shot.step for shot in shots] == [0, 3, 6]
    for seen, shot in zip(masks, shots, strict=True):
        assert list(seen) == cameras
        for camera in cameras:
            np.testing.assert_array_equal(seen[camera], shot.masks[camera])
    for camera in cameras:
        np.testing.assert_array_equal(pictures[camera], shots[-1].images[camera])
    assert any(mask.any() for mask in masks[0].values())
    env.close()


@pytest.mark.sim
def test_a_tiny_reconvla_is_grounded_on_lift_and_nothing_else_changes() -> None:
    pytest.importorskip("transformers", reason="ReconVLA's vision tower is transformers'")
    from vla_bench.policies.reconvla.policy import ReconVLA

    made = make_suite("robosuite", ("resolution=64",))
    task = replace(made.task("Lift"), max_steps=15)
    env = made.make_env(task, [camera.name for camera in made.cameras])
    rollouts = []
    for attention in (False, True):
        actor = Actor(LocalPolicy(ReconVLA(made, size="tiny", attention=attention)), RecedingHorizon())
        rollouts.append(run_episode(env, actor, Episode("robosuite", "Lift", 0, 0), 20.0, 0.0))
    env.close()
    plain, told = rollouts
    assert told.result.final_fingerprint == plain.result.final_fingerprint
    assert [call.grounding for call in plain.inferences] == [None] * 3
    for inference in told.inferences:
        found = inference.grounding
        assert found is not None
        assert found.share is not None
        assert 0.5 < found.share / found.chance < 2, "untrained weights look everywhere"
        assert 0.001 < found.chance < 0.05


def test_cameras_of_other_sizes_are_told_apart() -> None:
    both = PolicySpec("walker", fakes.ACTION, (fakes.CAMERA, Camera("hand", 8, 8)))
    told = {"hand": Attention(grid(0, 2, 2)), "eye": Attention(grid(1, 3, 3))}
    checked = check_chunks([ActionChunk(np.zeros((1, 2), np.float32), attention=told)], 1, both)[0].attention
    assert {name: given.weights.shape for name, given in checked.items()} == {"hand": (2, 2), "eye": (3, 3)}
