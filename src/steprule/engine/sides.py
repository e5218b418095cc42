"""The numbers that rows and columns of a plan's matrices have, one tensor's after another's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from steprule.engine.plan import rows_of_piece
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import SUM_OPS, Expression
from steprule.trace.extent import COLS, NUMBER, ROWS, Extent
from steprule.trace.program import ADD, COL, EXTENTS, ROW, Side


class SideTables(ABC):
    """Where in tables the numbers of rows and columns are, one tensor's after another's.

    Args:
        sides: the numbers, by name.
        shapes: rows and columns of each tensor.
        real: the dtype of those that are read.
        parts: how many numbers each tensor's rows, and columns, are found in, of which each becomes one.
        aligned: how many numbers lie together of those that are read: each tensor's begin at a multiple.

    Attributes:
        lengths: how many rows each tensor has, and how many columns.
        parts: the same.
        first: for each name where each tensor's numbers begin, and the end.
        dtypes: for each name what they are.
    """

    def __init__(
        self,
        sides: Mapping[str, Side],
        shapes: Sequence[Sequence[int]],
        real: str,
        parts: Mapping[str, np.ndarray],
        aligned: int = 1,
    ) -> None:
        self.sides, self.parts = sides, parts
        self.lengths = {ROWS: np.array([m for m, _ in shapes]), COLS: np.array([n for _, n in shapes])}
        self.first: dict[str, np.ndarray] = {}
        self.dtypes: dict[str, str] = {}
        for name, side in sides.items():
            lengths = self.lengths[EXTENTS[side.axis]]
            lengths = lengths * parts[side.axis] if side.how else -(-lengths // aligned) * aligned
            self.first[name] = np.concatenate([[0], np.cumsum(lengths)])
            self.dtypes[name] = "float64" if side.axis == ROW and side.how else real

    def size(self, name: str) -> int:
        """How many numbers a table has."""
        return max(int(self.first[name][-1]), 1)

    @abstractmethod
    def table_at(self, name: str) -> int:
        """Where a table begins."""

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's numbers begin."""
        begin, size = self.table_at(name), np.dtype(self.dtypes[name]).itemsize
        return [begin + size * int(first) for first in self.first[name][:-1]]


