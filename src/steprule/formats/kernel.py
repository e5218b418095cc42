"""Formats as instructions: what a generated kernel reads and writes numbers with.

Each is written in LLVM's terms, on 32-bit lanes: kernels' own integers are 64 bits wide, which would halve every
vector. The same conversions on whole tensors, easier to read, are in `steprule.formats.tensors`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

from steprule.compiler.functions import Instruction, instruction
from steprule.compiler.objects import processor
from steprule.compiler.values import BY_NAME, FLOAT32, FLOAT64, INT8, INT16, INT64, UINT8, UINT16, UINT32
from steprule.formats import BLOCK, PLACES, WEYL
from steprule.formats import FIRST_ELEMENT_KEY as FIRST_ELEMENT_KEY

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()


# Memory. Every array of a kernel has a scope of its own, which tells LLVM that no two of them overlap.

_SCOPES = 48


def _mark(builder: Any, instruction: Any, scope: int) -> Any:
    if scope >= _SCOPES:  # which may overlap any other, as far as LLVM knows
        return instruction
    module = builder.module
    domain = module.add_metadata(["steprule"])
    scopes = [module.add_metadata([f"array {number}", domain]) for number in range(_SCOPES)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    instruction.set_metadata("noalias", module.add_metadata(scopes[:scope] + scopes[scope + 1 :]))
    return instruction


def array(dtype: str, scope: int) -> tuple[Instruction, Instruction]:
    """Two functions for a kernel's array: ``load(address, i)`` and ``store(address, i, value)``.

    Args:
        dtype: of its elements, a key of `steprule.formats.ITEM_SIZE`; half-precision ones are given as bits.
        scope: the array's number in its kernel.
    """
    number = UINT16 if dtype in ("bfloat16", "float16") else BY_NAME[dtype]
    element = number.llvm

    def place(builder: Any, address: Any, i: Any) -> Any:
        return builder.gep(builder.inttoptr(address, element.as_pointer()), [i])

    @instruction(number, INT64, INT64)
    def load(builder: Any, address: Any, i: Any) -> Any:
        return _mark(builder, builder.load(place(builder, address, i)), scope)

    @instruction(None, INT64, INT64, number)
    def store(builder: Any, address: Any, i: Any, value: Any) -> None:
        _mark(builder, builder.store(value, place(builder, address, i)), scope)

    return load, store


def scratch(number: int) -> Any:
    """A function that gives the address of room for two blocks' float32 numbers on the stack."""

    @instruction(INT64, INT64)
    def room(builder: Any, _: Any) -> Any:
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_FLOAT, 2 * BLOCK), name=f"scratch{number}")
        place.align = 64  # a cache line: vectors that straddle two cost twice
        return builder.ptrtoint(place, _I64)

    return room


# Pieces of conversions.


def _bits(b: Any, x: Any) -> Any:
    return b.bitcast(x, _I32)


def _float(b: Any, bits: Any) -> Any:
    return b.bitcast(bits, _FLOAT)


def _abs(b: Any, bits: Any) -> Any:
    return b.and_(bits, _I32(0x7FFFFFFF))


def _umin(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_unsigned("<", x, y), x, y)


def _umax(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_unsigned(">", x, y), x, y)


def _smax(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_signed(">", x, y), x, y)


def _without_payload(b: Any, x: Any) -> Any:
    """x's bits, the same for every NaN, so that rounding cannot carry into the sign."""
    return b.select(b.fcmp_unordered("uno", x, x), _I32(0x7FC00000), _bits(b, x))


def _call(b: Any, name: str, x: Any) -> Any:
    return b.call(b.module.declare_intrinsic(f"llvm.{name}", [_FLOAT]), [x])


# Random numbers.


@instruction(UINT32, UINT32, INT64)
def weyl(b: Any, noise: Any, i: Any) -> Any:
    """The random number of place i in a block."""
    return b.add(noise, b.mul(b.and_(b.trunc(i, _I32), _I32(PLACES - 1)), _I32(WEYL)))


