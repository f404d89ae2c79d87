"""A walk through vla-bench: lists, the oracle on robosuite and LIBERO, each policy once, a leaderboard, doctor.

Ends with the code of the first command that fails. scripts/pythons.sh and scripts/newest.sh run it in theirs.
The commands share one process, for most of their time would go into importing torch.
"""

from __future__ import annotations

import sys
import tempfile

from vla_bench.cli import main

PLAYED = {
    "robosuite": "--policy oracle --suite robosuite --task Lift",
    "libero": "--policy oracle --suite libero_object --task 0",
    "pi0": "--policy pi0 --suite tiny --task 0",
    "openvla": "--policy openvla --suite tiny --task 0",
    "reconvla": "--policy reconvla --suite tiny --task 0",
    "diffusion_policy": "--policy diffusion_policy --suite tiny --task 0",
    "tokens": "--policy openvla --policy-args size=tiny --suite tiny --task 0",
}
"""Name of the run to the arguments of `vla-bench run`."""


def walk(folder: str) -> None:
    """Gives every command of the walk, with its runs in `folder`. Exits with the code of the first that fails."""
    runs = [f"{folder}/{name}" for name in PLAYED]
    commands = [
        f"run {arguments} --episodes 1 --out {out}" for out, arguments in zip(runs, PLAYED.values(), strict=True)
    ]
    for command in ("list suites", *commands, f"leaderboard {folder}", "doctor"):
        print(f"smoke: vla-bench {command}", flush=True)
        if code := main(command.split()):
            sys.exit(code)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        walk(folder)
    print(f"smoke: Python {sys.version.split()[0]}, all of it played")
