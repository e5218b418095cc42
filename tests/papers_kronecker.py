"""The oracle of the rules with a matrix for each side: pseudo-code in NumPy float64, as in papers.py.

For m != n, and for n of 1, the first side's matrix is singular: which vectors span its null space is the eigensolver's
choice, and SOAP, KL-SOAP, KL-Shampoo and SPlus depend on it. Compare implementations of these on square matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from papers import ZERO, Array, Steps, Thetas, each, norm


def eigenbasis(a: Array) -> Array:
    """The eigenvectors of a symmetric matrix as columns, that of the largest eigenvalue first."""
    return np.asarray(np.linalg.eigh(a)[1][:, ::-1])


def power(a: Array, exponent: float, eps: float = 0.0) -> Array:
    """A symmetric matrix's power, of its eigenvalues plus eps."""
    values, q = np.linalg.eigh(a)
    return np.asarray(q * (values + eps) ** exponent @ q.T)


def turned(a: Array, q: Array) -> Array:
    """SOAP's algorithm 4: one power iteration from the basis q, made orthogonal."""
    return np.asarray(np.linalg.qr(a @ q)[0])


def due(t: int, k: int, place: int) -> bool:
    """Whether steprule makes bases or roots anew before step t, of the tensor at a place: in turn, and in the first two steps."""
    return t <= 2 or (t + place) % k == 0


@each
def soap(
    steps: Steps,
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    correct_bias: bool = True,
    carried: bool = False,
    place: int = 0,
) -> Thetas:
    """Vyas et al. 2024 (arXiv:2409.11321), algorithm 3 with the authors' code's first step, eps and decay.

    carried is how steprule departs from it: bases are exact, v goes into new ones as the diagonal of a covariance does, steps that
    make them come in turn, the first step is Adam's, and decay is of the weights before.
    """
    # The first gradient makes the bases and moves nothing; the count begins with the second. L and R, and every f
    # steps the bases, change after the step. The code sorts a basis by Q'LQ before it turns it, and the rows and
    # columns of v with it; v is not rotated. eps is beside the root of v before its correction. Decay is of the
    # weights that have moved, W - lr weight_decay W. The paper averages M and rotates it in each step; the code
    # averages it in the basis and turns it with the basis, which is the same.
    beta1, beta2 = betas
    beta3 = beta2 if shampoo_beta is None else shampoo_beta
    m = v = l = r = ZERO  # noqa: E741
    for t, w, g in steps if carried else ():
        if t == 1:
            m = v = np.zeros(w.shape)
            q_l, q_r = np.eye(w.shape[0]), np.eye(w.shape[1])
        elif due(t, precondition_frequency, place):
            old_l, old_r, q_l, q_r = q_l, q_r, eigenbasis(l), eigenbasis(r)
            v = (q_l.T @ old_l) ** 2 @ v @ (old_r.T @ q_r) ** 2
        g_turned = q_l.T @ g @ q_r
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g_turned**2
        n = (q_l.T @ m @ q_r) / (np.sqrt(v) + eps)
        step = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        l, r = beta3 * l + (1 - beta3) * g @ g.T, beta3 * r + (1 - beta3) * g.T @ g  # noqa: E741
        yield w - step * q_l @ n @ q_r.T - lr * weight_decay * w
    for t, w, g in steps if not carried else ():
        if t == 1:
            l, r = (1 - beta3) * g @ g.T, (1 - beta3) * g.T @ g  # noqa: E741
            q_l, q_r = eigenbasis(l), eigenbasis(r)
            yield w
            continue
        k = t - 1
        g_turned = q_l.T @ g @ q_r
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g_turned**2
        n = (q_l.T @ m @ q_r) / (np.sqrt(v) + eps)
        step = lr * (math.sqrt(1 - beta2**k) / (1 - beta1**k) if correct_bias else 1.0)
        w = w - step * q_l @ n @ q_r.T
        w = w - lr * weight_decay * w
        l, r = beta3 * l + (1 - beta3) * g @ g.T, beta3 * r + (1 - beta3) * g.T @ g  # noqa: E741
        if k % precondition_frequency == 0:
            rows = np.argsort(-np.diag(q_l.T @ l @ q_l))
            columns = np.argsort(-np.diag(q_r.T @ r @ q_r))
            v = v[rows][:, columns]
            q_l, q_r = turned(l, q_l[:, rows]), turned(r, q_r[:, columns])
        yield w


