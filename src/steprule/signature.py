"""What the signature of a formula says."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from steprule.state import RuleError


def read_signature(rule: type, update: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of a formula's states, and its hyperparameters with their defaults."""
    hyperparameters: dict[str, Any] = {}
    place = f"({where(update)})"
    positional = []
    if inspect.iscoroutinefunction(update) or inspect.isgeneratorfunction(update) or inspect.isasyncgenfunction(update):
        raise RuleError(
            f"{rule.__name__}.update must be a plain function that returns its values: no async and no yield {place}"
        )
    for name, parameter in inspect.signature(update).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RuleError(f"{rule.__name__}.update must name its arguments instead of taking {parameter} {place}")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            if parameter.default is not parameter.empty and parameter.default is not None:
                raise RuleError(
                    f"{rule.__name__}.update: {name} has a default: put * before it to make it a hyperparameter {place}"
                )
            positional.append(name)
        elif name != "step":
            if parameter.default is parameter.empty:
                raise RuleError(f"{rule.__name__}.update needs a default for the hyperparameter {name} {place}")
            default = parameter.default
            hyperparameters[name] = tuple(default) if isinstance(default, list) else default
    if positional[:2] != ["param", "grad"]:
        hint = "; a formula has no self" if positional[:1] == ["self"] else ""
        raise RuleError(
            f"{rule.__name__}.update must begin with (param, grad, ...), not ({', '.join(positional)}) {place}{hint}"
        )
    states = positional[2:]
    for name in states:
        if name in ("step", "lr"):
            a_what = "a number" if name == "step" else "a hyperparameter, as in *, lr=1e-3"
            raise RuleError(f"{rule.__name__}.update must take {name} after the *: it is {a_what}, not a state {place}")
        if not name.isidentifier() or name.startswith("_"):
            raise RuleError(f"{rule.__name__}.update: a state cannot be called {name!r} {place}")
    return tuple(states), hyperparameters


def check_defaults(rule: Any) -> None:
    """Raises for defaults that a rule's hyperparameters cannot have, and for those out of their range."""
    for name, default in rule.hyperparameters.items():
        said = rule.meanings.get(name)
        for one in default if isinstance(default, tuple) else (default,):
            is_several = isinstance(one, tuple) and said is not None and said.texts
            if not (
                one is None
                or is_several
                or _is_number(one)
                or (isinstance(one, str) and one is default)
                or callable(one)
            ):
                hint = (
                    f'. Write one set of coefficients; with {name} = Hyperparameter("coefficients", texts=("a name",)) an optimizer takes several'
                    if isinstance(one, tuple)
                    else ". What never changes belongs into the formula"
                )
                raise RuleError(
                    f"{rule.__name__}.update: the default {name}={default!r} is no number, tuple of numbers, function of the step, True, False, "
                    f"None or text ({where(rule.function())}){hint}"
                )
            is_counted = isinstance(one, (int, float)) and not isinstance(one, bool)
            if is_counted and said is not None and not said.allows(one):
                raise RuleError(f"{rule.__name__}: the default {name}={default!r} is outside of its range {said.range}")


def _is_number(x: Any) -> bool:
    try:
        return not isinstance(x, (str, bytes)) and isinstance(float(x), float)
    except (TypeError, ValueError):
        return False


def where(function: Callable[..., Any], line: int | None = None) -> str:
    """The file and line of a function, or of a line in it."""
    code = function.__code__
    return f"{code.co_filename}:{line or code.co_firstlineno}"
