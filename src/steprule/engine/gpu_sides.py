"""As `steprule.engine.sides`, on a GPU: the host never waits for a number, and launches are as many for any number of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_reading import Combination
from steprule.engine.sides import SideEvaluation, SideTables
from steprule.formats import gpu as lib
from steprule.kernels.gpu_pass import GpuSource
from steprule.trace.expression import Expression
from steprule.trace.extent import COLS, ROWS, Extent
from steprule.trace.program import ADD, COL, EXTENTS, ROW, Side

_TILE, _AT_ONCE = 64, 16
_ALIGNED = 16
"""Numbers of columns lie so that threads read 16 bytes at a time where they do so with the elements."""


@triton.jit  # type: ignore[untyped-decorator]
def join(  # type: ignore[no-untyped-def]
    parts,
    first,
    owners,
    starts,
    lengths,
    counts,
    results,
    size,
    IS_SUM: tl.constexpr,
    TILE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """What tiles have found of rows, or of columns, made one number for each, always in the same order."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)[None, :]
    inside = i < size
    owner = tl.load(owners + i, mask=inside, other=0)
    length, count = tl.load(lengths + owner), tl.where(inside, tl.load(counts + owner), 0)
    at = parts + tl.load(first + owner) + i - tl.load(starts + owner)
    number = tl.arange(0, AT_ONCE)[:, None]
    total = tl.zeros((AT_ONCE, TILE), tl.float64)
    for start in range(0, tl.max(count).to(tl.int32), AT_ONCE):
        x = tl.load(at + (start + number) * length, mask=start + number < count, other=0.0).to(tl.float64)
        total = total + x if IS_SUM else lib.larger(x, total)
    result = tl.sum(total, axis=0, keep_dims=True) if IS_SUM else lib.maximum_of(total, 0)
    tl.store(results + i, result, mask=inside)


