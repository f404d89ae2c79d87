"""Which points of space are solid: the collision shapes of a MuJoCo model, asked with NumPy.

MuJoCo can cast rays and collide what is in the model; it cannot say whether a hand that is not there would fit. So each
collision shape is asked analytically (box, cylinder, sphere, capsule, ellipsoid, plane) or by the half-spaces of its
convex hull (meshes: MuJoCo collides their hulls too).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from .arm import Points

Mask = NDArray[np.bool_]  # (n,)

# mujoco.mjtGeom
_PLANE, _SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX, _MESH = 0, 2, 3, 4, 5, 6, 7
_SAMPLE_PITCH_M = 0.012


class Solids:
    """The collision shapes of one model; `data` says where they are."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hulls: dict[int, NDArray[np.float64]] = {}
        self.colliding: Mask = (model.geom_contype != 0) | (model.geom_conaffinity != 0)

    def of_bodies(self, bodies: Sequence[int]) -> list[int]:
        """Colliding geoms of these bodies."""
        return [int(geom) for geom in np.flatnonzero(np.isin(self._model.geom_bodyid, bodies) & self.colliding)]

    def inside(self, data: Any, points: Points, geoms: Sequence[int], margin_m: float = 0.0) -> Mask:
        """(n,) whether each world point is in any of the shapes, grown by about `margin_m`."""
        hit = np.zeros(len(points), dtype=bool)
        for geom in self._near(data, points, geoms, margin_m):
            local = (points - data.geom_xpos[geom]) @ data.geom_xmat[geom].reshape(3, 3)
            hit |= self._contains(geom, local, margin_m)
        return hit

    def samples(self, geom: int, pitch_m: float = _SAMPLE_PITCH_M) -> Points:
        """Points that fill the shape, in the geom's frame: corners and, at most `pitch_m` apart, what it encloses."""
        if self._model.geom_type[geom] == _MESH:
            vertices = self._vertices(geom)
            low, high = vertices.min(0), vertices.max(0)
        else:
            vertices, half = np.empty((0, 3)), self._half_extents(geom)
            low, high = -half, half
        lattice = _lattice(low, high, pitch_m)
        return np.concatenate([vertices, lattice[self._contains(geom, lattice, 1e-4)]])

    def _near(self, data: Any, points: Points, geoms: Sequence[int], margin_m: float) -> list[int]:
        """Those whose bounding spheres reach the points' bounding box."""
        chosen = np.asarray(geoms, dtype=int)
        centres, reach = data.geom_xpos[chosen], self._model.geom_rbound[chosen] + margin_m
        gap = np.maximum(0.0, np.maximum(points.min(0) - centres, centres - points.max(0)))
        boundless = self._model.geom_type[chosen] == _PLANE
        return [int(geom) for geom in chosen[(np.linalg.norm(gap, axis=1) <= reach) | boundless]]

    def _contains(self, geom: int, local: Points, margin: float) -> Mask:
        kind, size = self._model.geom_type[geom], self._model.geom_size[geom] + margin
        if kind == _BOX:
            inside: Mask = (np.abs(local) <= size).all(axis=1)
        elif kind == _CYLINDER:
            inside = (np.hypot(local[:, 0], local[:, 1]) <= size[0]) & (np.abs(local[:, 2]) <= size[1])
        elif kind == _SPHERE:
            inside = np.asarray(np.linalg.norm(local, axis=1) <= size[0])
        elif kind == _CAPSULE:
            beyond = np.maximum(0.0, np.abs(local[:, 2]) - (size[1] - margin))
            inside = np.asarray(np.hypot(np.hypot(local[:, 0], local[:, 1]), beyond) <= size[0])
        elif kind == _ELLIPSOID:
            inside = np.asarray(np.linalg.norm(local / size, axis=1) <= 1.0)
        elif kind == _PLANE:
            inside = np.asarray(local[:, 2] <= margin)
        elif kind == _MESH:
            faces = self._hull(geom)
            inside = np.asarray((local @ faces[:, :3].T + faces[:, 3] <= margin).all(axis=1))
        else:
            inside = np.zeros(len(local), dtype=bool)
        return inside

    def _half_extents(self, geom: int) -> NDArray[np.float64]:
        kind, size = self._model.geom_type[geom], self._model.geom_size[geom]
        if kind in (_CYLINDER, _CAPSULE):
            return np.array([size[0], size[0], size[1] + (size[0] if kind == _CAPSULE else 0.0)])
        return np.array([size[0]] * 3) if kind == _SPHERE else np.array(size)

    def _vertices(self, geom: int) -> Points:
        mesh = self._model.geom_dataid[geom]
        start, count = self._model.mesh_vertadr[mesh], self._model.mesh_vertnum[mesh]
        vertices = np.asarray(self._model.mesh_vert[start : start + count], dtype=np.float64)
        corners: Points = vertices[ConvexHull(vertices).vertices]
        return corners

    def _hull(self, geom: int) -> NDArray[np.float64]:
        """(faces, 4) outward normals and offsets."""
        mesh = int(self._model.geom_dataid[geom])
        if mesh not in self._hulls:
            self._hulls[mesh] = np.unique(ConvexHull(self._vertices(geom)).equations.round(9), axis=0)
        return self._hulls[mesh]


@functools.lru_cache(maxsize=256)
def _steps(count: int) -> tuple[float, ...]:
    return tuple(np.linspace(-1.0, 1.0, count))


def _lattice(low: Points, high: Points, pitch_m: float) -> Points:
    """Points from corner to corner, at most so far apart."""
    counts = [max(2, int(np.ceil(extent / pitch_m)) + 1) for extent in high - low]
    unit = np.array(list(itertools.product(*(_steps(count) for count in counts))))
    return (low + high) / 2 + unit * (high - low) / 2
