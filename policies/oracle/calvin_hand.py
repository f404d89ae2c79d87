"""CALVIN's hand for scripts: where it is, what it sees, and motions as generators of relative actions.

What is not obvious, all measured on `envs/calvin/sim.py`:

* A relative action moves a target pose that runs ahead of the arm, so motions are steered by where that target is.
* The arm follows with a time constant of 40 ms and ends within 4 mm of a target over the table, 15 mm at its far right,
  because the inverse kinematics pulls towards the neutral joints: `move` asks for the rest when it has to settle.
* The fingers end 14.4 mm beyond the tool point; closed they are 52 mm wide along the finger line and 21 mm across.
* Yaws between 0 and pi are within the wrist's limits everywhere; the neutral one is 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.types import ActionSpec, Float32

Vector = NDArray[np.float64]  # (3,) metres, world frame
Matrix = NDArray[np.float64]  # (3, 3) columns are a body's axes in the world
Actions = Iterator[Float32]
"""(7,) each; when the generator goes on, the simulator has executed it."""

OPEN, CLOSE = 1.0, -1.0
FINGER_ACROSS_M, FINGERS_ALONG_M = 0.0105, 0.026
"""Half the closed fingers' extent across the finger line and along it."""
TRAVEL_Z = 0.60
"""Where the tool passes over a stack of two blocks with a third in its fingers, m."""
OUTSIDE_Y = -0.10
"""Nearer to the robot than this the hand is clear of cabinet and door handle, m."""
REACHED_M = 0.002
PATIENCE = 90  # control steps after which a motion gives up and leaves it to its caller
SETTLE = 14  # control steps in which it may come nearer than where the target alone brings it
LIMIT_RAD = 0.02
BLOCK_SECTION_M = 0.04


