"""RMSprop."""

from __future__ import annotations

from steprule.pieces import Value, ema, ema_sq, l2, maximum, sqrt
from steprule.rule import Hyperparameter, Rule, State, TorchArguments


class RMSprop(Rule):
    """The gradient over the root of its second moment, with optional momentum and L2 weight decay.

    Tieleman & Hinton 2012, lecture 6e; centered: Graves 2013, arXiv:1308.0850, equations 38-41.
    """

    alpha = Hyperparameter("decay rate of the EMA of squared gradients", "[0, inf)")
    momentum = Hyperparameter("share of the momentum buffer that a step keeps; 0 keeps no buffer", "[0, inf)")
    centered = Hyperparameter("divide by the standard deviation instead of the root of the second moment")
    square_avg = State(exact="centered")  # from which the square of grad_avg is subtracted, and the rest divided by
    momentum_buffer = State(when="momentum")
    grad_avg = State(when="centered", exact="centered")
    decay = "coupled"
    needs = ("baseline", "memory")
    like_torch = TorchArguments(
        "capturable foreach maximize differentiable", positional="capturable foreach maximize differentiable"
    )
    when = "Reinforcement learning, and older recurrent networks; Adam is this with momentum and bias correction."

    @staticmethod
    def update(
        param: Value, grad: Value, square_avg: Value, momentum_buffer: Value = None, grad_avg: Value = None, *,
        lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0,
        momentum: float = 0.0, centered: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        square_avg = variance = ema_sq(square_avg, grad, alpha)
        if centered:
            grad_avg = ema(grad_avg, grad, alpha)
            variance = maximum(square_avg - grad_avg * grad_avg, 0.0)  # rounding may take it below 0
        direction = grad / (sqrt(variance) + eps)
        if momentum_buffer is not None:
            momentum_buffer = direction = momentum * momentum_buffer + direction
        return param - lr * direction, square_avg, momentum_buffer, grad_avg
