"""Simulators in processes of their own, one policy for all of them.

Each worker plays whole chunks and comes back with one observation, so there is one round trip per inference; the
pictures go through shared memory, which takes a third of a pipe's time. The policy answers whoever is waiting, up to
`batch_size` at once, and never waits for a batch to fill. A worker that dies costs its episode one attempt and is
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np

from vla_bench.chunking import Chunking
from vla_bench.config import EPISODE_TIMEOUT_S
from vla_bench.errors import PolicyFailure, UsageError, too_many_files
from vla_bench.inference import LocalPolicy
from vla_bench.process.foreign import contained, insist_on_process
from vla_bench.process.paths import absolute, returning
from vla_bench.process.screen import own_streams
from vla_bench.process.watch import (
    BOARD,
    TICK_S,
    Board,
    Clock,
    Overdue,
    board,
    death,
    read_waiting,
    report_to,
    stops,
    was_asked_to_stop,
    write_to,
)
from vla_bench.registry import make_policy, make_suite, policy_code, suite_code
from vla_bench.rollout import Actor, Answer, Filming, Keeper, Rollout, Stage, attach, broken
from vla_bench.store.provenance import stamps
from vla_bench.types import Camera, Episode, Image, Observation

_USUAL_FILES = 1024
_LEAVING_S = 5.0
"""What a worker gets to end by itself, which may be to close a scene and its driver's contexts."""
_DYING_S = 5.0
"""What the system gets to end a process that was killed; one that waits for a driver stays until that answers."""
_SAFE, _OURS = "PYTHONSAFEPATH", "vla-bench"
_IMPORT_PATH = tuple(sys.path)
"""As it was before any policy or suite was imported."""

