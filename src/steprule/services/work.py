"""One plan's parameters, as a step and its services see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from steprule.engine.cpu import Kernel
from steprule.engine.own import Planned
from steprule.engine.plan import Plan
from steprule.engine.reading import Reading, norms
from steprule.engine.run import Sums
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive
from steprule.services.decide import row_factors
from steprule.services.member import Member, row_of
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, TENSOR


class Work:
    """The parameters of a plan; see `steprule.engine.run.Work` and `steprule.services.member.Part`.

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
        plan: Plan,
        numbers: Planned | None,
        members: Sequence[Member],
        formats: Mapping[str, str],
    ) -> None:
        self.kernel, self.gathering = kernels
        self.plan, self.numbers = plan, numbers
        self.program, self.by_row = self.kernel.program, self.kernel.program.factor == ROW
        self.depth = numbers.depth if numbers is not None else 0
        self.members = self._of_all = members
        self._active: np.ndarray | None = None
        self._dtypes = {name: FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")}
        self._readings: dict[Norm, Reading] = {}
        self._wants: Norm | None = None
        threads = torch.get_num_threads
        self.launch = self.kernel.launcher(plan, threads)
        self._launch_gathering = self.gathering.launcher(plan, threads)
        self._threads = threads
        self._source = self.kernel.source
        self._every_exempt = np.array([member.free for member in members], bool)
        self.exempt = self._every_exempt if self._every_exempt.any() else None
        averages = ("average_weight", None) in self.program.scalars
        self._weights = plan.hyper[:, self.program.scalars.index(("average_weight", None))] if averages else None

    def select(self, active: np.ndarray) -> None:
        """Steps some of the plan's tensors only from now on, which that knows already."""
        if self.numbers is not None:
            self.numbers.select(active)
        if not self._of_all:
            return
        self._active = active
        self.members = list(compress(self._of_all, active))
        exempt = self._every_exempt[active]
        self.exempt = exempt if exempt.any() else None
        for reading in self._readings.values():
            reading.plan.select(active)

    def _reading(self, norm: Norm) -> Reading:
        if norm not in self._readings:
            operand = self.kernel.source.arrays.index((norm.operand, ""))
            sizes = [member.param.numel() for member in self._of_all]
            rows = [row_of(member.param) for member in self._of_all] if norm.axis == ROW else []
            addresses, dtype = self.plan.addresses[operand], self._dtypes[norm.operand]
            self._readings[norm] = reading = norms(norm, dtype, addresses, sizes, rows, self._threads)
            if self._active is not None:
                reading.plan.select(self._active)
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

    def clip_rows(self, clip: ClipAdaptive, inverse: float) -> bool:
        """Sets each row's factor by what was read last."""
        weights = self._reading(Norm("param", 2.0, ROW))
        weights.run()
        grad_norms, weight_norms = (np.sqrt(one.pieces()) for one in (self._grads, weights))
        factors = row_factors(clip, grad_norms * inverse, weight_norms)
        self.plan.factors[self.plan.active_factors] = factors * inverse
        return bool((factors < 1.0).any())

    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by."""
        self.plan.factors[self.plan.active_factors] = factors

    def set_weight(self, weight: float) -> None:
        """Sets the share of the new weights in their average."""
        if self._weights is not None:
            self._weights.fill(weight)

    def prepare(self) -> None:
        """Nothing: what can be refused was when the plan was made."""

    def count(self) -> None:
        """As `Planned`."""
        self.numbers.count()  # type: ignore[union-attr]

    def run(self, level: int) -> None:
        """As `Planned`."""
        self.numbers.run(level)  # type: ignore[union-attr]

    def sums(self, level: int) -> Sums:
        """As `Planned`."""
        return self.numbers.sums(level)  # type: ignore[union-attr]

    def put(self, level: int, sums: Sums) -> None:
        """As `Planned`."""
        self.numbers.put(level, sums)  # type: ignore[union-attr]

    def step(self, gather: bool) -> None:
        """Steps all members."""
        self._source = (self.gathering if gather else self.kernel).source
        (self._launch_gathering if gather else self.launch)()

    def tallies(self) -> Sums:
        """What the last step has counted, for each member."""
        return self.plan.tallied(self._source.tallies)
