"""A command is two processes: one does the work, the other waits for it and heeds signals and the clock.

Compiled code may hold the interpreter's lock for ever or end the process without a word; only another process can then
say so, end it and answer with the right exit code. `Board` is the memory the two share: whose turn it is, and since
which call. The workers of a run have one as well, which the process that started them watches.

Nothing heavy is imported here: the watching process is there before anything else is (docs/design/watching.md).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

TICK_S = 0.25
GRACE_S = 2.0
"""What a call of the policy gets on top of its limit, in which the process can still end it by itself."""
START_S = 300.0
"""What a worker gets to be made: to import a simulator, and the first time to compile parts of it."""
STOPPING_S = 4.0
"""What the process gets to end after it was asked to."""
LAST_S = 60.0
"""What it gets for its last things: when a call of the policy was given up, and once the result is known."""

_NUMBERS = ("attempt", "call", "turn", "spent_s", "limit_s", "episode_limit_s", "given_up", "code", "page")
_PAGE = 16384
_TEXT = 8 * len(_NUMBERS)
BOARD = _TEXT + 2 * _PAGE
"""Bytes of a board."""
_NOBODY, _SIMULATOR, _POLICY = range(3)
_TURNS = ("", "simulator", "policy")


class Turn(NamedTuple):
    """Whose turn it is, and what it is limited to; limits are 0 where there is none."""

    attempt: int
    call: int
    who: str
    """policy, simulator or empty."""
    spent_s: float
    """What the simulator has taken in this attempt, before the last call of the policy began."""
    limit_s: float
    episode_limit_s: float
    ending: bool
    """Whether only last things are left to do."""


class Board:
    """What a process is doing. It writes, whoever watches over it reads, and neither waits for the other."""

    def __init__(self, memory: memoryview) -> None:
        self._numbers = memory[:_TEXT].cast("d")
        self._text = memory[_TEXT:BOARD]
        self._told: dict[str, Any] = {}
        self._since = 0.0
        self._owner = os.getpid()

    def limit_episodes(self, seconds: float) -> None:
        """What a simulator may take for one attempt at an episode."""
        self._set("episode_limit_s", seconds)

    def tell(self, **facts: object) -> None:
        """Adds facts, JSON values, that are read when this process cannot speak any more."""
        if any(self._told.get(name) != fact for name, fact in facts.items()):
            self._told |= facts
            page = 1 - int(self._get("page"))
            text = json.dumps(self._told).encode()[: _PAGE - 1] + b"\0"
            self._text[page * _PAGE : page * _PAGE + len(text)] = text
            self._set("page", page)  # last: a page is read whole or not at all

    @contextlib.contextmanager
    def writing(self, *folders: str) -> Iterator[None]:
        """Inside, runs are written to those folders; unless something is raised, all is said of them afterwards."""
        self.tell(runs={folder: f"what is stored is in {folder}" for folder in folders})
        yield
        self.tell(runs={})

    def stored(self, folder: str, said: str) -> None:
        """What is to be said of the run in that folder from now on."""
        self.tell(runs={**self._told.get("runs", {}), folder: said})

    @contextlib.contextmanager
    def simulator(self, episode: str) -> Iterator[None]:
        """Inside it is the simulator's turn, in a new attempt at that episode."""
        self.tell(episode=episode)
        self._set("attempt", self._get("attempt") + 1)
        self._set("spent_s", 0)
        self._simulate()
        try:
            yield
        finally:
            self._set("turn", _NOBODY)

    @contextlib.contextmanager
    def policy(self, name: str, method: str, limit_s: float | None) -> Iterator[None]:
        """Inside it is the policy's turn; what it takes is not the simulator's time."""
        before = self._get("turn")
        self.tell(policy=name, method=method)
        self._set("call", self._get("call") + 1)
        if before == _SIMULATOR:
            self._set("spent_s", self._get("spent_s") + time.perf_counter() - self._since)
        self._set("limit_s", limit_s or 0)
        self._set("turn", _POLICY)
        try:
            yield
        finally:
            if before == _SIMULATOR:
                self._simulate()
            else:
                self._set("turn", before)

    def _simulate(self) -> None:
        self.continued()
        self._set("turn", _SIMULATOR)

    def continued(self) -> None:
        """This process was stopped, as by Ctrl-Z, and is continued: what lay between was nobody's time."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Inside somebody else's code runs that is neither of them, such as a constructor; `what` begins the sentence
        on its failure."""
        before = self._told.get("doing", "")
        self.tell(doing=what)
        try:
            yield
        finally:
            self.tell(doing=before)

    def give_up(self) -> None:
        """A call of the policy is left running; it may hold up all that this process still wants to do."""
        self._set("given_up", 1)

    def finish(self, code: int) -> None:
        """The result is known, and nothing that happens afterwards changes it. A forked copy has none to tell."""
        if os.getpid() == self._owner:
            self._set("code", code + 1)

    # What the other side reads

    @property
    def code(self) -> int | None:
        """The exit code, once the result is known."""
        return int(self._get("code")) - 1 if self._get("code") else None

    def told(self) -> dict[str, Any]:
        page = int(self._get("page"))
        text = bytes(self._text[page * _PAGE : (page + 1) * _PAGE]).partition(b"\0")[0]
        try:
            facts = json.loads(text)
        except ValueError:  # nothing was told, or more than there is room for
            return {}
        return facts if isinstance(facts, dict) else {}

    def turn(self) -> Turn:
        attempt, call, turn, spent, limit, episode_limit, given_up, code, _ = self._numbers
        return Turn(int(attempt), int(call), _TURNS[int(turn)], spent, limit, episode_limit, bool(given_up or code))

    def _get(self, name: str) -> float:
        return self._numbers[_NUMBERS.index(name)]

    def _set(self, name: str, value: float) -> None:
        self._numbers[_NUMBERS.index(name)] = value


