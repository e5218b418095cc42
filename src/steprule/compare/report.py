"""The report: one HTML page that needs nothing from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

from steprule.compare.results import Comparison, TaskResult
from steprule.compare.run import Run
from steprule.compare.summary import HEADINGS, Curve, Row, curve

__all__ = ["page"]

# Okabe and Ito's colours for all kinds of colour vision, without black and yellow, and a dash for each lr.
_COLOURS = ("0,114,178", "213,94,0", "0,158,115", "204,121,167", "230,159,0", "86,180,233")
_DASHES = ("solid", "dash", "dot", "dashdot")
_LOG_FROM = 8.0  # the largest loss over the smallest

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --soft: #f5f5f5; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #ddd; --paper: #161616; --line: #3a3a3a; --soft: #222; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 3rem; }}
h1 {{ font-size: 1.6rem; margin: 1rem 0 0; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .25rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: 1rem 0; width: 100%; }}
caption {{ text-align: left; padding-bottom: .5rem; }}
th, td {{ padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ font-weight: 600; }}
thead th {{ white-space: pre-line; }}
tbody th, td {{ font-weight: 400; white-space: nowrap; }}
tbody tr:first-child {{ background: var(--soft); }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-size: .875rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .875rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<script>{plotly}</script>
<script>
const figures = {figures};
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {{
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  for (const figure of figures) {{
    const axis = {{gridcolor: line, zeroline: false, linecolor: line}}, clear = "rgba(0,0,0,0)";
    Plotly.react(figure.id, figure.data, {{
      paper_bgcolor: clear, plot_bgcolor: clear, font: {{color: ink, family: "system-ui, sans-serif"}},
      modebar: {{orientation: "v", bgcolor: clear, color: line, activecolor: ink}},
      margin: {{l: 60, r: 30, t: 10, b: 45}}, hovermode: "closest",
      legend: {{orientation: "h", x: 0, y: 1.02, yanchor: "bottom", maxheight: 9999, font: {{size: 12}}}},
      xaxis: {{...axis, title: {{text: figure.x}}, rangemode: "tozero"}},
      yaxis: {{...axis, title: {{text: "validation loss"}}, ...(figure.log ? {{type: "log", dtick: "D2"}} : {{}})}},
    }}, {{responsive: true, displaylogo: false}});
  }}
}}
dark.addEventListener("change", draw);
draw();
</script>
</body>
</html>
"""


def page(comparison: Comparison) -> str:
    """The whole comparison as an HTML page of its own, about 5 MB, most of them plotly.js."""
    names = " and ".join(result.task.name for result in comparison.results)
    figures: list[dict[str, Any]] = []
    parts: list[str] = []
    if comparison.interrupted:
        parts.append("<p><strong>Stopped before all runs were over: this is what was finished.</strong></p>")
    for number, result in enumerate(comparison.results):
        parts.append(_section(number, result))
        figures += _figures(number, result)
    parts.append("<h2>Settings</h2>" + _definitions(comparison.settings))
    parts.append("<h2>Machine</h2>" + _definitions(comparison.machine))
    return _PAGE.format(
        title=escape(f"Optimizers on {names}"),
        body="\n".join(parts),
        plotly=get_plotlyjs(),
        figures=json.dumps(figures, allow_nan=False).replace("<", "\\u003c"),
    )


def _section(number: int, result: TaskResult) -> str:
    parts = [
        f"<h2>{escape(result.title())}</h2>",
        f"<p>{escape(result.sentence())}</p>",
        _table(
            result.ranked(),
            f"The median over the seeds, sorted by {result.by} to target. Seconds are of training, without evaluation.",
        ),
        '<div class="plots">',
    ]
    height = 20 + len(result.all_rows())  # the legend needs some of it
    for x in ("steps", "seconds"):
        parts.append(
            f'<figure><div id="plot-{number}-{x}" style="height: {height}rem" role="img" '
            f'aria-label="Validation loss of each optimizer against {x}; the table has the numbers."></div>'
            f"<figcaption>Validation loss against {x} of training: the median over the seeds, and from the lowest "
            "to the highest as a band.</figcaption></figure>"
        )
    parts.append("</div>")
    if result.lr_grid:
        parts.append(
            _table(result.all_rows(), "Every learning rate. The others are in the plots too: click them there.")
        )
    trouble = [run for run in result.runs if run.status != "finished"]
    if trouble:
        parts.append("<h3>Runs that did not finish</h3><ul>" + "".join(map(_trouble, trouble)) + "</ul>")
    return "\n".join(parts)


def _trouble(run: Run) -> str:
    what = f"{run.optimizer} with seed {run.seed} {run.status} after {run.step_count} steps"
    return f"<li>{escape(what + (f': {run.failure}' if run.error else ''))}</li>"


def _table(rows: Sequence[Row], caption: str) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in HEADINGS)
    body = ""
    for row in rows:
        first, *others = map(escape, row.cells())
        body += f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>\n"
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _definitions(facts: dict[str, Any]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "not given" if value is None else str(value)


def _figures(number: int, result: TaskResult) -> list[dict[str, Any]]:
    """The task's two plots, as the page's script wants them."""
    shown = {row.optimizer for row in result.ranked()}
    labels = list(dict.fromkeys(run.label for run in result.runs))  # a colour for each, the same in every task
    lrs_seen = dict.fromkeys(labels, 0)
    curves = []
    for row in sorted(result.all_rows(), key=lambda row: row.optimizer not in shown):
        round_of_colours, colour = divmod(labels.index(row.label), len(_COLOURS))
        dash = _DASHES[(round_of_colours + lrs_seen[row.label]) % len(_DASHES)]
        lrs_seen[row.label] += 1
        over_seeds = curve([run for run in result.runs if run.optimizer == row.optimizer])
        curves.append((row, _COLOURS[colour], dash, over_seeds))
    losses = [loss for *_, c in curves for loss in (*c.low, *c.high)] + [result.target]
    log = min(losses) > 0 and max(losses) / min(losses) > _LOG_FROM
    figures = []
    for x in ("steps", "seconds"):
        data = [
            trace
            for row, colour, dash, c in curves
            for trace in _traces(row, colour, dash, c, getattr(c, x), row.optimizer in shown)
        ]
        end = max((at for *_, c in curves for at in getattr(c, x)), default=1)
        line = {"width": 1, "color": "#888", "dash": "dash"}
        data.append(
            _LINES | {"name": f"target {result.target:g}", "x": [0, end], "y": [result.target] * 2, "line": line}
        )
        figures.append({"id": f"plot-{number}-{x}", "x": f"{x} of training", "log": log, "data": data})
    return figures


_LINES = {"type": "scatter", "mode": "lines"}


def _traces(row: Row, colour: str, dash: str, c: Curve, xs: list[float], shown: bool) -> list[dict[str, Any]]:
    """A curve as plotly has it: the band, and the line of the medians."""
    name = row.label if row.lr is None else f"{row.label} lr={row.lr:g}"
    common = _LINES | {
        "name": escape(name) + (f" ({row.diverged} of {row.seeds} diverged)" if row.diverged else ""),
        "legendgroup": row.optimizer,
        "visible": True if shown else "legendonly",
    }
    band = {
        "x": xs + xs[::-1],
        "y": c.high + c.low[::-1],
        "fill": "toself",
        "fillcolor": f"rgba({colour},0.2)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    line = {
        "x": xs,
        "y": [loss if math.isfinite(loss) else None for loss in c.median],
        "line": {"width": 2, "color": f"rgb({colour})", "dash": dash},
    }
    return [common | band, common | line]
