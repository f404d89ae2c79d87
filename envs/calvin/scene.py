"""MJCF of CALVIN's table, scenes A to D, written from measured numbers: bodies, sizes, masses, frictions, cameras.

World frame: origin on the floor under the table's centre, x to the right when facing the table, y into the cabinet,
z up; metres, kilograms. Numbers are those of calvin_env 797142c after its global scaling of 0.8, taken from its URDFs
or measured in PyBullet. What is peculiar:

* Moving parts are Bullet convex hulls with a collision margin of 1 mm: a block rests 1 mm above the plank. They are
  `HULL_MARGIN` larger here than drawn upstream, door and tray more, as rays cast in PyBullet found them. Base and
  blocks have no margin.
* Bullet multiplies friction coefficients, MuJoCo takes those of the geom of higher priority, else the larger ones. The
  coefficients here make blocks on the table 0.35, on blocks 0.49 and between the fingers 0.7, as the products are.
  Handles have 0.2 where the product is 0.5: pressed by a finger from above, the drawer's lets it slide in PyBullet.
* Fingers are boxes. They and the arm's joints carry an armature: sim.py explains why.
* Joint friction of 4 N is Bullet's idle velocity motor on door, drawer and switch.
* Arm meshes come from robosuite's package, masses from the URDF, inertias from the collision meshes.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import MissingPackage
from vla_bench.types import Quality

Span = tuple[float, float]
Point = tuple[float, float, float]
Colour = tuple[int, int, int]


QUALITY = Quality(shadowsize=1024, offsamples=0)


class Cuboid(NamedTuple):
    """A box between these coordinates, along the axes of its body."""

    x: Span
    y: Span
    z: Span

    def grown(self, margin: float) -> Cuboid:
        return Cuboid(*((low - margin, high + margin) for low, high in self))


@dataclass(frozen=True)
class Scene:
    """What differs between the four tables."""

    name: str
    button_x: float
    """Also the LED's."""
    switch_x: float
    """Also the light bulb's."""
    door_x: float
    """Left edge of the sliding door at joint 0, its right end stop."""
    door_travel: float
    cavity_x: Span
    """Inside of the cabinet."""
    drawer_x: float
    wood: Colour
    """Mean colour of table and plank texture."""
    panel: Colour
    """Mean colour of drawer and door texture, without the gray handle."""
    blocks: tuple[tuple[str, float], ...]
    """(colour, length along local x) in the order of scene_obs."""
    table_x: Span
    """Where a random reset puts blocks: on the table, in the cabinet's left and in its right half."""
    left_x: Span
    right_x: Span


SCENES: Mapping[str, Scene] = {
    "A": Scene(
        name="A",
        button_x=-0.28,
        switch_x=0.30,
        door_x=-0.10,
        door_travel=0.28,
        cavity_x=(-0.36, 0.16),
        drawer_x=0.10,
        wood=(121, 70, 46),
        panel=(121, 70, 46),
        blocks=(("pink", 0.040), ("blue", 0.080), ("red", 0.056)),
        table_x=(-0.20, 0.35),
        left_x=(-0.32, -0.16),
        right_x=(-0.05, 0.13),
    ),
    "B": Scene(
        name="B",
        button_x=0.28,
        switch_x=-0.32,
        door_x=0.088,
        door_travel=0.304,
        cavity_x=(-0.18, 0.34),
        drawer_x=0.18,
        wood=(244, 196, 140),
        panel=(244, 196, 140),
        blocks=(("red", 0.040), ("blue", 0.080), ("pink", 0.056)),
        table_x=(-0.35, 0.15),
        left_x=(-0.12, 0.06),
        right_x=(0.15, 0.33),
    ),
    "C": Scene(
        name="C",
        button_x=-0.12,
        switch_x=-0.32,
        door_x=0.06,
        door_travel=0.24,
        cavity_x=(-0.18, 0.34),
        drawer_x=0.10,
        wood=(159, 108, 64),
        panel=(121, 70, 46),
        blocks=(("blue", 0.040), ("red", 0.080), ("pink", 0.056)),
        table_x=(0.0, 0.35),
        left_x=(-0.12, 0.06),
        right_x=(0.15, 0.30),
    ),
    "D": Scene(
        name="D",
        button_x=-0.12,
        switch_x=0.30,
        door_x=-0.10,
        door_travel=0.28,
        cavity_x=(-0.36, 0.16),
        drawer_x=0.18,
        wood=(156, 117, 78),
        panel=(156, 117, 78),
        blocks=(("red", 0.056), ("blue", 0.040), ("pink", 0.080)),
        table_x=(0.0, 0.35),
        left_x=(-0.32, -0.16),
        right_x=(-0.05, 0.13),
    ),
}

