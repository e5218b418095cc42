"""What may be wrong with what a formula returned."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from typing import Any

from steprule.names import HOME, did_you_mean
from steprule.rule import Rule, RuleError
from steprule.signature import where
from steprule.trace.expression import Expression, inputs_of
from steprule.trace.instead import FUNCTIONS, instead_of

_DEEPEST = 200
"""Operations that may be nested: what writes, prints and computes them calls itself for each, up to four times."""


def check_new(rule: type[Rule], new: Mapping[str, Any], services: int) -> None:
    """Raises for new values that are no numbers or that are too deep.

    Args:
        rule: the rule.
        new: what update returned for param and the states that exist.
        services: the depth of the gradient that it was given.
    """
    depth = 0
    for name, value in new.items():
        if isinstance(value, Expression):
            depth = max(depth, value.depth - services)
        elif isinstance(value, str) or not hasattr(value, "__float__"):
            raise RuleError(
                f"{rule.__name__}.update returned {value!r} for {name}, which is no number ({where(rule.function())})"
            )
    if depth > _DEEPEST:
        raise RuleError(
            f"{rule.__name__}.update nests {depth} operations in one another; {_DEEPEST} is the most "
            f"({where(rule.function())}). A loop is unrolled, round after round: use fewer rounds, or write what they come to "
            "as one formula"
        )


def check_param(rule: type[Rule], new: Mapping[str, Any]) -> None:
    """Raises for a new parameter that has nothing of the old one in the first step; new is as for `check_new`."""
    seen = {"param", *(name for name, state in rule.states.items() if state.begins == "param")}
    made_of = inputs_of(new["param"]) if isinstance(new["param"], Expression) else set()
    if seen.isdisjoint(made_of):
        order = f", new values in the order {', '.join(('param', *rule.states))}" if rule.states else ""
        raise RuleError(
            f"{rule.__name__}.update returned a new param that does not depend on the old one ({where(rule.function())}). "
            f"Return the parameter, as in return param - lr * update, and not the update{order}; to step from the first weights every "
            'time, keep them: first = State(begins="param")'
        )


def asked_for_none(rule: type[Rule]) -> list[str]:
    """The states that always exist, if the formula's code compares anything with None."""
    codes = {one.opname for one in dis.get_instructions(rule.function())}
    if not any(code == "IS_OP" or "NONE" in code for code in codes):
        return []
    return [name for name, state in rule.states.items() if state.when is None]


def told_of_none(rule: type[Rule], name: str) -> str:
    """What to say of a formula that asks whether such a state is None."""
    return (
        f"{rule.__name__}.update asks whether {name} is None, and it never is: it begins at {rule.states[name].begins or 0} "
        f"({where(rule.function())}). To begin at the first gradient write at_first(step, grad, ema(...)); a state that is "
        f"there only with a hyperparameter is {name} = State(when=...)"
    )


def told_of_name(rule: type[Rule], name: str) -> str:
    """What to write in place of a name that a formula does not know."""
    function = rule.function()
    if name == "step":
        states = "".join(f", {one}" for one in rule.states)
        return f". Write step after the *: update(param, grad{states}, *, step, {', '.join(f'{one}=...' for one in rule.hyperparameters)})"
    if name in HOME["pieces"]:
        return f". Write from steprule.pieces import {name}"
    if name in FUNCTIONS:
        return f". Write {instead_of(name)}"
    return did_you_mean(name, (*function.__code__.co_varnames, *function.__globals__, *HOME["pieces"]))
