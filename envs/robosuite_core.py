"""robosuite 1.4's environment step without the work whose result nobody reads, bit for bit.

Shared by the suites that run on robosuite (robosuite.py, libero.py). What is peculiar here, and why it is so:

* robosuite calls `mj_forward` twice and `mj_step` once in every 2 ms substep, so positions and velocities are computed
  three times. They are functions of the state alone and are computed once here; the three passes of the constraint
  solver stay, because up to MuJoCo 3.3.2 each of them moves the solver's warm start. In the very first substep after a
  reset there are two, not three: the controller was updated when it was made and skips its own `mj_forward`
  (`Controller.new_update`); it then also steers from the pose it saw at the reset, before the initial state was set.
* robosuite samples every observable when its own float clock says so, not at the end of the control step, and from the
  kinematics before the last integration. The clock is replayed here (`SampleClock`), so only one instant per control
  step is kept (`Sample`), and pictures are taken from it afterwards, when somebody wants to look.
* robosuite's renderer never makes its GL context current, so two renderers in one process paint into each other's
  pictures. `Cameras` (robosuite_cameras.py) does, and makes one context per scene instead of one per reset.
* MuJoCo answers a diverging state by resetting it to the model's default and going on. Here it ends the episode with
  `SimulationDiverged`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from vla_bench.errors import MissingPackage
from vla_bench.geometry import axis_angle_from_quat
from vla_bench.rendering.gl import explained, use_backend
from vla_bench.rendering.simulators import (
    insist_on_versions,
    spare_garbage_collection,
    use_numba_cache,
    without_shared_log,
)
from vla_bench.types import ActionSpec, Camera, Float32, Frame, Image, Mask, Observation, Shot, Task, Transition

from .robosuite_cameras import Cameras, Float64, Still
from .task_env import TaskEnv

CONTROL_HZ = 20.0
# OSC_POSE's output_max of robosuite/controllers/config/osc_pose.json; PandaGripper: -1 opens, +1 closes.
ACTION = ActionSpec(
    dim=7, control="delta_pose", rotation="axis_angle", gripper="close_positive", scale_m=0.05, scale_rad=0.5
)
STATE = (
    *(f"end effector {axis}, m, world" for axis in "xyz"),
    *(f"end effector axis-angle {axis}, rad, world" for axis in "xyz"),
    "left finger joint, m",
    "right finger joint, m",
)


class SimulationDiverged(RuntimeError):
    """Raised when MuJoCo found NaN, Inf or huge values in state or controls; the episode cannot be judged."""


def import_robosuite() -> Any:
    """robosuite, imported quietly and with the GL backend chosen. Raises MissingPackage, and UsageError where this
    machine has to be mended first."""
    if "robosuite" in sys.modules:
        return sys.modules["robosuite"]
    use_backend()
    insist_on_versions("robosuite", "mujoco")
    use_numba_cache()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns about a missing private macro file
    try:
        with explained(), without_shared_log():
            import robosuite
    except ModuleNotFoundError as error:
        raise MissingPackage(error.name or "robosuite", "robosuite") from error
    spare_garbage_collection()
    return robosuite


def version(package: str) -> str:
    """The installed version of a package the suites stand on. Raises MissingPackage."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise MissingPackage(package, "robosuite") from error


class SampleClock:
    """When robosuite's observables read their sensors (`Observable.update`, delay 0), float errors included.

    It starts as after `env.reset()`, whose forced update has just taken a sample.
    """

    def __init__(self, control_hz: float, timestep_s: float) -> None:
        self._period_s = 1.0 / control_hz
        self._timestep_s = timestep_s
        self._elapsed_s = 0.0
        self._sampled = False
        self.force()

    def tick(self) -> bool:
        """One update at the end of a substep: whether the sensors are read now."""
        self._elapsed_s += self._timestep_s
        due = not self._sampled and self._period_s >= self._elapsed_s
        self._sampled = self._sampled or due
        return self._roll_over() or due

    def force(self) -> None:
        """One forced update: the sensors are read whatever the time."""
        self._elapsed_s += self._timestep_s
        self._sampled = True
        self._roll_over()

    def _roll_over(self) -> bool:
        if self._elapsed_s < self._period_s:
            return False
        late = not self._sampled
        self._elapsed_s %= self._period_s
        self._sampled = False
        return late


