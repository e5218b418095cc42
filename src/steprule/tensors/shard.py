"""Parameters of which other processes have parts: DTensors.

A step takes the part that is here as a tensor of its own, in the same memory. Nothing below this knows of DTensors but for
two things: how many elements the whole has, and that sums are added up over the processes that have the other parts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.run import Sums
from steprule.formats.parts import cut_like, is_sharded, local

_WHOLE = "_steprule_whole"


def whole_of(part: Tensor) -> Tensor:
    """The DTensor that a part belongs to; any other tensor is the whole itself."""
    return getattr(part, _WHOLE, part)


def cut_dimensions(param: Tensor) -> list[int]:
    """The dimensions of a DTensor along which processes have parts of it; of any other tensor none."""
    if not is_sharded(param):
        return []
    return [dim for place in param.placements if (dim := getattr(place, "dim", None)) is not None]  # type: ignore[attr-defined]


def is_unreduced(param: Tensor) -> bool:
    """Whether a DTensor is a sum that has not been added up over processes."""
    return is_sharded(param) and any(place.is_partial() for place in param.placements)  # type: ignore[attr-defined]


class Shards:
    """The parts of an optimizer's DTensors that are here, and what their states are here.

    Attributes:
        states: the states of parts.
    """

    def __init__(self) -> None:
        self.states: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self._parts: dict[Tensor, Tensor] = {}

    def here(
        self, groups: Sequence[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], defaultdict[Tensor, dict[str, Any]]]:
        """Groups with parts in the places of DTensors, and states of parts, as they are now."""
        own = dict.fromkeys(chain.from_iterable(group["params"] for group in groups))
        if self._parts.keys() != own.keys():
            self._parts = {param: self._parts.get(param, param) for param in own}
            kept = set(self._parts.values())
            for part in [part for part in self.states if part not in kept]:
                del self.states[part]
        for param in own:
            self.bring(param, states.get(param))
        return [{**group, "params": [self._parts[param] for param in group["params"]]} for group in groups], self.states

    def bring(self, param: Tensor, state: Mapping[str, Any] | None) -> Tensor:
        """Has a parameter's part, gradient and state be as they are now, and returns the part."""
        if is_sharded(param):
            data, grad = local(param), param.grad
            part = self._parts.get(param, param)
            if (
                part is param
                or part.data_ptr() != data.data_ptr()
                or part.shape != data.shape
                or part.dtype != data.dtype
            ):
                self.states.pop(part, None)
                part = self._parts[param] = data.detach()
                setattr(part, _WHOLE, param)
            if grad is not None and grad.placements != param.placements:  # type: ignore[attr-defined]
                grad = grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
            part.grad = local(grad)
        part = self._parts.setdefault(param, param)
        if not state:
            self.states.pop(part, None)
            return part
        mine = self.states[part]
        for name in mine.keys() - state.keys():
            del mine[name]
        for name, value in state.items():
            mine[name] = local(value)
        return part

    def let_go(self) -> None:
        """Keeps no gradient alive between two steps."""
        for param, part in self._parts.items():
            if part is not param:
                part.grad = None

    def keep(self, states: Any, numbers: Collection[str]) -> None:
        """Puts what states are here into those of the parameters, as DTensors like these.

        Args:
            states: of the parameters.
            numbers: the names of states that are one number for the whole.
        """
        for param, part in self._parts.items():
            mine = self.states.get(part)
            if not mine:
                states.pop(param, None)
                continue
            state = states[param]
            for name in state.keys() - mine.keys():
                del state[name]
            for name, value in mine.items():
                if not _is_same(state.get(name), value):
                    is_cut = is_sharded(param) and isinstance(value, Tensor) and name not in numbers
                    state[name] = cut_like(param, value) if is_cut else value
            self.bring(param, state)


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


def complete(works: Sequence[Any], sums: Sequence[Sums]) -> Sequence[Sums]:
    """Sums over what is here made those over the wholes: a `steprule.engine.run.Complete`.

    They are added up over the dimensions of a mesh along which a tensor is cut, and not over those along which processes
    have the same of it: by one call of torch.distributed for each dimension, and one more where there are largest or
    smallest elements among them.
    """
    wholes = [[whole_of(param) for param in work.params] for work in works]
    groups = _groups(chain.from_iterable(wholes))
    if not groups:
        return sums
    found = [{name: _array(values) for name, values in own.items()} for own in sums]
    for (mesh, dim), members in groups.items():
        places = [np.array([id(whole) in members for whole in own], bool) for own in wholes]
        for is_sum in (True, False):
            chosen = [
                (values, place, -1.0 if name.startswith("low_") else 1.0)
                for own, place in zip(found, places, strict=True)
                for name, values in own.items()
                if name.startswith(("top_", "low_")) != is_sum and place.any()
            ]
            if chosen:
                _reduce(chosen, mesh, dim, is_sum)
    return [
        {name: _like(values, found[number][name]) for name, values in own.items()} for number, own in enumerate(sums)
    ]


def _groups(params: Iterable[Tensor]) -> dict[tuple[Any, int], set[int]]:
    """For each dimension of a mesh the ids of the tensors that are cut along it, in the tensors' order."""
    found: dict[tuple[Any, int], set[int]] = {}
    for param in params:
        if is_sharded(param):
            mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
            for dim, place in enumerate(placements):
                if not place.is_replicate() and mesh.size(dim) > 1:
                    found.setdefault((mesh, dim), set()).add(id(param))
    return found


def _reduce(chosen: Sequence[tuple[np.ndarray, np.ndarray, float]], mesh: Any, dim: int, is_sum: bool) -> None:
    """Adds up numbers over a dimension of a mesh, or takes the largest, where they are."""
    from torch.distributed import ReduceOp, all_reduce

    flat = np.concatenate([values[place] * sign for values, place, sign in chosen])
    if not is_sum:
        flat = np.where(np.isnan(flat), math.inf, flat)  # which not every backend would hand on
    numbers = torch.from_numpy(flat).to(mesh.device_type)
    all_reduce(numbers, ReduceOp.SUM if is_sum else ReduceOp.MAX, group=mesh.get_group(dim))
    flat, start = numbers.cpu().numpy(), 0
    for values, place, sign in chosen:
        end = start + int(place.sum())
        values[place] = flat[start:end] * sign
        start = end


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().double().cpu().numpy().reshape(-1).copy()
    return np.array([float(one) for one in values], np.float64)


def _like(values: Any, numbers: np.ndarray) -> Any:
    """Numbers in the form in which others were given."""
    if isinstance(values, Tensor):
        return torch.from_numpy(numbers).to(values.device, values.dtype).reshape(values.shape)
    return numbers if isinstance(values, np.ndarray) else numbers.tolist()