@instruction(UINT32, UINT32, INT64)
def element_random(b: Any, key: Any, i: Any) -> Any:
    """The random number of element i: Wellons' lowbias32 of its index and the key."""
    x = b.xor(b.trunc(i, _I32), key)
    x = b.mul(b.xor(x, b.lshr(x, _I32(16))), _I32(0x7FEB352D))
    x = b.mul(b.xor(x, b.lshr(x, _I32(15))), _I32(0x846CA68B))
    return b.xor(x, b.lshr(x, _I32(16)))


# Half precision.


@instruction(FLOAT32, UINT16)
def from_bfloat16(b: Any, x: Any) -> Any:
    """bfloat16 bits as float32."""
    return _float(b, b.shl(b.zext(x, _I32), _I32(16)))


@instruction(UINT16, FLOAT32)
def to_bfloat16(b: Any, x: Any) -> Any:
    """float32 as bfloat16 bits, to nearest, ties to even."""
    bits = _bits(b, x)
    odd = b.and_(b.lshr(bits, _I32(16)), _I32(1))
    rounded = b.lshr(b.add(bits, b.add(odd, _I32(0x7FFF))), _I32(16))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), _I32(0x7FC0), rounded), _I16)


@instruction(UINT16, FLOAT32, UINT32)
def round_bfloat16(b: Any, x: Any, random: Any) -> Any:
    """float32 as bfloat16 bits, up as often as x is near the upper neighbor."""
    return b.trunc(b.lshr(b.add(_without_payload(b, x), b.lshr(random, _I32(16))), _I32(16)), _I16)


def _has_float16() -> bool:
    """Whether the processor converts it; else LLVM would call functions that are nowhere."""
    return "x86" not in llvm.get_process_triple() or "+f16c" in processor()[1]


def _from_float16(b: Any, x: Any) -> Any:
    if _has_float16():
        return b.fpext(b.bitcast(x, _HALF), _FLOAT)
    bits = b.zext(x, _I32)
    magnitude = b.shl(b.and_(bits, _I32(0x7FFF)), _I32(13))
    finite = _bits(b, b.fmul(_float(b, magnitude), ir.Constant(_FLOAT, 2.0**112)))
    is_finite = b.icmp_unsigned("<", magnitude, _I32(0x7C00 << 13))
    sign = b.shl(b.and_(bits, _I32(0x8000)), _I32(16))
    return _float(b, b.or_(sign, b.select(is_finite, finite, b.or_(magnitude, _I32(0x7F800000)))))


def _to_float16(b: Any, x: Any) -> Any:
    if _has_float16():
        return b.bitcast(b.fptrunc(x, _HALF), _I16)
    bits, magnitude = _bits(b, x), _abs(b, _bits(b, x))
    normal = b.sub(magnitude, _I32(112 << 23))
    normal = b.add(normal, b.add(b.and_(b.lshr(normal, _I32(13)), _I32(1)), _I32(0xFFF)))
    # Below 2**-14 the spacing is 2**-24, which is that of float32 from 0.5 on.
    small = b.sub(_bits(b, b.fadd(_float(b, magnitude), ir.Constant(_FLOAT, 0.5))), _I32(0x3F000000))
    code = b.select(b.icmp_unsigned("<", magnitude, _I32(113 << 23)), small, b.lshr(normal, _I32(13)))
    code = b.select(
        b.icmp_unsigned("<", magnitude, _I32(0x477FF000)), code, _I32(0x7C00)
    )  # 65520, halfway to the next power
    code = b.select(b.fcmp_unordered("uno", x, x), _I32(0x7E00), code)
    return b.trunc(b.or_(code, b.and_(b.lshr(bits, _I32(16)), _I32(0x8000))), _I16)


from_float16 = instruction(FLOAT32, UINT16)(_from_float16)
to_float16 = instruction(UINT16, FLOAT32)(_to_float16)


@instruction(UINT16, FLOAT32, UINT32)
def round_float16(b: Any, x: Any, random: Any) -> Any:
    """float32 as float16 bits, up as often as x is near the upper neighbor."""
    bits = _bits(b, x)
    normal = b.and_(b.add(_without_payload(b, x), b.lshr(random, _I32(19))), _I32(0xFFFFE000))
    magnitude = _float(b, _abs(b, bits))
    small = b.fcmp_ordered("<", magnitude, ir.Constant(_FLOAT, 2.0**-14))  # there the spacing is 2**-24
    share = b.fmul(b.uitofp(b.lshr(random, _I32(8)), _FLOAT), ir.Constant(_FLOAT, 2.0**-24))
    scaled = b.fadd(b.fmul(b.select(small, magnitude, ir.Constant(_FLOAT, 0.0)), ir.Constant(_FLOAT, 2.0**24)), share)
    count = b.fmul(b.sitofp(b.fptosi(scaled, _I32), _FLOAT), ir.Constant(_FLOAT, 2.0**-24))
    signed = b.or_(_bits(b, count), b.and_(bits, _I32(0x80000000)))
    return _to_float16(b, _float(b, b.select(small, signed, normal)))


