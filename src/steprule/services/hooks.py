"""What hooks into autograd stand on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing once the method's object is gone, and does not keep it."""
    reference = WeakMethod(method)

    def hook(*args: Any) -> Any:
        alive = reference()
        return alive(*args) if alive is not None else None

    return hook


class Owners:
    """Whose hooks each parameter has. There is room for one, and the newest takes a parameter over: the one before may be
    garbage that nobody can reach, as when a notebook's cell runs again, and live until the collector comes."""

    def __init__(self) -> None:
        self._owners: Any = WeakTensorKeyDictionary()

    def claim(self, param: Tensor, owner: Any) -> Any:
        """Makes this its owner; returns the one before, if that is alive and another."""
        old = self.of(param)
        self._owners[param] = ref(owner)
        return old if old is not owner else None

    def of(self, param: Tensor) -> Any:
        """Whose it is, None if nobody's who is alive."""
        owner = self._owners.get(param)
        return owner() if owner is not None else None


_FUNCTIONS: Any = torch.autograd.function.BackwardCFunction.apply
_last_task = -1, False


def is_nested() -> bool:
    """Whether a hook is called by a backward pass within another, as a custom function's backward may run them.

    Reentrant checkpoints do: a gradient that is complete in one of those may get more from another.
    """
    global _last_task
    number, nested = _last_task
    current = torch._C._current_graph_task_id()
    if current != number:
        frame: Any = sys._getframe()
        while frame is not None and frame.f_code is not _FUNCTIONS.__code__:
            frame = frame.f_back
        nested = frame is not None
        _last_task = current, nested
    return nested


def processes() -> int:
    """How many processes train together, by what torch.distributed knows."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
