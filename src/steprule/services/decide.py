"""What services decide: functions of floats and arrays on the host, or of tensors on a device, the same for all.

On a device nothing here waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steprule.pieces import Value, maximum, minimum, where
from steprule.services.average import Average
from steprule.services.clip import Clip, ClipAdaptive
from steprule.services.member import Part
from steprule.trace.program import TENSOR


def roots(sums: Value, norm_type: float) -> Value:
    """The p-norm of each of several vectors, from the sums of their elements' powers, or their largest or smallest one."""
    if norm_type == 2.0:
        return np.sqrt(sums) if isinstance(sums, np.ndarray) else sums.sqrt()
    if norm_type in (0.0, math.inf, -math.inf):
        return sums
    with np.errstate(all="ignore"):
        return sums ** (1 / norm_type)


def joined(norms: Value, norm_type: float) -> Value:
    """The norm of all vectors as one, of which these are the norms; the same whatever else they are a part of."""
    if isinstance(norms, np.ndarray):
        if norm_type == 2.0:
            return math.sqrt(np.vdot(norms, norms))  # which warns of nothing
        with np.errstate(all="ignore"):
            return float(np.linalg.norm(norms, norm_type))
    import torch

    return torch.linalg.vector_norm(norms, norm_type)


def joined_again(norms: np.ndarray, norm_type: float) -> float:
    """The norm of all vectors as one from what `joined` has given for some of them and for others.

    With norm_type=0 that counts the vectors that are not 0, as torch's `clip_grad_norm_` does.
    """
    return float(norms.sum()) if norm_type == 0.0 else float(joined(norms, norm_type))


def clip_factor(norm: Value, longest: Value) -> Value:
    """What torch's `clip_grad_norm_` multiplies gradients of this norm by, that are to be no longer than that."""
    return minimum(longest / (norm + 1e-6), 1.0)


ROUNDED = 1 + 2.0**-18
"""A norm in float32 beside the exact one: its sum of squares errs by a few dozen times 2**-24, its elements by 2**-24 each."""


def factor_of(clip: Clip | None, norm: Value, ledger: Any) -> tuple[Value, Value]:
    """What all gradients are multiplied by if their norm is this, and from which factor on a step counts as clipped.

    That is the factor of a norm which is too long by more than float32 rounds: gradients that somebody else has clipped to the
    same norm have that norm only nearly.

    Args:
        clip: how they are clipped.
        norm: theirs.
        ledger: what is remembered of the steps before.
    """
    if clip is None or clip.axis != TENSOR or clip.per_parameter:
        return 1.0, ledger.clips_at
    if not clip.window:
        return clip_factor(norm, ledger.max_norm), ledger.clips_at
    longest = ledger.quantile(clip.quantile)
    is_known = longest == longest
    factors = clip_factor(norm, longest), clip_factor(longest * ROUNDED, longest)
    return where(is_known, factors[0], 1.0), where(is_known, factors[1], 0.0)


def set_factors(
    clip: Any, parts: Sequence[Part], norms: Sequence[Value], norm: Value, inverse: Value, ledger: Any
) -> list[Value]:
    """Tells every part what to multiply gradients by, and returns whether that clips any of them, part by part.

    Args:
        clip: how they are clipped, or None.
        parts: of the step.
        norms: of each part's gradients, if clipping goes by them.
        norm: of all that clipping does not leave out.
        inverse: what undoes a GradScaler's scale.
        ledger: what is remembered of the steps before.
    """
    clipped: list[Value] = []
    factor, enough = factor_of(clip, norm, ledger)
    is_scaled = not (isinstance(inverse, float) and inverse == 1.0)
    for index, part in enumerate(parts):
        own = inverse if isinstance(inverse, float) else part.here(inverse)
        if part.by_row:
            clipped.append(part.clip_rows(clip, own))
            continue
        each = factor
        if clip is not None and clip.per_parameter:
            each = clip_factor(times(norms[index], own), ledger.max_norm)
        if not isinstance(each, float):
            each = part.here(each)
        if part.exempt is not None:
            each = where(part.exempt, 1.0, each)
        below = each <= (enough if isinstance(enough, float) else part.here(enough))
        clipped.append(below if isinstance(below, bool) or not below.ndim else below.any())
        part.set_factors(each * own if is_scaled else each)
    return clipped


def times(x: Value, inverse: Value) -> Value:
    """The product, for which a device has nothing to do if there is no scale to undo."""
    return x if isinstance(inverse, float) and inverse == 1.0 else x * inverse


def row_factors(clip: ClipAdaptive, grad_norms: Value, weight_norms: Value) -> Value:
    """What each row's gradient is multiplied by."""
    longest = clip.clip_factor * maximum(weight_norms, clip.eps)
    return where(grad_norms > longest, longest / maximum(grad_norms, 1e-6), 1.0)


def quantile(numbers: Sequence[float], share: float) -> float:
    """As `numpy.quantile`, to the last bit, in a tenth of its time."""
    ordered = sorted(numbers)
    place = (len(ordered) - 1) * share
    below = math.floor(place)
    if below >= len(ordered) - 1:
        return ordered[-1]
    low, high, part = ordered[below], ordered[below + 1], place - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def average_weight(average: Average, averaged: Value) -> Value:
    """The share that the new weights get in an average, after so many averages: 1 in the first, which is a copy."""
    decay, weight = average.decay, 1 - average.decay
    if average.bias_correction and decay:
        weight = (1 - decay) / (1 - decay ** (averaged + 1))
    elif average.warmup:
        weight = 1 - minimum((1 + averaged) / (10 + averaged), decay)
    return maximum(1.0 - averaged, weight)
