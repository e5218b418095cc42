"""A class for each rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule import rules
from steprule.engine.team import torch_alone
from steprule.optimizer.front import Optimizer
from steprule.tensors.state import arrays_of, convert, kept, state_format, step_options

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "MARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
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
    "Muon",
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


def _of_torch(name: str, since: str) -> Any:
    """An optimizer of torch's own, as it is; where torch is older, one that says so when it is made."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"{name} is torch.optim's own, and torch {torch.__version__} has none yet; it needs torch {since} or newer"
        )

    return getattr(torch.optim, name, None) or type(name, (torch.optim.Optimizer,), {"__init__": refuse})


# No formula of elements, and none written here yet.
Adafactor, LBFGS, Muon = torch.optim.Adafactor, torch.optim.LBFGS, _of_torch("Muon", since="2.9")


class SGD(Optimizer, rule=rules.SGD, flags=("maximize", "foreach", "differentiable", "fused")): ...


class RMSprop(
    Optimizer, rule=rules.RMSprop, flags=(flags := ("capturable", "foreach", "maximize", "differentiable")),
    positional_flags=flags,
): ...  # fmt: skip


class _AdamFront(Optimizer):
    """torch.optim's rules for lr and betas as tensors."""

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        settings = super()._bind(args, kwargs)
        if isinstance(settings["betas"], (tuple, list)):
            settings["betas"] = tuple(b.squeeze() if isinstance(b, Tensor) else b for b in settings["betas"])
        return settings

    def _check(self, settings: Mapping[str, Any]) -> None:
        unsupported = settings.get("foreach") and not settings.get("capturable")
        if isinstance(settings.get("lr"), Tensor) and unsupported:
            raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
        super()._check(settings)
        if "betas" in settings:
            betas = settings["betas"]
            if not (all(isinstance(b, float) for b in betas) or all(isinstance(b, Tensor) for b in betas)):
                raise ValueError("betas must be either both floats or both Tensors")
            if isinstance(betas[0], Tensor) and unsupported:
                raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")


class Adam(_AdamFront, rule=rules.Adam, keyword_only=("decoupled_weight_decay",)): ...


class AdamW(
    _AdamFront, rule=rules.AdamW, flags=("maximize", "foreach", "capturable", "differentiable", "fused"),
    fixed={"decoupled_weight_decay": True},
): ...  # fmt: skip


class NAdam(Optimizer, rule=rules.NAdam, flags=("foreach", "maximize", "capturable", "differentiable")): ...


class RAdam(Optimizer, rule=rules.RAdam, flags=("foreach", "maximize", "capturable", "differentiable")): ...


class Adamax(
    Optimizer, rule=rules.Adamax, flags=("foreach", "maximize", "differentiable", "capturable"),
    positional_flags=("foreach",),
): ...  # fmt: skip


class Adadelta(
    Optimizer, rule=rules.Adadelta, flags=("foreach", "capturable", "maximize", "differentiable"),
    positional_flags=("foreach",),
): ...  # fmt: skip


class ASGD(
    Optimizer, rule=rules.ASGD, flags=(flags := ("foreach", "maximize", "differentiable", "capturable")),
    positional_flags=flags,
): ...  # fmt: skip


class Rprop(Optimizer, rule=rules.Rprop, flags=("capturable", "foreach", "maximize", "differentiable")): ...


class Adagrad(
    Optimizer, rule=rules.Adagrad, flags=("foreach", "maximize", "differentiable", "fused"),
    positional_flags=("foreach",),
):  # fmt: skip
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for group in self.param_groups:  # as torch.optim's, whose states are there before the first step
            for param in group["params"]:
                self.state[param]["step"] = torch.zeros((), **step_options(group, param))
                first = group["initial_accumulator_value"]
                first = complex(first, first) if param.is_complex() else first
                self.state[param]["sum"] = torch.full_like(param, first, memory_format=torch.preserve_format)
                if group.get("states") is not None:  # as it is to stay, since share_memory may be called now
                    convert(self.state[param], "sum", state_format(self._core.rule, "sum", group, param), param)

    def share_memory(self) -> None:
        """Moves the sums of squares to memory that processes share.

        Of other optimizers, and of other states, only those that exist when a worker is started can be shared: take a step first.
        """
        for group in self.param_groups:
            for param in group["params"]:
                for array in arrays_of(self.state[param], "sum").values():
                    array.share_memory_()  # type: ignore[no-untyped-call]


class SparseAdam(Optimizer, rule=rules.SparseAdam, flags=("maximize",), positional_flags=("maximize",)):
    def _check_parameters(self, number: int) -> None:
        super()._check_parameters(number)
        group = self.param_groups[number]
        sparse = [[number, i] for i, p in enumerate(group["params"]) if p.is_sparse]
        if sparse:
            raise ValueError(f"Sparse params at indices {sparse}: SparseAdam requires dense parameter tensors")
        wide = [[number, i] for i, p in enumerate(group["params"]) if p.is_complex()]
        if wide:
            raise ValueError(f"Complex params at indices {wide}: SparseAdam does not support complex parameters")


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


class Prodigy(Optimizer, rule=rules.Prodigy):
    _constant = {"d0": "its sums are kept in units of it"}


class DAdaptAdam(Optimizer, rule=rules.DAdaptAdam): ...


class DoG(Optimizer, rule=rules.DoG): ...


_MIXED = "weights and their average are mixed by it"


class _ScheduleFree(Optimizer):
    """Weights that are exchanged for their average to be evaluated or saved, and back to be trained."""

    def train(self) -> None:
        """Gives the model the weights that gradients are taken at. The optimizer begins so; twice changes nothing."""
        self._exchange(training=True)

    def eval(self) -> None:
        """Gives the model the averaged weights, to evaluate or to save. Twice changes nothing."""
        self._exchange(training=False)

    @torch.no_grad()
    @torch_alone()
    def _exchange(self, training: bool) -> None:
        if training == self._core.training:
            return
        self._check_constants(self._list())
        if self._core.swapped is not None:
            raise RuntimeError(
                f"the weights are swapped with their averages: call swap_average() before {'train' if training else 'eval'}()"
            )
        self._core.training = training
        self._forget_plans()
        for group, param in self._each():
            beta = group["betas"][0] if "betas" in group else group["momentum"]
            share = 1 - beta if training else 1 - 1 / beta
            if kept(self.state.get(param, {}), "z") is not None:
                param.lerp_(self.read(param, "z").to(param.dtype), float(share))

    def _extras(self) -> dict[str, Any]:
        return {**super()._extras(), **({} if self._core.training else {"training": False})}

    def _take_extras(self, saved: Mapping[str, Any]) -> None:
        """The model is to have the weights that the state dict was saved with."""
        super()._take_extras(saved)
        self._core.training = saved.get("training", True)

    def _take_step(self) -> None:
        if not self._core.training:
            raise RuntimeError("the model has the averaged weights: call train() of the optimizer before step()")
        super()._take_step()


class ScheduleFreeSGD(_ScheduleFree, rule=rules.ScheduleFreeSGD):
    _constant = {"momentum": _MIXED}


class ScheduleFreeAdamW(_ScheduleFree, rule=rules.ScheduleFreeAdamW):
    _constant = {"betas": _MIXED}


class ScheduleFreeRAdam(_ScheduleFree, rule=rules.ScheduleFreeRAdam):
    _constant = {"betas": _MIXED}
