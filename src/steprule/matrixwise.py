"""Functions of a whole matrix: sums along rows and columns, products, eigenvectors and polar factors.

A rule that uses one sees its parameter as a matrix of m rows and n columns. What there is one of for each row has the shape (m, 1), and
for each column (1, n), so that both broadcast against the matrix. Called by hand, a function takes a matrix, or a stack (k, m, n).
"""

from __future__ import annotations

import math
import sys
from importlib import import_module
from typing import Any

import numpy as np

from steprule.elementwise import Value, is_tensor, whole_number


def row_total(x: Value) -> Value:
    """The sum of each row, ``Σ_j x_ij``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (m, 1).

    Examples:
        >>> from steprule.pieces import row_total
        >>> row_total(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[3.],
               [7.]])
    """
    return _along("row_total", x, -1)


def col_total(x: Value) -> Value:
    """The sum of each column, ``Σ_i x_ij``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (1, n).

    Examples:
        >>> from steprule.pieces import col_total
        >>> col_total(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[4., 6.]])
    """
    return _along("col_total", x, -2)


def row_mean(x: Value) -> Value:
    """The mean of each row, ``Σ_j x_ij / n``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (m, 1).

    Examples:
        >>> from steprule.pieces import row_mean
        >>> row_mean(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[1.5],
               [3.5]])
    """
    return row_total(x) / cols(x)


def col_mean(x: Value) -> Value:
    """The mean of each column, ``Σ_i x_ij / m``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (1, n).

    Examples:
        >>> from steprule.pieces import col_mean
        >>> col_mean(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[2., 3.]])
    """
    return col_total(x) / rows(x)


def row_largest(x: Value) -> Value:
    """The largest absolute value of each row, ``max_j |x_ij|``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (m, 1).

    Examples:
        >>> from steprule.pieces import row_largest
        >>> row_largest(np.array([[1.0, 2.0], [-4.0, 3.0]]))
        array([[2.],
               [4.]])
    """
    return _along("row_largest", x, -1)


def col_largest(x: Value) -> Value:
    """The largest absolute value of each column, ``max_i |x_ij|``.

    Args:
        x: of shape (m, n).

    Returns:
        Shape (1, n).

    Examples:
        >>> from steprule.pieces import col_largest
        >>> col_largest(np.array([[1.0, 2.0], [-4.0, 3.0]]))
        array([[4., 3.]])
    """
    return _along("col_largest", x, -2)


def top_share(x: Value, share: Value) -> Value:
    """1 for the largest of the rows' or columns' values, 0 for the others: for ``max(1, ⌈share k⌉)`` of k; of equal ones for the first.

    Args:
        x: a value for each row, of shape (m, 1), or for each column, (1, n).
        share: above 0, and 1 at most.

    Returns:
        The shape of x.

    Examples:
        >>> from steprule.pieces import top_share
        >>> top_share(np.array([[1.0, 4.0, 2.0, 3.0]]), 0.5)
        array([[0., 1., 0., 1.]])
    """
    if hasattr(x, "__steprule__"):
        return x.__steprule__("top_share", x, share)
    x = _matrix(x)
    if 1 not in x.shape[-2:]:
        raise TypeError(f"top_share takes values of rows, (m, 1), or columns, (1, n), not the shape {tuple(x.shape)}")
    axis = -1 if x.shape[-2] == 1 else -2
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} must be above 0, and 1 at most")
    count = max(1, math.ceil(float(share) * x.shape[axis]))
    if is_tensor(x):
        order = x.argsort(dim=axis, descending=True, stable=True).narrow(axis, 0, count)
        return x.new_zeros(x.shape).scatter_(axis, order, 1.0)
    chosen = np.zeros(x.shape)
    np.put_along_axis(chosen, np.argsort(-x, axis, "stable").take(range(count), axis), 1.0, axis)
    return chosen


def rows(x: Value) -> Value:
    """How many rows a matrix has, ``m``: the outputs of a linear layer's weight.

    Args:
        x: of shape (m, n).

    Examples:
        >>> from steprule.pieces import rows
        >>> rows(np.zeros((2, 3)))
        2
    """
    return x.__steprule__("rows", x) if hasattr(x, "__steprule__") else _matrix(x).shape[-2]


def cols(x: Value) -> Value:
    """How many columns a matrix has, ``n``: the inputs of a linear layer's weight.

    Args:
        x: of shape (m, n).

    Examples:
        >>> from steprule.pieces import cols
        >>> cols(np.zeros((2, 3)))
        3
    """
    return x.__steprule__("cols", x) if hasattr(x, "__steprule__") else _matrix(x).shape[-1]