@each
def klshampoo(
    steps: Steps,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.98),
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    init_factor: float = 0.1,
    max_clamp_value: float | None = 4000,
    soap: bool = False,
) -> Thetas:
    """Lin et al. 2025 (arXiv:2509.03378) as in the authors' code: KL-Shampoo, or KL-SOAP if soap."""
    # beta weighs the old, unlike in the paper. The first gradient makes bases of GG' / n and G'G / m, and moves
    # nothing; the eigenvalues begin at init_factor, whatever the gradient's size. Each factor is an average of G times
    # the other's inverse times G', by basis and eigenvalues of before the step; the eigenvalues are averages of their
    # own, of the same in the basis of before. Nothing is corrected for its start. The roots' inverses are at most
    # max(10, min(side, max_clamp_value)). Decay is of the weights that have moved.
    beta1, beta2 = betas
    beta3 = beta2 if shampoo_beta is None else shampoo_beta
    m = v = ZERO
    for t, w, g in steps:
        rows, columns = g.shape
        if t == 1:
            s_a, s_b = (1 - beta3) * g @ g.T / columns, (1 - beta3) * g.T @ g / rows
            q_a, q_b = eigenbasis(s_a), eigenbasis(s_b)
            d_a, d_b = np.full((rows, 1), init_factor), np.full((1, columns), init_factor)
            yield w
            continue
        m = beta1 * m + (1 - beta1) * g
        g_turned, m_turned = q_a.T @ g @ q_b, q_a.T @ m @ q_b
        if soap:
            v = beta2 * v + (1 - beta2) * g_turned**2
            step = m_turned / (np.sqrt(v) + eps)
        else:
            step = m_turned / (np.sqrt(d_a * d_b) + eps)
        w = w - lr * q_a @ step @ q_b.T
        w = w - lr * weight_decay * w
        s_a = beta3 * s_a + (1 - beta3) * (g @ q_b / d_b) @ (g @ q_b).T / columns
        s_b = beta3 * s_b + (1 - beta3) * (q_a.T @ g / d_a).T @ (q_a.T @ g) / rows
        d_a, d_b = (
            beta3 * d_a + (1 - beta3) * np.mean(g_turned**2 / d_b, axis=1, keepdims=True),
            beta3 * d_b + (1 - beta3) * np.mean(g_turned**2 / d_a, axis=0, keepdims=True),
        )
        if max_clamp_value is not None:
            d_a = np.maximum(d_a, max(10, min(rows, max_clamp_value)) ** -2.0)
            d_b = np.maximum(d_b, max(10, min(columns, max_clamp_value)) ** -2.0)
        if (t - 1) % precondition_frequency == 0:
            q_a, q_b = turned(s_a, q_a), turned(s_b, q_b)
        yield w


@each
def klshampoo_exact(
    steps: Steps,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    init_factor: float | None = 0.1,
    precondition_frequency: int = 1,
    place: int = 0,
) -> Thetas:
    """Lin et al. 2025 (arXiv:2509.03378), equation of KL-Shampoo: both factors by exact inverses of the old ones.

    init_factor None is the mean square of the first gradient, as in steprule, where eps is by its root. So is a frequency: inverses are
    of the last roots.
    """
    # Not anybody's code: the factors begin at sqrt(init_factor) I each and see a gradient before they are used.
    beta1, beta2 = betas
    m: Any = ZERO
    s_a: Any = None
    for t, w, g in steps:
        rows, columns = g.shape
        if s_a is None:
            first = math.sqrt(np.mean(g * g) if init_factor is None else init_factor)
            eps = eps * first if init_factor is None else eps
            s_a, s_b = first * np.eye(rows), first * np.eye(columns)
            root_a, root_b = power(s_a, -0.5), power(s_b, -0.5)
        m = beta1 * m + (1 - beta1) * g
        s_a, s_b = (
            beta2 * s_a + (1 - beta2) * g @ root_b @ root_b @ g.T / columns,
            beta2 * s_b + (1 - beta2) * g.T @ root_a @ root_a @ g / rows,
        )
        if due(t, precondition_frequency, place):
            root_a, root_b = power(s_a, -0.5, eps), power(s_b, -0.5, eps)
        step = root_a @ m @ root_b
        yield w - lr * step - lr * weight_decay * w


