"""What CALVIN's hand can do: grasp, lift, place, push, turn, slide, pull and press, as generators of actions.

Every skill that begins a task gets out of wherever the last one ended (`begin`), then reads the scene. Lengths are from
facts measured on the real environment, as built in `envs/calvin/scene.py`; the other offsets were found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .calvin_hand import (
    CLOSE,
    FINGER_ACROSS_M,
    FINGERS_ALONG_M,
    OPEN,
    Actions,
    Hand,
    Pose,
    Thing,
    Vector,
    back_out,
    close,
    hold,
    move,
    release,
    travel,
)

TABLE_Z, PLANK_Z, DRAWER_Z = 0.44, 0.441, 0.3424
"""Where a block's bottom is on table, cabinet floor and drawer, m."""
TABLE_EDGE_Y = -0.18
BLOCK_ON_TABLE_Z = 0.46
WIDEST_GRASP_M = 0.062
DOOR_WIDTH_M = 0.28
DOOR_HANDLE_X = (0.12, 0.16)
"""Of the door's loop, from the door's left edge."""
DRAWER_BAR_Y = (-0.261, -0.235)
"""Front and back of the drawer's bar when it is closed, margin included."""
SWITCH_YZ = (0.060928, 0.494889)
"""Of the lever's origin when it is down; it slides along (0, 0.5, 0.866)."""
SWITCH_BAR_M = (0.009, 0.025)
"""How far the lever's bar reaches down and up the slope from its origin."""
BUTTON_Y = -0.12
NEUTRAL = Pose(0.026, -0.231, 0.571, 1.5)
"""Where the tool is at the joints that the inverse kinematics prefers."""
TOUCH_M = 0.0003
"""Blocks this near count as touching (from 0.7 mm on), and do not drag each other along."""
_X, _Y, _Z = np.eye(3)


class Grip(NamedTuple):
    """How to close the fingers on a block."""

    tilt: float = 0.0
    face: int = 0
    """On which pair of faces: 0 the one that turns the hand least."""
    aside: float = 0.0
    """Off the block's middle along the finger line, m: makes room beside a neighbour."""


def begin(hand: Hand, keep: bool = False) -> Actions:
    """Get out of wherever the last task ended: let go of what is held unless it is to be kept, and rise."""
    if keep:
        yield from back_out(hand, CLOSE)
        return
    held = hand.held
    if held and hand.thing(held).touches == {"robot"}:
        yield from put_away(hand, held)
    elif held:
        yield from release(hand, held)
    yield from back_out(hand, OPEN)


def relaxed(hand: Hand, script: Callable[[Hand], Actions]) -> Actions:
    """A script begun from the neutral pose, after the arm has had time to bend back to it.

    After far-tilted motions it can hang at a joint limit, where the inverse kinematics, which starts from the joints as
    they are and pulls them back slowly, finds no way to follow.
    """
    gripper = CLOSE if hand.held else OPEN
    yield from back_out(hand, gripper)
    yield from move(hand, NEUTRAL, gripper, speed=0.5)
    yield from hold(hand, gripper, 30)
    yield from script(hand)


# ---------------------------------------------------------------------- blocks in the hand


def grasps(thing: Thing, tilt: float = 0.0) -> list[Pose]:
    """Tool poses around its middle that close on two upright faces, the one that turns the hand least first."""
    poses = []
    for axis, half in zip(thing.rotation.T, thing.half, strict=True):
        if 2 * half < WIDEST_GRASP_M and math.hypot(axis[0], axis[1]) > 0.8:
            yaw = math.atan2(axis[0], -axis[1]) % math.pi
            poses.append(Pose(0, 0, 0, yaw, tilt).at(thing.position))
    return sorted(poses, key=lambda pose: abs(pose.yaw - math.pi / 2))


def grasp(hand: Hand, colour: str, grip: Grip) -> Actions:
    """Close the fingers around a block, from above or, tilted, from the front."""
    poses = grasps(hand.thing(colour), grip.tilt)
    if not poses:
        return
    pose = poses[min(grip.face, len(poses) - 1)]
    pose = pose.shifted(x=grip.aside * math.sin(pose.yaw), y=-grip.aside * math.cos(pose.yaw))
    yield from travel(hand, pose.drawn_back(0.14 if grip.tilt else 0.06), OPEN)
    yield from move(hand, pose, OPEN, speed=0.6)
    yield from close(hand)


def lift(hand: Hand, colour: str, grip: Grip) -> Actions:
    yield from begin(hand)
    yield from grasp(hand, colour, grip)
    yield from move(hand, hand.pose.drawn_back(0.14), CLOSE, speed=0.6)


