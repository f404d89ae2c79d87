"""What a machine, a terminal or a user's own code may do to a command: it goes on, or ends in one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from made_runs import as_before

from vla_bench import pool
from vla_bench.chunking import AdaptiveEnsemble, TemporalEnsemble
from vla_bench.cli import main
from vla_bench.compare.duel import DuelConfig, duel
from vla_bench.config import RunConfig, digest, folder_name
from vla_bench.doctor import machine as doctor
from vla_bench.errors import UsageError, in_a_line, lacks_memory, too_many_files
from vla_bench.inference import LocalPolicy
from vla_bench.pool import Pool, WorkerSetup
from vla_bench.process import screen
from vla_bench.process.paths import path_fields
from vla_bench.rollout import Filming
from vla_bench.runner import run
from vla_bench.store.provenance import gather
from vla_bench.types import Episode

TESTS = Path(__file__).parent
TOY = ["run", "--policy", "fakes:Walker", "--suite", "fakes:suite", "--task", "0", "--episodes", "1"]
POLICY = """
import os
import numpy as np
from gaits import SPEED
from vla_bench.types import ActionChunk, PolicySpec

class Mine:
    def __init__(self, suite, leave: str = "", checkpoint: str = ""):
        self.spec = PolicySpec("mine", suite.action, suite.cameras, suite.state, 4)
        if leave:
            os.chdir(leave)
    def reset(self, slots, episodes): pass
    def infer(self, observations):
        print("said in Python")
        os.write(1, b"said below Python\\n")
        return [ActionChunk(np.tile(np.float32([SPEED, 0]), (4, 1))) for _ in observations]
"""
LATE = """
import atexit, ctypes, subprocess, sys
atexit.register(lambda: print("at exit"))
atexit.register(lambda: os.write(1, b"at exit below\\n"))
atexit.register(lambda: subprocess.run(["echo", "from a child"]))
ctypes.CDLL(None).printf(b"in C\\n")
sys.__stdout__.write("to the original\\n")
"""
PANICS = """
import fakes
class Panic(BaseException): pass
def panic(place):
    if place == "PLACE":
        raise Panic("unwrap on None")
panic("import")
class P(fakes.Walker):
    def __init__(self, suite):
        panic("make")
        super().__init__(suite)
    def infer(self, observations):
        panic("infer")
        return super().infer(observations)
class Scene(fakes.ToyEnv):
    def advance(self, actions):
        panic("scene")
        return super().advance(actions)
def suite(name):
    import dataclasses
    panic("suite")
    return dataclasses.replace(fakes.suite("toy"), make_env=lambda task, cameras: Scene(task, cameras, None, ""))
"""
SUITE = """
from fakes import suite as toy

