"""The pieces that rules are made of.

Every function here takes whatever carries the numbers: Python floats, NumPy arrays, torch tensors,
or the symbols an engine traces a rule with. None of them changes its arguments.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Value = Any
"""A float, a NumPy array, a torch tensor or a traced expression."""


def ema(avg: Value, value: Value, beta: Value) -> Value:
    """One step of the exponentially weighted average: ``beta * avg + (1 - beta) * value``.

    Written as ``avg + (1 - beta) * (value - avg)``, which keeps the two weights' sum at exactly one.

    Args:
        avg: the average so far (0 before the first value).
        value: the new value, of avg's shape.
        beta: the share that the past keeps, in [0, 1). The average spans about 1 / (1 - beta) values.
    """
    return avg + (1 - beta) * (value - avg)


def ema_sq(avg: Value, value: Value, beta: Value) -> Value:
    """One step of the exponentially weighted average of squares: ``beta * avg + (1 - beta) * value**2``.

    As `ema`, except that an average that has overflowed to inf stays there instead of becoming NaN, so that one
    huge gradient stops its own parameter and not all of them.
    """
    return where(avg < math.inf, ema(avg, value * value, beta), avg + value * value)


def l2(grad: Value, param: Value, weight_decay: Value) -> Value:
    """The gradient with that of L2 regularisation, ``grad + weight_decay * param``; grad itself without decay."""
    return where(weight_decay == 0, grad, grad + weight_decay * param)


def debias(avg: Value, beta: Value, step: Value) -> Value:
    """Bias correction of an `ema` that began at 0: ``avg / (1 - beta**step)``. Adam, section 3.

    Args:
        avg: the average after ``step`` values.
        beta: the average's beta.
        step: how many values the average has seen; 1 after the first.

    Raises:
        ValueError: step is a number below 1: there is no average yet.
    """
    if isinstance(step, (int, float)) and step < 1:
        raise ValueError(f"Invalid step value: {step}; an average has seen at least 1 value")
    return avg / (1 - beta**step)


def debiased_beta(beta: Value, step: Value) -> Value:
    """The beta at which an `ema` has no bias at any step, ``beta * (1 - beta**(step - 1)) / (1 - beta**step)``.

    An average that is moved by it is at every step what `debias` makes of one that is moved by beta. 0 at step 1.
    """
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def at_first(step: Value, first: Value, later: Value) -> Value:
    """first at a tensor's first step and later from the second on."""
    return where(step == 1, first, later)


def running_ema(series: Sequence[Value], beta: float, bias_correction: bool = False) -> Any:
    """The exponentially weighted average after each value of a series.

    Args:
        series: scalars, arrays or tensors in order of time; an array or tensor is read along its first
            dimension.
        beta: as in `ema`, in [0, 1).
        bias_correction: whether each average is debiased, so that early ones are not pulled to 0.

    Returns:
        A list, or an array or tensor if that is what series is; as long as series.

    Raises:
        ValueError: beta is outside [0, 1).
        TypeError: the series is of something else than numbers.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"Invalid beta value: {beta}")
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
    if _is_tensor(series):
        return sys.modules["torch"].stack(averages) if averages else series
    return averages


def sqrt(x: Value) -> Value:
    """The square root."""
    return _call("sqrt", x)


def exp(x: Value) -> Value:
    """e to the power of x."""
    return _call("exp", x)


def log(x: Value) -> Value:
    """The natural logarithm."""
    return _call("log", x)


def abs(x: Value) -> Value:
    """The absolute value."""
    return builtins.abs(x)


def sign(x: Value) -> Value:
    """-1, 0 or 1; NaN for NaN."""
    return where(x > 0, 1.0, where(x < 0, -1.0, x))


def maximum(a: Value, b: Value) -> Value:
    """The larger of two, NaN if either is."""
    if isinstance(a, float) and isinstance(b, float):  # as `_call` would, in a tenth of its time
        return a if a >= b or a != a else b
    return _call("maximum", a, b)


def minimum(a: Value, b: Value) -> Value:
    """The smaller of two, NaN if either is."""
    if isinstance(a, float) and isinstance(b, float):
        return a if a <= b or a != a else b
    return _call("minimum", a, b)


def clip(x: Value, low: Value, high: Value) -> Value:
    """x kept within low and high; NaN for NaN."""
    return minimum(maximum(x, low), high)


def floor(x: Value) -> Value:
    """The largest whole number that is not above x: of hyperparameters and the step, not of elements."""
    return _call("floor", x)


def cbrt(x: Value) -> Value:
    """The cube root of a number that is at least 0."""
    return (x.double() ** (1 / 3)).to(x.dtype) if _is_tensor(x) else _call("cbrt", x)


def atan2(y: Value, x: Value) -> Value:
    """The angle of the point (x, y), x being at least 0: from -pi/2 to pi/2, and 0 for (0, 0)."""
    return _call("arctan2", y, x)


# Sums over all elements of a tensor: one number for each, which must be known before any element changes.


def total(x: Value) -> Value:
    """The sum over a tensor's elements, in float64."""
    if hasattr(x, "__steprule__"):
        return x.__steprule__("total", x)
    if _is_tensor(x):
        return x.sum(dtype=sys.modules["torch"].float64)
    if x is None:  # which NumPy takes for NaN
        raise TypeError("total() of None")
    return np.sum(x, dtype=np.float64)