class Overdue(NamedTuple):
    """Who took too long."""

    who: str
    """policy, simulator, start or end."""
    limit_s: float


class Clock:
    """How long the turn of a board has taken, seen from outside.

    The time between two looks counts if the turn has not changed, so that a process that was stopped and continued, as
    its watcher was, is not blamed for what lay between.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._seen = (0, 0, "")
        self._waited = self._ending = 0.0

    def passed(self, seconds: float, starting: bool = False) -> Overdue | None:
        """Who is overdue now that `seconds` have passed; None while nobody is.

        With `starting` it cannot be nobody's turn for ever: a worker has to be made, and then to play.
        """
        turn = self._board.turn()
        seen = (turn.attempt, turn.call, turn.who)
        self._waited = self._waited + seconds if seen == self._seen else 0.0
        self._seen = seen
        self._ending += seconds * turn.ending
        if turn.who == "policy" and turn.limit_s and self._waited > turn.limit_s + GRACE_S:
            return Overdue("policy", turn.limit_s)
        if turn.who == "simulator" and 0 < turn.episode_limit_s < turn.spent_s + self._waited:
            return Overdue("simulator", turn.episode_limit_s)
        if starting and not turn.who and self._waited > max(START_S, turn.episode_limit_s):
            return Overdue("start", max(START_S, turn.episode_limit_s))
        return Overdue("end", LAST_S) if self._ending > LAST_S else None


_board = Board(memoryview(bytearray(BOARD)))
_is_watched = _was_asked = False


def board() -> Board:
    """Where this process says what it is doing. Nobody may be watching."""
    return _board


def write_to(memory: memoryview) -> None:
    """From now on this process says on that memory what it is doing."""
    global _board  # noqa: PLW0603 a process does one thing at a time
    _board = Board(memory)


# The process that works


def die_with(parent: int) -> None:
    """This process ends when that one, its parent, does, in whatever way, and on Linux whatever it is doing itself."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it was faster
        os._exit(128 + signal.SIGKILL)


def mortal(code: str, seconds: float) -> str:
    """The same Python code for a child of this process, which ends with it, and soon after so many seconds anyway."""
    bound = "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)"  # as die_with, without importing us
    late = f"os.getppid() == {os.getpid()} or os._exit(1)"
    return f"import ctypes, os, signal, sys; signal.alarm({math.ceil(seconds) + 5}); {bound}; {late}\n{code}"


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(128 + signal.SIGKILL)


def report_to(parent: int, stacks: int) -> None:
    """That process watches over this one, its child, and reads from a pipe where its threads are: when it crashes, and
    after SIGUSR1, whatever it is doing."""
    die_with(parent)
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks)
    signal.signal(signal.SIGCONT, lambda *_: _board.continued())