@each
def klsoap(
    steps: Steps,
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    place: int = 0,
) -> Thetas:
    """Lin et al. 2025 (arXiv:2509.03378), KL-SOAP with exact bases, where klshampoo(soap=True) is the authors' code.

    The steps are those of soap(carried=True). Inverses are through the current bases and eigenvalues.
    """
    beta1, beta2 = betas
    for t, w, g in steps:
        rows, columns = g.shape
        if t == 1:
            m = v = np.zeros(w.shape)
            l, r = np.zeros((rows, rows)), np.zeros((columns, columns))  # noqa: E741
            q_l, q_r = np.eye(rows), np.eye(columns)
            d_l, d_r = (math.sqrt(np.mean(g * g)) * np.ones(side) for side in g.shape)
        elif due(t, precondition_frequency, place):
            old_l, old_r, q_l, q_r = q_l, q_r, eigenbasis(l), eigenbasis(r)
            v = (q_l.T @ old_l) ** 2 @ v @ (old_r.T @ q_r) ** 2
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (q_l.T @ g @ q_r) ** 2
        n = (q_l.T @ m @ q_r) / (np.sqrt(v) + eps)
        step = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        new_l = g @ (q_r / (d_r + eps) @ q_r.T) @ g.T / columns
        new_r = g.T @ (q_l / (d_l + eps) @ q_l.T) @ g / rows
        l, r = shampoo_beta * l + (1 - shampoo_beta) * new_l, shampoo_beta * r + (1 - shampoo_beta) * new_r  # noqa: E741
        if t > 1:
            d_l = shampoo_beta * d_l + (1 - shampoo_beta) * np.diag(q_l.T @ new_l @ q_l)
            d_r = shampoo_beta * d_r + (1 - shampoo_beta) * np.diag(q_r.T @ new_r @ q_r)
        yield w - step * q_l @ n @ q_r.T - lr * weight_decay * w


@each
def shampoo(
    steps: Steps,
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-12,
    weight_decay: float = 0.0,
    precondition_frequency: int = 1,
    start_preconditioning_step: int | None = None,
    exponent: float = 0.25,
    graft_beta2: float | None = 0.999,
    graft_eps: float = 1e-8,
    correct_bias: bool = True,
    in_turn: bool = False,
    place: int = 0,
) -> Thetas:
    """Shi et al. 2023 (arXiv:2309.06497), of one block, grafted from Adam; Gupta et al. 2018's L and R.

    `graft_beta2` None grafts nothing. betas[1] of 1 adds up instead of averaging, as in Gupta et al. in_turn makes roots when steprule
    does, which begins with the first step.
    """
    # eps is added to the eigenvalues. Roots are made new every f steps, of L and R of that step. Before the first that
    # are, the step is Adam's. The length is Adam's step's without decay, of the same averaged gradient, with a second
    # moment that is always corrected. A side of 1 counts here; Distributed Shampoo drops it, and gives a vector the
    # inverse square root of one matrix.
    beta1, beta2 = betas
    start = precondition_frequency if start_preconditioning_step is None else start_preconditioning_step
    start = 1 if in_turn else start
    m = v = l = r = ZERO  # noqa: E741
    for t, w, g in steps:
        gain = 1.0 if beta2 == 1 else 1 - beta2
        m = beta1 * m + (1 - beta1) * g
        l, r = beta2 * l + gain * g @ g.T, beta2 * r + gain * g.T @ g  # noqa: E741
        m_hat = m / (1 - beta1**t) if correct_bias else m
        correction = 1 - beta2**t if correct_bias and beta2 < 1 else 1.0
        is_due = t == start or (t > start and t % precondition_frequency == 0)
        if due(t, precondition_frequency, place) if in_turn else is_due:
            root_l, root_r = power(l / correction, -exponent, eps), power(r / correction, -exponent, eps)
        if graft_beta2 is not None:
            v = graft_beta2 * v + (1 - graft_beta2) * g**2
            adam = m_hat / (np.sqrt(v / (1 - graft_beta2**t)) + graft_eps)
        if t < start:
            step = adam
        else:
            step = root_l @ m_hat @ root_r
            if graft_beta2 is not None:
                step = step * norm(adam) / (norm(step) + 1e-16)
        yield w - lr * (step + weight_decay * w)


