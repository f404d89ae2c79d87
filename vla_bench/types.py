"""The nouns: what suites, policies and the engine say to each other. Imports numpy and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Image = NDArray[np.uint8]  # (height, width, 3) RGB, upright: row 0 is the top of the scene
Mask = NDArray[np.bool_]  # (height, width), upright

Control = Literal["delta_pose", "absolute_pose", "joint"]
Rotation = Literal["axis_angle", "euler_xyz", "none"]
Gripper = Literal["close_positive", "close_negative", "none"]


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of one action mean; two specs agree only when they are equal."""

    dim: int
    control: Control
    rotation: Rotation
    gripper: Gripper
    scale_m: float
    """Metres that a translation component of 1.0 asks for in one control step."""
    scale_rad: float
    """Radians that a rotation component of 1.0 asks for in one control step."""
    frame: str = "world"
    """Frame of translation and rotation."""


@dataclass(frozen=True)
class Camera:
    """One view: its name in the suite and its size in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Task:
    """One thing to do: `trials` initial states exist for it, numbered from 0."""

    name: str
    instructions: tuple[str, ...]
    """One sentence for single tasks; for chains, whose sentences differ between trials, one that says so."""
    max_steps: int
    """Control steps per instruction."""
    trials: int


@dataclass(frozen=True)
class Observation:
    """What a policy sees. `slot` and `seed` are filled in by the engine."""

    images: Mapping[str, Image]
    """Camera name to upright RGB, uint8 (height, width, 3); only the cameras the policy asked for."""
    state: Float32
    """(S,), meaning and units as in `Suite.state`."""
    instruction: str
    slot: int = 0
    """Which of the concurrently running episodes this is; constant within an episode."""
    seed: int = 0
    """Seed of this inference alone: draw all noise from it and results cannot depend on batching."""
    earlier: tuple[Observation, ...] = ()
    """The `PolicySpec.history - 1` control steps before this one, oldest first; the first of an episode, or of an
    instruction, stands for those that never were."""


@dataclass(frozen=True)
class Attention:
    """How much a policy looks at each cell of a grid over one camera's picture."""

    weights: Float32
    """(rows, columns), row 0 at the top; none negative."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Where the grid lies: left, top, right and bottom as shares of the sides of the whole upright picture. It may be a
    part of it (a crop) or reach beyond it (padding): of a cell's weight, the part of its area inside counts."""


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers: `actions` float32 (H >= 1, A) in order of execution."""

    actions: Float32
    stages: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per stage (vision, prefill, decode, ...), if the policy times them."""
    attention: Mapping[str, Attention] = field(default_factory=dict)
    """What these actions looked at, by camera, if the policy can tell. What lies inside the pictures sums to at most 1:
    the rest fell on padding, or on nothing seen."""
    intended: Float32 | None = None
    """What `actions` were before they were disturbed on purpose, (H, A); None where they were not."""


@dataclass(frozen=True)
class Episode:
    """The unit of work and its identity: the same five values give the same initial scene to every policy."""

    suite: str
    task: str
    trial: int
    seed: int
    perturbation: str = ""


