"""Films: they show the episode, and they change nothing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from marks import slow
from PIL import Image

from vla_bench.config import RunConfig
from vla_bench.errors import UsageError
from vla_bench.runner import run
from vla_bench.store.runs import read_episodes
from vla_bench.types import Frame
from vla_bench.video import EVERY, Caption, chunk_starts, compose, write_film

ABOUT = Caption("put both moka pots on the stove and then do it once more, for the camera", True, 40, [0, 16, 32], 20.0)
TIMINGS = {"latency_mean_ms", "latency_max_ms", "wall_s", "setup_s", "physics_s", "render_s", "policy_s", "video"}


def frames(steps: int) -> list[Frame]:
    return [
        Frame(step, {"a": np.full((64, 64, 3), step, np.uint8), "b": np.zeros((64, 64, 3), np.uint8)})
        for step in range(0, steps + 1, EVERY)
    ]


def config(out: Path, video: str, **changes: object) -> RunConfig:
    settings = {
        "policy": "fakes:Walker",
        "suite": "fakes:suite",
        "episodes": 2,
        "policy_args": ("speed=0.3",),
        **changes,
    }
    return RunConfig(out=str(out), video=video, **settings)  # type: ignore[arg-type]


def rows(out: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in asdict(row).items() if k not in TIMINGS} for row in read_episodes(out)]


def test_chunks_start_where_the_policy_was_asked() -> None:
    assert chunk_starts([16, 16, 8]) == [0, 16, 32]
    assert chunk_starts([]) == []


def test_a_frame_holds_both_cameras_and_a_caption() -> None:
    picture = compose(frames(40)[5], ABOUT)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (picture[:256, :256] == 20).all()
    assert (picture[:256, 256:512] == 0).all()
    assert picture[258:].std() > 0


def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_ones_left_alone() -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (side, side, 3), np.uint8) for side in (64, 200))
    enlarged = compose(Frame(0, {"a": small}), ABOUT)[:256, :256]
    np.testing.assert_array_equal(enlarged, np.kron(small, np.ones((4, 4, 1), np.uint8)))
    np.testing.assert_array_equal(compose(Frame(0, {"a": large}), ABOUT)[:200, :200], large)


def test_the_timeline_fills_and_the_verdict_comes_last() -> None:
    first, last = (compose(frames(40)[index], ABOUT)[256:].astype(int) for index in (0, -1))
    blue = [int(((band[..., 2] - band[..., 0]) > 100).sum()) for band in (first, last)]
    green = [int(((band[..., 1] - band[..., 0]) > 60).sum()) for band in (first, last)]
    assert blue[0] < blue[1]
    assert green[0] == 0 < green[1]


def test_a_film_has_every_frame_and_a_strip_of_eight(tmp_path: Path) -> None:
    write_film(tmp_path / "deep" / "film.mp4", iter(frames(40)), ABOUT)
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "deep" / "film.mp4"))
    assert count == 11
    assert seconds == pytest.approx(2.2, abs=0.21)
    assert Image.open(tmp_path / "deep" / "film.png").width == 8 * compose(frames(2)[0], ABOUT).shape[1] // 2


def test_a_film_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").mkdir()
    with pytest.raises(UsageError, match=r"Could not write to .* or --video none"):
        write_film(tmp_path / "film.mp4", iter(frames(40)), ABOUT)


@pytest.mark.parametrize(
    ("mode", "workers"),
    [("all", "2"), ("failures", "1"), *(slow(*each) for each in [("all", "1"), ("failures", "2"), ("none", "2")])],
)
def test_filming_changes_no_result(tmp_path: Path, mode: str, workers: str) -> None:
    run(config(tmp_path / "filmed", mode, workers=workers, suite_args=("max_steps=14",)))
    run(config(tmp_path / "plain", "none", suite_args=("max_steps=14",)))
    filmed = sorted(read_episodes(tmp_path / "filmed"), key=lambda row: (row.task, row.trial))
    plain = sorted(rows(tmp_path / "plain"), key=lambda row: (str(row["task"]), str(row["trial"])))
    assert [{k: v for k, v in asdict(row).items() if k not in TIMINGS} for row in filmed] == plain
    assert {row.success for row in filmed} == {True, False}
    for row in filmed:
        assert bool(row.video) == (mode == "all" or (mode == "failures" and not row.success))
        assert not row.video or (tmp_path / "filmed" / row.video).stat().st_size > 0
