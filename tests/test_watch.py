"""A command ends: in time, with the right exit code and a sentence, whatever happens to the process that works."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import watched

from vla_bench.process import watch
from vla_bench.process.foreign import interrupt
from vla_bench.process.watch import BOARD, Board, Clock, Overdue, board, death

ROOT = Path(__file__).parent.parent
HANG = ("a" * 40 + "b", r"(a+)+$")
"""What compiled code matches for years, and lets nobody interrupt."""


def hang() -> None:
    re.match(HANG[1], HANG[0])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TICK_S", 0.05), ("GRACE_S", 0.1), ("STOPPING_S", 0.5), ("LAST_S", 0.5)):
        monkeypatch.setattr(watch, name, seconds)


def fresh() -> Board:
    return Board(memoryview(bytearray(BOARD)))


# Boards and clocks


def test_a_board_tells_what_it_was_told_last() -> None:
    shown = fresh()
    assert shown.told() == {}
    shown.tell(runs=["caf\udce9"], policy="pi0")
    shown.tell(policy="walker")
    assert shown.told() == {"runs": ["caf\udce9"], "policy": "walker"}


def test_more_than_a_board_has_room_for_is_told_as_nothing() -> None:
    shown = fresh()
    shown.tell(policy="x" * BOARD)
    assert shown.told() == {}


class World:
    """A board whose process lives in a time of its own, and the clock of who watches it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.shown = fresh()
        self.shown.limit_episodes(10)
        self.clock = Clock(self.shown)
        monkeypatch.setattr(watch.time, "perf_counter", lambda: self.now)

    def pass_(self, seconds: float, starting: bool = False) -> Overdue | None:
        self.now += seconds
        return self.clock.passed(seconds, starting)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_the_policys_time_is_not_the_simulators(world: World) -> None:
    with world.shown.simulator("Lift trial 0"):
        assert [world.pass_(0), world.pass_(4)] == [None, None]
        with world.shown.policy("pi0", "infer", None):
            assert [world.pass_(100), world.pass_(100)] == [None, None]
        assert [world.pass_(0), world.pass_(5), world.pass_(2)] == [None, None, Overdue("simulator", 10)]


def test_short_turns_of_a_simulator_add_up_though_nobody_looks(world: World) -> None:
    with world.shown.simulator("Lift trial 0"):
        for _ in range(9):
            world.now += 1.2
            with world.shown.policy("pi0", "infer", None):
                world.now += 100
        assert world.pass_(0) == Overdue("simulator", 10)


def test_every_attempt_and_every_call_has_its_own_time(world: World) -> None:
    for _ in range(3):
        with world.shown.simulator("Lift trial 0"):
            assert [world.pass_(0), world.pass_(6)] == [None, None]
        assert world.pass_(100) is None
        with world.shown.policy("pi0", "infer", 10):
            assert [world.pass_(0), world.pass_(6)] == [None, None]
    with world.shown.policy("pi0", "infer", 10):
        assert [world.pass_(0), world.pass_(6), world.pass_(6)] == [None, None, Overdue("policy", 10)]


def test_a_process_that_was_stopped_is_not_blamed_for_what_lay_between(world: World) -> None:
    with world.shown.simulator("Lift trial 0"):
        world.now += 10000  # the watcher was stopped too, and saw nothing of it
        world.shown.continued()
        with world.shown.policy("pi0", "infer", None):
            pass
        assert [world.pass_(0), world.pass_(9)] == [None, None]


def test_a_worker_that_never_gets_ready_is_overdue(world: World) -> None:
    assert [world.pass_(200, starting=True) for _ in range(2)] == [None, Overdue("start", 300)]
    world.shown.limit_episodes(1000)
    assert [world.pass_(400, starting=True) for _ in range(2)] == [None, Overdue("start", 1000)]


# Commands


@pytest.mark.parametrize("code", [0, 1, 4, 64])
def test_the_exit_code_is_that_of_the_work(code: int) -> None:
    assert watched(lambda: code)[:2] == (code, "")


def raises() -> int:
    raise RuntimeError("a bug")


def leaves() -> int:
    sys.exit(0)


def test_no_error_of_ours_ends_with_the_code_of_a_verdict() -> None:
    code, said, _ = watched(raises)
    assert code == 70
    assert "RuntimeError: a bug" in said
    assert watched(leaves)[:2] == (0, "")


def overruns() -> int:
    with board().policy("pi0", "infer", 0.2):
        hang()
    return 0


def test_a_call_that_nothing_interrupts_is_ended_and_its_policy_named() -> None:
    code, said, _ = watched(overruns)
    assert code == 4
    assert "vla-bench: The policy 'pi0' took longer than --timeout 0.2 s in infer and could not be stopped" in said
    assert "in hang" in said, "where it hung"


def hangs_in_the_simulator() -> int:
    board().limit_episodes(0.2)
    with board().simulator("Lift trial 3"):
        hang()
    return 0


