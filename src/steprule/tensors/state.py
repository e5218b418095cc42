"""States of torch parameters: what each is kept as, and how one becomes another.

What the arrays of a state are called is known here and in `steprule.formats` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from steprule import formats
from steprule.engine.gpu import serves
from steprule.engine.plan import LAST_FLOAT32_STEP
from steprule.formats import FORMATS, SUFFIXES, Numbering, dither, mix, weight_format
from steprule.formats.parts import cut_as, is_sharded
from steprule.formats.tensors import decode, element_random, encode, zeros
from steprule.rule import Rule
from steprule.tensors.beside import begin_beside, side_dtype
from steprule.tensors.memory import (
    COUNTING,
    HALF_DTYPES,
    PLAIN,
    dtype_name,
    is_abstract,
)
from steprule.trace.tracing import exact_states, nonnegative_states

FORMAT_OPTIONS: dict[str, Any] = {"states": None, "weights": None, "seed": 0}
GROUP_OPTIONS: dict[str, Any] = {**FORMAT_OPTIONS, "view": None}
AVERAGE = "param_average"
"""The state that holds the average of the weights; while the model has that, the weights instead, where they fit there."""
TRAINED = "param_trained"
"""Where a state dict has the weights while the model has their averages, if they are kept in other formats than those."""


def is_near(x: Tensor) -> bool:
    """Whether x's numbers can be read without waiting for a device."""
    return x.is_cpu and not serves(x.device) and not is_abstract(x)


def state_format(rule: type[Rule], name: str, group: Mapping[str, Any], param: Tensor) -> str:
    """The format that a group's choice of states means for one state of one parameter."""
    return formats.state_format(
        group["states"], dtype_name(param.dtype), param.shape, name in nonnegative_states(rule, group),
        name in exact_states(rule, group),
    )  # fmt: skip


def average_format(weights: str | None, dtype: str) -> str:
    """The format of the average of weights: theirs, but float32 where theirs would drop small updates."""
    return "float32" if dtype in formats.HALVES and weights is None else weight_format(weights, dtype)


def low_bits_dtype(kind: str) -> str | None:
    """The dtype of a weight format's low bits, None if it has none."""
    return dict(FORMATS[kind].arrays).get("_correction")


def begin_low_bits(state: dict[str, Any], kind: str, param: Tensor) -> None:
    """Gives a weight the low bits of its format, or takes them out if the format has none."""
    drop_other_low_bits(state, kind)
    if low_bits_dtype(kind) is not None and state.get("param_correction") is None:
        state["param_correction"] = zeros(kind, param)["_correction"]


def drop_other_low_bits(state: dict[str, Any], kind: str) -> None:
    """Takes out a weight's low bits unless they are those of its format."""
    low = state.get("param_correction")
    if low is not None and dtype_name(low.dtype) != low_bits_dtype(kind):
        del state["param_correction"]


def arrays_in(formats: Mapping[str, str], by_element: bool = False) -> list[tuple[str, str]]:
    """The arrays of operands in these formats, as their names and suffixes.

    Args:
        formats: by name.
        by_element: only those with something for each element, without block exponents.
    """
    return [
        (name, suffix)
        for name, kind in formats.items()
        for suffix, _ in FORMATS[kind].arrays
        if not (by_element and suffix == "_base")
    ]


def with_low_bits(x: Tensor, low: Tensor) -> dict[str, Tensor]:
    """The arrays of what has low bits, by suffix."""
    return {"": x, "_correction": low}


def has_arrays(state: Mapping[str, Any], name: str) -> bool:
    """Whether there is anything of a state's numbers."""
    return name in state or f"{name}_8bit" in state


def kept(state: Mapping[str, Any], name: str) -> Tensor | None:
    """The array of a state that has a number, or a code for one, for each element; None if there is no such state."""
    array = state.get(name)
    array = state.get(f"{name}_8bit") if array is None else array
    return array if isinstance(array, Tensor) else None


