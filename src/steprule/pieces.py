"""The functions that rules are made of.

Every function here takes whatever carries the numbers: Python floats, NumPy arrays, torch tensors, or the symbols with which
a rule's formula is read. None of them changes its arguments. An argument may have one value for each element (the shape of
the parameter) or be one number, such as a hyperparameter or ``step``.

In a compiled rule elements are computed in float32, or in float64 where the parameter is float64. What depends on
hyperparameters, ``step`` and sums alone is computed in float64, once a step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from steprule.elementwise import Value as Value
from steprule.elementwise import abs as abs
from steprule.elementwise import atan2 as atan2
from steprule.elementwise import cbrt as cbrt
from steprule.elementwise import clip as clip
from steprule.elementwise import exp as exp
from steprule.elementwise import floor as floor
from steprule.elementwise import is_due as _is_due
from steprule.elementwise import is_tensor
from steprule.elementwise import log as log
from steprule.elementwise import maximum as maximum
from steprule.elementwise import minimum as minimum
from steprule.elementwise import sign as sign
from steprule.elementwise import sqrt as sqrt
from steprule.elementwise import where as where
from steprule.elementwise import whole_number as _whole_number
from steprule.matrixwise import col_largest as col_largest
from steprule.matrixwise import col_mean as col_mean
from steprule.matrixwise import col_total as col_total
from steprule.matrixwise import cols as cols
from steprule.matrixwise import decorrelate as decorrelate
from steprule.matrixwise import eigenbasis as eigenbasis
from steprule.matrixwise import gram as gram
from steprule.matrixwise import inverse_root as inverse_root
from steprule.matrixwise import largest_eigenvalue as largest_eigenvalue
from steprule.matrixwise import matmul as matmul
from steprule.matrixwise import polar as polar
from steprule.matrixwise import row_largest as row_largest
from steprule.matrixwise import row_mean as row_mean
from steprule.matrixwise import row_total as row_total
from steprule.matrixwise import rows as rows
from steprule.matrixwise import top_share as top_share
from steprule.matrixwise import transpose as transpose
from steprule.names import seen as _seen

__all__ = [
    "Value", "abs", "at_first", "atan2", "cbrt", "clip", "col_largest", "col_mean", "col_total", "cols", "debias", "debiased_beta",
    "decorrelate", "eigenbasis", "ema", "ema_sq", "every", "exp", "floor", "gram", "inverse_root", "l2", "largest_eigenvalue", "log",
    "matmul", "maximum", "mean", "minimum", "norm", "polar", "row_largest", "row_mean", "row_total", "rows", "running_ema", "sign",
    "size", "sqrt", "top_share", "total", "total_of_all", "transpose", "where",
]  # fmt: skip


def ema(avg: Value, value: Value, beta: Value) -> Value:
    """One step of an exponential moving average (EMA), ``m_t = β m_{t-1} + (1 - β) x_t``.

    Of gradients it is the first moment of Adam: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1. It is computed as
    ``m_{t-1} + (1 - β) (x_t - m_{t-1})``, whose two weights add up to exactly 1.

    Args:
        avg: ``m_{t-1}``, the average so far; 0 before the first value.
        value: ``x_t``, the new value, of avg's shape.
        beta: ``β``, the share of the past, in [0, 1). The average spans about 1 / (1 - beta) values.

    Examples:
        >>> from steprule.pieces import ema
        >>> ema(0.0, 10.0, beta=0.75)
        2.5
    """
    return avg + (1 - beta) * (value - avg)


def ema_sq(avg: Value, value: Value, beta: Value) -> Value:
    """One step of an EMA of squares, ``v_t = β v_{t-1} + (1 - β) x_t²``.

    Of gradients it is the second moment of Adam: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1. It differs from
    ``ema(avg, value * value, beta)`` in one case: an average that has overflowed to infinity stays infinite instead of
    becoming NaN, so that a huge gradient stops its own element and no others.

    Args:
        avg: ``v_{t-1}``, the average so far; 0 before the first value.
        value: ``x_t``, the new value, of avg's shape. It is squared here.
        beta: ``β``, the share of the past, in [0, 1).

    Examples:
        >>> from steprule.pieces import ema_sq
        >>> ema_sq(0.0, 10.0, beta=0.75)
        25.0
    """
    return where(avg < math.inf, ema(avg, value * value, beta), avg + value * value)


def l2(grad: Value, param: Value, weight_decay: Value) -> Value:
    """The gradient of the loss with L2 regularization, ``g_t + λ θ_{t-1}``.

    This is coupled weight decay: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2, in Adam with L2. With
    weight_decay 0 it is grad itself, even where param is not finite.

    Args:
        grad: ``g_t``, the gradient.
        param: ``θ_{t-1}``, the parameter, of grad's shape.
        weight_decay: ``λ``, at least 0.

    Examples:
        >>> from steprule.pieces import l2
        >>> l2(1.0, 4.0, weight_decay=0.5)
        3.0
    """
    return where(weight_decay == 0, grad, grad + weight_decay * param)


def debias(avg: Value, beta: Value, step: Value) -> Value:
    """The bias correction of an EMA that began at 0, ``m̂_t = m_t / (1 - β^t)``.

    Kingma & Ba 2015, arXiv:1412.6980, section 3.

    Args:
        avg: ``m_t``, the average after ``step`` values.
        beta: ``β`` of the average.
        step: ``t``, the number of values that the average has seen; 1 after the first.

    Raises:
        ValueError: step is a number below 1: there is no average yet.

    Examples:
        >>> from steprule.pieces import debias, ema
        >>> debias(ema(0.0, 10.0, beta=0.75), beta=0.75, step=1)
        10.0
    """
    if isinstance(step, (int, float)) and step < 1:
        raise ValueError(f"Invalid step value: {step}; an average has seen at least 1 value")
    return avg / (1 - beta**step)


def debiased_beta(beta: Value, step: Value) -> Value:
    """The beta at which an EMA has no bias at any step, ``β_t = β (1 - β^{t-1}) / (1 - β^t)``.

    An EMA that moves by ``β_t`` is at every step what `debias` makes of one that moves by ``β``. Shazeer & Stern 2018,
    arXiv:1804.04235, section 7.1.

    Args:
        beta: ``β``, in [0, 1).
        step: ``t``, from 1. At step 1 the result is 0: the average is the first value.

    Examples:
        >>> from steprule.pieces import debiased_beta
        >>> debiased_beta(0.5, step=1), round(debiased_beta(0.5, step=2), 4)
        (0.0, 0.3333)
    """
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def at_first(step: Value, first: Value, later: Value) -> Value:
    """One value at a tensor's first step and another one afterwards, ``first if step == 1 else later``.

    Args:
        step: the number of the step, from 1, as a rule is given it.
        first: the result at step 1.
        later: the result from step 2 on.

    Examples:
        >>> from steprule.pieces import at_first
        >>> at_first(1, 0.0, 5.0), at_first(2, 0.0, 5.0)
        (0.0, 5.0)
    """
    return where(step == 1, first, later)


def every(k: Value, step: Value, new: Any, old: Value, stagger: bool = True) -> Value:
    """A value that is computed anew in one of ``k`` steps, and stays as it was in the others.

    It is for what takes long, such as `eigenbasis`: a ``new`` that is a product or another function of a matrix is not computed in other
    steps. What is done with elements around such functions is computed in every step, with what it is made of, and so is better
    written outside. A tensor's first two steps compute
    it always: averages may still be 0 in the first. Afterwards each tensor of an optimizer has its own steps, those where the number of the step and the tensor's place among the
    optimizer's parameters add up to a multiple of k, so that no step takes much longer than the others. Both are kept by checkpoints.

    Args:
        k: every how many steps, a whole number of 1 or more.
        step: the number of the step, from 1, as a rule is given it.
        new: the value that is computed anew, or a function without arguments that gives it.
        old: the value that stays: a state, or an expression of old's shape.
        stagger: whether tensors have steps of their own. False is the steps whose number is a multiple of k for all.

    Examples:
        >>> from steprule.pieces import every
        >>> [every(4, step, "new", "old") for step in (1, 2, 3, 4)]
        ['new', 'new', 'old', 'new']
    """
    if any(hasattr(value, "__steprule__") for value in (k, step, old)):
        values = (k, step, new() if callable(new) else new, old)
        traced = next(value for value in values if hasattr(value, "__steprule__"))
        return traced.__steprule__("every", *values, stagger)
    if not _is_due(_whole_number("k", k), step, getattr(step, "place", 0) if stagger else 0):
        return old
    return new() if callable(new) else new


def running_ema(series: Sequence[Value], beta: float, bias_correction: bool = False) -> Any:
    """The EMA after each value of a series: `ema` from 0, once for each value.

    It is for plots and for learning; a rule moves its averages by `ema`.

    Args:
        series: numbers, arrays or tensors in order of time; an array or tensor is read along its first dimension.
        beta: the share of the past, in [0, 1).
        bias_correction: whether each average is debiased, so that the first ones are not close to 0.

    Returns:
        A list, or an array or tensor if that is what series is; as long as series.

    Raises:
        ValueError: beta is outside of [0, 1).
        TypeError: a value of the series is None or a string.

    Examples:
        >>> from steprule.pieces import running_ema
        >>> running_ema([8.0, 8.0, 8.0], beta=0.5)
        [4.0, 6.0, 7.0]
        >>> running_ema([8.0, 8.0, 8.0], beta=0.5, bias_correction=True)
        [8.0, 8.0, 8.0]
    """
    if not 0 <= beta < 1:
        raise ValueError(f"Invalid beta value: {beta}; it must be in [0, 1)")
    averages: list[Value] = []
    avg: Value = 0.0
    for step, value in enumerate(series, 1):
        if value is None or isinstance(value, (str, bytes)):
            kind = type(series).__name__
            raise TypeError(f"running_ema takes a sequence of numbers, not a {kind} with {value!r} in it")
        avg = ema(avg, value, beta)
        averages.append(debias(avg, beta, step) if bias_correction else avg)
    if isinstance(series, np.ndarray):
        return np.array(averages).reshape(series.shape)
    if is_tensor(series):
        return sys.modules["torch"].stack(averages) if averages else series
    return averages


# Sums over all elements of a tensor: one number for each, which must be known before any element changes.


def total(x: Value) -> Value:
    """The sum over a tensor's elements, ``Σ x_i``, in float64.

    A rule that uses it, or `mean` or `norm`, reads its tensors in a reduction pass before the pass that changes them.

    Args:
        x: one value for each element; one number is a tensor of one.

    Returns:
        One number a tensor.

    Raises:
        TypeError: x is None.

    Examples:
        >>> from steprule.pieces import total
        >>> float(total(np.array([1.0, 2.0, 4.0])))
        7.0
    """
    if hasattr(x, "__steprule__"):
        return x.__steprule__("total", x)
    if is_tensor(x):
        return x.sum(dtype=sys.modules["torch"].float64)
    if x is None:  # which NumPy takes for NaN
        raise TypeError("total() of None")
    return np.sum(x, dtype=np.float64)


def mean(x: Value) -> Value:
    """The mean over a tensor's elements, ``Σ x_i / n``, in float64.

    An average over time is `ema`.

    Args:
        x: one value for each element; one number is a tensor of one.

    Returns:
        One number a tensor.

    Raises:
        TypeError: x is None.

    Examples:
        >>> from steprule.pieces import mean
        >>> float(mean(np.array([1.0, 2.0, 6.0])))
        3.0
    """
    return total(x) / size(x)


def norm(x: Value) -> Value:
    """The Euclidean norm of a tensor, ``‖x‖ = √(Σ x_i²)``, in float64.

    Args:
        x: one value for each element; one number is a tensor of one.

    Returns:
        One number a tensor.

    Raises:
        TypeError: x is None.

    Examples:
        >>> from steprule.pieces import norm
        >>> float(norm(np.array([3.0, 4.0])))
        5.0
    """
    return sqrt(total(x * x))


def size(x: Value) -> Value:
    """The number of elements of a tensor, ``n``.

    Args:
        x: one value for each element.

    Returns:
        One number a tensor; 1 for a plain number.

    Raises:
        TypeError: x is None.

    Examples:
        >>> from steprule.pieces import size
        >>> size(np.zeros((2, 3)))
        6
    """
    if hasattr(x, "__steprule__"):
        return x.__steprule__("size", x)
    if x is None:  # which NumPy takes for one number
        raise TypeError("size() of None")
    return x.numel() if is_tensor(x) else np.size(x)


def total_of_all(x: Value) -> Value:
    """The sum over the elements of all tensors that are stepped together, ``Σ_tensors Σ_i x_i``, in float64.

    Of one number for each tensor, such as ``norm(grad)``, it is the sum of these; a tensor without elements adds nothing.
    Called by hand, it knows one tensor, and is `total`. An optimizer whose rule uses it cannot step parameters one by
    one inside backward (gradient release).

    Args:
        x: one value for each element, or fewer: one for each tensor, row or column.

    Returns:
        One number for all tensors.

    Raises:
        TypeError: x is None.

    Examples:
        >>> from steprule.pieces import total_of_all
        >>> float(total_of_all(np.array([1.0, 2.0])))
        3.0
    """
    return x.__steprule__("total_of_all", x) if hasattr(x, "__steprule__") else total(x)


def __dir__() -> list[str]:
    return _seen(globals(), __all__)
