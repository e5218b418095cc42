"""A pass for the CPU engine: one file a user can open and read."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.formats import ITEM_SIZE
from steprule.kernels.cpu_blocks import CpuBlocks
from steprule.kernels.cpu_loop import CpuLoop, CpuStrips
from steprule.kernels.cpu_rows import CpuRowBlocks, CpuRows
from steprule.kernels.names import marked, told_apart
from steprule.kernels.source import Source, head, indent
from steprule.kernels.writer import is_costly
from steprule.trace.expression import scalar_name
from steprule.trace.program import ADD, COL, LARGEST, ROW, Side, Stage

_CODE = '''from math import exp, floor, inf, log, nan, sqrt

from steprule.engine.machine import *
from steprule.engine.machine import (
    ADDRESSES, CHUNK_TABLE, CHUNKS, COUNT, FACTORS, FIRST_FACTOR, GROUPS, HYPER, MODE, NEXT,
    NUMBERS, OWN, PARTIALS, PIECES, ROWS, STEPS, TENSORS,
)
from steprule.formats.kernel import *

{accessors}


@exact
def larger(a, b):
    return a if (a > b) | (a != a) else b


@exact
def smaller(a, b):
    return a if (a < b) | (a != a) else b


@exact
def scalars(hyper, step{own_argument}):
    """What no element changes, in float64; then in the elements' {real}. Last, random bits for roundings."""
{scalar_body}

{update}

