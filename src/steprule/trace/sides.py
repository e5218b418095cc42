"""Whether squares beside a matrix, and single numbers where a side is too long for one, fit together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import Any

import numpy as np

from steprule.rule import Rule, RuleError
from steprule.signature import where
from steprule.state import State, side_shape
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, inputs_of, nodes_of
from steprule.trace.extent import NUMBER, PLAIN

_MATRICES = ((5, 3), (3, 5), (4, 4))
_LIMITS = (2, 4, 6)
"""For the longest side of a square: all sides are longer than the first of them, some than the second, and none than the third."""


def check_sides(rule: type[Rule], hyper: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises for a formula whose squares, and the numbers in place of those of longer sides, do not fit together for all sides.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter.
        new: what the formula returned for the parameter and each state that exists.

    Raises:
        RuleError: it adds or multiplies what does not fit, or a square becomes something of another shape.
    """
    outputs = {name: x for name, x in new.items() if isinstance(x, Expression)}
    nodes = nodes_of(outputs.values())
    if all(node.extent in PLAIN for node in nodes):
        return
    limits = {
        most for name in outputs if name in rule.states and (most := rule.states[name].most) not in (None, "other")
    }
    asked = {name for node in nodes if node.op == "gram" for x in node.args[1:] for name in inputs_of(x)}
    limits |= {name for name in asked if isinstance(rule.hyperparameters.get(name), (int, float))}
    squares = [name for name in outputs if name in rule.states and rule.states[name].extent in ("left", "right")]
    for matrix, limit in product(_MATRICES, _LIMITS if limits else _LIMITS[-1:]):
        settings = {**hyper, **dict.fromkeys(limits, limit)}
        shapes = _Shapes(rule, settings, matrix, limits)
        for name in sorted(outputs, key=lambda name: name not in squares):
            found = shapes(outputs[name])
            kept = side_shape(rule, name, matrix, settings) if name in squares else found
            if shapes.told or found != kept:
                beside = f", for example beside a matrix of {_by(matrix)}" + "".join(
                    f" with {one}={limit}" for one in sorted(limits)
                )
                told = (
                    f"makes {name} of {shapes.told}"
                    if shapes.told
                    else f"returned {_by(found)} numbers as {name}, which are {_by(kept)}"
                )
                raise RuleError(
                    f"{rule.__name__}.update {told}{beside} ({where(rule.function())}). {_instead(rule, name)}"
                )


def _instead(rule: type[Rule], name: str) -> str:
    """What to write."""
    state = rule.states.get(name, State())
    x, other = ("grad", "cols(grad) - 1") if state.extent == "left" else ("transpose(grad)", "rows(grad)")
    if state.most is not None:
        longest = other if state.most == "other" else state.most
        return f"State({state.extent!r}, most={state.most!r}) takes gram({x}, {longest})."
    if state.extent in ("left", "right"):
        return f"State({state.extent!r}) takes a square for every side, such as gram({x})."
    return "Where a side is too long, State(most=...) and gram(x, max_side) have one number in place of a square: let all have the same longest side. There is no identity to add: (a + eps I) x is matmul(a, x) + eps * x, and inverse_root(a, p, eps) adds eps to eigenvalues."


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


class _Shapes(Evaluation):
    """The shapes of what a formula computes beside a matrix, and the values of numbers that say how long a side may be.

    Args:
        rule, hyper: the rule, and a value for each hyperparameter.
        matrix: rows and columns.
        known: the hyperparameters whose values are looked at; of other numbers it is only known that they are such.

    Attributes:
        told: what does not fit together, if anything does not.
    """

    told = ""

    def __init__(
        self, rule: type[Rule], hyper: Mapping[str, Any], matrix: tuple[int, int], known: Collection[str]
    ) -> None:
        rows, cols = matrix
        super().__init__({"rows": rows, "cols": cols, "numel": rows * cols, **{name: hyper[name] for name in known}})
        self.inputs |= {name: side_shape(rule, name, matrix, hyper) for name in rule.side_states}
        self._sides = {"m": rows, "n": cols, "1": 1}

    def __call__(self, expression: Expression) -> Any:
        """Rows and columns, or a number; None for one that is not known."""
        if expression.op == "input" and expression.args[0] not in self.inputs:
            is_number = expression.extent == NUMBER
            return None if is_number else tuple(self._sides[side] for side in expression.extent)
        return super().__call__(expression)

    def compute(self, expression: Expression) -> Any:
        """That of an operation."""
        op, args = expression.op, [x for x in expression.args if isinstance(x, Expression)]
        if op == "where" and args[0].extent == NUMBER and (holds := self(args[0])) is not None:
            return self(args[1 if holds else 2])
        x, *others = map(self, args)
        if expression.extent == NUMBER:
            is_known = all(isinstance(one, (int, float)) for one in (x, *others))
            return self.operate(op, (x, *others)) if is_known else None
        if op == "matmul":
            if (1, 1) in (x, others[0]):
                return others[0] if x == (1, 1) else x
            if x[1] != others[0][0]:
                self.told = f"the product of {_by(x)} and {_by(others[0])} numbers"
            return x[0], others[0][1]
        if op == "gram":
            is_long = bool(others) and others[0] is not None and x[0] > others[0]
            return (1, 1) if is_long else (x[0], x[0])
        if op in _OTHERS:
            return _OTHERS[op](*x)
        shapes = [one for one in (x, *others) if isinstance(one, tuple)]
        if op in ("add", "sub") and len(shapes) == 2 and (1, 1) in shapes and shapes[0] != shapes[1]:
            self.told = f"a square of {_by(max(shapes))} and a number that stands for one"
        return np.broadcast_shapes(*shapes)


_OTHERS: Mapping[str, Callable[[int, int], tuple[int, int]]] = {
    "transpose": lambda m, n: (n, m),
    "largest_eigenvalue": lambda m, n: (1, 1),
    **dict.fromkeys(("row_total", "row_largest"), lambda m, n: (m, 1)),
    **dict.fromkeys(("col_total", "col_largest"), lambda m, n: (1, n)),
}
"""What changes a shape."""