def transpose(x: Value) -> Value:
    """The transpose, ``Xᵀ``.

    Args:
        x: of shape (m, n), (m, 1) or (1, n).

    Examples:
        >>> from steprule.pieces import transpose
        >>> transpose(np.array([[1.0, 2.0]]))
        array([[1.],
               [2.]])
    """
    return x.__steprule__("transpose", x) if hasattr(x, "__steprule__") else _matrix(x).swapaxes(-1, -2)


def matmul(a: Value, b: Value) -> Value:
    """The product of two matrices, ``A B``; in a rule ``a @ b`` is the same.

    A matrix of one number is that number times the identity: it stands for a side that is too long to have a matrix. Where a rule
    is called by hand, ``@`` is the arrays' own, which refuse that: a rule that has such matrices writes ``matmul``.

    Args:
        a: of shape (m, k), or (1, 1).
        b: of shape (k, n), or (1, 1).

    Examples:
        >>> from steprule.pieces import matmul
        >>> matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
        array([[11.]])
    """
    for value in (a, b):
        if hasattr(value, "__steprule__"):
            return value.__steprule__("matmul", a, b)
    a, b = _matrix(a), _matrix(b)
    return a * b if (1, 1) in (tuple(a.shape[-2:]), tuple(b.shape[-2:])) else a @ b


def gram(x: Value, max_side: Value | None = None) -> Value:
    """The Gram matrix of the rows, ``X Xᵀ``.

    Args:
        x: of shape (m, n).
        max_side: with more rows than this the result is 1, of shape (1, 1), which stands for the identity. Default: no limit.

    Returns:
        Shape (m, m), symmetric.

    Examples:
        >>> from steprule.pieces import gram
        >>> gram(np.array([[3.0, 4.0]]))
        array([[25.]])
    """
    if hasattr(x, "__steprule__"):
        return x.__steprule__("gram", x) if max_side is None else x.__steprule__("gram", x, max_side)
    x = _matrix(x)
    if max_side is not None and x.shape[-2] > max_side:
        shape = (*x.shape[:-2], 1, 1)
        return x.new_ones(shape) if is_tensor(x) else np.ones(shape)
    return x @ x.swapaxes(-1, -2)


def eigenbasis(x: Value) -> Value:
    """The eigenvectors of a symmetric matrix as columns, that of the largest eigenvalue first.

    Where eigenvalues are 0, any basis of what the other vectors leave would do; here it is made of unit vectors.

    Args:
        x: of shape (n, n), symmetric, with no eigenvalue below 0.

    Returns:
        Shape (n, n).

    Examples:
        >>> from steprule.pieces import eigenbasis
        >>> eigenbasis(np.array([[1.0, 0.0], [0.0, 4.0]]))
        array([[0., 1.],
               [1., 0.]])
    """
    return _of_square("eigenbasis", x)


def inverse_root(x: Value, root: Value, eps: Value = 0.0) -> Value:
    """The inverse root of a symmetric matrix, ``(X + ε I)^(-1/p)``, of its eigenvalues above 0.

    Where an eigenvalue is 0, or is above it by nothing but rounding, the root's is 0 too: it is a pseudo-inverse.

    Args:
        x: of shape (n, n), symmetric, with no eigenvalue below 0.
        root: ``p``.
        eps: ``ε``, added to eigenvalues.

    Returns:
        Shape (n, n), symmetric.

    Examples:
        >>> from steprule.pieces import inverse_root
        >>> inverse_root(np.array([[16.0, 0.0], [0.0, 0.0]]), 4)
        array([[0.5, 0. ],
               [0. , 0. ]])
    """
    if not hasattr(x, "__steprule__") and not (np.asarray(root > 0).all() and np.asarray(eps >= 0).all()):
        raise ValueError(f"root={root!r} must be above 0, and eps={eps!r} 0 or above")
    return _of_square("inverse_root", x, root, eps)


def largest_eigenvalue(x: Value) -> Value:
    """About the largest eigenvalue of a symmetric matrix, and never more: ``‖X X x‖ / ‖X x‖``, where x is its longest row.

    It is exact for a matrix of rank 1, and the nearer, the further the largest is above the others. ``total`` makes a number of it.

    Args:
        x: of shape (n, n), symmetric, with no eigenvalue below 0.

    Returns:
        Shape (1, 1), which stands for that number times the identity.

    Examples:
        >>> from steprule.pieces import gram, largest_eigenvalue
        >>> largest_eigenvalue(gram(np.array([[0.0, 2.0], [1.0, 0.0]])))
        array([[4.]])
    """
    return _of_square("largest_eigenvalue", x)


