"""How far rounding may take an engine from the float64 oracle: a running error bound over the traced formula."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from steprule.engine.trace import Expression, Formula

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}


class Bound:
    """Evaluates expressions in extended precision, with a bound on what arithmetic of `real` may do to them."""

    def __init__(self, inputs: Mapping[str, np.ndarray | float], real: str) -> None:
        self.inputs = inputs
        self.unit, self.tiny = UNIT[real], TINY[real]
        self.memo: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def output(self, formula: Formula, name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """The exact new value of an operand and how far a stored one may be from it."""
        value, error = self(formula.outputs[name])
        return value, error + np.abs(value) * UNIT[dtype] + TINY[dtype]

    def __call__(self, node: Expression) -> tuple[np.ndarray, np.ndarray]:
        if id(node) not in self.memo:
            with np.errstate(all="ignore"):
                self.memo[id(node)] = self._evaluate(node)
        return self.memo[id(node)]

    def _rounded(self, value: np.ndarray, error: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        return value, error + np.abs(value) * self.unit + self.tiny

    def _evaluate(self, node: Expression) -> tuple[np.ndarray, np.ndarray]:
        if node.op == "input" and not node.scalar:
            value = np.asarray(self.inputs[node.args[0]], np.longdouble)
            return value, np.zeros_like(value)
        if node.scalar:  # computed in float64, rounded once
            return self._rounded(np.asarray(self._scalar(node), np.longdouble), 0.0)
        (a, ea), *rest = [self(arg) for arg in node.args]
        if not rest:
            if node.op == "sqrt":
                root = np.sqrt(a)
                return self._rounded(root, np.minimum(ea / root, np.sqrt(ea)))
            return {"neg": -a, "abs": np.abs(a)}[node.op], ea
        (b, eb), *rest = rest
        if node.op == "add":
            return self._rounded(a + b, ea + eb)
        if node.op == "sub":
            return self._rounded(a - b, ea + eb)
        if node.op == "mul":
            return self._rounded(a * b, np.abs(a) * eb + np.abs(b) * ea + ea * eb)
        if node.op == "div":
            quotient, room = a / b, np.abs(b) - eb
            error = np.where(room > 0, (ea + np.abs(quotient) * eb) / room, np.inf)
            return self._rounded(quotient, error + np.abs(quotient) * self.unit)  # or times a rounded reciprocal
        if node.op in ("maximum", "minimum"):
            return getattr(np, node.op)(a, b), np.maximum(ea, eb)
        if node.op in ("lt", "gt"):
            unsure = np.abs(a - b) <= ea + eb
            return (a < b if node.op == "lt" else a > b), unsure.astype(float)
        if node.op == "where":
            c, ec = rest[0]
            chosen, other = np.where(a, b, c), np.where(a, c, b)
            error = np.where(a, eb, ec)
            return chosen, np.where(ea > 0, np.abs(chosen - other) + eb + ec, error)
        raise NotImplementedError(node.op)

    def _scalar(self, node: Expression) -> float:
        if node.op == "input":
            return float(self.inputs[node.args[0]])  # type: ignore[arg-type]
        if node.op == "constant":
            return float(node.args[0])
        if node.op == "where":
            return self._scalar(node.args[1] if self._scalar(node.args[0]) else node.args[2])
        args = [self._scalar(arg) for arg in node.args]
        operations = {
            "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
            "pow": lambda a, b: a**b, "neg": lambda a: -a, "eq": lambda a, b: a == b, "sqrt": np.sqrt,
        }  # fmt: skip
        return operations[node.op](*args)
