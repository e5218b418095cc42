"""Functions of whole matrices between two passes: a pass stores what they are of, and the next one reads what they made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.trace.expression import Expression
from steprule.trace.program import Matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Numbers = tuple[Any, ...] | None
"""What a function of a tensor's matrix is given besides it, or None where the tensor takes no step."""
MOST_BYTES = 2**28
"""What functions of matrices take at once beyond the matrices themselves."""


def room_dtype(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What matrices are kept in between passes: what their products are computed in.

    Args:
        shape: of a matrix, or of a stack of them.
        dtype: of the parameter.
        device: where it is.
    """
    import torch

    from steprule.matrix.how import plan_for

    wide = torch.float64 if dtype == torch.float64 else None
    return plan_for((shape[-2], shape[-1]), 2, device, dtype=wide).dtype


class Rooms:
    """The matrices of a plan, those of one shape in one stack.

    Args:
        dtypes: of each function of matrices, by name.
        shapes: of each tensor as a matrix, or as a stack of them.
        device: where they are.
    """

    def __init__(self, dtypes: Mapping[str, torch.dtype], shapes: Sequence[tuple[int, ...]], device: Any) -> None:
        import torch

        self._members: dict[tuple[int, ...], list[int]] = {}
        for number, shape in enumerate(shapes):
            self._members.setdefault(shape, []).append(number)
        self._stacks: dict[tuple[str, tuple[int, ...]], Tensor] = {
            (name, shape): torch.empty((len(members), *shape), dtype=dtype, device=device)
            for name, dtype in dtypes.items()
            for shape, members in self._members.items()
        }
        self._count = len(shapes)
        self._active = np.ones(self._count, bool)

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's matrix begins."""
        found = [0] * self._count
        for shape, members in self._members.items():
            for number, one in zip(members, self._stacks[name, shape], strict=True):
                found[number] = one.data_ptr()
        return found

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active = active

    def run(self, functions: Mapping[str, Matrix], value: Callable[[Expression], Any]) -> None:
        """Computes functions of matrices in their place.

        Args:
            functions: by name.
            value: what an expression is for each active tensor, or one number for all.
        """
        for name, one in functions.items():
            numbers = self._numbers_of(one, value)
            for shape, members in self._members.items():
                compute(one.op, self._stacks[name, shape], [numbers[member] for member in members])

    def _numbers_of(self, one: Matrix, value: Callable[[Expression], Any]) -> list[Numbers]:
        """The other arguments of a function, of each tensor."""
        numbers = [value(x) if isinstance(x, Expression) else x for x in one.others]
        places = np.cumsum(self._active) - 1
        return [
            tuple(x if np.ndim(x) == 0 else x[place] for x in numbers) if is_active else None
            for place, is_active in zip(places, self._active, strict=True)
        ]


def compute(op: str, stack: Tensor, numbers: Sequence[Numbers]) -> None:
    """Computes a function of a stack's matrices in their place, neighbors that have the same numbers at once.

    Args:
        op: which.
        stack: the matrices, or stacks of them.
        numbers: the function's other arguments, of each; None leaves one as it is.
    """
    start = 0
    for own, run in groupby(numbers):
        end = start + len(list(run))
        if own is not None:
            _RUN[op](stack[start:end].flatten(0, -3), *own)
        start = end


def _polar(stack: Tensor, steps: Any, eps: float, *coefficients: Any) -> None:
    from steprule.matrix.how import plan_for
    from steprule.matrix.polar import polar, split

    chosen: Any = coefficients[0] if len(coefficients) == 1 else tuple(map(float, coefficients))
    shape = (stack.shape[-2], stack.shape[-1])
    how = plan_for(shape, len(stack), stack.device, dtype=stack.dtype)
    for part in split(shape, len(stack), how, MOST_BYTES):
        polar(stack[part], chosen, None if steps is None else int(steps), how=how, eps=float(eps), out=stack[part])


_RUN: Mapping[str, Callable[..., None]] = {"polar": _polar}
