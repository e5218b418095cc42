"""How a checkpoint, which has more than torch.optim's, is taken over."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from steprule import rules
from steprule.beside import KEY, word_of
from steprule.formats import weight_format
from steprule.formats.parts import as_kept
from steprule.hyper import MULTIPLIERS
from steprule.optimizer.arguments import SERVICE_OPTIONS
from steprule.optimizer.core import NOTES
from steprule.optimizer.groups import Groups
from steprule.optimizer.saved import own_states
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.rule import Rule
from steprule.rules.options import OPTIONS, added_names
from steprule.services.clip import unpacked
from steprule.services.ledger import REMEMBERED
from steprule.step.listed import name_in
from steprule.tensors.average import Aside
from steprule.tensors.memory import DTYPES, HALF_DTYPES, dtype_name
from steprule.tensors.misfit import freed, misfit, wrong_step
from steprule.tensors.state import (
    AVERAGE,
    GROUP_OPTIONS,
    TRAINED,
    average_format,
    convert,
    drop_other_low_bits,
    has_arrays,
    kept,
    kept_format,
    low_bits_dtype,
    own_copy,
    set_arrays,
    state_format,
    state_of,
)

logger = logging.getLogger("steprule")


def steps_of(states: Iterable[Mapping[str, Any]]) -> int:
    """How many steps these states have seen, 0 if they do not know."""
    return max((int(state["step"]) for state in states if state.get("step") is not None), default=0)


def notes_in(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a state dict says of services, schedules and modes."""
    notes = {name: group[name] for group in saved["param_groups"] for name in NOTES if name in group}
    return {"train_mode": True, **notes}


def check_notes(notes: Mapping[str, Any]) -> None:
    """Raises for what no optimizer has written.

    Raises:
        ValueError: a note is not what it should be; the message has its name and value.
    """
    calls, services = notes.get("calls", 0), notes.get("services", {})
    if not _is_count(calls):
        raise ValueError(f"the loaded state dict has calls={calls!r}, which must be a number of steps")
    if not isinstance(services, Mapping):
        raise ValueError(f"the loaded state dict has services={services!r}, which must be a dict")
    for name, value in services.items():
        if name == "recent":
            is_right = isinstance(value, Tensor) and value.ndim == 1
        else:
            is_right = name in REMEMBERED and (_is_number(value) if name == "norm" else _is_count(value))
        if not is_right:
            raise ValueError(f"the loaded state dict has services[{name!r}]={value!r}, which no optimizer writes")


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, Tensor) and value.numel() == 1
    return is_one or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_count(value: Any) -> bool:
    return _is_number(value) and float(value) >= 0 and float(value).is_integer()


def take_notes(groups: Groups, saved: Mapping[str, Any]) -> None:
    """Takes over what a state dict says of services, schedules and modes."""
    core, notes = groups.core, notes_in(saved)
    states = [state for state in saved["state"].values() if isinstance(state, Mapping)]
    _tell_what_is_dropped(groups, notes, states)
    if core.has_modes:  # the model is to have the weights that it was saved with
        core.modes.training = bool(notes["train_mode"])
    if core.schedules is not None:
        core.schedules.count(int(notes["calls"]) if "calls" in notes else steps_of(states) or core.schedules.calls)
    if core.services is None:
        return
    core.services.load_state_dict(notes.get("services", {}))
    if "services" not in notes:  # taken off by someone who knows states and settings only
        has_averages = any(AVERAGE in state for state in states)
        core.services.look().averaged = (steps_of(states) or 1) if has_averages else 0


