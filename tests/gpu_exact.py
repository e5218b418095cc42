"""Kernels that compare `steprule.formats.gpu_exact` with the compiler's operations; only where there is a GPU."""

# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl

from steprule.formats.gpu_exact import divide, sqrt

TILE = 1024


@triton.jit
def differ(a, b):
    """How many numbers have other bits."""
    return tl.sum((a.to(tl.int32, bitcast=True) != b.to(tl.int32, bitcast=True)).to(tl.int32))


@triton.jit
def roots(wrong, TILE: tl.constexpr):
    """Every number's."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    a = i.to(tl.int32).to(tl.float32, bitcast=True)
    tl.atomic_add(wrong, differ(sqrt(a), tl.sqrt_rn(a)))


@triton.jit
def quotients(x, y, wrong, TILE: tl.constexpr):
    """Those of two arrays of bits."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    a, b = tl.load(x + i).to(tl.float32, bitcast=True), tl.load(y + i).to(tl.float32, bitcast=True)
    tl.atomic_add(wrong, differ(divide(a, b), tl.div_rn(a, b)))


def wrong_roots() -> int:
    """Of all floats, how many roots differ."""
    wrong = torch.zeros(1, dtype=torch.int32, device="cuda")
    roots[(2**32 // TILE,)](wrong, TILE=TILE)
    return int(wrong)


def wrong_quotients(generator: torch.Generator, count: int = 2**26) -> int:
    """Of pairs of any bits, and of pairs in the range that is refined, how many quotients differ."""
    wrong = torch.zeros(1, dtype=torch.int32, device="cuda")
    for least, most in ((-(2**31), 2**31), (28 << 23, 153 << 23)):
        pairs = torch.randint(least, most, (2, count), generator=generator, device="cuda", dtype=torch.int64).int()
        quotients[(count // TILE,)](*pairs, wrong, TILE=TILE)
    return int(wrong)
