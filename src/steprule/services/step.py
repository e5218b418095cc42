"""What surrounds a step: a reading of the gradients before it, factors for it, and what it leaves behind."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from steprule.services.average import Average
from steprule.services.clip import Clip, ClipAdaptive, ClipNorm, ClipQuantile, ClipValue, norm_factor, packed, unpacked
from steprule.services.member import COLUMNS, REMEMBERED, Member
from steprule.services.telemetry import Telemetry
from steprule.trace.around import Services

logger = logging.getLogger("steprule")

NONFINITE = ("skip", "zero", "raise")


class Part(Protocol):
    """Members of a step that are read and stepped together: those of one plan, or one alone."""

    @property
    def members(self) -> Sequence[Member]:
        """Who they are."""

    @property
    def exempt(self) -> np.ndarray:
        """Which of them are left out of clipping."""

    @property
    def factors(self) -> np.ndarray:
        """What gradients are multiplied by."""

    def norms(self, services: StepServices) -> np.ndarray:
        """The p-norm of each gradient, as it is; factors of adaptive clipping are set on the way."""

    def largest(self, services: StepServices, norms: np.ndarray) -> np.ndarray:
        """Numbers that are finite where gradients are."""

    def set_factors(self, factors: np.ndarray) -> None:
        """Sets what each member's gradient is multiplied by."""

    def set_scalar(self, name: str, value: float) -> None:
        """Sets one of the numbers that all share."""

    def tallies(self) -> dict[str, np.ndarray]:
        """What the last step has counted, for each member."""


class Around(Protocol):
    """What is asked before a step and told of it afterwards."""

    def begin(self, parts: Sequence[Part]) -> bool:
        """Whether the step is to be taken."""

    def finish(self, parts: Sequence[Part], gathered: bool) -> None:
        """Takes note of it."""


class Ahead(Protocol):
    """What has taken steps on a GPU that the host does not know of."""

    norm: Tensor

    def look(self) -> dict[str, Any]:
        """What is known there, by its names here; waits for it."""


