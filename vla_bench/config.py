"""What the user asks for, as one frozen value; `tyro` turns it into flags."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from vla_bench import secrets
from vla_bench.chunking import AdaptiveEnsemble, Chunking, RecedingHorizon, TemporalEnsemble
from vla_bench.errors import UsageError, check_ending, unknown_name
from vla_bench.process.paths import TakesPaths, UserPath

ALIASES: Mapping[str, str] = {"libero_long": "libero_10"}
"""Other names of suites."""

MOST_WEIGHT = 1e6
"""Largest rate of an ensemble's weights: far below it already, one prediction has all the weight."""

_LONGEST_PART = 80  # of the name of a run's folder, letters
_LONGEST_TIMEOUT_S = 1e6
EPISODE_TIMEOUT_S = 1200.0
"""The longest of the 2,415 committed episodes took its simulator 45 s, on one of two cores."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class RunConfig(TakesPaths):
    """Everything `vla-bench run` can be told."""

    policy: str
    """A name from `vla-bench list policies`, an import path module:Class, or FILE.py:Class."""
    suite: str
    """A name from `vla-bench list suites`, an import path module:function, or FILE.py:function."""
    checkpoint: UserPath | None = None
    """Where the policy's weights (or replay's recorded actions) are; shipped:NAME for one of `vla-bench list
    checkpoints`. When absent, the one that comes with vla-bench for the suite, if there is one."""
    policy_args: tuple[str, ...] = ()
    """name=value ... for the policy's constructor; `--policy-args help` lists them. A value env:NAME is read from the
    environment and, like those of keys, tokens and passwords, kept nowhere."""
    suite_args: tuple[str, ...] = ()
    """name=value ... for the suite; `--suite-args help` lists them."""
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this task, by name or index; may be given again. All tasks of the suite when absent."""
    episodes: int | None = None
    """Trials per task; every trial the suite defines when absent (50 for LIBERO)."""
    first_trial: int = 0
    """Number of the first trial."""
    seed: int = 0
    """Of the policy's noise and, where a suite draws its scenes, of the scenes."""
    chunking: Literal["receding", "temporal", "adaptive"] = "receding"
    """receding: play the first actions of each chunk; temporal: ACT's ensemble; adaptive: CogACT's."""
    execute: int | None = None
    """Actions played per inference. When absent: receding plays what the policy's authors play, else the whole chunk;
    the ensembles play 1."""
    ensemble_decay: float = 0.01
    """temporal: weight exp(-decay * i) of the i-th oldest prediction."""
    ensemble_alpha: float = 0.1
    """adaptive: weight exp(alpha * cosine similarity to the newest prediction)."""
    ensemble_window: int = 7
    """adaptive: how many of the newest predictions are blended."""
    workers: str = "1"
    """Simulator processes: a number, or auto for one per CPU core. 1 runs in this process."""
    batch_size: int = 8
    """Most observations the policy answers in one call. Nobody waits for a batch to fill."""
    timeout: float | None = None
    """Seconds one policy call may take; no limit when absent."""
    episode_timeout: float = EPISODE_TIMEOUT_S
    """Seconds a simulator may take for one attempt at an episode, the policy's time aside: building the scene, resets,
    steps, pictures and film. One that takes longer hangs, and is ended."""
    out: UserPath | None = None
    """Run directory; results/<policy>_<suite>_<hash of the configuration> when absent."""
    overwrite: bool = False
    """Delete what an earlier run left in the run directory and start again."""
    record_actions: UserPath | None = None
    """Also write the executed actions to this file, for the policy replay."""
    video: Literal["none", "failures", "all"] = "none"
    """Film these episodes (MP4 and a strip of stills in the run directory); painted afterwards, numbers unchanged."""
    json: bool = False
    """Print the result as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.episodes is None or self.episodes >= 1, "--episodes", self.episodes, "at least 1")
        _require(self.first_trial >= 0, "--first-trial", self.first_trial, "at least 0")
        _require(0 <= self.seed < 2**63, "--seed", self.seed, "at least 0 and below 2^63")
        _require(self.batch_size >= 1, "--batch-size", self.batch_size, "at least 1")
        in_time = self.timeout is None or 0 < self.timeout <= _LONGEST_TIMEOUT_S
        _require(in_time, "--timeout", self.timeout, "more than 0 and at most 1e+06 seconds")
        check_episode_timeout(self.episode_timeout)
        for name in ("ensemble_decay", "ensemble_alpha"):
            value = getattr(self, name)
            _require(abs(value) <= MOST_WEIGHT, f"--{name.replace('_', '-')}", value, f"within ±{MOST_WEIGHT:g}")
        check_ending("--record-actions", self.record_actions, [".jsonl"])
        self.make_chunking()

    def make_chunking(self, usual: int | None = None) -> Chunking:
        """The strategy asked for; `usual` is `PolicySpec.execute`. Raises UsageError for parameters out of range."""
        if self.chunking == "receding":
            return RecedingHorizon(usual if self.execute is None else self.execute)
        execute = 1 if self.execute is None else self.execute
        if self.chunking == "temporal":
            return TemporalEnsemble(self.ensemble_decay, execute)
        return AdaptiveEnsemble(self.ensemble_alpha, self.ensemble_window, execute)

    def identity(self) -> dict[str, object]:
        """The fields that decide the numbers, as JSON values: a run is resumed only when they are equal.

        The values of secrets are not among them.
        """
        return {
            "policy": self.policy,
            "checkpoint": None if self.checkpoint is None else secrets.redacted([self.checkpoint])[0],
            "policy_args": sorted(secrets.redacted(self.policy_args)),
            "suite": ALIASES.get(self.suite, self.suite),
            "suite_args": sorted(secrets.redacted(self.suite_args)),
            "seed": self.seed,
            "chunking": describe(self.make_chunking()),
        }

    def plan(self) -> dict[str, object]:
        """The fields that only choose episodes and resources: they may change when a run is resumed."""
        fields = (
            "task",
            "episodes",
            "first_trial",
            "workers",
            "batch_size",
            "timeout",
            "episode_timeout",
            "record_actions",
            "video",
        )
        return {name: _plain(getattr(self, name)) for name in fields}

    def path(self) -> Path:
        """The run directory: `out`, or a name that the same configuration always gets."""
        if self.out is not None:
            return Path(self.out)
        identity = self.identity()
        names = "_".join(folder_name(str(identity[key])) for key in ("policy", "suite"))
        return Path("results") / f"{names}_{digest(identity)[:6]}"


def folder_name(name: str) -> str:
    """The name, import path or file of a policy or suite, as a part of a folder's name."""
    file, colon, attribute = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    if file.endswith(".py"):
        name = f"{Path(file).stem}{colon}{attribute}"
    return name.replace(":", ".").replace("/", ".")[:_LONGEST_PART]


