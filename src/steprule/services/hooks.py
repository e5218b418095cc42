"""What hooks into autograd stand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

import torch


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing once the method's object is gone, and does not keep it."""
    reference = WeakMethod(method)

    def hook(*args: Any) -> Any:
        alive = reference()
        return alive(*args) if alive is not None else None

    return hook


def processes() -> int:
    """How many processes train together, by what torch.distributed knows."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