def suite(name="mine"):
    return toy("mine")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a policy, what it imports, and a suite."""
    for name, text in (("mine.py", POLICY), ("gaits.py", "SPEED = 0.5\n"), ("world.py", SUITE)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    forget_modules()


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition("_")[0] in ("mine", "gaits", "world")]:
        del sys.modules[name]


def command(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell of its own, where `vla-bench` is this one."""
    return subprocess.run(
        ["bash", "-c", re.sub(r"(?<!\S)vla-bench(?!\S)", f"{sys.executable} -m vla_bench.cli", line)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        check=False,
    )


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on the screen."""
    said = capsys.readouterr().err
    assert said.startswith("vla-bench: ")
    assert said.count("\n") == 1
    return said


def test_half_removed_packages_are_passed_over_and_doctor_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leftover-1.0.dist-info").mkdir()
    nameless = tmp_path / "nameless-1.0.dist-info"
    nameless.mkdir()
    (nameless / "METADATA").write_text("Metadata-Version: 2.1\n", encoding="utf-8")
    (nameless / "entry_points.txt").write_text("[vla_bench.suites]\nno equals sign\n", encoding="utf-8")
    garbled = tmp_path / "garbled-1.0.dist-info"
    garbled.mkdir()
    (garbled / "METADATA").write_bytes(b"Metadata-Version: 2.1\nName: g\xe9\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "numpy" in dict(gather())["versions"]  # type: ignore[operator]
    assert main(["list", "suites"]) == 0
    assert sum(str(tmp_path) in check.detail for check in doctor._left_overs()) == 3


def test_figures_are_drawn_whatever_a_notebook_left_in_the_environment() -> None:
    code = "from vla_bench.report.plots import Size, new_axes; new_axes(Size(1, 1))"
    done = command(f"{sys.executable} -c '{code}'", MPLBACKEND="module://no_such_backend")
    assert done.returncode == 0, done.stderr


def test_what_a_terminal_cannot_show_is_shown_in_ascii() -> None:
    raw = io.BytesIO()
    terminal = screen.Screen(io.TextIOWrapper(raw, encoding="ascii"))
    terminal.write("50 % [40–60], π0, caf\u00e9, \udce9")
    terminal.flush()
    assert raw.getvalue() == rb"50 % [40-60], pi0, caf\xe9, \udce9"


def test_errors_are_kept_whatever_letters_they_have(tmp_path: Path) -> None:
    done = command(
        f"vla-bench {' '.join(TOY)} --policy-args how=raise --policy fakes:Faulty --out {tmp_path}/caf\u00e9",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    )
    assert done.returncode == 4, done.stderr
    assert "left_arm" in (tmp_path / "caf\u00e9" / "errors.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "{}"],
        ["report", "{}", "--out", "r"],
        ["report", "r", "--out", "{}"],
        ["leaderboard", "{}"],
        ["compare", "{}", "b"],
        ["compare", "a", "{}"],
        ["check", "a", "--baseline", "{}"],
        ["check", "a", "--baseline", "b", "--junit", "{}"],
        [*TOY, "--checkpoint", "{}"],
        [*TOY, "--out", "{}"],
        [*TOY, "--record-actions", "{}"],
        ["collect", "--suite", "fakes:suite", "--episodes", "1", "--out", "{}"],
        ["train", "--policy", "pi0", "--data", "{}", "--out", "x"],
        ["convert", "--policy", "pi0", "--checkpoint", "{}", "--suite", "tiny", "--out", "x"],
        ["duel", "zero", "random", "--suite", "fakes:suite", "--checkpoint-a", "{}"],
        ["doctor", "--policy", "zero", "--suite", "fakes:suite", "--recording", "{}"],
    ],
)
@pytest.mark.parametrize(
    ("name", "why"), [("x" * 300, "a name of 300 bytes"), ("y/" * 3000, "6000 bytes"), ("a\0", "NUL")]
)
def test_a_name_that_no_file_can_have_ends_in_a_sentence(
    arguments: list[str], name: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(name) for argument in arguments]) == 64
    assert why in told(capsys)


def test_a_run_folder_whose_name_is_not_utf_8_works(tmp_path: Path) -> None:
    folder = str(tmp_path / os.fsdecode(b"o\xe9"))
    assert main([*TOY, "--video", "all", "--out", folder]) == 0
    assert main(["show", folder]) == 0
    assert main([*TOY, "--out", folder]) == 0
    assert main(["leaderboard", str(tmp_path)]) == 0
    assert main(["report", folder, "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_run_plays_on_when_nobody_can_be_told(streams: str, tmp_path: Path) -> None:
    assert command(f"vla-bench {' '.join(TOY)} --out {tmp_path}/run {streams}").returncode == 0
    assert (tmp_path / "run" / "inferences.parquet").is_file()
    assert len((tmp_path / "run" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_a_table_that_could_not_be_printed_is_no_success(tmp_path: Path) -> None:
    assert main([*TOY, "--out", str(tmp_path / "run")]) == 0
    done = command(f"vla-bench show {tmp_path}/run > /dev/full")
    assert (done.returncode, done.stderr) == (64, "vla-bench: standard output took no more: No space left on device.\n")


def test_few_files_end_in_a_sentence(tmp_path: Path) -> None:
    done = command(f"ulimit -n 20; vla-bench {' '.join(TOY[:-2])} --workers 4 --out {tmp_path}/run")
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    assert "This process may open no more files (ulimit -n)" in done.stderr


def test_little_memory_ends_in_a_sentence() -> None:
    """From the first import on. Where OpenBLAS itself ends the process (70) depends on the machine."""
    start = f"{sys.executable} -c 'import sys, vla_bench_command; sys.exit(vla_bench_command.main())'"
    done = command(f"ulimit -v 60000; {start} list suites", OPENBLAS_NUM_THREADS="1")
    assert done.returncode in (64, 70)
    assert "Traceback" not in done.stderr
    assert ("vla-bench: This process got no more memory" in done.stderr) == (done.returncode == 64)


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (ImportError("a.so: failed to map segment from shared object"), True),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (ImportError("No module named 'torch'"), False),
    ],
)
def test_lacks_of_memory_are_known_by_their_kind_and_their_words(error: Exception, lacks: bool) -> None:
    wrapped = UsageError("cannot be read")
    wrapped.__cause__ = error
    assert (lacks_memory(error), lacks_memory(wrapped)) == (lacks, lacks)


def test_too_many_files_of_a_process_and_of_the_machine_are_told_apart() -> None:
    process, machine = (too_many_files(OSError(code, "")) for code in (errno.EMFILE, errno.ENFILE))
    assert str(process).endswith("(ulimit -n): allow more with ulimit -n 1024.")
    assert str(machine) == "This machine may open no more files: end other programs."


def test_a_tilde_is_expanded_wherever_a_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vla_bench import cli
    from vla_bench.compare.duel import DuelConfig
    from vla_bench.config import parse_arguments
    from vla_bench.data.collect import CollectConfig
    from vla_bench.training.convert import ConvertConfig
    from vla_bench.training.train import TrainConfig

    def policy(statistics: str = "", size: int = 1) -> None: ...

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    taken = {
        RunConfig: ["checkpoint", "out", "record_actions"],
        DuelConfig: ["checkpoint_a", "checkpoint_b", "out"],
        CollectConfig: ["out", "checkpoint"],
        TrainConfig: ["data", "out"],
        ConvertConfig: ["checkpoint", "out"],
        cli.ShowConfig: ["run"],
        cli.CompareConfig: ["run_a", "run_b"],
        cli.CheckConfig: ["run", "baseline", "junit"],
        cli.LeaderboardConfig: ["results", "out"],
        cli.ReportConfig: ["runs", "out"],
        cli.DoctorConfig: ["checkpoint", "recording"],
    }
    assert {config: path_fields(config) for config in taken} == taken
    assert main([*TOY, "--out=~/x"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert cli.ReportConfig(("~/a", "b"), "~").runs == (f"{tmp_path}/a", "b")
    assert parse_arguments(policy, ["statistics=~/s"], "--policy-args", ()) == {"statistics": f"{tmp_path}/s"}


def test_a_policy_that_changes_the_working_folder_moves_no_results(mine: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    outcome = run(
        RunConfig(
            "mine:Mine", "world:suite", policy_args=(f"leave={away}",), episodes=1, out="here", record_actions="a.jsonl"
        )
    )
    assert (outcome.judged, str(outcome.path), Path.cwd()) == (2, "here", mine)
    assert (mine / "here" / "episodes.jsonl").is_file()
    assert (mine / "a.jsonl").is_file()
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_files_are_found_whatever_their_code_does_to_the_working_folder(workers: str, mine: Path) -> None:
    (mine / "away").mkdir()
    with (mine / "mine.py").open("a", encoding="utf-8") as code:
        code.write("os.chdir('away' if os.path.isdir('away') else '.')\n")
    outcome = run(RunConfig("mine.py", "world.py", episodes=1, out="r", workers=workers))
    assert (outcome.judged, Path.cwd()) == (2, mine)


def test_the_policies_of_a_duel_start_in_the_same_folder(mine: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    leave = (f"leave={away}",)
    duel(DuelConfig("mine.py", "mine.py:Mine", suite="world.py", policy_args_a=leave, episodes=1, out="d"))
    assert (mine / "d").is_dir()
    assert list(away.iterdir()) == []


def test_a_working_folder_that_was_deleted_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(TOY) == 64
    assert "The working folder was deleted" in told(capsys)


def test_what_is_printed_at_exit_and_past_python_is_no_result(mine: Path) -> None:
    with (mine / "mine.py").open("a", encoding="utf-8") as code:
        code.write(LATE)
    done = command("vla-bench run --policy ./mine.py --suite ./world.py --task 0 --episodes 1 --json --out r")
    assert json.loads(done.stdout)["overall"]["episodes"] == 1
    for said in ("at exit", "at exit below", "from a child", "in C", "to the original"):
        assert f"{said}\n" in done.stderr


@pytest.mark.parametrize("place", ["import", "make", "infer", "suite", "scene"])
def test_a_panic_that_is_no_exception_ends_in_a_sentence(
    place: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "mine_panics.py").write_text(PANICS.replace("PLACE", place), encoding="utf-8")
    code = main(["run", "--policy", "mine_panics.py", "--suite", "mine_panics.py:suite", "--episodes", "1"])
    said = capsys.readouterr().err
    assert code == (64 if place in ("import", "make", "suite") else 4)
    assert "Panic" in said
    assert "unwrap on None" in said
    assert "Traceback" not in said


def test_an_error_that_cannot_say_itself_is_told_by_its_kind() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert (in_a_line(Mute()), in_a_line(MemoryError())) == ("Mute", "MemoryError")
    assert in_a_line(ValueError("no\njoint.")) == "ValueError: no joint"
    assert len(in_a_line(ValueError("x" * 9999))) < 1100


def test_what_broke_in_vla_bench_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def panic(arguments: list[str]) -> int:
        raise BaseException("panic")

    monkeypatch.setattr("vla_bench.cli._dispatch", panic)
    assert main(["list", "suites"]) == 70
    assert "panic" in capsys.readouterr().err


def test_a_neighbour_that_is_no_python_ends_no_run(mine: Path) -> None:
    (mine / "broken.py").write_text("def", encoding="utf-8")
    with (mine / "mine.py").open("a", encoding="utf-8") as code:
        code.write("try:\n    import broken\nexcept SyntaxError:\n    pass\n")
    assert run(RunConfig("mine.py", "world.py", episodes=1)).judged == 2


def test_json_is_all_that_is_printed_to_standard_output(mine: Path) -> None:
    line = "vla-bench run --policy ./mine.py:Mine --suite ./world.py --task 0 --episodes 2 --json --out r"
    done = command(line)
    assert json.loads(done.stdout)["overall"]["episodes"] == 2
    assert "said in Python" in done.stderr
    assert "said below Python" in done.stderr


def test_windows_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["list", "suites"]) == 64
    assert "runs on Linux and macOS; on Windows it runs in WSL" in told(capsys)


WINDOWS = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import fakes, vla_bench.doctor.machine, vla_bench.runner, vla_bench.cli
from vla_bench.config import RunConfig
try:
    vla_bench.runner.run(RunConfig("fakes:Walker", "fakes:suite", out=sys.argv[1]))
except vla_bench.errors.UsageError as error:
    print(error)
sys.platform = "win32"
sys.exit(vla_bench.cli.main(["list", "suites"]))
"""


def test_without_the_modules_that_windows_lacks_everything_is_imported_and_says_where_it_runs(tmp_path: Path) -> None:
    done = command(f"{sys.executable} -c '{WINDOWS}' {tmp_path}/run")
    said = "vla-bench runs on Linux and macOS; on Windows it runs in WSL (the Windows Subsystem for Linux).\n"
    assert (done.returncode, done.stdout, done.stderr) == (64, said, f"vla-bench: {said}")


@pytest.mark.parametrize("rate", [-1e6, -1000.0, -0.5, 0.01, 0.5, 1000.0, 1e6])
def test_ensemble_weights_neither_overflow_nor_vanish(rate: float) -> None:
    predictions = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for weights in (TemporalEnsemble(rate).weights(predictions), AdaptiveEnsemble(rate).weights(predictions)):
        assert weights.sum() == pytest.approx(1.0)
    if abs(rate) < 1:
        plain = np.exp(-rate * np.arange(7))
        assert np.array_equal(TemporalEnsemble(rate).weights(predictions), plain / float(plain.sum()))


@pytest.mark.parametrize(
    "forms", [("./mine.py:Mine", "./world.py:suite"), ("{}/mine.py", "{}/world.py"), ("mine.py", "world:suite")]
)
def test_a_policy_or_suite_is_named_by_its_file(forms: tuple[str, str], mine: Path) -> None:
    policy, suite = (form.format(mine) for form in forms)
    outcome = run(RunConfig(policy, suite, task=("0",), episodes=1))
    assert outcome.judged == 1
    assert outcome.path.name.startswith("mine" if "Mine" not in policy else "mine.Mine")


def test_workers_find_a_file_too(mine: Path) -> None:
    assert run(RunConfig("./mine.py", "./world.py", episodes=2, workers="2", out="w")).judged == 4


def test_folders_of_runs_keep_their_names() -> None:
    assert folder_name("fakes:Walker") == "fakes.Walker"
    assert folder_name("/abs/my_policy.py:Mine") == "my_policy.Mine"
    assert folder_name("./my_suite.py") == "my_suite"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("ws://localhost:8000", "is a server's address; clients of servers are not built in"),
        ("http://h", "is a server's address"),
        ("localhost:8000", "is a server's address"),
        ("[::1]:8000", "is a server's address"),
        ("file:///mine.py", "there is no file"),
        (":x", "should be module:Class or FILE.py:Class"),
        ("mine:", "should be module:Class or FILE.py:Class"),
        ("functools:partial", "partial in module functools is no policy"),
        ("mine:np", "np in module mine is no policy but module"),
        ("mine:SPEED", "is no policy but float"),
        ("mine:PolicySpec", "it has no reset and no infer"),
        ("mine:Min", "Did you mean 'Mine'? Known: Mine."),
        ("none.py", "there is no file"),
        ("gaits.py", "Say which policy of"),
        ("broken.py", "cannot be imported: SyntaxError"),
        ("broken:Mine", "broken.py, line 1)."),
        ("leaves.py", "cannot be imported: SystemExit"),
    ],
)
def test_what_is_no_policy_ends_in_a_sentence(
    policy: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "broken.py").write_text("def", encoding="utf-8")
    (mine / "leaves.py").write_text("raise SystemExit(0)", encoding="utf-8")
    assert main(["run", "--policy", policy, "--suite", "fakes:suite", "--out", "r"]) == 64
    assert said in told(capsys)


