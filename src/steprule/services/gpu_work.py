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
from steprule.engine.gpu_reading import Combination, GpuReading
from steprule.engine.run import Sums, Wants
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive
from steprule.services.decide import row_factors
from steprule.services.member import Member, row_of
from steprule.services.work import READ_AS
from steprule.trace.program import ROW


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
        self._dtypes = [FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")]
        self._readings: dict[Any, GpuReading] = {}
        self._wants: Wants | None = None
        self._launchers = [kernel.launcher(plan) for kernel in kernels]
        self.launch = self._launchers[0]
        self._combinations = [self._combination(kernel) for kernel in kernels] if members else []
        self._gathered = False

    def _combination(self, kernel: Kernel) -> Combination:
        ways = [int(name.startswith("top_")) for name in kernel.source.tallies]
        return Combination(self.plan.first_chunk, ways, self.plan.partials)

    def _reading(self, operand: int, norm_type: float, by_row: bool, wants: Wants) -> GpuReading:
        key = operand, norm_type, by_row, wants
        if key not in self._readings:
            self._readings[key] = GpuReading(
                self.plan,
                operand,
                self._dtypes[operand],
                norm_type,
                [row_of(member.param) for member in self.members] if by_row else None,
                zero=wants.zero and operand == 1,
                check=wants.check,
            )
        return self._readings[key]

    def read(self, wants: Wants) -> Sums:
        """Sums of each gradient's elements."""
        if wants is not self._wants:
            self._wants, self._name = wants, READ_AS.get(wants.norm_type, "total_grad")
            self._grads = self._reading(1, wants.norm_type, wants.by_row and self.by_row, wants)
        return {self._name: self._grads.by_tensor()}

    def largest(self) -> Sums | None:
        """The largest element of each gradient, or None where norms are finite wherever gradients are."""
        wants = self._wants
        assert wants is not None
        if wants.norm_type in (1.0, 2.0, math.inf) and self._dtypes[1] != "float64":
            return None
        return {"top_grad": self._reading(1, math.inf, False, wants).by_tensor()}

    def clip_rows(self, clip: ClipAdaptive, inverse: Any) -> Tensor:
        """Sets each row's factor by what was read last."""
        assert self._wants is not None
        grads = self._grads.latest.sqrt()
        weights = self._reading(0, 2.0, True, self._wants).run().sqrt()
        factors = row_factors(clip, _times(grads, inverse), weights)
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
        return dict(zip(names, self._combinations[self._gathered].run().T, strict=True))


def _times(x: Tensor, inverse: Any) -> Tensor:
    return x * inverse if isinstance(inverse, Tensor) or inverse != 1.0 else x


def _set(row: Tensor, values: Any) -> None:
    """Fills a row with a number or with numbers."""
    if isinstance(values, float):
        row.fill_(values)
    else:
        row.copy_(values if isinstance(values, Tensor) else torch.from_numpy(values))
