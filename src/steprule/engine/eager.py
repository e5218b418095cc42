"""The eager fallback: a rule's formula on whole arrays, one operation after another.

On float64 NumPy arrays it is the oracle that the other engines are measured against. On torch tensors it serves what no
kernel takes: complex numbers, autograd through the step, unusual strides and other devices; and sparse gradients, except
where the CPU engine can step their rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steprule.engine.rows import row_step
from steprule.engine.run import Sums, summed
from steprule.engine.whole import PlacedStep, apart
from steprule.hyper import filled
from steprule.pieces import total
from steprule.rule import Rule
from steprule.state import matrix_shape
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import scalar_name
from steprule.trace.program import hyper_of
from steprule.trace.tracing import program_of


def oracle(
    rule: type[Rule],
    param: np.ndarray,
    grad: np.ndarray,
    states: Mapping[str, np.ndarray],
    step: int,
    hyper: Mapping[str, Any],
    maximize: bool = False,
    place: int = 0,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One step in float64: the truth that engines are judged by.

    Args:
        rule: the rule.
        param, grad: arrays of one shape.
        states: those that exist, each of its own shape.
        step: the step's number, from 1.
        hyper: a value for each hyperparameter.
        maximize: negate the gradient first.
        place: the parameter's among its optimizer's.

    Returns:
        The new parameter and the new states, float64; the arguments are left alone.
    """
    wide = {name: np.array(value, np.float64) for name, value in states.items()}
    present, shape = rule.states_for(hyper), np.shape(param)
    shapes = {name: np.shape(value) for name, value in wide.items()}
    param, grad = np.array(param, np.float64), np.array(grad, np.float64)
    program = program_of(rule, hyper)
    if program.sees_matrix:
        matrix = matrix_shape(shape, rule.stacks)
        param, grad = param.reshape(matrix), grad.reshape(matrix)
        wide = {name: value.reshape(matrix) if shapes[name] == shape else value for name, value in wide.items()}
    with np.errstate(all="ignore"):
        new_param, *new_states = rule.evaluate(
            param,
            -grad if maximize else grad,
            tuple(name and wide[name] for name in present),
            PlacedStep(step, place) if program.in_some_steps else step,
            hyper,
        )
    return _as(shape, new_param), {
        name: _as(shapes[name], new) for name, new in zip(present, new_states, strict=True) if name
    }


def _as(shape: tuple[int, ...], value: Any) -> np.ndarray:
    """An array of this shape: one of as many elements, or what broadcasts to it."""
    value = np.asarray(value)
    return value.reshape(shape) if value.size == math.prod(shape) else np.broadcast_to(value, shape)


