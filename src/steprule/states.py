"""States of torch parameters: what each is kept as, and how one becomes another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from steprule.engine.gpu import serves
from steprule.engine.overlap import first_overlap
from steprule.engine.trace import nonnegative_states
from steprule.formats import FORMATS, dither, mix
from steprule.formats import state_format as choose_state_format
from steprule.formats.tensors import decode, element_random, encode
from steprule.rule import Rule
from steprule.services.average import STATE as AVERAGE
from steprule.services.average import average_format

FORMAT_OPTIONS: dict[str, Any] = {"states": None, "weights": None, "seed": 0}
PLAIN = ("float64", "float32", "bfloat16", "float16")
DTYPES = {getattr(torch, name): name for name in PLAIN}
HALVES = (torch.bfloat16, torch.float16)
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


def _span(x: Tensor) -> tuple[int, int]:
    """The address of x's first byte and that after its last; nowhere if it is not in memory."""
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
    start, end = _span(x)
    if start == end:
        return 0
    return max(int(x.storage_offset() * x.element_size() + end - start - x.untyped_storage().nbytes()), 0)


def first_shared(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """The numbers of the first two tensors that have an element in common, or None; those without memory have none."""
    spans = [span if span[0] else (0, 0) for span in map(_span, tensors)]  # a freed one is nowhere
    elements = cache(lambda number: np.asarray(_Elements(tensors[number])))

    def share(a: int, b: int) -> bool:
        return tensors[a].device == tensors[b].device and np.shares_memory(elements(a), elements(b))

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


def name_of(dtype: torch.dtype) -> str:
    """As formats are called: "float32"."""
    return str(dtype).removeprefix("torch.")


def state_format(rule: type[Rule], name: str, group: Mapping[str, Any], param: Tensor) -> str:
    """The format that a group's choice of states means for one state of one parameter."""
    exact = rule.is_exact(name, group)
    return choose_state_format(
        group["states"], name_of(param.dtype), param.shape, name in nonnegative_states(rule, group), exact
    )


def correction_dtype(kind: str) -> str | None:
    """The dtype of a weight format's error-correction, None if it has none."""
    return dict(FORMATS[kind].arrays).get("_correction")


def kept_format(state: Mapping[str, Any], name: str) -> str:
    """The format that a state is in."""
    dtype = state[name].dtype
    if f"{name}_base" in state:
        return "signed8" if dtype == torch.int8 else "positive8"
    if f"{name}_correction" in state:
        return f"{name_of(dtype)} {'24bit' if state[f'{name}_correction'].dtype == torch.int8 else '32bit'}"
    return name_of(dtype)


def arrays_of(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The arrays that a state consists of, by suffix."""
    return {suffix: state[name + suffix] for suffix in ("", "_base", "_correction") if name + suffix in state}


def weight_arrays(param: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays that a weight consists of: the parameter and, where there is one, its error-correction."""
    return arrays_of({**state, "param": param.detach()}, "param")


def encode_rounded(kind: str, value: Tensor, seed: int, step: int, operand: int, place: int) -> dict[str, Tensor]:
    """`encode`, rounded as the format wants it at a step.

    Args:
        kind: the format.
        value: what to encode.
        seed, step: of the random bits.
        operand: the number of the dither that all elements share.
        place: the number of the key that elements draw from.
    """
    random: Any = dither(seed, step, operand)
    if FORMATS[kind].random == "element":
        random = element_random(mix(seed, step, place), value)
    return encode(kind, value, random)


def set_arrays(state: dict[str, Any], name: str, arrays: Mapping[str, Tensor]) -> None:
    """Puts others in their place."""
    for suffix in ("_base", "_correction"):
        state.pop(name + suffix, None)
    state.update({name + suffix: array for suffix, array in arrays.items()})


def convert(state: dict[str, Any], name: str, kind: str, param: Tensor) -> None:
    """Brings a state into a format, if it is not."""
    kept = kept_format(state, name)
    if kept == kind.removesuffix(" dithered").removesuffix(" stochastic"):
        return
    wide = decode(kept, arrays_of(state, name), param.shape)
    arrays = {"": wide.to(getattr(torch, kind))} if kind in PLAIN else encode(kind, wide.float())
    if not FORMATS[kind].grouped:
        arrays = {
            suffix: torch.empty_like(param, dtype=array.dtype, requires_grad=False).copy_(array)
            for suffix, array in arrays.items()
        }
    set_arrays(state, name, arrays)


def own_copy(name: str, value: Any, param: Tensor, group: Mapping[str, Any], rule: type[Rule]) -> Any:
    """A loaded state, not shared with the dict it came from and laid out as the engines want it."""
    if name in rule.scalar_states:
        options = step_options(group, param)
        kept = {"dtype": torch.float64} if rule.scalar_dtype != "step" else {}
        return torch.as_tensor(value).to(**{**options, **kept}).reshape(()).clone()
    if name == "step" and not (isinstance(value, Tensor) and value.is_floating_point()):
        return torch.tensor(float(value), **step_options(group, param))
    if name == "step":
        return value.to(step_options(group, param)["device"], copy=True)
    if not isinstance(value, Tensor):
        return value
    if value.is_sparse:  # torch.optim's momentum of sparse gradients
        value = value.to_dense()
    if value.shape == param.shape and value.layout is torch.strided and param.layout is torch.strided:
        return torch.empty_like(param, dtype=value.dtype, device=value.device, requires_grad=False).copy_(
            value.detach()
        )
    return value.clone()


def step_options(group: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """dtype and device of a kept step, as torch.optim has them; where the GPU engine counts it is on the device."""
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    on_device = group.get("capturable") or group.get("fused") or serves(param.device)
    return {"dtype": torch.float64 if double else torch.float32, "device": param.device if on_device else "cpu"}


def move_resting_average(
    param: Tensor, group: Mapping[str, Any], state: dict[str, Any], weight: Any, averaged: Callable[[], int]
) -> None:
    """Brings the average of a parameter without a gradient towards it.

    Args:
        param, group, state: the parameter's.
        weight: by which share; a number or a tensor.
        averaged: says after how many averages; asked where the average is rounded at random.
    """
    if param.is_complex():
        share = weight.to(param.device, param.dtype) if isinstance(weight, Tensor) else weight
        state[AVERAGE].lerp_(param.detach(), share)
        return
    kind = average_format(group.get("weights"), name_of(param.dtype))
    convert(state, AVERAGE, kind, param)
    old = decode(kind, arrays_of(state, AVERAGE), param.shape)
    value = decode(kept_format({**state, "param": param}, "param"), weight_arrays(param, state), param.shape)
    share = weight.to(old.device, old.dtype) if isinstance(weight, Tensor) else weight
    new = old + share * (value - old)
    step = averaged() if FORMATS[kind].random else 0
    for suffix, array in encode_rounded(kind, new, group.get("seed", 0), step, 0, 0).items():
        state[AVERAGE + suffix].copy_(array)