def lift_from_cabinet(hand: Hand, colour: str, grip: Grip) -> Actions:
    """Lift a block that stands in the cabinet, the door moved off it before."""
    yield from begin(hand)
    yield from clear_door(hand, float(hand.thing(colour).position[0]))
    yield from lift(hand, colour, grip)


def levelled(hand: Hand, colour: str) -> float:
    """The tilt at which the held block lies level."""
    pose, thing = hand.pose, hand.thing(colour)
    up = thing.rotation[:, np.argmax(np.abs(thing.rotation[2]))]
    up = up * np.sign(up[2])
    ahead = math.cos(pose.yaw) * up[0] + math.sin(pose.yaw) * up[1]
    return float(pose.tilt + math.atan2(ahead, up[2]))


def put(hand: Hand, colour: str, spot: Pose, lead: float = 0.06) -> Actions:
    """Put the held block down with its middle over `spot` and its bottom there, coming from `lead` metres away."""
    yield from travel(hand, spot.shifted(z=0.03).drawn_back(lead), CLOSE)
    thing, here = hand.thing(colour), hand.pose
    held_at = np.array([*thing.position[:2], thing.bottom])
    yield from move(hand, here.at(here.position + spot.position - held_at), CLOSE, speed=0.5)
    yield from let_go(hand, colour)


def put_back(hand: Hand, colour: str, floor: float) -> Actions:
    """Lower the held block to the floor beneath it and let go."""
    drop = hand.thing(colour).bottom - floor - 0.001
    yield from move(hand, hand.pose.shifted(z=-drop), CLOSE, speed=0.4)
    yield from let_go(hand, colour)


def let_go(hand: Hand, colour: str) -> Actions:
    yield from release(hand, colour)
    yield from hold(hand, OPEN, 4)
    yield from back_out(hand, OPEN)


def put_away(hand: Hand, colour: str) -> Actions:
    """Put what is held on a free place of the table."""
    x, y = free_spot(hand, colour)
    yield from back_out(hand, CLOSE)
    yield from put(hand, colour, Pose(x, y, TABLE_Z + 0.002, tilt=levelled(hand, colour)))


def free_spot(hand: Hand, colour: str) -> tuple[float, float]:
    """(x, y) on the table, far from blocks and button, otherwise near to the hand."""
    here = hand.pose[:2]
    taken = [tuple(thing.position[:2]) for thing in hand.others(colour)]
    taken.append((hand.table.scene.button_x, BUTTON_Y))
    spots = [(float(x), y) for x in np.arange(-0.04, 0.34, 0.03) for y in (-0.13, -0.09)]
    return max(spots, key=lambda spot: min(0.11, *(math.dist(spot, t) for t in taken)) - 0.1 * math.dist(spot, here))


def stack(hand: Hand, colour: str, below: str, upright: bool = False) -> Actions:
    """Put the held block on another one: level, or with the hand upright."""
    yield from begin(hand, keep=True)
    base = hand.thing(below)
    tilt = 0.0 if upright else levelled(hand, colour)
    spot = Pose(0, 0, 0, hand.pose.yaw, tilt).at(base.position)
    yield from put(hand, colour, spot._replace(z=2 * spot.z - base.bottom + 0.002))


def slide_off(hand: Hand, colour: str, face: int, side: int) -> Actions:
    """Take a block off the one beneath it and down beside it, always touching, and away from it on the table.

    A task that asks for the block on the table cannot be begun while it is in the air, which is where lifting ends.
    """
    yield from begin(hand)
    yield from grasp(hand, colour, Grip(face=face))
    yaw = hand.pose.yaw
    aside = side * np.array([math.cos(yaw), math.sin(yaw), 0.0])
    below = min(hand.others(colour), key=lambda other: math.dist(other.position[:2], hand.pose[:2])).colour
    height = 2 * hand.thing(below).reach(_Z)
    for apart, above, rate in ((-0.003, TOUCH_M, 0.003), (TOUCH_M, TOUCH_M, 0.0005), (TOUCH_M, -height, 0.0015)):
        for _ in range(120):
            off = np.array([apart, above]) - _clearances(hand.thing(colour), hand.thing(below), aside)
            if np.abs(off).max() < 0.0003:
                break
            out, up = np.clip(0.3 * off, -rate, rate)
            yield hand.nudged(out * aside + up * _Z, CLOSE)
    yield from move(hand, hand.pose.at(hand.table.target()[:3] + 0.04 * aside), CLOSE, speed=0.2)


