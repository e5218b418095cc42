"""PTX of the formats, done step by step in Python, beside the same conversions of whole tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from steprule.formats.tensors import decode, encode

assembly = pytest.importorskip("steprule.formats.gpu_assembly")  # Triton's constants

Bits = npt.NDArray[np.uint32]
generator = np.random.default_rng(0)


def permute(a: Bits, b: Bits, selector: Bits) -> Bits:
    """PTX's prmt: four bytes of eight, or their sign bits in all eight places."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << 32
    result = np.zeros_like(a)
    for place in range(4):
        way = int(selector.flat[0]) >> 4 * place & 15
        byte = (both >> 8 * (way & 7)).astype(np.uint32) & 255
        result |= np.where(way & 8, (byte >> 7) * 255, byte).astype(np.uint32) << 8 * place
    return result


OPERATIONS: dict[str, Callable[..., Bits]] = {
    "prmt.b32": permute,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "not.b32": np.bitwise_not,
    "shl.b32": np.left_shift,
    "add.u32": np.add,
    "sub.u32": np.subtract,
    "mad.lo.u32": lambda a, b, c: a * b + c,
}


def done(text: str, *operands: npt.NDArray[np.generic], results: int) -> list[Bits]:
    """What a text computes of many elements at once, each in a register of its own or with others in one."""
    registers = {f"${results + i}": operand.view(np.uint32) for i, operand in enumerate(operands)}
    like = next(iter(registers.values()))

    def value(word: str) -> Bits:
        return registers[word] if word in registers else np.full_like(like, int(word, 0))

    for line in re.sub(r"[{}]|\.reg[^;]*;", "", text).split(";"):
        if line.strip():
            operation, _, words = line.strip().partition(" ")
            target, *sources = (word.strip() for word in words.split(","))
            registers[target] = OPERATIONS[operation](*map(value, sources))
    return [registers[f"${i}"] for i in range(results)]


def apart(x: npt.NDArray[np.generic], count: int) -> list[npt.NDArray[np.generic]]:
    """One register for each of so many neighbors, or of what is in four bytes."""
    return [np.ascontiguousarray(x.reshape(-1, count)[:, i]) for i in range(count)]


def halves_and_low_bits() -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int8]]:
    """All pairs of low bits with halves of each kind: zeros, small, large, infinite and no numbers."""
    high = [0, 1, 2, 0x7F, 0x80, 0x3F80, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF]
    both = itertools.product([*high, *(0x8000 + one for one in high)], range(-128, 128))
    pairs = generator.permutation(np.array(list(both)))
    return pairs[:, 0].astype(np.uint16), pairs[:, 1].astype(np.int8)


def test_halves_and_low_bits_are_joined():
    high, low = halves_and_low_bits()
    pairs = [np.ascontiguousarray(high.reshape(-1, 4)[:, i : i + 2]).view(np.uint32)[:, 0] for i in (0, 2)]
    joined = done(assembly.JOIN24.value, *pairs, low.view(np.uint32), results=4)
    found = np.stack(joined, 1).reshape(-1)
    arrays = {"": torch.from_numpy(high.view(np.int16)).view(torch.bfloat16), "_correction": torch.from_numpy(low)}
    wanted = decode("bfloat16 24bit", arrays, high.shape).numpy().view(np.uint32)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("random", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_weights_are_split(random):
    bits = generator.integers(0, 2**32, 2**16, dtype=np.uint32)
    bits[:8] = [0, 2**31, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001]
    x = torch.from_numpy(bits.view(np.float32))
    wanted = encode("bfloat16 24bit", x, random)
    canonical = np.where(np.isnan(x.numpy()), np.uint32(0x7FC00000), bits)
    rounded = canonical + np.uint32((random >> 24) + 0x8000)
    (high,) = done(assembly.HIGH24.value, *apart(rounded, 2), results=1)
    (low,) = done(assembly.LOW24.value, *apart(rounded, 4), results=1)
    np.testing.assert_array_equal(high.view(np.int16), wanted[""].view(torch.int16).numpy())
    np.testing.assert_array_equal(low.view(np.int8), wanted["_correction"].numpy())


def test_codes_have_the_signs_of_numbers():
    codes, signs = (x.reshape(-1) for x in np.meshgrid(np.arange(256, dtype=np.uint32), np.arange(4)))
    order = generator.permutation(len(codes))
    codes, bits = codes[order], np.array([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)[signs[order]]
    (found,) = done(assembly.WITH_SIGN.value, *apart(codes, 4), *apart(bits, 4), results=1)
    wanted = np.where(bits >> 31, -codes.astype(np.int64), codes).astype(np.int8)
    np.testing.assert_array_equal(found.view(np.int8), wanted)


def test_bfloat16_and_exponents_go_to_the_top():
    halves = np.arange(2**16, dtype=np.uint16)
    low, high = done(assembly.FROM_BFLOAT16.value, halves.view(np.uint32), results=2)
    np.testing.assert_array_equal(np.stack([low, high], 1).reshape(-1), halves.astype(np.uint32) << 16)
    exponents = np.arange(2048, dtype=np.uint32)
    np.testing.assert_array_equal(done(assembly.SHIFTED.value, exponents, results=1)[0], exponents << 20)
