"""The kernel of `steprule.matrix.gpu`, for Triton."""

# mypy: ignore-errors
# Triton compiles these; their annotations and operators are its own.

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Triton's interpreter multiplies the bits of bfloat16 numbers."""


@triton.jit
def corner(number):
    """Row and column of a tile: they are numbered along the rows of a lower triangle."""
    row = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > number, row - 1, row)  # a root may be rounded either way
    row = tl.where((row + 1) * (row + 2) // 2 <= number, row + 1, row)
    return row, number - row * (row + 1) // 2


@triton.jit
def symmetric(
    a, b, out, plus, rows, inner, tiles,
    a_stack, a_row, a_column, b_stack, b_row, b_column,
    out_stack, out_row, out_column, plus_stack, plus_row, plus_column,
    alpha, beta, diagonal,
    HAS_PLUS: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr, SIDE: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """One tile of alpha a b + beta plus + diagonal I, and its mirror image."""
    number = (tl.program_id(0) // tiles).to(tl.int64)
    tile_row, tile_column = corner(tl.program_id(0) % tiles)
    i = tile_row * SIDE + tl.arange(0, SIDE)
    j = tile_column * SIDE + tl.arange(0, SIDE)
    k = tl.arange(0, INNER)
    i_in, j_in = i % rows, j % rows  # rows beyond the last are read from its start, and not written
    a_at = a + number * a_stack + i_in[:, None] * a_row + k[None, :] * a_column
    b_at = b + number * b_stack + k[:, None] * b_row + j_in[None, :] * b_column
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for first in range(0, inner, INNER):
        if EVEN:
            left, right = tl.load(a_at), tl.load(b_at)
        else:
            inside = k < inner - first
            left = tl.load(a_at, mask=inside[None, :], other=0.0)
            right = tl.load(b_at, mask=inside[:, None], other=0.0)
        if INTERPRETED:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee" if EXACT else "tf32")
        a_at += INNER * a_column
        b_at += INNER * b_row
    total = total * alpha
    written = (i < rows)[:, None] & (j < rows)[None, :]
    if HAS_PLUS:
        plus_at = plus + number * plus_stack + i_in[:, None] * plus_row + j_in[None, :] * plus_column
        total += tl.load(plus_at).to(tl.float32) * beta
    total = tl.where(i[:, None] == j[None, :], total + diagonal, total)
    value = total.to(out.dtype.element_ty)
    out += number * out_stack
    tl.store(out + i[:, None] * out_row + j[None, :] * out_column, value, mask=written)
    if tile_row != tile_column:
        at = out + j[:, None] * out_row + i[None, :] * out_column
        tl.store(at, tl.trans(value), mask=(j < rows)[:, None] & (i < rows)[None, :])