def describe(value: Chunking) -> dict[str, object]:
    """A frozen dataclass as {"name": class, field: value, ...}."""
    assert dataclasses.is_dataclass(value)
    return {"name": type(value).__name__, **dataclasses.asdict(value)}


def digest(value: Mapping[str, object]) -> str:
    """64 hex digits of SHA-256 over the value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


# name=value arguments, typed by the annotations of the function they are for


def parse_arguments(
    function: Callable[..., Any], given: Sequence[str], flag: str, hidden: Sequence[str]
) -> dict[str, Scalar]:
    """The name=value strings as keyword arguments of `function`, whose parameters in `hidden` are not the user's.

    Raises UsageError for unknown names, bad values and missing required ones; `help` lists what there is.
    """
    known = _parameters(function, hidden)
    if "help" in given:
        raise UsageError(f"{flag} takes: {_listing(known)}")
    secrets.remember(given)
    pairs = [_split(item, flag) for item in given]
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise UsageError(f"{flag} {twice[0]} is given twice; give it once.")
    parsed = {name: _convert(name, text, known, flag) for name, text in pairs}
    required = [name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in parsed]
    if missing:
        raise UsageError(f"{flag} needs {missing[0]}=...; it takes: {_listing(known)}")
    return parsed


def list_arguments(function: Callable[..., Any], hidden: Sequence[str]) -> list[str]:
    """One line for each argument a user may give: name, type, default, and what its docstring's `Args:` says of it."""
    known, told = _parameters(function, hidden), _told(function)
    heads = {p.name: f"{p.name}: {_type_name(p.annotation)}{_default(p)}" for p in known.values()}
    width = min(44, max(map(len, heads.values()), default=0))
    return [f"  {head:<{width}}  {told.get(name, '')}".rstrip() for name, head in heads.items()] or ["  nothing"]


