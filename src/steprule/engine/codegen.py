"""Writes a formula as the source of a kernel: one file a user can open and read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steprule.engine.functions import WRITTEN_OUT
from steprule.formats import FORMATS, HALVES, ITEM_SIZE, Format
from steprule.rule import Rule
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.program import Stage

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "and": "&", "or": "|",
}  # fmt: skip
_CALLS = {
    "sqrt": "sqrt({})",
    "exp": "exp({})",
    "log": "log({})",
    "floor": "floor({})",
    "abs": "abs({})",
    "neg": "(-{})",
    "not": "(not {})",
    "maximum": "larger({}, {})",
    "minimum": "smaller({}, {})",
    "where": "({1} if {0} else {2})",
    "pow": "({} ** {})",
    "multiply_add": "multiply_add({}, {}, {})",
    "bits": "bits_as_number({})",
    "of_bits": "number_as_bits({})",
    "cbrt": "({} ** (1.0 / 3.0))",
}

_TEMPLATE = '''"""{title}

{purpose}
Written by steprule from the rule's formula, compiled by Numba; safe to delete.
"""

from math import exp, floor, inf, log, nan, sqrt

from numba import cfunc, njit

from steprule.engine.machine import *
from steprule.engine.machine import (
    ADDRESSES, CHUNK_TABLE, CHUNKS, COUNT, EXACT, FACTORS, FAST, FIRST_FACTOR, GROUPS, HEADER_SIZE, HYPER, MODE, NEXT,
    NUMBERS, OWN, PARTIALS, PIECES, ROWS, STEPS, TENSORS,
)
from steprule.formats.kernel import *

{accessors}


@njit(**EXACT)
def larger(a, b):
    return a if (a > b) | (a != a) else b


@njit(**EXACT)
def smaller(a, b):
    return a if (a < b) | (a != a) else b


@njit(**EXACT)
def scalars(hyper, step{own_argument}):
    """What no element changes, in float64; then in the elements' {real}. Last, random bits for roundings."""
{scalar_body}

{update}

