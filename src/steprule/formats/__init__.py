"""How an operand is stored, and read back.

Formulas compute in float32 whatever the format; a format says what lies in memory between two steps. An operand may
take several arrays. A state in 8 bits is quantized block-wise: it has a code for each element, and an exponent for each
block of `BLOCK` of them. A split weight has a 16-bit half that the model sees, and low bits that it does not.

Stochastic rounding keeps what is smaller than a format's spacing right on average: it rounds up as often as needed. Its
random numbers depend on the seed and the step, for weights also on the parameter and the element, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

BLOCK = 128
"""Elements of a block, which share an exponent: consecutive ones of one row. A row is one index of the first dimension."""

SHORTEST_ROW = 32
"""Tensors with shorter rows keep float32 states, since block exponents would take a good part of what codes save."""

STATE_FORMATS = ("float32", "bfloat16", "8bit")
WEIGHT_FORMATS = ("stochastic", "24bit", "32bit")
HALVES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Format:
    """One operand's storage.

    Attributes:
        arrays: for each array its suffix ("" for one that holds the numbers themselves) and dtype.
        load: the number at i, as an expression of a kernel.
        store: what each array's i receives, as expressions of ``x``, and ``random`` where the rounding is random.
        blockwise: whether each block of elements has an exponent, kept in the array with the suffix "_base".
        random: "" for none, "step" for one number for each step (and place in the block), "element" for one for each element.
    """

    arrays: tuple[tuple[str, str], ...]
    load: str
    store: tuple[str, ...]
    blockwise: bool = False
    random: str = ""


def _plain(dtype: str) -> Format:
    half = dtype in HALVES
    return Format((("", dtype),), f"from_{dtype}({{0}})" if half else "{0}", (f"to_{dtype}({{x}})" if half else "{x}",))


FORMATS: dict[str, Format] = {dtype: _plain(dtype) for dtype in ("float64", "float32", "bfloat16", "float16")}
"""Every format that a kernel's operand can have; those with a dtype's name are that dtype, rounded to nearest."""

for _half in HALVES:
    _one = (("", _half),)
    FORMATS[f"{_half} dithered"] = Format(
        _one, f"from_{_half}({{0}})", (f"round_{_half}({{x}}, {{random}})",), random="step"
    )
    FORMATS[f"{_half} stochastic"] = Format(
        _one, f"from_{_half}({{0}})", (f"round_{_half}({{x}}, {{random}})",), random="element"
    )
    for _bits, _low in (("24", "int8"), ("32", "int16")):
        _random = ", {random}" if _bits == "24" else ""
        FORMATS[f"{_half} {_bits}bit"] = Format(
            (("", _half), ("_correction", _low)),
            f"join{_bits}_{_half}({{0}}, {{1}})",
            (f"high{_bits}_{_half}({{x}}{_random})", f"low{_bits}_{_half}({{x}}{_random})"),
            random="step" if _bits == "24" else "",
        )
for _kind, _code in (("signed8", "int8"), ("positive8", "uint8")):
    FORMATS[_kind] = Format(
        (("_8bit", _code), ("_base", "int16")),
        f"from_{_kind}({{0}}, {{exponent}})",
        (f"to_{_kind}({{x}}, {{exponent}}, {{random}})",),
        blockwise=True,
        random="step",
    )

SUFFIXES = ("", "_8bit", "_base", "_correction")
"""What follows an operand's name in the names of its arrays, in kernels and in checkpoints: nothing for the numbers themselves,
"_8bit" for codes, "_base" for block exponents, "_correction" for low bits. Codes have a name of their own so that nobody takes
them for numbers: given a checkpoint with codes, torch.optim says that it misses the state."""

ITEM_SIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int16": 2, "int8": 1, "uint8": 1}
"""The bytes of an element of each dtype."""

UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number in each dtype."""


def is_quantized(shape: Sequence[int]) -> bool:
    """Whether a state of this shape is kept in 8 bits: it has rows of `SHORTEST_ROW` elements or more.

    The first dimension's size does not matter, so every shard along it decides alike.
    """
    return len(shape) > 1 and row_length(shape) >= SHORTEST_ROW


def row_length(shape: Sequence[int]) -> int:
    """The elements of one index of the first dimension."""
    length = 1
    for size in shape[1:]:
        length *= size
    return length


def exponent_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of the block exponents of an operand of this shape: rows, blocks in a row."""
    return shape[0], -(-row_length(shape) // BLOCK)


def state_format(chosen: str | None, dtype: str, shape: Sequence[int], nonnegative: bool, exact: bool) -> str:
    """The format of a state.

    Args:
        chosen: one of STATE_FORMATS, or None for the parameter's own dtype.
        dtype: the parameter's.
        shape: the parameter's, all of it where it is sharded.
        nonnegative: whether the formula never makes the state negative.
        exact: whether the state is kept in float32 at least.
    """
    if chosen is None or dtype == "float64":
        return dtype
    if exact or chosen == "float32" or (chosen == "8bit" and not is_quantized(shape)):
        return "float32"
    if chosen == "bfloat16":
        return "bfloat16 dithered"
    return "positive8" if nonnegative else "signed8"


def weight_format(chosen: str | None, dtype: str) -> str:
    """The format of a parameter: only half-precision ones have a choice."""
    return f"{dtype} {chosen}" if chosen is not None and dtype in HALVES else dtype


def bytes_of(name: str, shape: Sequence[int]) -> int:
    """The bytes that an operand of this format and shape takes."""
    numel = row_length((1, *shape))
    total = 0
    for suffix, dtype in FORMATS[name].arrays:
        rows, blocks = exponent_shape(shape) if suffix == "_base" else (1, numel)
        total += ITEM_SIZE[dtype] * rows * blocks
    return total


_MASK = 2**64 - 1


def mix(seed: int, step: int, number: int) -> int:
    """32 random bits for a seed, a step and a number: splitmix64's finalizer. Steele et al. 2014."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 32


WEYL = 0x9E3779B9
"""2**32 over the golden ratio: multiples of it spread evenly, so neighbors in a block round at different times."""
PLACES = 16
"""Places of a block after which its random bits repeat: a vector's worth, so that they stay in registers."""
FIRST_ELEMENT_KEY = 1 << 32
"""Added to a parameter's number for `mix`, apart from those of operands."""
ROOTS = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
"""2**32 times the fractional parts of the roots of the first primes."""


class Numbering(NamedTuple):
    """How the elements of a tensor are numbered, each of which has a random number of its own.

    Element e by row has the number ``first + e // run * stride + e % run``: where e is in the whole, if the tensor is a part.

    Attributes:
        first: the number of its first element.
        run: how many elements from there on have numbers one after another, as many as from each of the next such places on.
        stride: from one of these places to the next.
    """

    first: int
    run: int
    stride: int

    @classmethod
    def of_whole(cls, size: int) -> Numbering:
        """That of a tensor of so many elements that is no part."""
        return cls(0, max(size, 1), max(size, 1))


def dither(seed: int, step: int, number: int) -> int:
    """The 32 bits that round an operand at a step.

    They advance by an irrational share of 2**32, one's own for each operand, and so come near every value evenly in
    time: roundings of a slow average cancel sooner than independent ones would.
    """
    return (mix(seed, 0, number) + step * ROOTS[number % len(ROOTS)]) & 0xFFFFFFFF