HULL_MARGIN = 0.001
BLOCK_SECTION = 0.04
BLOCK_RGB: Mapping[str, str] = {"red": "1 0 0 1", "blue": "0 0 1 1", "pink": "1 0 1 1"}
BASE_POSITION = (-0.34, -0.46, 0.24)
LINK_MASSES = (2.7, 2.73, 2.04, 2.08, 3.0, 1.3, 0.2)
HAND_MASS, FINGER_MASS = 0.81, 0.1
ARM_ARMATURE = 2.0
"""kg m²: with less, the joints that bear least yield first when the arm meets an obstacle; Bullet's do not."""
FINGER_ARMATURE = 0.7
"""kg: makes a motor 24 M / dt stiff, 90 N on each side of a block. Closing then still needs less than its 200 N."""
TCP_FROM_HAND = 0.14
BUTTON_TRAVEL, DRAWER_TRAVEL, SWITCH_TRAVEL = 0.02, 0.22, 0.088
JOINT_FRICTION_N = 4.0
TEXTURE_PX = 128

_TABLE_BITS = {"contype": "1", "conaffinity": "0"}
_BLOCK_BITS = {"contype": "2", "conaffinity": "7"}
_ROBOT_BITS = {"contype": "4", "conaffinity": "1"}
_DRAWN_BITS = {"contype": "0", "conaffinity": "0", "group": "2", "mass": "0"}
# As stiff as two physics steps allow; a dry friction that hardly creeps.
_SOLREF, _SOLIMP = "0.0085 1", "0.95 0.99 0.001"
_HIDDEN = {"group": "3", "rgba": "0.2 0.6 0.2 1"}
# The sloping front of the cabinet runs from (y, z) = (0.02, 0.44) to (0.14, 0.6478), 30 degrees from vertical.
_SLOPE_FOOT = (0.02, 0.44)
_UP_SLOPE = (0.5, math.sqrt(0.75))
_OUT_OF_SLOPE = (-math.sqrt(0.75), 0.5)
_CABINET_TOP, _CABINET_BACK, _CAVITY_ROOF, _CAVITY_BACK = 0.6478, 0.18, 0.6278, 0.16
_SLOPE_LENGTH = 0.24
# Child frame in parent frame of the Panda's joints: position and rotation about x in quarter turns.
_CHAIN: Sequence[tuple[Point, int]] = (
    ((0, 0, 0.333), 0),
    ((0, 0, 0), -1),
    ((0, -0.316, 0), 1),
    ((0.0825, 0, 0), 1),
    ((-0.0825, 0.384, 0), -1),
    ((0, 0, 0), 1),
    ((0.088, 0, 0), 1),
)
JOINT_LOWER = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
JOINT_UPPER = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)


def contact_distance(length: float) -> float:
    """Greatest distance (m) at which a block of that length touches: Bullet's contact breaking threshold.

    It is 0.02 times half the diagonal; of two blocks, the smaller one's counts.
    """
    return 0.02 * math.hypot(length / 2, BLOCK_SECTION / 2, BLOCK_SECTION / 2)


def mjcf(scene: Scene) -> str:
    """The whole model as MJCF text. Raises MissingPackage where robosuite, whose meshes it names, is not installed."""
    root = ET.Element("mujoco", model=f"calvin_{scene.name}")
    _settings(root)
    _assets(root)
    world = _add(root, "worldbody")
    _surroundings(world)
    _robot(world)
    _table(world, root, scene)
    for colour, length in scene.blocks:
        _block(world, colour, length)
    _block_on_block(root, scene.blocks)
    return ET.tostring(root, encoding="unicode")


def arm_mjcf() -> str:
    """The arm alone, without geoms and masses that matter: for inverse kinematics."""
    root = ET.Element("mujoco", model="calvin_arm")
    _add(root, "compiler", angle="radian")
    hand = _arm(_add(root, "worldbody"), drawn=False)
    _add(hand, "site", name="tcp", pos=_numbers((0, 0, TCP_FROM_HAND)))
    return ET.tostring(root, encoding="unicode")


