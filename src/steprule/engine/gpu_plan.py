"""The GPU engine's plan: the same tables as the CPU's, on the device, and filled without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.formats import BLOCK, Numbering
from steprule.kernels.gpu_pass import GpuSource

Number = float | Tensor


def chunk_table(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For tensors of so many chunks each one's first, and the end; and for every chunk its tensor and its number there."""
    first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    chunks = np.empty((int(first[-1]), 2), np.int32)
    chunks[:, 0] = np.repeat(np.arange(len(counts)), counts)
    chunks[:, 1] = np.arange(len(chunks)) - np.repeat(first[:-1], counts)
    return first, chunks


class Table:
    """An array on a device that the host fills without waiting.

    A copy to the device takes place later, from memory that must be left as it is till then. torch's caching
    allocator of such memory sees to that, except where a CUDA graph records the copy, to be repeated whenever it is
    replayed: what a recorded copy is made from is kept for good.

    Args:
        values: what it holds at first.
        device: where.
    """

    def __init__(self, values: np.ndarray, device: torch.device) -> None:
        self.tensor = torch.from_numpy(values).to(device, copy=True)
        self._is_pinned = device.type == "cuda"
        self._recorded: list[Tensor] = []
        self._spare = self._buffer() if self._is_pinned else None  # memory cannot be had while a graph is recorded

    def _buffer(self) -> Tensor:
        return torch.empty(self.tensor.shape, dtype=self.tensor.dtype, device="cpu", pin_memory=self._is_pinned)

    def fill(self, values: np.ndarray) -> None:
        """Other values.

        Raises:
            RuntimeError: a CUDA graph records this for a second time.
        """
        if self._is_pinned and torch.cuda.is_current_stream_capturing():
            if self._spare is None:
                raise RuntimeError(
                    "a CUDA graph can record one step with new addresses or settings of an optimizer, and this is the second: "
                    "take a step outside of the graph before each recording"
                )
            buffer, self._spare = self._spare, None
            self._recorded.append(buffer)
        else:
            buffer = self._buffer()
            if self._is_pinned and self._spare is None:
                self._spare = self._buffer()
        buffer.copy_(torch.from_numpy(values))
        self.tensor.copy_(buffer, non_blocking=True)


