"""The oracle of the rules with less than one second moment an element: pseudo-code in NumPy float64, as in papers.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from papers import ZERO, Array, Steps, Thetas, each, norm


def rms(x: Array) -> float:
    """The root of the mean square of all elements."""
    return norm(x) / math.sqrt(x.size)


def outer(rows: Array, cols: Array) -> Array:
    """RC / sum(R) of the sums (m, 1) of rows and (1, n) of columns; or of the means, with another sum."""
    return np.asarray(rows * cols / np.sum(rows))


@each
def adafactor(
    steps: Steps,
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> Thetas:
    """torch.optim.Adafactor's documented algorithm, with its code's means and clamps; vectors are not factored."""
    # The documentation has sums for R and C, and max(sqrt(V), eps1). The code has means, clamps mean(R) at eps1 and V
    # at eps1^2. Where nothing is clamped these are equal. eps1 is the dtype's by default: 2^-23 for float32. Decay
    # comes after alpha and before the update, with lr and not with rho.
    eps1, eps2 = eps
    eps1 = float(np.finfo(np.float64).eps) if eps1 is None else eps1
    r = c = v = ZERO
    for t, theta, g in steps:
        beta = 1 - t**beta2_decay
        alpha = max(eps2, rms(theta)) * min(lr, 1 / math.sqrt(t))
        theta = theta - lr * weight_decay * theta
        if g.ndim > 1:
            r = beta * r + (1 - beta) * np.mean(g**2, axis=1, keepdims=True)
            c = beta * c + (1 - beta) * np.mean(g**2, axis=0, keepdims=True)
            v_hat = r * c / max(float(np.mean(r)), eps1)
        else:
            v = beta * v + (1 - beta) * g**2
            v_hat = v
        u = g / np.sqrt(np.maximum(v_hat, eps1**2))
        yield theta - alpha * u / max(1.0, rms(u) / d)


@each
def adafactor_paper(
    steps: Steps,
    *,
    lr: float | None = None,
    beta1: float = 0.0,
    decay_rate: float = 0.8,
    eps: tuple[float, float] = (1e-30, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
) -> Thetas:
    """Shazeer & Stern 2018 (arXiv:1804.04235), algorithms 4 and 5; beta1 is momentum as the paper's code has it."""
    # rho is min(0.01, 1 / sqrt(t)) if lr is None, else lr, as in fairseq, transformers and timm. The paper's momentum
    # is in its code alone (tensor2tensor, and all that follow): an average of what is subtracted, alpha U, so that a
    # changing lr has a memory. Decay is nobody's in the paper; here lr weight_decay theta with the scaled lr, taken
    # off first, as in transformers and timm; optax takes weight_decay theta, without lr, off afterwards.
    eps1, eps2 = eps
    r = c = v = m = ZERO
    for t, x, g in steps:
        rho = min(1e-2, 1 / math.sqrt(t)) if lr is None else lr
        alpha = rho * (max(eps2, rms(x)) if scale_parameter else 1.0)
        beta2 = 1 - t**-decay_rate
        square = g**2 + eps1
        if g.ndim > 1:
            r = beta2 * r + (1 - beta2) * np.sum(square, axis=1, keepdims=True)
            c = beta2 * c + (1 - beta2) * np.sum(square, axis=0, keepdims=True)
            v_hat = outer(r, c)
        else:
            v = beta2 * v + (1 - beta2) * square
            v_hat = v
        u = g / np.sqrt(v_hat)
        u_hat = u / max(1.0, rms(u) / d)
        m = beta1 * m + (1 - beta1) * alpha * u_hat
        yield x - alpha * weight_decay * x - m


