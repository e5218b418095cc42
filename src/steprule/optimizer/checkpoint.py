"""What a checkpoint has beyond torch.optim's, and how one is taken over."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steprule import rules
from steprule.formats import weight_format
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.services.clip import unpacked
from steprule.step.listed import name_in
from steprule.tensors.memory import DTYPES, name_of
from steprule.tensors.state import (
    AVERAGE,
    FORMAT_OPTIONS,
    average_format,
    convert,
    drop_other_correction,
    has_arrays,
    kept,
    kept_format,
    misfit,
    set_arrays,
    state_format,
    state_of,
    with_new_names,
    wrong_step,
)

if TYPE_CHECKING:
    from steprule.optimizer.core import Core
    from steprule.optimizer.front import Optimizer

logger = logging.getLogger("steprule")


def steps_of(states: Iterable[Mapping[str, Any]]) -> int:
    """How many steps these states have seen, 0 if they do not know."""
    return max((int(state["step"]) for state in states if state.get("step") is not None), default=0)


NOTES = ("services", "calls", "train_mode")
"""What groups have besides settings, if the optimizer has what it is about. Older checkpoints had it beside the groups."""


def notes_of(core: Core) -> dict[str, Callable[[], Any]]:
    """Says what the next step depends on besides states and settings: to be asked only when it is wanted, since a GPU may be
    waited for."""
    notes: dict[str, Callable[[], Any]] = {}
    if core.services is not None:
        notes["services"] = core.services.state_dict
    if core.schedules is not None:
        notes["calls"] = lambda: core.calls
    if core.has_modes:
        notes["train_mode"] = lambda: core.modes.training
    return notes


def take_notes(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes that over from a state dict."""
    core = optimizer._core
    notes = {name: group[name] for group in saved["param_groups"] for name in NOTES if name in group}
    notes |= {name: saved[name] for name in NOTES if name in saved}
    notes.setdefault("train_mode", saved.get("training", True))
    states = [state for state in saved["state"].values() if isinstance(state, Mapping)]
    _tell_what_is_dropped(optimizer, notes, states)
    if core.has_modes:  # the model is to have the weights that it was saved with
        core.modes.training = bool(notes["train_mode"])
    if core.schedules is not None:
        core.schedules.count(int(notes["calls"]) if "calls" in notes else steps_of(states) or core.schedules.calls)
    if core.services is None:
        return
    core.services.load_state_dict(notes.get("services", {}))
    if not any(AVERAGE in state for state in states):
        core.services.averaged = 0
    elif "services" not in notes:  # taken off by someone who knows states and settings only
        core.services.averaged = steps_of(states) or 1


