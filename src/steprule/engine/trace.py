"""Turns a rule's formula into an expression, by calling it once with symbols instead of numbers.

An expression knows whether it depends on the elements or only on hyperparameters and the step; the
latter, the scalars, are computed in float64 once a step, whatever the elements' dtype.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from traceback import walk_tb
from types import CodeType
from typing import Any, NoReturn

from steprule import pieces
from steprule.engine.instead import PRODUCTS, ROUNDING, SUMS, TRUTH, instead_of, with_pieces
from steprule.pieces import abs, where
from steprule.rule import Rule, RuleError

_ENGINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_EVALUATE = Rule.evaluate.__code__


class Expression:
    """A node of a formula: an operation on other nodes, an input or a constant.

    Attributes:
        op: "input", "constant" or the operation's name.
        args: an input's name, a constant's value or the operands.
        scalar: whether it is the same for all elements.
    """

    __slots__ = ("args", "op", "scalar")

    def __init__(self, op: str, args: tuple[Any, ...], scalar: bool) -> None:
        self.op = op
        self.args = args
        self.scalar = scalar

    def __steprule__(self, name: str, *values: Any) -> Expression:
        return _node(name, *values)

    def __add__(self, other: Any) -> Expression:
        return _node("add", self, other)

    def __radd__(self, other: Any) -> Expression:
        return _node("add", other, self)

    def __sub__(self, other: Any) -> Expression:
        return _node("sub", self, other)

    def __rsub__(self, other: Any) -> Expression:
        return _node("sub", other, self)

    def __mul__(self, other: Any) -> Expression:
        return _node("mul", self, other)

    def __rmul__(self, other: Any) -> Expression:
        return _node("mul", other, self)

    def __truediv__(self, other: Any) -> Expression:
        return _node("div", self, other)

    def __rtruediv__(self, other: Any) -> Expression:
        return _node("div", other, self)

    def __pow__(self, other: Any) -> Expression:
        return _node("pow", self, other)

    def __rpow__(self, other: Any) -> Expression:
        return _node("pow", other, self)

    def __neg__(self) -> Expression:
        return _node("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return _node("abs", self)

    def __lt__(self, other: Any) -> Expression:
        return _node("lt", self, other)

    def __le__(self, other: Any) -> Expression:
        return _node("le", self, other)

    def __gt__(self, other: Any) -> Expression:
        return _node("gt", self, other)

    def __ge__(self, other: Any) -> Expression:
        return _node("ge", self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return _node("eq", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return _node("ne", self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Expression:
        return _node("and", self, other)

    def __or__(self, other: Any) -> Expression:
        return _node("or", self, other)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Expression:
        return _node("not", self)

    # What a rule may not do, each with what to write instead.

    def __bool__(self) -> NoReturn:
        instead = "where(condition, a, b) instead of if, and, or, not, min or max"
        if _reads(self, ("step",)):
            instead += ", or at_first(step, first, later)"
        if self.scalar:
            instead += "; only a hyperparameter whose default is True or False may be branched on"
        _refuse("branches on a number", instead)

    def __float__(self) -> NoReturn:
        _refuse("turns a symbol into one number", "the functions of steprule.pieces instead of math's or float()")

    __int__ = __index__ = __float__

    def __iter__(self) -> NoReturn:
        _refuse("loops over elements", "the formula of one element")

    def __len__(self) -> NoReturn:
        _refuse("asks for a length", "the formula of one element")

    def __getitem__(self, _: Any) -> NoReturn:
        _refuse("indexes an operand", "the formula of one element")

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> NoReturn:
        _refuse(f"calls numpy.{ufunc.__name__}", instead_of(ufunc.__name__))

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        _refuse(f"calls numpy.{function.__name__}", instead_of(function.__name__))

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> NoReturn:
        name = getattr(function, "__name__", str(function))
        _refuse(f"calls torch.{name}", instead_of(name))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f"asks an operand for .{name}", instead_of(name))

    def __matmul__(self, _: Any) -> NoReturn:
        _refuse("multiplies matrices", PRODUCTS)

    def _round(self, *_: Any) -> NoReturn:
        _refuse("rounds elements or takes a remainder", ROUNDING)

    def _bits(self, *_: Any) -> NoReturn:
        _refuse("works on bits", "2**n times a number, or a formula without it")

    def _in_place(self, *_: Any) -> NoReturn:
        _refuse("changes an operand in place", "avg = avg + x instead of avg += x, where(condition, a, b) for a part")

    __rmatmul__ = __matmul__
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = _round
    __round__ = __floor__ = __ceil__ = __trunc__ = _round
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __xor__ = __rxor__ = _bits
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __ifloordiv__ = __imod__ = __imatmul__ = _in_place
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = __setitem__ = __delitem__ = _in_place


def _node(op: str, *args: Any) -> Expression:
    if op == "size":
        return Expression("input", ("numel",), True)
    operands = tuple(arg if isinstance(arg, Expression) else _constant(arg) for arg in args)
    if op in _SUMS:
        return Expression(op, operands, True)
    zeros = [x.op == "constant" and x.args[0] == 0 for x in operands]
    if op == "mul" and any(zeros):  # of a decay that is off
        return _constant(0.0)
    if op in ("add", "sub") and zeros[1]:
        return operands[0]
    if op in _LOGIC and not all(map(_is_truth, operands)):
        _refuse("joins numbers by &, | or ~", f"{TRUTH}; comparisons need their parentheses")
    if op == "floor" and not operands[0].scalar:
        _refuse("takes the floor of elements", "a formula without it: only hyperparameters and the step have floors")
    is_scalar = all(operand.scalar for operand in operands)
    if op == "arctan2" and is_scalar:
        _refuse("takes the arctangent of hyperparameters alone", "a formula without it: only elements have arctangents")
    return Expression(op, operands, is_scalar)


_SUMS = ("total", "total_of_all")
_LOGIC = ("and", "or", "not")


def _is_truth(x: Expression) -> bool:
    """Whether it is true or false, and no number."""
    if x.op == "where":
        return all(map(_is_truth, x.args[1:]))
    return x.op in ("lt", "le", "gt", "ge", "eq", "ne", *_LOGIC) or (x.op == "constant" and isinstance(x.args[0], bool))


def _constant(value: Any) -> Expression:
    try:
        return Expression("constant", (value if isinstance(value, bool) else float(value),), True)
    except (TypeError, ValueError):
        _refuse(f"computes with {value!r}", "numbers, operands and hyperparameters only")


def _refuse(what: str, instead: str) -> NoReturn:
    """Raises for the line of the rule (not of this package) that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_code):
        frame = frame.f_back
    place = _place(frame.f_code, frame.f_lineno)
    raise RuleError(f"a rule {what}, which an elementwise formula cannot ({place}). Write {instead}.")


