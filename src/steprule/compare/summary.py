"""What the runs of a task amount to: one row for each optimizer, ranked, an answer, and curves over the seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from steprule.compare.run import Run

__all__ = [
    "Cell",
    "Column",
    "Curve",
    "Row",
    "Spread",
    "answer",
    "at_the_edge",
    "columns",
    "curve",
    "leaders",
    "measured",
    "number",
    "rank",
    "rows",
    "sentence",
]


@dataclass(frozen=True)
class Spread:
    """The median, least and greatest of one number a seed; infinite where a seed has none."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of at least one value; None counts as infinity."""
        known = [math.inf if value is None else value for value in values]
        return cls(median(known), min(known), max(known))


@dataclass(frozen=True)
class Row:
    """An optimizer at one learning rate, over all its seeds.

    Attributes:
        optimizer, label, lr: as in Run.
        seeds: how many runs there are.
        diverged, failed: how many of them did.
        reached: how many reached the target.
        final_loss: validation loss at the end, infinite for a run that diverged or failed.
        accuracy: the median of the finished runs, None if there is none.
        steps, seconds: to the target; infinite for a run that never reached it.
        step_ms, state_bytes: medians of Run's.
    """

    optimizer: str
    label: str
    lr: float | None
    seeds: int
    diverged: int
    failed: int
    reached: int
    final_loss: Spread
    accuracy: float | None
    steps: Spread
    seconds: Spread
    step_ms: float | None
    state_bytes: float | None

    @property
    def name(self) -> str:
        """What the optimizer is called, without settings."""
        return self.label.partition(" ")[0]

    @property
    def settings(self) -> list[str]:
        """The learning rate and the other settings that were given, each as name=value."""
        lr = [] if self.lr is None else [f"lr={number(self.lr)}"]
        return [*lr, *self.label.split(" ")[1:]]


class Cell(NamedTuple):
    """A number in a table, and how far it varies over the seeds (empty if it does not)."""

    text: str
    spread: str = ""


class Column(NamedTuple):
    """A column of a table: its heading, a short one, a cell a row, and whether it is about reaching the target."""

    heading: str
    short: str
    cells: list[Cell]
    goal: bool = False


def columns(shown: Sequence[Row]) -> list[Column]:
    """The numbers of some rows as text; accuracy only if a row has it."""
    found = [
        Column("steps to target", "steps to\ntarget", [_to_target(row, row.steps, number) for row in shown], True),
        Column(
            "seconds to target", "seconds to\ntarget", [_to_target(row, row.seconds, _seconds) for row in shown], True
        ),
        Column("final loss", "final\nloss", [_final_loss(row) for row in shown], True),
    ]
    if any(row.accuracy is not None for row in shown):
        accuracy = [Cell("-" if row.accuracy is None else f"{row.accuracy:.1%}") for row in shown]
        found.append(Column("final accuracy", "accuracy", accuracy))
    step_ms = [Cell(number(row.step_ms, digits=2)) for row in shown]
    state_bytes = [Cell(number(row.state_bytes, digits=2)) for row in shown]
    return [
        *found,
        Column("optimizer's ms a step", "ms a\nstep", step_ms),
        Column("state bytes an element", "state\nbytes", state_bytes),
    ]


def _seconds(value: float) -> str:
    return "-" if math.isinf(value) else measured(value, 2)


def _to_target(row: Row, spread: Spread, text: Callable[[float], str]) -> Cell:
    if 0 < row.reached < row.seeds:
        return Cell(text(spread.median), f"{row.reached} of {row.seeds} seeds")
    return _spread(text(spread.median), text(spread.low), text(spread.high))


def _final_loss(row: Row) -> Cell:
    """Two digits, or three if the seeds agree in the first two."""
    middle, low, high = row.final_loss.median, row.final_loss.low, row.final_loss.high
    digits = 3 if high - low < abs(middle) / 20 else 2
    unfinished = "diverged" if row.diverged else "failed"
    return _spread(*(unfinished if math.isinf(value) else measured(value, digits) for value in (middle, low, high)))


def _spread(middle: str, low: str, high: str) -> Cell:
    return Cell(middle, "" if low == high else f"{low} to {high}")


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each optimizer and learning rate among a task's runs, in their order."""
    by_optimizer: dict[str, list[Run]] = {}
    for run in runs:
        by_optimizer.setdefault(run.optimizer, []).append(run)
    return [_row(same) for same in by_optimizer.values()]


