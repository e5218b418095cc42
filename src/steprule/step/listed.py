"""Parameters where an optimizer lists them: their order, their places and their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count
from operator import is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from steprule.rule import Rule
from steprule.tensors.memory import too_short
from steprule.tensors.misfit import misfit

PARAMS_OF = itemgetter("params")


class Listed(NamedTuple):
    """A parameter where an optimizer lists it: in which group, where in that, and where among all parameters."""

    number: int
    group: dict[str, Any]
    position: int
    param: Tensor
    place: int


def list_all(groups: list[dict[str, Any]]) -> Iterator[Listed]:
    """All parameters of groups, with their places."""
    place = count()  # of all, so that one's number does not depend on the others' gradients
    for number, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            yield Listed(number, group, index, param, next(place))


class Seen:
    """The parameters of groups and their order, to be compared with later ones."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._lengths = _lengths_of(groups)
        self._objects = [*groups, *chain(*map(PARAMS_OF, groups))]

    def holds(self, groups: list[dict[str, Any]]) -> bool:
        """Whether the same groups have the same parameters still."""
        try:
            return _lengths_of(groups) == self._lengths and all(
                map(is_, chain(groups, *map(PARAMS_OF, groups)), self._objects)
            )
        except (TypeError, KeyError):  # a group that nobody has completed yet
            return False


def _lengths_of(groups: list[dict[str, Any]]) -> list[int]:
    """How many parameters each group has: it shows if one goes to the next group, where the sequence of all stays."""
    return list(map(len, map(PARAMS_OF, groups)))


def given_name(group: dict[str, Any], index: int) -> str | None:
    """The name that a parameter was given; those that were put into a group by hand have none."""
    names = group.get("param_names") or ()
    return names[index] if index < len(names) else None


def name_in(group: dict[str, Any], number: int, index: int) -> str:
    """What errors call a parameter."""
    name = given_name(group, index)
    return f"parameter {index} of group {number}" + (f" ({name})" if name else "")


def check_arrays(rule: type[Rule], groups: list[dict[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Raises for parameters and states whose numbers are going to be exchanged, and cannot be.

    Raises:
        RuntimeError: a storage was freed, or a state does not fit its parameter.
    """
    for number, group, index, param, _ in list_all(groups):
        who, state, own = name_in(group, number, index), states.get(param), rule.chosen(group)
        if state and (problem := too_short(param, who) or misfit(own, state, param, who, group, converted=True)):
            raise RuntimeError(problem)
