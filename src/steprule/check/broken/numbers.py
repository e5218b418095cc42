"""Faults in numbers."""

from __future__ import annotations

import torch

from steprule.check.broken.correct import AdamW, Group, State
from steprule.check.broken.fault import fault


@fault("follows_its_formula")
class EpsInsideTheRoot(AdamW):
    """eps is inside the root."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return (square + eps).sqrt()


@fault("follows_its_formula", "the reference code of Schedule-Free's paper variant, torch_optimizer's Lamb")
class EpsBeforeCorrection(AdamW):
    """eps is added to the root before it is corrected for bias."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        one, two = self.corrections(state["step"], group)
        return state["exp_avg"] / one * two**0.5 / self.root(state["exp_avg_sq"], group["eps"])


@fault("follows_its_formula", "heavyball bounds the root from below by eps")
class EpsAsABound(AdamW):
    """eps bounds the root from below."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return square.sqrt().clamp(min=eps)


@fault("follows_its_formula", "adabelief-pytorch adds eps to its state in each step")
class EpsGrows(AdamW):
    """eps is added to the second moment in its place, step after step."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        state["exp_avg_sq"].add_(group["eps"] ** 2)
        return super().direction(state, group)


@fault("follows_its_formula")
class SwapsBetas(AdamW):
    """The first beta is the second moment's."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, {**group, "betas": group["betas"][::-1]})

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        return super().corrections(step, {**group, "betas": group["betas"][::-1]})


@fault("follows_its_formula", "pytorch_lamb's Lamb")
class CorrectsNothing(AdamW):
    """No moment is corrected for bias."""

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        return 1.0, 1.0


@fault("follows_its_formula", "pytorch_optimizer's Lamb")
class CorrectsTheFirstOnly(AdamW):
    """Only the first moment is corrected for bias."""

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        return super().corrections(step, group)[0], 1.0


@fault("follows_its_formula")
class CountsFromTwo(AdamW):
    """Bias correction is a step ahead."""

    def corrections(self, step: int, group: Group) -> tuple[float, float]:
        return super().corrections(step + 1, group)


@fault("follows_its_formula", "COSMOS: amsgrad of the wrong shape")
class AmsgradOfTheTensor(AdamW):
    """amsgrad's maximum is one number for the whole tensor."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, group)
        if group["amsgrad"]:
            state["max_exp_avg_sq"].fill_(float(state["max_exp_avg_sq"].max()))


@fault("follows_its_formula")
class IgnoresAmsgrad(AdamW):
    """amsgrad is accepted, and changes nothing."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return super().direction(state, {**group, "amsgrad": False})


@fault("follows_its_formula", "huggingface/transformers#14539")
class DecaysAfterTheUpdate(AdamW):
    """The parameter is decayed after its update."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        super().update(param, grad, state, {**group, "weight_decay": 0.0})
        param.mul_(1 - group["lr"] * group["weight_decay"])


@fault("follows_its_formula")
class MultipliesLrTwice(AdamW):
    """lr enters the moment, and the update again."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return super().direction(state, group) * group["lr"] * 20


@fault("follows_its_formula")
class AddsTheGradientTwice(AdamW):
    """Momentum is Nesterov's, which nobody has asked for."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, group)
        state["last"] = grad.clone()

    def direction(self, state: State, group: Group) -> torch.Tensor:
        beta1 = group["betas"][0]
        ahead = beta1 * state["exp_avg"] + (1 - beta1) * state["last"]
        return super().direction({**state, "exp_avg": ahead}, group)


@fault("decays_as_claimed", "keras-team/keras#19051")
class DecaysTheGradient(AdamW):
    """Decay is added to the gradient, where it is claimed to be decoupled."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        grad = grad.to(state["exp_avg"].dtype) + group["weight_decay"] * param
        super().update(param, grad, state, {**group, "weight_decay": 0.0})


@fault("decays_as_claimed", "tensorflow/addons#2282")
class DecaysWithoutLr(AdamW):
    """Decay does not follow lr."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return param * (1 - group["weight_decay"])


@fault("decays_as_claimed")
class SquaresTheDecay(AdamW):
    """Decay is applied twice."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return super().decayed(super().decayed(param, group), group)


@fault("uses_every_argument", "ooples/AiDotNet.Tensors#955: LARS")
class IgnoresDecay(AdamW):
    """weight_decay is accepted, and changes nothing."""

    def decayed(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return param


@fault("uses_every_argument", "pytorch_optimizer 4.1.0 (ScheduleFreeSGD), heavyball 3.2.1 (LaProp)")
class IgnoresEps(AdamW):
    """eps is accepted, and another number is added."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return super().root(square, 1e-8)


