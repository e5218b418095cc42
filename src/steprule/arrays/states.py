"""The states of an array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from steprule.arrays.checks import Array
from steprule.rule import Rule
from steprule.state import first_array, state_shape


def kind_of(
    rule: type[Rule], name: str, param: Array, settings: Mapping[str, Any]
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and the dtype of a state."""
    dtype = param.dtype if name in rule.tensor_states else np.dtype(float)
    return state_shape(rule, name, param.shape, settings), dtype


def begin(
    rule: type[Rule], names: Iterable[str], param: Array, state: dict[str, Any], settings: Mapping[str, Any]
) -> None:
    """Adds those of these states that are missing, in the order of the parameter's memory."""
    for name in names:
        if name not in state:
            shape, dtype = kind_of(rule, name, param, settings)
            state[name] = np.full_like(param, first_array(rule, name, param, settings), dtype, shape=shape)
