"""Services on a GPU: what `steprule.services.host` does, decided on the device so that the host never waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engine import gpu
from steprule.engine.run import Complete, Sums
from steprule.services.clip import Clip
from steprule.services.decide import average_weight, joined, roots, set_factors, times
from steprule.services.gpu_work import GpuWork
from steprule.services.host import Averages
from steprule.services.ledger import REMEMBERED, Ledger
from steprule.services.member import COLUMNS, Roll
from steprule.services.step import StepServices
from steprule.trace.norms import Norm


class DeviceLedger:
    """As `steprule.services.ledger.Ledger`, each number a tensor on a device.

    They are changed in place, so that a CUDA graph that has recorded a step goes on where it was.

    Args:
        ledger: what the host knows, which is taken over.
        clip: how gradients are clipped.
        device: where.
    """

    def __init__(self, ledger: Ledger, clip: Clip | None, device: torch.device) -> None:
        self._clip = clip
        numbers = [float(getattr(ledger, name)) for name in REMEMBERED]
        self._numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.norm, self.clipped, self.skipped, self.zeroed, self.steps, self.averaged = self._numbers
        self.counts = self._numbers[1:]
        # torch divides by a tensor exactly only where what is divided is one, too; a number on the host is read without waiting.
        self.max_norm = torch.tensor(ledger.max_norm, dtype=torch.float64, device="cpu")
        self.clips_at = ledger.clips_at
        self._window = ledger.recent.maxlen or 0
        recent = [*ledger.recent, *[math.nan] * max(self._window, 1)][: max(self._window, 1)]
        self.recent = torch.tensor(recent, dtype=torch.float64, device=device)
        self._place = torch.full((), len(ledger.recent) % len(recent), dtype=torch.int64, device=device)
        self._places = torch.arange(len(recent), device=device)

    def on_host(self) -> Ledger:
        """The same where the host knows it; waits for the device."""
        ledger = Ledger(self._clip)
        norm, *counts = self._numbers.tolist()
        for name, value in zip(REMEMBERED, [norm, *map(int, counts)], strict=True):
            setattr(ledger, name, value)
        recent = self.recent.roll(-int(self._place)).tolist()
        ledger.recent.extend(norm for norm in recent if not math.isnan(norm))
        return ledger

    def quantile(self, share: float) -> Tensor:
        """That of the last norms; NaN where there are none."""
        return torch.nanquantile(self.recent, share)

    def remember(self, norm: Tensor, refused: Tensor | None) -> None:
        """Takes note of a step's norm, unless that is refused."""
        if refused is None:
            self.norm.copy_(norm)
        else:
            torch.where(refused, self.norm, norm, out=self.norm)
        if self._window:
            counts = torch.isfinite(norm)
            if refused is not None:
                counts &= ~refused
            self.recent.copy_(torch.where(counts & (self._places == self._place), norm, self.recent))
            self._place.copy_((self._place + counts) % len(self.recent))