class Sides(SideTables):
    """Tables of what passes read of rows and columns, and of what they find.

    Args:
        sides, shapes, real: as for `SideTables`.
    """

    def __init__(self, sides: Mapping[str, Side], shapes: Sequence[Sequence[int]], real: str) -> None:
        pieces = np.array([-(-m // rows_of_piece(n)) for m, n in shapes])
        super().__init__(sides, shapes, real, {ROW: np.ones_like(pieces), COL: pieces})
        self._tables = {name: np.zeros(self.size(name), self.dtypes[name]) for name in sides}
        self._rooms: dict[Hashable, np.ndarray] = {}
        self.select(np.ones(len(shapes), bool))

    def table_at(self, name: str) -> int:
        """Where a table begins."""
        return self._tables[name].ctypes.data

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        count = int(active.sum())
        self.active = active
        self.owners = {extent: np.repeat(np.arange(count), lengths[active]) for extent, lengths in self.lengths.items()}
        self.starts = {
            extent: np.concatenate([[0], np.cumsum(lengths[active])]) for extent, lengths in self.lengths.items()
        }

    def room(self, what: Hashable, length: int, dtype: Any = np.float64) -> np.ndarray:
        """Memory for as many numbers, the same in every step: fresh memory costs more than what is computed in it.

        Args:
            what: is kept there. It must not be needed any more when it is next asked for.
        """
        room = self._rooms.get(what)
        if room is None or len(room) != length:
            room = self._rooms[what] = np.empty(length, dtype)
        return room

    def put(self, name: str, values: np.ndarray) -> None:
        """Takes over what passes are to read, of active tensors."""
        extent = EXTENTS[self.sides[name].axis]
        table = self._tables[name][: self.first[name][-1]]
        if self.active.all():
            table[:] = values
        else:
            table[np.repeat(self.active, self.lengths[extent])] = values

    def found(self, name: str) -> np.ndarray:
        """What a pass has found for the rows or columns of active tensors."""
        side, first = self.sides[name], self.first[name]
        table = self._tables[name][: first[-1]]
        if side.axis == ROW:
            return table if self.active.all() else table[np.repeat(self.active, self.lengths[ROWS])]
        join: Any = np.add if side.how == ADD else np.maximum
        starts = self.starts[COLS].tolist()
        room = self.room(name, starts[-1])
        for i, start, end in zip(np.flatnonzero(self.active).tolist(), starts, starts[1:], strict=False):
            if not self.parts[COL][i]:  # as where other processes have all of the rows
                room[start:end] = 0.0
                continue
            pieces = table[first[i] : first[i + 1]].reshape(self.parts[COL][i], -1)
            join.reduce(pieces, axis=0, dtype=np.float64, out=room[start:end])
        return room


class SideEvaluation(Evaluation, ABC):
    """Expressions with an array for each input: a number for each tensor, each of their rows, or each column.

    Args:
        inputs: by name; more may be set later.
    """

    def compute(self, expression: Expression) -> Any:
        """An operation on the values of its arguments."""
        x = expression.args[0]
        if expression.op in SUM_OPS:
            return self.joined(expression, x.extent, self(x))
        if expression.op == "top_share":
            return self.top_share(x.extent, *map(self, expression.args))
        return self.apply(expression, [self.spread(arg, expression.extent) for arg in expression.args])

    @abstractmethod
    def joined(self, expression: Expression, extent: Extent, values: Any) -> Any:
        """The sum of each tensor's rows or columns, or the largest of these."""

    @abstractmethod
    def top_share(self, extent: Extent, values: Any, shares: Any) -> Any:
        """1 for the largest rows or columns of each tensor, as many as its share says, and 0 for the others."""

    @abstractmethod
    def apply(self, expression: Expression, args: Sequence[Any]) -> Any:
        """An operation on values of the same extent."""

    @abstractmethod
    def spread(self, expression: Expression, wanted: Extent) -> Any:
        """An expression's value; a tensor's number for each of its rows or columns."""


class HostEvaluation(SideEvaluation):
    """The same with NumPy's arrays.

    Args:
        inputs: by name; more may be set later.
        sides: which rows and columns belong to which tensor.
    """

    def __init__(self, inputs: dict[str, np.ndarray], sides: Sides) -> None:
        super().__init__(inputs)
        self._sides = sides

    def joined(self, expression: Expression, extent: Extent, values: np.ndarray) -> np.ndarray:
        """The sum of each tensor's rows or columns, or the largest of these."""
        owners, count = self._sides.owners[extent], int(self._sides.active.sum())
        if not expression.op.endswith("largest"):
            return np.bincount(owners, values, count)
        result = np.zeros(count)
        np.maximum.at(result, owners, values)
        return result

    def top_share(self, extent: Extent, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """1 for the largest rows or columns of each tensor, as many as its share says, and 0 for the others."""
        owners, starts = self._sides.owners[extent], self._sides.starts[extent]
        counts = np.maximum(np.ceil(shares * np.diff(starts)), 1.0)
        ranks = np.empty(len(owners))
        ranks[np.lexsort((-values, owners))] = np.arange(len(owners)) - starts[owners]
        return np.where(ranks < counts[owners], 1.0, 0.0)

    def apply(self, expression: Expression, args: Sequence[np.ndarray]) -> np.ndarray:
        """An operation on values of the same extent."""
        if expression.op not in _INTO or expression.extent == NUMBER:
            return self.operate(expression.op, args)  # type: ignore[no-any-return]
        sizes = {*map(np.size, args)}  # 0 where other processes have all rows, or all columns
        room = self._sides.room(id(expression), 0 if 0 in sizes else max(sizes))
        return _INTO[expression.op](*args, out=room)  # type: ignore[no-any-return]

    def spread(self, expression: Expression, wanted: Extent) -> np.ndarray:
        """An expression's value; a tensor's number for each of its rows or columns."""
        value: np.ndarray = self(expression)
        if expression.extent == wanted or np.ndim(value) == 0 or expression.extent != NUMBER:
            return value
        same = value[:1]
        if (value == same).all():
            return same
        owners = self._sides.owners[wanted]
        room = self._sides.room((id(expression), wanted), len(owners), value.dtype)
        return np.take(value, owners, out=room, mode="clip")


def _choose(condition: Any, a: Any, b: Any, out: np.ndarray) -> np.ndarray:
    """As `np.where`."""
    np.copyto(out, b)
    np.copyto(out, a, where=condition)
    return out


_INTO: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.absolute,
    "sqrt": np.sqrt, "maximum": np.maximum, "minimum": np.minimum, "where": _choose,
}  # fmt: skip
"""The operations that many rows or columns go through, written into memory that is there."""