def _clearances(top: Thing, base: Thing, aside: Vector) -> Vector:
    """(2,) metres: how far the rear face of `top` is past the edge of `base`, and its bottom above the other's top.

    Faces are followed to that edge: a long block hangs a degree or so out of level in the fingers.
    """
    edge = base.position + base.reach(aside) * aside
    edge[2] = 2 * base.position[2] - base.bottom
    down, rear = top.face(-_Z), top.face(-aside)
    past = (rear.middle - edge) @ rear.normal / (aside @ rear.normal)
    if past > 0:
        return np.array([past, top.bottom - edge[2]])
    over_edge = (down.middle - edge) @ down.normal / down.normal[2]
    rear_end = rear.middle[2] + down.middle[2] - top.position[2] - edge[2]
    return np.array([past, min(over_edge, rear_end)])


def place_in_cabinet(hand: Hand, colour: str, spot: Pose) -> Actions:
    yield from begin(hand, keep=True)
    yield from put(hand, colour, spot, lead=0.13)


def place_in_drawer(hand: Hand, colour: str, x: float, ahead: float = 0.0) -> Actions:
    """Over the middle of what is open of the drawer, `ahead` metres further to the robot."""
    yield from begin(hand, keep=True)
    front = -0.14 - hand.drawer
    y = (TABLE_EDGE_Y + front) / 2 - ahead
    yield from put(hand, colour, Pose(x, y, DRAWER_Z + 0.012, tilt=levelled(hand, colour)))


def turn(hand: Hand, colour: str, degrees: float, grip: Grip, height: float) -> Actions:
    """Turn a block about the vertical (positive: left, seen from above) and drop it from `height`."""
    yield from begin(hand)
    yield from grasp(hand, colour, grip)
    pose = hand.pose.shifted(z=height)
    yield from move(hand, pose, CLOSE, speed=0.5)
    yield from move(hand, pose._replace(yaw=pose.yaw + math.radians(degrees)), CLOSE)
    yield from let_go(hand, colour)


def carry(hand: Hand, colour: str, by: float, grip: Grip, height: float) -> Actions:
    """Move a block along x through the air and drop it from `height`."""
    yield from begin(hand)
    yield from grasp(hand, colour, grip)
    yield from move(hand, hand.pose.shifted(z=height), CLOSE, speed=0.5)
    yield from move(hand, hand.pose.shifted(x=by), CLOSE, speed=0.6)
    yield from let_go(hand, colour)


def drag(hand: Hand, x: float = 0.0, z: float = 0.0) -> Actions:
    """Move what is in the fingers already."""
    yield from move(hand, hand.pose.shifted(x=x, z=z), CLOSE, speed=0.4)


def turn_held(hand: Hand, degrees: float) -> Actions:
    """Turn what is in the fingers already, then lower it to whatever is beneath."""
    pose = hand.pose
    pose = pose._replace(yaw=pose.yaw + math.radians(degrees))
    yield from move(hand, pose, CLOSE, speed=0.4)
    yield from move(hand, pose.shifted(z=-0.08), CLOSE, speed=0.2)


def drop_into_drawer(hand: Hand, colour: str, x: float, grip: Grip) -> Actions:
    yield from begin(hand)
    yield from widen_drawer(hand)
    yield from lift(hand, colour, grip)
    yield from place_in_drawer(hand, colour, x)


# ---------------------------------------------------------------------- blocks pushed


def push(hand: Hand, colour: str, side: int, yaw: float, aside: float) -> Actions:
    """Push a block along x (`side` +1: right) with the closed fingers, `aside` metres off its middle."""
    yield from begin(hand)
    thing = hand.thing(colour)
    fingers = abs(math.sin(yaw)) * FINGERS_ALONG_M + abs(math.cos(yaw)) * FINGER_ACROSS_M
    x, y, _ = thing.position.tolist()
    start = Pose(x - side * (thing.reach(_X) + fingers + 0.012), y + aside, _pushing_z(thing), yaw)
    yield from travel(hand, start.shifted(z=0.06), CLOSE)
    yield from move(hand, start, CLOSE, speed=0.6)
    yield from move(hand, start.shifted(x=side * 0.15), CLOSE, speed=0.35)


def push_into_drawer(hand: Hand, colour: str, tilt: float, widen: bool) -> Actions:
    """Push a block over the table's edge."""
    yield from begin(hand)
    if widen:
        yield from widen_drawer(hand)
    thing = hand.thing(colour)
    x, y, _ = thing.position.tolist()
    start = Pose(x, y + thing.reach(_Y) + FINGER_ACROSS_M + 0.012, _pushing_z(thing), tilt=tilt)
    yield from travel(hand, start.drawn_back(0.08), CLOSE)
    yield from move(hand, start, CLOSE, speed=0.6)
    yield from move(hand, start._replace(y=TABLE_EDGE_Y - 0.05), CLOSE, speed=0.35)
    yield from hold(hand, CLOSE, 15)