def polar(x: Value, coefficients: Any = "keller", steps: Value | None = None, eps: float = 1e-7) -> Value:
    """About the nearest matrix whose singular values are all 1, by Newton-Schulz: ``U Vᵀ`` of ``X = U S Vᵀ``.

    ``X_0 = X / max(‖X‖, eps)``, then for each step ``A = X Xᵀ; X ← a X + (b A + c A²) X``. Jordan 2024,
    kellerjordan.github.io/posts/muon. The published coefficients do not end at 1: those of "keller" leave singular values between
    0.7 and 1.2. A matrix of zeros stays one.

    Args:
        x: of shape (m, n).
        coefficients: the name of a published set, see `steprule.matrix.coefficients`, or (a, b, c), or one for each step.
        steps: how many. Default: as many as the set has; 5 for one (a, b, c).
        eps: the least norm to divide by.

    Returns:
        Shape (m, n), in float64 where x is a NumPy array. Tensors are computed as `steprule.matrix.polar` chooses.

    Raises:
        ValueError: there is no such set, or not with so many steps.

    Examples:
        >>> from steprule.pieces import polar
        >>> polar(np.array([[2.0, 0.0], [0.0, 2.0]]), "deepseek").round(2)
        array([[1., 0.],
               [0., 1.]])
    """
    coefficients = coefficients.tolist() if isinstance(coefficients, np.ndarray) else coefficients
    if hasattr(x, "__steprule__"):
        return x.__steprule__("polar", x, coefficients, steps, eps)
    if not eps >= 0:
        raise ValueError(f"eps={eps!r} must be 0 or above")
    is_plain = isinstance(coefficients, str) or isinstance(coefficients[0], (tuple, list))
    coefficients = coefficients if is_plain else tuple(map(float, coefficients))
    own = import_module(f"steprule.matrix.{'polar' if is_tensor(x) else 'oracle'}").polar
    if is_tensor(x):
        stack = _matrix(x).unsqueeze(0).flatten(0, -3)
        return own(stack, coefficients, steps, eps=float(eps)).to(x.dtype).reshape(x.shape)
    return own(_matrix(x), coefficients, steps, float(eps))


def decorrelate(x: Value, passes: Value = 1) -> Value:
    """The rows of a matrix, of its transpose if that is shorter, made less alike by triangular solves.

    A pass is ``X ← X / row norms; T = tril(X Xᵀ); X ← T⁻¹ X; X ← X / row norms``. Southworth & Thomas 2026,
    arXiv:2603.17970. Rows of 0, and rows that are sums of those before them, become 0.

    Args:
        x: of shape (m, n).
        passes: how many.

    Returns:
        Shape (m, n).

    Examples:
        >>> from steprule.pieces import decorrelate
        >>> decorrelate(np.array([[2.0, 0.0], [3.0, 3.0]]))
        array([[1., 0.],
               [0., 1.]])
    """
    if hasattr(x, "__steprule__"):
        return x.__steprule__("decorrelate", x, passes)
    number = whole_number("passes", passes)
    own = import_module(f"steprule.matrix.{'decorrelated' if is_tensor(x) else 'oracle'}").decorrelated
    wide = x.float() if is_tensor(x) and x.dtype.itemsize <= 2 else x
    return own(_matrix(wide), number).to(x.dtype) if is_tensor(x) else own(_matrix(x), number)


def _along(name: str, x: Value, axis: int) -> Value:
    """A sum, in float64, or a largest absolute value along rows or columns."""
    is_largest = name.endswith("largest")
    if hasattr(x, "__steprule__"):
        return x.__steprule__(name, abs(x) if is_largest else x)
    x = _matrix(x)
    if is_largest:
        return abs(x).amax(axis, keepdim=True) if is_tensor(x) else np.max(abs(x), axis, keepdims=True, initial=0.0)
    if is_tensor(x):
        return x.sum(axis, keepdim=True, dtype=sys.modules["torch"].float64).to(x.dtype)
    return np.sum(x, axis, dtype=np.float64, keepdims=True)


def _of_square(name: str, x: Value, *numbers: Value) -> Value:
    """What `steprule.matrix.eigen` makes of tensors, and `steprule.matrix.oracle` of arrays."""
    if hasattr(x, "__steprule__"):
        return x.__steprule__(name, x, *numbers)
    own = getattr(import_module(f"steprule.matrix.{'eigen' if is_tensor(x) else 'oracle'}"), name)
    return own(_matrix(x), *(one if getattr(one, "ndim", 0) > 0 else float(one) for one in numbers))


def _matrix(x: Value) -> Any:
    """A matrix, or a stack of them; raises for what is none."""
    x = x if is_tensor(x) else np.asarray(x, np.float64)
    if x.ndim < 2:
        raise TypeError(f"a matrix has two dimensions or more, and this has the shape {tuple(x.shape)}")
    return x
