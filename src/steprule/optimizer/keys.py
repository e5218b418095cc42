"""The keys of parameter groups: what a group cannot have for itself, and what looks like a setting and is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from steprule.beside import unread
from steprule.hyper import MULTIPLIERS, whole_of
from steprule.names import did_you_mean, users_level
from steprule.optimizer.arguments import SERVICE_OPTIONS
from steprule.optimizer.core import Core
from steprule.rule import Rule
from steprule.rules.options import OPTIONS


def warn_of_misspelled(
    group: Mapping[str, Any], who: str, rule: type[Rule], more: Sequence[str], spelled: set[str]
) -> None:
    """Warns of what may be a misspelled setting, and of what is one of another group's rule.

    Args:
        group: the group.
        who: the optimizer's name.
        rule: the optimizer's, with its options.
        more: what groups may have besides hyperparameters.
        spelled: keys that need no second look; those of the group are added.
    """
    its, others = rule.chosen(group), unread(rule, group)
    settings = [*dict.fromkeys((*its.hyperparameters, *rule.hyperparameters, *more)).keys() - others]
    for name in group.keys() - {"params", "param_names", *settings, *MULTIPLIERS, *SERVICE_OPTIONS, *OPTIONS, *spelled}:
        spelled.add(name)
        is_of_one = any(one in str(name) for one in settings)  # as a scheduler's base_momentum
        hint = did_you_mean(str(name), MULTIPLIERS, 0.85) or (
            "" if is_of_one else did_you_mean(str(name), settings, 0.8)
        )
        if name in others:
            hint = f": {its.__name__} steps this group, and has {', '.join(its.hyperparameters)}"
        if hint:
            warnings.warn(
                f"{name!r} in a parameter group of {who} is not a setting and does nothing{hint}",
                UserWarning,
                stacklevel=users_level(),
            )


def check_multipliers(rule: type[Rule], settings: Mapping[str, Any]) -> None:
    """Raises for multipliers that are no numbers, and of hyperparameters that are several."""
    for by, name in MULTIPLIERS.items():
        value, default = settings.get(by, 1.0), rule.hyperparameters.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(
                f"Invalid {by} value: {value!r}; it must be a finite number of at least 0, which multiplies {name}"
            )
        if value != 1 and (isinstance(default, bool) or not isinstance(default, (int, float))):
            raise ValueError(
                f"{by}={value!r}: {name} of {rule.__name__} is {default!r} and no number; take {by} out of the group"
            )


def refuse_options(group: Mapping[str, Any], core: Core) -> None:
    """Raises for what is for the whole optimizer."""
    for name in (*SERVICE_OPTIONS, *OPTIONS):
        is_free = name == "clip" and group.get(name) is False
        says_the_same = name in group and core.was_given(name, group[name])
        if name in group and name not in core.rule.hyperparameters and not (is_free or says_the_same):
            exception = "; a group may only have 'clip': False, to be left out of clipping"
            raise ValueError(
                f"{name}={group[name]!r} in a parameter group: it is for the whole optimizer, an argument of "
                f"its constructor{exception if name in SERVICE_OPTIONS else ''}"
            )


def refuse_change(name: str, begun: Any, now: Any, number: int, why: str) -> NoReturn:
    """Raises for a setting of a group that was to stay as it was."""
    hint = ". A scheduler that cycles it takes cycle_momentum=False" if whole_of(name) in ("momentum", "betas") else ""
    raise ValueError(f"{name} of group {number} was changed from {begun} to {now}; {why}{hint}")