@each
def asgo(
    steps: Steps,
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.8),
    eps: float = 1e-10,
    weight_decay: float = 0.1,
    precondition_frequency: int = 1,
    scale: str = "rms",
    side: str = "shorter",
    in_turn: bool = False,
    place: int = 0,
) -> Thetas:
    """An et al. 2025 (arXiv:2503.20762), the practical ASGO: averages, and the inverse root of one side's."""
    # The paper has (V^1/2 + eps I)^-1 and no scale; the authors' code V^-1/2 by a polynomial, and an RMS of 0.2. For
    # m = n the code takes columns, G'G. A V that is singular has no inverse root: eps keeps it finite.
    beta1, beta2 = betas
    m = v = ZERO
    for t, w, g in steps:
        left = w.shape[0] < w.shape[1] if side == "shorter" else side == "left"
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g @ g.T if left else g.T @ g)
        if due(t, precondition_frequency, place) if in_turn else (t - 1) % precondition_frequency == 0:
            values, q = np.linalg.eigh(v)
            inverse = q / (np.sqrt(np.maximum(values, 0.0)) + eps) @ q.T
        step = inverse @ m if left else m @ inverse
        if scale == "rms":
            step = 0.2 * math.sqrt(w.size) * step / norm(step)
        yield w - lr * weight_decay * w - lr * step


@each
def splus(
    steps: Steps,
    *,
    lr: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 1e-2,
    inverse_every: int = 100,
    in_turn: bool = False,
    place: int = 0,
) -> Thetas:
    """Frans et al. 2025 (arXiv:2506.07254), algorithm 1: the training weights, in the authors' PyTorch code's order.

    in_turn makes bases when steprule does, before a step, and takes its decay, which is by lr and of the weights before.
    """
    # The bases begin as I, so that the first step is sign(M); they are made anew after the first step and every
    # inverse_every steps. The decay is of the weights that have moved, times 2 / (m + n) as well; in the JAX code, of
    # the weights before. What is evaluated is `averaged` of the weights before their decay.
    m = l = r = ZERO  # noqa: E741
    for t, w, g in steps:
        if t == 1:
            q_l, q_r = np.eye(w.shape[0]), np.eye(w.shape[1])
        if in_turn and t > 1 and due(t, inverse_every, place):
            q_l, q_r = eigenbasis(l), eigenbasis(r)
        gamma = lr * 2 / sum(w.shape)
        m = b1 * m + (1 - b1) * g
        l, r = b2 * l + (1 - b2) * g @ g.T, b2 * r + (1 - b2) * g.T @ g  # noqa: E741
        before = w
        w = w - gamma * q_l @ np.sign(q_l.T @ m @ q_r) @ q_r.T
        yield w - lr * weight_decay * before if in_turn else (1 - gamma * weight_decay) * w
        if not in_turn and (t == 1 or t % inverse_every == 0):
            q_l, q_r = eigenbasis(l), eigenbasis(r)


def averaged(thetas: list[Array], ema_rate: float = 0.999) -> Array:
    """SPlus's weights for evaluation: an average from 0, corrected for it."""
    average: Any = ZERO
    for theta in thetas:
        average = ema_rate * average + (1 - ema_rate) * theta
    return np.asarray(average / (1 - ema_rate ** len(thetas)))


def at_least(a: Array) -> float:
    """PSGD's lower bound of the spectral norm of a symmetric matrix that is not negative."""
    largest = float(np.max(np.abs(a)))
    if largest == 0:
        return 0.0
    a = a / largest
    x = a[:, np.argmax(np.sum(a * a, axis=0))] @ a
    return norm(a @ (x / norm(x))) * largest


def often(t: int) -> float:
    """PSGD-Kron's probability of an update of Q before step t: 1 for 500 steps, 0.03 from step 4000 on."""
    return min(1.0, max(0.03, math.exp(-0.001 * (t - 1 - 500))))


