"""Drawers, doors, latches and knobs: driving a joint of the scene by a part that hangs on it.

Either the hand takes the part (a handle, a knob) and goes where the part goes, or it pushes with closed fingers on a
face that trails the motion. Which contact works is found by trying them in imagination.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .arm import CLOSE, OPEN, Actions, Matrix, Points, Pose, Vector
from .grasps import grasps, hand_rotations, looking
from .scene import Scene, Thing, play_out
from .skills import BACK_OFF_M, UP, back_off, close_on, reach, release, route, travel

_SLIDE = 2  # mujoco.mjtJoint
_LEAD_M = 0.03  # how far ahead of the part the hand is sent
_STALL_STEPS = 12
_MOST_STEPS, _MOST_IMAGINED = 120, 2000  # control steps of a motion, of all motions tried out for one plan
_MOST_TRIALS = 8
_STEEPNESSES = np.radians([0.0, 30.0, 50.0, 70.0, 90.0])  # of the hand below the horizontal
_CELL_M = 0.03
_PRESS_M = 0.03
_STEEP = 0.7  # vertical part of a direction from which on it counts as up or down
_KNOB_M = 0.06  # what reaches no farther from its axis is taken in the middle
_WAYSTATIONS = 6  # of a motion, where it is looked whether something is in its way
_LONG_ARM = 0.7  # of the farthest point's distance from the axis: where to take a handle


@dataclass(frozen=True)
class Joint:
    """A joint of the scene and the part that it moves."""

    scene: Scene
    number: int

    @property
    def part(self) -> Thing:
        return self.scene.thing(int(self.scene.model.jnt_bodyid[self.number]))

    @property
    def value(self) -> float:
        return float(self.scene.data.qpos[self.scene.model.jnt_qposadr[self.number]])

    @property
    def axis(self) -> Vector:
        return np.array(self.scene.data.xaxis[self.number])

    @property
    def slides(self) -> bool:
        return bool(self.scene.model.jnt_type[self.number] == _SLIDE)

    def arm_of(self, point: Vector) -> Vector:
        """From the axis to the point, at a right angle to the axis."""
        offset: Vector = point - self.scene.data.xanchor[self.number]
        return offset - (offset @ self.axis) * self.axis

    def velocity(self, point: Vector) -> Vector:
        """Of a point of the part, metres per unit of the joint."""
        return self.axis if self.slides else np.cross(self.axis, self.arm_of(point))

    def moved(self, pose: Pose, by: float) -> Pose:
        """Where a frame fixed to the part will be when the joint has moved."""
        if self.slides:
            return pose.shifted(by * self.axis)
        turn = Rotation.from_rotvec(by * self.axis).as_matrix()
        anchor = self.scene.data.xanchor[self.number]
        return Pose(anchor + turn @ (pose.position - anchor), turn @ pose.rotation)


@dataclass(frozen=True)
class Contact:
    """A way to drive a part: the hand in the part's frame, closed on it or pushing, turning with it or not."""

    hand: Pose
    holds: bool
    follows: bool
    before: Vector
    """From the contact to where the last straight move begins, in the part's frame."""
    press_m: float = 0.0
    """How far below the contact the hand is sent: what gives friction something to hold on to."""


@dataclass(frozen=True)
class Motion:
    """A joint's way to `target`, over when `done`."""

    joint: Joint
    target: float
    done: Callable[[], bool]

    @property
    def left(self) -> float:
        return abs(self.target - self.joint.value)


def drive(scene: Scene, motions: Sequence[Motion], contact: Contact) -> Actions:
    """Take hold of the first joint's part or touch it, go through the motions, and let go."""
    part = motions[0].joint.part
    goal = part.pose.of(contact.hand)
    before = goal.shifted(part.pose.rotation @ contact.before)
    shape, gripper = (scene.hand_points, OPEN) if contact.holds else (scene.fist_points, CLOSE)
    yield from travel(scene, route(scene, before, shape, scene.obstacles()), gripper)
    yield from reach(scene, lambda: part.pose.of(contact.hand), gripper, patience=25)
    if contact.holds:
        yield from close_on(scene, part)
    for motion in motions:
        yield from follow(scene, motion, contact)
    if contact.holds:
        yield from release(scene, part)
    away = -BACK_OFF_M * scene.arm.pose.rotation[:, 2]
    yield from back_off(scene, away if contact.holds else _LEAD_M * UP + part.pose.rotation @ contact.before, gripper)