def _tell_what_is_dropped(groups: Groups, notes: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> None:
    """Warns of what was saved and this optimizer was not made for: its own checkpoints will not have it."""
    core = groups.core
    own, services = core.services, notes.get("services", {})
    has_averages = any(AVERAGE in state for state in states) and (own is None or own.average is None)
    dropped = {
        "averages of weights (average)": has_averages and notes["train_mode"],
        "the weights whose averages the model was saved with (average)": has_averages and not notes["train_mode"],
        "recent norms (clip=ClipQuantile(...))": "recent" in services
        and unpacked(services["recent"])
        and (own is None or not own.ledger.on_host().recent.maxlen),
        "counts of clipped and skipped steps and zeroed elements (clip, nonfinite)": own is None
        and any(services.get(name) for name in ("clipped", "skipped", "zeroed")),
        "how many steps functions of hyperparameters have seen": notes.get("calls") and core.schedules is None,
    }
    if any(dropped.values()):
        logger.warning(
            "steprule: the loaded state dict has %s, which this %s was made without, and which are dropped",
            " and ".join(what for what, is_lost in dropped.items() if is_lost), groups.name,
        )  # fmt: skip


class Loading:
    """What load_state_dict must know beyond what torch.optim's does with a state dict.

    Args:
        groups: those of the optimizer that loads. Its hooks may change them, and load something else in between.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups, self._rule = groups, groups.core.rule
        self._source: dict[str, Any] = {}
        of_all = [name for name in (*SERVICE_OPTIONS, *OPTIONS) if name not in self._rule.hyperparameters]
        self._kept = (*of_all, SCHEDULES)  # which the groups of a ZeroRedundancyOptimizer have

    def __enter__(self) -> Loading:
        """From here to the end torch.optim loads."""
        optimizer = self._groups.optimizer
        self._outer: Loading | None = vars(optimizer).get("_loading")
        self._hooks = optimizer._optimizer_load_state_dict_pre_hooks if self._outer is None else self._outer._hooks
        optimizer._optimizer_load_state_dict_pre_hooks = OrderedDict({**self._hooks, object(): self._remember})
        return self

    def __exit__(self, *_: object) -> None:
        self._groups.optimizer._optimizer_load_state_dict_pre_hooks = self._hooks
        if self._outer is not None:
            self._groups.optimizer._loading = self._outer
        else:
            del self._groups.optimizer._loading

    def _remember(self, _: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The last of the pre-hooks: this is what will be loaded, if it fits."""
        self._groups.optimizer._optimizer_load_state_dict_pre_hooks = self._hooks
        self._look()
        for key in ("param_groups", "state"):
            if key not in state_dict:
                raise KeyError(
                    f"state_dict has no {key!r}: it is not what an optimizer's state_dict() returned; it has "
                    f"{', '.join(map(str, [*state_dict][:5])) or 'nothing'}"
                )
        numbers = {number for group in state_dict["param_groups"] for number in group["params"]}
        by_text = {str(number): number for number in numbers if number not in state_dict["state"]}  # as JSON has them
        keyed = {by_text.get(key, key) if isinstance(key, str) else key: x for key, x in state_dict["state"].items()}
        its = self._groups.base.like_torch
        taken: Any = its.taken if its is not None and its.taken is not None else dict
        states = {
            number: taken(as_kept(own_states(state))) if number in numbers and isinstance(state, Mapping) else state
            for number, state in keyed.items()
        }
        self._source = {**state_dict, "state": states}
        self._check()
        return self._source

    def _look(self) -> None:
        """Takes note of what is there before."""
        groups = self._groups
        self._before = groups.groups, groups.states
        self._formats = [{k: g[k] for k in GROUP_OPTIONS if k in g} for g in groups.groups]
        self._own = [{k: g[k] for k in self._kept if k in g} for g in groups.groups]
        self._numbers = [{k: g[k] for k in self._numbers_of(g) if k in g} for g in groups.groups]
        self._dtypes = {
            (param, name): kept_format(state, name)
            for param, state in groups.states.items()
            if isinstance(param, Tensor)
            for name in self._rule.tensor_states
            if kept(state, name) is not None
        }

    def _numbers_of(self, group: Mapping[str, Any]) -> list[str]:
        """What a loaded group keeps of this one's settings where it says nothing."""
        hyper = self._rule.chosen(group).hyperparameters
        return [KEY, *(name for name, value in hyper.items() if not isinstance(value, bool)), *MULTIPLIERS]

    def _check(self) -> None:
        """Raises for states that are another rule's, or another parameter's."""
        groups, every = self._source["param_groups"], _every_state(self._groups.base)
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self._groups.groups]:
            return  # which torch.optim is about to refuse
        for number, (group, saved) in enumerate(zip(self._groups.groups, groups, strict=True)):
            saved = {**{k: group[k] for k in (KEY,) if k in group}, **saved}
            its = self._rule.chosen(saved)
            prefix = f"{word_of(its)}_"
            old = [name for name in saved if name.startswith(prefix) and name not in its.hyperparameters]
            if KEY in self._rule.hyperparameters and old:
                raise ValueError(
                    f"the loaded parameter group {number} has {', '.join(old)}, as steprule once wrote them: rename them in the state dict, "
                    f"without {prefix!r}, in the place of what has their names"
                )
            hyper = {**self._groups.complete({**saved}), "view": group.get("view")}  # which stays the group's own
            for index, (key, param) in enumerate(zip(saved["params"], group["params"], strict=True)):
                state = self._source["state"].get(key, {})
                self._check_state(state, param, hyper, name_in(group, number, index), every)
        check_notes(notes_in(self._source))

    def _check_state(
        self, state: Mapping[str, Any], param: Tensor, hyper: Mapping[str, Any], who: str, every: frozenset[str]
    ) -> None:
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of {who} is {state!r} and must be a dict of states")
        state = {name: value for name, value in state.items() if value is not None}
        if problem := freed(state, who):
            raise ValueError(problem)
        without = [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]
        if without and not param.is_meta:
            raise ValueError(f"the state {without[0]} of {who} is on the meta device, and has no numbers")
        rule, base = self._rule.chosen(hyper), self._groups.base.chosen(hyper)
        present = rule.states_for(hyper)
        missing = [name for name in base.states if name in present and not has_arrays(state, name)]
        has_begun = any(x is not None and state_of(name, rule.states) for name, x in state.items())
        if state.get("step") is not None and (problem := wrong_step(state["step"], who)):
            raise ValueError(problem)
        if missing and not has_begun and not float(state.get("step") or 0) > 0:
            missing = []  # it begins anew
        if has_begun and base.keeps_step and base.counts_steps and state.get("step") is None:
            missing.append("step")
        foreign = [name for name in state if state_of(name, rule.states) is None and state_of(name, every) is not None]
        if missing or foreign:
            parts = [f"lacks {', '.join(missing)}"] * bool(missing)
            parts += [f"has {', '.join(foreign)}, which it does not keep"] * bool(foreign)
            raise ValueError(
                f"the loaded state dict is not one of {self._groups.name} with these options: the state of {who} "
                f"{' and '.join(parts)}; load it into an optimizer like the one that saved it, or load its weights "
                "alone and begin anew"
            )
        problem = misfit(rule, state, param, who, hyper, converted=True) or _mixed(state, param, hyper, who)
        if problem:
            raise ValueError(problem)

    def finish(self) -> None:
        """Makes what torch.optim has put into groups and states this optimizer's own, or puts back what was there before.

        Raises:
            ValueError: a state cannot be what it was saved as; nothing has changed.
        """
        core, optimizer = self._groups.core, self._groups.optimizer
        core.plans.current, begun_with = None, core.begun_with
        try:
            self._restore()
            for group in self._groups.groups:
                self._groups.complete(group)
            aside = self._convert()
            core.begun_with = {}
            self._groups.check_constants()  # which takes note of those that were loaded
        except Exception:
            optimizer.param_groups, optimizer.state = self._before
            core.begun_with = begun_with
            raise
        core.completed = list(self._groups.groups)
        core.modes.take(aside)
        take_notes(self._groups, self._source)
        self._groups.set_scheduled_if_possible()
        self._groups.note()

    def _restore(self) -> None:
        """Puts back formats, and states as they were before torch.optim cast them to the parameter's dtype."""
        groups, states = self._groups.groups, self._groups.states
        for group, own in zip(groups, self._own, strict=True):
            for name in (*self._kept, *NOTES):
                group.pop(name, None)
            group.update(own)
        for group, numbers in zip(groups, self._numbers, strict=True):
            known = self._numbers_of({**numbers, **group})
            for name, value in numbers.items():  # what was not saved stays as it is
                if name in known:
                    group.setdefault(name, value)
        for group, saved, own in zip(groups, self._source["param_groups"], self._formats, strict=True):
            seed = group.get("seed", own.get("seed", 0))
            for name in GROUP_OPTIONS:
                group.pop(name, None)
            group.update({**own, "seed": seed} if "seed" in own else own)
            for number, param in zip(saved["params"], group["params"], strict=True):
                for name, value in self._source["state"].get(number, {}).items():
                    is_known = state_of(name, ("step", "param", AVERAGE, *self._rule.states)) is not None
                    if isinstance(value, Tensor) and is_known:
                        is_number = name == "step" or name in self._rule.scalar_states  # which lies elsewhere
                        states[param][name] = value if is_number else value.to(param.device)

    def _convert(self) -> dict[Tensor, Aside]:
        """Makes loaded states this optimizer's own, in its formats; weights that are aside, while the model has their averages."""
        core, aside = self._groups.core, {}
        is_swapped = not core.has_modes and not notes_in(self._source)["train_mode"]
        for number, group in enumerate(self._groups.groups):
            for index, param in enumerate(group["params"]):
                state = self._groups.states.get(param, {})
                try:
                    self._convert_state(state, param, group)
                    trained = state.pop(TRAINED, None)
                    if is_swapped and AVERAGE in state:
                        aside[param] = Aside.found(param, state, trained)
                except Exception as error:
                    who = name_in(group, number, index)
                    raise ValueError(f"the loaded state of {who} cannot be taken over: {error}") from error
        return aside

    def _convert_state(self, state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
        rule, services = self._rule.chosen(group), self._groups.core.services
        for name, value in state.items():
            state[name] = own_copy(name, value, param, group, rule)
        if services is None or services.average is None or state.get(AVERAGE, 0) is None:
            set_arrays(state, AVERAGE, {})
        elif AVERAGE in state and param.dtype in DTYPES:
            convert(state, AVERAGE, average_format(group.get("weights"), dtype_name(param.dtype)), param)
        if param.dtype not in DTYPES:
            for name in (AVERAGE, *rule.tensor_states):
                if isinstance(state.get(name), Tensor):
                    state[name] = state[name].to(param.dtype)
            return
        dtype = dtype_name(param.dtype)
        for name in rule.tensor_states:
            if kept(state, name) is not None:
                kind = self._dtypes.get((param, name), dtype)
                if group.get("states") is not None:
                    kind = state_format(rule, name, group, param)
                convert(state, name, kind, param)
        drop_other_low_bits(state, weight_format(group.get("weights"), dtype))


def _mixed(state: Mapping[str, Any], param: Tensor, saved: Mapping[str, Any], who: str) -> str | None:
    """What is wrong if low bits are others than their group says, as torch.distributed.checkpoint casts them where it loads into
    the state dict of an optimizer with another format; or None."""
    if param.dtype not in HALF_DTYPES or saved.get("weights") is None:
        return None
    wanted = low_bits_dtype(weight_format(saved["weights"], dtype_name(param.dtype)))
    for name in ("param_correction", f"{AVERAGE}_correction"):
        low = state.get(name)
        if isinstance(low, Tensor) and dtype_name(low.dtype) != wanted:
            return (
                f"the state {name} of {who} is {low.dtype}, and was saved with weights={saved['weights']!r}: load it into an optimizer "
                "with that format, and that one's state_dict() into this one"
            )
    return None


_TORCHS = ("variance",)
"""States of torch.optim's classes, which no rule has."""


def _every_state(own: type[Rule]) -> frozenset[str]:
    """The names of all rules' states and of what options keep beside them. A state of another name is the user's own, and
    left alone.

    Args:
        own: a rule that may be in no registry.
    """
    every = (own, *rules.RULES.values())
    return frozenset(chain(_TORCHS, *((*rule.states, *added_names(rule).values()) for rule in every)))