@dataclass(frozen=True)
class EpisodeResult:
    """One row of episodes.jsonl. `success` is None when the episode could not be judged."""

    suite: str
    task: str
    trial: int
    seed: int
    perturbation: str
    success: bool | None
    subgoals_done: int
    steps: int
    """Control steps executed, settling excluded."""
    inferences: int
    latency_mean_ms: float
    """Mean wall time of the policy calls of this episode; NaN-free: 0.0 when there were none."""
    latency_max_ms: float
    wall_s: float
    setup_s: float
    physics_s: float
    render_s: float
    policy_s: float
    """Wall seconds spent waiting for the policy, queueing included."""
    sim_s: float
    """Simulated seconds: steps / control_hz."""
    scene_fingerprint: str
    """Hash of the scene and its state before the first action."""
    final_fingerprint: str
    """Hash of the simulator state after the last action."""
    attempts: int = 1
    error: str = ""
    """Class of the error that left the episode unjudged."""
    message: str = ""
    video: str = ""
    subgoals: tuple[str, ...] = ()
    """Names of the chain's instructions, in order: the first `subgoals_done` succeeded, the next one failed. Empty
    when the episode had one instruction."""
    renderer: str = ""
    """What rendered its pictures, such as `egl llvmpipe`. Empty when none was rendered for the policy, or the suite's
    pictures are not MuJoCo's."""
    render_probe: str = ""
    """Hash of a probe scene, rendered by the same renderer (`vla_bench.rendering.pixels`)."""
    start_fingerprint: str = ""
    """Hash of the scene as it was laid out, before anything moved in it: the same on every machine, where settling ends
    in other last digits on another kind of CPU. Empty where nothing settles, and in rows of older runs."""
    out_of_bounds: int | None = None
    """Control steps whose action lay outside the environment's action space: robosuite and LIBERO clip such an action,
    CALVIN plays it. None where it is not known: in rows of older runs, and where there is no such space."""

    @property
    def episode(self) -> Episode:
        return Episode(self.suite, self.task, self.trial, self.seed, self.perturbation)


@dataclass(frozen=True)
class Grounding:
    """Where the attention of one answer fell; `vla_bench.grounding.scoring` says how each number is found."""

    share: float | None
    """Of the attention, what fell on what is being manipulated; None where nothing of that is in view."""
    chance: float
    """The share that the same attention would have, were it spread evenly."""
    hit: bool | None
    """Whether the most attended point lies on it; None as `share`."""


@dataclass(frozen=True)
class Inference:
    """One row of inferences.parquet: one policy call of one episode."""

    task: str
    trial: int
    seed: int
    inference: int
    """Number of the call within its episode, from 0."""
    latency_ms: float
    """Wall time of the batched policy call that answered it."""
    queue_ms: float
    """Wall time between the request and the start of that call."""
    batch: int
    """How many requests that call answered."""
    executed: int
    """Actions played from its answer before the next call."""
    cold: bool
    """Among the first calls of the process: loading and compiling included, left out of percentiles."""
    stages: Mapping[str, float]
    grounding: Grounding | None = None
    """None where the policy told no attention."""


class Transition(NamedTuple):
    """What came of playing some actions open loop."""

    observation: Observation
    """After the last executed step."""
    steps: int
    """Control steps executed: fewer than asked for when the episode ended or the instruction changed."""
    success: bool
    truncated: bool
    """The step limit was reached without success."""
    subgoals_done: int
    instruction_changed: bool
    physics_s: float
    render_s: float
    subgoals: tuple[str, ...] = ()
    """Names of all instructions of the episode, in order; empty when there is one."""


class Frame(NamedTuple):
    """One frame of an episode's film."""

    step: int
    """Control steps executed so far, settling excluded."""
    images: Mapping[str, Image]
    """All cameras of the suite."""


class Shot(NamedTuple):
    """One control step of a recorded episode, as data sets keep it: everything before the step's action."""

    step: int
    """Control steps executed so far, settling excluded."""
    images: Mapping[str, Image]
    """All cameras of the suite."""
    masks: Mapping[str, Mask]
    """Camera name to (height, width): the pixels of what is being manipulated."""
    attended: tuple[str, ...]
    """The simulator's names of the bodies that are being manipulated."""
    state: Float32
    """(S,) as `Observation.state`."""
    joints: NDArray[np.float64]
    """(7,) rad, the arm's."""
    physics: NDArray[np.float64]
    """(1 + nq + nv,) time, positions and velocities of the simulator."""
    instruction: str


@runtime_checkable
class Recorder(Protocol):
    """An environment that can say where what is being manipulated is to be seen."""

    attended: tuple[str, ...]
    """Bodies that a privileged policy says it manipulates from now on; while empty, those the task is about count."""

    def shots(self) -> Iterator[Shot]:
        """Every recorded control step of the episode just played, painted now, the last one included."""

    def gaze(self) -> Mapping[str, Mask]:
        """Where what is being manipulated can be seen in the last observation: a mask for each of its cameras.

        The simulator is left as it is.
        """


