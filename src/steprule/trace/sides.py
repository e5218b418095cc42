"""Whether squares beside a matrix stay squares, or single numbers where a side is too long for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import Any

import numpy as np

from steprule.rule import Rule, RuleError
from steprule.signature import where
from steprule.state import side_shape
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, inputs_of, nodes_of
from steprule.trace.extent import NUMBER

_MATRICES = ((5, 3), (3, 5), (4, 4))
_LIMITS = (2, 4, 6)
"""For the longest side of a square: all sides are longer than the first of them, some than the second, and none than the third."""


def check_sides(rule: type[Rule], hyper: Mapping[str, Any], new: Mapping[str, Expression]) -> None:
    """Raises for new values of squares that are of another shape than the state, for sides of any length.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter.
        new: for each state that exists what the formula returned.

    Raises:
        RuleError: there is one.
    """
    squares = [name for name in new if name in rule.states and rule.states[name].extent in ("left", "right")]
    grams = [node for node in nodes_of(new[name] for name in squares) if node.op == "gram"]
    asked = {name for node in grams for x in node.args[1:] for name in inputs_of(x)}
    limits = {most for name in squares if (most := rule.states[name].most) not in (None, "other")}
    limits |= {name for name in asked if isinstance(rule.hyperparameters.get(name), (int, float))}
    for matrix, limit in product(_MATRICES, _LIMITS if limits else _LIMITS[-1:]):
        settings = {**hyper, **dict.fromkeys(limits, limit)}
        shapes = _Shapes(rule, settings, matrix, limits)
        for name in squares:
            kept, found = side_shape(rule, name, matrix, settings), shapes(new[name])
            if found != kept or shapes.is_mixed:
                beside = f"beside a matrix of {_by(matrix)}" + "".join(f" with {one}={limit}" for one in sorted(limits))
                raise RuleError(_told(rule, name, "" if shapes.is_mixed else _by(found), _by(kept), beside))


def _told(rule: type[Rule], name: str, found: str, kept: str, beside: str) -> str:
    """What to say of a state that would not keep its shape; of one that has parts of several shapes none is found."""
    state = rule.states[name]
    x, other = ("grad", "cols(grad) - 1") if state.extent == "left" else ("transpose(grad)", "rows(grad)")
    longest = other if state.most == "other" else state.most
    returned = f"a matrix of {found}" if found else "the sum of a square and a number that stands for one"
    said = f"State({state.extent!r}{f', most={state.most!r}' if state.most else ''})"
    instead = f"gram({x}, {longest})" if longest else f"a matrix of that shape for every side, such as gram({x})"
    return (
        f"{rule.__name__}.update returned {returned} as {name}, a {said}, which is {kept} {beside} "
        f"({where(rule.function())}). Write {instead}."
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


class _Shapes(Evaluation):
    """The shapes of what a formula computes beside a matrix, and the values of numbers that say how long a side may be.

    Args:
        rule, hyper: the rule, and a value for each hyperparameter.
        matrix: rows and columns.
        known: the hyperparameters whose values are looked at; of other numbers it is only known that they are such.

    Attributes:
        is_mixed: whether a square was added to a number that stands for one.
    """

    is_mixed = False

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
            return others[0] if x == (1, 1) else x if others[0] == (1, 1) else (x[0], others[0][1])
        if op == "gram":
            is_long = bool(others) and others[0] is not None and x[0] > others[0]
            return (1, 1) if is_long else (x[0], x[0])
        if op in _OTHERS:
            return _OTHERS[op](*x)
        shapes = [one for one in (x, *others) if isinstance(one, tuple)]
        self.is_mixed |= op in ("add", "sub") and len(shapes) == 2 and (1, 1) in shapes and shapes[0] != shapes[1]
        return np.broadcast_shapes(*shapes)


_OTHERS: Mapping[str, Callable[[int, int], tuple[int, int]]] = {
    "transpose": lambda m, n: (n, m),
    "largest_eigenvalue": lambda m, n: (1, 1),
    **dict.fromkeys(("row_total", "row_largest"), lambda m, n: (m, 1)),
    **dict.fromkeys(("col_total", "col_largest"), lambda m, n: (1, n)),
}
"""What changes a shape."""