@exact
def run(header):
    """Works through the plan whose header is at this address, together with whoever else is called so."""
    plan = int64s(header)
    if plan[MODE] & COUNT:
        count_steps(plan)
        if plan[MODE] == COUNT:
            return
    tensors, chunks, counter = plan[TENSORS], plan[CHUNKS], plan[NEXT]
    addresses, table, groups = int64s(plan[ADDRESSES]), int64s(plan[CHUNK_TABLE]), int64s(plan[GROUPS])
    steps, rows, parameters = float64s(plan[STEPS]), int64s(plan[ROWS]), int64s(plan[NUMBERS])
{tables}    group, step = groups[0], steps[0]
    numbers = scalars(float64s(plan[HYPER] + group * {hyper_bytes}), step{own_row})
    while True:
        chunk = fetch_add(counter, 1)
        if chunk >= chunks:
            return
        row = 5 * chunk
        tensor, start, size, first_block = table[row], table[row + 1], table[row + 2], table[row + 3]
        if {has_changed}:
            group, step = groups[tensor], steps[tensor]
            numbers = scalars(float64s(plan[HYPER] + group * {hyper_bytes}), step{own_row_of_tensor})
{call}'''

_CALL = """        {results}update(
            size,
{chunk_arguments}
            numbers,
        )
"""

_CALL_BY_PIECE = """        piece, blocks_of_piece, end, place = pieces[2 * tensor], pieces[2 * tensor + 1], start + size, table[row + 4]
        while start < end:
            size = min(piece, end - start)
{call}            start += piece
            first_block += blocks_of_piece
"""


def write_pass(title: str, stage: Stage, formats: Sequence[str]) -> Source:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        stage: what to compute.
        formats: of each of the stage's operands, keys of `steprule.formats.FORMATS`.
    """
    loop = _loop(stage, formats)
    loop.write()
    own = len(stage.own)
    own_row = f", float64s(plan[OWN] + {{}} * {8 * own})" if own else ""
    hyper_count = len(stage.scalars) + loop.uses_seed
    code = _CODE.format(
        real=loop.real,
        own_argument=", own" if own else "",
        own_row=own_row.format(0),
        own_row_of_tensor=own_row.format("tensor"),
        has_changed="True" if own else "groups[tensor] != group or steps[tensor] != step",
        accessors="\n".join(loop.accessors),
        scalar_body=indent(_scalar_lines(loop), 1),
        update=loop.update(),
        hyper_bytes=8 * hyper_count,
        tables=_tables(loop),
        call=_call(loop),
    )
    text = head(title, stage, formats, loop.language) + told_apart(code)
    return Source(text, tuple(loop.dtypes), loop.blockwise, loop.uses_seed, tuple(loop.tallies), loop.real)


def _loop(stage: Stage, formats: Sequence[str]) -> CpuLoop:
    """What suits the operands."""
    loop = CpuLoop(stage, formats)
    if stage.sides:
        return (CpuRowBlocks if loop.blockwise else CpuRows)(stage, formats)
    if loop.blockwise:
        return CpuBlocks(stage, formats)
    costly = loop.real == "float32" and any(is_costly(one.expression) for one in stage.sums.values())
    return CpuStrips(stage, formats) if costly else loop


def _scalar_lines(loop: CpuLoop) -> list[str]:
    """What no element changes."""
    stage, hoisted = loop.stage, loop.writer.hoisted
    lines = [f"{marked(scalar_name(*scalar))} = hyper[{i}]" for i, scalar in enumerate(stage.scalars)]
    lines += [f"{marked(name)} = own[{i}]" for i, name in enumerate(stage.own)]
    lines += [f"{local} = {text}" for text, local in hoisted.items()]
    seed = f"hyper[{len(stage.scalars)}]"
    results = [f"{loop.real}({local})" for local in hoisted.values()]
    results += [f"dither({seed}, step, {loop.operands[name].place})" for name in loop.rounded]
    results += [seed, "step"] * loop.by_element
    return [*lines, f"return ({''.join(f'{result}, ' for result in results)})"]


def _chunk_arguments(loop: CpuLoop) -> list[str]:
    """What ``update`` is given between the size and the numbers that no element changes."""
    stage = loop.stage
    arguments = ["rows[tensor]"] * (loop.blockwise or bool(stage.sides))
    for position, ((name, suffix), dtype) in enumerate(loop.dtypes.items()):
        offset = "first_block" if suffix == "_base" else _OFFSETS[side] if (side := stage.sides.get(name)) else "start"
        arguments.append(f"addresses[{position} * tensors + tensor] + {ITEM_SIZE[dtype]} * {offset}")
    arguments += ["start + shifts[chunk]", "parameters[tensor]"] * loop.by_element
    place = "first_factor[tensor] + start // piece" if stage.factor == ROW else "tensor"
    return arguments + [f"{loop.real}(factors[{place}])"] * bool(stage.factor)


_OFFSETS = {
    Side(ROW): "(start // rows[tensor])",
    Side(COL): "0",
    **{Side(ROW, how): "(start // rows[tensor])" for how in (ADD, LARGEST)},
    **{Side(COL, how): "(start // piece * rows[tensor])" for how in (ADD, LARGEST)},
}
"""Where a chunk's numbers of rows and columns begin. Each piece adds up columns in a place of its own."""


def _call(loop: CpuLoop) -> str:
    """The call of update for a chunk or each of its pieces, and what becomes of their tallies."""
    by_row, tallies = loop.stage.factor == ROW, list(loop.tallies)
    results = "".join(f"{name}, " for name in tallies).rstrip() + " = " * bool(tallies)
    call = _CALL.format(
        results=results, chunk_arguments="".join(f"            {x},\n" for x in _chunk_arguments(loop))[:-1]
    )
    if not by_row and not tallies and not _finds_columns(loop):
        return call
    lines = call.splitlines()
    before = ""
    if by_row:  # a chunk's rows share a place
        before = "".join(
            f"        partials[{len(tallies)} * table[row + 4] + {column}] = 0.0\n" for column in range(len(tallies))
        )
    for column, name in enumerate(tallies):
        kept = f"partials[{len(tallies)} * place + {column}]"
        joined = f"{kept} + {name}" if name.startswith("total_") else f"larger({kept}, {name})"
        lines.append(f"        {kept} = {joined if by_row else name}")
    if not by_row:
        lines.append("        place += 1")
    return before + _CALL_BY_PIECE.format(call="".join(f"    {line}\n" for line in lines))


def _finds_columns(loop: CpuLoop) -> bool:
    """Whether it adds up columns; others of its program may."""
    return any(side.axis == COL and side.how for side in loop.stage.sides.values())


def _tables(loop: CpuLoop) -> str:
    """The plan's tables that not every kernel looks at."""
    stage, lines = loop.stage, []
    if stage.factor == ROW:
        lines = ["first_factor = int64s(plan[FIRST_FACTOR])"]
        lines += ["factors = float64s(plan[FACTORS])"]
    elif stage.factor:
        lines = ["factors = float64s(plan[FACTORS])"]
    if loop.by_element:
        lines.append("shifts = int64s(plan[SHIFTS])")
    if loop.tallies or stage.factor == ROW or _finds_columns(loop):
        lines.append("pieces = int64s(plan[PIECES])")
    if loop.tallies:
        lines.append("partials = float64s(plan[PARTIALS])")
    return "".join(f"    {line}\n" for line in lines)
