"""The two charts of a task: validation loss against steps and against seconds of training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steprule.charts import Axis, Chart, Line
from steprule.compare.results import TaskResult
from steprule.compare.run import Run
from steprule.compare.summary import Curve, Row, curve, measured, number

__all__ = ["COLORS", "Picture", "picture"]

COLORS = 6  # as many as can be told apart
_LOG_FROM = 8.0  # the greatest loss of the axis over the least
_SEEN = 0.9  # the share of the losses that the axis is made for: the first steps go beyond it
_ROOM = 9  # letters of a label beside the chart


@dataclass(frozen=True)
class Picture:
    """The charts of a task.

    Attributes:
        charts: one against steps and one against seconds, with the same marks.
        about: what they show, for those who do not see them.
        note: what to know to read them.
    """

    charts: tuple[Chart, Chart]
    about: str
    note: str


@dataclass(frozen=True)
class _Drawn:
    """An optimizer as it is drawn: in a color with its name, or in gray."""

    row: Row
    runs: Sequence[Run]
    over_seeds: Curve
    style: int | str
    name: str = ""
    short: str = ""


def picture(result: TaskResult) -> Picture | None:
    """The charts of a task, None if no run was ever evaluated."""
    drawn = _drawn(result)
    if not any(one.over_seeds.steps for one in drawn):
        return None
    colored = [one for one in drawn if one.name]
    axis, beyond = _loss_axis(colored, result.target)
    steps, seconds = (_chart(drawn, x, axis, result.target) for x in ("steps", "seconds"))
    return Picture((steps, seconds), _about(colored, result.target), _note(result, drawn, beyond))


def _drawn(result: TaskResult) -> list[_Drawn]:
    """Gray ones first. The color of an optimizer is the same in every task that compares the same few."""
    ranked = result.ranked()[:COLORS]
    first = {row.optimizer for row in ranked}
    in_order = [row for row in result.all_rows() if row.optimizer in first]
    in_order.sort(key=lambda row: [run.optimizer for run in result.runs].index(row.optimizer))
    shorts = _shorts([row.name for row in in_order])
    gray, colored = [], []
    for row in result.all_rows():
        runs = [run for run in result.runs if run.optimizer == row.optimizer]
        if row.optimizer not in first:
            gray.append(_Drawn(row, runs, curve(runs), "faint"))
            continue
        style = in_order.index(row)
        name = " ".join([row.name, *row.settings])
        if shorts[style] != row.name.rpartition(".")[2]:
            name = f"{shorts[style]}: {name}"
        if row.diverged:
            name += f" ({row.diverged} of {row.seeds} diverged)"
        colored.append(_Drawn(row, runs, curve(runs), style, name, shorts[style]))
    return [*gray, *colored]


def _shorts(names: Sequence[str]) -> list[str]:
    """Names that fit beside a chart, with a number where several are the same."""
    last = [name.rpartition(".")[2] for name in names]
    count, seen = Counter(map(str.lower, last)), Counter[str]()
    shorts = []
    for name in last:
        seen[name.lower()] += 1
        end = f" {seen[name.lower()]}" if count[name.lower()] > 1 else ""
        room = _ROOM - len(end)
        shorts.append((name if len(name) <= room else name[: room - 1] + "\u2026") + end)
    return shorts


def _loss_axis(colored: Sequence[_Drawn], target: float) -> tuple[Axis, list[str]]:
    """An axis on which the curves differ, and what lies beyond it.

    It leaves out the greatest tenth of the losses, most of them from the first steps, what is worse than no training, and
    a target far below all losses; but of every run that got better, the least loss is seen. It is logarithmic where a linear one would press the curves together.
    """
    medians = [loss for one in colored for loss in one.over_seeds.median if math.isfinite(loss)]
    least = min((min(run.loss) for one in colored for run in one.runs if run.loss), default=target)
    is_near = least <= 0 or target > least / _LOG_FROM
    untrained = max((one.over_seeds.median[0] for one in colored if one.over_seeds.median), default=target)
    ends = [min(run.loss[1:]) for one in colored for run in one.runs if run.status == "finished" and len(run.loss) > 1]
    most = [min(untrained, float(np.quantile(medians, _SEEN)))] if medians else []
    high = max(target, *most, *(loss for loss in ends if loss <= untrained))
    low = min(high, least, target if is_near else least)
    beyond = ["The target lies below the axis."] * (not is_near)
    if low > 0 and high / low > _LOG_FROM:
        low, high = low / 1.1, high * 1.1
        axis = Axis("validation loss (log scale)", low, high, log=True, named=_log_ticks(low, high))
    else:
        rim = (high - low) / 20 or abs(high) / 20 or 1.0
        axis = Axis("validation loss", low - rim, high + rim)
    if math.isfinite(untrained) and untrained > axis.high:
        beyond.append(
            "The loss of the first steps lies above it."
            if beyond
            else "The loss of the first steps lies above the axis."
        )
    return axis, beyond


def _log_ticks(low: float, high: float) -> dict[float, str]:
    """Full numbers at 1, 2 and 5 of each power of ten, or at powers of ten alone if those were too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high / low < 1e3 else (1,)
    every = 1 + len(powers) // 8
    return {
        digit * 10.0**power: f"{digit * 10.0**power:.{max(-power, 0)}f}" if power > -6 else f"{digit}e\u2212{-power}"
        for power in powers[::every]
        for digit in digits
        if low <= digit * 10.0**power <= high
    }


def _chart(drawn: Sequence[_Drawn], x: str, loss: Axis, target: float) -> Chart:
    """The target at the bottom, then the seeds, then the medians."""
    end = max(getattr(one.over_seeds, x)[-1] for one in drawn if one.over_seeds.steps) or 1
    marks = []
    if target >= loss.low:
        marks.append(Line(f"target {number(target)}", [0, end], [target] * 2, "target", short="target"))
    for one in drawn:
        if one.name and len(one.runs) > 1:
            marks += [Line("", getattr(run, x), run.loss, one.style, thin=True) for run in one.runs]
    for one in drawn:
        ends_above = bool(one.over_seeds.median) and one.over_seeds.median[-1] > loss.high
        short = f"{one.short} \u2191" if ends_above else one.short
        marks.append(Line(one.name, getattr(one.over_seeds, x), one.over_seeds.median, one.style, short=short))
    return Chart(f"Validation loss by {x}", Axis(f"{x} of training", 0, end), loss, marks)


def _about(colored: Sequence[_Drawn], target: float) -> str:
    """The ends of the curves in words."""
    ends = []
    for one in colored:
        loss = one.row.final_loss.median
        end = measured(loss, 3) if math.isfinite(loss) else "no finite loss"
        ends.append(f"{' '.join([one.row.name, *one.row.settings])} at {end}")
    return f"The target is {number(target)}. The curves end: {'; '.join(ends)}. The table has more numbers."


def _note(result: TaskResult, drawn: Sequence[_Drawn], beyond: Sequence[str]) -> str:
    parts = []
    seeds = max(one.row.seeds for one in drawn)
    if seeds > 1:
        parts.append(f"Thick lines are medians over {seeds} seeds, thin lines single seeds.")
    if any(not one.name for one in drawn):
        gray = ["other learning rates"] * bool(result.lr_grid)
        gray += ["optimizers further down in the table"] * (len(result.ranked()) > COLORS)
        parts.append(f"Gray lines are {' and '.join(gray)}.")
    return " ".join([*parts, *beyond])
