"""What services want to know of gradients and weights before a step: norms, as passes that add up."""

from __future__ import annotations

import math
from typing import NamedTuple

from steprule.pieces import Value, where
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS
from steprule.trace.program import ADD, LARGEST, SMALLEST, TENSOR, Program, Stage, Sum


class Norm(NamedTuple):
    """A p-norm, up to the root that is taken of it in the end.

    Attributes:
        operand: of what, "param" or "grad".
        p: which.
        axis: of each tensor, or of each row.
        zero: read what is not finite as 0.
        check: have no finite sum where an element is not finite, whatever the p.
    """

    operand: str
    p: float
    axis: str = TENSOR
    zero: bool = False
    check: bool = False

    @property
    def how(self) -> str:
        """How elements become one number."""
        return {math.inf: LARGEST, -math.inf: SMALLEST}.get(self.p, ADD)

    def program(self) -> Program:
        """The pass that reads it. Powers are computed in float64, where squares of float32 do not overflow."""
        x = Expression("input", (self.operand,), ELEMENTS)
        if self.zero:
            x = where(abs(x) < math.inf, x, 0.0)
        value = self._of(x)
        if self.check and self.p not in (1.0, 2.0, math.inf):  # these cannot be finite then
            value = value + (x - x)
        sums = {self.operand: Sum(value, self.how, self.axis)}
        last = Stage((self.operand,), (), sums=sums, wide=self.p not in (0.0, 1.0, math.inf, -math.inf))
        return Program((), last, frozenset(), frozenset())

    def _of(self, x: Expression) -> Value:
        """What an element gives."""
        if self.p == 0:
            return where(x != 0, 1.0, 0.0)
        if self.p == 2:
            return x * x
        return abs(x) if self.p in (1.0, math.inf, -math.inf) else abs(x) ** self.p
