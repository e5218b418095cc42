"""Two optimizers without a fault, as plain as they can be: AdamW, and Muon with an exact polar factor.

Each is cut into small methods, so that a broken one replaces the one that its fault is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Group = dict[str, Any]
State = dict[str, Any]


class Plain(torch.optim.Optimizer):
    """What both have: a loop over parameters that have a gradient."""

    _step_supports_amp_scaling = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step."""
        loss = self.evaluate(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        self.refuse(param)
                        state = self.state[param]
                        if not state:
                            self.begin(param, state, group)
                        state["step"] += 1
                        self.update(param, self.gradient(param, group), state, group)
        return loss

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """What the closure returns."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def refuse(self, param: torch.Tensor) -> None:
        """Raises for a gradient that is not taken."""
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError("sparse gradients are not taken")

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        """What is stepped with."""
        assert param.grad is not None
        grad = param.grad.detach()
        return -grad if group["maximize"] else grad

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        """Makes the states."""
        raise NotImplementedError

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        """Steps one parameter."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads copies, in the dtypes that they have."""
        kept = {**state_dict, "state": {key: dict(value) for key, value in state_dict["state"].items()}}
        super().load_state_dict(kept)
        ids = [number for group in state_dict["param_groups"] for number in group["params"]]
        held = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(ids, held, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                self.state[param][key] = value.clone() if torch.is_tensor(value) else value


class AdamW(Plain):
    """AdamW. Loshchilov and Hutter, 2019, algorithm 2."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr={lr} must not be negative")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, {**defaults, "maximize": maximize})

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        """A count and two moments in float32 at least."""
        dtype = torch.promote_types(param.dtype, torch.float32)
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(param, dtype=dtype)
        state["exp_avg_sq"] = torch.zeros_like(param, dtype=dtype)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(param, dtype=dtype)

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        """Decay, moments, update."""
        grad = grad.to(state["exp_avg"].dtype)
        self.moments(grad, state, group)
        exact = param.to(grad.dtype)
        param.copy_(self.decayed(exact, group) - group["lr"] * self.direction(state, group))

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        """The parameter after its decay."""
        return param * (1 - group["lr"] * group["weight_decay"])

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        """Takes the gradient into the moments."""
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            torch.maximum(state["max_exp_avg_sq"], state["exp_avg_sq"], out=state["max_exp_avg_sq"])

    def direction(self, state: State, group: Group) -> torch.Tensor:
        """The first moment over the root of the second, both corrected for bias."""
        one, two = self.corrections(state["step"], group)
        square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        return state["exp_avg"] / one / self.root(square / two, group["eps"])

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        """By what the moments are divided."""
        beta1, beta2 = group["betas"]
        return 1 - beta1**step, 1 - beta2**step

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        """What the first moment is divided by."""
        return square.sqrt() + eps


class Muon(Plain):
    """Muon with momentum's polar factor by singular values, of matrices and stacks of them."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0, *, maximize: bool = False
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr={lr} must not be negative")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize})

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        """A count and the momentum."""
        state["step"] = 0
        state["momentum_buffer"] = torch.zeros_like(param)

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        """Momentum, its polar factor, update."""
        state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.sub_(group["lr"] * self.polar(state["momentum_buffer"]) * self.scale(param))

    def polar(self, matrix: torch.Tensor) -> torch.Tensor:
        """All singular values that are not 0 become 1."""
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return (u * (s > 1e-4 * s.amax(-1, keepdim=True)).unsqueeze(-2)) @ v

    def scale(self, param: torch.Tensor) -> float:
        """By what the polar factor is multiplied."""
        return float(max(param.shape[-2:])) ** 0.5
