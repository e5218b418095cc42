"""Adam and AdamW."""

from __future__ import annotations

from steprule.pieces import Value, debias, ema, ema_sq, l2, maximum, sqrt
from steprule.rule import Rule


def adam_direction(
    grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value, step: Value, betas: tuple[float, float],
    eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    """The mean over the root of the mean square, both debiased, and the new averages."""
    beta1, beta2 = betas
    exp_avg = ema(exp_avg, grad, beta1)
    exp_avg_sq = mean_sq = ema_sq(exp_avg_sq, grad, beta2)
    if max_exp_avg_sq is not None:  # AMSGrad
        max_exp_avg_sq = mean_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    direction = debias(exp_avg, beta1, step) / (sqrt(debias(mean_sq, beta2, step)) + eps)
    return direction, exp_avg, exp_avg_sq, max_exp_avg_sq


class AdamW(Rule):
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.

    amsgrad: Reddi et al. 2018, arXiv:1904.09237, the maximum taken before bias correction as in torch.optim.
    """

    state_when = {"max_exp_avg_sq": "amsgrad"}

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value, *, step: Value,
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        direction, *averages = adam_direction(grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step, betas, eps)
        return param - lr * (direction + weight_decay * param), *averages


class Adam(Rule):
    """Adaptive moment estimation, with L2 weight decay. Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.

    decoupled_weight_decay turns it into AdamW, as in torch.optim.
    """

    state_when = {"max_exp_avg_sq": "amsgrad"}

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value, *, step: Value,
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        amsgrad: bool = False, decoupled_weight_decay: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        if decoupled_weight_decay:
            return AdamW.update(
                param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps,
                weight_decay=weight_decay, amsgrad=amsgrad,
            )  # fmt: skip
        grad = l2(grad, param, weight_decay)
        direction, *averages = adam_direction(grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step, betas, eps)
        return param - lr * direction, *averages
