"""Names to suites and policies. Adapters are known as strings and imported only when used."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from vla_bench.config import ALIASES, list_arguments, parse_arguments
from vla_bench.errors import MissingPackage, UsageError, in_a_line, unknown_name
from vla_bench.process import foreign
from vla_bench.process.foreign import contained, foreign_code, is_theirs
from vla_bench.process.paths import at_home, home
from vla_bench.process.watch import board
from vla_bench.secrets import hidden_in
from vla_bench.shipped import find_shipped, insist_on_sha256
from vla_bench.store.source import code_hash, imports_hash
from vla_bench.types import Env, Policy, PolicySpec, Privileged, Suite

SUITES: Mapping[str, str] = {
    "libero_spatial": "vla_bench.envs.libero:suite",
    "libero_object": "vla_bench.envs.libero:suite",
    "libero_goal": "vla_bench.envs.libero:suite",
    "libero_10": "vla_bench.envs.libero:suite",
    "libero_90": "vla_bench.envs.libero:suite",
    "robosuite": "vla_bench.envs.robosuite:suite",
    "calvin_d": "vla_bench.envs.calvin.env:suite",
    "calvin_a": "vla_bench.envs.calvin.env:suite",
    "calvin_b": "vla_bench.envs.calvin.env:suite",
    "calvin_c": "vla_bench.envs.calvin.env:suite",
    "calvin_tasks": "vla_bench.envs.calvin.env:single_tasks",
    "calvin_pybullet": "vla_bench.envs.calvin.pybullet:suite",
    "tiny": "vla_bench.envs.tiny:suite",
}
POLICIES: Mapping[str, str] = {
    "zero": "vla_bench.policies.baselines:Zero",
    "random": "vla_bench.policies.baselines:Random",
    "replay": "vla_bench.policies.replay:Replay",
    "oracle": "vla_bench.policies.oracle.policy:Oracle",
    "noisy": "vla_bench.policies.noisy:Noisy",
    "pi0": "vla_bench.policies.pi0.policy:Pi0",
    "reconvla": "vla_bench.policies.reconvla.policy:ReconVLA",
    "openvla": "vla_bench.policies.openvla.policy:OpenVLA",
    "diffusion_policy": "vla_bench.policies.diffusion_policy.policy:DiffusionPolicy",
}
_BUILT_IN: Mapping[str, Mapping[str, str]] = {"suite": SUITES, "policy": POLICIES}
_GROUPS = {"suite": "vla_bench.suites", "policy": "vla_bench.policies"}
_LISTS = {"suite": "suites", "policy": "policies"}
_FORMS = {"suite": "module:function or FILE.py:function", "policy": "module:Class or FILE.py:Class"}
_WANTED = {
    "suite": "a function that returns a vla_bench.types.Suite",
    "policy": "a class with spec, reset and infer, as vla_bench.types.Policy",
}
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*$")
_ENGINE_FILLS = ("suite", "checkpoint", "name")


class Sketch(NamedTuple):
    """What a policy's source says of it, unread by Python: no torch is needed to list policies."""

    about: str
    """First line of its docstring."""
    takes: tuple[str, ...]
    """Names of its `--policy-args`."""


class PlugIns(NamedTuple):
    """What installed packages add."""

    paths: Mapping[str, str]
    """Name to module:attribute."""
    broken: Mapping[str, str]
    """Name to what is wrong with it, in a sentence."""


def suite_names() -> list[str]:
    """Built-in suites, then those of installed plug-ins (entry points `vla_bench.suites`)."""
    return list(_table("suite"))


def policy_names() -> list[str]:
    """Built-in policies, then those of installed plug-ins (entry points `vla_bench.policies`)."""
    return list(_table("policy"))


