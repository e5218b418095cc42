"""A pass for Triton that only adds up, in stretches: a program goes through a long one and joins its lanes once, at the end."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.formats import ITEM_SIZE
from steprule.kernels.gpu_loop import POINTERS, GpuLoop
from steprule.kernels.names import told_apart
from steprule.kernels.source import Source, head, indent, squared, tally_of
from steprule.trace.program import ADD, LARGEST, SMALLEST, Stage, Sum

TILE = 1024
"""Elements that are read at a time."""

_CODE = '''import triton
import triton.language as tl

from steprule.formats import gpu as lib
from steprule.formats.gpu import *


@triton.jit
def joined(total, {array}_at, i, inside):
    """What a tile's elements make of what was there, lane by lane."""
{body}
    if inside is None:
        return new
    else:
        return tl.where(inside, new, total)


@triton.jit
def update(address, sizes, chunks, lengths, sums):
    """One stretch of one tensor."""
    chunk = tl.program_id(0)
    tensor, number = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1)
    stretch = tl.load(lengths + tensor)
    start = number.to(tl.int64) * stretch
    length = tl.minimum(tl.load(sizes + tensor) - start, stretch)
    place = tl.load(address + tensor) + start * {item_size}
    at = place.to(tl.pointer_type(tl.{pointer}))
    aligned_at = tl.multiple_of(at, 16)
    i = tl.arange(0, {tile})
    total = tl.full(({tile},), {begin}, tl.float64)
    whole = tl.where((place & 15) == 0, length // {tile} * {tile}, 0)
    for first in range(0, whole, {tile}):
        total = joined(total, aligned_at + first, i, None)
    for first in range(whole, length, {tile}):
        total = joined(total, at + first, i, first + i < length)
    tl.store(sums + chunk, {end}(total))
'''

_LANES = {
    ADD: ("0.0", "tl.sum"),
    LARGEST: ("0.0", "lib.maximum_of"),
    SMALLEST: ('float("inf")', "lib.minimum_of"),
}
"""What lanes begin at, and what joins them."""


class _Stretch(GpuLoop):
    """The function ``joined``."""

    def add_up(self, name: str, one: Sum) -> None:
        """Joins an expression's values with what was there."""
        square = squared(one, self.stage)
        if square is not None:
            x = self.value(square)
            new = f"tl.fma({x}, {x}, total)"
        elif one.how == ADD:
            new = f"total + {self.value(one.expression)}.to(tl.float64)"
        else:
            new = f"lib.{'larger' if one.how == LARGEST else 'smaller'}({self.value(one.expression)}.to(tl.float64), total)"
        self.body.append(f"new = {new}")
        self._tallies.append(tally_of(name, one.how))

    def lines(self) -> list[str]:
        """Those of ``joined``; numbers that no element changes are few, and stand there."""
        numbers = [f"{local} = {text}.to(tl.{self.real})" for text, local in self.writer.hoisted.items()]
        return [*["zero = tl.zeros((), tl.float64)"] * bool(numbers), *self.loads, *numbers, *self.body]


def write_reading(title: str, stage: Stage, formats: Sequence[str]) -> Source:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        stage: one sum over one operand, and nothing else.
        formats: of that operand, a dtype.
    """
    loop = _Stretch(stage, formats)
    loop.write()
    ((_, dtype),) = loop.dtypes.items()
    (one,) = stage.sums.values()
    begin, end = _LANES[one.how]
    code = _CODE.format(
        array=loop.arrays[0],
        body=indent(loop.lines(), 1),
        item_size=ITEM_SIZE[dtype],
        pointer=POINTERS.get(dtype, dtype),
        tile=TILE,
        begin=begin,
        end=end,
    )
    text = head(title, stage, formats, loop.language) + told_apart(code)
    return Source(text, tuple(loop.dtypes), False, False, tuple(loop.tallies), loop.real)