def _is_ours(code: CodeType) -> bool:
    """Whether it is what rules are read with, and no rule."""
    return code.co_filename.startswith(_ENGINE) or code.co_filename == pieces.__file__


def _place(code: CodeType, line: int) -> str:
    return f"{code.co_filename}:{line}, in {code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"


def _ask(rule: type[Rule], *arguments: Any) -> tuple[Any, ...]:
    """What the formula returns; what it stumbles over is told with its line."""
    try:
        return rule.evaluate(*arguments)
    except RuleError:
        raise
    except Exception as error:
        frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
        places = [_place(*one) for one in frames if not _is_ours(one[0]) and one[0] is not _EVALUATE]
        hint = f". Write {with_pieces(SUMS)}" if str(error).startswith(("mean()", "total()", "norm()")) else ""
        where_ = places[-1] if places else rule.__name__
        raise RuleError(f"{rule.__name__}.update: {type(error).__name__}: {error} ({where_}){hint}") from error


_steady: dict[Any, Sequence[Any]] = {}
"""What formulas returned, by rule and flags: kernels that were made of it are used again."""


def _check_steady(rule: type[Rule], first: Sequence[Any], second: Sequence[Any]) -> None:
    """Raises for a formula that is another one when it is asked for again: what made it so would be frozen in a kernel."""
    seen: set[tuple[int, int]] = set()
    pairs = [*zip(reversed(first), reversed(second), strict=True)]
    while pairs:
        one, other = pairs.pop()
        if (id(one), id(other)) in seen or one is other:
            continue
        seen.add((id(one), id(other)))
        if isinstance(one, Expression) and isinstance(other, Expression):
            if one.op == other.op and len(one.args) == len(other.args):
                pairs += zip(reversed(one.args), reversed(other.args), strict=True)
                continue
            change = f"{_word(one)} became {_word(other)}"
        elif repr(one) == repr(other):
            continue
        else:
            change = f"{_word(one)} became {_word(other)}"
        code = rule.function().__code__
        raise RuleError(
            f"{rule.__name__}.update is not the same formula when it is asked for twice: {change} "
            f"({code.co_filename}:{code.co_firstlineno}). What changes between steps must be a state, a hyperparameter or "
            "depend on step; rules have no random numbers. Where what it uses was defined anew, define the rule anew too."
        )


