"""Taking a thing and putting it somewhere: which grasp and which place work is found by trying them in imagination."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .oracle_arm import OPEN, Actions, Matrix, Points, Pose, Vector
from .oracle_grasps import Grasp, grasps, hand_rotations, looking
from .oracle_scene import Scene, Thing, play_out
from .oracle_skills import UP, Placement, pick, place, still

MOST_GRASPS, MOST_PLACES, MOST_SPOTS = 10, 4, 16
_FROM_ABOVE = 0.5  # vertical part of an entry from which on it is one from above
MOST_STEPS = 1500  # control steps tried out for one plan
_ENTER_M, _WAY_IN_M = 0.08, 0.24
_STEEPNESSES = np.radians([0.0, 25.0, 50.0])  # of the hand below the horizontal where things are slid in
_SETTLE_STEPS = 6
_DEEPEST_M = 0.12  # below where it is let go, or below a spot
_CLEAR_OF_SILL_M = 0.01


@dataclass(frozen=True)
class Put:
    """The wish: `thing` at one of `spots`, so that `done` holds after it was let go."""

    thing: Thing
    spots: Callable[[], Sequence[Pose]]
    """Where the thing's frame may come to lie, best first; heights are found by looking what is below."""
    done: Callable[[], bool]
    allowed: Callable[[Vector], bool] = lambda position: True
    """Whether the thing's origin may come to rest there."""
    middle: Vector | None = None
    """Of the region, if it may be closed above."""
    leans: tuple[float, ...] = (0.0, 0.35, 0.7)
    """How far the hand may lean outwards to reach farther, rad."""


def plan_put(scene: Scene, put: Put) -> Callable[[], Actions]:
    """A program that fulfils the wish in imagination; if none does, the one that got farthest."""
    scene.attend(put.thing)
    fallback: Callable[[], Actions] | None = None
    patience = scene.steps_imagined + MOST_STEPS
    for grasp, placements in _fitting(scene, put):
        with scene.imagine() as play:
            if play_out(scene, pick(scene, put.thing, grasp), play):
                return _program(scene, put, grasp, placements[0])
            if not put.thing.held:
                continue
            held = scene.memory()
        for placement in placements:
            program = _program(scene, put, grasp, placement)
            with scene.imagine(held) as play:
                trial = place(scene, put.thing, placement)
                if (
                    play_out(scene, trial, play)
                    or play_out(scene, still(scene, OPEN, _SETTLE_STEPS), play)
                    or put.done()
                ):
                    return program
            fallback = fallback or program
        if scene.steps_imagined > patience:
            break
    return fallback or (lambda: still(scene, OPEN, 10))


def plan_pick(scene: Scene, thing: Thing) -> Callable[[], Actions]:
    """A program that has the thing in the hand, off its support, in imagination; the last one tried if none has."""
    scene.attend(thing)
    rotations = hand_rotations(scene.home.rotation, scene.outwards(thing.pose.position), (0.0, 0.35))
    program: Callable[[], Actions] = functools.partial(still, scene, OPEN, 10)
    for grasp in itertools.islice(grasps(scene, thing, rotations), MOST_GRASPS):
        program = functools.partial(pick, scene, thing, grasp)
        with scene.imagine() as play:
            if play_out(scene, program(), play) or thing.held:
                break
    return program


def _program(scene: Scene, put: Put, grasp: Grasp, placement: Placement) -> Callable[[], Actions]:
    def actions() -> Actions:
        yield from pick(scene, put.thing, grasp)
        if put.thing.held:
            yield from place(scene, put.thing, placement)

    return actions


def _fitting(scene: Scene, put: Put) -> Iterator[tuple[Grasp, list[Placement]]]:
    """Grasps with the placements at which the hand that holds so would fit, at most `MOST_GRASPS` per way in."""
    for entry in _entries(scene, put):
        spots = _roomy(scene, put, entry)
        if not spots:
            continue
        looked_at = itertools.islice(grasps(scene, put.thing, _rotations(scene, put, entry)), 4 * MOST_GRASPS)
        given = 0
        for grasp in looked_at:
            placements = list(itertools.islice(_placements(scene, put, grasp, spots, entry), MOST_PLACES))
            if placements:
                given += 1
                yield grasp, placements
            if given >= MOST_GRASPS:
                break


