"""LLVM's instructions, one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir


class Builder(ir.IRBuilder):  # type: ignore[misc]
    """LLVM's instructions, of which those with fractions get the function's flags."""

    flags: tuple[str, ...] = ()

    def call(self, fn: Any, args: Any, **kwargs: Any) -> Any:
        """A call."""
        made = super().call(fn, args, **kwargs)
        if made.type in (ir.FloatType(), ir.DoubleType()):
            made.fastmath.update(self.flags)
        return made


def _flagged(name: str) -> Callable[..., Any]:
    plain = getattr(ir.IRBuilder, name)

    def emit(self: Builder, *args: Any, flags: tuple[str, ...] = (), **kwargs: Any) -> Any:
        return plain(self, *args, flags=flags or self.flags, **kwargs)

    return emit


for _name in ("fadd", "fsub", "fmul", "fdiv", "frem", "fcmp_ordered", "fcmp_unordered"):
    setattr(Builder, _name, _flagged(_name))
