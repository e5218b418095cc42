"""A report as a table, JSON, JUnit's XML and Markdown."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as Xml

from steprule.check.claims import Subject
from steprule.check.runner import EXPECTED, FAILED, SKIPPED, Result

WIDTH = 100


@dataclass(frozen=True)
class Report:
    """What came of all checks of an optimizer.

    Attributes:
        subject: what was checked.
        results: of each check, in order.
        seed: that torch was seeded with before each.
        versions: of Python, torch and the optimizer's package.
        date: when.
    """

    subject: Subject
    results: Sequence[Result]
    seed: int
    versions: dict[str, str]
    date: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    @property
    def passed(self) -> bool:
        """Whether nothing has failed."""
        return all(result.status != FAILED for result in self.results)

    @property
    def counts(self) -> str:
        """How many checks passed, failed, and so on, in words."""
        counted = Counter(result.status for result in self.results)
        words = {"passed": "passed", FAILED: "failed", EXPECTED: "failed as expected", SKIPPED: "skipped"}
        return ", ".join(f"{counted[status]} {word}" for status, word in words.items() if counted[status])

    def __str__(self) -> str:
        return table(self)


def head(report: Report) -> str:
    """What was checked, with which releases."""
    settings = "".join(f" {name}={value!r}" for name, value in report.subject.settings.items())
    releases = ", ".join(f"{name} {release}" for name, release in report.versions.items())
    return f"{report.subject.place}{settings} ({releases}; seed {report.seed}; {report.date[:10]})"


def table(report: Report, width: int = WIDTH) -> str:
    """A line for each check, then a reproducer for each failure."""
    longest = max((len(result.check.name) for result in report.results), default=0)
    lines, tier = [head(report)], ""
    for result in report.results:
        if result.check.tier != tier:
            tier = result.check.tier
            lines += ["", tier]
        first = f"  {result.check.name:{longest}}  {result.status:8} "
        text = textwrap.fill(result.reason, max(width - len(first), 30)).split("\n")
        lines.append((first + text[0]).rstrip())
        lines += [" " * len(first) + line for line in text[1:]]
    for result in report.results:
        if result.status == FAILED and result.reproducer:
            lines += ["", f"{result.check.name}: {result.check.says}", ""]
            lines += [f"    {line}" for line in result.reproducer.split("\n")]
    return "\n".join([*lines, "", report.counts])


def as_json(report: Report) -> str:
    """All that is known."""
    rows = [
        {"check": one.check.name, "tier": one.check.tier, "says": one.check.says, "status": one.status,
         "reason": one.reason, "reproducer": one.reproducer}
        for one in report.results
    ]  # fmt: skip
    settings = {name: repr(value) for name, value in report.subject.settings.items()}
    told: dict[str, Any] = {"optimizer": report.subject.place, "settings": settings, "versions": report.versions}
    return json.dumps(
        {**told, "seed": report.seed, "date": report.date, "passed": report.passed, "results": rows}, indent=2
    )


def as_junit(report: Report) -> str:
    """What services for continuous integration read."""
    failures = sum(result.status == FAILED for result in report.results)
    skipped = sum(result.status in (SKIPPED, EXPECTED) for result in report.results)
    counts = {"tests": str(len(report.results)), "failures": str(failures), "skipped": str(skipped)}
    suite = Xml.Element(
        "testsuite", {"name": f"steprule check {report.subject.place}", "timestamp": report.date, **counts}
    )
    for result in report.results:
        case = Xml.SubElement(
            suite, "testcase", {"classname": f"{report.subject.name}.{result.check.tier}", "name": result.check.name}
        )
        if result.status == FAILED:
            Xml.SubElement(case, "failure", {"message": result.reason}).text = result.reproducer
        elif result.status in (SKIPPED, EXPECTED):
            Xml.SubElement(case, "skipped", {"message": result.reason})
    return Xml.tostring(suite, encoding="unicode")


def as_markdown(report: Report) -> str:
    """A line on the whole, a table, and the reproducers."""
    lines = [f"**{report.subject.name}**: {report.counts}. {head(report)}", "", "| check | result | |", "|---|---|---|"]
    lines += [f"| {one.check.name} | {one.status} | {cell(one.reason)} |" for one in report.results]
    for result in report.results:
        if result.status == FAILED and result.reproducer:
            lines += ["", f"`{result.check.name}`: {result.check.says}", "", "```python", result.reproducer, "```"]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".json": as_json, ".xml": as_junit, ".md": as_markdown, ".txt": table,
}  # fmt: skip
"""By the ending of the file."""
