"""Make the checkpoints that come with vla-bench again: collect, train, put in place. Resumes where it was stopped.

    python scripts/train_shipped.py --work WORK [NAME ...] [--threads 1] [--workers 2]

Demonstrations and trainings stay in WORK. The finished checkpoints go to vla_bench/assets/shipped, with one line each
in its manifest. On the same machine with the same number of threads they come out bit for bit the same.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from vla_bench.policies.torch.checkpoints import WEIGHTS, read_tensors, sha256_of

from vla_bench.shipped import FOLDER, MANIFEST

MOST_BYTES = 8e6


class Data(NamedTuple):
    """Demonstrations that several of them learn from."""

    collections: Mapping[str, str]
    """Folder to arguments of `vla-bench collect`."""
    about: str
    suites: tuple[str, ...]
    """That one can act in after learning from them."""


TINY = Data(
    {
        "tiny_others": "--suite tiny --suite-args split=train --seed 1000 --task lift_the_cube "
        "--task turn_on_the_stove --episodes 120",
        # noise of 0.1, the usual, is as large as the actions that the drawer's expert intends
        "tiny_drawer": "--suite tiny --suite-args split=train --seed 1000 --task open_the_drawer --noise 0.05 "
        "--episodes 150",
    },
    "387 demonstrations of the oracle in the suite tiny, split=train",
    ("tiny",),
)
TINY_MORE = Data(
    {
        **TINY.collections,
        "tiny_drawer_again": "--suite tiny --suite-args split=train --seed 2000 --task open_the_drawer --episodes 120",
        # with noise of 0.3, hands that are beside the cube are seen to come back to it
        "tiny_cube_again": "--suite tiny --suite-args split=train --seed 3000 --task lift_the_cube --noise 0.3 "
        "--episodes 120",
    },
    "589 demonstrations of the oracle in the suite tiny, split=train",
    ("tiny",),
)
_SAMPLED = "--suite-args resolution=128 states=sampled --seed 1000"
LIBERO = Data(
    {
        # every tiny size sees less than 128 pixels, and 256 would fill the memory
        "libero_object": f"--suite libero_object {_SAMPLED} --episodes 15",
        "libero_spatial": f"--suite libero_spatial {_SAMPLED} --episodes 8",
        "libero_10": f"--suite libero_10 {_SAMPLED} --episodes 3",
    },
    "251 demonstrations of the oracle in libero_object, libero_spatial and libero_10, sampled initial states",
    ("libero_object", "libero_spatial", "libero_10"),
)
ROBOSUITE = Data(
    {"robosuite": "--suite robosuite --suite-args resolution=128 --seed 1000 --episodes 12"},
    "99 demonstrations of the oracle in robosuite",
    ("robosuite",),
)


@dataclass(frozen=True)
class Training:
    """How one of them is made, by the family's own recipe."""

    name: str
    policy: str
    data: Data
    policy_args: str = ""
    """Of `vla-bench train --policy-args`."""
    steps: int | None = None
    """The recipe's own when None."""
    default: bool = True

    def run(self, work: Path, workers: int, threads: int) -> dict[str, Any]:
        """Its line of the manifest, once it is in its place."""
        for name, arguments in self.data.collections.items():
            _vla_bench(work, f"collect {arguments} --workers {workers} --out {name}")
        data = " ".join(f"--data {name}" for name in self.data.collections)
        where = f"--out {self.name} --threads {threads}"
        chosen = f"--policy-args {self.policy_args}" if self.policy_args else ""
        if self.steps is not None:
            chosen += f" --steps {self.steps}"
        _vla_bench(work, f"train --policy {self.policy} {chosen} {data} {where}")
        shutil.rmtree(FOLDER / self.name, ignore_errors=True)
        shutil.copytree(work / self.name, FOLDER / self.name)
        return self.line()

    def line(self) -> dict[str, Any]:
        folder = FOLDER / self.name
        size = (folder / WEIGHTS).stat().st_size
        if size > MOST_BYTES:
            raise SystemExit(f"{self.name} has {size / 1e6:.1f} MB, {MOST_BYTES / 1e6:.0f} are the limit.")
        return {
            "name": self.name,
            "policy": self.policy,
            "suites": list(self.data.suites),
            "default": self.default,
            "sha256": sha256_of(folder),
            "parameters": sum(prod(tensor.shape) for tensor in read_tensors(folder / WEIGHTS).values()),
            "bytes": size,
            "trained_on": self.data.about,
        }


TRAININGS = (
    Training("diffusion_policy_small_tiny", "diffusion_policy", TINY),
    Training("pi0_small_tiny", "pi0", TINY_MORE),
    Training("openvla_small_tiny", "openvla", TINY_MORE, "head=l1"),
    Training("reconvla_small_tiny", "reconvla", TINY_MORE),
    Training("reconvla_small_tiny_without", "reconvla", TINY_MORE, "recon_weight=0", default=False),
    Training("diffusion_policy_small_libero", "diffusion_policy", LIBERO),
    Training("pi0_small_libero", "pi0", LIBERO),
    Training("openvla_small_libero", "openvla", LIBERO, "head=l1"),
    Training("reconvla_small_libero", "reconvla", LIBERO),
    # a third of LIBERO's pictures, a third of the steps
    Training("diffusion_policy_small_robosuite", "diffusion_policy", ROBOSUITE, steps=1400),
    Training("pi0_small_robosuite", "pi0", ROBOSUITE, steps=2000),
    Training("openvla_small_robosuite", "openvla", ROBOSUITE, "head=l1", steps=1000),
    Training("reconvla_small_robosuite", "reconvla", ROBOSUITE, steps=1200),
)


def _vla_bench(work: Path, arguments: str) -> None:
    print(f"vla-bench {arguments}", flush=True)
    subprocess.run([sys.executable, "-m", "vla_bench.cli", *shlex.split(arguments)], check=True, cwd=work)


def enter(line: Mapping[str, Any]) -> None:
    """In the manifest, in the order of TRAININGS."""
    file = FOLDER / MANIFEST
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    lines = {each["name"]: each for each in [*before, line]}
    ordered = [lines[training.name] for training in TRAININGS if training.name in lines]
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [training.name for training in TRAININGS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all when absent: {', '.join(names)}")
    parser.add_argument("--work", type=Path, required=True, help="where demonstrations and trainings are kept")
    parser.add_argument("--threads", type=int, default=1, help="of a training; sums round by their number")
    parser.add_argument("--workers", type=int, default=2, help="simulators that collect")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"there is no {unknown[0]!r} among {', '.join(names)}")
    for training in TRAININGS:
        if not options.names or training.name in options.names:
            enter(training.run(options.work, options.workers, options.threads))


if __name__ == "__main__":
    main()
