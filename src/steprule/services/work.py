"""One plan's parameters as services see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from steprule.engine.cpu import Kernel
from steprule.engine.plan import Plan
from steprule.engine.reading import Reading
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive
from steprule.services.member import Member, row_of
from steprule.services.step import StepServices


class Work:
    """One plan's members, and the readings and factors of it.

    Args:
        kernels: the kernel, and the one that also gathers telemetry (the same where none is wanted).
        plan: what they work through.
        members: one for each of its tensors.
        formats: of the operands.
    """

    def __init__(
        self, kernels: tuple[Kernel, Kernel], plan: Plan, members: Sequence[Member], formats: Mapping[str, str]
    ) -> None:
        self.kernel, self.gathering = kernels
        self.plan = plan
        self.members = self._of_all = members
        self._active: np.ndarray | None = None
        self._dtypes = [FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")]
        self._readings: dict[Any, Reading] = {}
        threads = torch.get_num_threads
        self._launch = self.kernel.launcher(plan, threads)
        self._launch_gathering = self.gathering.launcher(plan, threads)
        self._threads = threads
        self._source = self.kernel.source
        self.exempt = self._every_exempt = np.array([member.free for member in members])

    def select(self, active: np.ndarray) -> None:
        """Steps some of the plan's tensors only from now on, which that knows already."""
        self._active = active
        self.members = list(compress(self._of_all, active))
        self.exempt = self._every_exempt[active]
        for reading in self._readings.values():
            reading.select(active)

    def _reading(self, operand: int, norm_type: float, by_row: bool, services: StepServices) -> Reading:
        key = operand, norm_type, by_row, services.guards
        if key not in self._readings:
            self._readings[key] = Reading(
                self.plan.addresses[operand],
                [member.param.numel() for member in self._of_all],
                self._dtypes[operand],
                norm_type,
                [row_of(member.param) for member in self._of_all] if by_row else None,
                zero=services.nonfinite == "zero" and operand == 1,
                check=services.guards,
            )
            if self._active is not None:
                self._readings[key].select(self._active)
        return self._readings[key]

    def norms(self, services: StepServices) -> np.ndarray:
        """The p-norm of each gradient, as it is; factors of adaptive clipping are set on the way."""
        p, clip = services.norm_type, services.clip
        if not (isinstance(clip, ClipAdaptive) and self.kernel.program.by_row):
            sums = self._reading(1, p, False, services).by_tensor(self._threads)
            with np.errstate(all="ignore"):
                return sums if p in (0.0, math.inf, -math.inf) else sums ** (1 / p)
        grads = self._reading(1, 2.0, True, services)
        squares = grads.run(self._threads)
        weights = np.sqrt(self._reading(0, 2.0, True, services).run(self._threads))
        inverse = services.inverse_scale
        self.plan.factors[self.plan.active_factors] = clip.factors(np.sqrt(squares) * inverse, weights) * inverse
        return np.asarray(np.sqrt(grads.by_tensor(self._threads)))

    def largest(self, services: StepServices, norms: np.ndarray) -> np.ndarray:
        """Numbers that are finite where gradients are: norms, unless those may have overflowed."""
        if services.norm_type in (1.0, 2.0) and self._dtypes[1] != "float64":
            return norms
        return self._reading(1, math.inf, False, services).by_tensor(self._threads)

    @property
    def factors(self) -> np.ndarray:
        """What gradients are multiplied by."""
        return self.plan.factors[self.plan.active_factors]

    def set_factors(self, factors: np.ndarray) -> None:
        """Sets what each member's gradient is multiplied by."""
        self.plan.factors[self.plan.active_factors] = factors

    def launch(self, gather: bool) -> None:
        """Steps all members."""
        self._source = (self.gathering if gather else self.kernel).source
        (self._launch_gathering if gather else self._launch)()

    def set_scalar(self, name: str, value: float) -> None:
        """Sets one of the kernel's scalars for all tensors."""
        self.plan.hyper[:, self.kernel.program.scalars.index((name, None))] = value

    def tallies(self) -> dict[str, np.ndarray]:
        """What the last launch has counted, for each member."""
        return self.plan.tallied(self._source.tallies)
