"""A parameter of a step, as services see it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from steprule.engine.run import Sums, Work
from steprule.formats import row_length
from steprule.formats.parts import whole_of
from steprule.services.clip import ClipAdaptive

COLUMNS = ("total_grad", "total_update", "total_param", "total_lost", "top_grad", "top_update", "top_param")
"""What telemetry wants of each, in its order."""

_PLACE, _FREE = attrgetter("place"), attrgetter("free")


def row_size(param: Tensor) -> int:
    """The elements of one index of a parameter's first dimension; all of a vector's, and at least 1."""
    return max(row_length(param.shape) if param.dim() > 1 else param.numel(), 1)


class Member:
    """A parameter of a step.

    Args:
        name: what to call it.
        place: its number among all parameters.
        param: the tensor.
        free: whether it is left out of clipping.
        who: what messages call it. Default: name.
    """

    def __init__(self, name: str, place: int, param: Tensor, free: bool, who: str | None = None) -> None:
        self.name = name
        self.who = who or name
        self.place = place
        self.param = param
        self.free = free


class Part(Work, Protocol):
    """What is stepped together, as services see it."""

    @property
    def members(self) -> Sequence[Member]:
        """The parameters."""

    @property
    def exempt(self) -> Any:
        """Which of them are left out of clipping; None where none is."""

    @property
    def by_row(self) -> bool:
        """Whether each row has a factor of its own."""

    def largest(self) -> Sums | None:
        """The "top_grad" of gradients that were read, or None where norms are finite wherever gradients are."""

    def here(self, x: Any) -> Any:
        """Numbers brought to where its gradients are."""

    def clip_rows(self, clip: ClipAdaptive, inverse: Any) -> Any:
        """Sets each row's factor by what was read last; whether one is clipped.

        Args:
            clip: which.
            inverse: what undoes a GradScaler's scale.
        """

    def set_factors(self, factors: Any) -> None:
        """Sets what gradients are multiplied by, one number or one for each member."""

    def set_weight(self, weight: Any) -> None:
        """Sets the share of the new weights in their average."""

    def tallies(self) -> Sums:
        """What the last step has counted, for each member."""


class Roll:
    """The members of a step in the parameters' order, so that nothing depends on how they are divided.

    Args:
        members: as parts of the step have them.

    Attributes:
        members: in order.
        order: where each one stood; None where they are in order already.
        bound: the same of those that clipping does not leave out; None where that is all, in order.
        bound_count: how many those are.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        every, places = list(range(len(members))), list(map(_PLACE, members))
        order = sorted(every, key=places.__getitem__)
        bound = [number for number in order if not members[number].free] if any(map(_FREE, members)) else order
        self.members = members if order == every else [members[number] for number in order]
        self.bound_count = len(bound)
        self.order = None if order == every else np.array(order, np.int64)
        self.bound = None if bound == every else np.array(bound, np.int64)
        self._labels: tuple[list[str], list[int]] | None = None

    def labels(self) -> tuple[list[str], list[int]]:
        """Their names, each once, and their sizes."""
        if self._labels is None:
            names = [member.name for member in self.members]
            if len(set(names)) < len(names):  # of two models in two groups, say
                names = [f"{member.name} ({member.place})" for member in self.members]
            self._labels = names, [whole_of(member.param).numel() for member in self.members]
        return self._labels
