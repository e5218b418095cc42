"""The plan: the tables of addresses, sizes and chunks that let one call serve many tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from steprule.formats import GROUP

CHUNK = 32768
"""Elements a worker takes at a time, at least."""
LAST_FLOAT32_STEP = 2**24 - 1
"""A step kept in float32 that has come here is kept in float64 from then on: the next but one would be the same number."""
FULL = 1
"""The place behind a plan's counter that is 1 once a step has come there."""
PIECE = 65536
"""Elements of a chunk that are added up by themselves, where something is: sums then are always the same."""

Index = slice | np.ndarray

_NOWHERE = np.zeros(1, np.float64)
"""Where kernels count the steps of tensors that take none."""


def index_of(chosen: np.ndarray) -> Index:
    """What takes those that are chosen out of a table: all of it as it is, without a copy."""
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


class Plan:
    """What one kernel call works through. All tables are int64 or float64 and stay where they are.

    Args:
        addresses: for each of the kernel's arrays (param, grad, the others), the address of each tensor's first element.
        sizes: each tensor's number of elements.
        groups: each tensor's row in hyper.
        hyper: a row of numbers for each parameter group, in the order of the formula's scalars.
        step_at: the address of each tensor's kept step, or None to keep it in the plan.
        step_is_double: whether each kept step is float64 (else float32); ignored where step_at is None.
        first_steps: for steps kept in the plan, how many steps each tensor has behind it.
        rows: for kernels that work in groups or by row, the elements of one row of each tensor.
        numbers: each tensor's number for what is random by the element.
        by_row: whether each row has a factor of its own, and not each tensor; needs rows.
        tallies: how many numbers each piece of a chunk leaves in `partials`. Pieces do not depend on what else there is.
        own: how many numbers each tensor has for itself.

    Attributes:
        factors: what each tensor's gradient is multiplied by, or each row's, from `first_factor` of its tensor on.
        partials: for each piece its tallies.
        piece_tensors: each piece's tensor.
        active: which tensors a step is for, as an index: all, or those that `select` was told.
        active_factors: the same for factors.
        steps: each tensor's step, of the last time that steps were counted.
        groups: each tensor's row in hyper.
        sizes: each tensor's number of elements.
        own: for each tensor its numbers.
        counter: what workers count chunks on; its number `FULL` is 1 once a float32 step is.
    """

    active: Index = slice(None)
    active_factors: Index = slice(None)
    _active_pieces: Index = slice(None)
    _of_all: tuple[np.ndarray, ...] = ()

    def __init__(
        self,
        addresses: Sequence[Sequence[int]],
        sizes: Sequence[int],
        groups: Sequence[int],
        hyper: Sequence[Sequence[float]],
        step_at: Sequence[int] | None,
        step_is_double: Sequence[bool],
        first_steps: Sequence[float],
        rows: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
        by_row: bool = False,
        tallies: int = 0,
        own: int = 0,
    ) -> None:
        count = len(sizes)
        self.size = sum(sizes)
        self.sizes = np.array(sizes, np.int64)
        self.addresses = np.array(addresses, np.int64).reshape(-1, count)
        self._buffer = self.addresses.data
        self._pack_grads = struct.Struct(f"{count}q").pack_into
        self.hyper = np.array(hyper, np.float64).reshape(len(hyper), -1)
        self.groups = np.array(groups, np.int64)
        self._own_steps = np.array(first_steps if step_at is None else [], np.float64)
        if step_at is None:
            step_at = [self._own_steps.ctypes.data + 8 * i for i in range(count)]
            step_is_double = [True] * count
        self._step_at = np.array(step_at, np.int64)
        self._step_kind = np.array(step_is_double, np.int64)
        self.steps = np.zeros(count, np.float64)
        chunk = max(CHUNK, self.size // 256 // 4096 * 4096)  # long stretches are a little faster to stream
        rows = rows or sizes
        whole = [not by_row and row % GROUP == 0 for row in rows]
        full = [size if one else row for one, row, size in zip(whole, rows, sizes, strict=True)]
        self._rows = np.array(full, np.int64)
        self._numbers = np.array(numbers or range(count), np.int64)
        pieces = [(PIECE, PIECE // GROUP)] * count
        if by_row:
            pieces = [(row, -(-row // GROUP)) for row in rows]
        elif rows is not sizes:
            in_rows = [max(PIECE // row, 1) for row in rows]
            pieces = [
                pieces[0] if one else (some * row, some * -(-row // GROUP))
                for one, some, row in zip(whole, in_rows, rows, strict=True)
            ]
        self._pieces = np.array(pieces, np.int64).reshape(-1, 2)
        chunks: list[tuple[int, ...]] = []
        owners: list[int] = []
        for tensor, size in enumerate(sizes):
            row = full[tensor]
            length = chunk if row == size else max(chunk // row, 1) * row
            piece = pieces[tensor][0]
            if tallies:
                length = max(length // piece, 1) * piece
            for start in range(0, size, length):
                part = min(length, size - start)
                first_group = start // row * -(-row // GROUP) + start % row // GROUP
                chunks.append((tensor, start, part, first_group, len(owners)))
                owners += [tensor] * (1 if by_row else -(-part // piece))
        self._chunks = np.array(chunks, np.int64).reshape(-1, 5)
        self.chunk_count = len(chunks)
        self.piece_tensors = self._owners = np.array(owners, np.int64)
        factors = [size // row if size else 0 for row, size in zip(full, sizes, strict=True)] if by_row else [1] * count
        self.first_factor = np.concatenate([[0], np.cumsum(factors, dtype=np.int64)])
        self.factors = np.ones(self.first_factor[-1], np.float64)
        self.partials = np.zeros((len(owners), tallies), np.float64)
        self.own = np.zeros((count, own), np.float64)
        self.counter = np.zeros(8, np.int64)  # a cache line of its own: every worker counts on it
        self._headers = {mode: self._header(mode, count) for mode in (1, 2, 3)}
        self.count_header, self.work_header, self.both_header = (self._headers[m].ctypes.data for m in (1, 2, 3))

    def _header(self, mode: int, count: int) -> np.ndarray:
        """In the order of steprule.engine.machine's names."""
        header = np.zeros(24, np.int64)
        tables = (
            self.addresses,
            self._chunks,
            self.groups,
            self.hyper,
            self._step_at,
            self._step_kind,
            self.steps,
            self._rows,
            self._numbers,
            self.factors,
            self.first_factor,
            self.partials,
            self._pieces,
            self.own,
        )
        header[:18] = [
            mode,
            self.counter.ctypes.data,
            count,
            self.chunk_count,
            *(table.ctypes.data for table in tables),
        ]
        return header

    def restart(self) -> None:
        """Lets the chunks be worked through once more, without counting steps."""
        self.counter[0] = 0

    def select(self, active: np.ndarray) -> None:
        """Takes steps for some tensors only from now on; of the others nothing is read and nothing changes.

        Args:
            active: whether each tensor is one of them.
        """
        self._of_all = self._of_all or (self._chunks.copy(), self._step_at.copy(), self._step_kind.copy())
        chunks, step_at, step_kind = self._of_all
        chunks = chunks[active[chunks[:, 0]]]
        self._chunks[: len(chunks)] = chunks
        self.chunk_count = len(chunks)
        for header in self._headers.values():
            header[3] = len(chunks)
        self._step_at[:] = np.where(active, step_at, _NOWHERE.ctypes.data)
        self._step_kind[:] = np.where(active, step_kind, 1)
        self.size = int(self.sizes[active].sum())
        self.active = index_of(active)
        self.active_factors = index_of(np.repeat(active, np.diff(self.first_factor)))
        pieces = active[self.piece_tensors]
        self._active_pieces = index_of(pieces)
        self._owners = (np.cumsum(active) - 1)[self.piece_tensors[pieces]]

    def tallied(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What a kernel with these tallies has left, for each active tensor: sums, or the largest of "top_..."."""
        owners, count = self._owners, len(self.steps[self.active])
        partials = self.partials.reshape(-1)[: len(self.piece_tensors) * len(names)].reshape(-1, len(names))
        partials = partials[self._active_pieces]
        result = {}
        for column, name in zip(partials.T, names, strict=True):
            if name.startswith("total_"):
                result[name] = np.bincount(owners, column, count)
            else:
                largest = result[name] = np.zeros(count, np.float64)
                with np.errstate(invalid="ignore"):
                    np.maximum.at(largest, owners, column)
        return result

    def set_grads(self, addresses: Sequence[int]) -> None:
        """New addresses of the gradients, one a tensor."""
        self._pack_grads(self._buffer, self.addresses.strides[0], *addresses)

    def set_hyper(self, hyper: Sequence[Sequence[float]]) -> None:
        """New numbers."""
        self.hyper[:] = hyper