def _told(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of the function, or of the class or its constructor, says of each argument."""
    sources = [function, function.__init__] if isinstance(function, type) else [function]  # type: ignore[misc]
    told: dict[str, str] = {}
    for source in sources:
        _, _, section = (inspect.getdoc(source) or "").partition("Args:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, re.M):
            told[name] = " ".join(text.split())
    return told


def _parameters(function: Callable[..., Any], hidden: Sequence[str]) -> dict[str, inspect.Parameter]:
    hints = _hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in hidden]
    return {p.name: p.replace(annotation=hints.get(p.name, str)) for p in named}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types its parameters are annotated with; those whose names are imported for type checkers only left out."""
    with contextlib.suppress(Exception):
        return get_type_hints(function)
    hints: dict[str, Any] = {}
    for name, said in getattr(function, "__annotations__", {}).items():
        with contextlib.suppress(Exception):
            one = type("", (), {"__annotations__": {name: said}})
            hints |= get_type_hints(one, globalns=getattr(function, "__globals__", {}))
    return hints


def _split(item: str, flag: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise UsageError(f"{flag} takes name=value, got {item!r}.")
    return name, value


def _convert(name: str, text: str, known: Mapping[str, inspect.Parameter], flag: str) -> Scalar:
    if name not in known:
        raise unknown_name(f"argument of {flag}", name, known)
    annotation, (kept,) = known[name].annotation, secrets.redacted([f"{name}={text}"])
    try:
        text = secrets.revealed(text)
    except KeyError as error:
        raise UsageError(f"{flag} {kept} is read from the environment, which has no {error}: export it.") from None
    if text.startswith("~") and "/" in text:
        text = os.path.expanduser(text)  # no shell does behind an equals sign
    if annotation is bool:
        text = text.capitalize()  # true and false, as on every other command line
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            value: Scalar = tyro.cli(annotation, args=[text], add_help=False)
    except (SystemExit, tyro.constructors.UnsupportedTypeAnnotationError):
        got = kept.partition("=")[2]
        raise UsageError(f"{flag} {name} should be {_type_name(annotation)}, got {got!r}.") from None
    return value


def _listing(known: Mapping[str, inspect.Parameter]) -> str:
    if not known:
        return "nothing."
    return ", ".join(f"{p.name}: {_type_name(p.annotation)}{_default(p)}" for p in known.values()) + "."


def _default(parameter: inspect.Parameter) -> str:
    return " (required)" if parameter.default is inspect.Parameter.empty else f" = {parameter.default}"


def _type_name(annotation: object) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def check_episode_timeout(seconds: float) -> None:
    """Raises UsageError for a limit that is none."""
    in_time = 0 < seconds <= _LONGEST_TIMEOUT_S
    _require(in_time, "--episode-timeout", seconds, "more than 0 and at most 1e+06 seconds")


def _require(holds: bool, flag: str, got: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"{flag} should be {expected}, got {got}.")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