@cfunc("void(int64)", cache=True, **EXACT)
def run(header):
    """Works through the plan whose header is at this address, together with whoever else is called so."""
    plan = int64_array(header, HEADER_SIZE)
    if plan[MODE] & COUNT:
        count_steps(plan)
        if plan[MODE] == COUNT:
            return
    tensors, chunks, counter = plan[TENSORS], plan[CHUNKS], plan[NEXT]
    address = int64_array(plan[ADDRESSES], ({array_count}, tensors))
    table = int64_array(plan[CHUNK_TABLE], (chunks, 5))
    groups = int64_array(plan[GROUPS], tensors)
    steps = float64_array(plan[STEPS], tensors)
    rows = int64_array(plan[ROWS], tensors)
    parameters = int64_array(plan[NUMBERS], tensors)
{service_tables}    group, step = groups[0], steps[0]
    numbers = scalars(float64_array(plan[HYPER] + group * {hyper_bytes}, {hyper_count}), step{own_row})
    while True:
        chunk = fetch_add(counter, 1)
        if chunk >= chunks:
            return
        tensor, start, size, first_group = table[chunk, 0], table[chunk, 1], table[chunk, 2], table[chunk, 3]
        if {has_changed}:
            group, step = groups[tensor], steps[tensor]
            numbers = scalars(float64_array(plan[HYPER] + group * {hyper_bytes}, {hyper_count}), step{own_row_of_tensor})
{call}'''

_CALL = """        {results}update(
            size,
{chunk_arguments}
            numbers,
        )
"""

_CALL_BY_PIECE = """        piece, groups_of_piece, end, place = pieces[tensor, 0], pieces[tensor, 1], start + size, table[chunk, 4]
        while start < end:
            size = min(piece, end - start)
{call}            start += piece
            first_group += groups_of_piece
"""

_UPDATE = '''
@njit(**FAST)
def update(size, {addresses}, numbers):
    """One tensor's chunk."""
    {scalar_names} = numbers
{before}{start_tallies}    for i in range(size):
{body}
{give_tallies}
'''

_GROUPED_UPDATE = '''
@njit(forceinline=True, **FAST)
def compute(first, group, size, {rooms}, {addresses}, numbers{tally_arguments}):
    """The new values of numbers that share a base, and that base."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{between}
{return_tallies}

@njit(forceinline=True, **FAST)
def encode(first, group, size, {rooms}, {addresses}, numbers):
    """Their codes."""
    {scalar_names} = numbers
{bases}
    for j in range(size):
        i = first + j
{after}


@njit(**FAST)
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose groups all are full.

    Each group is encoded after the next has been computed, since finding the largest of a group takes a while.
    """
{room_lines}
{start_tallies}    first = before = group = 0
    count = before_count = 0
    left = row
    while first < size:
        count = min(left, size - first, GROUP)
        half = group % 2 * (4 * GROUP)
        if count == GROUP:
            {tallies}compute(first, group, GROUP, {halves}, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, group, count, {halves}, {addresses}, numbers{tally_arguments})
        half = 4 * GROUP - half
        if before_count == GROUP:
            encode(before, group - 1, GROUP, {halves}, {addresses}, numbers)
        else:
            encode(before, group - 1, before_count, {halves}, {addresses}, numbers)
        before, before_count = first, count
        first += count
        left = left - count if left > count else row
        group += 1
    half = (group + 1) % 2 * (4 * GROUP)
    encode(before, group - 1, before_count, {halves}, {addresses}, numbers)
{give_tallies}
'''

_READING_IN_STRIPS = '''
@njit(**FAST)
def update(size, {addresses}, numbers):
    """What one tensor's chunk adds to the sums; roots and divisions by themselves, in float32's vectors."""
    {scalar_names} = numbers
{before}{start_tallies}{room_lines}
    first = 0
    while first < size:
        count = min(2 * GROUP, size - first)
        for j in range(count):
            i = first + j
{body}
        for j in range(count):
{after}
        first += count
{give_tallies}
'''

_GROUPED_READING = '''
@njit(forceinline=True, **FAST)
def compute(first, group, size, {addresses}, numbers{tally_arguments}):
    """What numbers that share a base add to the sums."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{return_tallies}

@njit(**FAST)
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose groups all are full."""
{start_tallies}    first = group = 0
    left = row
    while first < size:
        count = min(left, size - first, GROUP)
        if count == GROUP:
            {tallies}compute(first, group, GROUP, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, group, count, {addresses}, numbers{tally_arguments})
        first += count
        left = left - count if left > count else row
        group += 1
{give_tallies}
'''


@dataclass(frozen=True)
class Source:
    """A kernel as text.

    Attributes:
        text: the file.
        arrays: the arrays that it works on, as (operand, suffix); param's and grad's own come first.
        grouped: whether chunks must hold whole groups.
        random: whether the seed follows the formula's scalars in the plan's table of hyperparameters.
        tallies: what each chunk leaves in the plan's partials: names that begin with "total_" are sums, those with
            "top_" largest absolute values.
    """

    text: str
    arrays: tuple[tuple[str, str], ...]
    grouped: bool
    random: bool
    tallies: tuple[str, ...]


def compute_dtype(formats: Sequence[str]) -> str:
    """The dtype of the arithmetic: float64 if any operand has it, else float32."""
    return "float64" if "float64" in formats else "float32"


def write_kernel(title: str, formula: Stage, formats: Sequence[str]) -> Source:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        formula: what to compute.
        formats: of each of formula.operands, keys of `steprule.formats.FORMATS`.
    """
    real = compute_dtype(formats)
    chosen = {name: FORMATS[text] for name, text in zip(formula.operands, formats, strict=True)}
    writer = Writer(formula, real, stored(chosen["param"]))
    arrays = [(name, suffix) for name, one in chosen.items() for suffix, _ in one.arrays]
    arrays.sort(key=lambda array: array not in (("param", ""), ("grad", "")))
    dtypes = {(name, suffix): dtype for name, one in chosen.items() for suffix, dtype in one.arrays}
    grouped = any(one.grouped for one in chosen.values())
    steps_random = [name for name, one in chosen.items() if one.random == "step"]
    by_element = any(one.random == "element" for one in chosen.values())

    accessors, scratches = [], 0
    for scope, (name, suffix) in enumerate(arrays):
        accessors.append(f"load_{name}{suffix}, store_{name}{suffix} = array({dtypes[name, suffix]!r}, {scope})")
    loads: list[str] = []
    body: list[str] = []
    stores: list[str] = []
    before: list[str] = []
    between: list[str] = []
    after: list[str] = []
    bases: list[str] = []
    rooms: list[str] = []
    for name, one in chosen.items():
        local = local_name(name)
        own = [f"load_{name}{suffix}({name}{suffix}_at, i)" for suffix, _ in one.arrays if suffix != "_base"]
        value = one.load.format(*own, base=f"{name}_base")
        kept = one.arrays[0][1]
        loads.append(
            f"{local} = {value}"
            if kept == real or (real == "float32" and one.load != "{0}")
            else f"{local} = {real}({value})"
        )
        if one.grouped:
            bases.append(f"{name}_base = load_{name}_base({name}_base_at, group)")
            before.append(bases[-1])
    for name, expression in formula.outputs.items():
        if keeps(name, expression) and not chosen[name].grouped:
            continue
        one, local = chosen[name], f"new_{name}"
        value = writer.element(expression, body)
        body.append(f"{local} = {value if not expression.scalar else f'{real}({value})'}")
        kept = one.arrays[0][1]
        x = (
            local
            if kept == real or (kept != "float64" and real == "float32")
            else f"{'float64' if kept == 'float64' else 'float32'}({local})"
        )
        if one.grouped:
            scope = len(arrays) + scratches
            accessors += [
                f"load_new_{name}, store_new_{name} = array('float32', {scope})",
                f"room_for_{name} = scratch({scratches})",
            ]
            scratches += 1
            rooms.append(f"{name}_room")
            before.append(f"{name}_top = uint32(0)")
            kind = formats[formula.operands.index(name)]
            if kind == "positive8":
                stores.append(f"{x} = magnitude({x})")
            stores += [
                f"store_new_{name}({name}_room, j, {x})",
                f"{name}_top = larger_magnitude({name}_top, {x})",
            ]
            between.append(f"store_{name}_base({name}_base_at, group, {kind}_base({name}_top))")
            x = f"load_new_{name}({name}_room, j)"
        random = ""
        if one.random == "step":
            random = f"weyl(random_{name}, j)" if one.grouped else f"random_{name}"
        elif one.random == "element":
            random = "element_random(key, start + i)"
        for (suffix, _), text in zip(one.arrays, one.store, strict=False):
            line = f"store_{name}{suffix}({name}{suffix}_at, i, {text.format(x=x, base=f'{name}_base', random=random)})"
            (after if one.grouped else stores).append(line)

    carried, tallies = _tally(formula, chosen["param"], writer, body, grouped)
    room_lines = [f"{room} = room_for_{room.removesuffix('_room')}(0)" for room in rooms]
    halves = [f"{room} + half" for room in rooms]
    start_tallies = [f"{name} = {'uint32' if name.startswith('top_') else real}(0)" for name in carried]
    in_strips = not grouped and real == "float32" and any(map(_is_costly, _read_sums(formula)))
    if in_strips:
        for number, name in enumerate(_read_sums(formula, by_name=True)):
            line = next(line for line in body if line.startswith(f"total_{name} = "))
            value = line.removeprefix(f"total_{name} = add_up(total_{name}, float64(").removesuffix("))")
            body[body.index(line)] = f"store_part_{name}({name}_room, j, {value})"
            after.append(f"total_{name} = add_up(total_{name}, float64(load_part_{name}({name}_room, j)))")
            accessors += [
                f"load_part_{name}, store_part_{name} = array('float32', {len(arrays) + number})",
                f"room_for_{name} = scratch({number})",
            ]
            room_lines.append(f"{name}_room = room_for_{name}(0)")
    if not formula.outputs:
        carried, start_tallies = [*tallies], [f"{name} = 0.0" for name in tallies]
    if grouped and formula.gathered:
        between.append("for j in range(size, GROUP):")
        for name in formula.gathered:
            scope = len(arrays) + scratches
            accessors += [
                f"_, store_seen_{name} = array('float32', {scope})",
                f"room_for_seen_{name}, lanes_for_{name} = scratch({scratches}), scratch({scratches + 1})",
            ]
            scratches += 2
            rooms += [f"seen_{name}_room", f"{name}_lanes"]
            halves += [f"seen_{name}_room + half", f"{name}_lanes"]
            room_lines += [f"seen_{name}_room = room_for_seen_{name}(0)", f"{name}_lanes = lanes_for_{name}(0)"]
            start_tallies.append(f"clear_lanes({name}_lanes)")
            between.append(f"    store_seen_{name}(seen_{name}_room, j, float32(0))")
        between += [f"tally_group({name}_lanes, seen_{name}_room)" for name in formula.gathered]

    scalar_lines = [
        f"{local_name(scalar_name(name, index))} = hyper[{position}]"
        for position, (name, index) in enumerate(formula.scalars)
    ]
    scalar_lines += [f"{local_name(name)} = own[{position}]" for position, name in enumerate(formula.own)]
    seed = f"hyper[{len(formula.scalars)}]"
    scalar_lines += [f"{local} = {text}" for text, local in writer.hoisted.items()]
    results = [f"{real}({local})" for local in writer.hoisted.values()]
    results += [f"dither({seed}, step, {formula.operands.index(name)})" for name in steps_random]
    results += [seed, "step"] if by_element else []
    scalar_lines.append(f"return ({''.join(f'{result}, ' for result in results)})")
    names = [*writer.hoisted.values(), *(f"random_{name}" for name in steps_random)]
    names += ["seed", "step"] if by_element else []

    extra = ["start", "parameter"] if by_element else []
    if by_element:
        before.append("key = random_bits(seed, step, parameter + FIRST_ELEMENT_KEY)")
    if formula.factor:
        extra.append("grad_factor")
    addresses = ", ".join([f"{name}{suffix}_at" for name, suffix in arrays] + extra)
    chunk_arguments = ["rows[tensor]"] if grouped else []
    for position, (name, suffix) in enumerate(arrays):
        offset = "first_group" if suffix == "_base" else "start"
        chunk_arguments.append(f"address[{position}, tensor] + {ITEM_SIZE[dtypes[name, suffix]]} * {offset}")
    chunk_arguments += ["start", "parameters[tensor]"] if by_element else []
    place = "first_factor[tensor] + start // piece" if formula.by_row else "tensor"
    chunk_arguments += [f"{real}(factors[{place}])"] if formula.factor else []
    carried_names = "".join(f"{name}, " for name in carried).rstrip()
    given = "".join(f"{text}, " for text in tallies.values()).rstrip()
    template = _UPDATE if not grouped else _GROUPED_UPDATE if formula.outputs else _GROUPED_READING
    template = _READING_IN_STRIPS if in_strips else template
    update = template.format(
        addresses=addresses,
        scalar_names="".join(f"{name}, " for name in names).rstrip() or "()",
        before="".join(f"    {line}\n" for line in before),
        body=_indent(loads + body + stores, 2 + in_strips),
        between=_indent(between, 1),
        after=_indent(after or ["pass"], 2 + in_strips),
        bases=_indent(bases, 1),
        rooms=", ".join(rooms),
        room_lines=_indent(room_lines, 1),
        halves=", ".join(halves),
        tallies=f"{carried_names} = " if carried else "",
        tally_arguments=f", {carried_names}".rstrip(",") if carried else "",
        start_tallies=_indent(start_tallies, 1) + "\n" * bool(start_tallies),
        return_tallies=f"    return {carried_names}\n" if carried else "",
        give_tallies=f"    return {given}\n" if tallies else "",
    )
    call = _call(formula.by_row, tuple(tallies), chunk_arguments)
    uses_seed = bool(steps_random) or by_element
    hyper_count = len(formula.scalars) + uses_seed
    own_row = f", float64_array(plan[OWN] + {{}} * {8 * len(formula.own)}, {len(formula.own)})" if formula.own else ""
    text = _TEMPLATE.format(
        title=title,
        purpose=purpose_of(formula, formats, real),
        real=real,
        own_argument=", own" if formula.own else "",
        own_row=own_row.format(0),
        own_row_of_tensor=own_row.format("tensor"),
        has_changed="True" if formula.own else "groups[tensor] != group or steps[tensor] != step",
        accessors="\n".join(accessors),
        scalar_body=_indent(scalar_lines, 1),
        update=update,
        array_count=len(arrays),
        hyper_count=hyper_count,
        hyper_bytes=8 * hyper_count,
        service_tables=_service_tables(formula, len(tallies)),
        call=call,
    )
    return Source(text, tuple(arrays), grouped, uses_seed, tuple(tallies))


def title_of(rule: type[Rule]) -> str:
    """The first line of a kernel's docstring."""
    title = f"{rule.__name__}: {(rule.__doc__ or 'a rule of your own.').strip().splitlines()[0]}"
    return title.replace("\\", "/").replace('"', "'")


def purpose_of(formula: Stage, formats: Sequence[str], real: str) -> str:
    """What stands below it."""
    operands = ", ".join(f"{name} {kind}" for name, kind in zip(formula.operands, formats, strict=True))
    return f"Operands: {operands}; computed in {real}."


def _read_sums(formula: Stage, by_name: bool = False) -> list[Any]:
    """What a reading sums up, or the names of that; nothing for the formula of a step."""
    sums = {} if formula.outputs else formula.sums
    return [*sums] if by_name else [one.expression for one in sums.values()]


def _is_costly(x: Expression) -> bool:
    """Whether elements are divided or rooted in it, for which the vectors that float64 sums make of a loop are too short."""
    waiting, seen = [x], set()
    while waiting:
        one = waiting.pop()
        if one.scalar or one.op == "input" or id(one) in seen:
            continue
        seen.add(id(one))
        if one.op in ("sqrt", *WRITTEN_OUT) or (one.op == "div" and not one.args[1].scalar):
            return True
        waiting += one.args
    return False


def keeps(name: str, expression: Expression) -> bool:
    """Whether an operand's new value is its old one, which need not be written."""
    return expression.op == "input" and expression.args[0] == name


def stored(param: Format) -> str:
    """What a new parameter is once stored: rounded if that loses anything for good, and as it is otherwise."""
    dtype = param.arrays[0][1]
    plain = len(param.arrays) == 1 and not param.random and dtype in HALVES
    return f"from_{dtype}(to_{dtype}({{0}}))" if plain else "{0}"


def _tally(
    formula: Stage, param: Format, writer: Writer, lines: list[str], grouped: bool
) -> tuple[list[str], dict[str, str]]:
    """Adds the lines that keep count of what passes.

    Returns:
        The variables that elements add to, and for each tally its value at the end.
    """
    real = writer.real
    carried: list[str] = []
    tallies: dict[str, str] = {}
    for name, one in formula.sums.items() if not formula.outputs else ():
        value = writer.element(one.expression, lines)
        lines.append(f"total_{name} = add_up(total_{name}, float64({value}))")
        tallies[f"total_{name}"] = f"total_{name}"
    if formula.counted is not None:
        lines.append(f"total_zeroed = add_up(total_zeroed, {writer.element(formula.counted, lines)})")
        carried.append("total_zeroed")
    for name, expression in formula.gathered.items():
        lines.append(f"seen_{name} = {writer.element(expression, lines)}")
        if grouped:  # in vectors of their own, since a group's end is no place to add up lanes
            lines.append(f"store_seen_{name}(seen_{name}_room, j, seen_{name})")
            tallies |= {f"total_{name}": f"lanes_total({name}_lanes)", f"top_{name}": f"lanes_top({name}_lanes)"}
        else:
            lines.append(f"total_{name} = add_square(total_{name}, seen_{name})")
            lines.append(f"top_{name} = larger_magnitude(top_{name}, float32(seen_{name}))")
            carried += [f"total_{name}", f"top_{name}"]
    if formula.gathered and param.random:  # what is rounded at random counts on average
        tallies["total_lost"] = "0.0"
    elif formula.gathered:
        still = f"({stored(param).format('seen_param')} == param) & (seen_grad != 0)"
        lines.append(f"total_lost = add_up(total_lost, {real}(1) if {still} else {real}(0))")
        carried.append("total_lost")
    for name in carried:
        tallies[name] = f"float64_of({name})" if name.startswith("top_") else f"float64({name})"
    return carried, tallies


def _call(by_row: bool, tallies: Sequence[str], arguments: Sequence[str]) -> str:
    """The call of update for a chunk or each of its pieces, and what becomes of their tallies."""
    results = "".join(f"{name}, " for name in tallies).rstrip() + " = " * bool(tallies)
    call = _CALL.format(results=results, chunk_arguments="\n".join(f"            {one}," for one in arguments))
    if not by_row and not tallies:
        return call
    lines = call.splitlines()
    before = ""
    if by_row:  # a chunk's rows share a place
        before = "".join(f"        partials[table[chunk, 4], {column}] = 0.0\n" for column in range(len(tallies)))
    for column, name in enumerate(tallies):
        kept = f"partials[place, {column}]"
        joined = f"{kept} + {name}" if name.startswith("total_") else f"larger({kept}, {name})"
        lines.append(f"        {kept} = {joined if by_row else name}")
    if not by_row:
        lines.append("        place += 1")
    return before + _CALL_BY_PIECE.format(call="".join(f"    {line}\n" for line in lines))


def _service_tables(formula: Stage, tallies: int) -> str:
    lines = []
    if formula.by_row:
        lines = ["first_factor = int64_array(plan[FIRST_FACTOR], tensors + 1)"]
        lines += ["factors = float64_array(plan[FACTORS], first_factor[tensors])"]
    elif formula.factor:
        lines = ["factors = float64_array(plan[FACTORS], tensors)"]
    if tallies or formula.by_row:
        lines.append("pieces = int64_array(plan[PIECES], (tensors, 2))")
    if tallies:
        lines.append(f"partials = float64_array(plan[PARTIALS], (1 << 40, {tallies}))")
    return "".join(f"    {line}\n" for line in lines)


def _indent(lines: Sequence[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


class Writer:
    """Expressions as text: scalars are collected in `hoisted`, shared subexpressions get a line of their own.

    Args:
        formula: whose expressions.
        real: the dtype of elements.
        stored: what a new parameter, {0}, is once stored.
        calls: how operations of elements are written; those that are missing are infix.
        scalar_calls: how those of scalars are.
        constant: how a scalar's constants are.
    """

    def __init__(
        self,
        formula: Stage,
        real: str,
        stored: str,
        calls: Mapping[str, str] = _CALLS,
        scalar_calls: Mapping[str, str] = _CALLS,
        constant: str = "{!r}",
    ) -> None:
        self.real = real
        self._stored = stored
        self._calls, self._scalar_calls, self._constant = calls, scalar_calls, constant
        self.hoisted: dict[str, str] = {}
        self._locals: dict[int, str] = {}
        self._uses: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._kept: list[Expression] = []  # so that no other expression gets its id
        counted = [formula.counted] if formula.counted is not None else []
        read = [one.expression for one in formula.sums.values()] if not formula.outputs else []
        for expression in (*formula.outputs.values(), *formula.gathered.values(), *counted, *read):
            self._count(expression)

    def _count(self, expression: Expression) -> None:
        self._uses[id(expression)] += 1
        if id(expression) not in self._seen and expression.op not in ("input", "constant"):
            self._seen.add(id(expression))
            for arg in expression.args:
                self._count(arg)

    def element(self, expression: Expression, lines: list[str]) -> str:
        """The expression's value inside the loop; lines receives what must be computed before."""
        if expression.scalar:
            return self._hoist(self.scalar(expression))
        if expression.op == "input":
            return local_name(expression.args[0])
        if id(expression) in self._locals:
            return self._locals[id(expression)]
        text = self._element_text(expression, lines)
        if self._uses[id(expression)] > 1:
            local = self._locals[id(expression)] = f"t{len(self._locals)}"
            lines.append(f"{local} = {text}")
            return local
        return text

    def _element_text(self, expression: Expression, lines: list[str]) -> str:
        op, args = expression.op, expression.args
        if op in WRITTEN_OUT:
            self._kept.append(WRITTEN_OUT[op](self.real, *args))
            self._count(self._kept[-1])
            return self.element(self._kept[-1], lines)
        if op == "stored":
            return self._stored.format(self.element(args[0], lines))
        if op == "div" and args[1].scalar:  # a product is cheaper, and its factor is exact to float64
            return f"({self.element(args[0], lines)} * {self._hoist(f'{self._constant.format(1.0)} / {self.scalar(args[1])}')})"
        if op == "pow" and args[1].op == "constant" and args[1].args[0] in (2.0, 3.0):
            base = self.element(args[0], lines)
            if not base.isidentifier():
                local = f"t{len(self._locals)}"
                self._locals[id(expression)] = local
                lines.append(f"{local} = {base}")
                base = local
            return f"({' * '.join([base] * int(args[1].args[0]))})"
        if op == "where" and args[0].scalar:
            one, zero = self._constant.format(1.0), self._constant.format(0.0)
            chosen = self._hoist(self._scalar_calls["where"].format(self.scalar(args[0]), one, zero))
            parts = [self.element(arg, lines) for arg in args[1:]]
            return self._calls["where"].format(f"{chosen} != {self._hoist(zero)}", *parts)
        if op in ("add", "sub"):
            for product, other in ((args[1], args[0]), (args[0], args[1])):
                if product.op == "mul" and not product.scalar and self._uses[id(product)] == 1:
                    a, b, c = (self.element(arg, lines) for arg in (*product.args, other))
                    if op == "sub" and product is args[1]:
                        a = self._calls["neg"].format(a)
                    elif op == "sub":
                        c = self._calls["neg"].format(c)
                    return self._calls["multiply_add"].format(a, b, c)
        return _render(op, [self.element(arg, lines) for arg in args], self._calls)

    def scalar(self, expression: Expression) -> str:
        """The expression in float64, outside the loop."""
        if expression.op == "input":
            return local_name(expression.args[0])
        if expression.op == "constant":
            return self._constant.format(expression.args[0])
        return _render(expression.op, [self.scalar(arg) for arg in expression.args], self._scalar_calls)

    def _hoist(self, text: str) -> str:
        return self.hoisted.setdefault(text, f"s{len(self.hoisted)}")


def _render(op: str, args: list[str], calls: Mapping[str, str]) -> str:
    if op in calls:
        return calls[op].format(*args)
    return f"({args[0]} {_INFIX[op]} {args[1]})"


def local_name(name: str) -> str:
    """A name for the kernel, out of the way of those that the kernel itself uses."""
    return name + "_" if _RESERVED.fullmatch(name) else name


_RESERVED = re.compile(
    r"own|floor|piece|place|tl|lib|triton|tensor|block|inside|element|bits|skip|zero|inverse|chunk|[st]\d+|.*_array|.*_at|(load|store|room|new|random|total|top|seen)_.*|end|.*_(base|top|room|lanes|correction)|multiply_add|i|j|key|seed|start|parameter|first|group|size|row|before|count|left|half|before_count|compute|encode|"
    r"numbers|scalars|hyper|update|run|array|scratch|weyl|larger|smaller|exp|log|sqrt|abs|inf|nan|float32|float64|uint32|cfunc|njit"
)
