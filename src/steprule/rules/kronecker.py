"""Updates that see a weight as a matrix with a square for each side: SOAP, Shampoo and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from steprule.pieces import (
    Value,
    eigenbasis,
    ema,
    ema_sq,
    every,
    gram,
    matmul,
    sqrt,
    total,
    transpose,
    where,
)
from steprule.rule import Hyperparameter, Rule, State

_NOISE = 1.6e-13
"""A share of the sum of all second moments: one that is below it is what rounding leaves of a product."""


def between(left: Value, x: Value, right: Value) -> Value:
    """The product ``L X R``."""
    return matmul(matmul(left, x), right)


def averaged_grams(grad: Value, left: Value, right: Value, beta: Value, max_side: Value) -> tuple[Value, Value]:
    """The EMAs of ``G Gᵀ`` and ``Gᵀ G``; a side that is longer than max_side has the identity."""
    return ema(left, gram(grad, max_side), beta), ema(right, gram(transpose(grad), max_side), beta)


class _Sided:
    """What these rules say of themselves in common."""

    shampoo_beta = Hyperparameter("decay rate of the EMAs of a side's Gram matrix", "[0, 1)")
    precondition_frequency = Hyperparameter(
        "in one of how many steps a parameter's bases or roots are computed", "[1, inf)", whole=True
    )
    max_precond_dim = Hyperparameter(
        "longest side that has a matrix; a longer one has the identity", "[1, inf)", whole=True
    )
    constants: ClassVar[Mapping[str, str]] = {"max_precond_dim": "states have the shapes that it says"}
    decay: ClassVar[str | None] = "decoupled"


class SOAP(_Sided, Rule):
    """Adam in the eigenbases of Shampoo's matrices. Vyas et al. 2024, arXiv:2409.11321, algorithm 3.

    exp_avg and exp_avg_sq are in the bases. Other than in the paper and its code the first step moves weights, as Adam's;
    bases are exact, and not one step of a power iteration; and the second moments are carried into new bases as the diagonal of a
    covariance is, without which the update is too long for many steps. Directions without a gradient get no update.
    """

    left, right = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    left_basis, right_basis = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    when = "Hidden matrices, where steps are few and long, beside AdamW for embeddings, heads and vectors."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, left: Value, right: Value, left_basis: Value,
        right_basis: Value, *, step: Value, lr: float = 3e-3, betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.01, precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        anew: Callable[..., Value] = lambda new, old: every(precondition_frequency, step, new, old)  # noqa: E731
        new_left, new_right = anew(lambda: eigenbasis(left), left_basis), anew(lambda: eigenbasis(right), right_basis)
        left_turn, right_turn = matmul(transpose(new_left), left_basis), matmul(transpose(right_basis), new_right)
        mean = anew(lambda: between(left_turn, exp_avg, right_turn), exp_avg)
        square = anew(lambda: between(left_turn * left_turn, exp_avg_sq, right_turn * right_turn), exp_avg_sq)
        turned = between(transpose(new_left), grad, new_right)
        least = _NOISE * ema(total(exp_avg_sq), total(grad * grad), betas[1])
        mean, exp_avg_sq = ema(mean, turned, betas[0]), ema_sq(square, turned, betas[1])
        whitened = where(exp_avg_sq > least, mean / (sqrt(exp_avg_sq) + eps), 0.0)
        length = sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
        direction = between(new_left, length * whitened, transpose(new_right))
        left, right = averaged_grams(grad, left, right, shampoo_beta, max_precond_dim)
        return param - lr * (direction + weight_decay * param), mean, exp_avg_sq, left, right, new_left, new_right
