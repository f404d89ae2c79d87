"""A policy in one file: moves the open hand to above the most colourful thing in the first camera's picture."""

from collections.abc import Sequence

import numpy as np

from vla_bench.types import ActionChunk, Episode, Float32, Image, Observation, PolicySpec, Suite

CHUNK = 4  # actions per inference
REACH_M = 0.35  # from the middle of the picture, which is about (0, 0), to its edge, on the table


class MyPolicy:
    def __init__(self, suite: Suite, gain: float = 1.0) -> None:
        camera = suite.cameras[0]  # "agentview" in LIBERO and robosuite
        self.spec = PolicySpec("my_policy", suite.action, cameras=(camera,), state=suite.state, chunk=CHUNK)
        self.gain = gain
        self.height: dict[int, float] = {}  # slot -> z of the hand when its episode began, metres

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        for slot in slots:
            self.height.pop(slot, None)

    def infer(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(self.chunk(observation)) for observation in observations]

    def chunk(self, observation: Observation) -> Float32:
        """(CHUNK, A): the same small step, CHUNK times."""
        hand = observation.state[:3]
        height = self.height.setdefault(observation.slot, float(hand[2]))
        down, right = blob(observation.images[self.spec.cameras[0].name])
        target = np.array([REACH_M * down, REACH_M * right, height])  # the camera faces the robot: down +x, right +y
        action = np.zeros(self.spec.action.dim)
        action[:3] = np.clip(self.gain * (target - hand) / self.spec.action.scale_m / CHUNK, -1, 1)
        action[-1] = -1 if self.spec.action.gripper == "close_positive" else 1  # open
        return np.tile(action, (CHUNK, 1)).astype(np.float32)


def blob(image: Image) -> tuple[float, float]:
    """Centre of the half percent most saturated pixels: down and right of the middle, in [-1, 1]."""
    saturation = np.ptp(image.astype(float), axis=2)
    rows, columns = np.nonzero(saturation >= np.quantile(saturation, 0.995))
    height, width = saturation.shape
    return float(2 * rows.mean() / height - 1), float(2 * columns.mean() / width - 1)
