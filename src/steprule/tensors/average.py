"""Averages of weights, as arrays: exchanged with the weights, begun, and moved without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from steprule.formats import FORMATS
from steprule.formats.tensors import decode
from steprule.tensors.memory import dtype_name, too_short
from steprule.tensors.numbering import numbering_of
from steprule.tensors.state import (
    AVERAGE,
    TRAINED,
    arrays_of,
    average_format,
    convert,
    encode_rounded,
    kept_format,
    set_arrays,
    weight_arrays,
)


class Aside:
    """Where a parameter's weights are while it has its average: where that was, or in a copy if formats differ.

    Args:
        param: is given its average.
        state: the parameter's.
    """

    def __init__(self, param: Tensor, state: Mapping[str, Any]) -> None:
        own, average = weight_arrays(param, state), arrays_of(state, AVERAGE)
        self._is_exchanged = _are_alike(own, average)
        if self._is_exchanged:
            self._weights = average
            self._exchange(own)
        else:
            self._weights = {"": own[""].clone()}
            own[""].copy_(average[""])

    @classmethod
    def found(cls, param: Tensor, state: Mapping[str, Any], trained: Tensor | None) -> Aside:
        """Where loaded weights are, whose model was saved with their average.

        Args:
            param, state: of the parameter, in this optimizer's formats.
            trained: the weights, if the state dict had them beside their average.

        Raises:
            ValueError: they are kept otherwise here.
        """
        own, average = weight_arrays(param, state), arrays_of(state, AVERAGE)
        aside = cls.__new__(cls)
        aside._is_exchanged = _are_alike(own, average)
        if aside._is_exchanged != (trained is None) or (trained is not None and trained.shape != param.shape):
            raise ValueError(
                "it was saved while the model had the averages of its weights, which were kept in another format: load it "
                "into an optimizer with the weights= of the one that saved it, call train(), and save it again"
            )
        aside._weights = average if trained is None else {"": trained.to(param.dtype)}
        return aside

    def saved(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What a state dict has of the parameter's state."""
        return {**state} if self._is_exchanged else {**state, TRAINED: self._weights[""]}

    def check(self, who: str) -> None:
        """Raises if there are no weights to give back any more.

        Args:
            who: what asks for them.

        Raises:
            RuntimeError: their storage was freed.
        """
        for x in self._weights.values():
            if problem := too_short(x, f"the weights that {who} puts back, which lie where their average was,"):
                raise RuntimeError(problem)

    def give_back(self, param: Tensor, state: dict[str, Any]) -> None:
        """Gives the parameter its weights, and the state the average if it has one still."""
        own, weights, now = weight_arrays(param, state), self._weights, param.detach()
        is_converted = now.dtype != weights[""].dtype or now.shape != weights[""].shape
        if is_converted:
            own[""] = now.to(weights[""].dtype) if now.shape == weights[""].shape else weights[""].clone()
        if self._is_exchanged:
            self._exchange(own)
        else:
            own[""].copy_(weights[""])
        if is_converted:
            kind = kept_format({f"param{suffix}": x for suffix, x in own.items()}, "param")
            wide = decode(kind, own, own[""].shape) if kind in FORMATS else own[""]
            if now.shape != wide.shape:
                param.data = now.new_empty(wide.shape)
            param.copy_(wide)
            for suffix, x in own.items():
                if suffix:  # low bits of another dtype's numbers
                    x.zero_()
        if self._is_exchanged and AVERAGE in state:
            set_arrays(state, AVERAGE, weights)

    def _exchange(self, own: Mapping[str, Tensor]) -> None:
        exchange_all([(own[name], x) for name, x in self._weights.items() if name in own])


def _are_alike(own: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> bool:
    return {name: x.dtype for name, x in own.items()} == {name: x.dtype for name, x in average.items()}


def exchange_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Exchanges the numbers of two tensors of each pair. If one cannot be exchanged, all have those that they had."""
    done: list[tuple[Tensor, Tensor]] = []
    try:
        for one, other in pairs:
            _exchange(one, other)
            done.append((one, other))
    except Exception:
        for one, other in done:
            _exchange(one, other)
        raise


def _exchange(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    try:
        other.copy_(kept)
    except Exception:
        one.copy_(kept)
        raise


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
    kind = average_format(group.get("weights"), dtype_name(param.dtype))
    convert(state, AVERAGE, kind, param)
    old = decode(kind, arrays_of(state, AVERAGE), param.shape)
    value = decode(kept_format({**state, "param": param}, "param"), weight_arrays(param, state), param.shape)
    share = weight.to(old.device, old.dtype) if isinstance(weight, Tensor) else weight
    new = old + share * (value - old)
    step = averaged() if FORMATS[kind].random else 0
    for suffix, array in encode_rounded(
        kind, new, group.get("seed", 0), step, 0, 0, partial(numbering_of, param)
    ).items():
        state[AVERAGE + suffix].copy_(array)


def start_average(param: Tensor, state: Mapping[str, Any]) -> None:
    """The first average is a copy of the weights, to the last bit."""
    own = weight_arrays(param, state)
    for suffix, array in arrays_of(state, AVERAGE).items():
        array.copy_(own[suffix])
