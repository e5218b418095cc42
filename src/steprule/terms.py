"""What a formula's expressions are as a paper would write them: averages, norms and signs instead of what those are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steprule.trace.expression import Expression


@dataclass(frozen=True, eq=False)
class Term:
    """An expression in the shape in which it is printed. Terms that print alike are one object."""

    op: str
    args: tuple[Any, ...]
    scalar: bool


class Terms:
    """Makes terms of a formula's expressions: recognizes what the functions of `steprule.pieces` have become."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Term] = {}
        self._made: dict[tuple[Any, ...], Term] = {}
        self._of: dict[int, Term] = {}
        self._kept: list[Expression] = []  # so that no other expression gets its id

    def of(self, x: Expression) -> Term:
        """The term of an expression."""
        if id(x) not in self._of:
            self._kept.append(x)
            self._of[id(x)] = self._term(x)
        return self._of[id(x)]

    def _term(self, x: Expression) -> Term:
        value = x.args[0]
        if x.op == "constant" and value < 0:
            return self._make("neg", self._leaf("constant", -value, True))
        if x.op in ("input", "constant"):
            return self._leaf(x.op, value, x.scalar)
        args = (self.of(arg) if isinstance(arg, Expression) else self._leaf("text", arg, True) for arg in x.args)
        return self._make(x.op, *args)

    def _leaf(self, op: str, value: Any, scalar: bool) -> Term:
        return self._known.setdefault((op, repr(value)), Term(op, (value,), scalar))

    def _make(self, op: str, *args: Term) -> Term:
        key = (op, *map(id, args))
        if key not in self._made:
            self._made[key] = self._recognized(op, *args)
        return self._made[key]

    def _recognized(self, op: str, *args: Term) -> Term:
        match op, args:
            case "add", (avg, Term("mul", (Term("constant", (float() as share,)), Term("sub", (value, old))))) if old is avg and 0 < share < 1:  # fmt: skip
                past = self._leaf("constant", 1 - share, True)  # ema with a number for beta
                return self._make("add", self._make("mul", past, avg), self._make("mul", args[1].args[0], value))
            case "add", (avg, Term("mul", (Term("sub", (Term("constant", (1.0,)), beta)) as rest, Term("sub", (value, old))))) if old is avg:  # fmt: skip
                return self._make("add", self._make("mul", beta, avg), self._make("mul", rest, value))  # ema
            case "where", (Term("lt", (avg, Term("constant", (math.inf,)))), finite, Term("add", (old, _))) if old is avg:  # fmt: skip
                return finite  # ema_sq
            case "where", (Term("eq", (decay, Term("constant", (0.0,)))), x, Term("add" | "sub", (y, Term("mul", (factor, _)))) as decayed) if x is y and factor is decay:  # fmt: skip
                return decayed  # l2
            case "where", (Term("gt", (x, Term("constant", (0.0,)))), Term("constant", (1.0,)), Term("where", (Term("lt", (y, _)), Term("neg", (Term("constant", (1.0,)),)), z))) if x is y is z:  # fmt: skip
                return self._make("sign", x)
            case "where", (Term("eq", (x, y)), z, _) if x is y:
                return z  # x is not NaN
            case "where", (condition, x, y) if (certain := self._where(condition, x, {})) is not x:
                return self._make("where", condition, certain, y)
            case "where", (condition, x, y) if (certain := self._where(condition, y, {}, holds=False)) is not y:
                return self._make("where", condition, x, certain)
            case "maximum" | "minimum", (x, Term("constant", (tiny,)) | Term("neg", (Term("constant", (tiny,)),))) if 0 < tiny < 1e-200:  # fmt: skip
                return x  # x is not 0
            case "sub", (Term("constant", (1.0,)), Term("sub", (Term("constant", (1.0,)), Term() as x))):
                return x
            case "mul" | "div", (x, Term("constant", (1.0,))):
                return x
            case "mul", (Term("constant", (1.0,)), Term() as x):
                return x
            case "neg", (Term("neg", (Term() as x,)),):
                return x
            case "mul", (x, y) if x is y:
                return self._make("square", x)
            case "pow", (x, Term("constant", (2.0,))):
                return self._make("square", x)
            case "sqrt", (Term("total", (Term("square", (x,)),)),):
                return self._make("norm", x)
            case "div", (Term("total", (x,)), Term("input", ("numel",))):
                return self._make("mean", x)
            case "total_of_all", (Term("div", (x, Term("input", ("numel",)))) | Term("mean", (x,)),) if args[0].scalar:
                args = (x,)  # each element has its share of a number
            case "div", (Term("row_total", (x,)), Term("input", ("cols",))):
                return self._make("row_mean", x)
            case "div", (Term("col_total", (x,)), Term("input", ("rows",))):
                return self._make("col_mean", x)
            case "add" | "sub", (x, Term("neg", (y,))):
                return self._make("sub" if op == "add" else "add", x, y)
        scalar = op in ("total", "total_of_all", "norm", "mean") or all(arg.scalar for arg in args)
        return self._known.setdefault((op, *map(id, args)), Term(op, args, scalar))

    def _where(self, condition: Term, x: Term, known: dict[Term, Term], holds: bool = True) -> Term:
        """What x is where a condition holds, or where it does not, which says so already."""
        if x not in known:
            match x, condition:
                case Term("where", (same, value, other)), _ if same is condition:
                    known[x] = value if holds else other
                case Term("maximum", (value, bound)), Term("gt", (y, low)) if holds and value is y and bound is low:
                    known[x] = value
                case Term("input" | "constant" | "text" | "total" | "total_of_all" | "norm" | "mean"), _:
                    known[x] = x
                case _:
                    known[x] = self._make(x.op, *(self._where(condition, arg, known, holds) for arg in x.args))
        return known[x]


def parts_of(term: Term, seen: set[Term]) -> Iterator[Term]:
    """The operations of a term, each once and after its arguments, without those that have been seen."""
    if term not in seen and term.op not in ("input", "constant", "text"):
        seen.add(term)
        for arg in term.args:
            yield from parts_of(arg, seen)
        yield term