class Pose(NamedTuple):
    """A tool pose whose fingers lie level: position (m, world), yaw of the finger line (rad) and tilt.

    At yaw pi/2 the fingers open along the world's x. A tilt of t makes the tool point t away from straight down,
    towards (cos yaw, sin yaw): at yaw pi/2 into the cabinet.
    """

    x: float
    y: float
    z: float
    yaw: float = math.pi / 2
    tilt: float = 0.0

    @property
    def position(self) -> Vector:
        return np.array(self[:3])

    @property
    def forward(self) -> Vector:
        """(3,) unit vector out of the fingers."""
        sine = math.sin(self.tilt)
        return np.array([sine * math.cos(self.yaw), sine * math.sin(self.yaw), -math.cos(self.tilt)])

    def at(self, position: Vector) -> Pose:
        x, y, z = position.tolist()
        return self._replace(x=x, y=y, z=z)

    def shifted(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Pose:
        return self._replace(x=self.x + x, y=self.y + y, z=self.z + z)

    def drawn_back(self, by: float) -> Pose:
        """The same, `by` metres further out of where the fingers point."""
        return self.at(self.position - by * self.forward)


class Face(NamedTuple):
    """A side of a block."""

    middle: Vector
    normal: Vector
    """Outward, of unit length."""


class Thing(NamedTuple):
    """A block as it lies."""

    colour: str
    position: Vector
    rotation: Matrix
    half: Vector
    """(3,) half its length, width and height."""
    touches: frozenset[str]
    """The bodies in contact with it."""

    def reach(self, direction: Vector) -> float:
        """Half its extent along a unit vector, m."""
        return float(np.abs(direction @ self.rotation) @ self.half)

    def face(self, direction: Vector) -> Face:
        """The side that looks most in that direction."""
        axis = int(np.argmax(np.abs(direction @ self.rotation)))
        normal = self.rotation[:, axis] * np.sign(direction @ self.rotation[:, axis])
        return Face(self.position + self.half[axis] * normal, normal)

    @property
    def bottom(self) -> float:
        """Height of its lowest corner."""
        return float(self.position[2]) - self.reach(np.array([0.0, 0.0, 1.0]))


@dataclass(frozen=True)
class Hand:
    """The robot at a CALVIN table, and all a script reads of that table."""

    table: Any
    action: ActionSpec

    @property
    def pose(self) -> Pose:
        """Where the tool is measured to be; yaw and tilt as steered."""
        x, y, z = self.table.robot_obs()[:3].tolist()
        _, pitch, yaw = self.table.target()[3:].tolist()
        return Pose(x, y, z, yaw, -pitch)

    @property
    def width(self) -> float:
        """Between the fingers, m."""
        return float(self.table.robot_obs()[6])

    @property
    def closed(self) -> bool:
        """Whether the last action was to close."""
        return bool(self.table.robot_obs()[14] < 0)

    @property
    def held(self) -> str:
        """The colour of the block between the closed fingers, or nothing."""
        if not self.closed:
            return ""
        touched = self.table.record().robot_contacts & set(self.table.blocks)
        return min(touched, key=lambda colour: math.dist(self.thing(colour).position, self.pose[:3]), default="")

    @property
    def strained(self) -> bool:
        """Whether an arm joint is at its limit, from where the inverse kinematics hardly finds back."""
        joints, limits = self.table.robot_obs()[7:14], self.table.model.jnt_range[:7]
        return bool((np.abs(joints[:, None] - limits) < LIMIT_RAD).any())

    @property
    def door(self) -> float:
        return float(self.table.record().door)

    @property
    def drawer(self) -> float:
        return float(self.table.record().drawer)

    def thing(self, colour: str) -> Thing:
        block = self.table.record().blocks[colour]
        half = np.array([dict(self.table.scene.blocks)[colour], BLOCK_SECTION_M, BLOCK_SECTION_M]) / 2
        return Thing(colour, np.array(block.position), _matrix(block.quat_xyzw), half, block.bodies)

    def others(self, colour: str) -> list[Thing]:
        return [self.thing(other) for other in self.table.blocks if other != colour]

    def away(self, want: Vector) -> float:
        """How many actions at full speed the target is from (6,) position and Euler angles."""
        off = (want - self.table.target()) / self._scale
        return max(float(np.linalg.norm(off[:3])), float(np.abs(off[3:]).max()))

    def steer(self, want: Vector, gripper: float, speed: float = 1.0) -> Float32:
        """One action, (7,): the target moves towards (6,) position and Euler angles, at that share of full speed."""
        off = (want - self.table.target()) / self._scale
        return np.append(off * min(1.0, speed / max(self.away(want), 1e-9)), gripper).astype(np.float32)

    @property
    def _scale(self) -> Vector:
        return np.repeat([self.action.scale_m, self.action.scale_rad], 3)

    def nudged(self, by: Vector, gripper: float) -> Float32:
        """One action, (7,): the target moves by (3,) metres."""
        return self.steer(self.table.target() + np.append(by, np.zeros(3)), gripper)

    def euler(self, pose: Pose) -> Vector:
        """(3,) fixed-axes angles of that pose, in the turn the target is in."""
        angles = np.array([math.pi, -pose.tilt, pose.yaw])
        turns: Vector = np.round((self.table.target()[3:] - angles) / (2 * math.pi)) * [1, 0, 1]
        return angles + 2 * math.pi * turns


def move(hand: Hand, goal: Pose, gripper: float, speed: float = 1.0, settle: bool = True) -> Actions:
    """Move the tool to `goal` in a straight line; settling, until it is measured there."""
    want = np.concatenate((goal.position, hand.euler(goal)))
    for _ in range(PATIENCE):
        arrives = hand.away(want) <= speed
        yield hand.steer(want, gripper, speed)
        if arrives:
            break
    lead = np.zeros(3)
    for _ in range(SETTLE if settle else 0):
        missing = goal.position - hand.table.robot_obs()[:3]
        if np.abs(missing).max() < REACHED_M:
            return
        lead = np.clip(lead + 0.3 * missing, -0.025, 0.025)
        yield hand.steer(want + np.concatenate((lead, np.zeros(3))), gripper, speed)


def hold(hand: Hand, gripper: float, steps: int) -> Actions:
    """Keep the target where it is."""
    for _ in range(steps):
        yield hand.steer(hand.table.target(), gripper)


def close(hand: Hand) -> Actions:
    """Close the fingers until they stand still."""
    width = math.inf
    for _ in range(15):
        yield from hold(hand, CLOSE, 1)
        if abs(hand.width - width) < 2e-4:
            return
        width = hand.width


def release(hand: Hand, colour: str) -> Actions:
    """Open the fingers until the block is free of them."""
    for _ in range(20):
        yield from hold(hand, OPEN, 1)
        if "robot" not in hand.thing(colour).touches:
            return


def back_out(hand: Hand, gripper: float) -> Actions:
    """Out of whatever the fingers are in, then up to where the hand may travel."""
    here = hand.pose
    rise = max(0.0, TRAVEL_Z - here.z)
    if rise > 0.01 or here.y > OUTSIDE_Y:
        here = here.drawn_back(min(0.16, max(0.02, rise) / max(0.5, math.cos(here.tilt))))
        yield from move(hand, here, gripper, settle=False)
    if here.z < TRAVEL_Z - 0.01:
        here = here._replace(y=min(here.y, OUTSIDE_Y) if here.tilt else here.y, z=TRAVEL_Z)
        yield from move(hand, here, gripper, settle=False)


def rest(hand: Hand) -> Actions:
    """Open the fingers and stay out of the way."""
    yield from hold(hand, OPEN, 4)
    yield from back_out(hand, OPEN)


def travel(hand: Hand, goal: Pose, gripper: float) -> Actions:
    """From travel height to `goal` by way of the air above it, outside of the cabinet."""
    above = goal._replace(y=min(goal.y, OUTSIDE_Y), z=max(TRAVEL_Z, goal.z))
    yield from move(hand, above, gripper, settle=False)
    yield from move(hand, goal, gripper)


def _matrix(quat_xyzw: tuple[float, ...]) -> Matrix:
    """(3, 3) of a unit quaternion."""
    x, y, z, w = quat_xyzw
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
