"""The numbers that rows and columns of a plan's matrices have, one tensor's after another's."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from steprule.engine.plan import rows_of_piece
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import SUM_OPS, Expression
from steprule.trace.extent import COLS, NUMBER, ROWS, Extent
from steprule.trace.program import ADD, COL, EXTENTS, ROW, Side


class Sides:
    """Tables of what passes read of rows and columns, and of what they find.

    Args:
        sides: the numbers, by name.
        shapes: rows and columns of each tensor.
        real: the dtype of those that are read.
    """

    def __init__(self, sides: Mapping[str, Side], shapes: Sequence[Sequence[int]], real: str) -> None:
        self._sides = sides
        self._lengths = {ROWS: np.array([m for m, _ in shapes]), COLS: np.array([n for _, n in shapes])}
        self._pieces = np.array([-(-m // rows_of_piece(n)) for m, n in shapes])
        self._first, self._tables = {}, {}
        self._rooms: dict[Hashable, np.ndarray] = {}
        for name, side in sides.items():
            lengths = self._lengths[EXTENTS[side.axis]]
            if side.axis == COL and side.how:
                lengths = lengths * self._pieces
            self._first[name] = np.concatenate([[0], np.cumsum(lengths)])
            dtype = np.dtype(np.float64 if side.axis == ROW and side.how else real)
            self._tables[name] = np.zeros(int(lengths.sum()) or 1, dtype)
        self.select(np.ones(len(shapes), bool))

    def addresses(self, name: str) -> list[int]:
        """Where each tensor's numbers begin."""
        table = self._tables[name]
        return [table.ctypes.data + table.itemsize * int(first) for first in self._first[name][:-1]]

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        count = int(active.sum())
        self.active = active
        self.owners = {
            extent: np.repeat(np.arange(count), lengths[active]) for extent, lengths in self._lengths.items()
        }
        self.starts = {
            extent: np.concatenate([[0], np.cumsum(lengths[active])]) for extent, lengths in self._lengths.items()
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
        extent = EXTENTS[self._sides[name].axis]
        table = self._tables[name]
        if self.active.all():
            table[:] = values
        else:
            table[np.repeat(self.active, self._lengths[extent])] = values

    def found(self, name: str) -> np.ndarray:
        """What a pass has found for the rows or columns of active tensors."""
        side, table, first = self._sides[name], self._tables[name], self._first[name]
        if side.axis == ROW:
            return table if self.active.all() else table[np.repeat(self.active, self._lengths[ROWS])]
        join: Any = np.add if side.how == ADD else np.maximum
        starts = self.starts[COLS].tolist()
        room = self.room(name, starts[-1])
        for i, start, end in zip(np.flatnonzero(self.active).tolist(), starts, starts[1:], strict=False):
            pieces = table[first[i] : first[i + 1]].reshape(self._pieces[i], -1)
            join.reduce(pieces, axis=0, dtype=np.float64, out=room[start:end])
        return room


class SideEvaluation(Evaluation):
    """Expressions with an array for each input: a number for each active tensor, each of their rows, or each column.

    Args:
        inputs: by name; more may be set later.
        sides: which rows and columns belong to which tensor.
    """

    def __init__(self, inputs: dict[str, np.ndarray], sides: Sides) -> None:
        super().__init__(inputs)
        self._sides = sides

    def __call__(self, expression: Expression) -> np.ndarray:
        """The expression's value."""
        return super().__call__(expression)  # type: ignore[no-any-return]

    def compute(self, expression: Expression) -> np.ndarray:
        """An operation on the values of its arguments."""
        x = expression.args[0]
        if expression.op in SUM_OPS:
            value, owners = self(x), self._sides.owners[x.extent]
            count = int(self._sides.active.sum())
            if not expression.op.endswith("largest"):
                return np.bincount(owners, value, count)
            result = np.zeros(count)
            np.maximum.at(result, owners, value)
            return result
        if expression.op == "top_share":
            return self._top_share(x.extent, *map(self, expression.args))
        args = [self.spread(arg, expression.extent) for arg in expression.args]
        if expression.op not in _INTO or expression.extent == NUMBER:
            return self.operate(expression.op, args)  # type: ignore[no-any-return]
        room = self._sides.room(id(expression), max(map(np.size, args)))
        return _INTO[expression.op](*args, out=room)  # type: ignore[no-any-return]

    def _top_share(self, extent: Extent, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """1 for the largest rows or columns of each tensor, as many as its share says."""
        owners, starts = self._sides.owners[extent], self._sides.starts[extent]
        counts = np.maximum(np.ceil(shares * np.diff(starts)), 1.0)
        ranks = np.empty(len(owners))
        ranks[np.lexsort((-values, owners))] = np.arange(len(owners)) - starts[owners]
        return np.where(ranks < counts[owners], 1.0, 0.0)

    def spread(self, expression: Expression, wanted: Extent) -> np.ndarray:
        """An expression's value; a tensor's number for each of its rows or columns."""
        value = self(expression)
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
