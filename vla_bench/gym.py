"""Every task as a Gymnasium environment: `gymnasium.make("vla_bench/libero_10.<task>-v1")`.

Gymnasium's grammar of names allows one slash, so a dot stands between suite and task. Nothing here imports a simulator:
the adapters of the suites hold their task lists as data and import theirs when an environment is made.
"""

from __future__ import annotations

import gymnasium

from vla_bench.registry import SUITES, make_suite


def env_id(suite: str, task: str, version: str) -> str:
    """The name under which a task is registered."""
    return f"vla_bench/{suite}.{task}-v{version}"


def register_tasks() -> None:
    """Register the tasks of all built-in suites. Doing it twice changes nothing."""
    for name, factory in SUITES.items():
        suite = make_suite(name)
        for task in suite.tasks:
            if env_id(name, task.name, suite.version) not in gymnasium.registry:
                gymnasium.register(
                    env_id(name, task.name, suite.version),
                    entry_point=f"{factory.partition(':')[0]}:make_gym_env",
                    kwargs={"suite_name": name, "task_name": task.name},
                    order_enforce=True,
                )
