"""The suite `tiny`: its three tasks are solved by the scripts of the suites that they are taken from."""

from __future__ import annotations

from typing import Any

from vla_bench.types import ActionSpec

from ..torch.conventions import CALVIN_ACTION
from . import calvin as oracle_calvin
from . import libero as oracle_libero
from . import robosuite as oracle_robosuite
from .arm import Actions, Script


def drawer(env: Any, action: ActionSpec) -> Actions:
    """CALVIN's script on its own table, each of its relative actions said in the suite's terms."""
    del action  # the environment knows how the two compare
    for relative in oracle_calvin.script_of("open_drawer")(env, CALVIN_ACTION):
        yield env.action_of(relative)


SCRIPTS: dict[str, Script | None] = {
    "lift_the_cube": oracle_robosuite.script_of("Lift"),
    "turn_on_the_stove": oracle_libero.script_of("turn_on_the_stove"),
    "open_the_drawer": drawer,
}


def script_of(task: str) -> Script | None:
    script = SCRIPTS.get(task)
    return None if script is None else lambda env, action: script(env.inner, action)
