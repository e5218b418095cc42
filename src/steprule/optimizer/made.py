"""What makes a class of a rule, and what some of these have beside it."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from steprule.engine.team import torch_alone
from steprule.optimizer.front import BASES, Optimizer, base_of
from steprule.rule import Rule
from steprule.step.listed import list_all, name_in
from steprule.tensors.state import arrays_of, convert, kept, misfit, state_format, step_options


def make(rule: type[Rule], module: str) -> type[Optimizer]:
    """The optimizer of a rule that is an attribute of a module."""
    return type(rule.__name__, (base_of(rule),), {"__module__": module}, rule=rule)


def of_torch(name: str) -> Any:
    """An optimizer of torch's own, as it is; where torch is older, one that says so when it is made."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{name} is torch.optim's own, and torch {torch.__version__} has none yet; it needs torch {_SINCE[name]} or newer"
        )

    return getattr(torch.optim, name, None) or type(name, (torch.optim.Optimizer,), {"__init__": refuse})


_SINCE = {"Muon": "2.9"}
"""Of torch.optim's own, from which torch on there are those that are newer than the oldest torch that steprule takes."""


class _BegunEarly(Optimizer):
    """States that are there before the first step, as torch.optim's Adagrad has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["step"] = torch.zeros((), **step_options(group, param))
                for name in type(self).rule.tensor_states:
                    first = self._core.rule.begins_at(name, param, group)
                    first = complex(first, first) if param.is_complex() else first
                    self.state[param][name] = torch.full_like(param, first, memory_format=torch.preserve_format)
                    if group.get("states") is not None:  # as it is to stay, since share_memory may be called now
                        convert(self.state[param], name, state_format(self._core.rule, name, group, param), param)

    def share_memory(self) -> None:
        """Moves the states to memory that processes share.

        Of other optimizers, and of other states, only those that exist when a worker is started can be shared: take a step first.
        """
        for group in self.param_groups:
            for param in group["params"]:
                for name in type(self).rule.tensor_states:
                    for array in arrays_of(self.state[param], name).values():
                        array.share_memory_()  # type: ignore[no-untyped-call]


class _Exchanging(Optimizer):
    """Weights that are exchanged for others to be evaluated or saved, and back to be trained."""

    def train(self) -> None:
        """Gives the model the weights that gradients are taken at. The optimizer begins so; twice changes nothing."""
        self._exchange(training=True)

    def eval(self) -> None:
        """Gives the model the averaged weights, to evaluate or to save. Twice changes nothing."""
        self._exchange(training=False)

    @torch.no_grad()
    @torch_alone()
    def _exchange(self, training: bool) -> None:
        modes, rule = self._core.modes, type(self).rule
        if training == modes.training:
            return
        self._groups.check_constants()
        modes.must_have_weights(f"{'train' if training else 'eval'}()")
        formula: Any = rule.trained if training else rule.evaluated
        names = inspect.signature(formula).parameters
        states = [name for name in rule.states if name in names]
        begun = []
        for number, group, index, param, _ in list_all(self.param_groups):  # before anything changes
            state = self.state.get(param, {})
            if problem := misfit(self._core.rule, state, param, name_in(group, number, index), converted=True):
                raise RuntimeError(problem)
            if all(kept(state, name) is not None for name in states):
                begun.append((param, group))
        modes.training = training
        self._core.forget_plans(self.param_groups)
        for param, group in dict(begun).items():  # once: one may be listed twice
            own = {name: self.read(param, name) for name in states}
            own |= {name: _plain(group[name]) for name in rule.hyperparameters if name in names}
            param.copy_(formula(param.to(torch.promote_types(param.dtype, torch.float32)), **own))


def _plain(value: Any) -> Any:
    """A hyperparameter as a number, or as some."""
    return tuple(map(float, value)) if isinstance(value, (tuple, list)) else float(value)


BASES.update(evaluated=_Exchanging, begins_early=_BegunEarly)
