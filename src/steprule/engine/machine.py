"""What generated kernels stand on: addresses, atomics and arithmetic.

Imported only with Numba at hand; nothing here knows of rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.typing import signature
from numba.extending import intrinsic

from steprule.engine.header import *  # noqa: F403 - kernels take all names from here
from steprule.engine.header import NEXT, STEP_AT, STEP_FLOAT32, STEP_KIND, STEPS, TENSORS
from steprule.engine.plan import FULL, LAST_FLOAT32_STEP
from steprule.formats import ROOTS

EXACT: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Divisions that give inf or NaN instead of raising; nothing is reordered. Python calls none of these functions."""
FAST: dict[str, Any] = {**EXACT, "fastmath": {"nsz"}}
"""For element loops: what vectorizes, never what assumes that there is no NaN or inf, nor estimates reciprocals."""

float32, float64, uint32, uint64, int64 = np.float32, np.float64, np.uint32, np.uint64, np.int64


def _numbers_of(number_type: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def numbers(typing_context: Any, address: Any) -> Any:
        """The numbers at an address. Pointers compile in a fraction of what arrays take, and nothing here asks for a size."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return signature(types.CPointer(number_type), types.int64), codegen

    return numbers


float32s, float64s, int64s = map(_numbers_of, (types.float32, types.float64, types.int64))


@intrinsic
def fetch_add(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Adds to the int64 at an address, whole whatever other threads do, and returns what was there."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def multiply_add(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a * b + c, rounded once where the processor can. Written out, so that the same formula rounds alike in any kernel."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        fused = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(fused, args, fastmath=("nsz",))

    return signature(a, a, a, a), codegen


def _with_bits(emit: Any) -> Any:
    """An instruction that makes of a number one of its type, by (builder, number, its type, whole numbers of as many bits)."""

    @intrinsic  # type: ignore[untyped-decorator]
    def instruction(typing_context: Any, x: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = args[0].type
            return emit(builder, args[0], kind, ir.IntType(8 * context.get_abi_sizeof(kind)))

        return signature(x, x), codegen

    return instruction


bits_as_number = _with_bits(lambda b, x, kind, whole: b.sitofp(b.bitcast(x, whole), kind))
"""The bits of a number, taken for a whole number."""
number_as_bits = _with_bits(lambda b, x, kind, whole: b.bitcast(b.fptosi(x, whole), kind))
"""The number whose bits are those of a whole number, which is rounded towards 0."""


# Sums over elements, the only place where the order of additions is the compiler's: so they run in vectors. Written
# so that nothing is shared with the formula's own arithmetic, which must round as it does without them.


@intrinsic
def add_up(typing_context, total, x):  # type: ignore[no-untyped-def]
    """total + x."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1], flags=("reassoc",))

    return signature(total, total, total), codegen


@intrinsic
def add_square(typing_context, total, x):  # type: ignore[no-untyped-def]
    """total + x**2."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        multiply_add = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(multiply_add, [args[1], args[1], args[0]], fastmath=("reassoc",))

    return signature(total, total, total), codegen


@njit(**EXACT)
def random_bits(seed, step, number):  # type: ignore[no-untyped-def]
    """`steprule.formats.mix`: 32 random bits for a seed, a step and a number."""
    z = uint64(int64(seed)) * uint64(0x9E3779B97F4A7C15)
    z += uint64(int64(step)) * uint64(0xD1B54A32D192ED03) + uint64(number) * uint64(0x8CB92BA72F3D8DD7)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return uint32((z ^ (z >> uint64(31))) >> uint64(32))


@njit(**EXACT)
def dither(seed, step, number):  # type: ignore[no-untyped-def]
    """`steprule.formats.dither`: the 32 bits that round an operand at a step."""
    return uint32(uint64(random_bits(seed, 0.0, number)) + uint64(int64(step)) * uint64(ROOTS[number % len(ROOTS)]))


@njit(**EXACT)
def count_steps(plan):  # type: ignore[no-untyped-def]
    """Adds one to every tensor's step, leaves the new steps in the plan and restarts its chunks."""
    tensors = plan[TENSORS]
    step_at, kinds = int64s(plan[STEP_AT]), int64s(plan[STEP_KIND])
    steps, counter = float64s(plan[STEPS]), int64s(plan[NEXT])
    for tensor in range(tensors):
        if kinds[tensor] == STEP_FLOAT32:
            kept32 = float32s(step_at[tensor])
            kept32[0] += float32(1)
            steps[tensor] = kept32[0]
            if kept32[0] >= LAST_FLOAT32_STEP:
                counter[FULL] = 1
        else:
            kept64 = float64s(step_at[tensor])
            kept64[0] += 1
            steps[tensor] = kept64[0]
    counter[0] = 0