class OnDevice:
    """Services around the steps of parameters that all are on GPUs, decided by operations on one of these.

    Args:
        services: whose decisions they are.
        works: all of a step's.
        averages: of parameters that take no step, if there are any.
    """

    def __init__(self, services: StepServices, works: Sequence[GpuWork], averages: Averages | None) -> None:
        self._services, self._averages = services, averages
        self.device = device = works[0].plan.device
        self.ledger = DeviceLedger(services.look(), services.clip, device)
        self._roll = roll = Roll([member for work in works for member in work.members])
        self._order, self._bound = (
            torch.from_numpy(x).to(device) if x is not None else None for x in (roll.order, roll.bound)
        )
        averages_too = float(services.average is not None)
        of_counts = {"dtype": torch.float64, "device": device}
        self._at_step = torch.tensor([0.0, 0.0, 0.0, 1.0, averages_too], **of_counts)  # type: ignore[arg-type]
        self._at_refusal = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], **of_counts)  # type: ignore[arg-type]
        self._clipped = self._at_step[0]
        self._counted = self._at_step
        self._refused: Tensor | None = None
        self._found = torch.zeros((), dtype=torch.bool, device=device)  # in one place, as replayed steps write it
        self._weight: Any = None

    @property
    def wants(self) -> Norm | None:
        """What services want to know of gradients."""
        return self._services.wants

    @property
    def gathers(self) -> bool:
        """Whether telemetry looks at the step that comes; never at what a CUDA graph records."""
        return self._services.gathers and not gpu.is_recording(self.device)

    @property
    def counts(self) -> bool:
        """Whether the step leaves sums behind it."""
        return self.gathers or self._services.nonfinite == "zero"

    @property
    def repeats(self) -> bool:
        """Whether the step that comes launches what others have: without a GradScaler, telemetry and averages that rest."""
        rests = self._averages is not None and bool(self._averages.rests)
        return not (self._services.scaled or self.gathers or rests)

    def repeat(self) -> None:
        """Takes note of a step whose launches were replayed."""
        services = self._services
        services.ledger = self.ledger
        services.calls += 1
        services.found = self._found if services.guards or services.nonfinite == "zero" else False

    def ask(self, works: Sequence[GpuWork], sums: Sequence[Sums], complete: Complete) -> bool:
        """Decides what gradients are multiplied by, and has kernels change nothing where the step is not to be taken."""
        services, ledger = self._services, self.ledger
        inverse = services.inverse_scale
        inverse = inverse.to(self.device, non_blocking=True) if isinstance(inverse, Tensor) else inverse
        norms = [roots(values, services.norm_type) for own in sums for values in own.values()]
        self._refused = refused = self._not_finite(works, norms, complete)
        norm: Any = ledger.norm
        if norms:
            norm = times(self._total(norms), inverse)
            ledger.remember(norm, refused)
        if services.scales:
            clipped = set_factors(services.clip, works, norms, norm, inverse, ledger)
            clipped = [one for one in clipped if isinstance(one, Tensor)]
            if clipped:
                self._clipped.copy_(
                    clipped[0] if len(clipped) == 1 else self._together([x.reshape(1) for x in clipped]).any()
                )
        self._counted = self._at_step if refused is None else torch.where(refused, self._at_refusal, self._at_step)
        if services.average is not None:
            self._weight = average_weight(services.average, ledger.averaged)
            for work in works:
                work.set_weight(self._weight)
        if services.guards or services.rescales:
            for work in works:
                work.plan.skip.zero_() if refused is None else work.plan.skip.copy_(refused)
        services.found = False if refused is None else refused
        return True

    def _not_finite(self, works: Sequence[GpuWork], norms: Sequence[Tensor], complete: Complete) -> Tensor | None:
        """Whether the step is not to be taken, or None where nobody asks."""
        services, refused = self._services, None
        if services.guards:
            every = [work.largest() for work in works]
            asked = [(work, own) for work, own in zip(works, every, strict=True) if own is not None]
            made = complete([work for work, _ in asked], [own for _, own in asked]) if asked else ()
            finite = [one["top_grad"] for one in made]
            finite += [own for own, largest in zip(norms, every, strict=True) if largest is None]
            refused = torch.logical_not(self._together(finite).amax() < math.inf, out=self._found)
        if services.already is not None and services.nonfinite != "zero":
            found = services.already.to(self.device, non_blocking=True) != 0
            refused = found if refused is None else refused | found
        return refused

    def _together(self, tensors: Sequence[Tensor]) -> Tensor:
        here = [x.to(self.device, non_blocking=True) for x in tensors]
        return here[0] if len(here) == 1 else torch.cat(here)

    def _total(self, norms: Sequence[Tensor]) -> Tensor:
        """The norm of all norms but of those that are left out."""
        if self._bound is not None and not len(self._bound):
            return torch.zeros_like(self.ledger.norm)
        every = self._together(norms)
        return joined(every if self._bound is None else every[self._bound], self._services.norm_type)  # type: ignore[no-any-return]

    def note(self, works: Sequence[GpuWork], gathered: bool, complete: Complete) -> None:
        """Takes note of a step."""
        services, ledger, refused = self._services, self.ledger, self._refused
        if self._averages is not None and self._averages.rests:
            self._averages.move(self._weight if refused is None else torch.where(refused, 0.0, self._weight))
        services.ledger = ledger
        services.calls += 1
        ledger.counts += self._counted
        if services.nonfinite != "zero" and not gathered:
            return
        counts = complete(works, [work.tallies() for work in works])
        if services.nonfinite == "zero":
            zeroed = self._together([one["total_zeroed"] for one in counts]).sum()
            ledger.zeroed += zeroed
            services.found = torch.gt(zeroed, 0.0, out=self._found)
        if gathered and services.telemetry is not None:
            sums = self._together([torch.stack([one[name] for name in COLUMNS], 1) for one in counts])
            sums = sums if self._order is None else sums[self._order]
            scale = torch.ones(len(COLUMNS), dtype=torch.float64, device=self.device)
            scale[COLUMNS.index("total_grad")] *= services.inverse_scale**2
            scale[COLUMNS.index("top_grad")] *= services.inverse_scale
            taken = torch.ones_like(ledger.norm) if refused is None else 1.0 - refused.double()
            later = torch.stack([taken, ledger.steps, ledger.clipped, ledger.skipped])
            services.telemetry.add_later(*self._roll.labels(), sums * scale, later)
