"""PTX that moves bits among registers, where Triton's language cannot say it: several elements in one of them.

An operand is ``$`` and its number, results first.
"""

# mypy: ignore-errors
# Triton takes these as constants.

from __future__ import annotations

import triton.language as tl

FROM_BFLOAT16 = tl.constexpr("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xFFFF0000;")
"""Two that are in one register, as float32."""

SHIFTED = tl.constexpr("shl.b32 $0, $1, 20;")
"""A block's exponent where float32 has its own."""

HIGH24 = tl.constexpr("prmt.b32 $0, $1, $2, 0x7632;")
"""The halves of two weights, in one register."""

LOW24 = tl.constexpr(
    "{ .reg .b32 a, b; prmt.b32 a, $1, $2, 0x0051; prmt.b32 b, $3, $4, 0x0051; prmt.b32 $0, a, b, 0x5410; "
    "xor.b32 $0, $0, 0x80808080; }"
)
"""The low bits of four weights, in one register: of each the second byte, whose sign is turned."""

JOIN24 = tl.constexpr(
    "{ .reg .b32 other0, other1, other, above, low, a, b, c, d; "
    "and.b32 other0, $4, 0x7FFF7FFF; and.b32 other1, $5, 0x7FFF7FFF; "
    "add.u32 other0, other0, 0x7FFF7FFF; add.u32 other1, other1, 0x7FFF7FFF; "
    "prmt.b32 other, other0, other1, 0xFDB9; prmt.b32 above, $6, 0, 0xBA98; not.b32 above, above; "
    "or.b32 other, other, above; and.b32 low, $6, other; xor.b32 low, low, 0x80808080; "
    "prmt.b32 a, $4, low, 0x0104; prmt.b32 b, $4, low, 0x0325; prmt.b32 c, $5, low, 0x0106; prmt.b32 d, $5, low, 0x0327; "
    "mad.lo.u32 $0, a, 256, 0xFFFF8000; mad.lo.u32 $1, b, 256, 0xFFFF8000; "
    "mad.lo.u32 $2, c, 256, 0xFFFF8000; mad.lo.u32 $3, d, 256, 0xFFFF8000; }"
)
"""Four weights of their halves, two in a register, and their low bits, all in one.

A byte of ``other`` is 255 where a half is not 0, and one of ``above`` where low bits are not below 0. Where neither is, low bits
become 0. With their sign turned they are larger by 128, so that a byte below the half can hold them.
"""

WITH_SIGN = tl.constexpr(
    "{ .reg .b32 a, b, codes, negated, below; "
    "prmt.b32 a, $1, $2, 0x0040; prmt.b32 b, $3, $4, 0x0040; prmt.b32 codes, a, b, 0x5410; "
    "prmt.b32 a, $5, $6, 0x00FB; prmt.b32 b, $7, $8, 0x00FB; prmt.b32 below, a, b, 0x5410; "
    "and.b32 a, codes, 0x7F7F7F7F; sub.u32 a, 0x80808080, a; "
    "not.b32 b, codes; and.b32 b, b, 0x80808080; xor.b32 negated, a, b; "
    "xor.b32 a, negated, codes; and.b32 a, a, below; xor.b32 $0, a, codes; }"
)
"""The lowest bytes of four numbers, in one register, each negated if another number is below 0.

All four are negated at once: without their highest bits, no byte borrows from the next.
"""