class GpuPlan:
    """What one launch works through. `steprule.engine.gpu.Kernel.plan` makes one.

    Args:
        device: where all tensors are.
        sources: of the kernels that work through it, which have the same arrays and tiles.
        addresses: for each of its arrays (param, grad, the others), the address of each tensor's first element.
        sizes: each tensor's number of elements.
        hyper: a row of numbers for each parameter group; a tensor on the device is read there in every step.
        groups: each tensor's row in hyper, by default the first.
        step_at: the address of each tensor's kept step, which is float64, or None to keep it in the plan.
        first_steps: for steps kept in the plan, how many steps each tensor has behind it.
        rows: for kernels that work in blocks or by row, the elements of one row of each tensor.
        numbers: each tensor's number for what is random by the element.
        numberings: how each tensor's elements are numbered for the same, by default by row.
        by_row: whether each row has a factor of its own, and not each tensor; needs rows.

    Attributes:
        lengths: each tensor's number of elements.
        own_steps: each tensor's step where it is kept in the plan.
        steps: the same wherever it is kept, for kernels that do not count it themselves.
        own: a row for each of the numbers that tensors have for themselves.
        skip: 1 where the launch is to change nothing, an int32 on the device.
        factors: what each tensor's gradient is multiplied by, or each row's, from `first_factor` of its tensor on.
        partials: for each chunk its tallies.
        first_chunk: each tensor's.
    """

    def __init__(
        self,
        device: torch.device,
        sources: Sequence[GpuSource],
        addresses: Sequence[Sequence[int]],
        sizes: Sequence[int],
        hyper: Sequence[Sequence[Number]],
        groups: Sequence[int] | None = None,
        step_at: Sequence[int] | None = None,
        first_steps: Sequence[float] = (),
        rows: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
        numberings: Sequence[Numbering] | None = None,
        by_row: bool = False,
    ) -> None:
        count, source = len(sizes), sources[0]
        self.device, self.count, self.lengths = device, count, list(sizes)

        def table(values: Any, dtype: type = np.int64) -> Tensor:
            return torch.from_numpy(np.array(values, dtype)).to(device)

        self._host_addresses = np.array(addresses, np.int64).reshape(-1, count)
        self._addresses = Table(self._host_addresses, device)
        self._host_hyper = np.zeros((len(hyper), max(len(hyper[0]), 1)), np.float64)
        self._hyper = Table(self._host_hyper, device)
        self.set_hyper(hyper)
        self.own_steps = table(first_steps, np.float64)
        if step_at is None:
            step_at = [self.own_steps.data_ptr() + 8 * i for i in range(count)]
        self._groups = np.array(groups or [0] * count, np.int64)
        self.step_at, self.groups = table(step_at), table(self._groups)
        self.numbers = table(numbers or range(count))
        rows = [max(row, 1) for row in rows or sizes]
        in_tensor = [size // row if by_row else 1 for row, size in zip(rows, sizes, strict=True)]
        self.first_factor = np.concatenate([[0], np.cumsum(in_tensor, dtype=np.int64)])
        self.factors = torch.ones(int(self.first_factor[-1]), dtype=torch.float64, device=device)
        first, run, stride = zip(*(numberings or map(Numbering.of_whole, sizes)), strict=True)
        gap = [one - other for one, other in zip(stride, run, strict=True)]
        self.sizes = table([*sizes, *rows, *self.first_factor[:-1], *first, *run, *gap])
        tiles = [-(-size // source.tile) for size in sizes]
        if source.rows:
            columns = source.tile // source.rows
            in_rows = [(size // row, row) for size, row in zip(sizes, rows, strict=True)]
            tiles = [-(-down // source.rows) * -(-row // columns) for down, row in in_rows]
        elif source.blockwise:
            in_blocks = [size // row * -(-row // BLOCK) for size, row in zip(sizes, rows, strict=True)]
            tiles = [-(-some // (source.tile // BLOCK)) for some in in_blocks]
        self.first_chunk, chunks = chunk_table(tiles)
        self.chunk_count = len(chunks)
        self.chunks = table(chunks, np.int32)
        tallies, scalars = max(len(one.tallies) for one in sources), max(one.scalars for one in sources)
        self.partials = torch.zeros((self.chunk_count, tallies), dtype=torch.float64, device=device)
        self.scalars = torch.zeros((count, max(scalars, 1)), dtype=getattr(torch, source.real), device=device)
        self.bits = torch.zeros((count, max(source.bits, 1)), dtype=torch.int32, device=device)
        self.steps = torch.zeros(count, dtype=torch.float64, device=device)
        self.own = torch.zeros((source.own, count), dtype=torch.float64, device=device)
        self.skip = torch.zeros(1, dtype=torch.int32, device=device)

    @property
    def addresses(self) -> Tensor:
        """Of each array each tensor's first element."""
        return self._addresses.tensor

    @property
    def hyper(self) -> Tensor:
        """A row of numbers for each parameter group, but for those that are read on the device."""
        return self._hyper.tensor

    def set_grads(self, addresses: np.ndarray) -> None:
        """New addresses of the gradients, one for each tensor, int64."""
        self._host_addresses[1] = addresses
        self._addresses.fill(self._host_addresses)

    def set_hyper(self, hyper: Sequence[Sequence[Number]]) -> None:
        """New numbers."""
        places: list[Tensor] = []
        self._at: list[tuple[int, int]] = []
        sources: list[Tensor] = []
        for row, values in enumerate(hyper):
            for column, value in enumerate(values):
                if isinstance(value, Tensor):
                    places.append(self.hyper[row, column])
                    self._at.append((row, column))
                    sources.append(value.detach().reshape(()))
                else:
                    self._host_hyper[row, column] = value
        self._hyper.fill(self._host_hyper)
        self._places, self._sources = places, sources

    @property
    def read_from(self) -> list[tuple[Any, ...]]:
        """Which numbers are read on the device, and where."""
        return [(*place, x.data_ptr(), x.dtype) for place, x in zip(self._at, self._sources, strict=True)]

    def settings(self, columns: Mapping[str, int]) -> dict[str, Any]:
        """Numbers that the host knows, one for each tensor; what is on the device is waited for.

        Args:
            columns: for each name its place among the numbers of a group.
        """
        for (row, column), source in zip(self._at, self._sources, strict=True):
            if column in columns.values():
                self._host_hyper[row, column] = source.item()
        numbers = self._host_hyper[self._groups].T
        return {name: numbers[column] for name, column in columns.items()}

    def read_hyper(self) -> None:
        """Takes over the numbers that are on the device."""
        if self._places:
            torch._foreach_copy_(self._places, self._sources)
