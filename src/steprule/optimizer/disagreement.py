"""What errors say where processes cannot take a step together."""

from __future__ import annotations

from typing import Any

from steprule.step.listed import list_all, name_in
from steprule.tensors.totals import DisagreementError


def disagreement(error: DisagreementError, groups: list[dict[str, Any]]) -> str:
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
    if not places:
        return (
            "processes add up different sums for the same parameters, or compute the same matrices in other dtypes: the step was "
            "not taken. Give the optimizer the same rule, settings and services in all processes, list each parameter as often, and "
            "use processors of one kind"
        )
    listed = {one.param: one for one in reversed(list(list_all(groups)))}
    ordered = list(dict.fromkeys(one.param for one in list_all(groups)))
    names = [name_in(one.group, one.number, one.position) for one in (listed[ordered[place]] for place in places)]
    return (
        f"some processes have a gradient for {', '.join(names[:5])}{' and others' * (len(names) > 5)}, and some have none: a "
        "step that adds up over processes, or brings matrices together, needs all parts. Give them gradients of 0 where they have none"
    )
