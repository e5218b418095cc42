"""What an optimizer hands out: state dicts, and the numbers behind its states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from steprule.formats.parts import cut_like, is_sharded, local, sendable
from steprule.hyper import MULTIPLIERS, multiplied
from steprule.optimizer.core import NOTES
from steprule.optimizer.groups import Groups
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.tensors.memory import too_short
from steprule.tensors.misfit import misfit
from steprule.tensors.state import AVERAGE, GROUP_OPTIONS, has_arrays, kept, read_state, state_of


def plain_state_dict(groups: Groups, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of the optimizer with every state in float32, and without what torch.optim does not know."""
    rule, state = groups.core.rule, dict(saved["state"])
    params = [param for group in groups.groups for param in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, param in zip(numbers, params, strict=True):
        if number in state:
            plain, own = {}, own_states(state[number])
            for array, value in own.items():
                name = state_of(array, rule.states)
                if name is not None and kept(own, name) is not None:
                    plain[name] = read(groups, param, name)
                elif array != "step" or rule.keeps_step:
                    plain[array] = value
            state[number] = {name: x for name, x in plain.items() if state_of(name, ("param", AVERAGE)) is None}
    hidden = (*GROUP_OPTIONS, *NOTES, SCHEDULES, *MULTIPLIERS)
    plain_groups = [
        {k: v for k, v in (group | multiplied(group, rule.chosen(group).hyperparameters)).items() if k not in hidden}
        for group in saved["param_groups"]
    ]
    return {**saved, "state": state, "param_groups": plain_groups}


def as_saved(groups: Groups, saved: dict[str, Any]) -> dict[str, Any]:
    """What was saved, with weights that are aside and what torch.optim's class wants to find, in dtypes that can be sent."""
    its, states = groups.base.like_torch, saved.get("state", {})  # which a hook may have put elsewhere
    given = its.given if its is not None else None
    for number, param in enumerate(param for group in groups.groups for param in group["params"]):
        if number in states:
            state = groups.core.modes.saved(param, states[number])
            state = sendable(state) if is_sharded(param) else state
            extra = {} if its is None else _missing(state, its.unmissed)
            extra = extra if given is None else {**extra, **_given(given, state, param)}
            states[number] = {**state, **extra} if extra else state
    return saved


def _given(given: Callable[..., Mapping[str, Any]], state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """What torch.optim's class is to find besides; of a DTensor the part that is here, as torch does not reshape each that is cut."""
    found = given({name: local(x) for name, x in state.items()}, local(param).shape)
    return {name: cut_like(param, x) if is_sharded(param) else x for name, x in found.items()}


def _missing(state: Mapping[str, Any], unmissed: Sequence[str]) -> dict[str, Any]:
    """What torch.optim's class is to find in the place of states that it would not miss, where there are codes of them, so that its
    step raises.

    Without an entry of that name it begins with a momentum of 0, and with fused=True it writes beyond the end of a smaller tensor.
    """
    return {name: False for name in unmissed if name not in state and has_arrays(state, name)}


def own_states(state: Mapping[str, Any]) -> dict[str, Any]:
    """A saved state without what only torch.optim's class was to find."""
    return {name: x for name, x in state.items() if x is not False or kept({**state, name: None}, name) is None}


def read(groups: Groups, param: Tensor, name: str) -> Tensor:
    """The number behind each element of a parameter or a state; see `Optimizer.read`."""
    if not isinstance(param, Tensor):
        raise TypeError(f"read() takes one of the optimizer's parameters and the name of a state, not {param!r} first")
    if not any(param is other for group in groups.groups for other in group["params"]):
        raise KeyError(f"param of shape {tuple(param.shape)} is not one of this optimizer's parameters")
    state = groups.states.get(param, {})
    every = {**state, "param": param.detach()}
    own_group = next(group for group, one in groups.each() if one is param)
    rule, who = groups.core.rule.chosen(own_group), f"the parameter of shape {tuple(param.shape)}"
    whole = state_of(name, {"param", AVERAGE, *rule.states})
    if whole not in (None, name) and name in state:
        raise KeyError(f"{name!r} is a part of {whole!r}, and has no numbers of its own: read {whole!r}")
    own = kept(every, name)
    if own is None:
        raise KeyError(f"there is no state {name!r}; there are {', '.join(state) or 'none'}")
    if problem := too_short(param, who) or misfit(rule, state, param, who, own_group, converted=True):
        raise RuntimeError(problem)
    return own.clone() if name in (*rule.scalar_states, *rule.side_states) else read_state(every, name, param.shape)
