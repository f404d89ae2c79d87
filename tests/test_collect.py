"""Demonstrations: collected by one command, resumed, read by those who train on them, and replayed to the bit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest

from vla_bench.cli import main
from vla_bench.config import RunConfig
from vla_bench.data import demonstrations
from vla_bench.data import lerobot as dataset_lerobot
from vla_bench.data.collect import CollectConfig, collect
from vla_bench.data.demonstrations import box_of, load_part, part_file, unpack
from vla_bench.data.lerobot import array_stats, picture_stats, read_lerobot
from vla_bench.data.recorded import read_recorded
from vla_bench.errors import Interrupted, UsageError
from vla_bench.inference import LocalPolicy, check_chunks
from vla_bench.registry import make_policy, make_suite
from vla_bench.rollout import Actor, Rollout, run_episode
from vla_bench.runner import run
from vla_bench.types import ActionChunk, Camera, Env, Episode, Observation, PolicySpec, Shot, Suite, Task, Transition

h5py = pytest.importorskip("h5py", reason="needs vla-bench[data]")

EYE = Camera("eye", 6, 10)


class RecordingToy(fakes.ToyEnv):
    """A toy whose thing to look at is the column that the step's number says."""

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self.attended, self.thing = tuple[str, ...](), list[tuple[str, ...]]()
        return super().reset_trial(trial, seed)

    def advance(self, actions: np.ndarray) -> Transition:
        self.thing = [*self.thing, self.attended or ("ball",)]
        return super().advance(actions)

    def start_from(self, state: np.ndarray, fixtures: object) -> None:
        """Begin at the (x, y) in the state, as the real ones do."""
        del fixtures
        self.position = np.array(state[1:])

    def shots(self) -> Iterator[Shot]:
        for step in range(0, self.steps + 1, self.every):
            seen = self.past[step]
            mask = np.zeros((6, 10), bool)
            mask[1:4, step % 10 : step % 10 + 2] = step != 1
            image = np.full((6, 10, 3), (5 * step) % 256, np.uint8)
            physics = np.array([step, *seen.state], np.float64)
            thing = [*self.thing, ("ball",)][step]
            yield Shot(step, {"eye": image}, {"eye": mask}, thing, seen.state, np.zeros(7), physics, seen.instruction)

    def gaze(self) -> dict[str, np.ndarray]:
        return {}


def suite(name: str = "recorded toy", max_steps: int = 40) -> Suite:
    """fakes.suite with a camera, whose environments can record."""

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return RecordingToy(task, cameras, None, "raise")

    toy = fakes.suite(name, max_steps)
    return replace(toy, cameras=(EYE,), make_env=make_env)


class Expert:
    """Knows where the toy is; walks east at a speed that gets some trials there in time."""

    def __init__(self, suite: Suite) -> None:
        self.spec = PolicySpec("expert", suite.action, privileged=True)

    def attach(self, env: RecordingToy) -> None:
        self.env = env

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        pass

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        if self.env.position[0] > 3:
            self.env.attended = ("door", "knob")
        return [ActionChunk(np.float32([[0.3, -0.1 * self.env.position[1]]]))]


TOY = ["collect", "--suite", "test_collect:suite", "--policy", "test_collect:Expert", "--noise", "0.2"]


def config(out: Path, **changes: object) -> CollectConfig:
    known = {"suite": "test_collect:suite", "policy": "test_collect:Expert", "noise": 0.2, "task": ("east",)}
    return CollectConfig(**{**known, "episodes": 6, "out": str(out), **changes})  # type: ignore[arg-type]


