"""Products of matrices and of stacks of them, into memory that is there already.

A matrix is (m, n), a stack (k, m, n); what is said of one holds for the other. Everything here takes both, of any strides.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

LEAST_ROWS = 128
"""A block of fewer rows makes products slower than what it leaves out."""
MOST_BLOCKS = 6
"""With 3 blocks of rows 2/3 of a product is left, with 6 7/12."""


def blocks_of(rows: int, dtype: torch.dtype) -> int:
    """Into how many blocks of rows a CPU cuts a symmetric product; 1 if that would take longer.

    Products of bfloat16 are so fast that of 3 blocks the threads' waiting for one another takes what is left out.
    """
    blocks = min(MOST_BLOCKS, rows // LEAST_ROWS)
    return blocks if blocks >= (4 if dtype == torch.bfloat16 else 3) else 1


class Product(Protocol):
    """out = alpha a b + beta plus + diagonal I."""

    def __call__(  # noqa: D102
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        plus: Tensor | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 0.0,
        diagonal: float = 0.0,
    ) -> Tensor: ...


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    plus: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    diagonal: float = 0.0,
) -> Tensor:
    """out = alpha a b + beta plus + diagonal I, by torch's product.

    Args:
        a: (m, j).
        b: (j, n).
        out: (m, n), none of the others' memory.
        plus: (m, n), if beta is not 0.
        alpha: factor of the product.
        beta: factor of plus.
        diagonal: is added where row and column are the same.
    """
    if out.stride(-1) != 1 and out.stride(-2) == 1:  # a matrix by columns: its transpose lies as torch writes it
        a, b, out = b.mT, a.mT, out.mT
        plus = None if plus is None else plus.mT
    stacked = out.dim() == 3
    if plus is None:
        (torch.bmm if stacked else torch.mm)(a, b, out=out)
        if alpha != 1:
            out.mul_(alpha)
    else:
        (torch.baddbmm if stacked else torch.addmm)(plus, a, b, beta=beta, alpha=alpha, out=out)
    if diagonal:
        out.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return out


def symmetric_product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    plus: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    diagonal: float = 0.0,
) -> Tensor:
    """What `product` does where the result is known to be symmetric: blocks above the diagonal are copied from below it.

    With 6 blocks of rows, from 768 rows on, it computes 7/12. Matrices of fewer than 384 rows, in bfloat16 of fewer than 512, are not
    cut, nor are those on other devices, where many small products wait for each other.
    """
    rows = out.shape[-1]
    blocks = blocks_of(rows, out.dtype)
    if blocks == 1 or out.device.type != "cpu":
        return product(a, b, out, plus, alpha=alpha, beta=beta, diagonal=diagonal)
    size = -(-rows // blocks)
    for start in range(0, rows, size):
        end = min(start + size, rows)
        below = None if plus is None else plus[..., start:end, :end]
        block = out[..., start:end, :end]
        product(a[..., start:end, :], b[..., :end], block, below, alpha=alpha, beta=beta)
        out[..., :start, start:end].copy_(block[..., :start].mT)
    if diagonal:
        out.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return out
