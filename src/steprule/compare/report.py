"""The report: one HTML page that needs nothing from outside, and no script."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from steprule.charts import figure, legend
from steprule.charts import style as charts_style
from steprule.compare.curves import picture
from steprule.compare.results import Comparison, TaskResult
from steprule.compare.run import Run
from steprule.compare.summary import Column, Row, columns, number

__all__ = ["page"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{digest}'; \
base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def page(comparison: Comparison) -> str:
    """The whole comparison as an HTML page of its own."""
    style = charts_style() + files("steprule.compare").joinpath("report.css").read_text(encoding="utf-8")
    versions = [f"{name} {comparison.machine[name]}" for name in ("steprule", "torch") if name in comparison.machine]
    date = f"{comparison.date:%Y-%m-%d %H:%M %Z}"
    parts = [f'<p class="quiet">{escape(", ".join([date, *versions]))}</p>']
    if comparison.interrupted:
        parts.append("<p><strong>Stopped before all runs were over: this is what was finished.</strong></p>")
    parts.append(_answers(comparison.results))
    parts += [_section(index, result) for index, result in enumerate(comparison.results)]
    parts.append(_conditions(comparison))
    return _PAGE.format(
        digest=b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=escape("Optimizers on " + " and ".join(result.task.name for result in comparison.results)),
        style=style,
        body="\n".join(parts),
    )


def _answers(results: Sequence[TaskResult]) -> str:
    """Who was first, task by task."""
    items = ""
    for index, result in enumerate(results):
        link = f'<a href="#task{index}">{escape(result.task.name)}</a>'
        told = result.sentence() if result.failure is None else f"Every run failed with {result.failure}"
        items += f"<li><strong>{link}: {escape(result.answer())}</strong> {escape(told)}</li>"
    return f'<ul class="answers">{items}</ul>'


def _section(index: int, result: TaskResult) -> str:
    """A task: what it is, and what came of it."""
    parts = [f'<h2 id="task{index}">{escape(result.task.name)}</h2>']
    if result.task.description:
        parts.append(f"<p>{escape(result.task.description)}</p>")
    parts.append(f'<p class="quiet">{escape(_facts(result))}</p>')
    if result.failure is None:
        parts += _results(index, result)
    trouble = [run for run in result.runs if run.status != "finished"]
    if trouble:
        parts.append(f"<h3>Runs that did not finish</h3><ul>{''.join(map(_trouble, trouble))}</ul>")
    return "\n".join(parts)


def _results(index: int, result: TaskResult) -> list[str]:
    """The tables and the charts."""
    parts = [_tables(result.ranked(), result.by, {row.optimizer for row in result.leaders()})]
    drawn = picture(result)
    if drawn is not None:
        charts = "".join(
            figure(chart, first=2 * index + place, description=drawn.about, with_legend=False)
            for place, chart in enumerate(drawn.charts)
        )
        parts.append(
            f'{legend(drawn.charts[0])}<div class="charts">{charts}</div><p class="quiet">{escape(drawn.note)}</p>'
        )
    if result.lr_grid:
        rows = result.all_rows()
        table = _table("All learning rates", rows, [column for column in columns(rows) if column.goal])
        parts.append(f'<details class="more"><summary>All learning rates</summary>{table}</details>')
    return parts


def _facts(result: TaskResult) -> str:
    """The task's size and goal."""
    facts = [f"The model has {result.elements:,} elements in {result.parameters:,} parameters"]
    if result.batch_size is not None:
        facts.append(f"a batch has {result.batch_size:,} examples")
    budget = result.budget
    facts.append(f"a run is {budget.steps:,} steps" if budget.seconds is None else f"a run is {budget.seconds:g} s")
    return f"{', '.join(facts)}. The target is a validation loss of {number(result.target)}."


def _tables(rows: Sequence[Row], by: str, first: Collection[str]) -> str:
    """How far each optimizer came, what a step of it costs, and how to read that."""
    numbers = columns(rows)
    note = f"Numbers are medians over the seeds, with the range below. Sorted by {by} to the target."
    if len(first) > 1:
        note += " Those with a bar cannot be told apart from the first: their ranges overlap."
    goal = _table("To the target", rows, [column for column in numbers if column.goal], first)
    cost = _table("At the end, and in each step", rows, [column for column in numbers if not column.goal], brief=True)
    return f'<div class="tables">{goal}{cost}</div><p class="quiet">{escape(note)}</p>'


def _table(
    caption: str, rows: Sequence[Row], numbers: Sequence[Column], first: Collection[str] = (), brief: bool = False
) -> str:
    """A table. If it is brief, settings stand only where they tell optimizers of the same name apart."""
    names = Counter(row.name for row in rows)
    headings = ("optimizer", *(column.heading for column in numbers))
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = ""
    for index, row in enumerate(rows):
        is_told = names[row.name] > 1 or not brief
        settings = " ".join(f"<span>{_breakable(one)}</span>" for one in row.settings) if is_told else ""
        kind = ' class="first"' if row.optimizer in first else ""
        cells = "".join(
            f"<td>{_cell(cell.text, escape(cell.spread))}</td>" for cell in (one.cells[index] for one in numbers)
        )
        body += f'<tr{kind}><th scope="row">{_cell(row.name, settings)}</th>{cells}</tr>\n'
    return f"<table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(text: str, below: str) -> str:
    """A text, and HTML that stands below it."""
    return _breakable(text) + (f" <small>{below}</small>" if below else "")


_LONGEST = 18
"""The most letters that are never broken: a name of one of steprule's optimizers, or a part of a setting, has no more."""


def _breakable(text: str) -> str:
    """A text that may be broken where a reader expects it, and anywhere in a word that is longer than all of steprule's."""
    parts = re.split(r"(?<=[=_.])(?=[A-Za-z])|(?<=[,:=])(?=[A-Za-z(])", text)
    short = [part[at : at + _LONGEST] for part in parts for at in range(0, len(part), _LONGEST)]
    return "<wbr>".join(map(escape, short))


def _words(text: str) -> str:
    """A line of text whose words may be long."""
    return " ".join(map(_breakable, text.split(" ")))


def _trouble(run: Run) -> str:
    what = f"{run.optimizer} with seed {run.seed} {run.status} after {run.step_count} steps"
    return f"<li>{escape(what + (f': {run.failure}' if run.error else ''))}</li>"


def _conditions(comparison: Comparison) -> str:
    """How to run it again, and where it ran."""
    plans = {} if comparison.settings["lr_grid"] else comparison.settings["optimizers"]
    settings = {f"{task}'s optimizers": ", ".join(plan) for task, plan in plans.items()}
    facts: Mapping[str, Any] = {"date": f"{comparison.date:%Y-%m-%d %H:%M:%S %Z}", **settings, **comparison.machine}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{_words(str(value))}</dd>" for name, value in facts.items())
    return (
        f"<h2>How it was run</h2>\n<p>To run it again:</p>\n<pre><code>{_words(comparison.command)}</code></pre>\n"
        "<p>Seconds are of training on this machine, without evaluation. results.json has all curves.</p>"
        f"\n<dl>{items}<dt>threads of torch</dt><dd>{comparison.settings['threads']}</dd></dl>"
    )