class GpuSides(SideTables):
    """Tables of what passes read of rows and columns, and of what they find.

    Args:
        sides: the numbers, by name.
        shapes: rows and columns of each tensor.
        source: of a kernel that works through them, in tiles that all of its program have.
        device: where.

    Attributes:
        count: how many tensors there are.
        owners: which tensor each row, and each column, belongs to.
        starts: each tensor's first.
        counts: how many it has.
    """

    def __init__(
        self, sides: Mapping[str, Side], shapes: Sequence[Sequence[int]], source: GpuSource, device: torch.device
    ) -> None:
        columns, self.count = source.tile // source.rows, len(shapes)
        parts = {
            ROW: np.array([-(-n // columns) for _, n in shapes]), COL: np.array([-(-m // source.rows) for m, _ in shapes])
        }  # fmt: skip
        super().__init__(sides, shapes, source.real, parts, _ALIGNED)
        self.device = device
        self._tables = {
            name: torch.zeros(self.size(name), dtype=getattr(torch, self.dtypes[name]), device=device) for name in sides
        }
        self.owners, self.starts, self.counts = {}, {}, {}
        self._ends: dict[Extent, np.ndarray] = {}
        for extent, lengths in self.lengths.items():
            self._ends[extent] = ends = np.concatenate([[0], np.cumsum(lengths)])
            self.owners[extent] = torch.from_numpy(np.repeat(np.arange(self.count), lengths)).to(device)
            self.starts[extent] = torch.from_numpy(ends[:-1]).to(device)
            self.counts[extent] = torch.from_numpy(lengths).to(device)
        self._places = {name: self._places_of(name) for name, side in sides.items() if not side.how}
        self._joins = {name: self._join_of(name) for name, side in sides.items() if side.how}
        self._combinations: dict[int, Combination] = {}

    def table_at(self, name: str) -> int:
        """Where a table begins."""
        return self._tables[name].data_ptr()

    def _places_of(self, name: str) -> Tensor | None:
        """Where in a table the numbers of rows or columns are, if there are gaps."""
        extent = EXTENTS[self.sides[name].axis]
        if self.size(name) == self._ends[extent][-1]:
            return None
        gaps = self.first[name][:-1] - self._ends[extent][:-1]
        return torch.from_numpy(np.arange(self._ends[extent][-1]) + np.repeat(gaps, self.lengths[extent])).to(
            self.device
        )

    def _join_of(self, name: str) -> tuple[Launch, Tensor]:
        """What joins the parts of a table, and into what."""
        side = self.sides[name]
        extent = EXTENTS[side.axis]
        size = len(self.owners[extent])
        results = torch.zeros(size, dtype=torch.float64, device=self.device)
        first, parts = (torch.from_numpy(one).to(self.device) for one in (self.first[name][:-1], self.parts[side.axis]))
        launch = Launch(
            join, (-(-size // _TILE),), self._tables[name], first, self.owners[extent], self.starts[extent],
            self.counts[extent], parts, results, size, IS_SUM=side.how == ADD, TILE=_TILE, AT_ONCE=_AT_ONCE,
        )  # fmt: skip
        return launch, results

    def put(self, name: str, values: Tensor) -> None:
        """Takes over what passes are to read."""
        table, places = self._tables[name], self._places[name]
        if places is None:
            table.copy_(values)
        else:
            table.index_copy_(0, places, values.to(table.dtype).expand(len(places)))

    def found(self, name: str) -> Tensor:
        """What a pass has found for rows or columns; overwritten by the next."""
        launch, results = self._joins[name]
        if len(results):
            with on(self.device):
                launch()
        return results

    def joined(self, key: int, extent: Extent, is_sum: bool, values: Tensor) -> Tensor:
        """The sum of each tensor's rows or columns, or the largest of these; overwritten by the next of the same key."""
        if key not in self._combinations:
            room = torch.zeros((len(self.owners[extent]), 1), dtype=torch.float64, device=self.device)
            self._combinations[key] = Combination(self._ends[extent], ["total_" if is_sum else "top_"], room)
        one = self._combinations[key]
        one.parts.copy_(values.reshape(-1, 1))
        (result,) = one.sums().values()
        return result  # type: ignore[no-any-return]


class GpuEvaluation(SideEvaluation):
    """Expressions with tensors on a device. Constants are there already, since torch would wait for it to bring them there.

    Args:
        inputs: tensors by name.
        constants: that are there, to which others are added.
        device: where.
        sides: which rows and columns belong to which tensor, where they have numbers.
    """

    def __init__(
        self, inputs: dict[str, Any], constants: dict[str, Tensor], device: torch.device, sides: GpuSides | None
    ) -> None:
        super().__init__(inputs)
        self._constants, self._device, self._sides = constants, device, sides

    def __call__(self, expression: Expression) -> Any:
        """The expression's value, a number for each tensor, row or column, or one for all."""
        if expression.op != "constant":
            return super().__call__(expression)
        value = expression.args[0]
        if repr(value) not in self._constants:
            dtype = torch.bool if isinstance(value, bool) else torch.float64
            self._constants[repr(value)] = torch.full((), value, dtype=dtype, device=self._device)
        return self._constants[repr(value)]

    def joined(self, expression: Expression, extent: Extent, values: Tensor) -> Tensor:
        """The sum of each tensor's rows or columns, or the largest of these."""
        assert self._sides is not None
        return self._sides.joined(id(expression), extent, not expression.op.endswith("largest"), values)

    def top_share(self, extent: Extent, values: Tensor, shares: Tensor) -> Tensor:
        """1 for the largest rows or columns of each tensor, as many as its share says, and 0 for the others."""
        assert self._sides is not None
        owners, starts = self._sides.owners[extent], self._sides.starts[extent]
        counts = (shares * self._sides.counts[extent]).ceil().clamp_min(1.0).expand(self._sides.count)
        order = (-values).argsort(stable=True)
        order = order[owners[order].argsort(stable=True)]
        places = torch.arange(len(owners), device=self._device) - starts[owners]
        is_one = places < counts[owners]
        return torch.zeros_like(values).index_copy_(0, order, is_one.to(values.dtype))

    def apply(self, expression: Expression, args: Sequence[Tensor]) -> Tensor:
        """An operation on values of the same extent."""
        return self.operate(expression.op, args)  # type: ignore[no-any-return]

    def spread(self, expression: Expression, wanted: Extent) -> Tensor:
        """An expression's value; a tensor's number for each of its rows or columns."""
        value: Tensor = self(expression)
        if wanted in (ROWS, COLS) and expression.extent not in (ROWS, COLS) and value.dim():
            assert self._sides is not None
            return value[self._sides.owners[wanted]]
        return value
