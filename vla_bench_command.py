"""The command `vla-bench`, from its first line on: signals wait for whoever heeds them, then all else is imported."""

import signal

if hasattr(signal, "pthread_sigmask"):  # Windows is told in a sentence where vla-bench runs
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_bench.process.watch import End

_loading: list[Callable[[], None]] = []


def main() -> int:
    """Run the command of this process and return its exit code."""
    spec = importlib.util.find_spec("vla_bench")
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["vla_bench"] = package  # what it imports itself takes half a second, and is for who works
    _loading.append(lambda: loader.exec_module(package))
    from vla_bench.process.watch import command

    return command(_work, _aftermath)


def _load() -> None:
    if _loading:
        _loading.pop()()


def _work() -> int:
    _load()
    from vla_bench.cli import main

    return main()


def _aftermath(end: "End") -> int:
    from vla_bench.store.aftermath import tell

    return tell(end)