def state_of(array: str, names: Collection[str]) -> str | None:
    """Which of these states an array of that name belongs to."""
    if array in names:
        return array
    return next((n for s in SUFFIXES if s and array.endswith(s) and (n := array.removesuffix(s)) in names), None)


def kept_format(state: Mapping[str, Any], name: str) -> str:
    """The format that a state is in."""
    if state.get(name) is None:
        return "signed8" if state[f"{name}_8bit"].dtype == torch.int8 else "positive8"
    dtype = state[name].dtype
    if f"{name}_correction" in state:
        return f"{dtype_name(dtype)} {'24bit' if state[f'{name}_correction'].dtype == torch.int8 else '32bit'}"
    return dtype_name(dtype)


def arrays_of(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The arrays that a state consists of, by suffix."""
    return {suffix: state[name + suffix] for suffix in SUFFIXES if name + suffix in state}


def weight_arrays(param: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays that a weight consists of: the parameter and, where there are some, its low bits."""
    return arrays_of({**state, "param": param.detach()}, "param")


def encode_rounded(
    kind: str, value: Tensor, seed: int, step: int, operand: int, place: int, numbering: Callable[[], Numbering | None]
) -> dict[str, Tensor]:
    """`encode`, rounded as the format wants it at a step.

    Args:
        kind: the format.
        value: what to encode.
        seed, step: of the random bits.
        operand: the number of the dither that all elements share.
        place: the number of the key that elements draw from.
        numbering: says how they are numbered; asked where each draws.
    """
    random: Any = dither(seed, step, operand)
    if FORMATS[kind].random == "element":
        random = element_random(mix(seed, step, place), value, numbering())
    return encode(kind, value, random)


def read_state(state: Mapping[str, Any], name: str, shape: torch.Size) -> Tensor:
    """The number behind each element of a state, in a new tensor: float32 at least, or complex."""
    kind = kept_format(state, name)
    if kind not in FORMATS:  # complex
        return state[name].clone()  # type: ignore[no-any-return]
    value = decode(kind, arrays_of(state, name), shape)
    return value.to(torch.promote_types(value.dtype, torch.float32), copy=True)


def encode_weight(value: Tensor, param: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays of `weight_arrays` for another value of the parameter, rounded to nearest."""
    kind = kept_format({**state, "param": param}, "param")
    if kind in PLAIN or kind not in FORMATS:
        return {"": value.to(param.dtype)}
    return encode(kind, value.float())


def set_arrays(state: dict[str, Any], name: str, arrays: Mapping[str, Tensor]) -> None:
    """Puts others in their place."""
    for suffix in SUFFIXES:
        if suffix not in arrays:
            state.pop(name + suffix, None)
    state.update({name + suffix: array for suffix, array in arrays.items()})


def convert(state: dict[str, Any], name: str, kind: str, param: Tensor) -> None:
    """Brings a state into a format, if it is not."""
    before = kept_format(state, name)
    if before == kind.removesuffix(" dithered").removesuffix(" stochastic"):
        return
    wide = decode(before, arrays_of(state, name), param.shape)
    arrays = {"": wide.to(getattr(torch, kind))} if kind in PLAIN else encode(kind, wide.float())
    if not FORMATS[kind].blockwise:
        arrays = {
            suffix: torch.empty_like(param, dtype=array.dtype, requires_grad=False).copy_(array)
            for suffix, array in arrays.items()
        }
    set_arrays(state, name, arrays)


def own_copy(name: str, value: Any, param: Tensor, group: Mapping[str, Any], rule: type[Rule]) -> Any:
    """A loaded state, not shared with the dict it came from and laid out as the engines want it."""
    if name in rule.scalar_states:
        options = step_options(group, param)
        options |= {"dtype": torch.float64} if rule.states[name].dtype != "step" else {}
        value = value if isinstance(value, Tensor) else float(value)
        return torch.as_tensor(value, **options).reshape(()).clone()
    if name == "step":
        options = step_options(group, param)
        if not isinstance(value, Tensor) or not (value.dtype in COUNTING or is_abstract(value)):
            dtype = options["dtype"] if float(value) < LAST_FLOAT32_STEP else torch.float64
            return torch.tensor(float(value), **{**options, "dtype": dtype})
        return value.to(options["device"], copy=True)
    if not isinstance(value, Tensor):
        return value
    if is_sharded(param) or is_sharded(value):
        value = cut_as(param, value.detach(), rule.states[name].extent if name in rule.side_states else "elements")
    if name in rule.side_states:
        return value.to(side_dtype(param), copy=True)
    if value.is_sparse:  # torch.optim's momentum of sparse gradients
        value = value.to_dense()
    if value.shape == param.shape and value.layout is torch.strided and param.layout is torch.strided:
        own = torch.empty_like(param, dtype=value.dtype, device=value.device, requires_grad=False)
        return own.copy_(value.detach())
    return value.clone()


def begin_state(
    rule: type[Rule], name: str, state: dict[str, Any], param: Tensor, group: Mapping[str, Any], kind: str | None
) -> None:
    """Gives a parameter a state as it begins. One that begins at numbers may have another format still.

    Args:
        rule: whose state it is.
        name: the state's.
        state: the parameter's.
        param: the parameter; detached unless autograd is to see what begins at it.
        group: its settings.
        kind: the format that the state is going to have, if it is one of elements that has a format.
    """
    first = rule.begins_at(name, param, group)
    if name in rule.scalar_states:
        like = {} if rule.states[name].dtype == "step" else {"dtype": torch.float64}
        fresh = torch.empty((), **{**step_options(group, param), **like})
        state[name] = fresh.copy_(_filled(fresh, first))
    elif name in rule.side_states:
        made = begin_beside(rule, name, param, group, float(first))
        state[name] = cut_as(param, made, rule.states[name].extent) if is_sharded(param) else made
    elif kind is not None and not isinstance(first, Tensor) and first == 0:
        set_arrays(state, name, zeros(kind, param))
    else:
        dtype = param.dtype if param.dtype not in HALF_DTYPES else torch.float32
        state[name] = torch.empty_like(param, dtype=dtype, requires_grad=False)
        state[name].copy_(param if first is param else _filled(param, first))


def _filled(like: Tensor, value: Any) -> Tensor:
    """A tensor of this number, that autograd can go through where it is one; complex numbers have it twice."""
    if isinstance(value, Tensor):
        number = value.double().reshape(()).to(like.device).expand(like.shape)
    else:
        number = torch.full_like(like, float(value), dtype=torch.float64, requires_grad=False)
    return torch.complex(number, number) if like.is_complex() else number


def widen_numbers(state: dict[str, Any], param: Tensor, group: Mapping[str, Any], rule: type[Rule]) -> None:
    """Has kept steps, and states that are one number, be of a dtype that can count: a step in bfloat16 stands still at 256."""
    for name in ("step", *rule.scalar_states):
        value = state.get(name)
        if value is not None and not (isinstance(value, Tensor) and value.dtype in COUNTING):
            state[name] = own_copy(name, value, param, group, rule)


def step_options(group: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """dtype and device of a kept step, as torch.optim has them; where the GPU engine counts it is on the device."""
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    on_device = group.get("capturable") or group.get("fused") or serves(param.device)
    return {"dtype": torch.float64 if double else torch.float32, "device": param.device if on_device else "cpu"}


def counting(step: Tensor, param: Tensor) -> Tensor:
    """A kept step in a dtype that can count further.

    That is float32, as torch.optim's, to where it would stand still, and float64 from there on. Where the GPU engine counts it is
    float64 from the start, since the host does not see how far a step there, or a recorded graph's, has come.
    """
    if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.device.type == "mps" or is_abstract(step):
        return step
    if step.device.type == "cpu" and not serves(param.device) and float(step) < LAST_FLOAT32_STEP:
        return step
    return step.double()
