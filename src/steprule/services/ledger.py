"""What services remember from step to step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from steprule.services.clip import Clip, packed, unpacked
from steprule.services.decide import ROUNDED, quantile

REMEMBERED = ("norm", "clipped", "skipped", "zeroed", "steps", "averaged")
"""The numbers, by the names that they have in checkpoints."""


class Ledger:
    """What services remember from step to step, as numbers of the host.

    `steprule.services.device.DeviceLedger` has the same on a device.

    Args:
        clip: how gradients are clipped.

    Attributes:
        max_norm: the longest that they may be, where that is one number.
        clips_at: the factor from which on a step counts as clipped, where that is one number.
        norm: the norm of the gradients of the last step that was taken, unscaled; NaN before.
        clipped, skipped, zeroed: how many steps were clipped or skipped, how many elements zeroed.
        steps: how many were taken.
        averaged: how many averages were taken.
        recent: the norms of the last steps.
    """

    def __init__(self, clip: Clip | None = None) -> None:
        self.max_norm = clip.max_norm if clip is not None else math.inf
        self.clips_at = self.max_norm / (self.max_norm * ROUNDED + 1e-6) if self.max_norm < math.inf else 0.0
        self.norm = math.nan
        self.clipped = self.skipped = self.zeroed = self.steps = self.averaged = 0
        self.recent: deque[float] = deque(maxlen=clip.window if clip is not None else 0)

    def on_host(self) -> Ledger:
        """The same where the host knows it; waits for a device."""
        return self

    def clipped_by(self, clip: Clip | None) -> Ledger:
        """The same where gradients are clipped otherwise from now on."""
        ledger = Ledger(clip)
        for name in REMEMBERED:
            setattr(ledger, name, getattr(self, name))
        ledger.recent.extend(self.recent)
        return ledger

    def remember(self, norm: float) -> None:
        """Takes note of a step's norm."""
        self.norm = norm
        if self.recent.maxlen and math.isfinite(norm):
            self.recent.append(norm)

    def quantile(self, share: float) -> float:
        """That of the last norms; NaN where there are none."""
        return quantile(self.recent, share) if self.recent else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        saved = {name: getattr(self, name) for name in REMEMBERED}
        return saved | ({"recent": packed(self.recent)} if self.recent.maxlen else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned; what is missing stays as it is."""
        for name in REMEMBERED:
            setattr(self, name, state.get(name, getattr(self, name)))
        if "recent" in state:
            self.recent = deque(unpacked(state["recent"]), self.recent.maxlen)