def _word(value: Any) -> str:
    if not isinstance(value, Expression):
        return str(value)
    return str(value.args[0]) if value.op in ("constant", "input") else f"an operation {value.op!r}"


@dataclass(frozen=True)
class Formula:
    """A traced rule: what each operand becomes.

    Attributes:
        operands: "param", "grad" and the states that exist, in order.
        scalars: the hyperparameters as (name, index) pairs, index None for plain numbers; step apart.
        outputs: for "param" and each state that exists, its new value.
        nonnegative: the states that are seen to stay at 0 or above: sums, averages and maxima of squares, and such.
        extreme: the running maxima and minima among the states, and those that they are compared with.
        factor: whether there is a ``grad_factor``, a number that each tensor or row has for itself.
        by_row: whether it is each row that has one.
        counted: what is 1 where an element counts as zeroed and 0 elsewhere, or None.
        gathered: "grad", "update" and "param" as telemetry wants them, or none.
        own: the numbers that each tensor has for itself besides the step, all of them scalars: "numel", how many
            elements it has; its scalar states, and as "new_..." their new values; its sums.
        levels: of each of these, how many readings of the elements go before it.
        scalar_outputs: for each scalar state its new value.
        sums: the sums over elements by name.
        readings: the formulas of the readings, each with what it sums up and no outputs.
    """

    operands: tuple[str, ...]
    scalars: tuple[tuple[str, int | None], ...]
    outputs: dict[str, Expression]
    nonnegative: frozenset[str]
    extreme: frozenset[str] = frozenset()
    factor: bool = False
    by_row: bool = False
    counted: Expression | None = None
    gathered: dict[str, Expression] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    levels: dict[str, int] = field(default_factory=dict)
    scalar_outputs: dict[str, Expression] = field(default_factory=dict)
    sums: dict[str, Sum] = field(default_factory=dict)
    readings: tuple[Formula, ...] = ()


@dataclass(frozen=True)
class Sum:
    """A sum over elements.

    Attributes:
        expression: of what.
        of_all: whether it is over the elements of all tensors, and not of each.
    """

    expression: Expression
    of_all: bool


@dataclass(frozen=True)
class Services:
    """What a pass does besides the rule's formula.

    Attributes:
        factor: multiplies the gradient by a number: "tensor" for one a tensor, "row" for one a row, "" for none.
        limit: keeps it within the hyperparameter ``clip_value`` of 0.
        zero: puts 0 in place of its elements that are not finite, and counts them.
        average: moves the state ``param_average`` towards the new parameter by the share ``average_weight``.
        gather: collects telemetry.
    """

    factor: str = ""
    limit: bool = False
    zero: bool = False
    average: bool = False
    gather: bool = False


NO_SERVICES = Services()


