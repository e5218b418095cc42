"""Two rules in one optimizer: each parameter group says which of them steps it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from steprule.names import did_you_mean
from steprule.pieces import Value
from steprule.rule import SAID, Hyperparameter, Rule, RuleError
from steprule.trace.tracing import couples, program_of

KEY = "rule"
"""The setting of a group that names its rule."""


def word_of(rule: type[Rule]) -> str:
    """What a group has as "rule" for this one."""
    return rule.__name__.lower()


def beside(rule: type[Rule], other: type[Rule]) -> type[Rule]:
    """One rule of two: parameter groups whose "rule" is the other's name, in lower case, are stepped by the other::

        both = beside(Muon, AdamW)
        Optimizer.of(both)([{"params": matrices}, {"params": rest, "rule": "adamw", "betas": (0.9, 0.95)}], lr=0.02)

    So a step, its norm, a checkpoint and a schedule are of all parameters. A group has the settings that its rule reads, and no
    others. Arguments of the constructor are the first rule's; the other's groups have its own defaults.

    Args:
        rule: the rule of groups that say nothing else.
        other: the other one.

    Raises:
        RuleError: they do not go together.
    """
    if (rule, other) not in _made:
        _made[rule, other] = _make(rule, other)
    return _made[rule, other]


_made: dict[tuple[type[Rule], type[Rule]], type[Rule]] = {}


def unread(rule: type[Rule], group: Mapping[str, Any]) -> set[str]:
    """The hyperparameters that other groups of an optimizer with this rule have, and this group's rule does not read."""
    words = rule.meanings[KEY].texts if KEY in rule.meanings else ()
    every = {name for word in words for name in rule.chosen({KEY: word}).hyperparameters}
    return every - rule.chosen(group).hyperparameters.keys()


def _make(rule: type[Rule], other: type[Rule]) -> type[Rule]:
    for one in (rule, other):
        if one.evaluated is not None or one.begins_early or one.sparse_only:
            raise RuleError(f"{one.__name__} cannot be one of two rules in an optimizer: use Together")
    if KEY in {**rule.hyperparameters, **other.hyperparameters} or word_of(rule) == word_of(other):
        raise RuleError(f"{rule.__name__} and {other.__name__}: {KEY!r} must tell them apart, and be no hyperparameter")
    if rule.stacks != other.stacks and program_of(other, other.hyperparameters).sees_matrix:
        raise RuleError(
            f"{rule.__name__} and {other.__name__} see tensors of three axes or more as other matrices: use Together"
        )
    if couples(rule, rule.hyperparameters) and couples(other, other.hyperparameters):
        raise RuleError(
            f"{rule.__name__} and {other.__name__} both add up over all parameters, each its own: use Together"
        )
    for name in rule.states.keys() & other.states.keys():
        if rule.states[name] != other.states[name]:
            raise RuleError(f"{rule.__name__} and {other.__name__} both have a state {name!r}, and it is not the same")
    by_word = {word_of(rule): rule, word_of(other): other}

    def chosen(given: Mapping[str, Any]) -> type[Rule]:
        word = given.get(KEY, word_of(rule))
        if word not in by_word:
            hint = did_you_mean(str(word), by_word, otherwise=f"it can be {' or '.join(map(repr, by_word))}")
            raise ValueError(f"Invalid {KEY} value: {word!r}{hint}")
        return by_word[word]

    attributes: dict[str, Any] = {name: getattr(rule, name) for name in SAID}
    attributes |= {
        "__doc__": f"{rule.__name__}, and {other.__name__} for parameter groups whose {KEY} is {word_of(other)!r}.",
        "__module__": __name__,
        "update": _update(rule, other),
        "check": staticmethod(
            lambda **given: chosen(given).check(**{name: given[name] for name in rule.hyperparameters})
        ),
        "chosen": classmethod(lambda cls, given: chosen(given)),
        "with_each": classmethod(lambda cls, change: beside(change(rule), change(other))),
        "states_for": classmethod(lambda cls, given: chosen(given).states_for(given)),
        "refuses": rule.refuses or other.refuses,
        "keeps_step": rule.keeps_step or other.keeps_step,
        "sparse_grads": rule.sparse_grads and other.sparse_grads,
        "touches_states": rule.touches_states and other.touches_states,
        "made_by": functools.partial(beside, rule, other),
        KEY: Hyperparameter("which rule steps a group's parameters", texts=tuple(by_word)),
        **rule.meanings,
        **{name: replace(state, begins=0.0, exact=False, when=None, most=None) for name, state in other.states.items()},
        **rule.states,
    }
    made: type[Rule] = type(rule.__name__, (Rule,), attributes)
    return made


def _update(rule: type[Rule], other: type[Rule]) -> Callable[..., tuple[Value, ...]]:
    """A formula that has the states of both, and the hyperparameters of the first; `Rule.chosen` has those that are stepped by."""

    def update(*_: Value, **__: Any) -> tuple[Value, ...]:
        raise NotImplementedError

    kind = inspect.Parameter
    every = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in ("param", "grad", *{**rule.states, **other.states})]
    hyper = {**rule.hyperparameters, KEY: word_of(rule)}
    every += [kind(name, kind.KEYWORD_ONLY, default=default) for name, default in hyper.items()]
    update.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    return update
