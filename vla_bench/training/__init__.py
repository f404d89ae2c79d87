"""Policies that learn: `train` on demonstrations, `convert` of published checkpoints."""
