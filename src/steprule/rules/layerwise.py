"""A step size for each tensor, from its norms: LARS, LAMB, NovoGrad."""

from __future__ import annotations

from steprule.pieces import Value, at_first, ema, norm, sqrt, total, where
from steprule.rule import Hyperparameter, Rule, State
from steprule.rules.adam import BETAS, adam_direction


def trust_ratio(numerator: Value, denominator: Value) -> Value:
    """The quotient of two norms; 1 where either is 0."""
    is_known = (numerator > 0) & (denominator > 0)
    return where(is_known, numerator / where(is_known, denominator, 1.0), 1.0)


class LARS(Rule):
    """SGD with each tensor's update in proportion to its norm. You et al. 2017, arXiv:1708.03888, algorithm 1.

    The ratio is 1 where a norm is 0. lr multiplies what enters the momentum, as in the paper.
    """

    lr = Hyperparameter("learning rate, gamma in the paper", "[0, inf)")
    momentum = Hyperparameter("decay rate of the momentum buffer", "[0, 1)")
    weight_decay = Hyperparameter("weight decay, inside the ratio of norms, beta in the paper", "[0, inf)")
    trust_coefficient = Hyperparameter("factor of the ratio of norms, eta in the paper", "[0, inf)")
    decay = "own"
    needs = ("large-batch", "memory")
    when = "Convolutional networks with batches of many thousands; leave biases and normalization layers out of weight_decay."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 0.0, trust_coefficient: float = 1e-3, nesterov: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        length = norm(param)
        ratio = trust_ratio(trust_coefficient * length, norm(grad) + weight_decay * length)
        delta = lr * ratio * (grad + weight_decay * param)
        momentum_buffer = momentum * momentum_buffer + delta
        return param - (delta + momentum * momentum_buffer if nesterov else momentum_buffer), momentum_buffer


class LAMB(Rule):
    """AdamW with each tensor's update in proportion to its norm. You et al. 2020, arXiv:1904.00962, algorithm 2.

    phi is the identity; the ratio is 1 where a norm is 0.
    """

    betas = BETAS
    weight_decay = Hyperparameter("weight decay, inside the ratio of norms, lambda in the paper", "[0, inf)")
    decay = "own"
    needs = ("large-batch",)
    when = "Transformers with batches of many thousands."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        direction, exp_avg, exp_avg_sq, _ = adam_direction(grad, exp_avg, exp_avg_sq, None, step, betas, eps)
        direction = direction + weight_decay * param
        return param - lr * trust_ratio(norm(param), norm(direction)) * direction, exp_avg, exp_avg_sq


class NovoGrad(Rule):
    """Momentum of gradients, each divided by the root of the EMA of their squared norm. Ginsburg et al. 2019, arXiv:1905.11286,
    algorithm 1.

    eps is there in the first step too, where the paper leaves it out and divides by a norm that may be 0.
    """

    betas = Hyperparameter(
        "share of the momentum that a step keeps, and decay rate of the EMA of the squared norm", "[0, 1)"
    )
    weight_decay = Hyperparameter("weight decay, added to the normalized gradient", "[0, inf)")
    exp_avg_sq = State("scalar")
    decay = "own"
    needs = ("memory", "large-batch")
    when = "Speech and vision with large batches, with one number of state for each element; it is robust to the learning rate."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-2,
        betas: tuple[float, float] = (0.95, 0.98), eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        square = total(grad * grad)
        exp_avg_sq = at_first(step, square, ema(exp_avg_sq, square, betas[1]))
        exp_avg = betas[0] * exp_avg + (grad / (sqrt(exp_avg_sq) + eps) + weight_decay * param)
        return param - lr * exp_avg, exp_avg, exp_avg_sq
