"""Wrappers: what goes around a rule and changes its updates, for `steprule.wrap`.

Each takes what the rule adds to the weights as ``update``, ``u_t = θ_t - θ_{t-1}``, then ``param`` and ``grad`` if it looks at them,
then its states, and after the ``*`` the learning rate ``lr``, ``step`` and its hyperparameters. It returns the new update and the
new states. States begin at 0. The rule's own weight decay, where it is apart from its step, is no part of the update and is
subtracted beside it, unless a wrapper says otherwise.

In the formulas ``‖x‖`` is the Frobenius norm of a tensor. Out of range, a hyperparameter is refused with ValueError when the
optimizer is made.
"""

from __future__ import annotations

from steprule.hyper import Hyperparameter
from steprule.names import seen
from steprule.pieces import Value, ema, maximum, norm, row_total, size, sqrt, total, where
from steprule.state import State
from steprule.wrapping import wrapper as wrapper

__all__ = [
    "cautious_decay", "ema_nesterov", "hyperball", "match_rms", "radial_brake", "radius_pin", "row_floor", "update_floor", "wrapper",
]  # fmt: skip

_LEAST = 1e-8


def _over(x: Value, length: Value) -> Value:
    """x / length, 0 where there is no length."""
    return where(length == 0, 0.0, x / where(length == 0, 1.0, length))


@wrapper(
    decay="none",
    refuses="hyperball fixes the norm of each tensor, which it would change",
    nonzero="hyperball keeps the norm that a tensor begins with, and one of zeros would stay 0: initialize it with other numbers",
    radius=State("scalar"),
)
def hyperball(update: Value, param: Value, radius: Value, *, lr: Value) -> tuple[Value, Value]:
    """Norms that stay as they begin, ``R = ‖θ_0‖``, and updates of the norm ``η R``: ``θ_t = R v / ‖v‖``, ``v = θ_{t-1} + η R u_t / ‖u_t‖``.

    Wen et al. 2026, "Fantastic Pretraining Optimizers and Where to Find Them II" (arXiv:2606.16899): AdamH, MuonH, SOAPH. There is no
    weight decay. lr is the angle of a step, in radians if it is small.

    Args:
        update: ``u_t``; only its direction matters.
        param: ``θ_{t-1}``.
        radius: ``R``, a state of one number.
        lr: ``η``.

    Returns:
        ``θ_t - θ_{t-1}``, and ``R``.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import hyperball
        >>> change, radius = hyperball(np.array([0.0, 7.0]), np.array([2.0, 0.0]), 0.0, lr=0.75)
        >>> np.array([2.0, 0.0]) + change  # 2 (2, 1.5) / 2.5
        array([1.6, 1.2])
    """
    radius = where(radius > 0, radius, norm(param))
    length = norm(update)
    share = _over(lr * radius, length)
    inner = total(param * param) + 2 * share * total(param * update) + share * share * length * length
    back = _over(radius, sqrt(maximum(inner, 0.0)))
    return (back - 1) * param + back * share * update, radius


@wrapper(ratio=Hyperparameter("least norm of an update divided by that of its weights, with lr 1", "[0, inf)"))
def update_floor(update: Value, param: Value, *, lr: Value, ratio: float = 0.35) -> Value:
    """Updates that are not below a share of the weights, ``u_t · max(1, η r ‖θ_{t-1}‖ / ‖u_t‖)``.

    The u/w-floor of modded-nanogpt's optimization benchmark, result 9: KellerJordan/modded-nanogpt, records/track_3_optimization. It stands
    in the place of weight decay: weights that grow are moved further. An update of 0 stays 0.

    Args:
        update: ``u_t``.
        param: ``θ_{t-1}``.
        lr: ``η``.
        ratio: ``r``, at least 0.

    Returns:
        The new update.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import update_floor
        >>> update_floor(np.array([0.0, 0.1]), np.array([4.0, 0.0]), lr=0.5, ratio=0.25)
        array([0. , 0.5])
    """
    return maximum(1.0, _over(lr * ratio * norm(param), norm(update))) * update


@wrapper(ratio=Hyperparameter("least norm of a row's update divided by that of its weights, with lr 1", "[0, inf)"))
def row_floor(update: Value, param: Value, *, lr: Value, ratio: float = 0.3825) -> Value:
    """`update_floor` for each row of a matrix by itself: ``u_i · max(1, η r ‖θ_i‖ / ‖u_i‖)`` for row i. A vector is one row.

    The RowFloor of modded-nanogpt's optimization benchmark, result 46.

    Args:
        update: ``u_t``.
        param: ``θ_{t-1}``.
        lr: ``η``.
        ratio: ``r``, at least 0.

    Returns:
        The new update.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import row_floor
        >>> row_floor(np.array([[0.0, 0.1], [3.0, 0.0]]), np.array([[4.0, 0.0], [4.0, 0.0]]), lr=0.5, ratio=0.25)
        array([[0. , 0.5],
               [3. , 0. ]])
    """
    length = sqrt(row_total(update * update))
    return maximum(1.0, _over(lr * ratio * sqrt(row_total(param * param)), length)) * update


