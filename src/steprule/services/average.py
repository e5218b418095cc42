"""An EMA of the weights: the ``average`` argument of every optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steprule.services.clip import check_flags


@dataclass(frozen=True)
class Average:
    """An exponential moving average (EMA) of the weights after each step; it begins as a copy. Polyak & Juditsky 1992.

    With the defaults it is the same as `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`.

    Args:
        decay: the share of the old average in the new one, in [0, 1). Default: 0.999.
        warmup: use ``(1 + n) / (10 + n)`` after n averages where that is smaller than decay, as TensorFlow's moving
            averages do. Default: False.
        bias_correction: weigh as if the average had begun at 0 and been debiased, so that the first weights count no
            more than later ones. Default: False.

    Raises:
        ValueError: decay is out of range, or both options are chosen.
    """

    decay: float = 0.999
    warmup: bool = False
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0 <= self.decay < 1:
            raise ValueError(f"Invalid average decay: {self.decay!r}; it must be a number in [0, 1)")
        check_flags(warmup=self.warmup, bias_correction=self.bias_correction)
        if self.warmup and self.bias_correction:
            raise ValueError("average takes warmup=True or bias_correction=True, not both: each shortens the start")


def as_average(value: Any) -> Average | None:
    """The average argument as an `Average`; a number is its decay.

    Raises:
        ValueError: the number is out of range.
        TypeError: it is neither.
    """
    if value is None or isinstance(value, Average):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value < 1:
            raise ValueError(f"average={value!r} must be in [0, 1): the share that the past keeps, such as 0.999")
        return Average(value)
    raise TypeError(f"average must be a number (the decay) or Average, not {value!r}")
