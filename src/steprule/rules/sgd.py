"""Stochastic gradient descent, with momentum, by signs and with averages of the weights."""

from __future__ import annotations

from typing import Any

from steprule.pieces import Value, ema, l2, maximum, sign, where
from steprule.rule import Hyperparameter, Rule, State, TorchArguments


class SGD(Rule):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and L2 weight decay.

    Polyak 1964 (momentum); Sutskever et al. 2013, section 2 (Nesterov), in torch.optim's form: the
    buffer holds gradients, lr multiplies what is subtracted, and the first gradient enters undampened.
    """

    momentum = Hyperparameter("share of the momentum buffer that a step keeps; 0 keeps no buffer", "[0, inf)")
    dampening = Hyperparameter("share of each gradient, after the first, that is kept out of the momentum buffer")
    nesterov = Hyperparameter("use Nesterov's momentum; needs momentum > 0 and dampening = 0")
    momentum_buffer = State(when="momentum")
    keeps_step = False  # torch.optim keeps none: the first step is the one with a new momentum_buffer
    sparse_grads = True
    decay = "coupled"
    needs = ("baseline", "memory", "sparse")
    like_torch = TorchArguments("maximize foreach differentiable fused", unmissed=("momentum_buffer",))
    when = "Convolutional networks, with momentum 0.9 and a schedule; without momentum, where no state may be kept."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value = None, *, step: Value, lr: float = 1e-3, momentum: float = 0.0,
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


class Signum(Rule):
    """The sign of the first moment. Bernstein et al. 2018, arXiv:1802.04434, algorithm 2; signSGD with momentum 0."""

    momentum = Hyperparameter("decay rate of the EMA of gradients; 0 is signSGD", "[0, 1)")
    nesterov = Hyperparameter("mix the gradient in once more before the sign is taken; needs momentum > 0")
    momentum_buffer = State(when="momentum")
    decay = "decoupled"
    needs = ("memory",)
    when = "Where there is room for one state alone and Adam's kind of updates is wanted; compare with Lion."

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value = None, *, lr: float = 1e-3, momentum: float = 0.9,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> tuple[Value, ...]:  # fmt: skip
        mean = grad
        if momentum_buffer is not None:
            momentum_buffer = mean = ema(momentum_buffer, grad, momentum)
            mean = ema(mean, grad, momentum) if nesterov else mean
        return param - lr * (sign(mean) + weight_decay * param), momentum_buffer

    @classmethod
    def check(cls, *, nesterov: bool = False, momentum: float = 0.9, **others: Any) -> None:
        if nesterov and momentum == 0:
            raise ValueError(f"nesterov=True needs momentum > 0, not {momentum}: set it, or leave out nesterov")


class Lion(Rule):
    """The sign of a mix of momentum (beta1) and gradient; the momentum itself decays by beta2. Chen et al. 2023,
    arXiv:2302.06675, algorithm 2."""

    betas = Hyperparameter(
        "share of the EMA in the mix whose sign is taken, and decay rate of the EMA itself", "[0, 1)"
    )
    decay = "decoupled"
    needs = ("memory", "large-batch")
    when = "In place of AdamW with half its states: a third to a tenth of its lr, as many times its weight decay."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, *, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        direction = sign(ema(exp_avg, grad, betas[0]))
        return param - lr * (direction + weight_decay * param), ema(exp_avg, grad, betas[1])


class ASGD(Rule):
    """SGD with a decaying step size, and in ``ax`` the average of its weights. Polyak & Juditsky 1992; Bottou 2010, section 4.

    eta, the step size, is lr / (1 + lambd * lr * step)**alpha of the previous step, as in torch.optim; averaging begins
    after t0 steps.
    """

    lambd = Hyperparameter("decay of the weights, times the step size eta; it also makes eta decay", "[0, inf)")
    alpha = Hyperparameter("power by which eta decays: lr / (1 + lambd * lr * step)**alpha", "[0, inf)")
    t0 = Hyperparameter("number of steps after which averaging begins", "[0, inf)")
    eta = State("scalar", begins="lr", dtype="step")
    mu = State("scalar", begins=1.0, dtype="step")
    ax = State(exact=True)
    decay = "coupled"
    refuses = "ax averages the weights as the formula leaves them"
    like_torch = TorchArguments(
        "foreach maximize differentiable capturable", positional="foreach maximize differentiable capturable"
    )
    when = "Convex problems and averages of their iterates; for networks use the argument average of any optimizer."

    @staticmethod
    def update(
        param: Value, grad: Value, eta: Value, mu: Value, ax: Value, *, step: Value, lr: float = 1e-2,
        lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: float = 0.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        grad = l2(grad, param, weight_decay)
        param = (1 - lambd * eta) * param - eta * grad
        ax = where(mu == 1, param, ax + mu * (param - ax))
        return param, lr / (1 + lambd * lr * step) ** alpha, 1 / maximum(1, step - t0), ax
