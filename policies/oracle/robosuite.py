"""robosuite's tasks as wishes: which thing has to come where, read off the task's class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arm import CLOSE, OPEN, Actions, Pose, Script
from .joints import Joint, Motion, plan_motions
from .put import Put, plan_pick, plan_put, turned
from .scene import Scene, Thing
from .skills import LIFT_M, UP, still

_DOOR_END_RAD, _LATCH_END_RAD, _LATCH_FREE_RAD = 0.5, 1.5, 1.2
_BIN_SLACK_M = np.array([0.06, 0.07, 0.0])  # within a compartment of 0.195 by 0.245 m, towards the robot
_QUARTERS = (0.0, np.pi / 2, -np.pi / 2, np.pi)


def _until_put(scene: Scene, thing: Thing, spots: Callable[[], list[Pose]]) -> Actions:
    while True:
        if not scene.given_up:
            yield from plan_put(scene, Put(thing, spots, scene.solved))()
        yield from still(scene, OPEN, 2)


def lift(scene: Scene) -> Actions:
    """The cube off the table. Starts over when it slips out."""
    cube = scene.thing(scene.raw.cube_body_id)
    while True:
        yield from plan_pick(scene, cube)()
        raised = scene.arm.pose.shifted(LIFT_M * UP)
        while cube.held:
            yield scene.arm.towards(raised, CLOSE)


def stack(scene: Scene) -> Actions:
    """Cube A onto cube B."""
    upper, lower = scene.thing(scene.raw.cubeA_body_id), scene.thing(scene.raw.cubeB_body_id)
    yield from _until_put(scene, upper, lambda: [Pose(lower.pose.position, upper.pose.rotation)])


def pick_place(scene: Scene) -> Actions:
    """The task's object into its own compartment of the right bin."""
    raw = scene.raw
    middle = np.array(raw.target_bin_placements[raw.object_id])
    thing = scene.thing(raw.obj_body_id[raw.objects[raw.object_id].name])

    def spots() -> list[Pose]:
        nearer = [middle - part * _BIN_SLACK_M for part in (0.0, 0.5, 1.0)]  # the far corner is out of the arm's reach
        return [Pose(spot, turned(thing.pose.rotation, yaw)) for spot in nearer for yaw in _QUARTERS]

    yield from _until_put(scene, thing, spots)


def nut_assembly(scene: Scene) -> Actions:
    """The task's nut around its peg, turned so that a square nut's sides lie along the peg's."""
    raw = scene.raw
    peg = scene.thing((raw.peg1_body_id, raw.peg2_body_id)[raw.nut_id])
    thing = scene.thing(raw.obj_body_id[raw.nuts[raw.nut_id].name])

    def spots() -> list[Pose]:
        return [Pose(peg.pose.position, turned(peg.pose.rotation, yaw)) for yaw in _QUARTERS]

    yield from _until_put(scene, thing, spots)


def door(scene: Scene) -> Actions:
    """The door opened by its handle, turned down first where there is a latch."""
    raw = scene.raw
    hinge, *latch = (Joint(scene, raw.sim.model.joint_name2id(name)) for name in raw.door.joints)
    opening = Motion(hinge, _DOOR_END_RAD, scene.solved)
    turns = [Motion(joint, sign * _LATCH_END_RAD, _turned(joint)) for joint in latch for sign in (1.0, -1.0)]
    ways = [[turn, opening] for turn in turns] or [[opening]]
    while True:
        if not scene.given_up:
            yield from plan_motions(scene, ways)()
        yield from still(scene, OPEN, 2)


def _turned(joint: Joint) -> Callable[[], bool]:
    return lambda: abs(joint.value) > _LATCH_FREE_RAD


SCRIPTS: dict[str, Callable[[Scene], Actions]] = {
    "Lift": lift,
    "Stack": stack,
    "Door": door,
    "NutAssemblySquare": nut_assembly,
    "NutAssemblyRound": nut_assembly,
    "PickPlaceCan": pick_place,
    "PickPlaceMilk": pick_place,
    "PickPlaceBread": pick_place,
    "PickPlaceCereal": pick_place,
}


def script_of(task: str) -> Script | None:
    script = SCRIPTS.get(task)
    return None if script is None else lambda env, action: script(Scene(env, action))
