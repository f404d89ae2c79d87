"""Where a parallel gripper could take a thing: antipodal grasps read off its collision shapes.

For each hand orientation the thing is cut into a lattice of lines along the closing axis. Wherever a line runs through
at most `WIDEST_M` of material there is a grasp with the pads on both ends of that run: the sides of a box, the wall of
a bowl, the handle of a mug come out alike. They are ranked by how much of the pads would touch, how near they are to
the centre of mass and how little the hand has to turn; those where the open hand would not fit are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .arm import Matrix, Points, Pose, Vector
from .scene import Scene, Thing

WIDEST_M = 0.072  # the hand opens to 0.08
_FINE_M, _COARSE_M = 0.002, 0.008
_GROWN_M = 0.001  # walls of LIBERO's bowls are 1.4 mm thick and would slip between the lattice's points
_PAD_Z_M = -0.004  # centre of the pads in the hand's frame
_PAD_V_M, _PAD_W_M = (-0.006, 0.0, 0.006), (-0.010, -0.004, 0.002)  # samples of the pads in the hand's frame
_MOST_LOOKED_AT = 1500
_WITHDRAWALS_M = (0.0, 0.005, 0.010)
_APART_M, _APART_RAD = 0.015, 0.4

DOWN: Matrix = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Grasp:
    """The hand's pose in the frame of the thing, and how good it looks."""

    hand: Pose
    width_m: float
    score: float


def hand_rotations(home: Matrix, outwards: Vector, leans: Sequence[float] = (0.0,), yaws: int = 12) -> list[Matrix]:
    """Hand orientations: from above, turned about the vertical, then leaning so that the hand points outwards."""
    axis = np.cross(outwards, [0.0, 0.0, 1.0])
    return [
        _nearer_flip(
            Rotation.from_rotvec(lean * axis).as_matrix() @ Rotation.from_euler("z", yaw).as_matrix() @ DOWN, home
        )
        for lean in leans
        for yaw in np.arange(yaws) * np.pi / yaws
    ]


def looking(approach: Vector, home: Matrix) -> list[Matrix]:
    """Hand orientations that point along `approach`, closing level or upright."""
    z = approach / np.linalg.norm(approach)
    level = np.cross([0.0, 0.0, 1.0], z) if abs(z[2]) < 0.99 else np.array([1.0, 0.0, 0.0])
    level /= np.linalg.norm(level)
    made = []
    for x in (level, np.cross(z, level)):
        rotation = np.stack([x, np.cross(z, x), z], axis=1)
        made.append(_nearer_flip(rotation, home))
    return made


def _nearer_flip(rotation: Matrix, home: Matrix) -> Matrix:
    """The gripper is symmetric: of the rotation and its half turn about the hand's z, the one nearer to `home`."""
    flipped = rotation @ np.diag([-1.0, -1.0, 1.0])
    return flipped if np.trace(flipped @ home.T) > np.trace(rotation @ home.T) else rotation


def grasps(scene: Scene, thing: Thing, rotations: Sequence[Matrix], geoms: Sequence[int] = ()) -> Iterator[Grasp]:
    """Grasps of `geoms` of the thing (default: all) that fit, best first, each unlike the ones before it."""
    chosen = list(geoms) or thing.geoms
    surface = thing.pose.place(thing.points()) if not geoms else _samples(scene, chosen)
    found = [_in_orientation(scene, thing, rotation, chosen, surface) for rotation in rotations]
    scores = np.concatenate([one.scores for one in found])
    owners = np.concatenate([np.full(len(one.scores), index) for index, one in enumerate(found)])
    places = np.concatenate([one.places for one in found])
    widths = np.concatenate([one.widths for one in found])
    world, pose = scene.obstacles(), thing.pose.inverse()
    yielded: list[Pose] = []
    for index in np.argsort(-scores, kind="stable")[:_MOST_LOOKED_AT]:
        hand = Pose(places[index], rotations[owners[index]])
        if all(_apart(hand, other) for other in yielded):
            fitting = _withdrawn(scene, hand, world)
            if fitting is not None:
                yielded.append(hand)
                yield Grasp(pose.of(fitting), float(widths[index]), float(scores[index]))


def _withdrawn(scene: Scene, hand: Pose, world: Sequence[int]) -> Pose | None:
    """The pose, or one a little less deep, at which the open hand fits: of flat things only the fingertips reach."""
    poses = [hand.shifted(-back * hand.rotation[:, 2]) for back in _WITHDRAWALS_M]
    if not scene.reachable(hand) or not scene.hand_fits(poses[-1], scene.hand_parts, world):
        return None
    return next(pose for pose in poses if scene.hand_fits(pose, scene.hand_parts, world))


