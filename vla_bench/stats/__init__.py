"""Statistics: numbers in, numbers out.

`rates` of one policy; `paired` and `unpaired` for two, `anytime` while they play, `tasks` over tasks, `many` policies,
`chains` of instructions, and `planning`: how many episodes that takes.
"""
