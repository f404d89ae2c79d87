"""Names to suites and policies. Adapters are known as strings and imported only when used."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from vla_bench.config import ALIASES, list_arguments, parse_arguments
from vla_bench.errors import MissingPackage, UsageError, unknown_name
from vla_bench.provenance import content_hash
from vla_bench.shipped import find_shipped, insist_on_sha256
from vla_bench.types import Env, Policy, PolicySpec, Privileged, Suite

SUITES: Mapping[str, str] = {
    "libero_spatial": "vla_bench.envs.libero:suite",
    "libero_object": "vla_bench.envs.libero:suite",
    "libero_goal": "vla_bench.envs.libero:suite",
    "libero_10": "vla_bench.envs.libero:suite",
    "libero_90": "vla_bench.envs.libero:suite",
    "robosuite": "vla_bench.envs.robosuite:suite",
    "calvin_d": "vla_bench.envs.calvin:suite",
    "calvin_a": "vla_bench.envs.calvin:suite",
    "calvin_b": "vla_bench.envs.calvin:suite",
    "calvin_c": "vla_bench.envs.calvin:suite",
    "calvin_tasks": "vla_bench.envs.calvin:single_tasks",
    "calvin_pybullet": "vla_bench.envs.calvin_pybullet:suite",
    "tiny": "vla_bench.envs.tiny:suite",
}
POLICIES: Mapping[str, str] = {
    "zero": "vla_bench.policies.baselines:Zero",
    "random": "vla_bench.policies.baselines:Random",
    "replay": "vla_bench.policies.replay:Replay",
    "oracle": "vla_bench.policies.oracle:Oracle",
    "noisy": "vla_bench.policies.noisy:Noisy",
    "pi0": "vla_bench.policies.pi0:Pi0",
    "reconvla": "vla_bench.policies.reconvla:ReconVLA",
    "openvla": "vla_bench.policies.openvla:OpenVLA",
    "diffusion_policy": "vla_bench.policies.diffusion_policy:DiffusionPolicy",
}
_ENGINE_FILLS = ("suite", "checkpoint", "name")


class Sketch(NamedTuple):
    """What a policy's source says of it, unread by Python: no torch is needed to list policies."""

    about: str
    """First line of its docstring."""
    takes: tuple[str, ...]
    """Names of its `--policy-args`."""


def suite_names() -> list[str]:
    """Built-in suites, then those of installed plug-ins (entry points `vla_bench.suites`)."""
    return list(_table("suite", SUITES))


def policy_names() -> list[str]:
    """Built-in policies, then those of installed plug-ins (entry points `vla_bench.policies`)."""
    return list(_table("policy", POLICIES))


def sketch_policy(name: str) -> Sketch:
    """What the source of the policy of that name says; empty where it has no source."""
    module, _, attribute = _table("policy", POLICIES)[name].partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return Sketch("", ())
    nodes = ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    named = [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute]
    if not named:
        return Sketch("", ())
    maker = next((n for n in named[0].body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), named[0])
    given = [*maker.args.args, *maker.args.kwonlyargs] if isinstance(maker, ast.FunctionDef) else []
    about = (ast.get_docstring(named[0]) or "").partition("\n")[0]
    return Sketch(about, tuple(a.arg for a in given if a.arg not in ("self", *_ENGINE_FILLS)))


def make_suite(name: str, given: Sequence[str] = ()) -> Suite:
    """The suite of that name, alias or import path, with name=value arguments. Raises UsageError."""
    name, factory = ALIASES.get(name, name), find_suite(name)
    arguments = parse_arguments(factory, given, "--suite-args", _ENGINE_FILLS)
    try:
        made = factory(name, **arguments)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"The suite {name!r} could not be made: {_where(error)}") from error
    if not isinstance(made, Suite):
        raise UsageError(
            f"The suite {name!r} should be a vla_bench.types.Suite, got {_kind(made)}: let that function return one."
        )
    return made


def find_suite(name: str) -> Callable[..., Suite]:
    """The function that makes the suite of that name, alias or import path. Raises UsageError."""
    return _find("suite", ALIASES.get(name, name), _table("suite", SUITES), ALIASES)


def find_policy(name: str) -> Callable[..., Policy]:
    """The constructor of the policy of that name or import path. Raises UsageError."""
    return _find("policy", name, _table("policy", POLICIES), {})


def source_hash(policy: str) -> str:
    """16 hex digits of SHA-256 over the file of a policy given by import path; empty for those that have a name.

    Whoever develops a policy runs the same command on changing code: two versions must not share a run.
    """
    if ":" not in policy:
        return ""
    file = sys.modules[find_policy(policy).__module__].__file__
    return content_hash(file)


def make_policy(name: str, suite: Suite, checkpoint: str | None = None, given: Sequence[str] = ()) -> Policy:
    """The policy of that name, loaded. Raises UsageError.

    Its constructor gets `suite` and `checkpoint` if it names them, and the name=value arguments typed by its
    annotations. Without a checkpoint it gets the one that comes with vla-bench for the suite, if there is one.
    """
    constructor = find_policy(name)
    arguments: dict[str, Any] = dict(parse_arguments(constructor, given, "--policy-args", _ENGINE_FILLS))
    parameters = inspect.signature(constructor).parameters
    if "suite" in parameters:
        arguments["suite"] = suite
    shipped = None if arguments.get("size") == "tiny" else find_shipped(name, suite.name, checkpoint)
    arguments |= _checkpoint_argument(name, str(shipped.path) if shipped else checkpoint, parameters)
    try:
        policy = constructor(**arguments)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"The policy {name!r} could not be made: {_where(error)}") from error
    insist_on_policy(policy, name)
    if shipped:
        insist_on_sha256(shipped, policy.spec.checkpoint)
    return policy


