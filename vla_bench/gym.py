"""Every task as a Gymnasium environment: `gymnasium.make("vla_bench/libero_10.<task>-v1")`.

Gymnasium's grammar of names allows one slash, so a dot stands between suite and task. Nothing here imports a simulator:
the adapters of the suites hold their task lists as data and import theirs when an environment is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from vla_bench.registry import SUITES, make_suite, suite_with


def env_id(suite: str, task: str, version: str) -> str:
    """The name under which a task is registered."""
    return f"vla_bench/{suite}.{task}-v{version}"


def register_tasks() -> None:
    """Register the tasks of all built-in suites. Doing it twice changes nothing."""
    for name in SUITES:
        suite = make_suite(name)
        for task in suite.tasks:
            if env_id(name, task.name, suite.version) not in gymnasium.registry:
                gymnasium.register(
                    env_id(name, task.name, suite.version),
                    entry_point=f"{__name__}:make_task",
                    kwargs={"suite_name": name, "task_name": task.name},
                    order_enforce=True,
                )


def make_task(
    suite_name: str, task_name: str, render_mode: str | None = None, **options: Any
) -> gymnasium.Env[Any, Any]:
    """One task with all cameras of its suite, for `gymnasium.make`; `options` are the suite's arguments.

    Raises UsageError for a suite that cannot be made.
    """
    suite = suite_with(suite_name, **options)
    env = suite.make_env(suite.task(task_name), [camera.name for camera in suite.cameras])
    assert isinstance(env, gymnasium.Env)
    env.render_mode = render_mode
    return env
