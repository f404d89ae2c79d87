"""A gate's verdict in the words of CI: JUnit XML, and the workflow commands of GitHub."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vla_bench.compare.regression import Gate, GateRow, Verdict, latency_sentence, listed, task_story
from vla_bench.text import visible


def junit(gate: Gate) -> str:
    """JUnit XML: a test case per task, one for all together and, with a limit, one for the latency."""
    cases = [_task_case(gate, row) for row in gate.tasks]
    overall: Verdict = "pass" if gate.passed else gate.verdict
    cases.append(_case(gate.suite, "overall", verdict=overall, story=[gate.message, *listed(gate)]))
    if gate.latency.limit is not None and gate.overall is not None:
        timed: Verdict = "pass" if gate.passed else gate.latency.verdict
        cases.append(_case(gate.suite, "latency", verdict=timed, story=[latency_sentence(gate.latency)]))
    suite = Element("testsuite", name="vla-bench check", tests=str(len(cases)))
    suite.set("time", f"{gate.overall.seconds if gate.overall else 0:.3f}")
    for tag in ("failure", "error"):
        suite.set(f"{tag}s", str(sum(case.find(tag) is not None for case in cases)))
    suite.extend(cases)
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(gate: Gate) -> list[str]:
    """Workflow commands that GitHub shows on the commit: one for the verdict, one for every task that regressed.

    None for a pass, unless the run is not complete.
    """
    if gate.verdict == "pass":
        return [_command("warning", "vla-bench: pass", [gate.message])] if gate.incomplete else []
    level = "warning" if gate.verdict == "undecided" else "error"
    regressed = [row for row in gate.tasks if row.verdict == "regression"]
    return [
        _command(level, f"vla-bench: {gate.verdict}", [gate.message]),
        *(_command("error", f"vla-bench: {row.task}", task_story(gate, row)) for row in regressed),
    ]


def _command(level: str, title: str, lines: Sequence[str]) -> str:
    """Escaped as actions/toolkit does (packages/core/src/command.ts)."""

    def data(text: str) -> str:
        return visible(text).replace("%", "%25")

    told = data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={told}::{'%0A'.join(map(data, lines))}"


def _task_case(gate: Gate, row: GateRow) -> Element:
    """An undecided task is no failure of its own: with few episodes per task most are."""
    verdict: Verdict = "regression" if row.verdict == "regression" else "pass"
    return _case(gate.suite, row.task, seconds=row.seconds, verdict=verdict, story=task_story(gate, row))


def _case(suite: str, name: str, *, seconds: float = 0.0, verdict: Verdict, story: Sequence[str]) -> Element:
    """A test case that tells its story: as a failure or an error unless the verdict is a pass."""
    case = Element("testcase", classname=visible(suite), name=visible(name), time=f"{seconds:.3f}")
    if verdict == "pass":
        told = SubElement(case, "system-out")
    else:
        tag = "error" if verdict == "not comparable" else "failure"
        told = SubElement(case, tag, message=visible(story[0]), type=verdict)
    told.text = "\n".join(map(visible, story))
    return case
