"""What surrounds a step: a reading of the gradients before it, factors for it, and what it leaves behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from steprule.engine.run import Around, Complete, Gather, Sums, nothing
from steprule.services.average import Average
from steprule.services.clip import Clip
from steprule.services.decide import average_weight, joined, roots, set_factors
from steprule.services.ledger import Ledger
from steprule.services.member import COLUMNS, Part, Roll
from steprule.services.telemetry import Telemetry, total_of
from steprule.trace.around import Services
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, TENSOR

logger = logging.getLogger("steprule")

NONFINITE = ("skip", "zero", "raise")


class StepServices:
    """The services of one optimizer: their settings, and what they remember from step to step.

    Args:
        clip, nonfinite, average, telemetry: as the optimizer's arguments, None where off.

    Attributes:
        ledger: what they remember: a `Ledger`, or a `DeviceLedger` where the last steps were decided on a device.
        calls: how many steps there were, taken or not, where that is not known at once.
        inverse_scale: what undoes a GradScaler's scale in this step; a tensor where that is on a GPU.
        already: what a GradScaler has found, 0 for gradients that are finite; a tensor on a GPU, or None.
        scaled: whether a GradScaler takes this step.
        rescales: whether there has been a GradScaler, so that kernels must multiply gradients.
        found: whether this step's gradients are not finite; a tensor where that is known on a GPU.
        weight: the share of the new weights in this step's average.
        release: what decides in their place, inside backward.
        guards: whether a step is not taken if a gradient is not finite.
        limited: whose norm clipping limits, a `TENSOR`'s or a `ROW`'s; "" where it limits none.
        norm_type: the p of the norm that is read.
        wants: what is read before the step, if anything is.
        scales: whether gradients are multiplied by anything.
        clips_each: whether each tensor, or row, is clipped by its own norm.
    """

    guards: bool
    limited: str
    norm_type: float
    wants: Norm | None
    scales: bool
    clips_each: bool

    def __init__(
        self, clip: Clip | None, nonfinite: str | None, average: Average | None, telemetry: Telemetry | None
    ) -> None:
        self.clip = clip
        self.nonfinite = nonfinite
        self.average = average
        self.telemetry = telemetry
        self.ledger: Any = Ledger(clip)
        self.calls = 0
        self.scaled, self.rescales = False, False
        self.inverse_scale: Any = 1.0
        self.found: Any = False
        self.already: Tensor | None = None
        self.weight = 0.0
        self.release: Around | None = None
        self._settle()

    def _settle(self) -> None:
        """Works out what follows from the settings, which a step then need not ask."""
        clip = self.clip
        self.guards = self.nonfinite in ("skip", "raise") or (self.scaled and self.nonfinite != "zero")
        self.norm_type = float(clip.norm_type) if clip is not None else 2.0
        self.limited = clip.axis if clip is not None else ""
        wants = Norm("grad", self.norm_type, self.limited or TENSOR, self.nonfinite == "zero", self.guards)
        self.wants = wants if self.limited or self.guards else None
        self.scales = self.limited != "" or self.rescales
        self.clips_each = self.limited == ROW or (clip is not None and clip.per_parameter)

    @property
    def names(self) -> list[str]:
        """The arguments that are in use."""
        return [name for name in ("clip", "nonfinite", "average", "telemetry") if getattr(self, name) is not None]

    def set_clip(self, clip: Clip | None) -> None:
        """Another way to clip from now on."""
        self.ledger = self.look().clipped_by(clip)
        self.clip = clip
        self._settle()

    def static(self, group: Mapping[str, Any]) -> Services:
        """What of these a kernel for the group does in every step."""
        free = group.get("clip") is False
        by_row = self.limited == ROW and not free
        return Services(
            factor=ROW if by_row else TENSOR if self.rescales or self.limited == TENSOR else "",
            limit=self.clip is not None and not self.limited and not free,
            zero=self.nonfinite == "zero",
            average=self.average is not None,
        )

    def numbers(self) -> dict[str, float]:
        """The scalars that kernels for this want besides the rule's; the average's weight is another in every step."""
        clip_value = self.clip.clip_value if self.clip is not None else 0.0
        return {"clip_value": clip_value, "average_weight": 0.0}

    @property
    def average_weight(self) -> float:
        """The share of the new weights in the next average, where the host knows it."""
        return float(average_weight(self.average, self.ledger.averaged)) if self.average is not None else 0.0

    @property
    def gathers(self) -> bool:
        """Whether the step that comes is one that telemetry looks at."""
        return self.telemetry is not None and (self.calls + 1) % self.telemetry.every == 0

    @property
    def counts(self) -> bool:
        """Whether the step that comes leaves sums behind it, for telemetry or of elements that were taken as 0."""
        return self.gathers or self.nonfinite == "zero"

    # What the host decides

    def scaler_found(self) -> bool:
        """Takes over a GradScaler's scale; whether it has found that the step is not to be taken."""
        if isinstance(self.inverse_scale, Tensor):
            self.inverse_scale = float(self.inverse_scale)
        return self.already is not None and bool(self.already) and self.nonfinite != "zero"

    def norms(self, sums: Sequence[Sums]) -> list[np.ndarray]:
        """Every member's norm, by part, from what was read; nothing if that is nothing."""
        p = self.norm_type
        return [
            roots(values if isinstance(values, np.ndarray) else on_host(values), p)
            for own in sums
            for values in own.values()
        ]

    def not_finite(self, parts: Sequence[Part], norms: Sequence[np.ndarray], complete: Complete) -> list[str]:
        """The names of members for whose sake the step is not to be taken."""
        if not self.guards or all([math.isfinite(np.vdot(own, own)) for own in norms]):
            return []
        # one call for all parts, or none: another process may have divided the parameters otherwise
        are_finite = [np.isfinite(own).all() for own in norms]
        if all(are_finite):
            return []
        try:
            largest = [None if finite else part.largest() for part, finite in zip(parts, are_finite, strict=True)]
            known = [{"top_grad": own} if one is None else one for one, own in zip(largest, norms, strict=True)]
        except Exception as error:
            complete.keep(error)
            known = [nothing(part, ["top_grad"]) for part in parts]
        everywhere = complete(parts, known)
        if complete.failed is not None:
            raise complete.failed
        wrong = []
        for part, found in zip(parts, everywhere, strict=True):
            is_finite = np.isfinite(on_host(found["top_grad"])).tolist()
            wrong += [member.who for member, one in zip(part.members, is_finite, strict=True) if not one]
        return wrong

    def total(self, norms: Sequence[np.ndarray], roll: Roll) -> float:
        """The unscaled norm of all norms but of those that are left out."""
        every = norms[0] if len(norms) == 1 else np.concatenate(norms)
        if roll.bound is not None:
            every = every[roll.bound]
        return float(joined(every, self.norm_type)) * float(self.inverse_scale) if len(every) else 0.0

    def rest(self) -> None:
        """Takes note of a step without gradients, whose norm is 0; it is none of those that clipping goes by."""
        if self.wants is not None:
            self.ledger.norm = 0.0

    def multiply(self, parts: Sequence[Part], norms: Sequence[np.ndarray], norm: float) -> bool:
        """Tells every part what to multiply by, if all gradients have this norm; True if anything is clipped by it."""
        if self.average is not None:
            self.weight = self.average_weight
            for part in parts:
                part.set_weight(self.weight)
        if not self.scales:
            return False
        return any(set_factors(self.clip, parts, norms, norm, self.inverse_scale, self.ledger))

    def counted(self, works: Sequence[Part], gathered: bool, complete: Complete) -> Sequence[Sums]:
        """What a step has counted."""
        try:
            found = [work.tallies() for work in works] if complete.failed is None else []
        except Exception as error:
            complete.keep(error)
        if complete.failed is not None:
            names = (*COLUMNS, "total_zeroed")[0 if gathered else -1 : None if self.nonfinite == "zero" else -1]
            found = [nothing(work, names) for work in works]
        return complete(works, found)

    def close(self, counts: Sequence[Sums] | None, roll: Roll, gathered: bool, gather: Gather | None = None) -> None:
        """Takes note of a step that has counted this, or nothing; where others have other parameters, by what all have counted."""
        ledger = self.ledger
        ledger.steps += 1
        self.calls = ledger.steps
        if self.average is not None:
            ledger.averaged += 1
        if not counts and (counts is None or gather is None):
            return
        zeroed = int(sum(on_host(own["total_zeroed"]).sum() for own in counts if "total_zeroed" in own))
        sums, total = np.zeros((0, len(COLUMNS))), None
        names, sizes = roll.labels() if gathered else ([], [])
        if gathered and counts:
            sums = np.concatenate([np.array([on_host(own[name]) for name in COLUMNS]).T for own in counts])
            sums = sums if roll.order is None else sums[roll.order]
            sums[:, COLUMNS.index("total_grad")] *= self.inverse_scale**2
            sums[:, COLUMNS.index("top_grad")] *= self.inverse_scale
        if gather is not None:
            every = gather([zeroed, sum(sizes), *total_of(sums)])
            zeroed, total = int(every[:, 0].sum()), (int(every[:, 1].sum()), total_of(every[:, 2:]))
        ledger.zeroed += zeroed
        self.found |= zeroed > 0
        if gathered and self.telemetry is not None:
            self.telemetry.add(ledger.steps, names, sizes, sums, ledger.clipped, ledger.skipped, total)

    @contextmanager
    def under_scaler(self, scale: Tensor | None, already: Tensor | None) -> Iterator[None]:
        """Has a step take gradients that a GradScaler scales.

        Args:
            scale: what they are multiplied by, None where the scaler has undone that.
            already: what the scaler has found, as the attribute has it.
        """
        self.scaled, self.rescales, self.found, self.already = True, True, False, already
        self.inverse_scale = 1.0 if scale is None else scale.double().reciprocal()
        self._settle()
        try:
            yield
        finally:
            self.scaled, self.inverse_scale, self.already = False, 1.0, None
            self._settle()

    def refuse(self, wrong: Sequence[str], whole: bool = True, quietly: bool = False) -> None:
        """Counts and reports a step that is not taken, or not for these.

        Raises:
            RuntimeError: it is to be an error.
        """
        names = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        if self.nonfinite == "raise":
            raise RuntimeError(f"gradients are not finite: {names}; the step was not taken and nothing has changed")
        self.ledger.skipped += 1
        # A scaler looks for the largest scale that works, so with one this is nothing to worry about.
        level = logging.INFO if self.scaled or quietly else logging.WARNING
        what = "step skipped" if whole else "step skipped for some parameters"
        logger.log(level, "steprule: %s, gradients are not finite: %s", what, names)

    def look(self) -> Ledger:
        """Has the host remember, who takes over what is known on a GPU only; waits for that."""
        ledger: Ledger = self.ledger.on_host()
        self.ledger = ledger
        return ledger

    def __getstate__(self) -> dict[str, Any]:
        # The hooks of a release belong to this optimizer and this model.
        return {**self.__dict__, "ledger": self.ledger.on_host(), "release": None}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return self.ledger.on_host().state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; what is missing stays as it is."""
        ledger = self.look()
        ledger.load_state_dict(state)
        self.calls = ledger.steps


def on_host(x: Any) -> np.ndarray:
    """Numbers as an array of the host, which waits for a device."""
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()


RESERVED = ("clip_value", "average_weight", "grad_factor")
"""What services call their numbers in kernels, which no rule may."""
