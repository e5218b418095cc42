"""A step's decisions, as numbers of the host."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol

from steprule.engine.run import Complete, Sums
from steprule.services.member import Part, Roll
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

    wants = property(attrgetter("_services.wants"), doc="What services want to know of gradients.")
    gathers = property(attrgetter("_services.gathers"), doc="Whether telemetry looks at the step that comes.")

    def forget(self) -> None:
        """For other members from now on."""
        self._roll = None

    def ask(self, works: Sequence[Part], sums: Sequence[Sums], complete: Complete) -> bool:
        """Decides whether the step is taken, and what gradients are multiplied by.

        Raises:
            RuntimeError: a gradient is not finite, and that is to be an error; nothing has changed.
        """
        services = self._services
        if services.scaled and not services.unscale():
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
        if self._averages is not None and self._averages.rests:
            self._averages.move(services.weight)
        counts: Sequence[Sums] = ()
        if gathered or services.nonfinite == "zero":
            counts = complete(works, [work.tallies() for work in works])
        services.close(counts, self._roll or self._call_roll(works), gathered)

    def _call_roll(self, works: Sequence[Part]) -> Roll:
        self._roll = roll = Roll([member for work in works for member in work.members])
        return roll
