"""Schedule-free learning: weights for gradients between those that move and those that are averaged. Defazio et al.
2024, arXiv:2405.15682.

While training, param is the paper's y, where gradients are taken; `train` and `eval` of the optimizer exchange it with
x, the average, which is what to evaluate and to keep. z is what moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from steprule.pieces import Value, debias, ema_sq, maximum, minimum, sqrt, where
from steprule.rule import Hyperparameter, Rule, State
from steprule.rules.adam import rectification

_MIXED = "weights and their average are mixed by it"

_WARMUP = Hyperparameter("number of steps of a linear warm-up of lr", "[0, inf)")


def schedule_free_step(
    param: Value, direction: Value, z: Value, lr_max: Value, weight_sum: Value, step: Value, lr: Value, momentum: Value,
    r: Value, weight_lr_power: Value,
) -> tuple[Value, ...]:  # fmt: skip
    """One step along a direction; the new y, lr_max, weight_sum and z. Equations 3-5, with weights as in section 4.4."""
    lr_max = maximum(lr_max, lr)
    weight = step**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    share = where(weight_sum > 0, weight / where(weight_sum > 0, weight_sum, 1.0), 0.0)
    y = param + share * (z - param) - lr * (1 - momentum * (1 - share)) * direction
    return y, lr_max, weight_sum, z - lr * direction


def average(y: Value, z: Value, beta: Value) -> Value:
    """x, from y and z. Equation 3, solved for it."""
    return y + (1 - 1 / beta) * (z - y)


def mixed(x: Value, z: Value, beta: Value) -> Value:
    """y, from x and z. Equation 3."""
    return x + (1 - beta) * (z - x)


class _Averaging:
    """What these rules have in common."""

    weight_decay = Hyperparameter("weight decay, added to the direction at y", "[0, inf)")
    r = Hyperparameter("power of the step in the weights of the average")
    weight_lr_power = Hyperparameter("power of the largest lr so far in the weights of the average", "[0, inf)")
    lr_max = weight_sum = State("scalar")
    z = State(begins="param", exact=True)
    refuses = "the weights lie between z, which moves, and an average"
    decay: ClassVar[str | None] = "own"


def _evaluated_by_betas(param: Value, z: Value, *, betas: tuple[float, float]) -> Value:
    return average(param, z, betas[0])


def _trained_by_betas(param: Value, z: Value, *, betas: tuple[float, float]) -> Value:
    return mixed(param, z, betas[0])


class _ByBetas(_Averaging):
    """What the rules have in common whose first beta is the paper's."""

    betas = Hyperparameter(
        "weight of the average in the point y where gradients are taken, above 0, and decay rate of the EMA of the squared gradient",
        "[0, 1)",
    )
    constants: ClassVar[Mapping[str, str]] = {"betas[0]": _MIXED}
    evaluated: ClassVar[Callable[..., Any] | None] = staticmethod(_evaluated_by_betas)
    trained: ClassVar[Callable[..., Any] | None] = staticmethod(_trained_by_betas)

    @classmethod
    def check(cls, *, betas: tuple[float, float] = (0.9, 0.999), **others: Any) -> None:
        if not betas[0] > 0:
            raise ValueError(f"Invalid beta parameter at index 0: {betas[0]}; it must be above 0")


class ScheduleFreeSGD(_Averaging, Rule):
    """SGD that needs no schedule. Defazio et al. 2024, arXiv:2405.15682, equations 3-5.

    The average weighs steps by step**r times the largest lr so far to the power weight_lr_power.
    """

    momentum = Hyperparameter(
        "weight of the average in the point y where gradients are taken; the paper's beta", "(0, 1)"
    )
    warmup_steps = _WARMUP
    needs = ("no-schedule", "memory")
    constants = {"momentum": _MIXED}
    when = "In place of SGD with momentum where the number of steps is not known beforehand; larger lr than SGD's."

    @staticmethod
    def update(
        param: Value, grad: Value, lr_max: Value, weight_sum: Value, z: Value, *, step: Value, lr: float = 1.0,
        momentum: float = 0.9, weight_decay: float = 0.0, warmup_steps: float = 0.0, r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        lr = lr * minimum(step / maximum(warmup_steps, 1.0), 1.0)
        direction = grad + weight_decay * param
        return schedule_free_step(
            param, direction, z, lr_max, weight_sum, step, lr, momentum, r, weight_lr_power
        )  # fmt: skip

    @staticmethod
    def evaluated(param: Value, z: Value, *, momentum: float) -> Value:
        return average(param, z, momentum)

    @staticmethod
    def trained(param: Value, z: Value, *, momentum: float) -> Value:
        return mixed(param, z, momentum)


class ScheduleFreeAdamW(_ByBetas, Rule):
    """AdamW that needs no schedule. Defazio et al. 2024, arXiv:2405.15682, algorithm 1."""

    warmup_steps = _WARMUP
    needs = ("no-schedule",)
    when = "In place of AdamW where the number of steps is not known beforehand; lr 1 to 10 times AdamW's."

    @staticmethod
    def update(
        param: Value, grad: Value, lr_max: Value, weight_sum: Value, z: Value, exp_avg_sq: Value, *, step: Value,
        lr: float = 2.5e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        warmup_steps: float = 0.0, r: float = 0.0, weight_lr_power: float = 2.0,
    ) -> tuple[Value, ...]:  # fmt: skip
        lr = lr * minimum(step / maximum(warmup_steps, 1.0), 1.0)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, betas[1])
        direction = grad / (sqrt(debias(exp_avg_sq, betas[1], step)) + eps) + weight_decay * param
        moved = schedule_free_step(
            param, direction, z, lr_max, weight_sum, step, lr, betas[0], r, weight_lr_power
        )  # fmt: skip
        return *moved, exp_avg_sq


class ScheduleFreeRAdam(_ByBetas, Rule):
    """RAdam that needs neither a schedule nor a warm-up. Defazio et al. 2024, arXiv:2405.15682, section 4; Liu et al.
    2020, arXiv:1908.03265."""

    silent_sgd_phase = Hyperparameter("take no step as long as RAdam would take one of SGD")
    needs = ("no-schedule",)
    when = "As ScheduleFreeAdamW, without a warm-up to choose."

    @staticmethod
    def update(
        param: Value, grad: Value, lr_max: Value, weight_sum: Value, z: Value, exp_avg_sq: Value, *, step: Value,
        lr: float = 2.5e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        r: float = 0.0, weight_lr_power: float = 2.0, silent_sgd_phase: bool = True,
    ) -> tuple[Value, ...]:  # fmt: skip
        factor, is_known = rectification(betas[1], step, 4.0)
        lr = lr * where(is_known, factor, 0.0 if silent_sgd_phase else 1.0)
        exp_avg_sq = ema_sq(exp_avg_sq, grad, betas[1])
        scale = where(is_known, sqrt(debias(exp_avg_sq, betas[1], step)) + eps, 1.0)
        direction = grad / scale + weight_decay * param
        moved = schedule_free_step(
            param, direction, z, lr_max, weight_sum, step, lr, betas[0], r, weight_lr_power
        )  # fmt: skip
        return *moved, exp_avg_sq
