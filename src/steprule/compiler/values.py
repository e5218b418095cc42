"""Values of compiled code: numbers, addresses of numbers and tuples, and what operators make of them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir


class CompileError(Exception):
    """The code is none that this compiler takes.

    Attributes:
        where: the file and line.
    """

    where = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.args[0]}" if self.where else str(self.args[0])


@dataclass(frozen=True)
class Number:
    """A type of numbers.

    Attributes:
        name: as NumPy has it.
        bits: how many.
        is_float: whether it has fractions.
        is_signed: whether it is less than 0 at times.
    """

    name: str
    bits: int
    is_float: bool = False
    is_signed: bool = True

    @property
    def llvm(self) -> ir.Type:
        """LLVM's type."""
        if self.is_float:
            return ir.DoubleType() if self.bits == 64 else ir.FloatType()
        return ir.IntType(self.bits)


@dataclass(frozen=True)
class Address:
    """A type of addresses, which are whole numbers; of numbers that lie one after another.

    Attributes:
        of: their type.
    """

    of: Number
    llvm = ir.IntType(64)


@dataclass(frozen=True)
class Value:
    """A value that is known when the code runs.

    Attributes:
        type: its type.
        llvm: LLVM's.
    """

    type: Number | Address
    llvm: Any


Some: TypeAlias = "Value | tuple[Some, ...] | None"
"""What an expression is: a value, several or none."""

BOOL = Number("bool", 1, is_signed=False)
INT8, INT16, INT64 = (Number(f"int{bits}", bits) for bits in (8, 16, 64))
UINT8, UINT16, UINT32, UINT64 = (Number(f"uint{bits}", bits, is_signed=False) for bits in (8, 16, 32, 64))
FLOAT32, FLOAT64 = (Number(f"float{bits}", bits, is_float=True) for bits in (32, 64))
BY_NAME = {one.name: one for one in (INT8, INT16, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT32, FLOAT64)}
CASTS: Mapping[Any, Number] = {np.dtype(name).type: one for name, one in BY_NAME.items()}
"""Of NumPy's types, as functions of one number."""


def constant(x: bool | int | float) -> Value:
    """A number of Python's as it is typed where nothing says more: 64 bits."""
    kind = BOOL if isinstance(x, bool) else INT64 if isinstance(x, int) else FLOAT64
    if kind == INT64 and not -(2**63) <= x < 2**64:
        raise CompileError(f"{x} has more than 64 bits")
    return Value(kind, ir.Constant(kind.llvm, x))


def described(x: Some) -> str:
    """Its type in words."""
    if isinstance(x, tuple):
        return f"({', '.join(map(described, x))})"
    return "nothing" if x is None else f"address of {x.type.of.name}" if isinstance(x.type, Address) else x.type.name


def converted(b: ir.IRBuilder, x: Some, to: Number | Address) -> Value:
    """A number as one of another type, as casts in C make it."""
    if isinstance(x, Value) and x.type == to:
        return x
    if not isinstance(x, Value) or isinstance(x.type, Address) or isinstance(to, Address):
        wanted = to.name if isinstance(to, Number) else "an address"
        raise CompileError(f"{described(x)} where {wanted} is needed")
    return Value(to, _cast(b, x.llvm, x.type, to))


def _cast(b: ir.IRBuilder, x: Any, of: Number, to: Number) -> Any:
    if to == BOOL:
        return is_true(b, Value(of, x))
    if of.is_float and to.is_float:
        return b.fpext(x, to.llvm) if to.bits > of.bits else b.fptrunc(x, to.llvm)
    if of.is_float:
        return (b.fptosi if to.is_signed else b.fptoui)(x, to.llvm)
    if to.is_float:
        return (b.sitofp if of.is_signed else b.uitofp)(x, to.llvm)
    if to.bits <= of.bits:
        return b.trunc(x, to.llvm) if to.bits < of.bits else x
    return (b.sext if of.is_signed else b.zext)(x, to.llvm)


def is_true(b: ir.IRBuilder, x: Some) -> Any:
    """The bit of a condition."""
    if not isinstance(x, Value) or isinstance(x.type, Address):
        raise CompileError(f"{described(x)} is no condition")
    if x.type == BOOL:
        return x.llvm
    zero = ir.Constant(x.type.llvm, 0)
    return b.fcmp_unordered("!=", x.llvm, zero) if x.type.is_float else b.icmp_unsigned("!=", x.llvm, zero)


def as_number(b: ir.IRBuilder, x: Some) -> Some:
    """A truth value as 1 or 0, and anything else as it is."""
    return converted(b, x, INT64) if isinstance(x, Value) and x.type == BOOL else x


def one_type(x: Some, y: Some) -> Number:
    """What two numbers both are, where a truth value counts as any number.

    Raises:
        CompileError: they are of two types, or no numbers.
    """
    kinds = {one.type for one in (x, y) if isinstance(one, Value) and isinstance(one.type, Number)}
    kinds -= {BOOL} if len(kinds) == 2 else set()
    if len(kinds) != 1 or not isinstance(x, Value) or not isinstance(y, Value):
        raise CompileError(f"{described(x)} or {described(y)}")
    (kind,) = kinds
    assert isinstance(kind, Number)
    return kind


