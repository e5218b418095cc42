"""The GPU engine's reading pass: sums over gradients that must be known before the first element changes.

As on the CPU each stretch of 16,384 elements (or each row) is added up in float64 by itself, and the stretches in an order
that is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_plan import GpuPlan, chunk_table
from steprule.engine.reading import STRETCH, kind_of
from steprule.formats import gpu as lib

_BLOCK = 1024
_HIDING = ("smallest", "nonzero", "power")
"""Norms that may be finite where an element is not."""
_WAYS = {"largest": 1, "smallest": 2}
"""How parts are combined; the others are added up."""


@triton.jit
def _element(at, inside, CODEC: tl.constexpr, ZERO: tl.constexpr):  # type: ignore[no-untyped-def]
    """Absolute values in float64."""
    x = lib.load(at, inside)
    if CODEC == "bfloat16":
        x = lib.from_bfloat16(x)
    x = tl.abs(x.to(tl.float64))
    if ZERO:
        x = tl.where(x < float("inf"), x, 0.0)
    return x


@triton.jit
def _joined(total, x, inside, KIND: tl.constexpr, POWER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum, or whatever the norm is made of, with another element."""
    if KIND == "square":
        new = tl.fma(x, x, total)
    elif KIND == "abs":
        new = total + x
    elif KIND == "largest":
        new = lib.larger(x, total)
    elif KIND == "smallest":
        new = lib.smaller(x, total)
    elif KIND == "nonzero":
        new = total + tl.where(x != 0.0, 1.0, 0.0)
    else:
        new = total + lib.power(x, tl.zeros_like(x) + POWER)
    if inside is None:
        return new
    else:
        return tl.where(inside, new, total)


