"""What a gradient is from its step inside backward to `step()`: gone, and not merely missing.

Code that finds None takes the parameter for one that was not trained, and passes over it: `clip_grad_norm_` of a trainer would clip
nothing and say that the norm is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SECOND_PASS = (
    "a second backward pass before step() would step the released parameters twice: run all passes but the last in accumulate(); "
    "checkpoints of what is used elsewhere too need use_reentrant=False. In a trainer, OptimizerCallback(release=True) of "
    "steprule.integrations.lightning or steprule.integrations.transformers accumulates. If the pass before was interrupted, step() "
    "closes it: what it reached has been stepped"
)
_USED = (
    "release_gradients() has stepped the parameters inside backward and freed their gradients: nothing can clip, unscale or read them "
    "afterwards. Instead of clip_grad_norm_ and the like, give the optimizer clip=...: leave gradient_clip_val of Lightning's Trainer "
    "out, and do not call accelerator.clip_grad_norm_; for transformers' Trainer, which always calls that, there is "
    "OptimizerCallback(release=True) of steprule.integrations.transformers. Instead of a GradScaler, use bfloat16"
)


class Gone(Tensor):
    """Looks like a gradient, has no memory, and raises RuntimeError where it is used.

    Args:
        grad: the gradient that it takes the place of.
    """

    @staticmethod
    def __new__(cls, grad: Tensor) -> Gone:  # noqa: D102
        made: Any = torch.Tensor._make_wrapper_subclass
        return made(cls, grad.shape, dtype=grad.dtype, device=grad.device)  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Says what to do instead."""
        adds = func.overloadpacket in (torch.ops.aten.add_, torch.ops.aten.add)  # as autograd does
        raise RuntimeError(SECOND_PASS if adds else _USED)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"a gradient of shape {tuple(self.shape)}, used and freed inside backward by release_gradients()"