@each
def psgdkron(
    steps: Steps,
    *,
    lr: float = 3e-4,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    precond_lr: float = 0.1,
    precond_init_scale: float = 1.0,
    momentum_into_precond_update: bool = True,
    probability: Callable[[int], float] = often,
    noise: Callable[[int, tuple[int, ...]], Array] | None = None,
) -> Thetas:
    """Li 2015, 2024 (arXiv:1512.04202, 2402.04553), Kronecker factors with triangular Q, as in kron_torch.

    `noise` gives the random V of a step and shape; by default from NumPy's generator with the step as its seed.
    """
    # Of W - lr P M, P = Q'Q of each side. Each Q goes down the relative gradient of G'PG + V'P^-1 V. A side of 1 has a
    # number for Q. "Probability" is a count in kron_torch: an update comes after 1 / probability steps, the first at
    # once. Its rare balancing of the factors, which changes no step, is left away, and so is the damping, 3e-4 of the
    # mean of |G| times V, which kron_torch adds to the gradient for the update, and by that to what it steps by.
    m = ZERO
    waited = 0
    for t, w, g in steps:
        if t == 1:
            q_l, q_r = (math.sqrt(precond_init_scale) * np.eye(n) for n in w.shape)
        m = b1 * m + (1 - b1) * g
        m_hat = m / (1 - b1**t)
        waited += 1
        if waited >= 1 / probability(t):
            waited = 0
            x = m_hat if momentum_into_precond_update else g
            v = noise(t, x.shape) if noise else np.random.default_rng(t).normal(size=x.shape)
            a = q_l @ x @ q_r.T
            b = np.linalg.inv(q_l).T @ v @ np.linalg.inv(q_r)
            pairs = ((a @ a.T, b @ b.T), (a.T @ a, b.T @ b))
            q_l, q_r = (
                q - precond_lr / max(at_least(one + other), 1e-38) * np.triu(one - other) @ q
                for q, (one, other) in zip((q_l, q_r), pairs, strict=True)
            )
        step = q_l.T @ q_l @ m_hat @ q_r.T @ q_r
        step = step * min(1.0, 1.1 / (norm(step) / math.sqrt(step.size) + 1e-12))
        yield w - lr * (step + weight_decay * w)


@each
def psgdkron_quad(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    precond_lr: float = 0.1,
    damping: float = 1e-9,
    clip_threshold: float = 1.1,
    weight_decay: float = 0.0,
    precondition_frequency: int = 1,
    smooth: float = 0.0,
    place: int = 0,
) -> Thetas:
    """Li's PSGD with Kronecker factors in the quadratic form ("QUAD") of the author's code, lixilinx/psgd_torch.

    smooth is the code's betaL, 0.9 there: how slowly the length that steps are measured by falls.
    """
    # The code's noise, damping times a normal G, is here by its expectation for a P of the other side whose mean square
    # is 1 / damping of the code: `damping` P P. The code bounds elements by 10 besides, balances the factors in some
    # steps, which changes no update, and begins at a P whose size is that of the first gradient's inverse.
    m = ZERO
    ell = [0.0, 0.0]
    for t, w, g in steps:
        if t == 1:
            q = [np.eye(n) for n in w.shape]
        m = momentum * m + (1 - momentum) * g
        if due(t, precondition_frequency, place):
            x = q[0] @ q[0] @ g @ q[1] @ q[1]
            for side, (term1, term2) in enumerate(((x @ x.T, g.shape[1]), (x.T @ x, g.shape[0]))):
                term1 = term1 + term2 * damping * np.linalg.matrix_power(q[side], 4)
                now = at_least(term1) + term2
                ell[side] = max(smooth * ell[side] + (1 - smooth) * now, now)
                p = q[side] - precond_lr / 2 / ell[side] * (term1 @ q[side] - term2 * q[side])
                p = p - precond_lr / 2 / ell[side] * (p @ term1 - p * term2)
                q[side] = (p + p.T) / 2
        step = q[0] @ q[0] @ (m / (1 - momentum**t)) @ q[1] @ q[1]
        step = step / max(1.0, norm(step) / math.sqrt(step.size) / clip_threshold)
        yield w - lr * (step + weight_decay * w)
