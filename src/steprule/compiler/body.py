"""A function's statements as LLVM's instructions."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from steprule.compiler.builder import Builder, Place
from steprule.compiler.expressions import Expressions, Variable
from steprule.compiler.functions import Function
from steprule.compiler.values import (
    INT64,
    CompileError,
    Some,
    Value,
    arithmetic,
    comparison,
    constant,
    converted,
    described,
    is_true,
)  # fmt: skip


class Body(Expressions):
    """A function while it is compiled into another one.

    Args:
        function: the function.
        builder: stands where it begins, and in the end where its caller goes on.
    """

    def __init__(self, function: Function, builder: Builder) -> None:
        super().__init__(function, builder)
        self._end: Any = None  # the block after it
        self._result: Variable = None

    def run(self, given: Sequence[Some]) -> Some:
        """Compiles a call with these arguments, and returns its result."""
        tree, before = self._function.tree, self._b.flags
        if len(tree.args.args) != len(given):
            raise CompileError(f"{tree.name} takes {len(tree.args.args)} arguments, not {len(given)}")
        self._b.flags = self._function.flags
        try:
            return self._run(tree, given)
        finally:
            self._b.flags = before

    def _run(self, tree: ast.FunctionDef, given: Sequence[Some]) -> Some:
        for name, x in zip(tree.args.args, given, strict=True):
            self._set(name.arg, x)
        self._end = self._b.append_basic_block(f"{tree.name}.end")
        self._all(tree.body)
        if not self._b.block.is_terminated:
            self._b.branch(self._end)
            if self._result is not None and not self._loops_for_ever(tree.body[-1]):
                raise CompileError(f"{tree.name} returns something, and nothing at its end")
        self._b.position_at_end(self._end)
        return self._get(self._result)

    @staticmethod
    def _loops_for_ever(last: ast.stmt) -> bool:
        return isinstance(last, ast.While) and isinstance(last.test, ast.Constant)

    # Statements

    def _all(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self._b.block.is_terminated:
                return
            try:
                self._take(statement)
            except CompileError as error:
                if not error.where:
                    error.where = self._function.at(statement)
                raise

    def _take(self, statement: ast.stmt) -> None:
        take = getattr(self, f"_take_{type(statement).__name__}", None)
        if take is None:
            raise CompileError(f"no {type(statement).__name__}")
        take(statement)

    def _take_Pass(self, statement: ast.Pass) -> None:
        pass

    def _take_Expr(self, statement: ast.Expr) -> None:
        if not isinstance(statement.value, ast.Constant):  # else a docstring
            self._of(statement.value)

    def _take_Assign(self, statement: ast.Assign) -> None:
        x = self._of(statement.value)
        for target in statement.targets:
            self._assign(target, x)

    def _assign(self, target: ast.expr, x: Some) -> None:
        if isinstance(target, ast.Name):
            self._set(target.id, x)
        elif isinstance(target, ast.Tuple):
            if not isinstance(x, tuple) or len(x) != len(target.elts):
                raise CompileError(f"{described(x)} for {len(target.elts)} variables")
            for one, value in zip(target.elts, x, strict=True):
                self._assign(one, value)
        elif isinstance(target, ast.Subscript):
            at, kind = self._at(target)
            self._b.store(converted(self._b, x, kind).llvm, at)
        else:
            raise CompileError(f"no {type(target).__name__} to the left of =")

    def _take_AugAssign(self, statement: ast.AugAssign) -> None:
        now: Some
        if isinstance(statement.target, ast.Subscript):
            at, kind = self._at(statement.target)
            now = Value(kind, self._b.load(at))
            new = arithmetic(self._b, statement.op, now, self._of(statement.value))
            self._b.store(converted(self._b, new, kind).llvm, at)
        else:
            now = self._of(statement.target)
            self._assign(statement.target, arithmetic(self._b, statement.op, now, self._of(statement.value)))

    def _take_Return(self, statement: ast.Return) -> None:
        x = self._of(statement.value) if statement.value is not None else None
        if self._result is None:
            self._result = self._made(x)
        self._fill(self._result, x)
        self._b.branch(self._end)

    def _take_If(self, statement: ast.If) -> None:
        def otherwise() -> None:
            self._all(statement.orelse)

        condition = is_true(self._b, self._of(statement.test))
        self._either(condition, lambda: self._all(statement.body), otherwise)

    def _either(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> None:
        """Has one of two run, of which each may return from the function."""
        b = self._b
        blocks = [b.append_basic_block(name) for name in ("then", "else", "after")]
        b.cbranch(condition, *blocks[:2])
        for block, work in zip(blocks, (then, otherwise), strict=False):
            b.position_at_end(block)
            work()
            if not b.block.is_terminated:
                b.branch(blocks[2])
        b.position_at_end(blocks[2])

    def _take_While(self, statement: ast.While) -> None:
        if statement.orelse:
            raise CompileError("no else of a loop")
        b = self._b
        head, inside, after = (b.append_basic_block(name) for name in ("while", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(is_true(b, self._of(statement.test)), inside, after)
        b.position_at_end(inside)
        self._all(statement.body)
        if not b.block.is_terminated:
            b.branch(head)
        b.position_at_end(after)

    def _take_For(self, statement: ast.For) -> None:
        call = statement.iter
        if not (isinstance(call, ast.Call) and self._named(call.func) is range and 1 <= len(call.args) <= 2):
            raise CompileError("a loop is over range(end) or range(start, end)")
        if statement.orelse or not isinstance(statement.target, ast.Name):
            raise CompileError("a loop has one variable, and no else")
        b = self._b
        *start, end = (Value(INT64, self._whole(one)) for one in call.args)
        number = Place(b, INT64)
        number.set(b, start[0] if start else constant(0))
        head, inside, after = (b.append_basic_block(name) for name in ("for", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        now = number.get(b)
        b.cbranch(comparison(b, ast.Lt(), now, end).llvm, inside, after)
        b.position_at_end(inside)
        self._set(statement.target.id, now)
        number.set(b, Value(INT64, b.add(now.llvm, INT64.llvm(1), flags=("nsw",))))
        self._all(statement.body)
        if not b.block.is_terminated:
            b.branch(head)
        b.position_at_end(after)