@wrapper(outward=Hyperparameter("share of an outward radial part that is kept", "[0, 1]"))
def radial_brake(update: Value, param: Value, *, outward: float = 0.5) -> Value:
    """The part of an update along the weights is shortened where it makes them longer: ``u_t - (1 - κ) max(c, 0) θ_{t-1}``, ``c = <u_t, θ_{t-1}> / ‖θ_{t-1}‖²``.

    From modded-nanogpt's optimization benchmark, result 29.

    Args:
        update: ``u_t``.
        param: ``θ_{t-1}``.
        outward: ``κ``, in [0, 1]; 1 changes nothing.

    Returns:
        The new update.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import radial_brake
        >>> radial_brake(np.array([1.0, 3.0]), np.array([2.0, 0.0]))
        array([0.5, 3. ])
    """
    along = _over(total(update * param), total(param * param))
    return update - (1 - outward) * maximum(along, 0.0) * param


def radius_pin(update: Value, param: Value) -> Value:
    """The norm grows by the radial part of an update alone: ``θ_t = r v / ‖v‖``, ``v = θ_{t-1} + u_t``, ``r = ‖θ_{t-1}‖ + <u_t, θ_{t-1}> / ‖θ_{t-1}‖``.

    Without it each step also grows the norm by what is across the weights, in second order. The radius rescale of modded-nanogpt's
    optimization benchmark, result 29. ``r`` is at least 1e-8.

    Args:
        update: ``u_t``.
        param: ``θ_{t-1}``.

    Returns:
        ``θ_t - θ_{t-1}``.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import radius_pin
        >>> np.array([3.0, 0.0]) + radius_pin(np.array([0.0, 4.0]), np.array([3.0, 0.0]))
        array([1.8, 2.4])
    """
    square, inner = total(param * param), total(update * param)
    before, after = sqrt(square), sqrt(maximum(square + 2 * inner + total(update * update), 0.0))
    back = _over(maximum(before + _over(inner, before), _LEAST), after)
    return where(before > 0, (back - 1) * param + back * update, update)


@wrapper(rms=Hyperparameter("root mean square of an update with lr 1", "[0, inf)"))
def match_rms(update: Value, *, lr: Value, rms: float = 0.2) -> Value:
    """Updates of one root mean square, ``η r u_t / RMS(u_t)``, so that a rule takes AdamW's learning rate and weight decay.

    AdamW's updates have an RMS of 0.2 to 0.4: Liu et al. 2025, arXiv:2502.16982, section 2.2. An update of 0 stays 0.

    Args:
        update: ``u_t``; only its direction matters.
        lr: ``η``.
        rms: ``r``, at least 0.

    Returns:
        The new update.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import match_rms
        >>> match_rms(np.array([7.0, -7.0]), lr=0.5)
        array([ 0.1, -0.1])
    """
    return _over(lr * rms * sqrt(size(update)), norm(update)) * update


@wrapper()
def cautious_decay(update: Value, param: Value, *, lr: Value, weight_decay: float = 0.01) -> Value:
    """Weight decay of the elements that the update brings nearer to 0: ``u_t - η λ θ_{t-1} if u_t θ_{t-1} <= 0 else u_t``.

    Chen et al. 2025, arXiv:2510.12402. It stands in the place of the rule's own weight decay. The optimizers' argument
    ``cautious_decay`` does the same outside of all wrappers; this has a place among them.

    Args:
        update: ``u_t``.
        param: ``θ_{t-1}``.
        lr: ``η``.
        weight_decay: ``λ``, at least 0.

    Returns:
        The new update.

    Examples:
        >>> import numpy as np
        >>> from steprule.wrappers import cautious_decay
        >>> cautious_decay(np.array([1.0, -1.0]), np.array([4.0, 4.0]), lr=0.5, weight_decay=0.25)
        array([ 1. , -1.5])
    """
    return update - where(update * param <= 0, lr * weight_decay * param, 0.0)


@wrapper(
    decay="within",
    refuses="ema_nesterov goes around all others: the model has weights that are ahead of those to evaluate",
    evaluated=(lambda param, ahead, reach: param - reach * ahead, lambda param, ahead, reach: param + reach * ahead),
    reach=State("scalar"),
    nesterov_scale=Hyperparameter("how far ahead of the weights gradients are taken, in mean steps", "[0, inf)"),
    nesterov_beta=Hyperparameter("decay rate of the EMA of steps", "[0, 1)"),
)
def ema_nesterov(
    update: Value, ahead: Value, reach: Value, *, nesterov_scale: float = 0.3, nesterov_beta: float = 0.99
) -> tuple[Value, Value, Value]:
    """Gradients ahead of the weights: ``θ_t = y_{t-1} + u_t``, ``m_t = δ m_{t-1} + (1 - δ) (θ_t - θ_{t-1})``, ``y_t = θ_t + β m_t``.

    EMA-Nesterov: Yau et al. 2026, arXiv:2605.25395. The model has ``y``, where gradients are taken and from where the rule steps. The
    optimizer's eval() puts ``θ`` in its place, and train() brings it back. ``β`` may be a function of the step, such as one that begins
    and ends with 0.

    Args:
        update: ``u_t``, with the weight decay.
        ahead: ``m_{t-1}``, a state.
        reach: ``β`` of the step before, a state of one number.
        nesterov_scale: ``β``, at least 0.
        nesterov_beta: ``δ``, in [0, 1).

    Returns:
        ``y_t - y_{t-1}``, ``m_t`` and ``β``.

    Examples:
        >>> from steprule.wrappers import ema_nesterov
        >>> ema_nesterov(2.0, 0.0, 0.0, nesterov_scale=0.5, nesterov_beta=0.75)  # m is 0.25 * 2
        (2.25, 0.5, 0.5)
    """
    ahead = ema(ahead, update + reach * ahead, nesterov_beta)
    return update + nesterov_scale * ahead, ahead, nesterov_scale


def __dir__() -> list[str]:
    return seen(globals(), __all__)
