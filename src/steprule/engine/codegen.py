"""Writes a formula as the source of a kernel: one file a user can open and read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from steprule.engine.trace import Expression, Formula, scalar_name

ITEM_SIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes that an operand can have, and their bytes."""

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "and": "&", "or": "|",
}  # fmt: skip
_CALLS = {
    "sqrt": "sqrt({})",
    "exp": "exp({})",
    "log": "log({})",
    "abs": "abs({})",
    "neg": "(-{})",
    "not": "(not {})",
    "maximum": "larger({}, {})",
    "minimum": "smaller({}, {})",
    "where": "({1} if {0} else {2})",
    "pow": "({} ** {})",
}

_TEMPLATE = '''"""{title}

{purpose}
Written by steprule from the rule's formula, compiled by Numba; safe to delete.
"""

from math import exp, inf, log, nan, sqrt

from numba import cfunc, njit

from steprule.engine.machine import *
from steprule.engine.machine import (
    ADDRESSES, CHUNK_TABLE, CHUNKS, COUNT, EXACT, FAST, GROUPS, HEADER_SIZE, HYPER, MODE, NEXT, STEPS, TENSORS,
)


@njit(**EXACT)
def larger(a, b):
    return a if (a > b) | (a != a) else b


@njit(**EXACT)
def smaller(a, b):
    return a if (a < b) | (a != a) else b


@njit(**EXACT)
def scalars(hyper, step):
    """What no element changes, in float64; then in the elements' {real}."""
{scalar_body}


@njit(**FAST)
def update(size, {addresses}, scalars):
    """One tensor's chunk."""
{arrays}
    {scalar_names} = scalars
    for i in range(size):
{element_body}


@cfunc("void(int64)", cache=True, **EXACT)
def run(header):
    """Works through the plan whose header is at this address, together with whoever else is called so."""
    plan = int64_array(header, HEADER_SIZE)
    if plan[MODE] & COUNT:
        count_steps(plan)
        if plan[MODE] == COUNT:
            return
    tensors, chunks, counter = plan[TENSORS], plan[CHUNKS], plan[NEXT]
    address = int64_array(plan[ADDRESSES], ({operand_count}, tensors))
    table = int64_array(plan[CHUNK_TABLE], (chunks, 3))
    groups = int64_array(plan[GROUPS], tensors)
    steps = float64_array(plan[STEPS], tensors)
    group, step = groups[0], steps[0]
    numbers = scalars(float64_array(plan[HYPER] + group * {hyper_bytes}, {hyper_count}), step)
    while True:
        chunk = fetch_add(counter, 1)
        if chunk >= chunks:
            return
        tensor, start, size = table[chunk, 0], table[chunk, 1], table[chunk, 2]
        if groups[tensor] != group or steps[tensor] != step:
            group, step = groups[tensor], steps[tensor]
            numbers = scalars(float64_array(plan[HYPER] + group * {hyper_bytes}, {hyper_count}), step)
        update(
            size,
{chunk_addresses}
            numbers,
        )
'''


def compute_dtype(dtypes: Sequence[str]) -> str:
    """The dtype of the arithmetic: float64 if any operand has it, else float32."""
    return "float64" if "float64" in dtypes else "float32"


def write_kernel(title: str, formula: Formula, dtypes: Sequence[str]) -> str:
    """The kernel's source.

    Args:
        title: the first line of its docstring.
        formula: what to compute.
        dtypes: of each of formula.operands, keys of ITEM_SIZE.
    """
    real = compute_dtype(dtypes)
    writer = _Writer(formula, real)
    arrays: list[str] = []
    loads: list[str] = []
    body: list[str] = []
    stores: list[str] = []
    chunk_addresses: list[str] = []
    for name, dtype in zip(formula.operands, dtypes, strict=True):
        small = dtype in ("bfloat16", "float16")
        name = _local(name)
        arrays.append(f"    {name}_array = {'uint16' if small else dtype}_array({name}_at, size)")
        item = f"{name}_array[i]"
        loaded = f"from_{dtype}({item})" if small else item
        loads.append(f"        {name} = {loaded}" if dtype == real else f"        {name} = {real}({loaded})")
        chunk_addresses.append(f"            address[{len(chunk_addresses)}, tensor] + {ITEM_SIZE[dtype]} * start,")
    for name, expression in formula.outputs.items():
        dtype = dtypes[formula.operands.index(name)]
        name = _local(name)
        value = writer.element(expression, body)
        value = value if not expression.scalar else f"{real}({value})"
        body.append(f"        new_{name} = {value}")
        narrow = f"to_{dtype}(float32(new_{name}))" if dtype in ("bfloat16", "float16") else f"{dtype}(new_{name})"
        stores.append(f"        {name}_array[i] = {narrow if dtype != real else f'new_{name}'}")

    scalar_lines = [
        f"    {_local(scalar_name(name, index))} = hyper[{position}]"
        for position, (name, index) in enumerate(formula.scalars)
    ]
    scalar_lines += [f"    {local} = {text}" for text, local in writer.hoisted.items()]
    scalar_lines.append(f"    return ({''.join(f'{real}({local}), ' for local in writer.hoisted.values())})")
    return _TEMPLATE.format(
        title=title,
        purpose=f"Operands: {', '.join(f'{n} {d}' for n, d in zip(formula.operands, dtypes, strict=True))}; computed in {real}.",
        real=real,
        scalar_body="\n".join(scalar_lines),
        addresses=", ".join(f"{_local(name)}_at" for name in formula.operands),
        arrays="\n".join(arrays),
        scalar_names="".join(f"{local}, " for local in writer.hoisted.values()).rstrip(),
        element_body="\n".join(loads + body + stores),
        operand_count=len(formula.operands),
        hyper_count=len(formula.scalars),
        hyper_bytes=8 * len(formula.scalars),
        chunk_addresses="\n".join(chunk_addresses),
    )


