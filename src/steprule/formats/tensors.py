"""Formats as operations on whole torch tensors: for the eager fallback, checkpoints and reading states.

The 8-bit formats in words. A float32's leading bits, its exponent and three bits of the mantissa (bits >> 20), taken as an
integer grow with the number, by one for about every eighth of an octave. A code is such an integer counted from the block
exponent, which is kept as an integer of the same kind and chosen so that the largest number of the block just fits:

- ``positive8``: 255 codes span 32 octaves below the block's largest number. What is smaller is kept at the smallest
  code, so that a second moment is never read back as 0 where others in its block are not: updates become smaller, never
  larger.
- ``signed8``: a sign and 127 codes of ``|x| + offset``, the offset being 16 octaves below the largest number. Codes
  are spaced relative to numbers above it, evenly below, and 0 is exact.

Between two codes the rounding is random, with the mean of what is read back being what was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from steprule.formats import BLOCK, FORMATS, PLACES, WEYL, Numbering, exponent_shape, row_length
from steprule.formats.parts import cut_like, is_sharded, local

HALF_WAY = 1 << 31
"""In place of a random number: rounds to the nearer neighbor."""


def decode(name: str, arrays: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """The numbers that an operand stands for.

    Args:
        name: its format.
        arrays: its tensors by suffix.
        shape: the operand's.

    Returns:
        A tensor of this shape, float32 unless the format is another plain dtype.
    """
    whole = next((x for suffix, x in arrays.items() if suffix != "_base" and is_sharded(x)), None)
    if whole is not None:
        return cut_like(whole, decode(name, {suffix: local(x) for suffix, x in arrays.items()}, local(whole).shape))
    kind = name.split()
    if FORMATS[name].blockwise:
        exponent = _bits_of_exponent(arrays["_base"])
        code = _to_blocks(arrays["_8bit"], shape).int()
        x = ((code.abs() + exponent) << 20).view(torch.float32)
        if name == "signed8":
            x = torch.copysign(x - (exponent << 20).view(torch.float32), code.float())
        return _from_blocks(x, shape)
    own = arrays[""]
    if kind[-1] in ("24bit", "32bit"):
        low = arrays["_correction"]
        if kind[0] == "float16":
            return own.float() + low.float() * _float16_unit(own.float(), 8 if kind[1] == "24bit" else 16)
        high = own.view(torch.int16).int() & 0xFFFF
        # At 0 only others than a weight's own are below, of a weight that somebody has set to 0.
        rest = torch.where((high & 0x7FFF == 0) & (low < 0), 0, low.int())
        bits = ((high << 8) + rest) << 8 if kind[1] == "24bit" else (high << 16) + rest
        return bits.view(torch.float32)
    return own if len(kind) == 1 else own.float()


def encode(name: str, x: Tensor, random: Tensor | int = HALF_WAY) -> dict[str, Tensor]:
    """The arrays of an operand, by suffix, whatever they were before.

    Args:
        name: the format.
        x: the numbers, float32.
        random: 32 random bits: one number, or one for each element where the format asks for that.
    """
    if is_sharded(x):
        return {suffix: cut_like(x, part) for suffix, part in encode(name, local(x), local(random)).items()}
    kind = name.split()
    bits = x.contiguous().view(torch.int32) if x.dtype == torch.float32 else x
    if FORMATS[name].blockwise:
        return _encode_blocks(name, x, random)
    if len(kind) == 1:
        return {"": x.to(getattr(torch, name))}
    if kind[1] in ("dithered", "stochastic"):
        return {"": round_bfloat16(bits, random) if kind[0] == "bfloat16" else _round_float16(x, random)}
    if kind[0] == "float16":
        if kind[1] == "24bit":
            return _split_float16(x, random)
        high = x.half()
        rest = ((x - high.float()) / _float16_unit(high.float(), 16)).round()
        return {"": high, "_correction": rest.nan_to_num(-(2.0**15)).clamp(-(2.0**15), 2.0**15 - 1).to(torch.int16)}
    wide = _unsigned(bits, x)
    if kind[1] == "24bit":
        wide = (wide + (random >> 24)) >> 8
    size, least = (8, torch.int8) if kind[1] == "24bit" else (16, torch.int16)
    high = (wide + (1 << (size - 1))) >> size
    return {"": _as_bits(high).view(torch.bfloat16), "_correction": (wide - (high << size)).to(least)}


def zeros(name: str, like: Tensor) -> dict[str, Tensor]:
    """The arrays of an operand that is 0 everywhere, on the device of a tensor of its shape."""
    if is_sharded(like):
        return {suffix: cut_like(like, part) for suffix, part in zeros(name, local(like)).items()}
    made = {}
    for suffix, dtype in FORMATS[name].arrays:
        if suffix == "_base":
            made[suffix] = like.new_zeros(exponent_shape(like.shape), dtype=torch.int16)
        elif FORMATS[name].blockwise:
            made[suffix] = like.new_zeros(like.shape, dtype=getattr(torch, dtype))
        else:
            made[suffix] = torch.zeros_like(
                like, dtype=getattr(torch, dtype), memory_format=torch.preserve_format, requires_grad=False
            )
    return made


def element_random(key: int, like: Tensor, numbering: Numbering | None = None) -> Tensor:
    """32 random bits for each element of a tensor, by its number.

    Args:
        key: what the bits depend on besides.
        like: the tensor.
        numbering: how its elements are numbered. Default: by row.
    """
    number = torch.arange(like.numel(), device=like.device)
    if numbering is not None:
        number = numbering.first + number // numbering.run * numbering.stride + number % numbering.run
    x = number.bitwise_and_(0xFFFFFFFF) ^ key
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).view(like.shape)


def _unsigned(bits: Tensor, x: Tensor) -> Tensor:
    """A float32's bits as int64, the same for every NaN."""
    return torch.where(x.isnan(), 0x7FC00000, bits.long() & 0xFFFFFFFF)


