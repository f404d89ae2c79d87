"""vla-bench: how good is a vision-language-action policy, and is the new checkpoint better than the last?

Importing this package registers every task with Gymnasium: `gymnasium.make("vla_bench/<suite>.<task>-v1")`.
"""

from vla_bench.gym import register_tasks

register_tasks()
