"""The arguments of an optimizer of arrays: their names, defaults and values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from steprule.arrays.checks import Array
from steprule.docstrings import (
    ARRAYS,
    OPTION_TEXTS,
    arguments,
    class_docstring,
    is_listed,
    states,
    texts_of,
    torch_class,
)
from steprule.hyper import whole_of
from steprule.rule import DECAYS, Rule
from steprule.rules.options import OPTIONS, check_lookahead, seen_by
from steprule.settings import as_tuples, check_names, check_settings, type_of
from steprule.trace.numbers import check_numbers


def signature_of(rule: type[Rule]) -> inspect.Signature:
    """The arguments of a rule's optimizer, as its users see them."""
    kind = inspect.Parameter
    parameters = [kind("params", kind.POSITIONAL_OR_KEYWORD, annotation=Sequence[Array])]
    for name, default in rule.hyperparameters.items():
        parameters.append(
            kind(name, kind.KEYWORD_ONLY, default=default, annotation=type_of(default, texts_of(rule, name)))
        )
    parameters += [kind(name, kind.KEYWORD_ONLY, default=OPTIONS[name], annotation=one) for name, one in _TYPES.items()]
    return inspect.Signature(parameters)


_literal: Any = Literal
_TYPES: dict[str, Any] = {
    "decay": _literal[tuple(DECAYS)] | None,
    "cautious": bool,
    "cautious_decay": bool,
    "lookahead": int,
    "lookahead_alpha": float | Callable[[int], float],
}


def split(who: str, rule: type[Rule], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options, and the settings of the rule, with defaults for those that are not given.

    Raises:
        TypeError: an argument is neither, and the message says so.
    """
    for name in given:
        if name in OPTION_TEXTS and name not in OPTIONS and name not in rule.hyperparameters:
            raise TypeError(
                f"{who} takes no {name}: optimizers of arrays have no formats, services and flags. {torch_class(rule)}, which "
                "steps torch's parameters, has them"
            )
    check_names(who, given, (*rule.hyperparameters, *OPTIONS))
    settings = {name: given.get(name, default) for name, default in rule.hyperparameters.items()}
    options = {name: given.get(name, default) for name, default in OPTIONS.items()}
    return seen_by(options, settings), settings


def at_step(settings: Mapping[str, Any], rule: type[Rule], step: int) -> dict[str, Any]:
    """Settings for a step, for which functions of the step are asked."""
    for name, why in rule.constants.items():
        if callable(settings.get(whole_of(name))):
            raise ValueError(f"{whole_of(name)} of {rule.__name__} cannot be a function of the step: {why}")
    values = {name: value(step) if callable(value) else value for name, value in settings.items()}
    values |= as_tuples(values, rule)
    check_settings(rule, values)
    check_numbers(rule, values)
    if "lookahead" in rule.hyperparameters:
        check_lookahead(values["lookahead"])
    return values


def docstring(rule: type[Rule]) -> str:
    """What a class says of itself."""
    name = rule.__name__
    example = [
        "import numpy as np",
        "from steprule import arrays",
        *([] if is_listed(rule) else [f"class {name}Arrays(arrays.Optimizer, rule={name}): ..."]),
        "weight = np.ones((2, 3), np.float32)",
        f"optimizer = {f'arrays.{name}' if is_listed(rule) else f'{name}Arrays'}([weight])",
        "optimizer.step([2 * weight])",
    ]
    kept = {"step": "the number of steps so far, an int.", **states(rule, _KINDS)}
    args = arguments(rule, signature_of(rule), ARRAYS)
    args += "\nA hyperparameter may be a function of the step, which counts from 1.\n"
    return class_docstring(rule, args, kept, "optimizer.state[index of the array]", example)


_KINDS = {
    "elements": "shape and dtype of the array",
    **dict.fromkeys(("scalar", "step"), "a float64 array of shape ()"),
    "rows": "a float64 array of shape (rows, 1)",
    "cols": "a float64 array of shape (1, columns)",
    "left": "a float64 array of shape (rows, rows)",
    "right": "a float64 array of shape (columns, columns)",
}