class Sample:
    """The instant at which the sensors were last read: enough to say the state and to paint the pictures later."""

    def __init__(self, raw: Any) -> None:
        robot = raw.robots[0]
        self._model = raw.sim.model._model
        self._data = raw.sim.data._data
        self._site = robot.eef_site_id
        self._body = raw.sim.model.body_name2id(robot.robot_model.eef_name)
        self._fingers = robot._ref_gripper_joint_pos_indexes
        self.still = Still(np.empty(self._model.nq), np.empty_like(self._model.site_rgba))
        self._eef_pos = np.empty(3)
        self._eef_quat_wxyz = np.empty(4)
        self._finger_pos = np.empty(2)

    def before_integration(self) -> None:
        self.still.qpos[:] = self._data.qpos

    def after_integration(self) -> None:
        self._eef_pos[:] = self._data.site_xpos[self._site]
        self._eef_quat_wxyz[:] = self._data.xquat[self._body]
        self._finger_pos[:] = self._data.qpos[self._fingers]
        self.still.site_rgba[:] = self._model.site_rgba

    def take(self) -> None:
        """A forced sample of the state as it is now."""
        self.before_integration()
        self.after_integration()

    def state(self) -> Float32:
        """(8,) float32 as in `STATE`."""
        rotation = axis_angle_from_quat(self._eef_quat_wxyz[[1, 2, 3, 0]])
        return np.concatenate([self._eef_pos, rotation, self._finger_pos]).astype(np.float32)


class Kept(NamedTuple):
    """A control step of a recorded episode."""

    step: int
    still: Still
    state: Float32
    physics: Float64
    """(1 + nq + nv,) time, qpos, qvel: robosuite's flattened state."""
    attended: tuple[str, ...]
    """What the policy said it manipulates when it chose the action before."""
    goal: tuple[str, ...]
    """What the task is about."""


@dataclass
class Moment:
    """A control step as an observation tells it; its pictures are painted when somebody looks."""

    still: Still
    state: Float32
    images: Mapping[str, Image] | None = None