class _Writer:
    """Expressions as text: scalars are collected in `hoisted`, shared subexpressions get a line of their own."""

    def __init__(self, formula: Formula, real: str) -> None:
        self.real = real
        self.hoisted: dict[str, str] = {}
        self._locals: dict[int, str] = {}
        self._uses: Counter[int] = Counter()
        seen: set[int] = set()
        for expression in formula.outputs.values():
            self._count(expression, seen)

    def _count(self, expression: Expression, seen: set[int]) -> None:
        self._uses[id(expression)] += 1
        if id(expression) not in seen and expression.op not in ("input", "constant"):
            seen.add(id(expression))
            for arg in expression.args:
                self._count(arg, seen)

    def element(self, expression: Expression, lines: list[str]) -> str:
        """The expression's value inside the loop; lines receives what must be computed before."""
        if expression.scalar:
            return self._hoist(self.scalar(expression))
        if expression.op == "input":
            return _local(expression.args[0])
        if id(expression) in self._locals:
            return self._locals[id(expression)]
        text = self._element_text(expression, lines)
        if self._uses[id(expression)] > 1:
            local = self._locals[id(expression)] = f"t{len(self._locals)}"
            lines.append(f"        {local} = {text}")
            return local
        return text

    def _element_text(self, expression: Expression, lines: list[str]) -> str:
        op, args = expression.op, expression.args
        if op == "div" and args[1].scalar:  # a product is cheaper, and its factor is exact to float64
            return f"({self.element(args[0], lines)} * {self._hoist(f'1.0 / {self.scalar(args[1])}')})"
        if op == "pow" and args[1].op == "constant" and args[1].args[0] in (2.0, 3.0):
            base = self.element(args[0], lines)
            if not base.isidentifier():
                local = f"t{len(self._locals)}"
                self._locals[id(expression)] = local
                lines.append(f"        {local} = {base}")
                base = local
            return f"({' * '.join([base] * int(args[1].args[0]))})"
        if op == "where" and args[0].scalar:
            chosen = self._hoist(f"1.0 if {self.scalar(args[0])} else 0.0")
            return f"({self.element(args[1], lines)} if {chosen} != {self._hoist('0.0')} else {self.element(args[2], lines)})"
        return _render(op, [self.element(arg, lines) for arg in args])

    def scalar(self, expression: Expression) -> str:
        """The expression in float64, outside the loop."""
        if expression.op == "input":
            return _local(expression.args[0])
        if expression.op == "constant":
            return repr(expression.args[0])
        return _render(expression.op, [self.scalar(arg) for arg in expression.args])

    def _hoist(self, text: str) -> str:
        return self.hoisted.setdefault(text, f"s{len(self.hoisted)}")


def _render(op: str, args: list[str]) -> str:
    if op in _INFIX:
        return f"({args[0]} {_INFIX[op]} {args[1]})"
    return _CALLS[op].format(*args)


def _local(name: str) -> str:
    """A name for the kernel, out of the way of those that the kernel itself uses."""
    return name + "_" if _RESERVED.fullmatch(name) else name


_RESERVED = re.compile(
    r"[st]\d+|.*_array|.*_at|i|size|scalars|hyper|update|run|larger|smaller|exp|log|sqrt|abs|inf|nan|float32|float64|cfunc|njit"
)
