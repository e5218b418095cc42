"""A pass for Triton, which does to the last bit what Numba's does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.formats import GROUP, ROOTS
from steprule.kernels.gpu_loop import GpuLoop
from steprule.kernels.names import marked, told_apart
from steprule.kernels.source import Source, head, indent
from steprule.trace.expression import scalar_name
from steprule.trace.program import Stage

_POINTER = {"bfloat16": "uint16", "float16": "uint16"}
THREADS = 128
"""Threads that share a block of elements."""
PART = 512
"""Elements that are worked on at a time where a tensor ends within the block, or is not aligned."""

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
    """The new values of a block of elements."""
{body}


@triton.jit
def update(address, sizes, chunks, scalars, bits, factors, partials, skip, count):
    """One block of elements of one tensor."""
    if tl.load(skip) != 0:
        return
    chunk = tl.program_id(0)
    tensor, block = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1)
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
        real: the dtype of the arithmetic.
        block: elements of a chunk.
        scalars, bits, own: how many numbers of each kind a tensor has in the plan's tables.
    """

    dtypes: tuple[str, ...]
    real: str
    block: int
    scalars: int
    bits: int
    own: int


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
    block = THREADS * (16 if "int8" in dtypes or "uint8" in dtypes else 8)
    place = ["group", "group_inside", "place"] * loop.grouped
    arguments = [*(f"{name}_at" for name in loop.arrays), *loop.passed, "i", "element", "inside", *place]
    code = _CODE.format(
        step=indent(_HAS_COUNTED if stage.own else _COUNTS, 2),
        hyper_count=max(len(stage.scalars) + loop.uses_seed, 1),
        scalar_body=indent(_scalar_lines(loop), 2),
        arguments=", ".join(arguments),
        body=indent(loop.lines(), 1),
        lead=indent(_lead(loop, block), 1),
    )
    return GpuSource(
        text=head(title, stage, formats, loop.language) + told_apart(code),
        arrays=tuple(loop.dtypes),
        dtypes=dtypes,
        grouped=loop.grouped,
        random=loop.uses_seed,
        tallies=tuple(loop.tallies),
        real=loop.real,
        block=block,
        scalars=len(loop.writer.hoisted),
        bits=len(loop.random),
        own=len(stage.own),
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
    for i, text in enumerate(random):
        value = f"{text}.to(tl.int32, bitcast=True)"
        lines.append(f"tl.store(bits + tensor * {len(random)} + {i}, {value}, mask=inside)")
    return lines


def _lead(loop: GpuLoop, block: int) -> list[str]:
    """What leads from a chunk's number to the calls of compute, and what becomes of their tallies."""
    lines = _numbers(loop, block)
    whole, part = (_groups if loop.grouped else _elements)(loop, block)
    is_whole = f"is_aligned & (start + {block} <= size)"
    if loop.grouped:
        lines.append(f"groups_in_row = (row + {GROUP - 1}) // {GROUP}")
        lines.append(f"place = tl.arange(0, {GROUP})[None, :]")
        is_whole = f"is_aligned & (row % {GROUP} == 0) & (start + {block} <= size)"
    unit = GROUP if loop.grouped else 1
    return [
        *lines,
        f"if {is_whole}:",
        *(f"    {line}" for line in [*whole, *_call(loop, True)]),
        "else:  # few elements at a time, which leaves registers to whole blocks",
        f"    for part in range(0, {block // unit}, {PART // unit}):",
        *(f"        {line}" for line in [*part, *_call(loop, False)]),
        *(f"tl.store(partial_at + {i}, {name})" for i, name in enumerate(loop.tallies)),
    ]


def _numbers(loop: GpuLoop, block: int) -> list[str]:
    """What a chunk's elements have in common."""
    stage, scalars, random, tallies = loop.stage, list(loop.writer.hoisted.values()), loop.random, loop.tallies
    lines = [f"start = block.to(tl.int64) * {block}"]
    lines += [f"{name}_at = tl.load(address + {i} * count + tensor)" for i, name in enumerate(loop.arrays)]
    lines += [f"{local} = tl.load(scalars + tensor * {len(scalars)} + {i})" for i, local in enumerate(scalars)]
    for i, name in enumerate(random):
        lines.append(f"{name} = tl.load(bits + tensor * {len(random)} + {i}).to(tl.uint32, bitcast=True)")
    lines += ["factor_at = factors + tl.load(sizes + 2 * count + tensor)"] * stage.factor
    lines += [f"partial_at = partials + chunk.to(tl.int64) * {len(tallies)}"] * bool(tallies)
    wide = [f"{name}_at" for name in loop.arrays if not name.endswith("_base")]
    lines.append(f"is_aligned = (({' | '.join(wide)}) & 15) == 0")
    if stage.factor and not stage.by_row:
        lines.append(f"grad_factor = tl.load(factor_at).to(tl.{loop.real})")
    return lines + [f"{name} = tl.zeros((), tl.float64)" for name in tallies]


def _call(loop: GpuLoop, is_whole: bool) -> list[str]:
    """The call of compute with arrays from the element first and the group first_group on."""
    arguments = []
    for (name, suffix), dtype in loop.dtypes.items():
        pointer = f"{name}{suffix}_at.to(tl.pointer_type(tl.{_POINTER.get(dtype, dtype)}))"
        if suffix == "_base":
            arguments.append(f"{pointer} + first_group")
        else:
            arguments.append(f"{f'tl.multiple_of({pointer}, 16)' if is_whole else pointer} + first")
    inside, group_inside = ("None", "None") if is_whole else ("inside", "group_inside")
    arguments += [*loop.passed, "i", "first + i", inside, *["group", group_inside, "place"] * loop.grouped]
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


def _elements(loop: GpuLoop, block: int) -> tuple[list[str], list[str]]:
    """Which elements are worked on, for a whole block and for a part of one."""
    whole = ["first = start", f"i = tl.arange(0, {block})"]
    part = ["first = start + part", f"i = tl.arange(0, {PART})", "inside = first + i < size"]
    if loop.stage.by_row:
        factor = "grad_factor = lib.load(factor_at + lib.row_of(first, i, row), {})" + f".to(tl.{loop.real})"
        whole.append(factor.format("None"))
        part.append(factor.format("inside"))
    return whole, part


def _groups(loop: GpuLoop, block: int) -> tuple[list[str], list[str]]:
    """The same for groups that share a base: rows may end in the middle of one."""
    factor = "grad_factor = lib.load(factor_at + row_number, {})" + f".to(tl.{loop.real})"
    whole = [
        "first = start",
        f"first_group = start // {GROUP}",
        f"group = tl.arange(0, {block // GROUP})[:, None]",
        f"i = group * {GROUP} + place",
    ]
    part = [
        f"first_group = block.to(tl.int64) * {block // GROUP} + part",
        "first_row = first_group // groups_in_row",
        f"first = first_row * row + (first_group - first_row * groups_in_row) * {GROUP}",
        f"group = tl.arange(0, {PART // GROUP})[:, None]",
        "row_number = (first_group + group) // groups_in_row",
        f"in_row = (first_group + group - row_number * groups_in_row) * {GROUP}",
        "i = (row_number * row + in_row - first).to(tl.int32) + place",
        "group_inside = row_number * row < size",
        "inside = (in_row + place < row) & group_inside",
    ]
    if loop.stage.by_row:
        whole += ["row_number = (first_group + group) // groups_in_row", factor.format("None")]
        part.append(factor.format("group_inside"))
    return whole, part
