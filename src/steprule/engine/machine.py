"""What generated kernels stand on: addresses, atomics, half-precision numbers and the plan's layout.

Imported only with Numba at hand; nothing here knows of rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core.typing import signature
from numba.extending import intrinsic

EXACT: dict[str, Any] = {"error_model": "numpy"}
"""Divisions that give inf or NaN instead of raising; nothing is reordered."""
FAST: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "arcp", "nsz"}}
"""For element loops: what vectorises, never what assumes that there is no NaN or inf."""

float32, float64 = np.float32, np.float64

# The plan's header, an int64 array: what to do, the counter that hands out chunks, sizes, and the addresses of
# the tables. See steprule.engine.plan, which fills it.
MODE, NEXT, TENSORS, CHUNKS, ADDRESSES, CHUNK_TABLE, GROUPS, HYPER, STEP_AT, STEP_KIND, STEPS = range(11)
HEADER_SIZE = 16
# Modes: count the steps, work through the chunks, or both.
COUNT, WORK, BOTH = 1, 2, 3
# How a tensor's step is kept.
STEP_FLOAT32, STEP_FLOAT64 = 0, 1


def _pointer(number_type: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return signature(types.CPointer(number_type), types.int64), codegen

    return pointer


_float32_at, _float64_at = _pointer(types.float32), _pointer(types.float64)
_uint16_at, _int64_at = _pointer(types.uint16), _pointer(types.int64)


@njit(**EXACT)
def float32_array(address, size):  # type: ignore[no-untyped-def]
    """The memory at an address as float32."""
    return carray(_float32_at(address), size)


@njit(**EXACT)
def float64_array(address, size):  # type: ignore[no-untyped-def]
    """The memory at an address as float64."""
    return carray(_float64_at(address), size)


@njit(**EXACT)
def uint16_array(address, size):  # type: ignore[no-untyped-def]
    """The memory at an address as the bits of half-precision numbers."""
    return carray(_uint16_at(address), size)


@njit(**EXACT)
def int64_array(address, size):  # type: ignore[no-untyped-def]
    """The memory at an address as int64."""
    return carray(_int64_at(address), size)


@intrinsic
def fetch_add(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Adds to the int64 at an address, whole whatever other threads do, and returns what was there."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


def _converter(name: str, from_type: Any, to_type: Any, emit: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def convert(typing_context: Any, x: Any) -> Any:
        return signature(to_type, from_type), lambda context, builder, sig, args: emit(builder, args[0])

    convert.__doc__ = name
    return convert


_I16, _I32, _HALF, _FLOAT = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()


def _emit_to_bfloat16(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16))  # to nearest, ties to even
    nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(nan, _I32(0x7FC0), rounded), _I16)


from_bfloat16 = _converter(
    "bfloat16 bits as float32",
    types.uint16,
    types.float32,
    lambda b, x: b.bitcast(b.shl(b.zext(x, _I32), _I32(16)), _FLOAT),
)
to_bfloat16 = _converter("float32 as bfloat16 bits", types.float32, types.uint16, _emit_to_bfloat16)
from_float16 = _converter(
    "float16 bits as float32", types.uint16, types.float32, lambda b, x: b.fpext(b.bitcast(x, _HALF), _FLOAT)
)
to_float16 = _converter(
    "float32 as float16 bits", types.float32, types.uint16, lambda b, x: b.bitcast(b.fptrunc(x, _HALF), _I16)
)


@njit(**EXACT)
def count_steps(plan):  # type: ignore[no-untyped-def]
    """Adds one to every tensor's step, leaves the new steps in the plan and restarts its chunks."""
    tensors = plan[TENSORS]
    step_at = int64_array(plan[STEP_AT], tensors)
    kinds = int64_array(plan[STEP_KIND], tensors)
    steps = float64_array(plan[STEPS], tensors)
    for tensor in range(tensors):
        if kinds[tensor] == STEP_FLOAT32:
            kept32 = float32_array(step_at[tensor], 1)
            kept32[0] += float32(1)
            steps[tensor] = kept32[0]
        else:
            kept64 = float64_array(step_at[tensor], 1)
            kept64[0] += 1
            steps[tensor] = kept64[0]
    int64_array(plan[NEXT], 1)[0] = 0