def sketch_policy(name: str) -> Sketch:
    """What the source of the policy of that name says; empty where it has no source. Raises UsageError."""
    path = _table("policy")[name]
    module, _, attribute = path.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        raise _import_problem("policy", path, module, error) from error
    if spec is None:
        raise _import_problem("policy", path, module, ModuleNotFoundError(name=module))
    if not spec.origin or not spec.origin.endswith(".py"):
        return Sketch("", ())
    try:
        nodes = list(ast.walk(ast.parse(Path(spec.origin).read_bytes(), spec.origin)))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"The policy {path!r} cannot be read: {_where(error)}") from error
    named = [node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute]
    if not named:
        return Sketch("", ())
    maker = next((n for n in named[0].body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), named[0])
    given = [*maker.args.args, *maker.args.kwonlyargs] if isinstance(maker, ast.FunctionDef) else []
    about = (ast.get_docstring(named[0]) or "").partition("\n")[0]
    return Sketch(about, tuple(a.arg for a in given if a.arg not in ("self", *_ENGINE_FILLS)))


def make_suite(name: str, given: Sequence[str] = ()) -> Suite:
    """The suite of that name, alias or import path, with name=value arguments. Raises UsageError."""
    return suite_with(name, **parse_arguments(find_suite(name), given, "--suite-args", _ENGINE_FILLS))


def suite_with(name: str, **arguments: Any) -> Suite:
    """The same with the function's own arguments."""
    name, factory = ALIASES.get(name, name), find_suite(name)
    with at_home(), telling(f"The suite {name!r} could not be made"):
        made = factory(name, **arguments)
    if not isinstance(made, Suite):
        raise UsageError(
            f"The suite {name!r} should be a vla_bench.types.Suite, got {_kind(made)}: let that function return one."
        )
    if not made.tasks:
        raise UsageError(f"The suite {name!r} has no task: let it have one at least.")
    return replace(made, protocol=hidden_in(made.protocol))


def find_suite(name: str) -> Callable[..., Suite]:
    """The function that makes the suite of that name, alias or import path. Raises UsageError."""
    return _find("suite", ALIASES.get(name, name), ALIASES)


def find_policy(name: str) -> Callable[..., Policy]:
    """The constructor of the policy of that name or import path. Raises UsageError."""
    return _find("policy", name, {})


class Code(NamedTuple):
    """Which code of the user's own it is, 16 hex digits of SHA-256 each; empty for what comes with vla-bench.

    Whoever develops a policy or a suite runs the same command on changing code: two versions must not share a run.
    """

    file: str
    imports: str
    """Over the local modules that the file imports; empty where there is none."""


def policy_code(name: str) -> Code:
    """Of the policy of that name or import path, which has been found before. Raises UsageError."""
    return Code("", "") if name in POLICIES else _code(find_policy(name))


def suite_code(name: str) -> Code:
    """Of the suite of that name, alias or import path. Raises UsageError."""
    return Code("", "") if ALIASES.get(name, name) in SUITES else _code(find_suite(name))


def _code(made_by: Callable[..., Any]) -> Code:
    module = sys.modules.get(getattr(made_by, "__module__", ""))
    return Code("", "") if module is None else Code(code_hash(module), imports_hash(module))


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
    with at_home(), telling(f"The policy {name!r} could not be made"):
        policy = constructor(**arguments)
    insist_on_policy(policy, name)
    if shipped:
        insist_on_sha256(shipped, policy.spec.checkpoint)
    return policy


def insist_on_policy(policy: Any, name: str) -> None:
    """Raises UsageError with all that the engine needs and that policy lacks."""
    spec = getattr(policy, "spec", None)
    if not isinstance(spec, PolicySpec):
        raise UsageError(f"The spec of the policy {name!r} should be a vla_bench.types.PolicySpec, got {_kind(spec)}.")
    faults = faults_of(policy, Policy) + (faults_of(policy, Privileged) if spec.privileged else [])
    if faults:
        privileged = ", and of a privileged one Privileged," if spec.privileged else ""
        raise UsageError(
            f"The policy {name!r} ({_kind(policy)}) cannot be used: {', '.join(faults)}; vla_bench.types.Policy"
            f"{privileged} says what they should be."
        )


