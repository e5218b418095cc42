"""The registry's rules with every combination of what changes their formula, for tests to run over."""

from __future__ import annotations

import itertools
from typing import Any

from steprule.rule import Rule
from steprule.rules import RULES


def variants(rule: type[Rule]) -> list[dict[str, Any]]:
    """Hyperparameters for every kernel that a rule has: all flags, and each optional state present and absent."""
    choices: dict[str, list[Any]] = {}
    for name, default in rule.hyperparameters.items():
        if isinstance(default, bool):
            choices[name] = [False, True]
        elif name in rule.state_when.values():
            choices[name] = [0.0, 0.9]
    found = []
    for values in itertools.product(*choices.values()):
        hyper = {**rule.hyperparameters, **dict(zip(choices, values, strict=True))}
        try:
            rule.check(**hyper)
        except ValueError:
            continue
        found.append(hyper)
    return found


def label(rule: type[Rule], hyper: dict[str, Any]) -> str:
    changed = [f"{name}={value}" for name, value in hyper.items() if value != rule.hyperparameters[name]]
    return "-".join([rule.__name__, *changed])


VARIANTS = [(rule, hyper) for rule in RULES.values() for hyper in variants(rule)]
IDS = [label(rule, hyper) for rule, hyper in VARIANTS]
