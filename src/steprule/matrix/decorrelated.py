"""Stacks of matrices whose rows are decorrelated by triangular solves: a tenth of a polar factor's work, and another direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steprule.matrix.polar import SAFE
from steprule.matrix.products import symmetric_product

LOST = 100.0
"""Units of the dtype: a row that is shorter once the others are taken out of it is their sum but for rounding, and becomes 0."""


@torch.no_grad()
def decorrelated(stack: Tensor, passes: int = 1) -> Tensor:
    """The rows of each matrix, of its transpose if that is shorter, made less alike.

    A pass divides rows by their norms, solves ``T Q = X`` with the lower triangle T of ``X X^T``, and divides again: a step of
    Gauss-Seidel. Southworth & Thomas 2026, arXiv:2603.17970. The first row keeps its direction. Rows of 0, and rows that are sums of
    those before them, become 0; T has 1 on its diagonal whatever the rows.

    Args:
        stack: (k, m, n) in float32 or float64.
        passes: how many, 1 or more.

    >>> decorrelated(torch.tensor([[[2.0, 0.0], [3.0, 4.0]]]))
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    if stack.shape[-2] > stack.shape[-1]:
        return decorrelated(stack.mT, passes).mT
    lost = LOST * torch.finfo(stack.dtype).eps
    x = _rows_of_1(stack, 0.0)
    square = x.new_empty((*x.shape[:-1], x.shape[-2]))
    for _ in range(passes):
        symmetric_product(x, x.mT, square)
        # By columns, as LAPACK has matrices, so that none is copied; what is above the diagonal is not read.
        x = torch.linalg.solve_triangular(square.mT, x.mT, left=False, upper=True, unitriangular=True).mT
        x = _rows_of_1(x, lost)
    return x


def _rows_of_1(x: Tensor, least: float) -> Tensor:
    """Rows divided by their norms; those whose norm is least or less are 0."""
    if x.device.type == "cpu" and x.numel():  # where looking at a number waits for nothing
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        low, high = torch.aminmax(norms)
        if float(low) > SAFE and float(high) < math.inf:
            return x * torch.where(norms <= least, 0.0, 1.0 / norms)
    largest = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)  # so that no square is lost or infinite
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norms * largest <= least, 0.0, x / torch.where(norms > 0, norms, 1.0))
