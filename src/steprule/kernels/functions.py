"""Functions that no processor has an instruction for, written out in operations that all of them have.

So they vectorize, and every engine gets the same bits. Each is right to three units in the last place, over the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from numpy.polynomial.chebyshev import cheb2poly

from steprule.pieces import Value, where
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS


def cbrt(real: str, x: Value) -> Value:
    """The cube root of what is at least 0: 1/cbrt(x) from a third of x's exponent, and two corrections."""
    is_small = x < 2.0**-100  # and maybe subnormal, whose bits tell no exponent
    scaled = where(is_small, x * 2.0**72, x)
    bits = Expression("bits", (scaled,), ELEMENTS)
    inverse = Expression("of_bits", (_INVERSE_CBRT[real] - bits * (1 / 3),), ELEMENTS)  # off by 4% at most
    error = 1 - scaled * inverse * inverse * inverse
    inverse = inverse + inverse * (error * (1 / 3 + error * (2 / 9 + error * (14 / 81))))  # (1 - error)**(-1/3)
    root = scaled * inverse * inverse
    error = 1 - root * inverse
    power = error * (2 / 3) if real == "float32" else error * (2 / 3 + error * (5 / 9 + error * (40 / 81)))
    root = root + root * power  # (1 - error)**(-2/3)
    return where((x > 0) & (x < math.inf), root * where(is_small, 2.0**-24, 1.0), x)


_INVERSE_CBRT = {"float32": 0x54A21D2A, "float64": 0x553EF0FF289DD796}
"""The bits of a number whose exponent, less a third of x's, makes 1/cbrt(x)."""


def atan2(real: str, y: Value, x: Value) -> Value:
    """The angle of (x, y) by a polynomial of min/max, which is between 0 and 1."""
    height = abs(y)
    is_steep = height > x
    low, high = where(is_steep, x, height), where(is_steep, height, x)
    slope = where(low == high, where(high > 0, 1.0, 0.0), low / high)  # 0/0, inf/inf
    square = slope * slope
    even, odd = (_polynomial(_ARCTANGENT[real][first::2], square * square) for first in (0, 1))  # side by side
    angle = slope * (odd * square + even)
    angle = where(is_steep, math.pi / 2 - angle, angle)
    return where(y < 0, -angle, angle)


def _polynomial(coefficients: list[float], x: Value) -> Value:
    """That of x with these coefficients, the constant first."""
    *others, value = coefficients
    for coefficient in reversed(others):
        value = value * x + coefficient
    return value


def _arctangent(terms: int) -> list[float]:
    """The coefficients of x, x**3, ... from arctan(x) = 2 sum (-1)**k q**(2k+1) / (2k+1) T_(2k+1)(x), q = sqrt(2) - 1."""
    q, series = math.sqrt(2) - 1, []
    power = 2 * q
    for odd in range(1, 2 * terms, 2):
        series += [0.0, power / odd]
        power *= -q * q
    return [float(one) for one in cheb2poly(series)[1::2]]


_ARCTANGENT = {"float32": _arctangent(9), "float64": _arctangent(21)}

WRITTEN_OUT: dict[str, Callable[..., Value]] = {"cbrt": cbrt, "arctan2": atan2}
"""By operation: of float32 or float64 and the operands."""
