"""What compiled code may call: functions of the same Python, and instructions, which write LLVM's own."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llvmlite import ir

from steprule.compiler.values import Address, Number, Some, Value, converted


class Function:
    """A function that is compiled where it is called.

    Args:
        python: its text, and its names.
        flags: of all operations with fractions in it, in LLVM's words, which say what may be assumed of them.
    """

    def __init__(self, python: Callable[..., Any], flags: tuple[str, ...] = ()) -> None:
        self.flags = flags
        self.names = python.__globals__
        self._python = python

    @cached_property
    def tree(self) -> ast.FunctionDef:
        """What stands in it, with the file's line numbers."""
        lines, first = inspect.getsourcelines(self._python)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        return ast.increment_lineno(tree, first - 1)

    def at(self, node: ast.AST) -> str:
        """Where a part of it stands."""
        return f"{inspect.getsourcefile(self._python)}:{getattr(node, 'lineno', 0)}"


def exact(python: Callable[..., Any]) -> Any:
    """A `Function` in which nothing is assumed."""
    return Function(python)


def fast(python: Callable[..., Any]) -> Any:
    """One in which the signs of zeros do not matter: what vectorizes. Nothing assumes that there is no NaN or inf."""
    return Function(python, ("nsz",))


@dataclass(frozen=True)
class Instruction:
    """What is written in LLVM's terms.

    Attributes:
        emit: makes a function's instructions of a builder and LLVM's values.
        result: what it returns; None nothing, "first" what the first argument is.
        arguments: what its arguments become. "first" makes all of them what the first one is, and None leaves them.
    """

    emit: Callable[..., Any]
    result: Number | Address | str | None
    arguments: tuple[Number | Address, ...] | str | None

    def write(self, builder: ir.IRBuilder, *given: Some) -> Some:
        """Writes it for these arguments."""
        flat = [x for one in given for x in (one if isinstance(one, tuple) else (one,))]
        first = flat[0].type if flat and isinstance(flat[0], Value) else None
        kinds = self.arguments
        if kinds == "first":
            kinds = (first,) * len(flat)  # type: ignore[assignment]
        if isinstance(kinds, tuple):
            flat = [converted(builder, x, kind) for x, kind in zip(flat, kinds, strict=True)]
        made = self.emit(builder, *(x.llvm for x in flat))  # type: ignore[union-attr]
        kind = first if self.result == "first" else self.result
        return None if kind is None else Value(kind, made)  # type: ignore[arg-type]


def instruction(result: Number | Address | None, *arguments: Number | Address) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function of (builder, *values) an `Instruction` of arguments of these types."""

    def decorate(emit: Callable[..., Any]) -> Any:
        return Instruction(emit, result, arguments)

    return decorate


def of_any(emit: Callable[..., Any]) -> Any:
    """Makes a function of (builder, *values) an `Instruction` of numbers of one type, which the first says, as is the result."""
    return Instruction(emit, "first", "first")
