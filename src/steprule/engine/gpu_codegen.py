"""Writes a formula as the source of a Triton kernel, which does to the last bit what the CPU's does."""

from __future__ import annotations

from dataclasses import dataclass

from steprule.engine.codegen import Writer, compute_dtype, keeps, local_name, purpose_of, stored
from steprule.formats import FORMATS, GROUP, ROOTS, Format
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.program import Stage

_BOTH = {
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "abs": "tl.abs({})",
    "neg": "({} * -1.0)",
    "not": "(~{})",
    "maximum": "lib.larger({}, {})",
    "minimum": "lib.smaller({}, {})",
    "where": "tl.where({}, {}, {})",
    "pow": "lib.power({}, {})",
    "multiply_add": "tl.fma({}, {}, {})",
    "bits": "lib.bits_as_number({})",
    "of_bits": "lib.number_as_bits({})",
    "cbrt": "lib.power({}, zero + 1.0 / 3.0)",
}
_SCALAR_CALLS = {**_BOTH, "sqrt": "tl.sqrt({})", "floor": "tl.floor({})"}
_CALLS = {
    "float32": {**_BOTH, "sqrt": "tl.sqrt_rn({})", "div": "tl.div_rn({}, {})"},
    "float64": _SCALAR_CALLS,
}
_POINTER = {"bfloat16": "uint16", "float16": "uint16"}
THREADS = 128
"""Threads that share a block of elements."""
PART = 512
"""Elements that are worked on at a time where a tensor ends within the block, or is not aligned."""

