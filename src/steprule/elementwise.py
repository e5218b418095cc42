"""Functions of one element: roots, signs, limits and choices.

Each computes element by element. Arrays and tensors beside one another broadcast as in NumPy; the result has their shape and
dtype. Outside its domain a function is NaN or infinite for arrays, tensors and elements of a rule, and for a Python float
it raises as the function of `math` does.
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


def sqrt(x: Value) -> Value:
    """The square root, ``√x``.

    Args:
        x: at least 0; below, the result is NaN.

    Raises:
        ValueError: x is a Python number below 0.

    Examples:
        >>> from steprule.pieces import sqrt
        >>> sqrt(np.array([0.0, 4.0, 9.0]))
        array([0., 2., 3.])
    """
    return _call("sqrt", x)


def exp(x: Value) -> Value:
    """The exponential function, ``e^x``.

    Args:
        x: any number; the result is infinite where it is too large for the dtype.

    Raises:
        OverflowError: x is a Python number and the result is too large for a float.

    Examples:
        >>> from steprule.pieces import exp
        >>> exp(0.0)
        1.0
    """
    return _call("exp", x)


def log(x: Value) -> Value:
    """The natural logarithm, ``ln x``.

    Args:
        x: above 0; at 0 the result is minus infinity, and below 0 it is NaN.

    Raises:
        ValueError: x is a Python number that is not above 0.

    Examples:
        >>> from steprule.pieces import exp, log
        >>> log(exp(2.0))
        2.0
    """
    return _call("log", x)


def abs(x: Value) -> Value:
    """The absolute value, ``|x|``.

    Args:
        x: any number.

    Examples:
        >>> from steprule.pieces import abs
        >>> abs(np.array([-2.0, 0.5]))
        array([2. , 0.5])
    """
    return builtins.abs(x)


def sign(x: Value) -> Value:
    """The sign: -1, 0 or 1, and NaN for NaN.

    Args:
        x: any number.

    Examples:
        >>> from steprule.pieces import sign
        >>> sign(np.array([-3.0, 0.0, 0.2]))
        array([-1.,  0.,  1.])
    """
    return where(x > 0, 1.0, where(x < 0, -1.0, x))


def maximum(a: Value, b: Value) -> Value:
    """The larger of two, ``max(a, b)``; NaN if either is.

    This compares two numbers for each element. The largest absolute value of a tensor is ``row_largest(col_largest(x))``.

    Args:
        a: any number.
        b: any number.

    Examples:
        >>> from steprule.pieces import maximum
        >>> maximum(np.array([-1.0, 3.0]), 0.5)
        array([0.5, 3. ])
    """
    if isinstance(a, float) and isinstance(b, float):  # as `_call` would, in a tenth of its time
        return a if a >= b or a != a else b
    return _call("maximum", a, b)


def minimum(a: Value, b: Value) -> Value:
    """The smaller of two, ``min(a, b)``; NaN if either is.

    Args:
        a: any number.
        b: any number.

    Examples:
        >>> from steprule.pieces import minimum
        >>> minimum(np.array([-1.0, 3.0]), 0.5)
        array([-1. ,  0.5])
    """
    if isinstance(a, float) and isinstance(b, float):
        return a if a <= b or a != a else b
    return _call("minimum", a, b)


def clip(x: Value, low: Value, high: Value) -> Value:
    """The number nearest to x between low and high, ``min(max(x, low), high)``; NaN for NaN.

    This clips each element. A chain has it as `steprule.transforms.clip`; an optimizer's argument ``clip`` scales whole
    gradients down to a norm.

    Args:
        x: any number.
        low: the smallest result.
        high: the largest result; where it is below low, it is the result.

    Examples:
        >>> from steprule.pieces import clip
        >>> clip(np.array([-3.0, 0.5, 9.0]), -1.0, 1.0)
        array([-1. ,  0.5,  1. ])
    """
    return minimum(maximum(x, low), high)


def floor(x: Value) -> Value:
    """The largest whole number that is not above x, ``⌊x⌋``.

    Args:
        x: in a rule, made of hyperparameters and ``step`` alone, such as ``step / period``.

    Raises:
        RuleError: a rule takes the floor of elements.

    Examples:
        >>> from steprule.pieces import floor
        >>> floor(7 / 2)
        3
    """
    return _call("floor", x)


def cbrt(x: Value) -> Value:
    """The cube root, ``∛x``.

    Args:
        x: at least 0.

    Examples:
        >>> from steprule.pieces import cbrt
        >>> cbrt(np.array([0.0, 8.0]))
        array([0., 2.])
    """
    return (x.double() ** (1 / 3)).to(x.dtype) if is_tensor(x) else _call("cbrt", x)


def atan2(y: Value, x: Value) -> Value:
    """The angle of the point (x, y) in radians, ``arctan(y / x)``, without dividing: 0 for (0, 0).

    Everett et al. 2024, arXiv:2407.05872, section 4, take it in place of a division that needs an eps.

    Args:
        y: any number.
        x: at least 0, so that the result is from -π/2 to π/2.

    Raises:
        RuleError: a rule takes it of hyperparameters and ``step`` alone.

    Examples:
        >>> from steprule.pieces import atan2
        >>> atan2(np.array([-1.0, 0.0, 1.0]), 0.0).round(2)
        array([-1.57,  0.  ,  1.57])
    """
    return _call("arctan2", y, x)


def where(condition: Value, a: Value, b: Value) -> Value:
    """``a`` where the condition holds, and ``b`` elsewhere: what a rule writes instead of ``if``.

    Both are computed for every element, and one is taken.

    Args:
        condition: a comparison such as ``grad > 0``. Join several by ``&``, ``|`` and ``~``, each in parentheses.
        a: the result where the condition holds.
        b: the result where it does not.

    Examples:
        >>> from steprule.pieces import where
        >>> grad = np.array([-2.0, 3.0])
        >>> where(grad > 0, grad, 0.1 * grad)
        array([-0.2,  3. ])
    """
    if isinstance(condition, (bool, np.bool_)):
        return a if condition else b
    return _call("where", condition, a, b)


def _call(name: str, *values: Value) -> Value:
    """The function of that name from wherever the values come from."""
    for value in values:
        if hasattr(value, "__steprule__"):
            return value.__steprule__(name, *values)
    if any(map(is_tensor, values)):
        torch = sys.modules["torch"]
        if name in ("maximum", "minimum"):
            tensors = [value for value in values if is_tensor(value)]
            if len(tensors) == 1 and not tensors[0].requires_grad:  # a number beside it needs no tensor of its own
                number = values[1] if values[0] is tensors[0] else values[0]
                return tensors[0].clamp(**{"min" if name == "maximum" else "max": number})
            values = tuple(_as_tensors(torch, values))
        elif name == "where" and not any(map(is_tensor, values[1:])):  # numbers that no element changes
            options = {"dtype": torch.float64, "device": values[0].device}
            values = (values[0], *(torch.full((), float(x), **options) for x in values[1:]))
        return getattr(torch, name)(*values)
    if all(isinstance(value, (int, float)) for value in values):
        return _SCALAR[name](*values)
    return getattr(np, name)(*values)


def _as_tensors(torch: Any, values: Sequence[Value]) -> list[Any]:
    like = next(value for value in values if is_tensor(value))
    return [v if is_tensor(v) else torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in values]


def is_tensor(value: Value) -> bool:
    """Whether it is a torch tensor; torch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_number(name: str) -> Callable[[float], float]:
    """A function of Python's, which gives infinity or NaN where it would raise: a kernel computes on, and may not choose it."""
    function: Callable[[float], float] = getattr(math, name)

    def compute(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError):
            with np.errstate(all="ignore"):
                return float(getattr(np, name)(x))

    return compute


_SCALAR: dict[str, Callable[..., float]] = {
    **{name: _of_number(name) for name in ("sqrt", "exp", "log", "floor")},
    "arctan2": math.atan2,
    "cbrt": lambda x: float(np.cbrt(x)),
    "maximum": lambda a, b: a if a >= b or a != a else b,
    "minimum": lambda a, b: a if a <= b or a != a else b,
}


def whole_number(name: str, value: Value, most: float = math.inf) -> int:
    """An argument that must be a whole number, 1 or more and no more than most."""
    if isinstance(value, (bool, str)) or not (1 <= value <= most and float(value) % 1 == 0):
        span = "of 1 or more" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name}={value!r} must be a whole number {span}")
    return int(value)


def is_due(k: Any, step: Any, place: Any) -> Any:
    """Whether `every` computes something anew in a step, of numbers or arrays; place is that of a tensor, or 0."""
    return ((step + place) % k == 0) | (step <= 2)
