"""Pictures and masks of a robosuite scene, equal to those of robosuite's own renderer, without what changes no pixel.

The software renderer spends its time on vertices: a bowl of LIBERO has 42,000 triangles, twice as many where a mirror
shows it. A pixel is decided by the geoms whose rectangle in the picture holds it, so

* geoms whose rectangle is empty are not drawn;
* a fixed camera's picture is painted anew only where something moved since the last one, with the geoms seen there;
* the reflection, a second drawing of everything, is drawn for the mirror's own rectangle alone, and only with what can
  be seen there. MuJoCo lets only the first mirror that is drawn reflect (`mjr_render`).

With lights that cast shadows everything is drawn always.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.rendering.gl import explained
from vla_bench.types import Camera, Float32, Image, Mask

from .gl_contexts import insist_on_own_process, owned

Float64 = NDArray[np.float64]
Rectangles = NDArray[np.int64]  # (n, 4) left, top, right, bottom in pixels, the last two beyond it; empty ones all 0

# Renderer settings of robosuite.utils.binding_utils.MjRenderContext.
_MAX_GEOMS = 1000
_HIDDEN_GROUP = 5  # of geoms; MuJoCo shows 0, 1 and 2, robosuite hides 0
_OPAQUE = 0.995  # from this alpha on MuJoCo takes a geom for opaque
_NEAR_M = 0.01  # what reaches closer to the camera may be anywhere in the picture
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))


class Still(NamedTuple):
    """What a picture of one instant needs."""

    qpos: Float64
    """(nq,) as the kinematics saw it: before the substep's integration."""
    site_rgba: NDArray[np.float32]
    """(nsite, 4): LIBERO's stove switches a site on when it burns."""

    def copy(self) -> Still:
        return Still(self.qpos.copy(), self.site_rgba.copy())


class _Sight(NamedTuple):
    """How one camera sees the n elements of a scene: its geoms that are ever drawn, then its sites."""

    viewpoint: Float32
    """Of camera and lights."""
    looks: Float32
    """(n, 16) position, rotation and colour as the renderer gets them; zeros for an invisible site."""
    places: Rectangles
    """(n, 4)."""
    reflections: Rectangles
    """(n, 4) in the mirror."""
    mirror: Rectangles
    """(1, 4), empty without one."""
    nearest_m: Float64
    """(n,) in front of the camera."""
    farthest_m: Float64

    def moved_since(self, other: _Sight) -> Rectangles:
        """Where pixels may have changed since the other sight from the same viewpoint."""
        moved = np.any(self.looks != other.looks, axis=1)
        return np.concatenate([each[moved] for s in (self, other) for each in (s.places, s.reflections)])


