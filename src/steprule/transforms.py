"""The parts of chains: functions that make one direction of another.

Each takes the direction so far as ``grad``, then ``param`` if it looks at the weights, then its states, and after the ``*`` its
hyperparameters and ``step``. It returns the new direction and the new states. Direction, parameter and states have one
value for each element; states begin at 0.

In the formulas ``g_t`` is the direction that comes in; at the head of a chain it is the gradient. Out of range, a
hyperparameter is refused with ValueError when the optimizer of the chain is made.
"""

from __future__ import annotations

from steprule import pieces
from steprule.hyper import Hyperparameter, about
from steprule.names import seen
from steprule.pieces import Value
from steprule.rules.layerwise import trust_ratio

__all__ = [
    "agreeing", "clip", "decay", "ema", "momentum", "nesterov", "rms_scaling", "sign", "sum_scaling", "trust", "unit_norm",
]  # fmt: skip

_MOMENTUM = Hyperparameter("share of the momentum buffer that a step keeps", "[0, inf)")
_BETA = Hyperparameter("decay rate of the EMA", "[0, 1)")


@about(momentum=_MOMENTUM)
def momentum(grad: Value, momentum_buffer: Value, *, momentum: float = 0.9) -> tuple[Value, Value]:
    """Heavy-ball momentum, ``b_t = μ b_{t-1} + g_t``; the new direction is ``b_t``.

    Polyak 1964; Sutskever et al. 2013, equations 1 and 2, in the form of torch.optim.SGD. The gradient enters in full, so that a
    constant gradient makes the direction ``1 / (1 - μ)`` times as long.

    Args:
        grad: ``g_t``, the direction so far.
        momentum_buffer: ``b_{t-1}``, a state.
        momentum: ``μ``, the share of the buffer that a step keeps; at least 0.

    Returns:
        ``b_t`` as direction, and as state.

    Examples:
        >>> from steprule.transforms import momentum
        >>> momentum(1.0, 2.0, momentum=0.5)
        (2.0, 2.0)
    """
    momentum_buffer = momentum * momentum_buffer + grad
    return momentum_buffer, momentum_buffer


@about(momentum=_MOMENTUM)
def nesterov(grad: Value, momentum_buffer: Value, *, momentum: float = 0.9) -> tuple[Value, Value]:
    """Nesterov's momentum, ``b_t = μ b_{t-1} + g_t``; the new direction is ``g_t + μ b_t``.

    Nesterov 1983; Sutskever et al. 2013, equations 3 and 4, in the form of torch.optim.SGD.

    Args:
        grad: ``g_t``, the direction so far.
        momentum_buffer: ``b_{t-1}``, a state.
        momentum: ``μ``, the share of the buffer that a step keeps; at least 0.

    Returns:
        The new direction, and ``b_t``.

    Examples:
        >>> from steprule.transforms import nesterov
        >>> nesterov(1.0, 2.0, momentum=0.5)
        (2.0, 2.0)
        >>> nesterov(1.0, 0.0, momentum=0.5)
        (1.5, 1.0)
    """
    momentum_buffer = momentum * momentum_buffer + grad
    return grad + momentum * momentum_buffer, momentum_buffer


@about(beta=_BETA)
def ema(grad: Value, exp_avg: Value, *, step: Value, beta: float = 0.9) -> tuple[Value, Value]:
    """The EMA over time, ``m_t = β m_{t-1} + (1 - β) g_t``; the new direction is ``m_t / (1 - β^t)``.

    With the gradient it is the first moment of Adam, with bias correction: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.

    Args:
        grad: ``g_t``, the direction so far.
        exp_avg: ``m_{t-1}``, a state.
        step: ``t``, from 1; a chain gives it.
        beta: ``β``, the share of the past, in [0, 1).

    Returns:
        The new direction, and ``m_t``.

    Raises:
        ValueError: step is a number below 1.

    Examples:
        >>> from steprule.transforms import ema
        >>> ema(8.0, 0.0, step=1, beta=0.75)
        (8.0, 2.0)
    """
    exp_avg = pieces.ema(exp_avg, grad, beta)
    return pieces.debias(exp_avg, beta, step), exp_avg


@about(beta=_BETA)
def rms_scaling(
    grad: Value, exp_avg_sq: Value, *, step: Value, beta: float = 0.999, eps: float = 1e-8
) -> tuple[Value, Value]:
    """The RMS over time, ``v_t = β v_{t-1} + (1 - β) g_t²``, divides: the new direction is ``g_t / (√(v_t / (1 - β^t)) + ε)``.

    With the gradient, ``v_t`` is the second moment of Adam: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.

    Args:
        grad: ``g_t``, the direction so far.
        exp_avg_sq: ``v_{t-1}``, a state.
        step: ``t``, from 1; a chain gives it.
        beta: ``β``, the share of the past, in [0, 1).
        eps: ``ε``, at least 0.

    Returns:
        The new direction, and ``v_t``.

    Raises:
        ValueError: step is a number below 1.

    Examples:
        >>> from steprule.transforms import rms_scaling
        >>> rms_scaling(8.0, 0.0, step=1, beta=0.75, eps=0.0)
        (1.0, 16.0)
    """
    exp_avg_sq = pieces.ema_sq(exp_avg_sq, grad, beta)
    return grad / (pieces.sqrt(pieces.debias(exp_avg_sq, beta, step)) + eps), exp_avg_sq


