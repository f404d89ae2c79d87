"""Sliding a thing along what it lies on: for what is too flat or too wide to be gripped.

The closed fingers go down in it, on it or behind it and lead it to its place. With the fingers ahead of its middle, in
the leading rim of a plate, it trails them and keeps its way; from behind they follow its heading at every step.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .arm import CLOSE, Actions, Matrix, Pose, Vector
from .grasps import hand_rotations
from .scene import Scene, Thing, play_out
from .skills import BACK_OFF_M, UP, back_off, reach, route, travel

_PARTS = (0.55, 0.25, -1.0)  # of the way from its middle to its leading rim; -1 is behind it
_BEHIND_M = 0.02
_LEAD_M, _PRESS_M = 0.03, 0.02
_ARRIVED_M = 0.008
_MOST_STEPS, _STALL_STEPS = 150, 20
_TOP_M = 0.25  # above the thing: where looking for a place for the fingers begins


@dataclass(frozen=True)
class Hold:
    """Where the closed fingers are while they slide a thing."""

    rotation: Matrix
    ahead_m: float
    """Of the thing's origin, along its way."""
    above_m: float
    """The thing's origin."""


def slide(scene: Scene, thing: Thing, goal: Vector, hold: Hold, done: Callable[[], bool]) -> Actions:
    """Fingers down, the thing's origin to the level position `goal`, (2,), until it is there or `done`."""

    def hand(lead_m: float, up_m: float) -> Pose:
        here = thing.pose.position
        return Pose(here + (hold.ahead_m + lead_m) * _heading(thing, goal) + (hold.above_m + up_m) * UP, hold.rotation)

    above = hand(0.0, BACK_OFF_M)
    yield from travel(scene, route(scene, above, scene.fist_points, scene.obstacles()), CLOSE)
    yield from reach(scene, lambda: hand(0.0, -_PRESS_M), CLOSE, patience=25)
    left: list[float] = []
    for _ in range(_MOST_STEPS):
        left.append(float(np.linalg.norm(goal - thing.pose.position[:2])))
        if done() or left[-1] < _ARRIVED_M or (len(left) > _STALL_STEPS and left[-1 - _STALL_STEPS] - left[-1] < 0.01):
            break
        yield scene.arm.towards(hand(min(_LEAD_M, left[-1] + _ARRIVED_M), -_PRESS_M), CLOSE, speed=0.7)
    yield from back_off(scene, BACK_OFF_M * UP, CLOSE)


def plan_slide(
    scene: Scene, thing: Thing, goals: Sequence[Vector], done: Callable[[], bool]
) -> Callable[[], Actions] | None:
    """A program that slides the thing to one of the goals, (2,) each, in imagination; None if there is none."""
    for goal in goals:
        for hold in _holds(scene, thing, goal):
            program = functools.partial(slide, scene, thing, goal, hold, done)
            with scene.imagine() as play:
                if play_out(scene, program(), play) or done():
                    return program
            if scene.given_up:
                return None
    return None


def _heading(thing: Thing, goal: Vector) -> Vector:
    """Level unit vector from the thing to the goal."""
    way = np.append(goal - thing.pose.position[:2], 0.0)
    unit: Vector = way / max(1e-6, float(np.linalg.norm(way)))
    return unit


def _holds(scene: Scene, thing: Thing, goal: Vector) -> Iterator[Hold]:
    heading, origin, obstacles = _heading(thing, goal), thing.pose.position, scene.obstacles()
    along = (thing.pose.place(thing.points()) - origin) @ heading
    turns = hand_rotations(scene.home.rotation, scene.outwards(origin))[::3]
    for part, rotation in itertools.product(_PARTS, turns[:2]):
        ahead = part * along.max() if part > 0 else along.min() - _BEHIND_M
        low = _lowest_m(scene, Pose(origin + ahead * heading, rotation), obstacles)
        if low is not None:
            yield Hold(rotation, float(ahead), low)


def _lowest_m(scene: Scene, hand: Pose, obstacles: Sequence[int]) -> float | None:
    """How far above the pose the closed hand still fits, coming from above; None if it does not fit at the top."""
    best = None
    for height in np.arange(_TOP_M, 0.0, -0.004):
        if not scene.fits(hand.shifted(height * UP).place(scene.fist_points), obstacles, 0.0):
            break
        best = float(height)
    return best
