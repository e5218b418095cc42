"""Rules with wrappers around them: functions of what a rule adds to the weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from steprule.chains import Recipe, free_name
from steprule.hyper import COMMON, Hyperparameter
from steprule.names import name_of
from steprule.pieces import Value
from steprule.rule import SAID, Rule, RuleError, State
from steprule.rules.options import movement, with_decay_apart
from steprule.settings import check_names, check_rule, check_together
from steprule.signature import where

Wrapper = Callable[..., Any]
"""A function ``(update, [param], [grad], <states>, *, [lr], [step], <hyperparameters>)`` that returns the new update, or that and the
new states."""


def wrapper(
    *,
    decay: Literal["apart", "within", "none"] = "apart",
    refuses: str = "",
    nonzero: str = "",
    evaluated: tuple[Wrapper, Wrapper] | None = None,
    **said: State | Hyperparameter,
) -> Callable[[Wrapper], Wrapper]:
    """Says of a wrapper what a rule says of itself by class attributes.

    Args:
        decay: what becomes of the rule's weight decay. "apart": it is subtracted beside the update, and the wrapper does not see it,
            unless it is a part of the gradient or another part of the rule's step. "within": the update has it. "none": there is none.
            A wrapper with a hyperparameter weight_decay of its own has that in its place.
        refuses: why nothing but a wrapper with decay="within" goes around the result; empty where others may.
        nonzero: why parameters of zeros are refused; empty where they are not.
        evaluated: where the model has other weights than those to evaluate, what makes these of the parameter and the wrapper's
            states, and what makes it of them again.
        said: the `State` or `Hyperparameter` of each name that is not a state of the parameter's shape, or any number.
    """

    def mark(function: Wrapper) -> Wrapper:
        function.__dict__.update(decay=decay, refuses=refuses, nonzero=nonzero, evaluated=evaluated, said=said)
        return function

    return mark


def wrap(rule: type[Rule], *wrappers: Wrapper, name: str = "") -> type[Rule]:
    """A rule with wrappers around it, of which each changes the update that comes out of what is before it.

    It is traced, compiled, printed, saved and loaded as any other rule. The same parts make the same class.

    Args:
        rule: a rule, such as ``steprule.Muon.rule`` or a chain.
        wrappers: functions of `steprule.wrappers`, or of your own with the same kind of arguments, the innermost first.
            `functools.partial` gives one other defaults. A name that is taken gets a number: ratio, ratio_2.
        name: the name of the new rule. Default: the rule's, after the wrappers'.

    Returns:
        A rule, for `Optimizer.of`. Its hyperparameters are the rule's and those of the wrappers.

    Raises:
        ValueError: a wrapper does not fit around the rule; the message says why.
        RuleError: a wrapper is no function of this kind, or there is none.
        TypeError: rule is none, or a partial gives an argument that its wrapper does not take.

    Examples:
        >>> import steprule
        >>> from steprule.wrappers import match_rms
        >>> SGD = steprule.wrap(steprule.SGD.rule, match_rms, name="EvenSGD")
        >>> param, _ = SGD.update(1.0, 8.0, None, step=1, **{**SGD.hyperparameters, "lr": 0.5, "rms": 0.5})
        >>> param  # 1 - 0.5 * 0.5, whatever the gradient's size
        0.75
    """
    check_rule("wrap", rule)
    if not wrappers:
        raise RuleError(f"wrap({rule.__name__}) needs at least one wrapper")
    name = name or "".join(_title(one) for one in reversed(wrappers)) + rule.__name__
    return Recipe(wrap, (rule, *wrappers), name=name).made(_make)


def _title(one: Wrapper) -> str:
    plain: Any = one.func if isinstance(one, functools.partial) else one
    return name_of(plain).title().replace("_", "")


def _make(recipe: Recipe) -> type[Rule]:
    rule, *wrappers = recipe.parts
    made = rule
    for one in wrappers:
        layer = _Layer(one, made, rule)
        made = layer.around(made, recipe.name)
        if layer.decay == "apart":
            made = with_decay_apart(made, layer.name)
    made.__doc__ = f"{rule.__name__} within {', '.join(_Layer.name_of(one) for one in wrappers)}: wrapped by you."
    made.made_by = recipe
    return made  # type: ignore[no-any-return]


class _Layer:
    """A wrapper around a rule, and what its names are there.

    Args:
        part: the wrapper.
        rule: what it goes around.
        first: the innermost rule.
    """

    def __init__(self, part: Wrapper, rule: type[Rule], first: type[Rule]) -> None:
        plain: Any = part.func if isinstance(part, functools.partial) else part
        if not callable(part) or isinstance(plain, type):
            raise RuleError(f"wrap() got {part!r} as a wrapper, which is no function (update, ...)")
        self._call, self.name = part, self.name_of(part)
        marks = vars(plain) if hasattr(plain, "__dict__") else {}
        self.decay, self.refuses = marks.get("decay", "apart"), marks.get("refuses", "")
        self._said, self._evaluated, self._nonzero = (
            marks.get("said", {}),
            marks.get("evaluated"),
            marks.get("nonzero", ""),
        )
        if isinstance(part, functools.partial):
            check_names(self.name, part.keywords, inspect.signature(plain).parameters)
        self._read(inspect.signature(part), plain)
        self.decay = "none" if "weight_decay" in self._defaults else self.decay
        self._check(rule, first)
        taken = {"param", "grad", "step", *rule.states, *rule.hyperparameters}
        taken -= {"weight_decay"} if self.decay == "none" else set()
        self.states = {one: free_name(one, taken) for one in self._own}
        self.hyper = {one: free_name(one, taken) for one in self._defaults}

    @staticmethod
    def name_of(part: Wrapper) -> str:
        """What it is called."""
        return name_of(part.func if isinstance(part, functools.partial) else part)

    def _read(self, signature: inspect.Signature, plain: Any) -> None:
        """Its arguments: those that every step has, its states, and its hyperparameters."""
        place = f" ({where(plain)})" if hasattr(plain, "__code__") else ""
        ones = signature.parameters.values()
        if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in ones):
            raise RuleError(f"{self.name} must name its arguments{place}")
        positional = [one.name for one in ones if one.kind is not one.KEYWORD_ONLY]
        if positional[:1] == ["grad"]:
            raise RuleError(
                f"{self.name} is a transform, and no wrapper: chain({self.name}, ...) has such parts{place}"
            )
        if positional[:1] != ["update"]:
            raise RuleError(
                f"{self.name} must begin with (update, ...), not ({', '.join(positional)}), to be a wrapper{place}"
            )
        self._sees = [one for one in ("param", "grad") if one in positional]
        if positional[1 : 1 + len(self._sees)] != self._sees:
            raise RuleError(f"{self.name} must take {' and '.join(self._sees)} right after update{place}")
        self._own = positional[1 + len(self._sees) :]
        by_name = {one.name: one.default for one in ones if one.kind is one.KEYWORD_ONLY}
        self._given = [one for one in ("lr", "step") if one in by_name]
        self._defaults = {one: default for one, default in by_name.items() if one not in self._given}
        for one, default in self._defaults.items():
            if default is inspect.Parameter.empty:
                raise RuleError(f"{self.name} needs a default for {one}{place}")

    def _check(self, rule: type[Rule], first: type[Rule]) -> None:
        """Raises where it does not fit."""
        who = f"{first.__name__} does not go with {self.name}"
        reason = first.refuses if self.decay == "within" else rule.refuses
        if rule.evaluated is not None:
            reason = reason or "its weights to evaluate are made of those that it trains"
        if rule.sparse_only:
            reason = reason or "elements without a gradient stay as they are, and it looks at whole tensors"
        if "lr" in self._given:
            if "lr" not in rule.hyperparameters:
                reason = reason or "it has no lr, which sets the length of the update"
            if "tuning-free" in rule.needs or any(state.begins == "lr" for state in rule.states.values()):
                reason = reason or "it finds the length of its steps by itself, and lr would set it"
        if reason:
            raise ValueError(f"{who}: {reason}")

    def around(self, rule: type[Rule], name: str) -> type[Rule]:
        """The rule with it around."""
        own, without = len(rule.states), {"weight_decay": 0.0} if self.decay == "none" else {}
        kept = {one: default for one, default in rule.hyperparameters.items() if one not in without}
        kind = inspect.Parameter
        positional = [
            kind(one, kind.POSITIONAL_OR_KEYWORD) for one in ("param", "grad", *rule.states, *self.states.values())
        ]
        defaults = {**kept, **{its: self._defaults[one] for one, its in self.hyper.items()}}
        keywords = [kind("step", kind.KEYWORD_ONLY)]
        keywords += [kind(one, kind.KEYWORD_ONLY, default=default) for one, default in defaults.items()]

        def update(param: Value, grad: Value, *states: Value, step: Value, **hyper: Any) -> tuple[Value, ...]:
            new, *changed = rule.evaluate(param, grad, states[:own], step, {**hyper, **without})
            move, *extra = self(movement(new, param), param, grad, states[own:], {**hyper, "step": step})
            return param + move, *changed, *extra

        update.__signature__ = inspect.Signature([*positional, *keywords])  # type: ignore[attr-defined]
        meanings = {one: said for one, said in rule.meanings.items() if one in kept}
        said = {**{one: COMMON[one] for one in self.hyper if one in COMMON}, **self._said}
        attributes: dict[str, Any] = {one: getattr(rule, one) for one in ("__doc__", *SAID)}
        attributes |= {
            "__module__": __name__,
            "update": update,
            "check": lambda **hyper: check_together(rule, {**hyper, **without}),
            "sparse_grads": False,
            "touches_states": False,
            "keeps_step": rule.keeps_step or "step" in self._given,
            "decay": ("own" if "weight_decay" in self._defaults else None) if without else rule.decay,
            "refuses": self.refuses or rule.refuses,
            "nonzero": self._nonzero or rule.nonzero,
            "constants": {one: why for one, why in rule.constants.items() if one not in without},
            **rule.states,
            **meanings,
            **{its: said[one] for one, its in {**self.states, **self.hyper}.items() if one in said},
        }
        if self._evaluated is not None:
            attributes |= zip(("evaluated", "trained"), map(self._by_name, self._evaluated), strict=True)
        return type(name, (Rule,), attributes)

    def _by_name(self, formula: Wrapper) -> Wrapper:
        """A formula of the parameter and the wrapper's states, with the names that these have here."""
        names = [*self.states.values()]

        def weights(param: Value, **states: Value) -> Value:
            return formula(param, *(states[one] for one in names))

        kind = inspect.Parameter
        shown = [kind(one, kind.POSITIONAL_OR_KEYWORD) for one in ("param", *names)]
        weights.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return weights

    def __call__(
        self, update: Value, param: Value, grad: Value, states: tuple[Value, ...], values: Mapping[str, Any]
    ) -> tuple[Value, ...]:
        """The new update and states."""
        every = {"param": param, "grad": grad}
        hyper = {one: values[its] for one, its in self.hyper.items()} | {one: values[one] for one in self._given}
        result = self._call(update, *(every[one] for one in self._sees), *states, **hyper)
        found = result if isinstance(result, tuple) else (result,)
        if len(found) != 1 + len(states):
            raise RuleError(
                f"{self.name} returned {len(found)} value{'s' * (len(found) != 1)} and must return {1 + len(states)}: the "
                f"update{''.join(f', {one}' for one in self.states)}"
            )
        return found
