"""CALVIN's 34 tasks as conditions on two records, the task's start and now (`check_task`), and their sentences.

What is peculiar, all of it in calvin_env's `Tasks` (797142c; the same file at 1431a46):

* A task is judged from its start and the present instant alone: what became true and was undone no longer counts.
* A rotation is read as extrinsic xyz Euler angles of `end * start⁻¹`: 179° to the left is left, 181° is right.
* `push_*` compares contact sets without the robot: a block that touched something which it no longer touches fails, so
  one that began against the cabinet wall or another block has to stay there.
* `push_into_drawer` says that the robot may not touch the block in the end, but compares a body with (body, link)
  pairs, which are never equal: touching it is allowed.
* `lift_*` asks that the robot be all that the block touches in the end, and only that the surface be among what it
  touched in the beginning.
* `place_in_*` asks neither that door or drawer be open nor that the block lie still.
* `stack_block` and `unstack_block` look at any block that touches blocks and nothing else: it need not lie on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

COLOURS = ("red", "blue", "pink")
ROBOT = "robot"
TABLE = "table"
TABLE_TOP = (TABLE, "base_link")
"""Table top, legs and cabinet walls: one link."""
CABINET_FLOOR = (TABLE, "plank_link")
DRAWER = (TABLE, "drawer_link")

Contact = tuple[str, str]
"""The other body (`robot`, `table`, `floor` or a block's colour) and the link of it that is touched."""
Vector = tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """What the tasks read of one block. World frame."""

    position: Vector
    """(3,) m."""
    quat_xyzw: Vector
    linear_velocity: Vector
    """(3,) m/s."""
    angular_velocity: Vector
    """(3,) rad/s."""
    contacts: frozenset[Contact]

    @property
    def bodies(self) -> frozenset[str]:
        """The bodies that it touches."""
        return frozenset(body for body, _ in self.contacts)

    @property
    def surroundings(self) -> frozenset[Contact]:
        """What it touches apart from the robot."""
        return frozenset(contact for contact in self.contacts if contact[0] != ROBOT)


@dataclass(frozen=True)
class Record:
    """What the tasks read of one instant."""

    blocks: Mapping[str, Block]
    """By colour."""
    robot_contacts: frozenset[str]
    """The bodies that the robot touches."""
    door: float
    """Joint of the sliding door, m: 0 is right, positive is left."""
    drawer: float
    """Joint of the drawer, m: 0 is closed, positive is open."""
    button: float
    """Joint of the button, m: 0 is up, positive is pressed."""
    switch: float
    """Joint of the switch, m: 0 is down, positive is up."""
    bulb: bool
    """Whether the light bulb is on: its logical state, which the switch moves."""
    led: bool
    """Whether the LED is on: its logical state, which the button toggles."""


Condition = Callable[[Record, Record], bool]


def _rotated(colour: str, sign: int, start: Record, end: Record) -> bool:
    """By 60° to 180° about z (sign +1: left), hardly about x and y, within 0.1 m, on something."""
    before, after = start.blocks[colour], end.blocks[colour]
    x, y, z = _rotation_degrees(before.quat_xyzw, after.quat_xyzw)
    return (
        60 < sign * z < 180
        and abs(x) < 30
        and abs(y) < 30
        and math.dist(before.position, after.position) <= 0.1
        and bool(after.surroundings)
    )


def _pushed(colour: str, sign: int, start: Record, end: Record) -> bool:
    """By more than 0.1 m along x (sign +1: right), still touching all that it touched."""
    before, after = start.blocks[colour], end.blocks[colour]
    moved = after.position[0] - before.position[0]
    return sign * moved > 0.1 and bool(before.surroundings) and before.surroundings <= after.surroundings


def _door_moved(sign: int, start: Record, end: Record) -> bool:
    return sign * (end.door - start.door) > 0.15


def _drawer_moved(sign: int, start: Record, end: Record) -> bool:
    return sign * (end.drawer - start.drawer) > 0.12


def _lifted(colour: str, surface: Contact, height: float, start: Record, end: Record) -> bool:
    """By more than `height` metres off that surface, into the air."""
    before, after = start.blocks[colour], end.blocks[colour]
    rise = after.position[2] - before.position[2]
    return rise > height and surface in before.contacts and after.bodies == {ROBOT}


def _placed(destination: Contact, start: Record, end: Record) -> bool:
    """The one block that the robot held in the air now touches the destination, and not the robot."""
    if len(start.robot_contacts) != 1:
        return False
    (held,) = start.robot_contacts
    if held not in start.blocks or start.blocks[held].bodies != {ROBOT}:
        return False
    return held not in end.robot_contacts and destination in end.blocks[held].contacts


def _pushed_into_drawer(start: Record, end: Record) -> bool:
    return any(
        start.blocks[colour].contacts == {TABLE_TOP} and DRAWER in end.blocks[colour].contacts
        for colour in start.blocks
    )


def _stacked(start: Record, end: Record) -> bool:
    return any(
        start.blocks[colour].bodies.isdisjoint(start.blocks) and _rests_on_blocks(end, colour)
        for colour in start.blocks
    )


def _unstacked(start: Record, end: Record) -> bool:
    return any(
        _rests_on_blocks(start, colour) and end.blocks[colour].bodies.isdisjoint(end.blocks) for colour in start.blocks
    )


def _rests_on_blocks(record: Record, colour: str) -> bool:
    """Touching blocks and nothing else, every component of its velocity below 1 m/s and 1 rad/s."""
    block = record.blocks[colour]
    slow = all(abs(component) < 1 for component in (*block.linear_velocity, *block.angular_velocity))
    return slow and bool(block.bodies) and block.bodies <= record.blocks.keys()


def _bulb_turned(on: bool, start: Record, end: Record) -> bool:
    return bool(start.bulb) != on and bool(end.bulb) == on


def _led_turned(on: bool, start: Record, end: Record) -> bool:
    return bool(start.led) != on and bool(end.led) == on


def _rotation_degrees(start_xyzw: Vector, end_xyzw: Vector) -> tuple[float, float, float]:
    """Extrinsic xyz Euler angles of `end * start⁻¹`, each in [-180, 180]; unit length is not asked for."""
    ax, ay, az, aw = start_xyzw
    bx, by, bz, bw = end_xyzw
    w = bw * aw + bx * ax + by * ay + bz * az
    x = -bw * ax + bx * aw - by * az + bz * ay
    y = -bw * ay + by * aw - bz * ax + bx * az
    z = -bw * az + bz * aw - bx * ay + by * ax
    scale = w * w + x * x + y * y + z * z
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - x * z) / scale)))
    roll = math.atan2(2 * (w * x + y * z), w * w - x * x - y * y + z * z)
    yaw = math.atan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    return math.degrees(roll), math.degrees(pitch), math.degrees(yaw)


