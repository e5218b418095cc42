"""Where tensors lie: what kernels may read and write, and who shares memory with whom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from steprule.engine.overlap import first_overlap

PLAIN = ("float64", "float32", "bfloat16", "float16")
DTYPES = {getattr(torch, name): name for name in PLAIN}
HALF_DTYPES = (torch.bfloat16, torch.float16)
COUNTING = (torch.float32, torch.float64)  # dtypes that a step is kept in
MIXABLE = {torch.float32, torch.bfloat16, torch.float16}  # a parameter's and its gradient's dtype

_READABLE = {*DTYPES, torch.int8, torch.uint8, torch.int16}


def is_readable(x: Tensor, device: torch.device) -> bool:
    """Whether a kernel on the device may read and write x through its address."""
    return (
        type(x).__torch_dispatch__ is Tensor.__torch_dispatch__  # a subclass with its own may hold no memory of its own
        and x.device == device
        and x.layout is torch.strided
        and x.dtype in _READABLE
        and not x.is_neg()
        and not x.is_inference()
    )


_FAKES = "torch._subclasses.fake_tensor"  # imported by those who use it
_PLAIN_TYPES = (Tensor, Parameter)


def is_fake(x: Tensor) -> bool:
    """Whether x was made in torch's FakeTensorMode, which estimates what a model takes."""
    return type(x) not in _PLAIN_TYPES and _FAKES in sys.modules and isinstance(x, sys.modules[_FAKES].FakeTensor)


def is_abstract(x: Tensor) -> bool:
    """Whether x has a shape and no numbers: fake tensors, what is made of them, and those on the meta device."""
    if type(x) in _PLAIN_TYPES:
        return x.is_meta
    return x.is_meta or (_FAKES in sys.modules and bool(sys.modules[_FAKES].is_fake(x)))


def _is_common(x: Tensor) -> bool:
    """Whether x is a tensor as most are, which is quickly looked at."""
    return type(x) in _PLAIN_TYPES and x.is_cpu and x.layout is torch.strided and x.is_contiguous()


def span(x: Tensor) -> tuple[int, int]:
    """The address of x's first byte and that after its last; nowhere if it is not in memory."""
    if _is_common(x):
        start = x.data_ptr()
        return start, start + x.nbytes
    if type(x) not in _PLAIN_TYPES and (type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ or is_lazy(x)):
        return 0, 0
    if x.layout is not torch.strided or not (x.is_cpu or x.is_cuda) or not x.numel():
        return 0, 0
    start = x.data_ptr()
    elements = x.numel()
    if not x.is_contiguous():
        elements = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return start, start + elements * x.element_size()


def missing_bytes(x: Tensor) -> int:
    """How many bytes x's storage is too short for its elements, as one that was freed is."""
    if _is_common(x) and not x.storage_offset() and x.untyped_storage().nbytes() >= x.nbytes:
        return 0
    start, end = span(x)
    if start == end:
        return 0
    return max(int(x.storage_offset() * x.element_size() + end - start - x.untyped_storage().nbytes()), 0)


def too_short(x: Any, whose: str) -> str | None:
    """What is wrong with a tensor whose storage was freed or made smaller, or None.

    Args:
        x: the tensor; anything else is right.
        whose: what to call it.
    """
    missing = missing_bytes(x) if isinstance(x, Tensor) else 0
    if not missing:
        return None
    return f"the storage of {whose} lacks {missing} bytes of those that its shape {tuple(x.shape)} needs: it was freed or made smaller"


def unsteppable(x: Tensor, whose: str) -> str | None:
    """Why no step can write to a parameter, whatever the rule, and what to do instead; None where one can.

    Args:
        x: the parameter.
        whose: what to call it.
    """
    if x.layout not in (torch.strided, torch.sparse_coo, torch.jagged):
        return f"{whose} has the layout {x.layout}, which no step writes to; to_dense() makes one that it does"
    if not (x.is_floating_point() or x.is_complex()) or x.element_size() == 1:
        return (
            f"{whose} is {x.dtype}, and a step needs bfloat16, float16, float32, float64 or complex numbers; convert it"
        )
    if is_traceable_wrapper_subclass(x) and x.layout is torch.strided and not is_abstract(x):
        return f"{whose} is a {type(x).__name__}, without memory of its own; step the tensors that it consists of"
    if has_overlaps(x):
        return f"elements of {whose} share memory, as its strides {x.stride()} say, and a step would write there more than once; clone() it"
    return None


