"""How polar factors are computed: which form of the iteration, in which dtype, stacked or one by one. By shape and machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch

from steprule.matrix.products import blocks_of

Form: TypeAlias = Literal["plain", "symmetric", "gram"]
FORMS: tuple[Form, ...] = ("plain", "symmetric", "gram")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_SLOW_ISA = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
"""Limits of oneDNN under which it has no dot products of bfloat16."""


@dataclass(frozen=True)
class How:
    """A way to compute polar factors.

    Attributes:
        form: "plain" does every step on the matrix. "symmetric" does so too, and computes symmetric products by halves.
            "gram" does several steps on the Gram matrix before it touches the matrix again, also by halves.
        dtype: of all products.
        batched: whether the stack goes through each product at once, or one matrix after another through all of them.
    """

    form: Form
    dtype: torch.dtype
    batched: bool


def plan_for(
    shape: tuple[int, int],
    count: int,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
) -> How:
    """What is fastest for a stack of matrices, by what was measured.

    It depends on its arguments, on what `fast_bfloat16` says of the processor and on what `STEPRULE_PRODUCTS` says, on nothing else, so
    that two runs of a program on a machine compute alike.

    Args:
        shape: of each matrix.
        count: of matrices.
        device: where they are.
        dtype: of the products; None takes bfloat16 where the device is fast at it, and else float32. On a GPU the Gram form is
            in float16, which is as fast and has a fifth of the error.

    Raises:
        ValueError: dtype or `STEPRULE_PRODUCTS` is none.

    >>> plan_for((768, 3072), 4, torch.device("cpu"), dtype=torch.bfloat16)
    How(form='gram', dtype=torch.bfloat16, batched=False)
    """
    short, long = sorted(shape)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, or None; got {dtype!r}")
    on_cpu = device.type == "cpu"
    said = said_of_products()
    if on_cpu and said.get("dtype") == torch.float16:
        raise ValueError("STEPRULE_PRODUCTS: float16 is for GPUs; write float32 or bfloat16")
    dtype = said.get("dtype") if dtype is None else dtype
    little = short <= 32 or (short <= 64 and count == 1)  # calls take longer than what they compute
    is_long = long >= 2 * short and (not (little and (count == 1 or short < 32)) if on_cpu else short >= 1024)
    if dtype is None and not on_cpu:
        dtype = torch.float16 if is_long else torch.bfloat16
    elif dtype is None:
        dtype = torch.float32 if little or not fast_bfloat16() else torch.bfloat16
    is_cut = blocks_of(short, dtype) > 1 if on_cpu else short >= 256
    form: Form = "gram" if is_long else "symmetric" if is_cut else "plain"
    batched = count > 1 and (not on_cpu or short <= (128 if dtype == torch.float32 else 256))
    return How(said.get("form", form), dtype, count > 1 and said.get("batched", batched))


_WORDS: dict[str, tuple[str, Any]] = {
    "float32": ("dtype", torch.float32), "bfloat16": ("dtype", torch.bfloat16), "float16": ("dtype", torch.float16),
    **{form: ("form", form) for form in FORMS},
    "batched": ("batched", True), "single": ("batched", False),
}  # fmt: skip
"""What `STEPRULE_PRODUCTS` may say: the attribute of `How` that a word sets, and its value."""


def said_of_products() -> dict[str, Any]:
    """Those attributes of `How` that `STEPRULE_PRODUCTS` sets, as "float32 gram" does.

    Raises:
        ValueError: it has another word, or two for one attribute.
    """
    text = os.environ.get("STEPRULE_PRODUCTS", "")
    said: dict[str, Any] = {}
    for word in text.split():
        name, value = _WORDS.get(word, ("", None))
        if not name or name in said:
            what = (
                f"{word!r} is none of {', '.join(_WORDS)}"
                if not name
                else f"{word!r} is the second word for its {name}"
            )
            raise ValueError(f"STEPRULE_PRODUCTS={text!r}: {what}")
        said[name] = value
    return said


@lru_cache(maxsize=1)
def fast_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 matrices on this CPU faster than float32 ones.

    It does where oneDNN has the processor's dot products of bfloat16 (AVX512_BF16 or AMX): 2 to 3 times as fast. Without them
    it is up to 20 times slower. So this asks for the processor's flags, and for the limit that ONEDNN_MAX_CPU_ISA may set;
    torch's own question, whether oneDNN takes bfloat16 at all, is also answered with yes where it is slow. Nothing is
    measured. The answer is kept for the process, as oneDNN keeps its limit.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "all"
    if limit.lower() in _SLOW_ISA:
        return False
    return any(
        getattr(torch.cpu, flag, lambda: False)() for flag in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
