"""Training: what is learnt from, one step after another, stopping and going on, and the checkpoint at the end."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store import file_size_limit

from vla_bench.cli import main
from vla_bench.data.demonstrations import Demonstration, View, box_of, encode
from vla_bench.data.hdf5 import write_hdf5
from vla_bench.data.lerobot import write_lerobot
from vla_bench.data.recorded import HDF5, LEROBOT
from vla_bench.errors import EXIT_USAGE, UsageError
from vla_bench.registry import make_policy
from vla_bench.training.data import WHOLE, TrainingData, read_training_data
from vla_bench.training.learning import Recipe, Samples, Scales
from vla_bench.training.train import TrainConfig, Trained, train
from vla_bench.types import ActionSpec, Camera, Episode, Observation, Suite, Task

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
h5py = pytest.importorskip("h5py", reason="needs vla-bench[data]")
parquet = pytest.importorskip("pyarrow.parquet")

from vla_bench.policies.torch.augmentation import box_in_centre, centre, jittered, randomly_cropped  # noqa: E402
from vla_bench.policies.torch.checkpoints import read_ours  # noqa: E402
from vla_bench.policies.torch.training import Trainer  # noqa: E402

MODELS = ("pi0", "reconvla", "openvla", "diffusion_policy")
SIDE = 64
ACTION = ActionSpec(7, "delta_pose", "axis_angle", "close_positive", scale_m=0.05, scale_rad=0.5)
CAMERAS = (Camera("front", SIDE, SIDE), Camera("wrist", SIDE, SIDE))
STATE = tuple(f"number {index}" for index in range(8))


def nothing(*_: object) -> Any:
    raise AssertionError("no simulator is needed here")


SCHOOL = "test_train:suite"


def suite(name: str = SCHOOL) -> Suite:
    tasks = tuple(Task(task, (f"go {task}",), 40, 10) for task in ("east", "west"))
    return Suite(name, "1", tasks, ACTION, CAMERAS, STATE, 20.0, nothing, dict)


def other_school(name: str = "") -> Suite:
    return replace(suite(name), action=replace(ACTION, gripper="close_negative"))


def demonstration(task: str, trial: int, steps: int) -> Demonstration:
    rng = np.random.default_rng([trial, len(task), steps])
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    return Demonstration(
        episode=Episode(SCHOOL, task, trial, 0),
        control_hz=20.0,
        scene_fingerprint="scene",
        final_fingerprint="end",
        actions=actions,
        intended=actions / 2,
        states=np.cumsum(rng.normal(size=(steps, 8)), axis=0).astype(np.float32),
        joints=np.zeros((steps, 7)),
        physics=np.zeros((steps, 3)),
        instructions=(f"go {task}",) * steps,
        attended=("ball",) * steps,
        views={camera.name: view(rng, steps, camera.name) for camera in CAMERAS},
    )


def view(rng: np.random.Generator, steps: int, name: str) -> View:
    """Noise; in the first camera a mask that moves, and is hidden at step 1."""
    masks = np.zeros((steps, SIDE, SIDE), bool)
    for step in range(steps):
        masks[step, 8 + step : 20, 4:30] = step != 1
    pictures = rng.integers(0, 256, (steps, SIDE, SIDE, 3), np.uint8)
    boxes = np.array([box_of(mask) for mask in masks])
    return View(SIDE, SIDE, tuple(map(encode, pictures)), np.packbits(masks.reshape(steps, -1), axis=1), boxes)


DEMOS = [demonstration(task, trial, 6 + trial) for task in ("east", "west") for trial in range(4)]


def write(folder: Path, demos: list[Demonstration], which: str) -> str:
    if which == HDF5:
        for task in suite().tasks:
            write_hdf5(folder / HDF5, suite(), task, [demo for demo in demos if demo.episode.task == task.name])
    else:
        write_lerobot(folder / LEROBOT, suite(), demos)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data"), DEMOS, HDF5)


@pytest.fixture(scope="module")
def data(folder: str) -> TrainingData:
    return read_training_data([folder])


# What is learnt from


@pytest.mark.parametrize("which", [HDF5, LEROBOT])
def test_what_was_recorded_is_read_from_both_formats(which: str, tmp_path: Path, data: TrainingData) -> None:
    read = read_training_data([write(tmp_path, DEMOS, which)])
    assert read.sha256 == data.sha256
    assert [one.episode for one in read.trajectories] == [demo.episode for demo in DEMOS]
    for one, demo in zip(read.trajectories, DEMOS, strict=True):
        np.testing.assert_array_equal(one.actions, demo.intended)
        np.testing.assert_array_equal(one.states, demo.states)
        assert one.instructions == demo.instructions
        for name, seen in demo.views.items():
            np.testing.assert_array_equal(one.images[name], seen.images())
        np.testing.assert_allclose(one.boxes["front"][0] * SIDE, demo.views["front"].boxes[0])
        np.testing.assert_array_equal(one.boxes["front"][1], WHOLE)


@pytest.mark.parametrize("which", [HDF5, LEROBOT])
def test_what_was_executed_is_learnt_where_the_files_do_not_say_what_was_intended(which: str, tmp_path: Path) -> None:
    folder = Path(write(tmp_path, DEMOS, which))
    forget_intentions(folder / which)
    for one, demo in zip(read_training_data([str(folder)]).trajectories, DEMOS, strict=True):
        np.testing.assert_array_equal(one.actions, demo.actions)


def forget_intentions(folder: Path) -> None:
    """Leave the files as others write them."""
    for file in folder.glob("*.hdf5"):
        with h5py.File(file, "r+") as archive:
            for demo in archive["data"].values():
                del demo["intended_actions"]
    for file in folder.glob("data/*/*.parquet"):
        parquet.write_table(parquet.read_table(file).drop_columns("intended_action"), file)


def test_a_moment_has_its_past_and_its_future(data: TrainingData) -> None:
    """Every one of them, held against the recording step by step."""
    moments, _ = data.split(0.0)
    history, horizon = 3, 8
    samples = moments.samples(np.arange(len(moments)), history, horizon)
    row = 0
    for demo in DEMOS:
        last = len(demo) - 1
        for now in range(len(demo)):
            for back in range(history):
                step = max(0, now - back)
                np.testing.assert_array_equal(samples.state[row, history - 1 - back], demo.states[step])
                shown = samples.images["wrist"][row, history - 1 - back]
                np.testing.assert_array_equal(shown, demo.views["wrist"].images()[step])
            for ahead in range(horizon):
                step = now - (history - 1) + ahead
                np.testing.assert_array_equal(samples.actions[row, ahead], demo.intended[min(max(step, 0), last)])
                assert samples.valid[row, ahead] == (step <= last)
            assert samples.instructions[row] == demo.instructions[now]
            row += 1
    assert row == len(moments) == data.frames


@pytest.mark.parametrize("which", [HDF5, LEROBOT])
def test_a_window_ends_where_the_instruction_does(which: str, tmp_path: Path) -> None:
    """Four steps of one instruction, three of a second, one of a third; two steps back, four ahead of the oldest."""
    chain = replace(demonstration("east", 1, 8), instructions=(*["open"] * 4, *["lift"] * 3, "push"))
    data = read_training_data([write(tmp_path, [chain], which)])
    moments, _ = data.split(0.0)
    samples = moments.samples(np.arange(8), 3, 6)
    past = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [4, 4, 4], [4, 4, 5], [4, 5, 6], [7, 7, 7]]
    future = [
        [0, 0, 0, 1, 2, 3],
        [0, 0, 1, 2, 3, 3],
        [0, 1, 2, 3, 3, 3],
        [1, 2, 3, 3, 3, 3],
        [4, 4, 4, 5, 6, 6],
        [4, 4, 5, 6, 6, 6],
        [4, 5, 6, 6, 6, 6],
        [7, 7, 7, 7, 7, 7],
    ]
    ahead = [6, 5, 4, 3, 5, 4, 3, 3]
    np.testing.assert_array_equal(samples.state, chain.states[past])
    np.testing.assert_array_equal(samples.images["wrist"], chain.views["wrist"].images()[past])
    np.testing.assert_array_equal(samples.actions, chain.intended[future])
    np.testing.assert_array_equal(samples.valid, np.arange(6) < np.array(ahead)[:, None])
    assert tuple(samples.instructions) == chain.instructions


def test_some_episodes_of_every_task_are_held_out(data: TrainingData) -> None:
    learnt, held = data.split(0.25)
    assert {one.episode.task for one in held.trajectories} == {"east", "west"}
    assert len(held.trajectories) == 2
    assert sorted([*map(id, learnt.trajectories), *map(id, held.trajectories)]) == sorted(map(id, data.trajectories))
    assert len(data.split(0.0)[1]) == 0


def test_batches_are_drawn_by_seed_and_step(data: TrainingData) -> None:
    moments, _ = data.split(0.0)
    first, again, later, other = (
        moments.draw(*given, 1, 1).state for given in [(5, 8, 0), (5, 8, 0), (6, 8, 0), (5, 8, 1)]
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("demos", "suite_name", "said"),
    [
        ([], None, "no successful episode"),
        (DEMOS[:1], "test_train:other_school", "other actions"),
        (DEMOS[:1], "school", "Unknown suite 'school'"),
    ],
)
def test_data_that_do_not_fit_are_one_sentence(
    demos: list[Demonstration], suite_name: str | None, said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, demos, LEROBOT if demos else HDF5)
    with pytest.raises(UsageError, match=said) as error:
        read_training_data([folder], suite_name)
    assert "\n" not in str(error.value)


def test_missing_and_doubled_data_are_one_sentence(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are no demonstrations"):
        read_training_data([str(tmp_path)])
    with pytest.raises(UsageError, match="8 episodes are there twice"):
        read_training_data([folder, folder])


@pytest.mark.parametrize("what", ["states", "intended", "views"])
def test_the_same_episode_under_other_arguments_of_the_suite_is_another_demonstration(
    what: str, folder: str, tmp_path: Path
) -> None:
    other = demonstration("east", 77, len(DEMOS[0]))
    demo = replace(DEMOS[0], **{what: getattr(other, what)})
    data = read_training_data([folder, write(tmp_path, [demo], HDF5)])
    assert len(data.trajectories) == len(DEMOS) + 1
    assert data.trajectories[-1].episode == data.trajectories[0].episode


def test_pictures_of_other_sizes_do_not_mix(folder: str, tmp_path: Path) -> None:
    small = np.zeros((3, 32, 32, 3), np.uint8)
    seen = View(32, 32, tuple(map(encode, small)), np.zeros((3, 128), np.uint8), np.full((3, 4), -1))
    demo = replace(demonstration("east", 9, 3), views={camera.name: seen for camera in CAMERAS})
    write_hdf5(tmp_path / HDF5, suite(), suite().tasks[0], [demo])
    with pytest.raises(UsageError, match="other cameras"):
        read_training_data([folder, str(tmp_path)])


# Hyper-parameters


def test_the_learning_rate_rises_and_falls_as_half_a_cosine() -> None:
    recipe = Recipe(110, 4, 2.0, warmup=10, final_share=0.1)
    rates = [recipe.rate(step) for step in range(111)]
    np.testing.assert_allclose(rates[:10], np.linspace(0.2, 2.0, 10))
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.1)  # half way between 2 and 0.2
    assert rates[110] == pytest.approx(0.2)
    assert all(later <= before for before, later in itertools.pairwise(rates[10:]))


def test_the_average_forgets_slower_and_slower() -> None:
    recipe = Recipe(10, 4, 1.0, 1)
    decays = [recipe.ema_decay(step) for step in (0, 1, 15, 10**6)]
    np.testing.assert_allclose(decays, [0.0, 1 - 2**-0.75, 1 - 16**-0.75, recipe.ema_max])


# Steps


def learner(name: str, data: TrainingData, recipe: Recipe | None = None, **changes: Any) -> tuple[Any, Trainer]:
    policy: Any = make_policy(name, data.suite, None, ["size=tiny", "device=cpu"])
    moments, _ = data.split(0.0)
    state, action = map(Scales.of, moments.numbers())
    chosen = replace(recipe or policy.recipe(), **changes)
    return policy, policy.learner(chosen, state, action, 0, 1)


def batch(policy: Any, data: TrainingData, step: int = 0, size: int = 4) -> Samples:
    history = policy.spec.history
    return data.split(0.0)[0].draw(step, size, 0, history, policy.spec.chunk + history - 1)


def test_the_average_is_what_its_definition_says(data: TrainingData) -> None:
    policy, taught = learner("diffusion_policy", data, warmup=1)
    name = "network.final_conv.1.weight"
    own = dict(policy.model.named_parameters())[name]
    expected = own.detach().clone().double()
    for step in range(3):
        taught.step(batch(policy, data, step))
        kept = taught.recipe.ema_decay(step)
        expected = kept * expected + (1 - kept) * own.detach().double()
    torch.testing.assert_close(taught.average[name].double(), expected, rtol=0, atol=1e-7)
    assert not torch.equal(own, taught.average[name])
    with taught.averaged():
        assert torch.equal(own, taught.average[name])
    assert not torch.equal(own, taught.average[name])


@pytest.mark.parametrize("name", MODELS)
def test_every_family_learns_a_batch(name: str, data: TrainingData) -> None:
    policy, taught = learner(name, data, learning_rate=2e-3, warmup=2, steps=14, jitter=0.0)
    policy.crop = 1.0
    given = batch(policy, data)
    before = taught.validate([given])["loss"]
    for _ in range(14):
        taught.step(given)
    assert taught.validate([given])["loss"] < 0.9 * before


def test_a_gradient_is_never_longer_than_the_recipe_says(data: TrainingData) -> None:
    policy, taught = learner("diffusion_policy", data, clip=1e-3)
    taught.step(batch(policy, data))
    length = math.sqrt(sum(float(one.grad.square().sum()) for one in taught.learnt.values() if one.grad is not None))
    assert length == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", ["diffusion_policy", "pi0"])
def test_several_draws_per_sample_are_those_of_a_batch_that_many_times_as_long(name: str, data: TrainingData) -> None:
    policy, taught = learner(name, data, draws=3)
    policy.crop, given = 1.0, batch(policy, data)
    if name == "diffusion_policy":
        no_crops = replace(policy.sizes.vision, crop=None, resize=(58, 58))
        for encoder in policy.model.encoders:
            encoder.sizes = no_crops  # one crop per sample and draw would be others than one per sample
    once = taught.validate([given])["loss"]
    policy.draws = 1
    longer = Samples(
        images={camera: np.concatenate([pictures] * 3) for camera, pictures in given.images.items()},
        state=np.concatenate([given.state] * 3),
        instructions=[*given.instructions] * 3,
        actions=np.concatenate([given.actions] * 3),
        valid=np.concatenate([given.valid] * 3),
        gaze=np.concatenate([given.gaze] * 3),
    )
    assert taught.validate([longer])["loss"] == pytest.approx(once, rel=1e-5)


def test_numbers_are_normalised_by_the_data(data: TrainingData) -> None:
    states, actions = data.split(0.0)[0].numbers()
    policy, _ = learner("diffusion_policy", data)
    low_and_high = policy.maps["state"].apply([states.min(0), states.max(0)])
    np.testing.assert_allclose(low_and_high, [-np.ones(8), np.ones(8)], atol=1e-6)
    policy, _ = learner("pi0", data)
    np.testing.assert_allclose(policy.action_map.apply(actions).std(0), 1.0, atol=1e-5)


# Crops


def painted(box: tuple[int, int, int, int]) -> np.ndarray:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return picture


def test_a_crop_is_a_part_of_the_picture_and_the_gaze_box_stays_on_its_thing() -> None:
    box = (20, 30, 33, 47)
    pictures = torch.from_numpy(np.stack([painted(box)] * 16))[:, None].repeat(1, 2, 1, 1, 1)
    shares = torch.tensor([box]).repeat(16, 1) / SIDE
    cut, moved = randomly_cropped({"front": pictures}, shares, 0.9375, torch.Generator().manual_seed(0))
    assert cut["front"].shape == (16, 2, 60, 60, 3)
    assert torch.equal(cut["front"][:, 0], cut["front"][:, 1])
    assert len({tuple(row.tolist()) for row in moved}) > 8
    for row in range(16):
        assert box_of(cut["front"][row, 0, ..., 0].numpy() > 0) == tuple((moved[row] * 60).round().int().tolist())


def test_without_a_generator_the_crop_is_the_one_of_acting() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    box = torch.tensor([[0.2, 0.0, 0.6, 1.0]])
    cut, moved = randomly_cropped({"front": torch.from_numpy(picture)[None, None]}, box, 0.9375, None)
    np.testing.assert_array_equal(cut["front"][0, 0].numpy(), centre(picture, 0.9375))
    torch.testing.assert_close(moved, box_in_centre(box, 0.9375))


@pytest.mark.parametrize("name", ["pi0", "reconvla", "openvla"])
def test_a_policy_that_learnt_from_crops_acts_on_the_centre(name: str) -> None:
    policy: Any = make_policy(name, suite(), None, ["size=tiny", "device=cpu"])
    rng = np.random.default_rng(0)
    images = {camera.name: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}
    framed = {name: picture.copy() for name, picture in images.items()}
    for picture in framed.values():
        picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 0
    answers = [policy.infer([observation(seen)])[0].actions for seen in (images, framed)]
    np.testing.assert_array_equal(*answers)


def observation(images: Mapping[str, np.ndarray], history: int = 1) -> Observation:
    now = Observation(images, np.linspace(-1, 1, 8).astype(np.float32), "go east")
    return replace(now, earlier=(now,) * (history - 1))


def test_jitter_changes_colours_of_each_sample_alike_and_nothing_else() -> None:
    pictures = torch.full((3, 2, 4, 4, 3), 100, dtype=torch.uint8)
    changed = jittered(pictures, 0.2, torch.Generator().manual_seed(0))
    assert changed.shape == pictures.shape
    assert all(len(sample.unique()) == 1 for sample in changed)  # grey stays grey, and flat stays flat
    assert len({int(sample.unique()) for sample in changed}) > 1
    assert changed.min() >= 79
    assert changed.max() <= 121


# The whole command


def config(folder: str, out: Path, name: str = "diffusion_policy", **changes: Any) -> TrainConfig:
    given = {"steps": 4, "batch_size": 2, "log_every": 2, "threads": 1, "device": "cpu", **changes}
    return TrainConfig(policy=name, data=(folder,), out=str(out), **given)


class Interrupter:
    """Presses Ctrl-C after that many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, *_: object) -> None: ...

    def step(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)


