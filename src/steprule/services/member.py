"""A parameter of a step, as services see it."""

from __future__ import annotations

from torch import Tensor

from steprule.formats import row_length

COLUMNS = ("total_grad", "total_update", "total_param", "total_lost", "top_grad", "top_update", "top_param")
"""What telemetry wants of each, in its order."""
REMEMBERED = ("norm", "clipped", "skipped", "zeroed", "steps", "averaged")
"""What services remember from step to step."""


def row_of(param: Tensor) -> int:
    """The elements of one index of a parameter's first dimension; all of a vector's, and at least 1."""
    return max(row_length(param.shape) if param.dim() > 1 else param.numel(), 1)


class Member:
    """A parameter of a step.

    Args:
        name: what to call it.
        place: its number among all parameters.
        param: the tensor.
        free: whether it is left out of clipping.
        who: what messages call it. Default: name.
    """

    def __init__(self, name: str, place: int, param: Tensor, free: bool, who: str | None = None) -> None:
        self.name = name
        self.who = who or name
        self.place = place
        self.param = param
        self.free = free
