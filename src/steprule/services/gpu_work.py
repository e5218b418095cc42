"""As `steprule.services.work`, of a plan on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_own import GpuPlanned
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading, norms
from steprule.engine.run import Sums
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive
from steprule.services.decide import row_factors
from steprule.services.member import Member, row_of
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, TENSOR


class GpuWork:
    """The parameters of a plan on a GPU, for which nobody waits; see `steprule.engine.run.Work` and `steprule.services.member.Part`.

    Args:
        kernels: the kernel, and the one that also gathers telemetry (the same where none is wanted).
        plan: what they work through.
        numbers: the numbers that the plan's tensors have for themselves, if its kernel wants some.
        members: one for each of its tensors; none where there are no services.
        formats: of the operands.
    """

    def __init__(
        self,
        kernels: tuple[Kernel, Kernel],
        plan: GpuPlan,
        numbers: GpuPlanned | None,
        members: Sequence[Member],
        formats: Mapping[str, str],
    ) -> None:
        self.kernel, self.gathering = kernels
        self.plan, self.numbers = plan, numbers
        self.program, self.by_row = self.kernel.program, self.kernel.program.factor == ROW
        self.depth = numbers.depth if numbers is not None else 0
        self.members = members
        exempt = np.array([member.free for member in members], bool)
        self.exempt = exempt if exempt.any() else None
        self._dtypes = {name: FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")}
        self._readings: dict[Norm, GpuReading] = {}
        self._wants: Norm | None = None
        self._launchers = [kernel.launcher(plan) for kernel in kernels]
        self.launch = self._launchers[0]
        self._combinations = [self._combination(kernel) for kernel in kernels] if members else []
        self._gathered = False

    def _combination(self, kernel: Kernel) -> Combination:
        return Combination(self.plan.first_chunk, kernel.source.tallies, self.plan.partials)

    def _reading(self, norm: Norm) -> GpuReading:
        if norm not in self._readings:
            operand = self.kernel.source.arrays.index((norm.operand, ""))
            rows = [row_of(member.param) for member in self.members] if norm.axis == ROW else []
            self._readings[norm] = norms(norm, self._dtypes[norm.operand], self.plan, operand, rows)
        return self._readings[norm]

    def read(self, norm: Norm) -> Sums:
        """Sums of each gradient's elements."""
        if norm is not self._wants:
            self._wants = norm
            self._grads = self._reading(norm if self.by_row else norm._replace(axis=TENSOR))
        self._grads.run()
        return self._grads.sums()

    def largest(self) -> Sums | None:
        """The largest element of each gradient, or None where norms are finite wherever gradients are."""
        wants = self._wants
        assert wants is not None
        if wants.p in (1.0, 2.0, math.inf) and self._dtypes["grad"] != "float64":
            return None
        reading = self._reading(wants._replace(p=math.inf, axis=TENSOR))
        reading.run()
        return reading.sums()

    def clip_rows(self, clip: ClipAdaptive, inverse: Any) -> Tensor:
        """Sets each row's factor by what was read last."""
        weights = self._reading(Norm("param", 2.0, ROW))
        weights.run()
        factors = row_factors(clip, _times(self._grads.parts.sqrt(), inverse), weights.parts.sqrt())
        self.plan.factors.copy_(_times(factors, inverse))
        return (factors < 1.0).any()  # type: ignore[no-any-return]

    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by, where they are by anything."""
        if self.program.factor:
            _set(self.plan.factors, factors)

    def set_weight(self, weight: Any) -> None:
        """Sets the share of the new weights in their average."""
        _set(self.plan.hyper[:, self.program.scalars.index(("average_weight", None))], weight)

    def prepare(self) -> None:
        """Nothing: what can be refused was when the plan was made."""

    def count(self) -> None:
        """As `GpuPlanned`."""
        self.numbers.count()  # type: ignore[union-attr]

    def run(self, level: int) -> None:
        """As `GpuPlanned`."""
        self.numbers.run(level)  # type: ignore[union-attr]

    def sums(self, level: int) -> Sums:
        """As `GpuPlanned`."""
        return self.numbers.sums(level)  # type: ignore[union-attr]

    def put(self, level: int, sums: Sums) -> None:
        """As `GpuPlanned`."""
        self.numbers.put(level, sums)  # type: ignore[union-attr]

    def step(self, gather: bool) -> None:
        """Steps all members."""
        self._gathered = gather
        self._launchers[gather]()

    def tallies(self) -> Sums:
        """What the last step has counted, for each member."""
        names = (self.gathering if self._gathered else self.kernel).source.tallies
        if not names:
            return {}
        return self._combinations[self._gathered].sums()


def _times(x: Tensor, inverse: Any) -> Tensor:
    return x * inverse if isinstance(inverse, Tensor) or inverse != 1.0 else x


def _set(row: Tensor, values: Any) -> None:
    """Fills a row with a number or with numbers."""
    if isinstance(values, float):
        row.fill_(values)
    else:
        row.copy_(values if isinstance(values, Tensor) else torch.from_numpy(values))
