"""Taking a thing and putting it somewhere: which grasp and which place work is found by trying them in imagination."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .arm import OPEN, Actions, Matrix, Points, Pose, Vector
from .grasps import Grasp, grasps, hand_rotations, looking
from .scene import Scene, Thing, play_out
from .skills import LIFT_M, UP, Placement, pick, place, still
from .slide import plan_slide

_BY_TURNS = 3  # grasps for one way in before another is looked at
MOST_GRASPS, MOST_PLACES, MOST_SPOTS, MOST_GOALS = 10, 4, 16, 2
_FROM_ABOVE = 0.5  # vertical part of an entry from which on it is one from above
MOST_STEPS = 1500  # control steps tried out for one plan
_ENTER_M, _WAY_IN_M = 0.08, 0.24
_STEEPNESSES = np.radians([0.0, 25.0, 50.0])  # of the hand below the horizontal where things are slid in
_STEEPNESSES_TIPPED = np.radians([89.0, 50.0])
_LEVEL = np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])  # the last: from beyond
_TIPS = np.radians([50.0, 85.0])
_MOST_TIPPED = 8
_SINK_M = 0.05  # how far a thing's origin sinks when it falls over
_UPWARDS = 0.3  # vertical part of where a hand points that no arm can do
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
    harmless: Callable[[Pose], bool] | None = None
    """Whether the thing, lying so, leaves possible what is to be done after this; None if nothing has to be asked."""
    middle: Vector | None = None
    """Of the region, if it may be closed above."""
    leans: tuple[float, ...] = (0.0, 0.35, 0.7)
    """How far the hand may lean outwards to reach farther, rad."""


def plan_put(scene: Scene, put: Put) -> Callable[[], Actions]:
    """A program that fulfils the wish in imagination; if none does, the one that got farthest."""
    scene.attend(put.thing)
    fallback: Callable[[], Actions] | None = None
    patience = scene.patience(MOST_STEPS)
    for grasp, placements in _fitting(scene, put):
        with scene.imagine() as play:
            if play_out(scene, pick(scene, put.thing, grasp), play):
                return _program(scene, put, grasp, placements[0])
            if scene.over or not put.thing.held:
                continue
            held = scene.memory()
        for placement in placements:
            program = _program(scene, put, grasp, placement)
            with scene.imagine(held) as play:
                trial = itertools.chain(place(scene, put.thing, placement), still(scene, OPEN, _SETTLE_STEPS))
                if play_out(scene, trial, play) or (put.done() and not scene.over):
                    return program
            fallback = fallback or program
        if scene.steps_imagined > patience:
            break
    goals = [spot.position[:2] for spot in _roomy(scene, put, Access(UP, False))[:MOST_GOALS]]
    return plan_slide(scene, put.thing, goals, put.done) or fallback or functools.partial(still, scene, OPEN, 10)


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


@dataclass(frozen=True)
class Access:
    """A way into a place."""

    entry: Vector
    """Level or upward unit vector from the place to outside."""
    tipped: bool
    """Whether the thing is tipped over on its way."""

    @property
    def from_above(self) -> bool:
        return bool(self.entry[2] > _FROM_ABOVE)


def _fitting(scene: Scene, put: Put) -> Iterator[tuple[Grasp, list[Placement]]]:
    """Grasps with the placements at which the hand that holds so would fit, a few of each way in by turns."""
    ways = [_fitting_by(scene, put, access) for access in _accesses(scene, put)]
    while ways:
        for way in list(ways):
            for _ in range(_BY_TURNS):
                found = next(way, None)
                if found is None:
                    ways.remove(way)
                    break
                yield found


def _fitting_by(scene: Scene, put: Put, access: Access) -> Iterator[tuple[Grasp, list[Placement]]]:
    spots = _tipped(scene, put, access) if access.tipped else _roomy(scene, put, access)
    if not spots:
        return
    looked_at = itertools.islice(grasps(scene, put.thing, _rotations(scene, put, access)), 4 * MOST_GRASPS)
    given = 0
    for grasp in _free_first(scene, put.thing, looked_at):
        placements = list(itertools.islice(_placements(scene, put, grasp, spots, access), MOST_PLACES))
        if placements:
            given += 1
            yield grasp, placements
        if given >= MOST_GRASPS:
            return


def _free_first(scene: Scene, thing: Thing, candidates: Iterable[Grasp]) -> Iterator[Grasp]:
    """The grasps, first those in which nothing is right above the hand and the thing when they are lifted."""
    obstructed, raised = [], LIFT_M * UP
    others, around = scene.obstacles(), scene.obstacles(thing.geoms)
    thing_free = scene.fits(thing.pose.shifted(raised).place(thing.points()), around, 0.0)
    for grasp in candidates:
        if thing_free and scene.hand_fits(thing.pose.of(grasp.hand).shifted(raised), scene.hand_parts, others):
            yield grasp
        else:
            obstructed.append(grasp)
    yield from obstructed


def _accesses(scene: Scene, put: Put) -> list[Access]:
    """From above first, then along level ways on which a region's middle can be seen; then the same tipped over."""
    if put.middle is None:
        return [Access(UP, False)]
    obstacles, out = scene.obstacles(put.thing.geoms), np.arange(0.0, _WAY_IN_M, 0.01)[:, None]
    level = [way for way in _LEVEL[:3] if scene.fits(put.middle + out * way, obstacles, 0.01)]
    return [Access(np.array(entry), tipped) for tipped in (False, True) for entry in (UP, *level)]


