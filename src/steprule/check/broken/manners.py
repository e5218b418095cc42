"""Faults of manners."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from typing import Any

import torch

from steprule.check.broken.correct import AdamW, Group, State
from steprule.check.broken.fault import fault


@fault("takes_a_generator", "pytorch/pytorch#47594: SparseAdam")
class ReadsParametersTwice(AdamW):
    """Its constructor goes through the parameters before torch.optim.Optimizer does, which then finds a generator empty."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        self.is_half = all(param.dtype == torch.float16 for param in params if torch.is_tensor(param))
        super().__init__(params, lr, **settings)


@fault("takes_named_parameters")
class ReadsShapes(AdamW):
    """Its constructor looks at the shapes of parameters, and knows nothing of names."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        params = list(params)
        self.largest = max((one.numel() for one in params if not isinstance(one, dict)), default=0)
        super().__init__(params, lr, **settings)


@fault("takes_groups")
class OverwritesGroups(AdamW):
    """Its constructor writes its lr into every group."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        for group in self.param_groups:
            group["lr"] = lr


@fault("groups_have_their_own_settings")
class FirstGroupForAll(AdamW):
    """All groups are stepped with the first group's settings."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, self.param_groups[0])


@fault("groups_have_their_own_settings")
class FirstGroupsDecayForAll(AdamW):
    """All groups have the first group's weight_decay."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return super().decayed(param, {**group, "weight_decay": self.param_groups[0]["weight_decay"]})


@fault("steps_by_the_closures_gradients")
class StepsByOldGradients(AdamW):
    """Gradients are gathered before the closure is called."""

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        params = [param for group in self.param_groups for param in group["params"]]
        before = [param.grad for param in params]
        loss = super().evaluate(closure)
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
        return loss


@fault("does_not_seed")
class Seeds(AdamW):
    """Each step sets the seed of torch's random numbers."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        torch.manual_seed(0)
        super().update(param, grad, state, group)


@fault("refuses_unknown_arguments", "pytorch_optimizer 4.1.0")
class SwallowsArguments(AdamW):
    """Arguments that it does not know are dropped."""

    def __init__(
        self, params: Any, lr: float = 1e-3, eps: float = 1e-8, weight_decay: float = 1e-2, **settings: Any
    ) -> None:
        known = {name: settings[name] for name in ("betas", "amsgrad", "maximize") if name in settings}
        super().__init__(params, lr, eps=eps, weight_decay=weight_decay, **known)


@fault("refuses_a_negative_lr", "heavyball 3.2.1, timm 1.0.31 (Adafactor, AdamP, SGDP)")
class TakesAnyLr(AdamW):
    """A negative lr is accepted."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, abs(lr), **settings)
        self.defaults["lr"] = self.param_groups[0]["lr"] = lr


@fault("refuses_no_parameters")
class TakesNothing(AdamW):
    """No parameters are accepted."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        params = params if torch.is_tensor(params) else list(params) or [{"params": []}]
        super().__init__(params, lr, **settings)


@fault("refuses_a_bare_tensor")
class TakesOneTensor(AdamW):
    """A tensor is taken as a list of it."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__([params] if torch.is_tensor(params) else params, lr, **settings)


@fault("refuses_a_parameter_in_two_groups")
class AddsGroupsItself(AdamW):
    """Its own add_param_group does not look whether a parameter is there already."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        before, self.param_groups = getattr(self, "param_groups", []), []
        super().add_param_group(param_group)
        self.param_groups = before + self.param_groups


@fault("has_lr_in_its_groups")
class CallsLrOtherwise(AdamW):
    """Its groups have a "learning_rate", which no scheduler writes."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        for group in self.param_groups:
            group["learning_rate"] = group.pop("lr")

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, {**group, "lr": group["learning_rate"]})


@fault("moves_at_the_first_step", "SOAP's first step only begins its states")
class SkipsTheFirstStep(AdamW):
    """The first step only takes the gradient into the moments."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if state["step"] == 1:
            self.moments(grad.to(state["exp_avg"].dtype), state, group)
        else:
            super().update(param, grad, state, group)


@fault("calls_the_closure_once")
class CallsTheClosureTwice(AdamW):
    """The closure is called for the loss, and again for the gradients."""

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        super().evaluate(closure)
        return super().evaluate(closure)


@fault("returns_the_loss", "huggingface/accelerate#4274: the wrapper drops it")
class ForgetsTheLoss(AdamW):
    """step(closure) returns None."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        AdamW.step.__wrapped__(self, closure) if hasattr(AdamW.step, "__wrapped__") else AdamW.step(self, closure)


