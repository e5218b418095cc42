"""What a step needs to know of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steprule.engine.run import Complete, Spread
from steprule.rule import Rule
from steprule.services.accumulate import Accumulator
from steprule.services.step import StepServices


@dataclass(frozen=True)
class Job:
    """What a step needs to know of an optimizer.

    Attributes:
        name: the name of its class, for messages.
        base, rule: the rule without its options and with them.
        flags: the names of settings that are no hyperparameters.
        groups, states: its parameter groups, and the state of every parameter.
        services: what surrounds its steps, if anything does.
        accumulator: what keeps the low bits of its summed gradients, if anything does.
        check_numbers: says whether groups may go on with other numbers under these names; raises for those that make no sense.
        complete: makes sums over what is here those over all.
        move_resting_averages: brings the averages of parameters that are not among those given towards them, by a share.
        spread: for processes that have different parameters.
        compares: whether processes compare what they step before anything changes, also where no sum is added up by then.
        in_graph: whether steps are to be replayed by CUDA graphs.
    """

    name: str
    base: type[Rule]
    rule: type[Rule]
    flags: Sequence[str]
    groups: list[dict[str, Any]]
    states: MutableMapping[Tensor, dict[str, Any]]
    services: StepServices | None
    accumulator: Accumulator | None
    check_numbers: Callable[[Sequence[Mapping[str, Any]], set[str]], bool]
    complete: Complete
    move_resting_averages: Callable[[set[Tensor], Any], None]
    spread: Spread | None = None
    compares: bool = False
    in_graph: bool = False
