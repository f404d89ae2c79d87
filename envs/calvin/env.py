"""CALVIN: chains of five language instructions at one table (Mees et al. 2022, arXiv:2112.03227), on MuJoCo.

Not obvious, each with its source:

* Evaluation follows mees/calvin fa03f01, `evaluate_policy.py`: 1000 chains; the scene is reset once per chain, robot at
  its neutral pose; at most 360 steps per instruction at 30 Hz; after every step only the current task is tested; at its
  success the next one starts where things are, and at the first failure the chain ends. The policy forgets, and its
  chunk is dropped, whenever the instruction changes.
* Upstream evaluates in scene D; `calvin_a`, `calvin_b` and `calvin_c` run the same chains in the other three, so that a
  policy can be judged where it was trained (see chains.py for their initial states).
* Two versions of calvin_env are in use. `led=head` (default) is its last commit, 797142c; `led=submodule` is 1431a46,
  which CALVIN's repository pins: there an LED that is on at a reset takes two presses to be turned off.
* Actions are relative to a running target, which the arm follows; they are not clipped. The gripper opens for numbers
  above 0 and closes for all others, as upstream's wrappers have it.
* Upstream carries the gripper's last action over into the next chain's first observation; here it is 1 after a reset.
* `calvin_tasks` asks for one task per episode, from initial states of our own (starts.py); upstream's single-task
  evaluation starts from frames of its recordings and stops at 240 steps.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_bench.errors import UsageError
from vla_bench.rendering.gl import insist_on_library
from vla_bench.types import (
    ActionSpec,
    Camera,
    Float32,
    Frame,
    Image,
    Mask,
    Observation,
    Shot,
    Suite,
    Task,
    Transition,
)

from ..robosuite_cameras import geoms_of
from ..robosuite_core import SimulationDiverged, version
from ..task_env import TaskEnv
from .chains import CHAINS, LENGTH, SHA256
from .scene import QUALITY, SCENES, Scene
from .sim import CAMERA_PX, CONTROL_HZ, State, Table
from .starts import SETTLE_STEPS, Start, chain_start, task_start
from .tasks import COLOURS, SENTENCES, TASKS, Record, check_task

Float64 = NDArray[np.float64]
Led = Literal["head", "submodule"]
SceneName = Literal["a", "b", "c", "d"]

MAX_STEPS = 360
TRIALS = 50
CHAIN_TASK = "chains"
ACTION = ActionSpec(
    dim=7, control="delta_pose", rotation="euler_xyz", gripper="close_negative", scale_m=0.02, scale_rad=0.05
)
STATE = (
    *(f"tool {axis}, m, world" for axis in "xyz"),
    *(f"tool euler {axis} (fixed axes xyz), rad, world" for axis in "xyz"),
    "gripper opening, m",
    *(f"arm joint {number}, rad" for number in range(1, 8)),
    "last gripper action, 1 open, -1 closed",
)
CAMERAS = tuple(Camera(name, height, width) for name, (height, width) in CAMERA_PX.items())


def suite(name: str, led: Led = "head") -> Suite:
    """CALVIN's 1000 chains in one scene.

    Args:
        name: calvin_a, calvin_b, calvin_c or calvin_d.
        led: the button's memory after a reset, as in calvin_env's last commit or in the one that CALVIN pins.
    """
    scene = SCENES[name[-1].upper()]

    def make_env(task: Task, wanted: Sequence[str]) -> CalvinEnv:
        return CalvinEnv(task, wanted, MujocoTable(scene, led), lambda trial, seed: chain_start(scene, trial))

    return Suite(
        name=name,
        version="1",
        tasks=(Task(CHAIN_TASK, ("five instructions, each given when the one before is done",), MAX_STEPS, CHAINS),),
        action=ACTION,
        cameras=CAMERAS,
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=provenance,
        protocol={"scene": scene.name, "led": led, "chains": SHA256},
        about=f"CALVIN's 1000 chains of {LENGTH} instructions in scene {scene.name}, on MuJoCo",
        mujoco_quality=(QUALITY,),
    )


def single_tasks(name: str = "calvin_tasks", scene: SceneName = "d", led: Led = "head") -> Suite:
    """CALVIN's 34 tasks, one per episode.

    Args:
        name: the suite's name.
        scene: a, b, c or d.
        led: the button's memory after a reset, as in calvin_env's last commit or in the one that CALVIN pins.
    """
    of = SCENES[scene.upper()]

    def make_env(task: Task, wanted: Sequence[str]) -> CalvinEnv:
        return CalvinEnv(task, wanted, MujocoTable(of, led), lambda trial, seed: task_start(of, task.name, trial, seed))

    return Suite(
        name=name,
        version="1",
        tasks=tuple(Task(task, (SENTENCES[task],), MAX_STEPS, TRIALS) for task in TASKS),
        action=ACTION,
        cameras=CAMERAS,
        state=STATE,
        control_hz=CONTROL_HZ,
        make_env=make_env,
        provenance=provenance,
        protocol={"scene": of.name, "led": led, "settle_steps": SETTLE_STEPS},
        about="CALVIN's 34 tasks one at a time, on MuJoCo",
        mujoco_quality=(QUALITY,),
    )


def provenance() -> dict[str, str]:
    """Versions of what decides the physics and the pictures. Raises MissingPackage, and UsageError for what fails."""
    insist_on_library()
    return {
        "mujoco": version("mujoco"),
        "robosuite": version("robosuite"),  # the arm's meshes
    }


class Simulator(Protocol):
    """What an episode asks of a table, whoever simulates it."""

    def reset(self, robot_obs: Float64, scene_obs: Float64) -> None: ...

    def step(self, action: Float64) -> None:
        """One control step of a relative action (7,), gripper 1 or -1."""

    def robot_obs(self) -> Float64:
        """(15,) as `STATE`."""

    def record(self) -> Record: ...

    def state(self) -> Any:
        """What pictures of this instant need, at least."""

    def paint(self, camera: str) -> Image: ...

    def paint_at(self, state: Any, camera: str) -> Image:
        """A picture of that instant; the simulator is left as it is."""

    def fingerprint(self) -> str: ...

    def close(self) -> None: ...


class MujocoTable(Table):
    """The table of our own model, with what an episode needs besides: old pictures, fingerprints, a look for NaN."""

    def __init__(self, scene: Scene, led: Led, **settings: Any) -> None:
        super().__init__(scene.name, led, **settings)  # type: ignore[arg-type]

    def step(self, action: Float64 | Sequence[float]) -> None:
        super().step(action)
        mujoco = self._mujoco
        for kind in (
            mujoco.mjtWarning.mjWARN_BADQPOS,
            mujoco.mjtWarning.mjWARN_BADQVEL,
            mujoco.mjtWarning.mjWARN_BADQACC,
        ):
            if self.data.warning[kind].number:
                raise SimulationDiverged(f"MuJoCo's state diverged ({kind.name})")

    def segment_at(self, state: State, camera: str, bodies: Sequence[str]) -> Mask:
        """Where those bodies, and what hangs on them, can be seen at that instant: (height, width), upright."""
        return np.isin(self.geoms_seen(camera, state), geoms_of(self.model, bodies))

    def paint_at(self, state: State, camera: str) -> Image:
        now = self.state()
        self.set_state(state)
        try:
            return self.paint(camera)
        finally:
            self.set_state(now)

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over geometry, masses, joints and the state."""
        digest, state = hashlib.sha256(), self.state()
        for field in _SCENE_FIELDS:
            digest.update(np.ascontiguousarray(getattr(self.model, field)).tobytes())
        logic = vars(state.logic)
        digest.update(b"".join([state.physics.tobytes(), state.sampled.tobytes(), logic["target"].tobytes()]))
        digest.update(repr([value for name, value in logic.items() if name != "target"]).encode())
        return digest.hexdigest()[:16]


