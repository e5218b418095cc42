"""What generated kernels stand on: addresses, atomics and arithmetic.

Imported only where one is compiled; nothing here knows of rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from steprule.compiler.functions import apart as apart
from steprule.compiler.functions import exact as exact
from steprule.compiler.functions import fast as fast
from steprule.compiler.functions import instruction, of_any
from steprule.compiler.values import FLOAT32, FLOAT64, INT64, Address
from steprule.engine.header import *  # noqa: F403 - kernels take all names from here
from steprule.engine.header import NEXT, STEP_AT, STEP_FLOAT32, STEP_KIND, STEPS, TENSORS
from steprule.engine.plan import FULL, LAST_FLOAT32_STEP
from steprule.formats import ROOTS

float32, float64, uint32, uint64, int64 = np.float32, np.float64, np.uint32, np.uint64, np.int64


float32s, float64s, int64s = (
    instruction(Address(number), INT64)(lambda b, address: address) for number in (FLOAT32, FLOAT64, INT64)
)
"""The numbers at an address."""


@instruction(INT64, INT64, INT64)
def fetch_add(b: Any, address: Any, value: Any) -> Any:
    """Adds to the int64 at an address, whole whatever other threads do, and returns what was there."""
    return b.atomic_rmw("add", b.inttoptr(address, ir.IntType(64).as_pointer()), value, "monotonic")


def _fused(b: Any, x: Any, y: Any, z: Any, flags: tuple[str, ...]) -> Any:
    kind = x.type
    fused = b.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
    return b.call(fused, [x, y, z], fastmath=flags)


@of_any
def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once where the processor can. Written out, so that the same formula rounds alike in any kernel."""
    return _fused(b, x, y, z, ("nsz",))


def _whole(x: Any) -> Any:
    """Whole numbers of as many bits."""
    return ir.IntType(64 if x.type == ir.DoubleType() else 32)


@of_any
def bits_as_number(b: Any, x: Any) -> Any:
    """The bits of a number, taken for a whole number."""
    return b.sitofp(b.bitcast(x, _whole(x)), x.type)


@of_any
def number_as_bits(b: Any, x: Any) -> Any:
    """The number whose bits are those of a whole number, which is rounded towards 0."""
    return b.bitcast(b.fptosi(x, _whole(x)), x.type)


# Sums over elements, the only place where the order of additions is the compiler's: so they run in vectors. Written
# so that nothing is shared with the formula's own arithmetic, which must round as it does without them.


@of_any
def add_up(b: Any, total: Any, x: Any) -> Any:
    """total + x."""
    return b.fadd(total, x, flags=("reassoc",))


@of_any
def add_square(b: Any, total: Any, x: Any) -> Any:
    """total + x**2."""
    return _fused(b, x, x, total, ("reassoc",))


@exact
def random_bits(seed, step, number):  # type: ignore[no-untyped-def]
    """`steprule.formats.mix`: 32 random bits for a seed, a step and a number."""
    z = uint64(int64(seed)) * uint64(0x9E3779B97F4A7C15)
    z += uint64(int64(step)) * uint64(0xD1B54A32D192ED03) + uint64(number) * uint64(0x8CB92BA72F3D8DD7)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return uint32((z ^ (z >> uint64(31))) >> uint64(32))


@exact
def dither(seed, step, number):  # type: ignore[no-untyped-def]
    """`steprule.formats.dither`: the 32 bits that round an operand at a step."""
    return uint32(uint64(random_bits(seed, 0.0, number)) + uint64(int64(step)) * uint64(ROOTS[number % len(ROOTS)]))


@exact
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