def follow(scene: Scene, motion: Motion, contact: Contact) -> Actions:
    """Send the hand, closed, ahead of where the part goes, turning with it or not."""
    joint, part, start = motion.joint, motion.joint.part, scene.arm.pose
    grip = part.pose.inverse().of(start)
    values: list[float] = []
    for _ in range(_MOST_STEPS):
        values.append(motion.left)
        if motion.done() or _stalled(values):
            return
        speed = float(np.linalg.norm(joint.velocity(start.position)))
        lead = _LEAD_M / max(speed, 0.05)
        goal = joint.moved(part.pose.of(grip), float(np.clip(motion.target - joint.value, -lead, lead)))
        rotation = goal.rotation if contact.follows else start.rotation
        yield scene.arm.towards(Pose(goal.position - contact.press_m * UP, rotation), CLOSE)


def _stalled(left: Sequence[float]) -> bool:
    """Whether what is left to go has not become less lately."""
    return len(left) > _STALL_STEPS and left[-1 - _STALL_STEPS] - left[-1] < 0.004


def plan_motions(scene: Scene, ways: Sequence[Sequence[Motion]], shut: bool = False) -> Callable[[], Actions]:
    """A program that goes one of the ways to its end in imagination; if none does, the one that got farthest."""
    scene.attend(ways[0][-1].joint.part)
    best: Callable[[], Actions] = functools.partial(back_off, scene, 0.1 * UP)
    least, patience = np.inf, scene.patience(_MOST_IMAGINED)
    for motions in ways:
        first, last = motions[0], motions[-1]
        least = min(least, last.left - 0.01)
        for contact in _contacts(scene, first.joint, first.target, shut):
            program = functools.partial(drive, scene, motions, contact)
            if scene.steps_imagined > patience:
                return best
            with scene.imagine() as play:
                if play_out(scene, program(), play) or (last.done() and not scene.over):
                    return program
                if last.left < least:
                    best, least = program, last.left
    return best


def _contacts(scene: Scene, joint: Joint, target: float, shut: bool) -> Iterator[Contact]:
    """What is to be shut is rather pushed, everything else rather held or dragged; best first of each."""
    pushes, holds, drags = (find(scene, joint, target) for find in (_pushes, _holds, _drags))
    for kind in (pushes, holds, drags) if shut else (holds, drags, pushes):
        yield from itertools.islice(kind, _MOST_TRIALS)


def _holds(scene: Scene, joint: Joint, target: float) -> Iterator[Contact]:
    part = joint.part
    rotations = _rotations(scene, joint, target, -1.0)
    least = 0.0 if joint.slides else _LONG_ARM * float(np.linalg.norm(joint.arm_of(_outermost(joint))))
    for grasp in grasps(scene, part, rotations, own_geoms(part)):
        if np.linalg.norm(joint.arm_of(part.pose.of(grasp.hand).position)) < least and least > _KNOB_M:
            continue
        before = -BACK_OFF_M * grasp.hand.rotation[:, 2]
        yield Contact(grasp.hand, True, True, before)
        if not joint.slides:
            yield Contact(grasp.hand, True, False, before)


def _rotations(scene: Scene, joint: Joint, target: float, sense: float) -> list[Matrix]:
    """Hand orientations that point along (or with sense -1 against) the part's motion, more or less from above."""
    ahead, home = _direction(joint, target, _outermost(joint)), scene.home.rotation
    above = hand_rotations(home, scene.outwards(joint.part.pose.position), (0.0, 0.4))
    if not joint.slides and np.linalg.norm(joint.arm_of(_outermost(joint))) < _KNOB_M:
        return above
    if abs(ahead[2]) > _STEEP:
        return [*looking(joint.axis, home), *looking(-joint.axis, home), *above]
    return [
        rotation
        for steepness in _STEEPNESSES
        for rotation in looking(np.cos(steepness) * sense * ahead - np.sin(steepness) * UP, scene.home.rotation)
    ]


