"""As `steprule.services.work`, of a plan on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_own import GpuPlanned
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading, norms
from steprule.engine.run import Sums
from steprule.services.member import Member
from steprule.services.work import PlanWork
from steprule.trace.norms import Norm


class GpuWork(PlanWork):
    """The parameters of a plan on a GPU, for which nobody waits; arguments as for `steprule.services.work.CpuWork`."""

    def __init__(
        self,
        kernels: tuple[Kernel, Kernel],
        plan: GpuPlan,
        numbers: GpuPlanned | None,
        params: Sequence[Any],
        members: Sequence[Member],
        formats: Mapping[str, str],
    ) -> None:
        super().__init__(kernels, [kernel.launcher(plan) for kernel in kernels], numbers, params, members, formats)
        self.plan = plan
        if self.exempt is not None:
            self.exempt = torch.from_numpy(self.exempt).to(plan.device)
        self._combinations = [
            Combination(plan.first_chunk, names, plan.partials) for names in (self._tallies if members else ())
        ]

    def _new_reading(self, norm: Norm, rows: Sequence[int]) -> GpuReading:
        return norms(norm, self._dtypes[norm.operand], self.plan, self._operands[norm.operand], rows)

    @property
    def graph_key(self) -> tuple[object, ...]:
        """What its launches depend on that is not on the device."""
        return self.plan.read_from, self.numbers.graph_key if self.numbers is not None else b""

    def here(self, x: Any) -> Tensor:
        """Numbers brought to the device."""
        x = x if isinstance(x, Tensor) else torch.from_numpy(x)
        return x.to(self.plan.device, non_blocking=True)  # type: ignore[no-any-return]

    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by, where they are by anything."""
        if self.program.factor:
            _set(self.plan.factors, factors)

    def set_weight(self, weight: Any) -> None:
        """Sets the share of the new weights in their average."""
        _set(self.plan.hyper[:, self.program.scalars.index(("average_weight", None))], weight)

    def tallies(self) -> Sums:
        """What the last step has counted, for each member."""
        return self._combinations[self._gathered].sums() if self._tallies[self._gathered] else {}


def _set(row: Tensor, values: Any) -> None:
    """Fills a row with a number or with numbers."""
    if isinstance(values, float):
        row.fill_(values)
    else:
        row.copy_(values)
