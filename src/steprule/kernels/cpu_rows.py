"""A loop over the rows of matrices for the CPU engine, where rows or columns have numbers of their own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from steprule.kernels.cpu_blocks import CpuBlocks
from steprule.kernels.cpu_loop import CpuLoop
from steprule.kernels.names import marked
from steprule.kernels.source import indent
from steprule.trace.program import ADD, COL, LARGEST, ROW, TENSOR, Stage, Sum

_UPDATE = '''
@apart
def update(size, columns, {addresses}, numbers):
    """Some rows of one tensor."""
    {scalar_names} = numbers
{piece_start}{before}{start_tallies}    first = row = 0
    while first < size:
{row_start}
        for column in range(columns):
            i = first + column
{body}
{row_end}
        first += columns
        row += 1
{give_tallies}
'''

_UPDATE_IN_BLOCKS = '''
@apart
def update(size, columns, {addresses}, numbers):
    """Some rows of one tensor, block by block."""
    {scalar_names} = numbers
{room_lines}
{piece_start}{start_tallies}    first = row = block = 0
    while first < size:
{row_start}
        start = 0
        while start < columns:
            count = min(BLOCK, columns - start)
{before}            for j in range(count):
                column = start + j
                i = first + column
{body}
{between}
{exponents}
            for j in range(count):
                i = first + start + j
{after}
            start += count
            block += 1
{row_end}
        first += columns
        row += 1
{give_tallies}
'''


class CpuRows(CpuLoop):
    """The function ``update``, which works through rows."""

    template = _UPDATE
    depth = 3

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        read = {name: side.axis for name, side in stage.sides.items() if not side.how}
        self._row_start = [f"{marked(name)} = {_load(name, 'row')}" for name, axis in read.items() if axis == ROW]
        self._row_end = ["pass"]
        self._piece_start: list[str] = []
        self.loads += [f"{marked(name)} = {_load(name, 'column')}" for name, axis in read.items() if axis == COL]

    def add_up(self, name: str, one: Sum) -> None:
        """Adds up an expression, or takes the largest of its values."""
        if one.axis == TENSOR:
            super().add_up(name, one)
            return
        value = self.value(one.expression)
        if one.axis == COL:
            there = _load(name, "column")
            joined = f"{there} + {value}" if one.how == ADD else f"larger({there}, {value})"
            self._piece_start += ["for column in range(columns):", f"    {_store(name, 'column', f'{self.real}(0)')}"]
            self.body.append(_store(name, "column", joined))
            return
        start, join, end = "0.0", f"add_up(row_{name}, float64({value}))", f"row_{name}"
        if one.how == LARGEST and self.real == "float32":
            start, join, end = "uint32(0)", f"larger_magnitude(row_{name}, {value})", f"float64_of(row_{name})"
        elif one.how == LARGEST:
            join = f"larger(row_{name}, {value})"
        self._row_start.append(f"row_{name} = {start}")
        self.body.append(f"row_{name} = {join}")
        self._row_end.append(_store(name, "row", end))

    def fields(self) -> dict[str, Any]:
        """What the template has places for."""
        edges = {"row_start": indent(self._row_start or ["pass"], 2), "row_end": indent(self._row_end, 2)}
        piece_start = "".join(f"    {line}\n" for line in self._piece_start)
        return {**super().fields(), **edges, "piece_start": piece_start}


class CpuRowBlocks(CpuRows, CpuBlocks):
    """The same where operands are quantized block-wise: a row is worked through by its blocks."""

    depth = 4
    in_block = "count"

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        self.template = _UPDATE_IN_BLOCKS

    def fields(self) -> dict[str, Any]:
        """What the template has places for."""
        fields = super().fields()
        for name in ("before", "between", "exponents"):  # which are once a block here
            fields[name] = textwrap.indent(fields[name], "    " * 2)
        return fields


def _load(name: str, place: str) -> str:
    return f"load_{name}({name}_at, {place})"


def _store(name: str, place: str, value: str) -> str:
    return f"store_{name}({name}_at, {place}, {value})"
