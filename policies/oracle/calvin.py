"""Scripted solutions of CALVIN's tasks and chains from privileged state: what arm, table and protocol allow.

How it works: a script is a generator of relative actions, closed loop, one skill after the other
(`calvin_skills`); `calvin_tasks` names the scripts that may do a task. Before it begins, the oracle rolls
them out in the simulator itself, which it sets back bit for bit, and takes the first that does the task from which the
tasks after it can still be done: it knows the whole chain. Then the chosen script runs on the real thing. When a script
ends without success, because somebody disturbed it, the oracle plans again. No randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from vla_bench.errors import UsageError
from vla_bench.types import ActionSpec, Float32

from .calvin_hand import Actions, Hand, rest
from .calvin_tasks import Script, ready, scripts_for

STEPS_AHEAD = 10_000
"""Control steps rolled out per plan, about 10 s; beyond that the plan that gets furthest is followed. A quarter of it
for every further plan of the same task."""
BREADTH = 3  # ways to do one task from which the tasks after it are looked at
PATIENCE = 3  # ways that push other blocks about or strain the arm are put off until there are more of them than this


@dataclass(frozen=True)
class Choice:
    """A script that does a task, and the state in which it was begun."""

    task: str
    script: Script
    begun: Any

    def fits(self, env: Any) -> bool:
        """Whether that task is to be done now, in that very state."""
        now = env.table.state()
        same = np.array_equal(self.begun.physics, now.physics)
        return same and self.task == env.current_task and np.array_equal(self.begun.logic.target, now.logic.target)


class Expert:
    """Does the current task of one environment, by what is left of `plan` if that fits."""

    def __init__(self, env: Any, action: ActionSpec, plan: list[Choice]) -> None:
        if not hasattr(env.table, "set_state"):
            raise UsageError(
                f"The oracle looks ahead in the simulator, which {type(env.table).__name__} cannot be set back from; "
                "run it on calvin_a, _b, _c, _d or calvin_tasks."
            )
        self._env, self._hand = env, Hand(env.table, action)
        self._plan = plan

    def actions(self) -> Actions:
        """Without end, for the environment's current task. Looks ahead at once."""
        return self._go_on(self._next_script(STEPS_AHEAD))

    def _go_on(self, script: Script) -> Actions:
        steps = STEPS_AHEAD
        while True:
            yield from script(self._hand)
            self._plan.clear()
            steps //= 4
            script = self._next_script(steps)

    def _next_script(self, steps: int) -> Script:
        """The planned one if all went as planned, else that of a new plan; the first there is if none works."""
        env, hand = self._env, self._hand
        if not (self._plan and self._plan[0].fits(env)):
            self._plan[:] = Planner(env, hand, steps).plan()
        if self._plan:
            return self._plan.pop(0).script
        return next(scripts_for(env.current_task, hand), rest)


_PLANS: WeakKeyDictionary[Any, list[Choice]] = WeakKeyDictionary()
"""What is left of each environment's plan, from one instruction to the next."""


def script_of(_: str) -> Callable[[Any, ActionSpec], Actions]:
    """The same for every task and chain: what is to be done now, the environment says."""
    return lambda env, action: Expert(env, action, _PLANS.setdefault(env, [])).actions()


class Planner:
    """Looks ahead in the environment's own simulator, from where it is now through all the tasks to come."""

    def __init__(self, env: Any, hand: Hand, steps: int) -> None:
        self._env, self._hand = env, hand
        self._steps_left = steps

    def plan(self) -> list[Choice]:
        """One choice per task to come, as far as one was found. The simulator is left as it is."""
        env = self._env
        now = env.table.state()
        if not ready(env.current_task, env.begun):
            return []
        try:
            return self._from_here(env.tasks[env.done :])
        finally:
            env.table.set_state(now)

    def _from_here(self, tasks: Sequence[str]) -> list[Choice]:
        """The longest plan, depth first."""
        best: list[Choice] = []
        if not tasks:
            return best
        for script, begun, reached in islice(self._ways(tasks), BREADTH):
            self._env.table.set_state(reached)
            best = max(best, [Choice(tasks[0], script, begun), *self._from_here(tasks[1:])], key=len)
            if len(best) == len(tasks):
                break
        return best

    def _ways(self, tasks: Sequence[str]) -> Iterator[tuple[Script, Any, Any]]:
        """Scripts that do the first task so that the next can begin, with states before and after; clean ones first."""
        table = self._env.table
        begun, before = table.state(), table.record()
        unclean: list[tuple[Script, Any, Any]] = []
        for script in list(scripts_for(tasks[0], self._hand)):  # all at once: they are chosen from the scene at `begun`
            if self._steps_left <= 0:
                break
            table.set_state(begun)
            if not self._works(script, tasks[0]):
                continue
            after, way = table.record(), (script, begun, table.state())
            if len(tasks) > 1 and not ready(tasks[1], after):
                continue
            unclean.append(way)
            if (_tidy(before, after) and not self._hand.strained) or len(unclean) > PATIENCE:
                yield unclean.pop()
        yield from unclean

    def _works(self, script: Script, task: str) -> bool:
        """Whether the script does that task within the limit; leaves the simulator at that instant."""
        env = self._env
        record = env.table.record()
        for _, action in zip(range(env.task.max_steps), script(self._hand), strict=False):
            play(env.table, action)
            self._steps_left -= 1
            if env.succeeds(task, record):
                return True
        return False


def _tidy(before: Any, after: Any) -> bool:
    """Whether at most one block was moved, those in the drawer aside."""
    blocks = [(block, after.blocks[colour]) for colour, block in before.blocks.items() if block.position[2] > 0.42]
    return sum(math.dist(old.position, new.position) > 0.02 for old, new in blocks) <= 1


def play(table: Any, action: Float32) -> None:
    """What the environment does with an action."""
    table.step(np.append(action[:-1].astype(np.float64), 1.0 if action[-1] > 0 else -1.0))
