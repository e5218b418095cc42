"""What comes of tracing a rule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steprule.trace.expression import Expression


@dataclass(frozen=True)
class Formula:
    """A traced rule: what each operand becomes.

    Attributes:
        operands: "param", "grad" and the states that exist, in order.
        scalars: the hyperparameters as (name, index) pairs, index None for plain numbers; step apart.
        outputs: for "param" and each state that exists, its new value.
        nonnegative: the states that are seen to stay at 0 or above: sums, averages and maxima of squares, and such.
        extreme: the running maxima and minima among the states, and those that they are compared with.
        factor: whether there is a ``grad_factor``, a number that each tensor or row has for itself.
        by_row: whether it is each row that has one.
        counted: what is 1 where an element counts as zeroed and 0 elsewhere, or None.
        gathered: "grad", "update" and "param" as telemetry wants them, or none.
        own: the numbers that each tensor has for itself besides the step, all of them scalars: "numel", how many
            elements it has; its scalar states, and as "new_..." their new values; its sums.
        levels: of each of these, how many readings of the elements go before it.
        scalar_outputs: for each scalar state its new value.
        sums: the sums over elements by name.
        readings: the formulas of the readings, each with what it sums up and no outputs.
    """

    operands: tuple[str, ...]
    scalars: tuple[tuple[str, int | None], ...]
    outputs: dict[str, Expression]
    nonnegative: frozenset[str]
    extreme: frozenset[str] = frozenset()
    factor: bool = False
    by_row: bool = False
    counted: Expression | None = None
    gathered: dict[str, Expression] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    levels: dict[str, int] = field(default_factory=dict)
    scalar_outputs: dict[str, Expression] = field(default_factory=dict)
    sums: dict[str, Sum] = field(default_factory=dict)
    readings: tuple[Formula, ...] = ()


@dataclass(frozen=True)
class Sum:
    """A sum over elements.

    Attributes:
        expression: of what.
        of_all: whether it is over the elements of all tensors, and not of each.
    """

    expression: Expression
    of_all: bool


def hyper_of(formula: Formula, hyper: Mapping[str, Any]) -> list[Any]:
    """What stands for formula.scalars: numbers and 1-element tensors."""
    return [hyper[name] if index is None else operator.getitem(hyper[name], index) for name, index in formula.scalars]


def scalar_values(formula: Formula, hyper: Mapping[str, Any]) -> list[float]:
    """The numbers that stand for formula.scalars, as floats; 1-element tensors are read."""
    return list(map(float, hyper_of(formula, hyper)))
