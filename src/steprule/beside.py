"""Two rules in one optimizer: each parameter group says which of them steps it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from steprule.hyper import whole_of
from steprule.pieces import Value
from steprule.rule import SAID, Hyperparameter, Rule, RuleError
from steprule.settings import check_together
from steprule.trace.tracing import program_of

KEY = "rule"
"""The setting of a group that names its rule."""
_SHARED = ("lr", "weight_decay")


def word_of(rule: type[Rule]) -> str:
    """What a group has as "rule" for this one."""
    return rule.__name__.lower()


def names_beside(rule: type[Rule]) -> dict[str, str]:
    """What the second rule's hyperparameters are called: its name is before theirs, but for lr and weight_decay."""
    return {name: name if name in _SHARED else f"{word_of(rule)}_{name}" for name in rule.hyperparameters}


def beside(rule: type[Rule], other: type[Rule]) -> type[Rule]:
    """One rule of two: parameter groups whose "rule" is the other's name, in lower case, are stepped by the other::

        both = beside(Muon, AdamW)
        Optimizer.of(both)([{"params": matrices}, {"params": rest, "rule": "adamw", "lr": 3e-4, "adamw_betas": (0.9, 0.95)}])

    So a step, its norm, a checkpoint and a schedule are of all parameters.

    Args:
        rule: the rule of groups that say nothing else.
        other: the other one. Its hyperparameters have its name before theirs, but for lr and weight_decay.

    Raises:
        RuleError: they do not go together.
    """
    if (rule, other) not in _made:
        _made[rule, other] = _make(rule, other)
    return _made[rule, other]


_made: dict[tuple[type[Rule], type[Rule]], type[Rule]] = {}


def _make(rule: type[Rule], other: type[Rule]) -> type[Rule]:
    for one in (rule, other):
        if one.evaluated is not None or one.begins_early or one.sparse_only:
            raise RuleError(f"{one.__name__} cannot be one of two rules in an optimizer: use Together")
    if rule.stacks != other.stacks and program_of(other, other.hyperparameters).sees_matrix:
        raise RuleError(
            f"{rule.__name__} and {other.__name__} see tensors of three axes or more as other matrices: use Together"
        )
    two = _Two(rule, other)
    attributes: dict[str, Any] = {name: getattr(rule, name) for name in SAID}
    attributes |= {
        "__doc__": f"{rule.__name__}, and {other.__name__} for parameter groups whose {KEY} is {word_of(other)!r}.",
        "__module__": __name__,
        "update": two.formula(),
        "check": staticmethod(lambda **given: check_together(two.chosen(given), two.settings(given))),
        "chosen": classmethod(lambda cls, given: two.chosen(given)),
        "states_for": classmethod(lambda cls, given: two.states_for(given)),
        "decay": _decay_of(rule, other),
        "refuses": rule.refuses or other.refuses,
        "keeps_step": rule.keeps_step or other.keeps_step,
        "sparse_grads": rule.sparse_grads and other.sparse_grads,
        "touches_states": rule.touches_states and other.touches_states,
        "constants": {**two.constants(), **rule.constants},
        "made_by": functools.partial(beside, rule, other),
        KEY: Hyperparameter("which rule steps a group's parameters", texts=(word_of(rule), word_of(other))),
        **{two.names[name]: meaning for name, meaning in other.meanings.items()},
        **rule.meanings,
        **two.states,
    }
    made: type[Rule] = type(rule.__name__, (Rule,), attributes)
    return made


class _Two:
    """What two rules are as one.

    Args:
        rule, other: the rules.

    Attributes:
        names: what the other's hyperparameters are called.
        hyper: those of both, with their defaults.
        states: those of both.
    """

    def __init__(self, rule: type[Rule], other: type[Rule]) -> None:
        self._rule, self._other = rule, other
        self.names = names_beside(other)
        own = {its: other.hyperparameters[name] for name, its in self.names.items()}
        self.hyper = {**own, **rule.hyperparameters, KEY: word_of(rule)}
        self.hyper = {name: self.hyper[name] for name in dict.fromkeys((*rule.hyperparameters, KEY, *own))}
        clash = {KEY, *self.names.values()} - {*_SHARED}
        if not clash.isdisjoint(rule.hyperparameters) or word_of(rule) == word_of(other):
            raise RuleError(f"{rule.__name__} has {KEY!r} or a name of {other.__name__}'s among its hyperparameters")
        self.states = dict(rule.states)
        for name, state in other.states.items():
            asked: dict[str, Any] = {what: self.names[one] for what, one in state.asks().items()}
            if self.states.setdefault(name, replace(state, **asked)) != replace(state, **asked):
                raise RuleError(
                    f"{rule.__name__} and {other.__name__} both have a state {name!r}, and it is not the same"
                )

    def chosen(self, given: Mapping[str, Any]) -> type[Rule]:
        """The rule of a group with these settings."""
        return self._other if given[KEY] == word_of(self._other) else self._rule

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """That rule's settings, under its own names."""
        names = self.names if self.chosen(given) is self._other else {}
        return {name: given[names.get(name, name)] for name in self.chosen(given).hyperparameters}

    def states_for(self, given: Mapping[str, Any]) -> tuple[str | None, ...]:
        """As `Rule.states_for`."""
        present = self.chosen(given).states_for(self.settings(given))
        return tuple(name if name in present else None for name in self.states)

    def constants(self) -> dict[str, str]:
        """The other's, under the names here."""
        return {
            self.names[whole_of(name)] + name.removeprefix(whole_of(name)): why
            for name, why in self._other.constants.items()
        }

    def formula(self) -> Callable[..., tuple[Value, ...]]:
        """That of both."""

        def update(param: Value, grad: Value, *values: Value, step: Value, **given: Any) -> tuple[Value, ...]:
            rule, kept = self.chosen(given), dict(zip(self.states, values, strict=True))
            own = tuple(kept[name] for name in rule.states)
            new, *changed = rule.evaluate(param, grad, own, step, self.settings(given))
            return new, *{**kept, **dict(zip(rule.states, changed, strict=True))}.values()

        kind = inspect.Parameter
        every = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in ("param", "grad", *self.states)]
        every += [kind("step", kind.KEYWORD_ONLY)]
        every += [kind(name, kind.KEYWORD_ONLY, default=default) for name, default in self.hyper.items()]
        update.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        return update


def _decay_of(rule: type[Rule], other: type[Rule]) -> str | None:
    """What both make of weight_decay; "own" if not the same."""
    decays = {one.decay for one in (rule, other) if "weight_decay" in one.hyperparameters}
    return decays.pop() if len(decays) == 1 else "own" if decays else None
