"""A fault, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from steprule.check.broken.correct import AdamW, Muon
from steprule.check.claims import Claims, Subject

T = TypeVar("T", bound=type[torch.optim.Optimizer])

COMMON: dict[str, Any] = {"separate": True, "maximize": True, "ddp": True}
ADAMW = Claims(
    **COMMON,
    fsdp2=True,
    elementwise=True,
    bfloat16=True,
    scale_invariant=True,
    decay="decoupled",
    formula="adamw",
    copies_loaded=True,
    state_bytes=8,
)
MUON = Claims(
    **COMMON,
    params="2d",
    transpose=True,
    batch=True,
    rotation=True,
    orthogonal=0.99,
    copies_loaded=True,
    state_bytes=4,
    decay="decoupled",
)


def claimed(optimizer: type[torch.optim.Optimizer]) -> Subject:
    """One of the two that have no fault, or a broken one, with what the one without a fault claims."""
    return Subject(optimizer, ADAMW if issubclass(optimizer, AdamW) else MUON, lr=1e-2)


@dataclass(frozen=True)
class Fault:
    """A broken optimizer.

    Attributes:
        optimizer: the class.
        found_by: the check that is meant for it.
        says: what is wrong.
        seen: where such a fault was: a package, an issue or pull request on GitHub, or `OWN`.
    """

    optimizer: type[torch.optim.Optimizer]
    found_by: str
    says: str
    seen: str

    @property
    def subject(self) -> Subject:
        """It, with what its author would claim."""
        assert issubclass(self.optimizer, (AdamW, Muon))
        return claimed(self.optimizer)


OWN = "of our own making"
"""Of a fault for which we know no published place."""

FAULTS: dict[str, Fault] = {}
"""All by the names of their classes."""


def fault(found_by: str, seen: str = OWN) -> Callable[[T], T]:
    """Enters a class as a broken optimizer; its docstring says what is wrong."""

    def enter(optimizer: T) -> T:
        FAULTS[optimizer.__name__] = Fault(optimizer, found_by, " ".join((optimizer.__doc__ or "").split()), seen)
        return optimizer

    return enter
