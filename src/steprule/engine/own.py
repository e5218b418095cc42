"""What must be known of whole tensors before their elements change: sums, and states that are one number a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, compress
from typing import Any, Protocol

import numpy as np

from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import scalar_name
from steprule.trace.program import Program


class Part(Protocol):
    """Some of the tensors that are stepped together."""

    @property
    def program(self) -> Program | None:
        """Their program; None where nothing is known before elements change."""

    def count(self) -> None:
        """Counts their steps."""

    def read(self, level: int) -> dict[str, Any]:
        """The sums of a level, for each tensor: a list of numbers, or a tensor on a device that nobody waits for."""

    def fill(self, level: int, sums: Mapping[str, Any]) -> None:
        """Takes over these sums, those over all tensors as one number, and computes what follows from them."""


def run_together(parts: Sequence[Part]) -> None:
    """Counts steps, and brings all numbers that the tensors have for themselves to where the elements can change."""
    for part in parts:
        part.count()
    parts = [part for part in parts if part.program is not None]
    depth = max((len(part.program.readings) for part in parts if part.program is not None), default=0)
    for level in range(depth + 1):
        sums = [part.read(level) if level else {} for part in parts]
        of_all: dict[str, list[Any]] = {}
        for part, own in zip(parts, sums, strict=True):
            for name, values in own.items():
                if part.program is not None and part.program.sums[name].of_all:
                    of_all.setdefault(name, []).append(values)
        totals = {name: add_up(values) for name, values in of_all.items()}
        for part, own in zip(parts, sums, strict=True):
            part.fill(level, {name: totals.get(name, values) for name, values in own.items()})


def add_up(parts: Sequence[Any]) -> Any:
    """The sum of all numbers of all parts, lists or tensors: the same whatever their order, however they are grouped."""
    numbers = list(chain.from_iterable(x if isinstance(x, list) else [x] for x in parts))
    places = {getattr(x, "device", None) for x in numbers}
    if places == {None}:
        return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)
    import torch

    if len(places) == 1 or not any(isinstance(x, list) for x in parts):
        place = numbers[0].device
    else:  # what the host must know it has to wait for
        place = torch.device("cpu")
    wide = [torch.as_tensor(x, dtype=torch.float64, device=getattr(x, "device", "cpu")).reshape(-1) for x in numbers]
    return torch.cat([x.to(place, non_blocking=place.type != "cpu") for x in wide]).sort().values.sum()


class Planned:
    """The tensors of a plan.

    Args:
        kernel: their kernel.
        plan: their plan, whose table `own` this fills.
        states: for each scalar state of each tensor a 0-dim array over the memory where it is kept.
        threads: says how many threads may work.
    """

    def __init__(
        self, kernel: Any, plan: Any, states: Mapping[str, Sequence[np.ndarray]], threads: Callable[[], int]
    ) -> None:
        self.program: Program = kernel.program
        self._kernel, self._plan, self._states, self._of_all = kernel, plan, states, states
        self._readings = [(one.source.tallies, one.worker(plan, threads)) for one in kernel.readings]
        self._columns = {name: number for number, name in enumerate(self.program.own)}

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._states = {name: list(compress(kept, active)) for name, kept in self._of_all.items()}

    def count(self) -> None:
        """Counts their steps, and forgets what held for the last."""
        plan, program, active = self._plan, self.program, self._plan.active
        self._kernel.count(plan)
        hyper = plan.hyper[plan.groups[active]].T
        inputs = {scalar_name(*scalar): hyper[position] for position, scalar in enumerate(program.scalars)}
        inputs |= {"step": plan.steps[active].copy(), "numel": plan.sizes[active].astype(np.float64)}
        inputs |= {name: np.array([float(one) for one in kept]) for name, kept in self._states.items()}
        self._evaluation = Evaluation(inputs)

    def read(self, level: int) -> dict[str, Any]:
        """The sums of a level, for each tensor."""
        if level > len(self._readings):
            return {}
        names, work = self._readings[level - 1]
        work()
        return {name.removeprefix("total_"): sums.tolist() for name, sums in self._plan.tallied(names).items()}

    def fill(self, level: int, sums: Mapping[str, Any]) -> None:
        """Takes over sums, and computes what follows from them; new scalar states as they are once they are kept."""
        inputs = self._evaluation.inputs
        inputs |= {name: np.asarray(values, np.float64) for name, values in sums.items()}
        if level >= len(self.program.levels):
            return
        now = self.program.levels[level]
        for name, expression in now.numbers.items():
            kept = self._states[name]
            with np.errstate(all="ignore"):
                new = np.broadcast_to(self._evaluation(expression), len(kept))
            for place, value in zip(kept, new.tolist(), strict=True):
                place[...] = value
            inputs[f"new_{name}"] = np.array([float(one) for one in kept])
        for name in now.known:
            self._plan.own[self._plan.active, self._columns[name]] = inputs[name]
