"""Parameters of which other processes have parts: DTensors.

A step takes the part that is here as a tensor of its own, in the same memory. Nothing below this knows of DTensors but for
two things: how many elements the whole has, and that sums are added up over the processes that have the other parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from steprule.formats.parts import cut_like, is_sharded, local, mark_part
from steprule.state import Extent
from steprule.tensors.totals import Totals


def is_unreduced(param: Tensor) -> bool:
    """Whether a DTensor is a sum that has not been added up over processes."""
    return is_sharded(param) and any(place.is_partial() for place in param.placements)  # type: ignore[attr-defined]


class Shards:
    """The parts of an optimizer's DTensors that are here, and what their states are here.

    Attributes:
        states: the states of parts; those of a parameter that is whole are its own.
        totals: what makes sums over parts those over the wholes.
    """

    def __init__(self) -> None:
        self.states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.totals = Totals()
        self._parts: dict[Tensor, _Part] = {}
        self._listed: list[Tensor] = []
        self._lists: list[list[Tensor]] | None = None

    def here(
        self, groups: Sequence[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]], steps: bool = True
    ) -> tuple[list[dict[str, Any]], defaultdict[Tensor, dict[str, Any]]]:
        """Groups with parts in the places of DTensors, and states of parts, as they are now.

        Args:
            groups, states: of the optimizer.
            steps: whether parts are to have gradients, for which processes may wait for each other.

        Raises:
            RuntimeError: the gradient of a DTensor is none that is cut as it is.
        """
        self.know(list(chain.from_iterable(map(_PARAMS_OF, groups))))
        for param in self._parts:
            self.bring(param, states.get(param), steps)
        if self._lists is None or list(map(len, map(_PARAMS_OF, groups))) != list(map(len, self._lists)):
            self._lists = [[self._parts[param].here for param in group["params"]] for group in groups]
            self.totals.forget(list(self._parts))
        return [{**group, "params": own} for group, own in zip(groups, self._lists, strict=True)], self.states

    def know(self, listed: list[Tensor]) -> None:
        """Has these parameters from now on, and can tell processes that have other parts of them."""
        if len(listed) == len(self._listed) and all(map(is_, listed, self._listed)):
            return
        self._listed, self._lists = listed, None
        self._parts = {param: self._parts.get(param) or _Part(param) for param in listed}
        kept = {part.here for part in self._parts.values()}
        for part in [part for part in self.states if part not in kept]:
            del self.states[part]
        self.totals.forget(list(self._parts))

    def bring(self, param: Tensor, state: dict[str, Any] | None, steps: bool = True) -> Tensor:
        """Has a parameter's part, its gradient if it `steps`, and its state be as they are now, and returns the part."""
        part = self._parts.get(param)
        if part is None or not part.holds():
            if part is not None:
                self.states.pop(part.here, None)
            part = self._parts[param] = _Part(param)
            self._lists = None
        if steps and part.here is not param:
            part.take_gradient()
        if not state:
            self.states.pop(part.here, None)
            part.values = _NO_VALUES
        elif part.here is param:
            self.states[param] = state
        elif not part.has(state):
            mine = self.states[part.here]
            mine.clear()
            mine.update((name, local(value)) for name, value in state.items())
            part.remember(state)
        return part.here

    def let_go(self, param: Tensor | None = None) -> None:
        """Keeps no gradient alive between two steps, of all parameters or of one."""
        for part in self._parts.values() if param is None else [self._parts[param]]:
            part.let_go()

    def keep(self, states: Any, extents: Mapping[str, Extent]) -> None:
        """Puts what states are here into those of the parameters, as DTensors like these.

        Args:
            states: of the parameters.
            extents: of the states that have no value for each element.
        """
        for param, part in self._parts.items():
            mine = self.states.get(part.here)
            if not mine:
                states.pop(param, None)
                continue
            state = states[param]
            if state is mine:
                continue
            for name in state.keys() - mine.keys():
                del state[name]
            for name, value in mine.items():
                if not _is_same(state.get(name), value):
                    extent = extents.get(name, "elements")
                    is_cut = part.here is not param and isinstance(value, Tensor) and extent != "scalar"
                    state[name] = cut_like(param, value, extent) if is_cut else value
            part.remember(state)  # it is of the memory that the plan has


class _Part:
    """What is here of a parameter: the part of a DTensor, or all of another.

    Args:
        whole: the parameter.

    Attributes:
        here: what a step takes.
        values: the states that have been brought here.
    """

    __slots__ = ("_cut", "_data", "_locals", "_recut", "_spec", "here", "values", "whole")

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.here: Tensor = whole
        self._spec: Any = None
        self._recut: Tensor | None = None
        self.values: tuple[Any, ...] = _NO_VALUES
        if is_sharded(whole):
            self._spec, self._data = whole._spec, whole._local_tensor
            self.here = self._data.detach()
            mark_part(self.here, whole)

    def holds(self) -> bool:
        """Whether the parameter is what it was, in the same memory."""
        whole, here = self.whole, self.here
        if self._spec is None:
            return not is_sharded(whole)
        data = getattr(whole, "_local_tensor", None)
        return (
            data is self._data
            and whole._spec is self._spec
            and data.data_ptr() == here.data_ptr()
            and data.shape == here.shape
            and data.dtype == here.dtype
        )

    def take_gradient(self) -> None:
        """Has the part have the gradient that the DTensor has."""
        whole = self.whole
        grad = whole.grad
        if grad is None:
            if self.here.grad is not None:
                self.here.grad = None
        elif getattr(grad, "_spec", None) is self._spec:  # as FSDP2's are
            self.here.grad = grad._local_tensor
        else:
            if not is_sharded(grad) or grad.device_mesh != whole.device_mesh:
                what = f"cut over {grad.device_mesh}" if is_sharded(grad) else "no DTensor"
                raise RuntimeError(
                    f"a parameter of shape {tuple(whole.shape)} is a DTensor over {whole.device_mesh}, and its gradient is {what}: "
                    "make it one with distribute_tensor(), as the parameter is"
                )
            if grad.placements == whole.placements:
                self.here.grad = grad._local_tensor
            elif grad is not self._recut:  # once in a step: processes wait for each other, and not all make a plan anew
                part = grad.redistribute(whole.device_mesh, whole.placements)._local_tensor
                own = torch.empty_like(self.here, dtype=part.dtype)  # laid out as it, for kernels
                self.here.grad, self._recut = own.copy_(part), grad

    def let_go(self) -> None:
        """Keeps no gradient of a DTensor alive."""
        if self.here is not self.whole:
            self.here.grad = self._recut = None

    def has(self, state: Mapping[str, Any]) -> bool:
        """Whether these states are those that have been brought here."""
        values = self.values
        return (
            len(state) == len(values)
            and all(map(is_, state.values(), values))
            and all(map(is_, map(_LOCAL, self._cut), self._locals))
        )

    def remember(self, state: Mapping[str, Any]) -> None:
        """Takes note of states that have been brought here."""
        self.values = tuple(state.values())
        self._cut = list(filter(is_sharded, self.values))
        self._locals = list(map(_LOCAL, self._cut))


_PARAMS_OF, _LOCAL = itemgetter("params"), attrgetter("_local_tensor")
_NO_VALUES: tuple[Any, ...] = ()


def _is_same(kept: Any, value: Any) -> bool:
    here = local(kept)
    if here is value:
        return True
    both = isinstance(here, Tensor) and isinstance(value, Tensor)
    return (
        both
        and (here.data_ptr(), here.shape, here.dtype) == (value.data_ptr(), value.shape, value.dtype)
        and bool(value.numel())
    )