def trace(
    rule: type[Rule], hyper: Mapping[str, Any], maximize: bool = False, services: Services = NO_SERVICES
) -> Formula:
    """Calls the rule's formula with symbols.

    Args:
        rule: the rule.
        hyper: a value for each hyperparameter; only those that are True, False, None or text matter here,
            and which states they call for.
        maximize: negate the gradient first.
        services: what else the pass does; see `Services`.

    Raises:
        RuleError: the formula does what an elementwise formula cannot; the message names the line.
    """
    present = rule.states_for(hyper)
    settings: dict[str, Any] = {}
    scalars: list[tuple[str, int | None]] = []
    for name, default in rule.hyperparameters.items():
        value = hyper[name]
        if isinstance(default, bool):
            settings[name] = bool(value)
        elif isinstance(default, tuple):
            settings[name] = tuple(Expression("input", (scalar_name(name, i),), True) for i in range(len(default)))
            scalars += [(name, i) for i in range(len(default))]
        elif default is None or isinstance(default, str):
            settings[name] = value
        else:
            settings[name] = Expression("input", (name,), True)
            scalars.append((name, None))

    param, grad = (Expression("input", (name,), False) for name in ("param", "grad"))
    states = tuple(name and Expression("input", (name,), name in rule.scalar_states) for name in present)
    step = Expression("input", ("step",), True)
    counted = None
    if services.zero:
        finite = abs(grad) < math.inf
        grad, counted = where(finite, grad, 0.0), where(finite, 0.0, 1.0)
    seen = grad
    if services.factor:
        grad = grad * Expression("input", ("grad_factor",), False)
    if services.limit:
        clip_value = Expression("input", ("clip_value",), True)
        scalars.append(("clip_value", None))
        grad = where(grad > clip_value, clip_value, where(grad < -clip_value, -clip_value, grad))
    arguments = (param, -grad if maximize else grad, states, step, settings)
    param_new, *states_new = result = _ask(rule, *arguments)
    key = (rule, static_settings(rule, hyper), maximize, services.factor, services.limit, services.zero)
    if key in _steady:
        _check_steady(rule, _steady[key], result)
    else:
        again = _ask(rule, *arguments)
        _check_steady(rule, result, again)
        _steady[key] = again
    outputs = {"param": param_new}
    outputs.update({name: new for name, new in zip(present, states_new, strict=True) if name})
    outputs = {name: new if isinstance(new, Expression) else _constant(new) for name, new in outputs.items()}
    for name in rule.scalar_states:
        if name in outputs and not outputs[name].scalar:
            code = rule.function().__code__
            raise RuleError(
                f"{rule.__name__}.update returned a value for every element as {name}, which is one number for each tensor "
                f"({code.co_filename}:{code.co_firstlineno}). Write a sum over the elements: total, mean or norm of steprule."
            )
    own = _separate(rule.scalar_states, outputs)
    begun = [
        name
        for name, state in rule.states.items()
        if state.begins == "param" or (not isinstance(state.begins, str) and state.begins < 0)
    ]
    nonnegative = _nonnegative({name: new for name, new in outputs.items() if name not in begun}, own["own"])
    extreme, gathered = _extremes(outputs), {}
    if services.gather:
        gathered = {"grad": seen, "update": outputs["param"] - param, "param": outputs["param"]}
    if services.average:
        average = Expression("input", ("param_average",), False)
        weight = Expression("input", ("average_weight",), True)
        scalars.append(("average_weight", None))
        outputs["param_average"] = average + weight * (_node("stored", outputs["param"]) - average)
    formula = Formula(
        operands=("param", "grad", *list(outputs)[1:]),
        scalars=tuple(scalars),
        outputs=outputs,
        nonnegative=nonnegative,
        extreme=extreme,
        factor=bool(services.factor),
        by_row=services.factor == "row",
        counted=counted,
        gathered=gathered,
        **own,
    )
    depth = max((formula.levels[name] for name in formula.sums), default=0)
    return replace(formula, readings=tuple(_reading(formula, level) for level in range(1, depth + 1)))


def _reading(formula: Formula, level: int) -> Formula:
    sums = {name: one for name, one in formula.sums.items() if formula.levels[name] == level}
    return replace(formula, outputs={}, counted=None, gathered={}, scalar_outputs={}, sums=sums, readings=())


