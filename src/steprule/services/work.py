"""One plan's parameters, as a step and its services see them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from steprule.engine.cpu import Kernel
from steprule.engine.matrices import BesideRooms
from steprule.engine.own import Planned
from steprule.engine.plan import Plan
from steprule.engine.reading import Reading, norms
from steprule.engine.run import Sums
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive
from steprule.services.decide import roots, row_factors, times
from steprule.services.member import Member, row_size
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, TENSOR


class PlanWork(ABC):
    """The parameters of a plan; see `steprule.engine.run.Work` and `steprule.services.member.Part`.

    Args:
        kernels: the kernel, and the one that also gathers telemetry (the same where none is wanted).
        launchers: what runs them over the plan.
        numbers: the numbers that the plan's tensors have for themselves, if its kernel wants some.
        params: its tensors.
        members: one for each of them; none where there are no services.
        formats: of the operands.

    Attributes:
        numbers: the same.
        rooms: the matrices that lie between its passes, if there are any.
    """

    count: Callable[[], None]
    take_back: Callable[[], None]
    run: Callable[[int], None]
    sums: Callable[[int], Sums]
    put: Callable[[int, Sums], Sums]
    join: Callable[[int], None]
    awaited: Callable[[int, int], Sums]
    in_turn = False
    rooms: BesideRooms | None = None

    def __init__(
        self,
        kernels: Sequence[Any],
        launchers: Sequence[Callable[[], None]],
        numbers: Any,
        params: Sequence[Any],
        members: Sequence[Member],
        formats: Mapping[str, str],
    ) -> None:
        self.params = self._of_all = params
        self.program = kernels[0].program
        self.by_row, self.depth, self.numbers = self.program.factor == ROW, 0, numbers
        if numbers is not None:
            self.depth = numbers.depth
            self.count, self.take_back = numbers.count, numbers.take_back
            self.run, self.sums, self.put = numbers.run, numbers.sums, numbers.put
            self.join, self.awaited = numbers.join, numbers.awaited
        self.members = self._every = members
        self._is_free = np.array([member.free for member in members], bool)
        self.exempt: Any = self._is_free if self._is_free.any() else None
        self._dtypes = {name: FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")}
        self._operands = {name: kernels[0].source.arrays.index((name, "")) for name in self._dtypes}
        self._readings: dict[Norm, Any] = {}
        self._wants: Norm | None = None
        self._tallies = [kernel.source.tallies for kernel in kernels]
        self._launchers, self.launch, self._gathered = launchers, launchers[0], False

    def read(self, norm: Norm) -> Sums:
        """Sums of each gradient's elements."""
        if norm is not self._wants:
            self._wants, self._grads = norm, self._reading(norm if self.by_row else norm._replace(axis=TENSOR))
        self._grads.run()
        return self._grads.sums()  # type: ignore[no-any-return]

    def largest(self) -> Sums | None:
        """The largest element of each gradient, or None where norms are finite wherever gradients are."""
        wants = self._wants
        assert wants is not None
        if wants.p in (1.0, 2.0, math.inf) and self._dtypes["grad"] != "float64":
            return None
        reading = self._reading(wants._replace(p=math.inf, axis=TENSOR))
        reading.run()
        return reading.sums()  # type: ignore[no-any-return]

    def clip_rows(self, clip: ClipAdaptive, inverse: Any) -> Any:
        """Sets each row's factor by what was read last; whether one is clipped."""
        weights = self._reading(Norm("param", 2.0, ROW))
        weights.run()
        grad_norms, weight_norms = (roots(one.pieces(), 2.0) for one in (self._grads, weights))
        factors = row_factors(clip, times(grad_norms, inverse), weight_norms)
        self.set_factors(times(factors, inverse))
        return (factors < 1.0).any()

    def prepare(self) -> None:  # noqa: B027
        """Nothing: what can be refused was when the plan was made."""

    def step(self, gather: bool) -> None:
        """Steps all members."""
        self._gathered = gather
        self._launchers[gather]()

    def _reading(self, norm: Norm) -> Any:
        """What reads a norm, made when it is first wanted."""
        if norm not in self._readings:
            rows = [row_size(member.param) for member in self._every] if norm.axis == ROW else []
            self._readings[norm] = self._new_reading(norm, rows)
        return self._readings[norm]

    @abstractmethod
    def _new_reading(self, norm: Norm, rows: Sequence[int]) -> Any:
        """The reading of a norm, perhaps for rows of so many elements."""

    @abstractmethod
    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by."""


class CpuWork(PlanWork):
    """The parameters of a plan for the host; arguments as for `PlanWork`.

    Args:
        plan: what the kernels work through.
    """

    def __init__(
        self,
        kernels: tuple[Kernel, Kernel],
        plan: Plan,
        numbers: Planned | None,
        params: Sequence[Any],
        members: Sequence[Member],
        formats: Mapping[str, str],
    ) -> None:
        launchers = [kernel.launcher(plan, torch.get_num_threads) for kernel in kernels]
        super().__init__(kernels, launchers, numbers, params, members, formats)
        self._plan = plan
        self._active: np.ndarray | None = None
        averages = ("average_weight", None) in self.program.scalars
        self._weights = plan.hyper[:, self.program.scalars.index(("average_weight", None))] if averages else None

    def select(self, active: np.ndarray) -> None:
        """Steps some of the plan's tensors only from now on, which that knows already."""
        self.params = list(compress(self._of_all, active))
        if self.numbers is not None:
            self.numbers.select(active)
        if not self._every:
            return
        self._active = active
        self.members = list(compress(self._every, active))
        exempt = self._is_free[active]
        self.exempt = exempt if exempt.any() else None
        for reading in self._readings.values():
            reading.plan.select(active)

    def _new_reading(self, norm: Norm, rows: Sequence[int]) -> Reading:
        addresses = self._plan.addresses[self._operands[norm.operand]]
        sizes = [member.param.numel() for member in self._every]
        reading = norms(norm, self._dtypes[norm.operand], addresses, sizes, rows, torch.get_num_threads)
        if self._active is not None:
            reading.plan.select(self._active)
        return reading

    def here(self, x: Any) -> Any:
        """Numbers, which are here already."""
        return x

    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by."""
        self._plan.factors[self._plan.active_factors] = factors

    def set_weight(self, weight: float) -> None:
        """Sets the share of the new weights in their average."""
        if self._weights is not None:
            self._weights.fill(weight)

    def tallies(self) -> Sums:
        """What the last step has counted, for each member."""
        return self._plan.tallied(self._tallies[self._gathered])