def _row(runs: Sequence[Run]) -> Row:
    finished = [run for run in runs if run.status == "finished"]
    return Row(
        optimizer=runs[0].optimizer,
        label=runs[0].label,
        lr=runs[0].lr,
        seeds=len(runs),
        diverged=sum(run.status == "diverged" for run in runs),
        failed=sum(run.status == "failed" for run in runs),
        reached=sum(run.reached_step is not None for run in runs),
        final_loss=Spread.of([run.final_loss for run in runs]),
        accuracy=_median([run.accuracy[-1] for run in finished if run.accuracy]),
        steps=Spread.of([run.reached_step for run in runs]),
        seconds=Spread.of([run.reached_seconds for run in runs]),
        step_ms=_median([run.step_ms for run in runs if run.step_ms is not None]),
        state_bytes=_median([run.state_bytes for run in runs if run.state_bytes is not None]),
    )


def rank(candidates: Sequence[Row], by: Literal["steps", "seconds"], best_lr: bool) -> list[Row]:
    """The rows from the first to reach the target to the last.

    Args:
        candidates: in any order.
        by: what "first" means. Rows with the same median (infinite if half of the seeds or more never reached the
            target) go by how many seeds reached it, then by the median final loss.
        best_lr: keep only one row of a label, the one whose median final loss is the lowest.
    """
    chosen = list(candidates)
    if best_lr:
        best: dict[str, Row] = {}
        for row in sorted(candidates, key=lambda row: row.final_loss.median):
            best.setdefault(row.label, row)
        chosen = list(best.values())
    return sorted(chosen, key=lambda row: (getattr(row, by).median, -row.reached, row.final_loss.median))


def leaders(ranked: Sequence[Row], by: Literal["steps", "seconds"]) -> list[Row]:
    """The first row and those whose ranges overlap with its own; none if most of its seeds did not reach the target."""
    if not ranked or math.isinf(getattr(ranked[0], by).median):
        return []
    last: float = getattr(ranked[0], by).high
    return [ranked[0], *(row for row in ranked[1:] if row.reached and getattr(row, by).low <= last)]


def answer(ranked: Sequence[Row], by: Literal["steps", "seconds"]) -> str:
    """Who was first, in as few words as possible; arguments as for sentence."""
    if all(row.failed == row.seeds for row in ranked):
        return "No run finished."
    first = leaders(ranked, by)
    if not first:
        return "No optimizer reached the target."
    name_of = _names(ranked)
    names = [name_of[row.optimizer] for row in first]
    if len(ranked) == 1:
        return f"{names[0]} reached the target."
    if len(names) == 1:
        return f"{names[0]} reached the target first" + (", with one seed." if first[0].seeds == 1 else ".")
    return f"{', '.join(names[:-1])} and {names[-1]} cannot be told apart."


def sentence(ranked: Sequence[Row], by: Literal["steps", "seconds"], target: float) -> str:
    """Who was first, in one sentence that claims no more than the spread over the seeds allows.

    Args:
        ranked: as rank returns them, with the same `by`.
        by: "steps" or "seconds".
        target: the validation loss that was to be reached.
    """
    if not ranked:
        return "No run finished."
    if all(row.failed == row.seeds for row in ranked):
        return f"No run finished: all {sum(row.seeds for row in ranked)} failed."
    goal = f"the target loss of {number(target)}"
    names = _names(ranked)
    told = {
        row.optimizer: names[row.optimizer] + (f" (lr {number(row.lr)})" if row.lr is not None else "")
        for row in ranked
    }
    first, others = ranked[0], ranked[1:]
    took: Spread = getattr(first, by)
    if math.isinf(took.median):
        best = min(ranked, key=lambda row: row.final_loss.median)
        nobody = f"No optimizer reached {goal}" + " in most of its seeds" * any(row.reached for row in ranked)
        if math.isinf(best.final_loss.median):
            return f"{nobody}, nor a finite loss at the end."
        lowest = f"{nobody}; the lowest median final loss, {number(best.final_loss.median)}, is that of {told[best.optimizer]}"
        same = [row for row in ranked if row is not best and row.final_loss.low <= best.final_loss.high]
        if best.seeds == 1:
            return lowest + ("; one seed settles little." if others else ".")
        if same:
            return f"{lowest}, but its range overlaps with that of {_some(same, told)}: these seeds do not settle whose is the lowest."
        return lowest + "."
    digits = 3 if by == "steps" else 2
    result = f"{told[first.optimizer]} reached {goal} after {number(took.median, digits=digits)} {by}"
    if first.seeds > 1:
        span = _range(took, digits)
        result += f" ({span} over {first.seeds} seeds)" if " to " in span else f" (each of {first.seeds} seeds)"
    level = leaders(ranked, by)[1:]
    if level:
        some = _some(level, told)
        if first.seeds == 1:
            return f"{result}, level with {some}; one seed settles little."
        return f"{result}, but its range overlaps with that of {some}: these seeds do not settle who is first."
    if others:
        second: Spread = getattr(others[0], by)
        if math.isinf(second.low):
            result += ", and no other optimizer did"
        else:
            median_of_second = number(second.median, "never", digits)
            result += f", the first to do so; next was {told[others[0].optimizer]} with {median_of_second}"
            if first.seeds > 1:
                result += f" ({_range(second, digits)})"
    return result + ("; one seed settles little." if first.seeds == 1 and others else ".")


