"""Symmetric products on a GPU, by Triton: the tiles below the diagonal are computed, and those above are copies."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

DEVICES = {"cuda"}
"""Types of devices whose tensors go to Triton; tests add "cpu", for its interpreter."""


class Tile(NamedTuple):
    """What a program computes and how.

    Attributes:
        side: rows and columns of the result.
        inner: elements of their sums that are read at a time.
        warps: groups of 32 threads.
        stages: reads that are under way at once.
    """

    side: int
    inner: int
    warps: int
    stages: int


SMALL, LARGE = Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)
"""For matrices of fewer than 256 rows, and for others: two tiles of operands and three stages are 96 KiB of shared memory."""


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Whether `symmetric_product` takes tensors that are there."""
    return device.type in DEVICES and _has_triton()


def symmetric_product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    plus: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    diagonal: float = 0.0,
    tile: Tile | None = None,
) -> Tensor:
    """`steprule.matrix.products.product` in one kernel, for results that are known to be symmetric, of any strides.

    Sums are in float32 and rounded once, to the dtype of out. Of float64 they are torch's product.

    Args:
        a: (m, j) or (k, m, j).
        b: (j, m) or (k, j, m).
        out: (m, m) or (k, m, m), none of the others' memory.
        plus: of the shape of out, if beta is not 0.
        alpha: factor of the product.
        beta: factor of plus.
        diagonal: is added where row and column are the same.
        tile: what a program computes; None chooses.
    """
    if out.dtype == torch.float64:
        from steprule.matrix.products import product

        return product(a, b, out, plus, alpha=alpha, beta=beta, diagonal=diagonal)
    from steprule.matrix.gpu_tiles import symmetric

    if out.dim() == 2:
        plus = None if plus is None else plus[None]
        symmetric_product(a[None], b[None], out[None], plus, alpha=alpha, beta=beta, diagonal=diagonal, tile=tile)
        return out
    count, rows, inner = a.shape
    one = tile or (SMALL if rows < 256 else LARGE)
    tiles = -(-rows // one.side)
    added = out if plus is None else plus
    symmetric[(count * tiles * (tiles + 1) // 2,)](
        a, b, out, added, rows, inner, tiles * (tiles + 1) // 2,
        *a.stride(), *b.stride(), *out.stride(), *added.stride(),
        alpha, beta, diagonal,
        HAS_PLUS=plus is not None, EVEN=inner % one.inner == 0, EXACT=out.dtype == torch.float32,
        SIDE=one.side, INNER=one.inner, num_warps=one.warps, num_stages=one.stages, enable_fp_fusion=False,
    )  # fmt: skip
    return out
