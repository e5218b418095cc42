"""Hyperparameters that are functions of the step."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from steprule.names import users_level

Schedule = Callable[[int], Any]
"""A hyperparameter's value for each step, counted from 1 by calls of ``step``."""

KEY = "schedules"
"""Where a group has the number of its functions: it goes with the group, wherever that is put and however it is copied.
The functions themselves could not be saved. No two optimizers give out the same number."""

_numbers = itertools.count()


class Schedules:
    """The functions of one optimizer, and what they give for the step to come.

    Attributes:
        calls: how many steps there were.
        is_set: whether groups have what functions give for the next one.
        defaults: the functions of groups that say nothing else.
    """

    def __init__(self, defaults: Mapping[str, Schedule]) -> None:
        self.calls, self.is_set = 0, True
        self.defaults = dict(defaults)
        self._functions: dict[int, dict[str, Schedule]] = {}
        self._given: dict[int, dict[str, Any]] = {}  # of the groups that were there
        self._warned: set[tuple[int, str]] = set()

    def take(self, group: dict[str, Any], functions: Mapping[str, Schedule]) -> None:
        """Gives a group functions, whose values it has; those of other hyperparameters stay."""
        known = self._functions.get(group.get(KEY, -1), {})
        group[KEY] = number = next(_numbers)
        self._functions[number] = {**known, **functions}
        self._given[number] = {name: _plain(group[name]) for name in self._functions[number]}

    def knows(self, group: Mapping[str, Any]) -> bool:
        """Whether the group has functions, and has them from here."""
        return group.get(KEY) in self._functions

    def functions_of(self, group: Mapping[str, Any]) -> Mapping[str, Schedule]:
        """The group's functions, by the hyperparameters that they give."""
        return self._functions.get(group.get(KEY, -1), {})

    def count(self, calls: int) -> None:
        """There were so many steps now."""
        self.calls, self.is_set = calls, False

    def values(self, groups: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """What the functions of these groups give for the next step, by the groups' numbers."""
        numbers = {group[KEY]: None for group in groups if self.knows(group)}
        return {n: {name: one(self.calls + 1) for name, one in self._functions[n].items()} for n in numbers}

    def set(self, groups: Iterable[dict[str, Any]], values: dict[int, dict[str, Any]]) -> None:
        """Puts these into the groups."""
        for group in groups:
            group.update(values.get(group.get(KEY, -1), {}))
        self.is_set = True
        self._given = {n: {name: _plain(value) for name, value in own.items()} for n, own in values.items()}

    def insist(self, groups: Sequence[dict[str, Any]]) -> None:
        """Puts back what the functions gave if something else was written over it, and warns of that once."""
        back = [group for group in groups if self.knows(group) and group[KEY] not in self._given]
        for number, own in self.values(back).items():  # of groups that were away
            self._given[number] = {name: _plain(value) for name, value in own.items()}
            for group in back:
                group.update(own if group[KEY] == number else {})
        for index, group in enumerate(groups):
            number = group.get(KEY, -1)
            for name, value in self._given.get(number, {}).items():
                written = group.get(name)
                if _plain(written) == value or callable(written):  # a new function
                    continue
                group[name] = value
                if (number, name) not in self._warned:
                    self._warned.add((number, name))
                    warnings.warn(
                        f"{name} of parameter group {index} is a function of the step, which gave {value}, and "
                        f"{written} was written over it, as by a learning rate scheduler. The function wins, here and in "
                        f"every step. del optimizer.param_groups[{index}][{KEY!r}] ends the functions of that group, which "
                        f"then keeps what is written; for a scheduler make the optimizer with a number as {name}",
                        UserWarning,
                        stacklevel=users_level(),
                    )


def _plain(value: Any) -> Any:
    """A setting with tensors read, which may be filled in place."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
