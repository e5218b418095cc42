"""What errors say where processes cannot take a step together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steprule.optimizer.groups import Groups
from steprule.optimizer.shown import for_all
from steprule.step.listed import list_all, name_in
from steprule.tensors.fingerprint import DisagreementError


def disagreement(error: DisagreementError, groups: Groups) -> str:
    """What errors say where processes cannot take a step together."""
    (least, most), places = error.counts, error.places
    if error.has_changed is not None:
        changed = (
            "parameters have changed here"
            if error.has_changed
            else "no parameter has changed here, but momentum may have"
        )
        return f"another process failed in the middle of this step, and its error says why: {changed}. Go on from a checkpoint"
    if error.has_failed:
        return "another process cannot take this step, whose error says why: here, too, it was not taken"
    if least < most:
        return (
            f"some processes have {least} parameters in this optimizer, and some have {most}: the step was not taken. Give "
            "it the same ones in all processes, in the same order"
        )
    if error.topics:
        return f"{_other(error, groups)}: the step was not taken"
    if not places:
        return (
            "processes add up different sums for the same parameters, or compute the same matrices in other dtypes: the step was "
            "not taken. Give the optimizer the same rule, settings and services in all processes, list each parameter as often, and "
            "use processors of one kind"
        )
    listed = {one.param: one for one in reversed(list(list_all(groups.groups)))}
    ordered = list(dict.fromkeys(one.param for one in list_all(groups.groups)))
    names = [name_in(one.group, one.number, one.position) for one in (listed[ordered[place]] for place in places)]
    return (
        f"some processes have a gradient for {', '.join(names[:5])}{' and others' * (len(names) > 5)}, and some have none: a "
        "step that adds up over processes, or brings matrices together, needs all parts. Give them gradients of 0 where they have none"
    )


def _other(error: DisagreementError, groups: Groups) -> str:
    """What other processes have in the place of what is here, and what to do."""
    if error.settings:
        here = [f"{name} is {', '.join(_shown(group.get(name)) for group in groups.groups)}" for name in error.settings]
        return (
            f"processes have different settings in their parameter groups (here {'; '.join(here)}); give all the same"
        )
    if "rule" in error.topics or "services" in error.topics:
        given = "".join(f", {name}={value!r}" for name, value in for_all(groups.core))
        what = "rules or options" if "rule" in error.topics else "services"
        return f"processes have optimizers with different {what} (here {groups.name}{given}); make the same one in all"
    if "parameters" in error.topics:
        return (
            "processes have parameters of different shapes, dtypes, names or placements at the same places of this optimizer, or in "
            "different groups; give it the same ones in all, in the same order"
        )
    return "processes have different parameter groups; give all the same ones"


def _shown(value: Any) -> str:
    return repr(value.item() if isinstance(value, Tensor) else value)
