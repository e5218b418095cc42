"""How Triton's programs work on a tile of elements: how many at a time, and where those lie."""

from __future__ import annotations

from dataclasses import dataclass

from steprule.formats import BLOCK
from steprule.kernels.gpu_loop import THREADS, GpuLoop, Shape
from steprule.trace.program import ROW

PART = 512
"""Elements that are worked on at a time where a tensor ends within the tile, or is not aligned."""


def call(loop: GpuLoop, is_whole: bool, is_aligned: bool) -> list[str]:
    """The call of compute for some elements, and what its results add to those before."""
    number = "lib.number_of(first, i, shift, run, gap)" if "key" in loop.random else "first + i"
    told = {"element": number} | ({one: "None" for one in loop.places if one.endswith("inside")} if is_whole else {})
    arguments = [*loop.given(is_aligned).values(), *loop.passed, *(told.get(name, name) for name in loop.places)]
    results = loop.results
    return [
        f"{', '.join(f'new_{name}' for name in results)}{' = ' * bool(results)}compute(",
        *(f"    {one}," for one in arguments),
        ")",
        *(
            f"{name} += new_{name}" if name.startswith("total_") else f"{name} = lib.larger(new_{name}, {name})"
            for name in results
        ),
    ]


@dataclass(frozen=True)
class Way:
    """How the elements of some tiles are worked on.

    Attributes:
        condition: of which; None for what is left.
        parts: what ``part`` goes through.
        body: lines for each part.
        before: lines before the first.
    """

    condition: str | None
    parts: str
    body: list[str]
    before: tuple[str, ...] = ()


def _parts(shape: Shape, size: int, unit: int = 1) -> str:
    """So many elements at a time, counted in units."""
    return f"range(0, {shape.tile // unit}, {size // unit})"


def elements(loop: GpuLoop) -> list[Way]:
    """How elements are worked on in a whole tile, and where a tensor ends within it or is not aligned."""
    shape = loop.shape
    whole = ["first = start + part", f"i = tl.arange(0, {shape.together})"]
    part = ["first = start + part", f"i = tl.arange(0, {PART})", "inside = first + i < size"]
    if loop.stage.factor == ROW:
        factor = "grad_factor = lib.load(factor_at + lib.row_of(first, i, row), {})" + f".to(tl.{loop.real})"
        whole.append(factor.format("None"))
        part.append(factor.format("inside"))
    return [
        Way(
            f"is_aligned & (start + {shape.tile} <= size)",
            _parts(shape, shape.together),
            whole + call(loop, True, True),
        ),
        Way(None, _parts(shape, PART), part + call(loop, False, False)),
    ]


def blocks(loop: GpuLoop) -> list[Way]:
    """The same for block-wise formats: rows may end in the middle of a block, perhaps where memory is aligned."""
    shape, factor = loop.shape, "grad_factor = lib.load(factor_at + row_number, {})" + f".to(tl.{loop.real})"
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

    even = ["even_row = row // 16 * 16", *rows("even_row", THREADS * shape.wide), *call(loop, False, True)]
    is_whole = f"is_aligned & (row % {BLOCK} == 0) & (start + {shape.tile} <= size)"
    return [
        Way(is_whole, _parts(shape, shape.together, BLOCK), whole + call(loop, True, True)),
        Way("is_aligned & (row % 16 == 0)", _parts(shape, THREADS * shape.wide, BLOCK), even),
        Way(None, _parts(shape, BLOCK, BLOCK), rows("row", BLOCK) + call(loop, False, False)),
    ]
