"""A suite and policies of a few lines, importable by workers as fakes:suite and fakes:Name."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_bench.store.files import write_whole
from vla_bench.training.learning import Recipe, Samples, Scales
from vla_bench.types import (
    ActionChunk,
    ActionSpec,
    Camera,
    Env,
    Episode,
    Frame,
    Observation,
    PolicySpec,
    Suite,
    Task,
    Transition,
)

ACTION = ActionSpec(2, "delta_pose", "none", "none", scale_m=1.0, scale_rad=0.0)
CAMERA = Camera("eye", 4, 4)
STATE = ("x", "y")


def suite(name: str = "toy", max_steps: int = 20, break_marker: str = "", break_with: str = "raise") -> Suite:
    """A point in the plane that succeeds once it is right of 5; it breaks where the file `break_marker` says."""
    tasks = tuple(Task(task, (f"go {task}",), max_steps, 10) for task in ("east", "farther"))

    def make_env(task: Task, cameras: Sequence[str]) -> Env:
        return ToyEnv(task, cameras, Path(break_marker) if break_marker else None, break_with)

    return Suite(name, "1", tasks, ACTION, (CAMERA,), STATE, 10.0, make_env, lambda: {"toy": "1"})


def lift(name: str = "toy") -> Suite:
    """The same with one task of fifty trials, named as robosuite's."""
    toy = suite(name)
    return replace(toy, tasks=(replace(toy.tasks[0], name="Lift", trials=50),))


class ToyEnv:
    """State (x, y); an action adds to it. Breaks at step 3, or the one given last, of the task and trial named in the
    marker file, as often as that says."""

    def __init__(self, task: Task, cameras: Sequence[str], marker: Path | None, break_with: str) -> None:
        self.task, self.cameras, self.marker, self.break_with = task, cameras, marker, break_with
        self.history = 1

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self.trial, self.steps, self.reel = trial, 0, [0]
        self.position = np.random.default_rng([trial, seed, self.task.name == "east"]).normal(size=2)
        self.past = [self._now()] * self.history
        return self._observe()

    def advance(self, actions: np.ndarray) -> Transition:
        success = played = 0
        for action in actions:
            self.position = self.position + action
            self.steps += 1
            self.reel.append(self.steps)
            self.past.append(self._now())
            played += 1
            self._maybe_break()
            success = self.position[0] > 5
            if success or self.steps >= self.task.max_steps:
                break
        over = self.steps >= self.task.max_steps
        observation = self._observe()
        return Transition(observation, played, bool(success), over and not success, int(success), False, 0.0, 0.0)

    def _maybe_break(self) -> None:
        if self.marker is None or not self.marker.exists():
            return
        task, trial, times, *steps = self.marker.read_text().split()
        if self.steps != int(*steps or "3") or (task != "any" and (task, int(trial)) != (self.task.name, self.trial)):
            return
        written = self.marker.with_name(f"{self.marker.name}.{os.getpid()}")
        written.write_text(" ".join([task, trial, str(int(times) - 1), *steps]))
        written.replace(self.marker)  # in one piece: another worker may be reading it
        if int(times) <= 1:
            self.marker.unlink()
        if self.break_with == "hang":
            hold_the_lock()
        if self.break_with.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.break_with])
            return
        raise RuntimeError("the toy fell off the table")

    def _observe(self) -> Observation:
        return replace(self._now(), earlier=tuple(self.past[-self.history : -1]))

    def _now(self) -> Observation:
        images = {name: np.full((4, 4, 3), (8 * self.trial + self.steps) % 256, np.uint8) for name in self.cameras}
        return Observation(images, self.position.astype(np.float32), self.task.instructions[0])

    def look_back(self, history: int) -> None:
        self.history = history

    def record(self, every: int) -> None:
        self.every = every

    def film(self) -> Iterator[Frame]:
        if self.break_with == "film":
            raise RuntimeError("the camera fell")
        for step in self.reel[:: self.every]:
            yield Frame(step, {"eye": np.full((64, 64, 3), 9 * step, np.uint8)})

    def fingerprint(self) -> str:
        return hashlib.sha256(self.position.tobytes()).hexdigest()[:16]

    def close(self) -> None:
        if self.break_with == "hang in close":
            hold_the_lock()
        if self.break_with == "close":
            raise RuntimeError("the lid is stuck")


def hold_the_lock() -> None:
    """Never returns, and lets no other thread of Python run, as compiled code may do."""
    while True:
        ctypes.PyDLL(None).sleep(60)


class Walker:
    """Walks east with noise from the observation's seed; remembers resets and the sizes of batches."""

    def __init__(self, suite: Suite, speed: float = 0.5, chunk: int = 4, checkpoint: str = "") -> None:
        self.speed, self.chunk = speed, chunk
        self.spec = PolicySpec("walker", suite.action, suite.cameras, suite.state, chunk, checkpoint)
        self.resets: list[tuple[int, Episode]] = []
        self.batches: list[int] = []

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        self.resets += zip(slots, episodes, strict=True)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.batches.append(len(observations))
        return [self._chunk(np.random.default_rng(observation.seed)) for observation in observations]

    def _chunk(self, rng: np.random.Generator) -> ActionChunk:
        actions = rng.normal([self.speed, 0.0], 0.1, (self.chunk, 2)).astype(np.float32)
        return ActionChunk(actions, {"think": 1.5})


class Stroller(Walker):
    """A Walker of which two actions are usually played."""

    def __init__(self, suite: Suite, usual: int = 2) -> None:
        super().__init__(suite)
        self.spec = replace(self.spec, execute=usual)