def _as_bits(high: Tensor) -> Tensor:
    return torch.where(high >= 0x8000, high - 0x10000, high).to(torch.int16)


def round_bfloat16(bits: Tensor, random: Tensor | int) -> Tensor:
    """Adds random bits below those that are kept, and cuts off there: what is cut off is rounded up as often as it is large."""
    high = (_unsigned(bits, bits.view(torch.float32)) + (random >> 16)) >> 16
    return _as_bits(high).view(torch.bfloat16)


def _round_float16(x: Tensor, random: Tensor | int) -> Tensor:
    bits = (_unsigned(x.contiguous().view(torch.int32), x) + (random >> 19)) & 0xFFFFE000
    normal = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).int().view(torch.float32)
    small = torch.copysign((x.abs() * 2.0**24 + _share(random)).floor() * 2.0**-24, x)
    return torch.where(x.abs() < 2.0**-14, small, normal).half()


def _split_float16(x: Tensor, random: Tensor | int) -> dict[str, Tensor]:
    """The arrays of "float16 24bit": the nearest half and the rest, rounded at random.

    A rest that is rounded up to half a spacing is one that the next half has, of as much below it: else weights
    could only sink below the middle between two halves, and never rise above it.
    """
    high = x.half()
    near, unit = high.float(), _float16_unit(high.float(), 8)
    rest = ((x - near) / unit + _share(random)).floor()
    is_next = (rest > 127) & (near < 65504)
    next_high = (near + 128.25 * unit).half()
    next_rest = torch.where(_float16_unit(next_high.float(), 8) == unit, -128.0, -64.0)
    rest = torch.where(is_next, next_rest, rest.nan_to_num(-128.0).clamp(-128, 127))
    return {"": torch.where(is_next, next_high, high), "_correction": rest.to(torch.int8)}


def _share(random: Tensor | int) -> Tensor | float:
    """Random bits as a number from 0 to 1, 1 excluded."""
    return (random >> 8).float() * 2.0**-24 if isinstance(random, Tensor) else (random >> 8) * 2.0**-24


def _float16_unit(half: Tensor, bits: int) -> Tensor:
    """What one unit of the low bits is worth: float16's spacing at a finite number over 2**bits."""
    exponent = half.contiguous().view(torch.int32) & 0x7F800000
    return exponent.clamp(113 << 23, 142 << 23).view(torch.float32) * 2.0 ** (-10 - bits)


def _to_blocks(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows by blocks by places; the last block of a row is filled up with zeros."""
    rows, blocks = exponent_shape(shape)
    flat = x.reshape(rows, row_length(shape))
    return pad(flat, (0, blocks * BLOCK - flat.shape[1])).view(rows, blocks, BLOCK)


def _from_blocks(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.flatten(1)[:, : row_length(shape)].reshape(tuple(shape)).contiguous()


def _bits_of_exponent(exponent: Tensor) -> Tensor:
    return exponent.int().unsqueeze(-1)


def _encode_blocks(name: str, x: Tensor, random: Tensor | int) -> dict[str, Tensor]:
    blocks = _to_blocks(x.float(), x.shape)
    magnitude = blocks.view(torch.int32) & 0x7FFFFFFF
    leading = (magnitude.amax(-1) >> 20).clamp(max=0x7FC)
    exponent = (leading - 125).clamp(min=8) if name == "signed8" else (leading - 254).clamp(min=0)
    floor = exponent.unsqueeze(-1) << 20
    if name == "signed8":
        bits = (magnitude.view(torch.float32) + floor.view(torch.float32)).view(torch.int32)
    else:
        bits = magnitude.clamp(max=0x7FC00000).maximum(floor)
    places = torch.arange(BLOCK, device=x.device) % PLACES
    cut = (random + places * WEYL) & 0xFFFFFFFF if random is not HALF_WAY else places * 0 + HALF_WAY
    code = ((bits.long() + (cut >> 12)) >> 20) - exponent.unsqueeze(-1)
    if name == "signed8":
        code = torch.where(blocks.view(torch.int32) < 0, -code, code)
    dtype = torch.int8 if name == "signed8" else torch.uint8
    return {"_8bit": _from_blocks(code.to(dtype), x.shape), "_base": exponent.to(torch.int16)}
