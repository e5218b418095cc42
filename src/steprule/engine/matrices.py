"""Functions of whole matrices between two passes: a pass stores what they are of, and the next one reads what they made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.engine.squares import Beside
from steprule.trace.expression import Expression
from steprule.trace.program import IN_PLACE, Matrix, Squares

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

    is_exact = function.op != "polar"  # of bfloat16 there are no triangular solves, and no eigenvectors
    if not is_exact and not isinstance(function.others[-1], Expression):
        is_exact = published(function.others[-1]).exact
    wide = torch.float64 if dtype == torch.float64 else torch.float32 if is_exact else None
    chosen = plan_for((shape[-2], shape[-1]), 2, device, dtype=wide).dtype
    return torch.bfloat16 if chosen == torch.float16 else chosen  # which small momentum would vanish in


class Rooms:
    """The matrices of a plan, those of one shape in one stack.

    Args:
        dtypes: of each function of matrices, by name.
        shapes: of each tensor as a matrix, or as a stack of them.
        device: where they are.
        shared: those that take the memory of others.
    """

    beside: Beside | None = None

    def __init__(
        self,
        dtypes: Mapping[str, torch.dtype],
        shapes: Sequence[tuple[int, ...]],
        device: Any,
        shared: Mapping[str, str] | None = None,
    ) -> None:
        import torch

        self._shapes, self._shared = shapes, shared or {}
        self._members: dict[tuple[int, ...], list[int]] = {}
        for number, shape in enumerate(shapes):
            self._members.setdefault(shape, []).append(number)
        self._stacks: dict[tuple[str, tuple[int, ...]], Tensor] = {
            (name, shape): torch.empty((len(members), *shape), dtype=dtype, device=device)
            for name, dtype in dtypes.items()
            for shape, members in self._members.items()
            if name not in self._shared
        }
        self._count = len(shapes)
        self.select(np.ones(self._count, bool))

    def keep_squares(
        self, squares: Sequence[Squares | None], states: Mapping[str, Sequence[Tensor]], places: Sequence[int]
    ) -> None:
        """Has squares beside the matrices; arguments as for `Beside`."""
        self.beside = Beside(squares, states, places, self._shapes, self._stack, self._members)
        self.beside.select(self._active)

    def _stack(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """All matrices of a shape."""
        return self._stacks[self._shared.get(name, name), shape]

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's matrix begins."""
        found = [0] * self._count
        for shape, members in self._members.items():
            for number, one in zip(members, self._stack(name, shape), strict=True):
                found[number] = one.data_ptr()
        return found

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active, self._all_active, self._places = active, bool(active.all()), np.cumsum(active) - 1
        if self.beside is not None:
            self.beside.select(active)

    def run(self, functions: Mapping[str, Matrix], value: Callable[[Expression], Any]) -> None:
        """Computes functions of matrices in their place.

        Args:
            functions: by name.
            value: what an expression is for each active tensor, or one number for all.
        """
        for name, one in functions.items():
            if one.op in IN_PLACE:
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
                _RUN[one.op](stacks[name, shape][start:end].flatten(0, -3), *settings)

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


def _common(values: Any) -> Any:
    """One number, if all are that."""
    is_one = isinstance(values, np.ndarray) and len(values) and (values == values[0]).all()
    return values[0] if is_one else values


def _polar(stack: Tensor, steps: Any, eps: float, *coefficients: Any) -> None:
    import torch

    from steprule.matrix.how import plan_for
    from steprule.matrix.polar import polar, split

    chosen: Any = coefficients[0] if len(coefficients) == 1 else tuple(map(float, coefficients))
    shape = (stack.shape[-2], stack.shape[-1])
    chosen_by_form = stack.is_cuda and stack.dtype == torch.bfloat16
    how = plan_for(shape, len(stack), stack.device, dtype=None if chosen_by_form else stack.dtype)
    for part in split(shape, len(stack), how, MOST_BYTES):
        polar(stack[part], chosen, None if steps is None else int(steps), how=how, eps=float(eps), out=stack[part])


def _decorrelate(stack: Tensor, passes: float) -> None:
    from steprule.matrix.decorrelated import decorrelated

    step = max(1, MOST_BYTES // max(1, 3 * stack[:1].numel() * stack.element_size()))
    for start in range(0, len(stack), step):
        part = stack[start : start + step]
        part.copy_(decorrelated(part, int(passes)))


_RUN: Mapping[str, Callable[..., None]] = {"polar": _polar, "decorrelate": _decorrelate}