def has_overlaps(x: Tensor) -> bool:
    """Whether elements may share memory, as those of an expanded tensor do."""
    if _is_common(x) or x.layout is not torch.strided or not x.numel():
        return False
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def are_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors lie in memory of their own, each in one stretch; False if it takes more than this to know."""
    spans = np.fromiter(chain.from_iterable(map(span, tensors)), np.uint64).reshape(-1, 2)
    spans = spans[(spans[:, 0] != spans[:, 1]) & (spans[:, 0] != 0)]  # a freed one is nowhere
    starts, ends = spans[np.argsort(spans[:, 0])].T
    return bool((ends[:-1] <= starts[1:]).all())


def first_shared(tensors: Sequence[Tensor], may: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The numbers of the first two tensors that have an element in common, or None; those without memory have none.

    Args:
        tensors: which.
        may: whether two may, for those that may overlap.
    """
    spans = [one if one[0] else (0, 0) for one in map(span, tensors)]  # a freed one is nowhere
    elements = cache(lambda number: np.asarray(_Elements(tensors[number])))

    def share(a: int, b: int) -> bool:
        return tensors[a].device == tensors[b].device and not may(a, b) and np.shares_memory(elements(a), elements(b))

    return first_overlap(spans, share)


class _Elements:
    """Where a tensor's elements are, as NumPy asks for it: it reads none of them."""

    def __init__(self, x: Tensor) -> None:
        size = x.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (x.data_ptr(), True),
            "shape": tuple(x.shape),
            "strides": tuple(size * stride for stride in x.stride()),
            "typestr": f"|V{size}",
        }


def find_shared(written: Sequence[tuple[str, Tensor]], grads: Sequence[tuple[str, Tensor, range]] = ()) -> str | None:
    """What is wrong if two tensors lie in the same memory; None if none do.

    Args:
        written: with their names in errors.
        grads: that are only read, and may lie where others do; and which of written are of the same parameter. A gradient
            may be one of those, each element at its place.
    """
    tensors, first = [*(x for _, x in written), *(x for _, x, _ in grads)], len(written)

    def may(a: int, b: int) -> bool:
        a, b = sorted((a, b))
        return b >= first and (
            a >= first
            or (
                a in grads[b - first][2]
                and (tensors[a].data_ptr(), tensors[a].dtype) == (tensors[b].data_ptr(), tensors[b].dtype)
                and layout(tensors[a]) == layout(tensors[b])
            )
        )

    both = first_shared(tensors, may)
    if both is None:
        return None
    if both[1] >= first:
        return (
            f"{grads[both[1] - first][0]} lies in the memory of {written[both[0]][0]}, which is written while it is read: "
            "clone() it"
        )
    (one, a), (other, b) = (written[number] for number in both)
    tie = "give one of them only and tie them by assigning the same Parameter, or "  # which states cannot be
    return (
        f"{one} and {other} lie in the same memory, which would be stepped twice: "
        f"{tie if a.requires_grad and b.requires_grad else ''}give each memory of its own by clone()"
    )


def layout(x: Tensor) -> list[tuple[int, int]]:
    """x's sizes and strides, but for dimensions of size 1 and where there is no element, whose strides say nothing."""
    if not x.numel():
        return []
    return [(size, stride) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def is_dense(x: Tensor) -> bool:
    """Whether x fills one stretch of memory, each place once, in whatever order of dimensions."""
    if x.layout is not torch.strided:
        return False
    if not x.numel():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def dtype_name(dtype: torch.dtype) -> str:
    """As formats are called: "float32"."""
    return str(dtype).removeprefix("torch.")
