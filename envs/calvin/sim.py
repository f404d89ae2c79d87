"""CALVIN's table as a running simulation: control, observations, lights and pictures, without tasks or protocol.

What is peculiar, measured on calvin_env 797142c in PyBullet and kept here:

* An action moves a target pose that runs ahead of the arm and is never set back to the measured pose; Euler angles
  (fixed axes x, y, z) are added without wrapping.
* Inverse kinematics is Bullet's damped least squares with null space: damping 0.36, pull of 0.001 towards the neutral
  joints, at most 20 iterations from the current joints, ended after the one that found the position within 0.1 mm. It
  does not converge within one control step, and that is part of the response.
* A joint motor is a velocity constraint: each of the 8 physics steps of 1/240 s takes away a tenth of the joint error,
  up to 2 rad/s and 200 N m (fingers 1 m/s, 200 N closing and 2 N opening; button 4 N). Here it is an exact force,
  M (v_wanted - v) / dt + bias, cut at that limit. In free motion the two are the same. Against an obstacle Bullet's
  solver raises its force within the step; here arm motors add what they felt in the step before, and an armature on arm
  joints and fingers makes them resist with 24 M / dt. It is invisible in free motion, and the force that moves it does
  not count towards an arm's limit. With it the arm yields as in the one recorded run that hits something.
* `robot_obs` holds the tool's pose of one physics step ago beside the joints of now, and so do contacts: Bullet updates
  both before it integrates, and so does MuJoCo.
* A contact of a block counts from a positive distance on: Bullet's contact breaking threshold, under 1 mm.
* Button and switch are read once per control step, after the physics. After a reset the switch counts as off, so a bulb
  whose switch is up is lit by the first step. At the commit that CALVIN's repository pins ("submodule") the button's
  own memory is off after a reset even if the LED is on, so that the first press does nothing; at "head" it is not so.
* Upstream's gripper action and the button's last reading survive a reset. Here a reset leaves no trace of the past.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import MissingPackage, UsageError
from vla_bench.rendering.gl import explained, use_backend
from vla_bench.types import Image

from ..gl_contexts import insist_on_own_process, owned
from .scene import (
    JOINT_LOWER,
    JOINT_UPPER,
    SCENES,
    TEXTURE_PX,
    Scene,
    arm_mjcf,
    contact_distance,
    mjcf,
    wood_texture,
)
from .tasks import Block, Record

Float64 = NDArray[np.float64]

CONTROL_HZ = 30.0
SUBSTEPS = 8
NEUTRAL = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
FIXTURES = ("base__slide", "base__drawer", "base__button", "base__switch")
"""Joints in the order of scene_obs."""
ARM, FINGERS, MOTORS = slice(0, 7), slice(7, 9), 10
"""Places in qpos and qvel; the first ten have a motor, the last of them is the button."""
CAMERA_PX = {"rgb_static": (200, 200), "rgb_gripper": (84, 84)}
"""(height, width)."""
_CAMERA_FAR_M = {"rgb_static": 10.0, "rgb_gripper": 2.0}
_DT = 1 / 240
_GAIN = 0.1 / _DT
_SCALE = np.array([0.02, 0.02, 0.02, 0.05, 0.05, 0.05])
_ARM_SPEED, _FINGER_SPEED = 2.0, 1.0
_ARM_FORCE, _CLOSE_FORCE, _OPEN_FORCE, _BUTTON_FORCE = 200.0, 200.0, 2.0, 4.0
_FINGER_REACH = 0.04
_BUTTON_TRIGGER, _SWITCH_TRIGGER = 0.010, 0.044
_IK_DAMPING, _IK_REST_GAIN, _IK_ITERATIONS, _IK_POSITION_M, _IK_MAX_TURN = 0.36, 0.001, 20, 1e-4, math.pi / 4
_BULB_ON, _LED_ON, _OFF = (1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0)
_TABLE_Y, _TABLE_Z = (-0.15, -0.03), 0.45999
_CABINET_Y, _CABINET_Z = (0.05, 0.12), 0.46099


@dataclass
class _Logic:
    """What the environment remembers beside the physics."""

    target: Float64
    """(6,) tool position and Euler angles that the arm is steered to."""
    gripper: float = 1.0
    led: bool = False
    bulb: bool = False
    button_on: bool = False
    button_pressed: bool = False
    switch_on: bool = False

    def copy(self) -> _Logic:
        return replace(self, target=self.target.copy())


class _Motors(NamedTuple):
    """Windows on the simulator's memory, (MOTORS,) each."""

    qpos: Float64
    qvel: Float64
    bias: Float64
    applied: Float64
    load: Float64
    """What contacts and joint limits did in the last physics step."""