Memory = ctypes.Array[ctypes.c_ubyte]


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to build its scenes: plain values that cross a process boundary."""

    suite: str
    suite_args: tuple[str, ...]
    cameras: tuple[Camera, ...]
    history: int
    chunking: Chunking
    filming: Filming
    slot: int
    folder: str
    """The working folder that relative paths in the arguments start from."""
    privileged: tuple[str, str | None, tuple[str, ...], float | None] | None
    """Policy name, checkpoint, arguments and timeout of a policy that must run beside the simulator."""
    keeper: Keeper | None = None
    episode_timeout_s: float = EPISODE_TIMEOUT_S
    origin: Sequence[object] | None = None
    """`origin_of` the run; where it is another one in the worker, that plays nothing."""


class Begin(NamedTuple):
    episode: Episode


class Ask(NamedTuple):
    observation: Observation  # its images are on the desk
    asked: float  # perf_counter is one clock for all processes of a machine


class Failure(NamedTuple):
    """A UsageError or PolicyFailure that came up in a worker."""

    usage: bool
    message: str


class Desk:
    """Shared memory with a place for one picture of each camera and each control step that the policy looks back on.

    Worker and main process never use it at once. The worker's board lies before them.
    """

    def __init__(self, setup: WorkerSetup, memory: Memory) -> None:
        places = _divided(setup.history * setup.cameras, memoryview(memory).cast("B")[BOARD:])
        names = [camera.name for camera in setup.cameras]
        self._places = [{name: next(places) for name in names} for _ in range(setup.history)]

    @staticmethod
    def memory(setup: WorkerSetup) -> Memory:
        size = setup.history * sum(camera.height * camera.width * 3 for camera in setup.cameras)
        return multiprocessing.get_context("spawn").RawArray(ctypes.c_ubyte, BOARD + size)

    def put(self, observation: Observation) -> Observation:
        """The observation without its pictures, which are on the desk now."""
        for seen, places in zip((*observation.earlier, observation), self._places, strict=True):
            for name, image in seen.images.items():
                places[name][:] = image
        return _with_images(observation, [{}] * len(self._places))

    def take(self, observation: Observation) -> Observation:
        """The observation with copies of its pictures, which a policy may keep."""
        return _with_images(observation, [{name: p.copy() for name, p in places.items()} for places in self._places])


def _with_images(observation: Observation, images: Sequence[Mapping[str, Image]]) -> Observation:
    *past, now = images
    earlier = tuple(replace(seen, images=then) for seen, then in zip(observation.earlier, past, strict=True))
    return replace(observation, images=now, earlier=earlier)


def _divided(cameras: Sequence[Camera], memory: memoryview) -> Iterator[Image]:
    pixels, start = np.frombuffer(memory, np.uint8), 0
    for camera in cameras:
        size = camera.height * camera.width * 3
        yield pixels[start : start + size].reshape(camera.height, camera.width, 3)
        start += size


class PipePolicy:
    """The policy in the main process, seen from a worker."""

    def __init__(self, pipe: Connection, desk: Desk, slot: int) -> None:
        self._pipe = pipe
        self._desk = desk
        self._slot = slot
        self._owner = os.getpid()

    def begin(self, episode: Episode) -> None:
        insist_on_process(self._owner)
        self._pipe.send(Begin(episode))

    def answer(self, observation: Observation) -> Answer:
        insist_on_process(self._owner)
        asked = time.perf_counter()
        with board().policy("", "infer", None):  # whoever has it counts its time
            self._pipe.send(Ask(self._desk.put(replace(observation, slot=self._slot)), asked))
            answer = self._pipe.recv()
        assert isinstance(answer, Answer)
        return answer


def work(
    pipe: Connection, setup: WorkerSetup, memory: Memory, stacks: Connection, parent: int, *, import_path: Sequence[str]
) -> None:
    """A worker's life: episodes in, rollouts out, until the pipe says None or closes.

    Suites and policies are looked for on the import path of the main process.
    """
    report_to(parent, stacks.fileno())
    write_to(memoryview(memory).cast("B"))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are the main process's to heed
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops())
    os.chdir(setup.folder)  # a policy may have changed it in the main process
    if os.environ.get(_SAFE) == _OURS:
        del os.environ[_SAFE]
    sys.path[:] = import_path
    with own_streams(for_good=True), contained(), returning():
        _work(pipe, setup, memory)


def _work(pipe: Connection, setup: WorkerSetup, memory: Memory) -> None:
    stage = None
    try:
        stage = _open_stage(pipe, setup, Desk(setup, memory))
        while (episode := pipe.recv()) is not None:
            with board().simulator(f"{episode.task} trial {episode.trial}"):
                rollout = stage.play(episode)
            pipe.send(rollout)
    except (UsageError, PolicyFailure) as error:
        pipe.send(Failure(isinstance(error, UsageError), str(error)))
    except (EOFError, BrokenPipeError):
        pass  # the main process is gone
    finally:
        if stage is not None:
            stage.close()


def _open_stage(pipe: Connection, setup: WorkerSetup, desk: Desk) -> Stage:
    suite = make_suite(setup.suite, setup.suite_args)
    cameras = [camera.name for camera in setup.cameras]
    _insist_on_origin(setup)
    if setup.privileged is None:
        actor = Actor(PipePolicy(pipe, desk, setup.slot), setup.chunking)
        return Stage(suite, cameras, actor, filming=setup.filming, history=setup.history, keeper=setup.keeper)
    name, checkpoint, arguments, timeout_s = setup.privileged
    policy = make_policy(name, suite, checkpoint, arguments)
    _insist_on_origin(setup)
    actor = Actor(LocalPolicy(policy, timeout_s), setup.chunking)
    watch = attach(policy)
    return Stage(suite, cameras, actor, watch, filming=setup.filming, history=setup.history, keeper=setup.keeper)


def origin_of(setup: WorkerSetup) -> list[object]:
    """Which code and which checkpoint, by their files, decide what a worker plays."""
    if setup.privileged is None:
        return [suite_code(setup.suite)]
    name, checkpoint, *_ = setup.privileged
    return [suite_code(setup.suite), policy_code(name), stamps(absolute(checkpoint))]


def _insist_on_origin(setup: WorkerSetup) -> None:
    if setup.origin is not None and setup.origin != origin_of(setup):
        raise UsageError(
            f"The code of {setup.suite!r} or the policy it is played by was changed while the run was played: what is "
            "stored is of the code that it began with. Undo the change to finish it, or run the new code with another "
            "--out."
        )


class Worker:
    """The main process's end of one worker."""

    def __init__(self, setup: WorkerSetup) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy GL contexts and CUDA state
        self.pipe, theirs = context.Pipe()
        self._pipe_of_stacks, stacks = context.Pipe(duplex=False)
        os.set_blocking(self._pipe_of_stacks.fileno(), False)
        memory = Desk.memory(setup)
        self.desk = Desk(setup, memory)
        self.board = Board(memoryview(memory).cast("B"))
        self.board.limit_episodes(setup.episode_timeout_s)
        self._clock = Clock(self.board)
        self._stacks = b""
        self.slot = setup.slot
        self.episode: Episode | None = None
        self.attempts = 0
        self.task = ""
        self.overdue: Overdue | None = None
        """Why it was ended, when it was."""
        given = (theirs, setup, memory, stacks, os.getpid())
        path = {"import_path": list(sys.path)}
        self.process: BaseProcess = context.Process(target=work, args=given, kwargs=path, daemon=True)
        with _importable_main(), _stops_held(), _importing_safely():
            self.process.start()
        theirs.close()
        stacks.close()

    def give(self, episode: Episode, attempts: int) -> None:
        self.episode, self.attempts, self.task = episode, attempts, episode.task
        self.send(episode)

    def send(self, message: Episode | Answer | None) -> None:
        with contextlib.suppress(OSError), self._at_its_mercy():  # if it has died, the next wait finds its pipe closed
            self.pipe.send(message)

    def receive(self) -> object:
        """What it has sent. Raises OSError and EOFError when it has died."""
        with self._at_its_mercy():
            message = self.pipe.recv()
        self.overdue = None
        return message

    def _at_its_mercy(self) -> contextlib.AbstractContextManager[None]:
        """Whoever watches over this process sees when a worker that is stopped in a message stops all."""
        return board().simulator(f"{self.task} trial {self.episode.trial}" if self.episode else "")

    def is_gone(self, seconds: float) -> bool:
        """Whether it has died or takes too long, now that so many more seconds have passed.

        One that takes too long is gone at the next look, unless a message has come: it tells first where it is.
        """
        self._stacks += read_waiting(self._pipe_of_stacks.fileno())
        if self.episode is None or self.overdue:
            return self.overdue is not None
        self.overdue = self._clock.passed(seconds, starting=True)
        if self.overdue and self.process.is_alive():
            os.kill(self.process.ident or 0, signal.SIGUSR1)
        return not self.process.is_alive() and not self.pipe.poll()  # a child of its own may hold the pipe open

    def end(self, seconds: float) -> str:
        """How it ended, by itself within that time or because it had to."""
        self.process.join(timeout=seconds)
        killed = self.process.is_alive()
        if killed:
            self.process.kill()
            self.process.join(timeout=_DYING_S)
        self._stacks += read_waiting(self._pipe_of_stacks.fileno())
        self.pipe.close()
        self._pipe_of_stacks.close()
        return "closed its pipe and did not end" if killed else death(self.process.exitcode or 0)

    @property
    def stacks(self) -> str:
        """Where its threads were, when it hung or crashed."""
        return self._stacks.decode("utf-8", "replace")