def _roomy(scene: Scene, put: Put, access: Access) -> list[Pose]:
    """The spots at which the thing alone would fit, be allowed and harmless, at most `MOST_SPOTS`."""
    body, found = put.thing.points(), []
    for spot in put.spots():
        rests = _resting(scene, put, spot, body, access)
        if rests is None or not put.allowed(rests.position):
            continue
        if put.harmless is None or put.harmless(_dropped(scene, put, rests, body)):
            found.append(spot)
        if len(found) == MOST_SPOTS:
            break
    return found


def _tipped(scene: Scene, put: Put, access: Access) -> list[Pose]:
    """Spots with the thing tipped over, its foot going in first, nearest to the opening first."""
    body, spots = put.thing.points(), list(put.spots())
    if access.from_above:
        spots = [spot for spot in spots if np.allclose(spot.rotation, put.thing.pose.rotation)]
    else:
        spots.sort(key=lambda spot: -round(float(spot.position @ access.entry), 3))
    found = []
    for spot, tip, way in itertools.product(
        spots[:_MOST_TIPPED], _TIPS, _LEVEL if access.from_above else [access.entry]
    ):
        over = Rotation.from_rotvec(tip * np.cross(UP, way)).as_matrix()
        tipped = Pose(spot.position, over @ spot.rotation)
        rests = _resting(scene, put, tipped, body, access)
        if rests is not None and _may_sink(scene, put, rests.position):
            found.append(tipped)
    return found


def _resting(scene: Scene, put: Put, spot: Pose, load: Points, access: Access) -> Pose | None:
    """Where the load comes to lie that enters to `spot`; None if it does not fit."""
    if access.from_above:
        return _lowest(scene, spot, load, scene.obstacles(put.thing.geoms))
    return _slid_in(scene, put, spot, load, access.entry)


def _rotations(scene: Scene, put: Put, access: Access) -> list[Matrix]:
    home = scene.home.rotation
    if access.from_above:
        return hand_rotations(home, scene.outwards(put.thing.pose.position), put.leans)
    steepnesses = _STEEPNESSES_TIPPED if access.tipped else _STEEPNESSES
    return [turn for down in steepnesses for turn in looking(-np.cos(down) * access.entry - np.sin(down) * UP, home)]


def _placements(scene: Scene, put: Put, grasp: Grasp, spots: Sequence[Pose], access: Access) -> Iterator[Placement]:
    thing, hand = put.thing, grasp.hand
    body = thing.points()
    load = np.concatenate([body, hand.place(scene.hand_points)])  # in the thing's frame
    for spot in spots:
        if (spot.rotation @ hand.rotation)[2, 2] > _UPWARDS:
            continue
        resting = _resting(scene, put, spot, load, access)
        if resting is None or not scene.reachable(resting.of(hand)):
            continue
        dropped = _dropped(scene, put, resting, body)
        sunk = access.tipped and _may_sink(scene, put, resting.position)
        if sunk or put.allowed(resting.position) or put.allowed(dropped.position):
            away = -_ENTER_M * resting.of(hand).rotation[:, 2]
            outside = _WAY_IN_M * access.entry
            if access.from_above:
                yield Placement(resting, _ENTER_M * UP, away)
            else:
                yield Placement(resting, outside + _CLEAR_OF_SILL_M * UP, outside)


def _dropped(scene: Scene, put: Put, pose: Pose, body: Points) -> Pose:
    """Where the thing would lie if it sank straight down from `pose`."""
    return _lowest(scene, pose, body, scene.obstacles(put.thing.geoms), 0.0) or pose


def _may_sink(scene: Scene, put: Put, position: Vector) -> bool:
    """Whether the thing's origin can come to where it is allowed by falling over: nothing is between."""
    path = position - np.arange(0.0, _SINK_M, 0.004)[:, None] * UP
    inside = scene.solids.inside(scene.data, path, scene.obstacles(put.thing.geoms))
    free = path[: int(np.argmax(inside))] if inside.any() else path
    return any(put.allowed(point) for point in free)


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