def insist_on_policy(policy: Any, name: str) -> None:
    """Raises UsageError with all that the engine will ask of that policy in vain."""
    spec = getattr(policy, "spec", None)
    if not isinstance(spec, PolicySpec):
        raise UsageError(f"The spec of the policy {name!r} should be a vla_bench.types.PolicySpec, got {_kind(spec)}.")
    faults = faults_of(policy, Policy) + (faults_of(policy, Privileged) if spec.privileged else [])
    if faults:
        privileged = ", and of a privileged one Privileged," if spec.privileged else ""
        raise UsageError(
            f"The policy {name!r} ({_kind(policy)}) cannot be asked: {', '.join(faults)}; vla_bench.types.Policy"
            f"{privileged} says what they should be."
        )


def insist_on_env(env: Any, suite: str) -> None:
    """Raises UsageError with all that the engine will ask of that environment in vain."""
    if faults := faults_of(env, Env):
        raise UsageError(
            f"The environment of the suite {suite!r} ({_kind(env)}) cannot be played: {', '.join(faults)}; "
            "vla_bench.types.Env says what they should be."
        )


def faults_of(thing: object, role: type) -> list[str]:
    """What is wrong with the methods of a thing in that role: `film is missing`, `reset takes other arguments`."""
    if isinstance(thing, type):
        return ["it is a class, not an instance"]
    methods = {name: m for name, m in vars(role).items() if inspect.isfunction(m) and not name.startswith("_")}
    found = [(name, _fault(getattr(thing, name, None), method)) for name, method in methods.items()]
    return [f"{name} {fault}" for name, fault in found if fault]


def _fault(method: object, model: Callable[..., Any]) -> str:
    """Why it cannot be called as the model, a function of a class, is; empty when it can."""
    if method is None:
        return "is missing"
    if not callable(method):
        return f"is no method but {_kind(method)}"
    try:
        inspect.signature(method).bind(*list(inspect.signature(model).parameters)[1:])
    except TypeError:
        return f"should take {inspect.signature(model)}".replace("(self, ", "(").replace("(self)", "no argument")
    except ValueError:  # some of C's tell no signature
        pass
    return ""


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _where(error: BaseException) -> str:
    """The error in one sentence, with the line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {said} ({frame.filename}, line {frame.lineno})."


def describe_policy_arguments(name: str) -> str:
    """What `--policy-args` of that policy takes, one line each."""
    return "\n".join([f"--policy-args of {name}:", *list_arguments(find_policy(name), _ENGINE_FILLS)])


def describe_suite_arguments(name: str) -> str:
    """What `--suite-args` of that suite takes, one line each."""
    return "\n".join([f"--suite-args of {name}:", *list_arguments(find_suite(name), _ENGINE_FILLS)])


def _checkpoint_argument(name: str, given: str | None, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    if "checkpoint" not in parameters:
        if given is not None:
            raise UsageError(f"The policy {name!r} has no checkpoint, got --checkpoint {given}.")
        return {}
    if given is None and parameters["checkpoint"].default is inspect.Parameter.empty:
        raise UsageError(f"The policy {name!r} needs --checkpoint PATH.")
    return {} if given is None else {"checkpoint": given}


def _table(kind: str, builtin: Mapping[str, str]) -> dict[str, str]:
    group = {"suite": "vla_bench.suites", "policy": "vla_bench.policies"}[kind]
    plugins = {point.name: point.value for point in metadata.entry_points(group=group)}
    clash = sorted(set(plugins) & set(builtin))
    if clash:
        raise UsageError(f"An installed plug-in calls itself {clash[0]!r}, which is a built-in {kind}; uninstall it.")
    return {**builtin, **plugins}


def _find(kind: str, name: str, table: Mapping[str, str], aliases: Mapping[str, str]) -> Callable[..., Any]:
    if name not in table and ":" not in name:
        raise unknown_name(kind, name, [*table, *aliases])
    if name not in table and "" not in sys.path:
        sys.path.append("")  # the user's own file is looked for here too, after everything that is installed
    return _load(kind, table.get(name, name))


def _load(kind: str, path: str) -> Callable[..., Any]:
    """The attribute at module:name, the current directory included in the search."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise _import_problem(kind, path, module_name, error) from error
    if not callable(getattr(module, attribute, None)):
        raise unknown_name(f"{kind} in {module_name}", attribute, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, attribute)  # type: ignore[no-any-return]


def _import_problem(kind: str, path: str, module_name: str, error: ModuleNotFoundError) -> UsageError:
    missing = error.name or module_name
    if module_name.startswith("vla_bench."):
        return MissingPackage(missing, "vla" if kind == "policy" else "all")
    if module_name == missing or module_name.startswith(missing + "."):
        return UsageError(f"The {kind} {path!r} was not found: there is no module {missing!r} here or on PYTHONPATH.")
    return UsageError(f"The {kind} {path!r} imports {missing!r}, which is not installed.")