@triton.jit
def _result(total, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    if KIND == "largest":
        return lib.maximum_of(total)
    elif KIND == "smallest":
        return lib.minimum_of(total)
    else:
        return tl.sum(total)


@triton.jit
def read(  # type: ignore[no-untyped-def]
    address, sizes, chunks, lengths, sums, ELEMENT: tl.constexpr, CODEC: tl.constexpr, KIND: tl.constexpr,
    POWER: tl.constexpr, ZERO: tl.constexpr, CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One stretch of one tensor."""
    chunk = tl.program_id(0)
    tensor, number = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1)
    stretch = tl.load(lengths + tensor)
    start = number.to(tl.int64) * stretch
    length = tl.minimum(tl.load(sizes + tensor) - start, stretch)
    place = tl.load(address + tensor) + start * (ELEMENT.primitive_bitwidth // 8)
    at = place.to(tl.pointer_type(ELEMENT))
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    if KIND == "smallest":
        total += float("inf")
    wrong = tl.zeros((BLOCK,), tl.float64)
    whole = tl.where((place & 15) == 0, length // BLOCK * BLOCK, 0)
    wide_at = tl.multiple_of(place.to(tl.pointer_type(ELEMENT)), 16)
    for first in range(0, whole, BLOCK):
        x = _element(wide_at + first + i, None, CODEC, ZERO)
        total = _joined(total, x, None, KIND, POWER)
        if CHECK:
            wrong += x - x
    for first in range(whole, length, BLOCK):
        inside = first + i < length
        x = _element(at + first + i, inside, CODEC, ZERO)
        total = _joined(total, x, inside, KIND, POWER)
        if CHECK:
            wrong += x - x
    result = _result(total, KIND)
    if CHECK:
        result += tl.sum(wrong)
    tl.store(sums + chunk, result)


@triton.jit
def combine(parts, first_chunk, ways, results, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tensor's parts, one column of them, in order."""
    tensor, column = tl.program_id(0), tl.program_id(1)
    way = tl.load(ways + column)
    first, end = tl.load(first_chunk + tensor), tl.load(first_chunk + tensor + 1)
    i = tl.arange(0, BLOCK)
    empty = tl.where(way == 2, float("inf"), 0.0).to(tl.float64)
    total = tl.zeros((BLOCK,), tl.float64) + empty
    for start in range(first, end, BLOCK):
        inside = start + i < end
        x = tl.load(parts + (start + i) * width + column, mask=inside, other=0.0)
        joined = tl.where(way == 0, total + x, tl.where(way == 1, lib.larger(x, total), lib.smaller(x, total)))
        total = tl.where(inside, joined, total)
    largest, smallest = lib.maximum_of(total), lib.minimum_of(total)
    result = tl.where(way == 0, tl.sum(total), tl.where(way == 1, largest, smallest))
    tl.store(results + tensor * width + column, result)


def settings(dtype: str, norm_type: float, zero: bool, check: bool) -> dict[str, Any]:
    """What is fixed in a reading kernel; arguments as for `GpuReading`."""
    kind = kind_of(norm_type)
    return {
        "ELEMENT": tl.uint16 if dtype == "bfloat16" else getattr(tl, dtype),
        "CODEC": dtype,
        "KIND": kind,
        "POWER": float(norm_type) if kind == "power" else 0.0,
        "ZERO": zero,
        "CHECK": check and kind in _HIDING,
        "BLOCK": _BLOCK,
    }


class Combination:
    """Adds up what chunks have left, tensor by tensor.

    Args:
        first_chunk: each tensor's first chunk, and the end.
        ways: for each column 0 for a sum, 1 for the largest and 2 for the smallest.
        parts: what they leave, a row for each chunk, without a gap.
    """

    def __init__(self, first_chunk: np.ndarray, ways: Sequence[int], parts: Tensor) -> None:
        device, count, width = parts.device, len(first_chunk) - 1, len(ways)
        self._results = torch.zeros((count, width), dtype=torch.float64, device=device)
        self._launch = Launch(
            combine, (count, width), parts, torch.from_numpy(first_chunk).to(device),
            torch.tensor(ways, dtype=torch.int32, device=device), self._results, width, BLOCK=256,
        )  # fmt: skip

    def run(self) -> Tensor:
        """Shape (tensors, columns); overwritten by the next run."""
        if len(self._results):
            with on(self._results.device):
                self._launch()
        return self._results


class GpuReading:
    """One kind of sum over one of a plan's operands.

    Args:
        plan: whose tensors.
        operand: the number of its array.
        dtype: of its elements.
        norm_type: the p of the norm.
        rows: the elements of one row of each tensor, to add up rows and not stretches.
        zero: read what is not finite as 0.
        check: make a sum NaN where an element is not finite, whatever the norm.

    Attributes:
        latest: what the last run has returned.
    """

    latest: Tensor

    def __init__(
        self,
        plan: GpuPlan,
        operand: int,
        dtype: str,
        norm_type: float,
        rows: Sequence[int] | None = None,
        zero: bool = False,
        check: bool = False,
    ) -> None:
        way = _WAYS.get(kind_of(norm_type), 0)
        device, sizes = plan.device, plan.lengths
        lengths = rows if rows is not None else [STRETCH] * len(sizes)
        counts = [-(-size // length) for size, length in zip(sizes, lengths, strict=True)]
        first, chunks = chunk_table(counts)
        self._chunks = torch.from_numpy(chunks).to(device)
        self._lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
        self._sums = torch.zeros(len(chunks), dtype=torch.float64, device=device)
        self._combination = Combination(first, [way], self._sums)
        self._launch = Launch(
            read, (len(chunks),), plan.addresses[operand], plan.sizes, self._chunks, self._lengths, self._sums,
            **settings(dtype, norm_type, zero, check),
        )  # fmt: skip

    def run(self) -> Tensor:
        """The sums of all stretches or rows, in order; overwritten by the next run."""
        if len(self._sums):
            with on(self._sums.device):
                self._launch()
        self.latest = self._sums
        return self._sums

    def by_tensor(self) -> Tensor:
        """Each tensor's sum (or largest or smallest absolute value); overwritten by the next run."""
        self.run()
        return self._combination.run()[:, 0]
