"""A tile of some rows by some columns for Triton, where rows or columns have numbers of their own.

What a tile finds of its rows and columns is a part of what they have: `steprule.engine.gpu_sides` joins the parts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from steprule.formats import BLOCK
from steprule.kernels.gpu_loop import GpuLoop, Shape, pointer
from steprule.kernels.gpu_tiles import Way, call
from steprule.kernels.names import marked
from steprule.kernels.source import tally_of
from steprule.trace.program import ADD, COL, ROW, TENSOR, Side, Sum

ROWS = 64
"""Those of a tile: parts of columns then are a 64th of the elements, or less."""
WARP = 32
"""Threads that share a row of a tile, so that none waits for others where rows are added up."""


class GpuRows(GpuLoop):
    """The function ``compute``, which is given some rows of a tile, and what the tile's columns have."""

    along = ", 1"

    @cached_property
    def shape(self) -> Shape:
        """How a tile is worked on: a row of it is 16 bytes for each thread of a warp, or a block."""
        plain = Shape.of(self)
        columns = BLOCK if self.blockwise else WARP * plain.wide
        numbers = len([one for one in self.stage.sides.values() if one.axis == COL]) * plain.each
        rounds = ROWS * columns // plain.together
        return replace(plain, rounds=rounds, rows=ROWS, registers=plain.registers + numbers + 16 * self.blockwise)

    def _read(self, axis: str) -> list[str]:
        """What passes may read that rows or columns have."""
        return [name for name, side in self.stage.sides.items() if side == Side(axis)]

    @property
    def read_columns(self) -> list[str]:
        """What passes may read that columns have."""
        return self._read(COL)

    @property
    def results(self) -> list[str]:
        """All that it returns."""
        return [*self.tallies, *self._found_columns]

    @property
    def _found_columns(self) -> dict[str, str]:
        """What is found of columns, by what it is called here."""
        return {tally_of(name, one.how): name for name, one in self.stage.sums.items() if one.axis == COL}

    @property
    def aligned(self) -> list[str]:
        """Those of which 16 bytes at a time are read or written, if they lie so."""
        others = {*self.stage.sides} - {*self.read_columns}
        return [name for name in super().aligned if name not in others]

    @property
    def places(self) -> list[str]:
        """The arguments that say where a tile's elements are."""
        return [*super().places, "row_number", "row_inside"]

    def given(self, is_aligned: bool) -> dict[str, str]:
        """What ``compute`` is given of arrays, by its arguments' names."""
        plain = super().given(is_aligned)
        for name, side in self.stage.sides.items():
            at = plain.pop(f"{name}_at")
            if side.axis == COL and not side.how:
                plain[marked(name)] = marked(name)
            elif side.axis == ROW and (not side.how or name in self.stage.sums):
                at = pointer(f"{name}_at", self.dtypes[name, ""])
                plain[f"{name}_at"] = f"{at} + {'over * down + ' * bool(side.how)}first_row"
        return plain

    def write(self) -> None:
        """Writes the lines."""
        self.loads += [f"{marked(name)} = lib.load({name}_at + row_number, row_inside)" for name in self._read(ROW)]
        super().write()

    def add_up(self, name: str, one: Sum) -> None:
        """Adds up an expression, or takes the largest of its values."""
        if one.axis == TENSOR:
            super().add_up(name, one)
            return
        value = self.each(one.expression)
        if one.axis == COL:
            self.body.append(f"{tally_of(name, one.how)} = lib.only({value}, inside)")
            return
        found = (
            f"lib.sum_of(({value}).to(tl.float64), inside, 1)" if one.how == ADD else f"lib.most_of({value}, inside, 1)"
        )
        self.stores.append(f"lib.store_of_row({name}_at + row_number, {found}, row_inside)")

    def where(self) -> list[str]:
        """Where a tile is."""
        columns = self.shape.columns
        return [
            f"across = (row + {columns - 1}) // {columns}",
            "under = tile // across",
            "over = tile - under * across",
            "down = size // row",
            f"first_row, first_column = under * {ROWS}, over * {columns}",
            f"rows_left = tl.minimum(down - first_row, {ROWS}).to(tl.int32)",
            "columns_left = (row - first_column).to(tl.int32)",
            f"column = tl.arange(0, {columns})[None, :]",
        ]

    def begin(self) -> list[str]:
        """What results are before the first elements."""
        shape = self.shape
        lines = [f"{name} = tl.zeros(({shape.at_once}, 1), tl.float64)" for name in self.tallies]
        return lines + [
            f"{name} = tl.zeros(({shape.at_once}, {shape.columns}), tl.{self.real})" for name in self._found_columns
        ]

    def end(self) -> list[str]:
        """What becomes of them after the last."""
        lines = []
        for i, name in enumerate(self.tallies):
            joined = f"tl.sum({name})" if name.startswith("total_") else f"lib.maximum_of({name})"
            lines.append(f"tl.store(partial_at + {i}, {joined})")
        for found, name in self._found_columns.items():
            whole = (
                f"tl.sum({found}.to(tl.float64), axis=0, keep_dims=True)"
                if found.startswith("total_")
                else f"lib.maximum_of({found}, 0)"
            )
            at = f"{pointer(f'{name}_at', self.real)} + under * row + first_column + column"
            lines.append(f"tl.store({at}, {whole}, mask=column < columns_left)")
        return lines


def rows(loop: GpuRows) -> list[Way]:
    """How a tile's rows are worked on: a whole tile, one of rows that begin where memory is aligned, and any other."""
    shape = loop.shape
    ways = (
        (True, True, f"is_even & (rows_left == {ROWS}) & (columns_left >= {shape.columns})"),
        (False, True, "is_even"),
        (False, False, None),
    )
    return [_way(loop, *way) for way in ways]


def _way(loop: GpuRows, is_whole: bool, is_even: bool, condition: str | None) -> Way:
    shape = loop.shape
    length = "row // 16 * 16" if is_even else "row"  # a hint of Triton would be about row itself, in all ways
    before = [f"length = {length}", "first = first_row * length + first_column"]
    if not is_whole:
        before.append("column_inside = column < (length - first_column).to(tl.int32)")
    if loop.blockwise:
        before.append("first_block = (first_row * blocks_in_row + over).to(tl.int32)")
    every = f"tl.zeros(({shape.at_once}, 1), tl.int32) + column"  # so that threads have them as they have elements
    for name in loop.read_columns:
        at = pointer(f"{name}_at", loop.real)
        at = f"{f'tl.multiple_of({at}, 16)' if is_even else at} + first_column + {every}"
        before.append(f"{marked(name)} = lib.load({at}, {'None' if is_whole else 'column_inside'})")
    body = [
        f"row_number = part + tl.arange(0, {shape.at_once})[:, None]",
        "i = row_number * length.to(tl.int32) + column",
    ]
    if loop.blockwise:
        body.append("block = row_number * blocks_in_row")
    if not is_whole:
        body += ["row_inside = row_number < rows_left", "inside = row_inside & column_inside"]
        body += ["block_inside = row_inside"] * loop.blockwise
    end = ROWS if is_whole else "rows_left"
    return Way(condition, f"range(0, {end}, {shape.at_once})", body + call(loop, is_whole, is_even), tuple(before))
