"""A toy world for adapters: the picture shows the target and which way to turn, the state where the hand is.

`Reacher` is a policy that reads both and plans chunks; the broken ones are Reachers behind an adapter with one fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from vla_bench.types import (
    ActionChunk,
    ActionSpec,
    Camera,
    Episode,
    Frame,
    Observation,
    PolicySpec,
    Suite,
    Task,
    Transition,
)

ACTION = ActionSpec(7, "delta_pose", "axis_angle", "close_positive", scale_m=0.05, scale_rad=0.5)
CAMERAS = (Camera("table", 64, 64), Camera("wall", 64, 64))
STATE = (*(f"hand {axis}, m" for axis in "xyz"), *(f"hand axis-angle {axis}, rad" for axis in "xyz"), "opening, m")
DOWN = Rotation.from_euler("x", np.pi)
OPENING_M = 0.08
CHUNK = 8
TRAILING = 0.3  # of what an action asks for is done in its step, as on a real arm


def suite(name: str = "reach") -> Suite:
    """Go to the red spot, turn as the green one says, close, lift."""
    tasks = tuple(Task(colour, (f"take the {colour} one",), 120, 20) for colour in ("red", "ruby"))
    return Suite(name, "1", tasks, ACTION, CAMERAS, STATE, 10.0, lambda task, _: World(task), lambda: {"reach": "1"})


class World:
    """The hand obeys at once."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def reset_trial(self, trial: int, seed: int) -> Observation:
        rng = np.random.default_rng([trial, seed, len(self.task.name)])
        self.target, yaw = np.append(rng.uniform(-0.35, 0.35, 2), 0.0), rng.uniform(-1.5, 1.5)
        self.picture = painted(self.target, yaw)
        self.position = np.append(rng.uniform(-0.4, 0.4, 2), rng.uniform(0.2, 0.5))
        self.turn = Rotation.from_rotvec(rng.uniform(-0.5, 0.5, 3)) * DOWN
        self.opening, self.steps = OPENING_M, 0
        return self._observe()

    def advance(self, actions: np.ndarray) -> Transition:
        played, success = 0, False
        for action in actions:
            self.position, self.turn, self.opening = moved(self.position, self.turn, self.opening, action)
            played += 1
            self.steps += 1
            success = self.opening == 0 and self.position[2] > 0.15
            if success or self.steps >= self.task.max_steps:
                break
        over = self.steps >= self.task.max_steps
        return Transition(self._observe(), played, bool(success), over, int(success), False, 0.0, 0.0)

    def _observe(self) -> Observation:
        state = np.concatenate([self.position, self.turn.as_rotvec(), [self.opening]]).astype(np.float32)
        images = {"table": self.picture, "wall": np.full((64, 64, 3), self.steps, np.uint8)}
        return Observation(images, state, self.task.instructions[0])

    def look_back(self, history: int) -> None: ...

    def record(self, every: int) -> None: ...

    def film(self) -> Iterator[Frame]:
        return iter(())

    def fingerprint(self) -> str:
        return str(self.position)

    def close(self) -> None: ...


def painted(target: np.ndarray, yaw: float) -> np.ndarray:
    """(64, 64, 3): x down, y right, 1 m wide; a green spot beside the red one says which way to turn."""
    image = np.zeros((64, 64, 3), np.uint8)
    rows, columns = np.mgrid[:64, :64]
    for channel, spot in ((0, target[:2]), (1, target[:2] + 0.12 * np.array([np.cos(yaw), np.sin(yaw)]))):
        row, column = 63 * (spot + 0.5)
        image[..., channel] = 255 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 6)
    return image


def seen_spot(image: np.ndarray, channel: int) -> np.ndarray:
    weight = image[..., channel].astype(float) + 1e-6
    pixel = np.arange(64)
    return np.array([pixel @ weight.sum(axis=1), pixel @ weight.sum(axis=0)]) / weight.sum() / 63 - 0.5


def moved(
    position: np.ndarray, turn: Rotation, opening: float, action: np.ndarray
) -> tuple[np.ndarray, Rotation, float]:
    action = np.clip(action, -1, 1)
    step = Rotation.from_rotvec(TRAILING * ACTION.scale_rad * action[3:6])
    opening = float(np.clip(opening - 0.02 * np.sign(action[6]), 0, OPENING_M))
    return position + TRAILING * ACTION.scale_m * action[:3], step * turn, opening


