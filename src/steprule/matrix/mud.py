"""Momentum decorrelation: rows made nearly orthogonal by one triangular solve, at a tenth of what a polar factor costs."""

from __future__ import annotations

import torch
from torch import Tensor

from steprule.matrix.polar import largest_power

EPS = 1e-8
"""Rows of a smaller norm count as of this one."""


@torch.no_grad()
def mud(stack: Tensor, passes: int = 1, *, eps: float = EPS) -> Tensor:
    """MUD of every matrix of a stack: Q <- rows of norm 1; Q <- T^-1 Q with T the lower triangle of Q Q^T; rows of norm 1 again.

    T has ones on its diagonal, as rows of norm 1 have, and they are taken as such. So rows of zeros stay zeros, and nothing is divided
    by 0. Where m > n, columns take the place of rows. arXiv:2603.17970, algorithm 1.

    Args:
        stack: (k, m, n) in float32, float64, bfloat16 or float16.
        passes: how often Q is solved for.
        eps: rows of a smaller norm are divided by eps.

    Returns:
        (k, m, n), in float32, or in float64 for a float64 stack.

    >>> mud(torch.tensor([[[2.0, 0.0, 0.0], [3.0, 3.0, 0.0]]])).abs().round(decimals=3)
    tensor([[[1., 0., 0.],
             [0., 1., 0.]]])
    """
    if stack.dim() != 3 or not stack.dtype.is_floating_point:
        raise ValueError(f"stack must be (k, m, n) of floating point, got {tuple(stack.shape)} in {stack.dtype}")
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    x = stack if stack.dtype == torch.float64 else stack.float()
    if not x.numel():
        return x.clone()
    tall = x.shape[1] > x.shape[2]
    q = _unit_rows(x.mT if tall else x, eps)
    for _ in range(passes):
        q = torch.linalg.solve_triangular(q @ q.mT, q, upper=False, unitriangular=True)
        q = _unit_rows(q, eps)
    return q.mT if tall else q


def _unit_rows(x: Tensor, eps: float) -> Tensor:
    """Rows divided by their norms, whatever the size of their elements."""
    power = largest_power(x, -1)
    x = x / power
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.maximum(norms, eps / power).clamp_(min=torch.finfo(x.dtype).tiny)