def _conditions() -> dict[str, Condition]:
    """Task name to condition, in the order of CALVIN's own table, on which the drawing of the chains depends."""
    table: dict[str, Condition] = {}
    for colour in COLOURS:
        table[f"rotate_{colour}_block_right"] = partial(_rotated, colour, -1)
        table[f"rotate_{colour}_block_left"] = partial(_rotated, colour, 1)
    for colour in COLOURS:
        table[f"push_{colour}_block_right"] = partial(_pushed, colour, 1)
        table[f"push_{colour}_block_left"] = partial(_pushed, colour, -1)
    table["move_slider_left"] = partial(_door_moved, 1)
    table["move_slider_right"] = partial(_door_moved, -1)
    table["open_drawer"] = partial(_drawer_moved, 1)
    table["close_drawer"] = partial(_drawer_moved, -1)
    for colour in COLOURS:
        table[f"lift_{colour}_block_table"] = partial(_lifted, colour, TABLE_TOP, 0.05)
        table[f"lift_{colour}_block_slider"] = partial(_lifted, colour, CABINET_FLOOR, 0.03)
        table[f"lift_{colour}_block_drawer"] = partial(_lifted, colour, DRAWER, 0.05)
    table["place_in_slider"] = partial(_placed, CABINET_FLOOR)
    table["place_in_drawer"] = partial(_placed, DRAWER)
    table["stack_block"] = _stacked
    table["unstack_block"] = _unstacked
    table["turn_on_lightbulb"] = partial(_bulb_turned, True)
    table["turn_off_lightbulb"] = partial(_bulb_turned, False)
    table["turn_on_led"] = partial(_led_turned, True)
    table["turn_off_led"] = partial(_led_turned, False)
    table["push_into_drawer"] = _pushed_into_drawer
    return table


def _sentences() -> dict[str, str]:
    """The one sentence per task that evaluation uses (`new_playtable_validation.yaml`), spelling as there."""
    table = {
        "move_slider_left": "push the sliding door to the left side",
        "move_slider_right": "push the sliding door to the right side",
        "open_drawer": "pull the handle to open the drawer",
        "close_drawer": "push the handle to close the drawer",
        "place_in_slider": "store the grasped block in the sliding cabinet",
        "place_in_drawer": "store the grasped block in the drawer",
        "stack_block": "stack the grasped block",
        "unstack_block": "remove the stacked block",
        "turn_on_lightbulb": "use the switch to turn on the light bulb",
        "turn_off_lightbulb": "use the switch to turn off the light bulb",
        "turn_on_led": "press the button to turn on the led light",
        "turn_off_led": "press the button to turn off the led light",
        "push_into_drawer": "slide the block that it falls into the drawer",
    }
    for colour in COLOURS:
        for side in ("right", "left"):
            table[f"rotate_{colour}_block_{side}"] = f"take the {colour} block and rotate it to the {side}"
            table[f"push_{colour}_block_{side}"] = f"go push the {colour} block {side}"
        table[f"lift_{colour}_block_table"] = f"grasp and lift the {colour} block"
        table[f"lift_{colour}_block_slider"] = f"lift the {colour} block from the sliding cabinet"
        table[f"lift_{colour}_block_drawer"] = f"Take the {colour} block from the drawer"
    return {name: table[name] for name in TASKS}


_CONDITIONS = _conditions()
TASKS = tuple(_CONDITIONS)
SENTENCES: Mapping[str, str] = _sentences()


def check_task(task: str, start: Record, end: Record) -> bool:
    """Whether the task is done now (`end`), begun at `start`. Raises KeyError for a name not in `TASKS`."""
    return bool(_CONDITIONS[task](start, end))  # numpy values in a record make numpy truths


def true_tasks(start: Record, end: Record) -> frozenset[str]:
    """Every task that is done now, begun at `start`."""
    return frozenset(task for task in TASKS if check_task(task, start, end))