@dataclass(frozen=True)
class _Found:
    places: Points
    """(n, 3) of the hand, in the world."""
    widths: NDArray[np.float64]
    scores: NDArray[np.float64]


def _samples(scene: Scene, geoms: Sequence[int]) -> Points:
    data = scene.data
    placed = [Pose(data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)) for geom in geoms]
    return np.concatenate([pose.place(scene.solids.samples(geom)) for pose, geom in zip(placed, geoms, strict=True)])


def _in_orientation(scene: Scene, thing: Thing, rotation: Matrix, geoms: Sequence[int], surface: Points) -> _Found:
    seen = surface @ rotation
    low, high = seen.min(0), seen.max(0)
    axes = [np.arange(low[0] - _COARSE_M, high[0] + _COARSE_M, _FINE_M), *(_centred(low[i], high[i]) for i in (1, 2))]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    points = lattice.reshape(-1, 3) @ rotation.T
    solid = scene.solids.inside(scene.data, points, geoms, _GROWN_M).reshape(lattice.shape[:3])
    middles, widths = _runs(axes, solid)
    scores = _overlap(scene, geoms, rotation, middles, widths)
    scores = scores - _off_centre(thing, rotation, middles) - _turn(scene, rotation)
    keep = scores > -0.3
    sites = middles[keep] - [0.0, 0.0, _PAD_Z_M]
    return _Found(sites @ rotation.T, widths[keep], scores[keep])


def _centred(low: float, high: float) -> NDArray[np.float64]:
    count = max(1, int((high - low) / _COARSE_M))
    return np.asarray((low + high) / 2 + (np.arange(count) - (count - 1) / 2) * _COARSE_M, dtype=np.float64)


def _runs(axes: Sequence[NDArray[np.float64]], solid: NDArray[np.bool_]) -> tuple[Points, NDArray[np.float64]]:
    """Middles (n, 3) in the hand's axes and widths (n,) of the runs of material along the closing axis."""
    solid[0] = solid[-1] = False
    steps = np.diff(solid.astype(np.int8), axis=0)
    begins, ends = (np.argwhere(np.moveaxis(steps == sign, 0, 2)) for sign in (1, -1))  # sorted by v, w, then u
    starts, stops = axes[0][begins[:, 2]] + _FINE_M / 2, axes[0][ends[:, 2]] + _FINE_M / 2
    middles = np.stack([(starts + stops) / 2, axes[1][begins[:, 0]], axes[2][begins[:, 1]]], axis=1)
    narrow = stops - starts <= WIDEST_M
    return middles[narrow], (stops - starts)[narrow]


def _overlap(
    scene: Scene, geoms: Sequence[int], rotation: Matrix, middles: Points, widths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) share of the worse pad that has material right behind it."""
    if not len(middles):
        return np.empty(0)
    pads = np.array([[0.0, v, w - _PAD_Z_M] for v in _PAD_V_M for w in _PAD_W_M])
    shares = []
    for side in (-1.0, 1.0):
        inset = np.maximum(widths / 2 - 0.0015, 0.0)
        at = middles[:, None] + pads + side * inset[:, None, None] * np.array([1.0, 0.0, 0.0])
        solid = scene.solids.inside(scene.data, at.reshape(-1, 3) @ rotation.T, geoms, _GROWN_M)
        shares.append(solid.reshape(len(middles), -1).mean(axis=1))
    return np.asarray(np.minimum(*shares), dtype=np.float64)


def _off_centre(thing: Thing, rotation: Matrix, middles: Points) -> NDArray[np.float64]:
    offset = middles - thing.centre_of_mass @ rotation
    cost: NDArray[np.float64] = 2.0 * np.linalg.norm(offset[:, :2], axis=1) + 1.0 * np.abs(offset[:, 2])
    return cost


def _turn(scene: Scene, rotation: Matrix) -> float:
    return 0.12 * float(Rotation.from_matrix(rotation @ scene.home.rotation.T).magnitude())


def _apart(a: Pose, b: Pose) -> bool:
    far = float(np.linalg.norm(a.position - b.position)) > _APART_M
    return far or float(Rotation.from_matrix(a.rotation @ b.rotation.T).magnitude()) > _APART_RAD
