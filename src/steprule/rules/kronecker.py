"""Updates that see a weight as a matrix with a square for each side: SOAP, Shampoo and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from steprule.pieces import (
    Value,
    col_mean,
    cols,
    debias,
    eigenbasis,
    ema,
    ema_sq,
    every,
    gram,
    inverse_root,
    largest_eigenvalue,
    matmul,
    mean,
    norm,
    row_mean,
    rows,
    sign,
    size,
    sqrt,
    total,
    transpose,
    where,
)
from steprule.rule import Hyperparameter, Rule, State
from steprule.rules.factored import within

_NOISE = 1.6e-13
"""A share of the sum of all second moments: one that is below it is what rounding leaves of a product."""


def between(left: Value, x: Value, right: Value) -> Value:
    """The product ``L X R``."""
    return matmul(matmul(left, x), right)


def averaged_grams(grad: Value, left: Value, right: Value, beta: Value, max_side: Value) -> tuple[Value, Value]:
    """The EMAs of ``G Gᵀ`` and ``Gᵀ G``; a side that is longer than max_side has the identity."""
    return ema(left, gram(grad, max_side), beta), ema(right, gram(transpose(grad), max_side), beta)


def inverses(values: Value, first: Value, eps: Value) -> Value:
    """The inverses of eigenvalues, which are first where there are none yet; those of what rounding leaves are 0."""
    values = where(values > 0, values, first)
    return where(values > _NOISE * total(values), 1 / (values + eps), 0.0)


def as_long(direction: Value, length: Value) -> Value:
    """A direction of this length; 0 stays 0."""
    own = norm(direction)
    return where(own == 0, 0.0, length / where(own == 0, 1.0, own)) * direction


def fitted(root: Value, other: Value, rate: Value) -> Value:
    """A step of a symmetric ``Q`` to where another matrix is I, ``(I - r (F - I)) Q (I - r (F - I))``."""
    rate = rate / 2 / (1 + largest_eigenvalue(other))
    half = root - rate * (matmul(other, root) - root)
    new = half - rate * (matmul(half, other) - half)
    return (new + transpose(new)) / 2


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
        anew = partial(every, precondition_frequency, step)
        new_left, new_right = anew(lambda: eigenbasis(left), left_basis), anew(lambda: eigenbasis(right), right_basis)
        left_turn, right_turn = matmul(transpose(new_left), left_basis), matmul(transpose(right_basis), new_right)
        turned_mean = anew(lambda: between(left_turn, exp_avg, right_turn), exp_avg)
        square = anew(lambda: between(left_turn * left_turn, exp_avg_sq, right_turn * right_turn), exp_avg_sq)
        turned = between(transpose(new_left), grad, new_right)
        least = _NOISE * ema(total(exp_avg_sq), total(grad * grad), betas[1])
        new_mean, exp_avg_sq = ema(turned_mean, turned, betas[0]), ema_sq(square, turned, betas[1])
        whitened = where(least - exp_avg_sq >= 0, 0.0, new_mean / (sqrt(exp_avg_sq) + eps))  # NaN and inf stay in sight
        length = sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
        direction = between(new_left, length * whitened, transpose(new_right))
        left, right = averaged_grams(grad, left, right, shampoo_beta, max_precond_dim)
        return param - lr * (direction + weight_decay * param), new_mean, exp_avg_sq, left, right, new_left, new_right


class Shampoo(_Sided, Rule):
    """Momentum between inverse roots of both sides' Gram matrices, as long as Adam's step. Gupta et al. 2018, arXiv:1802.09568.

    The length is grafted from Adam, as in Shi et al. 2023, arXiv:2309.06497, so that lr and betas are Adam's. Roots are of averages
    that are corrected for their start, of the first step on. What has no gradient gets no update.
    """

    root = Hyperparameter("p of the inverse root, the power of -1 / p", "[1, inf)")
    eps = Hyperparameter("added to eigenvalues", "[0, inf)")
    graft_eps = Hyperparameter("eps of the Adam whose length a step has", "[0, inf)")
    left, right = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    left_root, right_root = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    when = "In place of SOAP, where Adam's learning rate and schedule should be kept."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, left: Value, right: Value, left_root: Value,
        right_root: Value, *, step: Value, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        shampoo_beta: float = 0.95, root: float = 4.0, eps: float = 1e-12, graft_eps: float = 1e-8,
        weight_decay: float = 0.01, precondition_frequency: int = 10, max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        anew = partial(every, precondition_frequency, step)
        left, right = averaged_grams(grad, left, right, shampoo_beta, max_precond_dim)
        left_root = anew(lambda: inverse_root(debias(left, shampoo_beta, step), root, eps), left_root)
        right_root = anew(lambda: inverse_root(debias(right, shampoo_beta, step), root, eps), right_root)
        exp_avg, exp_avg_sq = ema(exp_avg, grad, betas[0]), ema_sq(exp_avg_sq, grad, betas[1])
        ahead = debias(exp_avg, betas[0], step)
        adam = ahead / (sqrt(debias(exp_avg_sq, betas[1], step)) + graft_eps)
        direction = as_long(between(left_root, ahead, right_root), norm(adam))
        return param - lr * (direction + weight_decay * param), exp_avg, exp_avg_sq, left, right, left_root, right_root


class ASGO(_Sided, Rule):
    """Momentum times the inverse root of the shorter side's Gram matrix. An et al. 2025, arXiv:2503.20762: one-sided Shampoo.

    An update's RMS is 0.2, as in the authors' code.
    """

    left, right = State("left", most="other"), State("right", most="other")
    left_root, right_root = State("left", most="other"), State("right", most="other")
    constants: ClassVar[Mapping[str, str]] = {}
    when = "In place of Shampoo, where there is room for one small square beside a matrix."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, left: Value, right: Value, left_root: Value, right_root: Value, *,
        step: Value, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.8), weight_decay: float = 0.1,
        precondition_frequency: int = 1,
    ) -> tuple[Value, ...]:  # fmt: skip
        anew = partial(every, precondition_frequency, step)
        exp_avg = ema(exp_avg, grad, betas[0])
        left = ema(left, gram(grad, cols(grad) - 1), betas[1])
        right = ema(right, gram(transpose(grad), rows(grad)), betas[1])
        left_root = anew(lambda: inverse_root(left, 2), left_root)
        right_root = anew(lambda: inverse_root(right, 2), right_root)
        direction = as_long(between(left_root, exp_avg, right_root), 0.2 * sqrt(size(param)))
        return param - lr * (direction + weight_decay * param), exp_avg, left, right, left_root, right_root


class KLShampoo(_Sided, Rule):
    """Shampoo whose sides whiten each other's gradients, and need no grafting. Lin et al. 2025, arXiv:2509.03378.

    ``L ← β L + (1 - β) G R⁻¹ Gᵀ / n``, likewise R, and the update is ``L^(-1/2) M R^(-1/2)``. Both begin at I, and gradients are divided by
    scale, the root mean square of the first that is not 0. Inverses are of the last roots. Other than in the authors' code the first step
    moves weights, roots are exact, and their eigenvalues are those of the matrices.
    """

    eps = Hyperparameter("added to eigenvalues", "[0, inf)")
    scale = State("rows")  # the same for all rows, and of each matrix of a view its own
    left, right = State("left", 1.0, most="max_precond_dim"), State("right", 1.0, most="max_precond_dim")
    left_root, right_root = State("left", 1.0, most="max_precond_dim"), State("right", 1.0, most="max_precond_dim")
    when = "In place of Shampoo, without a second moment for each element."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, scale: Value, left: Value, right: Value, left_root: Value,
        right_root: Value, *, step: Value, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-8,
        weight_decay: float = 0.01, precondition_frequency: int = 10, max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        anew = partial(every, precondition_frequency, step)
        scale = where(scale > 0, scale, sqrt(mean(grad * grad)))
        unit = grad / where(scale > 0, scale, 1.0)
        from_left, from_right = matmul(transpose(unit), left_root), matmul(unit, right_root)
        left = ema(left, gram(from_right, max_precond_dim) / cols(grad), betas[1])
        right = ema(right, gram(from_left, max_precond_dim) / rows(grad), betas[1])
        left_root = anew(lambda: inverse_root(left, 2, eps), left_root)
        right_root = anew(lambda: inverse_root(right, 2, eps), right_root)
        exp_avg = ema(exp_avg, unit, betas[0])
        direction = between(left_root, exp_avg, right_root)
        return param - lr * (direction + weight_decay * param), exp_avg, scale, left, right, left_root, right_root


class KLSOAP(_Sided, Rule):
    """SOAP whose sides whiten each other's gradients, as KL-Shampoo's do: its second form. Lin et al. 2025, arXiv:2509.03378.

    ``L ← β L + (1 - β) G R⁻¹ Gᵀ / n``, likewise R. Inverses are of the last bases, and of eigenvalues that are averages of their own: they
    begin with the second gradient, at the root mean square of the first, and keep their places in new bases. Other than in the
    authors' code none is bounded, and L and R are by inverses from the first step on. What is said of SOAP holds here too.
    """

    eps = Hyperparameter("added to the root of the second moment, and to eigenvalues", "[0, inf)")
    left, right = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    left_basis, right_basis = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    left_values, right_values = State("rows"), State("cols")
    when = "In place of SOAP, where some rows or columns have much larger gradients than others."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, left: Value, right: Value, left_basis: Value,
        right_basis: Value, left_values: Value, right_values: Value, *, step: Value, lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95), shampoo_beta: float = 0.95, eps: float = 1e-8,
        weight_decay: float = 0.01, precondition_frequency: int = 10, max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        *stepped, _, _, new_left, new_right = SOAP.update(
            param, grad, exp_avg, exp_avg_sq, left, right, left_basis, right_basis, step=step, lr=lr, betas=betas, eps=eps,
            weight_decay=weight_decay, precondition_frequency=precondition_frequency,
        )  # fmt: skip
        first = sqrt(mean(grad * grad))
        by_left, by_right = inverses(left_values, first, eps), inverses(right_values, first, eps)
        from_left, from_right = matmul(transpose(new_left), grad), matmul(grad, new_right)
        left = ema(left, gram(sqrt(by_right) * from_right, max_precond_dim) / cols(grad), shampoo_beta)
        right = ema(right, gram(transpose(sqrt(by_left) * from_left), max_precond_dim) / rows(grad), shampoo_beta)
        turned = matmul(from_left, new_right)
        row_sq, col_sq = row_mean(by_right * turned * turned), col_mean(by_left * turned * turned)
        left_values = where(left_values > 0, ema(left_values, row_sq, shampoo_beta), first)
        right_values = where(right_values > 0, ema(right_values, col_sq, shampoo_beta), first)
        return *stepped, left, right, new_left, new_right, left_values, right_values


class SPlus(_Sided, Rule):
    """The sign of the momentum in Shampoo's eigenbases, times 2 / (m + n). Frans et al. 2025, arXiv:2506.07254, algorithm 1.

    The paper evaluates an average of the weights: average=0.999. Decay is by lr, without the factor of the shape. Directions without a
    gradient get no update.
    """

    left, right = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    left_basis, right_basis = State("left", most="max_precond_dim"), State("right", most="max_precond_dim")
    when = "In place of SOAP, without a second moment for each element, beside an average of the weights."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, left: Value, right: Value, left_basis: Value, right_basis: Value, *,
        step: Value, lr: float = 0.1, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0,
        precondition_frequency: int = 100, max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        anew = partial(every, precondition_frequency, step)
        new_left, new_right = anew(lambda: eigenbasis(left), left_basis), anew(lambda: eigenbasis(right), right_basis)
        exp_avg = ema(exp_avg, grad, betas[0])
        turned = between(transpose(new_left), exp_avg, new_right)
        least = _NOISE * total(exp_avg * exp_avg)
        signs = where(least - turned * turned >= 0, 0.0, sign(turned))  # NaN and inf stay in sight
        direction = 2 / (rows(param) + cols(param)) * between(new_left, signs, transpose(new_right))
        left, right = averaged_grams(grad, left, right, betas[1], max_precond_dim)
        return param - lr * (direction + weight_decay * param), exp_avg, left, right, new_left, new_right


class PSGDKron(_Sided, Rule):
    """Momentum between two squares that are fitted to whiten gradients, in small steps. Li 2015, arXiv:1512.04202: PSGD.

    ``P = Q Q`` at each side. Of ``X = P G P``, Q goes to where ``X Xᵀ / n`` is I, in the quadratic form of the author's code, which needs no
    inverse and no triangular factor (QUAD; see also arXiv:2402.11858). Other than there nothing is random: of the noise that is added to
    gradients the expectation is left, as ``damping P P``, which keeps eigenvalues of P below ``damping^(-1/2)``. A step of the fit is
    measured by its own gradient, and not by an average besides, P begins at I, and updates are limited to kron_torch's length.
    """

    momentum = Hyperparameter("decay rate of the momentum", "[0, 1)")
    precond_lr = Hyperparameter("how far a step of the fit goes; above 0.5 it swings", "[0, 1]")
    damping = Hyperparameter("inverse square of how large the eigenvalues of P become", "[0, inf)")
    clip_threshold = Hyperparameter("longest root mean square of the update", "(0, inf)")
    left, right = State("left", 1.0, most="max_precond_dim"), State("right", 1.0, most="max_precond_dim")
    when = "In place of SOAP and Shampoo, without eigenvectors and without a second moment for each element."

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, left: Value, right: Value, *, step: Value, lr: float = 1e-3,
        momentum: float = 0.9, precond_lr: float = 0.1, damping: float = 1e-9, clip_threshold: float = 1.1,
        weight_decay: float = 0.0, precondition_frequency: int = 1, max_precond_dim: int = 10000,
    ) -> tuple[Value, ...]:  # fmt: skip
        exp_avg, by_left, by_right = ema(exp_avg, grad, momentum), gram(left), gram(right)
        white = between(by_left, grad, by_right)
        anew = partial(every, precondition_frequency, step)
        at_left = anew(lambda: fitted(left, gram(white) / cols(grad) + damping * gram(by_left), precond_lr), left)
        at_right = anew(
            lambda: fitted(right, gram(transpose(white)) / rows(grad) + damping * gram(by_right), precond_lr), right
        )
        left = where(rows(grad) > max_precond_dim, left, at_left)
        right = where(cols(grad) > max_precond_dim, right, at_right)
        direction = within(between(gram(left), debias(exp_avg, momentum, step), gram(right)), clip_threshold)
        return param - lr * (direction + weight_decay * param), exp_avg, left, right
