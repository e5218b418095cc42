"""A pass for Triton, which does to the last bit what Numba's does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.formats import BLOCK, ITEM_SIZE, ROOTS
from steprule.kernels.gpu_loop import GpuLoop
from steprule.kernels.names import marked, told_apart
from steprule.kernels.source import Source, head, indent
from steprule.trace.expression import scalar_name
from steprule.trace.program import ROW, TENSOR, Stage

POINTERS = {"bfloat16": "uint16", "float16": "uint16"}
THREADS = 128
"""Threads that share a tile of elements."""
PART = 512
"""Elements that are worked on at a time where a tensor ends within the tile, or is not aligned."""

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
        registers: how many a thread may use, so that enough threads are at work at a time.
    """

    dtypes: tuple[str, ...]
    tile: int
    each: int
    scalars: int
    bits: int
    own: int
    registers: int


@dataclass(frozen=True)
class Shape:
    """How a tile is worked on.

    Attributes:
        each: how many elements a thread works on at a time.
        rounds: how often.
        wide: how many of the widest array are 16 bytes, the most that a thread loads or stores at once.
        registers: how many its numbers take.
    """

    each: int
    rounds: int
    wide: int
    registers: int

    @classmethod
    def of(cls, loop: GpuLoop) -> Shape:
        """What was fastest on an H200.

        Rounds spare the work before the first, but one cannot load before the last has stored: they pay where few bytes
        are moved. More elements of 4 bytes than `wide` change places before they are stored, which loads of many
        bytes make up for.
        """
        widest = max(ITEM_SIZE[dtype] for (_, suffix), dtype in loop.dtypes.items() if suffix != "_base")
        is_half = widest == 2
        each = 16 if loop.blockwise and not is_half else 8
        registers = each * len(loop.stage.operands) + 16 * (each == 16)
        return cls(each, 4 if is_half else 1, 16 // widest, registers)

    @property
    def together(self) -> int:
        """Elements that are worked on at a time."""
        return THREADS * self.each

    @property
    def tile(self) -> int:
        """Elements of a tile."""
        return self.together * self.rounds


def write_pass(title: str, stage: Stage, formats: Sequence[str]) -> GpuSource:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        stage: what to compute.
        formats: of each of the stage's operands, keys of `steprule.formats.FORMATS`.
    """
    loop = GpuLoop(stage, formats)
    loop.write()
    dtypes = tuple(loop.dtypes.values())
    shape = Shape.of(loop)
    place = ["block", "block_inside", "place"] * loop.blockwise
    arguments = [*(f"{name}_at" for name in loop.arrays), *loop.passed, "i", "element", "inside", *place]
    code = _CODE.format(
        step=indent(_HAS_COUNTED if stage.own else _COUNTS, 2),
        hyper_count=max(len(stage.scalars) + loop.uses_seed, 1),
        scalar_body=indent(_scalar_lines(loop), 2),
        arguments=", ".join(arguments),
        body=indent(loop.lines(), 1),
        lead=indent(_lead(loop, shape), 1),
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


def _lead(loop: GpuLoop, shape: Shape) -> list[str]:
    """What leads from a chunk's number to the calls of compute, and what becomes of their tallies."""
    unit = BLOCK if loop.blockwise else 1
    lines = _numbers(loop, shape.tile)
    ways = (_blocks if loop.blockwise else _elements)(loop, shape)
    for number, (condition, size, body) in enumerate(ways):
        word = "else" if condition is None else f"{'el' * (number > 0)}if {condition}"
        lines += [f"{word}:", f"    for part in range(0, {shape.tile // unit}, {size // unit}):"]
        lines += [f"        {line}" for line in body]
    return lines + [f"tl.store(partial_at + {i}, {name})" for i, name in enumerate(loop.tallies)]


def _numbers(loop: GpuLoop, tile: int) -> list[str]:
    """What a chunk's elements have in common."""
    stage, scalars, tallies = loop.stage, list(loop.writer.hoisted.values()), loop.tallies
    lines = [f"start = tile.to(tl.int64) * {tile}"]
    lines += [f"{name}_at = tl.load(address + {i} * count + tensor)" for i, name in enumerate(loop.arrays)]
    lines += [f"{local} = tl.load(scalars + tensor * {len(scalars)} + {i})" for i, local in enumerate(scalars)]
    for name, column in loop.columns.items():
        at = f"bits + tensor * {loop.bits} + {column}"
        lines.append(f"{name} = {at if name in loop.by_place else f'tl.load({at}).to(tl.uint32, bitcast=True)'}")
    lines += ["factor_at = factors + tl.load(sizes + 2 * count + tensor)"] * bool(stage.factor)
    lines += [f"partial_at = partials + chunk.to(tl.int64) * {len(tallies)}"] * bool(tallies)
    wide = [f"{name}_at" for name in loop.arrays if not name.endswith("_base")]
    lines.append(f"is_aligned = (({' | '.join(wide)}) & 15) == 0")
    if loop.blockwise:
        lines.append(f"blocks_in_row = ((row + {BLOCK - 1}) // {BLOCK}).to(tl.int32)")
        lines.append(f"place = tl.arange(0, {BLOCK})[None, :]")
    if stage.factor == TENSOR:
        lines.append(f"grad_factor = tl.load(factor_at).to(tl.{loop.real})")
    return lines + [f"{name} = tl.zeros((), tl.float64)" for name in tallies]


def _call(loop: GpuLoop, is_whole: bool, is_aligned: bool) -> list[str]:
    """The call of compute with arrays from the element first and the block first_block on."""
    arguments = []
    for (name, suffix), dtype in loop.dtypes.items():
        pointer = f"{name}{suffix}_at.to(tl.pointer_type(tl.{POINTERS.get(dtype, dtype)}))"
        if suffix == "_base":
            arguments.append(f"{pointer} + first_block")
        else:
            arguments.append(f"{f'tl.multiple_of({pointer}, 16)' if is_aligned else pointer} + first")
    inside, block_inside = ("None", "None") if is_whole else ("inside", "block_inside")
    arguments += [*loop.passed, "i", "first + i", inside, *["block", block_inside, "place"] * loop.blockwise]
    tallies = loop.tallies
    return [
        f"{', '.join(f'new_{name}' for name in tallies)}{' = ' * bool(tallies)}compute(",
        *(f"    {one}," for one in arguments),
        ")",
        *(
            f"{name} += new_{name}" if name.startswith("total_") else f"{name} = lib.larger(new_{name}, {name})"
            for name in tallies
        ),
    ]


Way = tuple[str | None, int, list[str]]
"""Where elements are worked on so, how many at a time, and how."""


def _elements(loop: GpuLoop, shape: Shape) -> list[Way]:
    """How elements are worked on in a whole tile, and where a tensor ends within it or is not aligned."""
    whole = ["first = start + part", f"i = tl.arange(0, {shape.together})"]
    part = ["first = start + part", f"i = tl.arange(0, {PART})", "inside = first + i < size"]
    if loop.stage.factor == ROW:
        factor = "grad_factor = lib.load(factor_at + lib.row_of(first, i, row), {})" + f".to(tl.{loop.real})"
        whole.append(factor.format("None"))
        part.append(factor.format("inside"))
    return [
        (f"is_aligned & (start + {shape.tile} <= size)", shape.together, whole + _call(loop, True, True)),
        (None, PART, part + _call(loop, False, False)),
    ]


def _blocks(loop: GpuLoop, shape: Shape) -> list[Way]:
    """The same for block-wise formats: rows may end in the middle of a block, perhaps where memory is aligned."""
    factor = "grad_factor = lib.load(factor_at + row_number, {})" + f".to(tl.{loop.real})"
    whole = [
        f"first_block = (start // {BLOCK}).to(tl.int32) + part",
        f"first = first_block.to(tl.int64) * {BLOCK}",
        f"block = tl.arange(0, {shape.together // BLOCK})[:, None]",
        f"i = block * {BLOCK} + place",
    ]
    if loop.stage.factor == ROW:
        whole += ["row_number = (first_block + block) // blocks_in_row", factor.format("None")]

    def rows(length: str, size: int) -> list[str]:
        """Where so many elements lie, if this is a row's length: some at a time, of rows that may end in a block."""
        lines = [
            f"first_block = (start // {BLOCK}).to(tl.int32) + part",
            "first_row = first_block // blocks_in_row",
            f"first = first_row * {length} + (first_block - first_row * blocks_in_row).to(tl.int64) * {BLOCK}",
            f"block = tl.arange(0, {size // BLOCK})[:, None]",
            "row_number = (first_block + block) // blocks_in_row",
            f"in_row = (first_block + block - row_number * blocks_in_row).to(tl.int64) * {BLOCK}",
            f"i = (row_number * {length} + in_row - first).to(tl.int32) + place",
            f"block_inside = row_number * {length} < size",
            f"inside = (in_row + place < {length}) & block_inside",
        ]
        return lines + [factor.format("block_inside")] * (loop.stage.factor == ROW)

    even = ["even_row = tl.multiple_of(row, 16)", *rows("even_row", THREADS * shape.wide), *_call(loop, False, True)]
    is_whole = f"is_aligned & (row % {BLOCK} == 0) & (start + {shape.tile} <= size)"
    return [
        (is_whole, shape.together, whole + _call(loop, True, True)),
        ("is_aligned & (row % 16 == 0)", THREADS * shape.wide, even),
        (None, BLOCK, rows("row", BLOCK) + _call(loop, False, False)),
    ]