def wood_texture(mean: Colour, seed: int) -> NDArray[np.uint8]:
    """uint8 (6 * TEXTURE_PX, TEXTURE_PX, 3): grain along the rows on six faces, of that mean colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : TEXTURE_PX * 1j, 0 : 1 : TEXTURE_PX * 1j]
    faces = []
    for _ in range(6):
        bend, phase = rng.uniform(0.02, 0.06), rng.uniform(0, 2 * np.pi, 4)
        across = rows + bend * np.sin(2 * np.pi * columns + phase[0])
        grain = sum(
            np.sin(2 * np.pi * across * turns + p) / turns**0.5 for turns, p in zip((3, 8, 21), phase[1:], strict=True)
        )
        grain += 0.5 * rng.standard_normal((TEXTURE_PX, 1)) + 0.15 * rng.standard_normal((TEXTURE_PX, TEXTURE_PX))
        faces.append(0.05 * (grain - grain.mean()))
    shade = np.concatenate(faces)[..., None]
    pixels: NDArray[np.uint8] = np.clip(np.asarray(mean) * (1 + shade), 0, 255).round().astype(np.uint8)
    return pixels


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _settings(root: ET.Element) -> None:
    _add(root, "compiler", angle="radian", inertiafromgeom="auto", meshdir=str(_robosuite_assets()))
    option = _add(root, "option", timestep=f"{1 / 240:.17g}", gravity="0 0 -9.8", cone="elliptic", impratio="50")
    option.set("iterations", "20")
    option.set("ls_iterations", "20")
    _add(option, "flag", multiccd="enable")
    _add(root, "size", memory="16M")
    _add(root, "statistic", extent="1", center="0 0 0.4")
    visual = _add(root, "visual")
    _add(visual, "map", znear="0.01", zfar="10")
    _add(visual, "headlight", ambient="0.55 0.55 0.55", diffuse="0 0 0", specular="0 0 0")
    _add(visual, "quality", **{name: str(value) for name, value in QUALITY._asdict().items()})
    _add(visual, "global", offwidth="400", offheight="400")
    default = _add(root, "default")
    _add(default, "geom", solref=_SOLREF, solimp=_SOLIMP, condim="4", friction="0.35 0.001 0.0001")
    _add(default, "joint", solreflimit=_SOLREF, solreffriction=_SOLREF, solimpfriction="0.999 0.999 0.001")


def _assets(root: ET.Element) -> None:
    asset = _add(root, "asset")
    _add(asset, "texture", type="skybox", builtin="flat", rgb1="0.95 0.95 0.97", width="8", height="48")
    floor = {"type": "2d", "builtin": "checker", "rgb1": "0.93 0.93 0.95", "rgb2": "0.85 0.85 0.87"}
    _add(asset, "texture", name="floor", width="64", height="64", **floor)
    _add(asset, "material", name="floor", texture="floor", texrepeat="1 1", texuniform="true")
    for name in ("wood", "panel"):
        _add(asset, "texture", name=name, type="cube", builtin="flat", width=str(TEXTURE_PX), height=str(TEXTURE_PX))
        _add(asset, "material", name=name, texture=name, specular="0.1", shininess="0.1")
    for number in range(8):
        _add(asset, "mesh", name=f"link{number}", file=f"robots/panda/meshes/link{number}.stl")
        _add(asset, "mesh", name=f"link{number}_vis", file=f"robots/panda/meshes/link{number}_vis.stl")
    _add(asset, "mesh", name="hand", file="robots/panda/meshes/hand.stl")
    _add(asset, "mesh", name="hand_vis", file="robots/panda/meshes/hand_vis.stl")


def _robosuite_assets() -> Path:
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise MissingPackage("robosuite", "robosuite")
    return Path(spec.origin).parent / "models" / "assets"


def _surroundings(world: ET.Element) -> None:
    """Floor, light and the static camera."""
    body = _add(world, "body", name="floor")
    _add(body, "geom", type="plane", size="5 5 0.1", material="floor", **_TABLE_BITS)
    light = {"directional": "true", "pos": "0.5 -1.5 3", "dir": "-0.25 0.45 -1", "castshadow": "true"}
    _add(world, "light", diffuse="0.5 0.5 0.5", specular="0.05 0.05 0.05", ambient="0 0 0", **light)
    axes = "0.723244 0.514123 -0.461080 -0.030261 0.690611 0.722593"
    _add(world, "camera", name="rgb_static", pos="2.871459009 -2.166602199 2.555159848", xyaxes=axes, fovy="10")


def _robot(world: ET.Element) -> None:
    hand = _arm(world, drawn=True)
    _add(hand, "site", name="tcp", pos=_numbers((0, 0, TCP_FROM_HAND)), size="0.002", group="4")
    # On the hand at (-0.1, 0, 0) with rpy (1.3, 0, -1.57); looks along its own +y, image up is its -z.
    mount = _rotation_z(-1.57) @ _rotation_x(1.3)
    axes = _numbers((*-mount[:, 0], *-mount[:, 2]))
    _add(hand, "camera", name="rgb_gripper", pos="-0.1 0 0", xyaxes=axes, fovy="75")
    for number, side in ((1, 1), (2, -1)):
        _finger(hand, number, side)


def _arm(world: ET.Element, drawn: bool) -> ET.Element:
    """Base to hand; returns the hand. Body frames are those of the Panda's URDF."""
    body = _add(world, "body", name="link0", pos=_numbers(BASE_POSITION))
    if drawn:
        height = BASE_POSITION[2] / 2
        _add(body, "geom", type="cylinder", size=f"0.13 {height}", pos=f"0 0 {-height}", rgba="1 1 1 1", **_DRAWN_BITS)
        _link_geoms(body, "link0", 1.0)
    limits = zip(LINK_MASSES, JOINT_LOWER, JOINT_UPPER, strict=True)
    for number, ((position, turns), (mass, lower, upper)) in enumerate(zip(_CHAIN, limits, strict=True), 1):
        quat = (1, 0, 0, 0) if turns == 0 else (math.sqrt(0.5), turns * math.sqrt(0.5), 0, 0)
        body = _add(body, "body", name=f"link{number}", pos=_numbers(position), quat=_numbers(quat))
        joint = {"axis": "0 0 1", "limited": "true", "range": _numbers((lower, upper)), "armature": str(ARM_ARMATURE)}
        _add(body, "joint", name=f"joint{number}", **joint)
        if drawn:
            _link_geoms(body, f"link{number}", mass)
        else:
            _add(body, "inertial", pos="0 0 0", mass="1", diaginertia="1 1 1")
    eighth = (math.cos(math.pi / 8), 0, 0, -math.sin(math.pi / 8))
    hand = _add(body, "body", name="hand", pos="0 0 0.107", quat=_numbers(eighth))
    if drawn:
        _link_geoms(hand, "hand", HAND_MASS)
    return hand


