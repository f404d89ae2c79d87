"""For each of CALVIN's tasks, the scripts that may do it in the scene as it is, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, product
from typing import Any

from . import calvin_skills as skills
from .calvin_hand import Actions, Hand, Pose, Thing
from .calvin_skills import Grip

Script = Callable[[Hand], Actions]
_GRIPS = tuple(Grip(face=face, aside=aside) for aside, face in product((0.0, 0.014, -0.014), (0, 1)))


def scripts_for(task: str, hand: Hand) -> Iterator[Script]:
    """Every script worth a try, in order: a few as they are, the best of them with a relaxed arm, the others."""
    scripts = _choose(task, hand)
    first = list(islice(scripts, 4))
    return chain(first, [partial(skills.relaxed, script=script) for script in first[:2]], scripts)


def _choose(task: str, hand: Hand) -> Iterator[Script]:
    words = task.split("_")
    if words[0] in ("rotate", "push") and words[2] == "block":
        return (_rotate if words[0] == "rotate" else _push)(hand, words[1], words[3])
    if words[0] == "lift":
        return (_lift_from_slider if words[3] == "slider" else _lift)(hand, words[1])
    return _OTHERS[task](hand)


def ready(task: str, record: Any) -> bool:
    """Whether the task can be begun at that record: what its condition asks of the start and no script can mend."""
    words, blocks = task.split("_"), record.blocks
    if words[0] == "push" and words[2] == "block":
        return bool(blocks[words[1]].surroundings)
    if words[0] == "lift":
        link = {"table": "base_link", "slider": "plank_link", "drawer": "drawer_link"}[words[3]]
        return ("table", link) in blocks[words[1]].contacts
    if words[0] == "place":
        return any(record.robot_contacts == {colour} and blocks[colour].bodies == {"robot"} for colour in blocks)
    if task == "push_into_drawer":
        return any(block.contacts == {("table", "base_link")} for block in blocks.values())
    return True


def _rotate(hand: Hand, colour: str, side: str) -> Iterator[Script]:
    sign = 1 if side == "left" else -1
    if hand.held == colour:
        yield _do(skills.turn_held, degrees=sign * 75)
    for height, degrees, grip in (
        (0.012, 80, _GRIPS[0]),
        (0.03, 95, _GRIPS[0]),
        *product((0.012, 0.0), (80,), _GRIPS[1:]),
    ):
        yield _do(skills.turn, colour=colour, degrees=sign * degrees, grip=grip, height=height)


def _push(hand: Hand, colour: str, side: str) -> Iterator[Script]:
    sign = 1 if side == "right" else -1
    if hand.held == colour:
        yield _do(skills.drag, x=sign * 0.12)
    for aside, yaw in product((0.0, 0.008, -0.008), (math.pi, 0.0, math.pi / 2)):
        yield _do(skills.push, colour=colour, side=sign, yaw=yaw, aside=aside)
    for height, grip in product((0.015, 0.04), _GRIPS):
        yield _do(skills.carry, colour=colour, by=sign * 0.125, grip=grip, height=height)


def _lift(hand: Hand, colour: str) -> Iterator[Script]:
    if hand.held == colour:
        yield _do(skills.drag, z=0.1)
    for tilt, grip in product((0.0, 0.3), _GRIPS):
        yield _do(skills.lift, colour=colour, grip=grip._replace(tilt=tilt))


def _lift_from_slider(_: Hand, colour: str) -> Iterator[Script]:
    for grip, tilt in product(_GRIPS, (0.6, 0.8, 0.45, 1.0)):
        yield _do(skills.lift_from_cabinet, colour=colour, grip=grip._replace(tilt=tilt))


def _slide(hand: Hand, left: bool) -> Iterator[Script]:
    for tilt in (0.6, 0.4, 0.8, 0.2):
        yield _do(skills.slide_door, to=hand.table.scene.door_travel if left else 0.0, tilt=tilt)


def _open_drawer(_: Hand) -> Iterator[Script]:
    for tilt, aside in product((0.15, 0.0, 0.3), (0.0, -0.05, 0.05)):
        yield _do(skills.pull_drawer, to=0.21, aside=aside, tilt=tilt)


def _close_drawer(_: Hand) -> Iterator[Script]:
    for aside in (0.0, -0.05, 0.05, -0.1):
        yield _do(skills.push_drawer, to=0.0, aside=aside)


def _place_in_slider(hand: Hand) -> Iterator[Script]:
    colour = hand.held
    if not colour:
        return
    thing, level = hand.thing(colour), skills.levelled(hand, colour)
    if thing.position[1] > 0.03 and thing.bottom < 0.55:  # still in the cabinet
        yield _do(skills.put_back, colour=colour, floor=skills.PLANK_Z)
    tilts = (0.6, level, 0.35) if abs(level - 0.6) > 0.1 else (0.6, 0.35, 0.0)
    for xs in _free_in_cabinet(hand, colour):
        for tilt, y, x in product(tilts, (0.085, 0.06), xs):
            yield _do(skills.place_in_cabinet, colour=colour, spot=Pose(x, y, skills.PLANK_Z + 0.004, tilt=tilt))


def _free_in_cabinet(hand: Hand, colour: str) -> Iterator[list[float]]:
    """Places along x on either side of the door, wider side first, those far from other blocks first."""
    scene = hand.table.scene
    left = scene.door_x - hand.door
    gaps = ((scene.cavity_x[0], left), (left + skills.DOOR_WIDTH_M, scene.cavity_x[1]))
    for start, end in sorted(gaps, key=lambda gap: gap[0] - gap[1]):
        room = max(0.0, end - start - 0.14)
        xs = dict.fromkeys((start + end) / 2 + share * room for share in (0.0, -0.5, 0.5))
        if end - start > 0.09:
            yield sorted(xs, key=lambda x: -min(abs(x - other.position[0]) for other in hand.others(colour)))


def _place_in_drawer(hand: Hand) -> Iterator[Script]:
    colour = hand.held
    if not colour:
        return
    inside = [other.position[0] for other in hand.others(colour) if other.position[2] < 0.42]
    xs = [hand.table.scene.drawer_x + aside for aside in (0.0, -0.09, 0.09)]
    xs.sort(key=lambda x: -min([0.09, *(abs(x - other) for other in inside)]))
    for ahead, x in product((0.0, 0.03), xs):
        yield _do(skills.place_in_drawer, colour=colour, x=x, ahead=ahead)


def _stack(hand: Hand) -> Iterator[Script]:
    colour = hand.held
    if not colour:
        return
    for below, upright in product(sorted(hand.others(colour), key=_out_of_reach), (False, True)):
        yield _do(skills.stack, colour=colour, below=below.colour, upright=upright)


def _unstack(hand: Hand) -> Iterator[Script]:
    colours = set(hand.table.blocks)
    blocks = [hand.thing(colour) for colour in hand.table.blocks]
    on_top = sorted((b for b in blocks if b.touches and b.touches <= colours), key=lambda b: -float(b.position[2]))
    for top, face in product(on_top, (0, 1)):
        yield _do(skills.lift, colour=top.colour, grip=Grip(face=face))
        for side in (1, -1):
            yield _do(skills.slide_off, colour=top.colour, face=face, side=side)


def _push_into_drawer(hand: Hand) -> Iterator[Script]:
    x = hand.table.scene.drawer_x
    blocks = [hand.thing(colour) for colour in hand.table.blocks]
    for thing in blocks:
        if _out_of_reach(thing) or thing.touches != {"table"}:
            continue
        if abs(thing.position[0] - x) < 0.17:
            for tilt, widen in product((0.35, 0.15, 0.6), (True, False)):
                yield _do(skills.push_into_drawer, colour=thing.colour, tilt=tilt, widen=widen)
        for grip, aside in product(_GRIPS, (0.0, -0.09, 0.09)):
            yield _do(skills.drop_into_drawer, colour=thing.colour, x=x + aside, grip=grip)


def _switch(_: Hand, up: bool) -> Iterator[Script]:
    for tilt, out in product((1.05, 0.8, 0.6), (0.036, 0.045)):
        yield _do(skills.flip_switch, up=up, tilt=tilt, out=out)


def _button(_: Hand, on: bool) -> Iterator[Script]:
    yield _do(skills.press_button, on=on)


def _out_of_reach(thing: Thing) -> bool:
    """Whether it is in the drawer or in the cabinet rather than on the table."""
    return bool(thing.position[2] < 0.42 or thing.position[1] > 0.03)


def _do(script: Callable[..., Actions], **arguments: object) -> Script:
    return partial(script, **arguments)


_OTHERS: dict[str, Callable[[Hand], Iterator[Script]]] = {
    "move_slider_left": partial(_slide, left=True),
    "move_slider_right": partial(_slide, left=False),
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "place_in_slider": _place_in_slider,
    "place_in_drawer": _place_in_drawer,
    "stack_block": _stack,
    "unstack_block": _unstack,
    "turn_on_lightbulb": partial(_switch, up=True),
    "turn_off_lightbulb": partial(_switch, up=False),
    "turn_on_led": partial(_button, on=True),
    "turn_off_led": partial(_button, on=False),
    "push_into_drawer": _push_into_drawer,
}
