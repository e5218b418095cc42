"""Losses after training, with their spread."""

from __future__ import annotations

import math
import statistics

from record import Record
from tables import Columns, source, table

from figures.common import Records, format_of, rows_of, text


def losses_of(row: Record) -> list[float]:
    """The final losses of all seeds; one that was not finite is stored as null."""
    return [math.inf if loss is None else loss for loss in row["losses"]]


def spread(row: Record) -> str:
    """The median and the range."""
    losses = losses_of(row)
    if not math.isfinite(min(losses)):
        return "diverged"
    return f"{_loss(statistics.median(losses))} ({_loss(min(losses))} to {_loss(max(losses))})"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def training(records: Records) -> str:
    """Every rule on both tasks that `steprule compare` ships."""
    record = records["training"]
    facts = record["facts"]
    tasks = list(facts["steps"])
    of_task = {task: {row["rule"]: row for row in rows_of(record, task=task)} for task in tasks}
    rank = {
        task: sorted(rows, key=lambda name: statistics.median(losses_of(rows[name]))) for task, rows in of_task.items()
    }
    names = sorted(of_task[tasks[0]], key=lambda name: sum(rank[task].index(name) for task in tasks))
    columns: Columns = {
        "rule": lambda name: name,
        "state bytes an element": lambda name: _bytes(of_task[tasks[0]][name]),
    }
    for task, rows in of_task.items():
        columns = {
            **columns,
            f"{task}: lr": lambda name, rows=rows: f"{rows[name]['lr']:.3g}{'*' * rows[name]['at_the_edge']}",
            f"{task}: loss, median (range)": lambda name, rows=rows: spread(rows[name]),
        }
    steps = " and ".join(f"{steps} steps on {task}" for task, steps in facts["steps"].items())
    return text(
        f"Validation losses after {steps}. Each rule has the best of {len(facts['factors'])} learning rates by seed {facts['seeds'][0]} (* at "
        f"the edge of the grid), then {len(facts['seeds'])} seeds; no schedule, and no weight decay but the default. This shows how rules "
        "start on two small tasks, and nothing beyond. Rows are in the order of the sum of their ranks; where ranges overlap, these seeds do "
        "not settle who is first.",
        table(names, columns),
        source(record),
    )


def _bytes(row: Record) -> str:
    return "" if row["state_bytes"] is None else f"{row['state_bytes']:.3g}"


def formats_training(records: Records) -> str:
    """AdamW in float32 and in fewer bytes, on both tasks."""
    record = records["formats"]
    rows = rows_of(record, kind="training")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    of_task = {task: {format_of(row): row for row in rows if row["task"] == task} for task in tasks}
    columns: Columns = {
        "AdamW": lambda name: name,
        **{f"{task}: loss, median (range)": lambda name, task=task: spread(of_task[task][name]) for task in tasks},
    }
    seeds = len(rows[0]["losses"])
    rates = " and ".join(f"lr={of_task[task]['float32']['lr']:g} on {task}" for task in tasks)
    return text(
        table(of_task[tasks[0]], columns),
        f"Final validation losses of {seeds} seeds, {rates}. {_inside(of_task)}",
        source(record),
    )


def _inside(of_task: dict[str, dict[str, Record]]) -> str:
    """Which medians lie within float32's range."""
    outside = []
    for task, rows in of_task.items():
        seeds = losses_of(rows["float32"])
        for name, row in rows.items():
            median = statistics.median(losses_of(row))
            if not min(seeds) <= median <= max(seeds):
                outside.append(f"{name} on {task} ({'lower' if median < min(seeds) else 'higher'})")
    if not outside:
        return "Every format's median lies within the range of float32's seeds."
    return f"Medians outside of the range of float32's seeds: {'; '.join(outside)}."
