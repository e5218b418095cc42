"""Averages of weights of parameters that take no step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.cpu import Kernel
from steprule.engine.plan import Plan
from steprule.pieces import Value
from steprule.rule import Rule
from steprule.step.entry import Entry
from steprule.step.roster import Roster
from steprule.tensors.memory import PLAIN
from steprule.tensors.state import AVERAGE


class Closer(Rule):
    """An average comes closer to the weights, as `move_resting_average` has it."""

    @staticmethod
    def update(param: Value, grad: Value, *, weight: float = 0.0) -> Value:
        """The average.

        Args:
            param, grad: the average and the weights.
            weight: the share of the weights.
        """
        return param - -(weight * (grad - param))  # the product is rounded before it is added, as torch's is


class Resting:
    """The averages of a plan's parameters, of which those without a gradient move by themselves.

    Args:
        entries: the parameters.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        kinds: dict[tuple[str, str], list[int]] = {}
        for number, entry in enumerate(entries):
            kinds.setdefault((entry.kind.formats[AVERAGE], entry.kind.formats["param"]), []).append(number)
        self._kinds = {kind: np.array(numbers) for kind, numbers in kinds.items()}
        self._sizes = [entry.param.numel() for entry in entries]
        self._at = [[x.data_ptr() for x in (entry.state[AVERAGE], entry.param)] for entry in entries]
        self._plans: dict[tuple[str, str], tuple[Kernel, Plan]] = {}
        self._moving: list[tuple[Kernel, Plan, Callable[[], None]]] = []

    @staticmethod
    def takes(entries: Sequence[Entry]) -> bool:
        """Whether a kernel can move them all: where nothing is rounded at random."""
        return all(entry.kind.formats.get(name) in PLAIN for entry in entries for name in (AVERAGE, "param"))

    def select(self, resting: np.ndarray) -> None:
        """Says which parameters have no gradient."""
        self._moving = []
        for kind, numbers in self._kinds.items():
            if resting[numbers].any():
                if kind not in self._plans:
                    self._plans[kind] = self._plan(kind)
                kernel, plan = self._plans[kind]
                plan.select(resting[numbers])
                self._moving.append((kernel, plan, kernel.launcher(plan, torch.get_num_threads)))

    def move(self, weight: float) -> None:
        """Brings averages towards the weights by this share."""
        for kernel, plan, launch in self._moving:
            plan.set_hyper([kernel.numbers({"weight": weight})])
            launch()

    def _plan(self, kind: tuple[str, str]) -> tuple[Kernel, Plan]:
        numbers = self._kinds[kind].tolist()
        kernel = Kernel.compiled(Closer, {"weight": 0.0}, False, kind)
        at = dict(
            zip((("param", ""), ("grad", "")), zip(*(self._at[number] for number in numbers), strict=True), strict=True)
        )
        plan = kernel.plan(
            at,
            sizes=[self._sizes[number] for number in numbers],
            hyper=[kernel.numbers({"weight": 0.0})],
            first_steps=[0.0] * len(numbers),
        )
        return kernel, plan


class RestingAverages:
    """The averages of an optimizer's parameters that take no step.

    Args:
        roster: its parameters.
        entries: those that a plan knows, and step.
        fast: those of them that kernels step.
        selects: whether the plan may turn to other parameters.
        move_others: moves the averages of all parameters but those given, by a share.
    """

    def __init__(
        self,
        roster: Roster,
        entries: Sequence[Entry],
        fast: Sequence[Entry],
        selects: bool,
        move_others: Callable[[set[Tensor], Any], None],
    ) -> None:
        self._roster, self._move_others = roster, move_others
        self._resting = Resting(fast) if selects and Resting.takes(fast) else None
        self._moved = {entry.param for entry in entries}

    @property
    def rests(self) -> bool:
        """Whether there are such parameters."""
        return bool(self._roster.waiting)

    def select(self, active: np.ndarray) -> None:
        """For those that step from now on."""
        if self._resting is not None:
            self._resting.select(~active)
        else:
            self._moved = set(self._roster.active)

    def move(self, weight: Any) -> None:
        """Brings them towards the parameters by this share."""
        if self._resting is not None:
            self._resting.move(weight)
        if self._resting is None or self._roster.idle:
            self._move_others(self._moved, weight)
