"""A pass for Triton, which does to the last bit what the CPU engine's does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.formats import BLOCK, ROOTS
from steprule.kernels.gpu_loop import GpuLoop
from steprule.kernels.gpu_rows import GpuRows, rows
from steprule.kernels.gpu_tiles import blocks, elements
from steprule.kernels.names import marked, told_apart
from steprule.kernels.source import Source, head, indent
from steprule.trace.expression import scalar_name
from steprule.trace.program import TENSOR, Stage

_CODE = '''import triton
import triton.language as tl

from steprule.formats import gpu as lib
from steprule.formats.gpu import *


@triton.jit
def prepare(
    step_at, steps, own, groups, numbers, hyper, scalars, bits, skip, count, SIZE: tl.constexpr
):
    """Counts every tensor's step if nobody has, and computes what no element changes in float64 and random bits."""
    tensor = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = tensor < count
    if tl.load(skip) == 0:
{step}
        zero = step * 0.0
        row_at = hyper + tl.load(groups + tensor, mask=inside, other=0) * {hyper_count}
{scalar_body}


@triton.jit
def compute({arguments}):
    """The new values of a tile of elements."""
{body}


@triton.jit
def update(address, sizes, chunks, scalars, bits, factors, partials, skip, count):
    """One tile of elements of one tensor."""
    if tl.load(skip) != 0:
        return
    chunk = tl.program_id(0)
    tensor, tile = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1)
    size, row = tl.load(sizes + tensor), tl.load(sizes + count + tensor)
{lead}
'''


_COUNTS = """
kept_at = tl.load(step_at + tensor, mask=inside, other=0).to(tl.pointer_type(tl.float64))
step = tl.load(kept_at, mask=inside, other=0.0) + 1.0
tl.store(kept_at, step, mask=inside)
""".strip().splitlines()
_HAS_COUNTED = ["step = tl.load(steps + tensor, mask=inside, other=0.0)"]


@dataclass(frozen=True)
class GpuSource(Source):
    """A kernel as text, with the functions ``prepare`` and ``update``.

    Attributes:
        dtypes: those of its arrays.
        tile: elements of a chunk.
        each: those that a thread works on at a time.
        scalars, bits, own: how many numbers of each kind a tensor has in the plan's tables.
        rows: of a chunk that is some rows by some columns; 0 for one that is a stretch.
        registers: how many a thread may use, so that enough threads are at work at a time.
    """

    dtypes: tuple[str, ...]
    tile: int
    each: int
    scalars: int
    bits: int
    own: int
    rows: int
    registers: int


def write_pass(title: str, stage: Stage, formats: Sequence[str]) -> GpuSource:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        stage: what to compute.
        formats: of each of the stage's operands, keys of `steprule.formats.FORMATS`.
    """
    loop = (GpuRows if stage.sides else GpuLoop)(stage, formats)
    loop.write()
    dtypes, shape = tuple(loop.dtypes.values()), loop.shape
    code = _CODE.format(
        step=indent(_HAS_COUNTED if stage.own else _COUNTS, 2),
        hyper_count=max(len(stage.scalars) + loop.uses_seed, 1),
        scalar_body=indent(_scalar_lines(loop), 2),
        arguments=", ".join([*loop.given(False), *loop.passed, *loop.places]),
        body=indent(loop.lines(), 1),
        lead=indent(_lead(loop), 1),
    )
    return GpuSource(
        text=head(title, stage, formats, loop.language) + told_apart(code),
        arrays=tuple(loop.dtypes),
        dtypes=dtypes,
        blockwise=loop.blockwise,
        random=loop.uses_seed,
        tallies=tuple(loop.tallies),
        real=loop.real,
        tile=shape.tile,
        each=shape.each,
        scalars=len(loop.writer.hoisted),
        bits=loop.bits,
        own=len(stage.own),
        rows=shape.rows,
        registers=shape.registers * (1 + (loop.real == "float64")) + 48,
    )


def _scalar_lines(loop: GpuLoop) -> list[str]:
    """What no element changes."""
    stage, hoisted, own = loop.stage, loop.writer.hoisted, loop.random
    names = [marked(scalar_name(*scalar)) for scalar in stage.scalars] + ["seed"] * bool(own)
    lines = [f"{name} = tl.load(row_at + {i}, mask=inside, other=0.0)" for i, name in enumerate(names)]
    for i, name in enumerate(stage.own):
        lines.append(f"{marked(name)} = tl.load(own + {i} * count + tensor, mask=inside, other=0.0)")
    for i, (text, local) in enumerate(hoisted.items()):
        lines.append(f"{local} = {text}")
        lines.append(f"tl.store(scalars + tensor * {len(hoisted)} + {i}, {local}, mask=inside)")
    places = [loop.operands[name].place for name in loop.rounded] if own else []
    random = [f"lib.dither(seed, step, {place}, {ROOTS[place % len(ROOTS)]:#x})" for place in places]
    if "key" in own:
        lines.append("number = tl.load(numbers + tensor, mask=inside, other=0) + lib.FIRST_ELEMENT_KEY")
        random.append("lib.random_bits(seed, step, number)")
    for name, text in zip(own, random, strict=True):
        at = f"bits + tensor * {loop.bits} + {loop.columns[name]}"
        if name in loop.by_place:
            lines += [f"{name} = {text}", f"lib.store_places({at}, {name}, inside)"]
        else:
            lines.append(f"tl.store({at}, {text}.to(tl.int32, bitcast=True), mask=inside)")
    return lines


def _lead(loop: GpuLoop) -> list[str]:
    """What leads from a chunk's number to the calls of compute, and what becomes of their results."""
    lines = _numbers(loop)
    ways = rows(loop) if isinstance(loop, GpuRows) else (blocks if loop.blockwise else elements)(loop)
    for number, way in enumerate(ways):
        word = "else" if way.condition is None else f"{'el' * (number > 0)}if {way.condition}"
        lines += [f"{word}:", *(f"    {line}" for line in way.before), f"    for part in {way.parts}:"]
        lines += [f"        {line}" for line in way.body]
    return lines + loop.end()


def _numbers(loop: GpuLoop) -> list[str]:
    """What a chunk's elements have in common."""
    stage, scalars, tallies = loop.stage, list(loop.writer.hoisted.values()), loop.tallies
    lines = loop.where()
    lines += [f"{name}_at = tl.load(address + {i} * count + tensor)" for i, name in enumerate(loop.arrays)]
    lines += [f"{local} = tl.load(scalars + tensor * {len(scalars)} + {i})" for i, local in enumerate(scalars)]
    for name, column in loop.columns.items():
        at = f"bits + tensor * {loop.bits} + {column}"
        lines.append(f"{name} = {at if name in loop.by_place else f'tl.load({at}).to(tl.uint32, bitcast=True)'}")
    if "key" in loop.random:
        names = enumerate(("shift", "run", "gap"), 3)
        lines += [f"{name} = tl.load(sizes + {place} * count + tensor)" for place, name in names]
    lines += ["factor_at = factors + tl.load(sizes + 2 * count + tensor)"] * bool(stage.factor)
    lines += [f"partial_at = partials + chunk.to(tl.int64) * {len(tallies)}"] * bool(tallies)
    wide = [f"{name}_at" for name in loop.aligned]
    lines.append(f"is_aligned = (({' | '.join(wide)}) & 15) == 0")
    if loop.blockwise:
        lines.append(f"blocks_in_row = ((row + {BLOCK - 1}) // {BLOCK}).to(tl.int32)")
        lines.append(f"place = tl.arange(0, {BLOCK})[None, :]")
    lines += ["is_even = is_aligned & (row % 16 == 0)"] * isinstance(loop, GpuRows)
    if stage.factor == TENSOR:
        lines.append(f"grad_factor = tl.load(factor_at).to(tl.{loop.real})")
    return lines + loop.begin()
