"""Services on a GPU: what `steprule.services.step` does, decided on the device so that the host never waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading
from steprule.formats import FORMATS
from steprule.services.clip import ClipAdaptive, ClipNorm, ClipQuantile
from steprule.services.member import COLUMNS, REMEMBERED, Member, row_of

if TYPE_CHECKING:
    from steprule.services.step import StepServices


class GpuWork:
    """As `steprule.services.work.Work`, of a plan on a GPU.

    What returns arrays waits for the device; what returns tensors does not.

    Args:
        kernels: the kernel, and the one that also gathers telemetry (the same where none is wanted).
        plan: what they work through.
        members: one for each of its tensors.
        formats: of the operands.
    """

    def __init__(
        self, kernels: tuple[Kernel, Kernel], plan: GpuPlan, members: Sequence[Member], formats: Mapping[str, str]
    ) -> None:
        self.kernel, self.gathering = kernels
        self.plan = plan
        self.members = members
        self.exempt = np.array([member.free for member in members])
        self.is_exempt = torch.from_numpy(self.exempt).to(plan.device)
        self._dtypes = [FORMATS[formats[name]].arrays[0][1] for name in ("param", "grad")]
        self._rows = [row_of(member.param) for member in members]
        self._readings: dict[Any, GpuReading] = {}
        self._combinations = [self._combination(kernel) for kernel in kernels]
        self._launchers = [kernel.launcher(plan) for kernel in kernels]
        self._gathered = False

    def _combination(self, kernel: Kernel) -> Combination:
        ways = [int(name.startswith("top_")) for name in kernel.source.tallies]
        return Combination(self.plan.first_chunk, ways, self.plan.partials)

    def _reading(self, operand: int, norm_type: float, by_row: bool, services: StepServices) -> GpuReading:
        key = operand, norm_type, by_row, services.guards
        if key not in self._readings:
            self._readings[key] = GpuReading(
                self.plan,
                operand,
                self._dtypes[operand],
                norm_type,
                self._rows if by_row else None,
                zero=services.nonfinite == "zero" and operand == 1,
                check=services.guards,
            )
        return self._readings[key]

    def read(self, services: StepServices, inverse: Any) -> Tensor:
        """The p-norm of each gradient, as it is; factors of adaptive clipping are set on the way.

        Args:
            services: whose clip it is.
            inverse: what undoes a GradScaler's scale, a number or a tensor on any device.
        """
        inverse = self.here(inverse)
        p, clip = services.norm_type, services.clip
        if not (isinstance(clip, ClipAdaptive) and self.kernel.program.by_row):
            sums = self._reading(1, p, False, services).by_tensor()
            return sums.clone() if p in (0.0, math.inf, -math.inf) else sums ** (1 / p)
        grads = self._reading(1, 2.0, True, services)
        norms = grads.run().sqrt() * inverse
        weights = self._reading(0, 2.0, True, services).run().sqrt()
        longest = clip.clip_factor * weights.clamp(min=clip.eps)
        factors = torch.where(norms > longest, longest / norms.clamp(min=1e-6), 1.0)
        self.plan.factors.copy_(factors * inverse)
        return grads.by_tensor().sqrt()

    def here(self, x: Any) -> Any:
        """A number, or a tensor brought to the plan's device."""
        return x.to(self.plan.device, non_blocking=True) if isinstance(x, Tensor) else x

    def finite(self, services: StepServices, norms: Tensor) -> Tensor:
        """Numbers that are finite where gradients are: norms, unless those may have overflowed."""
        if services.norm_type in (1.0, 2.0) and self._dtypes[1] != "float64":
            return norms
        return self._reading(1, math.inf, False, services).by_tensor()

    def norms(self, services: StepServices) -> np.ndarray:
        """As `Work.norms`."""
        return self.read(services, services.inverse_scale).cpu().numpy()

    def largest(self, services: StepServices, norms: np.ndarray) -> np.ndarray:
        """As `Work.largest`."""
        return self.finite(services, torch.from_numpy(norms)).cpu().numpy()

    @property
    def factors(self) -> np.ndarray:
        """What gradients are multiplied by."""
        return self.plan.factors.cpu().numpy()

    def set_factors(self, factors: Any) -> None:
        """Sets what each member's gradient is multiplied by, where it is by anything."""
        if self.kernel.program.factor:
            self.plan.factors.copy_(torch.from_numpy(factors))

    def set_scalar(self, name: str, value: Any) -> None:
        """Sets one of the kernel's scalars for all tensors, to a number or a tensor."""
        column = self.plan.hyper[:, self.kernel.program.scalars.index((name, None))]
        column.copy_(value) if isinstance(value, Tensor) else column.fill_(value)

    def launch(self, gather: bool) -> None:
        """Steps all members."""
        self._gathered = gather
        self._launchers[gather]()

    def counts(self) -> dict[str, Tensor]:
        """What the last launch has counted, for each member."""
        names = (self.gathering if self._gathered else self.kernel).source.tallies
        if not names:
            return {}
        return dict(zip(names, self._combinations[self._gathered].run().T, strict=True))

    def tallies(self) -> dict[str, np.ndarray]:
        """As `Work.tallies`."""
        return {name: column.cpu().numpy().copy() for name, column in self.counts().items()}


