"""The oracle of the whole-matrix rules: each paper's pseudo-code in NumPy float64, in the form of papers.py.

A tensor here is a matrix W of m x n, with outputs as rows. `orthogonal` is what all but MUD and Mano are built on: the
Newton-Schulz polynomials that the papers run, or the exact polar factor. The one does not stand in for the other: the
singular values that Muon's polynomial ends with are up to a third away from 1, by design.

Where a paper and its code differ, the paper's is the default, a comment says what the code does, and an argument has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from papers import ZERO, Array, Steps, Thetas, each, norm

Coefficients = Sequence[tuple[float, float, float]]
"""a, b and c of each step X <- aX + b(XX')X + c(XX')^2 X."""

KELLER: Coefficients = [(3.4445, -4.7750, 2.0315)] * 5
"""Jordan 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon."""
YOU: Coefficients = [
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]  # fmt: skip
"""modded-nanogpt, from leloykun.github.io/ponder/muon-opt-coeffs."""
CANS: Coefficients = [
    (8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.5630), (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
]  # fmt: skip
"""Grishina et al. 2025 (arXiv:2506.10935)."""
TURBO: Coefficients = [
    (4.0098, -7.0585, 2.4635), (3.4585, -5.5479, 2.5959), (2.7573, -3.2939, 1.4254), (2.7215, -3.0494, 1.3169),
]  # fmt: skip
"""Boissin et al. 2025 (arXiv:2512.04632), which starts with "aol"."""
DEEPSEEK: Coefficients = [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2
"""DeepSeek-V4's report; it ends at 1."""
CUBIC: Coefficients = [
    (3.3657, -3.3421, 0.0), (2.5744, -1.4957, 0.0), (2.5369, -1.4313, 0.0), (2.4419, -1.2764, 0.0), (2.2230, -0.9631, 0.0),
]  # fmt: skip
"""arXiv:2606.00371."""


def polar_express(steps: int = 5, safety: float = 1.01) -> Coefficients:
    """Amsel et al. 2025 (arXiv:2505.16932), the list of algorithm 1, made for singular values from 0.001 on."""
    # The paper divides all but the last polynomial of its list of eight by powers of 1.01, and multiplies the start's
    # norm by 1.01 as well. Codes take 1.01, 1.02 or 1.05, or lists made anew for another safety.
    listed = [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    ]
    safe = [(a / safety, b / safety**3, c / safety**5) for a, b, c in listed]
    return (safe + [(1.875, -1.25, 0.375)] * max(0, steps - len(safe)))[:steps]


def newton_schulz(
    x: Array, coefficients: Coefficients, eps: float = 1e-7, start: str = "frobenius", safety: float = 1.0
) -> Array:
    """Jordan 2024, the listing newtonschulz5, in float64.

    Args:
        x: any matrix; a tall one is transposed on the way, which differs by rounding alone.
        coefficients: a, b and c for each step.
        eps: what keeps the start finite.
        start: "frobenius" for X / (safety |X|_F + eps); "clamped" for X / max(|X|_F, eps), torch.optim.Muon's; "aol"
            for Boissin et al. 2025's rows times (sum_j |XX'|_ij)^-1/2.
        safety: by which the norm is multiplied, 1.01 for `polar_express`.
    """
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, coefficients, eps, start, safety).T
    if start == "aol":
        x = x / np.sqrt(np.maximum(np.sum(np.abs(x @ x.T), axis=1, keepdims=True), eps))
    else:
        x = x / (max(norm(x), eps) if start == "clamped" else safety * norm(x) + eps)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar(x: Array) -> Array:
    """U V' of the singular vectors whose singular values are not 0, which is 0 for x = 0."""
    # A polynomial leaves singular values of 0 at 0. QDWH and a thin SVD fill them with whatever vectors come.
    u, s, v = np.linalg.svd(x, full_matrices=False)
    kept = s > max(x.shape) * np.finfo(np.float64).eps * s[0]
    return np.asarray(u[:, kept] @ v[kept])


def orthogonal(x: Array, coefficients: Coefficients | None, eps: float = 1e-7, start: str = "frobenius") -> Array:
    """`newton_schulz`, or `polar` where the coefficients are None."""
    return polar(x) if coefficients is None else newton_schulz(x, coefficients, eps, start)


SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda m, n: math.sqrt(max(1, m / n)),  # Jordan 2024's code
    "match_rms_adamw": lambda m, n: 0.2 * math.sqrt(max(m, n)),  # Liu et al. 2025 (arXiv:2502.16982), eq. 4
    "spectral": lambda m, n: math.sqrt(m / n),  # Bernstein 2025; dion's "spectral_norm", Scion
    "longest": lambda m, n: math.sqrt(max(m, n)),  # Emerging-Optimizers' "spectral", a factor .2 short of Liu et al.
    "none": lambda m, n: 1.0,
}
"""By what an orthogonal matrix of m x n is multiplied."""


@each
def muon(
    steps: Steps,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    scale: str = "original",
    coefficients: Coefficients | None = KELLER,
    eps: float = 1e-7,
    start: str = "frobenius",
) -> Thetas:
    """Jordan 2024, kellerjordan.github.io/posts/muon, with the code's averages and decoupled decay."""
    # The blog has B = mu B + G, and G + mu B for Nesterov: 1 / (1 - mu) times these, and the norm is divided out but
    # for eps. torch.optim.Muon: the same with start="clamped", lr=1e-3, weight_decay=0.1; its documentation has the
    # blog's B. Decay is with lr, not with the scaled one.
    m = ZERO
    for _, w, g in steps:
        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g if nesterov else m
        o = orthogonal(u, coefficients, eps, start)
        yield w - lr * weight_decay * w - lr * SCALES[scale](*w.shape) * o


@each
def normuon(
    steps: Steps,
    *,
    lr: float = 0.02,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    scale: str = "rms",
    coefficients: Coefficients | None = KELLER,
    ns_eps: float = 1e-7,
) -> Thetas:
    """Li et al. 2025 (arXiv:2510.05491), algorithm 1."""
    # The authors' code: nesterov=True, and scale="original", with which |O| is kept, eps added to the norm below as
    # well. v is not corrected for its start at 0, which the norm divides out. The rows are the neurons, whatever the
    # shape; Emerging-Optimizers and modded-nanogpt take the columns of a wide matrix.
    beta1, beta2 = betas
    m = v = ZERO
    for _, w, g in steps:
        m = beta1 * m + (1 - beta1) * g
        u = beta1 * m + (1 - beta1) * g if nesterov else m
        o = orthogonal(u, coefficients, ns_eps)
        v = beta2 * v + (1 - beta2) * np.mean(o**2, axis=1, keepdims=True)
        o_hat = o / (np.sqrt(v) + eps)
        if scale == "rms":
            o_hat = 0.2 * math.sqrt(w.size) * o_hat / norm(o_hat)
        else:
            o_hat = SCALES[scale](*w.shape) * norm(o) / (norm(o_hat) + eps) * o_hat
        yield w - lr * weight_decay * w - lr * o_hat


@each
def adamuon(
    steps: Steps,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    nesterov: bool = False,
    sign: bool = True,
    coefficients: Coefficients | None = KELLER,
    ns_eps: float = 1e-7,
) -> Thetas:
    """Si et al. 2025 (arXiv:2507.11005v3), algorithm 1; one beta for both moments, as there."""
    # The authors' code: nesterov=True, and v in bfloat16; eps is added to the norm too. Version 1 of the paper and
    # pytorch_optimizer have no sign; Emerging-Optimizers has no sign, a second beta and no norm. M = beta M + G in
    # the paper has the sign of this average.
    m = v = ZERO
    for _, w, g in steps:
        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g if nesterov else m
        o = orthogonal(np.sign(u) if sign else u, coefficients, ns_eps)
        v = momentum * v + (1 - momentum) * o**2
        o_hat = o / (np.sqrt(v) + eps)
        gamma = 0.2 * math.sqrt(w.size) / (norm(o_hat) + eps)
        yield w - lr * weight_decay * w - lr * gamma * o_hat


