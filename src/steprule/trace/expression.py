"""What formulas are made of: an operation on other expressions, an input or a constant, and what an expression refuses.

An expression knows whether it depends on the elements or only on hyperparameters and the step; the
latter, the scalars, are computed in float64 once a step, whatever the elements' dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from steprule.trace.extent import COLS, ELEMENTS, NUMBER, ROWS, Extent, instead_of_joined, instead_of_product, join
from steprule.trace.extent import shown as shown_extent
from steprule.trace.instead import ROUNDING, SHAPES, SUMS, TRUTH, instead_of
from steprule.trace.places import place_now, refuse


class Expression:
    """A node of a formula: an operation on other nodes, an input or a constant.

    Attributes:
        op: "input", "constant" or the operation's name.
        args: an input's name, a constant's value or the operands.
        extent: what it has a value for.
        depth: how many operations are nested in it.
        place: the line of the rule where it is written, of `GIVEN_NUMBERS` and of scalars of `MAY_BE_NONE`; otherwise empty.
    """

    __slots__ = ("args", "depth", "extent", "op", "place")

    def __init__(self, op: str, args: tuple[Any, ...], extent: Extent, depth: int = 0) -> None:
        self.op = op
        self.args = args
        self.extent = extent
        self.depth = depth
        self.place = ""

    @property
    def scalar(self) -> bool:
        """Whether it is one number for a tensor."""
        return self.extent == NUMBER

    def __repr__(self) -> str:
        return shown(self)

    def __steprule__(self, name: str, *values: Any) -> Expression:
        return node(name, *values)

    def __add__(self, other: Any) -> Expression:
        return node("add", self, other)

    def __radd__(self, other: Any) -> Expression:
        return node("add", other, self)

    def __sub__(self, other: Any) -> Expression:
        return node("sub", self, other)

    def __rsub__(self, other: Any) -> Expression:
        return node("sub", other, self)

    def __mul__(self, other: Any) -> Expression:
        return node("mul", self, other)

    def __rmul__(self, other: Any) -> Expression:
        return node("mul", other, self)

    def __truediv__(self, other: Any) -> Expression:
        return node("div", self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return node("div", other, self)

    def __pow__(self, other: Any) -> Expression:
        return node("pow", self, other)

    def __rpow__(self, other: Any) -> Expression:
        return node("pow", other, self)

    def __neg__(self) -> Expression:
        return node("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return node("abs", self)

    def __lt__(self, other: Any) -> Expression:
        return node("lt", self, other)

    def __le__(self, other: Any) -> Expression:
        return node("le", self, other)

    def __gt__(self, other: Any) -> Expression:
        return node("gt", self, other)

    def __ge__(self, other: Any) -> Expression:
        return node("ge", self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return node("eq", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return node("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Expression:
        return node("and", self, other)

    def __or__(self, other: Any) -> Expression:
        return node("or", self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Expression:
        return node("not", self)

    # What a rule may not do, each with what to write instead.

    def __bool__(self) -> NoReturn:
        instead = "where(condition, a, b) instead of if, and, or, not, min or max"
        if reads(self, ("step",)):
            instead += ", or at_first(step, first, later)"
        if self.scalar:
            instead += "; only a hyperparameter whose default is True or False may be branched on"
        refuse("branches on a number", instead)

    def __float__(self) -> NoReturn:
        schedule = ""
        if self.scalar:
            schedule = "; other functions of the step belong outside the formula, as in lr=lambda step: 0.1 / step"
        refuse(
            "turns a symbol into one number", f"the functions of steprule.pieces instead of math's or float(){schedule}"
        )

    def __int__(self) -> NoReturn:
        refuse("turns a symbol into an integer", ROUNDING)

    def __index__(self) -> NoReturn:
        refuse(
            "counts or indexes with a symbol", "a number, as in range(5): loops are unrolled, once and for all steps"
        )

    def __iter__(self) -> NoReturn:
        refuse("loops over elements", SUMS)

    def __len__(self) -> NoReturn:
        refuse("asks for a length", SHAPES)

    def __getitem__(self, _: Any) -> NoReturn:
        refuse("indexes an operand", f"where(condition, a, b) to choose elements, or {SUMS}")

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> NoReturn:
        refuse(f"calls numpy.{ufunc.__name__}", instead_of(ufunc.__name__))

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        refuse(f"calls numpy.{function.__name__}", instead_of(function.__name__))

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> NoReturn:
        name = getattr(function, "__name__", str(function))
        refuse(f"calls torch.{name}", instead_of(name))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        refuse(f"asks an operand for .{name}", instead_of(name))

    def __matmul__(self, other: Any) -> Expression:
        return node("matmul", self, other)

    def __rmatmul__(self, other: Any) -> Expression:
        return node("matmul", other, self)

    def _round(self, *_: Any) -> NoReturn:
        refuse("rounds elements or takes a remainder", ROUNDING)

    def _bits(self, *_: Any) -> NoReturn:
        refuse("works on bits", "2**n times a number, or a formula without it")

    def _in_place(self, *_: Any) -> NoReturn:
        what = "a number" if self.scalar else "an operand"
        refuse(f"changes {what} in place", "avg = avg + x instead of avg += x, where(condition, a, b) for a part")

    def __format__(self, how: str) -> str:
        if how:
            refuse(f"formats {shown(self)} by {how!r}", "print(x): there is no number yet, and it shows the formula")
        return str(self)

    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _round
    __round__ = __floor__ = __ceil__ = __trunc__ = _round
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __xor__ = __rxor__ = _bits
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __ifloordiv__ = __imod__ = __imatmul__ = _in_place
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = __setitem__ = __delitem__ = _in_place


def node(op: str, *args: Any) -> Expression:
    """An operation on operands, simplified where one of them is 0; of pieces that are given numbers, and what may be no number, with its place."""
    made = _node(op, *args)
    if op in GIVEN_NUMBERS or (op in MAY_BE_NONE and made.scalar):
        made.place = place_now()
    return made


def _node(op: str, *args: Any) -> Expression:
    if op in ("rows", "cols", "size"):
        return _count(op, *args)
    if op == "polar":
        return _polar(*args)
    if op == "every":
        return _every(*args)
    operands = tuple(arg if isinstance(arg, Expression) else constant(arg) for arg in args)
    if op == "total_of_all":
        return _total_of_all(operands[0])
    if op == "total" and operands[0].scalar:
        return operands[0]
    depth = max(operand.depth for operand in operands) + _DEPTHS.get(op, 1)
    if op in SUM_OPS or op in MATRIX_OPS:
        return Expression(op, operands, _reduced(op, operands), depth)
    extent = join(operand.extent for operand in operands)
    if op == "top_share" and (operands[0].extent not in (ROWS, COLS) or not operands[1].scalar):
        refuse(
            f"asks top_share of {shown_extent(operands[0].extent)}",
            "top_share(x, share) of a value for each row or column, and a number",
        )
    if extent is None:
        parts = " and ".join(shown_extent(operand.extent) for operand in operands if not operand.scalar)
        refuse(f"joins values that do not broadcast, {parts}, by {op}", instead_of_joined(operations(operands)))
    zeros = [x.op == "constant" and x.args[0] == 0 for x in operands]
    if op == "mul" and any(zeros):  # of a decay that is off
        return constant(0.0)
    if op in ("add", "sub") and zeros[1]:
        return operands[0]
    if op in _LOGIC and not all(map(_is_truth, operands)):
        refuse("joins numbers by &, | or ~", f"{TRUTH}; comparisons need their parentheses")
    if op in ("add", "sub", "neg") and all(map(_is_truth, operands)):
        refuse("adds, subtracts or negates comparisons", "where(condition, 1.0, 0.0), which is a number")
    if op == "floor" and not operands[0].scalar:
        refuse("takes the floor of elements", "a formula without it: only hyperparameters and the step have floors")
    if op == "arctan2" and extent == NUMBER:
        refuse("takes the arctangent of hyperparameters alone", "a formula without it: only elements have arctangents")
    return Expression(op, operands, extent, depth)


SUM_OPS = frozenset(("total", "total_of_all", "row_total", "col_total", "row_largest", "col_largest"))
"""What makes one number of the elements of all, of each row or of each column."""
MATRIX_OPS = frozenset(
    ("polar", "decorrelate", "matmul", "gram", "transpose", "eigenbasis", "inverse_root", "largest_eigenvalue", "every")
)
"""What looks at a tensor as a matrix, or only in some steps, and cannot be computed element by element."""
GIVEN_NUMBERS = frozenset(("every", "polar", "decorrelate", "inverse_root", "top_share"))
"""Pieces that are given numbers besides a matrix, not all of which mean something."""
MAY_BE_NONE = frozenset(("div", "exp", "log", "pow", "sqrt"))
"""What may make infinity or NaN of finite numbers."""
_DEPTHS = {"cbrt": 8, "arctan2": 8}
"""Of operations that kernels write out in others: how deep their operands are in those."""
_LOGIC = ("and", "or", "not")


def _count(op: str, x: Any) -> Expression:
    """How many rows, columns or elements there are."""
    extent = x.extent if isinstance(x, Expression) else NUMBER
    if op == "size" and extent == ELEMENTS:
        return Expression("input", ("numel",), NUMBER)
    if op != "size" and extent == NUMBER:
        refuse(f"asks {op} of one number", f"{op}(x) of a value for each element")
    sides = {"rows": extent[:1], "cols": extent[1:]}.get(op, extent)
    counts = [Expression("input", ({"m": "rows", "n": "cols"}[side],), NUMBER) for side in sides if side != "1"]
    return counts[0] * counts[1] if len(counts) == 2 else counts[0] if counts else constant(1.0)


def _total_of_all(x: Expression) -> Expression:
    """A sum over all tensors: of what has fewer values than a tensor has elements, each element has its share."""
    if x.extent != ELEMENTS:
        share, grad = node("total", x) / node("size", _GRAD), _GRAD
        x = node("where", grad == grad, share, share)  # which depends on no element, and has a value for each
    return Expression("total_of_all", (x,), NUMBER, x.depth + 1)


_GRAD = Expression("input", ("grad",), ELEMENTS)


def _polar(x: Any, coefficients: Any, steps: Any, eps: Any) -> Expression:
    """A polar factor: its numbers may be hyperparameters, and a set of coefficients is a word or what a kernel has to know."""
    is_one = isinstance(coefficients, (tuple, list)) and not isinstance(coefficients[0], (tuple, list))
    words = () if is_one else (coefficients,)
    numbers = (steps, eps, *coefficients) if is_one else (steps, eps)
    x = x if isinstance(x, Expression) else constant(x)
    args = (x, *(one if one is None else one if isinstance(one, Expression) else constant(one) for one in numbers))
    return Expression("polar", (*args, *words), _reduced("polar", (x,)), x.depth + 1)


def _every(k: Any, step: Any, new: Any, old: Any, stagger: bool) -> Expression:
    """What is computed anew in some steps: the numbers that say in which must be known before the step."""
    operands = [x if isinstance(x, Expression) else constant(x) for x in (k, step, new, old)]
    for what, x in zip(("k", "step"), operands, strict=False):
        if (
            not x.scalar
            or not inputs_of(x).isdisjoint(("numel", "rows", "cols"))
            or not SUM_OPS.isdisjoint(operations([x]))
        ):
            refuse(
                f"gives every() a {what} that is {shown(x)}",
                "every(k, step, new, old) with a hyperparameter or a number, and step",
            )
    if operands[2].extent != operands[3].extent:
        both = " and ".join(shown_extent(x.extent) for x in operands[2:])
        refuse(f"gives every() {both}", "every(k, step, new, old) with two values of one shape")
    return Expression("every", (*operands, bool(stagger)), operands[3].extent, max(x.depth for x in operands) + 1)


def _reduced(op: str, operands: tuple[Expression, ...]) -> Extent:
    """What a sum, or a function of matrices, has a value for."""
    (rows, cols), *others = [operand.extent for operand in operands]
    if op == "total":
        return NUMBER
    if op == "transpose":
        return cols, rows
    if op == "matmul":
        inner, last = others[0]
        if cols != inner or "1" in (rows, cols, last):
            refuse(f"multiplies {rows} x {cols} by {inner} x {last}", instead_of_product((rows, cols), (inner, last)))
        return rows, last
    added = {"row": cols, "col": rows}.get(op.split("_")[0])
    if added == "1" or (added is None and "1" in (rows, cols)):
        refuse(f"asks {op} of {shown_extent((rows, cols))}", f"{op}(x) of a value for each element")
    if op in ("eigenbasis", "inverse_root", "largest_eigenvalue") and rows != cols:
        refuse(f"asks {op} of {shown_extent((rows, cols))}", f"{op}(x) of a square matrix, such as gram(x)")
    return {"row": (rows, "1"), "col": ("1", cols), "gram": (rows, rows)}.get(op.split("_")[0], (rows, cols))


def _is_truth(x: Expression) -> bool:
    """Whether it is true or false, and no number."""
    if x.op == "where":
        return all(map(_is_truth, x.args[1:]))
    return x.op in ("lt", "le", "gt", "ge", "eq", "ne", *_LOGIC) or (x.op == "constant" and isinstance(x.args[0], bool))


def constant(value: Any) -> Expression:
    """A number as an expression."""
    try:
        return Expression("constant", (value if isinstance(value, bool) else float(value),), NUMBER)
    except (TypeError, ValueError):
        unpack = "its elements: beta1, beta2 = betas" if isinstance(value, tuple) else ""
        refuse(f"computes with {value!r}", unpack or "numbers, operands and hyperparameters only")


_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
    "ne": "!=", "and": "&", "or": "|",
}  # fmt: skip


def shown(x: Any, depth: int = 3) -> str:
    """An expression as a rule would write it, without what is nested deeper than that."""
    if not isinstance(x, Expression) or x.op in ("input", "constant"):
        return str(x.args[0] if isinstance(x, Expression) else x)
    if not depth:
        return "..."
    args = [shown(arg, depth - 1) for arg in x.args]
    if x.op not in _SIGNS:
        return f"{x.op}({', '.join(args)})"
    fenced = [
        f"({text})" if " " in text and getattr(arg, "op", "") in _SIGNS else text
        for arg, text in zip(x.args, args, strict=True)
    ]
    return f" {_SIGNS[x.op]} ".join(fenced)


def reads(x: Expression, names: tuple[str, ...]) -> bool:
    """Whether any of these inputs is a part of an expression."""
    return not inputs_of(x).isdisjoint(names)


def inputs_of(x: Expression) -> set[str]:
    """The inputs that an expression is made of."""
    return {one.args[0] for one in nodes_of([x]) if one.op == "input"}


def operations(expressions: Iterable[Expression]) -> set[str]:
    """What these are made of: the operations, and "input" and "constant"."""
    return {one.op for one in nodes_of(expressions)}


def nodes_of(expressions: Iterable[Expression]) -> list[Expression]:
    """All that these are made of, each once."""
    found: dict[int, Expression] = {}
    waiting = list(expressions)
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += [arg for arg in one.args if isinstance(arg, Expression)]
    return list(found.values())


def scalar_name(name: str, index: int | None) -> str:
    """What a hyperparameter, or an element of one, is called in an expression."""
    return name if index is None else f"{name}_{index}"