# Split weights: a half that is the weight rounded to nearest, and low bits.


def _split_bfloat16(b: Any, x: Any, rest: int, random: Any) -> tuple[Any, Any]:
    bits = _without_payload(b, x)
    if random is not None:
        bits = b.lshr(b.add(bits, b.lshr(random, _I32(24))), _I32(8))
    high = b.lshr(b.add(bits, _I32(1 << (rest - 1))), _I32(rest))
    return high, b.sub(bits, b.shl(high, _I32(rest)))


@instruction(UINT16, FLOAT32, UINT32)
def high24_bfloat16(b: Any, x: Any, random: Any) -> Any:
    """The 16 bits of a 24-bit weight that are its bfloat16."""
    return b.trunc(_split_bfloat16(b, x, 8, random)[0], _I16)


@instruction(INT8, FLOAT32, UINT32)
def low24_bfloat16(b: Any, x: Any, random: Any) -> Any:
    """Its other 8 bits."""
    return b.trunc(_split_bfloat16(b, x, 8, random)[1], _I8)


def _low_bits(b: Any, high: Any, low: Any) -> Any:
    """Low bits as they count: at 0 only others than a weight's own are below, of a weight that somebody has set to 0."""
    low = b.sext(low, _I32)
    is_left = b.and_(b.icmp_signed("==", b.and_(high, _I16(0x7FFF)), _I16(0)), b.icmp_signed("<", low, _I32(0)))
    return b.select(is_left, _I32(0), low)


@instruction(FLOAT32, UINT16, INT8)
def join24_bfloat16(b: Any, high: Any, low: Any) -> Any:
    """The weight."""
    return _float(b, b.shl(b.add(b.shl(b.zext(high, _I32), _I32(8)), _low_bits(b, high, low)), _I32(8)))


@instruction(UINT16, FLOAT32)
def high32_bfloat16(b: Any, x: Any) -> Any:
    """The 16 bits of a float32 that are its bfloat16."""
    return b.trunc(_split_bfloat16(b, x, 16, None)[0], _I16)


@instruction(INT16, FLOAT32)
def low32_bfloat16(b: Any, x: Any) -> Any:
    """Its other 16 bits."""
    return b.trunc(_split_bfloat16(b, x, 16, None)[1], _I16)


@instruction(FLOAT32, UINT16, INT16)
def join32_bfloat16(b: Any, high: Any, low: Any) -> Any:
    """The weight."""
    return _float(b, b.add(b.shl(b.zext(high, _I32), _I32(16)), _low_bits(b, high, low)))


def _float16_unit(b: Any, half: Any, bits: int) -> Any:
    """What one unit of the low bits is worth: float16's spacing at half (finite, at least its smallest) over 2**bits."""
    exponent = b.and_(_bits(b, half), _I32(0x7F800000))
    exponent = _umax(b, _umin(b, exponent, _I32((127 + 15) << 23)), _I32((127 - 14) << 23))
    return b.fmul(_float(b, exponent), ir.Constant(_FLOAT, 2.0 ** (-10 - bits)))


def _within(b: Any, rest: Any, bits: int) -> Any:
    """A rest as so many low bits; NaN is the least."""
    top = ir.Constant(_FLOAT, 2.0 ** (bits - 1) - 1)
    bottom = ir.Constant(_FLOAT, -(2.0 ** (bits - 1)))
    rest = b.select(b.fcmp_ordered("<", rest, top), rest, b.select(b.fcmp_ordered(">=", rest, top), top, bottom))
    rest = b.select(b.fcmp_ordered(">", rest, bottom), rest, bottom)
    return b.fptosi(rest, _I32)


