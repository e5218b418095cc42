"""What about the states of a parameter does not fit it, in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from steprule.formats import exponent_shape
from steprule.rule import Rule
from steprule.tensors.beside import shape_beside
from steprule.tensors.memory import DTYPES, has_overlaps, is_abstract, missing_bytes, too_short
from steprule.tensors.state import AVERAGE, has_arrays, is_near, kept, state_of


def freed(state: Mapping[str, Any], who: str) -> str | None:
    """What is wrong if a parameter's state has a tensor whose storage was freed or made smaller, or None."""
    wrong = next((name for name, x in state.items() if isinstance(x, Tensor) and missing_bytes(x)), None)
    return None if wrong is None else too_short(state[wrong], f"the state {wrong} of {who}")


def misfit(
    rule: type[Rule], state: Mapping[str, Any], param: Tensor, who: str, group: Mapping[str, Any], converted: bool = False,
) -> str | None:  # fmt: skip
    """What about the kinds, storages, shapes and dtypes of a parameter's states does not fit it, or None.

    Args:
        rule: whose states they are.
        state: the parameter's.
        param: the parameter.
        who: what to call it.
        group: its settings, among them perhaps a view.
        converted: whether states of other dtypes are going to be converted.
    """
    if problem := _no_tensor(rule, state, who, converted) or freed(state, who):
        return problem
    for name in rule.scalar_states:
        if isinstance(state.get(name), Tensor) and state[name].numel() != 1:
            return f"the state {name} of {who} has the shape {state[name].shape}, not one number"
    for name in rule.side_states:
        shape, value = shape_beside(rule, name, param, group), state.get(name)
        if isinstance(value, Tensor) and (value.shape != shape or not value.is_floating_point()):
            return f"the state {name} of {who} is {value.dtype} of shape {tuple(value.shape)} and must be floating point of shape {shape}"
    for name in ("param_correction", AVERAGE, f"{AVERAGE}_correction", *rule.tensor_states):
        if not has_arrays(state, name) and f"{name}_base" not in state:
            continue
        array, exponents = kept(state, name), state.get(f"{name}_base")
        if array is not None and array.shape != param.shape:
            return f"the state {name} of {who} has the shape {array.shape}, its parameter {param.shape}"
        if array is not None and has_overlaps(array):
            return (
                f"elements of the state {name} of {who} share memory, as its strides {array.stride()} say; clone() it"
            )
        if array is not None and f"{name}_8bit" in state and exponents is None:
            return f"the state {name}_8bit of {who} is without {name}_base, the block exponents that its codes are counted from"
        codes = state.get(f"{name}_8bit")
        if isinstance(codes, Tensor) and codes.dtype not in (torch.int8, torch.uint8):
            return f"the state {name}_8bit of {who} is {codes.dtype} and must be int8 or uint8"
        if isinstance(exponents, Tensor) and (
            exponents.shape != exponent_shape(param.shape) or exponents.dtype != torch.int16
        ):
            return (
                f"the state {name}_base of {who} is {exponents.dtype} of shape {tuple(exponents.shape)} and must be int16 of shape "
                f"{exponent_shape(param.shape)}"
            )
        value = state.get(name)
        if isinstance(value, Tensor) and not _is_usable(name, value.dtype, param.dtype, converted):
            return (
                f"the state {name} of {who} is {value.dtype}, which a step of {param.dtype} cannot use: convert it, "
                "or clear that parameter's state to begin anew"
            )
    return None


def _no_tensor(rule: type[Rule], state: Mapping[str, Any], who: str, converted: bool) -> str | None:
    """What is wrong if a state is something else than a tensor, or None. One number may be when it is converted."""
    elements = ("param", AVERAGE, *rule.tensor_states)
    for array, value in state.items():
        is_number = converted and isinstance(value, (int, float))
        is_one = array in (*rule.scalar_states, *rule.side_states) and not is_number
        if (is_one or state_of(array, elements)) and not isinstance(value, (Tensor, NoneType)):
            return f"the state {array} of {who} is {value!r} and must be a tensor"
    return None


def _is_usable(name: str, dtype: torch.dtype, param: torch.dtype, converted: bool) -> bool:
    """Whether a state of a parameter of this dtype may be of that."""
    if name.endswith("_correction"):
        return dtype in (torch.int8, torch.int16)
    if param.is_complex:
        return dtype.is_complex and (converted or dtype.itemsize <= param.itemsize)
    converted = converted or name == AVERAGE
    return dtype in DTYPES and (converted or dtype != torch.float64 or param == torch.float64)


def wrong_step(step: Any, who: str) -> str | None:
    """What is wrong with a parameter's number of steps, or None; it may be a plain number, as in old checkpoints."""
    if isinstance(step, Tensor) and is_abstract(step):
        return None
    try:
        is_right = not isinstance(step, str) and float(step) >= 0 and float(step).is_integer()
    except (TypeError, ValueError, RuntimeError):  # a vector, nothing of the kind
        is_right = False
    return None if is_right else f"the state step of {who} is {step!r} and must be a number of steps, 0 or more"


def lacking(rule: type[Rule], state: Mapping[str, Any], hyper: Mapping[str, Any]) -> list[str]:
    """Which states a parameter that has begun lacks; those that a setting asks for may begin later.

    Args:
        rule: the formula, without options: what those add may begin later too.
        state: the parameter's.
        hyper: its settings.
    """
    names = [name for name in rule.states_for(hyper) if name is not None]
    has_begun = any(kept(state, name) is not None for name in names)
    counts = rule.keeps_step and rule.counts_steps
    step = state.get("step")
    if not has_begun and not (counts and isinstance(step, Tensor) and is_near(step) and step > 0):
        return []
    missing = [name for name in names if kept(state, name) is None and not rule.states[name].when]
    return missing + ["step"] * (counts and step is None)
