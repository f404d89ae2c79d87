"""The report: its numbers, its escaping, its films, its size, and how it looks and behaves in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_chromium
from made_runs import INFO, as_before, call, episode, made_run, of_protocol, other_protocol
from PIL import Image

from vla_bench.cli import main
from vla_bench.report import page as report
from vla_bench.report import plots
from vla_bench.report.page import write_report
from vla_bench.report.sections import load_runs
from vla_bench.stats.rates import wilson
from vla_bench.store.runs import RunInfo, RunStore

EVIL = '</script><img src=x onerror="alert(1)">&amp;{{js}}'
VOID = {"meta", "link", "img", "input", "br"}


def of_policy(policy: str, info: RunInfo = INFO) -> RunInfo:
    return replace(info, identity={**info.identity, "policy": policy})


def two_runs(folder: Path) -> list[Path]:
    """alpha and beta on two tasks, with latencies and a broken episode."""
    alpha = made_run(folder / "a", {"lift": "11011", "door": "1111"}, info=of_policy("alpha"), latency_ms=8.0)
    beta = made_run(folder / "b", {"lift": "0001x", "door": "0110"}, info=of_policy("beta"), latency_ms=4.0)
    return [alpha, beta]


def page_of(runs: list[Path], out: Path) -> str:
    return write_report(runs, out).read_text(encoding="utf-8")


def embedded(page: str) -> list[dict[str, Any]]:
    """The tables of episodes in the page, one per section."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)]


