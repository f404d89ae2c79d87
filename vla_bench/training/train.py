"""`vla-bench train`: a policy of size tiny learns from demonstrations, in one plain loop.

While it goes on, everything is in the folder OUT.training: what was asked for (settings.json), the whole state of the
training (state.pt), losses.csv and losses.png. At the end OUT appears, a checkpoint for `vla-bench run --checkpoint`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import tyro

from vla_bench.errors import Interrupted, PolicyFailure, UsageError, unwritable
from vla_bench.inference import blaming
from vla_bench.process.foreign import contained
from vla_bench.process.paths import TakesPaths, UserPath, home, returning
from vla_bench.process.watch import board, is_watched
from vla_bench.registry import find_policy, make_policy
from vla_bench.secrets import redacted
from vla_bench.store.files import make_folder, write_whole
from vla_bench.store.provenance import gather
from vla_bench.training.data import Moments, TrainingData, read_training_data
from vla_bench.training.learning import Learner, Recipe, Scales, Teachable, Weights
from vla_bench.training.log import LossLog

SETTINGS, STATE = "settings.json", "state.pt"
VALIDATED = 512
"""Moments that the validation loss is taken over, at most."""


@dataclass(frozen=True)
class TrainConfig(TakesPaths):
    """Train a policy of size tiny on what `vla-bench collect` wrote. The same command again resumes; an interrupted and
    resumed training gives bit for bit what an uninterrupted one gives."""

    policy: str
    """A name from `vla-bench list policies`, or an import path module:Class."""
    data: tyro.conf.UseAppendAction[tuple[UserPath, ...]]
    """A folder of demonstrations; may be given again."""
    out: UserPath
    """The checkpoint to write. OUT.training beside it holds the log, the loss plot and what resuming needs."""
    suite: str | None = None
    """The suite to act in; the one the first data were recorded in when absent."""
    policy_args: tuple[str, ...] = ()
    """name=value ... for the policy's constructor; `--policy-args help` lists them."""
    steps: int | None = None
    """Steps of the optimiser; the family's own when absent, and so the others."""
    batch_size: int | None = None
    """Moments per step."""
    learning_rate: float | None = None
    """The highest, after the warm-up; a cosine follows."""
    seed: int = 0
    """Of the first weights, of batches, crops and noise."""
    validation_share: float = 0.05
    """Of every task's episodes, which are kept from learning to take the validation loss; 0 for none."""
    log_every: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 250
    """Steps between two rows of the log; then the validation loss is taken, and the state kept to resume from."""
    threads: int = 0
    """CPU threads; all cores when 0. Other numbers round sums otherwise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    weights: Weights = "float16"
    """How the checkpoint stores them."""
    overwrite: bool = False
    """Delete what an earlier training left at OUT and start again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (
            ("--steps", self.steps),
            ("--batch-size", self.batch_size),
            ("--log-every", self.log_every),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{flag} should be at least 1, got {value}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate should be a positive number, got {self.learning_rate}.")
        if not 0 <= self.validation_share < 1:
            raise UsageError(f"--validation-share should be at least 0 and below 1, got {self.validation_share}.")
        if self.seed < 0 or self.threads < 0:
            raise UsageError(f"--seed and --threads should be at least 0, got {self.seed} and {self.threads}.")

    @property
    def folder(self) -> Path:
        """Of the training in progress."""
        return Path(self.out).with_name(Path(self.out).name + ".training")


class Watcher(Protocol):
    """Who is told how it goes."""

    def start(self, note: str, done: int, steps: int) -> None: ...

    def step(self, losses: Mapping[str, float], validation: Mapping[str, float]) -> None: ...


class Trained(NamedTuple):
    """What came of it."""

    path: Path
    """The checkpoint; there if all steps were taken."""
    done: int
    steps: int
    log: Path


def train(config: TrainConfig, watcher: Watcher | None = None) -> Trained:
    """Take all steps that are missing, then write the checkpoint. Raises UsageError for what the user can mend, and
    PolicyFailure."""
    with returning(), contained():
        data = tuple(str(Path(home(), folder)) for folder in config.data)
        trained = _train(dataclasses.replace(config, out=str(Path(home(), config.out)), data=data), watcher)
    return trained._replace(path=Path(config.out), log=Path(config.folder, trained.log.name))


def _train(config: TrainConfig, watcher: Watcher | None) -> Trained:
    """The same with paths that are absolute, whatever the policy does to the working folder."""
    if config.overwrite:
        _clear(config)
    data = read_training_data(config.data, config.suite)
    policy = _policy(config, data)
    with blaming(policy.spec.name, "recipe"):
        usual = policy.recipe()
    recipe = usual.changed(steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate)
    settings = _settings(config, recipe, data)
    with _written(config):
        _insist_on_same(config, settings)
        log = LossLog(config.folder)
        if Path(config.out).exists():
            return Trained(Path(config.out), recipe.steps, recipe.steps, log.csv)
        learnt, held = data.split(config.validation_share)
        state, action = map(Scales.of, learnt.numbers())
        with blaming(policy.spec.name, "learner"):
            learner = policy.learner(recipe, state, action, config.seed, config.threads or _cores())
            if (config.folder / STATE).is_file():
                learner.resume(config.folder / STATE)
        log.go_back(learner.done)
        _learn(_Lesson(config, policy, learner, recipe, learnt, held, log), watcher)
        if learner.done == recipe.steps:
            card = _card(config, recipe, data, log)
            with blaming(policy.spec.name, "save"):
                learner.save(Path(config.out), card, config.weights)
            (config.folder / STATE).unlink()
        return Trained(Path(config.out), learner.done, recipe.steps, log.csv)


@contextlib.contextmanager
def _written(config: TrainConfig) -> Iterator[None]:
    """Raises UsageError when the disk does not take what is kept."""
    try:
        yield
    except (OSError, PolicyFailure) as raised:
        error = raised.__cause__ if isinstance(raised, PolicyFailure) else raised
        if not isinstance(error, OSError):
            raise
        raise unwritable(config.folder, error, "; the same command resumes from what was kept last") from error


# Before


def _policy(config: TrainConfig, data: TrainingData) -> Teachable:
    given = ("size=tiny", f"weights_seed={config.seed}", f"device={config.device}", "dtype=float32")
    if not hasattr(find_policy(config.policy), "learner"):
        raise UsageError(f"The policy {config.policy!r} cannot be trained; it has no `learner`.")
    policy = make_policy(config.policy, data.suite, None, [*given, *config.policy_args])
    assert isinstance(policy, Teachable)
    return policy


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settings(config: TrainConfig, recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    """Everything that decides the weights, as JSON values."""
    chosen = {"policy": config.policy, "policy_args": redacted(config.policy_args), "suite": data.suite.name}
    names = ("seed", "validation_share", "device", "weights")
    how = {name: getattr(config, name) for name in names} | {"threads": config.threads or _cores()}
    settings: dict[str, Any] = json.loads(json.dumps({**chosen, **how, "data": data.sha256, **asdict(recipe)}))
    return settings


def _insist_on_same(config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Raises UsageError when OUT is, or would be, the outcome of another training."""
    file = config.folder / SETTINGS
    if not file.is_file():
        if Path(config.out).exists():
            raise UsageError(f"{config.out} exists and was not trained by this command; choose another --out.")
        make_folder(file.parent)
        write_whole(file, (json.dumps(settings, indent=1) + "\n").encode())
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name in settings if settings[name] != before.get(name)]
    if other:
        said = ", ".join(f"{name} {before.get(name)!r} (now {settings[name]!r})" for name in other)
        raise UsageError(f"{config.folder} was begun with {said}; choose another --out, or --overwrite.")


def _clear(config: TrainConfig) -> None:
    if (config.folder / SETTINGS).is_file():
        shutil.rmtree(Path(config.out), ignore_errors=True)
        shutil.rmtree(config.folder)


# The loop


@dataclass(frozen=True)
class _Lesson:
    """All that the loop needs."""

    config: TrainConfig
    policy: Teachable
    learner: Learner
    recipe: Recipe
    learnt: Moments
    held: Moments
    log: LossLog

    @property
    def shape(self) -> tuple[int, int]:
        """Control steps looked back on, and actions from the oldest of them on."""
        spec = self.policy.spec
        return spec.history, spec.chunk + spec.history - 1

    def step(self) -> Mapping[str, float]:
        batch = self.learnt.draw(self.learner.done, self.recipe.batch_size, self.config.seed, *self.shape)
        with blaming(self.policy.spec.name, "step"):
            losses = self.learner.step(batch)
        if not math.isfinite(losses["loss"]):
            raise UsageError(f"The loss is {losses['loss']} after {self.learner.done} steps; lower --learning-rate.")
        return losses

    def validation(self) -> Mapping[str, float]:
        """Mean losses on what is held out, by the averaged weights; empty when nothing is."""
        if not len(self.held):
            return {}
        with blaming(self.policy.spec.name, "validate"):
            return self.learner.validate(self.held.spread(VALIDATED, self.recipe.batch_size, *self.shape))


def _learn(lesson: _Lesson, watcher: Watcher | None) -> None:
    """Step after step, to the last one or until Ctrl-C; then, and every `log_every` steps, the state is kept."""
    learner, clock = lesson.learner, _Clock(lesson.log.minutes)
    losses, validation = list[Mapping[str, float]](), dict[str, float]()
    if watcher is not None:
        watcher.start(_about(lesson), learner.done, lesson.recipe.steps)
    with _asked_to_stop() as asked:
        while learner.done < lesson.recipe.steps and not asked():
            losses.append(lesson.step())
            if watcher is not None:
                watcher.step(losses[-1], validation)
            if learner.done % lesson.config.log_every == 0 or learner.done == lesson.recipe.steps:
                validation = dict(lesson.validation())
                _keep(lesson, clock, losses, validation)
                losses.clear()
        if losses:
            _keep(lesson, clock, losses, {})
    lesson.log.plot()


def _keep(
    lesson: _Lesson, clock: _Clock, losses: Sequence[Mapping[str, float]], validation: Mapping[str, float]
) -> None:
    done = lesson.learner.done
    lesson.log.add(done, lesson.recipe.rate(done - 1), clock.minutes, losses, validation)
    with blaming(lesson.policy.spec.name, "keep"):
        lesson.learner.keep(lesson.config.folder / STATE)
    board().tell(done=f"{done} of {lesson.recipe.steps} steps are kept in {lesson.config.folder}")


def _about(lesson: _Lesson) -> str:
    note, moments = lesson.policy.spec.note, f"{len(lesson.learnt)} moments to learn from, {len(lesson.held)} held out"
    return f"{lesson.policy.spec.name}: {note}; {moments}."


class _Clock:
    """Minutes of training, those of earlier sessions included."""

    def __init__(self, before: float) -> None:
        self._started = time.monotonic() - 60 * before

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._started) / 60


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or a kill came: the step that is under way is finished. A second Ctrl-C does not wait."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(*_: object) -> None:
        if asked.is_set() and not is_watched():
            raise Interrupted
        asked.set()

    heeded = [signal.SIGTERM] if is_watched() else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# After


def _card(config: TrainConfig, recipe: Recipe, data: TrainingData, log: LossLog) -> dict[str, str]:
    """The lines of the checkpoint's card."""
    facts: Any = gather()
    episodes = Counter(one.episode.task for one in data.trajectories)
    cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in data.suite.cameras)
    said = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {
        "suite": data.suite.name,
        "tasks": ", ".join(f"{task} ({count} episodes)" for task, count in episodes.items()),
        "data": f"{len(data.trajectories)} episodes, {data.frames} control steps, cameras {cameras}",
        "data sha256": data.sha256,
        "policy arguments": " ".join(redacted(config.policy_args)) or "none",
        "seed": str(config.seed),
        "recipe": ", ".join(f"{name} {value}" for name, value in said.items()),
        "last losses": log.last(),
        "minutes": f"{log.minutes:.1f}",
        "machine": f"{facts['machine']['cpu']}, {config.threads or _cores()} threads, device {config.device}",
        "command": str(facts["command"]),
        "version": f"vla-bench {facts['versions'].get('vla-bench', '')}, torch {facts['versions'].get('torch', '')}",
    }