def test_a_simulator_that_hangs_is_ended_and_its_episode_named() -> None:
    code, said, _ = watched(hangs_in_the_simulator)
    assert code == 4
    assert "took longer than --episode-timeout 0.2 s for Lift trial 3 and was ended" in said


def given_up_and_hangs() -> int:
    with board().policy("pi0", "infer", None):
        board().give_up()
    hang()
    return 0


def test_what_a_call_that_was_given_up_holds_up_is_ended() -> None:
    code, said, _ = watched(given_up_and_hangs)
    assert code == 4
    assert "The process did not end and was ended; the last call of the policy was infer of 'pi0'." in said


def crashes() -> int:
    with board().policy("pi0", "infer", None):
        ctypes.string_at(0)
    return 0


def vanishes() -> int:
    with board().policy("pi0", "infer", None):
        os._exit(0)


def is_killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(
    ("work", "expected", "sentence"),
    [
        (crashes, 4, "vla-bench: The process crashed in compiled code (SIGSEGV) in infer of the policy 'pi0'."),
        (vanishes, 4, "vla-bench: The process ended itself with exit code 0 in infer of the policy 'pi0'."),
        (is_killed, 4, "vla-bench: The process was killed by signal 9 (SIGKILL, as when memory runs out)."),
    ],
)
def test_a_process_that_ends_without_a_word_is_told_of(work: Callable[[], int], expected: int, sentence: str) -> None:
    code, said, _ = watched(work)
    assert code == expected
    assert said.splitlines()[-1] == sentence


def finishes_and_hangs() -> int:
    watch.finish(2)
    hang()
    return 0


def test_what_hangs_after_the_result_is_known_does_not_change_it() -> None:
    assert watched(finishes_and_hangs)[:2] == (2, "")


def copies_itself() -> int:
    if os.fork() == 0:
        watch.finish(0)
        os._exit(0)
    os.wait()
    return 3


def test_a_forked_copy_has_no_result() -> None:
    assert watched(copies_itself).code == 3


# Signals


def waits() -> int:
    watch.stops_interrupt(interrupt)
    print("ready")
    time.sleep(30)
    return 0


def waits_deaf() -> int:
    watch.stops_interrupt(interrupt)
    print("ready")
    hang()
    return 0


def swallows() -> int:
    watch.stops_interrupt(interrupt)
    print("ready")
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        time.sleep(30)
    return 0


class Sticky:
    def __del__(self) -> None:
        print("ready")
        time.sleep(30)


def is_interrupted_in_del() -> int:
    watch.stops_interrupt(interrupt)
    sticky = Sticky()
    del sticky
    time.sleep(30)
    return 0


def not_yet_heeds() -> int:
    print("ready")
    time.sleep(30)
    return 0


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("work", [waits, waits_deaf, swallows, is_interrupted_in_del, not_yet_heeds])
def test_a_signal_ends_whatever_is_done_with_a_sentence(
    number: signal.Signals, expected: int, work: Callable[[], int]
) -> None:
    code, said, seconds = watched(work, number)
    assert (code, said) == (expected, "vla-bench: interrupted.\n")
    assert seconds < 5


def ignores_hangups() -> int:
    print("ready")
    time.sleep(1)
    return 0


def test_what_was_to_be_ignored_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def nohup(work: Callable[[], int], after: Callable[[watch.End], int]) -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return command(work, after)

    command = watch.command
    monkeypatch.setattr(watch, "command", nohup)
    assert watched(ignores_hangups, signal.SIGHUP)[:2] == (0, "")


@pytest.mark.parametrize("work", [waits, waits_deaf])
def test_no_process_outlives_the_one_that_watches(work: Callable[[], int]) -> None:
    code, said, seconds = watched(work, signal.SIGKILL)
    assert (code, said) == (-9, "")
    assert seconds < 5


def asks_a_child_that_hangs() -> int:
    code = "import ctypes; print('ready', flush=True); ctypes.PyDLL(None).sleep(60)"
    return subprocess.run([sys.executable, "-c", watch.mortal(code, 60)], check=False).returncode


def test_a_child_that_is_asked_something_ends_with_the_process_that_asked() -> None:
    assert watched(asks_a_child_that_hangs, signal.SIGKILL).seconds < 5


def test_a_child_that_nobody_ends_ends_itself() -> None:
    code = watch.mortal("import ctypes; ctypes.PyDLL(None).sleep(60)", -4)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGALRM


def test_signals_in_the_first_instants_of_the_command_end_in_a_sentence() -> None:
    code = (
        "import os, signal, sys; import vla_bench_command; os.kill(os.getpid(), signal.SIGINT); "
        "sys.exit(vla_bench_command.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "suites"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vla-bench: interrupted.\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "ended itself with exit code 3"),
        (-9, "was killed by signal 9 (SIGKILL, as when memory runs out)"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (-11, "crashed in compiled code (SIGSEGV)"),
    ],
)
def test_a_death_is_told_by_its_cause(code: int, said: str) -> None:
    assert death(code) == said
