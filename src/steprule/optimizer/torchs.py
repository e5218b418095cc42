"""What torch.optim.Optimizer does around methods, and how an optimizer of steprule lives with it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from steprule.names import users_level
from steprule.optimizer.arguments import refuse_attribute

_BASE = torch.optim.Optimizer
_PASSING = "GradScaler is going to stop passing itself"

# Without the wrapper that imports the whole of torch.compile (seconds) to keep out of its way.
_add_param_group = getattr(_BASE.add_param_group, "__wrapped__", _BASE.add_param_group)
zero_grad = getattr(_BASE.zero_grad, "__wrapped__", _BASE.zero_grad)


def add_param_group(self: Any, group: Any) -> None:
    """As torch.optim's, whose warnings point at the caller's line."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _add_param_group(self, group)
    for one in told:
        warnings.warn(one.message, stacklevel=users_level())


def outermost(step: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's step, with hooks unless it is called by the step of a subclass of that."""
    hooked = _BASE.profile_hook_step(step)

    @functools.wraps(step)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (hooked if type(self).step is outer else step)(self, *args, **kwargs)

    outer.hooked = True  # type: ignore[attr-defined]
    return outer


def set_attribute(self: Any, name: str, value: Any) -> None:
    """Refuses an attribute that would look like a setting and do nothing, unless a class has defined it."""
    core = getattr(self, "_core", None)  # of a wrapper, too
    if core is not None and core.is_made and name in self._signature.parameters and not hasattr(type(self), name):
        refuse_attribute(name, core.rule)
    _BASE.__setattr__(self, name, value)


def check_closure(closure: Any) -> None:
    """Raises for what is given to `step` and is no closure."""
    if closure is not None and not callable(closure):
        raise TypeError(
            f"step() takes a closure that returns the loss, or nothing, not a {type(closure).__name__}: it reads gradients from "
            "param.grad, as backward() leaves them. The optimizers of steprule.arrays have step(grads)"
        )


def takes_scaler(services: Any) -> bool:
    """Whether a GradScaler may leave unscaling and its check to the step: where gradients are looked at anyway.

    Then its warning is silenced that it passes itself to step by a way that torch means to replace: both are served. Lightning asks, too,
    and refuses to clip if the answer is yes. It gets a no: what it has unscaled, a step takes as well.
    """
    if services is None or not (services.clip or services.nonfinite or services.release):
        return False
    asks = sys._getframe(2).f_locals.get("self")  # the frame between is the property
    if not hasattr(asks, "_per_optimizer_states"):
        return False
    if not any(pattern is not None and pattern.match(_PASSING) for _, pattern, *_ in warnings.filters):
        warnings.filterwarnings("ignore", _PASSING, FutureWarning)
    return True


def step_scaled(optimizer: Any, scaler: Any, take_step: Callable[[], None]) -> None:
    """A step for a GradScaler: gradients are unscaled on the way, and it learns whether they were finite.

    Args:
        optimizer: that the scaler steps; it has services.
        scaler: a GradScaler, or None if it has put its tensors into the optimizer's attributes.
        take_step: steps the optimizer.

    Raises:
        RuntimeError: gradients are released, and the steps long taken.
    """
    core, services = optimizer._core, optimizer._core.services
    if services.release is not None:
        raise RuntimeError(
            "a GradScaler cannot step an optimizer with gradient release: parameters were stepped before the scale was known. Use "
            'bfloat16, which needs no scaler: bf16=True of transformers, precision="bf16-mixed" of Lightning'
        )
    if scaler is None:
        scale, found = optimizer.grad_scale, [optimizer.found_inf]
    else:
        state = scaler._per_optimizer_states[id(optimizer)]
        unscaled = state["stage"] is OptState.UNSCALED
        scale = None if unscaled else scaler._get_scale_async()
        found = list(state["found_inf_per_device"].values()) if unscaled else []
    already = sum(one.to(found[0].device, non_blocking=True) for one in found) if found else None
    if not services.rescales:
        core.forget_plans(optimizer.param_groups)
    try:
        with services.under_scaler(scale, already):
            take_step()
    except RuntimeError:
        if scaler is None:  # which then does not take them back
            del optimizer.grad_scale, optimizer.found_inf
        raise
    finally:
        if scaler is not None and (not unscaled or core.across is not None or core.shards is not None):
            place = scaler._get_scale_async().device
            is_added = core.shards is not None and already is not None and unscaled
            every = [services.found, already] if is_added else [services.found]
            has_found = sum(torch.as_tensor(one, dtype=torch.float32, device=place) for one in every)
            state["found_inf_per_device"] = {place: has_found}
