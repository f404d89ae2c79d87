"""CALVIN's 34 conditions, each just inside and just outside of every threshold, and their quirks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from vla_bench.envs.calvin.tasks import (
    CABINET_FLOOR,
    COLOURS,
    DRAWER,
    SENTENCES,
    TABLE_TOP,
    TASKS,
    Block,
    Record,
    check_task,
    true_tasks,
)

HAND = ("robot", "finger1")
WALL = ("table", "slide_link")
SURFACES = {"table": TABLE_TOP, "slider": CABINET_FLOOR, "drawer": DRAWER}
RISE = {"table": 0.05, "slider": 0.03, "drawer": 0.05}
HAIR = 1e-6
PLACES = {"red": (0.0, -0.1, 0.46), "blue": (0.2, -0.1, 0.46), "pink": (0.1, 0.09, 0.46)}


def block(
    position=(0.0, 0.0, 0.46), rotation=(0.0, 0.0, 0.0), contacts=(TABLE_TOP,), linear=(0, 0, 0), angular=(0, 0, 0)
):
    quat = Rotation.from_euler("xyz", rotation, degrees=True).as_quat()
    return Block(tuple(position), tuple(quat), tuple(linear), tuple(angular), frozenset(contacts))


def record(touched=(), **changes):
    """Three blocks at rest on the table, nothing else; `changes` name blocks or fields."""
    blocks = {colour: changes.pop(colour, block(PLACES[colour])) for colour in COLOURS}
    still = Record(blocks, frozenset(touched), door=0.1, drawer=0.1, button=0.0, switch=0.0, bulb=False, led=False)
    return replace(still, **changes)


def moved(colour, by, contacts=(TABLE_TOP,)):
    return block(np.add(PLACES[colour], by), contacts=contacts)


# --- rotate ---


def rotated(colour, turn, contacts=(TABLE_TOP,), by=(0, 0, 0), first=(0, 0, 50)):
    """Records of a block that begins turned by `first` and is then turned by `turn`, both extrinsic xyz in degrees."""
    start = Rotation.from_euler("xyz", first, degrees=True)
    end = (Rotation.from_euler("xyz", turn, degrees=True) * start).as_euler("xyz", degrees=True)
    at = PLACES[colour]
    return (
        record(**{colour: block(at, first)}),
        record(**{colour: block(np.add(at, by), end, contacts)}),
    )


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("side", "sign"), [("left", 1), ("right", -1)])
@pytest.mark.parametrize(
    ("turn", "done"),
    [
        ((0, 0, 60.001), True),
        ((0, 0, 59.999), False),
        ((0, 0, 179.999), True),
        ((0, 0, 180.001), False),  # which is -179.999: the other side
        ((29.99, 0, 90), True),
        ((30.01, 0, 90), False),
        ((-29.99, 0, 90), True),
        ((-30.01, 0, 90), False),
        ((0, 29.99, 90), True),
        ((0, 30.01, 90), False),
        ((0, -29.99, 90), True),
        ((0, -30.01, 90), False),
        ((20, -20, 90), True),
        ((0, 0, -90), False),
    ],
)
def test_rotate_needs_60_to_180_degrees_about_z_and_less_than_30_about_x_and_y(colour, side, sign, turn, done):
    mirrored = (sign * turn[0], turn[1], sign * turn[2])
    assert check_task(f"rotate_{colour}_block_{side}", *rotated(colour, mirrored)) is done


@pytest.mark.parametrize("first", [(0, 0, -170), (0, 0, 175), (90, 0, 30), (180, 0, 0), (10, -70, 120)])
def test_rotate_counts_from_where_the_block_was_turned_in_the_world(first):
    assert check_task("rotate_red_block_left", *rotated("red", (0, 0, 61), first=first))
    assert not check_task("rotate_red_block_left", *rotated("red", (0, 0, 59), first=first))


def test_rotate_ignores_the_sign_and_the_length_of_quaternions():
    start, end = rotated("red", (0, 0, 90))
    turned = end.blocks["red"]
    flipped = replace(turned, quat_xyzw=tuple(-1.5 * q for q in turned.quat_xyzw))
    assert check_task("rotate_red_block_left", start, replace(end, blocks={**end.blocks, "red": flipped}))


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (0.6, 0, 0.8)])
def test_rotate_may_move_the_block_up_to_ten_centimetres_in_space(direction):
    near, far = (np.array(direction) * (0.1 + hair) for hair in (-HAIR, HAIR))
    assert check_task("rotate_blue_block_left", *rotated("blue", (0, 0, 90), by=near))
    assert not check_task("rotate_blue_block_left", *rotated("blue", (0, 0, 90), by=far))


@pytest.mark.parametrize(
    ("contacts", "done"),
    [
        ((TABLE_TOP,), True),
        ((TABLE_TOP, HAND), True),
        ((CABINET_FLOOR,), True),
        ((("blue", "base_link"),), True),
        ((("floor", "base_link"),), True),
        ((HAND,), False),
        ((), False),
    ],
)
def test_rotate_needs_a_contact_with_something_other_than_the_robot(contacts, done):
    assert check_task("rotate_red_block_left", *rotated("red", (0, 0, 90), contacts)) is done


# --- push ---


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1)])
def test_push_needs_more_than_ten_centimetres_along_x(colour, side, sign):
    task = f"push_{colour}_block_{side}"
    start = record(**{colour: block((0, 0, 0.46))})
    for by, done in ((0.1 + HAIR, True), (0.1 - HAIR, False), (0.3, True), (-0.3, False), (0.0, False)):
        end = record(**{colour: block((sign * by, 0.2, 0.3), rotation=(0, 90, 40))})  # y, z and rotation do not matter
        assert check_task(task, start, end) is done


@pytest.mark.parametrize(
    ("before", "after", "done"),
    [
        ((TABLE_TOP,), (TABLE_TOP,), True),
        ((TABLE_TOP,), (TABLE_TOP, WALL), True),
        ((TABLE_TOP, HAND), (TABLE_TOP,), True),
        ((TABLE_TOP,), (TABLE_TOP, HAND), True),
        ((TABLE_TOP, WALL), (TABLE_TOP,), False),  # it no longer touches the wall
        ((TABLE_TOP, WALL), (TABLE_TOP, WALL), True),
        ((TABLE_TOP,), (CABINET_FLOOR,), False),  # same body, another link
        ((TABLE_TOP, ("blue", "base_link")), (TABLE_TOP,), False),
        ((TABLE_TOP, ("blue", "base_link")), (TABLE_TOP, ("blue", "base_link")), True),
        ((HAND,), (TABLE_TOP,), False),
        ((TABLE_TOP,), (HAND,), False),
        ((), (), False),
        ((), (TABLE_TOP,), False),
    ],
)
def test_push_needs_every_contact_of_the_start_again_without_the_robots(before, after, done):
    start, end = record(red=block(contacts=before)), record(red=block((0.2, 0, 0.46), contacts=after))
    assert check_task("push_red_block_right", start, end) is done


# --- door and drawer ---


@pytest.mark.parametrize(
    ("task", "field", "change"),
    [
        ("move_slider_left", "door", 0.15),
        ("move_slider_right", "door", -0.15),
        ("open_drawer", "drawer", 0.12),
        ("close_drawer", "drawer", -0.12),
    ],
)
def test_door_and_drawer_need_more_than_that_change(task, field, change):
    for factor, done in ((1 + HAIR, True), (1 - HAIR, False), (-1.5, False), (0, False)):
        assert check_task(task, record(), record(**{field: 0.1 + change * factor})) is done
    assert not check_task(task, record(**{field: 0.0}), record(**{field: change}))  # strictly more


# --- lift ---


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", SURFACES)
def test_lift_needs_its_height_above_its_own_surface(colour, place):
    task = f"lift_{colour}_block_{place}"
    for other, surface in SURFACES.items():
        start = record(**{colour: moved(colour, (0, 0, 0), (surface,))})
        for hair in (HAIR, -HAIR):
            end = record(**{colour: moved(colour, (0.1, 0.2, RISE[place] + hair), (HAND,))})
            assert check_task(task, start, end) is (other == place and hair > 0)


@pytest.mark.parametrize("place", SURFACES)
@pytest.mark.parametrize(
    ("more", "after", "done"),
    [
        ((), (HAND,), True),
        ((), (HAND, ("robot", "finger2"), ("robot", "hand")), True),
        ((HAND,), (HAND,), True),
        ((WALL, ("blue", "base_link")), (HAND,), True),
        ((), (HAND, WALL), False),
        ((), (HAND, ("blue", "base_link")), False),
        ((), (), False),
        ((), (TABLE_TOP,), False),
    ],
)
def test_lift_needs_the_robot_alone_at_the_end_and_only_the_surface_at_the_start(place, more, after, done):
    start = record(red=moved("red", (0, 0, 0), (SURFACES[place], *more)))
    end = record(red=moved("red", (0, 0, 0.2), after))
    assert check_task(f"lift_red_block_{place}", start, end) is done


# --- place ---


def holding(colour, touched=None, contacts=(HAND,)):
    return record({colour} if touched is None else touched, **{colour: moved(colour, (0, 0, 0.2), contacts)})


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", ["slider", "drawer"])
@pytest.mark.parametrize(
    ("touched", "contacts", "done"),
    [
        ((), ("there",), True),
        ((), ("there", WALL, ("pink", "base_link")), True),
        (("table",), ("there",), True),  # the robot may touch anything but that block
        (("blue", "red", "pink"), ("there",), False),
        ((), (), False),
        ((), (TABLE_TOP,), False),
    ],
)
def test_place_needs_the_held_block_on_its_destination_and_out_of_the_hand(colour, place, touched, contacts, done):
    there = tuple(SURFACES[place] if contact == "there" else contact for contact in contacts)
    for door in (0.0, 0.28):  # where door and drawer are does not matter
        end = record(touched, door=door, drawer=door, **{colour: moved(colour, (0, 0, 0), there)})
        assert check_task(f"place_in_{place}", holding(colour), end) is done


@pytest.mark.parametrize(
    "start",
    [
        holding("red", touched={"red", "table"}),
        holding("red", touched={"red", "blue"}),
        holding("red", touched={"table"}),
        holding("red", touched=()),
        holding("red", contacts=(HAND, TABLE_TOP)),
        holding("red", contacts=(HAND, ("blue", "base_link"))),
        holding("red", contacts=()),
    ],
    ids=["table too", "blue too", "table only", "nothing", "on the table", "on blue", "not mutual"],
)
def test_place_needs_exactly_one_block_held_in_the_air_at_the_start(start):
    assert check_task("place_in_drawer", holding("red"), record(red=block(contacts=(DRAWER,))))
    assert not check_task("place_in_drawer", start, record(red=block(contacts=(DRAWER,))))


def test_place_is_about_the_block_that_was_held():
    assert not check_task("place_in_drawer", holding("red"), record(blue=block(contacts=(DRAWER,))))


# --- push into drawer ---


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("before", "after", "done"),
    [
        ((TABLE_TOP,), (DRAWER,), True),
        ((TABLE_TOP,), (DRAWER, HAND), True),  # the quirk: the robot may touch it in the end
        ((TABLE_TOP,), (DRAWER, TABLE_TOP), True),
        ((TABLE_TOP,), (TABLE_TOP,), False),
        ((TABLE_TOP,), (), False),
        ((TABLE_TOP, HAND), (DRAWER,), False),
        ((TABLE_TOP, WALL), (DRAWER,), False),
        ((TABLE_TOP, ("pink", "base_link")), (DRAWER,), False),
        ((CABINET_FLOOR,), (DRAWER,), False),
        ((DRAWER,), (DRAWER,), False),
        ((), (DRAWER,), False),
    ],
)
def test_push_into_drawer_needs_the_table_alone_first_and_the_drawer_then(colour, before, after, done):
    start = record(**{colour: block(contacts=before)})
    assert check_task("push_into_drawer", start, record(**{colour: block(contacts=after)})) is done


# --- stack and unstack ---


def tower(top, bottom, contacts=None, linear=(0, 0, 0), angular=(0, 0, 0)):
    on = ((bottom, "base_link"),) if contacts is None else contacts
    return record(
        **{
            top: block((0, 0, 0.5), contacts=on, linear=linear, angular=angular),
            bottom: block((0, 0, 0.46), contacts=(TABLE_TOP, (top, "base_link"))),
        },
    )


PAIRS = [("red", "blue"), ("blue", "pink"), ("pink", "red"), ("blue", "red")]


@pytest.mark.parametrize(("top", "bottom"), PAIRS)
def test_stack_and_unstack_are_about_any_block_on_any_other(top, bottom):
    held = record({top}, **{top: block((0, 0, 0.6), contacts=(HAND,))})
    assert check_task("stack_block", held, tower(top, bottom))
    assert check_task("unstack_block", tower(top, bottom), held)
    assert check_task("stack_block", record(), tower(top, bottom))  # nobody asks whether it was held
    falling = record(**{top: block((0, 0, 0.6), contacts=())})
    assert check_task("unstack_block", tower(top, bottom), falling)


@pytest.mark.parametrize(
    "contacts",
    [
        (("blue", "base_link"), HAND),
        (("blue", "base_link"), TABLE_TOP),
        (TABLE_TOP,),
        (HAND,),
        (),
    ],
)
def test_a_block_is_stacked_only_while_it_touches_blocks_and_nothing_else(contacts):
    leaning = tower("red", "blue", contacts)
    blue = replace(leaning.blocks["blue"], contacts=frozenset({TABLE_TOP, ("red", "base_link")}))
    leaning = replace(leaning, blocks={**leaning.blocks, "blue": blue})
    assert not check_task("stack_block", record(), leaning)
    assert not check_task("unstack_block", leaning, record())


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("kind", ["linear", "angular"])
@pytest.mark.parametrize(
    ("speed", "slow"), [(1 - HAIR, True), (1.0, False), (1 + HAIR, False), (-1 + HAIR, True), (-1.0, False)]
)
def test_velocities_count_at_the_end_of_stack_and_at_the_start_of_unstack(axis, kind, speed, slow):
    velocity = tuple(speed if i == axis else 0.0 for i in range(3))
    moving = tower("red", "blue", **{kind: velocity})
    assert check_task("stack_block", record(), moving) is slow
    assert check_task("unstack_block", moving, record()) is slow
    flung = record(red=block((0, 0, 0.6), contacts=(), **{kind: (5.0, 5.0, 5.0)}))
    assert check_task("stack_block", flung, tower("red", "blue"))
    assert check_task("unstack_block", tower("red", "blue"), flung)


def test_each_velocity_component_counts_alone():
    assert check_task("stack_block", record(), tower("red", "blue", linear=(0.9, 0.9, 0.9), angular=(0.9, -0.9, 0.9)))


def test_a_block_that_touched_another_at_the_start_cannot_be_stacked_but_the_third_can():
    touching = record(
        red=block(contacts=(TABLE_TOP, ("blue", "base_link"))),
        blue=block(contacts=(TABLE_TOP, ("red", "base_link"))),
    )
    assert not check_task("stack_block", touching, tower("red", "blue"))
    assert check_task("stack_block", touching, tower("pink", "blue"))


def test_unstack_needs_the_block_free_of_all_blocks():
    assert not check_task("unstack_block", tower("red", "blue"), tower("red", "pink"))


def test_a_block_on_two_others_is_stacked():
    bridge = record(red=block((0, 0, 0.5), contacts=(("blue", "base_link"), ("pink", "base_link"))))
    assert check_task("stack_block", record(), bridge)


# --- lights ---


@pytest.mark.parametrize(("field", "name"), [("bulb", "lightbulb"), ("led", "led")])
def test_lights_need_the_change_and_nothing_less(field, name):
    off, on = record(**{field: False}), record(**{field: True})
    for start, end in ((off, off), (off, on), (on, off), (on, on)):
        assert check_task(f"turn_on_{name}", start, end) is (start is off and end is on)
        assert check_task(f"turn_off_{name}", start, end) is (start is on and end is off)


def test_a_switch_that_moved_without_the_light_does_not_count():
    assert true_tasks(record(), record(switch=0.088, button=0.02)) == frozenset()


# --- all of them ---


def test_nothing_is_done_when_nothing_changed():
    for still in (record(), holding("red"), tower("red", "blue"), record(red=block(contacts=(DRAWER,)))):
        assert true_tasks(still, still) == frozenset()


def test_true_tasks_names_everything_that_came_about():
    end = record(door=0.3, led=True, blue=moved("blue", (0.3, 0, 0)), red=moved("red", (0, 0, 0.1), (HAND,)))
    expected = {"move_slider_left", "turn_on_led", "push_blue_block_right", "lift_red_block_table"}
    assert true_tasks(record(), end) == expected


@pytest.mark.parametrize("task", TASKS)
def test_true_tasks_agrees_with_check_task(task):
    starts = [record(), holding("red"), tower("red", "blue"), record(door=0.28, drawer=0.22, bulb=True, led=True)]
    starts += [record(pink=block(contacts=(surface,))) for surface in SURFACES.values()]
    ends = [
        *starts,
        *(rotated("pink", (0, 0, turn))[1] for turn in (100, -150)),
        *(record(blue=moved("blue", (x, 0, 0))) for x in (-0.2, 0.2)),
        record(door=0.0, drawer=0.3, led=True),
    ]
    for start in starts:
        for end in ends:
            assert (task in true_tasks(start, end)) is check_task(task, start, end)


def test_what_was_undone_no_longer_counts():
    start, opened, closed = record(drawer=0.0), record(drawer=0.2), record(drawer=0.05)
    assert check_task("open_drawer", start, opened)
    assert not check_task("open_drawer", start, closed)


def test_records_may_hold_arrays():
    end = record(red=moved("red", (0.2, 0, 0)))
    arrays = replace(
        end.blocks["red"],
        position=np.array(end.blocks["red"].position),
        quat_xyzw=np.array([0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)]),
        linear_velocity=np.zeros(3),
    )
    assert check_task("push_red_block_right", record(), replace(end, blocks={**end.blocks, "red": arrays})) is True


def test_an_unknown_task_is_an_error():
    with pytest.raises(KeyError):
        check_task("fly", record(), record())


def test_there_are_34_tasks_each_with_a_sentence_of_its_own():
    assert len(TASKS) == 34
    assert list(SENTENCES) == list(TASKS)
    assert len(set(SENTENCES.values())) == 34
    assert SENTENCES["push_into_drawer"] == "slide the block that it falls into the drawer"
    assert SENTENCES["lift_pink_block_drawer"] == "Take the pink block from the drawer"
    assert SENTENCES["rotate_red_block_left"] == "take the red block and rotate it to the left"