def _separate(scalar_states: tuple[str, ...], outputs: dict[str, Expression]) -> dict[str, Any]:
    """Makes sums and the new values of scalar states inputs of what is left in outputs.

    Returns:
        The fields of the formula that say what they are.
    """
    levels: dict[int, int] = {}
    numbers: dict[Any, int] = {}
    keys: dict[int, int] = {}
    found: list[Expression] = []
    has_size = False

    def visit(node: Expression) -> None:
        nonlocal has_size
        if id(node) in keys:
            return
        nodes = [arg for arg in node.args if isinstance(arg, Expression)]
        for arg in nodes:
            visit(arg)
        levels[id(node)] = max((levels[id(arg)] for arg in nodes), default=0) + (node.op in _SUMS)
        what = (node.op, *(keys[id(arg)] if isinstance(arg, Expression) else repr(arg) for arg in node.args))
        keys[id(node)] = numbers.setdefault(what, len(numbers))  # the same for what is written alike
        found.append(node)
        has_size |= node.op == "input" and node.args[0] == "numel"

    for expression in outputs.values():
        visit(expression)
    kept = [name for name in outputs if name in scalar_states]
    new = {name: outputs.pop(name) for name in kept}
    known = {"numel": 0} if has_size else {}
    known |= dict.fromkeys(kept, 0)
    known |= {f"new_{name}": levels[id(expression)] for name, expression in new.items()}
    places = {id(node): place for place, node in enumerate(found)}
    order = sorted(new, key=lambda name: places[id(new[name])])  # each after those that it is made of
    scalar_outputs = {name: Expression(new[name].op, new[name].args, True) for name in order}
    sums: dict[str, Sum] = {}
    names: dict[int, str] = {}
    for node in found:
        if node.op in _SUMS:
            key = keys[id(node)]
            if key not in names:
                names[key] = f"sum{len(names)}"
                sums[names[key]] = Sum(node.args[0], node.op == "total_of_all")
                known[names[key]] = levels[id(node)]
            node.op, node.args = "input", (names[key],)
    for name, one in scalar_outputs.items():
        if one.op in _SUMS:
            one.op, one.args = "input", (names[keys[id(new[name])]],)
    for name, expression in new.items():
        if expression.op not in ("input", "constant") or expression.args[0] in sums:
            expression.op, expression.args = "input", (f"new_{name}",)
    return {"own": tuple(known), "levels": known, "scalar_outputs": scalar_outputs, "sums": sums}


class Evaluation:
    """Expressions with numbers, arrays or tensors for their inputs.

    Args:
        inputs: by name; more may be set later.
    """

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self._values: dict[int, Any] = {}
        self._kept: list[Expression] = []  # so that no other expression can take an id

    def __call__(self, expression: Expression) -> Any:
        """The expression's value."""
        if expression.op == "input":
            return self.inputs[expression.args[0]]
        if expression.op == "constant":
            return expression.args[0]
        if id(expression) not in self._values:
            self._kept.append(expression)
            self._values[id(expression)] = _OPERATIONS[expression.op](*map(self, expression.args))
        return self._values[id(expression)]


