"""Demonstrations as a LeRobotDataset, version 3.0 (lerobot 0.4 and later), pictures as PNG inside the parquet files.

Not obvious:

* PNG, not video: lossless, no encoder and no decoder needed.
* The gaze region is `gaze.box.<camera>` and `gaze.mask.<camera>`: lerobot takes every feature whose name begins with
  `observation` and everything of dtype image for an input of the policy, which the region is not. Masks are
  `np.packbits` of the rows, because a feature needs a fixed size.
* Statistics are exact, pictures included: their channels are counted by value, 0 to 255.
* Who recorded an episode, and how it ended, stands in columns `vla_bench/...` of meta/episodes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_bench.data.demonstrations import Demonstration, View
from vla_bench.data.recording import Recorded
from vla_bench.errors import UsageError
from vla_bench.store.files import sync_folder, sync_tree
from vla_bench.types import Episode, Suite

VERSION = "v3.0"
INFO = "meta/info.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_FILES = 1000
DATA_FILE_MB = 100
"""lerobot's own defaults, which info.json repeats."""
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_OWN = "vla_bench/"
INTENDED = "intended_action"
"""Not `action...`: lerobot takes that, too, for an input or output of the policy."""

Array = NDArray[Any]
Stats = dict[str, Array]


# Features


def features_of(suite: Suite) -> dict[str, dict[str, Any]]:
    """What info.json says of every column."""

    def of(dtype: str, shape: Sequence[int], names: Sequence[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names)}

    entries = [f"action_{number}" for number in range(suite.action.dim)]
    features = {
        "observation.state": of("float32", [len(suite.state)], suite.state),
        **{name: of("float32", [suite.action.dim], entries) for name in ("action", INTENDED)},
    }
    for camera in suite.cameras:
        size = (camera.height, camera.width)
        features[f"observation.images.{camera.name}"] = of("image", [*size, 3], ["height", "width", "channels"])
        features[f"gaze.box.{camera.name}"] = of("int64", [4], ["left", "top", "right", "bottom"])
        features[f"gaze.mask.{camera.name}"] = of("uint8", [-(-size[0] * size[1] // 8)])
    for name in ("next.reward", "timestamp"):
        features[name] = of("float32", [1])
    for name in ("next.done", "next.success"):
        features[name] = of("bool", [1])
    for name in ("gaze.body", "vla_bench.task"):
        features[name] = of("string", [1])
    for name in ("vla_bench.trial", "vla_bench.seed", "frame_index", "episode_index", "index", "task_index"):
        features[name] = of("int64", [1])
    return features


def _schema(features: Mapping[str, Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    plain = {
        "float32": pa.float32(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "uint8": pa.uint8(),
        "string": pa.string(),
    }
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def column(feature: Mapping[str, Any]) -> Any:
        if feature["dtype"] == "image":
            return picture
        kind = plain[feature["dtype"]]
        return kind if feature["shape"] == [1] else pa.list_(kind, feature["shape"][0])

    hint = {"info": {"features": {name: _hint(feature) for name, feature in features.items()}}}
    return pa.schema([(name, column(feature)) for name, feature in features.items()], {"huggingface": json.dumps(hint)})


def _hint(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What Hugging Face's `datasets` (4 and later) reads from the parquet files' schema."""
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    value = {"dtype": feature["dtype"], "_type": "Value"}
    return value if feature["shape"] == [1] else {"feature": value, "length": feature["shape"][0], "_type": "List"}


# Writing


@dataclass
class _Written:
    """What the episodes written so far add up to."""

    tasks: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of meta/episodes."""
    numbers: dict[str, list[Array]] = field(default_factory=dict)
    """All values of each small column."""
    counts: dict[str, Array] = field(default_factory=dict)
    """(3, 256) how often each value came up in each channel of a camera."""
    frames: int = 0
    pictures: int = 0
    file: int = 0

    @property
    def place(self) -> dict[str, int]:
        return {"chunk_index": self.file // CHUNK_FILES, "file_index": self.file % CHUNK_FILES}


def write_lerobot(folder: Path, suite: Suite, demos: Iterable[Demonstration]) -> Path:
    """The data set in that folder, an older one replaced. Holds one demonstration at a time, and small columns whole.

    Raises UsageError when the folder holds something else.
    """
    if folder.exists() and not (folder / INFO).is_file():
        raise UsageError(f"{folder} is no LeRobotDataset (it has no {INFO}): move it away, or choose another --out.")
    half = half_written(folder)
    shutil.rmtree(half, ignore_errors=True)
    features, written = features_of(suite), _Written()
    _write_data(half, features, demos, written)
    _write_meta(half, suite, features, written)
    sync_tree(half)
    if folder.exists():
        shutil.rmtree(folder)
    half.rename(folder)
    sync_folder(folder.parent)
    return folder


def half_written(folder: Path) -> Path:
    """Where the data set is until it is whole."""
    return folder.with_name(folder.name + ".partial")


def _write_data(
    root: Path, features: Mapping[str, Mapping[str, Any]], demos: Iterable[Demonstration], written: _Written
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, writer, size = _schema(features), None, 0
    try:
        for demo in demos:
            if writer is not None and size > DATA_FILE_MB * 2**20:
                writer.close()
                writer, size, written.file = None, 0, written.file + 1
            if writer is None:
                file = root / DATA_PATH.format(**written.place)
                file.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(file, schema, compression="snappy")
            columns = _columns(demo, written)
            table = pa.table([_arrow(columns[f.name], f.type) for f in schema], schema=schema)
            writer.write_table(table)  # one row group per episode
            size += table.nbytes
            _note(demo, columns, written)
    finally:
        if writer is not None:
            writer.close()


def _arrow(values: Any, kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _columns(demo: Demonstration, written: _Written) -> dict[str, Any]:
    steps, first = len(demo), written.frames
    last = np.arange(steps) == steps - 1
    numbers = [written.tasks.setdefault(said, len(written.tasks)) for said in demo.instructions]
    columns: dict[str, Any] = {
        "observation.state": demo.states.astype(np.float32),
        "action": demo.actions,
        INTENDED: demo.intended,
        "next.reward": last.astype(np.float32),
        "next.done": last,
        "next.success": last,
        "gaze.body": list(demo.attended),
        "vla_bench.task": [demo.episode.task] * steps,
        "vla_bench.trial": np.full(steps, demo.episode.trial),
        "vla_bench.seed": np.full(steps, demo.episode.seed),
        "timestamp": (np.arange(steps) / round(demo.control_hz)).astype(np.float32),
        "frame_index": np.arange(steps),
        "episode_index": np.full(steps, len(written.rows)),
        "index": np.arange(first, first + steps),
        "task_index": np.array(numbers),
    }
    for camera, view in demo.views.items():
        path = f"observation.images.{camera}"
        columns[path] = [{"bytes": png, "path": f"frame-{step:06d}.png"} for step, png in enumerate(view.png)]
        columns[f"gaze.box.{camera}"], columns[f"gaze.mask.{camera}"] = view.boxes, view.packed_masks
    return columns


def _note(demo: Demonstration, columns: Mapping[str, Any], written: _Written) -> None:
    """Add the episode to the sums, and its row to meta/episodes."""
    stats: dict[str, Stats] = {}
    for name, values in _numeric(columns).items():
        stats[name] = array_stats(values)
        written.numbers.setdefault(name, []).append(values)
    for camera, view in demo.views.items():
        name, counts = f"observation.images.{camera}", count_values(view)
        stats[name] = picture_stats(counts, len(demo))
        written.counts[name] = written.counts.get(name, 0) + counts
    own = {
        **asdict(demo.episode),
        "success": True,
        "scene_fingerprint": demo.scene_fingerprint,
        "final_fingerprint": demo.final_fingerprint,
    }
    written.rows.append(
        {
            "episode_index": len(written.rows),
            "tasks": list(dict.fromkeys(demo.instructions)),
            "length": len(demo),
            **{f"data/{name}": number for name, number in written.place.items()},
            "dataset_from_index": written.frames,
            "dataset_to_index": written.frames + len(demo),
            **{_OWN + name: value for name, value in own.items()},
            **{f"stats/{name}/{key}": v.tolist() for name, of in stats.items() for key, v in of.items()},
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
    )
    written.frames += len(demo)


def _numeric(columns: Mapping[str, Any]) -> dict[str, Array]:
    """The small columns of numbers, (T, n) each."""
    wide = ("gaze.mask.", "observation.images.")
    arrays = {name: v for name, v in columns.items() if isinstance(v, np.ndarray) and not name.startswith(wide)}
    return {name: values.reshape(len(values), -1) for name, values in arrays.items()}


def _write_meta(root: Path, suite: Suite, features: Mapping[str, Mapping[str, Any]], written: _Written) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = {
        "codebase_version": VERSION,
        "robot_type": "panda",
        "total_episodes": len(written.rows),
        "total_frames": written.frames,
        "total_tasks": len(written.tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": 200,
        "fps": round(suite.control_hz),
        "splits": {"train": f"0:{len(written.rows)}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }
    (root / "meta").mkdir(exist_ok=True)
    (root / INFO).write_text(json.dumps(info, indent=4) + "\n", encoding="utf-8")
    stats = {name: array_stats(np.concatenate(values)) for name, values in written.numbers.items()}
    stats |= {name: picture_stats(counts, written.frames) for name, counts in written.counts.items()}
    plain = {name: {key: value.tolist() for key, value in of.items()} for name, of in stats.items()}
    (root / "meta/stats.json").write_text(json.dumps(plain, indent=4) + "\n", encoding="utf-8")
    tasks = pd.DataFrame({"task_index": list(written.tasks.values())}, index=pd.Index(list(written.tasks), name="task"))
    tasks.to_parquet(root / "meta/tasks.parquet")
    file = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(written.rows), file)


# Statistics


def array_stats(values: Array) -> Stats:
    """min, max, mean, std and quantiles of every column of (n, d), and the count."""
    numbers = values.astype(np.float64)
    quantiles = np.quantile(numbers, list(_QUANTILES.values()), axis=0)
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }


def count_values(view: View) -> Array:
    """(3, 256) how often each value comes up in red, green and blue."""
    images = view.images().reshape(-1, 3)
    return np.stack([np.bincount(images[:, channel], minlength=256) for channel in range(3)])


def picture_stats(counts: Array, frames: int) -> Stats:
    """The same of pixels in [0, 1], (3, 1, 1) each, from (3, 256) counts; `count` is that of the pictures."""
    levels, share = np.arange(256) / 255.0, counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    there = [np.flatnonzero(channel) for channel in counts]
    below = np.cumsum(share, axis=1)
    rows = {
        "min": levels[[seen[0] for seen in there]],
        "max": levels[[seen[-1] for seen in there]],
        "mean": mean,
        "std": np.sqrt(np.maximum(0.0, share @ levels**2 - mean**2)),
        **{name: levels[(below < q - 1e-12).sum(axis=1)] for name, q in _QUANTILES.items()},
    }
    return {**{name: row.reshape(3, 1, 1) for name, row in rows.items()}, "count": np.array([frames])}


# Reading


def read_lerobot(folder: Path) -> dict[Episode, Recorded]:
    """Every episode of a data set that vla-bench wrote. Raises UsageError for others: they do not say what they are."""
    try:
        return dict(_read(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder} cannot be replayed ({type(error).__name__}: {error}): expected a LeRobotDataset {VERSION} "
            "that vla-bench collect wrote, which says of every episode which trial it is."
        ) from error


def _read(folder: Path) -> Iterator[tuple[Episode, Recorded]]:
    import pyarrow.parquet as pq

    version = json.loads((folder / INFO).read_text(encoding="utf-8"))["codebase_version"]
    if version != VERSION:
        raise ValueError(f"its version is {version}")
    for file in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            own = {name.removeprefix(_OWN): value for name, value in row.items() if name.startswith(_OWN)}
            only = [("episode_index", "=", row["episode_index"])]
            table = pq.read_table(folder / DATA_PATH.format(**place), columns=["frame_index", "action"], filters=only)
            actions = np.array(table.sort_by("frame_index")["action"].to_pylist(), np.float32)
            if len(actions) != row["length"]:
                raise ValueError(f"episode {row['episode_index']} has {len(actions)} of {row['length']} frames")
            episode = Episode(*(own[name] for name in ("suite", "task", "trial", "seed", "perturbation")))
            yield episode, Recorded(actions, own["success"], own["final_fingerprint"])