def mean(x: Value) -> Value:
    """The mean over a tensor's elements."""
    return total(x) / size(x)


def norm(x: Value) -> Value:
    """The Euclidean norm of a tensor."""
    return sqrt(total(x * x))


def size(x: Value) -> Value:
    """How many elements the tensor has."""
    if hasattr(x, "__steprule__"):
        return x.__steprule__("size", x)
    if x is None:  # which NumPy takes for one number
        raise TypeError("size() of None")
    return x.numel() if _is_tensor(x) else np.size(x)


def total_of_all(x: Value) -> Value:
    """The sum over the elements of all tensors that are stepped together; over x's where it is called by hand."""
    return x.__steprule__("total_of_all", x) if hasattr(x, "__steprule__") else total(x)


def where(condition: Value, a: Value, b: Value) -> Value:
    """a where the condition holds and b elsewhere: what a rule writes instead of ``if``."""
    if isinstance(condition, (bool, np.bool_)):
        return a if condition else b
    return _call("where", condition, a, b)


def _call(name: str, *values: Value) -> Value:
    """The function of that name from wherever the values come from."""
    for value in values:
        if hasattr(value, "__steprule__"):
            return value.__steprule__(name, *values)
    if any(map(_is_tensor, values)):
        torch = sys.modules["torch"]
        if name in ("maximum", "minimum"):
            tensors = [value for value in values if _is_tensor(value)]
            if len(tensors) == 1 and not tensors[0].requires_grad:  # a number beside it needs no tensor of its own
                number = values[1] if values[0] is tensors[0] else values[0]
                return tensors[0].clamp(**{"min" if name == "maximum" else "max": number})
            values = tuple(_as_tensors(torch, values))
        elif name == "where" and not any(map(_is_tensor, values[1:])):  # numbers that no element changes
            options = {"dtype": torch.float64, "device": values[0].device}
            values = (values[0], *(torch.full((), float(x), **options) for x in values[1:]))
        return getattr(torch, name)(*values)
    if all(isinstance(value, (int, float)) for value in values):
        return _SCALAR[name](*values)
    return getattr(np, name)(*values)


def _as_tensors(torch: Any, values: Sequence[Value]) -> list[Any]:
    like = next(value for value in values if _is_tensor(value))
    return [v if _is_tensor(v) else torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values]


def _is_tensor(value: Value) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


_SCALAR: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "floor": math.floor,
    "arctan2": math.atan2,
    "cbrt": lambda x: float(np.cbrt(x)),
    "maximum": lambda a, b: a if a >= b or a != a else b,
    "minimum": lambda a, b: a if a <= b or a != a else b,
}