_TEMPLATE = '''"""{title}

{purpose}
Written by steprule from the rule's formula, compiled by Triton; safe to delete.
"""

import triton
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
class Source:
    """A kernel as text.

    Attributes:
        text: the file, with the functions ``prepare`` and ``update``.
        arrays: the arrays that it works on, as (operand, suffix); param's and grad's own come first.
        dtypes: theirs.
        grouped: whether numbers share bases.
        random: whether the seed follows the formula's scalars in the plan's table of hyperparameters.
        tallies: what each chunk leaves in the plan's partials: names that begin with "total_" are sums, those with
            "top_" largest absolute values.
        real: the dtype of the arithmetic.
        block: elements of a chunk.
        scalars, bits, own: how many numbers of each kind a tensor has in the plan's tables.
    """

    text: str
    arrays: tuple[tuple[str, str], ...]
    dtypes: tuple[str, ...]
    grouped: bool
    random: bool
    tallies: tuple[str, ...]
    real: str
    block: int
    scalars: int
    bits: int
    own: int


def write_kernel(title: str, formula: Stage, formats: tuple[str, ...]) -> Source:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        formula: what to compute.
        formats: of each of formula.operands, keys of `steprule.formats.FORMATS`.
    """
    real = compute_dtype(formats)
    chosen = {name: FORMATS[text] for name, text in zip(formula.operands, formats, strict=True)}
    writer = Writer(formula, real, stored(chosen["param"]), _CALLS[real], _SCALAR_CALLS, constant="(zero + {!r})")
    arrays = [(name, suffix) for name, one in chosen.items() for suffix, _ in one.arrays]
    arrays.sort(key=lambda array: array not in (("param", ""), ("grad", "")))
    dtypes = {f"{name}{suffix}": dtype for name, one in chosen.items() for suffix, dtype in one.arrays}
    grouped = any(one.grouped for one in chosen.values())
    by_element = any(one.random == "element" for one in chosen.values())

    body = _loads(chosen, real)
    stores: list[str] = []
    for name, expression in formula.outputs.items():
        if keeps(name, expression) and not chosen[name].grouped:
            continue
        body.append(f"new_{name} = {_each(writer, expression, body)}")
        stores += _store(name, chosen[name], formats[formula.operands.index(name)], real)
    tallies = _tally(formula, chosen["param"], writer, body)
    body += stores
    if tallies:
        body.append(f"return {', '.join(tallies)}")

    steps_random = [name for name, one in chosen.items() if one.random == "step"]
    has_seed = bool(steps_random) or by_element
    if not formula.outputs:  # a reading, which rounds nothing
        steps_random, by_element = [], False
    random = [f"random_{name}" for name in steps_random] + ["key"] * by_element
    passed = [f"{name}{suffix}_at" for name, suffix in arrays]
    passed += [*writer.hoisted.values(), *random]
    passed += ["grad_factor"] * formula.factor
    place = ["group", "group_inside", "place"] if grouped else []
    block = THREADS * (16 if "int8" in dtypes.values() or "uint8" in dtypes.values() else 8)
    text = _TEMPLATE.format(
        title=title,
        purpose=purpose_of(formula, formats, real),
        step=_indent(_HAS_COUNTED if formula.own else _COUNTS, 2),
        hyper_count=max(len(formula.scalars) + has_seed, 1),
        scalar_body=_indent(_scalar_lines(formula, writer, steps_random, by_element), 2),
        arguments=", ".join([*passed, "i", "element", "inside", *place]),
        body=_indent(body, 1),
        lead=_indent(_lead(formula, arrays, dtypes, writer, random, tallies, passed, grouped, block), 1),
    )
    return Source(
        text=text,
        arrays=tuple(arrays),
        dtypes=tuple(dtypes[name + suffix] for name, suffix in arrays),
        grouped=grouped,
        random=has_seed,
        tallies=tuple(tallies),
        real=real,
        block=block,
        scalars=len(writer.hoisted),
        bits=len(random),
        own=len(formula.own),
    )


def _each(writer: Writer, expression: Expression, lines: list[str]) -> str:
    """The expression's value for each element of a block, even if it is the same for all."""
    value = writer.element(expression, lines)
    return f"tl.zeros_like(param) + {value}" if expression.scalar else value


def _loads(chosen: dict[str, Format], real: str) -> list[str]:
    """The operands, read."""
    lines = []
    for name, one in chosen.items():
        if one.grouped:
            lines.append(f"{name}_base = lib.load({name}_base_at + group, group_inside)")
        own = [f"lib.load({name}{suffix}_at + i, inside)" for suffix, _ in one.arrays if suffix != "_base"]
        value = one.load.format(*own, base=f"{name}_base")
        kept = "float32" if one.load != "{0}" else one.arrays[0][1]
        lines.append(f"{local_name(name)} = {value if kept == real else f'{value}.to(tl.{real})'}")
    return lines


def _store(name: str, one: Format, kind: str, real: str) -> list[str]:
    """An operand's new value, written."""
    kept = one.arrays[0][1]
    wanted = "float64" if kept == "float64" else "float32"
    x = f"new_{name}" if wanted == real else f"new_{name}.to(tl.{wanted})"
    random = f"random_{name}" if one.random == "step" else "lib.element_random(key, element)"
    lines = []
    if one.grouped:
        random = f"lib.weyl({random}, place)"
        lines.append(f"{name}_kept = {f'lib.magnitude({x})' if kind == 'positive8' else x}")
        x = f"{name}_kept"
        lines.append(f"{name}_top = lib.largest_in_group({x}, inside)")
        lines.append(f"{name}_base = lib.{kind}_base({name}_top)")
        lines.append(f"lib.store({name}_base_at + group, {name}_base, group_inside)")
    for (suffix, _), text in zip(one.arrays, one.store, strict=False):
        value = text.format(x=x, base=f"{name}_base", random=random)
        lines.append(f"lib.store({name}{suffix}_at + i, {value}, inside)")
    return lines


def _tally(formula: Stage, param: Format, writer: Writer, lines: list[str]) -> list[str]:
    """Adds the lines that keep count of what passes; returns the tallies' names."""
    names: list[str] = []

    def leave(name: str, value: str) -> None:
        lines.append(f"{name} = {value}")
        names.append(name)

    for name, one in formula.sums.items() if not formula.outputs else ():
        leave(f"total_{name}", f"lib.sum_of(({_each(writer, one.expression, lines)}).to(tl.float64), inside)")
    if formula.counted is not None:
        leave("total_zeroed", f"lib.sum_of({writer.element(formula.counted, lines)}, inside)")
    for name, expression in formula.gathered.items():
        lines.append(f"seen_{name} = {writer.element(expression, lines)}")
        leave(f"total_{name}", f"lib.sum_of(seen_{name} * seen_{name}, inside)")
        leave(f"top_{name}", f"lib.largest_of(seen_{name}, inside)")
    if formula.gathered and param.random:  # what is rounded at random counts on average
        leave("total_lost", "lib.sum_of(tl.zeros_like(param), inside)")
    elif formula.gathered:
        still = f"({stored(param).format('seen_param')} == param) & (seen_grad != 0)"
        leave("total_lost", f"lib.sum_of(tl.where({still}, 1.0, 0.0), inside)")
    return names


def _scalar_lines(formula: Stage, writer: Writer, steps_random: list[str], by_element: bool) -> list[str]:
    names = [local_name(scalar_name(*scalar)) for scalar in formula.scalars]
    names += ["seed"] if steps_random or by_element else []
    lines = [f"{name} = tl.load(row_at + {i}, mask=inside, other=0.0)" for i, name in enumerate(names)]
    for i, name in enumerate(formula.own):
        lines.append(f"{local_name(name)} = tl.load(own + {i} * count + tensor, mask=inside, other=0.0)")
    for i, (text, local) in enumerate(writer.hoisted.items()):
        lines.append(f"{local} = {text}")
        lines.append(f"tl.store(scalars + tensor * {len(writer.hoisted)} + {i}, {local}, mask=inside)")
    places = [formula.operands.index(name) for name in steps_random]
    random = [f"lib.dither(seed, step, {place}, {ROOTS[place % len(ROOTS)]:#x})" for place in places]
    if by_element:
        lines.append("number = tl.load(numbers + tensor, mask=inside, other=0) + lib.FIRST_ELEMENT_KEY")
        random.append("lib.random_bits(seed, step, number)")
    for i, text in enumerate(random):
        value = f"{text}.to(tl.int32, bitcast=True)"
        lines.append(f"tl.store(bits + tensor * {len(random)} + {i}, {value}, mask=inside)")
    return lines


def _lead(
    formula: Stage,
    arrays: list[tuple[str, str]],
    dtypes: dict[str, str],
    writer: Writer,
    random: list[str],
    tallies: list[str],
    passed: list[str],
    grouped: bool,
    block: int,
) -> list[str]:
    """What leads from a chunk's number to the call of compute."""
    names = [f"{name}{suffix}" for name, suffix in arrays]
    lines = [f"start = block.to(tl.int64) * {block}"]
    for i, name in enumerate(names):
        lines.append(f"{name}_at = tl.load(address + {i} * count + tensor)")
    scalars = list(writer.hoisted.values())
    lines += [f"{local} = tl.load(scalars + tensor * {len(scalars)} + {i})" for i, local in enumerate(scalars)]
    for i, name in enumerate(random):
        lines.append(f"{name} = tl.load(bits + tensor * {len(random)} + {i}).to(tl.uint32, bitcast=True)")
    lines += ["factor_at = factors + tl.load(sizes + 2 * count + tensor)"] if formula.factor else []
    lines += [f"partial_at = partials + chunk.to(tl.int64) * {len(tallies)}"] if tallies else []
    wide = [name for name in names if not name.endswith("_base")]
    lines.append(f"is_aligned = (({' | '.join(f'{name}_at' for name in wide)}) & 15) == 0")
    if formula.factor and not formula.by_row:
        lines.append(f"grad_factor = tl.load(factor_at).to(tl.{writer.real})")

    def call(hint: bool, *rest: str) -> list[str]:
        """The call of compute with arrays from the element first and the group first_group on."""
        arguments = []
        for name in names:
            dtype = _POINTER.get(dtypes[name], dtypes[name])
            pointer = f"{name}_at.to(tl.pointer_type(tl.{dtype}))"
            if name.endswith("_base"):
                arguments.append(f"{pointer} + first_group")
            else:
                arguments.append(f"{f'tl.multiple_of({pointer}, 16)' if hint else pointer} + first")
        results = ", ".join(f"new_{name}" for name in tallies) + " = " * bool(tallies)
        return [
            f"{results}compute(",
            *(f"    {one}," for one in (*arguments, *passed[len(names) :], *rest)),
            ")",
            *(
                f"{name} += new_{name}" if name.startswith("total_") else f"{name} = lib.larger(new_{name}, {name})"
                for name in tallies
            ),
        ]

    lines += [f"{name} = tl.zeros((), tl.float64)" for name in tallies]
    whole, part = (_groups if grouped else _elements)(formula, writer.real, block)
    if grouped:
        lines.append(f"groups_in_row = (row + {GROUP - 1}) // {GROUP}")
        lines.append(f"place = tl.arange(0, {GROUP})[None, :]")
    condition = f"is_aligned & (row % {GROUP} == 0)" if grouped else "is_aligned"
    lines.append(f"if {condition} & (start + {block} <= size):")
    place = ["place"] if grouped else []
    lines += [f"    {line}" for line in whole]
    lines += [f"    {line}" for line in call(True, "i", "first + i", "None", *["group", "None"][: 2 * grouped], *place)]
    lines.append("else:  # few elements at a time, which leaves registers to whole blocks")
    unit = GROUP if grouped else 1
    lines.append(f"    for part in range(0, {block // unit}, {PART // unit}):")
    lines += [f"        {line}" for line in part]
    rest = ["i", "first + i", "inside", *["group", "group_inside"][: 2 * grouped], *place]
    lines += [f"        {line}" for line in call(False, *rest)]
    lines += [f"tl.store(partial_at + {i}, {name})" for i, name in enumerate(tallies)]
    return lines


def _elements(formula: Stage, real: str, block: int) -> tuple[list[str], list[str]]:
    """Which elements are worked on, for a whole block and for a part of one."""
    whole = ["first = start", f"i = tl.arange(0, {block})"]
    part = ["first = start + part", f"i = tl.arange(0, {PART})", "inside = first + i < size"]
    if formula.by_row:
        factor = "grad_factor = lib.load(factor_at + lib.row_of(first, i, row), {})" + f".to(tl.{real})"
        whole.append(factor.format("None"))
        part.append(factor.format("inside"))
    return whole, part


def _groups(formula: Stage, real: str, block: int) -> tuple[list[str], list[str]]:
    """The same for groups that share a base: rows may end in the middle of one."""
    factor = "grad_factor = lib.load(factor_at + row_number, {})" + f".to(tl.{real})"
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
    if formula.by_row:
        whole += ["row_number = (first_group + group) // groups_in_row", factor.format("None")]
        part.append(factor.format("group_inside"))
    return whole, part


def _indent(lines: list[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)