def insist_on_env(env: Any, suite: str) -> None:
    """Raises UsageError with all that the engine needs and that environment lacks."""
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


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Runs somebody else's code. Whatever it raises is told as a UsageError that begins with `what`.

    SystemExit too, and what compiled libraries raise in panic, which is no Exception.
    """
    with contained(), board().doing(what):
        try:
            with foreign_code():
                yield
        except BaseException as error:
            if not is_theirs(error):
                raise
            raise UsageError(f"{what}: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """The error in one sentence, with the line that raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})."
    frame = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != foreign.__file__][-1]
    return f"{in_a_line(error)} ({frame.filename}, line {frame.lineno})."


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


def broken_plugins(kind: str) -> Mapping[str, str]:
    """Name to what is wrong, of the installed plug-ins that cannot be used for what their metadata say already."""
    return _plugins(kind).broken


def plugin_paths(kind: str) -> Mapping[str, str]:
    """Name to module:attribute of the installed plug-ins."""
    return _plugins(kind).paths


def unimportable(kind: str, path: str) -> str:
    """Why the plug-in at module:attribute cannot be used; empty when it can."""
    try:
        _load(kind, path)
    except UsageError as error:
        return str(error)
    return ""


def _table(kind: str) -> dict[str, str]:
    return {**_BUILT_IN[kind], **_plugins(kind).paths}


