"""Expressions with numbers, arrays or tensors in place of symbols."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from steprule import pieces
from steprule.pieces import abs
from steprule.trace.expression import Expression


class Evaluation:
    """Expressions with numbers, arrays or tensors for their inputs.

    Args:
        inputs: by name; more may be set later.
    """

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self._values: dict[int, Any] = {}
        self._kept: list[Expression] = []  # so that no other expression can take an id

    def __call__(self, expression: Expression) -> Any:
        """The expression's value."""
        if expression.op == "input":
            return self.inputs[expression.args[0]]
        if expression.op == "constant":
            return expression.args[0]
        if id(expression) not in self._values:
            self._kept.append(expression)
            self._values[id(expression)] = self.compute(expression)
        return self._values[id(expression)]

    def compute(self, expression: Expression) -> Any:
        """An operation on the values of its arguments."""
        return self.operate(expression.op, map(self, expression.args))

    @staticmethod
    def operate(op: str, values: Iterable[Any]) -> Any:
        """An operation on numbers, arrays or tensors."""
        return _OPERATIONS[op](*values)


def _divide(a: Any, b: Any) -> Any:
    """a / b, which is inf or NaN where Python's numbers raise: the mean of an empty tensor, say."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and b == 0:
        return math.copysign(math.inf, a) * math.copysign(1.0, b) if a != 0 else math.nan
    return a / b


_OPERATIONS: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide, "pow": operator.pow,
    "neg": operator.neg, "abs": abs, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne, "and": operator.and_, "or": operator.or_, "not": lambda x: not x if isinstance(x, bool) else ~x,
    **{name: getattr(pieces, name) for name in ("sqrt", "cbrt", "exp", "log", "floor", "maximum", "minimum", "where")},
    "arctan2": pieces.atan2,
}  # fmt: skip