def test_one_broken_plug_in_takes_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "plugs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 1.0\n", encoding="utf-8")
    points = (
        "raises = raising:suite\nabsent = no_such_module:suite\nnonsense = nonsense:suite\ntiny = fakes:suite\nbad = :"
    )
    text = f"[vla_bench.suites]\n{points}\ngood = fakes:suite\n[vla_bench.policies]\nabsent = no_such_module:P\n"
    (package / "entry_points.txt").write_text(text, encoding="utf-8")
    (tmp_path / "raising.py").write_text("raise RuntimeError('no licence')\n", encoding="utf-8")
    (tmp_path / "nonsense.py").write_text("def suite(): return 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["list", "suites"]) == main(["list", "policies"]) == main(["list", "suites", "--json"]) == 0
    printed = capsys.readouterr().out
    for why in ("no licence", "no module 'no_such_module'", "calls itself 'tiny'", "expected module:attribute"):
        assert why in printed
    assert "libero_10" in printed
    assert main(["run", "--policy", "zero", "--suite", "raises"]) == 64
    assert "no licence" in told(capsys)
    assert run(RunConfig("fakes:Walker", "good", task=("0",), episodes=1, out=str(tmp_path / "r"))).judged == 1
    found = [check.detail for check in doctor._plugins()]
    assert any("no licence" in detail for detail in found)


@pytest.mark.parametrize(("file", "key"), [("mine.py", "code"), ("gaits.py", "imports"), ("world.py", "protocol.code")])
def test_a_run_is_not_resumed_with_other_code(file: str, key: str, mine: Path) -> None:
    config = RunConfig("mine:Mine", "world:suite", episodes=1, out="r")
    assert run(config).judged == 2
    with (mine / file).open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    with pytest.raises(UsageError, match=rf"{file} was changed after it had been imported, and what plays is the old"):
        run(config)
    forget_modules()  # as in a new process
    with pytest.raises(UsageError, match=rf"r holds another run: {key} is .* there and .* here"):
        run(config)


def test_a_worker_plays_nothing_with_other_code_than_the_run_began_with(mine: Path) -> None:
    cameras, chunking = (fakes.CAMERA,), AdaptiveEnsemble()
    one = WorkerSetup("world:suite", (), cameras, 1, chunking, Filming(), 0, str(mine), None)
    began = pool.origin_of(one)
    with (mine / "world.py").open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    rollouts = Pool([replace(one, origin=began)], LocalPolicy(fakes.Walker(fakes.suite())), 1, 1)
    with pytest.raises(UsageError, match=r"The code of 'world:suite' or .* was changed while the run was played"):
        list(rollouts.rollouts([Episode("mine", "0", 0, 0)]))


def test_a_checkpoint_that_is_written_while_it_is_read_is_refused(mine: Path) -> None:
    (mine / "weights").mkdir()
    (mine / "weights" / "a.bin").write_bytes(b"1")
    writes = POLICY.replace("if leave:", 'open(os.path.join(checkpoint, "a.bin"), "ab").write(b"2")\n        if leave:')
    (mine / "mine.py").write_text(writes, encoding="utf-8")
    with pytest.raises(UsageError, match=r"^weights was changed while it was read: run this again when nobody writes"):
        run(RunConfig("mine:Mine", "world:suite", episodes=1, out="r", checkpoint="weights"))
    assert not (mine / "r").exists()


def test_a_run_from_before_code_was_told_is_resumed(mine: Path) -> None:
    config = RunConfig("mine:Mine", "world:suite", episodes=1, out="r")
    run(config)
    info = json.loads((as_before(mine / "r") / "run.json").read_text(encoding="utf-8"))
    for key in ("imports", "content"):
        del info["identity"][key]
    del info["protocol"]["code"]
    info["protocol_hash"] = digest(info["protocol"])[:12]
    (mine / "r" / "run.json").write_text(json.dumps(info), encoding="utf-8")
    assert run(config).judged == 2


def test_a_run_from_before_the_code_of_plug_ins_was_recorded_is_resumed(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = mine / "plugs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 1.0\n", encoding="utf-8")
    (package / "entry_points.txt").write_text("[vla_bench.policies]\nwalker = mine:Mine\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(mine))
    config = RunConfig("walker", "world:suite", episodes=1, out="r")
    run(config)
    info = json.loads((as_before(mine / "r") / "run.json").read_text(encoding="utf-8"))
    assert info["identity"]["code"]
    del info["identity"]["imports"]
    info["identity"]["code"] = ""
    (mine / "r" / "run.json").write_text(json.dumps(info), encoding="utf-8")
    assert run(config).judged == 2
    with (mine / "mine.py").open("a", encoding="utf-8") as code:
        code.write("# changed\n")
    forget_modules()
    with pytest.raises(UsageError, match=r"code is .* there and .* here"):
        run(config)


def test_a_local_module_that_cannot_be_parsed_counts_by_its_content(mine: Path) -> None:
    """It may be imported inside a function that is never called, or where the error is caught."""
    with (mine / "gaits.py").open("a", encoding="utf-8") as code:
        code.write("def unused():\n    import for_python_2\n")
    (mine / "for_python_2.py").write_text("print 'hello'\n", encoding="utf-8")
    config = RunConfig("mine:Mine", "world:suite", episodes=1, out="r")
    assert run(config).judged == 2
    (mine / "for_python_2.py").write_text("print 'good-bye'\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"imports is .* there and .* here"):
        run(config)


def test_the_same_weights_are_one_checkpoint_however_their_path_is_written(mine: Path) -> None:
    (mine / "ck").mkdir()
    (mine / "ck" / "weights").write_text("1", encoding="utf-8")
    for path in ("ck", "./ck", "ck/", str(mine / "ck")):
        assert run(RunConfig("mine:Mine", "world:suite", checkpoint=path, episodes=1, out="r")).judged == 2
    (mine / "ck" / ".git").mkdir()
    (mine / "ck" / ".git" / "HEAD").write_text("main", encoding="utf-8")
    assert run(RunConfig("mine:Mine", "world:suite", checkpoint="ck", episodes=1, out="r")).judged == 2
    (mine / "ck" / "weights").write_text("2", encoding="utf-8")
    with pytest.raises(UsageError, match="weights is"):
        run(RunConfig("mine:Mine", "world:suite", checkpoint="ck", episodes=1, out="r"))