def _link_geoms(body: ET.Element, name: str, mass: float) -> None:
    _add(body, "geom", type="mesh", mesh=f"{name}_vis", rgba="0.93 0.93 0.93 1", **_DRAWN_BITS)
    _add(body, "geom", type="mesh", mesh=name, mass=str(mass), friction="0.5 0.001 0.0001", **_ROBOT_BITS, **_HIDDEN)


def _finger(hand: ET.Element, number: int, side: int) -> None:
    """A finger 21 x 23 x 96 mm whose pad meets the other's at joint 0; the bare fingers would keep 5.8 mm."""
    body = _add(hand, "body", name=f"finger{number}")
    slide = {"type": "slide", "axis": f"0 {side} 0", "limited": "true", "range": "-0.001 0.041"}
    _add(body, "joint", name=f"finger_joint{number}", armature=str(FINGER_ARMATURE), **slide)
    grip = {"friction": "0.7 0.1 0.0001", "priority": "1", **_ROBOT_BITS}
    bare = Cuboid((-0.0105, 0.0105), _side(side, 0.0029, 0.0259), (0.0584, 0.1544))
    pad = Cuboid((-0.00925, 0.00925), _side(side, 0.0, 0.004), (0.1275, 0.1525))
    _box(body, bare, rgba="0.93 0.93 0.93 1", mass=str(0.9 * FINGER_MASS), **grip)
    _box(body, pad, rgba="0.85 0.85 0.8 1", mass=str(0.1 * FINGER_MASS), **grip)


