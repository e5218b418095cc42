"""The parameters that a plan knows: which of them have a gradient, and where all that belongs to them lies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress
from operator import attrgetter, le
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.plan import Index, index_of
from steprule.step.entry import Entry
from steprule.tensors.memory import missing_bytes, span
from steprule.tensors.places import Places

GRAD = attrgetter("grad")
_STORAGE, _BYTES, _OFFSET = Tensor.untyped_storage, torch.UntypedStorage.nbytes, Tensor.storage_offset
_UNKNOWN = -1


class Roster:
    """The parameters that a plan knows.

    Args:
        entries: one for each, with a gradient or what stands in for one.
        idle: the optimizer's other parameters.

    Attributes:
        params: the parameters.
        active: those that have a gradient.
        waiting: those that have none, and the idle ones.
        idle: the optimizer's other parameters.
        grads_of: what has each one's gradient: itself, or where it has none, what stands in for it.
        fixed: what is written in a step, as lists that change with it.
        held: the same as one list, so that no other tensors can take their places.
    """

    def __init__(self, entries: Sequence[Entry], idle: list[Tensor]) -> None:
        self.params = self.active = [entry.param for entry in entries]
        self.grads_of: Sequence[Any] = self.params
        self.idle = self.waiting = idle
        low_bits = [entry.low_bits for entry in entries if entry.low_bits is not None]
        self.fixed = (self.params, *(entry.state.values() for entry in entries), low_bits)
        self.held = list(chain.from_iterable(self.fixed))

    def remember(self, grads: list[Tensor]) -> None:
        """Takes note of where everything lies and how.

        Args:
            grads: the gradients, or what stands in for them.
        """
        tensors = [*grads, *self.held]
        self._is_active = np.ones(len(grads), bool)
        self._index: Index = slice(None)
        self._stand_ins: list[_StandIn | None] = [None] * len(grads)
        every: dict[Any, Any] = {}  # few that are different, and the garbage collector would look at each
        self._layouts = [every.setdefault(one, one) for one in ((x.shape, x.stride(), x.dtype) for x in grads)]
        self._places = Places(tensors)
        self.moved = self._places.moved
        spans = np.fromiter(chain.from_iterable(map(span, self.held)), np.uint64).reshape(-1, 2)
        self._starts, self._ends = np.sort(spans[spans[:, 0] != spans[:, 1]], 0).T  # of what is written
        ends = np.fromiter(chain.from_iterable(map(span, grads)), np.uint64).reshape(-1, 2).T
        self._grad_sizes = ends[1] - ends[0]
        self._needed = [grad.nbytes for grad in grads]  # bytes, without a gap

    def select(self) -> np.ndarray | None:
        """Turns to the parameters that have a gradient now; None if they are those that had one before.

        Returns:
            Whether each has one.
        """
        active = [grad is not None for grad in map(GRAD, self.params)]
        if active == self._is_active.tolist():
            return None
        self._is_active = np.array(active, bool)
        self._index = index_of(self._is_active)
        self.active = list(compress(self.params, active))
        self.waiting = [*(param for param, one in zip(self.params, active, strict=True) if not one), *self.idle]
        self.grads_of = [
            param if one else self._stand_in(number)
            for number, (param, one) in enumerate(zip(self.params, active, strict=True))
        ]
        self._places.at[: len(active)] = _UNKNOWN  # so that every gradient is looked at
        return self._is_active

    def forget(self) -> None:
        """Has nothing be as it was."""
        self._places.at[:] = _UNKNOWN

    def _stand_in(self, number: int) -> _StandIn:
        one = self._stand_ins[number]
        if one is None:
            one = self._stand_ins[number] = _StandIn(*self._layouts[number])
        return one

    def follow(self, moved: int, tensors: list[Tensor]) -> np.ndarray | None:
        """Takes over new addresses of gradients, as `moved` has just found them, and returns them all.

        None if it is others that have changed, or a gradient's memory was freed or lies where something is written.
        """
        count = len(self.params)
        if moved > count:
            return None
        at = self._places.now[:count]
        grads, needed = tensors[:count], self._needed
        if self.active is not self.params:
            active = self._is_active.tolist()
            grads, needed = list(compress(grads, active)), list(compress(needed, active))
        is_plain = all(map(le, needed, map(_BYTES, map(_STORAGE, grads)))) and not any(map(_OFFSET, grads))
        if not is_plain and any(map(missing_bytes, grads)):
            return None
        starts, sizes = at.view(np.uint64)[self._index], self._grad_sizes[self._index]
        if not np.array_equal(starts == 0, sizes == 0):
            return None
        before = self._starts.searchsorted(starts + sizes)  # how many begin before its end, how many end
        if not np.array_equal(before, self._ends.searchsorted(starts, "right")):  # before it begins
            return None
        self._places.at[:count] = at
        return at


class _StandIn:
    """Has a gradient of a layout and dtype, without memory: what is compared with gradients has one for each parameter."""

    def __init__(self, size: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> None:
        self.grad = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        self.grad.untyped_storage().resize_(0)
