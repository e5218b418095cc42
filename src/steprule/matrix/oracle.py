"""What `steprule.matrix.polar` approximates, in float64 and as it stands in the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steprule.matrix.coefficients import Coefficients, polynomial, published


def polar(
    matrices: NDArray[Any], coefficients: Coefficients = "keller", steps: int | None = None, eps: float = 1e-7
) -> NDArray[np.float64]:
    """The polynomial of a matrix (m, n) or of every matrix of a stack (k, m, n), divided by their Frobenius norms.

    >>> polar(np.diag([3.0, 4.0]), [(1.5, -0.5, 0.0)], 8).round(2)
    array([[1., 0.],
           [0., 1.]])
    """
    x: NDArray[np.float64] = np.array(matrices, np.float64)
    if x.shape[-2] > x.shape[-1]:
        return polar(x.swapaxes(-1, -2), coefficients, steps, eps).swapaxes(-1, -2)
    x = x / np.maximum(np.sqrt((x * x).sum((-2, -1), keepdims=True)), max(eps, 1e-300))
    if published(coefficients).start == "aol":
        x = x / np.sqrt(np.maximum(np.abs(x @ x.swapaxes(-1, -2)).sum(-1, keepdims=True), 1e-7))
    for a, b, c in polynomial(coefficients, steps):
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def singular_values(
    values: NDArray[Any], coefficients: Coefficients = "keller", steps: int | None = None
) -> NDArray[np.float64]:
    """What the polynomial makes of singular values, of any shape, that were divided by the norm already."""
    x = np.array(values, np.float64)
    for a, b, c in polynomial(coefficients, steps):
        x[...] = a * x + b * x**3 + c * x**5
    return x