def stops_interrupt(interrupt: Callable[[], NoReturn]) -> None:
    """From now on `interrupt`, once, when a watched process is asked to stop; before, it just ended."""
    if not _is_watched:
        return

    def stop(*_: object) -> None:
        global _was_asked  # noqa: PLW0603
        if not _was_asked:
            _was_asked = True
            interrupt()

    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = _lost_interrupts_return


def was_asked_to_stop() -> bool:
    """Whether whatever is raised now may come from an interruption, as of an import."""
    return _was_asked


def is_watched() -> bool:
    """Whether another process heeds the signals for this one."""
    return _is_watched


def _lost_interrupts_return(raised: Any) -> None:
    """An interruption that came where nothing can be raised, as in __del__, comes again: it is repeated."""
    global _was_asked  # noqa: PLW0603
    if issubclass(raised.exc_type, KeyboardInterrupt):
        _was_asked = False
    else:
        sys.__unraisablehook__(raised)


def _work_watched(work: Callable[[], int], stacks: int, parent: int) -> int:
    global _is_watched  # noqa: PLW0603
    _is_watched = True
    report_to(parent, stacks)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # not ignored: what is executed from here is as before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _waited_for())
    return _last_resort(work)


def _last_resort(work: Callable[[], int]) -> int:
    from vla_bench.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USAGE, LITTLE_MEMORY, lacks_memory
    from vla_bench.text import for_log

    try:
        code = work()
        finish(code)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None) * EXIT_BUG
    except KeyboardInterrupt:
        _say("interrupted.")
        code = EXIT_INTERRUPTED
    except BaseException as error:
        if lacks_memory(error):  # before `work` could say so: it is much that is imported first
            _say(LITTLE_MEMORY)
            code = EXIT_USAGE
        else:
            print(for_log(traceback.format_exc()), file=sys.stderr)
            code = EXIT_BUG
    finish(code)
    return code


def finish(code: int) -> None:
    """The result of this command is known: nothing is left to stop, and nothing that still happens changes it."""
    if _is_watched:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _board.finish(code)


def death(exit_code: int) -> str:
    """How a process ended that nobody had told to, from its exit code, which is negative for a signal."""
    if exit_code >= 0:
        return f"ended itself with exit code {exit_code}"
    name = _name_of(-exit_code)
    if name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"):
        return f"crashed in compiled code ({name})"
    memory = ", as when memory runs out" if -exit_code == signal.SIGKILL else ""
    return f"was killed by signal {-exit_code} ({name}{memory})"


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"vla-bench: {sentence}\n".encode("ascii", "backslashreplace"))


# The process that watches


class End(NamedTuple):
    """How the process that worked ended, where that was not as it should."""

    result: int | None
    """The exit code that it had come to, and said why; None when it could not."""

    asked: int
    """The signal by which somebody had asked it to stop, 0 when nobody had."""
    overdue: Overdue | None
    """Why it had to be ended."""
    signal: int
    """What ended it; 0 when it left by itself."""
    status: int
    """The one it left with."""
    turn: str
    told: dict[str, Any]
    stacks: str
    """Where its threads were."""


def command(work: Callable[[], int], aftermath: Callable[[End], int]) -> int:
    """The exit code of `work`, which is done in a child of this process.

    When the child could not end by itself, or not in order, `aftermath` sees to the rest and has the exit code. Where
    a debugger or profiler looks on, or a second process is not to be had, the work is done here.
    """
    if _is_watched or not _can_fork():
        return work()
    open_closed_descriptors()
    heeded = {number for number in stops() if signal.getsignal(number) is not signal.SIG_IGN}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some programs leave it, it hides how a child ended
    signal.pthread_sigmask(signal.SIG_BLOCK, _waited_for())
    memory = memoryview(mmap.mmap(-1, BOARD))
    (reading, writing), parent = os.pipe(), os.getpid()
    child = os.fork()
    write_to(memory)
    if child == 0:
        os.close(reading)
        return _work_watched(work, writing, parent)
    os.close(writing)
    os.set_blocking(reading, False)
    return _Watch(child, reading, heeded).exit_code(aftermath)