@each
def muoneq(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    nesterov: bool = True,
    normalize: str = "r",
    eps: float = 1e-8,
    coefficients: Coefficients | None = KELLER,
    ns_eps: float = 1e-7,
) -> Thetas:
    """Chang et al. 2026 (arXiv:2603.28254) with the authors' code's details: normalize "r", "c" or "rc"."""
    # eps is added to the sums of squares, of B = mu B + G and not of an average: where eps counts, that shows.
    # "rc" divides by the root of both sums of the same matrix, not by one after the other; the code can also take the
    # fourth root. Its phase, from which on "rc" becomes "r", is left away. The scale is Liu et al. 2025's.
    b = ZERO
    for _, w, g in steps:
        b = momentum * b + g
        u = g + momentum * b if nesterov else b
        rows = np.sqrt(np.sum(u**2, axis=1, keepdims=True) + eps)
        cols = np.sqrt(np.sum(u**2, axis=0, keepdims=True) + eps)
        u = u / {"r": rows, "c": cols, "rc": rows * cols}[normalize]
        o = orthogonal(u, coefficients, ns_eps)
        yield w - lr * weight_decay * w - lr * SCALES["match_rms_adamw"](*w.shape) * o


def decorrelated(x: Array, passes: int, eps: float) -> Array:
    """Southworth & Thomas 2026 (arXiv:2603.17970): `passes` times rows of length 1, T = tril(QQ'), T^-1 Q, rows again."""
    # The Gram matrix is of the shorter side. A row of 0 makes T singular, and so the result not a number.
    if x.shape[0] > x.shape[1]:
        return decorrelated(x.T, passes, eps).T
    for _ in range(passes):
        x = x / (np.linalg.norm(x, axis=1, keepdims=True) + eps)
        t = np.tril(x @ x.T)
        solved = np.zeros_like(x)
        for i in range(len(x)):  # forward substitution
            with np.errstate(invalid="ignore", divide="ignore"):
                solved[i] = (x[i] - t[i, :i] @ solved[:i]) / t[i, i]
        x = solved / (np.linalg.norm(solved, axis=1, keepdims=True) + eps)
    return x


@each
def mud(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    passes: int = 1,
    eps: float = 1e-8,
) -> Thetas:
    """Southworth & Thomas 2026 (arXiv:2603.17970), algorithm MUD with p = passes, and its scale."""
    # No code by the authors. Another's has 1 for T's diagonal, which it is but for eps, and clamps lengths at eps.
    v = ZERO
    for _, w, g in steps:
        v = momentum * v + g
        q = decorrelated(g + momentum * v if nesterov else v, passes, eps)
        yield w - lr * weight_decay * w - lr * SCALES["match_rms_adamw"](*w.shape) * q


@each
def mano(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    nesterov: bool = False,
    eps: float = 1e-8,
    version: int = 1,
) -> Thetas:
    """Gu & Xie 2026 (arXiv:2601.23000), algorithm 1; version 2 is the authors' mano_v2.py."""
    # k = t mod 2 with t = 0 in the first step: columns first, as the text says ("column-wise on odd iterations") and
    # the code does. n_k is the length of the slices: m for columns. The paper divides by the norms; the code clamps
    # them at eps. Version 2 does not normalize theta, so that v is not tangent, adds eps, and defaults to Nesterov.
    m = ZERO
    for t, theta, g in steps:
        m = momentum * m + g
        u = g + momentum * m if nesterov else m
        k = (t - 1) % 2
        theta_hat = theta
        if version == 1:
            theta_hat = theta / np.maximum(np.linalg.norm(theta, axis=k, keepdims=True), eps)
        v = u - theta_hat * np.sum(u * theta_hat, axis=k, keepdims=True)
        length = np.linalg.norm(v, axis=k, keepdims=True)
        v_hat = v / (np.maximum(length, eps) if version == 1 else length + eps)
        yield theta - lr * (0.2 * math.sqrt(theta.shape[k]) * v_hat + weight_decay * theta)


