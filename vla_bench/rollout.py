"""One episode, from reset to row: the only loop that steps an environment."""

from __future__ import annotations

import gc
import hashlib
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from vla_bench.chunking import Chunking, Past
from vla_bench.errors import in_a_line, message_of
from vla_bench.grounding.overlay import overlaid
from vla_bench.grounding.scoring import score
from vla_bench.process.foreign import foreign_code, is_ctrl_c, is_theirs
from vla_bench.registry import insist_on_env
from vla_bench.text import for_terminal
from vla_bench.types import (
    Attention,
    Env,
    Episode,
    EpisodeResult,
    Float32,
    Frame,
    Grounding,
    Inference,
    Observation,
    Policy,
    Privileged,
    Recorder,
    Suite,
    Transition,
)
from vla_bench.video import EVERY, FOLDER, NOT_FILMED, Caption, chunk_starts, stem, write_film

_LOG = logging.getLogger("vla_bench")
_BOUNDS_TOLERANCE = 0.01  # of half the range: twice what bfloat16 rounds by just below 1


class Answer(NamedTuple):
    """A checked chunk and what it cost."""

    actions: Float32  # (H >= 1, A), finite
    stages: dict[str, float]  # milliseconds
    latency_ms: float
    queue_ms: float
    batch: int
    cold: bool
    attention: Mapping[str, Attention]
    intended: Float32 | None = None  # (H, A), where the actions were disturbed on purpose


class PolicyHandle(Protocol):
    """Where an episode's answers come from: a policy in this process, or the other end of a pipe."""

    def begin(self, episode: Episode) -> None:
        """A new episode, or a new instruction within it: the policy forgets."""

    def answer(self, observation: Observation) -> Answer: ...


class Rollout(NamedTuple):
    """All that one episode leaves behind."""

    result: EpisodeResult
    inferences: Sequence[Inference]
    actions: Float32
    """(steps, A) as executed."""
    intended: Float32
    """(steps, A) as the policy meant them, before what they may have been disturbed with."""
    trace: str = ""
    """The traceback that left it unjudged."""


def inference_seed(episode: Episode, index: int) -> int:
    """63 bits from the episode and the number of the call: the noise depends on nothing else."""
    key = f"{episode.suite}/{episode.task}/{episode.trial}/{episode.seed}/{episode.perturbation}/{index}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


@dataclass
class Actor:
    """Plays one episode at a time: asks the policy, turns its chunks into actions, keeps count."""

    policy: PolicyHandle
    chunking: Chunking
    inferences: list[Inference] = field(default_factory=list)
    played: list[Float32] = field(default_factory=list)
    intended: list[Float32] = field(default_factory=list)
    """The same as the policy meant it, before what it may have been disturbed with."""
    policy_s: float = 0.0
    films: bool = False
    """Whether `attention` is kept."""
    attention: list[Mapping[str, Attention]] = field(default_factory=list)
    """Of every inference of the episode, if it is kept."""
    _past: Past = ()
    _intended_past: Past = ()
    _grounding: Grounding | None = None

    def begin(self, episode: Episode) -> None:
        self.episode = episode
        self.inferences, self.played, self.intended, self.policy_s, self.attention = [], [], [], 0.0, []
        self.renew()

    def renew(self) -> None:
        """Forget chunks and history: the instruction is another one now."""
        self._past = self._intended_past = ()
        self.policy.begin(self.episode)

    def act(self, observation: Observation) -> Float32:
        """(n, A) actions to play open loop."""
        asked = time.perf_counter()
        seed = inference_seed(self.episode, len(self.inferences))
        self._answer = self.policy.answer(replace(observation, seed=seed))
        self.policy_s += time.perf_counter() - asked
        actions, self._past = self.chunking.play(self._past, self._answer.actions)
        self.played.append(actions)
        self.intended.append(self._undisturbed(actions))
        return actions

    def _undisturbed(self, actions: Float32) -> Float32:
        """What would have been played in the place of `actions`, had the policy's answer not been disturbed."""
        if self._answer.intended is None:
            return actions
        intended, self._intended_past = self.chunking.play(self._intended_past, self._answer.intended)
        return intended

    def ground(self, env: Env) -> None:
        """See where the attention of the answer just given fell, while the environment is as the policy saw it."""
        self._grounding = None
        if attention := self._answer.attention:
            self._grounding = score(attention, env.gaze() if isinstance(env, Recorder) else {})
        if self.films:
            self.attention.append(attention)

    def note(self, executed: int) -> None:
        """Of the actions last given, `executed` were played."""
        self.played[-1] = self.played[-1][:executed]
        self.intended[-1] = self.intended[-1][:executed]
        episode, answer = self.episode, self._answer
        self.inferences.append(
            Inference(
                task=episode.task,
                trial=episode.trial,
                seed=episode.seed,
                inference=len(self.inferences),
                latency_ms=answer.latency_ms,
                queue_ms=answer.queue_ms,
                batch=answer.batch,
                executed=executed,
                cold=answer.cold,
                stages=answer.stages,
                grounding=self._grounding,
            )
        )