class _Kept(NamedTuple):
    """A control step of a recorded episode."""

    step: int
    table: Any
    state: Float32
    instruction: str
    attended: tuple[str, ...]
    """What the policy said it manipulates when it chose the action before."""
    goal: tuple[str, ...]
    """What the current task is about."""


@dataclass
class _Moment:
    """A control step as an observation tells it; its pictures are painted when somebody looks."""

    table: Any
    state: Float32
    images: Mapping[str, Image] | None = None


class CalvinEnv(TaskEnv):
    """Tasks at the table, one after the other; the state is `STATE`, the action `ACTION`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 Gymnasium's own convention

    def __init__(self, task: Task, wanted: Sequence[str], table: Simulator, start: Callable[[int, int], Start]) -> None:
        super().__init__(task, [camera for camera in CAMERAS if camera.name in wanted], STATE, ACTION)
        self.table = table
        self.tasks: tuple[str, ...] = ()
        """The names of the tasks of this episode, in order."""
        self.done = 0
        """How many of them are done."""
        self._start_of = start
        self._record_every = 0
        self._reel: list[_Kept] = []
        self.attended: tuple[str, ...] = ()
        self._past: deque[_Moment] = deque(maxlen=1)
        self._steps = 0
        self._spent = 0

    @property
    def current_task(self) -> str:
        """The name of the task to do now; the last one when all are done."""
        return self.tasks[min(self.done, len(self.tasks) - 1)]

    @property
    def begun(self) -> Record:
        """The record at the beginning of the current task."""
        return self._begun

    def succeeds(self, task: str, begun: Record) -> bool:
        """Whether the table as it is now does that task, had it been begun at that record."""
        return check_task(task, begun, self.table.record())

    # What the engine calls

    def reset_trial(self, trial: int, seed: int) -> Observation:
        self._insist_on_trial(trial)
        start = self._start_of(trial, seed)
        self.table.reset(start.robot_obs, start.scene_obs)
        for _ in range(start.settle_steps):
            self.table.step(np.array([0, 0, 0, 0, 0, 0, start.gripper]))
        self.tasks, self.done = start.tasks, 0
        self._steps = 0
        self.attended = ()
        self._begin()
        self._reel = []
        self._keep(True)
        return self._observe()

    def advance(self, actions: Float32) -> Transition:
        self._insist_on_actions(actions)
        started = time.perf_counter()
        done, before = self.done, self._steps
        for action in np.asarray(actions, dtype=np.float64):
            self._step(action)
            over = self.done == len(self.tasks) or self._spent >= self.task.max_steps
            self._keep(over)
            if over or self.done > done:
                break
        success = self.done == len(self.tasks)
        changed = done < self.done < len(self.tasks)
        if changed:
            self._begin()
        simulated = time.perf_counter()
        observation = self._observe()
        return Transition(
            observation=observation,
            steps=self._steps - before,
            success=success,
            truncated=not success and self._spent >= self.task.max_steps,
            subgoals_done=self.done,
            instruction_changed=changed,
            physics_s=simulated - started,
            render_s=time.perf_counter() - simulated,
            subgoals=self.tasks if len(self.tasks) > 1 else (),
        )

    def look_back(self, history: int) -> None:
        self._past = deque(maxlen=history)

    def record(self, every: int) -> None:
        self._record_every = every

    def film(self) -> Iterator[Frame]:
        for kept in self._reel:
            yield Frame(kept.step, self._pictures(kept.table))

    def shots(self) -> Iterator[Shot]:
        table = self._segmenting()
        for kept, after in zip(self._reel, [*self._reel[1:], *self._reel[-1:]], strict=True):
            attended = after.attended or kept.goal
            yield Shot(
                step=kept.step,
                images=self._pictures(kept.table),
                masks={c.name: table.segment_at(kept.table, c.name, attended) for c in CAMERAS},
                attended=attended,
                state=kept.state,
                joints=kept.table.physics[1:8],  # time comes first
                physics=kept.table.physics[: 1 + table.model.nq + table.model.nv],
                instruction=kept.instruction,
            )

    def gaze(self) -> Mapping[str, Mask]:
        if not isinstance(self.table, MujocoTable):
            return {}
        now, bodies = self.table.state(), self.attended or self._goal_bodies()
        return {camera.name: self.table.segment_at(now, camera.name, bodies) for camera in self._cameras}

    def fingerprint(self) -> str:
        return self.table.fingerprint()

    def close(self) -> None:
        self.table.close()

    # Parts

    def _begin(self) -> None:
        """The current task starts now: what was before it counts no more."""
        self._spent = 0
        self._begun = self.table.record()
        self._past.clear()
        self._remember()

    def _step(self, action: Float64) -> None:
        self.table.step(np.append(action[:-1], 1.0 if action[-1] > 0 else -1.0))
        self._steps += 1
        self._spent += 1
        self.done += check_task(self.current_task, self._begun, self.table.record())
        self._remember()

    def _keep(self, over: bool) -> None:
        """Note the instant if it belongs in the film: every few steps, and the last one."""
        if self._record_every and (over or self._steps % self._record_every == 0):
            seen = self._past[-1].state, SENTENCES[self.current_task]
            self._reel.append(_Kept(self._steps, self.table.state(), *seen, self.attended, self._goal_bodies()))

    def _goal_bodies(self) -> tuple[str, ...]:
        """What the current task is about: the part or block that it names, else the block in or nearest to the hand."""
        if self.current_task in _PARTS:
            return (_PARTS[self.current_task],)
        named = [word for word in self.current_task.split("_") if word in COLOURS]
        return (named[0] if named else self._block_at_hand(),)

    def _block_at_hand(self) -> str:
        record, hand = self.table.record(), self.table.robot_obs()[:3]
        return min(record.blocks, key=lambda colour: math.dist(record.blocks[colour].position, hand))

    def _segmenting(self) -> MujocoTable:
        if not isinstance(self.table, MujocoTable):
            raise UsageError(f"{type(self.table).__name__} cannot say where things are in a picture; use MuJoCo's.")
        return self.table

    def _pictures(self, state: Any) -> dict[str, Image]:
        return {camera.name: self.table.paint_at(state, camera.name) for camera in CAMERAS}

    def _remember(self) -> None:
        looks_back = (self._past.maxlen or 1) > 1
        self._past.append(_Moment(self.table.state() if looks_back else None, self._proprioception()))

    def _proprioception(self) -> Float32:
        return self.table.robot_obs().astype(np.float32)

    def _observe(self) -> Observation:
        now = self._past[-1]
        now.images = {camera.name: self.table.paint(camera.name) for camera in self._cameras}
        *earlier, last = [self._look(moment) for moment in self._past]
        never = (self._past.maxlen or 1) - len(self._past)
        return replace(last, earlier=(*never * [earlier[0] if earlier else last], *earlier))

    def _look(self, moment: _Moment) -> Observation:
        if moment.images is None:
            moment.images = {camera.name: self.table.paint_at(moment.table, camera.name) for camera in self._cameras}
        return Observation(images=moment.images, state=moment.state, instruction=SENTENCES[self.current_task])


_PARTS = {
    "open_drawer": "drawer_link",
    "close_drawer": "drawer_link",
    "move_slider_left": "slide_link",
    "move_slider_right": "slide_link",
    "turn_on_lightbulb": "switch_link",
    "turn_off_lightbulb": "switch_link",
    "turn_on_led": "button_link",
    "turn_off_led": "button_link",
}
"""Bodies of the tasks that move a part of the table; all others move a block."""

# What decides how the table looks and moves, besides its state. Colours are left out: painting sets the lights'.
_SCENE_FIELDS = (
    "body_pos", "body_quat", "body_mass", "body_inertia", "geom_pos", "geom_quat", "geom_size", "geom_friction",
    "geom_type", "geom_margin", "dof_damping", "dof_armature", "dof_frictionloss", "jnt_range",
    "cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir",
)  # fmt: skip
