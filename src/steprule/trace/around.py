"""What a step's services add to a formula: before it to the gradient, and after it to what is stored and counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from steprule.pieces import abs, where
from steprule.trace.expression import Expression, node
from steprule.trace.extent import ELEMENTS, NUMBER


@dataclass(frozen=True)
class Services:
    """What a pass does besides the rule's formula.

    Attributes:
        factor: multiplies the gradient by a number: "tensor" for one for each tensor, "row" for one for each row, "" for none.
        limit: keeps it within the hyperparameter ``clip_value`` of 0.
        zero: puts 0 in place of its elements that are not finite, and counts them.
        average: moves the state ``param_average`` towards the new parameter by the share ``average_weight``.
        gather: collects telemetry.
    """

    factor: str = ""
    limit: bool = False
    zero: bool = False
    average: bool = False
    gather: bool = False

    @property
    def before(self) -> tuple[str, bool, bool]:
        """What of these a formula sees."""
        return self.factor, self.limit, self.zero

    @property
    def words(self) -> str:
        """These in words, for users; empty if there are none."""
        every = {"scaled gradients": self.factor, "limited gradients": self.limit, "zeroed gradients": self.zero}
        every |= {"averages": self.average, "telemetry": self.gather}
        return " and ".join(word for word, on in every.items() if on)

    @property
    def scalars(self) -> list[tuple[str, None]]:
        """The numbers that they take besides the rule's."""
        return [("clip_value", None)] * self.limit + [("average_weight", None)] * self.average

    def grad(self, grad: Expression) -> tuple[Expression, Expression, Expression | None]:
        """The gradient as the formula is to see it, as telemetry is to, and what is 1 where an element was zeroed."""
        counted = None
        if self.zero:
            finite = abs(grad) < math.inf
            grad, counted = where(finite, grad, 0.0), where(finite, 0.0, 1.0)
        seen = grad
        if self.factor:
            grad = grad * Expression("input", ("grad_factor",), ELEMENTS)
        if self.limit:
            clip_value = Expression("input", ("clip_value",), NUMBER)
            grad = where(grad > clip_value, clip_value, where(grad < -clip_value, -clip_value, grad))
        return grad, seen, counted

    def gathered(self, seen: Expression, param: Expression, new: Expression) -> Mapping[str, Expression]:
        """What telemetry looks at."""
        return {"grad": seen, "update": new - param, "param": new} if self.gather else {}

    def averages(self, new: Expression) -> Mapping[str, Expression]:
        """The state that they keep, and its new value."""
        if not self.average:
            return {}
        average = Expression("input", ("param_average",), ELEMENTS)
        weight = Expression("input", ("average_weight",), NUMBER)
        return {"param_average": average + weight * (node("stored", new) - average)}


NO_SERVICES = Services()