def stays_clear(joint: Joint, target: float, thing: Thing, pose: Pose) -> bool:
    """Whether the thing, lying in `pose` in a drawer that takes it along, lets the drawer go to `target`."""
    scene, points = joint.scene, thing.points()
    obstacles = scene.obstacles(thing.geoms, joint.part.geoms)
    way = np.linspace(0.0, target - joint.value, _WAYSTATIONS)[1:]
    return all(scene.fits(joint.moved(pose, by).place(points), obstacles, 0.0) for by in way)


def own_geoms(part: Thing) -> list[int]:
    """The geoms of the part's own body, without what else hangs on it."""
    return part.scene.solids.of_bodies([part.body])


def _surface(part: Thing) -> Points:
    return part.pose.place(part.points())


def _outermost(joint: Joint) -> Vector:
    """The point of the part where pulling has the longest arm; of a drawer its middle."""
    points = _surface(joint.part)
    if joint.slides:
        return np.asarray(points.mean(axis=0))
    arms = np.array([np.linalg.norm(joint.arm_of(point)) for point in points])
    chosen: Vector = points[np.argmax(arms)]
    return chosen


def _direction(joint: Joint, target: float, point: Vector) -> Vector:
    """Where the point goes when the joint goes to `target`, a unit vector."""
    velocity = np.sign(target - joint.value) * joint.velocity(point)
    return np.asarray(velocity / max(1e-9, float(np.linalg.norm(velocity))))


def _pushes(scene: Scene, joint: Joint, target: float) -> Iterator[Contact]:
    part, obstacles = joint.part, scene.obstacles()
    for point in _trailing(joint, target):
        ahead = _direction(joint, target, point)
        if abs(ahead[2]) > _STEEP:
            continue
        for steepness in _STEEPNESSES[::-2]:
            approach = np.cos(steepness) * ahead - np.sin(steepness) * UP
            for rotation in looking(approach, scene.home.rotation):
                hand = _just_before(scene, Pose(point, rotation), ahead, obstacles)
                if hand is not None:
                    back = part.pose.rotation.T @ (-0.03 * ahead)
                    yield Contact(part.pose.inverse().of(hand), False, False, back)


def _trailing(joint: Joint, target: float) -> list[Vector]:
    """Points of the part to push at, best first: the hindmost of every few centimetres, with a long arm."""
    points = _surface(joint.part)
    middle = points.mean(axis=0)
    ahead = _direction(joint, target, _outermost(joint))
    across = np.stack([np.cross(UP, ahead), UP])
    hindmost: dict[tuple[int, ...], Vector] = {}
    for point in points[np.argsort(points @ ahead)]:
        hindmost.setdefault(tuple(np.round(across @ point / _CELL_M).astype(int)), point)
    chosen = list(hindmost.values())
    if joint.slides:
        return sorted(
            chosen, key=lambda point: float(np.linalg.norm(across @ (point - middle)) + 0.5 * (point @ ahead))
        )
    return sorted(chosen, key=lambda point: -float(np.linalg.norm(joint.arm_of(point)) + 0.5 * point[2]))


def _just_before(scene: Scene, pose: Pose, ahead: Vector, obstacles: Sequence[int]) -> Pose | None:
    for back in np.arange(0.0, 0.04, 0.005):
        hand = pose.shifted(-back * ahead)
        if scene.hand_fits(hand, scene.fist_parts, obstacles):
            return hand
    return None


def _drags(scene: Scene, joint: Joint, target: float) -> Iterator[Contact]:
    """Fingertips pressed down on what sticks out farthest: for handles too near to a wall or the table to hold."""
    part, obstacles = joint.part, scene.obstacles()
    points = _surface(part)
    ahead = _direction(joint, target, _outermost(joint))
    outer = points[points @ ahead > (points @ ahead).max() - _CELL_M / 2]
    along = np.cross(UP, ahead)
    topmost: dict[int, Vector] = {}
    for point in outer[np.argsort(-outer[:, 2])]:
        topmost.setdefault(round(float(along @ point) / _CELL_M), point)
    middle = outer.mean(axis=0)
    for point in sorted(topmost.values(), key=lambda point: abs(float(along @ (point - middle)))):
        for rotation in _rotations(scene, joint, target, -1.0)[:1:-1]:
            hand = _just_before(scene, Pose(point, rotation), -UP, obstacles)
            if hand is not None:
                before = part.pose.rotation.T @ (-BACK_OFF_M * rotation[:, 2])
                yield Contact(part.pose.inverse().of(hand), False, False, before, _PRESS_M)