def _tell_what_is_dropped(optimizer: Optimizer, notes: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> None:
    """Warns of what was saved and this optimizer was not made for: its own checkpoints will not have it."""
    core = optimizer._core
    own, services = core.services, notes.get("services", {})
    dropped = {
        "averages of weights (average)": any(AVERAGE in state for state in states)
        and (own is None or own.average is None),
        "recent norms (clip=ClipQuantile(...))": unpacked(services.get("recent", ()))
        and (own is None or not own.recent.maxlen),
        "counts of clipped and skipped steps and zeroed elements (clip, nonfinite)": own is None
        and any(services.get(name) for name in ("clipped", "skipped", "zeroed")),
        "how many steps functions of hyperparameters have seen": notes.get("calls") and core.schedules is None,
    }
    if any(dropped.values()):
        logger.warning(
            "steprule: the loaded state dict has %s, which this %s was made without, and which are dropped",
            " and ".join(what for what, is_lost in dropped.items() if is_lost), type(optimizer).__name__,
        )  # fmt: skip


class Loading:
    """What load_state_dict must know beyond what torch.optim's does with a state dict."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._formats = [{k: g[k] for k in FORMAT_OPTIONS if k in g} for g in optimizer.param_groups]
        self._own = [{k: g[k] for k in ("clip", SCHEDULES) if k in g} for g in optimizer.param_groups]
        numbers = [name for name, value in optimizer._core.rule.hyperparameters.items() if not isinstance(value, bool)]
        self._numbers = [{k: g[k] for k in numbers if k in g} for g in optimizer.param_groups]
        self._dtypes = {
            (param, name): kept_format(state, name)
            for param, state in optimizer.state.items()
            if isinstance(param, Tensor)
            for name in optimizer._core.rule.tensor_states
            if kept(state, name) is not None
        }
        self._source: dict[str, Any] = {}

    def remember(self, optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The last of the pre-hooks: this is what will be loaded, if it fits."""
        for key in ("param_groups", "state"):
            if key not in state_dict:
                raise KeyError(
                    f"state_dict has no {key!r}: it is none that an optimizer's state_dict() returned; it has "
                    f"{', '.join(map(str, [*state_dict][:5])) or 'nothing'}"
                )
        numbers = {number for group in state_dict["param_groups"] for number in group["params"]}
        by_text = {str(number): number for number in numbers if number not in state_dict["state"]}  # as JSON has them
        keyed = {by_text.get(key, key) if isinstance(key, str) else key: x for key, x in state_dict["state"].items()}
        states = {number: with_new_names(state) if number in numbers else state for number, state in keyed.items()}
        self._source = {**state_dict, "state": states}
        self._check(optimizer)
        return self._source

    def _check(self, optimizer: Optimizer) -> None:
        """Raises for states that are another rule's, or another parameter's."""
        rule, groups, every = optimizer._core.rule, self._source["param_groups"], _every_state()
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            return  # which torch.optim is about to refuse
        for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
            present = rule.states_for(optimizer._complete({**saved}))
            needed = [name for name in type(optimizer).rule.states if name in present]  # what options add may begin now
            for index, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
                state = self._source["state"].get(key, {})
                has_begun = any(x is not None and state_of(name, rule.states) for name, x in state.items())
                missing = [name for name in needed if not has_arrays(state, name)]
                who = name_in(group, number, index)
                if state.get("step") is not None and (problem := wrong_step(state["step"], who)):
                    raise ValueError(problem)
                if missing and not has_begun and not float(state.get("step") or 0) > 0:
                    missing = []  # it begins anew
                own = type(optimizer).rule
                if has_begun and own.keeps_step and own.counts_steps and state.get("step") is None:
                    missing.append("step")
                foreign = [
                    name for name in state if state_of(name, rule.states) is None and state_of(name, every) is not None
                ]
                if missing or foreign:
                    parts = [f"lacks {', '.join(missing)}"] * bool(missing)
                    parts += [f"has {', '.join(foreign)}, which it does not keep"] * bool(foreign)
                    raise ValueError(
                        f"the loaded state dict is not one of {type(optimizer).__name__} with these options: the state of {who} "
                        f"{' and '.join(parts)}; load it into an optimizer like the one that saved it, or load its weights "
                        "alone and begin anew"
                    )
                if problem := misfit(rule, state, param, who, converted=True):
                    raise ValueError(problem)

    def restore(self, optimizer: Optimizer) -> None:
        """Puts back formats, and states as they were before torch.optim cast them to the parameter's dtype."""
        take_notes(optimizer, self._source)
        for group, own in zip(optimizer.param_groups, self._own, strict=True):
            for name in ("clip", SCHEDULES, *NOTES):
                group.pop(name, None)
            group.update(own)
        for group, numbers in zip(optimizer.param_groups, self._numbers, strict=True):
            for name, value in numbers.items():  # what was not saved stays as it is
                group.setdefault(name, value)
        for group, saved, own in zip(optimizer.param_groups, self._source["param_groups"], self._formats, strict=True):
            seed = group.get("seed", own.get("seed", 0))
            for name in FORMAT_OPTIONS:
                group.pop(name, None)
            group.update({**own, "seed": seed} if own else {})
            for number, param in zip(saved["params"], group["params"], strict=True):
                for name, value in self._source["state"].get(number, {}).items():
                    is_known = state_of(name, ("step", "param", AVERAGE, *optimizer._core.rule.states)) is not None
                    if isinstance(value, Tensor) and is_known:
                        is_number = name == "step" or name in optimizer._core.rule.scalar_states  # which lies elsewhere
                        optimizer.state[param][name] = value if is_number else value.to(param.device)

    def convert(self, optimizer: Optimizer) -> None:
        """Brings loaded states into this optimizer's formats."""
        for group in optimizer.param_groups:
            for param in group["params"]:
                state = optimizer.state.get(param, {})
                if optimizer._core.services is None or optimizer._core.services.average is None:
                    set_arrays(state, AVERAGE, {})
                elif AVERAGE in state and param.dtype in DTYPES:
                    convert(state, AVERAGE, average_format(group.get("weights"), name_of(param.dtype)), param)
                if param.dtype not in DTYPES:
                    for name in (AVERAGE, *optimizer._core.rule.tensor_states):
                        if isinstance(state.get(name), Tensor):
                            state[name] = state[name].to(param.dtype)
                    continue
                dtype = name_of(param.dtype)
                for name in optimizer._core.rule.tensor_states:
                    if kept(state, name) is not None:
                        kind = self._dtypes.get((param, name), dtype)
                        if group.get("states") is not None:
                            kind = state_format(optimizer._core.rule, name, group, param)
                        convert(state, name, kind, param)
                drop_other_correction(state, weight_format(group.get("weights"), dtype))


def _every_state() -> frozenset[str]:
    """The names of all rules' states. A state of another name is the user's own, and left alone."""
    options = ("initial_param", "lr_max", "slow_param", "row_var", "col_var", "variance")  # and torch.optim.Adafactor's
    return frozenset(itertools.chain(options, *(rule.states for rule in rules.RULES.values())))
