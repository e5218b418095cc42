"""What torch.optim.Optimizer does around methods, and how an optimizer of steprule lives with it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from steprule.optimizer.arguments import refuse_attribute

_BASE = torch.optim.Optimizer
_PASSING = "GradScaler is going to stop passing itself"

# Without the wrapper that imports the whole of torch.compile (seconds) to keep out of its way.
add_param_group = getattr(_BASE.add_param_group, "__wrapped__", _BASE.add_param_group)
zero_grad = getattr(_BASE.zero_grad, "__wrapped__", _BASE.zero_grad)


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