class StepServices:
    """The services of one optimizer: their settings, and what they remember from step to step.

    Args:
        clip, nonfinite, average, telemetry: as the optimizer's arguments, None where off.

    Attributes:
        norm: the norm of the gradients of the last step that was taken, unscaled; NaN before.
        clipped, skipped, zeroed: how many steps were clipped or skipped, how many elements zeroed.
        steps: how many were taken.
        averaged: how many averages were taken.
        calls: how many there were, taken or not, where that is not known at once.
        inverse_scale: what undoes a GradScaler's scale in this step; a tensor where that is on a GPU.
        already: what a GradScaler has found, 0 for gradients that are finite; a tensor on a GPU, or None.
        rescales: whether there has been a GradScaler, so that kernels must multiply gradients.
        found: whether this step's gradients are not finite; a tensor where that is known on a GPU.
        ahead: what has taken the last steps on a GPU, and alone knows of them.
    """

    def __init__(
        self, clip: Clip | None, nonfinite: str | None, average: Average | None, telemetry: Telemetry | None
    ) -> None:
        self.clip = clip
        self.nonfinite = nonfinite
        self.average = average
        self.telemetry = telemetry
        self.norm = math.nan
        self.clipped = self.skipped = self.zeroed = self.steps = self.averaged = self.calls = 0
        self.recent: deque[float] = deque(maxlen=clip.window if isinstance(clip, ClipQuantile) else 0)
        self.scaled, self.rescales = False, False
        self.inverse_scale: Any = 1.0
        self.found: Any = False
        self.already: Tensor | None = None
        self.ahead: Ahead | None = None
        self.release: Around | None = None

    @property
    def names(self) -> list[str]:
        """The arguments that are in use."""
        return [name for name in ("clip", "nonfinite", "average", "telemetry") if getattr(self, name) is not None]

    def set_clip(self, clip: Clip | None) -> None:
        """Another way to clip from now on."""
        self.look()
        self.clip = clip
        self.recent = deque(self.recent, maxlen=clip.window if isinstance(clip, ClipQuantile) else 0)

    def static(self, group: Mapping[str, Any]) -> Services:
        """What of these a kernel for the group does in every step."""
        free = group.get("clip") is False
        scales = self.rescales or isinstance(self.clip, (ClipNorm, ClipQuantile))
        return Services(
            factor="row" if isinstance(self.clip, ClipAdaptive) and not free else "tensor" if scales else "",
            limit=isinstance(self.clip, ClipValue) and not free,
            zero=self.nonfinite == "zero",
            average=self.average is not None,
        )

    def numbers(self) -> dict[str, float]:
        """The scalars that kernels for this want besides the rule's."""
        clip_value = self.clip.clip_value if isinstance(self.clip, ClipValue) else 0.0
        return {"clip_value": clip_value, "average_weight": self.average_weight}

    @property
    def average_weight(self) -> float:
        """The share of the new weights in the next average."""
        return self.average.weight(self.averaged) if self.average else 0.0

    @property
    def guards(self) -> bool:
        """Whether a step is not taken if a gradient is not finite."""
        return self.nonfinite in ("skip", "raise") or (self.scaled and self.nonfinite != "zero")

    @property
    def reads(self) -> bool:
        """Whether gradients are looked at before the step."""
        return self.guards or isinstance(self.clip, (ClipNorm, ClipAdaptive, ClipQuantile))

    @property
    def norm_type(self) -> float:
        """The p of the norm that is read."""
        return float(self.clip.norm_type) if isinstance(self.clip, ClipNorm) else 2.0

    @property
    def gathers(self) -> bool:
        """Whether the step that comes is one that telemetry looks at."""
        return self.telemetry is not None and (self.calls + 1) % self.telemetry.every == 0

    def begin(self, parts: Sequence[Part]) -> bool:
        """Reads the gradients if anything needs it and sets the factors; False if the step is not to be taken.

        Raises:
            RuntimeError: a gradient is not finite, and that is to be an error; nothing has changed.
        """
        if isinstance(self.inverse_scale, Tensor):
            self.inverse_scale = float(self.inverse_scale)
        if self.already is not None and bool(self.already) and self.nonfinite != "zero":
            self.found = True
            self.refuse(["as GradScaler found"], quietly=True)
            return False
        norms = self.read(parts)
        wrong = self.not_finite(parts, norms)
        self.found = bool(wrong)
        if wrong:
            self.refuse(wrong)
            return False
        if norms:
            self.remember(self.total(self.by_member(parts, norms)))
        self.clipped += self.set_factors(parts, norms, self.factor(self.norm))
        return True

    def finish(self, parts: Sequence[Part], gathered: bool) -> None:
        """Takes note of a step."""
        self.close(self.tally(parts, gathered), gathered)

    # The parts of these two

    def read(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Every member's norm, by part, or nothing if no service wants to know."""
        return [part.norms(self) for part in parts] if self.reads else []

    @staticmethod
    def by_member(parts: Sequence[Part], norms: Sequence[np.ndarray]) -> list[tuple[Member, float]]:
        """Each member with its norm; none if nothing was read."""
        members = chain.from_iterable(part.members for part in parts) if norms else ()
        return list(zip(members, map(float, chain(*norms)), strict=True))

    def not_finite(self, parts: Sequence[Part], norms: Sequence[np.ndarray]) -> list[str]:
        """The names of members for whose sake the step is not to be taken."""
        if not self.guards:
            return []
        return [
            member.who
            for part, own in zip(parts, norms, strict=True)
            if not np.isfinite(own).all()
            for member, largest in zip(part.members, part.largest(self, own), strict=True)
            if not math.isfinite(largest)
        ]

    def total(self, norms: Iterable[tuple[Member, float]]) -> float:
        """The unscaled norm of all norms, in the parameters' order, so that it does not depend on their grouping."""
        ordered = sorted((member.place, norm) for member, norm in norms if not member.free)
        with np.errstate(all="ignore"):
            every = np.array([norm for _, norm in ordered])
            return float(np.linalg.norm(every, self.norm_type)) * self.inverse_scale if ordered else 0.0

    def remember(self, norm: float) -> None:
        """Takes note of a step's norm."""
        self.norm = norm
        if isinstance(self.clip, ClipQuantile) and math.isfinite(norm):
            self.recent.append(norm)

    def rest(self) -> None:
        """Takes note of a step without gradients, whose norm is 0; it is none of those that clipping goes by."""
        if self.reads:
            self.norm = 0.0

    def factor(self, norm: float) -> float:
        """What all gradients are multiplied by if their norm is this."""
        if isinstance(self.clip, ClipNorm) and not self.clip.per_parameter:
            return float(norm_factor(norm, self.clip.max_norm))
        if isinstance(self.clip, ClipQuantile) and self.recent:
            return float(norm_factor(norm, float(np.quantile(self.recent, self.clip.quantile))))
        return 1.0

    def set_factors(self, parts: Sequence[Part], norms: Sequence[np.ndarray], factor: float) -> bool:
        """Tells every part what to multiply by; True if anything is clipped by a norm."""
        clipped, inverse = False, self.inverse_scale
        for index, part in enumerate(parts):
            if self.average is not None:
                part.set_scalar("average_weight", self.average_weight)
            if isinstance(self.clip, ClipAdaptive) and not part.exempt.all():
                factors = part.factors
                clipped |= bool((factors < inverse).any())
                continue
            each: Any = factor
            if isinstance(self.clip, ClipNorm) and self.clip.per_parameter:
                each = norm_factor(norms[index] * inverse, self.clip.max_norm)
            each = np.where(part.exempt, 1.0, each)
            clipped |= bool((each < 1.0).any())
            part.set_factors(each * inverse)
        return clipped

    def tally(self, parts: Sequence[Part], gathered: bool) -> list[Row]:
        """What a step has counted, a row for each member."""
        if self.nonfinite != "zero" and not gathered:
            return []
        columns = COLUMNS if gathered else ()
        rows: list[Row] = []
        for part in parts:
            counts = part.tallies()
            zeroed = counts.get("total_zeroed", np.zeros(len(part.members)))
            numbers = np.array([counts[name] for name in columns]).reshape(-1, len(part.members)).T
            rows += zip(part.members, zeroed.tolist(), numbers, strict=True)
        return rows

    def close(self, rows: Sequence[Row], gathered: bool) -> None:
        """Takes note of a step that has counted this."""
        self.steps += 1
        self.calls = self.steps
        self.averaged += self.average is not None
        zeroed = int(sum(count for _, count, _ in rows))
        self.zeroed += zeroed
        self.found |= zeroed > 0
        if gathered and self.telemetry is not None and rows:
            ordered = sorted(rows, key=lambda row: row[0].place)
            sums = np.array([numbers for *_, numbers in ordered])
            sums[:, COLUMNS.index("total_grad")] *= self.inverse_scale**2
            sums[:, COLUMNS.index("top_grad")] *= self.inverse_scale
            self.record([member for member, *_ in ordered], sums)

    def record(self, members: Sequence[Member], sums: Any, later: Tensor | None = None) -> None:
        """Gives telemetry a step.

        Args:
            members: of the step, by place.
            sums: a row for each.
            later: for sums on a GPU, what `Telemetry.add_later` wants to know.
        """
        assert self.telemetry is not None
        names, sizes = [member.name for member in members], [member.param.numel() for member in members]
        if len(set(names)) < len(names):  # of two models in two groups, say
            names = [f"{name} ({member.place})" for name, member in zip(names, members, strict=True)]
        if later is not None:
            self.telemetry.add_later(names, sizes, sums, later)
        else:
            self.telemetry.add(self.steps, names, sizes, sums, self.clipped, self.skipped)

    def step_scaled(self, optimizer: Any, scaler: Any, take_step: Callable[[], None]) -> None:
        """A step for a GradScaler: gradients are unscaled on the way, and it learns whether they were finite.

        Args:
            optimizer: that the scaler steps.
            scaler: a GradScaler, or None if it has put its tensors into the optimizer's attributes.
            take_step: steps the optimizer.

        Raises:
            RuntimeError: gradients are released, and the steps long taken.
        """
        if self.release is not None:
            raise RuntimeError(
                "a GradScaler cannot step an optimizer that releases gradients: each was stepped before its scale was known"
            )
        if scaler is None:
            scale, found = optimizer.grad_scale, [optimizer.found_inf]
        else:
            state = scaler._per_optimizer_states[id(optimizer)]
            unscaled = state["stage"] is OptState.UNSCALED
            scale = None if unscaled else scaler._get_scale_async()
            found = list(state["found_inf_per_device"].values()) if unscaled else []
        self.scaled, self.inverse_scale, self.found = True, 1.0 if scale is None else scale.double().reciprocal(), False
        self.already = sum(one.to(found[0].device, non_blocking=True) for one in found) if found else None
        if not self.rescales:
            self.rescales = True
            optimizer._core.forget_plans(optimizer.param_groups)
        try:
            take_step()
        except RuntimeError:
            if scaler is None:  # which then does not take them back
                del optimizer.grad_scale, optimizer.found_inf
            raise
        finally:
            self.scaled, self.inverse_scale, self.already = False, 1.0, None
            if scaler is not None and not unscaled:
                state["found_inf_per_device"] = {
                    scale.device: torch.as_tensor(self.found, dtype=torch.float32, device=scale.device)
                }

    def refuse(self, wrong: Sequence[str], whole: bool = True, quietly: bool = False) -> None:
        """Counts and reports a step that is not taken, or not for these.

        Raises:
            RuntimeError: it is to be an error.
        """
        names = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        if self.nonfinite == "raise":
            raise RuntimeError(f"gradients are not finite: {names}; the step was not taken and nothing has changed")
        self.skipped += 1
        # A scaler looks for the largest scale that works, so with one this is nothing to worry about.
        level = logging.INFO if self.scaled or quietly else logging.WARNING
        what = "step skipped" if whole else "step skipped for some parameters"
        logger.log(level, "steprule: %s, gradients are not finite: %s", what, names)

    def look(self) -> None:
        """Takes over what is known on a GPU only; waits for it."""
        if self.ahead is None:
            return
        known, self.ahead = self.ahead.look(), None
        self.recent = deque(known.pop("recent"), self.recent.maxlen)
        for name, value in known.items():
            setattr(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        self.look()
        return {**self.__dict__, "release": None}  # its hooks belong to this optimizer and this model

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        self.look()
        saved = {name: getattr(self, name) for name in REMEMBERED}
        return saved | ({"recent": packed(self.recent)} if self.recent.maxlen else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; what is missing stays as it is."""
        self.look()
        for name in REMEMBERED:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.calls = self.steps
        if "recent" in state:
            self.recent = deque(unpacked(state["recent"]), self.recent.maxlen)


RESERVED = ("clip_value", "average_weight", "grad_factor")
"""What services call their numbers in kernels, which no rule may."""
Row = tuple[Member, float, np.ndarray]