class ControlLoop:
    """One control step of robosuite's `env.step` on its OSC_POSE controller: 25 substeps of 2 ms."""

    def __init__(self, raw: Any, clock: SampleClock, sample: Sample) -> None:
        import mujoco
        from robosuite.utils import control_utils

        self._mujoco = mujoco
        self._model = raw.sim.model._model
        self._data = raw.sim.data._data
        self._substeps = int(raw.control_timestep / raw.model_timestep)
        self._clock = clock
        self._sample = sample
        robot = raw.robots[0]
        self._controller = robot.controller
        self._gripper = robot.gripper
        self._site = raw.sim.model.site_name2id(self._controller.eef_name)
        self._qpos_index = self._controller.qpos_index
        self._qvel_index = self._controller.qvel_index
        self._arm_actuators = robot._ref_joint_actuator_indexes
        self._torque_low, self._torque_high = robot.torque_limits
        self._gripper_actuators = [raw.sim.model.actuator_name2id(name) for name in self._gripper.actuators]
        limits = self._model.actuator_ctrlrange[self._gripper_actuators]
        self._gripper_bias = 0.5 * (limits[:, 1] + limits[:, 0])
        self._gripper_weight = 0.5 * (limits[:, 1] - limits[:, 0])
        self._kp_pos, self._kp_ori = self._controller.kp[:3], self._controller.kp[3:]
        self._kd_pos, self._kd_ori = self._controller.kd[:3], self._controller.kd[3:]
        self._orientation_error = control_utils.orientation_error
        self._opspace_matrices = control_utils.opspace_matrices
        self._nullspace_torques = control_utils.nullspace_torques
        self._jacp = np.zeros((3, self._model.nv))
        self._jacr = np.zeros((3, self._model.nv))
        self._mass = np.zeros((self._model.nv, self._model.nv))

    def step(self, action: Float64) -> None:
        """Play one (7,) action; the sample is refreshed when robosuite's clock says so."""
        model, data, controller = self._model, self._data, self._controller
        step1, step2 = self._mujoco.mj_step1, self._mujoco.mj_step2
        arm, gripper = action[:6], action[6:]
        for substep in range(self._substeps):
            step1(model, data)
            self._solve()
            if substep == 0:
                controller.set_goal(arm)
            data.ctrl[self._arm_actuators] = self._torques()
            data.ctrl[self._gripper_actuators] = (
                self._gripper_bias + self._gripper_weight * self._gripper.format_action(gripper)
            )
            due = self._clock.tick()
            if due:
                self._sample.before_integration()
            step2(model, data)
            if due:
                self._sample.after_integration()

    def _solve(self) -> None:
        """What upstream's two `mj_forward` do beyond positions and velocities: they move the solver's warm start."""
        mujoco, model, data = self._mujoco, self._model, self._data
        mujoco.mj_fwdActuation(model, data)
        mujoco.mj_fwdAcceleration(model, data)
        mujoco.mj_fwdConstraint(model, data)
        if self._controller.new_update:
            mujoco.mj_fwdConstraint(model, data)
            self._read_arm()

    def _read_arm(self) -> None:
        """`Controller.update` after its `mj_forward`: the same numbers, each computed once."""
        model, data, controller = self._model, self._data, self._controller
        self._mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self._site)
        self._mujoco.mj_fullM(model, self._mass, data.qM)
        qvel = data.qvel
        controller.ee_pos = np.array(data.site_xpos[self._site])
        controller.ee_ori_mat = data.site_xmat[self._site].reshape(3, 3).copy()
        controller.ee_pos_vel = np.dot(self._jacp, qvel)
        controller.ee_ori_vel = np.dot(self._jacr, qvel)
        controller.joint_pos = data.qpos[self._qpos_index]
        controller.joint_vel = qvel[self._qvel_index]
        controller.J_pos = self._jacp[:, self._qvel_index]
        controller.J_ori = self._jacr[:, self._qvel_index]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = self._mass[self._qvel_index, :][:, self._qvel_index]
        controller.new_update = False

    def _torques(self) -> Float64:
        """(7,) N m, clipped: `OperationalSpaceController.run_controller` without its copies and branches."""
        c = self._controller
        force = (c.goal_pos - c.ee_pos) * self._kp_pos - c.ee_pos_vel * self._kd_pos
        torque = self._orientation_error(c.goal_ori, c.ee_ori_mat) * self._kp_ori - c.ee_ori_vel * self._kd_ori
        _, lambda_pos, lambda_ori, nullspace = self._opspace_matrices(c.mass_matrix, c.J_full, c.J_pos, c.J_ori)
        wrench = np.concatenate([np.dot(lambda_pos, force), np.dot(lambda_ori, torque)])
        torques = np.dot(c.J_full.T, wrench) + self._data.qfrc_bias[self._qvel_index]
        torques += self._nullspace_torques(c.mass_matrix, nullspace, c.initial_joint, c.joint_pos, c.joint_vel)
        c.torques = torques
        c.new_update = True
        clipped: Float64 = np.minimum(np.maximum(torques, self._torque_low), self._torque_high)
        return clipped


class _NoRenderer:
    """Stands in for robosuite's render context while scenes are built: the same calls to the simulator, no OpenGL."""

    class _Options:
        def __init__(self) -> None:
            self.geomgroup = [0] * 6

    def __init__(self, sim: Any, device_id: int = -1) -> None:
        del device_id
        self.vopt = self._Options()
        sim.forward()  # MjRenderContext does, which moves the solver's warm start
        sim.add_render_context(self)

    offscreen = True