@about()
def sum_scaling(grad: Value, sum: Value, *, eps: float = 1e-10) -> tuple[Value, Value]:
    """The root of the sum of squares, ``s_t = s_{t-1} + g_t²``, divides: the new direction is ``g_t / (√s_t + ε)``.

    This is Adagrad: Duchi et al. 2011, "Adaptive Subgradient Methods", with the diagonal of the matrix.

    Args:
        grad: ``g_t``, the direction so far.
        sum: ``s_{t-1}``, a state.
        eps: ``ε``, at least 0.

    Returns:
        The new direction, and ``s_t``.

    Examples:
        >>> from steprule.transforms import sum_scaling
        >>> sum_scaling(4.0, 9.0, eps=0.0)
        (0.8, 25.0)
    """
    sum = sum + grad * grad
    return grad / (pieces.sqrt(sum) + eps), sum


@about()
def sign(grad: Value) -> Value:
    """The sign of each element, ``sign(g_t)``: -1, 0 or 1.

    Bernstein et al. 2018, arXiv:1802.04434, algorithm 1 (signSGD). Nothing is left of what scaled the elements before.

    Args:
        grad: ``g_t``, the direction so far.

    Returns:
        The new direction.

    Examples:
        >>> from steprule.transforms import sign
        >>> sign(-3.0)
        -1.0
    """
    return pieces.sign(grad)


@about()
def decay(grad: Value, param: Value, *, weight_decay: float = 1e-2) -> Value:
    """Weight decay, ``g_t + λ θ_{t-1}``: coupled (L2) at the head of a chain, decoupled at its end.

    Decoupled decay is that of AdamW: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.

    Args:
        grad: ``g_t``, the direction so far.
        param: ``θ_{t-1}``, the parameter before the step.
        weight_decay: ``λ``, at least 0; the chain's lr multiplies it as it does the rest of the direction.

    Returns:
        The new direction.

    Examples:
        >>> from steprule.transforms import decay
        >>> decay(1.0, 4.0, weight_decay=0.5)
        3.0
    """
    return grad + weight_decay * param


@about(clip_at=Hyperparameter("elements are clipped to within this of 0", "[0, inf)"))
def clip(grad: Value, *, clip_at: float = 1.0) -> Value:
    """Clipping by value, ``min(max(g_t, -c), c)`` for each element.

    It clips the direction at its place in the chain. To clip gradients by their norm, before the formula, use the optimizer's
    argument ``clip``.

    Args:
        grad: ``g_t``, the direction so far.
        clip_at: ``c``, at least 0, in the units of the direction.

    Returns:
        The new direction.

    Examples:
        >>> from steprule.transforms import clip
        >>> clip(-3.0, clip_at=0.5)
        -0.5
    """
    return pieces.clip(grad, -clip_at, clip_at)


@about()
def unit_norm(grad: Value, *, eps: float = 1e-8) -> Value:
    """Each tensor divided by its norm, ``g_t / (‖g_t‖ + ε)``.

    With the gradient of one tensor this is normalized gradient descent: Hazan et al. 2015, arXiv:1507.02030, algorithm 1.

    Args:
        grad: ``g_t``, the direction so far.
        eps: ``ε``, at least 0; above 0 a direction of zeros stays 0.

    Returns:
        The new direction.

    Examples:
        >>> import numpy as np
        >>> from steprule.transforms import unit_norm
        >>> unit_norm(np.array([3.0, 4.0]), eps=0.0)
        array([0.6, 0.8])
    """
    return grad / (pieces.norm(grad) + eps)


@about()
def trust(grad: Value, param: Value) -> Value:
    """Each tensor given the norm of its parameter, ``(‖θ_{t-1}‖ / ‖g_t‖) g_t``; unchanged where either norm is 0.

    This is the trust ratio of LAMB, whose function φ is the identity here: You et al. 2020, arXiv:1904.00962, algorithm 2.

    Args:
        grad: ``g_t``, the direction so far.
        param: ``θ_{t-1}``, the parameter before the step.

    Returns:
        The new direction.

    Examples:
        >>> import numpy as np
        >>> from steprule.transforms import trust
        >>> trust(np.array([3.0, 4.0]), np.array([10.0, 0.0]))
        array([6., 8.])
    """
    return trust_ratio(pieces.norm(param), pieces.norm(grad)) * grad


@about()
def agreeing(grad: Value, last: Value) -> tuple[Value, Value]:
    """Only elements whose sign is that of the step before, ``g_t if g_t g_{t-1} > 0 else 0``.

    Nothing moves in the first step, since the state begins at 0.

    Args:
        grad: ``g_t``, the direction so far.
        last: ``g_{t-1}``, what came in at the step before; a state.

    Returns:
        The new direction, and ``g_t``.

    Examples:
        >>> from steprule.transforms import agreeing
        >>> agreeing(2.0, 1.0), agreeing(2.0, -1.0)
        ((2.0, 2.0), (0.0, 2.0))
    """
    return pieces.where(grad * last <= 0, 0.0, grad), grad


def __dir__() -> list[str]:
    return seen(globals(), __all__)