def stops() -> set[signal.Signals]:
    """The signals that ask a command to end."""
    return {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def _waited_for() -> set[signal.Signals]:
    return {*stops(), signal.SIGCHLD, signal.SIGALRM}


def _can_fork() -> bool:
    if not hasattr(os, "fork") or sys.gettrace() or sys.getprofile():
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    return sys.platform == "linux" or "numpy" not in sys.modules  # whose linear algebra on macOS survives no fork


def open_closed_descriptors() -> None:
    """Where 0, 1 or 2 is closed, as by `2>&-`, the next file opened would get its number, and be printed to."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _told_apart(aftermath: Callable[[End], int], end: End) -> int:
    """What `aftermath` says, in a process of its own: for what it imports, memory may be lacking as it was before."""
    from vla_bench.errors import EXIT_BROKEN, EXIT_BUG, EXIT_INTERRUPTED

    if (child := os.fork()) == 0:
        code = EXIT_BUG
        try:
            code = aftermath(end)
            sys.stderr.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (EXIT_BROKEN, EXIT_BUG, EXIT_INTERRUPTED):
        return code
    _say(f"The process {death(-end.signal if end.signal else end.status)}.")
    return EXIT_BUG


class _Watch:
    """Over the child, until it has ended."""

    def __init__(self, child: int, stacks: int, heeded: set[signal.Signals]) -> None:
        self._child = child
        self._pipe = stacks
        self._heeded = heeded
        self._clock = Clock(_board)
        self._stacks = b""
        self._asked = 0
        self._asked_at = self._sent_at = 0.0
        self._overdue: Overdue | None = None

    def exit_code(self, aftermath: Callable[[End], int]) -> int:
        status, code = self._wait(), _board.code
        if code is None:
            code = _told_apart(aftermath, self._end(status, None))
        elif self._asked and _board.told().get("runs"):  # it had no time to write how they ended
            _told_apart(aftermath, self._end(status, code))
        if not self._asked:
            return code
        from vla_bench.errors import EXIT_INTERRUPTED

        return 128 + self._asked if code == EXIT_INTERRUPTED else code

    def _end(self, status: int, result: int | None) -> End:
        self._read_stacks()
        return End(
            result=result,
            asked=self._asked,
            overdue=self._overdue,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            status=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
            turn=_board.turn().who,
            told=_board.told(),
            stacks=self._stacks.decode("utf-8", "replace"),
        )

    def _wait(self) -> int:
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
        looked = time.monotonic()
        while True:
            came = signal.sigwait({*self._heeded, signal.SIGCHLD, signal.SIGALRM})
            ended, status = os.waitpid(self._child, os.WNOHANG)
            if ended:
                signal.setitimer(signal.ITIMER_REAL, 0)
                return status
            now = time.monotonic()
            if came in self._heeded:
                self._ask(came, now)
            elif came == signal.SIGALRM:
                self._read_stacks()
                self._look(now, min(now - looked, 2 * TICK_S))
                looked = now

    def _ask(self, number: int, now: float) -> None:
        """The first asks the child to stop; a second one, which is no echo of the first, does not wait for it."""
        if not self._asked:
            self._asked, self._asked_at = number, now
            self._send(now)
        elif now - self._asked_at > 2 * TICK_S:
            os.kill(self._child, signal.SIGKILL)

    def _send(self, now: float) -> None:
        self._sent_at = now
        os.kill(self._child, signal.SIGTERM)

    def _look(self, now: float, passed: float) -> None:
        overdue = self._clock.passed(passed)
        if self._overdue is not None:
            os.kill(self._child, signal.SIGKILL)  # a tick later: it has told where it is
        elif overdue is not None:
            self._overdue = overdue
            os.kill(self._child, signal.SIGUSR1)
        elif self._asked and now - self._asked_at > STOPPING_S:
            os.kill(self._child, signal.SIGKILL)
        elif self._asked and now - self._sent_at > STOPPING_S / 4:
            self._send(now)

    def _read_stacks(self) -> None:
        self._stacks += read_waiting(self._pipe)


def read_waiting(pipe: int) -> bytes:
    """What waits in a pipe that does not block."""
    waiting = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(pipe, 65536):
            waiting += chunk
    return waiting
