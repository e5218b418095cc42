"""The registry's rules with every combination of what changes their formula, for tests to run over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steprule.rule import Rule
from steprule.rules import OWN, SGD, Adam, AdamW, RMSprop
from steprule.trace.tracing import program_of

WORDS = ("norm", "equilibrate", "block")
"""Hyperparameters whose texts make formulas of another form, and not only of another number."""


def variants(rule: type[Rule]) -> list[dict[str, Any]]:
    """Hyperparameters for every kernel that a rule has: all flags, and each optional state present and absent."""
    choices: dict[str, list[Any]] = {}
    conditions = {state.when for state in rule.states.values()}
    for name, default in rule.hyperparameters.items():
        if isinstance(default, bool):
            choices[name] = [False, True]
        elif name in conditions:
            choices[name] = [0.0, 0.9]
        elif name in WORDS:
            choices[name] = [*rule.meanings[name].texts]
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


def sees_matrix(rule: type[Rule], hyper: Mapping[str, Any] | None = None) -> bool:
    """Whether a formula looks at rows and columns."""
    return program_of(rule, {**rule.hyperparameters, **(hyper or {})}).sees_matrix


def shape_for(rule: type[Rule], shape: Sequence[int], hyper: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """A shape of as many elements that a rule takes: a matrix, as square as can be, in place of a vector or a number."""
    if len(shape) > 1 or program_of(rule, {**rule.hyperparameters, **(hyper or {})}).takes_vectors:
        return tuple(shape)
    size = math.prod(shape)
    rows = next(n for n in range(math.isqrt(max(size, 1)), 0, -1) if size % n == 0)
    return rows, size // rows


def shapes_for(
    rule: type[Rule], shapes: Sequence[Sequence[int]], hyper: Mapping[str, Any] | None = None
) -> list[tuple[int, ...]]:
    """Shapes that a rule takes, in place of these; see `shape_for`."""
    return [shape_for(rule, shape, hyper) for shape in shapes]


VARIANTS = [(rule, hyper) for rule in OWN.values() for hyper in variants(rule)]
IDS = [label(rule, hyper) for rule, hyper in VARIANTS]

ELEMENTWISE = [(rule, hyper) for rule, hyper in VARIANTS if not sees_matrix(rule, hyper)]
"""Those that see no matrices."""
ELEMENTWISE_IDS = [label(rule, hyper) for rule, hyper in ELEMENTWISE]

TELLING = {
    "weight_decay": 0.1, "dampening": 0.4, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "lambd": 0.05, "t0": 1.5,
    "trust_coefficient": 0.1, "gamma": 0.5, "max_lr": 0.2, "d0": 0.1, "d_coef": 0.7, "growth_rate": 1.5, "reps_rel": 0.1,
    "warmup": 12.0, "warmup_steps": 7.0, "r": 0.5, "weight_lr_power": 1.5, "momentum_decay": 0.02,
    "etas": (0.4, 1.3), "step_sizes": (0.01, 0.2),
}  # fmt: skip
"""Numbers at which a part of the formula does something that does nothing, or hardly shows, at its default."""


def telling(rule: type[Rule], hyper: dict[str, Any]) -> dict[str, Any]:
    """The same kernel's hyperparameters with telling numbers."""
    told = {**hyper, **{name: value for name, value in TELLING.items() if name in hyper}}
    return {**told, "dampening": 0.0} if hyper.get("nesterov") and "dampening" in hyper else told


_STRUCTURES = {
    "SGD": "no state", "SGD-momentum=0.9-nesterov=True": "one, and no step that is kept",
    "RMSprop-momentum=0.9-centered=True": "states that must be exact", "Adam-amsgrad=True": "three", "AdamW": "the usual",
    "NAdam": "a scalar state in step's dtype", "Adan": "four, of which one is the gradient",
    "MADGRAD": "one that stays as it is", "LAMB": "sums over each tensor", "NovoGrad": "a scalar state that follows one",
    "Prodigy": "sums over all tensors together, and several scalar states", "ScheduleFreeAdamW": "one that begins at param",
}  # fmt: skip
STRUCTURES = [(rule, hyper) for (rule, hyper), name in zip(VARIANTS, IDS, strict=True) if name in _STRUCTURES]
"""One of each kind that a kernel, a checkpoint or a service may have to do with, for what knows nothing of formulas."""
STRUCTURE_IDS = [name for name in IDS if name in _STRUCTURES]

_FAMILIAR = [place for place, (rule, _) in enumerate(VARIANTS) if rule in (SGD, RMSprop, Adam, AdamW)]
FAMILIAR = [VARIANTS[place] for place in _FAMILIAR]
"""The rules that everyone knows: for services, each of which is tested with any rule by `test_every_rule`."""
FAMILIAR_IDS = [IDS[place] for place in _FAMILIAR]
