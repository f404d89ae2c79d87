"""A gate's verdict in the words of CI: JUnit XML, and the workflow commands of GitHub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from .regression import Gate, GateRow, Verdict, latency_sentence, listed, task_story


def junit(gate: Gate) -> str:
    """JUnit XML: a test case per task, one for all together and, with a limit, one for the latency."""
    cases = [_task_case(gate, row) for row in gate.tasks] + [_overall_case(gate)]
    if gate.latency.limit is not None and gate.overall is not None:
        cases.append(_case(gate.suite, "latency", 0.0, _fault(gate.latency.verdict), latency_sentence(gate.latency)))
    counts = {f"{tag}s": str(sum(case.find(tag) is not None for case in cases)) for tag in ("failure", "error")}
    seconds = f"{gate.overall.seconds:.3f}" if gate.overall else "0"
    suite = ElementTree.Element("testsuite", name="vla-bench check", tests=str(len(cases)), time=seconds, **counts)
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(gate: Gate) -> list[str]:
    """Workflow commands that GitHub shows on the commit: one for the verdict, one for every task that regressed."""
    if gate.passed:
        return []
    level = "warning" if gate.verdict == "undecided" else "error"
    regressed = [row for row in gate.tasks if row.verdict == "regression"]
    return [
        _command(level, f"vla-bench: {gate.verdict}", gate.message),
        *(_command("error", f"vla-bench: {row.task}", "\n".join(task_story(gate, row))) for row in regressed),
    ]


def _command(level: str, title: str, message: str) -> str:
    """Escaped as actions/toolkit does (packages/core/src/command.ts)."""

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return f"::{level} title={data(title).replace(':', '%3A').replace(',', '%2C')}::{data(message)}"


def _task_case(gate: Gate, row: GateRow) -> ElementTree.Element:
    """An undecided task is no failure of its own: with few episodes per task most are."""
    fault = "failure" if row.verdict == "regression" else ""
    first, *others = task_story(gate, row)
    return _case(gate.suite, row.task, row.seconds, fault, first, others, row.verdict)


def _overall_case(gate: Gate) -> ElementTree.Element:
    return _case(gate.suite, "overall", 0.0, _fault(gate.verdict), gate.message, listed(gate), gate.verdict)


def _fault(verdict: Verdict) -> str:
    return {"pass": "", "not comparable": "error"}.get(verdict, "failure")


def _case(
    suite: str, name: str, seconds: float, fault: str, message: str, details: Sequence[str] = (), kind: str = ""
) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_xml(suite), name=_xml(name), time=f"{seconds:.3f}")
    if fault:
        told = ElementTree.SubElement(case, fault, message=_xml(message), type=kind or "latency")
    else:
        told = ElementTree.SubElement(case, "system-out")
    told.text = _xml("\n".join([message, *details]))
    return case


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
