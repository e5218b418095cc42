"""What makes a class of a rule, and what some of these have beside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.engine.surroundings import in_peace
from steprule.engine.team import torch_alone
from steprule.optimizer.formulas import BASES, base_of
from steprule.optimizer.front import Optimizer
from steprule.rule import Rule, RuleError
from steprule.settings import as_number
from steprule.step.listed import check_arrays
from steprule.tensors.average import exchange_all
from steprule.tensors.memory import DTYPES
from steprule.tensors.state import (
    arrays_of,
    begin_state,
    convert,
    encode_weight,
    kept,
    read_state,
    state_format,
    step_options,
    weight_arrays,
)


def make(rule: type[Rule], module: str) -> type[Optimizer]:
    """The optimizer of a rule that is an attribute of a module."""
    return type(rule.__name__, (base_of(rule),), {"__module__": module}, rule=rule)


class _BegunEarly(Optimizer):
    """States that are there before the first step, as torch.optim's Adagrad has them."""

    @in_peace
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        rule = type(self).rule
        for group, param in self._groups.each():
            state = self.state[param]
            if rule.keeps_step:
                state["step"] = torch.zeros((), **step_options(group, param))
            for name in filter(None, rule.states_for(group)):
                kind = DTYPES.get(param.dtype)
                if kind is not None and group.get("states") is not None:
                    kind = state_format(rule, name, group, param)
                begin_state(rule, name, state, param.detach(), group, kind)
                if kind is not None and name in rule.tensor_states:  # share_memory, called now, shares what stays
                    convert(state, name, kind, param)

    def share_memory(self) -> None:
        """Moves the states to memory that processes share.

        Of other optimizers, and of other states, only those that exist when a worker is started can be shared: take a step first.
        """
        for group in self.param_groups:
            for param in group["params"]:
                for name in type(self).rule.states:
                    for array in arrays_of(self.state[param], name).values():
                        array.share_memory_()  # type: ignore[no-untyped-call]


class _Exchanging(Optimizer):
    """Weights that are exchanged for others to be evaluated or saved, and back to be trained.

    All are exchanged or none. Until the last is computed, the new ones take as much memory as the weights.
    """

    @torch.no_grad()
    @torch_alone()
    def _exchange(self, training: bool) -> None:
        modes, rule = self._core.modes, type(self).rule
        if training == modes.training:
            return
        self._groups.look()
        self._groups.check_constants()
        modes.must_have_weights(f"{'train' if training else 'eval'}()")
        check_arrays(self._core.rule, self.param_groups, self.state)
        what = "trained" if training else "evaluated"
        pairs: list[tuple[Tensor, Tensor]] = []
        for group, param in self._groups.each():  # all are computed before one is written
            state = self.state.get(param, {})
            value = _exchanged(rule, what, param, state, group)
            if value is not None:
                own, new = weight_arrays(param, state), encode_weight(value, param, state)
                pairs += [(own[suffix], x) for suffix, x in new.items()]
        exchange_all(pairs)
        modes.training = training
        self._core.weights_have_changed(self.param_groups)


def _exchanged(
    rule: type[Rule], what: str, param: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Tensor | None:
    """What one of a rule's formulas for exchanging weights makes of a parameter; None where it has no states yet.

    Raises:
        RuleError: no tensor of the parameter's shape.
    """
    formula: Any = getattr(rule, what)
    names = inspect.signature(formula).parameters
    if any(kept(state, name) is None for name in rule.states if name in names):
        return None
    own = {name: read_state(state, name, param.shape) for name in rule.states if name in names}
    own |= {name: as_number(group[name]) for name in rule.hyperparameters if name in names}
    value = formula(read_state({**state, "param": param.detach()}, "param", param.shape), **own)
    if not isinstance(value, Tensor) or value.shape != param.shape:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise RuleError(
            f"{rule.__name__}.{what} returned {shown} for a parameter of shape {tuple(param.shape)}: it must return the new param"
        )
    return value


BASES.update(evaluated=_Exchanging, begins_early=_BegunEarly)