class Cameras:
    """Pictures of a `Still`, and masks of what is seen of some bodies in it."""

    def __init__(self, model: Any, cameras: Sequence[Camera]) -> None:
        import mujoco

        insist_on_own_process()
        self._mujoco = mujoco
        height, width = max(camera.height for camera in cameras), max(camera.width for camera in cameras)
        with explained():
            self._context = mujoco.GLContext(width, height)
            self._context.make_current()
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        self._free = owned(self, _free, self._context, self._renderer)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._options.geomgroup[1] = 1  # visual shapes
        self._perturb = mujoco.MjvPerturb()
        self._use(model)

    def _use(self, model: Any) -> None:
        self._model = model
        self._scratch = self._mujoco.MjData(model)
        self._scene = self._mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._shadows = bool(np.any(model.light_castshadow))
        self._geoms = np.flatnonzero(np.array(self._options.geomgroup)[model.geom_group])
        self._sites = np.flatnonzero(np.array(self._options.sitegroup)[model.site_group])
        self._boxes = np.concatenate([_geom_boxes(model)[self._geoms], _site_boxes(model)[self._sites]])
        kinds = [self._mujoco.mjtGeom.mjGEOM_PLANE, self._mujoco.mjtGeom.mjGEOM_HFIELD]
        self._endless = np.concatenate([np.isin(model.geom_type[self._geoms], kinds), np.zeros(len(self._sites), bool)])
        self._mirrors: list[int] = []
        self._mirrors = self._find_mirrors()
        self._forget()

    def _forget(self) -> None:
        self._painted: dict[str, tuple[_Sight, Image]] = {}
        self._masked: dict[str, tuple[tuple[bytes, ...], Mask]] = {}

    def adopt(self, model: Any) -> bool:
        """Paint a new episode of this model, unless it needs other meshes, textures or shadows in the GL context."""
        if model is self._model:
            self._forget()
            return True
        if not _same_resources(self._model, model):
            return False
        self._use(model)
        return True

    def paint(self, still: Still, cameras: Sequence[Camera]) -> dict[str, Image]:
        """Camera name to upright RGB uint8 (height, width, 3)."""
        with self._shown(still):
            return {camera.name: self._picture(camera) for camera in cameras}

    def segment(self, still: Still, cameras: Sequence[Camera], bodies: Sequence[str]) -> dict[str, Mask]:
        """Camera name to (height, width): where those bodies, and what hangs on them, can be seen."""
        geoms = geoms_of(self._model, bodies)
        with self._shown(still):
            return {camera.name: self._mask(camera, geoms) for camera in cameras}

    def close(self) -> None:
        self._free()

    @contextlib.contextmanager
    def _shown(self, still: Still) -> Iterator[None]:
        insist_on_own_process()
        self._context.make_current()
        self._place(still.qpos)
        now = self._model.site_rgba.copy()
        self._model.site_rgba[:] = still.site_rgba
        try:
            yield
        finally:
            self._model.site_rgba[:] = now

    def _place(self, qpos: Float64) -> None:
        """The parts of `mj_fwdPosition` that a picture can show; contacts are not drawn."""
        self._scratch.qpos[:] = qpos
        self._mujoco.mj_kinematics(self._model, self._scratch)
        self._mujoco.mj_comPos(self._model, self._scratch)
        self._mujoco.mj_camlight(self._model, self._scratch)
        self._mujoco.mj_tendon(self._model, self._scratch)

    # Painting

    def _picture(self, camera: Camera) -> Image:
        view = self._view(camera)
        if self._shadows:
            return self._draw(camera, view, np.ones(len(self._boxes), bool), reflecting=True)
        sight = self._sight(camera, view.fixedcamid)
        before = self._painted.get(camera.name)
        if before is not None and np.array_equal(before[0].viewpoint, sight.viewpoint):
            stale = _covered(sight.moved_since(before[0]), camera)
            picture = before[1].copy()
        else:
            stale = np.ones((camera.height, camera.width), bool)
            picture = np.empty((camera.height, camera.width, 3), np.uint8)
        in_mirror = stale & _covered(sight.mirror, camera)
        for region, reflecting in ((stale & ~in_mirror, False), (in_mirror, True)):
            if region.any():
                needed = _touching(sight.places, region) | (reflecting & _touching(sight.reflections, region))
                picture[region] = self._draw(camera, view, needed, reflecting)[region]
        self._painted[camera.name] = sight, picture
        return picture.copy()

    def _mask(self, camera: Camera, geoms: Sequence[int]) -> Mask:
        """(height, width) upright: pixels whose foremost geom is one of those."""
        view = self._view(camera)
        sight = self._sight(camera, view.fixedcamid)
        wanted = np.append(np.isin(self._geoms, geoms), np.zeros(len(self._sites), bool))
        needed = _touching(sight.places, _covered(sight.places[wanted], camera))
        needed &= sight.nearest_m <= np.max(sight.farthest_m, where=wanted, initial=0.0)
        needed[len(self._geoms) :] = False
        key = (sight.viewpoint.tobytes(), needed.tobytes(), wanted.tobytes(), sight.looks[needed].tobytes())
        if camera.name not in self._masked or self._masked[camera.name][0] != key:
            self._masked[camera.name] = key, self._segmented(camera, view, needed, geoms)
        return self._masked[camera.name][1]

    def _segmented(self, camera: Camera, view: Any, needed: NDArray[np.bool_], geoms: Sequence[int]) -> Mask:
        flags, sites = self._scene.flags, self._options.sitegroup.copy()
        flags[self._mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[self._mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        self._options.sitegroup[:] = 0  # here MuJoCo would draw the invisible ones too, such as the gripper's 20 m beam
        try:
            colours = self._draw(camera, view, needed, reflecting=False).astype(np.int64)
        finally:
            flags[self._mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[self._mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
            self._options.sitegroup[:] = sites
        wanted = np.zeros(self._scene.ngeom + 1, bool)  # MuJoCo paints what has the segment i in colour i + 1
        for drawn in self._drawn():
            wanted[drawn.segid + 1] = drawn.objid in geoms
        mask: Mask = wanted[colours @ [1, 256, 65536]]
        return mask

    def _view(self, camera: Camera) -> Any:
        view = self._mujoco.MjvCamera()
        view.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._mujoco.mj_name2id(self._model, self._mujoco.mjtObj.mjOBJ_CAMERA, camera.name)
        return view

    def _draw(self, camera: Camera, view: Any, needed: NDArray[np.bool_], reflecting: bool) -> Image:
        """(height, width, 3) upright: the needed ones of the n elements (sites always), with or without reflection."""
        self._fill_scene(view, self._geoms[~needed[: len(self._geoms)]])
        self._scene.flags[self._mujoco.mjtRndFlag.mjRND_REFLECTION] = reflecting
        area = self._mujoco.MjrRect(0, 0, camera.width, camera.height)
        self._mujoco.mjr_render(area, self._scene, self._renderer)
        picture = np.empty((camera.height, camera.width, 3), dtype=np.uint8)
        self._mujoco.mjr_readPixels(picture, None, area, self._renderer)
        return np.ascontiguousarray(picture[::-1])  # OpenGL's row 0 is the bottom

    def _fill_scene(self, view: Any, left_out: NDArray[np.int64]) -> None:
        """Everything that camera may see, without those geoms."""
        mujoco, groups = self._mujoco, self._model.geom_group
        before = groups.copy()
        groups[left_out] = _HIDDEN_GROUP
        try:
            mujoco.mjv_updateScene(
                self._model, self._scratch, self._options, self._perturb, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene
            )
        finally:
            groups[:] = before
        if len(self._mirrors) > 1:
            mirror = self._mirror(view.fixedcamid)
            for geom in self._drawn():
                if geom.objid in self._mirrors and geom.objid != mirror:  # else it would take the place of the first
                    geom.reflectance = 0.0

    # Mirrors

    def _find_mirrors(self) -> list[int]:
        """Geoms of which MuJoCo makes the first one a mirror: opaque planes and boxes of a reflecting material."""
        self._fill_scene(self._mujoco.MjvCamera(), np.array([], int))
        flat = (self._mujoco.mjtGeom.mjGEOM_PLANE, self._mujoco.mjtGeom.mjGEOM_BOX)
        drawn = [geom for geom in self._drawn() if geom.type in flat and geom.rgba[3] >= _OPAQUE]
        return [geom.objid for geom in drawn if geom.reflectance > 0]

    def _drawn(self) -> list[Any]:
        """The scene's geoms that are the model's, no sites."""
        kind = self._mujoco.mjtObj.mjOBJ_GEOM
        return [geom for geom in self._scene.geoms[: self._scene.ngeom] if geom.objtype == kind]

    def _mirror(self, camera: int) -> int | None:
        """The geom that reflects; a plane seen from behind is see-through to MuJoCo, so it does not."""
        for geom in self._mirrors:
            plane = self._model.geom_type[geom] == self._mujoco.mjtGeom.mjGEOM_PLANE
            if not plane or self._before(geom, self._scratch.cam_xpos[camera]) >= 0:
                return geom
        return None

    def _before(self, geom: int, points: Float64) -> Float64:
        """(...,) metres in front of the plane, or of the box's upper side, of (..., 3) points."""
        place, normal = self._scratch.geom_xpos[geom], self._scratch.geom_xmat[geom].reshape(3, 3)[:, 2]
        box = self._model.geom_type[geom] == self._mujoco.mjtGeom.mjGEOM_BOX
        before: Float64 = (points - place) @ normal - box * self._model.geom_size[geom, 2]
        return before

    # What is where in the picture

    def _sight(self, camera: Camera, number: int) -> _Sight:
        data, model = self._scratch, self._model
        poses = np.concatenate(
            [
                np.hstack([data.geom_xpos, data.geom_xmat, model.geom_rgba])[self._geoms],
                np.hstack([data.site_xpos, data.site_xmat, model.site_rgba])[self._sites],
            ]
        )
        sites = poses[len(self._geoms) :]
        sites[sites[:, -1] <= 0] = 0.0  # robosuite hides a site by an alpha below 0
        corners = poses[:, None, :3] + self._boxes @ poses[:, 3:12].reshape(-1, 3, 3).transpose(0, 2, 1)
        places = self._rectangles(corners, camera, number)
        front = self._from_camera(corners, number)[..., 2]
        mirror, reflections = np.zeros((1, 4), int), np.zeros_like(places)
        reflecting = self._mirror(number)
        if reflecting is not None and self._before(reflecting, data.cam_xpos[number]) >= 0:
            mirror = places[np.flatnonzero(self._geoms == reflecting)]
            normal = data.geom_xmat[reflecting].reshape(3, 3)[:, 2]
            beyond = corners - 2 * self._before(reflecting, corners)[..., None] * normal
            reflections = _overlap(self._rectangles(beyond, camera, number), mirror)
        return _Sight(
            viewpoint=np.concatenate(
                [data.cam_xpos[number], data.cam_xmat[number], data.light_xpos.ravel(), data.light_xdir.ravel()],
                dtype=np.float32,
            ),
            looks=poses.astype(np.float32),
            places=places,
            reflections=reflections,
            mirror=mirror,
            nearest_m=np.where(self._endless, -np.inf, front.min(axis=1)),
            farthest_m=np.where(self._endless, np.inf, front.max(axis=1)),
        )

    def _from_camera(self, points: Float64, number: int) -> Float64:
        """(..., 3) right of, above and in front of the camera, metres, of points in the world."""
        axes = self._scratch.cam_xmat[number].reshape(3, 3) * [1.0, 1.0, -1.0]  # MuJoCo's cameras look along -z
        seen: Float64 = (points - self._scratch.cam_xpos[number]) @ axes
        return seen

    def _rectangles(self, corners: Float64, camera: Camera, number: int) -> Rectangles:
        """(n, 4) that hold all there is between the (n, 8, 3) corners, with a pixel to spare; planes are everywhere."""
        size = np.array([camera.width, camera.height])
        top = np.tan(np.radians(self._model.cam_fovy[number]) / 2)
        half = np.array([top * camera.width / camera.height, top]) * (1 + 2 / size)  # with the pixel to spare
        seen = self._from_camera(corners, number)
        aside, front = seen[..., :2], seen[..., 2:]
        beyond = np.concatenate([aside > half * front, -aside > half * front, front <= 0], axis=2)
        hidden = np.any(np.all(beyond, axis=1), axis=1)  # all corners beyond one side of the picture
        close = np.any(front[..., 0] < _NEAR_M, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            across = aside / front / (half / (1 + 2 / size)) * [1.0, -1.0]
        pixels = (np.where(close[:, None, None], 0.0, across) + 1) / 2 * size
        low, high = np.floor(pixels.min(axis=1)) - 1, np.ceil(pixels.max(axis=1)) + 1
        rectangles = np.hstack([np.clip(low, 0, size), np.clip(high, 0, size)]).astype(np.int64)
        rectangles[close] = [0, 0, *size]
        rectangles[hidden] = 0
        rectangles[self._endless] = [0, 0, *size]
        return rectangles


def geoms_of(model: Any, bodies: Sequence[str]) -> list[int]:
    """Numbers of the geoms of those bodies and of all that hangs on them."""
    members = {model.body(name).id for name in bodies}
    for body in range(1, model.nbody):  # MuJoCo numbers parents before children
        if model.body_parentid[body] in members:
            members.add(body)
    return [geom for geom, body in enumerate(model.geom_bodyid.tolist()) if body in members]


def _geom_boxes(model: Any) -> Float64:
    """(ngeom, 8, 3) corners of the geoms' bounding boxes in their own frames."""
    boxes: Float64 = model.geom_aabb[:, None, :3] + _CORNERS * model.geom_aabb[:, None, 3:]
    return boxes


def _site_boxes(model: Any) -> Float64:
    """(nsite, 8, 3); the sum of a site's sizes is at least its extent, whatever its shape."""
    boxes: Float64 = _CORNERS * model.site_size.sum(axis=1)[:, None, None]
    return boxes


def _covered(rectangles: Rectangles, camera: Camera) -> Mask:
    covered = np.zeros((camera.height, camera.width), bool)
    for left, top, right, bottom in rectangles.tolist():
        covered[top:bottom, left:right] = True
    return covered


def _touching(rectangles: Rectangles, region: Mask) -> NDArray[np.bool_]:
    """(n,) whether the rectangle holds a pixel of the region."""
    counts = np.zeros((region.shape[0] + 1, region.shape[1] + 1), np.int64)
    counts[1:, 1:] = region.cumsum(axis=0).cumsum(axis=1)
    left, top, right, bottom = rectangles.T
    within = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
    touching: NDArray[np.bool_] = within > 0
    return touching


def _overlap(rectangles: Rectangles, other: Rectangles) -> Rectangles:
    low, high = np.maximum(rectangles[:, :2], other[:, :2]), np.minimum(rectangles[:, 2:], other[:, 2:])
    both = np.hstack([low, high])
    both[np.any(low >= high, axis=1)] = 0
    return both


def _free(context: Any, renderer: Any) -> None:
    """Without its own context current, `MjrContext` frees the textures of whichever other one is."""
    context.make_current()
    renderer.free()
    context.free()


def _same_resources(a: Any, b: Any) -> bool:
    """Whether `MjrContext` would upload the same things for both models and draw the same shadows and fog."""
    names = [name for name in dir(a) if name.startswith(("tex_", "mesh_", "mat_", "hfield_", "skin_"))]
    return a.stat.extent == b.stat.extent and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)
