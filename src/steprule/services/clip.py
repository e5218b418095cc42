"""Ways to clip gradients: the ``clip`` argument of every optimizer."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.trace.program import ROW, TENSOR


class _Clip:
    """What a step asks of a way to clip. Each class says what it has otherwise.

    Attributes:
        axis: whose norm is limited, a `TENSOR`'s or a `ROW`'s; "" where no norm is.
        per_parameter: whether that is each tensor's own, and not that of all as one.
        norm_type: its p.
        max_norm: the limit, where that is one number.
        quantile, window: that of the last norms which is the limit, and how many those are; window is 0 where it is another.
        clip_value: the limit of elements, where they have one.
    """

    axis = TENSOR
    per_parameter = False
    norm_type = 2.0
    max_norm = math.inf
    quantile, window = 1.0, 0
    clip_value = 0.0


@dataclass(frozen=True)
class ClipNorm(_Clip):
    """Clips by norm, as `torch.nn.utils.clip_grad_norm_`: the norm of all gradients is at most max_norm. Pascanu et al. 2013.

    Args:
        max_norm: the largest norm, at least 0.
        norm_type: the p of the norm: any float, or inf for the largest absolute value. Default: 2.
        per_parameter: whether each parameter's gradient is clipped by its own norm. Default: False, all as one vector.

    Raises:
        ValueError: an argument is out of range.
    """

    max_norm: float
    norm_type: float = 2.0
    per_parameter: bool = False

    def __post_init__(self) -> None:
        _check("max_norm", self.max_norm, 0.0, math.inf)
        if not isinstance(self.norm_type, (int, float)) or math.isnan(self.norm_type):
            raise ValueError(f"Invalid norm_type value: {self.norm_type!r}; it must be a number")
        check_flags(per_parameter=self.per_parameter)


@dataclass(frozen=True)
class ClipValue(_Clip):
    """Clips by value, as `torch.nn.utils.clip_grad_value_`: every element is at most clip_value from 0.

    Args:
        clip_value: the largest absolute value, at least 0.

    Raises:
        ValueError: clip_value is out of range.
    """

    clip_value: float
    axis = ""

    def __post_init__(self) -> None:
        _check("clip_value", self.clip_value, 0.0, math.inf)


@dataclass(frozen=True)
class ClipAdaptive(_Clip):
    """Adaptive gradient clipping: the norm of each row's gradient is at most a share of the norm of its weights.

    A row is one index of the first dimension (an output unit); vectors and scalars are clipped whole.
    Brock et al. 2021, arXiv:2102.06171, equation 3. The authors leave the last linear layer out: to do so, put it in a
    group with ``"clip": False``.

    Args:
        clip_factor: the largest share, at least 0. Default: 0.01.
        eps: the smallest norm that a row of weights is taken to have. Default: 1e-3.

    Raises:
        ValueError: an argument is out of range.
    """

    clip_factor: float = 0.01
    eps: float = 1e-3
    axis = ROW

    def __post_init__(self) -> None:
        _check("clip_factor", self.clip_factor, 0.0, math.inf)
        _check("eps", self.eps, 0.0, math.inf)


@dataclass(frozen=True)
class ClipQuantile(_Clip):
    """AutoClip: the norm of all gradients is at most a quantile of the recent norms, this step's among them.

    Seetharaman et al. 2020, arXiv:2007.14469; with a window, as in bitsandbytes.

    Args:
        quantile: which one, in [0, 1]. Default: 0.1, the paper's.
        window: how many norms are recent. Default: 100.

    Raises:
        ValueError: an argument is out of range.
    """

    quantile: float = 0.1
    window: int = 100

    def __post_init__(self) -> None:
        _check("quantile", self.quantile, 0.0, 1.0)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"Invalid window value: {self.window!r}; it must be an int of 1 or more")


Clip = ClipNorm | ClipValue | ClipAdaptive | ClipQuantile


def as_clip(value: Any) -> Clip | None:
    """The clip argument as one of the classes; a number is a `ClipNorm` of that max_norm.

    Raises:
        ValueError: a number is out of range, or 0, which elsewhere means no clipping and here would stop training.
        TypeError: it is none of these.
    """
    if value is None or isinstance(value, Clip):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not value >= 0:
            raise ValueError(f"clip={value!r} must be above 0: the largest norm of the gradients")
        if value == 0:
            raise ValueError(
                "clip=0 would make every gradient 0; None is for no clipping, ClipNorm(0) for gradients of 0"
            )
        return ClipNorm(float(value))
    raise TypeError(
        f"clip must be a number (the largest norm), ClipNorm, ClipValue, ClipAdaptive or ClipQuantile, not {value!r}"
    )


def _check(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"Invalid {name} value: {value!r}; it must be a number from {low:g} to {high:g}")


def check_flags(**flags: Any) -> None:
    """Raises TypeError for what is neither True nor False."""
    for name, value in flags.items():
        if value not in (True, False):
            raise TypeError(f"{name} must be True or False, not {value!r}")


_NO_NORM = -1.0
"""Where there is no norm yet."""


def packed(recent: deque[float]) -> Tensor:
    """The norms of the last steps in a tensor whose size depends on the clip alone, so that one can be read into another's place."""
    norms = [*recent, *[_NO_NORM] * (recent.maxlen or 0)][: recent.maxlen]
    return torch.tensor(norms, dtype=torch.float64, device="cpu")


def unpacked(norms: Tensor) -> list[float]:
    """The norms in what `packed` returned."""
    return [norm for norm in norms.tolist() if norm != _NO_NORM]
