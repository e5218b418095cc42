"""Formats as Triton functions: what a generated GPU kernel reads and writes numbers with, bit for bit as the CPU's.

Numbers of half precision come and go as their bits. The same conversions on whole tensors, easier to read, are in
`steprule.formats.tensors`.
"""

# mypy: ignore-errors
# Triton compiles these; their annotations and operators are its own.

from __future__ import annotations

import triton
import triton.language as tl

from steprule.formats import FIRST_ELEMENT_KEY as _FIRST_ELEMENT_KEY
from steprule.formats import PLACES as _PLACES
from steprule.formats import WEYL as _WEYL
from steprule.formats.gpu_assembly import *
from steprule.formats.gpu_basics import *
from steprule.formats.gpu_exact import divide, sqrt

FIRST_ELEMENT_KEY = tl.constexpr(_FIRST_ELEMENT_KEY)
PLACES = tl.constexpr(_PLACES)
WEYL = tl.constexpr(_WEYL)


# Pieces of conversions.


@triton.jit
def without_payload(x):
    """x's bits, the same for every NaN, so that rounding cannot carry into the sign."""
    return tl.where(x != x, 0x7FC00000, bits_of(x).to(tl.int64)).to(tl.uint32)


@triton.jit
def share_of(random):
    """Random bits as a number from 0 to 1, 1 excluded."""
    return (random >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def nearest_int(x):
    """The nearest whole number of one below 2**22, ties to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def whole_below(x):
    """The largest whole number that is not above one below 2**22; tl.floor would take the smallest numbers as 0."""
    nearest = nearest_int(x)
    return tl.where(nearest > x, nearest - 1.0, nearest)


# Random numbers.


@triton.jit
def random_bits(seed, step, number):
    """`steprule.formats.mix` of whole float64 numbers and an int64."""
    z = seed.to(tl.int64).to(tl.uint64) * 0x9E3779B97F4A7C15
    z += step.to(tl.int64).to(tl.uint64) * 0xD1B54A32D192ED03 + number.to(tl.uint64) * 0x8CB92BA72F3D8DD7
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return ((z ^ (z >> 31)) >> 32).to(tl.uint32)


@triton.jit
def dither(seed, step, number: tl.constexpr, root: tl.constexpr):
    """`steprule.formats.dither`: the 32 bits that round an operand at a step; root is one of ROOTS."""
    start = random_bits(seed, step * 0.0, (step * 0.0).to(tl.int64) + number)
    turned = step.to(tl.int64).to(tl.uint64) * root
    return (start.to(tl.uint64) + turned).to(tl.uint32)


@triton.jit
def store_places(at, noise, inside):
    """Keeps the first 20 bits of the random number of each place in a block, which are all that is used of it."""
    for place in tl.static_range(PLACES):
        number = noise + (place * WEYL) % 4294967296
        tl.store(at + place, (number.to(tl.uint32) >> 12).to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def of_place(at, block, place):
    """What `store_places` has kept for each element's place in its block. Read for every block anew, or threads would exchange it."""
    places = tl.broadcast_to(place % PLACES, [block.shape[0], place.shape[1]])
    return tl.load(at + places).to(tl.uint32, bitcast=True)


@triton.jit
def element_random(key, i):
    """The random number of element i: Wellons' lowbias32 of its index and the key."""
    x = i.to(tl.uint32) ^ key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def number_of(first, i, shift, run, gap):
    """The numbers of a tile's elements: `steprule.formats.Numbering` with what is left out between two runs."""
    number = first + i + shift
    if gap != 0:
        number += (first + i) // run * gap
    return number


# Half precision.


@triton.jit
def from_bfloat16(bits):
    if not PTX:
        return float_of(bits.to(tl.uint32) << 16)
    else:
        return tl.inline_asm_elementwise(FROM_BFLOAT16, "=&r,=r,r", [bits], tl.float32, True, 2)


@triton.jit
def to_bfloat16(x):
    """To nearest, ties to even."""
    bits = bits_of(x)
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return tl.where(x != x, 0x7FC0, rounded.to(tl.int32)).to(tl.uint16)


@triton.jit
def round_bfloat16(x, random):
    """Up as often as x is near the upper neighbor."""
    return ((without_payload(x) + (random >> 16)) >> 16).to(tl.uint16)


@triton.jit
def from_float16(bits):
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def to_float16(x):
    """To nearest, ties to even."""
    return x.to(tl.float16).to(tl.uint16, bitcast=True)


@triton.jit
def round_float16(x, random):
    """Up as often as x is near the upper neighbor."""
    normal = (without_payload(x) + (random >> 19)) & 0xFFFFE000
    size = tl.abs(x)
    small = size < 6.103515625e-05  # there the spacing is 2**-24
    scaled = tl.where(small, size, 0.0) * 16777216.0 + share_of(random)
    count = scaled.to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    signed = bits_of(count) | (bits_of(x) & 0x80000000)
    return to_float16(float_of(tl.where(small, signed, normal)))


# Split weights: a half that is the weight rounded to nearest, and low bits.


@triton.jit
def rounded24(x, random):
    """The half's 16 bits, nearest to what the first 24 are, and below them the low bits with their sign turned."""
    return without_payload(x) + ((random >> 24) + 0x8000)


@triton.jit
def high24_bfloat16(x, random):
    if not PTX:
        return (rounded24(x, random) >> 16).to(tl.uint16)
    else:
        return tl.inline_asm_elementwise(HIGH24, "=r,r,r", [rounded24(x, random)], tl.uint16, True, 2)


@triton.jit
def low24_bfloat16(x, random):
    """What is left below the half, which is the third byte of what is kept."""
    if not PTX:
        return ((rounded24(x, random) >> 8) ^ 0x80).to(tl.int8)
    else:
        return tl.inline_asm_elementwise(LOW24, "=r,r,r,r,r", [rounded24(x, random)], tl.int8, True, 4)


@triton.jit
def signed_top(high):
    """A half's sign, at the top of 32 bits."""
    return (high.to(tl.uint32) & 0x8000) << 16


@triton.jit
def join24_bfloat16(high, low):
    """At 0 low bits below are none of the weight's: somebody has set it to 0."""
    if not PTX:
        size = tl.maximum(((high & 0x7FFF).to(tl.int32) << 8) + low.to(tl.int32), 0)
        return float_of((size.to(tl.uint32) << 8) | signed_top(high))
    else:
        return tl.inline_asm_elementwise(JOIN24, "=&r,=&r,=&r,=&r,r,r,r", [high, low], tl.float32, True, 4)


@triton.jit
def high32_bfloat16(x):
    return ((without_payload(x) + 0x8000) >> 16).to(tl.uint16)


@triton.jit
def low32_bfloat16(x):
    bits = without_payload(x)
    return (bits - (((bits + 0x8000) >> 16) << 16)).to(tl.int16)


@triton.jit
def join32_bfloat16(high, low):
    size = tl.maximum(((high & 0x7FFF).to(tl.int32) << 16) + low.to(tl.int32), 0)
    return float_of(size.to(tl.uint32) | signed_top(high))


@triton.jit
def float16_unit(half, share: tl.constexpr):
    """What one unit of the low bits is worth: float16's spacing at half (finite, at least its smallest) times a share."""
    exponent = (bits_of(half) & 0x7F800000).to(tl.int32)
    exponent = tl.maximum(tl.minimum(exponent, 142 << 23), 113 << 23)
    return float_of(exponent) * share


@triton.jit
def within(x, top: tl.constexpr):
    """x from -top - 1 to top; NaN is the least."""
    x = tl.where(x < top, x, tl.where(x >= top, top, -top - 1.0))
    return tl.where(x > -top - 1.0, x, -top - 1.0).to(tl.int32)


@triton.jit
def rest_of(x, share: tl.constexpr):
    half = from_float16(to_float16(x))
    return tl.div_rn(x - half, float16_unit(half, share))


@triton.jit
def rest24(x, random):
    return whole_below(rest_of(x, 3.814697265625e-06) + share_of(random))


@triton.jit
def next_float16(half):
    """The float16 above one that is below the largest, or as good as that for the units of low bits."""
    return to_float16(half + 128.25 * float16_unit(half, 3.814697265625e-06))


@triton.jit
def is_next(half, rest):
    """Whether a rest is that of the next half, of as much below it."""
    return (rest > 127.0) & (half < 65504.0)


@triton.jit
def high24_float16(x, random):
    high = to_float16(x)
    half = from_float16(high)
    return tl.where(is_next(half, rest24(x, random)), next_float16(half), high)


@triton.jit
def low24_float16(x, random):
    half, rest = from_float16(to_float16(x)), rest24(x, random)
    above = float16_unit(from_float16(next_float16(half)), 3.814697265625e-06)
    below_next = tl.where(above == float16_unit(half, 3.814697265625e-06), -128, -64)
    return tl.where(is_next(half, rest), below_next, within(rest, 127.0)).to(tl.int8)


@triton.jit
def join24_float16(high, low):
    half = from_float16(high)
    return half + low.to(tl.float32) * float16_unit(half, 3.814697265625e-06)


@triton.jit
def high32_float16(x):
    return to_float16(x)


@triton.jit
def low32_float16(x):
    return within(nearest_int(rest_of(x, 1.4901161193847656e-08)), 32767.0).to(tl.int16)


@triton.jit
def join32_float16(high, low):
    half = from_float16(high)
    return half + low.to(tl.float32) * float16_unit(half, 1.4901161193847656e-08)


# 8 bits: the leading bits of a float32, counted from the block exponent. See steprule.formats.tensors.


@triton.jit
def magnitude(x):
    """The absolute value; one NaN for all, so that rounding cannot carry it into the sign."""
    return float_of(tl.minimum(magnitude_bits(x), 0x7FC00000))


@triton.jit
def exponent_of(top, room: tl.constexpr, least: tl.constexpr):
    first = tl.minimum(top >> 20, 0x7FC)
    return tl.maximum(first - room, least).to(tl.int16)


@triton.jit
def largest_in_block(x, inside):
    """The bits of each block's largest absolute value."""
    return tl.max(only(magnitude_bits(x).to(tl.int32), inside), axis=1, keep_dims=True)


@triton.jit
def signed8_exponent(top):
    return exponent_of(top, 125, 8)


@triton.jit
def positive8_exponent(top):
    return exponent_of(top, 254, 0)


@triton.jit
def shifted(exponent):
    if not PTX:
        return exponent.to(tl.int32).to(tl.uint32) << 20
    else:
        return tl.inline_asm_elementwise(SHIFTED, "=r,r", [exponent.to(tl.uint32)], tl.uint32, True, 1)


@triton.jit
def leading(bits, exponent, random):
    """The leading bits above the block exponent; 20 random ones are added below them, so that what is cut off counts on average."""
    return (bits + (random - shifted(exponent))) >> 20


@triton.jit
def from_signed8(code, exponent):
    wide = code.to(tl.int32)
    x = float_of((tl.abs(wide).to(tl.uint32) << 20) + shifted(exponent)) - float_of(shifted(exponent))
    return float_of(bits_of(x) | (wide.to(tl.uint32) & 0x80000000))


@triton.jit
def with_sign(code, x):
    """Codes from 0 to 127 with the signs of x, as bytes."""
    if not PTX:
        sign = bits_of(x).to(tl.int32, bitcast=True) >> 31
        return ((code.to(tl.int32) ^ sign) - sign).to(tl.int8)
    else:
        return tl.inline_asm_elementwise(WITH_SIGN, "=r,r,r,r,r,r,r,r,r", [code, bits_of(x)], tl.int8, True, 4)


@triton.jit
def to_signed8(x, exponent, random):
    size = float_of(magnitude_bits(x)) + float_of(shifted(exponent))
    return with_sign(leading(bits_of(size), exponent, random), x)


@triton.jit
def from_positive8(code, exponent):
    return float_of((code.to(tl.uint32) << 20) + shifted(exponent))


@triton.jit
def to_positive8(x, exponent, random):
    """The code of a number that `magnitude` gave."""
    return leading(tl.maximum(bits_of(x), shifted(exponent)), exponent, random).to(tl.uint8)
