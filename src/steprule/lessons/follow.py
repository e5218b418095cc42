"""Taking a rule's steps and keeping what it does on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np

from steprule.formats import UNITS
from steprule.hyper import filled
from steprule.rule import Rule
from steprule.state import first_array

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


def moves(
    rule: type[Rule], start: Any, gradient: Callable[[Array, int], Any], **settings: Any
) -> Iterator[tuple[Array, Array, tuple[Array | None, ...]]]:
    """Takes steps of a shipped rule in float64, without end: after each, the weights, the gradient and the states.

    Args:
        rule: the rule.
        start: the first weights.
        gradient: given the weights and the step, from 1, returns the gradient.
        settings: hyperparameters other than the defaults; a function is called with the step.
    """
    hyper = _at(1, rule, settings)
    param = np.array(start, float)
    states = tuple(None if name is None else _first(rule, name, param, hyper) for name in rule.states_for(hyper))
    for step in count(1):
        grad = np.array(gradient(param, step), float)
        param, *new = rule.evaluate(param, grad, states, step, _at(step, rule, settings))
        states = tuple(new)
        yield param, grad, states


def _at(step: int, rule: type[Rule], settings: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value(step) if callable(value) else value for name, value in settings.items()}
    return {**filled({**rule.hyperparameters, **given}, UNITS["float32"])}


def _first(rule: type[Rule], name: str, param: Array, hyper: Mapping[str, Any]) -> Array:
    """What a state begins at: one number for a tensor is kept for each element here."""
    if name in rule.side_states:
        return first_array(rule, name, param, hyper)
    return np.full(param.shape, rule.begins_at(name, param, hyper), float)


def follow(rule: type[Rule], start: Any, gradient: Callable[[Array, int], Any], steps: int, **settings: Any) -> Way:
    """Takes so many steps of a shipped rule, and keeps all of them. The arguments are those of `moves`."""
    names = rule.states_for(_at(1, rule, settings))
    kept = list(islice(moves(rule, start, gradient, **settings), steps))
    params, grads, states = zip(*kept, strict=True)
    by_name = {
        name: np.array(one) for name, one in zip(names, zip(*states, strict=True), strict=True) if name is not None
    }
    return Way(np.array([np.array(start, float), *params]), np.array(grads), by_name)
