"""Turns a rule's formula into an expression, by calling it once with symbols instead of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from traceback import walk_tb
from typing import Any

from steprule.pieces import abs, where
from steprule.rule import Rule, RuleError
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.cut import separate
from steprule.trace.expression import Expression, constant, is_ours, node, place_of, scalar_name
from steprule.trace.instead import SUMS, with_pieces
from steprule.trace.program import Formula
from steprule.trace.signs import extremes, nonnegative

_EVALUATE = Rule.evaluate.__code__


def _ask(rule: type[Rule], *arguments: Any) -> tuple[Any, ...]:
    """What the formula returns; what it stumbles over is told with its line."""
    try:
        return rule.evaluate(*arguments)
    except RuleError:
        raise
    except Exception as error:
        frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
        places = [place_of(*one) for one in frames if not is_ours(one[0]) and one[0] is not _EVALUATE]
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
    outputs = {name: new if isinstance(new, Expression) else constant(new) for name, new in outputs.items()}
    for name in rule.scalar_states:
        if name in outputs and not outputs[name].scalar:
            code = rule.function().__code__
            raise RuleError(
                f"{rule.__name__}.update returned a value for every element as {name}, which is one number for each tensor "
                f"({code.co_filename}:{code.co_firstlineno}). Write a sum over the elements: total, mean or norm of steprule."
            )
    own = separate(rule.scalar_states, outputs)
    begun = [
        name
        for name, state in rule.states.items()
        if state.begins == "param" or (not isinstance(state.begins, str) and state.begins < 0)
    ]
    signs = nonnegative({name: new for name, new in outputs.items() if name not in begun}, own["own"])
    extreme, gathered = extremes(outputs), {}
    if services.gather:
        gathered = {"grad": seen, "update": outputs["param"] - param, "param": outputs["param"]}
    if services.average:
        average = Expression("input", ("param_average",), False)
        weight = Expression("input", ("average_weight",), True)
        scalars.append(("average_weight", None))
        outputs["param_average"] = average + weight * (node("stored", outputs["param"]) - average)
    formula = Formula(
        operands=("param", "grad", *list(outputs)[1:]),
        scalars=tuple(scalars),
        outputs=outputs,
        nonnegative=signs,
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
