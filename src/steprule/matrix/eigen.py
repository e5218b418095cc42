"""Eigenvectors and inverse roots of symmetric matrices whose eigenvalues are not negative, also where many of them are 0."""

from __future__ import annotations

import torch
from torch import Tensor

NOISE = 16.0
"""Units of the dtype, times the largest eigenvalue: what is not above it is rounding, and counts as 0."""


@torch.no_grad()
def eigenbasis(stack: Tensor) -> Tensor:
    """The eigenvectors of each matrix as columns, that of the largest eigenvalue first.

    Where eigenvalues are 0 any vectors would do that span what the others leave, and a library gives others with each version. Here
    they are unit vectors, as far as can be: those that a triangular factorization of the other eigenvectors leaves over, in order,
    made orthogonal to all before them. Equal eigenvalues that are not 0 are left as the library has them. What is not finite has a
    basis of NaN.

    Args:
        stack: (n, n) or (k, n, n) in float32 or float64.

    >>> eigenbasis(torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]])).abs()
    tensor([[0., 1., 0.],
            [1., 0., 0.],
            [0., 0., 1.]])
    """
    _values, vectors, ranks = _decomposed(stack)
    least = min(ranks, default=stack.shape[-1])
    if least == stack.shape[-1]:
        return vectors
    if stack.dim() == 2:
        return completed(vectors[:, :least])
    return torch.stack([completed(one[:, :rank]) for one, rank in zip(vectors, ranks, strict=True)])


@torch.no_grad()
def inverse_root(stack: Tensor, root: float | Tensor, eps: float | Tensor = 0.0) -> Tensor:
    """The inverse root of each matrix, of its eigenvalues plus eps; eigenvalues of 0 remain 0.

    Args:
        stack: (n, n) or (k, n, n) in float32 or float64.
        root: 4 for the power of -1/4; of shape (k, 1, 1) where each matrix has its own.
        eps: is added to eigenvalues that are not 0; as root.

    >>> inverse_root(torch.tensor([[16.0, 0.0], [0.0, 0.0]]), 4)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.0000]])
    """
    values, vectors, ranks = _decomposed(stack)
    root, eps = (one.squeeze(-1) if isinstance(one, Tensor) and one.dim() == 3 else one for one in (root, eps))
    place = torch.arange(stack.shape[-1], device=stack.device)
    is_some = place < torch.tensor(ranks, device=stack.device).view(*stack.shape[:-2], 1)
    powers = torch.where(is_some, values.clamp(min=0) + eps, 1.0).pow(-1 / root)
    return (vectors * torch.where(is_some, powers, 0.0).unsqueeze(-2)) @ vectors.mT


@torch.no_grad()
def largest_eigenvalue(stack: Tensor) -> Tensor:
    """About the largest eigenvalue of each matrix, and never more; see `steprule.matrixwise.largest_eigenvalue`.

    Args:
        stack: (n, n) or (k, n, n) in float32 or float64.

    Returns:
        (1, 1) or (k, 1, 1).

    >>> largest_eigenvalue(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
    tensor([[4.]])
    """
    scale = stack.abs().amax((-2, -1), keepdim=True)  # so that no square is too large, or too small
    unit = stack / torch.where(scale == 0, 1.0, scale)
    longest = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).argmax(-2, keepdim=True)
    row = unit.take_along_dim(longest, -2) @ unit
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    row = row / torch.where(length == 0, 1.0, length)
    largest: Tensor = scale * torch.linalg.vector_norm(row @ unit, dim=-1, keepdim=True)
    return largest


def _decomposed(stack: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Eigenvalues from the largest on, eigenvectors, and how many of each matrix's eigenvalues are above 0."""
    finite = stack.isfinite().flatten(-2).all(-1)
    if not bool(finite.all()):  # which the library would raise for, in the middle of a step
        whole = torch.where(finite[..., None, None], stack, 0.0)
        values, vectors, ranks = _decomposed(whole)
        spoilt = values.new_zeros(finite.shape).masked_fill(~finite, torch.nan)
        known = finite.reshape(-1).tolist()
        ranks = [rank if is_known else stack.shape[-1] for rank, is_known in zip(ranks, known, strict=True)]
        return values + spoilt[..., None], vectors + spoilt[..., None, None], ranks
    if stack.numel() and not stack.any():
        values, vectors = (
            stack.diagonal(dim1=-2, dim2=-1),
            torch.eye(stack.shape[-1], dtype=stack.dtype, device=stack.device).expand(stack.shape),
        )
        return values, vectors, [0] * finite.numel()
    try:
        values, vectors = torch.linalg.eigh(stack)
    except RuntimeError:  # float32 may be too little for the iteration to end
        values, vectors = (x.to(stack.dtype) for x in torch.linalg.eigh(stack.double()))
    values, vectors = values.flip(-1), vectors.flip(-1)
    least = NOISE * torch.finfo(stack.dtype).eps * values[..., :1]
    ranks = (values > least.clamp(min=0)).sum(-1).reshape(-1).tolist()
    return values, vectors, ranks


def completed(vectors: Tensor) -> Tensor:
    """A basis whose first vectors these are; the others are the unit vectors that go with them, made orthogonal.

    Args:
        vectors: (n, r), orthogonal and of length 1.

    Returns:
        (n, n).
    """
    size, rank = vectors.shape
    if rank == 0:
        return torch.eye(size, dtype=vectors.dtype, device=vectors.device)
    _factors, swaps = torch.linalg.lu_factor(vectors)
    order = torch.arange(size, device="cpu")
    for row, other in enumerate((swaps.cpu() - 1).tolist()):
        order[[row, other]] = order[[other, row]]
    left = order[rank:].sort().values.to(vectors.device)
    rest = -(vectors @ vectors[left].mT)
    rest[left, torch.arange(size - rank, device=vectors.device)] += 1
    for _ in range(2):  # the second time for what rounding has left of the others
        rest = rest - vectors @ (vectors.mT @ rest)
        rest, upper = torch.linalg.qr(rest)
        rest = torch.where(upper.diagonal() < 0, -rest, rest)
    return torch.cat([vectors, rest], 1)