@dataclass(frozen=True)
class State:
    """A snapshot of a `Table`."""

    physics: Float64
    """MuJoCo's integration state."""
    sampled: Float64
    """qpos one physics step ago, from which tool pose and contacts were taken."""
    load: Float64
    """(MOTORS,) what the motors felt in that step."""
    logic: _Logic


class Table:
    """One scene with robot, fixtures and blocks. Holds a simulator: one per thread."""

    def __init__(
        self,
        scene: Literal["A", "B", "C", "D"] = "D",
        led: Literal["head", "submodule"] = "head",
        *,
        substeps: int = SUBSTEPS,
        camera_px: Mapping[str, tuple[int, int]] = CAMERA_PX,
    ) -> None:
        if scene not in SCENES or led not in ("head", "submodule"):
            raise UsageError(
                f"Got scene {scene!r} and led {led!r}; scenes are {', '.join(SCENES)} and led is head or submodule."
            )
        self.scene: Scene = SCENES[scene]
        self.blocks = tuple(colour for colour, _ in self.scene.blocks)
        self._mujoco = _import_mujoco()
        self.model: Any = self._mujoco.MjModel.from_xml_string(mjcf(self.scene))
        self.data: Any = self._mujoco.MjData(self.model)
        self._paint_textures()
        self._find_parts()
        self._ik = _InverseKinematics(self._mujoco)
        self._led_memory = led == "head"
        self._substeps = substeps
        self._camera_px = camera_px
        self._painter: _Painter | None = None
        self.reset()

    # ------------------------------------------------------------------ reset, step

    def reset(
        self,
        robot_obs: Float64 | Sequence[float] | None = None,
        scene_obs: Float64 | Sequence[float] | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Put everything there, at rest, and make one physics step.

        Of robot_obs (15,) only gripper width and arm joints count; default: neutral, open. scene_obs is (24,); without
        it fixtures are at 0, lights off and blocks where `rng` (default: seed 0) puts them.
        """
        robot = self._checked(robot_obs, 15, "robot_obs")
        objects = self._checked(scene_obs, 24, "scene_obs")
        if objects is None:
            objects = self._random_scene(np.random.default_rng(0) if rng is None else rng)
        self._mujoco.mj_resetData(self.model, self.data)
        qpos = self._qpos
        qpos[ARM] = NEUTRAL if robot is None else robot[7:14]
        qpos[FINGERS] = _FINGER_REACH if robot is None else robot[6] / 2
        self._place(objects)
        self._wanted[:] = qpos[:MOTORS]
        self._wanted[-1] = 0.0
        self._set_gripper_limits(opening=True)
        bulb, led = objects[4] > 0.5, objects[5] > 0.5
        self._logic = _Logic(np.zeros(6), led=bool(led), bulb=bool(bulb), button_on=bool(led and self._led_memory))
        self._physics_step()
        self._logic.target = self._tool_pose()

    def step(self, action: Float64 | Sequence[float]) -> None:
        """One control step of a relative action (7,): metres / 0.02, radians / 0.05, gripper +1 open or -1 close."""
        move = np.asarray(action, np.float64)
        if move.shape != (7,):
            raise UsageError(f"Got an action of shape {move.shape}; a relative action is (7,).")
        self._logic.target += move[:6] * _SCALE
        self._advance(self._logic.target[:3], _quat_of_euler(self._logic.target[3:]), float(move[6]))

    def step_absolute(self, position: Sequence[float], euler: Sequence[float], gripper: float) -> None:
        """One control step towards a tool pose in the world (m; rad, fixed axes xyz). The running target stays."""
        self._advance(np.asarray(position, np.float64), _quat_of_euler(np.asarray(euler, np.float64)), float(gripper))

    def close(self) -> None:
        """Free the GL context, if there is one."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    # ------------------------------------------------------------------ what can be seen

    def robot_obs(self) -> Float64:
        """(15,) tool position and Euler angles, both one physics step old, width, arm joints, gripper action."""
        qpos = self.data.qpos
        return np.concatenate((self._tool_pose(), [qpos[FINGERS].sum()], qpos[ARM], [self._logic.gripper]))

    def tool(self) -> tuple[Float64, Float64]:
        """The tool's position (3,) and quaternion xyzw (4,), one physics step old."""
        quat = np.empty(4)
        self._mujoco.mju_mat2Quat(quat, self.data.site_xmat[self._tool])
        return self.data.site_xpos[self._tool].copy(), quat[[1, 2, 3, 0]]

    def fingers(self) -> Float64:
        """(2,) how far each finger is from the middle, m."""
        fingers: Float64 = self.data.qpos[FINGERS].copy()
        return fingers

    def target(self) -> Float64:
        """(6,) tool position and Euler angles that the arm is steered to by relative actions."""
        return self._logic.target.copy()

    def scene_obs(self) -> Float64:
        """(24,) door, drawer, button, switch, bulb, LED, then blocks in scene order: position and Euler angles."""
        qpos = self.data.qpos
        blocks = [
            np.concatenate((qpos[address : address + 3], _euler_of_quat(qpos[address + 3 : address + 7])))
            for address in self._block_q
        ]
        return np.concatenate((qpos[self._fixture_q], [self._logic.bulb, self._logic.led], *blocks))

    def record(self) -> Record:
        """What the task oracle reads, now."""
        touching, robot = self._contacts()
        door, drawer, button, switch = self.data.qpos[self._fixture_q].tolist()
        return Record(
            blocks={colour: self._block(index, touching[colour]) for index, colour in enumerate(self.blocks)},
            robot_contacts=frozenset(robot),
            door=door,
            drawer=drawer,
            button=button,
            switch=switch,
            bulb=self._logic.bulb,
            led=self._logic.led,
        )

    def paint(self, camera: str, state: State | None = None) -> Image:
        """uint8 (H, W, 3) upright picture of now or of a snapshot. Changes nothing.

        `camera` is "rgb_static" or "rgb_gripper", (200, 200) and (84, 84) unless the table was made with other sizes.
        """
        if camera not in CAMERA_PX:
            raise UsageError(f"Got camera {camera!r}; there are {' and '.join(CAMERA_PX)}.")
        if self._painter is None:
            self._painter = _Painter(self._mujoco, self.model, self._camera_px)
        logic = self._logic if state is None else state.logic
        qpos = self._qpos if state is None else state.physics[1 : 1 + self.model.nq]  # time comes first
        self.model.geom_rgba[self._bulb_geom] = _BULB_ON if logic.bulb else _OFF
        self.model.geom_rgba[self._led_geom] = _LED_ON if logic.led else _OFF
        return self._painter.paint(qpos, camera)

    def geoms_seen(self, camera: str, state: State) -> NDArray[np.int32]:
        """(H, W) the number of the geom in each pixel of the snapshot's picture, -1 where there is none."""
        if self._painter is None:
            self._painter = _Painter(self._mujoco, self.model, self._camera_px)
        return self._painter.geoms_seen(state.physics[1 : 1 + self.model.nq], camera)

    # ------------------------------------------------------------------ snapshots

    def state(self) -> State:
        """Everything that decides what comes next."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(self.model, kind))
        self._mujoco.mj_getState(self.model, self.data, physics, kind)
        return State(physics, self._sampled.copy(), self._motor.load.copy(), self._logic.copy())

    def set_state(self, state: State) -> None:
        """Go back to a snapshot of the same scene: what follows, and what can be seen, is the same bit for bit."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self.data.qpos[:] = self._sampled[:] = state.sampled
        self._mujoco.mj_fwdPosition(self.model, self.data)
        self._mujoco.mj_setState(self.model, self.data, state.physics, kind)
        self._motor.load[:] = state.load
        self._logic = state.logic.copy()

    # ------------------------------------------------------------------ control

    def _advance(self, position: Float64, quat: Float64, gripper: float) -> None:
        if gripper not in (1.0, -1.0):
            raise UsageError(f"Got gripper action {gripper}; it is +1 (open) or -1 (close).")
        self._logic.gripper = gripper
        self._wanted[ARM] = self._ik.solve(self.data.qpos[ARM], position, quat)
        self._wanted[FINGERS] = _FINGER_REACH if gripper > 0 else 0.0
        self._set_gripper_limits(opening=gripper > 0)
        for _ in range(self._substeps):
            self._physics_step()
        self._read_button_and_switch()

    def _physics_step(self) -> None:
        """1/240 s with all motors."""
        model, data = self.model, self.data
        motor = self._motor
        self._sampled[:] = self._qpos
        self._mujoco.mj_step1(model, data)
        speed = _clipped(_GAIN * (self._wanted - motor.qpos), self._speed)
        self._acceleration[:MOTORS] = (speed - motor.qvel) / _DT
        self._mujoco.mj_mulM(model, data, self._force, self._acceleration)
        virtual = self._virtual_inertia * self._acceleration[ARM]
        self._force[ARM] -= virtual + motor.load[ARM]
        motor.applied[:] = _clipped(self._force[:MOTORS], self._limit) + motor.bias
        motor.applied[ARM] += virtual
        self._mujoco.mj_step2(model, data)

    def _set_gripper_limits(self, opening: bool) -> None:
        """Opening is weak; scaled so that fingers with their armature start as fast as bare ones."""
        self._limit[FINGERS] = _OPEN_FORCE * self._finger_inertia_ratio if opening else _CLOSE_FORCE

    def _read_button_and_switch(self) -> None:
        logic = self._logic
        button, switch = self.data.qpos[self._fixture_q[2:]]
        pressed = bool(button > _BUTTON_TRIGGER)
        if pressed and not logic.button_pressed:
            logic.button_on = logic.led = not logic.button_on
        logic.button_pressed = pressed
        up = bool(switch > _SWITCH_TRIGGER)
        if up != logic.switch_on:
            logic.switch_on = logic.bulb = up

    # ------------------------------------------------------------------ parts

    def _find_parts(self) -> None:
        """Addresses in qpos and qvel, and which (body, link) each geom belongs to."""
        model = self.model
        arm = [model.joint(f"joint{number}") for number in range(1, 8)]
        fingers = [model.joint("finger_joint1"), model.joint("finger_joint2")]
        fixtures = [model.joint(name) for name in FIXTURES]
        motors = [*arm, *fingers, fixtures[2]]
        assert [int(joint.qposadr[0]) for joint in motors] == [int(joint.dofadr[0]) for joint in motors] == [*range(10)]
        data = self.data
        self._qpos = data.qpos  # these are windows on the simulator's memory: making them anew takes microseconds
        self._motor = _Motors(
            *(
                array[:MOTORS]
                for array in (data.qpos, data.qvel, data.qfrc_bias, data.qfrc_applied, data.qfrc_constraint)
            )
        )
        self._fixture_q = np.array([joint.qposadr[0] for joint in fixtures])
        self._block_q = [int(model.joint(colour).qposadr[0]) for colour in self.blocks]
        self._block_v = [int(model.joint(colour).dofadr[0]) for colour in self.blocks]
        self._tool = model.site("tcp").id
        self._bulb_geom, self._led_geom = model.geom("bulb").id, model.geom("led").id
        self._finger_inertia_ratio = 1 + model.dof_armature[7] / model.body("finger1").mass[0]
        self._speed = np.array([_ARM_SPEED] * 7 + [_FINGER_SPEED] * 2 + [np.inf])
        self._limit = np.array([_ARM_FORCE] * 7 + [_CLOSE_FORCE] * 2 + [_BUTTON_FORCE])
        self._wanted = np.zeros(MOTORS)
        self._virtual_inertia = model.dof_armature[ARM].copy()
        self._sampled = np.zeros(model.nq)
        self._acceleration, self._force = np.zeros(model.nv), np.zeros(model.nv)
        self._owners = [self._owner(model.body(body).name) for body in model.geom_bodyid]
        self._near = _near(self._mujoco, model, self.scene)

    def _owner(self, body: str) -> tuple[str, str]:
        """(body, link) as the task oracle names them."""
        if body in self.blocks:
            return body, "base_link"
        if body == "floor":
            return "floor", "base_link"
        return ("table" if body.endswith("_link") else "robot"), body

    def _contacts(self) -> tuple[dict[str, set[tuple[str, str]]], set[str]]:
        """What each block touches as (body, link), and the bodies that the robot touches: one physics step ago."""
        touching: dict[str, set[tuple[str, str]]] = {colour: set() for colour in self.blocks}
        robot: set[str] = set()
        near = self._near
        near.qpos[:] = self._sampled
        self._mujoco.mj_kinematics(near.model, near)
        self._mujoco.mj_collision(near.model, near)
        for first, second in near.contact.geom.tolist():
            one, other = self._owners[first], self._owners[second]
            for me, it in ((one, other), (other, one)):
                if me[0] in touching:
                    touching[me[0]].add(it)
                elif me[0] == "robot":
                    robot.add(it[0])
        return touching, robot

    def _block(self, index: int, contacts: set[tuple[str, str]]) -> Block:
        q, v = self._block_q[index], self._block_v[index]
        x, y, z, qw, qx, qy, qz = self.data.qpos[q : q + 7].tolist()
        spin = self._mujoco.mju_rotVecQuat
        angular = np.empty(3)
        spin(angular, self.data.qvel[v + 3 : v + 6], self.data.qpos[q + 3 : q + 7])  # MuJoCo's is in the body's frame
        return Block(
            position=(x, y, z),
            quat_xyzw=(qx, qy, qz, qw),
            linear_velocity=tuple(self.data.qvel[v : v + 3].tolist()),
            angular_velocity=tuple(angular.tolist()),
            contacts=frozenset(contacts),
        )

    def _tool_pose(self) -> Float64:
        """(6,) position and Euler angles."""
        quat = np.empty(4)
        self._mujoco.mju_mat2Quat(quat, self.data.site_xmat[self._tool])
        return np.concatenate((self.data.site_xpos[self._tool], _euler_of_quat(quat)))

    def _place(self, objects: Float64) -> None:
        """Fixtures and blocks to the poses of a scene_obs."""
        self._qpos[self._fixture_q] = objects[:4]
        for index, address in enumerate(self._block_q):
            pose = objects[6 + 6 * index : 12 + 6 * index]
            self._qpos[address : address + 3] = pose[:3]
            self._qpos[address + 3 : address + 7] = _quat_of_euler(pose[3:])

    def _random_scene(self, rng: np.random.Generator) -> Float64:
        """scene_obs with blocks drawn as upstream does: a surface, a place in it, a yaw, again until none touch.

        Here they do not touch the door, walls or the robot either, and begin at rest where upstream drops them.
        """
        scene = self.scene
        surfaces = (
            (scene.table_x, _TABLE_Y, _TABLE_Z),
            (scene.left_x, _CABINET_Y, _CABINET_Z),
            (scene.right_x, _CABINET_Y, _CABINET_Z),
        )
        self._qpos[ARM] = NEUTRAL
        while True:
            poses = []
            for _ in scene.blocks:
                x, y, z = surfaces[rng.integers(3)]
                poses.append((rng.uniform(*x), rng.uniform(*y), z, 0, 0, rng.uniform(-math.pi, math.pi)))
            objects = np.concatenate((np.zeros(6), *poses))
            self._place(objects)
            self._sampled[:] = self._qpos
            touching, _ = self._contacts()
            floors = ("plank_link" if pose[1] > 0 else "base_link" for pose in poses)
            if all(contacts == {("table", floor)} for contacts, floor in zip(touching.values(), floors, strict=True)):
                return objects

    def _paint_textures(self) -> None:
        for seed, (name, mean) in enumerate((("wood", self.scene.wood), ("panel", self.scene.panel))):
            start = int(self.model.texture(name).adr[0])
            pixels = wood_texture(mean, seed).reshape(-1)
            assert pixels.size == 6 * TEXTURE_PX**2 * 3
            self.model.tex_data[start : start + pixels.size] = pixels

    def _checked(self, values: Float64 | Sequence[float] | None, size: int, name: str) -> Float64 | None:
        if values is None:
            return None
        array = np.asarray(values, np.float64)
        if array.shape != (size,) or not np.isfinite(array).all():
            raise UsageError(f"Got {name} of shape {array.shape}; it is ({size},) finite numbers.")
        return array


class _InverseKinematics:
    """Bullet's damped least squares with null space, on a model of the arm alone."""

    def __init__(self, mujoco: Any) -> None:
        from scipy.linalg.lapack import dposv  # np.linalg.solve takes four times as long on a 6 x 6 system

        self._solve = dposv
        self._mujoco = mujoco
        self._model = mujoco.MjModel.from_xml_string(arm_mjcf())
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site("tcp").id
        self._joints, self._position = self._data.qpos, self._data.site_xpos[self._site]
        self._quat = self._data.xquat[self._model.site_bodyid[self._site]]
        self._jacobian = np.zeros((6, 7))
        self._error = np.zeros(6)
        self._damping = _IK_DAMPING * np.eye(6)
        self._rest = np.array(NEUTRAL)
        self._lower, self._upper = np.array(JOINT_LOWER), np.array(JOINT_UPPER)

    def solve(self, joints: Float64, position: Float64, quat: Float64) -> Float64:
        """(7,) joints, within their limits, that bring the tool closer to that pose from these joints."""
        mj, model, data, jacobian, error = self._mujoco, self._model, self._data, self._jacobian, self._error
        linear, angular, offset, turn = jacobian[:3], jacobian[3:], error[:3], error[3:]
        self._joints[:] = joints
        for _ in range(_IK_ITERATIONS):
            mj.mj_kinematics(model, data)
            mj.mj_comPos(model, data)
            mj.mj_jacSite(model, data, linear, angular, self._site)
            np.subtract(position, self._position, out=offset)
            self._rotation_vector(quat, turn)
            rest = _IK_REST_GAIN * (self._rest - self._joints)
            _, pull, _ = self._solve(jacobian @ jacobian.T + self._damping, error - jacobian @ rest)
            change = rest + pull @ jacobian
            greatest = max(change.max(), -change.min())
            self._joints += change if greatest <= _IK_MAX_TURN else change * (_IK_MAX_TURN / greatest)
            if offset @ offset < _IK_POSITION_M**2:
                break
        within: Float64 = np.clip(self._joints, self._lower, self._upper)
        return within

    def _rotation_vector(self, quat: Float64, result: Float64) -> None:
        """(3,) in the world, from the tool's orientation to `quat`."""
        back, turn = np.empty(4), np.empty(4)
        self._mujoco.mju_negQuat(back, self._quat)
        self._mujoco.mju_mulQuat(turn, quat, back)
        self._mujoco.mju_quat2Vel(result, turn, 1.0)


class _Painter:
    """Pictures of a configuration, from data of its own."""

    def __init__(self, mujoco: Any, model: Any, camera_px: Mapping[str, tuple[int, int]]) -> None:
        self._mujoco, self._model, self._camera_px = mujoco, model, camera_px
        self._data = mujoco.MjData(model)
        self._renderers: dict[str, Any] = {}
        self._free: list[Callable[[], object]] = []

    def paint(self, qpos: Float64, camera: str) -> Image:
        image: Image = self._aimed(qpos, camera).render().copy()
        return image

    def geoms_seen(self, qpos: Float64, camera: str) -> NDArray[np.int32]:
        renderer = self._aimed(qpos, camera)
        renderer.enable_segmentation_rendering()
        try:
            number, kind = np.moveaxis(renderer.render(), -1, 0)
        finally:
            renderer.disable_segmentation_rendering()
        return np.where(kind == self._mujoco.mjtObj.mjOBJ_GEOM, number, -1).astype(np.int32)

    def _aimed(self, qpos: Float64, camera: str) -> Any:
        """The camera's renderer, its scene at that configuration."""
        insist_on_own_process()
        self._data.qpos[:] = qpos
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        self._model.vis.map.zfar = _CAMERA_FAR_M[camera]
        if camera not in self._renderers:
            with explained():
                made = self._mujoco.Renderer(self._model, *self._camera_px[camera])
            self._renderers[camera] = made
            self._free.append(owned(self, type(made).close, made))
        renderer = self._renderers[camera]
        renderer.update_scene(self._data, camera)
        return renderer

    def close(self) -> None:
        for free in self._free:
            free()


def _import_mujoco() -> Any:
    use_backend()
    try:
        with explained():
            import mujoco
    except ModuleNotFoundError as error:
        raise MissingPackage("mujoco", "robosuite") from error
    return mujoco


def _near(mujoco: Any, model: Any, scene: Scene) -> Any:
    """Data of a model that also lists contacts of blocks with what they almost touch.

    Not the model that is simulated: MuJoCo's collider of two boxes, given a margin, now and then sees a contact half a
    metre deep where faces are parallel to the last bit (google-deepmind/mujoco#3476), and blocks at rest exploded.
    """
    model = copy.copy(model)
    reach = {colour: contact_distance(length) for colour, length in scene.blocks}
    for colour, distance in reach.items():
        model.geom_margin[model.geom(colour).id] = distance
    for number, pair in enumerate(zip(model.pair_geom1, model.pair_geom2, strict=True)):
        model.pair_margin[number] = min(reach[model.geom(geom).name] for geom in pair)
    return mujoco.MjData(model)


def _clipped(values: Float64, limit: Float64) -> Float64:
    """np.clip to [-limit, limit], several times as fast on ten numbers."""
    smaller: Float64 = np.minimum(values, limit)
    return np.maximum(smaller, -limit, out=smaller)


def _quat_of_euler(euler: Float64) -> Float64:
    """(4,) wxyz of rotations about the fixed axes x, then y, then z."""
    roll, pitch, yaw = (angle / 2 for angle in euler.tolist())
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )


def _euler_of_quat(quat: Float64) -> Float64:
    """(3,) angles about the fixed axes x, y, z of a unit quaternion wxyz."""
    w, x, y, z = quat.tolist()
    return np.array(
        [
            math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
            math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x)))),
            math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
        ]
    )
