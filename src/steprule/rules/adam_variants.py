"""What came after Adam: other first moments, other second moments, other ways to combine them."""

from __future__ import annotations

from steprule.pieces import (
    Value,
    abs,
    at_first,
    atan2,
    clip,
    debias,
    debiased_beta,
    ema,
    ema_sq,
    exp,
    log,
    maximum,
    mean,
    minimum,
    norm,
    sign,
    sqrt,
    where,
)
from steprule.rule import Hyperparameter, Rule, State
from steprule.rules.adam import BETAS, adam_direction


class AdaBelief(Rule):
    """Divides by how far gradients are from their EMA. Zhuang et al. 2020, arXiv:2010.07468, algorithm 2.

    The authors' code rectifies as RAdam does by default; the paper does not, nor does this.
    """

    betas = Hyperparameter(
        "decay rates of the EMAs of the gradient and of its squared distance from that EMA", "[0, 1)"
    )
    eps = Hyperparameter("added to the EMA of squared distances in every step, and to its root", "[0, inf)")
    max_exp_avg_var = State(when="amsgrad")
    decay = "decoupled"
    needs = ("noise",)
    when = "In place of Adam where its updates are too small along directions that gradients agree on."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_var: Value, max_exp_avg_var: Value = None, *, step: Value,
        lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16, weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_var = variance = ema_sq(exp_avg_var, grad - exp_avg, beta2) + eps
        if max_exp_avg_var is not None:
            max_exp_avg_var = variance = maximum(max_exp_avg_var, exp_avg_var)
        direction = debias(exp_avg, beta1, step) / (sqrt(debias(variance, beta2, step)) + eps)
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_var, max_exp_avg_var


class Yogi(Rule):
    """Adam whose second moment moves by a bounded amount. Zaheer et al. 2018, "Adaptive Methods for Nonconvex
    Optimization", algorithm 2.

    Both moments are debiased as in optax.
    """

    betas = Hyperparameter(
        "decay rate of the EMA of the gradient, and one minus the rate at which the second moment moves",
        "[0, 1)",
    )
    initial_accumulator_value = Hyperparameter("first value of both moments", "[0, inf)")
    exp_avg = exp_avg_sq = State(begins="initial_accumulator_value")
    decay = "decoupled"
    needs = ("noise",)
    when = "Where gradients are sparse or heavy-tailed and Adam's updates grow too fast after them."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-3, weight_decay: float = 0.0,
        initial_accumulator_value: float = 1e-6,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_sq = exp_avg_sq - (1 - beta2) * sign(exp_avg_sq - grad * grad) * (grad * grad)
        exp_avg_sq = maximum(exp_avg_sq, 0.0)  # which it is, but in this way it can be seen
        direction = debias(exp_avg, beta1, step) / (sqrt(debias(exp_avg_sq, beta2, step)) + eps)
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_sq


class LaProp(Rule):
    """Momentum of normalized gradients, where Adam normalizes the momentum. Ziyin et al. 2020, arXiv:2002.04839,
    algorithm 1."""

    betas = Hyperparameter("decay rates of the EMAs of the normalized gradient and of the squared gradient", "[0, 1)")
    max_exp_avg_sq = State(when="amsgrad")
    decay = "decoupled"
    needs = ("noise",)
    when = "Where Adam diverges with a small beta2 or large noise: its momentum never meets a second moment of other gradients."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value = None, *, step: Value,
        lr: float = 4e-4, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-15, weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2 = betas
        exp_avg_sq = mean_sq = ema_sq(exp_avg_sq, grad, beta2)
        if max_exp_avg_sq is not None:
            max_exp_avg_sq = mean_sq = maximum(max_exp_avg_sq, exp_avg_sq)
        exp_avg = ema(exp_avg, grad / (sqrt(debias(mean_sq, beta2, step)) + eps), beta1)
        direction = debias(exp_avg, beta1, step)
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_sq, max_exp_avg_sq


