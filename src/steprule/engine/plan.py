"""The plan: the tables of addresses, sizes and chunks that let one call serve many tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

CHUNK = 32768
"""Elements a worker takes at a time, at least."""


class Plan:
    """What one kernel call works through. All tables are int64 or float64 and stay where they are.

    Args:
        addresses: for each operand (param, grad, states), the address of each tensor's first element.
        sizes: each tensor's number of elements.
        groups: each tensor's row in hyper.
        hyper: a row of numbers for each parameter group, in the order of the formula's scalars.
        step_at: the address of each tensor's kept step, or None to keep it in the plan.
        step_is_double: whether each kept step is float64 (else float32); ignored where step_at is None.
        first_steps: for steps kept in the plan, how many steps each tensor has behind it.
    """

    def __init__(
        self,
        addresses: Sequence[Sequence[int]],
        sizes: Sequence[int],
        groups: Sequence[int],
        hyper: Sequence[Sequence[float]],
        step_at: Sequence[int] | None,
        step_is_double: Sequence[bool],
        first_steps: Sequence[float],
    ) -> None:
        count = len(sizes)
        self.size = sum(sizes)
        self.addresses = np.array(addresses, np.int64).reshape(-1, count)
        self._buffer = self.addresses.data
        self._pack_grads = struct.Struct(f"{count}q").pack_into
        self.hyper = np.array(hyper, np.float64).reshape(len(hyper), -1)
        self._groups = np.array(groups, np.int64)
        self._own_steps = np.array(first_steps if step_at is None else [], np.float64)
        if step_at is None:
            step_at = [self._own_steps.ctypes.data + 8 * i for i in range(count)]
            step_is_double = [True] * count
        self._step_at = np.array(step_at, np.int64)
        self._step_kind = np.array(step_is_double, np.int64)
        self._steps = np.zeros(count, np.float64)
        chunk = max(CHUNK, self.size // 256 // 4096 * 4096)  # long stretches are a little faster to stream
        self._chunks = np.array(
            [
                (tensor, start, min(chunk, size - start))
                for tensor, size in enumerate(sizes)
                for start in range(0, size, chunk)
            ],
            np.int64,
        ).reshape(-1, 3)
        self.chunk_count = len(self._chunks)
        self._next = np.zeros(8, np.int64)  # a cache line of its own: every worker counts on it
        self._headers = {mode: self._header(mode, count) for mode in (1, 2, 3)}
        self.count_header, self.work_header, self.both_header = (self._headers[m].ctypes.data for m in (1, 2, 3))

    def _header(self, mode: int, count: int) -> np.ndarray:
        """In the order of steprule.engine.machine's names."""
        header = np.zeros(16, np.int64)
        tables = (self.addresses, self._chunks, self._groups, self.hyper, self._step_at, self._step_kind, self._steps)
        header[:11] = [
            mode,
            self._next.ctypes.data,
            count,
            self.chunk_count,
            *(table.ctypes.data for table in tables),
        ]
        return header

    def set_grads(self, addresses: Sequence[int]) -> None:
        """New addresses of the gradients, one a tensor."""
        self._pack_grads(self._buffer, self.addresses.strides[0], *addresses)