@dataclass(frozen=True)
class Curve:
    """Validation loss over the seeds, one entry an evaluation.

    Attributes:
        steps, seconds: medians.
        median: of the loss; infinite where half of the runs or more had diverged.
    """

    steps: list[float]
    seconds: list[float]
    median: list[float]


def curve(runs: Sequence[Run]) -> Curve:
    """The curve of one optimizer's runs, as long as the shortest that finished."""
    length = min((len(run.loss) for run in runs if run.status == "finished"), default=0)
    if not length:
        length = max((len(run.loss) for run in runs), default=0)
    result = Curve([], [], [])
    for at in range(length):
        alive = [run for run in runs if at < len(run.loss)]
        losses = [run.loss[at] for run in alive]
        result.steps.append(median(run.steps[at] for run in alive))
        result.seconds.append(median(run.seconds[at] for run in alive))
        result.median.append(median(losses + [math.inf] * (len(runs) - len(alive))))
    return result


def number(value: float | None, infinite: str = "-", digits: int = 3) -> str:
    """A number in so many digits, or as many as its integer part has if that is not very long."""
    if value is None:
        return "-"
    if math.isinf(value):
        return infinite
    is_long = 10 ** (digits - 1) <= round(abs(value)) < 1e8
    return f"{value:.0f}" if is_long else f"{value:.{digits}g}"


def measured(value: float, digits: int) -> str:
    """The same with zeros at the end, which say how exact it is: 0.050 between 0.034 and 0.066."""
    is_long = 10 ** (digits - 1) <= round(abs(value)) < 1e8
    return f"{value:.0f}" if is_long else f"{value:#.{digits}g}"


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _some(shown: Sequence[Row], told: dict[str, str]) -> str:
    return " and ".join(told[row.optimizer] for row in shown) if len(shown) < 3 else f"{len(shown)} others"


def at_the_edge(ranked: Sequence[Row], grid: Sequence[float]) -> str:
    """A sentence on rows whose learning rate is the least or the largest of a grid, beyond which a better one may be."""
    names = _names(ranked)
    edges = {"least": min(grid, default=0.0), "largest": max(grid, default=0.0)} if len(grid) > 1 else {}
    found = []
    for edge, lr in edges.items():
        at = [names[row.optimizer] for row in ranked if row.lr == lr and row.failed < row.seeds]
        if at:
            found.append(f"{', '.join(at)} at the {edge}, {number(lr)}")
    return f"Best at an end of --lr-grid, so that others may be better: {'; '.join(found)}." if found else ""


def _range(spread: Spread, digits: int) -> str:
    low, high = number(spread.low, "never", digits), number(spread.high, "never", digits)
    return low if low == high else f"{low} to {high}"


def _names(shown: Sequence[Row]) -> dict[str, str]:
    """What to call each optimizer: its name, with the settings but lr where several have the same."""
    same = Counter(row.name for row in shown)
    return {row.optimizer: row.name if same[row.name] == 1 else row.label for row in shown}
