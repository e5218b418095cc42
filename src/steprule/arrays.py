"""Optimizers over NumPy arrays, with gradients given by hand. Needs no torch.

>>> from steprule.arrays import Adam
>>> opt = Adam([w, b], lr=1e-3)
>>> opt.step([grad_w, grad_b])      # w and b change in place
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from steprule import rules
from steprule.engine.cpu import available_threads, compiled
from steprule.engine.own import Planned, run_together
from steprule.engine.plan import Plan
from steprule.engine.trace import trace
from steprule.rule import Rule, check_hyperparameters, check_names

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "MADGRAD",
    "MARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "DoG",
    "Grams",
    "LaProp",
    "Lion",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "Yogi",
]

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
        names = tuple(filter(None, self.rule.states_for(self.settings)))
        present = tuple(name for name in names if name in self.rule.tensor_states)
        buckets: dict[str, list[int]] = {}
        kernels = {}
        for index, grad in enumerate(grads):
            if grad is not None:
                dtype = self.params[index].dtype.name
                buckets.setdefault(dtype, []).append(index)
                if dtype not in kernels:
                    kernels[dtype] = compiled(self.rule, self.settings, False, [dtype] * (2 + len(present)))
        for indices in buckets.values():
            for index in indices:
                for name in names:
                    if name not in self.state[index]:
                        first = self.rule.begins_at(name, self.params[index], self.settings)
                        like = self.params[index] if name in present else np.zeros(())
                        self.state[index][name] = np.full_like(like, first)
        work: list[Callable[[], None]] = []
        planned: list[Planned] = []
        packed: list[tuple[list[list[Any]], list[list[Any]]]] = []
        for dtype, indices in buckets.items():
            operands = [
                [self.params[index], grads[index], *(self.state[index][name] for name in present)] for index in indices
            ]
            packed.append((operands, [[np.require(x, requirements=["C", "A"]) for x in row] for row in operands]))
            kernel, arrays = kernels[dtype], packed[-1][1]
            plan = Plan(
                addresses=[[array.ctypes.data for array in column] for column in zip(*arrays, strict=True)],
                sizes=[row[0].size for row in arrays],
                groups=[0] * len(arrays),
                hyper=[kernel.numbers(self.settings)],
                step_at=None,
                step_is_double=[],
                first_steps=[float(self.state[index]["step"]) for index in indices],
                tallies=max(len(one.source.tallies) for one in (kernel, *kernel.readings)),
                own=len(kernel.formula.own),
            )
            states = {name: [self.state[index][name] for index in indices] for name in kernel.formula.scalar_outputs}
            if kernel.formula.own:
                planned.append(Planned(kernel, plan, states, available_threads))
            work.append(kernel.launcher(plan, available_threads))
        run_together(planned)
        for launch in work:
            launch()
        for operands, arrays in packed:  # what does not lie in memory as a gap-free array goes by way of a copy
            for originals, copies in zip(operands, arrays, strict=True):
                for position, (original, written) in enumerate(zip(originals, copies, strict=True)):
                    if original is not written and position != 1:
                        original[...] = written
        for indices in buckets.values():
            for index in indices:
                self.state[index]["step"] += 1

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
                is_scalar = name in self.rule.scalar_states
                array = np.array(value, np.float64 if is_scalar else param.dtype)
                if array.shape != (() if is_scalar else param.shape):
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


class SGD(Optimizer, rule=rules.SGD): ...


class RMSprop(Optimizer, rule=rules.RMSprop): ...


class Adam(Optimizer, rule=rules.Adam): ...


class AdamW(Optimizer, rule=rules.AdamW): ...


class NAdam(Optimizer, rule=rules.NAdam): ...


class RAdam(Optimizer, rule=rules.RAdam): ...


class Adagrad(Optimizer, rule=rules.Adagrad): ...


class Adadelta(Optimizer, rule=rules.Adadelta): ...


class Adamax(Optimizer, rule=rules.Adamax): ...


class ASGD(Optimizer, rule=rules.ASGD): ...


class Rprop(Optimizer, rule=rules.Rprop): ...


class SparseAdam(Optimizer, rule=rules.SparseAdam): ...


class Lion(Optimizer, rule=rules.Lion): ...


class Signum(Optimizer, rule=rules.Signum): ...


class AdaBelief(Optimizer, rule=rules.AdaBelief): ...


class Yogi(Optimizer, rule=rules.Yogi): ...


class LaProp(Optimizer, rule=rules.LaProp): ...


class ADOPT(Optimizer, rule=rules.ADOPT): ...


class AdEMAMix(Optimizer, rule=rules.AdEMAMix): ...


class Adan(Optimizer, rule=rules.Adan): ...


class AdamAtan2(Optimizer, rule=rules.AdamAtan2): ...


class Grams(Optimizer, rule=rules.Grams): ...


class AdamC(Optimizer, rule=rules.AdamC): ...


class StableAdamW(Optimizer, rule=rules.StableAdamW): ...


class MARS(Optimizer, rule=rules.MARS): ...


class MADGRAD(Optimizer, rule=rules.MADGRAD): ...


class LARS(Optimizer, rule=rules.LARS): ...


class LAMB(Optimizer, rule=rules.LAMB): ...


class NovoGrad(Optimizer, rule=rules.NovoGrad): ...


class Prodigy(Optimizer, rule=rules.Prodigy): ...


class DAdaptAdam(Optimizer, rule=rules.DAdaptAdam): ...


class DoG(Optimizer, rule=rules.DoG): ...


class ScheduleFreeSGD(Optimizer, rule=rules.ScheduleFreeSGD): ...


class ScheduleFreeAdamW(Optimizer, rule=rules.ScheduleFreeAdamW): ...


class ScheduleFreeRAdam(Optimizer, rule=rules.ScheduleFreeRAdam): ...
