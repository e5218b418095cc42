"""Steps of rules that look at whole matrices, by library calls: one parameter at a time, one operation after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steprule.hyper import filled
from steprule.rule import Rule
from steprule.state import matrix_shape
from steprule.trace.tracing import program_of


class PlacedStep(float):
    """The number of a step, and the place of the tensor that takes it among its optimizer's, by which `every` goes."""

    place: int

    def __new__(cls, step: Any, place: int) -> PlacedStep:
        """Of a number, or of a tensor, which is waited for."""
        self = super().__new__(cls, step)
        self.place = place
        return self


class WholeStep:
    """One step of one torch parameter, in float64 if any operand has it and float32 otherwise; arguments as for `EagerStep`.

    Nothing of it need be known before anything changes.

    Args:
        place: the parameter's among the optimizer's.
    """

    def __init__(
        self,
        rule: type[Rule],
        param: Any,
        grad: Any,
        states: Sequence[Any],
        step: Any,
        hyper: Mapping[str, Any],
        maximize: bool,
        place: int = 0,
    ) -> None:
        import torch

        hyper = filled(hyper, torch.finfo(param.dtype).eps)
        self.rule, self._hyper = rule, hyper
        self._step = PlacedStep(step, place) if program_of(rule, hyper).in_some_steps else step
        self._names = rule.states_for(hyper)
        self._kept = {"param": param, **{name: x for name, x in zip(self._names, states, strict=True) if name}}
        grad = grad.to_dense() if grad.is_sparse else grad
        tensors = [grad, *(x for name, x in self._kept.items() if name not in rule.scalar_states)]
        self._dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
        self._grad = self._seen("grad", -grad if maximize else grad)

    def _seen(self, name: str, x: Any) -> Any:
        """An operand as the formula sees it: what has the parameter's shape as a matrix."""
        if name in self.rule.scalar_states:
            return x.item() if x.device.type == "cpu" else x.double()
        x = x.to(self._dtype)
        return x if name in self.rule.side_states else x.reshape(matrix_shape(x.shape, self.rule.stacks))

    def write(self) -> None:
        """Puts the new values in place of the old."""
        if not self._kept["param"].numel():  # means over nothing would make states NaN
            return
        seen = {name: self._seen(name, x) for name, x in self._kept.items()}
        states = tuple(name and seen[name] for name in self._names)
        result = self.rule.evaluate(seen["param"], self._grad, states, self._step, self._hyper)
        for name, new in reversed([*zip(("param", *self._names), result, strict=True)]):
            if name:
                kept = self._kept[name]
                kept.copy_(
                    new.reshape(kept.shape)
                    if hasattr(new, "reshape") and new.numel() == kept.numel()
                    else _number(new, kept)
                )


def _number(x: Any, like: Any) -> Any:
    """What broadcasts to a tensor's shape."""
    import torch

    return torch.as_tensor(x, dtype=like.dtype, device=like.device)
