"""Faults in what is done with gradients and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steprule.check.broken.correct import AdamW, Group, State
from steprule.check.broken.fault import fault


@fault("leaves_gradients_alone", "Muon, NorMuon, Aurora and COSMOS")
class OverwritesGradients(AdamW):
    """The gradient's memory is used for intermediate results."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, group)
        grad.mul_(grad)


@fault("leaves_gradients_alone", "kozistr/pytorch_optimizer#528: Adai negates twice")
class NegatesInPlace(AdamW):
    """maximize negates the gradient in its place."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        assert param.grad is not None
        return param.grad.neg_() if group["maximize"] else param.grad


@fault("keeps_no_gradient", "torch.optim.Muon up to 2.14.1: momentum aliased with the gradient")
class KeepsTheGradient(AdamW):
    """A state is the gradient itself, not a copy of it."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        change = grad - state.get("previous", grad)
        super().moments(grad + 0.1 * change, state, group)
        state["previous"] = grad


@fault("skips_missing_gradients")
class StopsAtMissing(AdamW):
    """A parameter without a gradient ends the loop, where it should be passed over."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is None:
                        break
                    state = self.state[param]
                    if not state:
                        self.begin(param, state, group)
                    state["step"] += 1
                    self.update(param, self.gradient(param, group), state, group)
        return loss


@fault("skips_missing_gradients", "KellerJordan/Muon#54")
class DecaysWithoutGradients(AdamW):
    """Parameters without a gradient are decayed."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is None:
                        param.mul_(1 - group["lr"] * group["weight_decay"])
        getattr(AdamW.step, "__wrapped__", AdamW.step)(self)
        return loss


@fault("rests_while_a_gradient_is_missing")
class GoesOnWithoutGradients(AdamW):
    """A parameter that has momentum is moved by it where its gradient is None."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate(closure)
        for param, state in self.state.items():
            if state and param.grad is None:
                param.grad = torch.zeros_like(param)
        getattr(AdamW.step, "__wrapped__", AdamW.step)(self)
        return loss


@fault("steps_without_any_gradient", "pytorch/pytorch#53354: AdamW of torch 1.8.0 failed there")
class NeedsAGradient(AdamW):
    """It stacks the norms of all gradients, and fails if there are none."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate(closure)
        grads = [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
        torch.stack([grad.to_dense().abs().sum() for grad in grads])
        getattr(AdamW.step, "__wrapped__", AdamW.step)(self)
        return loss


@fault("counts_steps_of_each_parameter", "one count for a group: timm, apex")
class CountsForTheGroup(AdamW):
    """A group counts steps, not a parameter: one that begins late is corrected for bias as an old one."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        first = next(one for one in group["params"] if one.grad is not None)
        group["taken"] = group.get("taken", 0) + (param is first)
        super().update(param, grad, {**state, "step": group["taken"]}, group)


@fault("steps_parameters_apart", "timm's Lamb clips all gradients to a norm of 1")
class ClipsAllTogether(AdamW):
    """Gradients are clipped by the norm of all, without being asked."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        norms = [one.grad.float().norm() for one in group["params"] if one.grad is not None]
        return super().gradient(param, group) / torch.stack(norms).norm().clamp(min=1.0).item()


@fault("steps_strided_parameters")
class WritesIntoACopy(AdamW):
    """It flattens the parameter, which makes a copy of one that is not contiguous."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if param.is_contiguous():
            super().update(param, grad, state, group)
        else:
            stepped = param.contiguous()
            super().update(stepped, grad, state, group)
            param.reshape(-1).copy_(stepped.reshape(-1))


@fault("takes_strided_gradients", "pytorch_optimizer 4.1.0 (AdamP)")
class ViewsGradients(AdamW):
    """It views the gradient as a vector, which fails for one that is not contiguous."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return super().gradient(param, group).view(-1).view(param.shape)


@fault("takes_strided_gradients", "torch.optim up to 2.13 with fused=True misreads gradients of other strides")
class MisreadsGradients(AdamW):
    """It reads the gradient's memory in order, whatever its strides are."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        grad = super().gradient(param, group)
        return (
            torch.as_strided(grad, (grad.untyped_storage().nbytes() // grad.element_size(),), (1,))[
                : max(param.numel(), 1)
            ]
            .expand(param.numel() or 1)[: param.numel()]
            .reshape(param.shape)
        )


@fault("takes_any_shape", "heavyball 3.2.1 (SOAP)")
class NeedsADimension(AdamW):
    """It asks for the size of the first dimension, which a number has not."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return super().direction(state, group) * (state["exp_avg"].size(0) > -1)


@fault("takes_any_shape", "torch.optim.Adafactor divides by zero on an empty parameter")
class NeedsAnElement(AdamW):
    """It takes the largest element, which an empty parameter has not."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        direction = super().direction(state, group)
        return direction.clamp(max=max(float(direction.max()), 1.0))


@fault("bumps_versions", "torch.optim with fused=True, and all code that writes to .data")
class WritesToData(AdamW):
    """It writes to param.data, which autograd does not notice."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param.data, grad, state, group)


@fault("keeps_parameters_in_place")
class ReplacesParameters(AdamW):
    """A parameter is new memory after each step."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, group)
        param.data = param.data.clone()


@fault("holds_no_graph", "metaopt/torchopt#219: MetaAdam")
class KeepsTheGraph(AdamW):
    """A state is computed from a gradient that is not detached, outside of no_grad."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        assert param.grad is not None
        with torch.enable_grad():
            self.state[param]["last"] = param.grad * 1.0
        return super().gradient(param, group)


@fault("mixes_dtypes")
class NeedsOneDtype(AdamW):
    """It multiplies gradients of a group with each other, which must have one dtype for it."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        grad = super().gradient(param, group)
        first = next(one.grad for one in group["params"] if one.grad is not None)
        torch.dot(grad.flatten()[:1], first.flatten()[:1])
        return grad


@fault("maximizes")
class GrowsWhileMaximizing(AdamW):
    """maximize changes the sign of the whole update, decay included."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        sign = -1 if group["maximize"] else 1
        return param * (1 - sign * group["lr"] * group["weight_decay"])


@fault("refuses_sparse_gradients")
class MisreadsSparse(AdamW):
    """A sparse gradient's values are written one after the other: of two for a row, the last one counts."""

    def refuse(self, param: torch.Tensor) -> None:
        pass

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        grad = super().gradient(param, group)
        if grad.is_sparse:
            rows, values = grad._indices()[0], grad._values()
            grad = torch.zeros_like(param)
            for row, value in zip(rows, values, strict=True):
                grad[row] = value
        return grad


@fault("keeps_states_while_a_gradient_is_missing")
class ForgetsWhereNoGradientIs(AdamW):
    """Where a gradient is missing, the states of its parameter are dropped."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        for param in [param for param in self.state if param.grad is None]:
            del self.state[param]
        return loss


@fault("steps_every_parameter")
class StepsSomeParameters(AdamW):
    """Of a group only the first 64 parameters are stepped, as many as a launch takes."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if any(param is one for one in group["params"][:64]):
            super().update(param, grad, state, group)


@fault("steps_every_element")
class StepsWholeBlocks(AdamW):
    """Elements behind the last whole block of 4096 stay where they are."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        before, stepped = param.flatten().clone(), param.numel() // 4096 * 4096
        super().update(param, grad, state, group)
        if stepped:
            param.copy_(torch.cat([param.flatten()[:stepped], before[stepped:]]).view(param.shape))
