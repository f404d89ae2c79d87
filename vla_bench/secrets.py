"""Secrets among the arguments of policies and suites: told to these alone, never to a disk, a screen or a report.

An argument name=value is a secret by its name (`api_key`, `hf_token`, `password`), or because its value says `env:NAME`
and so is read from the environment when the policy or suite is made. What is kept of it is `api_key=***` or
`api_key=env:NAME`: two runs that differ in nothing else count as one. The values that this process has met are
remembered, to be taken out of whatever somebody else's code says, as are passwords and tokens in addresses.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, quote_plus, unquote

from vla_bench.text import visible

T = TypeVar("T")

HIDDEN = "***"
ENV = "env:"
LEAST = 6
"""Letters of a value that is looked for in texts. Shorter ones, and numbers, are everywhere."""

_ALWAYS = {"password", "passwd", "passphrase", "pwd", "secret", "credential", "apikey", "authorization"}
"""Words that make a name a secret's, in the plural too."""
_MOSTLY: Mapping[str, set[str]] = {
    "key": {"norm", "unnorm", "image", "camera", "view", "depth", "state", "obs", "observation", "proprio", "action"}
    | {"dataset", "data", "task", "lang", "language", "instruction", "prompt", "text", "stat", "statistic"},
    "token": {"pad", "bos", "eos", "mask", "image", "state", "action", "sep", "cls", "unk", "start", "end", "special"},
    "auth": set(),
    "bearer": set(),
    "pass": set(),
}
"""Words that do so unless the value is a number, true, false or none (max_tokens=512), or one of those words is beside
them: keys of data sets and tokens of language models decide the numbers of a run."""
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NO_SECRET = re.compile(r"[-+\d.,eE]+|true|false|none|null|", re.IGNORECASE)
_NAME = re.compile(r"-*[A-Za-z_][\w.-]*")
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*:)([^/\s?#'\"<>]+)(?=@)|(?<=://)()([\w-]{20,})(?=@)")
_QUERY = re.compile(r"(?<=[?&;#])([\w.-]+)=([^&;#\s'\"<>]+)")
_SIGNATURES = {"sig", "signature", "x-amz-signature"}
"""What besides gives the bearer of an address access."""


class _Argument(NamedTuple):
    shown: str
    """What may be kept of it."""
    values: Sequence[str]
    """The secrets in it."""


def is_secret(name: str, value: str) -> bool:
    """Whether the argument of that name and value is one."""
    words = [word.lower() for word in _WORDS.findall(name)]
    stems = {*words, *(word.removesuffix("s") for word in words)}
    likely = any(word in stems and not stems & others for word, others in _MOSTLY.items())
    return bool(stems & _ALWAYS) or (likely and not _NO_SECRET.fullmatch(value))


def redacted(arguments: Iterable[str]) -> list[str]:
    """The arguments, or the words of a command, as they may be kept."""
    return [argument.shown for argument in _read(arguments)]


def names(arguments: Iterable[str]) -> list[str]:
    """The names of those name=value arguments whose values are not kept."""
    pairs = [argument.partition("=") for argument in arguments]
    return [name for name, _, value in pairs if value.startswith(ENV) or is_secret(name, value)]


def remember(arguments: Iterable[str]) -> None:
    """From now on the secrets among these arguments, or words of a command, are hidden in texts."""
    for argument in _read(arguments):
        _memory.add(*argument.values)


def revealed(value: str) -> str:
    """The value of an argument, read from the environment where it says `env:NAME`. Raises KeyError."""
    if not value.startswith(ENV):
        return value
    found = os.environ[value.removeprefix(ENV)]
    _memory.add(found)
    return found


def hidden(text: str) -> str:
    """The text with `***` for the secrets that are remembered, and for passwords and tokens in addresses."""
    return _without_addresses(_memory.hide(text))


def hidden_in(value: T) -> T:
    """The JSON value with all its texts so."""
    changed: Any = value
    if isinstance(value, str):
        changed = hidden(value)
    elif isinstance(value, Mapping):
        changed = {hidden(str(name)): hidden_in(part) for name, part in value.items()}
    elif isinstance(value, list | tuple):
        changed = [hidden_in(part) for part in value]
    return changed  # type: ignore[no-any-return]


# --- parts ---


def _read(arguments: Iterable[str]) -> Iterator[_Argument]:
    flag = ""
    for argument in arguments:
        yield _of_flag(flag, argument) or _of_pair(argument) or _of_addresses(argument)
        flag = argument if argument.startswith("--") and "=" not in argument else ""


def _of_flag(flag: str, argument: str) -> _Argument | None:
    """What stands behind a flag, as `--token` in the command line of somebody else's script."""
    return (
        _Argument(HIDDEN, [argument]) if flag and not argument.startswith("-") and is_secret(flag, argument) else None
    )


def _of_pair(argument: str) -> _Argument | None:
    """`api_key=...`, also behind `--policy-args=`."""
    parts = argument.split("=")
    for n, name in enumerate(parts[:-1], 1):
        value = "=".join(parts[n:])
        if value.startswith(ENV) and _NAME.fullmatch(name):
            return _Argument(argument, [])
        if _NAME.fullmatch(name) and is_secret(name, value):
            return _Argument("=".join([*parts[:n], HIDDEN]), [value])
    return None


def _of_addresses(argument: str) -> _Argument:
    passwords = [found[2] or found[4] for found in _PASSWORD.finditer(argument)]
    queries = [found[2] for found in _QUERY.finditer(argument) if _gives_access(found[1], found[2])]
    return _Argument(_without_addresses(argument), [*passwords, *queries])


def _gives_access(name: str, value: str) -> bool:
    return is_secret(name, value) or name.lower() in _SIGNATURES


def _without_addresses(text: str) -> str:
    if "://" in text:
        text = _PASSWORD.sub(lambda found: f"{found[1] or ''}{HIDDEN}", text)
    if "=" in text:
        text = _QUERY.sub(lambda found: f"{found[1]}={HIDDEN}" if _gives_access(found[1], found[2]) else found[0], text)
    return text


class _Memory:
    """The secrets that this process has met, as they may appear in texts."""

    def __init__(self) -> None:
        self._forms = set[str]()
        self._pattern: re.Pattern[str] | None = None

    def add(self, *values: str) -> None:
        known = len(self._forms)
        self._forms |= {form for value in values for form in _forms(value)}
        if len(self._forms) > known:
            longest_first = sorted(self._forms, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def hide(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)


_memory = _Memory()


def _forms(value: str) -> set[str]:
    """The value as it is, in one line, quoted by Python and JSON, and as a part of an address."""
    forms = {value, unquote(value), visible(value), " ".join(value.split()), repr(value)[1:-1], json.dumps(value)[1:-1]}
    forms |= {quote(value, safe="", errors="replace"), quote_plus(value, errors="replace")}
    return {form for form in forms if len(form) >= LEAST and not _NO_SECRET.fullmatch(form)}
