"""Steps of rules that look at whole matrices, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steprule.arrays.checks import Array
from steprule.arrays.states import begin
from steprule.engine.eager import oracle
from steprule.formats import UNITS
from steprule.hyper import filled
from steprule.rule import Rule


def step_whole(
    rule: type[Rule],
    params: Sequence[Array],
    grads: Sequence[Array | None],
    states: Sequence[dict[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Takes a step of all arrays that have a gradient, in place; missing states begin."""
    names = tuple(filter(None, rule.states_for(settings)))
    for place, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        if grad is None:
            continue
        begin(rule, names, param, state, settings)
        own = {name: state[name] for name in names}
        numbers = filled(settings, UNITS[param.dtype.name])
        new, after = oracle(rule, param, grad, own, state["step"] + 1, numbers, place=place)
        param[...] = new
        for name, value in after.items():
            state[name][...] = value
        state["step"] += 1
