"""What hooks into autograd stand on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from weakref import WeakMethod, WeakSet

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from steprule.tensors.uncompiled import uncompiled


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing once the method's object is gone, and does not keep it."""
    reference = WeakMethod(method)

    @uncompiled
    def hook(*args: Any) -> Any:
        alive = reference()
        return alive(*args) if alive is not None else None

    return hook


class Owner:
    """Has hooks of a kind at the parameters of one optimizer.

    A parameter has room for one owner of a kind, and the newest takes it over: the one before may be garbage that nobody can
    reach, as when a notebook's cell runs again, and live until the collector comes.
    """

    _taken_over: str
    """What the error says if another one has taken parameters over, after how many those are."""
    _owners: ClassVar[WeakSet[Any]]

    def __init_subclass__(cls) -> None:
        cls._owners = WeakSet()

    def __init__(self) -> None:
        self._hooks: dict[Tensor, tuple[Any, ...]] = {}  # the handles, and what must live as long
        self._lost: dict[Tensor, None] = {}  # parameters to another one
        self._owners.add(self)

    @classmethod
    def of(cls, param: Tensor) -> Any:
        """Whose a parameter is, None if nobody's who is alive."""
        return next((owner for owner in cls._owners if param in owner._hooks), None)

    @classmethod
    def has_any(cls) -> bool:
        """Whether any parameter is anybody's."""
        return any(owner._hooks for owner in cls._owners)

    def watch(self, param: Tensor) -> bool:
        """Hooks a parameter, unless it was taken over by another one; True if it was another one's."""
        if param in self._hooks or param in self._lost:
            return False
        before = self.of(param)
        if before is not None:
            before._lost[param] = None
            before._unhook(param)
        self._hooks[param] = self._hook(param)
        return before is not None

    def watch_only(self, params: Mapping[Tensor, Any]) -> None:
        """Watches these parameters, and lets go of others."""
        for param in [param for param in (*self._hooks, *self._lost) if param not in params]:
            self._forget(param)
        for param in params:
            self.watch(param)

    def check_own(self) -> None:
        """Takes parameters back from others that are gone.

        Raises:
            RuntimeError: others that are alive have some.
        """
        for param in [param for param in self._lost if self.of(param) is None]:
            del self._lost[param]
            self.watch(param)
        if self._lost:
            raise RuntimeError(f"{len(self._lost)} parameters of this optimizer {self._taken_over}")

    def _hook(self, param: Tensor) -> tuple[Any, ...]:
        """Hooks a parameter and returns what must be kept."""
        raise NotImplementedError

    def _unhook(self, param: Tensor) -> None:
        for handle in self._hooks.pop(param, ()):
            if isinstance(handle, RemovableHandle):
                handle.remove()

    def _hook_again(self, param: Any) -> None:
        """Hooks a parameter anew, for `torch.utils.swap_tensors`: its object has the hooks still, and autograd has lost them."""
        self._unhook(param)
        self._hooks[param] = self._hook(param)
        param._post_accumulate_grad_hooks = param._post_accumulate_grad_hooks

    def _forget(self, param: Tensor) -> None:
        """Lets go of a parameter that is no longer the optimizer's."""
        self._unhook(param)
        self._lost.pop(param, None)


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
