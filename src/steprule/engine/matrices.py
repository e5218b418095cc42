"""Functions of whole matrices between two passes: a pass stores what they are of, and the next one reads what they made of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from steprule.engine.squares import SquareRooms
from steprule.engine.told import There
from steprule.engine.workspace import workspace
from steprule.trace.expression import Expression
from steprule.trace.program import IN_PLACE, Level, Matrix, Program, Squares

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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


def _aligned(size: int) -> int:
    return -(-size // 64) * 64  # a cache line


def goes_with_view(program: Program, view: str | None, shapes: Sequence[tuple[int, ...]]) -> bool:
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
    needs_rows = program.last.sides or program.has_squares
    return is_plain or (len(shapes) == 1 and not needs_rows and (is_one or not adds_up))


Value = Callable[[Expression], Any]
"""What an expression is for each active tensor, or one number for all."""


class BesideRooms(Protocol):
    """The matrices that lie between a plan's passes, and the squares beside them, as a step asks for them.

    Attributes:
        key: what must be the same in all processes, where these have parts; None where matrices are whole.
    """

    key: Any

    def addresses(self, name: str) -> list[int]:
        """Where what passes store and read of each tensor's matrix begins."""

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""

    def run(
        self, now: Level, value: Value, settings: bytes, measured: Mapping[str, Any], there: There | None = None
    ) -> None:
        """Computes functions of a level's matrices in their place, and what there is to compute of squares.

        Args:
            now: the level, whose pass has stored matrices.
            value: what an expression is that the host knows, for each active tensor, or one number for all.
            settings: what is the same as in the last step where all such values are.
            measured: for those functions that want it, the sum of the squares of what they are of, for each active tensor.
            there: what of the numbers is on a GPU.
        """

    def forget(self) -> None:
        """Drops what one level has left for another: a step begins, or has come to the end of them."""


