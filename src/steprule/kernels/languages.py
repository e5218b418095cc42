"""How kernels for LLVM and for Triton say the same things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """The words that kernels of an engine are made of.

    Attributes:
        compiler: who reads it.
        calls: how operations of elements are written, by their dtype; those that are missing are infix.
        scalar_calls: how those of scalars are, which are float64.
        constant: how a scalar's constants are.
        cast: ``x`` as ``dtype``.
        load, store: element i of an array called ``array``, read, and written with ``value``.
        element_random: the random bits of an element.
        weyl: those of its place in a block, made of the block's.
    """

    compiler: str
    calls: Mapping[str, Mapping[str, str]]
    scalar_calls: Mapping[str, str]
    constant: str
    cast: str
    load: str
    store: str
    element_random: str
    weyl: str


INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "and": "&", "or": "|",
}  # fmt: skip
"""The same in both."""

_LLVM = {
    "sqrt": "sqrt({})",
    "exp": "exp({})",
    "log": "log({})",
    "floor": "floor({})",
    "abs": "abs({})",
    "neg": "(-{})",
    "not": "(not {})",
    "maximum": "larger({}, {})",
    "minimum": "smaller({}, {})",
    "where": "({1} if {0} else {2})",
    "pow": "({} ** {})",
    "multiply_add": "multiply_add({}, {}, {})",
    "bits": "bits_as_number({})",
    "of_bits": "number_as_bits({})",
    "cbrt": "({} ** (1.0 / 3.0))",
}

LLVM = Language(
    compiler="LLVM",
    calls={"float32": _LLVM, "float64": _LLVM},
    scalar_calls=_LLVM,
    constant="{!r}",
    cast="{dtype}({x})",
    load="load_{array}({array}_at, i)",
    store="store_{array}({array}_at, i, {value})",
    element_random="element_random(key, start + i)",
    weyl="weyl({}, j)",
)

_TRITON = {
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "abs": "tl.abs({})",
    "neg": "({} * -1.0)",
    "not": "(~{})",
    "maximum": "lib.larger({}, {})",
    "minimum": "lib.smaller({}, {})",
    "where": "tl.where({}, {}, {})",
    "pow": "lib.power({}, {})",
    "multiply_add": "tl.fma({}, {}, {})",
    "bits": "lib.bits_as_number({})",
    "of_bits": "lib.number_as_bits({})",
    "cbrt": "lib.power({}, zero + 1.0 / 3.0)",
}
_TRITON64 = {**_TRITON, "sqrt": "tl.sqrt({})", "floor": "tl.floor({})"}

TRITON = Language(
    compiler="Triton",
    calls={"float32": {**_TRITON, "sqrt": "lib.sqrt({})", "div": "lib.divide({}, {})"}, "float64": _TRITON64},
    scalar_calls=_TRITON64,
    constant="(zero + {!r})",
    cast="{x}.to(tl.{dtype})",
    load="lib.load({array}_at + i, inside)",
    store="lib.store({array}_at + i, {value}, inside)",
    element_random="lib.element_random(key, element)",
    weyl="lib.of_place({}, block, place)",
)
