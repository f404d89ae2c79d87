"""vla-bench: how good is a vision-language-action policy, and is the new checkpoint better than the last?

Importing this package registers every task with Gymnasium: `gymnasium.make("vla_bench/<suite>.<task>-v1")`.
In a notebook: `vla_bench.load(run)` is a DataFrame with one row per episode, `vla_bench.summarize(episodes)` one with a
row per task and its interval, `vla_bench.load_summary(run)` the whole table as `vla-bench show` prints it.
"""

from vla_bench.gym import register_tasks
from vla_bench.tables import load, load_summary, summarize

__all__ = ["load", "load_summary", "summarize"]

register_tasks()
