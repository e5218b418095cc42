"""How far rounding may take an engine from the float64 oracle: a running error bound over the traced formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression
from steprule.trace.extent import NUMBER
from steprule.trace.program import Program

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}

LIBRARY = ("pow", "exp", "log")
"""What a mathematical library computes, each on its own: vector libraries promise four units in the last place."""

Pair = tuple[np.ndarray, np.ndarray]
"""An exact value, and how far from it a computed one may be."""

_COMPARE: dict[str, Any] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip


class Bound:
    """Evaluates expressions in extended precision, with a bound on what arithmetic of `real` may do to them.

    What no element changes is computed in float64 and rounded once, and taken as exact in float64, unless it is made of
    a sum over elements or of what libraries round differently.

    Args:
        formula: whose expressions.
        inputs: the operands, the hyperparameters, the step, the scalar states and "numel" by name.
        real: the dtype of the arithmetic.
        kept: the dtype of each scalar state.
    """

    def __init__(
        self, formula: Program, inputs: Mapping[str, np.ndarray | float], real: str, kept: Mapping[str, str]
    ) -> None:
        self.formula, self.inputs, self.kept = formula, inputs, kept
        self.real = real
        self.memo: dict[tuple[int, bool], Pair] = {}
        self.own: dict[str, Pair] = {}

    def output(self, name: str, dtype: str) -> Pair:
        """The exact new value of an operand and how far a stored one may be from it."""
        if name in self.formula.numbers:
            return self._own(f"new_{name}")
        return self._rounded(*self(self.formula.last.outputs[name]), dtype)

    def __call__(self, node: Expression) -> Pair:
        """An expression's value as an element's."""
        if node.scalar:
            value, error = self._number(node)
            return (value, error) if value.dtype == bool else self._rounded(value, error, self.real)
        return self._remembered(node, self, self.real)

    def _number(self, node: Expression) -> Pair:
        """A scalar's value in float64."""
        if node.op == "constant":
            return np.asarray(node.args[0]), np.zeros(())
        if node.op == "input":
            name = node.args[0]
            return self._own(name) if name not in self.inputs else (np.asarray(self.inputs[name]), np.zeros(()))
        if node.op in LIBRARY:
            value, error = self._remembered(node, self._number, "float64")
            if value in (0.0, 1.0) and not any(self._number(arg)[1] for arg in node.args):
                return value, np.zeros(())  # 0**x, 1**x, x**0, exp(0) and log(1), on which all agree
            return value, np.where(np.isinf(value), 0.0, error + np.abs(value) * 8 * UNIT["float64"])
        args = [self._number(arg) for arg in node.args]
        if not any(error for _, error in args):
            inputs = {str(i): value for i, (value, _) in enumerate(args)}
            operands = tuple(Expression("input", (i,), NUMBER) for i in inputs)
            with np.errstate(all="ignore"):
                return np.asarray(Evaluation(inputs)(Expression(node.op, operands, NUMBER))), np.zeros(())
        return self._remembered(node, self._number, "float64")

    def _own(self, name: str) -> Pair:
        """A sum over elements, or the new value of a scalar state."""
        if name not in self.own:
            if name in self.formula.sums:
                values, errors = self(self.formula.sums[name].expression)
                rounding = values.size * np.abs(values) * UNIT["float64"]
                self.own[name] = values.sum(), (errors + rounding).sum()
            else:
                state = name.removeprefix("new_")
                value, error = self._number(self.formula.numbers[state])
                dtype = self.kept[state]
                stored = np.asarray(value.astype(dtype), np.float64)
                self.own[name] = (stored, error) if not error else self._rounded(value, error, dtype)
        return self.own[name]

    def _remembered(self, node: Expression, evaluate: Any, real: str) -> Pair:
        key = id(node), evaluate is self
        if key not in self.memo:
            with np.errstate(all="ignore"):
                self.memo[key] = self._evaluate(node, evaluate, real)
        return self.memo[key]

    @staticmethod
    def _rounded(value: np.ndarray, error: np.ndarray | float, real: str) -> Pair:
        value = np.asarray(value, np.longdouble)
        return value, np.where(np.isinf(value), 0.0, error + np.abs(value) * UNIT[real] + TINY[real])

    def _evaluate(self, node: Expression, evaluate: Any, real: str) -> Pair:
        op = node.op
        if op == "input":
            value = np.asarray(self.inputs[node.args[0]], np.longdouble)
            return value, np.zeros_like(value)
        pairs = [evaluate(arg) for arg in node.args]
        (a, ea), (b, eb) = pairs[0], pairs[min(1, len(pairs) - 1)]
        if op in ("neg", "abs"):
            return (-a if op == "neg" else np.abs(a)), ea
        if op == "not":
            return ~a, ea
        if op == "sqrt":
            root = np.sqrt(a)
            return self._rounded(root, np.fmin(ea / root, np.sqrt(ea)), real)
        if op in ("add", "sub"):
            return self._rounded(a + b if op == "add" else a - b, ea + eb, real)
        if op == "mul":
            return self._rounded(a * b, np.abs(a) * eb + np.abs(b) * ea + ea * eb, real)
        if op == "div":
            quotient, room = a / b, np.abs(b) - eb
            error = np.where(room > 0, (ea + np.abs(quotient) * eb) / room, np.inf)
            return self._rounded(quotient, error + np.abs(quotient) * UNIT[real], real)  # or times a rounded reciprocal
        if op in ("maximum", "minimum"):
            choose = getattr(np, op)
            chosen = choose(a, b)
            return chosen, np.fmax(choose(a + ea, b + eb) - chosen, chosen - choose(a - ea, b - eb))
        if op in _COMPARE:
            unsure = (np.abs(a - b) <= ea + eb) & (ea + eb > 0) & (node.args[0] is not node.args[1])
            return _COMPARE[op](a, b), unsure.astype(float)
        if op in ("and", "or"):
            decides = op == "or"  # what settles it whatever the other says
            settled = (np.equal(a, decides) & (ea == 0)) | (np.equal(b, decides) & (eb == 0))
            return (a & b if op == "and" else a | b), np.where(settled, 0.0, np.maximum(ea, eb))
        if op == "where":
            c, ec = pairs[2]
            chosen, other = np.where(a, b, c), np.where(a, c, b)
            return chosen, np.where(ea > 0, np.abs(chosen - other) + eb + ec, np.where(a, eb, ec))
        if op == "arctan2":
            size, room = np.hypot(a, b), np.hypot(a, b) - np.hypot(ea, eb)
            sine = (np.abs(a) * eb + np.abs(b) * ea) / (size * room)  # of the angle between the exact point and another
            error = np.where((room > 0) & (sine < 1), np.arcsin(np.minimum(sine, 1)), np.pi)
            error = np.where(((ea == 0) & (eb == 0)) | np.isinf(size), 0.0, error)
            value, error = self._rounded(np.arctan2(a, b), error, real)
            return value, error + np.abs(value) * 5 * UNIT[real]  # three units in the last place
        function = {
            "exp": np.exp,
            "cbrt": np.cbrt,
            "log": np.log,
            "floor": np.floor,
            "pow": lambda x: x ** np.longdouble(b),
        }.get(op)
        if function is None or (op == "pow" and np.any(eb > 0)):
            raise NotImplementedError(op)
        ends = [np.abs(function(np.maximum(a + side * ea, 0.0) if op in ("log", "pow", "cbrt") else a + side * ea) - function(a))
                for side in (-1, 1)]  # fmt: skip
        value, error = self._rounded(function(a), np.maximum(*ends), real)
        units = 5 if op == "cbrt" else 1  # three units in the last place; libraries' are right to one place more
        return value, error + np.abs(value) * units * UNIT[real]
