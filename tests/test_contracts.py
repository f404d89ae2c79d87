"""What a plug-in lacks is told at once, in one sentence, before anything is played."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fakes
import pytest

from vla_bench.config import RunConfig
from vla_bench.errors import UsageError
from vla_bench.registry import faults_of, make_policy, make_suite
from vla_bench.runner import run
from vla_bench.store.runs import read_episodes
from vla_bench.types import Env, Policy, PolicySpec, Privileged, Suite, Task


class Half(fakes.ToyEnv):
    """A toy without two methods, with a third that is none and a fourth that takes nothing."""

    film = None  # type: ignore[assignment]
    record = None  # type: ignore[assignment]
    fingerprint = "abc"  # type: ignore[assignment]

    def advance(self) -> None:  # type: ignore[override]
        """Takes no actions."""


def made(how: Callable[[Task, Sequence[str]], object]) -> Suite:
    return replace(fakes.suite(), make_env=how)  # type: ignore[arg-type]


def half(name: str) -> Suite:
    return made(lambda task, cameras: Half(task, cameras, None, ""))


def nothing(name: str) -> Suite:
    return made(lambda task, cameras: None)


def a_class(name: str) -> Suite:
    return made(lambda task, cameras: fakes.ToyEnv)


def no_suite(name: str) -> list[str]:
    return ["east"]


def nameless() -> Suite:
    return fakes.suite()


class Mute:
    """A policy with a spec, a reset that takes nothing, and no more."""

    def __init__(self, suite: Suite, privileged: bool = False) -> None:
        self.spec = PolicySpec("mute", suite.action, privileged=privileged)

    def reset(self) -> None: ...


class Specless:
    spec = {"name": "specless"}  # noqa: RUF012

    def infer(self) -> None: ...


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (
            "half",
            "The environment of the suite 'toy' (Half) cannot be played: advance should take (actions: 'Float32') -> "
            "'Transition', record is missing, film is missing, fingerprint is no method but str; vla_bench.types.Env ",
        ),
        ("nothing", "suite 'toy' (NoneType) cannot be played: reset_trial is missing, advance is missing, look_back "),
        ("a_class", "suite 'toy' (the class ToyEnv) cannot be played: it is a class, not an instance; "),
    ],
)
def test_all_that_an_environment_lacks_is_one_sentence_and_nothing_is_played(
    tmp_path: Path, suite: str, said: str, workers: str
) -> None:
    out = tmp_path / "run"
    settings = RunConfig("fakes:Walker", f"test_contracts:{suite}", episodes=1, workers=workers, out=str(out))
    with pytest.raises(UsageError) as refused:
        run(settings)
    assert said in str(refused.value)
    with pytest.raises(UsageError, match="holds no finished episode"):
        read_episodes(out)


@pytest.mark.parametrize(
    ("policy", "given", "said"),
    [
        ("Mute", (), "(Mute) cannot be used: reset should take (slots: "),
        ("Mute", (), ", infer is missing; vla_bench.types.Policy says"),
        ("Mute", ("privileged=true",), "infer is missing, attach is missing; vla_bench.types.Policy, and of a priv"),
        (
            "Specless",
            (),
            "The spec of the policy 'test_contracts:Specless' should be a vla_bench.types.PolicySpec, got",
        ),
    ],
)
def test_all_that_a_policy_lacks_is_one_sentence(policy: str, given: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_policy(f"test_contracts:{policy}", fakes.suite(), None, given)
    assert said in str(refused.value)


def test_a_function_that_returns_no_suite_is_named() -> None:
    with pytest.raises(UsageError, match=r"'test_contracts:no_suite' should be a vla_bench.types.Suite, got list"):
        make_suite("test_contracts:no_suite")


def test_a_suite_that_cannot_be_made_is_one_sentence_with_the_place() -> None:
    with pytest.raises(UsageError, match=r"could not be made: TypeError: nameless\(\) takes 0 .*registry.py, line \d+"):
        make_suite("test_contracts:nameless")


@pytest.mark.parametrize(
    ("thing", "role"),
    [
        (fakes.suite().make_env(fakes.suite().tasks[0], []), Env),
        (fakes.Walker(fakes.suite()), Policy),
        (types.SimpleNamespace(attach=lambda *anything: None), Privileged),
        (types.SimpleNamespace(attach=min), Privileged),  # tells no signature
    ],
)
def test_what_can_be_called_as_asked_has_no_fault(thing: object, role: type) -> None:
    assert faults_of(thing, role) == []
