"""The eager engine: a rule's formula on whole arrays, one operation after another.

On float64 NumPy arrays it is the oracle that the other engines are measured against; on torch tensors it serves
what the CPU engine does not: complex and sparse numbers, autograd through the step, odd strides, other devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steprule.rule import Rule


def oracle(
    rule: type[Rule],
    param: np.ndarray,
    grad: np.ndarray,
    states: Mapping[str, np.ndarray],
    step: int,
    hyper: Mapping[str, Any],
    maximize: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One step in float64: the truth that engines are judged by.

    Args:
        rule: the rule.
        param, grad: arrays of one shape.
        states: the states that exist, of the same shape.
        step: the step's number, from 1.
        hyper: a value for each hyperparameter.
        maximize: negate the gradient first.

    Returns:
        The new parameter and the new states, float64; the arguments are left alone.
    """
    wide = {name: np.array(value, np.float64) for name, value in states.items()}
    present = rule.states_for(hyper)
    grad = np.array(grad, np.float64)
    with np.errstate(all="ignore"):
        new_param, *new_states = rule.evaluate(
            np.array(param, np.float64),
            -grad if maximize else grad,
            tuple(name and wide[name] for name in present),
            step,
            hyper,
        )
    shape = np.shape(param)
    return np.broadcast_to(new_param, shape), {
        name: np.broadcast_to(new, shape) for name, new in zip(present, new_states, strict=True) if name
    }


def step_tensors(
    rule: type[Rule],
    param: Any,
    grad: Any,
    states: Sequence[Any],
    step: Any,
    hyper: Mapping[str, Any],
    maximize: bool,
) -> None:
    """One step of one torch parameter, in place, in float64 if any operand has it and float32 otherwise.

    Args:
        rule: the rule.
        param: a tensor, of any strides; complex numbers are seen as pairs of real ones.
        grad: of param's shape; a sparse one is made dense, or, where no other element could change, only the
            rows that it holds are touched.
        states: in the rule's order, None for those that do not exist.
        step: the step's number, a float or a 0-dim tensor.
        hyper: a value for each hyperparameter, floats or tensors.
        maximize: negate the gradient first.
    """
    import torch

    if grad.is_sparse:
        grad = grad.coalesce()
        if any(state is not None for state in states) or hyper.get("weight_decay", 0) != 0:
            grad = grad.to_dense()
        else:
            index = tuple(grad.indices())
            touched = param[index]
            step_tensors(rule, touched, grad.values(), states, step, hyper, maximize)
            param.index_put_(index, touched)
            return
    operands: list[Any] = [param, grad, *states]
    if param.is_complex():
        operands = [x if x is None else torch.view_as_real(x.resolve_conj()) for x in operands]
    wide = torch.float64 if any(x is not None and x.dtype == torch.float64 for x in operands) else torch.float32
    differentiable = torch.is_grad_enabled()  # autograd keeps the old values, which are about to be overwritten
    widened: list[Any] = [x if x is None else x.to(wide, copy=differentiable) for x in operands]
    wide_param, wide_grad, *wide_states = widened
    new_values = rule.evaluate(wide_param, -wide_grad if maximize else wide_grad, tuple(wide_states), step, hyper)
    for old, new in zip((operands[0], *operands[2:]), new_values, strict=True):
        if old is not None:
            old.copy_(new)
