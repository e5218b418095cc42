"""The statements and expressions of a function as LLVM's instructions."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from steprule.compiler.builder import Builder
from steprule.compiler.functions import Function, Instruction
from steprule.compiler.values import (
    BOOL,
    CASTS,
    INT64,
    Address,
    CompileError,
    Number,
    Some,
    Value,
    arithmetic,
    comparison,
    constant,
    converted,
    described,
    is_true,
    least,
)  # fmt: skip

_MATHEMATICS = {math.sqrt: "sqrt", math.exp: "exp", math.log: "log", math.floor: "floor", abs: "fabs"}


class Place:
    """Where a variable is: LLVM's passes make registers of them.

    Attributes:
        type: of what is there.
    """

    def __init__(self, builder: Builder, kind: Number | Address) -> None:
        self.type = kind
        with builder.goto_entry_block():
            self._at = builder.alloca(kind.llvm)

    def get(self, builder: Builder) -> Value:
        """What is there."""
        return Value(self.type, builder.load(self._at))

    def set(self, builder: Builder, x: Some) -> None:
        """Has another value there."""
        if isinstance(x, Value) and isinstance(x.type, Address) and x.type == self.type:
            builder.store(x.llvm, self._at)
            return
        if isinstance(x, Value) and x.type != self.type and BOOL not in (x.type, self.type):
            raise CompileError(f"{described(x)} for what was {described(Value(self.type, None))}")
        builder.store(converted(builder, x, self.type).llvm, self._at)


Variable = Any
"""A `Place`, a tuple of variables, or None."""


class Body:
    """A function while it is compiled into another one.

    Args:
        function: the function.
        builder: stands where it begins, and in the end where its caller goes on.
    """

    def __init__(self, function: Function, builder: Builder) -> None:
        self._function = function
        self._b = builder
        self._variables: dict[str, Variable] = {}
        self._end: Any = None  # the block after it, where it returns before its last line
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
        *before, last = tree.body
        returns = sum(isinstance(node, ast.Return) for node in ast.walk(tree))
        if isinstance(last, ast.Return) and returns == 1:
            self._all(before)
            return self._of(last.value) if last.value is not None else None
        self._end = self._b.append_basic_block(f"{tree.name}.end")
        self._all(tree.body)
        if not self._b.block.is_terminated:
            self._b.branch(self._end)
        self._b.position_at_end(self._end)
        return self._get(self._result)

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

    # Statements

    def _all(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self._b.block.is_terminated:
                return
            try:
                self._take(statement)
            except CompileError as error:
                if error.args[1:]:
                    raise
                raise CompileError(f"{self._function.at(statement)}: {error}", statement) from None

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
        *start, end = (converted(b, self._of(one), INT64) for one in call.args)
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
        if not isinstance(node.op, ast.USub) or not isinstance(x, Value) or not isinstance(x.type, Number):
            raise CompileError(f"no {type(node.op).__name__} of {described(x)}")
        return Value(x.type, b.fneg(x.llvm) if x.type.is_float else b.neg(x.llvm))

    def _of_Compare(self, node: ast.Compare) -> Some:
        if len(node.ops) > 1:
            raise CompileError("comparisons are of two")
        return comparison(self._b, node.ops[0], self._of(node.left), self._of(node.comparators[0]))

    def _of_BoolOp(self, node: ast.BoolOp) -> Some:
        first, *others = node.values
        answer = Place(self._b, BOOL)
        answer.set(self._b, Value(BOOL, is_true(self._b, self._of(first))))

        def go_on() -> None:
            rest = others[0] if len(others) == 1 else ast.BoolOp(node.op, others)
            answer.set(self._b, Value(BOOL, is_true(self._b, self._of(rest))))

        work = [go_on, lambda: None]
        self._either(answer.get(self._b).llvm, *(work if isinstance(node.op, ast.And) else work[::-1]))
        return answer.get(self._b)

    def _of_IfExp(self, node: ast.IfExp) -> Some:
        b, ends, kinds = self._b, [], []
        condition = is_true(b, self._of(node.test))
        after = b.append_basic_block("chosen")
        blocks = [b.append_basic_block(name) for name in ("this", "that")]
        b.cbranch(condition, *blocks)
        for block, part in zip(blocks, (node.body, node.orelse), strict=True):
            b.position_at_end(block)
            x = self._of(part)
            if not isinstance(x, Value):
                raise CompileError(f"{described(x)} is nothing to choose")
            ends.append((x, b.block))
            kinds.append(x.type)
        kind = kinds[0]
        if kinds[0] != kinds[1]:
            raise CompileError(f"{described(ends[0][0])} or {described(ends[1][0])}")
        for _, block in ends:
            b.position_at_end(block)
            b.branch(after)
        b.position_at_end(after)
        chosen = b.phi(kind.llvm)
        for x, block in ends:
            chosen.add_incoming(x.llvm, block)
        return Value(kind, chosen)

    def _at(self, node: ast.Subscript) -> tuple[Any, Number]:
        """Where a number of an address's lies, and its type."""
        x = self._of(node.value)
        if not isinstance(x, Value) or not isinstance(x.type, Address):
            raise CompileError(f"{described(x)} is no address")
        place = converted(self._b, self._of(node.slice), INT64).llvm
        return self._b.gep(self._b.inttoptr(x.llvm, x.type.of.llvm.as_pointer()), [place]), x.type.of

    def _of_Subscript(self, node: ast.Subscript) -> Some:
        if isinstance(node.value, ast.Name) and node.value.id not in self._variables:
            return self._in_table(self._named(node.value), node.slice)
        at, kind = self._at(node)
        return Value(kind, self._b.load(at))

    def _in_table(self, table: Any, place: ast.expr) -> Some:
        """One of the numbers of a tuple."""
        if not isinstance(table, tuple) or not all(type(one) is int for one in table):
            raise CompileError("only a tuple of whole numbers is a table")
        b, kind = self._b, ir.ArrayType(INT64.llvm, len(table))
        name = b.module.get_unique_name("table")
        numbers = ir.GlobalVariable(b.module, kind, name)
        numbers.global_constant, numbers.linkage = True, "internal"
        numbers.initializer = ir.Constant(kind, list(table))
        return Value(INT64, b.load(b.gep(numbers, [INT64.llvm(0), converted(b, self._of(place), INT64).llvm])))

    def _of_Call(self, node: ast.Call) -> Some:
        if node.keywords:
            raise CompileError("no arguments by name")
        called = self._named(node.func)
        if called is len:
            return constant(len(self._named(node.args[0])))
        given = list(map(self._of, node.args))
        if isinstance(called, Function):
            return Body(called, self._b).run(given)
        if isinstance(called, Instruction):
            return called.write(self._b, *given)
        if called in (min, max):
            chosen = given[0]
            for one in given[1:]:
                chosen = least(self._b, chosen, one, called is max)
            return chosen
        if len(given) != 1:
            raise CompileError(f"{ast.unparse(node.func)} takes one number")
        if called in CASTS:
            return converted(self._b, given[0], CASTS[called])
        if called in _MATHEMATICS:
            return self._mathematics(_MATHEMATICS[called], given[0])
        raise CompileError(f"{ast.unparse(node.func)} is no function that is compiled")

    def _mathematics(self, name: str, x: Some) -> Some:
        if not isinstance(x, Value) or not isinstance(x.type, Number) or not x.type.is_float:
            raise CompileError(f"no {name} of {described(x)}")
        function = self._b.module.declare_intrinsic(f"llvm.{name}", [x.llvm.type])
        return Value(x.type, self._b.call(function, [x.llvm]))