@each
def dion2(
    steps: Steps,
    *,
    lr: float = 0.01,
    fraction: float = 0.25,
    ef_decay: float = 0.95,
    weight_decay: float = 0.01,
    scale: str = "spectral",
    coefficients: Coefficients | None = KELLER,
    ns_eps: float = 1e-8,
) -> Thetas:
    """Ahn et al. 2025 (arXiv:2512.16928), algorithm 1, with microsoft/dion's choice of the side: rows if m <= n."""
    # k = ceil(fraction * side) slices of the largest L1 norm, of those that are equal the first. What is orthogonalized
    # is the momentum before ef_decay. Decay is of all of W. The scale is of W's shape, not of the part's.
    # microsoft/dion runs its own Polar Express list by default.
    m = ZERO
    for _, w, g in steps:
        m = m + g
        axis = 0 if w.shape[0] <= w.shape[1] else 1
        side = w.shape[axis]
        k = max(1, math.ceil(fraction * side))
        chosen = np.sort(np.argsort(-np.sum(np.abs(m), axis=1 - axis), kind="stable")[:k])
        index: Any = (chosen, slice(None)) if axis == 0 else (slice(None), chosen)
        o = orthogonal(m[index], coefficients, ns_eps)
        m[index] = ef_decay * m[index]
        w = w - lr * weight_decay * w
        w[index] = w[index] - lr * SCALES[scale](*w.shape) * o
        yield w


@each
def polargrad(
    steps: Steps,
    *,
    lr: float = 0.02,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    polar_first: bool = False,
    coefficients: Coefficients | None = None,
    eps: float = 1e-7,
) -> Thetas:
    """Lau et al. 2025 (arXiv:2505.21799), PolarGradM with momentum first, or polar first; the nuclear norm is <M, U>."""
    # The authors' code computes U by two steps of QDWH, which has not converged then.
    m = ZERO
    for _, w, g in steps:
        if polar_first:
            u = orthogonal(g, coefficients, eps)
            m = momentum * m + (1 - momentum) * u
            step = np.sum(g * u) * m
        else:
            m = momentum * m + (1 - momentum) * g
            u = orthogonal(m, coefficients, eps)
            step = np.sum(m * u) * u
        yield w - lr * weight_decay * w - lr * step


def lmo(
    kind: str, g: Array, coefficients: Coefficients | None = KELLER, eps: float = 1e-8, ns_eps: float = 1e-7
) -> Array:
    """Pethick et al. 2025 (arXiv:2502.07529), the norms of its layers, without the minus sign, with the authors' code's eps.

    Args:
        kind: "spectral" for hidden layers; "col" for inputs that are one-hot, "embedding" the same of weights that are
            (tokens, features); "row"; "sign" for the last layer; "bias" for vectors.
        g: a matrix (d_out, d_in); a vector for "bias".
        coefficients, ns_eps: of "spectral".
        eps: added to the lengths of "col", "embedding", "row" and "bias".
    """
    # The first layer of images has max(1, sqrt(d_out / d_in)), in the code Spectral(max=True).
    if kind == "spectral":
        return math.sqrt(g.shape[0] / g.shape[1]) * orthogonal(g, coefficients, ns_eps)
    if kind == "embedding":
        return lmo("col", g.T, eps=eps).T
    if kind == "col":
        return np.asarray(g / (np.linalg.norm(g, axis=0, keepdims=True) / math.sqrt(len(g)) + eps))
    if kind == "row":
        return np.asarray(g / (np.linalg.norm(g, axis=1, keepdims=True) * math.sqrt(g.shape[1]) + eps))
    if kind == "sign":
        return np.asarray(np.sign(g) / g.shape[1])
    return np.asarray(g / (np.sqrt(np.mean(g**2, axis=0)) + eps))


@each
def scion(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.1,
    kind: str = "spectral",
    radius: float = 1.0,
    unconstrained: bool = False,
    coefficients: Coefficients | None = KELLER,
    eps: float = 1e-8,
    ns_eps: float = 1e-7,
) -> Thetas:
    """Pethick et al. 2025 (arXiv:2502.07529), algorithm 2 (SCG), or algorithm 1 (uSCG) if unconstrained."""
    # momentum is the paper's alpha, which is 1 minus what others call momentum; the code defaults to 1, the scripts
    # to 0.1. radius is the code's scale: 50 for the body and 3000 for the head of its GPT.
    alpha, gamma = momentum, lr
    d = ZERO
    for _, x, g in steps:
        d = (1 - alpha) * d + alpha * g
        step = radius * lmo(kind, d, coefficients, eps, ns_eps)
        yield (x if unconstrained else (1 - gamma) * x) - gamma * step
