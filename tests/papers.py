"""The oracle of the optimizers: each paper's pseudo-code in NumPy float64, as naive as it can be and apart from steprule.

An algorithm is a generator with the body of the paper's loop. It takes ``(t, theta, g)`` off ``steps``, which are the
step's number from 1, a tensor and its gradient (lists of all tensors for those that reduce over all), and yields the
new theta. `PAPERS` has them as functions of whole runs; `around` runs one with the options that every rule takes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Steps = Iterator[tuple[int, Array, Array]]
Thetas = Iterator[Array]
AllSteps = Iterator[tuple[int, list[Array], list[Array]]]
AllThetas = Iterator[list[Array]]
Betas = tuple[float, float]
Body = Callable[..., Iterator[Any]]

PAPERS: dict[str, Callable[..., list[list[Array]]]] = {}
"""By the registry's names: (params, grads, **hyperparameters) to the parameters after each step."""

DEFAULTS: dict[str, dict[str, Any]] = {}
"""By the registry's names: the hyperparameters with their defaults."""

_BODIES: dict[str, tuple[Body, bool]] = {}

ZERO: Any = 0.0
"""Where a state begins, in whatever shape."""


class Run:
    """A run of an algorithm, step by step; `theta` may be changed between the steps.

    Args:
        name: one of `PAPERS`.
        params: the tensors at the start, of any shapes.
        hyper: the algorithm's hyperparameters.
    """

    def __init__(self, name: str, params: Sequence[Array], **hyper: Any) -> None:
        body, self.together = _BODIES[name]
        self.t = 0
        self.theta: list[Array] = [np.array(p, np.float64) for p in params]
        self.g: list[Array] = []
        tensors: list[Any] = [slice(None)] if self.together else list(range(len(params)))
        placed = "place" in inspect.signature(body).parameters  # whose tensors do not do all at the same steps
        self.bodies = [body(self._steps(i), **(hyper | ({"place": i} if placed else {}))) for i in tensors]

    def _steps(self, index: Any) -> Iterator[tuple[int, Any, Any]]:
        while True:
            yield self.t, self.theta[index], self.g[index]

    def step(self, grads: Sequence[Array]) -> list[Array]:
        """The tensors after one more step with these gradients."""
        self.t += 1
        self.g = [np.asanyarray(g, np.float64) for g in grads]
        new = [next(body) for body in self.bodies]
        self.theta = [np.asarray(x, np.float64) for x in (new[0] if self.together else new)]
        return self.theta


def _register(body: Body, together: bool) -> Body:
    name = body.__name__

    def paper(params: Sequence[Array], grads: Sequence[Sequence[Array]], **hyper: Any) -> list[list[Array]]:
        run = Run(name, params, **hyper)
        return [run.step(g) for g in grads]

    paper.__name__, paper.__doc__ = name, body.__doc__
    PAPERS[name] = paper
    DEFAULTS[name] = {key: p.default for key, p in list(inspect.signature(body).parameters.items())[1:]}
    _BODIES[name] = body, together
    return body


def each(body: Body) -> Body:
    """Registers an algorithm that treats one tensor at a time."""
    return _register(body, together=False)


def together(body: Body) -> Body:
    """Registers an algorithm whose numbers are of all tensors together."""
    return _register(body, together=True)


def norm(*tensors: Array) -> float:
    """The Euclidean norm of tensors as one vector."""
    return math.sqrt(sum(float(np.sum(x * x)) for x in tensors))


# torch.optim's twelve: the boxed algorithms of its documentation, which its code follows


