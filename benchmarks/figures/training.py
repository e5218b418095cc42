"""Losses after training, with their spread."""

from __future__ import annotations

import json
import math
import statistics

from record import Record
from tables import Columns, source, span, table, times

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


def training_matrices(records: Records) -> str:
    """Rules of whole matrices, and some others, against AdamW: how soon each has the loss that AdamW ends with."""
    record = records["training_matrices"]
    facts, rows = record["facts"], record["rows"]
    adamw, full, ladder = rows[0], facts["steps"], facts["ladder"]

    def share_of(steps: float | None, factor: float) -> str:
        if steps is None:
            return f"> {times(factor * ladder[-1] / full)}"
        return f"{'< ' * (steps == ladder[0])}{times(factor * steps / full)}"

    def reached(row: Record, factor: float = 1.0) -> str:
        if row is adamw:
            return "1"
        steps = sorted(row["steps"], key=lambda one: math.inf if one is None else one)
        middle, low, high = (share_of(one, factor) for one in (steps[len(steps) // 2], steps[0], steps[-1]))
        return middle if low == high else f"{middle} ({low} to {high})"

    def cost(row: Record) -> float:
        return float(row["step_ms"] / adamw["step_ms"])

    ranked = sorted(rows, key=lambda row: statistics.median(losses_of(row)))
    columns: Columns = {
        "rule": lambda row: row["rule"],
        f"loss after {full} steps": spread,
        "steps to AdamW's loss": reached,
        "CPU time of a step": lambda row: "1" if row is adamw else times(cost(row)),
        "CPU time to AdamW's loss": lambda row: reached(row, cost(row)),
        "lr": lambda row: f"{row['settings']['lr']:.2g}",
        "lr of the rest": lambda row: f"{row['settings']['rest_lr']:.2g}",
        "runs to tune": lambda row: str(len(row["tried"])),
    }
    return text(
        f"A transformer of {facts['elements'] / 1e6:.1f} million parameters over characters (the task `chars-large`), {facts['tokens']:,} "
        f"of them a batch, in float32 on one core. Validation losses: medians over {len(facts['seeds'])} seeds, and ranges.",
        f"*Steps to AdamW's loss* are, for each seed, after how many steps the rule has the loss that AdamW has after {full}, as a "
        "share of these. The schedule is that of a run's own length: linear warm-up in its first twentieth, then linear decay to 0. So a loss after fewer "
        "steps is that of a shorter run, and between two lengths, one 1.41 times the other, it is read off a line over the logarithm of steps.",
        "All are tuned alike by the loss of one seed, one setting after another: the lr of hidden matrices and that of the rest, which beside rules of matrices is "
        "AdamW's, each until its neighbors are worse; momentum or betas; weight decay. "
        f"AdamW is tuned over {full} steps, the others over half as many, where they are compared.{_with_one_lr(adamw)}",
        f"CPU times are of whole steps, forward and backward included. AdamW's takes {span(adamw['step_ms'] / 1e3)}. The larger the batch, the nearer are "
        "these to the numbers of steps.",
        table(ranked, columns),
        source(record),
    )


def _with_one_lr(row: Record) -> str:
    """What AdamW loses where the rest has the lr of hidden matrices, if that was tried."""
    tried = {loss: json.loads(settings) for settings, loss in row["tried"].items() if loss is not None}
    same = [loss for loss, settings in tried.items() if settings["lr"] == settings["rest_lr"]]
    if not same:
        return ""
    best = min(same)
    return f" With lr={tried[best]['lr']:g} for all parameters AdamW has {best:.3f} with this seed, and {min(tried):.3f} when tuned."


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
