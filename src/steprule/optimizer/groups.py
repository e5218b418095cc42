"""The parameter groups of an optimizer: what was put into them by arguments, by a checkpoint or by hand is checked and completed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import ref

from torch import Tensor

from steprule.beside import unread
from steprule.engine.surroundings import in_peace
from steprule.formats.parts import is_sharded
from steprule.hyper import MULTIPLIERS, whole_of
from steprule.optimizer.arguments import (
    FLAGS,
    check_clip,
    check_formats,
    check_halves,
    check_sparse_only,
    check_tensors,
    flags_of,
    is_elsewhere,
    is_torchs,
)
from steprule.optimizer.core import NOTES, Core
from steprule.optimizer.keys import check_multipliers, refuse_change, refuse_options, warn_of_misspelled
from steprule.optimizer.parts import check_matrices, check_nonzero, check_whole
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.optimizer.schedules import Schedule, Schedules
from steprule.rules.options import check_lookahead
from steprule.settings import as_tuples, check_hyperparameters, check_settings, check_together, number_at
from steprule.step.listed import Listed, list_all
from steprule.tensors.memory import MIXABLE, is_fake
from steprule.tensors.state import FORMAT_OPTIONS, GROUP_OPTIONS, widen_numbers
from steprule.trace.numbers import check_nan, check_numbers


class Groups:
    """The parameter groups of one optimizer: settings are checked and completed, and functions of the step set.

    Args:
        optimizer: whose.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = ref(optimizer)
        made = type(optimizer)
        self.name, self.base = made.__name__, made.rule
        its = self.base.like_torch
        self.flags, self.fixed = flags_of(self.base), its.fixed if its is not None else {}
        self._spelled: set[str] = {*NOTES, SCHEDULES, "initial_lr", *self.fixed}  # keys that need no second look

    @property
    def optimizer(self) -> Any:
        """The optimizer itself, also where a wrapper of it asks."""
        optimizer = self._optimizer()
        assert optimizer is not None
        return optimizer

    @property
    def core(self) -> Core:
        """What the optimizer has for itself."""
        return self.optimizer._core  # type: ignore[no-any-return]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups."""
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def states(self) -> Any:
        """The states."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:
        """What groups that say nothing else have."""
        return self.optimizer.defaults  # type: ignore[no-any-return]

    def defaults_of(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What a group with these settings has that says nothing else: of another rule than most groups, that rule's own defaults."""
        core, rule = self.core, self.core.rule.chosen(settings)
        known = {*core.rule.hyperparameters, *self.flags, *self.fixed, *FORMAT_OPTIONS}  # torch adds others to defaults
        every = {name: x for name, x in self.defaults.items() if name in known}
        if rule is core.rule.chosen(self.defaults):
            return every | (core.schedules.defaults if core.schedules is not None else {})
        others = {name: x for name, x in every.items() if name not in core.rule.hyperparameters}
        return others | {name: core.options.get(name, default) for name, default in rule.hyperparameters.items()}

    def check(self, settings: Mapping[str, Any], core: Core | None = None) -> None:
        """Raises for hyperparameters and flags that make no sense.

        Args:
            settings: all of them, by name.
            core: what the optimizer is going to have for itself, while it has nothing yet.
        """
        core, its = core or self.core, self.base.like_torch
        if its is not None and its.tensor_betas:
            check_tensors(settings, "lr")
        self.check_options(settings, core)
        rule = core.rule.chosen(settings)
        for check in (check_settings, check_numbers, check_nan):
            check(rule, settings)
        if settings.get("fused"):
            if settings.get("differentiable"):
                raise RuntimeError("`fused` does not support `differentiable`")
            if settings.get("foreach"):
                raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if its is not None and its.tensor_betas:
            check_tensors(settings, "betas")

    def check_options(self, settings: Mapping[str, Any], core: Core) -> None:
        """Raises for options, formats and flags that make no sense, alone or together."""
        decay = core.options["decay"]
        if "decoupled_weight_decay" in core.rule.hyperparameters and settings.get("decoupled_weight_decay"):
            if decay not in (None, "decoupled"):
                raise ValueError(f"decay={decay!r} and decoupled_weight_decay=True contradict each other")
            if decay is None and core.rule is not self.base:
                raise ValueError('decoupled_weight_decay=True in a group needs decay="decoupled" beside other options')
        if "lookahead" in core.rule.hyperparameters and "lookahead" in settings:
            check_lookahead(settings["lookahead"])
        check_formats(settings)
        check_multipliers(core.rule.chosen(settings), settings)
        for name in self.flags:
            if settings.get(name) not in (None, True, False):
                raise TypeError(f"{name} must be True or False, not {settings[name]!r}")

    def keep_functions(self, group: dict[str, Any]) -> dict[str, Any]:
        """The caller's dict, as torch.optim has it, or a copy where that would lose the functions in it, which another
        optimizer may want too."""
        has_own = any(callable(group.get(name)) for name in self.core.rule.chosen(group).hyperparameters)
        if not has_own and SCHEDULES not in group and self.core.schedules is None:
            return group
        if isinstance(group.get("params"), Iterator):
            group["params"] = list(group["params"])
        return dict(group)

    @in_peace
    def add(self, group: Any, by_torch: Callable[[Any], None]) -> None:
        """Adds a group; see `Optimizer.add_param_group`.

        Args:
            group: as the caller gave it.
            by_torch: torch.optim's own way to add it.
        """
        core, number = self.core, len(self.groups)
        functions: dict[str, Schedule] = {}
        if isinstance(group, dict):
            group = self.keep_functions(group)
        try:
            if isinstance(group, dict):
                if core.schedules is None or not core.schedules.knows(group):
                    group.pop(SCHEDULES, None)  # of another optimizer
                given, defaults = {*group}, self.defaults_of(group)
                group |= {name: x for name, x in defaults.items() if callable(x) and name not in group}
                functions = self.take_functions(group, core.calls)
                self.check_keys(group)
                self.check(settings := {**defaults, **group})
                group |= settings
            core.plans.current = None
            by_torch(group)
            for name in unread(core.rule, group) - given:  # which torch.optim has put there
                group.pop(name, None)
            self.check_parameters(number)
        except Exception:
            del self.groups[number:]
            if functions:  # which another try is to find
                group.update(functions)
            raise
        self.schedule(self.groups[-1], functions)
        self.complete_formats()
        self.note()
        core.given.add(self.groups[-1]["params"])
        core.completed.append(self.groups[-1])
        self.watch()

    def complete(self, group: dict[str, Any]) -> dict[str, Any]:
        """Adds to a saved group what it had not yet when it was saved."""
        rule = self.core.rule.chosen(group)
        missing = {**FLAGS, **rule.hyperparameters, **self.core.options}
        for name in (*rule.hyperparameters, *self.flags):
            group.setdefault(name, missing[name])
        group.update(self.fixed)
        return group

    def take_over(self, is_copy: bool) -> None:
        """Makes the groups and states of a copy, or those that somebody has given by `__setstate__`, this optimizer's own."""
        core = self.core
        core.plans.current = None
        core.completed = list(self.groups)
        for group in self.groups:
            if is_copy:
                core.given.add(group["params"])
                if core.accumulator is not None:
                    core.accumulator.watch_free(group["params"])
            self.complete(group)
            for param in group["params"]:
                if param in self.states:  # which are its own already, or shared on purpose
                    widen_numbers(self.states[param], param, group, core.rule)

    def each(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every parameter with its group, once: it may be listed twice."""
        groups = {param: group for group in self.groups for param in group["params"]}
        return ((group, param) for param, group in groups.items())

    def complete_formats(self) -> None:
        """Gives all groups formats, a view and multipliers, if one has some."""
        for options in (FORMAT_OPTIONS, {"view": None}, dict.fromkeys(MULTIPLIERS, 1.0)):
            if any(name in group for group in self.groups for name in options):
                for group in self.groups:
                    group |= {name: default for name, default in options.items() if name not in group}

    def watch(self) -> None:
        """Tells those who hook into gradients whose they are."""
        own = dict.fromkeys(param for group in self.groups for param in group["params"])
        for one in (self.core.accumulator, self.core.release):
            if one is not None:
                one.watch_only(own)

    def look(self) -> None:
        """Checks what someone has put into groups or their list by hand, and completes it as `add_param_group` does.

        Raises:
            ValueError: a setting makes no sense, or is for the whole optimizer.
            TypeError: it is of the wrong kind.
        """
        for number, group in enumerate(self.groups):
            gone = [name for name in self.core.rule.chosen(group).hyperparameters if name not in group]
            if gone and any(group is known for known in self.core.completed):
                raise KeyError(f"{gone[0]} was taken out of group {number}, which had it: give it a value again")
            self.look_at(group)
        self.complete_formats()
        for number in range(len(self.groups)):
            self.check_parameters(number)
        if self.core.across is None:  # others may have what an argument is for
            check_halves(self.groups, self.core.accumulator)
        if any(name not in group for group in self.groups for name in self.core.notes()):
            self.note()
        self.core.completed = list(self.groups)
        self.core.begun_with = {param: begun for param, begun in self.core.begun_with.items() if self.states.get(param)}
        self.check_constants()
        self.watch()

    def look_at(self, group: dict[str, Any]) -> None:
        """Checks and completes one group, which stays as it is if anything is wrong."""
        settings = {**self.defaults_of(group), **group}
        if isinstance(settings["params"], Tensor):
            settings["params"] = [settings["params"]]
        self.check_keys(settings)
        self.check_fixed(settings)
        functions = self.take_functions(settings, self.core.calls)
        self.check_options(settings, self.core)
        self.check_settings(settings)
        group.update(settings)
        self.schedule(group, functions)

    def check_settings(
        self, settings: Mapping[str, Any], names: Iterable[str] | None = None, are_given: bool = False
    ) -> None:
        """Raises for hyperparameters that make no sense, if that is known without waiting for another device.

        Args:
            settings: all of a group.
            names: those to look at. Default: all.
            are_given: whether these were not put into the group by hand, where torch.optim's own rules take more, such as a
                negative lr. Default: False.
        """
        rule = self.core.rule.chosen(settings)
        names = [name for name in rule.hyperparameters if names is None or name in names]
        near = [name for name in names if not is_elsewhere(settings[name])]
        takes_more = is_torchs(self.base)
        check_hyperparameters(rule, settings, takes_more and not are_given, near)
        its = self.base.like_torch
        if takes_more and not are_given and not (its is not None and its.checks):
            return
        try:
            check_together(rule, settings)
        except ValueError:
            if not takes_more or self._fits(settings, names):
                raise
        check_numbers(rule, settings, near)

    def _fits(self, settings: Mapping[str, Any], names: Iterable[str]) -> bool:
        """Whether settings would go together if these were as the constructor had them."""
        try:
            check_together(self.core.rule, {**settings, **{name: self.defaults[name] for name in names}})
        except ValueError:
            return False
        return True

    def check_numbers(self, groups: Sequence[Mapping[str, Any]], names: set[str]) -> bool:
        """Checks numbers that have changed in groups, as `look` does; False if that has more to do."""
        for group in groups:
            if any(callable(group.get(name)) for name in names) or as_tuples(group, self.core.rule.chosen(group)):
                return False
            self.check_settings(group, names)
        if any(not names.isdisjoint(map(whole_of, self.base.chosen(group).constants)) for group in groups):
            self.check_constants()
        return True

    def check_fixed(self, group: Mapping[str, Any]) -> None:
        """Raises for what torch.optim's class has in its groups and no argument for, if it was changed."""
        for name, value in self.fixed.items():
            if group.get(name, value) != value:
                raise ValueError(f"{name}={group[name]!r} in a parameter group: with {self.name} it is {value!r}")

    def check_keys(self, group: Mapping[str, Any]) -> None:
        """Raises for what a group cannot have for itself, and warns of what may be a misspelled setting."""
        warn_of_misspelled(group, self.name, self.core.rule, (*self.flags, *GROUP_OPTIONS), self._spelled)
        refuse_options(group, self.core)

    def check_constants(self, listed: Iterable[Listed] | None = None) -> None:
        """Raises if what must stay as it was when a parameter began has been changed, of all parameters or of these."""
        listed = list_all(self.groups) if listed is None else listed
        every = [self.base.chosen(group).constants for group in self.groups]
        for number, group, _, param, _ in listed if any(every) else ():
            constants = every[number]
            values = {name: number_at(name, group) for name in constants}
            begun = self.core.begun_with.get(param, values) if self.states.get(param) else values
            for name, why in constants.items():
                if begun.get(name, values[name]) != values[name]:
                    refuse_change(name, begun[name], values[name], number, f"{self.name} needs it constant: {why}")
            self.core.begun_with[param] = values

    def check_parameters(self, number: int) -> None:
        """Raises for parameters that a group's formats or the services cannot serve."""
        group, services = self.groups[number], self.core.services
        chosen = {name: group[name] for name in ("states", "weights") if group.get(name) is not None}
        for index, param in enumerate(group["params"]):
            is_subclass = type(param).__torch_dispatch__ is not Tensor.__torch_dispatch__
            is_subclass &= not (is_fake(param) or is_sharded(param))
            for name, value in chosen.items():
                if param.dtype not in MIXABLE or is_subclass:
                    kind = param.dtype if param.dtype not in MIXABLE else type(param).__name__
                    raise ValueError(f"{name}={value!r} does not take {kind} (parameter {index} of its group)")
            if services is not None and (is_subclass or group.get("differentiable")):
                what = (
                    f"{type(param).__name__} (parameter {index} of its group)" if is_subclass else "differentiable=True"
                )
                raise ValueError(f"{' and '.join(services.names) or 'gradient release'} and {what} do not go together")
        check_clip(services.clip if services is not None else None, [group])
        check_whole(self.core, self.groups, number)
        check_matrices(self.core, self.groups, number)
        check_nonzero(self.core.rule.chosen(group), self.states, group, number)
        if self.core.rule.sparse_only:
            check_sparse_only(self.core.rule, number, group["params"])

    def take_functions(self, settings: dict[str, Any], calls: int) -> dict[str, Schedule]:
        """Takes functions of the step out of settings, and leaves what they give for the next after so many."""
        rule = self.base.chosen(settings)
        settings |= as_tuples(settings, rule)
        names = (*rule.hyperparameters, "lookahead_alpha")
        functions = {name: settings[name] for name in names if name in settings and callable(settings[name])}
        for name, why in rule.constants.items():
            if whole_of(name) in functions:
                raise ValueError(f"{whole_of(name)} of {self.name} cannot be a schedule: {why}")
        settings |= {name: function(calls + 1) for name, function in functions.items()}
        return functions

    def schedule(self, group: dict[str, Any], functions: Mapping[str, Schedule]) -> None:
        """Makes a group follow functions, whose values it has."""
        if functions:
            self.core.schedules = self.core.schedules or Schedules({})
            self.core.schedules.take(group, functions)
            self.core.plans.current = None

    def set_scheduled(self) -> None:
        """Sets what functions give for the next step."""
        assert self.core.schedules is not None
        values = self.core.schedules.values(self.groups)
        for group in self.groups:
            if own := values.get(group.get(SCHEDULES, -1)):
                self.check_settings({**group, **own}, own, are_given=True)
        self.core.schedules.set(self.groups, values)

    def set_scheduled_if_possible(self) -> None:
        """Sets them to be seen already; a function that fails raises its error in the step that needs its value."""
        if self.core.schedules is not None:
            with contextlib.suppress(Exception):
                self.set_scheduled()

    def insist_on_schedules(self) -> None:
        """Puts into groups, before a step, what their functions give."""
        if self.core.schedules is not None:
            if not self.core.schedules.is_set:
                self.set_scheduled()
            self.core.schedules.insist(self.groups)

    def note(self) -> None:
        """Writes into all groups what the next step depends on besides states and settings."""
        notes = {name: ask() for name, ask in self.core.notes().items()}
        self.core.noted = notes, [group[SCHEDULES] for group in self.groups if SCHEDULES in group]
        for group in self.groups:
            group.update(notes)