@each
def sgd(
    steps: Steps,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Thetas:
    """Robbins & Monro 1951, with Sutskever et al. 2013's momentum as torch.optim.SGD has it."""
    b: Any = None
    for _, theta, g in steps:
        g = g + weight_decay * theta
        if momentum != 0:
            # The first buffer is the gradient itself, undampened.
            b = g if b is None else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        yield theta - lr * g


@each
def rmsprop(
    steps: Steps,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Thetas:
    """Tieleman & Hinton 2012, lecture 6.5; centered as in Graves 2013, eq. 38-45. torch.optim.RMSprop."""
    v = g_ave = b = ZERO
    for _, theta, g in steps:
        g = g + weight_decay * theta
        v = alpha * v + (1 - alpha) * g**2
        v_tilde = v
        if centered:
            g_ave = alpha * g_ave + (1 - alpha) * g
            v_tilde = v - g_ave**2
        if momentum > 0:
            b = momentum * b + g / (np.sqrt(v_tilde) + eps)
            yield theta - lr * b
        else:
            yield theta - lr * g / (np.sqrt(v_tilde) + eps)


@each
def adam(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Thetas:
    """Kingma & Ba 2015, algorithm 1; amsgrad of Reddi et al. 2018, algorithm 2. torch.optim.Adam."""
    beta1, beta2 = betas
    m = v = v_max = ZERO
    for t, theta, g in steps:
        if decoupled_weight_decay:
            theta = theta - lr * weight_decay * theta
        else:
            g = g + weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        if amsgrad:
            v_max = np.maximum(v_max, v)  # before the bias correction, where Reddi et al. have none
            v_hat = v_max / (1 - beta2**t)
        else:
            v_hat = v / (1 - beta2**t)
        yield theta - lr * m_hat / (np.sqrt(v_hat) + eps)


@each
def adamw(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
) -> Thetas:
    """Loshchilov & Hutter 2019, algorithm 2, whose decay torch.optim.AdamW multiplies by lr."""
    beta1, beta2 = betas
    m = v = v_max = ZERO
    for t, theta, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        yield theta - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * theta)


@each
def nadam(
    steps: Steps,
    *,
    lr: float = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Thetas:
    """Dozat 2016, algorithm 2, with its warming mu, as torch.optim.NAdam has it."""
    # torch keeps the product of mu in its default dtype: in float32 unless that is set to float64.
    beta1, beta2 = betas
    m = v = ZERO
    product = 1.0
    for t, theta, g in steps:
        if decoupled_weight_decay:
            theta = theta - lr * weight_decay * theta
        else:
            g = g + weight_decay * theta
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = product * mu
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
        v_hat = v / (1 - beta2**t)
        yield theta - lr * m_hat / (np.sqrt(v_hat) + eps)


@each
def radam(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> Thetas:
    """Liu et al. 2020, algorithm 2, as torch.optim.RAdam has it."""
    # The paper rectifies where rho > 4 and has no eps; torch rectifies where rho > 5 and adds eps to sqrt(v) before
    # the bias correction.
    beta1, beta2 = betas
    m = v = ZERO
    rho_inf = 2 / (1 - beta2) - 1
    for t, theta, g in steps:
        if decoupled_weight_decay:
            theta = theta - lr * weight_decay * theta
        else:
            g = g + weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            l = math.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)  # noqa: E741
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            yield theta - lr * m_hat * r * l
        else:
            yield theta - lr * m_hat


@each
def adagrad(
    steps: Steps,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> Thetas:
    """Duchi et al. 2011, section 1.3 with the diagonal matrix. torch.optim.Adagrad."""
    state_sum: Any = initial_accumulator_value
    for t, theta, g in steps:
        lr_t = lr / (1 + (t - 1) * lr_decay)
        g = g + weight_decay * theta
        state_sum = state_sum + g**2
        yield theta - lr_t * g / (np.sqrt(state_sum) + eps)


@each
def adadelta(
    steps: Steps, *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
) -> Thetas:
    """Zeiler 2012, algorithm 1, with torch.optim.Adadelta's lr."""
    v = u = ZERO
    for _, theta, g in steps:
        g = g + weight_decay * theta
        v = rho * v + (1 - rho) * g**2
        delta_x = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u = rho * u + (1 - rho) * delta_x**2
        yield theta - lr * delta_x


@each
def adamax(
    steps: Steps, *, lr: float = 2e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Thetas:
    """Kingma & Ba 2015, algorithm 2, with torch.optim.Adamax's eps beside the gradient."""
    beta1, beta2 = betas
    m = u = ZERO
    for t, theta, g in steps:
        g = g + weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        u = np.maximum(beta2 * u, np.abs(g) + eps)
        yield theta - lr / (1 - beta1**t) * m / u


@each
def asgd(
    steps: Steps,
    *,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0.0,
) -> Thetas:
    """Polyak & Juditsky 1992, as torch.optim.ASGD has it. The average, which begins at t0, does not enter theta."""
    # torch rounds eta to its default dtype after each step: to float32 unless that is set to float64.
    eta = lr
    for t, theta, g in steps:
        g = g + weight_decay * theta
        yield (1 - lambd * eta) * theta - eta * g
        eta = lr / (1 + lambd * lr * t) ** alpha


@each
def rprop(
    steps: Steps,
    *,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
) -> Thetas:
    """Riedmiller & Braun 1993 without its backtracking, as torch.optim.Rprop."""
    eta_minus, eta_plus = etas
    g_prev = ZERO
    eta: Any = lr
    for _, theta, g in steps:
        sign = g_prev * g
        factor = np.where(sign > 0, eta_plus, np.where(sign < 0, eta_minus, 1.0))
        eta = np.clip(eta * factor, *step_sizes)
        g = np.where(sign < 0, 0.0, g)
        yield theta - eta * np.sign(g)
        g_prev = g


@each
def sparseadam(steps: Steps, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8) -> Thetas:
    """Kingma & Ba 2015, section 2's last form. torch.optim.SparseAdam.

    A gradient may be a masked array: the masked elements are those that a sparse gradient lacks.
    """
    # eps is added to sqrt(v) before the bias correction, unlike in adam.
    beta1, beta2 = betas
    m: Any = None
    for t, theta, g in steps:
        if m is None:
            m, v = np.zeros_like(theta), np.zeros_like(theta)
        present, g = ~np.ma.getmaskarray(g), np.ma.getdata(g)
        m = np.where(present, beta1 * m + (1 - beta1) * g, m)
        v = np.where(present, beta2 * v + (1 - beta2) * g**2, v)
        alpha_t = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        yield theta - np.where(present, alpha_t * m / (np.sqrt(v) + eps), 0.0)


# Layer-wise


@each
def lamb(
    steps: Steps, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
) -> Thetas:
    """You et al. 2020 (arXiv:1904.00962), algorithm 2, with phi(z) = z."""
    # timm, by default, leaves the ratio away where weight_decay is 0 and clips gradients; the paper does neither.
    beta1, beta2 = betas
    m = v = ZERO
    for t, x, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        r = m_hat / (np.sqrt(v_hat) + eps)
        update = r + weight_decay * x
        ratio = norm(x) / norm(update) if norm(x) > 0 and norm(update) > 0 else 1.0
        yield x - lr * ratio * update


@each
def lars(
    steps: Steps,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3,
    nesterov: bool = False,
) -> Thetas:
    """You et al. 2017 (arXiv:1708.03888), algorithm 1."""
    # timm adds an eps to the denominator, leaves the ratio away where weight_decay is 0, and has the lr outside of
    # the momentum, which is the same for a constant lr. optax's ratio is |w| / |g + wd w|.
    # The paper has no Nesterov momentum: it is torch.optim.SGD's, of the gradient that LARS has scaled.
    v = ZERO
    for _, w, g in steps:
        local = 1.0
        if norm(w) > 0 and norm(g) > 0:
            local = trust_coefficient * norm(w) / (norm(g) + weight_decay * norm(w))
        scaled = lr * local * (g + weight_decay * w)
        v = momentum * v + scaled
        yield w - (scaled + momentum * v if nesterov else v)


@each
def novograd(
    steps: Steps, *, lr: float = 1e-2, betas: Betas = (0.95, 0.98), eps: float = 1e-8, weight_decay: float = 0.0
) -> Thetas:
    """Ginsburg et al. 2019 (arXiv:1905.11286), algorithm 1."""
    # The paper's first step has no eps, and divides 0 by 0 where a tensor's first gradient is 0; here, as in timm,
    # optax and pytorch_optimizer, it is there from the first step on. (timm begins v anew while it is 0.)
    beta1, beta2 = betas
    v = ZERO
    m = ZERO
    for t, w, g in steps:
        if t == 1:
            v = norm(g) ** 2
            m = g / (math.sqrt(v) + eps) + weight_decay * w
        else:
            v = beta2 * v + (1 - beta2) * norm(g) ** 2
            m = beta1 * m + (g / (math.sqrt(v) + eps) + weight_decay * w)
        yield w - lr * m


# Signs


@each
def lion(steps: Steps, *, lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0) -> Thetas:
    """Chen et al. 2023 (arXiv:2302.06675), program 1 and algorithm 2."""
    beta1, beta2 = betas
    m = ZERO
    for _, theta, g in steps:
        c = beta1 * m + (1 - beta1) * g
        yield theta - lr * (np.sign(c) + weight_decay * theta)
        m = beta2 * m + (1 - beta2) * g


@each
def signum(
    steps: Steps, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> Thetas:
    """Bernstein et al. 2018 (arXiv:1802.04434), algorithm 2."""
    # The decay is of Bernstein et al. 2019 (arXiv:1810.05291), algorithm 1. No paper has a Nesterov momentum here: it
    # takes the average one step further.
    beta = momentum
    m = ZERO
    for _, x, g in steps:
        m = beta * m + (1 - beta) * g
        direction = beta * m + (1 - beta) * g if nesterov else m
        yield x - lr * (np.sign(direction) + weight_decay * x)


# Adam's relatives


@each
def adan(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Thetas:
    """Xie et al. 2022 (arXiv:2208.06677), algorithm 1, with the bias corrections of the authors' adan.py."""
    # The paper's beta is 1 - beta here: its v's factor 1 - beta2 is the authors' code's beta2. It also begins with
    # m = g and n = g^2 in place of the bias corrections. optax has (1 - b2) although its b2 is the share kept.
    # adan-pytorch has the paper's beta and leaves m, v and n at 0 in the first step.
    beta1, beta2, beta3 = betas
    m = v = n = ZERO
    g_prev: Any = None
    for k, theta, g in steps:
        diff = 0.0 if g_prev is None else g - g_prev
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * diff
        n = beta3 * n + (1 - beta3) * (g + beta2 * diff) ** 2
        m_hat, v_hat, n_hat = m / (1 - beta1**k), v / (1 - beta2**k), n / (1 - beta3**k)
        eta = lr / (np.sqrt(n_hat) + eps)
        yield (theta - eta * (m_hat + beta2 * v_hat)) / (1 + lr * weight_decay)
        g_prev = g


@each
def adabelief(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Thetas:
    """Zhuang et al. 2020 (arXiv:2010.07468), algorithm 2."""
    # eps enters s, so it adds up from step to step. The paper writes s = max(s_t, s_t-1) for amsgrad; the authors'
    # code keeps the maximum beside s, as Reddi et al. do.
    beta1, beta2 = betas
    m = s = s_max = ZERO
    for t, theta, g in steps:
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
        s_max = np.maximum(s_max, s)
        m_hat = m / (1 - beta1**t)
        s_hat = (s_max if amsgrad else s) / (1 - beta2**t)
        yield theta - lr * (m_hat / (np.sqrt(s_hat) + eps) + weight_decay * theta)


@each
def yogi(
    steps: Steps,
    *,
    lr: float = 1e-2,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> Thetas:
    """Zaheer et al. 2018, algorithm 2, with optax's beginning and bias corrections."""
    # The paper begins with m = 0 and has no bias corrections; they are optax's scale_by_yogi's.
    # torch_optimizer's decay is coupled.
    beta1, beta2 = betas
    m: Any = initial_accumulator_value
    v: Any = initial_accumulator_value
    for t, x, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = v - (1 - beta2) * np.sign(v - g**2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        yield x - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * x)


@each
def laprop(
    steps: Steps,
    *,
    lr: float = 4e-4,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> Thetas:
    """Ziyin et al. 2020 (arXiv:2002.04839), algorithm 1."""
    # The authors' code has the lr inside of m (the same for a constant lr), and its decay is -weight_decay * theta
    # after the step, without lr; timm's is after the step, with lr.
    mu, nu = betas
    m = n = n_max = ZERO
    for t, theta, g in steps:
        n = nu * n + (1 - nu) * g**2
        n_max = np.maximum(n_max, n)
        c_n = 1 - nu**t
        m = mu * m + (1 - mu) * g / (np.sqrt((n_max if amsgrad else n) / c_n) + eps)
        c_m = 1 - mu**t
        yield theta - lr * (m / c_m + weight_decay * theta)


@each
def adopt(
    steps: Steps, *, lr: float = 1e-3, betas: Betas = (0.9, 0.9999), eps: float = 1e-6, weight_decay: float = 0.0
) -> Thetas:
    """Taniguchi et al. 2024 (arXiv:2411.02853), algorithm 2, with c_t = t^(1/4)."""
    # The first gradient, g_0, only begins v: theta stays, without decay, as in the authors' code.
    beta1, beta2 = betas
    m = v = ZERO
    for number, theta, g in steps:
        t = number - 1
        if t == 0:
            v = g**2
            yield theta
            continue
        c = t**0.25
        m = beta1 * m + (1 - beta1) * np.clip(g / np.maximum(np.sqrt(v), eps), -c, c)
        yield theta - lr * (m + weight_decay * theta)
        v = beta2 * v + (1 - beta2) * g**2


@each
def ademamix(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    alpha: float = 5.0,
    warmup: int = 0,
) -> Thetas:
    """Pagliardini et al. 2024 (arXiv:2409.03137), algorithm 1, with its schedulers of alpha and beta3."""
    # The authors' code adds 1e-8 to beta inside of the scheduler's logarithms, which the paper does not.
    beta1, beta2, beta3 = betas
    m1 = m2 = nu = ZERO
    for t, theta, g in steps:
        alpha_t, beta3_t = alpha, beta3
        if warmup:
            share = t / warmup
            log_start, log_end = math.log(beta1), math.log(beta3)
            alpha_t = min(share * alpha, alpha)
            if t < warmup:
                beta3_t = min(math.exp(log_start * log_end / ((1 - share) * log_end + share * log_start)), beta3)
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = beta3_t * m2 + (1 - beta3_t) * g
        nu = beta2 * nu + (1 - beta2) * g**2
        m1_hat = m1 / (1 - beta1**t)
        nu_hat = nu / (1 - beta2**t)
        yield theta - lr * ((m1_hat + alpha_t * m2) / (np.sqrt(nu_hat) + eps) + weight_decay * theta)


@each
def stableadamw(
    steps: Steps, *, lr: float = 1e-3, betas: Betas = (0.9, 0.99), eps: float = 1e-6, weight_decay: float = 1e-2
) -> Thetas:
    """Wortsman et al. 2023 (arXiv:2304.13013), algorithm 2."""
    beta1, beta2 = betas
    v = u = ZERO
    for t, theta, g in steps:
        beta1_hat = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t)
        beta2_hat = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        v = beta1_hat * v + (1 - beta1_hat) * g
        u = beta2_hat * u + (1 - beta2_hat) * g**2
        rms = math.sqrt(np.mean(g**2 / np.maximum(u, eps**2)))
        eta = lr / max(1, rms)
        yield theta - eta * weight_decay * theta - eta * v / (np.sqrt(u) + eps)


@each
def adamatan2(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    weight_decay: float = 0.0,
    a: float = 1.27,
    b: float = 1.0,
) -> Thetas:
    """Everett et al. 2024 (arXiv:2407.05872), Adam-atan2, with the two scales of adam-atan2-pytorch."""
    beta1, beta2 = betas
    m = v = ZERO
    for t, theta, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        yield theta - lr * (a * np.arctan2(m_hat, b * np.sqrt(v_hat)) + weight_decay * theta)


@each
def mars(
    steps: Steps,
    *,
    lr: float = 3e-3,
    betas: Betas = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    gamma: float = 0.025,
    amsgrad: bool = False,
) -> Thetas:
    """Yuan et al. 2024 (arXiv:2411.10438), algorithm 2 (MARS-AdamW), with the last step's gradient for the exact one."""
    # The authors' code takes 0 for the gradient before the first, so that c_1 is (1 + gamma beta1 / (1 - beta1)) g
    # before it is clipped; the paper's x_0 = x_1 makes the first difference 0, and so do timm and this.
    # It also gives vectors to AdamW unless optimize_1d, which is left away here.
    beta1, beta2 = betas
    m = v = v_max = ZERO
    g_prev: Any = None
    for t, x, g in steps:
        c = g + gamma * beta1 / (1 - beta1) * (g - (g if g_prev is None else g_prev))
        c_tilde = c / norm(c) if norm(c) > 1 else c
        m = beta1 * m + (1 - beta1) * c_tilde
        v = beta2 * v + (1 - beta2) * c_tilde**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        yield x - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * x)
        g_prev = g


@each
def grams(
    steps: Steps, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
) -> Thetas:
    """Cao et al. 2024 (arXiv:2412.17107), algorithm 1."""
    # The authors' code adds eps to sqrt(v) before the bias correction, the paper to sqrt(v_hat).
    beta1, beta2 = betas
    m = v = ZERO
    for t, w, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        u = m_hat / (np.sqrt(v_hat) + eps)
        yield w - lr * (np.sign(g) * np.abs(u) + weight_decay * w)


@each
def adamc(
    steps: Steps,
    *,
    lr: float = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    max_lr: float | None = None,
) -> Thetas:
    """Defazio 2025 (arXiv:2506.02285), algorithm 1 for its normalized layers."""
    # The paper decays other layers as AdamW does. The lr of a run here is constant and so its own maximum.
    beta1, beta2 = betas
    gamma, gamma_max = lr, lr if max_lr is None else max_lr
    m = v = v_max = ZERO
    for t, x, g in steps:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_max = np.maximum(v_max, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        yield x - gamma * m_hat / (np.sqrt(v_hat) + eps) - gamma**2 / gamma_max * weight_decay * x


# Dual averaging, learning rates found on the way, and averages in place of schedules


@each
def madgrad(
    steps: Steps, *, lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-6
) -> Thetas:
    """Defazio & Jelassi 2021 (arXiv:2101.11075), algorithm 1, with the authors' code's lr + eps."""
    # The authors' code finds x_0 from x_k, s and v where momentum is 0, which differs only by rounding, unless
    # something else changes x between the steps.
    x_0: Any = None
    s = v = ZERO
    gamma = lr + eps if lr != 0 else lr
    c = 1 - momentum
    for number, x, g in steps:
        k = number - 1
        if x_0 is None:
            x_0 = x
        g = g + weight_decay * x
        lambda_k = gamma * math.sqrt(k + 1)
        s = s + lambda_k * g
        v = v + lambda_k * g**2
        root = np.cbrt(v) + eps
        z = x_0 - s / np.where(root == 0, np.inf, root)
        yield (1 - c) * x + c * z


@together
def prodigy(
    steps: AllSteps,
    *,
    lr: float = 1.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = math.inf,
    bias_correction: bool = False,
) -> AllThetas:
    """Mishchenko & Defazio 2023 (arXiv:2306.06101), algorithm 4, as the package prodigyopt has it."""
    # The package scales r and s by 1 / d0 and, with them, the numerator's dlr: only their ratio counts. A step before
    # any gradient that is not 0 moves nothing, decays nothing and is not counted.
    beta1, beta2 = betas
    beta3 = math.sqrt(beta2)
    d = d_max = d0
    r, k = 0.0, 0
    x_0: Any = None
    for _, x, g in steps:
        if x_0 is None:
            x_0 = x
            m, v, s = ([np.zeros_like(p) for p in x] for _ in range(3))
        eta = lr * (math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if bias_correction else 1.0)
        r = beta3 * r + (d / d0) * d * eta * sum(np.sum(gi * (x0i - xi)) for gi, x0i, xi in zip(g, x_0, x, strict=True))
        m = [beta1 * mi + (1 - beta1) * d * gi for mi, gi in zip(m, g, strict=True)]
        v = [beta2 * vi + (1 - beta2) * d**2 * gi**2 for vi, gi in zip(v, g, strict=True)]
        s = [beta3 * si + (d / d0) * d * eta * gi for si, gi in zip(s, g, strict=True)]
        s_1 = sum(np.sum(np.abs(si)) for si in s)
        if s_1 == 0:
            yield x
            continue
        d_hat = d_coef * r / s_1
        step = d * eta
        if d == d0:
            d = max(d, d_hat)
        d_max = max(d_max, d_hat)
        d = min(d_max, d * growth_rate)
        yield [
            xi - step * weight_decay * xi - step * mi / (np.sqrt(vi) + d * eps)
            for xi, mi, vi in zip(x, m, v, strict=True)
        ]
        k += 1


@together
def dadaptadam(
    steps: AllSteps,
    *,
    lr: float = 1.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = math.inf,
    bias_correction: bool = False,
) -> AllThetas:
    """Defazio & Mishchenko 2023 (arXiv:2301.07733), algorithm 5, as the package dadaptation's DAdaptAdam has it."""
    # The numerator's sum has v and s of the step before. A step before any gradient that is not 0 moves nothing,
    # decays nothing and is not counted.
    beta1, beta2 = betas
    root = math.sqrt(beta2)
    d = d0
    r, k = 0.0, 0
    m: Any = None
    for _, x, g in steps:
        if m is None:
            m, v, s = ([np.zeros_like(p) for p in x] for _ in range(3))
        gamma = lr * (math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if bias_correction else 1.0)
        inner = sum(np.sum(gi * si / (np.sqrt(vi) + eps)) for gi, si, vi in zip(g, s, v, strict=True))
        m = [beta1 * mi + (1 - beta1) * d * gamma * gi for mi, gi in zip(m, g, strict=True)]
        v = [beta2 * vi + (1 - beta2) * gi**2 for vi, gi in zip(v, g, strict=True)]
        s = [root * si + (1 - root) * d * gamma * gi for si, gi in zip(s, g, strict=True)]
        s_1 = sum(np.sum(np.abs(si)) for si in s)
        if s_1 == 0:
            yield x
            continue
        r = root * r + (1 - root) * d * gamma * inner
        d_hat = r / ((1 - root) * s_1)
        step = d * gamma
        d = max(d, min(d_hat, d * growth_rate))
        yield [xi - step * weight_decay * xi - mi / (np.sqrt(vi) + eps) for xi, mi, vi in zip(x, m, v, strict=True)]
        k += 1


@together
def dog(
    steps: AllSteps, *, lr: float = 1.0, reps_rel: float = 1e-6, eps: float = 1e-8, weight_decay: float = 0.0
) -> AllThetas:
    """Ivgi et al. 2023 (arXiv:2302.12022), with r_eps = reps_rel (1 + |x_0|), as the package dog-optimizer has it."""
    # The sum of squares is of the gradients with their decay.
    x_0: Any = None
    g_sum = 0.0
    for _, x, g in steps:
        g = [gi + weight_decay * xi for gi, xi in zip(g, x, strict=True)]
        if x_0 is None:
            x_0 = x
            r_bar = reps_rel * (1 + norm(*x_0))
        r_bar = max(r_bar, norm(*[xi - x0i for xi, x0i in zip(x, x_0, strict=True)]))
        g_sum = g_sum + norm(*g) ** 2
        eta = lr * r_bar / math.sqrt(g_sum + eps)
        yield [xi - eta * gi for xi, gi in zip(x, g, strict=True)]


class _Average:
    """Schedule-Free's x, y and z (Defazio et al. 2024), given y and the step of z, gamma * direction.

    What is kept is z, as in the package: x is had from y, so that whatever changes y between the steps counts.
    """

    def __init__(self, beta: float, r: float, weight_lr_power: float) -> None:
        self.beta, self.r, self.power = beta, r, weight_lr_power
        self.z: Any = None
        self.weight_sum = 0.0
        self.gamma_max = -1.0

    def step(self, t: int, y: Array, gamma: float, direction: Array) -> Array:
        beta = self.beta
        z = y if self.z is None else self.z
        beta_x = y - (1 - beta) * z  # beta x, so that beta = 0 is no division by 0
        self.gamma_max = max(self.gamma_max, gamma)
        weight = t**self.r * self.gamma_max**self.power
        self.weight_sum += weight
        c = weight / self.weight_sum if self.weight_sum > 0 else 0.0
        self.z = z - gamma * direction
        beta_x = (1 - c) * beta_x + c * beta * self.z
        return np.asarray(beta_x + (1 - beta) * self.z)


@each
def schedulefreesgd(
    steps: Steps,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Thetas:
    """Defazio et al. 2024 (arXiv:2405.15682); theta is y. The package schedulefree's SGDScheduleFree."""
    average = _Average(momentum, r, weight_lr_power)
    for t, y, g in steps:
        gamma = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
        yield average.step(t, y, gamma, g + weight_decay * y)


@each
def schedulefreeadamw(
    steps: Steps,
    *,
    lr: float = 0.0025,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Thetas:
    """Defazio et al. 2024 (arXiv:2405.15682), algorithm 1; theta is y. The package schedulefree's AdamWScheduleFree."""
    # The paper's algorithm has the bias correction in gamma and so outside of eps and of the weights of the average;
    # the package has v_hat, and gamma without it.
    beta1, beta2 = betas
    average = _Average(beta1, r, weight_lr_power)
    v = ZERO
    for t, y, g in steps:
        gamma = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = v / (1 - beta2**t)
        yield average.step(t, y, gamma, g / (np.sqrt(v_hat) + eps) + weight_decay * y)


@each
def schedulefreeradam(
    steps: Steps,
    *,
    lr: float = 0.0025,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    silent_sgd_phase: bool = True,
) -> Thetas:
    """Schedule-Free with Liu et al. 2020's rectified steps; theta is y. The package schedulefree's RAdamScheduleFree."""
    # It rectifies where rho > 4, as the paper does and torch.optim.RAdam does not. Before that z takes plain gradient
    # steps, or none in the silent phase, whose weights are 0 and which v sees all the same.
    beta1, beta2 = betas
    average = _Average(beta1, r, weight_lr_power)
    rho_inf = 2 / (1 - beta2) - 1
    v = ZERO
    for t, y, g in steps:
        v = beta2 * v + (1 - beta2) * g**2
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 4:
            gamma = lr * math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            direction = g / (np.sqrt(v / (1 - beta2**t)) + eps)
        else:
            gamma = 0.0 if silent_sgd_phase else lr
            direction = g
        yield average.step(t, y, gamma, direction + weight_decay * y)


# The options around every rule

OWN_DECAY = {
    **dict.fromkeys(["adamw", "lion", "signum", "adabelief", "yogi", "laprop"], "decoupled"),
    **dict.fromkeys(["ademamix", "adamatan2", "mars", "grams"], "decoupled"),
    "adamc": "corrected",
}
"""The rules whose own decay is one that can be applied around them just as well."""


def around(
    name: str,
    params: Sequence[Array],
    grads: Sequence[Sequence[Array]],
    *,
    decay: str | None = None,
    cautious: bool = False,
    cautious_decay: bool = False,
    lookahead: int = 0,
    lookahead_alpha: float = 0.5,
    max_lr: float | None = None,
    **hyper: Any,
) -> list[list[Array]]:
    """One of `PAPERS` with the options that every rule takes, in this order: decay, cautious, lookahead.

    Args:
        name: one of `PAPERS`.
        params, grads, hyper: as of `PAPERS`; with a decay, weight_decay may be given for a rule that has none.
        decay: None for the rule's own, or "coupled", "decoupled", "independent", "corrected", "initial".
        cautious: Liang et al. 2024 (arXiv:2411.16085) with the mask and the scale of the authors' code. Of the rule's
            movement, with its own decay if decay is None.
        cautious_decay: Chen et al. 2025 (arXiv:2510.12402), algorithm 1, whose u is the movement that is left after
            cautious, negated. With decay=None, for those in `OWN_DECAY`, whose own is then applied around them.
        lookahead, lookahead_alpha: k and alpha of Zhang et al. 2019 (arXiv:1907.08610), algorithm 1. 0 for none.
        max_lr: of adamc and of decay="corrected"; lr by default.

    Raises:
        ValueError: decay is unknown, or cautious_decay has no decay to apply to.
    """
    settings = {**DEFAULTS[name], **hyper}
    if "max_lr" in settings:
        settings["max_lr"] = max_lr
    if cautious_decay:
        decay = OWN_DECAY.get(name) if decay is None else decay
        if decay in (None, "coupled"):
            raise ValueError(f"cautious_decay has no decay apart from {name}'s formula to mask, with decay={decay!r}")
    lr, weight_decay = settings["lr"], settings.get("weight_decay", 0.0)
    if decay is not None:
        settings.pop("weight_decay", None)
        if "weight_decay" in DEFAULTS[name]:
            settings["weight_decay"] = 0.0
    rates = {
        None: 0.0,
        "coupled": 0.0,
        "decoupled": lr,
        "independent": 1.0,
        "corrected": lr**2 / (lr if max_lr is None else max_lr),
        "initial": lr,
    }
    if decay not in rates:
        raise ValueError(f"decay must be one of {', '.join(map(repr, rates))}, not {decay!r}")

    run = Run(name, params, **settings)
    start = slow = run.theta
    history = []
    for t, g in enumerate(grads, 1):
        old = run.theta
        given = [gi + weight_decay * x for gi, x in zip(g, old, strict=True)] if decay == "coupled" else g
        theta = []
        for x, x_start, x_new, gi in zip(old, start, run.step(given), g, strict=True):
            movement = x_new - x
            if cautious:
                kept = movement * gi < 0
                movement = np.where(kept, movement, 0.0) * (kept.size / (kept.sum() + 1))
            term = rates[decay] * weight_decay * (x - x_start if decay == "initial" else x)
            if cautious_decay:
                term = np.where(-movement * x >= 0, term, 0.0)
            theta.append(np.asarray(x + movement - term))
        if lookahead and t % lookahead == 0:
            slow = [s + lookahead_alpha * (x - s) for s, x in zip(slow, theta, strict=True)]
            theta = [np.asarray(s) for s in slow]
        run.theta = theta
        history.append(theta)
    return history
