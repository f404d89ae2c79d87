"""Where a policy looks: `scoring` of its attention, the `table` over episodes, the `overlay` of a film."""
