"""What a step's services add to a formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Services:
    """What a pass does besides the rule's formula.

    Attributes:
        factor: multiplies the gradient by a number: "tensor" for one a tensor, "row" for one a row, "" for none.
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


NO_SERVICES = Services()