@runtime_checkable
class Env(Protocol):
    """A `gymnasium.Env` of one task that can also play a whole chunk and render once."""

    def reset_trial(self, trial: int, seed: int) -> Observation:
        """The first observation of that trial, settling included. Raises UsageError for a trial out of range."""

    def advance(self, actions: Float32) -> Transition:
        """Play float32 (n, A) actions open loop, stopping early at success or at the step limit."""

    def look_back(self, history: int) -> None:
        """From the next reset on, observations carry the `history - 1` control steps before them in `earlier`."""

    def record(self, every: int) -> None:
        """From the next reset on, keep what a film of every `every`-th control step needs; 0 keeps nothing."""

    def film(self) -> Iterator[Frame]:
        """Paint the film of the episode just played. The simulator is left as it is."""

    def fingerprint(self) -> str:
        """Hash of the scene (shapes, fixtures, masses) and the simulator's state as they are now.

        Where things settle before an episode begins, an attribute `start_fingerprint` may say what it was before that:
        whoever plays the same scene on another kind of CPU, where settling rounds otherwise, is compared by it.
        """

    def close(self) -> None: ...


class Quality(NamedTuple):
    """How finely MuJoCo renders a model's pictures, as in its `<visual><quality>`; the defaults are MuJoCo's."""

    shadowsize: int = 4096
    """Pixels along a shadow map."""
    offsamples: int = 4
    """Samples per pixel."""


@dataclass(frozen=True)
class Suite:
    """A set of tasks with one protocol."""

    name: str
    version: str
    """Raised whenever the same policy could get another number; part of the protocol hash."""
    tasks: tuple[Task, ...]
    action: ActionSpec
    cameras: tuple[Camera, ...]
    state: tuple[str, ...]
    """Name, unit and frame of every entry of `Observation.state`."""
    control_hz: float
    make_env: Callable[[Task, Sequence[str]], Env]
    """(task, names of the cameras to render) -> environment. Needs the simulator."""
    provenance: Callable[[], Mapping[str, str]]
    """Everything else that decides the numbers: packages, versions, initial states. Needs the simulator."""
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)
    """Settings of the suite that are not in the fields above: settle steps, seeds, ..."""
    about: str = ""
    mujoco_quality: tuple[Quality, ...] = ()
    """How MuJoCo renders the pictures, one for each kind of model: a probe scene rendered so tells whether two machines
    give the same pixels. Empty when MuJoCo does not render them."""

    def task(self, name: str) -> Task:
        """The task of that exact name. Raises KeyError."""
        return {task.name: task for task in self.tasks}[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy is and needs; must agree with the suite before the first episode."""

    name: str
    action: ActionSpec
    cameras: tuple[Camera, ...] = ()
    """The views it reads: the environment renders these and no others."""
    state: tuple[str, ...] = ()
    """The state layout it reads; empty when it reads none."""
    chunk: int = 1
    """Actions per inference."""
    checkpoint: str = ""
    """sha256 of the weights, empty when there are none."""
    deterministic: bool = True
    """Same observation and seed, same answer, whatever the batch."""
    privileged: bool = False
    """Reads the simulator itself: runs beside each environment and gets `attach(env)` before every reset."""
    history: int = 1
    """Control steps it looks back on, the present included: more than 1 fills `Observation.earlier`."""
    note: str = ""
    """One line that belongs beside its numbers: what its weights are, if they are not a checkpoint the user named."""
    execute: int | None = None
    """Actions of a chunk that its authors play before they ask again, all when None; `--execute` says otherwise."""


class Policy(Protocol):
    """What the engine asks of any policy."""

    @property
    def spec(self) -> PolicySpec: ...

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None:
        """Forget what these slots held: each begins the episode of the same position."""

    def infer(self, observations: Sequence[Observation]) -> Sequence[ActionChunk]:
        """One chunk per observation, in order. Observations of several slots may come together."""


@runtime_checkable
class Privileged(Protocol):
    """A policy that looks into the simulator (oracles)."""

    def attach(self, env: Any) -> None:
        """Use this environment from now on."""