@each
def came(
    steps: Steps,
    *,
    lr: float = 2e-4,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: tuple[float, float] = (1e-30, 1e-16),
    d: float = 1.0,
    weight_decay: float = 0.0,
) -> Thetas:
    """Luo et al. 2023 (arXiv:2307.02047), algorithm 2; vectors have V whole and no confidence, as in the code."""
    # Nothing is corrected for its start at 0, but u is clipped at d. In the first step (u - m)^2 is beta1^2 u^2, and
    # its average (1 - beta3) of that: steps of up to lr / beta1 (1 - beta1) / sqrt(1 - beta3), 11 lr by default.
    beta1, beta2, beta3 = betas
    eps1, eps2 = eps
    r = c = v = m = res_r = res_c = ZERO
    for _, theta, g in steps:
        square = g**2 + eps1
        if g.ndim > 1:
            r = beta2 * r + (1 - beta2) * np.sum(square, axis=1, keepdims=True)
            c = beta2 * c + (1 - beta2) * np.sum(square, axis=0, keepdims=True)
            v_hat = outer(r, c)
        else:
            v = beta2 * v + (1 - beta2) * square
            v_hat = v
        u = g / np.sqrt(v_hat)
        u_hat = u / max(1.0, rms(u) / d)
        m = beta1 * m + (1 - beta1) * u_hat
        step: Any = m
        if g.ndim > 1:
            instability = (u_hat - m) ** 2 + eps2
            res_r = beta3 * res_r + (1 - beta3) * np.sum(instability, axis=1, keepdims=True)
            res_c = beta3 * res_c + (1 - beta3) * np.sum(instability, axis=0, keepdims=True)
            step = m / np.sqrt(outer(res_r, res_c))
        yield theta - lr * weight_decay * theta - lr * step


@each
def adammini(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    blocks: str | int = "rows",
) -> Thetas:
    """Zhang et al. 2024 (arXiv:2406.16793): AdamW with the mean of g^2 over each block for g^2.

    `blocks` is "rows" for one a row: a neuron of values, projections and MLPs, a token of embeddings and heads.
    A number is that of equal parts of the rows, the heads of queries and keys. "whole" is all other tensors, such as
    the gains of normalizations; "elements", of biases in the code, is AdamW.
    """
    # The paper's first version had a block for each whole value and projection; version 1.1 of the code, and the
    # paper's now, one for each row. The code goes by names, and takes what it does not know whole.
    beta1, beta2 = betas
    m = v = ZERO
    for t, x, g in steps:
        count = {"rows": len(g) if g.ndim else 1, "whole": 1, "elements": g.size}.get(str(blocks), blocks)
        square = np.mean(g.reshape(int(count), -1) ** 2, axis=1, keepdims=True)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * square
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        step = (m_hat.reshape(int(count), -1) / (np.sqrt(v_hat) + eps)).reshape(g.shape)
        yield x - lr * weight_decay * x - lr * step


@each
def sm3(
    steps: Steps,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    beta: float = 1.0,
    eps: float = 0.0,
    weight_decay: float = 0.0,
) -> Thetas:
    """Anil et al. 2019 (arXiv:1901.11150), algorithm SM3-II with each axis's slices as the cover.

    `momentum` averages g / sqrt(nu), as in the authors' code. `beta` below 1 replaces the sum of
    squares by an average, as in the authors' code for PyTorch and in optax. 0 / 0 is 0.
    """
    # eps and weight_decay are not in the paper. pytorch_optimizer takes the maximum of mu and nu where beta > 0, so that its mu
    # never falls, and defaults to no momentum; its beta = 0 is this beta = 1. optax adds eps = 1e-8 to nu. Scalars
    # and vectors have a mu for each element: Adagrad.
    mu: list[Any] = []
    m = ZERO
    for _, w, g in steps:
        axes = range(g.ndim)
        mu = mu or [np.zeros([n if i == axis else 1 for i, n in enumerate(g.shape)]) for axis in axes] or [ZERO]
        least = mu[0]
        for one in mu[1:]:
            least = np.minimum(least, one)
        nu = beta * least + (1.0 if beta == 1 else 1 - beta) * g**2
        mu = [np.max(nu, axis=tuple(i for i in axes if i != axis), keepdims=True) for axis in axes] or [nu]
        u = np.where(nu > 0, g / np.sqrt(np.where(nu > 0, nu + eps, 1.0)), 0.0)
        m = momentum * m + (1 - momentum) * u
        yield w - lr * m - lr * weight_decay * w
