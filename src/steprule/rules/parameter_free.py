"""Rules that find their learning rate from how far they have come: Prodigy, D-Adaptation, DoG.

Sums are over all tensors that are stepped together, and each tensor keeps the result.
"""

from __future__ import annotations

import math

from steprule.pieces import Value, abs, at_first, ema, ema_sq, l2, maximum, minimum, sqrt, total_of_all, where
from steprule.rule import Hyperparameter, Rule, State
from steprule.rules.adam import BETAS


class Prodigy(Rule):
    """Adam times an estimate of the distance to the solution. Mishchenko & Defazio 2023, arXiv:2306.06101, algorithm 4.

    Hyperparameters are those of the authors' code.
    """

    lr = Hyperparameter("factor of the estimated distance; leave it at 1, or give it a schedule", "[0, inf)")
    betas = BETAS
    eps = Hyperparameter("added to the denominator, times d", "[0, inf)")
    weight_decay = Hyperparameter("weight decay, times the learning rate that was found", "[0, inf)")
    d0 = Hyperparameter("first estimate of the distance to the solution", "(0, inf)")
    d_coef = Hyperparameter("factor of all later estimates", "[0, inf)")
    growth_rate = Hyperparameter("largest factor by which the estimate grows in a step", "[1, inf]")
    bias_correction = Hyperparameter("multiply lr by Adam's bias correction")
    d = d_max = State("scalar", begins="d0")
    d_numerator = State("scalar")
    s = State(exact=True)
    initial_param = State(begins="param", exact=True)
    decay = "own"
    needs = ("tuning-free",)
    constants = {"d0": "its sums are kept in units of it"}
    when = "Adam without a learning rate to tune: leave lr at 1 and use a cosine schedule without warm-up."

    @staticmethod
    def update(
        param: Value, grad: Value, d: Value, d_max: Value, d_numerator: Value, exp_avg: Value, exp_avg_sq: Value,
        s: Value, initial_param: Value, *, step: Value, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, d0: float = 1e-6, d_coef: float = 1.0,
        growth_rate: float = math.inf, bias_correction: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        rate = d * lr
        if bias_correction:
            rate = rate * sqrt(1 - beta2**step) / (1 - beta1**step)
        exp_avg = ema(exp_avg, d * grad, beta1)
        exp_avg_sq = ema_sq(exp_avg_sq, d * grad, beta2)
        s = sqrt(beta2) * s + d / d0 * rate * grad
        d_numerator = sqrt(beta2) * d_numerator + d / d0 * rate * total_of_all(grad * (initial_param - param))
        d_denominator = total_of_all(abs(s))
        is_known = d_denominator > 0
        d_hat = where(is_known, d_coef * d_numerator / where(is_known, d_denominator, 1.0), d)
        d_max = maximum(d_max, d_hat)
        d = minimum(d_max, where(d == d0, maximum(d, d_hat), d) * growth_rate)
        direction = exp_avg / (sqrt(exp_avg_sq) + d * eps) + weight_decay * param
        return param - rate * direction, d, d_max, d_numerator, exp_avg, exp_avg_sq, s, initial_param


class DAdaptAdam(Rule):
    """Adam with the learning rate of D-Adaptation. Defazio & Mishchenko 2023, arXiv:2301.07733, algorithm 5.

    Hyperparameters are those of the authors' code.
    """

    lr = Hyperparameter("factor of the estimated distance; leave it at 1, or give it a schedule", "[0, inf)")
    betas = BETAS
    weight_decay = Hyperparameter("weight decay, times the learning rate that was found", "[0, inf)")
    d0 = Hyperparameter("first estimate of the distance to the solution", "(0, inf)")
    growth_rate = Hyperparameter("largest factor by which the estimate grows in a step", "[1, inf]")
    bias_correction = Hyperparameter("multiply lr by Adam's bias correction")
    d = State("scalar", begins="d0")
    numerator = State("scalar")
    s = State(exact=True)
    decay = "own"
    needs = ("tuning-free",)
    when = "The predecessor of Prodigy, which is the better first choice."

    @staticmethod
    def update(
        param: Value, grad: Value, d: Value, numerator: Value, exp_avg: Value, exp_avg_sq: Value, s: Value, *,
        step: Value, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, d0: float = 1e-6, growth_rate: float = math.inf, bias_correction: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        rate = d * lr
        if bias_correction:
            rate = rate * sqrt(1 - beta2**step) / (1 - beta1**step)
        progress = rate * total_of_all(grad * s / (sqrt(exp_avg_sq) + eps))
        exp_avg = ema(exp_avg, rate * grad, beta1)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, beta2)
        s = ema(s, rate * grad, sqrt(beta2))
        numerator = ema(numerator, progress, sqrt(beta2))
        length = (1 - sqrt(beta2)) * total_of_all(abs(s))
        d = maximum(d, minimum(numerator / where(length > 0, length, math.inf), d * growth_rate))
        direction = exp_avg / (sqrt(exp_avg_sq) + eps)
        return param - (direction + rate * weight_decay * param), d, numerator, exp_avg, exp_avg_sq, s


class DoG(Rule):
    """Distance over gradients: the learning rate is how far the weights have come over the root of the sum of squared
    gradients. Ivgi et al. 2023, arXiv:2302.12022, equation 3."""

    lr = Hyperparameter("factor of all updates; leave it at 1", "[0, inf)")
    reps_rel = Hyperparameter("first distance, relative to 1 + the norm of the first weights", "[0, inf)")
    eps = Hyperparameter("added to the sum of squared gradients under its root", "[0, inf)")
    distance = grad_sum_sq = State("scalar")
    initial_param = State(begins="param", exact=True)
    decay = "coupled"
    needs = ("tuning-free", "memory", "no-schedule")
    when = "SGD without a learning rate to tune, for fine-tuning above all; evaluate an average of the weights."

    @staticmethod
    def update(
        param: Value, grad: Value, distance: Value, grad_sum_sq: Value, initial_param: Value, *, step: Value,
        lr: float = 1.0, reps_rel: float = 1e-6, eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        gone = param - initial_param
        first = reps_rel * (1 + sqrt(total_of_all(param * param)))
        distance = at_first(step, first, maximum(distance, sqrt(total_of_all(gone * gone))))
        grad_sum_sq = grad_sum_sq + total_of_all(grad * grad)
        return param - lr * distance / sqrt(grad_sum_sq + eps) * grad, distance, grad_sum_sq, initial_param