def _split_float16(b: Any, x: Any, random: Any) -> tuple[Any, Any]:
    """A half and the rest in 8 bits, rounded at random; half a spacing above one half is as much below the next."""
    high = _to_float16(b, x)
    half = _from_float16(b, high)
    unit = _float16_unit(b, half, 8)
    share = b.fmul(b.uitofp(b.lshr(random, _I32(8)), _FLOAT), ir.Constant(_FLOAT, 2.0**-24))
    rest = _call(b, "floor", b.fadd(b.fdiv(b.fsub(x, half), unit), share))
    is_next = b.and_(
        b.fcmp_ordered(">", rest, ir.Constant(_FLOAT, 127.0)), b.fcmp_ordered("<", half, ir.Constant(_FLOAT, 65504.0))
    )
    next_high = _to_float16(b, b.fadd(half, b.fmul(ir.Constant(_FLOAT, 128.25), unit)))
    is_alike = b.fcmp_ordered("==", _float16_unit(b, _from_float16(b, next_high), 8), unit)
    low = b.select(is_next, b.select(is_alike, _I32(-128), _I32(-64)), _within(b, rest, 8))
    return b.select(is_next, next_high, high), b.trunc(low, _I8)


def _low32_float16(b: Any, x: Any) -> Any:
    half = _from_float16(b, _to_float16(b, x))
    rest = _call(b, "rint", b.fdiv(b.fsub(x, half), _float16_unit(b, half, 16)))
    return b.trunc(_within(b, rest, 16), _I16)


def _join_float16(b: Any, high: Any, low: Any, bits: int) -> Any:
    half = _from_float16(b, high)
    return b.fadd(half, b.fmul(b.sitofp(low, _FLOAT), _float16_unit(b, half, bits)))


high24_float16 = instruction(UINT16, FLOAT32, UINT32)(lambda b, x, random: _split_float16(b, x, random)[0])
high32_float16 = to_float16
low24_float16 = instruction(INT8, FLOAT32, UINT32)(lambda b, x, random: _split_float16(b, x, random)[1])
low32_float16 = instruction(INT16, FLOAT32)(_low32_float16)
join24_float16 = instruction(FLOAT32, UINT16, INT8)(lambda b, high, low: _join_float16(b, high, low, 8))
join32_float16 = instruction(FLOAT32, UINT16, INT16)(lambda b, high, low: _join_float16(b, high, low, 16))


# 8 bits: the leading bits of a float32, counted from the block exponent. See steprule.formats.tensors.


@instruction(UINT32, UINT32, FLOAT32)
def larger_magnitude(b: Any, top: Any, x: Any) -> Any:
    """The bits of the larger absolute value; NaN's are larger than any."""
    return _umax(b, top, _abs(b, _bits(b, x)))


@instruction(FLOAT64, UINT32)
def float64_of(b: Any, top: Any) -> Any:
    """The number that has these bits as a float32."""
    return b.fpext(_float(b, top), _DOUBLE)


# Sums of squares and largest absolute values of whole blocks, lane by lane: 16 of each, side by side in a scratch.

_LANES = 16
_LANES_F, _LANES_I = ir.VectorType(_FLOAT, _LANES), ir.VectorType(_I32, _LANES)


def _lanes(b: Any, at: Any, kind: Any, number: int = 0) -> Any:
    return b.gep(b.inttoptr(at, kind.as_pointer()), [_I32(number)])


@instruction(None, INT64)
def clear_lanes(b: Any, at: Any) -> Any:
    """Starts with nothing."""
    for number in (0, 1):
        b.store(ir.Constant(_LANES_I, None), _lanes(b, at, _LANES_I, number), align=64)


