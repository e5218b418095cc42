"""The GPU engine's passes that add up before the first element changes: a rule's, and the norms that services want to know.

As on the CPU each stretch of a norm (or each row) is added up in float64 by itself, and the stretches in an order that is
always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_plan import GpuPlan, chunk_table
from steprule.engine.kernel import Kernel
from steprule.engine.plan import STRETCH
from steprule.engine.run import Sums
from steprule.formats import gpu as lib
from steprule.kernels.cache import load_for_triton
from steprule.kernels.gpu_reading import write_reading
from steprule.kernels.source import Source
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, Stage

_WAYS = {"total": 0, "top": 1, "low": 2}
"""How parts are combined, by what the names of tallies begin with."""


@triton.jit  # type: ignore[untyped-decorator]
def combine(parts, first_chunk, ways, results, width, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One tensor's parts, one column of them, in order."""
    tensor, column = tl.program_id(0), tl.program_id(1)
    way = tl.load(ways + column)
    first, end = tl.load(first_chunk + tensor), tl.load(first_chunk + tensor + 1)
    i = tl.arange(0, TILE)
    empty = tl.where(way == 2, float("inf"), 0.0).to(tl.float64)
    total = tl.zeros((TILE,), tl.float64) + empty
    for start in range(first, end, TILE):
        inside = start + i < end
        x = tl.load(parts + (start + i) * width + column, mask=inside, other=0.0)
        joined = tl.where(way == 0, total + x, tl.where(way == 1, lib.larger(x, total), lib.smaller(x, total)))
        total = tl.where(inside, joined, total)
    largest, smallest = lib.maximum_of(total), lib.minimum_of(total)
    result = tl.where(way == 0, tl.sum(total), tl.where(way == 1, largest, smallest))
    tl.store(results + tensor * width + column, result)


class Combination:
    """Adds up what chunks have left, tensor by tensor.

    Args:
        first_chunk: each tensor's first chunk, and the end.
        tallies: what each column is, as in `steprule.kernels.source.Source`.
        parts: what they leave, a row for each chunk, without a gap.

    Attributes:
        parts: the same.
    """

    def __init__(self, first_chunk: np.ndarray, tallies: Sequence[str], parts: Tensor) -> None:
        device, count, width = parts.device, len(first_chunk) - 1, len(tallies)
        ways = [_WAYS[name.partition("_")[0]] for name in tallies]
        self.parts = parts
        self._results = torch.zeros((count, width), dtype=torch.float64, device=device)
        self._launch = Launch(
            combine, (count, width), parts, torch.from_numpy(first_chunk).to(device),
            torch.tensor(ways, dtype=torch.int32, device=device), self._results, width, TILE=256,
        )  # fmt: skip
        self._columns = dict(zip(tallies, self._results.T, strict=True))

    def sums(self) -> Sums:
        """Each column's number for each tensor; overwritten by the next."""
        if self._results.numel():
            with on(self._results.device):
                self._launch()
        return self._columns


class NormKernel(Kernel):
    """A norm's pass compiled by Triton."""

    source: Source
    write = staticmethod(write_reading)
    load = staticmethod(load_for_triton)

    def __init__(self, stage: Stage, source: Source, path: Path, module: ModuleType) -> None:
        super().__init__(stage, source, path, module)
        self.update = module.update


class GpuReading:
    """As `steprule.engine.reading.Reading`, on a GPU.

    Args:
        run: launches the pass.
        left: joins what its chunks leave.

    Attributes:
        run: the same.
        sums: what the last run has found, for each tensor; overwritten by the next.
    """

    def __init__(self, run: Callable[[], None], left: Combination) -> None:
        self.run, self.sums, self._parts = run, left.sums, left.parts

    def pieces(self) -> Tensor:
        """What its chunks have left, in order; overwritten by the next run."""
        return self._parts


def norms(norm: Norm, dtype: str, plan: GpuPlan, operand: int, rows: Sequence[int]) -> GpuReading:
    """The reading of a norm, whose `pieces` are the sums of its stretches or rows.

    Args:
        norm: which.
        dtype: of the operand.
        plan: whose tensors.
        operand: the number of its array.
        rows: the elements of one row of each tensor, for a norm of rows.
    """
    kernel, device, sizes = NormKernel.of_norm(norm, dtype), plan.device, plan.lengths
    lengths = rows if norm.axis == ROW else [STRETCH] * len(sizes)
    first, chunks = chunk_table([-(-size // length) for size, length in zip(sizes, lengths, strict=True)])
    parts = torch.zeros(len(chunks), dtype=torch.float64, device=device)
    launch = Launch(
        kernel.update, (len(chunks),), plan.addresses[operand], plan.sizes, torch.from_numpy(chunks).to(device),
        torch.tensor(lengths, dtype=torch.int64, device=device), parts,
    )  # fmt: skip

    def run() -> None:
        if len(parts):
            with on(device):
                launch()

    return GpuReading(run, Combination(first, kernel.source.tallies, parts))
