"""The plan: the tables of addresses, sizes and chunks that let one call serve many tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from steprule.engine import header
from steprule.formats import BLOCK, Numbering

CHUNK = 32768
"""Elements a worker takes at a time, at least."""
LAST_FLOAT32_STEP = 2**24 - 1
"""A step kept in float32 that has come here is kept in float64 from then on: the next but one would be the same number."""
FULL = 1
"""The place behind a plan's counter that is 1 once a step has come there."""
PIECE = 65536
"""Elements of a chunk that are added up by themselves, where something is: sums then are always the same."""
STRETCH = 16384
"""The same for norms."""
AT_ONCE = 65536
"""Elements a worker takes at a time for norms, at least."""

Index = slice | np.ndarray

_NOWHERE = np.zeros(1, np.float64)
"""Where kernels count the steps of tensors that take none."""


_ENDS = {"top_": (0.0, np.maximum), "low_": (np.inf, np.minimum)}
"""What the largest and the smallest of pieces begin at, and how they are joined."""


def index_of(chosen: np.ndarray) -> Index:
    """What takes those that are chosen out of a table: all of it as it is, without a copy."""
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


@dataclass(frozen=True)
class Chunks:
    """How tensors are cut: into chunks, one of which a worker takes at a time, and these into pieces.

    Attributes:
        rows: the elements of each tensor's row; all of them where blocks and factors do not care for rows.
        pieces: the elements and blocks of each tensor's pieces.
        table: for each chunk its tensor, first element, length, first block and first piece.
        owners: each piece's tensor.
    """

    rows: np.ndarray
    pieces: np.ndarray
    table: np.ndarray
    owners: np.ndarray