def weights_of(trained: Trained) -> bytes:
    return (trained.path / "model.safetensors").read_bytes()


@pytest.fixture(
    scope="module", params=["pi0", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "pi0")]
)
def whole(request: pytest.FixtureRequest, folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trained]:
    name = str(request.param)
    return name, train(config(folder, tmp_path_factory.mktemp(name) / "ckpt", name))


def test_an_interrupted_training_goes_on_bit_for_bit(whole: tuple[str, Trained], folder: str, tmp_path: Path) -> None:
    """And so two trainings with one seed give the same weights."""
    name, uninterrupted = whole
    again = config(folder, tmp_path / "ckpt", name)
    stopped = train(again, Interrupter(after=3))
    assert (stopped.done, stopped.path.exists()) == (3, False)
    resumed = train(again)
    assert resumed.done == 4
    assert weights_of(resumed) == weights_of(uninterrupted)


@pytest.mark.slow
def test_a_state_that_the_disk_does_not_take_is_one_sentence_and_the_last_one_stays(
    whole: tuple[str, Trained], folder: str, tmp_path: Path
) -> None:
    name, uninterrupted = whole
    again = config(folder, tmp_path / "ckpt", name)
    train(again, Interrupter(after=1))
    before = (again.folder / "state.pt").read_bytes()
    said = (
        r"Could not write to .*ckpt.training \(File too large\): .*; the same command resumes from what was kept last"
    )
    with file_size_limit(len(before) // 2), pytest.raises(UsageError, match=said):
        train(again)
    assert (again.folder / "state.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert weights_of(train(again)) == weights_of(uninterrupted)


@pytest.mark.slow
def test_another_seed_gives_other_weights(folder: str, tmp_path: Path) -> None:
    first, second = (train(config(folder, tmp_path / str(seed), seed=seed, steps=1)) for seed in (0, 1))
    assert weights_of(first) != weights_of(second)


def test_the_checkpoint_acts_as_the_averaged_weights(data: TrainingData, tmp_path: Path) -> None:
    for name in MODELS:
        policy, taught = learner(name, data, warmup=1)
        for step in range(2):
            taught.step(batch(policy, data, step, 2))
        for weights in ("float32", "float16"):
            taught.save(tmp_path / name / weights, {}, weights)
        seen = [observation(policy_images(), policy.spec.history)]
        with taught.averaged():
            expected = policy.infer(seen)[0].actions
        exact, half = (
            make_policy(name, suite(), str(tmp_path / name / weights), ["device=cpu"])
            for weights in ("float32", "float16")
        )
        np.testing.assert_array_equal(exact.infer(seen)[0].actions, expected)
        if name in ("pi0", "diffusion_policy"):  # tokens may tip over
            np.testing.assert_allclose(half.infer(seen)[0].actions, expected, atol=0.02)
        size = (tmp_path / name / "float16" / "model.safetensors").stat().st_size
        assert size < 8e6


def policy_images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {camera.name: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}


def test_the_card_says_where_the_weights_come_from(whole: tuple[str, Trained], data: TrainingData) -> None:
    name, trained = whole
    card = (trained.path / "README.md").read_text()
    for fact in ("east (4 episodes), west (4 episodes)", data.sha256, "- seed: 0", "steps 4", "- minutes:", "threads"):
        assert fact in card
    assert read_ours(trained.path, name).tensors.keys()


def test_losses_are_logged_and_drawn(whole: tuple[str, Trained]) -> None:
    _, trained = whole
    with trained.log.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(math.isfinite(float(row[column])) for row in rows for column in ("loss", "validation loss", "minutes"))
    assert (trained.log.parent / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert not (trained.log.parent / "state.pt").exists()


def test_a_finished_training_is_left_as_it_is(whole: tuple[str, Trained], folder: str) -> None:
    name, trained = whole
    before = trained.path.stat().st_mtime_ns, weights_of(trained)
    assert train(config(folder, trained.path, name)).done == 4
    assert (trained.path.stat().st_mtime_ns, weights_of(trained)) == before


@pytest.fixture(scope="module")
def begun(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of one step, done."""
    return train(config(folder, tmp_path_factory.mktemp("begun") / "ckpt", steps=1)).path


@pytest.mark.parametrize(
    "changes",
    [{"steps": 6}, {"seed": 1}, {"learning_rate": 1e-5}, {"validation_share": 0.5}, {"weights": "float32"}],
)
def test_other_settings_do_not_resume(folder: str, begun: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"was begun with .*{next(iter(changes))}"):
        train(config(folder, begun, **{"steps": 1, **changes}))


@pytest.mark.slow
def test_overwrite_starts_again(folder: str, tmp_path: Path) -> None:
    first = weights_of(train(config(folder, tmp_path / "ckpt", steps=1)))
    assert weights_of(train(config(folder, tmp_path / "ckpt", steps=2, overwrite=True))) != first


def test_what_is_no_training_is_not_overwritten(folder: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not trained by this command"):
        train(config(folder, tmp_path / "ckpt", overwrite=True))
    assert (tmp_path / "ckpt" / "thesis.txt").read_text() == "mine"


def test_a_damaged_state_is_one_sentence(folder: str, tmp_path: Path) -> None:
    train(config(folder, tmp_path / "ckpt"), Interrupter(after=1))
    (tmp_path / "ckpt.training" / "state.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match="cannot be resumed"):
        train(config(folder, tmp_path / "ckpt"))


def test_a_loss_that_is_no_number_stops_the_training(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The loss is nan after \d+ steps; lower --learning-rate"):
        train(config(folder, tmp_path / "ckpt", learning_rate=1e30, steps=20, log_every=20))


def test_a_policy_that_cannot_learn_is_one_sentence(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The policy 'random' cannot be trained"):
        train(config(folder, tmp_path / "ckpt", "random"))


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--learning-rate", "-1"], ["--validation-share", "1"]])
def test_impossible_settings_are_one_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--policy", "pi0", "--data", "nowhere", "--out", "ckpt", *flags]) == EXIT_USAGE
    assert f"{flags[0]} should be" in capsys.readouterr().err


def test_the_command_prints_what_came_of_it(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ckpt"
    command = ["train", "--policy", "diffusion_policy", "--data", folder, "--out", str(out)]
    assert main([*command, "--steps", "1", "--batch-size", "2", "--threads", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert f"{out}: 1 steps" in said.out
    assert "moments to learn from" in said.err
    assert json.loads((tmp_path / "ckpt.training" / "settings.json").read_text())["steps"] == 1