class Rooms:
    """The matrices of a plan, those of one shape in one stack: `BesideRooms`.

    Args:
        dtypes: of each function of matrices, by name.
        shapes: of each tensor as a matrix, or as a stack of them; with a view, of what that sees as matrices.
        device: where they are.
        shared: those that take the memory of others, which dtypes lack.
        memory: `size_of` bytes or more that others use before and after a step. Default: their own.
        view: how all of them are seen as matrices.
        chosen: the places of the tensors whose matrices are here. Default: all.
    """

    key: Any = None
    square_rooms: SquareRooms | None = None

    def __init__(
        self,
        dtypes: Mapping[str, torch.dtype],
        shapes: Sequence[tuple[int, ...]],
        device: Any,
        shared: Mapping[str, str] | None = None,
        memory: Tensor | None = None,
        view: str | None = None,
        chosen: Sequence[int] | None = None,
    ) -> None:
        import torch

        chosen = range(len(shapes)) if chosen is None else chosen
        if memory is None:
            size = self.size_of(dtypes, [shapes[number] for number in chosen])
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._shapes, self._shared, self._view = shapes, shared or {}, view
        self._members: dict[tuple[int, ...], list[int]] = {}
        for number in chosen:
            self._members.setdefault(shapes[number], []).append(number)
        self._stacks: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        start = 0
        for name, dtype in dtypes.items():
            for shape, members in self._members.items():
                size = len(members) * math.prod(shape) * dtype.itemsize
                self._stacks[name, shape] = memory[start : start + size].view(dtype).view(len(members), *shape)
                start += _aligned(size)
        self._count, self._device = len(shapes), memory.device
        self._settings = b""
        self.select(np.ones(self._count, bool))

    def keep_squares(
        self,
        squares: Sequence[Squares | None],
        states: Mapping[str, Any],
        places: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        """Has squares beside the matrices; arguments as for `SquareRooms`."""
        self.square_rooms = SquareRooms(
            squares, states, places, dtype, self._device, self._shapes, self._stack, self._members
        )
        self.square_rooms.select(self._active)

    def _stack(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """All matrices of a shape."""
        return self._stacks[self._shared.get(name, name), shape]

    @staticmethod
    def size_of(dtypes: Mapping[str, torch.dtype], shapes: Sequence[tuple[int, ...]]) -> int:
        """How many bytes they take."""
        counts = Counter(shapes)
        return sum(
            _aligned(n * math.prod(shape) * dtype.itemsize) for dtype in dtypes.values() for shape, n in counts.items()
        )

    def matrices(self, name: str) -> dict[int, Tensor]:
        """Each tensor's matrix."""
        return {
            number: one
            for shape, members in self._members.items()
            for number, one in zip(members, self._stack(name, shape), strict=True)
        }

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's matrix begins."""
        every = self.matrices(name)
        return [every[number].data_ptr() for number in range(self._count)]

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active, self._all_active, self._places = active, bool(active.all()), np.cumsum(active) - 1
        self._calls: dict[str, list[_Call]] = {}
        if self.square_rooms is not None:
            self.square_rooms.select(active)

    def run(
        self, now: Level, value: Value, settings: bytes, measured: Mapping[str, Any], there: There | None = None
    ) -> None:
        """See `BesideRooms`."""
        if settings != self._settings:
            self._settings, self._calls = settings, {}
            if self.square_rooms is not None:
                self.square_rooms.told.forget()
        for name, one in now.matrices.items():
            if one.op not in IN_PLACE:
                continue
            if name not in self._calls:
                self._calls[name] = self._made(name, one, value)
            for call in self._calls[name]:
                call(measured.get(name))
        if self.square_rooms is not None and now.squares is not None:
            self.square_rooms.run(now.squares, value, there)

    def forget(self) -> None:
        """See `BesideRooms`."""
        if self.square_rooms is not None:
            self.square_rooms.forget()

    def _made(self, name: str, one: Matrix, value: Value) -> list[_Call]:
        """What computes a function of matrices in their place."""
        numbers = [_common(value(x)) if isinstance(x, Expression) else x for x in one.others]
        made = []
        for shape, own in self._members.items():
            for start, end, settings in self._runs(own, numbers):
                make = partial(_MAKERS[one.op], settings)
                for chosen, part, is_one in _seen(self._stack(name, shape)[start:end], self._view):
                    places = self._places[own[start:end]][chosen] if is_one else None
                    made.append(_Call(_compute_of(make, part, one.is_part), part, places))
        return made

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


_Compute = Callable[["Tensor", Any], None]
"""Computes a function of a stack of matrices in their place, perhaps with their norms: a list of them, or a tensor on a GPU."""


@dataclass(frozen=True)
class _Call:
    """A function of a stack of matrices.

    Attributes:
        compute: computes it.
        stack: the matrices.
        places: of each matrix that of its tensor among the active ones; None where tensors are several matrices.
    """

    compute: _Compute
    stack: Tensor
    places: np.ndarray | None

    def __call__(self, squares: Any) -> None:
        """Computes it; squares are sums as `BesideRooms.run` takes them."""
        if squares is None or self.places is None:
            self.compute(self.stack, None)
        elif isinstance(squares, np.ndarray):
            self.compute(self.stack, np.sqrt(squares[self.places]).tolist())
        else:
            self.compute(self.stack, squares[self._places_there].sqrt())

    @cached_property
    def _places_there(self) -> Tensor:
        """The places on the stack's device."""
        import torch

        return torch.from_numpy(self.places).to(self.stack.device)


def _compute_part(make: Callable[[Tensor], _Compute], stack: Tensor, norms: Any) -> None:
    """Computes a function of matrices without the rows, or columns, that are 0 and stay 0, which a GPU would be waited for to count."""
    for x in (stack, stack.mT):
        kept = x.any(-1)
        count = int(kept.sum(-1).max())
        if count < x.shape[-2]:
            order = kept.byte().argsort(dim=-1, descending=True, stable=True)
            places = order[:, :count, None].expand(-1, -1, x.shape[-1])
            part = x.gather(1, places)
            make(part)(part, norms)
            x.scatter_(1, places, part)
            return
    make(stack)(stack, norms)


def _seen(stack: Tensor, view: str | None) -> Iterator[tuple[slice, Tensor, bool]]:
    """The matrices of some tensors, in their memory: those of which tensors, the matrices, and whether each tensor is one."""
    if view is None:
        yield slice(None), stack.flatten(0, -3), stack.dim() == 3
        return
    import torch

    from steprule.layers.view import View

    seen = View(view).matrices(stack[0])  # whose strides are those in the others
    for one in seen:
        shape, strides = (len(stack), *one.shape), (stack.stride(0), *one.stride())
        every = torch.as_strided(stack, shape, strides, one.storage_offset())
        most = max(1, workspace() // 2 // max(1, one.numel() * one.element_size()))  # copied at once
        step = len(stack) if every.is_contiguous() else most
        for start in range(0, len(stack), step):
            part = every[start : start + step]
            part = part.flatten(0, -3) if part.is_contiguous() else part
            yield slice(start, start + step), part, len(seen) == 1 and one.dim() == 2


def _compute_of(make: Callable[[Tensor], _Compute], matrices: Tensor, is_part: bool) -> _Compute:
    """What computes a function of these matrices in their place; those that do not lie row after row are copied and put back."""

    def compute_copy(matrices: Tensor, norms: Any) -> None:
        copied = matrices.contiguous()
        compute(copied.flatten(0, -3), norms)
        matrices.copy_(copied)

    in_order = matrices if matrices.is_contiguous() else matrices.new_empty(matrices.shape).flatten(0, -3)
    compute = partial(_compute_part, make) if is_part and not matrices.is_cuda else make(in_order)
    return compute if matrices.is_contiguous() else compute_copy


def _common(values: Any) -> Any:
    """One number, if all are that."""
    is_one = isinstance(values, np.ndarray) and len(values) and (values == values[0]).all()
    return values[0] if is_one else values


def _polar(settings: Sequence[Any], stack: Tensor) -> _Compute:
    """What computes polar factors of stacks like this one, for part after part, so that none takes too much memory."""
    import torch

    from steprule.matrix.how import plan_for
    from steprule.matrix.polar import SAFE, Chain, split

    steps, least, *given = settings
    coefficients: Any = given[0] if len(given) == 1 else tuple(map(float, given))
    (count, *sides), eps = stack.shape, float(least)
    shape = (sides[0], sides[1])
    chosen_by_form = stack.is_cuda and stack.dtype == torch.bfloat16
    how = plan_for(shape, count, stack.device, dtype=None if chosen_by_form else stack.dtype)
    chain = Chain(how, shape, stack.device, coefficients, None if steps is None else int(steps))
    parts = [*split(shape, count, how, workspace() // 2)] if stack.numel() else []

    def compute(stack: Tensor, norms: Any) -> None:
        if norms is None:  # as a pass over elements would have added up their squares
            norms = torch.linalg.vector_norm(stack, 2, (-2, -1), dtype=torch.float64)
            norms = norms if stack.is_cuda else norms.tolist()
        if eps < SAFE and not isinstance(norms, list):  # a GPU is not waited for to say whether one is so small
            norms = None
        if len(parts) == 1:
            chain(stack, stack, norms, eps)
            return
        for part in parts:
            chain(stack[part], stack[part], None if norms is None else norms[part], eps)

    return compute


def _decorrelate(settings: Sequence[Any], stack: Tensor) -> _Compute:
    """The same for `decorrelate`."""
    from steprule.matrix.decorrelated import decorrelated

    (passes,) = settings
    step = max(1, workspace() // 2 // max(1, 3 * stack[:1].numel() * stack.element_size()))

    def compute(stack: Tensor, _: Any) -> None:
        for start in range(0, len(stack), step):
            part = stack[start : start + step]
            part.copy_(decorrelated(part, int(passes)))

    return compute


_MAKERS: Mapping[str, Callable[[Sequence[Any], Tensor], _Compute]] = {"polar": _polar, "decorrelate": _decorrelate}
