"""What an optimizer prints of itself: torch.optim's lines, functions as functions, and what was asked for besides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steprule.names import name_of
from steprule.optimizer.core import NOTES, Core
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.rules.options import OPTIONS


def shown(name: str, core: Core, groups: list[dict[str, Any]]) -> str:
    """The text.

    Args:
        name: the class's.
        core: the optimizer's.
        groups: its groups.
    """
    lines = [f"{name} ("]
    for number, group in enumerate(groups):
        lines += ["", f"Parameter Group {number}"] if number else [f"Parameter Group {number}"]
        functions = core.schedules.functions_of(group) if core.schedules is not None else {}
        for key in sorted(group.keys() - {"params", SCHEDULES, *NOTES}):
            function = f", from {name_of(functions[key])}(step)" if key in functions else ""
            lines.append(f"    {key}: {group[key]}{function}")
    whole = [f"    {key}: {value!r}" for key, value in for_all(core)]
    return "\n".join([*lines, *(["", "All groups", *whole] if whole else []), ")"])


def for_all(core: Core) -> Iterator[tuple[str, Any]]:
    """The arguments for the whole optimizer that were given."""
    for key, value in core.options.items():
        if value != OPTIONS[key] and key not in core.rule.hyperparameters:
            yield key, value
    if core.services is not None:
        yield from ((name, getattr(core.services, name)) for name in core.services.names)
    if core.accumulator is not None:
        yield "grads", core.accumulator.kind
    if core.across is not None:
        yield "process_group", core.across