class _importable_main:
    """Spawned workers do not import the caller's __main__ again: they need nothing from it."""

    def __enter__(self) -> None:
        main = sys.modules["__main__"]
        self._saved = {name: main.__dict__.pop(name, None) for name in ("__file__", "__spec__")}
        main.__dict__["__spec__"] = None

    def __exit__(self, *_: object) -> None:
        sys.modules["__main__"].__dict__.update({k: v for k, v in self._saved.items() if v is not None})


@contextlib.contextmanager
def _importing_safely() -> Iterator[None]:
    """A process started inside imports its own modules from where the main process did, whatever is beside the user.

    Spawning runs `python -c`, which looks into the working folder first: a pickle.py there would run. Python 3.10 does
    not know the variable, so that it is started elsewhere. What policies have added to the path is left to `work`.
    """
    path, before = list(sys.path), os.environ.get(_SAFE)
    sys.path[:] = _IMPORT_PATH
    os.environ[_SAFE] = before or _OURS
    try:
        with contextlib.nullcontext() if sys.version_info >= (3, 11) else _standing_in(sys.prefix):
            yield
    finally:
        sys.path[:] = path
        if not before:
            del os.environ[_SAFE]


@contextlib.contextmanager
def _standing_in(folder: str) -> Iterator[None]:
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def _stops_held() -> Iterator[None]:
    """Nobody interrupts what is inside, and a worker that is started there until it is ready for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Plays episodes on `workers` processes; iterate over `rollouts`."""

    def __init__(
        self,
        setups: Sequence[WorkerSetup],
        policy: LocalPolicy,
        batch_size: int,
        max_attempts: int,
    ) -> None:
        self._setups = {setup.slot: setup for setup in setups}
        self._policy = policy
        self._batch_size = batch_size
        self._max_attempts = max_attempts
        self._workers: list[Worker] = []
        self._pipes = selectors.DefaultSelector()
        self._requests: deque[tuple[Worker, Ask]] = deque()
        self._looked = time.perf_counter()

    def rollouts(self, episodes: Sequence[Episode]) -> Generator[Rollout]:
        """One rollout per episode, as they are finished; the last attempt's when all of them broke.

        Raises UsageError and PolicyFailure; closing the iterator stops all workers.
        """
        self._queue = [(episode, 1) for episode in episodes]
        _allow_more_files()
        try:
            for slot in list(self._setups)[: len(episodes)]:
                self._hire(slot)
            while any(worker.episode for worker in self._workers):
                yield from self._collect()
                yield from self._look_after()
                self._answer()
        finally:
            self._dismiss()
            self._pipes.close()

    def _dismiss(self) -> None:
        """Those who have nothing to do may end by themselves, all in the same few seconds."""
        for worker in self._workers:
            worker.send(None)
        until = time.perf_counter() + (_LEAVING_S / 5 if was_asked_to_stop() else _LEAVING_S)
        for worker in self._workers:
            worker.end(0 if worker.episode else max(0, until - time.perf_counter()))

    def _hire(self, slot: int) -> None:
        if not self._queue:
            return
        worker = self._new_worker(slot)
        self._workers.append(worker)
        self._pipes.register(worker.pipe, selectors.EVENT_READ, worker)
        self._give_next(worker)

    def _new_worker(self, slot: int) -> Worker:
        try:
            return Worker(self._setups[slot])
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise too_many_files(error, f"{len(self._setups)} workers need more: give fewer --workers, or ") from error

    def _give_next(self, worker: Worker) -> None:
        """The next episode of the worker's own task; else of the task with most left per worker on it."""
        worker.episode = None
        if not self._queue:
            return
        own = [item for item in self._queue if item[0].task == worker.task]
        item = own[0] if own else self._neediest()
        self._queue.remove(item)
        worker.give(*item)

    def _neediest(self) -> tuple[Episode, int]:
        tasks = [episode.task for episode, _ in self._queue]
        busy = [worker.task for worker in self._workers if worker.episode]
        task = max(dict.fromkeys(tasks), key=lambda name: tasks.count(name) / (1 + busy.count(name)))
        return next(item for item in self._queue if item[0].task == task)

    def _collect(self) -> Iterator[Rollout]:
        """Take in whatever the workers have sent; wait, for a moment, only when there is nobody to answer."""
        ready = self._pipes.select(timeout=0 if self._requests else TICK_S)
        for worker in [key.data for key, _ in ready]:
            try:
                message = worker.receive()
            except (EOFError, OSError):
                yield from self._bury(worker)
                continue
            if isinstance(message, Rollout):
                yield from self._finish(worker, message)
            elif isinstance(message, Failure):
                raise UsageError(message.message) if message.usage else PolicyFailure(message.message)
            elif isinstance(message, Begin):
                self._policy.begin(message.episode, worker.slot)
            else:
                assert isinstance(message, Ask)
                seen = worker.desk.take(message.observation)
                self._requests.append((worker, message._replace(observation=seen)))

    def _finish(self, worker: Worker, rollout: Rollout) -> Iterator[Rollout]:
        episode, attempts = worker.episode, worker.attempts
        assert episode is not None
        if rollout.result.success is None and attempts < self._max_attempts:
            self._queue.insert(0, (episode, attempts + 1))
        else:
            yield rollout._replace(result=replace(rollout.result, attempts=attempts))
        self._give_next(worker)

    def _look_after(self) -> Iterator[Rollout]:
        """Every now and then: whoever hangs is ended. What workers had sent before is taken in already."""
        passed = time.perf_counter() - self._looked
        if passed >= TICK_S:
            self._looked += passed
            for worker in [worker for worker in self._workers if worker.is_gone(passed)]:
                yield from self._bury(worker)

    def _bury(self, worker: Worker) -> Iterator[Rollout]:
        """A worker died or hangs: its episode broke, and somebody takes its place. Raises PolicyFailure."""
        self._workers.remove(worker)
        self._pipes.unregister(worker.pipe)
        self._requests = deque(item for item in self._requests if item[0] is not worker)
        end = worker.end(0 if worker.overdue else _LEAVING_S)
        if worker.overdue and worker.overdue.who in ("policy", "end"):
            raise PolicyFailure(_overran(worker.board, worker.overdue)) from RuntimeError(worker.stacks)
        if worker.episode is not None:
            yield from self._try_again(worker, worker.episode, end)
        self._hire(worker.slot)

    def _try_again(self, worker: Worker, episode: Episode, end: str) -> Iterator[Rollout]:
        if worker.attempts < self._max_attempts:
            self._queue.insert(0, (episode, worker.attempts + 1))
            return
        error, said = _hung(worker.overdue) if worker.overdue else ("WorkerDied", f"the worker {end}")
        row = replace(broken(episode, error, said), attempts=worker.attempts)
        none = np.zeros((0, 0), np.float32)
        yield Rollout(row, (), none, none, f"{said}\n{worker.stacks}")

    def _answer(self) -> None:
        """One policy call for those who wait."""
        batch = [self._requests.popleft() for _ in range(min(self._batch_size, len(self._requests)))]
        if not batch:
            return
        answers = self._policy.answer_all([ask.observation for _, ask in batch], [ask.asked for _, ask in batch])
        for (worker, _), answer in zip(batch, answers, strict=True):
            worker.send(answer)


def _hung(overdue: Overdue) -> tuple[str, str]:
    """Name and message of the error."""
    if overdue.who == "start":
        return "SimulatorHung", f"its worker was not ready after {overdue.limit_s:g} s"
    return "SimulatorHung", f"it took longer than --episode-timeout {overdue.limit_s:g} s"


def _overran(shown: Board, overdue: Overdue) -> str:
    told = shown.told()
    return (
        f"The policy {told.get('policy')!r} took longer than --timeout {overdue.limit_s:g} s in {told.get('method')} "
        "and could not be stopped there, so its worker was ended."
    )


def _allow_more_files() -> None:
    """Raises the number of files this process may open to what is usual, as far as it is allowed to."""
    import resource  # which Windows lacks

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _USUAL_FILES if hard == resource.RLIM_INFINITY else min(_USUAL_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def worker_count(wanted: str) -> int:
    """A number of workers; `auto` is one per CPU core this process may use. Raises UsageError."""
    if wanted == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UsageError(f"--workers should be a number of at least 1, or auto; got {wanted!r}.")
    return int(wanted)
