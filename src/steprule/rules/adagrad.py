"""A step size for each element, from sums or EMAs of squares: Adagrad, Adadelta, MADGRAD; and Rprop, from signs alone."""

from __future__ import annotations

from typing import Any

from steprule.pieces import Value, cbrt, clip, ema, ema_sq, l2, sign, sqrt, where
from steprule.rule import Hyperparameter, Rule, State, TorchArguments


class Adagrad(Rule):
    """The gradient over the root of the sum of its squares. Duchi et al. 2011, section 1; lr_decay as in torch.optim."""

    lr_decay = Hyperparameter("decay of the learning rate: step t has lr / (1 + (t - 1) * lr_decay)", "[0, inf)")
    initial_accumulator_value = Hyperparameter("first value of the sum of squares", "[0, inf)")
    sum = State(begins="initial_accumulator_value")
    sparse_grads = True
    touches_states = True
    decay = "coupled"
    needs = ("sparse", "memory")
    like_torch = TorchArguments("foreach maximize differentiable fused", positional="foreach")
    begins_early = True
    when = "Sparse features and convex problems; in long runs its updates become too small."

    @staticmethod
    def update(
        param: Value, grad: Value, sum: Value, *, step: Value, lr: float = 1e-2, lr_decay: float = 0.0,
        weight_decay: float = 0.0, initial_accumulator_value: float = 0.0, eps: float = 1e-10,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        sum = sum + grad * grad
        return param - lr / (1 + (step - 1) * lr_decay) * (grad / (sqrt(sum) + eps)), sum


class Adadelta(Rule):
    """The gradient times the RMS of past updates over the RMS of past gradients. Zeiler 2012,
    arXiv:1212.5701, algorithm 1."""

    lr = Hyperparameter("factor of the update, which is 1 in the paper", "[0, inf)")
    rho = Hyperparameter("decay rate of the EMAs of squared gradients and of squared updates", "[0, 1]")
    eps = Hyperparameter("added to both EMAs under their roots; it also sets the size of the first updates", "[0, inf)")
    decay = "coupled"
    needs = ("tuning-free",)
    square_avg = acc_delta = State(exact=True)  # updates follow from updates: what is off stays off
    like_torch = TorchArguments("foreach capturable maximize differentiable", positional="foreach")
    when = "Where old code asks for it; it has no learning rate to speak of, and starts slowly."

    @staticmethod
    def update(
        param: Value, grad: Value, square_avg: Value, acc_delta: Value, *, lr: float = 1.0, rho: float = 0.9,
        eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        square_avg = ema_sq(square_avg, grad, rho)
        delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
        return param - lr * delta, square_avg, ema(acc_delta, delta * delta, rho)


class MADGRAD(Rule):
    """Momentumized dual averaging with cube roots. Defazio & Jelassi 2022, arXiv:2101.11075, algorithm 1.

    eps and momentum are those of the authors' code.
    """

    momentum = Hyperparameter("share of the old weights in the new ones, 1 - c in the paper", "[0, 1)")
    eps = Hyperparameter("added to the cube root, and to lr", "[0, inf)")
    grad_sum_sq = grad_sum = State(exact=True)  # the weights follow from them
    initial_param = State(begins="param", exact=True)
    decay = "coupled"
    refuses = "every step computes the weights anew from the first ones"
    when = "Where SGD generalizes better than Adam but needs more tuning: with little or no weight decay."

    @staticmethod
    def update(
        param: Value, grad: Value, grad_sum_sq: Value, grad_sum: Value, initial_param: Value, *, step: Value,
        lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-6,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        weight = (lr + eps) * sqrt(step)
        grad_sum = grad_sum + weight * grad
        grad_sum_sq = grad_sum_sq + weight * (grad * grad)
        target = initial_param - grad_sum / (cbrt(grad_sum_sq) + eps)
        return ema(param, target, momentum), grad_sum_sq, grad_sum, initial_param


class Rprop(Rule):
    """Step sizes that grow while the gradient's sign lasts and shrink when it turns. Riedmiller & Braun 1993.

    A gradient that has turned counts as 0, once. NaN counts as 0 too, as in torch.optim.
    """

    lr = Hyperparameter("size of the first step of each element", "[0, inf)")
    etas = Hyperparameter(
        "factors of the step size after the sign has turned and after it has lasted, 0 < etas[0] < 1 < etas[1]", ""
    )
    step_sizes = Hyperparameter("smallest and largest step size", "[0, inf)")
    step_size = State(begins="lr", exact=True)
    like_torch = TorchArguments("capturable foreach maximize differentiable")
    when = "Full batches and deterministic losses: it uses signs alone, which noise makes worthless."

    @staticmethod
    def update(
        param: Value, grad: Value, prev: Value, step_size: Value, *, lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2), step_sizes: tuple[float, float] = (1e-6, 50.0),
    ) -> tuple[Value, ...]:  # fmt: skip
        agreement = grad * prev
        factor = where(agreement > 0, etas[1], where(agreement < 0, etas[0], 1.0))
        step_size = clip(step_size * factor, step_sizes[0], step_sizes[1])
        grad = where(agreement < 0, 0.0, grad)
        return param - where(grad == grad, sign(grad), 0.0) * step_size, grad, step_size

    @classmethod
    def check(cls, *, etas: tuple[float, float] = (0.5, 1.2), **others: Any) -> None:
        if not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(f"Invalid eta values: {etas[0]}, {etas[1]}")