class Reacher:
    """Reads the target from the picture and the hand from the state, and plans its way."""

    def __init__(self, suite: Suite, gain: float = 0.3, chunk: int = CHUNK) -> None:
        self.spec = PolicySpec("reacher", suite.action, suite.cameras[:1], suite.state, chunk)
        self.gain, self.chunk = gain, chunk

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None: ...

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(self.answer(self.sense(seen)).astype(np.float32)) for seen in observations]

    def sense(self, seen: Observation) -> Observation:
        """What the model gets."""
        return seen

    def answer(self, seen: Observation) -> np.ndarray:
        """(H, 7) from what the model got."""
        return self.plan(seen)

    def plan(self, seen: Observation) -> np.ndarray:
        red, green = (seen_spot(seen.images["table"], channel) for channel in (0, 1))
        yaw = np.arctan2(*(green - red)[::-1])
        goal = Rotation.from_euler("z", yaw) * DOWN
        position, turn, opening = seen.state[:3], Rotation.from_rotvec(seen.state[3:6]), float(seen.state[6])
        actions = []
        for _ in range(self.chunk):
            actions.append(self._step(np.append(red, 0.0), goal, position, turn, opening))
            position, turn, opening = moved(position, turn, opening, actions[-1])
        return np.array(actions)

    def _step(
        self, target: np.ndarray, goal: Rotation, position: np.ndarray, turn: Rotation, opening: float
    ) -> np.ndarray:
        closing = opening < 0.9 * OPENING_M or np.linalg.norm(target - position) < 0.03
        wanted = target + np.array([0, 0, 0.3]) if opening < 0.01 else target
        move = np.clip(self.gain * (wanted - position) / ACTION.scale_m, -1, 1)
        rotate = self.gain * (goal * turn.inv()).as_rotvec() / ACTION.scale_rad
        return np.concatenate([move, np.clip(rotate, -1, 1), [1.0 if closing else -1.0]])


def with_picture(seen: Observation, image: np.ndarray) -> Observation:
    return replace(seen, images={**seen.images, "table": image})


class GripperReversed(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen) * [1, 1, 1, 1, 1, 1, -1]


class GripperFromZero(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        plan = self.plan(seen)
        plan[:, -1] = (plan[:, -1] + 1) / 2
        return plan


class QuaternionReordered(Reacher):
    """Its model reads w x y z where the adapter gives x y z w."""

    def sense(self, seen: Observation) -> Observation:
        state = seen.state.copy()
        quat = Rotation.from_rotvec(state[3:6]).as_quat()
        state[3:6] = Rotation.from_quat(np.roll(quat, -1)).as_rotvec()
        return replace(seen, state=state)


class AnswerReordered(Reacher):
    """The same mistake on the way out."""

    def answer(self, seen: Observation) -> np.ndarray:
        plan = self.plan(seen)
        quat = Rotation.from_rotvec(ACTION.scale_rad * plan[:, 3:6]).as_quat()
        plan[:, 3:6] = Rotation.from_quat(np.roll(quat, -1, axis=1)).as_rotvec() / ACTION.scale_rad
        return plan


class UpsideDown(Reacher):
    def sense(self, seen: Observation) -> Observation:
        return with_picture(seen, seen.images["table"][::-1])


class Mirrored(Reacher):
    def sense(self, seen: Observation) -> Observation:
        return with_picture(seen, seen.images["table"][:, ::-1])


class BlueForRed(Reacher):
    """Its model looks for a red spot and finds the blue channel."""

    def sense(self, seen: Observation) -> Observation:
        return with_picture(seen, seen.images["table"][..., ::-1])


class StillNormalised(Reacher):
    """The model's numbers, of unit spread, as they are."""

    MEAN = np.array([0.0, 0.0, -0.15, 0, 0, 0, 0])
    SPREAD = np.array([0.35, 0.35, 0.5, 0.07, 0.07, 0.09, 1])

    def answer(self, seen: Observation) -> np.ndarray:
        return (self.plan(seen) - self.MEAN) / self.SPREAD


class InMetres(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen) * [0.05, 0.05, 0.05, 0.5, 0.5, 0.5, 1]


class PaddedChunk(Reacher):
    """The model plans three actions, the adapter answers eight."""

    def answer(self, seen: Observation) -> np.ndarray:
        plan = self.plan(seen)
        plan[3:] = 0
        return plan


class ReversedChunk(Reacher):
    def __init__(self, suite: Suite) -> None:
        super().__init__(suite, chunk=16)

    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen)[::-1]


class LongerChunk(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return np.concatenate([self.plan(seen), self.plan(seen)])


class HandFrame(Reacher):
    """Translation and rotation in the frame of a hand that points down."""

    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen) * [1, -1, -1, 1, -1, -1, 1]


class AxesExchanged(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen)[:, [1, 0, 2, 3, 4, 5, 6]]


class NotANumber(Reacher):
    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen) * (np.nan if seen.state[6] == 0 else 1)


class Restless(Reacher):
    """Noise that no seed decides."""

    rng = np.random.default_rng(0)

    def answer(self, seen: Observation) -> np.ndarray:
        return self.plan(seen) + self.rng.normal(0, 0.05, (self.chunk, 7))


class Mixed(Reacher):
    """Answers a batch last first."""

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return super().infer(observations)[::-1]


class HalfBlind(Reacher):
    """Says it looks at both cameras, and does not."""

    def __init__(self, suite: Suite) -> None:
        super().__init__(suite)
        self.spec = replace(self.spec, cameras=suite.cameras)


class Untrained(Reacher):
    """A network of random weights: smooth in all it sees, and meaning nothing."""

    def __init__(self, suite: Suite, weights: int = 0) -> None:
        super().__init__(suite)
        rng = np.random.default_rng(weights)
        self.first, self.last = rng.normal(0, 0.3, (64, 64 + 7 + 1)), rng.normal(0, 0.2, (CHUNK * 7, 64))

    def answer(self, seen: Observation) -> np.ndarray:
        coarse = seen.images["table"].reshape(8, 8, 8, 8, 3).mean(axis=(1, 3, 4)).ravel() / 16
        hidden = np.tanh(self.first @ np.concatenate([coarse, seen.state, [1.0]]))
        return (self.last @ hidden).reshape(CHUNK, 7)
