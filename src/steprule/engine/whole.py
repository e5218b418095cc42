"""Steps of rules that look at whole matrices, by library calls: one parameter at a time, one operation after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from steprule.hyper import filled
from steprule.rule import Rule
from steprule.state import matrix_shape, side_shape
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
        view: how the parameter is seen as matrices, each of which is stepped by itself. Default: None, as the rule sees it.
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
        view: str | None = None,
    ) -> None:
        import torch

        hyper = filled(hyper, torch.finfo(param.dtype).eps)
        self.rule, self._hyper, self._view = rule, hyper, view
        self._step = PlacedStep(step, place) if program_of(rule, hyper).in_some_steps else step
        self._names = rule.states_for(hyper)
        self._kept = {"param": param, **{name: x for name, x in zip(self._names, states, strict=True) if name}}
        grad = grad.to_dense() if grad.is_sparse else grad
        tensors = [grad, *(x for name, x in self._kept.items() if name not in rule.scalar_states)]
        self._dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
        self._grad = -grad if maximize else grad

    def write(self) -> None:
        """Puts the new values in place of the old."""
        if not self._kept["param"].numel():  # means over nothing would make states NaN
            return
        wide = {name: self._wide(name, x) for name, x in {"grad": self._grad, **self._kept}.items()}
        for seen in self._matrices(wide):
            states = tuple(name and self._number(name, seen[name]) for name in self._names)
            result = self.rule.evaluate(seen["param"], seen["grad"], states, self._step, self._hyper)
            pairs = zip(("param", *self._names), result, strict=True)
            made = {name: _shaped(new, seen[name]) for name, new in pairs if name}
            for name, new in apart(made, seen).items():
                seen[name].copy_(new)
        for name, kept in self._kept.items():
            kept.copy_(wide[name])

    def _wide(self, name: str, x: Any) -> Any:
        """A copy of an operand, laid out as a view wants it."""
        import torch

        if name in self.rule.scalar_states:
            return x.clone()
        if name in self.rule.side_states or self._view is None:
            return torch.empty(x.shape, dtype=self._dtype, device=x.device).copy_(x)
        return torch.empty_like(self._kept["param"], dtype=self._dtype, requires_grad=False).copy_(x)

    def _number(self, name: str, x: Any) -> Any:
        """A state that is one number as the formula sees it, and others as they are."""
        if name not in self.rule.scalar_states:
            return x
        return x.item() if x.device.type == "cpu" else x.double()

    def _matrices(self, wide: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The operands of each matrix, in the memory of those of the parameter."""
        sides = self.rule.side_states
        own = [name for name in wide if name not in (*self.rule.scalar_states, *sides)]
        if self._view is None:
            shape = matrix_shape(wide["param"].shape, self.rule.stacks)
            yield {**wide, **{name: wide[name].reshape(shape) for name in own}}
            return
        from steprule.layers.view import View

        seen = {name: [*_each(View(self._view).matrices(wide[name]))] for name in own}
        rest = {name: wide[name].reshape(-1) for name in wide if name in sides}
        for number, param in enumerate(seen["param"]):
            shapes = {name: side_shape(self.rule, name, param.shape, self._hyper) for name in rest}
            beside = {name: rest[name][: math.prod(shape)].view(shape) for name, shape in shapes.items()}
            rest = {name: rest[name][math.prod(shape) :] for name, shape in shapes.items()}
            yield {**wide, **{name: every[number] for name, every in seen.items()}, **beside}


def apart(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """New values, none of which is in the memory of an old one: what it is would change with that."""
    held = {x.untyped_storage().data_ptr() for x in old.values()}
    storages = {name: x.untyped_storage() for name, x in new.items() if hasattr(x, "untyped_storage")}
    return {name: x.clone() if name in storages and storages[name].data_ptr() in held else x for name, x in new.items()}


def _each(stacks: Sequence[Any]) -> Iterator[Any]:
    """The matrices of stacks, one after another."""
    return (one[place] for one in stacks for place in product(*map(range, one.shape[:-2])))


def _shaped(new: Any, like: Any) -> Any:
    """A new value as a tensor of this shape, or what broadcasts to it."""
    import torch

    if hasattr(new, "reshape") and new.numel() == like.numel():
        return new.reshape(like.shape)
    return torch.as_tensor(new, dtype=like.dtype, device=like.device)