def together(b: ir.IRBuilder, x: Some, y: Some) -> tuple[Value, Value, Number]:
    """Two numbers as ones of one type: float64 where they are of two, of which one has a fraction. Truth values count as any number."""
    kinds = [one.type for one in (x, y) if isinstance(one, Value) and isinstance(one.type, Number)]
    if len(kinds) < 2:
        raise CompileError(f"{described(x)} and {described(y)} are no two numbers")
    if kinds[0] == kinds[1] or BOOL in kinds:
        kind = one_type(x, y)
    elif any(one.is_float for one in kinds):
        kind = FLOAT64
    else:
        raise CompileError(f"{kinds[0].name} and {kinds[1].name}, of which neither is the wider")
    return converted(b, x, kind), converted(b, y, kind), kind


def arithmetic(b: ir.IRBuilder, operator: ast.operator, x: Some, y: Some) -> Value:
    """x + y, and so on. Quotients of whole numbers are rounded down, and 0 where they are of 0."""
    emit: Callable[..., Any] | None
    if not isinstance(operator, (ast.BitAnd, ast.BitOr, ast.BitXor)):
        x, y = as_number(b, x), as_number(b, y)
    elif any(isinstance(one, Value) and one.type == BOOL for one in (x, y)):  # conditions, and numbers that are some
        x, y = (converted(b, one, BOOL) for one in (x, y))
    left, right, kind = together(b, x, y)
    if isinstance(operator, (ast.Div, ast.Pow)) and not kind.is_float:
        left, right, kind = converted(b, left, FLOAT64), converted(b, right, FLOAT64), FLOAT64
    if isinstance(operator, ast.Div):
        return Value(kind, b.fdiv(left.llvm, right.llvm))
    if isinstance(operator, ast.Pow):
        power = b.module.declare_intrinsic("llvm.pow", [left.llvm.type])
        return Value(kind, b.call(power, [left.llvm, right.llvm]))
    if isinstance(operator, (ast.FloorDiv, ast.Mod)) and kind == INT64:
        return Value(kind, _quotient(b, left.llvm, right.llvm, isinstance(operator, ast.Mod)))
    if kind.is_float:
        emit = {ast.Add: b.fadd, ast.Sub: b.fsub, ast.Mult: b.fmul}.get(type(operator))
    else:
        emit = {
            ast.Add: b.add, ast.Sub: b.sub, ast.Mult: b.mul, ast.BitAnd: b.and_, ast.BitOr: b.or_, ast.BitXor: b.xor,
            ast.LShift: b.shl, ast.RShift: b.ashr if kind.is_signed else b.lshr,
        }.get(type(operator))  # fmt: skip
    if emit is None:
        raise CompileError(f"no {type(operator).__name__} of {kind.name}")
    return Value(kind, emit(left.llvm, right.llvm))


def _quotient(b: ir.IRBuilder, x: Any, y: Any, rest: bool) -> Any:
    zero, one = ir.Constant(x.type, 0), ir.Constant(x.type, 1)
    by_zero, negates = b.icmp_signed("==", y, zero), b.icmp_signed("==", y, ir.Constant(x.type, -1))
    divisor = b.select(b.or_(by_zero, negates), one, y)  # processors stop at the least number by -1
    left = b.srem(x, divisor)
    is_below = b.and_(b.icmp_signed("!=", left, zero), b.icmp_signed("<", b.xor(left, divisor), zero))
    if rest:
        return b.select(is_below, b.add(left, divisor), left)
    whole = b.sdiv(x, divisor)
    whole = b.select(negates, b.neg(x), b.select(is_below, b.sub(whole, one), whole))
    return b.select(by_zero, zero, whole)


_COMPARED = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


def comparison(b: ir.IRBuilder, operator: ast.cmpop, x: Some, y: Some) -> Value:
    """x < y, and so on. NaN is unequal to everything, and nothing else."""
    left, right, kind = together(b, x, y)
    if type(operator) not in _COMPARED:
        raise CompileError(f"no {type(operator).__name__}")
    how = _COMPARED[type(operator)]
    if kind.is_float:
        emit = b.fcmp_unordered if how == "!=" else b.fcmp_ordered
    else:
        emit = b.icmp_signed if kind.is_signed else b.icmp_unsigned
    return Value(BOOL, emit(how, left.llvm, right.llvm))


def least(b: ir.IRBuilder, x: Some, y: Some, largest: bool) -> Value:
    """The smaller or the larger of two whole numbers."""
    left, right, kind = together(b, x, y)
    if kind.is_float:
        raise CompileError("min and max are of whole numbers: of others it counts what NaN becomes")
    is_first = comparison(b, ast.Gt() if largest else ast.Lt(), left, right)
    return Value(kind, b.select(is_first.llvm, left.llvm, right.llvm))
