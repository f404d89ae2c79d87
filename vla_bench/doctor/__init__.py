"""What is wrong: with the `machine`, with the `adapter` of a policy of one's own, with runs on disk (`fsck`)."""
