"""Functions of whole matrices between two passes: a pass stores what they are of, and the next one reads what they made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.trace.expression import Expression
from steprule.trace.program import Matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_BYTES = 2**28
"""What functions of matrices take at once beyond the matrices themselves."""


def room_dtype(function: Matrix, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What matrices are kept in between passes: what their products are computed in.

    Args:
        function: what they are for.
        shape: of a matrix, or of a stack of them.
        dtype: of the parameter.
        device: where it is.
    """
    import torch

    from steprule.matrix.coefficients import published
    from steprule.matrix.how import plan_for

    word = function.others[-1]
    is_exact = not isinstance(word, Expression) and published(word).exact
    is_exact |= function.op != "polar"  # of bfloat16 there are no triangular solves
    wide = torch.float64 if dtype == torch.float64 else torch.float32 if is_exact else None
    chosen = plan_for((shape[-2], shape[-1]), 2, device, dtype=wide).dtype
    return torch.bfloat16 if chosen == torch.float16 else chosen  # which small momentum would vanish in


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
        self.select(np.ones(self._count, bool))

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's matrix begins."""
        found = [0] * self._count
        for shape, members in self._members.items():
            for number, one in zip(members, self._stacks[name, shape], strict=True):
                found[number] = one.data_ptr()
        return found

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active, self._all_active, self._places = active, bool(active.all()), np.cumsum(active) - 1

    def run(self, functions: Mapping[str, Matrix], value: Callable[[Expression], Any]) -> None:
        """Computes functions of matrices in their place.

        Args:
            functions: by name.
            value: what an expression is for each active tensor, or one number for all.
        """
        for name, one in functions.items():
            self._compute(name, one, value, self._members, self._stacks)

    def _compute(
        self,
        name: str,
        one: Matrix,
        value: Callable[[Expression], Any],
        members: Mapping[tuple[int, ...], Sequence[int]],
        stacks: Mapping[tuple[str, tuple[int, ...]], Tensor],
    ) -> None:
        """Computes a function of stacks of matrices, whose members are these tensors, in their place."""
        numbers = [_common(value(x)) if isinstance(x, Expression) else x for x in one.others]
        for shape, own in members.items():
            for start, end, settings in self._runs(own, numbers):
                stack = stacks[name, shape][start:end].flatten(0, -3)
                compute = partial(_RUN[one.op], *settings)
                _compute_part(compute, stack) if one.is_part and not stack.is_cuda else compute(stack)

    def _runs(self, members: Sequence[int], numbers: Sequence[Any]) -> Iterator[tuple[int, int, Sequence[Any]]]:
        """Stretches of active tensors that have the same numbers."""
        if self._all_active and not any(isinstance(x, np.ndarray) for x in numbers):
            yield 0, len(members), numbers
            return
        own = [
            tuple(x[self._places[member]] if isinstance(x, np.ndarray) else x for x in numbers)
            if self._active[member]
            else None
            for member in members
        ]
        start = 0
        for settings, run in groupby(own):
            end = start + len(list(run))
            if settings is not None:
                yield start, end, settings
            start = end


def _compute_part(compute: Callable[[Tensor], None], stack: Tensor) -> None:
    """Computes a function of matrices without the rows, or columns, that are 0 and stay 0, which a GPU would be waited for to count."""
    for x in (stack, stack.mT):
        kept = x.any(-1)
        count = int(kept.sum(-1).max())
        if count < x.shape[-2]:
            places = (
                kept.byte().argsort(dim=-1, descending=True, stable=True)[:, :count, None].expand(-1, -1, x.shape[-1])
            )
            part = x.gather(1, places)
            compute(part)
            x.scatter_(1, places, part)
            return
    compute(stack)


def _common(values: Any) -> Any:
    """One number, if all are that."""
    is_one = isinstance(values, np.ndarray) and len(values) and (values == values[0]).all()
    return values[0] if is_one else values


def _polar(steps: Any, eps: float, *settings: Any) -> None:
    *coefficients, stack = settings
    import torch

    from steprule.matrix.how import plan_for
    from steprule.matrix.polar import polar, split

    chosen: Any = coefficients[0] if len(coefficients) == 1 else tuple(map(float, coefficients))
    shape = (stack.shape[-2], stack.shape[-1])
    chosen_by_form = stack.is_cuda and stack.dtype == torch.bfloat16
    how = plan_for(shape, len(stack), stack.device, dtype=None if chosen_by_form else stack.dtype)
    for part in split(shape, len(stack), how, MOST_BYTES):
        polar(stack[part], chosen, None if steps is None else int(steps), how=how, eps=float(eps), out=stack[part])


def _decorrelate(passes: float, stack: Tensor) -> None:
    from steprule.matrix.decorrelated import decorrelated

    step = max(1, MOST_BYTES // max(1, 3 * stack[:1].numel() * stack.element_size()))
    for start in range(0, len(stack), step):
        part = stack[start : start + step]
        part.copy_(decorrelated(part, int(passes)))


_RUN: Mapping[str, Callable[..., None]] = {"polar": _polar, "decorrelate": _decorrelate}