class Tags(HTMLParser):
    """Every element of a page; complains when one is closed that was not opened last."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen = list[str](), list[tuple[str, dict[str, str | None]]]()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# Numbers


def test_the_page_the_markdown_and_the_csv_hold_the_same_right_numbers(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    for k, n in ((8, 9), (3, 8)):
        low, high = wilson(k, n)
        for text in (page, markdown):
            assert f"{k}/{n}" in text
            assert f"{100 * low:.1f} – {100 * high:.1f} %" in text
    assert "alpha solves 8 of 9 episodes: 88.9 %" in page
    assert "beta solves 3 of 8: 37.5 %. They are not told apart: +50.0 percentage points" in page
    assert "1: 33.3 – 44.4 %" in page  # the broken one and the bounds
    tasks = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tasks.csv").read_text())))
    assert [(row["policy"], row["task"], row["successes"], row["episodes"], row["broken"]) for row in tasks] == [
        ("alpha", "lift", "4", "5", "0"),
        ("beta", "lift", "1", "4", "1"),
        ("alpha", "door", "4", "4", "0"),
        ("beta", "door", "2", "4", "0"),
        ("alpha", "all 2 tasks", "8", "9", "0"),
        ("beta", "all 2 tasks", "3", "8", "1"),
    ]
    for row in tasks:
        assert (float(row["low"]), float(row["high"])) == wilson(int(row["successes"]), int(row["episodes"]))


def test_the_first_sentence_names_the_best_only_when_shared_episodes_agree(tmp_path: Path) -> None:
    easy, hard = "1" * 200, "0" * 40
    played = {
        "lazy": {"easy": easy, "hard": hard},  # more solved, but of other episodes
        "keen": {"hard": "1" * 30 + "0" * 10},
        "weak": {"easy": "0" * 200},
    }
    runs = [made_run(tmp_path / who, tasks, info=of_policy(who)) for who, tasks in played.items()]
    page = page_of(runs, tmp_path / "all")
    assert "lazy solves 200 of 240 episodes" in page
    assert "But on the episodes they share, keen does better." in page
    equal = [made_run(tmp_path / f"e{n}", {"easy": "1" * 20}, info=of_policy(f"e{n}")) for n in range(3)]
    assert "No other policy is told apart from it." in page_of(equal, tmp_path / "equal")
    clear = [*equal[:1], *(made_run(tmp_path / f"c{n}", {"easy": "0" * 20}, info=of_policy(f"c{n}")) for n in range(2))]
    assert "That is more than each of the 2 others" in page_of(clear, tmp_path / "clear")
    mixed = [*equal[:2], clear[1]]
    assert "Not told apart from it: e1." in page_of(mixed, tmp_path / "mixed")


def test_all_episodes_are_in_the_csv_and_in_the_pages_table(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "episodes.csv").read_text())))
    assert len(rows) == 18
    assert {row["success"] for row in rows} == {"True", "False", ""}
    (table,) = embedded(page)
    names, columns = table["strings"], table["columns"]
    shown = [
        (names[policy], names[task], trial, result)
        for policy, task, trial, result in zip(
            columns["policy"], columns["task"], columns["trial"], columns["result"], strict=True
        )
    ]
    codes = {"True": 1, "False": 0, "": 2}
    assert shown == [(row["policy"], row["task"], int(row["trial"]), codes[row["success"]]) for row in rows]
    differing = {
        (task, trial) for (_, task, trial, _), differs in zip(shown, columns["differs"], strict=True) if differs
    }
    assert differing == {("lift", 0), ("lift", 1), ("door", 0), ("door", 3)}  # a broken episode differs from nothing


def test_every_figure_is_there_as_png_and_svg_and_inline(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    names = {"rates", "heatmap", "solved", "latency", "time"}  # nobody timed stages
    files = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert files == {f"s1_toy_{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert page.count("<svg ") == len(names)
    assert all(f"figures/{file}" in page for file in files)


def test_latency_says_what_a_percentile_needs_instead_of_giving_it(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    assert "needs 90 calls" in page
    assert "needs 459 calls" in page


def test_protocols_have_sections_and_tables_of_their_own(tmp_path: Path) -> None:
    runs = [*two_runs(tmp_path), made_run(tmp_path / "c", {"lift": "1"}, info=of_policy("gamma", other_protocol()))]
    page = page_of(runs, tmp_path / "out")
    first, second = embedded(page)
    assert "gamma" not in first["strings"]
    assert second["strings"][0] == "gamma"
    assert page.count("<section ") == 2
    assert "Not comparable with protocol 5bbc791a8d9b: chunking.execute is null here, 4 there." in page
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "gamma" not in markdown.split("## toy, protocol `ba`")[0].split("## toy")[1]


def test_protocol_and_provenance_are_in_the_page(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    assert "RecedingHorizon" in page
    assert "abacus" in page
    assert str(tmp_path / "a") in page


def test_making_a_report_again_replaces_it(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    assert page_of(runs, tmp_path / "out") == page_of(runs, tmp_path / "out")


# Few, none and odd episodes


@pytest.mark.parametrize("verdicts", ["1", "0", "x", "0" * 20, "1" * 20, "xxx"])
def test_one_none_all_and_only_broken_episodes_make_a_page(tmp_path: Path, verdicts: str) -> None:
    page = page_of([made_run(tmp_path / "a", {"lift": verdicts})], tmp_path / "out")
    Tags(page)
    k, n = verdicts.count("1"), len(verdicts.replace("x", ""))
    low, high = wilson(k, n)
    assert f"{k}/{n}" in page
    assert f"{100 * low:.1f} – {100 * high:.1f} %" in page
    assert ("No episode has a verdict" in page) == (n == 0)
    assert not re.search(r"\bnan\b|\bNaN\b|\bNone\b", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


def evil_run(folder: Path) -> Path:
    provenance = {"command": EVIL, "machine": {"cpu": EVIL}}
    info = replace(of_protocol({EVIL: EVIL}, of_policy(EVIL)), provenance=provenance)
    with RunStore.open(folder, info) as store:
        for trial, success in enumerate((True, False, None)):
            row = episode(EVIL, trial, success)
            broken = {"error": "" if success is not None else EVIL, "message": "half \ud800 and \x00\x1b[31m"}
            row = replace(row, suite=EVIL, perturbation=EVIL, inferences=1, **broken)
            store.append(row, [replace(call(EVIL, trial, 0, 5.0), stages={EVIL: 2.0})] if success is not None else [])
    return folder


def test_names_and_messages_are_text_wherever_they_appear(tmp_path: Path) -> None:
    page = page_of([evil_run(tmp_path / "a")], tmp_path / "out")
    tags = Tags(page)
    assert not [attributes for tag, attributes in tags.seen if tag == "img" or "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in tags.seen) == 2
    assert EVIL in embedded(page)[0]["strings"]
    report_md = (tmp_path / "out" / "report.md").read_text()
    assert "<img" not in re.sub(r"```json.*?```", "", report_md, flags=re.DOTALL).replace("\\<img", "")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    page = page_of(two_runs(tmp_path), tmp_path / "out")
    for tag, attributes in Tags(page).seen:
        links = [attributes.get(name) or "" for name in ("src", "href", "xlink:href")]
        assert not [link for link in links if "//" in link], tag
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


# Films


def film_of(run: Path, name: str, strip: bool = True, size: tuple[int, int] = (1600, 180)) -> None:
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / f"{name}.mp4").write_bytes(b"film")
    if strip:
        Image.effect_noise(size, 90).convert("RGB").save(run / "videos" / f"{name}.png")


def test_failures_are_shown_as_strips_that_link_to_their_films(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run's #1", {"lift": "0010"})
    film_of(run, "lift_0")
    film_of(run, "lift_1", strip=False)
    tags = Tags(page_of([run], tmp_path / "reports" / "out"))
    films = [attributes["href"] for tag, attributes in tags.seen if tag == "a" and attributes.get("class") == "film"]
    prefix = "../../run%27s%20%231/videos"
    assert films == [f"{prefix}/lift_0.mp4", f"{prefix}/lift_1.mp4"]  # lift_3 has no film
    (picture,) = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert str(picture["src"]).startswith("data:image/jpeg;base64,")
    assert "trial 0" in str(picture["alt"])


@pytest.mark.parametrize("video", ["../secret.mp4", "/etc/hostname", "javascript:alert(1)", "videos", "gone.mp4"])
def test_a_film_outside_its_run_or_that_is_not_there_is_not_linked(tmp_path: Path, video: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"film")
    with RunStore.open(tmp_path / "run", INFO) as store:
        store.append(replace(episode("lift", 0, success=False), video=video), [])
    (tmp_path / "run" / "videos").mkdir()
    page = page_of([tmp_path / "run"], tmp_path / "out")
    assert 'class="film"' not in page
    assert embedded(page)[0]["columns"]["film"] == [-1]


def test_many_big_strips_keep_the_page_below_5_mb_and_every_task_has_a_turn(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", {f"task_{task}": "0" * 12 for task in range(5)})
    film_of(run, "task_0_0", size=(4096, 512))
    for task, trial in itertools.product(range(5), range(12)):
        film_of(run, f"task_{task}_{trial}", strip=False)
        if (task, trial) != (0, 0):
            shutil.copy(run / "videos" / "task_0_0.png", run / "videos" / f"task_{task}_{trial}.png")
    page = page_of([run], tmp_path / "out")
    assert len(page) < 5_000_000
    captions = re.findall(r"<figcaption>pi0: (task_\d), trial (\d+)", page)
    assert len(captions) == report.MOST_FILMS
    assert captions[:6] == [*((f"task_{task}", "0") for task in range(5)), ("task_0", "1")]


# The command


def test_the_command_takes_runs_and_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two_runs(tmp_path / "results")
    out = tmp_path / "reports" / "new"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    first = (out / "index.html").read_text()
    assert main(["report", str(tmp_path / "results"), "--out", str(out)]) == 0
    assert (out / "index.html").read_text() == first


@pytest.mark.parametrize(
    "kind", ["nothing there", "no run", "empty run", "corrupt line", "no runs named", "no out", "out"]
)
def test_what_cannot_be_reported_is_one_sentence_and_exit_64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    if kind == "no run":
        run.mkdir()
    elif kind == "empty run":
        RunStore.open(run, INFO).close()
    elif kind != "nothing there":
        made_run(run, {"lift": "101"})
    if kind == "corrupt line":
        lines = (as_before(run) / "episodes.jsonl").read_bytes().splitlines(keepends=True)
        (run / "episodes.jsonl").write_bytes(lines[0] + b'{"suite": \n' + lines[2])
    if kind == "out":
        out.write_text("a file")
    arguments = [] if kind == "no runs named" else [str(run)]
    assert main(["report", *arguments, *([] if kind == "no out" else ["--out", str(out)])]) == 64
    said = capsys.readouterr().err
    assert said.startswith("vla-bench: ")
    assert said.count("\n") == 1
    assert kind == "out" or not out.exists(), "nothing is written before all runs are read"


# Colours


def swatches(section: str) -> dict[str, str]:
    """Policy -> the number of its colour in the table."""
    return {
        name: n
        for n, name in re.findall(r'class="swatch" style="background:var\(--series-(\d)\)"></span>(\w+)', section)
    }


def strokes(section: str) -> list[dict[str, str]]:
    """The same of the legend of every figure that draws policies: in a legend a handle comes before its name."""
    found = []
    for figure in re.findall(r"<figure.*?</figure>", section, re.DOTALL):
        last, told = "", dict[str, str]()
        for number, name in re.findall(r"var\(--series-(\d)\)|<text[^>]*>(\w+)</text>", figure):
            last = number or last
            if name in ("alpha", "beta", "gamma", "delta"):
                told[name] = last
        if "--series" in figure:
            found.append(told)
    return found


def test_a_policy_has_one_colour_in_the_tables_and_the_figures_of_all_suites(tmp_path: Path) -> None:
    ranks = {"alpha": ("1111", "10"), "beta": ("1110", "11"), "gamma": ("1000", "")}
    runs = []
    for policy, (here, there) in ranks.items():
        runs.append(made_run(tmp_path / f"{policy}1", {"lift": here}, info=of_policy(policy), latency_ms=5.0))
        other = of_policy(policy, other_protocol())
        if there:
            runs.append(made_run(tmp_path / f"{policy}2", {"lift": there}, info=other, latency_ms=5.0))
    delta = of_policy("delta", other_protocol())
    runs.append(made_run(tmp_path / "delta", {"lift": "11"}, info=delta, latency_ms=5.0))
    page = page_of(runs, tmp_path / "out")
    first, second = page.split('id="s2"')
    assert swatches(first) == {"alpha": "0", "beta": "1", "gamma": "2"}
    assert swatches(second) == {"beta": "1", "delta": "3", "alpha": "0"}
    assert strokes(first) == [swatches(first)] * 3
    assert strokes(second) == [swatches(second)] * 3


def test_one_entrant_under_two_labels_keeps_its_colour_and_ten_in_a_section_differ_in_colour_or_marker(
    tmp_path: Path,
) -> None:
    def trained(checkpoint: str, info: RunInfo = INFO) -> RunInfo:
        return replace(info, identity={**info.identity, "policy": "mlp", "checkpoint": checkpoint})

    for name, info in {
        "a1": trained("a"), "b1": trained("b"), "a2": trained("a", other_protocol()),
    }.items():  # fmt: skip
        made_run(tmp_path / "two" / name, {"lift": "1" if name[0] == "a" else "0"}, info=info)
    first, second = (chapter.looks for chapter in report._chapters(load_runs([tmp_path / "two"])))
    assert first == {"mlp a": 0, "mlp b": 1}
    assert second == {"mlp": 0}
    for n in range(10):
        made_run(tmp_path / "ten" / str(n), {"lift": "1"}, info=of_policy(f"p{n}"))
    (many,) = (chapter.looks for chapter in report._chapters(load_runs([tmp_path / "ten"])))
    assert len({plots._look(n) for n in many.values()}) == 10


# In a browser

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with Browser(executable) as opened:
        yield opened


@pytest.fixture(scope="module")
def big_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 10,400 episodes of two policies on 26 tasks of long names."""
    folder = tmp_path_factory.mktemp("big")
    source = two_runs(folder / "small")
    for number, run in enumerate(source):
        row = json.loads((as_before(run) / "episodes.jsonl").read_text().splitlines()[0])
        rows = [
            row | {"task": f"put_object_{task:02}_{'and_turn_it_around_' * 4}", "trial": trial}
            | {"success": (task * trial) % 7 > 2 * number, "steps": 7 + trial}
            for task in range(26) for trial in range(200)
        ]  # fmt: skip
        (run / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_report(source, folder / "out")


@pytest.mark.parametrize(
    ("size", "scheme"),
    [("desktop", "light"), ("phone", "dark")]
    + [pytest.param(*other, marks=pytest.mark.slow) for other in (("desktop", "dark"), ("phone", "light"))],
)
def test_the_page_opens_without_complaint_in_every_size_and_scheme(
    tmp_path: Path, browser: Browser, size: str, scheme: str
) -> None:
    runs = [*two_runs(tmp_path), evil_run(tmp_path / "evil")]
    film_of(runs[1], "lift_0")
    page = write_report(runs, tmp_path / "out")
    width, height = SIZES[size]
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, width, height, scheme, mobile=size == "phone")
    picture = browser.picture(tmp_path / "page.png", whole=True)
    assert browser.errors == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "data"}
    assert sum(url.startswith("file") for url in browser.requests) == 1
    assert browser.run("document.documentElement.scrollWidth") <= width, "the page itself must not scroll sideways"
    paper = Image.open(picture).convert("L").getpixel((2, 2))
    assert isinstance(paper, int)
    assert (paper > 240) == (scheme == "light")
    assert browser.run("document.querySelectorAll('.episodes tbody tr').length") == 18 + 3