class OnDevice:
    """A step's decisions for parameters that all are on GPUs, by operations on one of these.

    What they change is changed in place, so that a CUDA graph that has recorded them goes on where it was.

    Args:
        services: whose decisions they are.
        works: all of a step's.
    """

    def __init__(self, services: StepServices, works: Sequence[GpuWork]) -> None:
        self._services, self._works = services, works
        self.device = device = works[0].plan.device
        self.numbers = torch.zeros(len(REMEMBERED), dtype=torch.float64, device=device)
        self.norm, self.clipped, self.skipped, self.zeroed, self.steps, self.averaged = self.numbers
        self._taken = torch.ones((), dtype=torch.bool, device=device)
        self._true = torch.ones((), dtype=torch.bool, device=device)
        clip = services.clip
        self.recent = torch.full(
            (clip.window if isinstance(clip, ClipQuantile) else 1,), math.nan, dtype=torch.float64, device=device
        )
        self._place = torch.zeros((), dtype=torch.int64, device=device)
        self._places = torch.arange(len(self.recent), device=device)
        members = [member for work in works for member in work.members]
        order = sorted(range(len(members)), key=lambda number: members[number].place)
        bound = [number for number in order if not members[number].free]
        self._members = [members[number] for number in order]
        self._order, self._bound = (torch.tensor(x, dtype=torch.int64, device=device) for x in (order, bound))

    def fill(self) -> None:
        """Takes over what the host knows."""
        services = self._services
        self.numbers.copy_(
            torch.tensor([float(getattr(services, name)) for name in REMEMBERED], dtype=torch.float64, device="cpu")
        )
        recent = list(services.recent)
        self.recent.fill_(math.nan)
        self.recent[: len(recent)] = torch.tensor(recent, dtype=torch.float64, device=self.device)
        self._place.fill_(len(recent) % len(self.recent))

    def look(self) -> dict[str, Any]:
        """What it knows, for the host; waits for the device."""
        values = self.numbers.tolist()
        numbers: dict[str, Any] = dict(zip(REMEMBERED, [values[0], *map(int, values[1:])], strict=True))
        recent = self.recent.roll(-int(self._place)).tolist()
        return {**numbers, "recent": [norm for norm in recent if not math.isnan(norm)]}

    def average_weight(self) -> Tensor | float:
        """The share of the new weights in the next average, as `Average.weight`."""
        average, n = self._services.average, self.averaged
        if average is None:
            return 0.0
        decay = average.decay
        if average.bias_correction:
            weight = (1 - decay) / (1 - decay ** (n + 1)) if decay else torch.ones_like(n)
        elif average.warmup:
            weight = 1 - ((1 + n) / (10 + n)).clamp(max=decay)
        else:
            weight = torch.full_like(n, 1 - decay)
        return torch.where(n == 0, 1.0, weight)

    def _together(self, tensors: Sequence[Tensor]) -> Tensor:
        here = [x.to(self.device, non_blocking=True) for x in tensors]
        return here[0] if len(here) == 1 else torch.cat(here)

    def begin(self) -> Tensor | None:
        """Reads the gradients if anything needs it, sets factors and what is skipped.

        Returns:
            The share by which averages of resting parameters move; None without averages.
        """
        services, works = self._services, self._works
        inverse = services.inverse_scale
        inverse = inverse.to(self.device) if isinstance(inverse, Tensor) else inverse
        taken = self._true
        norms = [work.read(services, inverse) for work in works] if services.reads else []
        if services.guards:
            finite = [work.finite(services, own) for work, own in zip(works, norms, strict=True)]
            taken = torch.isfinite(self._together(finite)).all()
        if services.already is not None and services.nonfinite != "zero":
            taken = taken & (services.already.to(self.device) == 0)
        factor: Any = 1.0
        if norms:
            norm = torch.zeros_like(self.norm)
            if len(self._bound):
                norm = torch.linalg.vector_norm(self._together(norms)[self._bound], services.norm_type) * inverse
            factor = self._factor(norm, taken)
            self.norm.copy_(torch.where(taken, norm, self.norm))
        clipped = self._set_factors(norms, factor, inverse)
        if clipped is not None:
            self.clipped += clipped & taken
        weight = self.average_weight() if services.average is not None else None
        for work in works:
            if weight is not None:
                work.set_scalar("average_weight", weight)
            work.plan.skip.copy_(~taken)
        if taken is not self._true:
            self.skipped += ~taken
        self._taken.copy_(taken)
        services.found = (~taken).float()
        return None if weight is None else torch.where(taken, weight, 0.0)

    def _factor(self, norm: Tensor, taken: Tensor) -> Any:
        """What all gradients are multiplied by if their norm is this."""
        clip = self._services.clip
        if isinstance(clip, ClipNorm) and not clip.per_parameter:
            return (clip.max_norm / (norm + 1e-6)).clamp(max=1.0)
        if isinstance(clip, ClipQuantile):
            counts = taken & torch.isfinite(norm)
            self.recent.copy_(torch.where(counts & (self._places == self._place), norm, self.recent))
            self._place.copy_((self._place + counts) % len(self.recent))
            longest = torch.nanquantile(self.recent, clip.quantile)
            return torch.where(longest.isnan(), 1.0, (longest / (norm + 1e-6)).clamp(max=1.0))
        return 1.0

    def _set_factors(self, norms: Sequence[Tensor], factor: Any, inverse: Any) -> Tensor | None:
        """Tells every part what to multiply by; returns whether anything is clipped by a norm."""
        clip = self._services.clip
        results = []
        for index, work in enumerate(self._works):
            own = work.here(inverse)
            if isinstance(clip, ClipAdaptive) and not work.exempt.all():
                results.append((work.plan.factors < own).any())
            elif isinstance(clip, (ClipNorm, ClipQuantile)):
                each = work.here(factor)
                if isinstance(clip, ClipNorm) and clip.per_parameter:
                    each = (clip.max_norm / (norms[index] * own + 1e-6)).clamp(max=1.0)
                each = torch.where(work.is_exempt, 1.0, each)
                results.append((each < 1.0).any())
                work.plan.factors.copy_(each * own)
            elif self._services.rescales:
                work.plan.factors.copy_(own) if isinstance(own, Tensor) else work.plan.factors.fill_(own)
        return self._together([one.reshape(1) for one in results]).any() if results else None

    def finish(self, gathered: bool) -> None:
        """Takes note of a step."""
        services = self._services
        services.ahead = self
        services.calls += 1
        self.steps += self._taken
        if services.average is not None:
            self.averaged += self._taken
        if services.nonfinite != "zero" and not gathered:
            return
        counts = [work.counts() for work in self._works]
        if services.nonfinite == "zero":
            zeroed = self._together([one["total_zeroed"] for one in counts]).sum() * self._taken
            self.zeroed += zeroed
            services.found = torch.maximum(services.found, (zeroed > 0).float())
        if gathered and services.telemetry is not None:
            sums = self._together([torch.stack([one[name] for name in COLUMNS], 1) for one in counts])
            inverse = services.inverse_scale
            scale = torch.ones(len(COLUMNS), dtype=torch.float64, device=self.device)
            scale[COLUMNS.index("total_grad")] *= inverse**2
            scale[COLUMNS.index("top_grad")] *= inverse
            later = torch.stack([self._taken.double(), self.steps, self.clipped, self.skipped])
            services.record(self._members, sums[self._order] * scale, later)