def _side(side: int, near: float, far: float) -> Span:
    return (near, far) if side > 0 else (-far, -near)


def _table(world: ET.Element, root: ET.Element, scene: Scene) -> None:
    base = _add(world, "body", name="base_link")
    _button_and_led(world, base, scene)  # before the other joints: what has a motor comes first in qpos and qvel
    _legs_and_top(base, scene)
    _cabinet(base, root, scene)
    _plank(world, scene)
    _door(world, root, scene)
    _drawer(world, scene)
    _switch_and_bulb(world, scene)


def _legs_and_top(base: ET.Element, scene: Scene) -> None:
    """Legs, drawer housing around its cavity, top slab with the recess that the plank fills."""
    low, high = scene.cavity_x
    left, right = scene.drawer_x - 0.2, scene.drawer_x + 0.2
    for x in ((-0.44, -0.40), (0.40, 0.44)):
        for y in ((-0.18, -0.148), (0.148, 0.18)):
            _wood(base, x, y, (0, 0.40))
    _wood(base, (-0.42, 0.42), (-0.16, 0.16), (0.30, 0.32))
    _wood(base, (-0.42, left), (-0.16, 0.16), (0.32, 0.40))
    _wood(base, (right, 0.42), (-0.16, 0.16), (0.32, 0.40))
    _wood(base, (left, right), (0.06, 0.16), (0.32, 0.40))
    _wood(base, (-0.44, 0.44), (-0.18, 0.02), (0.40, 0.44))
    _wood(base, (-0.44, low), (0.02, 0.18), (0.40, 0.44))
    _wood(base, (high, 0.44), (0.02, 0.18), (0.40, 0.44))
    _wood(base, (low, high), (0.02, 0.18), (0.40, 0.42))


def _cabinet(base: ET.Element, root: ET.Element, scene: Scene) -> None:
    """Two solid sides with a sloping front, back wall and roof; two grooves 8 mm deep guide the switch."""
    low, high = scene.cavity_x
    wall = [*_on_slope((0.0, 0.0), (_SLOPE_LENGTH, 0.0)), (_CABINET_BACK, _CABINET_TOP), (_CABINET_BACK, 0.42)]
    roof_foot = (_CAVITY_ROOF - _SLOPE_FOOT[1]) / _UP_SLOPE[1]
    roof = [*_on_slope((roof_foot, 0.0), (_SLOPE_LENGTH, 0.0)), (_CABINET_BACK, _CABINET_TOP), (0.18, _CAVITY_ROOF)]
    grooves = ((scene.switch_x - 0.06, scene.switch_x - 0.04), (scene.switch_x + 0.04, scene.switch_x + 0.06))
    edges = sorted({-0.44, low, high, 0.44, *(x for groove in grooves for x in groove)})
    for x in itertools.pairwise(edges):
        if x == (low, high):
            _wood(base, x, (_CAVITY_BACK, _CABINET_BACK), (0.42, _CABINET_TOP))
            _prism(base, root, x, roof, material="wood")
        elif x in grooves:
            _grooved_prism(base, root, x)
        else:
            _prism(base, root, x, wall, material="wood")


def _grooved_prism(base: ET.Element, root: ET.Element, x: Span) -> None:
    """A column of the cabinet with a groove in its slope, from 0.067 to 0.176 m above the foot."""
    start, end, depth = 0.067, 0.176, -0.008
    behind = [*_on_slope((0.0, depth), (_SLOPE_LENGTH, depth)), (_CABINET_BACK, _CABINET_TOP), (_CABINET_BACK, 0.42)]
    _prism(base, root, x, behind, material="wood")
    for foot, head in ((0.0, start), (end, _SLOPE_LENGTH)):
        _prism(base, root, x, _on_slope((foot, 0.0), (head, 0.0), (head, depth), (foot, depth)), material="wood")


def _on_slope(*points: Span) -> list[Span]:
    """World (y, z) of points given as (distance up the slope from its foot, distance out of it)."""
    return [
        (
            _SLOPE_FOOT[0] + up * _UP_SLOPE[0] + out * _OUT_OF_SLOPE[0],
            _SLOPE_FOOT[1] + up * _UP_SLOPE[1] + out * _OUT_OF_SLOPE[1],
        )
        for up, out in points
    ]


