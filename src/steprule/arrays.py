"""Optimizers over NumPy arrays, with gradients given by hand. Needs no torch.

>>> from steprule.arrays import Adam
>>> opt = Adam([w, b], lr=1e-3)
>>> opt.step([grad_w, grad_b])      # w and b change in place
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from steprule import rules
from steprule.engine.cpu import available_threads, compiled
from steprule.engine.plan import Plan
from steprule.engine.trace import trace
from steprule.rule import Rule, check_hyperparameters, check_names

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]

Array = np.ndarray[Any, Any]


class Optimizer:
    """Runs a rule over NumPy arrays.

    A rule becomes an optimizer by a subclass of one line: ``class Lion(Optimizer, rule=LionRule): ...``

    Args:
        params: arrays of float32, float64 or float16, changed in place by `step`.
        settings: the rule's hyperparameters, by name.

    Attributes:
        params: the arrays.
        settings: hyperparameters by name, read anew at every step: assign to change one.
        state: for each array a dict of its states, arrays like it, and its number of steps so far, ``step``.

    Raises:
        TypeError: params are not arrays of floats, or a setting is unknown.
        ValueError: a setting is out of range, or an array is read-only or given twice.
    """

    rule: ClassVar[type[Rule]]

    def __init_subclass__(cls, rule: type[Rule] | None = None) -> None:
        super().__init_subclass__()
        if rule is not None:
            cls.rule = rule
            cls.__doc__ = cls.__doc__ or rule.__doc__

    def __init__(self, params: Sequence[Array], **settings: Any) -> None:
        known = self.rule.hyperparameters
        check_names(type(self).__name__, settings, known)
        self.settings: dict[str, Any] = {**known, **settings}
        check_hyperparameters(self.rule, self.settings)
        trace(self.rule, self.settings)
        if isinstance(params, np.ndarray):
            raise TypeError("params must be a list of arrays, not one array")
        self.params: list[Array] = list(params)
        for index, param in enumerate(self.params):
            _check_param(index, param)
            if any(param is other for other in self.params[:index]):
                raise ValueError(f"params[{index}] is given twice")
        self.state: list[dict[str, Any]] = [{"step": 0} for _ in self.params]

    def step(self, grads: Sequence[Array | None]) -> None:
        """Takes one step.

        Args:
            grads: a gradient for each of params, of its shape and dtype and left untouched, or None to leave
                that array and its states as they are.

        Raises:
            ValueError: the number of gradients, a shape or a dtype does not match; nothing has changed.
        """
        if len(grads) != len(self.params):
            raise ValueError(f"step got {len(grads)} gradients for {len(self.params)} params")
        for index, (param, grad) in enumerate(zip(self.params, grads, strict=True)):
            if grad is not None:
                _check_grad(index, param, grad)
        check_hyperparameters(self.rule, self.settings)
        present = tuple(filter(None, self.rule.states_for(self.settings)))
        buckets: dict[str, list[int]] = {}
        kernels = {}
        for index, grad in enumerate(grads):
            if grad is not None:
                dtype = self.params[index].dtype.name
                buckets.setdefault(dtype, []).append(index)
                if dtype not in kernels:
                    kernels[dtype] = compiled(self.rule, self.settings, False, [dtype] * (2 + len(present)))
        for dtype, indices in buckets.items():
            for index in indices:
                for name in present:
                    if name not in self.state[index]:
                        self.state[index][name] = np.zeros_like(self.params[index])
            operands = [
                [self.params[index], grads[index], *(self.state[index][name] for name in present)] for index in indices
            ]
            self._run(kernels[dtype], operands, [self.state[index]["step"] for index in indices])
            for index in indices:
                self.state[index]["step"] += 1

    def _run(self, kernel: Any, operands: list[list[Any]], steps: list[int]) -> None:
        """One pass; an operand that does not lie in memory as a gap-free array goes by way of a copy."""
        packed = [[np.require(operand, requirements=["C", "A"]) for operand in row] for row in operands]
        plan = Plan(
            addresses=[[array.ctypes.data for array in column] for column in zip(*packed, strict=True)],
            sizes=[row[0].size for row in packed],
            groups=[0] * len(packed),
            hyper=[kernel.numbers(self.settings)],
            step_at=None,
            step_is_double=[],
            first_steps=[float(step) for step in steps],
        )
        kernel.launcher(plan, available_threads)()
        for originals, copies in zip(operands, packed, strict=True):
            for position, (original, written) in enumerate(zip(originals, copies, strict=True)):
                if original is not written and position != 1:
                    original[...] = written

    def state_dict(self) -> dict[str, Any]:
        """States and settings in torch.optim's form, as copies: ``{"state": ..., "param_groups": [...]}``."""
        return {
            "state": {index: copy.deepcopy(state) for index, state in enumerate(self.state) if state["step"]},
            "param_groups": [{**copy.deepcopy(self.settings), "params": list(range(len(self.params)))}],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned, as copies.

        Raises:
            ValueError: it belongs to other arrays; nothing has changed.
        """
        groups = state_dict["param_groups"]
        if len(groups) != 1 or len(groups[0]["params"]) != len(self.params):
            raise ValueError(
                f"state_dict holds {[len(group['params']) for group in groups]} params where there are {len(self.params)}"
            )
        settings = {name: value for name, value in groups[0].items() if name in self.rule.hyperparameters}
        check_hyperparameters(self.rule, settings)
        state: list[dict[str, Any]] = []
        for index, param in enumerate(self.params):
            loaded = {**state_dict["state"].get(index, {})}
            fresh: dict[str, Any] = {"step": int(loaded.pop("step", 0 if not loaded else 1))}
            for name, value in loaded.items():
                array = np.asarray(value).astype(param.dtype)
                if array.shape != param.shape:
                    raise ValueError(f"state {name} of params[{index}] has shape {array.shape}, not {param.shape}")
                fresh[name] = array
            state.append(fresh)
        self.settings.update(copy.deepcopy(settings))
        self.state = state


def _check_param(index: int, param: Any) -> None:
    if not isinstance(param, np.ndarray):
        raise TypeError(f"params[{index}] must be a NumPy array, not {type(param).__name__}")
    if param.dtype.name not in ("float16", "float32", "float64") or not param.dtype.isnative:
        raise TypeError(f"params[{index}] must hold float16, float32 or float64, not {param.dtype}")
    if not param.flags.writeable:
        raise ValueError(f"params[{index}] is read-only")


def _check_grad(index: int, param: Array, grad: Any) -> None:
    if not isinstance(grad, np.ndarray):
        raise ValueError(f"grads[{index}] must be a NumPy array or None, not {type(grad).__name__}")
    if grad.shape != param.shape:
        raise ValueError(f"grads[{index}] has shape {grad.shape}, its parameter {param.shape}")
    if grad.dtype != param.dtype:
        raise ValueError(f"grads[{index}] has dtype {grad.dtype}, its parameter {param.dtype}")


class SGD(Optimizer, rule=rules.SGD):
    pass


class RMSprop(Optimizer, rule=rules.RMSprop):
    pass


class Adam(Optimizer, rule=rules.Adam):
    pass


class AdamW(Optimizer, rule=rules.AdamW):
    pass
