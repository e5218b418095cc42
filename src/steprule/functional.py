"""Steps as functions of lists: the caller owns the states. One for each rule, generated from its formula.

steprule.functional.adamw(params, grads, exp_avgs, exp_avg_sqs, [], state_steps, lr=1e-3)
help(steprule.functional.adamw)
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule import optimizer as optimizers
from steprule.engine.surroundings import undisturbed
from steprule.names import seen
from steprule.optimizer import Optimizer
from steprule.rule import Rule
from steprule.rules import OWN
from steprule.settings import no_attribute

_NEEDED = inspect.Parameter.POSITIONAL_OR_KEYWORD


class _Steps:
    """An optimizer of tensors in the memory of the caller's."""

    def __init__(self, rule: type[Rule], params: Sequence[Tensor], settings: dict[str, Any]) -> None:
        self._params = [weakref.ref(param) for param in params]
        self._own = [param.detach() for param in params]  # whose grad is nobody else's
        self._optimizer: Optimizer = getattr(optimizers, rule.__name__)(self._own, **settings)

    def hold(self, params: Sequence[Tensor], lists: dict[str, Any]) -> bool:
        """Whether they are for these tensors, where they lie, and no state is to begin anew."""
        if len(params) != len(self._own):
            return False
        state = self._optimizer.state
        return all(
            known() is param
            and (own.data_ptr(), own.shape, own.stride(), own.dtype)
            == (param.data_ptr(), param.shape, param.stride(), param.dtype)
            and not (state.get(own) and any(values[index] is None for values in lists.values()))
            for index, (known, own, param) in enumerate(zip(self._params, self._own, params, strict=True))
        )

    def take(self, grads: Sequence[Tensor | None], lists: dict[str, Any], settings: dict[str, Any]) -> None:
        """Takes one step, and writes states that begin in it into the lists."""
        state = self._optimizer.state
        self._optimizer.param_groups[0].update(settings)
        try:
            for index, (own, grad) in enumerate(zip(self._own, grads, strict=True)):
                for name, values in lists.items():
                    if values[index] is not None and state[own].get(name) is not values[index]:
                        state[own][name] = values[index]
                own.grad = grad
            self._optimizer.step()
        finally:
            for own in self._own:
                own.grad = None
        for index, own in enumerate(self._own):
            for name, values in lists.items():
                if name in state[own] and values[index] is not state[own][name]:
                    values[index] = state[own][name]


_KNOWN: dict[tuple[type[Rule], int], _Steps] = {}


def _check(who: str, rule: type[Rule], given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The lists of states by the names of states; raises for arguments that do not fit each other."""
    params, grads = given["params"], given["grads"]
    for name, value in settings.items():
        if callable(value) and not isinstance(value, Tensor):
            raise TypeError(f"{who}: {name}={value!r} must be a value: call it with the step, which you know")
    for name, values in given.items():
        if not isinstance(values, list) and not (name in ("params", "grads") and isinstance(values, tuple)):
            raise TypeError(f"{who}: {name} must be a list of tensors, not {type(values).__name__}")
    if not params:
        raise ValueError(f"{who}: params is empty: there is nothing to step")
    used = {_plural(rule, name): name for name in rule.states_for(settings) if name is not None}
    if rule.keeps_step:
        used["state_steps"] = "step"
    for name, values in given.items():
        wanted = len(params) if name in (*used, "params", "grads") else 0
        if len(values) != wanted:
            why = "" if wanted else f": {who} has no such state with these settings"
            raise ValueError(f"{who}: {name} has {len(values)} elements and must have {wanted}{why}")
        for index, value in enumerate(values):
            if not isinstance(value, Tensor) and (name == "params" or value is not None):
                raise TypeError(f"{who}: {name}[{index}]={value!r} must be a tensor")
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None and (grad.shape, grad.dtype, grad.device) != (param.shape, param.dtype, param.device):
            what = [f"{tuple(one.shape)}, {one.dtype}, {one.device}" for one in (grad, param)]
            raise ValueError(f"{who}: grads[{index}] is of {what[0]}, and params[{index}] of {what[1]}")
        begun = {name: given[name][index] is not None for name in used}
        if len(set(begun.values())) > 1:
            names = ", ".join(name for name, has in begun.items() if not has)
            raise ValueError(
                f"{who}: {names} has None at {index}, and other states have tensors: give all, or None for all"
            )
    return {state: given[name] for name, state in used.items()}


def _plural(rule: type[Rule], state: str) -> str:
    """The name of a list of states, as torch.optim has it; Rprop has a setting of that name."""
    return f"{state}_list" if f"{state}s" in rule.hyperparameters else f"{state}s"


def _function(rule: type[Rule]) -> Callable[..., None]:
    """The function of a rule."""
    name = rule.__name__.lower()
    known = inspect.signature(getattr(optimizers, rule.__name__)).parameters
    lists = ["params", "grads", *(_plural(rule, state) for state in rule.states)]
    lists += ["state_steps"] * rule.keeps_step
    others = [known[one] for one in (*rule.hyperparameters, "maximize") if one in known]
    settings = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others]
    signature = inspect.Signature([*(inspect.Parameter(one, _NEEDED) for one in lists), *settings])

    def function(*args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}; it takes {signature}") from None
        bound.apply_defaults()
        given = {one: bound.arguments[one] for one in lists}
        chosen = {one.name: bound.arguments[one.name] for one in settings}
        states = _check(name, rule, given, chosen)
        params = list(given["params"])
        key = rule, id(params[0])
        steps = _KNOWN.get(key)
        with torch.no_grad(), undisturbed():
            if steps is None or not steps.hold(params, states):
                if steps is None:
                    weakref.finalize(params[0], _KNOWN.pop, key, None).atexit = False
                steps = _KNOWN[key] = _Steps(rule, params, chosen)
            steps.take(given["grads"], states, chosen)

    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = f"""Takes one step of {rule.__name__}, in place; the caller owns the states.

    Args:
        params: tensors of floats.
        grads: a gradient for each, of its shape and dtype, or None where there is none: that parameter and its states stay.
        {", ".join(lists[2:]) or "and no states"}: lists of tensors, as the optimizer's `state` has them. None in all of
            them lets a parameter's states begin: the list then gets them. A list is empty where the settings ask for no
            such state.
        {", ".join(one.name for one in settings)}: as for `steprule.{rule.__name__}`.

    Raises:
        ValueError: lists do not fit each other, or a setting is out of range; nothing has changed.
        TypeError: an argument is unknown or of the wrong type; nothing has changed.
    """
    return function


def __getattr__(name: str) -> Any:
    """A function, made when it is first asked for."""
    if name == "__all__":
        return sorted(OWN)
    rule = None if name.startswith("_") else OWN.get(name)
    if rule is None:
        raise no_attribute(__name__, name, [] if name.startswith("_") else list(OWN))
    made = globals()[name] = _function(rule)
    return made


def __dir__() -> list[str]:
    return seen(globals(), OWN)