def run_episode(env: Env, actor: Actor, episode: Episode, control_hz: float, started: float) -> Rollout:
    """Play the episode to success or to its step limit. `started` is the `perf_counter` at which its set-up began."""
    observation = env.reset_trial(episode.trial, episode.seed)
    scene, start = _fingerprint(env), _text("start_fingerprint", getattr(env, "start_fingerprint", ""))
    actor.begin(episode)
    setup_s = time.perf_counter() - started
    tally = _Tally()
    while not tally.over:
        actions = actor.act(observation)
        actor.ground(env)
        after = env.advance(actions)
        actor.note(int(after.steps))
        tally.add(after)
        if after.instruction_changed:
            actor.renew()
        observation = after.observation
    played, intended = map(np.concatenate, (actor.played, actor.intended))
    result = EpisodeResult(
        suite=episode.suite,
        task=episode.task,
        trial=episode.trial,
        seed=episode.seed,
        perturbation=episode.perturbation,
        success=tally.success,
        subgoals_done=tally.subgoals_done,
        steps=tally.steps,
        inferences=len(actor.inferences),
        latency_mean_ms=float(np.mean([call.latency_ms for call in actor.inferences])),
        latency_max_ms=max(call.latency_ms for call in actor.inferences),
        wall_s=time.perf_counter() - started,
        setup_s=setup_s,
        physics_s=tally.physics_s,
        render_s=tally.render_s,
        policy_s=actor.policy_s,
        sim_s=tally.steps / control_hz,
        scene_fingerprint=scene,
        final_fingerprint=_fingerprint(env),
        start_fingerprint=start,
        subgoals=tally.subgoals,
        out_of_bounds=out_of_bounds(getattr(env, "action_space", None), played),
    )
    return Rollout(result, actor.inferences, played, intended)


def out_of_bounds(space: Any, actions: Float32) -> int | None:
    """How many of the (n, A) actions lie outside that `gymnasium.spaces.Box` by more than rounding explains; None where
    it is no such space.
    """
    low: Any = getattr(space, "low", None)
    if np.shape(low) != actions.shape[1:]:
        return None
    slack = _BOUNDS_TOLERANCE * (space.high - low) / 2
    return int(((actions < low - slack) | (actions > space.high + slack)).any(axis=1).sum())


@dataclass
class _Tally:
    """What the transitions of one episode add up to."""

    steps: int = 0
    success: bool = False
    over: bool = False
    subgoals_done: int = 0
    subgoals: tuple[str, ...] = ()
    physics_s: float = 0.0
    render_s: float = 0.0

    def add(self, after: Transition) -> None:
        """Take in what came of one chunk. Raises ValueError or TypeError for what no row can hold."""
        self.steps += int(after.steps)
        self.success = bool(after.success)
        self.over = bool(after.success or after.truncated)
        self.subgoals_done = int(after.subgoals_done)
        self.subgoals = tuple(map(str, after.subgoals))
        self.physics_s += _seconds("physics_s", after.physics_s)
        self.render_s += _seconds("render_s", after.render_s)


def _seconds(name: str, told: float) -> float:
    if not math.isfinite(told):
        raise ValueError(f"advance returned {name} {told}, expected seconds")
    return float(told)


def _fingerprint(env: Env) -> str:
    return _text("fingerprint", env.fingerprint())


def _text(name: str, told: object) -> str:
    if not isinstance(told, str):
        raise TypeError(f"{name} returned {type(told).__name__}, expected str")
    return told


def broken(episode: Episode, error: str, message: str) -> EpisodeResult:
    """The row of an episode that could not be judged."""
    return EpisodeResult(
        suite=episode.suite,
        task=episode.task,
        trial=episode.trial,
        seed=episode.seed,
        perturbation=episode.perturbation,
        success=None,
        subgoals_done=0,
        steps=0,
        inferences=0,
        latency_mean_ms=0.0,
        latency_max_ms=0.0,
        wall_s=0.0,
        setup_s=0.0,
        physics_s=0.0,
        render_s=0.0,
        policy_s=0.0,
        sim_s=0.0,
        scene_fingerprint="",
        final_fingerprint="",
        error=error,
        message=message,
    )