def _plank(world: ET.Element, scene: Scene) -> None:
    body = _add(world, "body", name="plank_link")
    box = Cuboid(scene.cavity_x, (0.02, 0.16), (0.42, 0.44)).grown(HULL_MARGIN)
    _box(body, box, material="wood", **_TABLE_BITS)


def _door(world: ET.Element, root: ET.Element, scene: Scene) -> None:
    """Plate on the slope with a loop handle. Link y runs up the slope, link z out of it."""
    turn = {"pos": f"{scene.door_x} 0.075 0.535264", "quat": _numbers(_quat_x(math.pi / 3))}
    body = _add(world, "body", name="slide_link", **turn)
    _slide(body, "base__slide", "-1 0 0", scene.door_travel)
    plate, margin = Cuboid((0, 0.28), (-0.11, 0.11), (0, 0.02)), 0.002
    top = (0.1286 + margin, 0.117 + margin)  # the hull ends in a level face at the height of the cabinet's top
    outline = [(-0.11, -margin), (top[0], -margin), (top[1], 0.02 + margin), (-0.11, 0.02 + margin)]
    _prism(body, root, (-margin, 0.28 + margin), outline, mass="1.2", **_HIDDEN)
    _box(body, plate, material="panel", **_DRAWN_BITS)
    for y, z in (((-0.08, -0.06), (0.02, 0.06)), ((0.06, 0.08), (0.02, 0.06)), ((-0.08, 0.08), (0.06, 0.08))):
        _handle(body, Cuboid((0.12, 0.16), y, z).grown(0.0012), 0.343491 / 3)


def _drawer(world: ET.Element, scene: Scene) -> None:
    """Tray, front panel and bar handle. The body's frame is parallel to the world's."""
    body = _add(world, "body", name="drawer_link", pos=f"{scene.drawer_x} 0 0.32")
    _slide(body, "base__drawer", "0 -1 0", DRAWER_TRAVEL)
    floor, top, margin = 0.02235, 0.0822, 0.0035  # rays and a block at rest, 0.36235 m high, find the hulls that large
    left, right = (-0.2 - margin, -0.18 + margin), (0.18 - margin, 0.2 + margin)
    back = Cuboid((-0.2, 0.2), (0.04 - margin, 0.06), (floor, top))
    panel = Cuboid((-0.2215, 0.2215), (-0.182, -0.16 + margin), (-0.022, top))
    tray = {"material": "panel", **_TABLE_BITS}
    _box(body, Cuboid((-0.2, 0.2), (-0.16, 0.06), (0, floor)), mass="1.5", **tray)
    _box(body, Cuboid(left, (-0.16, 0.06), (floor, top)), mass="0.6", **tray)
    _box(body, Cuboid(right, (-0.16, 0.06), (floor, top)), mass="0.6", **tray)
    _box(body, back, mass="0.6", **tray)
    _box(body, panel, mass="0.7", **tray)
    _handle(body, Cuboid((-0.12, 0.12), (-0.26, -0.236), (0.02, 0.06)).grown(HULL_MARGIN), 0.131281)
    for x in ((-0.12, -0.096), (0.096, 0.12)):
        _handle(body, Cuboid(x, (-0.236, -0.18), (0.02, 0.06)).grown(HULL_MARGIN), 0.05)


def _button_and_led(world: ET.Element, base: ET.Element, scene: Scene) -> None:
    ring = {"type": "cylinder", "size": "0.04 0.01", "pos": f"{scene.button_x} -0.12 0.45"}
    _add(base, "geom", material="wood", **ring, **_TABLE_BITS)
    body = _add(world, "body", name="button_link", pos=f"{scene.button_x} -0.12 0.46")
    _slide(body, "base__button", "0 0 -1", BUTTON_TRAVEL, frictionloss="0")
    size = f"{0.032 + HULL_MARGIN} {0.012 + HULL_MARGIN / 2}"
    shape = {"type": "cylinder", "size": size, "pos": f"0 0 {0.012 + HULL_MARGIN / 2}"}
    _add(body, "geom", rgba="0.06 0.06 0.06 1", mass="0.153812", **shape, **_fixture())
    led = _add(world, "body", name="led_link", pos=f"{scene.button_x} 0.16 {_CABINET_TOP}")
    box = Cuboid((-0.08, 0.08), (-0.02, 0.02), (0, 0.016)).grown(HULL_MARGIN)
    _box(led, box, name="led", rgba="1 1 1 1", **_TABLE_BITS)


