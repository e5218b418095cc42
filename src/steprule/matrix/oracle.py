"""What the functions of this folder compute or approximate, in float64 and as it stands in the papers."""

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


def decorrelated(matrices: NDArray[Any], passes: int = 1, least: float = 1e-14) -> NDArray[np.float64]:
    """A matrix (m, n), or every matrix of a stack, with decorrelated rows; rows that come out no longer than least are 0.

    >>> decorrelated(np.array([[2.0, 0.0], [3.0, 3.0]]))
    array([[1., 0.],
           [0., 1.]])
    """
    x: NDArray[np.float64] = np.array(matrices, np.float64)
    if x.ndim > 2:
        return np.stack([decorrelated(one, passes, least) for one in x]) if len(x) else x
    if x.shape[0] > x.shape[1]:
        return decorrelated(x.T, passes, least).T
    for number in range(passes + 1):
        norms = np.sqrt((x * x).sum(1, keepdims=True))
        x = np.where(norms <= (least if number else 0.0), 0.0, x / np.where(norms > 0, norms, 1.0))
        if number < passes:
            lower = np.tril(x @ x.T, -1) + np.eye(len(x))
            x = np.asarray(np.linalg.solve(lower, x), np.float64)
    return x


def eigenbasis(matrices: NDArray[Any]) -> NDArray[np.float64]:
    """The eigenvectors of a symmetric matrix (n, n), or of every matrix of a stack, from that of the largest eigenvalue on.

    Those of eigenvalues of 0 are unit vectors made orthogonal to the others, as `steprule.matrix.eigen` has them.

    >>> eigenbasis(np.diag([1.0, 4.0]))
    array([[0., 1.],
           [1., 0.]])
    """
    x: NDArray[np.float64] = np.array(matrices, np.float64)
    if x.ndim > 2:
        return np.stack([eigenbasis(one) for one in x]) if len(x) else x
    if not np.isfinite(x).all():
        return np.full_like(x, np.nan)
    values, vectors = _eigen(x)
    rank = int((values > _LEAST * max(values[0], 0.0)).sum())
    basis = [*vectors.T[:rank]]
    for row in np.sort(_left_over(vectors[:, :rank])):
        rest = np.eye(len(x))[row]
        for _ in range(2):
            rest = rest - sum((one @ rest) * one for one in basis)
        basis.append(rest / np.sqrt(rest @ rest))
    return np.stack(basis, 1)


def inverse_root(matrices: NDArray[Any], root: float, eps: float = 0.0) -> NDArray[np.float64]:
    """A symmetric matrix (n, n), or every matrix of a stack, to the power of -1 / root; eigenvalues of 0 remain 0.

    >>> inverse_root(np.diag([16.0, 0.0]), 4)
    array([[0.5, 0. ],
           [0. , 0. ]])
    """
    x: NDArray[np.float64] = np.array(matrices, np.float64)
    if x.ndim > 2:
        return np.stack([inverse_root(one, root, eps) for one in x]) if len(x) else x
    if not np.isfinite(x).all():
        return np.full_like(x, np.nan)
    values, vectors = _eigen(x)
    is_some = values > _LEAST * max(values[0], 0.0)
    powers = np.where(is_some, np.where(is_some, values + eps, 1.0) ** (-1 / root), 0.0)
    return np.asarray(vectors * powers @ vectors.T)


def largest_eigenvalue(matrices: NDArray[Any]) -> NDArray[np.float64]:
    """About the largest eigenvalue of a symmetric matrix (n, n), or of every matrix of a stack, of shape (1, 1) or (k, 1, 1).

    >>> largest_eigenvalue(np.diag([1.0, 4.0]))
    array([[4.]])
    """
    x: NDArray[np.float64] = np.array(matrices, np.float64)
    if x.ndim > 2:
        return np.stack([largest_eigenvalue(one) for one in x]) if len(x) else x[:, :1, :1]
    if not x.any():
        return np.zeros((1, 1))
    row = x @ x[np.sqrt((x * x).sum(1)).argmax()]
    return np.full((1, 1), np.sqrt(((x @ row) ** 2).sum() / (row * row).sum()))


_LEAST = 16 * 2.0**-52
"""Times the largest eigenvalue: what is not above it counts as 0."""


def _eigen(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    values, vectors = np.linalg.eigh(x)
    return values[::-1], vectors[:, ::-1]


def _left_over(vectors: NDArray[Any]) -> NDArray[Any]:
    """The rows that Gaussian elimination of these columns, with the largest element as the pivot, does not choose."""
    x, order = np.array(vectors), np.arange(len(vectors))
    for column in range(x.shape[1]):
        pivot = column + int(np.abs(x[column:, column]).argmax())
        x[[column, pivot]], order[[column, pivot]] = x[[pivot, column]], order[[pivot, column]]
        x[column + 1 :] -= np.outer(x[column + 1 :, column] / x[column, column], x[column])
    return order[x.shape[1] :]


def singular_values(
    values: NDArray[Any], coefficients: Coefficients = "keller", steps: int | None = None
) -> NDArray[np.float64]:
    """What the polynomial makes of singular values, of any shape, that were divided by the norm already."""
    x = np.array(values, np.float64)
    for a, b, c in polynomial(coefficients, steps):
        x[...] = a * x + b * x**3 + c * x**5
    return x
