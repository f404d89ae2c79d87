"""Run directories written without a simulator: outcomes in, a run on disk out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vla_bench.rendering.renderers import Drawn
from vla_bench.store.integrity import protocol_hash
from vla_bench.store.runs import RunInfo, RunStore
from vla_bench.types import EpisodeResult, Inference

INFO = RunInfo(
    identity={"policy": "pi0", "checkpoint": None, "policy_args": [], "suite": "toy", "seed": 0},
    plan={"workers": "1", "batch_size": 8},
    protocol={"suite": "toy", "chunking": {"name": "RecedingHorizon", "execute": None}},
    protocol_hash="3fdcd6ce3cdf",
    provenance={"machine": {"cpu": "abacus", "cores": 2}},
    control_hz=10.0,
)
NOTHING = Drawn()
VERDICTS = {"1": True, "0": False, "x": None}


def made_run(
    path: Path,
    outcomes: Mapping[str, str],
    *,
    info: RunInfo = INFO,
    seed: int = 0,
    scene: str = "scene",
    end: str | None = None,
    latency_ms: float = 0.0,
    drawn: Drawn = NOTHING,
) -> Path:
    """A run with `outcomes`: task -> one character per trial, 1 success, 0 failure, x broken, - not played.

    `end` is the final state of all episodes; by default it tells the run and the episode. With `latency_ms` every
    episode has one warm inference.
    """
    with RunStore.open(path, info) as store:
        for task, characters in outcomes.items():
            for trial, character in enumerate(characters):
                if character != "-":
                    final = end or f"{path}/{task}/{trial}"
                    row = episode(task, trial, VERDICTS[character], seed=seed, scene=scene, final=final)
                    calls = [call(task, trial, seed, latency_ms)] if latency_ms and row.success is not None else []
                    store.append(replace(row, inferences=len(calls), **drawn._asdict()), calls)
    return path


def episode(
    task: str, trial: int, success: bool | None, *, seed: int = 0, scene: str = "scene", final: str = "end"
) -> EpisodeResult:
    """One row; a broken one has no fingerprints."""
    known = success is not None
    times = (2.0, 0.1, 0.2, 0.3, 0.4, 0.7)
    return EpisodeResult(
        "toy", task, trial, seed, "", success, int(bool(success)), 7, 0, 0.0, 0.0, *times,
        scene_fingerprint=scene if known else "",
        final_fingerprint=final if known else "",
        error="" if known else "RuntimeError",
        video=f"videos/{task}_{trial}.mp4" if success is False else "",
    )  # fmt: skip


def call(task: str, trial: int, seed: int, latency_ms: float) -> Inference:
    """One warm inference; later trials are slower, by a thousandth each."""
    return Inference(task, trial, seed, 0, latency_ms * (1 + trial / 1000), 0.0, 1, 7, False, {})


def as_before(run: Path) -> Path:
    """That run as a vla-bench wrote it that had no checksums: what tests change in it then is not noticed."""
    info = json.loads((run / "run.json").read_text())
    kept = {name: value for name, value in info.items() if name not in ("checksum", "checksums", "status")}
    (run / "run.json").write_text(json.dumps({**kept, "schema": 2}))
    for file in (run / "episodes.jsonl", run / "inferences.partial.jsonl"):
        if file.exists():
            rows = map(json.loads, file.read_text().splitlines())
            bare = ({name: row[name] for name in row if name not in ("after", "checksum")} for row in rows)
            file.write_text("".join(json.dumps(row) + "\n" for row in bare))
    return run


def other_protocol(execute: int = 4) -> RunInfo:
    return of_protocol({**INFO.protocol, "chunking": {"name": "RecedingHorizon", "execute": execute}})


def of_protocol(protocol: dict[str, object], info: RunInfo = INFO) -> RunInfo:
    """The same with that protocol, and its hash."""
    return replace(info, protocol=protocol, protocol_hash=protocol_hash(protocol))
