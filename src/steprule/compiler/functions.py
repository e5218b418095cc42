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

from steprule.compiler.values import Address, CompileError, Number, Some, Value, converted, described


class Function:
    """A function that is compiled where it is called.

    Args:
        python: its text, and its names.
        flags: of all operations with fractions in it, in LLVM's words, which say what may be assumed of them.
        is_apart: whether it stays a function of its own, which returns float64s or nothing.
    """

    def __init__(self, python: Callable[..., Any], flags: tuple[str, ...] = (), is_apart: bool = False) -> None:
        self.flags = flags
        self.is_apart = is_apart
        self.names = python.__globals__
        self._python = python

    @cached_property
    def tree(self) -> ast.FunctionDef:
        """What stands in it, with the file's line numbers."""
        try:
            lines, first = inspect.getsourcelines(self._python)
        except OSError as error:
            raise CompileError(
                f"kernels are compiled from text, and that of {self._python.__name__} is not there: {error}"
            ) from None
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        others = {**vars(tree.args), "args": []}
        if any(others.values()):
            raise CompileError(f"{tree.name} has arguments that are not plain ones")
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


def apart(python: Callable[..., Any]) -> Any:
    """A `fast` one that stays a function of its own, and returns float64s or nothing: loops in it have all registers."""
    return Function(python, ("nsz",), is_apart=True)


@dataclass(frozen=True)
class Instruction:
    """What is written in LLVM's terms.

    Attributes:
        emit: makes a function's instructions of a builder and LLVM's values.
        result: what it returns; None nothing, "first" what the first argument is.
        arguments: what its arguments become. "first" makes all of them what the first one is, or the first
            with a fraction, and None leaves them.
    """

    emit: Callable[..., Any]
    result: Number | Address | str | None
    arguments: tuple[Number | Address, ...] | str | None

    def write(self, builder: ir.IRBuilder, *given: Some) -> Some:
        """Writes it for these arguments."""
        flat = [x for one in given for x in (one if isinstance(one, tuple) else (one,))]
        types = [one.type for one in flat if isinstance(one, Value)]
        first = next((one for one in types if isinstance(one, Number) and one.is_float), None)
        kinds = self.arguments
        if kinds == "first":
            if first is None:
                raise CompileError(f"{', '.join(map(described, flat))} where numbers with fractions are needed")
            kinds = (first,) * len(flat)
        if isinstance(kinds, tuple):
            if len(kinds) != len(flat):
                raise CompileError(f"{len(flat)} arguments where there are {len(kinds)}")
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
    """Makes a function of (builder, *values) an `Instruction` of numbers of one type, that of the first with a fraction, as is the result."""
    return Instruction(emit, "first", "first")