@instruction(None, INT64, INT64)
def tally_block(b: Any, at: Any, room: Any) -> Any:
    """Adds a block's numbers, which lie in a scratch."""
    total, top = b.load(_lanes(b, at, _LANES_F), align=64), b.load(_lanes(b, at, _LANES_I, 1), align=64)
    kind = ir.FunctionType(_LANES_F, [_LANES_F] * 3)
    multiply_add = b.module.declare_intrinsic(f"llvm.fmuladd.v{_LANES}f32", (), kind)
    sign_off = ir.Constant(_LANES_I, [0x7FFFFFFF] * _LANES)
    for number in range(BLOCK // _LANES):
        x = b.load(_lanes(b, room, _LANES_F, number), align=64)
        total = b.call(multiply_add, [x, x, total])
        top = _umax(b, top, b.and_(b.bitcast(x, _LANES_I), sign_off))
    b.store(total, _lanes(b, at, _LANES_F), align=64)
    b.store(top, _lanes(b, at, _LANES_I, 1), align=64)


@instruction(FLOAT64, INT64)
def lanes_total(b: Any, at: Any) -> Any:
    """The sum of squares."""
    lanes, total = b.load(_lanes(b, at, _LANES_F), align=64), ir.Constant(_DOUBLE, 0.0)
    for number in range(_LANES):
        total = b.fadd(total, b.fpext(b.extract_element(lanes, _I32(number)), _DOUBLE))
    return total


@instruction(FLOAT64, INT64)
def lanes_top(b: Any, at: Any) -> Any:
    """The largest absolute value, NaN if there is one."""
    lanes, top = b.load(_lanes(b, at, _LANES_I, 1), align=64), _I32(0)
    for number in range(_LANES):
        top = _umax(b, top, b.extract_element(lanes, _I32(number)))
    return b.fpext(_float(b, top), _DOUBLE)


@instruction(FLOAT32, FLOAT32)
def magnitude(b: Any, x: Any) -> Any:
    """The absolute value; one NaN for all, so that rounding cannot carry it into the sign."""
    return _float(b, _umin(b, _abs(b, _bits(b, x)), _I32(0x7FC00000)))


def _block_exponent(b: Any, top: Any, room: int, least: int) -> Any:
    leading = _umin(b, b.lshr(top, _I32(20)), _I32(0x7FC))
    return b.trunc(_smax(b, b.sub(leading, _I32(room)), _I32(least)), _I16)


signed8_exponent = instruction(INT16, UINT32)(lambda b, top: _block_exponent(b, top, 125, 8))
positive8_exponent = instruction(INT16, UINT32)(lambda b, top: _block_exponent(b, top, 254, 0))


def _leading(b: Any, bits: Any, exponent: Any, random: Any) -> Any:
    """The leading bits above the block exponent; random ones are added below them, so that what is cut off counts on average."""
    cut = b.sub(b.lshr(random, _I32(12)), b.shl(b.sext(exponent, _I32), _I32(20)))  # the same in all of a block
    return b.lshr(b.add(bits, cut), _I32(20))


@instruction(FLOAT32, INT8, INT16)
def from_signed8(b: Any, code: Any, exponent: Any) -> Any:
    """The number of a signed code."""
    wide, exponent = b.sext(code, _I32), b.sext(exponent, _I32)
    magnitude = b.select(b.icmp_signed("<", wide, _I32(0)), b.neg(wide), wide)
    offset = _float(b, b.shl(exponent, _I32(20)))
    x = b.fsub(_float(b, b.shl(b.add(magnitude, exponent), _I32(20))), offset)
    return _float(b, b.or_(_bits(b, x), b.and_(wide, _I32(0x80000000))))


@instruction(INT8, FLOAT32, INT16, UINT32)
def to_signed8(b: Any, x: Any, exponent: Any, random: Any) -> Any:
    """The signed code of a number."""
    bits = _bits(b, x)
    offset = _float(b, b.shl(b.sext(exponent, _I32), _I32(20)))
    code = _leading(b, _bits(b, b.fadd(_float(b, _abs(b, bits)), offset)), exponent, random)
    sign = b.ashr(bits, _I32(31))
    return b.trunc(b.sub(b.xor(code, sign), sign), _I8)


@instruction(FLOAT32, UINT8, INT16)
def from_positive8(b: Any, code: Any, exponent: Any) -> Any:
    """The number of a nonnegative code."""
    return _float(b, b.shl(b.add(b.zext(code, _I32), b.sext(exponent, _I32)), _I32(20)))


@instruction(UINT8, FLOAT32, INT16, UINT32)
def to_positive8(b: Any, x: Any, exponent: Any, random: Any) -> Any:
    """The code of a number that `magnitude` gave."""
    least = _umax(b, _bits(b, x), b.shl(b.sext(exponent, _I32), _I32(20)))
    return b.trunc(_leading(b, least, exponent, random), _I8)
