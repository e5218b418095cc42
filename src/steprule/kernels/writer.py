"""Expressions as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from steprule.kernels.functions import WRITTEN_OUT
from steprule.kernels.languages import INFIX, Language
from steprule.kernels.names import is_name, marked
from steprule.trace.expression import Expression
from steprule.trace.program import Stage


class Writer:
    """Scalars are collected in `hoisted`, and what is used more than once in the loop gets a line of its own.

    Args:
        stage: whose expressions.
        real: the dtype of elements.
        stored: what a new parameter, {0}, is once stored.
        language: of the kernel.
    """

    def __init__(self, stage: Stage, real: str, stored: str, language: Language) -> None:
        self.real = real
        self._stored = stored
        self._calls, self._scalar_calls, self._constant = language.calls[real], language.scalar_calls, language.constant
        self.hoisted: dict[str, str] = {}
        self._locals: dict[int, str] = {}
        self._scalars: dict[int, str] = {}
        self._uses: Counter[int] = Counter()
        self._seen: set[int] = set()
        self._kept: list[Expression] = []  # so that no other expression gets its id
        for expression in stage.expressions():
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
            return marked(expression.args[0])
        if id(expression) in self._locals:
            return self._locals[id(expression)]
        text = self._element_text(expression, lines)
        needs_line = self._uses[id(expression)] > 1 or text.count("(") > _MOST_NESTED
        return self._named(expression, text, lines) if needs_line else text

    def _named(self, expression: Expression, text: str, lines: list[str]) -> str:
        """A name for a value, which gets a line of its own."""
        local = self._locals[id(expression)] = f"t{len(self._locals)}"
        lines.append(f"{local} = {text}")
        return local

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
            base = base if is_name(base) else self._named(args[0], base, lines)
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
            return marked(expression.args[0])
        if expression.op == "constant":
            return self._constant.format(expression.args[0])
        if id(expression) not in self._scalars:
            text = _render(expression.op, [self.scalar(arg) for arg in expression.args], self._scalar_calls)
            self._scalars[id(expression)] = self._hoist(text) if text.count("(") > _MOST_NESTED else text
        return self._scalars[id(expression)]

    def _hoist(self, text: str) -> str:
        return self.hoisted.setdefault(text, f"s{len(self.hoisted)}")


_MOST_NESTED = 150
"""Parentheses in an expression, above which it gets a line of its own: Python reads 200 that are nested, and no more."""


def _render(op: str, args: list[str], calls: Mapping[str, str]) -> str:
    if op in calls:
        return calls[op].format(*args)
    return f"({args[0]} {INFIX[op]} {args[1]})"


def is_costly(x: Expression) -> bool:
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
