"""Adam and its close relatives: the first moment of the gradients over the root of the second."""

from __future__ import annotations

from typing import Any

from steprule.pieces import Value, abs, debias, ema, ema_sq, l2, maximum, sqrt, where
from steprule.rule import Hyperparameter, Rule, State, TorchArguments

BETAS = Hyperparameter(
    "decay rates of the EMAs of the gradient and of its square, the first and second moment", "[0, 1)"
)


def adam_direction(
    grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value, step: Value, betas: tuple[float, float],
    eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    """The first moment over the root of the second, both debiased, and the new EMAs."""
    beta1, beta2 = betas
    exp_avg = ema(exp_avg, grad, beta1)
    exp_avg_sq = mean_sq = ema_sq(exp_avg_sq, grad, beta2)
    if max_exp_avg_sq is not None:  # AMSGrad
        max_exp_avg_sq = mean_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    direction = debias(exp_avg, beta1, step) / (sqrt(debias(mean_sq, beta2, step)) + eps)
    return direction, exp_avg, exp_avg_sq, max_exp_avg_sq


class AdamW(Rule):
    """Adam with decoupled weight decay. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.

    AMSGrad is from Reddi et al. 2018, arXiv:1904.09237; the maximum is taken before bias correction, as in torch.optim.
    """

    betas = BETAS
    max_exp_avg_sq = State(when="amsgrad")
    decay = "decoupled"
    needs = ("baseline",)
    like_torch = TorchArguments(
        "maximize foreach capturable differentiable fused", fixed={"decoupled_weight_decay": True}, tensor_betas=True
    )
    when = "The default for transformers, and for most else: try it first, with a warm-up and a decaying schedule."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value = None, *, step: Value,
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        direction, *averages = adam_direction(grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step, betas, eps)
        return param - lr * (direction + weight_decay * param), *averages


class Adam(Rule):
    """Adaptive moment estimation, with L2 weight decay. Kingma & Ba 2015, arXiv:1412.6980, algorithm 1."""

    betas = BETAS
    max_exp_avg_sq = State(when="amsgrad")
    decay = "coupled"
    needs = ("baseline",)
    like_torch = TorchArguments(
        "foreach maximize capturable differentiable fused", keyword_only="decoupled_weight_decay", tensor_betas=True
    )
    when = "Where a paper to be reproduced used it; with weight decay AdamW is the better of the two."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value = None, *, step: Value,
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


class AdamC(Rule):
    """AdamW with the weight decay corrected for the schedule, lr**2 / max_lr. Defazio 2025, arXiv:2506.02285, algorithm 1."""

    betas = BETAS
    max_lr = Hyperparameter(
        "largest learning rate of the schedule; the largest lr so far where that is larger", "[0, inf)"
    )
    max_exp_avg_sq = State(when="amsgrad")
    lr_max = State("scalar")
    decay = "corrected"
    when = "Where gradients grow toward the end of a run with AdamW, a decaying schedule and normalization layers."

    @staticmethod
    def update(
        param: Value, grad: Value, lr_max: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value = None, *,
        step: Value, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, max_lr: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        lr_max = maximum(maximum(lr_max, lr), max_lr)
        direction, *averages = adam_direction(grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step, betas, eps)
        decay = where(lr_max > 0, lr / maximum(lr_max, 1e-300), 1.0) * weight_decay
        return param - lr * (direction + decay * param), lr_max, *averages


class NAdam(Rule):
    """Adam with Nesterov's momentum. Dozat 2016, "Incorporating Nesterov Momentum into Adam", algorithm 2.

    The momentum is warmed up as in the paper. Weight decay is L2, or decoupled as in AdamW.
    """

    betas = BETAS
    momentum_decay = Hyperparameter("how fast the momentum warms up, psi in the paper", "[0, inf)")
    mu_product = State("scalar", begins=1.0, dtype="step")
    decay = "coupled"
    like_torch = TorchArguments("foreach maximize capturable differentiable")
    when = "Where Adam is used and a little more momentum helps; differences are small."

    @staticmethod
    def update(
        param: Value, grad: Value, mu_product: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value,
        lr: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        if decoupled_weight_decay:
            param = param - lr * weight_decay * param
        else:
            grad = l2(grad, param, weight_decay)
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
        mu_product = mu_product * mu
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, beta2)
        mean = (1 - mu) / (1 - mu_product) * grad + mu_next / (1 - mu_product * mu_next) * exp_avg
        return param - lr * (mean / (sqrt(debias(exp_avg_sq, beta2, step)) + eps)), mu_product, exp_avg, exp_avg_sq


def rectification(beta2: Value, step: Value, threshold: float) -> tuple[Value, Value]:
    """RAdam's factor for the adaptive update, and whether the second moment is known well enough for one. Equations 4-6."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
    known = maximum(rho, threshold)  # of interest only above it
    factor = sqrt((known - 4) * (known - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * known))
    return factor, rho > threshold


class RAdam(Rule):
    """Adam that is momentum until its second moment can be relied on. Liu et al. 2020, arXiv:1908.03265, algorithm 2."""

    betas = BETAS
    decay = "coupled"
    like_torch = TorchArguments("foreach maximize capturable differentiable")
    when = "Where Adam needs a warm-up that you would rather not tune."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        if decoupled_weight_decay:
            param = param - lr * weight_decay * param
        else:
            grad = l2(grad, param, weight_decay)
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, beta2)
        factor, is_known = rectification(beta2, step, 5.0)
        adapted = factor * sqrt(1 - beta2**step) / (sqrt(exp_avg_sq) + eps)
        return param - lr * (debias(exp_avg, beta1, step) * where(is_known, adapted, 1.0)), exp_avg, exp_avg_sq


class Adamax(Rule):
    """Adam with a decaying maximum of gradients in place of the root of the second moment. Kingma & Ba 2015, algorithm 2."""

    betas = Hyperparameter("decay rates of the EMA of the gradient and of its running maximum", "[0, 1)")
    eps = Hyperparameter("added to the absolute gradient before the maximum is taken", "[0, inf)")
    decay = "coupled"
    like_torch = TorchArguments("foreach maximize differentiable capturable", positional="foreach")
    when = "Where single huge gradients must not disappear in an average: embeddings, reinforcement learning."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_inf: Value, *, step: Value, lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        grad = l2(grad, param, weight_decay)
        exp_avg = ema(exp_avg, grad, beta1)
        exp_inf = maximum(beta2 * exp_inf, abs(grad) + eps)
        return param - lr * (debias(exp_avg, beta1, step) / exp_inf), exp_avg, exp_inf


class SparseAdam(Rule):
    """Adam for sparse gradients: elements without one stay as they are, and so do their moments. Kingma & Ba 2015, section 2."""

    betas = BETAS
    eps = Hyperparameter(
        "added to the root of the second moment before it is debiased; the constructor refuses 0", "[0, inf)"
    )
    sparse_grads = sparse_only = True
    touches_states = True
    needs = ("sparse",)
    like_torch = TorchArguments("maximize", positional="maximize")
    when = "Embeddings with sparse=True, of which a batch touches a few rows."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, beta2)
        scale = sqrt(1 - beta2**step) / (1 - beta1**step)
        return param - lr * scale * (exp_avg / (sqrt(exp_avg_sq) + eps)), exp_avg, exp_avg_sq

    @classmethod
    def check(cls, *, lr: Any = 1e-3, eps: float = 1e-8, **others: Any) -> None:
        if not lr > 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not eps > 0:
            raise ValueError(f"Invalid epsilon value: {eps}")