def chunks_of(
    sizes: Sequence[int],
    rows: Sequence[int] | None,
    by_row: bool,
    tallies: int,
    numberings: Sequence[Numbering] | None = None,
    in_rows: bool = False,
) -> Chunks:
    """The chunks of tensors, within which elements have numbers one after another; arguments as for `Plan`."""
    chunk = max(CHUNK, sum(sizes) // 256 // 4096 * 4096)  # long stretches are a little faster to stream
    lengths = rows or sizes
    whole = [not (by_row or in_rows) and row % BLOCK == 0 for row in lengths]
    full = [size if one else row for one, row, size in zip(whole, lengths, sizes, strict=True)]
    pieces = [(PIECE, PIECE // BLOCK)] * len(sizes)
    if by_row:
        pieces = [(row, -(-row // BLOCK)) for row in lengths]
    elif rows:
        at_once = [rows_of_piece(row) for row in rows]
        pieces = [
            pieces[0] if one else (some * row, some * -(-row // BLOCK))
            for one, some, row in zip(whole, at_once, rows, strict=True)
        ]
    table: list[tuple[int, ...]] = []
    owners: list[int] = []
    for tensor, size in enumerate(sizes):
        row, piece = full[tensor], pieces[tensor][0]
        length = chunk if row == size else max(chunk // row, 1) * row
        if tallies:
            length = max(length // piece, 1) * piece
        run = numberings[tensor].run if numberings is not None else max(size, 1)
        for start, part in _pieces_of_runs(size, run, length):
            first_block = start // row * -(-row // BLOCK) + start % row // BLOCK
            table.append((tensor, start, part, first_block, len(owners)))
            owners += [tensor] * (1 if by_row else -(-part // piece))
    return Chunks(
        np.array(full, np.int64),
        np.array(pieces, np.int64).reshape(-1, 2),
        np.array(table, np.int64).reshape(-1, 5),
        np.array(owners, np.int64),
    )


def rows_of_piece(row: int) -> int:
    """How many rows of so many elements are a piece."""
    return max(PIECE // max(row, 1), 1)


def _pieces_of_runs(size: int, run: int, length: int) -> Iterator[tuple[int, int]]:
    """Runs of a tensor cut into pieces of this length at most: where each begins, and how long it is."""
    for begin in range(0, size, run):
        end = min(begin + run, size)
        for start in range(begin, end, length):
            yield start, min(length, end - start)


def _shifts(table: np.ndarray, numberings: Sequence[Numbering] | None) -> np.ndarray:
    """What each chunk's elements have more for a number than their place."""
    if numberings is None:
        return np.zeros(len(table), np.int64)
    tensors, starts = table[:, 0], table[:, 1]
    first, run, stride = np.array(numberings, np.int64).reshape(-1, 3)[tensors].T
    return np.asarray(first + starts // run * (stride - run))


def uncut(count: int, size: int) -> Chunks:
    """Those of as many small tensors of one size, for kernels that need no pieces."""
    table = np.zeros((count, 5), np.int64)
    table[:, 0], table[:, 2] = np.arange(count), size
    return Chunks(table[:, 2].copy(), np.zeros((count, 2), np.int64), table, np.zeros(0, np.int64))


def stretches(sizes: Sequence[int], rows: Sequence[int] | None) -> Chunks:
    """Those of norms: rows, or pieces of `STRETCH`, handed out last first, since the step begins with the first.

    Args:
        sizes: each tensor's number of elements.
        rows: the elements of one row of each tensor, or None.
    """
    handed_out = max(AT_ONCE, sum(sizes) // 128)  # long ones stream faster
    pieces = [max(row, 1) for row in rows] if rows is not None else [STRETCH] * len(sizes)
    table: list[tuple[int, ...]] = []
    owners: list[int] = []
    for tensor, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        length = max(handed_out // piece, 1) * piece
        for start in range(0, size, length):
            part = min(length, size - start)
            table.append((tensor, start, part, 0, len(owners)))
            owners += [tensor] * -(-part // piece)
    return Chunks(
        np.array(sizes, np.int64),
        np.array([(piece, 0) for piece in pieces], np.int64).reshape(-1, 2),
        np.array(table[::-1], np.int64).reshape(-1, 5),
        np.array(owners, np.int64),
    )


class Plan:
    """What one kernel call works through. All tables are int64 or float64 and stay where they are.

    `steprule.engine.cpu.Kernel.plan` makes one.

    Args:
        addresses: for each of the kernel's arrays (param, grad, the others), the address of each tensor's first element.
            The table of another plan, or rows of it, remain that plan's.
        sizes: each tensor's number of elements.
        hyper: a row of numbers for each parameter group, in the order of the formula's scalars.
        groups: each tensor's row in hyper, by default the first.
        step_at: the address of each tensor's kept step, or None to keep it in the plan.
        step_is_double: whether each kept step is float64 (else float32); ignored where step_at is None.
        first_steps: for steps kept in the plan, how many steps each tensor has behind it.
        rows: for kernels that work in blocks or by row, the elements of one row of each tensor.
        numbers: each tensor's number for what is random by the element, by default its place.
        numberings: how each tensor's elements are numbered for the same, by default by row.
        by_row: whether each row has a factor of its own, and not each tensor; needs rows.
        in_rows: whether chunks and pieces must be whole rows; needs rows.
        tallies: how many numbers each piece of a chunk leaves in `partials`. Pieces do not depend on what else there is.
        own: how many numbers each tensor has for itself.
        chunks: how tensors are cut, by default by `chunks_of`.

    Attributes:
        factors: what each tensor's gradient is multiplied by, or each row's, from `first_factor` of its tensor on.
        partials: for each piece its tallies.
        piece_tensors: each piece's tensor.
        active: which tensors a step is for, as an index: all, or those that `select` was told.
        active_factors, active_pieces: the same for factors and pieces.
        is_one_each: whether a step is for all tensors, and each is one piece.
        steps: each tensor's step, of the last time that steps were counted.
        groups: each tensor's row in hyper.
        sizes: each tensor's number of elements.
        own: for each tensor its numbers.
        counter: what workers count chunks on; its number `FULL` is 1 once a float32 step is.
    """

    active: Index = slice(None)
    active_factors: Index = slice(None)
    active_pieces: Index = slice(None)
    _of_all: tuple[np.ndarray, ...] = ()

    def __init__(
        self,
        addresses: Sequence[Sequence[int]] | np.ndarray,
        sizes: Sequence[int],
        hyper: Sequence[Sequence[float]],
        groups: Sequence[int] | None = None,
        step_at: Sequence[int] | None = None,
        step_is_double: Sequence[bool] = (),
        first_steps: Sequence[float] = (),
        rows: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
        numberings: Sequence[Numbering] | None = None,
        by_row: bool = False,
        tallies: int = 0,
        own: int = 0,
        chunks: Chunks | None = None,
        in_rows: bool = False,
    ) -> None:
        count = len(sizes)
        self.sizes = np.array(sizes, np.int64)
        self.size = int(self.sizes.sum())
        self.addresses = np.asarray(addresses, np.int64).reshape(-1, count)
        self.hyper = np.array(hyper, np.float64).reshape(len(hyper), -1)
        self.groups = np.array(groups, np.int64) if groups is not None else np.zeros(count, np.int64)
        self._numbers = np.array(numbers, np.int64) if numbers is not None else np.arange(count, dtype=np.int64)
        self._keep_steps(step_at, step_is_double, first_steps)
        self.steps = np.zeros(count, np.float64)
        self._cut = chunks = chunks or chunks_of(sizes, rows, by_row, tallies, numberings, in_rows)
        self._shifts = _shifts(chunks.table, numberings)
        self.chunk_count = len(chunks.table)
        self.piece_tensors = self._owners = chunks.owners
        self.is_one_each = self._is_one_each = len(chunks.owners) == count and chunks.owners.tolist() == [*range(count)]
        factors = self.sizes // np.maximum(chunks.rows, 1) if by_row else np.ones(count, np.int64)
        self.first_factor = np.concatenate([[0], np.cumsum(factors)])
        self.factors = np.ones(self.first_factor[-1], np.float64)
        self.partials = np.zeros((len(chunks.owners), tallies), np.float64)
        self.own = np.zeros((count, own), np.float64)
        self.counter = np.zeros(8, np.int64)  # a cache line of its own: every worker counts on it
        self._headers = self._all_headers()
        self.count_header, self.work_header, self.both_header = (x.ctypes.data for x in self._headers)

    def _keep_steps(
        self, step_at: Sequence[int] | None, step_is_double: Sequence[bool], first_steps: Sequence[float]
    ) -> None:
        """Where each tensor's step is kept."""
        if step_at is not None:
            self._step_at, self._step_kind = np.array(step_at, np.int64), np.array(step_is_double, np.int64)
            return
        self._own_steps = np.array(first_steps, np.float64)
        self._step_at = self._own_steps.ctypes.data + 8 * np.arange(len(first_steps), dtype=np.int64)
        self._step_kind = np.full(len(first_steps), header.STEP_FLOAT64, np.int64)

    def _all_headers(self) -> np.ndarray:
        """One for each mode."""
        tables = {
            header.NEXT: self.counter,
            header.ADDRESSES: self.addresses,
            header.CHUNK_TABLE: self._cut.table,
            header.GROUPS: self.groups,
            header.HYPER: self.hyper,
            header.STEP_AT: self._step_at,
            header.STEP_KIND: self._step_kind,
            header.STEPS: self.steps,
            header.ROWS: self._cut.rows,
            header.NUMBERS: self._numbers,
            header.FACTORS: self.factors,
            header.FIRST_FACTOR: self.first_factor,
            header.PARTIALS: self.partials,
            header.PIECES: self._cut.pieces,
            header.OWN: self.own,
            header.SHIFTS: self._shifts,
        }
        headers = np.zeros((3, 24), np.int64)
        headers[:, header.MODE] = header.COUNT, header.WORK, header.BOTH
        headers[:, header.TENSORS], headers[:, header.CHUNKS] = len(self.sizes), self.chunk_count
        for column, table in tables.items():
            headers[:, column] = table.ctypes.data
        return headers

    def select(self, active: np.ndarray) -> None:
        """Takes steps for some tensors only from now on; of the others nothing is read and nothing changes.

        Args:
            active: whether each tensor is one of them.
        """
        self._of_all = self._of_all or (
            self._cut.table.copy(), self._shifts.copy(), self._step_at.copy(), self._step_kind.copy(),
        )  # fmt: skip
        table, shifts, step_at, step_kind = self._of_all
        chosen = active[table[:, 0]]
        self.chunk_count = self._headers[:, header.CHUNKS] = count = int(chosen.sum())
        self._cut.table[:count], self._shifts[:count] = table[chosen], shifts[chosen]
        self._step_at[:] = np.where(active, step_at, _NOWHERE.ctypes.data)
        self._step_kind[:] = np.where(active, step_kind, header.STEP_FLOAT64)
        self.size = int(self.sizes[active].sum())
        self.active = index_of(active)
        self.active_factors = index_of(np.repeat(active, np.diff(self.first_factor)))
        pieces = active[self.piece_tensors]
        self.active_pieces = index_of(pieces)
        self._owners = (np.cumsum(active) - 1)[self.piece_tensors[pieces]]
        self.is_one_each = self._is_one_each and bool(active.all())

    def take_back_steps(self) -> None:
        """As if steps had been counted once less."""
        for at, kind in zip(self._step_at.tolist(), self._step_kind.tolist(), strict=True):
            kept = (ctypes.c_double if kind else ctypes.c_float).from_address(at)
            kept.value -= 1

    def tallied(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What a kernel with these tallies has left, for each active tensor; see `steprule.kernels.source.Source`."""
        owners, count = self._owners, len(self.steps[self.active])
        result = {}
        for column, name in zip(self.left(len(names))[self.active_pieces].T, names, strict=True):
            if name.startswith("total_"):
                result[name] = np.bincount(owners, column, count)
            else:
                begin, join = _ENDS[name[:4]]
                result[name] = np.full(count, begin)
                with np.errstate(invalid="ignore"):
                    join.at(result[name], owners, column)
        return result

    def left(self, tallies: int) -> np.ndarray:
        """Where a kernel with so many tallies leaves them: a row for each piece."""
        count = len(self.piece_tensors)
        return self.partials.reshape(-1)[: count * tallies].reshape(count, tallies)

    def set_grads(self, addresses: np.ndarray) -> None:
        """New addresses of the gradients, one for each tensor, int64."""
        self.addresses[1] = addresses

    def set_hyper(self, hyper: Sequence[Sequence[float]]) -> None:
        """New numbers."""
        self.hyper[:] = hyper