def _entries(scene: Scene, put: Put) -> list[Vector]:
    """Directions from which the place is open: above first, then level ones along which its middle can be seen."""
    if put.middle is None:
        return [UP]
    obstacles, out = scene.obstacles(put.thing.geoms), np.arange(0.0, _WAY_IN_M, 0.01)[:, None]
    level = [np.array(direction) for direction in ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0))]
    return [UP, *(way for way in level if scene.fits(put.middle + out * way, obstacles, 0.01))]


def _roomy(scene: Scene, put: Put, entry: Vector) -> list[Pose]:
    """The spots at which the thing alone would fit and be allowed, at most `MOST_SPOTS`."""
    body, found = put.thing.points(), []
    for spot in put.spots():
        rests = _resting(scene, put, spot, body, entry)
        if rests is not None and put.allowed(rests.position):
            found.append(spot)
        if len(found) == MOST_SPOTS:
            break
    return found


def _resting(scene: Scene, put: Put, spot: Pose, load: Points, entry: Vector) -> Pose | None:
    """Where the load comes to lie that enters to `spot`; None if it does not fit."""
    if entry[2] > _FROM_ABOVE:
        return _lowest(scene, spot, load, scene.obstacles(put.thing.geoms))
    return _slid_in(scene, put, spot, load, entry)


def _rotations(scene: Scene, put: Put, entry: Vector) -> list[Matrix]:
    home = scene.home.rotation
    if entry[2] > _FROM_ABOVE:
        return hand_rotations(home, scene.outwards(put.thing.pose.position), put.leans)
    return [turn for down in _STEEPNESSES for turn in looking(-np.cos(down) * entry - np.sin(down) * UP, home)]


def _placements(scene: Scene, put: Put, grasp: Grasp, spots: Sequence[Pose], entry: Vector) -> Iterator[Placement]:
    thing, hand = put.thing, grasp.hand
    body, obstacles = thing.points(), scene.obstacles(thing.geoms)
    load = np.concatenate([body, hand.place(scene.hand_points)])  # in the thing's frame
    for spot in spots:
        from_above = entry[2] > _FROM_ABOVE
        resting = _resting(scene, put, spot, load, entry)
        if resting is None or not scene.reachable(resting.of(hand)):
            continue
        dropped = _lowest(scene, resting, body, obstacles, 0.0) or resting
        if put.allowed(resting.position) or put.allowed(dropped.position):
            away = -_ENTER_M * resting.of(hand).rotation[:, 2]
            enter = _ENTER_M * UP if from_above else _WAY_IN_M * entry + _CLEAR_OF_SILL_M * UP
            yield Placement(resting, enter, away if from_above else _WAY_IN_M * entry)


def _slid_in(scene: Scene, put: Put, spot: Pose, load: Points, entry: Vector) -> Pose | None:
    """`spot` at the lowest height at which the load can be slid in along `entry`; None if there is none."""
    obstacles, way = scene.obstacles(put.thing.geoms), np.arange(0.0, _WAY_IN_M, 0.03)
    for height in np.arange(-0.12, 0.1, 0.01):
        pose = spot.shifted(height * UP)
        if put.allowed(pose.position) and all(
            scene.fits(pose.shifted(out * entry).place(load), obstacles, 0.0) for out in way
        ):
            return pose
    return None


def _lowest(scene: Scene, spot: Pose, load: Points, obstacles: Sequence[int], drop: float = 0.25) -> Pose | None:
    """`spot` as low as it fits, coming from above; None if it fits nowhere near."""
    placed, best = spot.place(load), None
    for height in np.arange(drop, -_DEEPEST_M, -0.01):
        if scene.solids.inside(scene.data, placed + height * UP, obstacles).any():
            break
        best = height
    if best is None:
        return None
    for height in np.arange(best, best - 0.011, -0.002):
        if scene.solids.inside(scene.data, placed + height * UP, obstacles).any():
            break
        best = height
    return spot.shifted(np.array([0.0, 0.0, best]))


def turned(rotation: Matrix, yaw: float) -> Matrix:
    """The same, turned about the vertical."""
    matrix: Matrix = Rotation.from_euler("z", yaw).as_matrix() @ rotation
    return matrix