def _plugins(kind: str) -> PlugIns:
    return _read_plugins(kind, tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    """When something was installed there last, in ns; 0 where nothing can be."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except (OSError, ValueError):
        return 0


@functools.cache
def _read_plugins(kind: str, installed: tuple[tuple[str, int], ...]) -> PlugIns:
    """Read one package at a time: what one of them got wrong takes nothing from the others."""
    del installed  # whoever asks again after a pip install is told anew
    paths: dict[str, str] = {}
    broken: dict[str, str] = {}
    for package in metadata.distributions():
        try:
            points = [point for point in package.entry_points if point.group == _GROUPS[kind]]
        except Exception:  # whatever somebody wrote to entry_points.txt
            continue
        for point in points:
            path = point.value.partition("[")[0].strip()  # what follows are names of extras
            if point.name in _BUILT_IN[kind]:
                broken[point.name] = f"a plug-in calls itself {point.name!r}, which is a built-in {kind}: uninstall it"
            elif paths.get(point.name, path) != path:
                broken[point.name] = f"two plug-ins call themselves {point.name!r}: uninstall one"
            elif not _IMPORT_PATH.match(path):
                broken[point.name] = f"the plug-in says {point.value!r}, expected module:attribute"
            else:
                paths[point.name] = path
    return PlugIns({name: path for name, path in paths.items() if name not in broken}, broken)


def _find(kind: str, name: str, aliases: Mapping[str, str]) -> Callable[..., Any]:
    why = broken_plugins(kind).get(name)
    if why and name not in _BUILT_IN[kind]:
        raise UsageError(f"The {kind} {name!r} cannot be used: {why}.")
    table = _table(kind)
    if name in table:
        return _load(kind, table[name])
    _refuse_server(kind, name)
    if source_file(name):
        return _load_file(kind, name)
    if ":" not in name:
        raise unknown_name(kind, name, [*table, *aliases])
    if not _IMPORT_PATH.match(name):
        raise UsageError(
            f"The {kind} {name!r} should be {_FORMS[kind]}, or a name from `vla-bench list {_LISTS[kind]}`."
        )
    _look_in(home())  # the user's own file is looked for here too
    return _load(kind, name)


def _look_in(folder: str) -> None:
    """Modules in that folder can be imported, after everything that is installed."""
    if folder not in sys.path:
        sys.path.append(folder)


def source_file(name: str) -> str:
    """The file of a policy or suite given as FILE.py or FILE.py:NAME, from the root on; empty for other names."""
    given = name if name.endswith(".py") else name.rpartition(":")[0]
    return os.path.normpath(os.path.join(home(), os.path.expanduser(given))) if given.endswith(".py") else ""


def _refuse_server(kind: str, name: str) -> None:
    """Raises UsageError for the address of a server, as other harnesses take them."""
    if re.match(r"(?!file:)\w+://|([\w.-]+|\[[\da-fA-F:]+\]):\d+$", name):
        raise UsageError(
            f"The {kind} {name!r} is a server's address; clients of servers are not built in: a policy of your own can "
            "call one, as docs/examples/openpi_server.py does."
        )


def _load(kind: str, path: str) -> Callable[..., Any]:
    """The attribute at module:name. Raises UsageError."""
    module_name, _, attribute = path.partition(":")
    with at_home(), telling(f"The {kind} {path!r} cannot be imported"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise _import_problem(kind, path, module_name, error) from error
    return _attribute(kind, module, attribute, f"module {module_name}")


def _load_file(kind: str, name: str) -> Callable[..., Any]:
    """What FILE.py:NAME says; of FILE.py alone its only policy or suite. Raises UsageError."""
    file, attribute = source_file(name), "" if name.endswith(".py") else name.rpartition(":")[2]
    if not os.path.isfile(file):
        raise UsageError(f"The {kind} {name!r} was not found: there is no file {file}.")
    module = _module_of(kind, name, file)
    if attribute:
        return _attribute(kind, module, attribute, file)
    plausible = _plausible(kind, module)
    if len(plausible) != 1:
        found = f"it has {' and '.join(plausible)}" if plausible else f"none is in it ({_WANTED[kind]})"
        raise UsageError(f"Say which {kind} of {file} is meant, as {name}:NAME; {found}.")
    return _attribute(kind, module, plausible[0], file)


def _module_of(kind: str, name: str, file: str) -> ModuleType:
    """The module in that file, imported once, under a name that no other module has. Its neighbours can be imported."""
    own = f"{Path(file).stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"
    if own in sys.modules:
        return sys.modules[own]
    _look_in(os.path.dirname(file))
    spec = importlib.util.spec_from_file_location(own, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    try:
        with at_home(), telling(f"The {kind} {name!r} cannot be imported"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    return module


def _attribute(kind: str, module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    """The policy or suite of that name in the module. Raises UsageError, also for what cannot be one."""
    made_by = getattr(module, name, None)
    if made_by is None:
        raise unknown_name(f"{kind} in {where}", name, _plausible(kind, module))
    if not callable(made_by):
        raise UsageError(f"{name} in {where} is no {kind} but {_kind(made_by)}; expected {_WANTED[kind]}.")
    try:
        inspect.signature(made_by)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} in {where} is no {kind}: {error}; expected {_WANTED[kind]}.") from error
    if kind == "policy" and isinstance(made_by, type) and not (hasattr(made_by, "reset") or hasattr(made_by, "infer")):
        raise UsageError(f"{name} in {where} is no policy: it has no reset and no infer; expected {_WANTED[kind]}.")
    return made_by  # type: ignore[no-any-return]


def _plausible(kind: str, module: ModuleType) -> list[str]:
    """Names of what the module itself defines and what could be a policy or a suite."""
    own = [(n, thing) for n, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__]
    if kind == "policy":
        return [n for n, thing in own if isinstance(thing, type) and callable(getattr(thing, "infer", None))]
    functions = [(n, thing) for n, thing in own if inspect.isfunction(thing) and not n.startswith("_")]
    return [n for n, thing in functions if n == "suite" or "Suite" in str(thing.__annotations__.get("return", ""))]


def _import_problem(kind: str, path: str, module_name: str, error: ModuleNotFoundError) -> UsageError:
    missing = error.name or module_name
    if module_name.startswith("vla_bench."):
        return MissingPackage(missing, "vla" if kind == "policy" else "all")
    if module_name == missing or module_name.startswith(missing + "."):
        return UsageError(f"The {kind} {path!r} was not found: there is no module {missing!r} here or on PYTHONPATH.")
    return UsageError(f"The {kind} {path!r} imports {missing!r}, which is not installed.")
