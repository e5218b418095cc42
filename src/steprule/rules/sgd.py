"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from steprule.pieces import Value, l2, where
from steprule.rule import Rule


class SGD(Rule):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and L2 weight decay.

    Polyak 1964 (momentum); Sutskever et al. 2013, section 2 (Nesterov), in torch.optim's form: the
    buffer holds gradients, lr multiplies what is subtracted, and the first gradient enters undampened.
    """

    state_when = {"momentum_buffer": "momentum"}
    keeps_step = False  # torch.optim keeps none: the first step is the one with a new momentum_buffer
    sparse_grads = True

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, step: Value, lr: float = 1e-3, momentum: float = 0.0,
        dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        if momentum_buffer is None:
            return param - lr * grad, None
        momentum_buffer = momentum * momentum_buffer + where(step == 1, 1, 1 - dampening) * grad
        direction = grad + momentum * momentum_buffer if nesterov else momentum_buffer
        return param - lr * direction, momentum_buffer

    @classmethod
    def check(cls, *, nesterov: bool = False, momentum: float = 0, dampening: float = 0, **others: Any) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