@fault("gives_gradients_to_the_closure", "HomebrewML/HeavyBall#10")
class CallsTheClosureWithoutGradients(AdamW):
    """All of step, and with it the closure, runs under no_grad."""

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        with torch.no_grad():
            return None if closure is None else closure()


@fault("keeps_the_grad_mode")
class LeavesGradientsOff(AdamW):
    """Gradients are switched off and on without try and finally."""

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        torch.set_grad_enabled(False)
        loss = super().evaluate(closure) if closure is None else self.call(closure)
        torch.set_grad_enabled(True)
        return loss

    def call(self, closure: Callable[[], Any]) -> Any:
        """What the closure returns."""
        torch.set_grad_enabled(True)
        try:
            return closure()
        finally:
            torch.set_grad_enabled(False)


@fault(
    "runs_hooks_once",
    "a step that calls super().step() runs the hooks of both, once an optimizer of the parent was made",
)
class RunsHooksTwice(AdamW):
    """Its step calls that of its parent, and torch runs hooks around both."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        AdamW([torch.nn.Parameter(torch.ones(1))])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


@fault("runs_hooks_once")
class PassesHooksBy(AdamW):
    """Each optimizer has a step of its own as an attribute, around which torch runs no hooks."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        self.step = types.MethodType(getattr(AdamW.step, "__wrapped__", AdamW.step), self)  # type: ignore[method-assign]


@fault("can_be_copied", "pytorch_optimizer 4.1.0, heavyball 3.2.1")
class LosesAttributes(AdamW):
    """It keeps a setting as an attribute, which copies do not have: they get state, param_groups and defaults."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        self.factor = 1.0

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return self.factor * super().direction(state, group)


@fault("can_be_pickled", "chainer/chainer#8387: a class inside a function")
class KeepsALambda(AdamW):
    """A group has a function without a name, which cannot be pickled."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        for group in self.param_groups:
            group["schedule"] = lambda step: 1.0


@fault("reads_settings_each_step", "optimi 0.3.3")
class KeepsBetas(AdamW):
    """The betas that it was made with hold for ever."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), **settings: Any
    ) -> None:
        super().__init__(params, lr, betas, **settings)
        for group in self.param_groups:
            group["first_betas"] = betas

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, {**group, "betas": group.get("first_betas", group["betas"])})


@fault("follows_a_changed_lr")
class KeepsTheFirstLr(AdamW):
    """The lr of a parameter's first step holds for ever."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, {**group, "lr": state.setdefault("lr", group["lr"])})


@fault("takes_one_cycle")
class WritesIntoBetas(AdamW):
    """It makes a list of its betas and writes into it, where schedulers put a tuple."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        for group in self.param_groups:
            group["betas"] = list(group["betas"])

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        group["betas"][1] = max(group["betas"][1], 0.5)
        super().moments(grad, state, group)


@fault("adds_a_group_midway", "PaddlePaddle/X2Paddle#613: Adam")
class ListsParametersOnce(AdamW):
    """It steps the parameters that it was made with."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        self.known = {id(param) for group in self.param_groups for param in group["params"]}

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if id(param) in self.known:
            super().update(param, grad, state, group)


@fault("skips_overflow_under_grad_scaler", "pytorch/pytorch#95781: fused Adam")
class IgnoresFoundInf(AdamW):
    """It says that it unscales gradients and skips overflow itself, and does neither."""

    _step_supports_amp_scaling = True


@fault("unscales_under_grad_scaler")
class ForgetsToUnscale(AdamW):
    """It skips steps with overflow itself, and steps with scaled gradients."""

    _step_supports_amp_scaling = True

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if not getattr(self, "found_inf", 0):
            super().update(param, grad, state, group)


@fault("repeats_itself")
class DrawsNoise(AdamW):
    """It draws from random, which torch.manual_seed does not seed."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return super().direction(state, group) * (1 + 1e-4 * random.random())


@fault("keeps_instances_apart")
class CountsForAll(AdamW):
    """The count of steps belongs to the class, not to an optimizer."""

    taken = [0]

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        self.taken[0] = 1 if step == 1 else self.taken[0] + 1
        return super().corrections(self.taken[0], group)


ALL: list[AdamW] = []


@fault("is_freed")
class IsNeverFreed(AdamW):
    """A list of the module has every optimizer for ever."""

    def __init__(self, params: Any, lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        ALL.append(self)


@fault("clears_gradients", "NVIDIA/apex#1196")
class HasAnotherZeroGrad(AdamW):
    """Its zero_grad takes no set_to_none."""

    def zero_grad(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None