def _divide(a: Any, b: Any) -> Any:
    """a / b, which is inf or NaN where Python's numbers raise: the mean of an empty tensor, say."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and b == 0:
        return math.copysign(math.inf, a) * math.copysign(1.0, b) if a != 0 else math.nan
    return a / b


_OPERATIONS: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide, "pow": operator.pow,
    "neg": operator.neg, "abs": abs, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne, "and": operator.and_, "or": operator.or_, "not": lambda x: not x if isinstance(x, bool) else ~x,
    **{name: getattr(pieces, name) for name in ("sqrt", "cbrt", "exp", "log", "floor", "maximum", "minimum", "where")},
    "arctan2": pieces.atan2,
}  # fmt: skip


def _nonnegative(outputs: Mapping[str, Expression], own: tuple[str, ...]) -> frozenset[str]:
    """The states whose new value is not negative if their old values are not, hyperparameters being at least 0.

    Of own numbers, such as a sum, nothing is known.
    """
    candidates = set(outputs) - {"param"}
    while True:
        kept = {name for name in candidates if _is_nonnegative(outputs[name], candidates, own)}
        if kept == candidates:
            return frozenset(kept)
        candidates = kept


def _is_nonnegative(x: Expression, states: set[str], own: tuple[str, ...]) -> bool:
    if x.op == "constant":
        return bool(x.args[0] >= 0)
    if x.scalar:  # lr, 1 - beta, ...
        return x.op != "neg" and not _reads(x, own)
    if x.op == "input":
        return x.args[0] in states
    if x.op == "mul" and x.args[0] is x.args[1]:
        return True
    if x.op == "add" and x.args[1].op == "mul" and x.args[1].args[0].scalar:
        difference = x.args[1].args[1]
        if difference.op == "sub" and difference.args[1] is x.args[0]:  # avg + weight * (value - avg)
            return _is_nonnegative(x.args[0], states, own) and _is_nonnegative(difference.args[0], states, own)
    sign = [_is_nonnegative(arg, states, own) for arg in x.args]
    if x.op in ("add", "mul", "div", "minimum"):
        return all(sign)
    if x.op == "where":
        return all(sign[1:])
    if x.op == "pow":
        return sign[0] or (x.args[1].op == "constant" and x.args[1].args[0] % 2 == 0)
    return x.op in ("abs", "sqrt", "cbrt", "exp") or (x.op == "maximum" and any(sign))


def _reads(x: Expression, names: tuple[str, ...]) -> bool:
    """Whether any of these inputs is a part of an expression."""
    if x.op == "input":
        return x.args[0] in names
    return any(_reads(arg, names) for arg in x.args if isinstance(arg, Expression))


def scalar_name(name: str, index: int | None) -> str:
    """What one of formula.scalars is called in an expression."""
    return name if index is None else f"{name}_{index}"


def hyper_of(formula: Formula, hyper: Mapping[str, Any]) -> list[Any]:
    """What stands for formula.scalars: numbers and 1-element tensors."""
    return [hyper[name] if index is None else operator.getitem(hyper[name], index) for name, index in formula.scalars]


def scalar_values(formula: Formula, hyper: Mapping[str, Any]) -> list[float]:
    """The numbers that stand for formula.scalars, as floats; 1-element tensors are read."""
    return list(map(float, hyper_of(formula, hyper)))


def static_settings(rule: type[Rule], hyper: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of the hyperparameters is fixed in a kernel."""
    settings = [
        bool(hyper[name]) if isinstance(default, bool) else hyper[name]
        for name, default in rule.hyperparameters.items()
        if default is None or isinstance(default, (bool, str))
    ]
    return (*settings, *rule.states_for(hyper))


_formulas: dict[Any, Formula] = {}


def formula_of(rule: type[Rule], hyper: Mapping[str, Any]) -> Formula:
    """The rule's formula for these hyperparameters and nothing else, traced when first asked for."""
    key = (rule, static_settings(rule, hyper))
    if key not in _formulas:
        _formulas[key] = trace(rule, hyper)
    return _formulas[key]


def has_own(rule: type[Rule], hyper: Mapping[str, Any]) -> bool:
    """Whether tensors have numbers for themselves besides the step: scalar states, or sums over elements."""
    return bool(formula_of(rule, hyper).own)


def couples(rule: type[Rule], hyper: Mapping[str, Any]) -> bool:
    """Whether the formula has sums over all tensors, so that none can be stepped without the others."""
    return any(one.of_all for one in formula_of(rule, hyper).sums.values())


def nonnegative_states(rule: type[Rule], hyper: Mapping[str, Any]) -> frozenset[str]:
    """`Formula.nonnegative` for these hyperparameters."""
    return formula_of(rule, hyper).nonnegative


def exact_states(rule: type[Rule], hyper: Mapping[str, Any]) -> frozenset[str]:
    """The states that are kept in float32 at least: those that the rule names, and running maxima and minima.

    Such a one never forgets: of a state that it is compared with it would keep the largest rounding there ever was.
    So that state is exact too.
    """
    return formula_of(rule, hyper).extreme.union(name for name in rule.states if rule.is_exact(name, hyper))


def _extremes(outputs: Mapping[str, Expression]) -> frozenset[str]:
    found = set()
    for name, new in outputs.items():
        if new.op in ("maximum", "minimum") and any(arg.op == "input" and arg.args[0] == name for arg in new.args):
            found |= {name, *(other for other, value in outputs.items() if any(arg is value for arg in new.args))}
    return frozenset(found)
