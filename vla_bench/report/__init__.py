"""What is shown of many runs: the `leaderboard`, the web `page`, their `plots`, and `published` results beside them."""