@fault("rests_at_zero_gradients", "kozistr/pytorch_optimizer#120: Nero")
class DividesZeroByZero(AdamW):
    """Nothing is added to the root."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return square.sqrt() + (eps if eps > 1e-3 else 0.0)


@fault("stays_finite", "torch 2.13.0 (Adafactor), timm 1.0.31, pytorch_optimizer 4.1.0: NaN at gradients of 1e20")
class NormalizesTinyGradients(AdamW):
    """Gradients are divided by their norm, which is 0 for tiny ones and infinite for huge ones."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        direction, norm = super().direction(state, group), state["exp_avg_sq"].norm()
        return direction / norm * norm


@fault("takes_zeros_among_gradients", "google/flax#1671")
class NormalizesRows(AdamW):
    """A row is divided by its norm, which may be 0."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        direction = super().direction(state, group)
        norms = direction.abs().sum(-1, keepdim=True) if direction.any() and direction.dim() > 1 else 1.0
        return direction / norms * norms


@fault("ignores_the_scale")
class ClipsElements(AdamW):
    """Elements of the gradient beyond 1 are clipped, which nobody has asked for."""

    def gradient(self, param: torch.Tensor, group: Group) -> torch.Tensor:
        return super().gradient(param, group).clamp(-2, 2)


@fault("agrees_between_dtypes", "NorMuon fails on float32 parameters")
class KnowsOneDtype(AdamW):
    """States are float32 whatever the parameter is, and cannot be mixed with float64."""

    def begin(self, param: torch.Tensor, state: State, group: Group) -> None:
        super().begin(param, state, group)
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].float(), state["exp_avg_sq"].float()

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        self.moments(grad, state, group)
        param.copy_(self.decayed(param, group) - group["lr"] * self.direction(state, group))


@fault("rounds_bfloat16_once")
class Truncates(AdamW):
    """A bfloat16 parameter gets the first half of a float32, not the nearest number."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        if param.dtype != torch.bfloat16:
            super().update(param, grad, state, group)
            return
        exact = param.float()
        super().update(exact, grad, state, group)
        param.copy_((exact.view(torch.int32) & -65536).view(torch.float32))


@fault("rounds_bfloat16_once", "pytorch/pytorch#191763: fused SGD on a CPU")
class StepsTheRemainder(AdamW):
    """Of a bfloat16 parameter only the elements behind the last full block of 16 are stepped."""

    def update(self, param: torch.Tensor, grad: torch.Tensor, state: State, group: Group) -> None:
        before, behind = param.clone(), torch.arange(param.numel()) >= param.numel() // 16 * 16
        super().update(param, grad, state, group)
        if param.dtype == torch.bfloat16:
            param.copy_(torch.where(behind.view(param.shape), param, before))


@fault("goes_downhill")
class GoesUphill(AdamW):
    """The sign of the update is wrong."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        return -super().direction(state, group)


@fault("treats_elements_alike")
class SharesTheSecondMoment(AdamW):
    """The second moment is a row's mean."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return super().root(square.mean(-1, keepdim=True) if square.dim() > 1 else square, eps)


@fault("keeps_the_bytes_it_claims")
class KeepsAScratch(AdamW):
    """A buffer for intermediate results is kept as a state."""

    def direction(self, state: State, group: Group) -> torch.Tensor:
        state["scratch"] = super().direction(state, group)
        return state["scratch"].clone()


@fault("does_not_grow")
class KeepsAHistory(AdamW):
    """Every gradient is kept."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        super().moments(grad, state, group)
        state.setdefault("history", []).append(grad.clone())


@fault("follows_its_formula")
class BeginsAgain(AdamW):
    """The second moment is 0 again in every tenth step."""

    def moments(self, grad: torch.Tensor, state: State, group: Group) -> None:
        if state["step"] % 10 == 0:
            state["exp_avg_sq"].zero_()
        super().moments(grad, state, group)


@fault("steps_elements_apart")
class OneRootForAll(AdamW):
    """The update is divided by one number for the whole tensor."""

    def root(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return super().root(square.mean(), eps)