def test_ten_thousand_episodes_are_drawn_as_they_are_scrolled_to(browser: Browser, big_page: Path) -> None:
    assert big_page.stat().st_size < 5_000_000
    browser.errors.clear()
    browser.open(big_page, 1280, 900)
    rows = "document.querySelectorAll('.episodes tbody tr').length"
    assert browser.run("document.querySelector('output').value") == "10,400 of 10,400 episodes"
    before = browser.run(rows)
    assert 0 < before <= 300
    browser.run(
        "new Promise(done => { const box = document.querySelector('.rows'); "
        "box.scrollTop = box.scrollHeight; setTimeout(done, 300); })"
    )
    assert before < browser.run(rows) <= 600
    assert browser.errors == []


def test_the_table_of_episodes_sorts_and_filters(browser: Browser, big_page: Path) -> None:
    browser.errors.clear()
    browser.open(big_page, 1280, 900)

    def column(n: int) -> list[str]:
        return list(browser.run(f"[...document.querySelectorAll('tbody tr td:nth-child({n})')].map(x => x.innerText)"))

    def click(name: str) -> None:
        browser.run(f"[...document.querySelectorAll('.rows th button')].find(b => b.innerText == '{name}').click()")

    def choose(selector: str, value: str) -> str:
        change = "x.dispatchEvent(new Event('input', {bubbles: true}))"
        return str(
            browser.run(
                f"(() => {{ const x = document.querySelector(`{selector}`); x.value = `{value}`; {change}; "
                "return document.querySelector('output').value })()"
            )
        )

    click("steps")
    rising = browser.run("[...document.querySelectorAll('.rows tbody tr td:nth-child(6)')].map(x => +x.innerText)")
    assert rising == sorted(rising)
    click("steps")
    falling = browser.run("[...document.querySelectorAll('.rows tbody tr td:nth-child(6)')].map(x => +x.innerText)")
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 206
    assert choose(".controls input[type=search]", "OBJECT_07 turn").startswith("400 of")
    assert choose("select[aria-label='all policies']", "beta").startswith("200 of")
    failed = sum((7 * trial) % 7 <= 2 for trial in range(200))
    assert choose("select[aria-label='all results']", "failure").startswith(f"{failed} of")
    assert choose(".controls input[type=search]", "nowhere").startswith("0 of")
    assert browser.errors == []


def test_the_page_prints_on_white_with_its_figures_whole(tmp_path: Path, browser: Browser, big_page: Path) -> None:
    browser.open(big_page, 1280, 900, scheme="dark")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = "[...document.querySelectorAll('.drawing')].filter(x => getComputedStyle(x).overflow != 'visible').length"
    assert browser.run(cut) == 0
    browser.call("Emulation.setEmulatedMedia", media="")


def test_a_broken_script_would_be_noticed(tmp_path: Path, browser: Browser) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>undefinedFunction()</script><script>console.error('no')</script><img src='gone.png'>")
    browser.errors.clear()
    browser.open(bad, 800, 600)
    assert len(browser.errors) >= 3
