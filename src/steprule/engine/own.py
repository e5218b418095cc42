"""What must be known of whole tensors before their elements change: sums, and states that are one number for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np

from steprule.engine.reading import Reading
from steprule.engine.run import Sums
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import scalar_name
from steprule.trace.program import Program


class Planned:
    """The numbers that tensors of a plan have for themselves.

    Args:
        kernel: their kernel.
        plan: their plan, whose table `own` this fills.
        states: for each scalar state of each tensor a 0-dim array over the memory where it is kept.
        threads: says how many threads may work.
        sizes: how many elements each tensor has, or the one that it is a part of. Default: as the plan has it.
    """

    def __init__(
        self,
        kernel: Any,
        plan: Any,
        states: Mapping[str, Sequence[np.ndarray]],
        threads: Callable[[], int],
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.program: Program = kernel.program
        self.depth = len(self.program.levels)
        self._kernel, self._plan, self._states, self._of_all = kernel, plan, states, states
        self._sizes = np.array(plan.sizes if sizes is None else sizes, np.float64)
        self._readings = [Reading(one, plan, threads) for one in kernel.readings]
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
        inputs |= {"step": plan.steps[active].copy(), "numel": self._sizes[active]}
        inputs |= {name: np.array([float(one) for one in kept]) for name, kept in self._states.items()}
        self._evaluation = Evaluation(inputs)

    def take_back(self) -> None:
        """As if steps had not been counted, and no number had followed from them."""
        self._plan.take_back_steps()
        for name, kept in self._states.items():
            for place, value in zip(kept, self._evaluation.inputs[name].tolist(), strict=True):
                place[...] = value

    def run(self, level: int) -> None:
        """Reads elements for a level's sums."""
        if 0 < level <= len(self._readings):
            self._readings[level - 1].run()

    def sums(self, level: int) -> Sums:
        """A level's sums, for each tensor."""
        if not 0 < level <= len(self._readings):
            return {}
        sums = self._readings[level - 1].sums()
        return {name.removeprefix("total_"): values.tolist() for name, values in sums.items()}

    def put(self, level: int, sums: Sums) -> None:
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