class EagerStep:
    """One step of one torch parameter, in float64 if any operand has it and float32 otherwise.

    Args:
        rule: the rule.
        param: a tensor, of any strides; complex numbers are seen as pairs of real ones.
        grad: of param's shape; a sparse one is made dense, or, where no other element could change, only the
            rows that it holds are touched.
        states: in the rule's order, None for those that do not exist; scalar ones are 0-dim tensors.
        step: the step's number, a float or a 0-dim tensor.
        hyper: a value for each hyperparameter, floats or tensors.
        maximize: negate the gradient first.
        size: how many elements the whole has that param is a part of. Default: param's.
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
        size: int | None = None,
    ) -> None:
        import torch

        hyper = filled(hyper, torch.finfo(param.dtype).eps)
        self.rule, self._step, self._hyper = rule, step, hyper
        names = rule.states_for(hyper)
        self._states = {name: state for name, state in zip(names, states, strict=True) if name}
        program = program_of(rule, hyper)
        self.program = program if program.own else None
        self.depth = len(program.levels) if program.own else 0
        self._place: tuple[Any, ...] | None = None
        self._rows: Callable[[], None] | None = None  # what does it all
        kept = {"param": param, **self._elementwise()}
        self._conjugated: list[tuple[Any, Any]] = []  # views, and the numbers of each, which take other memory
        if param.is_complex():
            plain = {name: x.resolve_conj() for name, x in kept.items()}
            self._conjugated = [(x, plain[name]) for name, x in kept.items() if x.is_conj()]
            kept = {name: torch.view_as_real(x) for name, x in plain.items()}
        self._originals = kept
        if grad.is_sparse:
            grad = grad.coalesce()
            touches = rule.touches_states or len(kept) == 1
            if touches and grad.dense_dim() == param.dim() - grad.sparse_dim() and hyper.get("weight_decay", 0) == 0:
                if grad.sparse_dim() == 1 and self.program is None and not param.is_complex():
                    self._rows = row_step(rule, kept, grad, step, hyper, maximize)
                    if self._rows is not None:
                        return
                self._place = tuple(grad.indices())
                if not self._place:  # no dimension to count along: seen as a vector of one
                    self._originals = kept = {name: x.unsqueeze(0) for name, x in kept.items()}
                    self._place = (torch.arange(len(grad.values()), device=param.device),)
                kept, grad = {name: x[self._place] for name, x in kept.items()}, grad.values()
            else:
                grad = grad.to_dense()
        if param.is_complex():
            grad = torch.view_as_real(grad.resolve_conj())
        self._kept = kept
        wide = torch.float64 if any(x.dtype == torch.float64 for x in (grad, *kept.values())) else torch.float32
        differentiable = torch.is_grad_enabled()  # autograd keeps the old values, which are about to be overwritten
        self._wide = {name: x.to(wide, copy=differentiable) for name, x in kept.items()}
        grad = grad.to(wide, copy=differentiable)
        self._grad = -grad if maximize else grad
        self._evaluation = Evaluation({})
        if self.program is not None:
            numbers = zip(self.program.scalars, hyper_of(self.program, hyper), strict=True)
            self._evaluation.inputs |= {scalar_name(*scalar): value for scalar, value in numbers}
            self._evaluation.inputs |= {**self._wide, "grad": self._grad, "step": step}
            self._evaluation.inputs["numel"] = size or self._grad.numel()

    def _elementwise(self) -> dict[str, Any]:
        return {name: x for name, x in self._states.items() if name not in self.rule.scalar_states}

    def count(self) -> None:
        """Nothing: the step is given."""

    def take_back(self) -> None:
        """Nothing: `write` changes numbers."""

    def run(self, level: int) -> None:
        """Nothing: `sums` reads elements."""

    def sums(self, level: int) -> dict[str, list[Any]]:
        """A level's sums."""
        assert self.program is not None
        reading = self.program.levels[level].reading if level < self.depth else None
        sums = reading.sums if reading is not None else {}
        return {name: [_number(total(self._evaluation(one.expression)))] for name, one in sums.items()}

    rooms = None

    def join(self, level: int) -> None:
        """Nothing: there are no rooms."""

    def awaited(self, level: int, turn: int) -> Sums:
        """Zeros in the place of what other processes wait for."""
        return {} if turn else {name: [0.0] for name in summed(self.program, level)}

    def put(self, level: int, sums: Sums) -> Sums:
        """Takes over sums and computes what follows from them."""
        program = self.program
        assert program is not None
        inputs = self._evaluation.inputs
        for name, value in sums.items():
            inputs[name] = value if program.sums[name].of_all else value[0]
        if level == 0:
            inputs |= {name: _number(self._states[name]) for name in program.numbers}
            self._new_scalars: dict[str, Any] = {}
        numbers = program.levels[level].numbers if level < self.depth else {}
        for name, expression in numbers.items():
            state = self._states[name]
            self._new_scalars[name] = new = _like(state, self._evaluation(expression))
            inputs[f"new_{name}"] = _number(new)
        return {}

    def write(self) -> Any:
        """Puts the new values in place of the old."""
        if self._rows is not None:
            self._rows()
            return
        if self.program is None:
            names = self.rule.states_for(self._hyper)
            values = tuple(name and self._wide[name] for name in names)
            result = self.rule.evaluate(self._wide["param"], self._grad, values, self._step, self._hyper)
            new = {name: one for name, one in zip(("param", *names), result, strict=True) if name}
        else:
            new = {name: self._evaluation(one) for name, one in self.program.last.outputs.items()}
            for name, value in self._new_scalars.items():
                self._states[name].copy_(value)
        for name, value in apart(new, self._kept).items():
            self._kept[name].copy_(value)
            if self._place is not None:
                self._originals[name].index_put_(self._place, self._kept[name])
        for view, numbers in reversed(self._conjugated):
            view.copy_(numbers)


def _number(x: Any) -> Any:
    """A 0-dim tensor as a float64 one, or as a float where nothing else wants to see it."""
    if x.requires_grad or x.device.type != "cpu":
        return x.double().clone()  # the state is about to be overwritten
    return x.item()


def _like(state: Any, value: Any) -> Any:
    """A number as a tensor like a scalar state."""
    import torch

    return torch.as_tensor(value, dtype=state.dtype, device=state.device)
