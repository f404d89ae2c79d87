"""Which renderer painted an episode is in its row, and compared by the pixels of a probe scene, not by its name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
from made_runs import INFO, as_before, made_run
from marks import slow

from vla_bench import runner
from vla_bench.cli import main
from vla_bench.compare.baseline import make_baseline, read_baseline, write_baseline
from vla_bench.config import RunConfig, digest
from vla_bench.errors import UsageError
from vla_bench.registry import make_suite, suite_names
from vla_bench.rendering import gl
from vla_bench.rendering.pixels import View, pixel_hash, views_of
from vla_bench.rendering.renderers import Drawn, between, likeness, within, without_renderer
from vla_bench.runner import run
from vla_bench.store.runs import read_episodes, read_inferences, read_info
from vla_bench.types import Camera, Quality, Suite

HERE = Path(__file__).parent.parent
EGL, OSMESA = Drawn("egl llvmpipe", "1:aaaaaaaaaaaa"), Drawn("osmesa llvmpipe", "1:aaaaaaaaaaaa")
H200, OLD_H200 = Drawn("egl NVIDIA H200", "1:bbbbbbbbbbbb"), Drawn("egl NVIDIA H200")
OLD_EGL, OLD_OSMESA = Drawn("egl llvmpipe"), Drawn("osmesa llvmpipe")


# The likeness of two renderers


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        (EGL, OSMESA, "equal"),
        (EGL, H200, "unequal"),
        (EGL, EGL._replace(render_probe="1:cccccccccccc"), "unequal"),  # another release of Mesa
        (EGL, EGL._replace(render_probe="2:aaaaaaaaaaaa"), "equal"),  # another scene: the names decide
        (H200, H200._replace(render_probe="2:bbbbbbbbbbbb"), "unknown"),
        (EGL, OLD_OSMESA, "equal"),
        (OLD_EGL, OLD_OSMESA, "equal"),
        (OLD_H200, OLD_OSMESA, "unknown"),
        (OLD_H200, H200, "unknown"),
        (OLD_H200, OLD_H200, "unknown"),
        (EGL, Drawn(), "equal"),  # nothing was painted
        (Drawn(), Drawn(), "equal"),
    ],
)
def test_probes_decide_and_without_them_names_do(a: Drawn, b: Drawn, found: str) -> None:
    assert likeness(a, b) == likeness(b, a) == found


def test_one_run_is_like_itself_and_several_renderers_may_not_be() -> None:
    assert within([OLD_H200, OLD_H200]) == "equal"
    assert within([EGL, OSMESA, Drawn()]) == "equal"
    assert within([EGL, OSMESA, H200]) == "unequal"
    assert between([EGL, Drawn()], [OSMESA, OLD_EGL]) == "equal"
    assert between([EGL], [OSMESA, H200]) == "unequal"


# The probe


def test_any_other_pixel_size_or_order_of_pictures_gives_another_hash() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[3, 5, 2] = 1
    hashes = [pixel_hash(x) for x in ([image], [other], [image.reshape(6, 4, 3)], [image, other], [other, image], [])]
    assert len(set(hashes)) == len(hashes)
    assert pixel_hash([image[::-1]]) == pixel_hash([image])


def test_a_suite_is_probed_at_the_sizes_of_its_cameras_once_per_quality() -> None:
    cameras = (Camera("a", 8, 8), Camera("b", 8, 8), Camera("c", 4, 6))
    suite = replace(fakes.suite(), cameras=cameras, mujoco_quality=(Quality(), Quality(1024, 0)))
    sizes = ((8, 8), (4, 6))
    assert views_of(suite) == tuple(View(*size, fine) for fine in (Quality(), Quality(1024, 0)) for size in sizes)
    assert views_of(fakes.suite()) == ()


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_that_mujoco_paints_has_a_probe(name: str) -> None:
    assert bool(views_of(make_suite(name))) == (name != "calvin_pybullet")


@pytest.mark.slow
@pytest.mark.sim
def test_the_probe_is_the_same_in_every_process_and_another_at_another_size_or_quality() -> None:
    backend = gl.choose_backend(os.environ)
    views = [View(64, 64), View(64, 64, Quality(1024, 0)), View(48, 64)]
    first, again, *others = [gl.probe(backend, views=[view]) for view in (views[0], *views)]
    assert first.works
    assert first == again
    assert first.renderer
    assert first.render_probe.startswith("1:")
    assert len({probe.render_probe for probe in (first, *others)}) == 3


@pytest.mark.slow
@pytest.mark.sim
def test_pictures_of_several_views_are_those_of_each_alone() -> None:
    """A greater buffer and the views painted before change nothing: suites of other cameras have comparable parts."""
    import subprocess
    import sys

    code = (
        "import os, numpy as np\n"
        "from vla_bench.rendering.gl import use_backend\n"
        "use_backend()\n"
        "from vla_bench.rendering.pixels import View, paint\n"
        "several = paint([View(32, 48), View(16, 16)]).images\n"
        "assert [image.shape for image in several] == [(32, 48, 3), (16, 16, 3)]\n"
        "alone = [paint([View(*image.shape[:2])]).images[0] for image in several]\n"
        "print(all(map(np.array_equal, alone, several)), flush=True)\n"
        "os._exit(0)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=HERE).strip() == "True"


def test_a_painter_that_does_not_work_ends_a_run_that_needs_one_before_it_begins(monkeypatch) -> None:
    monkeypatch.setattr(gl, "use_backend", lambda: "egl")
    monkeypatch.setattr(gl, "probe", lambda backend, views: gl.GlProbe(backend, works=False, error="no display"))
    gl.renderer.cache_clear()
    with pytest.raises(UsageError, match=r"Nothing can be rendered with egl.*: no display"):
        gl.renderer((View(4, 4),))
    gl.renderer.cache_clear()


# Rows


def painted_suite(name: str) -> Suite:
    """The toy, as if MuJoCo painted it."""
    return replace(fakes.suite(name), mujoco_quality=(Quality(),))


@pytest.fixture
def machine(monkeypatch):
    """A function that lets this machine paint with that renderer."""
    monkeypatch.setattr(runner, "use_backend", lambda: "egl")
    return lambda drawn: monkeypatch.setattr(runner, "renderer", lambda views: drawn if views else Drawn())


def config(out: Path, **changes: object) -> RunConfig:
    settings = {"policy": "fakes:Walker", "suite": "test_pixels:painted_suite", "task": ("east",), "episodes": 2}
    return RunConfig(**{**settings, "out": str(out), **changes})  # type: ignore[arg-type]


def drawn_in(out: Path) -> list[Drawn]:
    return [Drawn(row.renderer, row.render_probe) for row in read_episodes(out)]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_row_tells_what_painted_it(tmp_path: Path, machine, workers: str) -> None:
    machine(EGL)
    run(config(tmp_path / "run", policy="fakes:Looker", workers=workers))
    assert drawn_in(tmp_path / "run") == [EGL, EGL]


def test_the_renderer_is_no_part_of_the_protocol(tmp_path: Path, machine) -> None:
    machine(EGL)
    run(config(tmp_path / "egl", policy="fakes:Looker"))
    machine(H200)
    run(config(tmp_path / "gpu", policy="fakes:Looker"))
    egl, gpu = read_info(tmp_path / "egl"), read_info(tmp_path / "gpu")
    assert egl.protocol_hash == gpu.protocol_hash == digest(egl.protocol)[:12]
    assert "llvmpipe" not in json.dumps(egl.protocol)


def test_a_policy_that_looks_at_nothing_and_a_suite_of_no_mujoco_paint_nothing(tmp_path: Path, machine) -> None:
    machine(EGL)
    run(config(tmp_path / "blind", policy="zero"))
    run(config(tmp_path / "other", policy="fakes:Looker", suite="fakes:suite"))
    assert drawn_in(tmp_path / "blind") == drawn_in(tmp_path / "other") == [Drawn(), Drawn()]


# Older runs


OLD_PROTOCOL = {**INFO.protocol, "simulator": {"mujoco": "3.2.3", "renderer": "osmesa llvmpipe"}}


def aged(run_: Path, renderer: str = "osmesa llvmpipe") -> Path:
    """That run as it was written before rows told their renderer: it is in the protocol, and in its hash."""
    found = json.loads((as_before(run_) / "run.json").read_text())
    found["protocol"].setdefault("simulator", {})["renderer"] = renderer
    found |= {"schema": 1, "protocol_hash": digest(found["protocol"])[:12]}
    (run_ / "run.json").write_text(json.dumps(found))
    rows = [json.loads(line) for line in (run_ / "episodes.jsonl").read_text().splitlines()]
    old = [{name: row[name] for name in row if name not in Drawn._fields} for row in rows]
    (run_ / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    return run_


def test_an_older_run_is_read_as_if_it_were_written_today(tmp_path: Path, machine) -> None:
    machine(EGL)
    run(config(tmp_path / "new", policy="fakes:Looker"))
    new = read_info(tmp_path / "new")
    old = read_info(aged(tmp_path / "new"))
    assert (old.protocol, old.protocol_hash) == (new.protocol, new.protocol_hash)
    assert drawn_in(tmp_path / "new") == [OLD_OSMESA, OLD_OSMESA]
    assert len(read_inferences(tmp_path / "new")) > 0


def test_an_older_run_is_resumed_and_its_rows_still_tell_what_painted_them(tmp_path: Path, machine) -> None:
    machine(EGL)
    run(config(tmp_path / "run", policy="fakes:Looker"))
    aged(tmp_path / "run", "egl NVIDIA H200")
    outcome = run(config(tmp_path / "run", policy="fakes:Looker", episodes=3))
    assert outcome.judged == 3
    assert drawn_in(tmp_path / "run") == [OLD_H200, OLD_H200, EGL]
    run(config(tmp_path / "run", policy="fakes:Looker", episodes=4))
    assert drawn_in(tmp_path / "run") == [OLD_H200, OLD_H200, EGL, EGL]


def test_the_committed_runs_and_baselines_have_the_protocol_of_runs_made_today() -> None:
    for file in sorted(HERE.glob("reports/*/runs/*/run.json")):
        info = read_info(file)
        assert "renderer" not in info.protocol["simulator"]
        assert info.protocol_hash == digest(info.protocol)[:12]
        assert {row.renderer for row in read_episodes(file)} <= {"osmesa llvmpipe", "egl llvmpipe"}
    for file in sorted(HERE.glob("results/baselines/*.jsonl")):
        baseline = read_baseline(file)
        assert baseline.protocol_hash == digest(baseline.protocol)[:12]
        assert all("llvmpipe" in row.renderer for row in baseline.episodes)


def test_only_an_opengl_renderer_leaves_the_protocol() -> None:
    protocol = {"simulator": {"renderer": "blender 4.2", "x": "1"}}
    assert without_renderer(protocol) == (protocol, "")
    assert without_renderer({"simulator": {"renderer": "glfw AMD", "x": "1"}}) == (
        {"simulator": {"x": "1"}},
        "glfw AMD",
    )
    assert without_renderer({}) == ({}, "")


def test_a_baseline_keeps_what_painted_its_episodes(tmp_path: Path) -> None:
    write_baseline(make_baseline(made_run(tmp_path / "a", {"lift": "10"}, drawn=H200)), file := tmp_path / "b.jsonl")
    assert {(row.renderer, row.render_probe) for row in read_baseline(file).episodes} == {H200}
    old = make_baseline(aged(made_run(tmp_path / "old", {"lift": "10"})))
    assert {(row.renderer, row.render_probe) for row in old.episodes} == {OLD_OSMESA}


# Resuming


@pytest.mark.slow
def test_resuming_on_a_machine_of_other_pixels_says_so_in_one_sentence(tmp_path: Path, machine) -> None:
    said = []
    watcher = runner.Silent()
    watcher.start = lambda path, total, rows, notes: said.append(list(notes))  # type: ignore[method-assign]
    for drawn, episodes in ((EGL, 1), (OSMESA, 2), (H200, 3), (H200, 3)):
        machine(drawn)
        run(config(tmp_path / "run", policy="fakes:Looker", episodes=episodes), watcher)
    assert said[:2] == [[], []]
    assert said[2] == [
        "† Not all pictures have the same pixels (the stored episodes by egl llvmpipe (probe 1:aaaaaaaaaaaa) and "
        "osmesa llvmpipe (probe 1:aaaaaaaaaaaa); those still to play by egl NVIDIA H200 (probe 1:bbbbbbbbbbbb)): that "
        "alone can change what a policy that looks at them does."
    ]
    assert said[3] == []
    assert drawn_in(tmp_path / "run") == [EGL, OSMESA, H200]


# Comparing


def _made(path: Path, drawn: Drawn, outcomes: str = "1101", policy: str = "pi0", **changes: object) -> Path:
    info = replace(INFO, identity={**INFO.identity, "policy": policy})
    return made_run(path, {"lift": outcomes}, info=info, drawn=drawn, **changes)  # type: ignore[arg-type]


def resumed(run_: Path, drawn: Drawn) -> Path:
    """That run, its last episode rendered by another renderer."""
    *lines, last = (as_before(run_) / "episodes.jsonl").read_text().splitlines()
    other = json.loads(last) | drawn._asdict()
    (run_ / "episodes.jsonl").write_text("\n".join([*lines, json.dumps(other)]) + "\n")
    return run_


UNEQUAL = "† Not all pictures have the same pixels ("
UNKNOWN = "† Whether all pictures have the same pixels is not known ("


@pytest.fixture
def said(capsys):
    """A function that runs a command and returns its exit code and all it says."""

    def call(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.mark.parametrize(
    ("a", "b"),
    [(EGL, OSMESA), slow(EGL, OLD_OSMESA), slow(OLD_EGL, OLD_OSMESA), slow(EGL, Drawn()), slow(Drawn(), Drawn())],
)
def test_equal_pixels_are_compared_silently_whatever_paints_them(tmp_path: Path, said, a: Drawn, b: Drawn) -> None:
    first, second = _made(tmp_path / "x" / "a", a), _made(tmp_path / "x" / "b", b, policy="openvla")
    write_baseline(make_baseline(first), file := tmp_path / "base.jsonl")
    for strict in ([], ["--strict-renderer"]):
        found = [
            said("compare", first, second, *strict),
            said("check", second, "--baseline", file, *strict),
            said("leaderboard", tmp_path / "x", *strict),
        ]
        assert [code for code, _ in found] == [2, 2, 0]
        assert not any("†" in text or "rendered by" in text for _, text in found)


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (EGL, H200, UNEQUAL),
        slow(OLD_H200, OLD_OSMESA, UNKNOWN),
        slow(H200, OLD_H200, UNKNOWN),
        slow(OLD_H200, OLD_H200, UNKNOWN),
    ],
)
def test_other_pixels_are_told_and_marked_everywhere_and_refused_on_demand(
    tmp_path: Path, said, a: Drawn, b: Drawn, sentence: str
) -> None:
    first, second = _made(tmp_path / "x" / "a", a), _made(tmp_path / "x" / "b", b, policy="openvla")
    write_baseline(make_baseline(first), file := tmp_path / "base.jsonl")

    code, text = said("compare", first, second)
    assert (code, text.count(sentence)) == (2, 1)
    assert "\ntask †" in text
    assert f"A by {a}; B by {b}" in text
    assert "| task † |" in said("compare", first, second, "--markdown")[1]
    assert json.loads(said("compare", first, second, "--json")[1])["pixels"].startswith(sentence)
    code, text = said("compare", first, second, "--strict-renderer")
    assert (code, text.count(sentence)) == (3, 1)
    code, text = said("compare", first, second, "--strict-renderer", "--force")
    assert code == 2
    assert "NOT COMPARABLE, compared only because --force said so." in text

    code, text = said("check", second, "--baseline", file, "--junit", tmp_path / "junit.xml")
    assert (code, text.count(sentence)) == (2, 1)
    assert "task †" in text
    assert f"the run by {b}; the baseline by {a}" in text
    assert "Not all pictures" in (tmp_path / "junit.xml").read_text() or sentence == UNKNOWN
    code, text = said("check", second, "--baseline", file, "--strict-renderer")
    assert (code, text.count(sentence)) == (3, 1)

    code, text = said("leaderboard", tmp_path / "x")
    assert (code, text.count(sentence), text.count("===")) == (0, 1, 2)
    assert " † " in text.replace(sentence, "")
    assert "| openvla † |" in said("leaderboard", tmp_path / "x", "--markdown")[1].replace("pi0 †", "openvla †")
    for ending, mark in (("tex", r"\dag{}"), ("html", "†"), ("csv", "other_pixels")):
        said("leaderboard", tmp_path / "x", "--out", tmp_path / f"board.{ending}")
        assert mark in (tmp_path / f"board.{ending}").read_text()
    code, text = said("leaderboard", tmp_path / "x", "--strict-renderer")
    assert (code, text.count("†"), text.count("===")) == (0, 0, 4)
    assert "=== toy, rendered by " in text
    assert "Not comparable with what is rendered by " in text


def test_reports_mark_other_pixels_and_divide_them_on_demand(tmp_path: Path, said) -> None:
    for name, drawn in (("pi0", EGL), ("openvla", H200)):
        _made(tmp_path / "x" / name, drawn, policy=name)
    said("report", tmp_path / "x", "--out", tmp_path / "report")
    for name in ("report.md", "index.html"):
        page = (tmp_path / "report" / name).read_text()
        assert page.count("pictures have the same pixels") == 1
        assert page.count("pi0 †") + page.count("openvla †") >= 2  # standings and tasks
    said("report", tmp_path / "x", "--out", tmp_path / "strict", "--strict-renderer")
    page = (tmp_path / "strict" / "report.md").read_text()
    assert "†" not in page
    assert page.count("## toy, rendered by ") == 2


def test_a_run_resumed_where_pixels_differ_is_marked_by_itself(tmp_path: Path, said) -> None:
    mixed, other = resumed(_made(tmp_path / "x" / "a", EGL), H200), _made(tmp_path / "x" / "b", EGL, policy="openvla")
    code, text = said("show", mixed)
    assert (code, text.count(UNEQUAL)) == (0, 1)
    assert "task †" in text
    assert "this run by egl NVIDIA H200 (probe 1:bbbbbbbbbbbb) and egl llvmpipe (probe 1:aaaaaaaaaaaa)" in text
    assert "| task † |" in said("show", mixed, "--markdown")[1]
    assert json.loads(said("show", mixed, "--json")[1])["pixels"].startswith(UNEQUAL)
    assert "†" not in said("show", other)[1]
    text = said("leaderboard", tmp_path / "x")[1]
    assert text.count(UNEQUAL) == 1
    assert "pi0 †" in text
    assert "openvla †" not in text
    assert "task †" in said("compare", mixed, other)[1]
    text = said("leaderboard", tmp_path / "x", "--strict-renderer")[1]
    assert "3/3" not in text  # pi0 solves two of the three that llvmpipe painted, and the one that the H200 did
    assert "2/3" in text
    assert "1/1" in text


def test_two_runs_resumed_alike_compare_pair_by_pair_and_are_told_to_be_mixed(tmp_path: Path, said) -> None:
    a, b = (resumed(_made(tmp_path / name, EGL), H200) for name in "ab")
    code, text = said("compare", a, b, "--strict-renderer")
    assert code == 2
    assert text.count(UNEQUAL) == 1


def test_unchanged_bit_for_bit_stays_so_whatever_painted_it(tmp_path: Path, said) -> None:
    a, b = _made(tmp_path / "a", EGL, end="same"), _made(tmp_path / "b", H200, end="same")
    write_baseline(make_baseline(a), file := tmp_path / "base.jsonl")
    code, text = said("check", b, "--baseline", file)
    assert code == 0
    assert "Unchanged: all 4 episodes ended in the same state as in the baseline, bit for bit. † Not all" in text
    said("check", b, "--baseline", file, "--update")
    assert said("check", b, "--baseline", file, "--strict-renderer")[0] == 0


def test_episodes_for_which_nothing_was_painted_stand_in_every_table(tmp_path: Path, said) -> None:
    for name, drawn in (("pi0", EGL), ("openvla", H200), ("oracle", Drawn())):
        _made(tmp_path / name, drawn, policy=name)
    assert "oracle †" not in said("leaderboard", tmp_path)[1]
    text = said("leaderboard", tmp_path, "--strict-renderer")[1]
    assert text.count("\noracle ") == 2
    assert text.count("\npi0 ") == text.count("\nopenvla ") == 1


def test_an_older_run_is_compared_with_one_of_today(tmp_path: Path, said) -> None:
    info = replace(INFO, protocol={**INFO.protocol, "simulator": {"mujoco": "3.2.3"}})
    info = replace(info, protocol_hash=digest(info.protocol)[:12])
    new, old = (made_run(tmp_path / name, {"lift": "10"}, info=info, drawn=EGL) for name in ("new", "old"))
    write_baseline(make_baseline(old), file := tmp_path / "base.jsonl")
    header, *lines = file.read_text().splitlines()
    found = json.loads(header)
    found["protocol"]["simulator"]["renderer"] = "osmesa llvmpipe"
    found |= {"baseline": 1, "protocol_hash": digest(found["protocol"])[:12]}
    rows = [{n: v for n, v in json.loads(line).items() if n not in Drawn._fields} for line in lines]
    file.write_text("\n".join(map(json.dumps, [found, *rows])) + "\n")
    assert said("compare", new, aged(old), "--strict-renderer")[0] == 2
    code, text = said("check", new, "--baseline", file, "--strict-renderer")
    assert code != 3
    assert "†" not in text
    text = said("compare", new, aged(old, "egl NVIDIA H200"))[1]
    assert UNKNOWN in text


@pytest.mark.slow
def test_a_duel_whose_sides_were_painted_apart_says_so(tmp_path: Path, machine, said) -> None:
    arguments = ["duel", "fakes:Looker", "random", "--suite", "test_pixels:painted_suite", "--task", "east"]
    arguments += ["--out", tmp_path, "--episodes", 3]
    machine(EGL)
    assert "†" not in said(*arguments)[1]
    rows = (as_before(tmp_path / "b") / "episodes.jsonl").read_text()
    (tmp_path / "b" / "episodes.jsonl").write_text(
        "".join(json.dumps(json.loads(line) | H200._asdict()) + "\n" for line in rows.splitlines())
    )
    text = said(*arguments)[1]
    assert "† In 3 of 3 pairs the pictures of A and B are not known to have the same pixels" in text
    assert "whenever one stops †" in text
