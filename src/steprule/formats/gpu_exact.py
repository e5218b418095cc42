"""Division and square root of float32 as Triton functions, rounded to nearest.

NVIDIA's assembler turns either into an estimate that is refined, with a branch for each element for numbers near the ends of
the range: nothing of the next element is done meanwhile. Here some elements are refined side by side, by the same steps, and
share the branch.
"""

# mypy: ignore-errors
# Triton compiles these; their annotations and operators are its own.

from __future__ import annotations

import triton
import triton.language as tl

from steprule.formats.gpu_basics import PTX

_TOGETHER = 4


def _assembly(operation: str, operands: str, steps: str, least: int, most: int, signed: bool) -> str:
    """The steps for some elements at once, and the operation itself where one of them is not from least to most.

    Args:
        operation: PTX's name.
        operands: a letter for each.
        steps: how out follows from them, with the registers r, q and e.
        least, most: the bits of the numbers between which all operands must be, apart from their sign.
        signed: whether they may have one.
    """
    elements = [
        {"out": f"${i}", **{name: f"{name}{i}" for name in "rqe"}}
        | {name: f"${_TOGETHER * place + i}" for place, name in enumerate(operands, 1)}
        for i in range(_TOGETHER)
    ]
    registers = ", ".join(one[name] for name in "rqe" for one in elements)
    lines = [f".reg .f32 {registers};", ".reg .u32 farthest, far;", ".reg .pred all_near;", "mov.u32 farthest, 0;"]
    for one in elements:
        for name in operands:
            lines.append(f"shl.b32 far, {one[name]}, 1;" if signed else f"mov.b32 far, {one[name]};")
            lines += [f"sub.u32 far, far, {least << signed};", "max.u32 farthest, farthest, far;"]
    lines += [f"{step.strip().format(**one)};" for step in steps.split(";") for one in elements]
    lines += [f"setp.le.u32 all_near, farthest, {(most - least) << signed};", "@all_near bra DONE;"]
    lines += [f"{operation} {', '.join(one[name] for name in ('out', *operands))};" for one in elements]
    return "\n".join(["{", *lines, "DONE:", "}"])


TOGETHER = tl.constexpr(_TOGETHER)
_ROOT_STEPS = """
    rsqrt.approx.ftz.f32 {r}, {a}; mul.rn.f32 {q}, {a}, {r}; mul.rn.f32 {r}, {r}, 0.5;
    neg.f32 {e}, {q}; fma.rn.f32 {e}, {e}, {q}, {a}; fma.rn.f32 {out}, {e}, {r}, {q}
"""
_QUOTIENT_STEPS = """
    rcp.approx.ftz.f32 {r}, {b}; neg.f32 {e}, {b}; fma.rn.f32 {q}, {e}, {r}, 1.0; fma.rn.f32 {r}, {r}, {q}, {r};
    mul.rn.f32 {q}, {a}, {r}; fma.rn.f32 {out}, {e}, {q}, {a}; fma.rn.f32 {q}, {r}, {out}, {q};
    fma.rn.f32 {out}, {e}, {q}, {a}; fma.rn.f32 {out}, {r}, {out}, {q}
"""
ROOT = tl.constexpr(_assembly("sqrt.rn.f32", "a", _ROOT_STEPS, 0x0D000000, 0x7F7FFFFF, signed=False))
"""From 2**-101 to the largest number, so that what is left of a is exact."""
QUOTIENT = tl.constexpr(_assembly("div.rn.f32", "ab", _QUOTIENT_STEPS, 28 << 23, 153 << 23, signed=True))
"""From 2**-99 to 2**26, so that estimates are normal numbers, and what is left of a is exact."""
ROOT_REGISTERS = tl.constexpr(",".join(["=&f"] * _TOGETHER + ["f"] * _TOGETHER))
QUOTIENT_REGISTERS = tl.constexpr(",".join(["=&f"] * _TOGETHER + ["f"] * 2 * _TOGETHER))


@triton.jit
def sqrt(a):
    if PTX:
        return tl.inline_asm_elementwise(ROOT, ROOT_REGISTERS, [a], tl.float32, True, TOGETHER)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def divide(a, b):
    if PTX:
        return tl.inline_asm_elementwise(QUOTIENT, QUOTIENT_REGISTERS, [a, b], tl.float32, True, TOGETHER)
    else:
        return tl.div_rn(a, b)