def _pushing_z(thing: Thing) -> float:
    return max(float(thing.position[2]), BLOCK_ON_TABLE_Z)


# ---------------------------------------------------------------------- door and drawer


def slide_door(hand: Hand, to: float, tilt: float) -> Actions:
    """Push the door's handle until its joint is at `to` (0: right)."""
    yield from begin(hand)
    start = hand.door
    side = 1 if to > start else -1  # +1: to the left, from the handle's right
    contact = hand.table.scene.door_x + DOOR_HANDLE_X[side > 0] + side * FINGERS_ALONG_M
    pose = Pose(contact - start + side * 0.014, 0.045, 0.552, tilt=tilt)
    yield from travel(hand, pose.drawn_back(0.10), CLOSE)
    yield from move(hand, pose, CLOSE, speed=0.6)
    yield from move(hand, pose._replace(x=contact - to - side * 0.01), CLOSE, speed=0.6)


def clear_door(hand: Hand, x: float) -> Actions:
    """Move the door off what stands in the cabinet at x, if it covers it or the hand could not pass."""
    scene = hand.table.scene
    left = scene.door_x - hand.door
    if left - 0.07 < x < left + DOOR_WIDTH_M + 0.07:
        yield from slide_door(hand, scene.door_travel if x > scene.door_x else 0.0, tilt=0.6)
        yield from back_out(hand, CLOSE)


def pull_drawer(hand: Hand, to: float, aside: float = 0.0, tilt: float = 0.15) -> Actions:
    """Hook the closed fingers behind the bar, `aside` metres off its middle, and pull until the joint is at `to`."""
    yield from begin(hand)
    pose = Pose(hand.table.scene.drawer_x + aside, DRAWER_BAR_Y[1] + 0.026 - hand.drawer, 0.366, tilt=tilt)
    yield from travel(hand, pose.shifted(z=0.09), CLOSE)
    yield from move(hand, pose, CLOSE, speed=0.6)
    yield from move(hand, pose._replace(y=DRAWER_BAR_Y[1] + FINGER_ACROSS_M - to - 0.006), CLOSE, speed=0.5)


def widen_drawer(hand: Hand) -> Actions:
    """Open it nearly all the way if it is not."""
    if hand.drawer < 0.18:
        yield from pull_drawer(hand, 0.21)
        yield from back_out(hand, CLOSE)


def push_drawer(hand: Hand, to: float, aside: float = 0.0) -> Actions:
    """Push the bar from the front until the joint is at `to`."""
    yield from begin(hand)
    contact = DRAWER_BAR_Y[0] - FINGER_ACROSS_M
    pose = Pose(hand.table.scene.drawer_x + aside, contact - hand.drawer - 0.02, 0.37)
    yield from travel(hand, pose.shifted(z=0.08), CLOSE)
    yield from move(hand, pose, CLOSE, speed=0.6)
    yield from move(hand, pose._replace(y=contact - to + 0.01), CLOSE, speed=0.5)


# ---------------------------------------------------------------------- lights


def flip_switch(hand: Hand, up: bool, tilt: float, out: float) -> Actions:
    """Push the lever up from below it or down from above it, the tool point `out` metres off the slope."""
    yield from begin(hand)
    lever, gap = float(hand.table.record().switch), FINGER_ACROSS_M + 0.008
    along, end = (lever - SWITCH_BAR_M[0] - gap, 0.075) if up else (lever + SWITCH_BAR_M[1] + gap, 0.0)
    pose = _on_slope(hand.table.scene.switch_x, along, out, tilt)
    yield from travel(hand, pose.drawn_back(0.11), CLOSE)
    yield from move(hand, pose, CLOSE, speed=0.6)
    yield from move(hand, _on_slope(pose.x, end, out, tilt), CLOSE, speed=0.4)


def _on_slope(x: float, along: float, out: float, tilt: float) -> Pose:
    """A tool pose `along` metres up the cabinet's slope from the lever's origin, and `out` of it."""
    rise, run = math.sqrt(0.75), 0.5
    y, z = SWITCH_YZ
    return Pose(x, y + run * along - rise * out, z + rise * along + run * out, tilt=tilt)


def press_button(hand: Hand, on: bool) -> Actions:
    """Press until the LED is as wanted: where it does not follow the button's first press, once more."""
    yield from begin(hand)
    above = Pose(hand.table.scene.button_x, BUTTON_Y, 0.53)
    yield from travel(hand, above, CLOSE)
    for _ in range(3):
        if hand.table.record().led == on:
            return
        yield from move(hand, above._replace(z=0.480), CLOSE, speed=0.5)
        yield from hold(hand, CLOSE, 3)
        yield from move(hand, above, CLOSE, speed=0.6)