@dataclass(frozen=True)
class Filming:
    """Which episodes are filmed, and where the films go."""

    mode: Literal["none", "failures", "all"] = "none"
    run: Path = Path()

    def wants(self, result: EpisodeResult) -> bool:
        return self.mode == "all" or (self.mode == "failures" and result.success is False)


class Keeper(Protocol):
    """What is kept of an episode besides its row, from the environment that just played it. Crosses processes."""

    def keep(self, env: Env, rollout: Rollout) -> None: ...


class Stage:
    """One process's built scene, kept between the trials of a task, and the actor on it.

    One scene at a time: a LIBERO scene holds about 1.3 GB, and building it again takes seconds.
    """

    def __init__(
        self,
        suite: Suite,
        cameras: Sequence[str],
        actor: Actor,
        watch: Callable[[Env], None] | None = None,
        *,
        filming: Filming = Filming(),
        history: int = 1,
        keeper: Keeper | None = None,
    ) -> None:
        self._suite = suite
        self._cameras = cameras
        self._actor = actor
        self._watch = watch
        self._filming = filming
        actor.films = filming.mode != "none"
        self._history = history
        self._keeper = keeper
        self.interrupted = False
        """Ctrl-C came while a film was painted."""
        self._task = ""
        self._env: Env | None = None

    def play(self, episode: Episode) -> Rollout:
        """The episode's rollout; an error of simulator or harness leaves it unjudged and the scene is built anew.

        Raises what the user or the policy did wrong (UsageError, PolicyFailure): no retry can mend it.
        """
        started = time.perf_counter()
        try:
            with foreign_code():
                env = self._scene(episode.task)
                rollout = run_episode(env, self._actor, episode, self._suite.control_hz, started)
                if self._keeper is not None:
                    self._keeper.keep(env, rollout)
        except BaseException as error:  # SystemExit, and the panics of compiled libraries, are no Exception
            if not is_theirs(error):
                raise
            self.close()
            row = broken(episode, type(error).__name__, message_of(error))
            none = np.zeros((0, self._suite.action.dim), np.float32)
            return Rollout(row, (), none, none, traceback.format_exc())
        return self._filmed(env, rollout) if self._filming.wants(rollout.result) else rollout

    def _filmed(self, env: Env, rollout: Rollout) -> Rollout:
        """The rollout with its film. The verdict stands without one too; filming counts in none of its times."""
        result = rollout.result
        name = f"{FOLDER}/{stem(result.episode)}.mp4"
        about = Caption(
            instruction=" / ".join(result.subgoals or self._suite.task(result.task).instructions),
            success=bool(result.success),
            steps=result.steps,
            chunk_starts=chunk_starts([call.executed for call in rollout.inferences]),
            control_hz=self._suite.control_hz,
            attention=any(self._actor.attention),
        )
        try:
            with foreign_code():
                write_film(self._filming.run / name, self._frames(env, about), about)
        except BaseException as error:
            if is_ctrl_c(error):
                self.interrupted = True  # once the verdict is stored
                return rollout
            said = f"{NOT_FILMED}{in_a_line(error)}"
            return rollout._replace(result=replace(result, message=said), trace=traceback.format_exc())
        return rollout._replace(result=replace(result, video=name))

    def _frames(self, env: Env, about: Caption) -> Iterator[Frame]:
        """What the film shows: the episode, and on it what the policy looked at, if it told."""
        if not about.attention:
            return env.film()
        if isinstance(env, Recorder):
            shots = ((Frame(shot.step, shot.images), shot.masks) for shot in env.shots())
        else:
            shots = ((frame, {}) for frame in env.film())
        return overlaid(shots, about.chunk_starts, self._actor.attention)

    def _scene(self, task: str) -> Env:
        if self._env is None or self._task != task:
            self.close()
            env = self._suite.make_env(self._suite.task(task), self._cameras)
            insist_on_env(env, self._suite.name)
            self._env = env
            if self._history > 1:
                self._env.look_back(self._history)
            filmed = 0 if self._filming.mode == "none" else EVERY
            self._env.record(filmed if self._keeper is None else 1)
            self._task = task
        if self._watch is not None:
            self._watch(self._env)
        return self._env

    def close(self) -> None:
        """Let go of the scene. That it cannot be closed is told and takes no verdict back."""
        env, self._env = self._env, None
        if env is None:
            return
        try:
            with foreign_code():
                env.close()
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            said = f"the environment of {self._task} raised in close: {in_a_line(error)}"
            _LOG.warning("vla-bench: %s", for_terminal(said))
        del env
        gc.collect()  # simulators hold cycles; the next scene must not come on top of this one


def attach(policy: Policy) -> Callable[[Env], None] | None:
    """How a privileged policy gets to see each environment, None for the others."""
    return policy.attach if policy.spec.privileged and isinstance(policy, Privileged) else None