class ADOPT(Rule):
    """Adam that converges with any beta2. Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2, with clipping.

    Gradients are divided by the root of the second moment of those before them and clipped to (step - 1)**(1/4); the first
    only begins the second moment.
    """

    betas = Hyperparameter("decay rates of the EMAs of the normalized gradient and of the squared gradient", "[0, 1)")
    eps = Hyperparameter("smallest denominator", "[0, inf)")
    weight_decay = Hyperparameter("weight decay, decoupled from the gradient; none in the first step", "[0, inf)")
    decay = "own"
    needs = ("noise",)
    when = "In place of Adam where beta2 would have to be tuned, as with small batches or generative models."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999), eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        bound = (step - 1) ** 0.25
        exp_avg = ema(exp_avg, clip(grad / maximum(sqrt(exp_avg_sq), eps), -bound, bound), betas[0])
        exp_avg_sq = at_first(step, grad * grad, ema_sq(exp_avg_sq, grad, betas[1]))
        lr = lr * at_first(step, 0.0, 1.0)
        return param - lr * (exp_avg + weight_decay * param), exp_avg, exp_avg_sq


class AdEMAMix(Rule):
    """Adam with another, much slower EMA of gradients. Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1."""

    betas = Hyperparameter(
        "decay rates of the fast EMA of the gradient, of the EMA of its square, and of the slow EMA",
        "[0, 1)",
    )
    alpha = Hyperparameter("factor of the slow EMA", "[0, inf)")
    warmup = Hyperparameter(
        "number of steps over which alpha and the slow decay rate grow to their values, T in the paper; 0 for none",
        "[0, inf)",
    )
    decay = "decoupled"
    when = "Long runs of language models, with warmup about the number of steps."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_slow: Value, exp_avg_sq: Value, *, step: Value,
        lr: float = 1e-3, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), eps: float = 1e-8,
        weight_decay: float = 0.0, alpha: float = 5.0, warmup: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2, beta3 = betas
        part = where(warmup > 0, minimum(step / maximum(warmup, 1.0), 1.0), 1.0)
        beta3 = slow_beta(beta1, beta3, part)
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_slow = ema(exp_avg_slow, grad, beta3)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, beta2)
        mixed = debias(exp_avg, beta1, step) + part * alpha * exp_avg_slow
        direction = mixed / (sqrt(debias(exp_avg_sq, beta2, step)) + eps)
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_slow, exp_avg_sq


def slow_beta(start: Value, end: Value, part: Value) -> Value:
    """A part of the way from one beta to another, linear in the EMAs' half-lives. AdEMAMix, section 3."""
    a, b = log(maximum(start, 1e-300)), log(maximum(end, 1e-300))
    return where(part < 1, exp(a * b / minimum((1 - part) * b + part * a, -1e-300)), end)


class Adan(Rule):
    """Adam with an EMA of the gradients' differences. Xie et al. 2022, arXiv:2208.06677, algorithm 1.

    betas and weight decay are those of the authors' code.
    """

    betas = Hyperparameter(
        "decay rates of the EMAs of the gradient, of its differences and of the square, one minus the paper's",
        "[0, 1)",
    )
    weight_decay = Hyperparameter("weight decay: new weights are divided by 1 + lr * weight_decay", "[0, inf)")
    decay = "own"
    needs = ("large-batch",)
    when = "Large batches and high learning rates, vision transformers above all; it needs four states."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_diff: Value, exp_avg_sq: Value, previous_grad: Value, *,
        step: Value, lr: float = 1e-3, betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        beta1, beta2, beta3 = betas
        difference = at_first(step, 0.0, grad - previous_grad)
        exp_avg = ema(exp_avg, grad, beta1)
        exp_avg_diff = ema(exp_avg_diff, difference, beta2)
        exp_avg_sq = ema_sq(exp_avg_sq, grad + beta2 * difference, beta3)
        mixed = debias(exp_avg, beta1, step) + beta2 * debias(exp_avg_diff, beta2, step)
        direction = mixed / (sqrt(debias(exp_avg_sq, beta3, step)) + eps)
        return (param - lr * direction) / (1 + lr * weight_decay), exp_avg, exp_avg_diff, exp_avg_sq, grad


