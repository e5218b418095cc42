"""What generated GPU kernels are made of, whatever the formats: memory, bits, comparisons and sums over a tile."""

# mypy: ignore-errors
# Triton compiles these; their annotations and operators are its own.

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

inf, nan = tl.constexpr(float("inf")), tl.constexpr(float("nan"))
PTX = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1" and torch.version.hip is None)
"""Whether kernels may have NVIDIA's assembly: it says what Triton's language cannot, and computes nothing else."""


_STORE16 = tl.constexpr("{ .reg .pred told; setp.ne.s32 told, $3, 0; @told st.global.b16 [$1], $2; mov.b32 $0, 0; }")
_STORE64 = tl.constexpr("{ .reg .pred told; setp.ne.s32 told, $3, 0; @told st.global.b64 [$1], $2; mov.b32 $0, 0; }")


# Memory, of which a tile sees all (inside is None) or a part.


@triton.jit
def load(at, inside):
    if inside is None:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0)


@triton.jit
def store(at, value, inside):
    if inside is None:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=inside)


@triton.jit
def store_from_here(at, value, inside, text: tl.constexpr, kinds: tl.constexpr):
    """Stores what threads have in common from where it is: tl.store would first bring it to others, and all would wait."""
    told = tl.full(value.shape, 1, tl.int32) if inside is None else inside.to(tl.int32)
    tl.inline_asm_elementwise(text, kinds, [at, value, told], tl.int32, False, 1)


@triton.jit
def store_exponent(at, value, inside):
    """Stores the exponent of each block."""
    if not PTX:
        store(at, value, inside)
    else:
        store_from_here(at, value, inside, _STORE16, "=r,l,h,r")


@triton.jit
def store_of_row(at, value, inside):
    """Stores a float64 of each row."""
    if not PTX:
        store(at, value, inside)
    else:
        bits = value.to(tl.int64, bitcast=True)  # a pointer and a float64 cannot be arguments of one assembly
        store_from_here(at, bits, inside, _STORE64, "=r,l,l,r")


@triton.jit
def only(x, inside):
    """x, and 0 outside."""
    if inside is None:
        return x
    else:
        return tl.where(inside, x, 0)


@triton.jit
def row_of(start, i, row):
    """The rows of a tile's elements; a tile that is no longer than a row meets two at most."""
    first = start // row
    behind = start - first * row
    size: tl.constexpr = i.shape[0]
    short = (behind + i).to(tl.int32) // tl.minimum(row, size).to(tl.int32)
    return first + tl.where(row >= size, (i >= row - behind).to(tl.int32), short)


# Bits.


@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def bits_as_number(x):
    """The bits of x, taken for a whole number, as a number of x's type."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True).to(tl.float64)
    else:
        return x.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def number_as_bits(x):
    """The number whose bits are those of the whole number x, which is rounded towards 0."""
    if x.dtype == tl.float64:
        return x.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return x.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def magnitude_bits(x):
    """The bits of the absolute value; NaN's are larger than any."""
    return bits_of(x) & 0x7FFFFFFF


# Scalars of a formula, in float64.


@triton.jit
def power(x, y):
    """x ** y, as Python has it but for NaN where that raises."""
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    size = tl.exp(y * tl.log(tl.where(x == 0.0, 1.0, tl.abs(x))))
    size = tl.where(x == 0.0, tl.where(y > 0.0, 0.0, float("inf")), size)
    signed = tl.where(x < 0.0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
    return tl.where(y == 0.0, 1.0, signed)


# Comparisons of elements that let NaN through.


@triton.jit
def larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    return tl.where((a < b) | (a != a), a, b)


# Sums over a tile, or over its rows: one for each, as a column.


@triton.jit
def sum_of(x, inside, axis: tl.constexpr = None):
    return tl.sum(only(x, inside), axis=axis, keep_dims=axis is not None).to(tl.float64)


@triton.jit
def largest_of(x, inside, axis: tl.constexpr = None):
    """The largest absolute value, NaN if there is one."""
    bits = only(magnitude_bits(x.to(tl.float32)).to(tl.int32), inside)
    return float_of(tl.max(bits, axis=axis, keep_dims=axis is not None)).to(tl.float64)


@triton.jit
def maximum_of(x, axis: tl.constexpr = None):
    """The largest number, NaN if there is one."""
    keep: tl.constexpr = axis is not None
    wrong = tl.sum(tl.where(x != x, x, 0.0), axis=axis, keep_dims=keep)
    return tl.max(tl.where(x != x, -inf, x), axis=axis, keep_dims=keep) + wrong


@triton.jit
def minimum_of(x):
    """The smallest number, NaN if there is one."""
    return tl.min(tl.where(x != x, inf, x)) + tl.sum(tl.where(x != x, x, 0.0))


@triton.jit
def most_of(x, inside, axis: tl.constexpr):
    """The largest of numbers that are not negative, NaN if there is one."""
    if x.dtype == tl.float64:
        return maximum_of(only(x, inside), axis)
    else:
        return largest_of(x, inside, axis)
