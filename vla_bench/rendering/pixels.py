"""The probe scene: the hash of its pictures tells whether two machines paint alike, whatever their OpenGL is called.

It holds what renderers differ in and the suites have: lights with shadows (directional, a spot, one without), textures
seen at a slant and from afar, a mirror, gloss, glass, curved silhouettes, a smooth mesh, a sky, multisampled edges.
MuJoCo's own part of the pixels (which triangles, which lights) is decided by its version, which the protocol holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_bench.types import Image, Quality, Suite

VERSION = 1
"""Raised whenever the scene, or how it is painted or hashed, changes: probes of two versions are not compared."""
SCENE = """
<mujoco model="probe scene">
  <visual>
    <headlight ambient=".2 .2 .2" diffuse=".3 .3 .3" specular=".2 .2 .2"/>
    <map znear=".01" zfar="20"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".4 .6 .8" rgb2=".1 .1 .2" width="64" height="384"/>
    <texture name="tiles" type="2d" builtin="checker" rgb1=".8 .7 .5" rgb2=".3 .2 .2" mark="cross" markrgb="1 1 1"
             width="128" height="128"/>
    <texture name="print" type="cube" builtin="checker" rgb1=".7 .3 .2" rgb2=".2 .5 .3" mark="edge" markrgb=".1 .1 .6"
             width="64" height="384"/>
    <material name="floor" texture="tiles" texrepeat="5 5" texuniform="true" reflectance=".3" specular=".4"/>
    <material name="printed" texture="print" specular=".8" shininess=".9"/>
    <material name="gloss" rgba=".2 .5 .3 1" specular="1" shininess="1" emission=".1"/>
    <material name="glass" rgba=".9 .2 .2 .4" specular=".5"/>
    <mesh name="gem" smoothnormal="true"
          vertex="0 0 .2  .1 0 .1  -.1 .05 .1  0 .1 .1  0 -.1 .1  .05 .05 0  -.05 -.05 0"/>
  </asset>
  <worldbody>
    <light directional="true" pos="1 -1 3" dir="-.3 .3 -1" diffuse=".5 .5 .4" castshadow="true"/>
    <light pos="-1 -1 2" dir=".4 .4 -1" diffuse=".4 .4 .5" cutoff="40" exponent="4" castshadow="true"/>
    <light pos="0 1 2" dir="0 -.4 -1" diffuse=".2 .2 .2" castshadow="false"/>
    <camera name="eye" pos=".9 -.9 .8" xyaxes=".7071 .7071 0 -.35 .35 .87" fovy="45"/>
    <geom type="plane" size="2 2 .1" material="floor"/>
    <geom type="box" size=".12 .1 .15" pos="-.3 .2 .15" euler="0 0 25" material="printed"/>
    <geom type="capsule" size=".06 .2" pos=".2 .15 .1" euler="70 20 0" material="gloss"/>
    <geom type="sphere" size=".12" pos="-.05 -.2 .12" material="printed"/>
    <geom type="ellipsoid" size=".1 .06 .2" pos=".3 -.25 .2" material="glass"/>
    <geom type="cylinder" size=".05 .2" pos="-.35 -.3 .2" euler="5 10 0" rgba=".3 .3 .8 1"/>
    <geom type="mesh" mesh="gem" pos=".05 .45 .1" rgba=".8 .8 .2 1"/>
    <geom type="box" size=".3 .02 .2" pos="0 .3 .25" rgba=".4 .8 .9 .3"/>
  </worldbody>
</mujoco>
"""


class View(NamedTuple):
    """One picture of the probe scene: its size in pixels and how finely it is painted."""

    height: int
    width: int
    quality: Quality = Quality()


class Painting(NamedTuple):
    """What came of painting the probe scene."""

    images: tuple[Image, ...]
    renderer: str
    """GL_RENDERER, for example `llvmpipe (LLVM 15.0.6, 256 bits)`."""


def views_of(suite: Suite) -> tuple[View, ...]:
    """The views that stand for a suite's pictures: each size of a camera, once per quality. None without MuJoCo's."""
    sizes = dict.fromkeys((camera.height, camera.width) for camera in suite.cameras)
    return tuple(View(*size, quality) for quality in dict.fromkeys(suite.mujoco_quality) for size in sizes)


def paint(views: Sequence[View]) -> Painting:
    """The probe scene in each of these views. Makes a GL context of its own: only for a process that has no other."""
    import mujoco
    from OpenGL import GL

    model = mujoco.MjModel.from_xml_string(SCENE)
    height, width = max(view.height for view in views), max(view.width for view in views)
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    window = mujoco.GLContext(width, height)  # named, so that it lives as long as it is painted in
    window.make_current()
    scene = _seen(model)
    images = tuple(_picture(model, scene, view) for view in views)
    return Painting(images, (GL.glGetString(GL.GL_RENDERER) or b"").decode(errors="replace"))


def _seen(model: Any) -> Any:
    """The model as its camera sees it, an mjvScene."""
    import mujoco

    data, scene, eye = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=100), mujoco.MjvCamera()
    mujoco.mj_forward(model, data)
    eye.type, eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    everything = mujoco.mjtCatBit.mjCAT_ALL
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), mujoco.MjvPerturb(), eye, everything, scene)
    return scene


def _picture(model: Any, scene: Any, view: View) -> Image:
    import mujoco

    model.vis.quality.shadowsize, model.vis.quality.offsamples = view.quality
    renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, renderer)
    image, area = np.empty((view.height, view.width, 3), np.uint8), mujoco.MjrRect(0, 0, view.width, view.height)
    mujoco.mjr_render(area, scene, renderer)
    mujoco.mjr_readPixels(image, None, area, renderer)
    renderer.free()
    return image[::-1]


def pixel_hash(images: Sequence[Image]) -> str:
    """`1:0123456789ab`: the scene's version, and 12 hex digits of SHA-256 over sizes and pixels."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.shape} {image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).tobytes())
    return f"{VERSION}:{digest.hexdigest()[:12]}"
