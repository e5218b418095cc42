"""What a chain is made of: functions that make one direction of another.

Each takes the direction so far as ``grad``, then ``param`` if it looks at that, its states, and after the ``*`` its
hyperparameters and ``step``; it returns the new direction and the new states. See `steprule.chain`.
"""

from __future__ import annotations

from steprule import pieces
from steprule.hyper import Hyperparameter, about
from steprule.pieces import Value
from steprule.rules.layerwise import trust_ratio

_MOMENTUM = Hyperparameter("share of the momentum buffer that a step keeps", "[0, inf)")
_BETA = Hyperparameter("decay rate of the running average", "[0, 1)")


@about(momentum=_MOMENTUM)
def momentum(grad: Value, momentum_buffer: Value, *, momentum: float = 0.9) -> tuple[Value, Value]:
    """Heavy-ball momentum: ``momentum * momentum_buffer + grad``. Polyak 1964."""
    momentum_buffer = momentum * momentum_buffer + grad
    return momentum_buffer, momentum_buffer


@about(momentum=_MOMENTUM)
def nesterov(grad: Value, momentum_buffer: Value, *, momentum: float = 0.9) -> tuple[Value, Value]:
    """Momentum that looks one step ahead. Nesterov 1983, in the form of Sutskever et al. 2013."""
    momentum_buffer = momentum * momentum_buffer + grad
    return grad + momentum * momentum_buffer, momentum_buffer


@about(beta=_BETA)
def mean(grad: Value, exp_avg: Value, *, step: Value, beta: float = 0.9) -> tuple[Value, Value]:
    """The debiased exponential average."""
    exp_avg = pieces.ema(exp_avg, grad, beta)
    return pieces.debias(exp_avg, beta, step), exp_avg


@about(beta=_BETA)
def rms_scaling(
    grad: Value, exp_avg_sq: Value, *, step: Value, beta: float = 0.999, eps: float = 1e-8
) -> tuple[Value, Value]:
    """Divided by the root of the debiased mean square."""
    exp_avg_sq = pieces.ema_sq(exp_avg_sq, grad, beta)
    return grad / (pieces.sqrt(pieces.debias(exp_avg_sq, beta, step)) + eps), exp_avg_sq


def sum_scaling(grad: Value, sum: Value, *, eps: float = 1e-10) -> tuple[Value, Value]:
    """Divided by the root of the sum of squares. Duchi et al. 2011."""
    sum = sum + grad * grad
    return grad / (pieces.sqrt(sum) + eps), sum


def sign(grad: Value) -> Value:
    """-1, 0 or 1."""
    return pieces.sign(grad)


def decay(grad: Value, param: Value, *, weight_decay: float = 1e-2) -> Value:
    """``grad + weight_decay * param``: coupled decay at the head of a chain, decoupled at its end."""
    return grad + weight_decay * param


@about(clip_at=Hyperparameter("elements are clipped to within this of 0", "[0, inf)"))
def clip(grad: Value, *, clip_at: float = 1.0) -> Value:
    """Elements kept within clip_at of 0."""
    return pieces.clip(grad, -clip_at, clip_at)


def unit_norm(grad: Value, *, eps: float = 1e-8) -> Value:
    """Each tensor divided by its norm."""
    return grad / (pieces.norm(grad) + eps)


def trust(grad: Value, param: Value) -> Value:
    """Each tensor times its parameter's norm over its own; as it is where either is 0. You et al. 2020."""
    return trust_ratio(pieces.norm(param), pieces.norm(grad)) * grad


def agreeing(grad: Value, last: Value) -> tuple[Value, Value]:
    """Only elements whose sign is that of the step before."""
    return pieces.where(grad * last > 0, grad, 0.0), grad
