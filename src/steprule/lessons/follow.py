"""Taking a rule's steps and keeping what it does on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from steprule.rule import Rule

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Way:
    """Where a rule went.

    Attributes:
        params: the weights, from the first, one row for each step.
        grads: the gradients of the steps.
        states: each state by name, after each step.
    """

    params: Array
    grads: Array
    states: dict[str, Array]


def follow(rule: type[Rule], start: Any, gradient: Callable[[Array, int], Any], steps: int, **settings: Any) -> Way:
    """Takes steps of a shipped rule in float64.

    Args:
        rule: the rule.
        start: the first weights.
        gradient: given the weights and the step, from 1, returns the gradient.
        steps: how many.
        settings: hyperparameters other than the defaults.
    """
    hyper = {**rule.hyperparameters, **settings}
    names = rule.states_for(hyper)
    param = np.array(start, float)
    states = tuple(None if name is None else np.full_like(param, rule.begins_at(name, param, hyper)) for name in names)
    params, grads, kept = [param], [], []
    for step in range(1, steps + 1):
        grad = np.array(gradient(param, step), float)
        param, *new = rule.evaluate(param, grad, states, step, hyper)
        states = tuple(new)
        params.append(param)
        grads.append(grad)
        kept.append(states)
    by_name = {
        name: np.array(one) for name, one in zip(names, zip(*kept, strict=True), strict=True) if name is not None
    }
    return Way(np.array(params), np.array(grads), by_name)