def replayed(checkpoint: Path, out: Path, episodes: int = 6, **changes: object) -> list[str]:
    """The final fingerprints of replays, in order of trials; None among them where one failed."""
    options = {"suite": "test_collect:suite", "task": ("east",), "episodes": episodes, **changes}
    done = run(RunConfig(policy="replay", checkpoint=str(checkpoint), out=str(out), **options))  # type: ignore[arg-type]
    rows = [json.loads(line) for line in (done.path / "episodes.jsonl").read_text().splitlines()]
    return [row["final_fingerprint"] for row in rows if row["success"]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished collection of six episodes."""
    out = tmp_path_factory.mktemp("collected") / "toy"
    assert collect(config(out)).kept == 6
    return out


# What is written


def test_hdf5_holds_what_there_was_before_each_action(toy: Path) -> None:
    with h5py.File(toy / "hdf5/east_demo.hdf5") as archive:
        data = archive["data"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (6, sum(d.attrs["num_samples"] for d in data.values()))
        for trial, demo in enumerate(data[f"demo_{number}"] for number in range(6)):
            steps = demo.attrs["num_samples"]
            assert (demo.attrs["trial"], demo.attrs["seed"], demo.attrs["task"]) == (trial, 0, "east")
            assert demo.attrs["success"]
            assert demo["obs/eye_rgb"].shape == (steps, 6, 10, 3)
            assert demo["actions"].shape == (steps, 2)
            assert [len(demo[name]) for name in ("states", "rewards", "dones")] == [steps] * 3
            assert demo["dones"][:].tolist() == [0] * (steps - 1) + [1]
            np.testing.assert_array_equal(demo["states"][:, 0], np.arange(steps))
            moved = np.diff(demo["obs/state"][:], axis=0)
            np.testing.assert_allclose(moved, demo["actions"][:-1], atol=1e-6)
            assert set(demo["instruction"].asstr()) == {"go east"}


def test_the_gaze_region_is_that_of_the_frame_and_hidden_where_nothing_shows(toy: Path) -> None:
    with h5py.File(toy / "hdf5/east_demo.hdf5") as archive:
        demo = archive["data/demo_2"]
        assert demo["gaze/eye_box"][0].tolist() == [0, 1, 2, 4]
        assert demo["gaze/eye_box"][1].tolist() == [-1] * 4
        assert not demo["gaze/eye_mask"][1].any()
        for mask, box in zip(demo["gaze/eye_mask"], demo["gaze/eye_box"], strict=True):
            assert tuple(box) == box_of(mask)
        far = demo["obs/state"][:, 0] > 3
        assert demo["gaze/body"].asstr()[:].tolist() == ["door+knob" if there else "ball" for there in far]


def test_lerobot_files_say_the_same_as_hdf5(toy: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    info = json.loads((toy / "lerobot/meta/info.json").read_text())
    frames = pq.read_table(toy / "lerobot" / info["data_path"].format(chunk_index=0, file_index=0)).to_pydict()
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"]) == (6, len(frames["index"]))
    assert set(info["features"]) == set(frames)
    with h5py.File(toy / "hdf5/east_demo.hdf5") as archive:
        demos = [archive[f"data/demo_{number}"] for number in range(6)]
        for column, name in (
            ("action", "actions"),
            ("intended_action", "intended_actions"),
            ("observation.state", "obs/state"),
            ("gaze.box.eye", "gaze/eye_box"),
        ):
            both = np.concatenate([demo[name][:] for demo in demos])
            np.testing.assert_allclose(np.array(frames[column]), both, rtol=1e-6)
        pictures = np.stack([demonstrations.decode(image["bytes"]) for image in frames["observation.images.eye"]])
        np.testing.assert_array_equal(pictures, np.concatenate([demo["obs/eye_rgb"][:] for demo in demos]))
        masks = unpack(np.array(frames["gaze.mask.eye"], np.uint8), 6, 10)
        np.testing.assert_array_equal(masks, np.concatenate([demo["gaze/eye_mask"][:] for demo in demos]))
        ends = [demo.attrs["num_samples"] - 1 for demo in demos]
    assert [frame for frame, done in zip(frames["frame_index"], frames["next.done"], strict=True) if done] == ends


def test_lerobot_statistics_are_exact(toy: Path) -> None:
    stats = json.loads((toy / "lerobot/meta/stats.json").read_text())
    with h5py.File(toy / "hdf5/east_demo.hdf5") as archive:
        demos = list(archive["data"].values())
        actions = np.concatenate([demo["actions"][:] for demo in demos])
        pixels = np.concatenate([demo["obs/eye_rgb"][:].reshape(-1, 3) for demo in demos]) / 255
    np.testing.assert_allclose(stats["action"]["std"], actions.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-5)
    eye = stats["observation.images.eye"]
    assert np.shape(eye["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(eye["mean"]), pixels.mean(axis=0))
    np.testing.assert_allclose(np.ravel(eye["std"]), pixels.std(axis=0))
    np.testing.assert_allclose(np.ravel(eye["q10"]), np.quantile(pixels, 0.1, axis=0, method="inverted_cdf"))
    assert eye["count"] == [len(pixels) // 60]


def test_picture_statistics_of_a_few_pixels() -> None:
    counts = np.zeros((3, 256), int)
    counts[:, 0], counts[:, 255] = 3, 1
    stats = picture_stats(counts, 1)
    assert [stats[name].ravel()[0] for name in ("min", "q50", "q90", "max", "mean")] == [0, 0, 1, 1, 0.25]
    assert array_stats(np.array([[1.0], [3.0]]))["q50"] == [2.0]


def test_the_real_lerobot_reads_the_data_set(toy: Path, tmp_path: Path) -> None:
    python = Path(f"{sys.prefix}-lerobot", "bin", "python")
    if not python.exists():
        pytest.skip("needs lerobot in a venv of its own: sh scripts/setup_tests.sh")
    asked = [str(python), str(Path(__file__).with_name("lerobot_reads.py")), str(toy / "lerobot")]
    home = {**os.environ, "HF_HOME": str(tmp_path)}  # its cache; the user's home may not be writable
    child = subprocess.run(asked, env=home, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    told, recorded = json.loads(child.stdout.splitlines()[-1]), read_lerobot(toy / "lerobot")
    assert (told["episodes"], told["frames"]) == (6, sum(len(each.actions) for each in recorded.values()))
    assert (told["picture"], told["task"]) == ([3, 6, 10], "go east")
    np.testing.assert_array_equal(np.float32(told["action"]), next(iter(recorded.values())).actions[3])
    assert set(told["features"]) == {"observation.images.eye", "observation.state", "action"}


# Noise


def acted(suite: Suite, episode: Episode, sigma: float) -> Rollout:
    policy = make_policy("noisy", suite, None, ["expert=test_collect:Expert", f"sigma={sigma}"])
    env = suite.make_env(suite.task(episode.task), ())
    policy.attach(env)  # type: ignore[attr-defined]
    return run_episode(env, Actor(LocalPolicy(policy), RunConfig("noisy", "x").make_chunking()), episode, 10.0, 0.0)


@pytest.mark.slow
def test_the_noise_depends_on_episode_and_step_alone_and_has_the_size_asked_for() -> None:
    toy = suite(max_steps=400)
    episode = Episode(toy.name, "east", 1, 0)
    quiet, loud, again = (acted(toy, episode, sigma).actions for sigma in (0.0, 0.5, 0.5))
    other = acted(toy, replace(episode, seed=1), 0.5).actions
    np.testing.assert_array_equal(loud, again)
    assert not np.array_equal(loud[:3], other[:3])
    np.testing.assert_allclose(quiet[:, 0], 0.3, atol=1e-6)
    assert np.abs(loud).max() <= 1.0
    seen = [make_noise(seed) for seed in range(300)]
    assert 0.09 < np.std(seen) < 0.11


def test_what_was_intended_is_recorded_beside_what_was_executed(toy: Path) -> None:
    with h5py.File(toy / "hdf5/east_demo.hdf5") as archive:
        for demo in archive["data"].values():
            places, intended = demo["obs/state"][:], demo["intended_actions"][:]
            np.testing.assert_allclose(intended[:, 0], 0.3, atol=1e-6)
            np.testing.assert_allclose(intended[:, 1], -0.1 * places[:, 1], atol=1e-6)  # of where the noise had led
            assert (np.abs(demo["actions"][:] - intended) > 1e-4).all()


def test_without_noise_what_was_executed_was_intended() -> None:
    toy = suite(max_steps=400)
    quiet = acted(toy, Episode(toy.name, "east", 1, 0), 0.0)
    np.testing.assert_array_equal(quiet.intended, quiet.actions)


def test_an_intention_for_every_action_or_none() -> None:
    actions, spec = np.zeros((3, 2), np.float32), Expert(suite()).spec
    checked = check_chunks([ActionChunk(actions, intended=actions + 1)], 1, spec)
    np.testing.assert_array_equal(checked[0].intended, actions + 1)
    with pytest.raises(UsageError, match="3 actions and 2 intended ones"):
        check_chunks([ActionChunk(actions, intended=actions[:2])], 1, spec)


def make_noise(seed: int) -> float:
    policy = make_policy("noisy", suite(), None, ["expert=test_collect:Expert", "sigma=0.1"])
    policy.attach(RecordingToy(suite().tasks[0], (), None, ""))  # type: ignore[attr-defined]
    policy._expert.env.position = np.zeros(2)  # type: ignore[attr-defined]
    seen = Observation({}, np.zeros(2, np.float32), "", seed=seed)
    return float(policy.infer([seen])[0].actions[0, 1])


def test_the_gripper_is_never_disturbed() -> None:
    made = replace(suite(), action=dataclasses.replace(fakes.ACTION, dim=3, gripper="close_positive"))
    policy = make_policy("noisy", made, None, ["expert=zero", "sigma=0.3"])
    actions = policy.infer([Observation({}, np.zeros(2, np.float32), "", seed=5)])[0].actions
    still = make_policy("zero", made).infer([Observation({}, np.zeros(2, np.float32), "")])[0].actions
    assert actions[0, 2] == still[0, 2]
    assert (actions[0, :2] != still[0, :2]).all()


# Resuming


def test_a_collection_that_was_cut_off_ends_like_one_that_was_not(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    collect(config(out, episodes=2))
    first = {file.name: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    assert collect(config(out)).kept == 6
    assert {name: (out / "parts" / name).stat().st_mtime_ns for name in first} == first
    for name in ("lerobot/data/chunk-000/file-000.parquet", "lerobot/meta/stats.json", "lerobot/meta/info.json"):
        assert (out / name).read_bytes() == (toy / name).read_bytes()


def test_ctrl_c_loses_no_finished_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = demonstrations.save_part, []

    def interrupted(file: Path, demo: demonstrations.Demonstration) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise Interrupted
        whole(file, demo)

    monkeypatch.setattr(demonstrations, "save_part", interrupted)
    cut = collect(config(tmp_path / "out"))
    assert (cut.played, cut.written, cut.outcomes[-1].interrupted) == (2, (), True)
    assert collect(config(tmp_path / "out")).kept == 6
    assert len(calls) == 3 + 4


def test_a_disk_that_was_full_while_the_data_set_was_written_is_told_and_got_over(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(dataset_lerobot, "_write_meta", full)
        with pytest.raises(UsageError, match=r"Could not write the data sets to .* \(No space left on device\)"):
            collect(config(tmp_path / "out"))
    assert not (tmp_path / "out/lerobot").exists()
    assert collect(config(tmp_path / "out")).kept == 6
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["hdf5", "lerobot", "parts", "runs"]
    name = "lerobot/data/chunk-000/file-000.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (toy / name).read_bytes()


def test_workers_write_the_same_data(toy: Path, tmp_path: Path) -> None:
    assert collect(config(tmp_path / "two", workers="2")).kept == 6
    name = "lerobot/data/chunk-000/file-000.parquet"
    assert (tmp_path / "two" / name).read_bytes() == (toy / name).read_bytes()


def test_failures_are_played_but_not_kept(tmp_path: Path) -> None:
    done = collect(config(tmp_path / "out", suite_args=("max_steps=17",)))
    assert 0 < done.kept < done.played == 6
    assert len(list((tmp_path / "out/parts").iterdir())) == done.kept


def test_more_episodes_than_trials_begin_again_with_the_next_seed(tmp_path: Path) -> None:
    assert collect(config(tmp_path / "out", episodes=12)).kept == 12
    recorded = read_recorded(tmp_path / "out/hdf5", suite("test_collect:suite"))
    assert {(episode.trial, episode.seed) for episode in recorded} >= {(0, 0), (9, 0), (0, 1), (1, 1)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--episodes", "0"], "--episodes should be at least 1, got 0."),
        (["--episodes", "2", "--noise", "-1"], "--noise should be a finite number of at least 0, got -1.0."),
        (["--episodes", "2", "--task", "north"], "Unknown task of test_collect:suite 'north'."),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TOY, "--out", str(tmp_path / "out"), *arguments]) == 64
    assert said in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"holds thesis\.tex, so it is no collection"):
        collect(config(tmp_path, overwrite=True))


def test_what_earlier_commands_collected_is_counted_too(tmp_path: Path) -> None:
    collect(config(tmp_path / "out", episodes=4))
    again = collect(config(tmp_path / "out", episodes=2))
    assert (again.played, again.kept) == (4, 4)


def test_other_noise_is_another_collection(toy: Path) -> None:
    with pytest.raises(UsageError, match="holds another run: policy_args"):
        collect(config(toy, noise=0.3))


def test_a_folder_takes_episodes_of_one_suite(toy: Path) -> None:
    with pytest.raises(UsageError, match=r"of test_collect:suite with the arguments \[\], not of .* \['max_steps=9'\]"):
        collect(config(toy, seed=7, suite_args=("max_steps=9",)))


def test_a_suite_that_cannot_record_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ToyEnv cannot record demonstrations"):
        collect(config(tmp_path / "out", suite="fakes:suite", policy="fakes:Walker", noise=0.0))


def test_a_damaged_part_is_named(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(next((toy / "parts").iterdir()).read_bytes()[:500])
    with pytest.raises(UsageError, match=r"x\.npz is not a recorded episode"):
        load_part(tmp_path / "x.npz")


# Replay


@pytest.mark.parametrize("what", [".", "hdf5", "hdf5/east_demo.hdf5", "lerobot"])
def test_replays_end_in_the_recorded_state(toy: Path, tmp_path: Path, what: str) -> None:
    parts = [load_part(part_file(toy / "parts", Episode("recorded toy", "east", trial, 0))) for trial in range(6)]
    assert replayed(toy / what, tmp_path / "run") == [part.final_fingerprint for part in parts]


def test_run_reports_replay_against_recording(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = ["run", "--policy", "replay", "--suite", "test_collect:suite", "--task", "east", "--episodes", "6"]
    assert main([*replay, "--checkpoint", str(toy), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "replayed 6 episodes: 6 succeeded, 6 had when recorded; 6 came out the same; 6 of 6 final states" in said


def test_a_changed_recording_is_reported_as_such(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed.hdf5"
    changed.write_bytes((toy / "hdf5/east_demo.hdf5").read_bytes())
    with h5py.File(changed, "r+") as archive:
        archive["data/demo_1/actions"][0] = [-1.0, 0.0]
    replay = ["run", "--policy", "replay", "--suite", "test_collect:suite", "--task", "east", "--episodes", "6"]
    assert main([*replay, "--checkpoint", str(changed), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "5 succeeded, 6 had when recorded; 5 came out the same; 5 of 6 final states are equal" in said


@pytest.mark.parametrize("name", ["nothing", "notes.hdf5"])
def test_what_is_no_recording_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.hdf5").write_text("no HDF5")
    with pytest.raises(UsageError, match=r"replay needs --checkpoint FILE or FOLDER|is not HDF5"):
        read_recorded(tmp_path / name, suite())


def published(source: Path, target: Path) -> None:
    """The file as LIBERO publishes its demonstrations: no identity, the scene's XML, a start that is no trial."""
    with h5py.File(source) as ours, h5py.File(target, "w") as theirs:
        theirs.create_group("data").attrs["bddl_file_name"] = "somewhere/east.bddl"
        for name, demo in ours["data"].items():
            group = theirs.create_group(f"data/{name}")
            group.attrs["num_samples"], group.attrs["init_state"] = len(demo["actions"]), demo["states"][2]
            group.attrs["model_file"] = (
                "<mujoco><worldbody><body name='cabinet' pos='1 2 3' quat='0 0 0 1'/>"
                "<body name='bowl' pos='9 9 9'><joint type='free'/></body></worldbody></mujoco>"
            )
            group["actions"], group["dones"] = demo["actions"][2:], demo["dones"][2:]


def test_published_demonstrations_begin_in_their_own_state(toy: Path, tmp_path: Path) -> None:
    published(toy / "hdf5/east_demo.hdf5", tmp_path / "any_demo.hdf5")
    recorded = read_recorded(tmp_path / "any_demo.hdf5", suite())
    beginning = recorded[Episode("recorded toy", "east", 3, 0)].beginning
    assert beginning is not None
    assert {name: [v.tolist() for v in pose] for name, pose in beginning.fixtures.items()} == {
        "cabinet": [[1, 2, 3], [0, 0, 0, 1]]
    }
    assert len(replayed(tmp_path / "any_demo.hdf5", tmp_path / "run")) == 6


# Simulators


@pytest.mark.sim
def test_lift_is_collected_with_an_exact_gaze_region_and_replays_to_the_bit(tmp_path: Path) -> None:
    done = collect(CollectConfig("robosuite", 1, str(tmp_path / "out"), ("Lift",), suite_args=("resolution=64",)))
    assert done.kept == 1
    with h5py.File(tmp_path / "out/hdf5/Lift_demo.hdf5") as archive:
        demo = archive["data/demo_0"]
        first, mask = demo["obs/agentview_rgb"][0].astype(int), demo["gaze/agentview_mask"][0]
        red = (first[..., 0] > 2 * first[..., 1]) & (first[..., 0] > 2 * first[..., 2])
        assert (red & mask).sum() / (red | mask).sum() > 0.6  # a 64 px cube is mostly edge
        assert set(demo["gaze/body"].asstr()) == {"cube_main"}
        assert demo["obs/joint_states"].shape == (len(demo["actions"]), 7)
        ends = demo.attrs["final_fingerprint"]
    options = {"suite": "robosuite", "task": ("Lift",)}
    for what in ("hdf5", "lerobot"):
        assert replayed(tmp_path / "out" / what, tmp_path / what, 1, **options) == [ends]


@pytest.mark.sim
def test_pictures_do_not_change_when_masks_are_painted() -> None:
    made = make_suite("robosuite", ["resolution=32"])
    env = made.make_env(made.task("Door"), ())
    env.record(1)
    env.reset_trial(0, 0)
    env.advance(np.zeros((2, 7), np.float32))
    films = [[frame.images for frame in env.film()] for _ in range(1)]
    shots = list(env.shots())  # type: ignore[attr-defined]
    films.append([frame.images for frame in env.film()])
    for before, shot, after in zip(films[0], shots, films[1], strict=True):
        for camera in before:
            np.testing.assert_array_equal(before[camera], shot.images[camera])
            np.testing.assert_array_equal(before[camera], after[camera])
    assert all(shot.masks["agentview"].any() for shot in shots)
    env.close()


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize(("suite_name", "task"), [("robosuite", "NutAssemblySquare"), ("libero_spatial", "0")])
def test_painting_only_what_moved_changes_no_pixel(suite_name: str, task: str) -> None:
    """In scenes with many mirrors and with one; tests/test_envs_truth.py compares with upstream's own pictures."""
    made = make_suite(suite_name, ["resolution=96"])
    env = made.make_env(made.task(made.names[int(task)] if task.isdecimal() else task), ())
    env.record(1)
    env.reset_trial(0, 0)
    env.advance(np.repeat(np.random.default_rng(0).uniform(-1, 1, (2, 7)), 3, axis=0).astype(np.float32))
    in_turn = [(frame.images, shot.masks) for frame, shot in zip(env.film(), env.shots(), strict=True)]  # type: ignore[attr-defined]
    for kept, (images, masks) in reversed(list(zip(env._reel, in_turn, strict=True))):  # type: ignore[attr-defined]
        env._painter._forget()  # type: ignore[attr-defined]
        alone = env._painter.paint(kept.still, made.cameras)  # type: ignore[attr-defined]
        regions = env._painter.segment(kept.still, made.cameras, kept.goal)  # type: ignore[attr-defined]
        for camera in images:
            np.testing.assert_array_equal(images[camera], alone[camera])
            np.testing.assert_array_equal(masks[camera], regions[camera])
    env.close()


@pytest.mark.sim
@pytest.mark.parametrize(("task", "body"), [("open_drawer", "drawer_link"), ("lift_red_block_table", "red")])
def test_calvin_looks_at_what_its_task_is_about(task: str, body: str) -> None:
    made = make_suite("calvin_tasks")
    env = made.make_env(made.task(task), ())
    env.record(1)
    env.reset_trial(0, 0)
    env.advance(np.zeros((1, 7), np.float32))
    shots = list(env.shots())  # type: ignore[attr-defined]
    assert [shot.attended for shot in shots] == [(body,)] * 2
    assert shots[0].masks["rgb_static"].shape == (200, 200)
    assert 0 < shots[0].masks["rgb_static"].sum() < 20000
    env.close()