class StableAdamW(Rule):
    """AdamW with the update of each tensor divided by how wrong its second moment is. Wortsman et al. 2023,
    arXiv:2304.13013, algorithm 2."""

    betas = BETAS
    eps = Hyperparameter(
        "added to the denominator; its square is the smallest second moment that the update's size is judged by",
        "[0, inf)",
    )
    weight_decay = Hyperparameter("weight decay, decoupled from the gradient but scaled with the update", "[0, inf)")
    decay = "own"
    when = "Where AdamW's loss has spikes: it needs no gradient clipping."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-6, weight_decay: float = 1e-2,
    ) -> tuple[Value, ...]:  # fmt: skip
        exp_avg = ema(exp_avg, grad, debiased_beta(betas[0], step))
        exp_avg_sq = ema_sq(exp_avg_sq, grad, debiased_beta(betas[1], step))
        rms = sqrt(mean(grad * grad / maximum(exp_avg_sq, eps**2)))
        lr = lr / maximum(rms, 1.0)
        return param - lr * (exp_avg / (sqrt(exp_avg_sq) + eps) + weight_decay * param), exp_avg, exp_avg_sq


class AdamAtan2(Rule):
    """AdamW with an arctangent in place of the division, which needs no eps. Everett et al. 2024, arXiv:2407.05872,
    section 4."""

    betas = BETAS
    a = Hyperparameter("factor of the arctangent", "[0, inf)")
    b = Hyperparameter("factor of the root of the second moment inside the arctangent", "[0, inf)")
    decay = "decoupled"
    when = "Where gradients may be tiny and eps would have to be tuned: updates do not depend on their scale."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0, a: float = 1.27, b: float = 1.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        exp_avg = ema(exp_avg, grad, betas[0])
        exp_avg_sq = ema_sq(exp_avg_sq, grad, betas[1])
        direction = a * atan2(debias(exp_avg, betas[0], step), b * sqrt(debias(exp_avg_sq, betas[1], step)))
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_sq


class MARS(Rule):
    """AdamW on gradients with less variance. Yuan et al. 2024, arXiv:2411.10438, algorithm 2 (MARS-AdamW).

    The approximate form, with the previous step's gradient in place of the previous weights' gradient on this batch. The
    corrected gradient of each tensor is scaled to a norm of 1 where it is longer.
    """

    betas = Hyperparameter("decay rates of the EMAs of the corrected gradient and of its square", "[0, 1)")
    gamma = Hyperparameter("strength of the variance reduction", "[0, inf)")
    max_exp_avg_sq = State(when="amsgrad")
    decay = "decoupled"
    needs = ("noise",)
    when = "Language models, with a learning rate a few times AdamW's."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, max_exp_avg_sq: Value, previous_grad: Value, *,
        step: Value, lr: float = 3e-3, betas: tuple[float, float] = (0.95, 0.99), eps: float = 1e-8,
        weight_decay: float = 0.0, gamma: float = 0.025, amsgrad: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        scale = gamma * betas[0] / (1 - betas[0])
        corrected = grad + at_first(step, 0.0, scale) * (grad - previous_grad)
        corrected = corrected / maximum(norm(corrected), 1.0)
        direction, *averages = adam_direction(corrected, exp_avg, exp_avg_sq, max_exp_avg_sq, step, betas, eps)
        return param - lr * (direction + weight_decay * param), *averages, grad


class Grams(Rule):
    """Adam's update sizes with the gradient's own signs. Cao et al. 2024, arXiv:2412.17107, algorithm 1."""

    betas = BETAS
    decay = "decoupled"
    when = "In place of Adam where its momentum overshoots; compare with cautious=True, which is close to it."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        direction, exp_avg, exp_avg_sq, _ = adam_direction(grad, exp_avg, exp_avg_sq, None, step, betas, eps)
        return param - lr * (sign(grad) * abs(direction) + weight_decay * param), exp_avg, exp_avg_sq