class Keeper(Walker):
    """A Walker whose speed is its checkpoint."""

    def __init__(self, suite: Suite, checkpoint: str) -> None:
        super().__init__(suite, float(Path(checkpoint).read_text().split()[0]), checkpoint=checkpoint)

    def save(self, path: str, provenance: Mapping[str, str]) -> None:
        lines = [f"{topic}: {text}" for topic, text in provenance.items()]
        Path(path).write_text("\n".join([str(self.kept()), *lines]))

    def kept(self) -> float:
        return self.speed


class BadKeeper(Keeper):
    """Writes another speed."""

    def kept(self) -> float:
        return self.speed + 0.01


class Historian(Walker):
    """Walks as fast as it thinks it did three control steps ago, from states and pictures alike."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite)
        self.spec = replace(self.spec, history=3)
        self.seen: list[Observation] = []

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.seen += observations
        return [self._recall(observation) for observation in observations]

    def _recall(self, now: Observation) -> ActionChunk:
        then = now.earlier[0]
        step = (
            0.3
            + 0.1 * abs(now.state[0] - then.state[0])
            + 0.01 * float(now.images["eye"][0, 0, 0] - then.images["eye"][0, 0, 0])
        )
        return ActionChunk(np.tile(np.float32([step, 0]), (4, 1)))


class Faulty(Walker):
    """A Walker whose second call in a process goes wrong in the way `how` says."""

    def __init__(self, suite: Suite, how: str = "raise", seconds: float = 30.0) -> None:
        super().__init__(suite)
        self.how, self.seconds = how, seconds

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        good = super().infer(observations)
        if len(self.batches) < 2:
            return good
        if self.how == "raise":
            raise KeyError("left_arm")
        if self.how == "slow":
            time.sleep(self.seconds)
            return good
        if self.how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(self.seconds)
        wrong = {
            "width": np.zeros((4, 3), np.float32),
            "float64 width": np.zeros((4, 6)),
            "flat": np.zeros(2, np.float32),
            "empty": np.zeros((0, 2), np.float32),
            "nan": np.array([[0, 0], [0, np.nan]], np.float32),
            "inf": np.array([[np.inf, 0]], np.float32),
            "huge": np.array([[1e300, 0]]),
            "ragged": [[0.0, 0.0], [0.0]],
            "text": np.array([["a", "b"]]),
        }
        if self.how in wrong:
            return [ActionChunk(wrong[self.how])] * len(observations)
        returned: dict[str, object] = {"none": None, "array": np.zeros((4, 2), np.float32), "few": [], "plain": [1.0]}
        return returned[self.how]  # type: ignore[return-value]


class Beside(Walker):
    """A Walker that needs the simulator beside it, and hangs there in its third call."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite)
        self.spec = replace(self.spec, name="beside", cameras=(), privileged=True)

    def attach(self, env: Env) -> None:
        self.env = env

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        if len(self.batches) == 2:
            hold_the_lock()
        return super().infer(observations)


class Pupil(Walker):
    """A Walker that can be taught."""

    def __init__(self, suite: Suite, size: str, weights_seed: int, device: str, dtype: str) -> None:
        super().__init__(suite)

    def recipe(self) -> Recipe:
        return Recipe(steps=6, batch_size=2, learning_rate=0.1, warmup=1)

    def learner(self, recipe: Recipe, state: Scales, action: Scales, seed: int, threads: int) -> Lessons:
        return Lessons(recipe, seed)


class Lessons:
    """How fast to walk, learnt with noise."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed, self.done, self.speed = recipe, seed, 0, 0.0

    def step(self, samples: Samples) -> Mapping[str, float]:
        noise = np.random.default_rng([self.seed, self.done]).normal()
        off = float(samples.actions[..., 0].mean()) + noise - self.speed
        self.speed += self.recipe.rate(self.done) * off
        self.done += 1
        return {"loss": abs(off)}

    def validate(self, batches: Iterable[Samples]) -> Mapping[str, float]:
        return {"loss": float(np.mean([abs(one.actions[..., 0].mean() - self.speed) for one in batches]))}

    def keep(self, file: Path) -> None:
        write_whole(file, json.dumps([self.done, self.speed]).encode())

    def resume(self, file: Path) -> None:
        self.done, self.speed = json.loads(file.read_text())

    def save(self, path: Path, provenance: Mapping[str, str], weights: str) -> None:
        write_whole(path, str(self.speed).encode())


class Looker:
    """Acts on what it sees: forty equal actions from the brightness of the first picture and the noise seed."""

    def __init__(self, suite: Suite) -> None:
        self.spec = PolicySpec("looker", suite.action, suite.cameras[:1], suite.state, chunk=40)

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        pass

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(np.tile(self._action(observation), (40, 1))) for observation in observations]

    def _action(self, observation: Observation) -> np.ndarray:
        seen = observation.images[self.spec.cameras[0].name].mean(axis=(0, 1)) / 128 - 1
        noise = np.random.default_rng(observation.seed).normal(size=self.spec.action.dim)
        return np.clip(0.3 * noise + np.resize(seen, noise.shape), -1, 1).astype(np.float32)


class Doomed(Looker):
    """A Looker in whose n-th call the process that watches, or else its own, gets a signal: DOOM is `n signal True`."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite)
        self.calls = 0

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        for _ in observations:
            self.calls += 1
            instant, number, watching = os.environ.get("DOOM", "0 0 False").split()
            if self.calls == int(instant):
                os.kill(os.getppid() if watching == "True" else os.getpid(), int(number))
                signal.pause()
        return super().infer(observations)


class Unmade(Walker):
    """A Walker whose weights are not where they should be."""

    def __init__(self, suite: Suite) -> None:
        raise FileNotFoundError("no such weights")
