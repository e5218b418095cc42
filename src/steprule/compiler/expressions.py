"""Expressions as LLVM's instructions."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from types import BuiltinFunctionType
from typing import Any

from llvmlite import ir

from steprule.compiler.builder import Builder, Place, function_of
from steprule.compiler.functions import Function, Instruction
from steprule.compiler.values import (
    BOOL,
    CASTS,
    FLOAT64,
    INT64,
    Address,
    CompileError,
    Number,
    Some,
    Value,
    arithmetic,
    as_number,
    comparison,
    constant,
    converted,
    described,
    is_true,
    least,
    one_type,
)

_MATHEMATICS: dict[Any, str] = {math.sqrt: "sqrt", math.exp: "exp", math.log: "log", math.floor: "floor", abs: "fabs"}

Variable = Any
"""A `Place`, a tuple of variables, or None."""


class Expressions:
    """The expressions of a function while it is compiled.

    Args:
        function: the function.
        builder: stands where they are.
    """

    def __init__(self, function: Function, builder: Builder) -> None:
        self._function = function
        self._b = builder
        self._variables: dict[str, Variable] = {}

    def run(self, given: Sequence[Some]) -> Some:
        """Compiles a call with these arguments, and returns its result."""
        raise NotImplementedError

    # Variables

    def _get(self, variable: Variable) -> Some:
        if isinstance(variable, Place):
            return variable.get(self._b)
        return tuple(map(self._get, variable)) if isinstance(variable, tuple) else None

    def _made(self, x: Some) -> Variable:
        if isinstance(x, Value):
            return Place(self._b, x.type)
        return tuple(map(self._made, x)) if isinstance(x, tuple) else None

    def _fill(self, variable: Variable, x: Some) -> None:
        if isinstance(variable, Place):
            variable.set(self._b, x)
        elif isinstance(variable, tuple):
            if not isinstance(x, tuple) or len(x) != len(variable):
                raise CompileError(f"{described(x)} for what was a tuple of {len(variable)}")
            for one, value in zip(variable, x, strict=True):
                self._fill(one, value)
        elif x is not None:
            raise CompileError(f"{described(x)} for what was nothing")

    def _set(self, name: str, x: Some) -> None:
        if name not in self._variables:
            self._variables[name] = self._made(x)
        self._fill(self._variables[name], x)

    # Expressions

    def _of(self, node: ast.expr) -> Some:
        take = getattr(self, f"_of_{type(node).__name__}", None)
        if take is None:
            raise CompileError(f"no {type(node).__name__}")
        return take(node)  # type: ignore[no-any-return]

    def _of_Constant(self, node: ast.Constant) -> Some:
        if not isinstance(node.value, (bool, int, float)):
            raise CompileError(f"{node.value!r} is no number")
        return constant(node.value)

    def _of_Name(self, node: ast.Name) -> Some:
        if node.id in self._variables:
            return self._get(self._variables[node.id])
        found = self._named(node)
        if not isinstance(found, (bool, int, float)):
            raise CompileError(f"{node.id} is no number")
        return constant(found)

    def _named(self, node: ast.expr) -> Any:
        """What a name that is no variable stands for."""
        if not isinstance(node, ast.Name) or node.id in self._variables:
            raise CompileError(f"{ast.unparse(node)} is no name of the file")
        names = self._function.names
        builtin = {"abs": abs, "len": len, "max": max, "min": min, "range": range}
        if node.id not in names and node.id not in builtin:
            raise CompileError(f"there is no {node.id}")
        return names[node.id] if node.id in names else builtin[node.id]

    def _of_Tuple(self, node: ast.Tuple) -> Some:
        return tuple(map(self._of, node.elts))

    def _of_BinOp(self, node: ast.BinOp) -> Some:
        return arithmetic(self._b, node.op, self._of(node.left), self._of(node.right))

    def _of_UnaryOp(self, node: ast.UnaryOp) -> Some:
        b, x = self._b, self._of(node.operand)
        if isinstance(node.op, ast.Not):
            return Value(BOOL, b.not_(is_true(b, x)))
        x = as_number(b, x)
        if not isinstance(node.op, ast.USub) or not isinstance(x, Value) or not isinstance(x.type, Number):
            raise CompileError(f"no {type(node.op).__name__} of {described(x)}")
        return Value(x.type, b.fneg(x.llvm) if x.type.is_float else b.neg(x.llvm))

    def _of_Compare(self, node: ast.Compare) -> Some:
        if len(node.ops) > 1:
            raise CompileError("comparisons are of two")
        return comparison(self._b, node.ops[0], self._of(node.left), self._of(node.comparators[0]))

    def _of_BoolOp(self, node: ast.BoolOp) -> Some:
        b, answer = self._b, Place(self._b, BOOL)
        end = b.append_basic_block("decided")
        for part in node.values:
            condition = is_true(b, self._of(part))
            answer.set(b, Value(BOOL, condition))
            next_one = b.append_basic_block("next")
            b.cbranch(condition, *((next_one, end) if isinstance(node.op, ast.And) else (end, next_one)))
            b.position_at_end(next_one)
        b.branch(end)
        b.position_at_end(end)
        return answer.get(b)

    def _of_IfExp(self, node: ast.IfExp) -> Some:
        b = self._b
        condition = is_true(b, self._of(node.test))
        blocks = [b.append_basic_block(name) for name in ("this", "that", "chosen")]
        b.cbranch(condition, *blocks[:2])
        found = []
        for block, part in zip(blocks, (node.body, node.orelse), strict=False):
            b.position_at_end(block)
            found.append((self._of(part), b.block))
        kind = one_type(*(x for x, _ in found))
        ends = []
        for x, block in found:
            b.position_at_end(block)
            ends.append((converted(b, x, kind).llvm, b.block))
            b.branch(blocks[2])
        b.position_at_end(blocks[2])
        chosen = b.phi(kind.llvm)
        for end in ends:
            chosen.add_incoming(*end)
        return Value(kind, chosen)

    def _at(self, node: ast.Subscript) -> tuple[Any, Number]:
        """Where a number of an address's lies, and its type."""
        x = self._of(node.value)
        if not isinstance(x, Value) or not isinstance(x.type, Address):
            raise CompileError(f"{described(x)} is no address")
        return self._b.gep(self._b.inttoptr(x.llvm, x.type.of.llvm.as_pointer()), [self._whole(node.slice)]), x.type.of

    def _whole(self, node: ast.expr) -> Any:
        """A whole number."""
        x = self._of(node)
        if not isinstance(x, Value) or x.type != INT64:
            raise CompileError(f"{described(x)} where int64 is needed")
        return x.llvm

    def _of_Subscript(self, node: ast.Subscript) -> Some:
        if isinstance(node.value, ast.Name) and node.value.id not in self._variables:
            return self._in_table(node.value, node.slice)
        at, kind = self._at(node)
        return Value(kind, self._b.load(at))

    def _table(self, nodes: Sequence[ast.expr]) -> tuple[int, ...]:
        """The tuple that a name stands for."""
        table = self._named(nodes[0]) if len(nodes) == 1 else None
        if not isinstance(table, tuple) or not all(type(one) is int for one in table):
            raise CompileError("only a tuple of whole numbers is a table")
        return table

    def _in_table(self, node: ast.expr, place: ast.expr) -> Some:
        """One of the numbers of a tuple."""
        table = self._table([node])
        b, kind = self._b, ir.ArrayType(INT64.llvm, len(table))
        name = b.module.get_unique_name("table")
        numbers = ir.GlobalVariable(b.module, kind, name)
        numbers.global_constant, numbers.linkage = True, "internal"
        numbers.initializer = ir.Constant(kind, list(table))
        return Value(INT64, b.load(b.gep(numbers, [INT64.llvm(0), self._whole(place)])))

    def _of_Call(self, node: ast.Call) -> Some:
        if node.keywords:
            raise CompileError("no arguments by name")
        called = self._named(node.func)
        if called is len:
            return constant(len(self._table(node.args)))
        given = list(map(self._of, node.args))
        if isinstance(called, Function):
            return self._apart(called, given) if called.is_apart else type(self)(called, self._b).run(given)
        if isinstance(called, Instruction):
            return called.write(self._b, *given)
        if called in (min, max) and given:
            chosen = given[0]
            for one in given[1:]:
                chosen = least(self._b, chosen, one, called is max)
            return chosen
        if len(given) != 1:
            raise CompileError(f"{ast.unparse(node.func)} takes one number")
        if isinstance(called, type) and called in CASTS:
            return converted(self._b, given[0], CASTS[called])
        if isinstance(called, BuiltinFunctionType) and called in _MATHEMATICS:
            return self._mathematics(_MATHEMATICS[called], given[0])
        raise CompileError(f"{ast.unparse(node.func)} is no function that is compiled")

    def _apart(self, function: Function, given: Sequence[Some]) -> Some:
        """A call of what stays a function of its own."""
        b, values = self._b, _flat(given)
        last = function.tree.body[-1]
        count = 0
        if isinstance(last, ast.Return) and last.value is not None:
            count = len(last.value.elts) if isinstance(last.value, ast.Tuple) else 1
        result = ir.LiteralStructType([FLOAT64.llvm] * count)
        kind = ir.FunctionType(result, [x.llvm.type for x in values])
        whole, builder = function_of(b.module, b.module.get_unique_name(function.tree.name), kind)
        whole.attributes.add("noinline")
        whole.linkage = "internal"
        arguments = (Value(x.type, argument) for x, argument in zip(values, whole.args, strict=True))
        returned = _flat([type(self)(function, builder).run([_shaped(x, arguments) for x in given])])
        several = ir.Constant(result, ir.Undefined)
        for place, x in enumerate(returned):
            several = builder.insert_value(several, converted(builder, x, FLOAT64).llvm, place)
        builder.ret(several)
        made = b.call(whole, [x.llvm for x in values])
        found = tuple(Value(FLOAT64, b.extract_value(made, place)) for place in range(count))
        return (found if isinstance(last.value, ast.Tuple) else found[0]) if found else None  # type: ignore[attr-defined]

    def _mathematics(self, name: str, x: Some) -> Some:
        x = converted(self._b, x, FLOAT64) if isinstance(x, Value) and x.type == BOOL else x
        if not isinstance(x, Value) or not isinstance(x.type, Number) or not x.type.is_float:
            raise CompileError(f"no {name} of {described(x)}")
        function = self._b.module.declare_intrinsic(f"llvm.{name}", [x.llvm.type])
        return Value(x.type, self._b.call(function, [x.llvm]))


def _flat(x: Any) -> list[Value]:
    """The values of tuples in each other."""
    if isinstance(x, Value):
        return [x]
    return [] if x is None else [one for part in x for one in _flat(part)]


def _shaped(x: Some, values: Iterator[Value]) -> Some:
    """The next values, in tuples like these."""
    if isinstance(x, tuple):
        return tuple(_shaped(part, values) for part in x)
    return None if x is None else next(values)
