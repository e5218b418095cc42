"""What the runs of a task amount to: one row for each optimizer, ranked, a sentence, and curves over the seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from steprule.compare.run import Run

__all__ = ["HEADINGS", "Curve", "Row", "Spread", "curve", "number", "rank", "rows", "sentence"]


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

    def cells(self) -> list[str]:
        """The row as text, under HEADINGS."""
        steps, seconds = number(self.steps.median), number(self.seconds.median)
        if self.reached < self.seeds:
            steps += f" ({self.reached} of {self.seeds} seeds)"
        unfinished = "diverged" if self.diverged else "failed"
        final, spread = number(self.final_loss.median, unfinished), _range(self.final_loss, unfinished)
        return [
            self.label,
            number(self.lr),
            final if final == spread else f"{final} ({spread})",
            "-" if self.accuracy is None else f"{self.accuracy:.1%}",
            steps,
            seconds,
            number(self.step_ms),
            number(self.state_bytes),
        ]


HEADINGS = (
    "optimizer",
    "lr",
    "final loss\n(min to max)",
    "accuracy",
    "steps to\ntarget",
    "seconds to\ntarget",
    "optimizer\nms a step",
    "state bytes\na parameter",
)


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
    first, others = ranked[0], ranked[1:]
    took: Spread = getattr(first, by)
    if math.isinf(took.median):
        best = min(ranked, key=lambda row: row.final_loss.median)
        nobody = f"No optimizer reached {goal} in most of its seeds"
        if math.isinf(best.final_loss.median):
            return f"{nobody}, nor a finite loss at the end."
        return f"{nobody}; the lowest median final loss, {number(best.final_loss.median)}, is that of {_name(best)}."
    result = f"{_name(first)} reached {goal} after {number(took.median)} {by}"
    if first.seeds > 1:
        result += f" ({_range(took, 'never')} over {first.seeds} seeds)"
    level = [row for row in others if row.reached and getattr(row, by).low <= took.high]
    if level:
        names = " and ".join(_name(row) for row in level) if len(level) < 3 else f"{len(level)} others"
        if first.seeds == 1:
            return f"{result}, level with {names}; one seed settles little."
        return f"{result}, but its range overlaps with that of {names}: these seeds do not settle who is first."
    if others:
        second: Spread = getattr(others[0], by)
        if math.isinf(second.low):
            result += ", and no other optimizer did"
        else:
            result += f", the first to do so; next was {_name(others[0])} with {number(second.median, 'never')}"
            if first.seeds > 1:
                result += f" ({_range(second, 'never')})"
    return result + ("; one seed settles little." if first.seeds == 1 and others else ".")


@dataclass(frozen=True)
class Curve:
    """Validation loss over the seeds, one entry an evaluation.

    Attributes:
        steps, seconds: medians.
        median: of the loss; infinite where half of the runs or more had diverged.
        low, high: the least and greatest loss of those that had not.
    """

    steps: list[float]
    seconds: list[float]
    median: list[float]
    low: list[float]
    high: list[float]


def curve(runs: Sequence[Run]) -> Curve:
    """The curve of one optimizer's runs, as long as the shortest that finished."""
    length = min((len(run.loss) for run in runs if run.status == "finished"), default=0)
    if not length:
        length = max((len(run.loss) for run in runs), default=0)
    result = Curve([], [], [], [], [])
    for at in range(length):
        alive = [run for run in runs if at < len(run.loss)]
        losses = [run.loss[at] for run in alive]
        result.steps.append(median(run.steps[at] for run in alive))
        result.seconds.append(median(run.seconds[at] for run in alive))
        result.median.append(median(losses + [math.inf] * (len(runs) - len(alive))))
        result.low.append(min(losses))
        result.high.append(max(losses))
    return result


def number(value: float | None, infinite: str = "-") -> str:
    """A number in three digits, or as many as its integer part has."""
    if value is None:
        return "-"
    if math.isinf(value):
        return infinite
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _range(spread: Spread, infinite: str) -> str:
    low, high = number(spread.low, infinite), number(spread.high, infinite)
    return low if low == high else f"{low} to {high}"


def _name(row: Row) -> str:
    return f"{row.label} (lr {number(row.lr)})" if row.lr is not None else row.label
