"""LLVM's instructions, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from steprule.compiler.values import BOOL, Address, CompileError, Number, Some, Value, converted, described


class Builder(ir.IRBuilder):  # type: ignore[misc]
    """LLVM's instructions, of which those with fractions get the function's flags."""

    flags: tuple[str, ...] = ()

    def call(self, fn: Any, args: Any, **kwargs: Any) -> Any:
        """A call."""
        made = super().call(fn, args, **kwargs)
        if made.type in (ir.FloatType(), ir.DoubleType()):
            made.fastmath.update(self.flags)
        return made


def function_of(module: ir.Module, name: str, kind: ir.FunctionType) -> tuple[ir.Function, Builder]:
    """A function that raises nothing, and what stands at its beginning; variables go before that."""
    whole = ir.Function(module, kind, name)
    whole.attributes.add("nounwind")
    entry, begin = (whole.append_basic_block(block) for block in ("entry", "begin"))
    builder = Builder(entry)
    builder.branch(begin)
    builder.position_at_end(begin)
    return whole, builder


class Place:
    """Where a variable is: LLVM's passes make registers of them.

    Attributes:
        type: of what is there; 0 at first.
    """

    def __init__(self, builder: Builder, kind: Number | Address) -> None:
        self.type = kind
        with builder.goto_entry_block():
            self._at = builder.alloca(kind.llvm)
            builder.store(ir.Constant(kind.llvm, 0), self._at)

    def get(self, builder: Builder) -> Value:
        """What is there."""
        return Value(self.type, builder.load(self._at))

    def set(self, builder: Builder, x: Some) -> None:
        """Has another value there, of the same type; a truth value counts as a number."""
        if not isinstance(x, Value) or x.type not in (self.type, BOOL):
            raise CompileError(f"{described(x)} for what was {described(Value(self.type, None))}")
        builder.store(converted(builder, x, self.type).llvm, self._at)


def _flagged(name: str) -> Callable[..., Any]:
    plain = getattr(ir.IRBuilder, name)

    def emit(self: Builder, *args: Any, flags: tuple[str, ...] = (), **kwargs: Any) -> Any:
        return plain(self, *args, flags=flags or self.flags, **kwargs)

    return emit


for _name in ("fadd", "fsub", "fmul", "fdiv", "fcmp_ordered", "fcmp_unordered"):
    setattr(Builder, _name, _flagged(_name))
