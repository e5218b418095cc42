"""A step's decisions, as numbers of the host."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol

import numpy as np

from steprule.engine.run import Complete, Gather, Sums
from steprule.services.decide import factor_of, joined_again
from steprule.services.member import COLUMNS, Part, Roll
from steprule.services.step import StepServices


class Averages(Protocol):
    """The averages of parameters that take no step."""

    @property
    def rests(self) -> bool:
        """Whether there are such parameters."""

    def move(self, weight: Any) -> None:
        """Brings them towards the parameters by this share."""


class OnHost:
    """Services around the steps of a plan, decided by the host; a `steprule.engine.run.Around`.

    Args:
        services: whose decisions they are.
        averages: of parameters that take no step, if there are any.
    """

    def __init__(self, services: StepServices, averages: Averages | None) -> None:
        self._services, self._averages = services, averages
        self._roll: Roll | None = None
        self._gather: Gather | None = None

    wants = property(attrgetter("_services.wants"), doc="What services want to know of gradients.")
    gathers = property(attrgetter("_services.gathers"), doc="Whether telemetry looks at the step that comes.")
    counts = property(attrgetter("_services.counts"), doc="Whether the step leaves sums behind it.")

    def forget(self) -> None:
        """For other members from now on."""
        self._roll = None

    def ask(self, works: Sequence[Part], sums: Sequence[Sums], complete: Complete) -> bool:
        """Decides whether the step is taken, and what gradients are multiplied by.

        Raises:
            RuntimeError: a gradient is not finite, and that is to be an error; nothing has changed.
        """
        services = self._services
        if services.scaled and services.scaler_found():
            services.found = True
            services.refuse(["as GradScaler found"], quietly=True)
            return False
        norm, norms = services.ledger.norm, services.norms(sums)
        if norms:
            wrong = services.not_finite(works, norms, complete) if services.guards else []
            services.found = bool(wrong)
            if wrong:
                services.refuse(wrong)
                return False
            norm = services.total(norms, self._roll or self._call_roll(works))
            services.ledger.remember(norm)
        else:
            services.found = False
        services.ledger.clipped += services.multiply(works, norms, norm)
        return True

    def note(self, works: Sequence[Part], gathered: bool, complete: Complete) -> None:
        """Takes note of a step, and moves averages of parameters that took none."""
        services = self._services
        if complete.failed is None and self._averages is not None and self._averages.rests:
            try:
                self._averages.move(services.weight)
            except Exception as error:
                complete.keep(error)
        counts = services.counted(works, gathered, complete) if gathered or services.nonfinite == "zero" else None
        if complete.failed is None:
            services.close(counts, self._roll or self._call_roll(works), gathered, self._gather)
        elif counts is not None and self._gather is not None:
            self._gather([0.0] * (2 + len(COLUMNS)))  # as `close` does

    def _call_roll(self, works: Sequence[Part]) -> Roll:
        self._roll = roll = Roll([member for work in works for member in work.members])
        return roll


class OnHosts(OnHost):
    """As `OnHost`, for processes that each have other parameters: what all have read decides, in all of them alike.

    Where nothing is asked of gradients, a step counts that none of them has a gradient for: a process does not know that.

    Args:
        services, averages: as for `OnHost`.
        gather: what all processes have.
    """

    def __init__(self, services: StepServices, averages: Averages | None, gather: Gather) -> None:
        super().__init__(services, averages)
        self._gather: Gather = gather

    def ask(self, works: Sequence[Part], sums: Sequence[Sums], complete: Complete) -> bool:
        """As `OnHost.ask`; a process without gradients takes part."""
        services, ledger = self._services, self._services.ledger
        has_found = services.scaled and services.scaler_found()
        services.found = False
        if services.wants is None:
            services.multiply(works, [], ledger.norm)
            return True
        norms, roll = services.norms(sums), self._roll or self._call_roll(works)
        wrong = services.not_finite(works, norms, complete)
        norm = services.total(norms, roll) if norms else 0.0
        clips = services.clips_each and services.multiply(works, norms, norm)
        own = norm, len(roll.members), roll.bound_count, len(wrong), has_found, clips
        every, members, bound, not_finite, found, clipped = np.asarray(self._gather(own)).T
        if found.any() or not_finite.any():
            services.found = True
            others = [f"those of process {rank} of process_group" for rank in np.flatnonzero(not_finite)]
            if found.any():
                services.refuse(["as GradScaler found"], quietly=True)
            else:
                services.refuse(wrong or others)
            return False
        if members.any():
            ledger.remember(joined_again(every[bound > 0], services.norm_type) if bound.any() else 0.0)
        else:
            services.rest()
            if services.average is None:
                return False
        if services.clips_each:
            ledger.clipped += bool(clipped.any())
        else:
            services.multiply(works, norms, ledger.norm)
            factor, enough = factor_of(services.clip, ledger.norm, ledger)
            ledger.clipped += bool(bound.any() and factor <= enough)
        return True
