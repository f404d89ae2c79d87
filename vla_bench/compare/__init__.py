"""Which of two is better: `comparison` of two runs, `duel` while they play, `regression` from a `baseline`, `ci`."""