@contextlib.contextmanager
def building(seed: int) -> Iterator[None]:
    """Inside: robosuite draws from `seed` and makes no renderers. The global random stream is left as it was found."""
    from robosuite.environments import base

    stream, context = np.random.get_state(), base.MjRenderContextOffscreen  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002 robosuite and LIBERO draw placements from the global stream
    base.MjRenderContextOffscreen = _NoRenderer
    try:
        yield
    finally:
        base.MjRenderContextOffscreen = context
        np.random.set_state(stream)  # noqa: NPY002


def release_loader_memory() -> None:
    """Give back what loading a model leaves behind: 0.7 GB of 1.5 GB measured on LIBERO-Long task 0.

    MuJoCo keeps a copy of the last XML it compiled, decoded textures included, until it compiles another; glibc keeps
    the pages.
    """
    import mujoco

    mujoco.MjModel.from_xml_string("<mujoco/>")
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def scene_seed(seed: int, trial: int) -> int:
    """A 32-bit seed for the placements of one trial."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])


class RobosuiteEnv(TaskEnv):
    """One task on robosuite; the state is `STATE`, the action `ACTION`.

    Subclasses say how a trial starts (`_start`), what the task is about (`_goal_bodies`) and may add to what happens
    after each control step (`_judge`).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 Gymnasium's own convention

    def __init__(self, task: Task, cameras: Sequence[Camera], wanted: Sequence[str], raw: Any) -> None:
        super().__init__(task, [camera for camera in cameras if camera.name in wanted], STATE, ACTION)
        self.raw = raw
        self.instruction = task.instructions[0]
        self._all_cameras = tuple(cameras)
        self._record_every = 0
        self._reel: list[Kept] = []
        self.attended: tuple[str, ...] = ()
        self._past: deque[Moment] = deque(maxlen=1)
        self._painter: Cameras | None = None
        self._steps = 0

    # What the engine calls

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self._insist_on_trial(trial)
        self._start(trial, seed)
        self._set_out()
        return self._observe()

    def advance(self, actions: Float32) -> Transition:
        self._insist_on_actions(actions)
        started = time.perf_counter()
        played, success = 0, False
        for action in np.asarray(actions, dtype=np.float64):
            self._loop.step(action)
            played += 1
            success = self._judge()
            over = success or self._steps + played >= self.task.max_steps
            if over or played == len(actions) or self._past.maxlen != 1:  # else nobody will look at this step
                self._remember()
            self._keep(self._steps + played, over)
            if over:
                break
        self._steps += played
        self._check_diverged()
        simulated = time.perf_counter()
        observation = self._observe()
        return Transition(
            observation=observation,
            steps=played,
            success=success,
            truncated=not success and self._steps >= self.task.max_steps,
            subgoals_done=int(success),
            instruction_changed=False,
            physics_s=simulated - started,
            render_s=time.perf_counter() - simulated,
        )

    def look_back(self, history: int) -> None:
        self._past = deque(maxlen=history)

    def record(self, every: int) -> None:
        self._record_every = every

    def film(self) -> Iterator[Frame]:
        for kept in self._reel:
            yield Frame(kept.step, self._paint(kept.still, self._all_cameras))

    def shots(self) -> Iterator[Shot]:
        arm = 1 + self.raw.robots[0]._ref_joint_pos_indexes[0]  # time comes first
        for kept, after in zip(self._reel, [*self._reel[1:], *self._reel[-1:]], strict=True):
            attended = after.attended or kept.goal
            yield Shot(
                step=kept.step,
                images=self._paint(kept.still, self._all_cameras),
                masks=self._segmented(kept.still, self._all_cameras, attended),
                attended=attended,
                state=kept.state,
                joints=kept.physics[arm : arm + 7],
                physics=kept.physics,
                instruction=self.instruction,
            )

    def gaze(self) -> Mapping[str, Mask]:
        return self._segmented(self._past[-1].still, self._cameras, self.attended or self._goal_bodies())

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over geometry, masses, fixture poses and the integration state."""
        model, data = self.raw.sim.model._model, self.raw.sim.data._data
        digest = hashlib.sha256()
        for field in (*_SCENE_FIELDS, "opt.timestep"):
            digest.update(np.ascontiguousarray(_attribute(model, field)).tobytes())
        for values in (data.qpos, data.qvel, data.qacc_warmstart, data.ctrl):
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    # What subclasses say

    def _start(self, trial: int, seed: int) -> None:
        """Bring `raw` to the trial's initial state and call `_begin`."""
        raise NotImplementedError

    def _judge(self) -> bool:
        """Whether the task is done now; called once after every control step."""
        return bool(self.raw._check_success())

    def _goal_bodies(self) -> tuple[str, ...]:
        """The simulator's names of the bodies to be manipulated, as far as the task alone can tell."""
        raise NotImplementedError

    # Parts

    def _set_out(self) -> None:
        """The episode begins in the state that the simulator has now."""
        self._steps = 0
        self.attended = ()
        self._past.clear()
        self._remember()
        self._reel = []
        self._keep(0, True)

    def _begin(self, clock: SampleClock, sample: Sample) -> None:
        if self._painter is not None and not self._painter.adopt(self.raw.sim.model._model):
            self.close()
        self._sample = sample
        self._loop = ControlLoop(self.raw, clock, sample)
        for warning in self.raw.sim.data._data.warning:
            warning.number = 0

    def _keep(self, step: int, over: bool) -> None:
        """Note the instant if it belongs in the film: every few steps, and the last one."""
        if self._record_every and (over or step % self._record_every == 0):
            data, now = self.raw.sim.data._data, self._sample
            physics = np.concatenate([[data.time], data.qpos, data.qvel])
            kept = Kept(step, now.still.copy(), now.state(), physics, self.attended, self._goal_bodies())
            self._reel.append(kept)

    def _remember(self) -> None:
        self._past.append(Moment(self._sample.still.copy(), self._sample.state()))

    def _observe(self) -> Observation:
        *earlier, now = [self._look(moment) for moment in self._past]
        never = (self._past.maxlen or 1) - len(self._past)
        return replace(now, earlier=(*never * [earlier[0] if earlier else now], *earlier))

    def _look(self, moment: Moment) -> Observation:
        if moment.images is None:
            moment.images = self._paint(moment.still, self._cameras)
        return Observation(images=moment.images, state=moment.state, instruction=self.instruction)

    def _paint(self, still: Still, cameras: Sequence[Camera]) -> Mapping[str, Image]:
        if not cameras:
            return {}
        return self._made_painter().paint(still, cameras)

    def _segmented(self, still: Still, cameras: Sequence[Camera], bodies: Sequence[str]) -> Mapping[str, Mask]:
        return self._made_painter().segment(still, cameras, bodies) if cameras else {}

    def _made_painter(self) -> Cameras:
        if self._painter is None:
            self._painter = Cameras(self.raw.sim.model._model, self._all_cameras)
        return self._painter

    def _check_diverged(self) -> None:
        import mujoco

        warnings = self.raw.sim.data._data.warning
        for kind in (
            mujoco.mjtWarning.mjWARN_BADQPOS,
            mujoco.mjtWarning.mjWARN_BADQVEL,
            mujoco.mjtWarning.mjWARN_BADQACC,
            mujoco.mjtWarning.mjWARN_BADCTRL,  # a NaN action: MuJoCo would switch every motor off and go on
        ):
            if warnings[kind].number:
                raise SimulationDiverged(
                    f"MuJoCo's state diverged ({kind.name}) in {self.task.name}, step {self._steps}"
                )


# What decides how a scene looks and moves, besides its state. Textures and meshes are pinned by the suite's version.
_SCENE_FIELDS = (
    "body_pos", "body_quat", "body_mass", "body_inertia", "geom_pos", "geom_quat", "geom_size", "geom_friction",
    "geom_rgba", "geom_type", "geom_matid", "geom_solref", "geom_solimp", "dof_damping", "dof_armature",
    "dof_frictionloss", "jnt_range", "jnt_stiffness", "actuator_gainprm", "actuator_biasprm", "actuator_ctrlrange",
    "cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir", "light_diffuse", "site_pos", "site_size",
)  # fmt: skip


def _attribute(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model
