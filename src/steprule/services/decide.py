"""What services decide: functions of floats and arrays on the host, or of tensors on a device, the same for all.

On a device nothing here waits for it, and numbers that others are divided by are tensors there already (`Ledger.number`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from steprule.pieces import Value, maximum, minimum, where
from steprule.services.average import Average
from steprule.services.clip import ClipAdaptive


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


def clip_factor(norm: Value, longest: Value) -> Value:
    """What torch's `clip_grad_norm_` multiplies gradients of this norm by, that are to be no longer than that."""
    return minimum(longest / (norm + 1e-6), 1.0)


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
