"""Functions of whole matrices between two passes: a pass stores what they are of, and the next one reads what they made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.trace.expression import Expression
from steprule.trace.program import Matrix, Program

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


def fits_passes(program: Program, view: str | None, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether passes over elements go with a view, which they do not know of: only the matrices between them do.

    Args:
        program: what the passes are a part of.
        view: how tensors are seen as matrices.
        shapes: of these, as `steprule.state.matrices_of` gives them.
    """
    if view is None:
        return True
    is_one = len(shapes) == 1 and len(shapes[0]) == 2
    is_plain = is_one and view in ("matrix", "flatten")  # so that rows are rows in memory
    adds_up = any(not one.of_all for one in program.sums.values())
    return is_plain or (len(shapes) == 1 and not program.last.sides and (is_one or not adds_up))


class Rooms:
    """The matrices of a plan, those of one shape in one stack.

    Args:
        dtypes: of each function of matrices, by name.
        shapes: of each tensor as a matrix, or as a stack of them; with a view, of what that sees as matrices.
        device: where they are.
        view: how all of them are seen as matrices.
    """

    def __init__(
        self, dtypes: Mapping[str, torch.dtype], shapes: Sequence[tuple[int, ...]], device: Any, view: str | None = None
    ) -> None:
        import torch

        self._view = view
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
                for matrices in _seen(stacks[name, shape][start:end], self._view):
                    _RUN[one.op](matrices, *settings)

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


def _seen(stack: Tensor, view: str | None) -> Iterator[Tensor]:
    """The matrices of some tensors, of shape (k, m, n): what is written into them is written into the tensors."""
    if view is None:
        yield stack.flatten(0, -3)
        return
    import torch

    from steprule.matrices.view import View

    for one in View(view).matrices(stack[0]):  # whose strides are those in the others
        shape, strides = (len(stack), *one.shape), (stack.stride(0), *one.stride())
        every = torch.as_strided(stack, shape, strides, one.storage_offset())
        if every.is_contiguous():
            yield every.view(-1, *one.shape[-2:])
            continue
        for part in torch.split(every, max(1, MOST_BYTES // max(1, one.numel() * one.element_size()))):
            matrices = part.contiguous()
            yield matrices.view(-1, *one.shape[-2:])
            part.copy_(matrices)


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