def _switch_and_bulb(world: ET.Element, scene: Scene) -> None:
    """A U-shaped lever that slides up the slope. Link y points out of the slope, link z down it."""
    turn = {"pos": f"{scene.switch_x} 0.060928 0.494889", "quat": _numbers(_quat_x(5 * math.pi / 6))}
    body = _add(world, "body", name="switch_link", **turn)
    _slide(body, "base__switch", "0 0 -1", SWITCH_TRAVEL)
    for x, y in (((-0.06, -0.04), (0, 0.064)), ((0.04, 0.06), (0, 0.064)), ((-0.04, 0.04), (0.044, 0.064))):
        _handle(body, Cuboid(x, y, (-0.024, 0.008)).grown(HULL_MARGIN), 0.238787 / 3)
    bulb = _add(world, "body", name="light_link", pos=f"{scene.switch_x} 0.16 0.669")
    _add(bulb, "geom", name="bulb", type="sphere", size="0.029", rgba="1 1 1 1", **_TABLE_BITS)


def _block(world: ET.Element, colour: str, length: float) -> None:
    body = _add(world, "body", name=colour, pos="0 0 1")
    _add(body, "freejoint", name=colour)
    size = _numbers((length / 2, BLOCK_SECTION / 2, BLOCK_SECTION / 2))
    box = {"type": "box", "size": size, "mass": "1", "rgba": BLOCK_RGB[colour]}
    _add(body, "geom", name=colour, **box, **_BLOCK_BITS)


def _block_on_block(root: ET.Element, blocks: Sequence[tuple[str, float]]) -> None:
    """Friction 0.7 * 0.7: their geoms' own coefficient is that on the table."""
    contact = _add(root, "contact")
    for (one, _), (other, _) in itertools.combinations(blocks, 2):
        pair = {"geom1": one, "geom2": other, "solref": _SOLREF, "solimp": _SOLIMP}
        _add(contact, "pair", condim="4", friction="0.49 0.49 0.001 0.0001 0.0001", **pair)


def _slide(body: ET.Element, name: str, axis: str, travel: float, frictionloss: str = str(JOINT_FRICTION_N)) -> None:
    limits = {"limited": "true", "range": f"0 {travel}"}
    _add(body, "joint", name=name, type="slide", axis=axis, frictionloss=frictionloss, **limits)


def _box(body: ET.Element, box: Cuboid, **attributes: str) -> None:
    position = _numbers((low + high) / 2 for low, high in box)
    size = _numbers((high - low) / 2 for low, high in box)
    _add(body, "geom", type="box", pos=position, size=size, **attributes)


def _wood(body: ET.Element, x: Span, y: Span, z: Span) -> None:
    _box(body, Cuboid(x, y, z), material="wood", **_TABLE_BITS)


def _handle(body: ET.Element, box: Cuboid, mass: float) -> None:
    _box(body, box, rgba="0.33 0.33 0.34 1", mass=f"{mass:.9g}", **_fixture())


def _fixture() -> dict[str, str]:
    """What the robot grasps or presses, with a friction of its own."""
    return {"friction": "0.2 0.001 0.0001", "priority": "2", **_TABLE_BITS}


def _prism(body: ET.Element, root: ET.Element, x: Span, outline: Sequence[Span], **attributes: str) -> None:
    """A convex solid: an outline in (y, z), drawn out along x."""
    assets = root.find("asset")
    assert assets is not None
    name = f"prism{sum(mesh.get('name', '').startswith('prism') for mesh in assets.iter('mesh'))}"
    vertices = _numbers(value for end in x for y, z in outline for value in (end, y, z))
    _add(assets, "mesh", name=name, vertex=vertices)
    _add(body, "geom", type="mesh", mesh=name, **_TABLE_BITS, **attributes)


def _quat_x(angle: float) -> tuple[float, float, float, float]:
    return (math.cos(angle / 2), math.sin(angle / 2), 0.0, 0.0)


def _rotation_x(angle: float) -> NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _rotation_z(angle: float) -> NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
