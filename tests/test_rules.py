"""The formulas: two steps of a scalar by hand, and the signature's promises."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from steprule import Hyperparameter, Rule, RuleError, State, chain
from steprule.engine.eager import oracle
from steprule.hyper import filled
from steprule.rules import (
    ADOPT,
    ASGD,
    LAMB,
    LARS,
    MADGRAD,
    MARS,
    OWN,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    AdamAtan2,
    Adamax,
    AdamC,
    AdamW,
    Adan,
    AdEMAMix,
    DAdaptAdam,
    DoG,
    Grams,
    LaProp,
    Lion,
    NAdam,
    NovoGrad,
    Prodigy,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    ScheduleFreeRAdam,
    ScheduleFreeSGD,
    Signum,
    SparseAdam,
    StableAdamW,
    Yogi,
)
from steprule.rules.options import OPTIONS, with_options
from steprule.state import first_array, state_shape


def run(rule, grads, param=1.0, maximize=False, **changed):
    """The parameter after each step, and the states after the last."""
    hyper = filled({**rule.hyperparameters, **changed}, np.finfo(float).eps)
    value = np.broadcast_to(np.array(param, np.float64), np.shape(grads[0]))
    states = {name: first_array(rule, name, value, hyper) for name in filter(None, rule.states_for(hyper))}
    history = []
    for step, grad in enumerate(grads, 1):
        value, states = oracle(rule, value, np.array(grad), states, step, hyper, maximize)
        history.append(value.tolist())
    return history, {name: state.tolist() for name, state in states.items()}


def two_steps(rule, grads, **options):
    """The parameter after each step, from new states."""
    return run(rule, grads, **options)[0]


def test_sgd_by_hand():
    assert two_steps(SGD, [0.5, 1.0], lr=0.1) == pytest.approx([0.95, 0.85])
    # L2: g = 0.5 + 0.2 * 1 = 0.7; then 1 + 0.2 * 0.93 = 1.186
    assert two_steps(SGD, [0.5, 1.0], lr=0.1, weight_decay=0.2) == pytest.approx([0.93, 0.93 - 0.1186])


def test_sgd_momentum_by_hand():
    # b1 = 0.5 (undampened), b2 = 0.9 * 0.5 + 0.75 * 1 = 1.2
    assert two_steps(SGD, [0.5, 1.0], lr=0.1, momentum=0.9, dampening=0.25) == pytest.approx([0.95, 0.83])
    # Nesterov: d1 = 0.5 + 0.9 * 0.5 = 0.95; b2 = 1.45, d2 = 1 + 0.9 * 1.45 = 2.305
    assert two_steps(SGD, [0.5, 1.0], lr=0.1, momentum=0.9, nesterov=True) == pytest.approx([0.905, 0.6745])


def test_rmsprop_by_hand():
    # v1 = 0.1 * 4 = 0.4; v2 = 0.36 + 0.1 * 1 = 0.46
    first = 1 - 0.01 * 2 / (math.sqrt(0.4) + 1e-8)
    second = first - 0.01 * 1 / (math.sqrt(0.46) + 1e-8)
    assert two_steps(RMSprop, [2.0, 1.0], alpha=0.9) == pytest.approx([first, second], rel=1e-14)
    # centered: a1 = 0.2, v1 - a1^2 = 0.36; a2 = 0.28, v2 - a2^2 = 0.3816; momentum: b2 = 0.5 * b1 + ...
    b1 = 2 / 0.6
    b2 = 0.5 * b1 + 1 / math.sqrt(0.3816)
    history = two_steps(RMSprop, [2.0, 1.0], alpha=0.9, centered=True, momentum=0.5, eps=0.0)
    assert history == pytest.approx([1 - 0.01 * b1, 1 - 0.01 * (b1 + b2)], rel=1e-14)


def test_centered_rmsprop_survives_constant_gradients():
    """The variance is 0 but for rounding, whose square root torch.optim takes all the same."""
    grads = np.linspace(0.1, 5, 1000)
    hyper = {**RMSprop.hyperparameters, "alpha": 0.5, "centered": True, "eps": 1e-3}
    param, states = np.zeros(1000), {"square_avg": np.zeros(1000), "grad_avg": np.zeros(1000)}
    for step in range(1, 100):
        param, states = oracle(RMSprop, param, grads, states, step, hyper)
    assert (states["square_avg"] < states["grad_avg"] ** 2).any(), "no rounding below 0: this tests nothing"
    assert np.isfinite(param).all()


def test_adam_by_hand():
    # m1 = 0.2, v1 = 0.004: m1/0.1 = 2, sqrt(v1/0.001) = 2. m2 = 0.28, v2 = 0.004996
    eps = 1e-8
    first = 1 - 1e-3 * 2 / (2 + eps)
    second = first - 1e-3 * (0.28 / 0.19) / (math.sqrt(0.004996 / 0.001999) + eps)
    assert two_steps(Adam, [2.0, 1.0]) == pytest.approx([first, second], rel=1e-14)


def test_amsgrad_by_hand():
    # v2 = 0.9 * 0.4 + 0.1 * 0.01 = 0.361 < v1 = 0.4, so the second step divides by the first's
    history = two_steps(Adam, [2.0, 0.1], betas=(0.0, 0.9), eps=0.0, amsgrad=True)
    assert history == pytest.approx([1 - 1e-3, 1 - 1e-3 - 1e-3 * 0.1 / math.sqrt(0.4 / 0.19)], rel=1e-14)


def test_weight_decay_by_hand():
    # decoupled: -lr * (1 + 0.5 * p) whatever the gradient's size; coupled: the decay disappears in the ratio
    assert two_steps(AdamW, [100.0], eps=0.0, weight_decay=0.5) == pytest.approx([1 - 1e-3 * 1.5], rel=1e-14)
    assert two_steps(Adam, [100.0], eps=0.0, weight_decay=0.5) == pytest.approx([1 - 1e-3], rel=1e-14)
    both = [
        two_steps(rule, [1.0, 3.0], weight_decay=0.5, **extra)
        for rule, extra in [(AdamW, {}), (Adam, {"decoupled_weight_decay": True})]
    ]
    assert both[0] == both[1]


def close(history, expected):
    np.testing.assert_allclose(history, expected, rtol=1e-12)


# Adam's numbers for gradients of 2 and then 1 with its betas: debiased means and roots of debiased mean squares.
M1, M2, V1, V2 = 2.0, 0.28 / 0.19, 2.0, math.sqrt(0.004996 / 0.001999)


def test_nadam_by_hand():
    # mu1 = 0.8 * (1 - 0.96 / 2) = 0.416, mu2 = 0.8 * (1 - 0.9216 / 2) = 0.43136
    mu1, mu2, mu3 = 0.416, 0.43136, 0.8 * (1 - 0.5 * 0.96**3)
    # m1 = 0.4, v1/0.1 = 4; m2 = 0.52, v2 = 0.46
    first = 1 - 0.1 * (2 + mu2 / (1 - mu1 * mu2) * 0.4) / 2
    mean = (1 - mu2) / (1 - mu1 * mu2) * 1 + mu3 / (1 - mu1 * mu2 * mu3) * 0.52
    second = first - 0.1 * mean / math.sqrt(0.46 / 0.19)
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.0, "momentum_decay": 1.0}
    history, states = run(NAdam, [2.0, 1.0], **options)
    close(history, [first, second])
    assert states["mu_product"] == pytest.approx(mu1 * mu2, rel=1e-14)
    (decayed,) = two_steps(NAdam, [2.0], weight_decay=0.5, decoupled_weight_decay=True, **options)
    assert decayed == pytest.approx(first - 0.1 * 0.5)


def test_radam_by_hand():
    # Constant gradients: both debiased averages are 1. rho_inf = 19; rho_5 = 4.58, rho_6 = 19 - 12 * b / (1 - b) > 5
    b = 0.9**6
    rho = 19 - 12 * b / (1 - b)
    factor = math.sqrt((rho - 4) * (rho - 2) * 19 / (15 * 17 * rho))
    history = two_steps(RAdam, [1.0] * 6, lr=0.1, betas=(0.9, 0.9), eps=0.0)
    close(history, [0.9, 0.8, 0.7, 0.6, 0.5, 0.5 - 0.1 * factor])


def test_adagrad_by_hand():
    # sums 0.25 + 4 and 5.25; the second lr is 0.1 / 1.5
    first = 1 - 0.1 * 2 / math.sqrt(4.25)
    options = {"lr": 0.1, "lr_decay": 0.5, "initial_accumulator_value": 0.25, "eps": 0.0}
    close(two_steps(Adagrad, [2.0, 1.0], **options), [first, first - 0.1 / 1.5 / math.sqrt(5.25)])


def test_adadelta_by_hand():
    # mean squares 0.4 and 0.46; the first delta is sqrt(0.1 / 0.5) * 2, and 0.1 of its square is kept
    delta = 2 * math.sqrt(0.1 / 0.5)
    first = 1 - 0.5 * delta
    second = first - 0.5 * math.sqrt((0.1 * delta**2 + 0.1) / 0.56)
    close(two_steps(Adadelta, [2.0, 1.0], lr=0.5, eps=0.1), [first, second])


def test_adamax_by_hand():
    # largest: 2, then max(2 / 2, 0.5) = 1; means 0.2 / 0.1 and 0.23 / 0.19
    history = two_steps(Adamax, [2.0, 0.5], lr=0.1, betas=(0.9, 0.5), eps=0.0)
    close(history, [0.9, 0.9 - 0.1 * 0.23 / 0.19])


def test_asgd_by_hand():
    # The decay of 0.5 is in every gradient: 2.5, then 1.375 at a step of 0.1 / (1 + 0.05)**0.75, then the next
    etas = [0.1, 0.1 / 1.05**0.75, 0.1 / 1.1**0.75]
    first = 1 - etas[0] * 2.5
    second = first - etas[1] * (1 + 0.5 * first)
    third = second - etas[2] * (1 + 0.5 * second)
    history, states = run(ASGD, [2.0, 1.0, 1.0], lr=0.1, lambd=0.5, t0=0.0)
    close(history, [first, second, third])
    assert states["ax"] == pytest.approx((second + third) / 2)  # mu was 1, 1 and 1 / 2
    assert (states["mu"], states["eta"]) == pytest.approx((1 / 3, 0.1 / 1.15**0.75))


def test_rprop_by_hand():
    # steps 0.1, 0.12, none (the sign turns: 0.06), and 0.06 once the turn is forgotten
    history, states = run(Rprop, [2.0, 1.0, -1.0, -1.0], lr=0.1)
    close(history, [0.9, 0.78, 0.78, 0.84])
    assert states["step_size"] == pytest.approx(0.06)


def test_sparse_adam_by_hand():
    # eps meets the root of the mean square before that is debiased
    first = 1 - 0.1 * math.sqrt(0.001) / 0.1 * 0.2 / (math.sqrt(0.004) + 0.5)
    second = first - 0.1 * math.sqrt(0.001999) / 0.19 * 0.28 / (math.sqrt(0.004996) + 0.5)
    close(two_steps(SparseAdam, [2.0, 1.0], lr=0.1, eps=0.5), [first, second])


def test_lion_by_hand():
    # m1 = 0.02, and 0.9 * 0.02 - 0.1 * 0.1 is still above 0, 0.9 * 0.0188 - 0.1 is not
    history = two_steps(Lion, [2.0, -0.1, -1.0], lr=0.1, weight_decay=0.5)
    close(history, [0.85, 0.85 - 0.1 * 1.425, 0.7075 - 0.1 * (-1 + 0.5 * 0.7075)])
    assert two_steps(Lion, [0.0]) == [1.0]


def test_signum_by_hand():
    # means 1 and 0.05; with Nesterov's momentum (0.05 - 0.9) / 2 is looked at
    close(two_steps(Signum, [2.0, -0.9], lr=0.1, momentum=0.5), [0.9, 0.8])
    close(two_steps(Signum, [2.0, -0.9], lr=0.1, momentum=0.5, nesterov=True), [0.9, 1.0])
    close(two_steps(Signum, [2.0, -0.9], lr=0.1, momentum=0.0, weight_decay=0.5), [0.85, 0.85 - 0.1 * (0.425 - 1)])


def test_adabelief_by_hand():
    # m = 1 and 1, s1 = 0.1 * (2 - 1)**2, s2 = 0.09: debiased 1 and 0.09 / 0.19
    first = 1 - 0.1 * 2
    history = two_steps(AdaBelief, [2.0, 1.0], lr=0.1, betas=(0.5, 0.9), eps=0.0)
    close(history, [first, first - 0.1 * (1 / 0.75) / math.sqrt(0.09 / 0.19)])
    # eps enters s, and the denominator once more
    (once,) = two_steps(AdaBelief, [2.0], lr=0.1, betas=(0.5, 0.9), eps=0.1)
    assert once == pytest.approx(1 - 0.1 * 2 / (math.sqrt(2) + 0.1))


def test_yogi_by_hand():
    # m1 = 0.45 + 0.2, v1 = 0.5 + 0.1 * 4; m2 = 0.585 + 0.05, v2 = 0.9 - 0.1 * 0.25
    first = 1 - 0.1 * (0.65 / 0.1) / math.sqrt(0.9 / 0.1)
    second = first - 0.1 * (0.635 / 0.19) / math.sqrt(0.875 / 0.19)
    options = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 0.0, "initial_accumulator_value": 0.5}
    close(two_steps(Yogi, [2.0, 0.5], **options), [first, second])


def test_laprop_by_hand():
    # means of 2 / 2 and of 1 / V2
    second = 0.9 - 0.1 * (0.09 + 0.1 / V2) / 0.19
    close(two_steps(LaProp, [2.0, 1.0], lr=0.1, eps=0.0), [0.9, second])


def test_adopt_by_hand():
    # Nothing moves at first, not even by decay; then 1 / 2, and 100 / sqrt(3.97) cut to 2**(1/4)
    second = 1 - 0.1 * (0.05 + 0.5)
    mean = 0.9 * 0.05 + 0.1 * 2**0.25
    history = two_steps(ADOPT, [2.0, 1.0, 100.0], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    close(history, [1.0, second, second - 0.1 * (mean + 0.5 * second)])


def test_ademamix_by_hand():
    # the slow mean, not debiased: 1 and 1
    options = {"lr": 0.1, "eps": 0.0, "alpha": 2.0}
    first = 1 - 0.1 * (M1 + 2 * 1) / V1
    history = two_steps(AdEMAMix, [2.0, 1.0], betas=(0.9, 0.999, 0.5), **options)
    close(history, [first, first - 0.1 * (M2 + 2 * 1) / V2])
    # a quarter of the way from a half-life of 1 step to one of 5 is 2, and alpha is 0.5
    _, states = run(AdEMAMix, [2.0], betas=(0.5, 0.999, 0.5**0.2), warmup=4.0, **options)
    assert states["exp_avg_slow"] == pytest.approx((1 - math.sqrt(0.5)) * 2)
    (once,) = two_steps(AdEMAMix, [2.0], betas=(0.5, 0.999, 0.5**0.2), warmup=4.0, **options)
    assert once == pytest.approx(1 - 0.1 * (2 + 0.5 * states["exp_avg_slow"]) / 2)


def test_adan_by_hand():
    # differences 0 and -1; m2 = 0.28, d2 = -0.2, v1 = 2, v2 = 1 + 0.5 * (1 - 0.8)**2; decay divides
    first = (1 - 0.1) / 1.05
    second = (first - 0.1 * (0.28 / 0.19 - 0.8 * 0.2 / 0.36) / math.sqrt(1.02 / 0.75)) / 1.05
    options = {"lr": 0.1, "betas": (0.9, 0.8, 0.5), "eps": 0.0, "weight_decay": 0.5}
    close(two_steps(Adan, [2.0, 1.0], **options), [first, second])


def test_stable_adamw_by_hand():
    # averages without bias: 2 and 4, then (0.18 + 0.4) / 0.19 and (0.0396 + 0.16) / 0.0199; 16 over that is above 1
    mean, square = 0.58 / 0.19, 0.1996 / 0.0199
    lr = 0.1 / math.sqrt(16 / square)
    second = 0.85 - lr * (mean / math.sqrt(square) + 0.5 * 0.85)
    close(two_steps(StableAdamW, [2.0, 4.0], lr=0.1, eps=0.0, weight_decay=0.5), [0.85, second])


def test_adam_atan2_by_hand():
    first = 1 - 0.1 * 1.27 * math.pi / 4
    history = two_steps(AdamAtan2, [2.0, 1.0], lr=0.1)
    close(history, [first, first - 0.1 * 1.27 * math.atan2(M2, V2)])
    close(two_steps(AdamAtan2, [2.0], lr=0.1, a=2.0, b=3.0), [1 - 0.1 * 2 * math.atan2(1, 3)])


def test_mars_by_hand():
    # corrected: 2, cut to 1, and 0.5 + 0.1 * 9 * (0.5 - 2) = -0.85
    second = 0.9 - 0.1 * (0.005 / 0.19) / math.sqrt((0.0099 + 0.01 * 0.85**2) / 0.0199)
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0, "gamma": 0.1}
    close(two_steps(MARS, [2.0, 0.5], **options), [0.9, second])


def test_grams_by_hand():
    # the mean, 0.18 - 0.01, is still above 0, the gradient is not
    step = (0.17 / 0.19) / math.sqrt(0.004006 / 0.001999)
    close(two_steps(Grams, [2.0, -0.1], lr=0.1, eps=0.0), [0.9, 0.9 + 0.1 * step])


def test_adamc_by_hand():
    # a decay of 0.1**2 / 0.2 * 0.5, in proportion to lr so far below its maximum
    second = 0.875 - 0.1 * M2 / V2 - 0.025 * 0.875
    close(two_steps(AdamC, [2.0, 1.0], lr=0.1, eps=0.0, weight_decay=0.5, max_lr=0.2), [0.875, second])
    assert two_steps(AdamC, [2.0], lr=0.1, weight_decay=0.5) == two_steps(AdamW, [2.0], lr=0.1, weight_decay=0.5)


def test_madgrad_by_hand():
    # weights 0.1 and 0.1 * sqrt(2); sums 0.2 and more, of squares 0.4 and more
    w = 0.1 * math.sqrt(2)
    first = 0.75 + 0.25 * (1 - 0.2 / 0.4 ** (1 / 3))
    second = 0.75 * first + 0.25 * (1 - (0.2 + w) / (0.4 + w) ** (1 / 3))
    close(two_steps(MADGRAD, [2.0, 1.0], lr=0.1, momentum=0.75, eps=0.0), [first, second])


def test_lars_by_hand():
    # |w| = 5, |g| = 10: the ratio is 0.01 * 5 / (10 + 0.5 * 5) = 0.004, of g + 0.5 w
    delta = 0.1 * 0.004 * np.array([7.5, 10.0])
    options = {"lr": 0.1, "weight_decay": 0.5, "trust_coefficient": 0.01, "param": [3.0, 4.0]}
    first = np.array([3.0, 4.0]) - delta
    length = np.linalg.norm(first)
    second = first - 0.9 * delta - 0.1 * 0.01 * length / (5 + 0.5 * length) * (np.array([3.0, 4.0]) + 0.5 * first)
    close(two_steps(LARS, [[6.0, 8.0], [3.0, 4.0]], **options), [first, second])
    close(two_steps(LARS, [[6.0, 8.0]], nesterov=True, **options), [[3.0, 4.0] - 1.9 * delta])


def test_lamb_by_hand():
    # |w| = 5; Adam's direction (1, 1) and decay of 0.1 make (1.3, 1.4)
    first = np.array([3.0, 4.0]) - 0.1 * 5 / math.hypot(1.3, 1.4) * np.array([1.3, 1.4])
    direction = M2 / V2 + 0.1 * first
    second = first - 0.1 * np.linalg.norm(first) / np.linalg.norm(direction) * direction
    options = {"lr": 0.1, "eps": 0.0, "weight_decay": 0.1, "param": [3.0, 4.0]}
    close(two_steps(LAMB, [[2.0, 2.0], [1.0, 1.0]], **options), [first, second])
    # Nothing of which a ratio could be made: it is 1.
    close(two_steps(LAMB, [[2.0, 2.0]], lr=0.1, eps=0.0, param=[0.0, 0.0]), [[-0.1, -0.1]])


def test_novograd_by_hand():
    # the norm's mean square: 25, then 13; the mean is a sum that forgets
    mean = np.array([0.6, 0.8])
    first = 1 - 0.1 * mean
    history, states = run(NovoGrad, [[3.0, 4.0], [0.0, 1.0]], lr=0.1, betas=(0.9, 0.5), eps=0.0, param=[1.0, 1.0])
    close(history, [first, first - 0.1 * (0.9 * mean + [0.0, 1 / math.sqrt(13)])])
    assert states["exp_avg_sq"] == pytest.approx(13)
    (decayed,) = two_steps(NovoGrad, [[3.0, 4.0]], lr=0.1, eps=0.0, weight_decay=0.5, param=[1.0, 1.0])
    close(decayed, 1 - 0.1 * (mean + 0.5))


def test_prodigy_by_hand():
    # d = 0.1: m1 = 0.1 * 0.2, v1 = 0.19 * 0.2**2, s1 = 0.2; no way has been made, and d stays
    first = 1 - 0.1 * 0.02 / math.sqrt(0.0076)
    # m2 = 0.018 + 0.01, v2 = 0.81 * v1 + 0.19 * 0.01, s2 = 0.28; d = 100 * 0.1 * (1 - first) / 0.28 from now on
    second = first - 0.1 * 0.028 / math.sqrt(0.81 * 0.0076 + 0.0019)
    options = {"betas": (0.9, 0.81), "eps": 0.0, "d0": 0.1, "d_coef": 100.0}
    history, states = run(Prodigy, [2.0, 1.0], **options)
    close(history, [first, second])
    assert states["d"] == states["d_max"] == pytest.approx(100 * 0.1 * (1 - first) / 0.28)
    _, later = run(Prodigy, [2.0, 1.0, 1.0], growth_rate=1.1, **options)  # of all but the first growth
    assert later["d"] == pytest.approx(1.1 * states["d"]) and later["d_max"] > 2 * later["d"]


def test_dadapt_adam_by_hand():
    # d = 0.1: m1 = s1 = 0.02, v1 = 0.76. Then s points along the gradient, 3: d is what that comes to
    first = 1 - 0.02 / math.sqrt(0.76)
    square = 0.81 * 0.76 + 0.19 * 9
    second = first - 0.048 / math.sqrt(square)
    history, states = run(DAdaptAdam, [2.0, 3.0], betas=(0.9, 0.81), eps=1e-300, d0=0.1)
    close(history, [first, second])
    assert states["d"] == pytest.approx(0.1 * (0.1 * 3 * 0.02 / math.sqrt(0.76)) / (0.1 * 0.048))


def test_dog_by_hand():
    # distances 0.1 * (1 + 1), 0.2 and then as far as it has come; sums of squares 4, 5 and 6
    second = 0.8 - 0.2 / math.sqrt(5)
    history = two_steps(DoG, [2.0, 1.0, 1.0], reps_rel=0.1, eps=0.0)
    close(history, [0.8, second, second - (1 - second) / math.sqrt(6)])


def test_schedule_free_sgd_by_hand():
    # z: 0.8, 0.7, 0.6; x, its average: 0.8, 0.75, 0.7; y, nine tenths of the way from z to x
    history, states = run(ScheduleFreeSGD, [2.0, 1.0, 1.0], lr=0.1)
    close(history, [0.8, 0.745, 0.69])
    assert (states["z"], states["weight_sum"]) == pytest.approx((0.6, 0.03))
    # half of lr in the first of two steps of warm-up; the weights are its squares, 1 to 4
    x = (0.9 + 4 * 0.8) / 5
    close(two_steps(ScheduleFreeSGD, [2.0, 1.0], lr=0.1, warmup_steps=2.0), [0.9, 0.1 * 0.8 + 0.9 * x])


def test_schedule_free_adamw_by_hand():
    z = 0.9 - 0.1 / V2
    close(two_steps(ScheduleFreeAdamW, [2.0, 1.0], lr=0.1, eps=0.0), [0.9, 0.1 * z + 0.9 * (0.9 + z) / 2])


def test_schedule_free_radam_by_hand():
    # rho is 4.58 at the fifth step and below 4 before
    b = 0.9**5
    rho = 19 - 10 * b / (1 - b)
    factor = math.sqrt((rho - 4) * (rho - 2) * 19 / (15 * 17 * rho))
    options = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 0.0}
    close(two_steps(ScheduleFreeRAdam, [1.0] * 5, **options), [1.0] * 4 + [1 - 0.1 * factor])
    close(two_steps(ScheduleFreeRAdam, [2.0], silent_sgd_phase=False, **options), [0.8])


@pytest.mark.parametrize("rule", OWN.values())
def test_maximize_is_minimizing_the_negated_gradient(rule):
    changed = {"weight_decay": 0.1, "d0": 0.1, "eps": 0.01}
    decay = {name: value for name, value in changed.items() if type(rule.hyperparameters.get(name)) is float}
    assert two_steps(rule, [1.0, -2.0], maximize=True, **decay) == two_steps(rule, [-1.0, 2.0], **decay)


@pytest.mark.parametrize("rule", OWN.values())
def test_every_rule_names_its_paper(rule):
    assert rule.__doc__ and any(year in rule.__doc__ for year in map(str, range(1950, 2030)))


def test_what_is_read_off_a_signature():
    assert [*AdamW.states] == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert list(AdamW.hyperparameters) == ["lr", "betas", "eps", "weight_decay", "amsgrad"]
    assert AdamW.states_for({**AdamW.hyperparameters}) == ("exp_avg", "exp_avg_sq", None)
    assert SGD.states_for({**SGD.hyperparameters, "momentum": 0.9}) == ("momentum_buffer",)


def test_a_rule_without_update():
    with pytest.raises(RuleError, match=r"Empty has no update\(param, grad, ...\)"):
        type("Empty", (Rule,), {})


def define(update, **attributes):
    return type("Mine", (Rule,), {"update": update, **attributes})


def test_a_formula_returns_and_neither_waits_nor_yields():
    with pytest.raises(
        RuleError, match=r"Waits.update must be a plain function .*no async and no yield \(.*test_rules.py"
    ):

        class Waits(Rule):
            async def update(param, grad, *, lr=0.1):
                return param - lr * grad

    with pytest.raises(RuleError, match=r"Yields\.update must be a plain function"):

        class Yields(Rule):
            def update(param, grad, *, lr=0.1):
                yield param - lr * grad


def test_signatures_that_do_not_fit():
    with pytest.raises(RuleError, match=r"must begin with \(param, grad, ...\), not \(weight, grad\).*test_rules.py"):
        define(lambda weight, grad: weight)
    with pytest.raises(RuleError, match="needs a default for the hyperparameter lr"):
        define(lambda param, grad, *, lr: param)
    with pytest.raises(RuleError, match=r"name its arguments instead of taking \*\*rest"):
        define(lambda param, grad, **rest: param)
    with pytest.raises(RuleError, match="take step after the"):
        define(lambda param, grad, step: param)
    with pytest.raises(
        RuleError, match=r"take lr after the \*: it is a hyperparameter, as in \*, lr=1e-3.*test_rules.py"
    ):
        define(lambda param, grad, lr: (param - lr * grad, lr))


def test_none_is_the_default_of_optional_states_and_of_those_after_them():
    with pytest.raises(RuleError, match=r"Mine.update: exp_avg=None, but a state always exists .* \(.*test_rules.py"):
        define(lambda param, grad, exp_avg=None, *, lr=1.0: (param, exp_avg))
    rule = define(lambda param, grad, a=None, b=None, *, lr=1.0, flag=False: (param, a, b), a=State(when="flag"))
    assert rule.states_for(rule.hyperparameters) == (None, "b")


def of_one_state(param, grad, exp_avg, *, lr=1.0, flag=False):
    return param, exp_avg


@pytest.mark.parametrize(
    ("table", "value", "instead"),
    [
        ("scalar_states", ("exp_avg",), 'd = State("scalar")'),
        ("tensor_states", ("exp_avg",), "exp_avg = State()"),
        ("states", {"exp_avg": State()}, "exp_avg = State()"),
    ],
    ids=lambda x: x if isinstance(x, str) and x.isidentifier() else "",
)
def test_tables_of_states_are_refused_with_what_to_write(table, value, instead):
    message = re.escape(f"Mine.{table} would do nothing: say it where it belongs, as in {instead}")
    with pytest.raises(RuleError, match=message):
        define(of_one_state, **{table: value})
    with pytest.raises(RuleError, match=message):  # of a parent that is no rule
        type("Mine", (type("Mixed", (), {table: value}), Rule), {"update": of_one_state})
    with pytest.raises(RuleError, match=message):  # of a rule that has another's formula
        type("Mine", (define(of_one_state),), {table: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("momentum", State(), "Mine.momentum is a State, and update has no state of that name; its states are exp_avg"),
        ("exp_ag", State(), "Mine.exp_ag is a State, and update has no state of that name; did you mean 'exp_avg'?"),
        ("lr", State(), "Mine.lr is a State, and update has lr after the *, a hyperparameter: move it, or write Hyperparameter(...)"),
        ("exp_avg", Hyperparameter("mean"), "Mine.exp_avg must be a State, since update has a state of that name; it is Hyper"),
        ("exp_avg", State(begins="grad"), "update has lr, flag, and \"param\" is the parameter; to begin at the gradient write at_first("),
        ("decay", State(), "Mine: a state cannot be called 'decay', which every rule has; choose another name"),
        ("evaluate", State(), "Mine: a state cannot be called 'evaluate', which every rule has; choose another name"),
        ("exp_avg", "param", "Mine.exp_avg must be a State, since update has a state of that name; it is 'param'"),
        ("exp_avg", State, "Mine.exp_avg must be a State, since update has a state of that name; it is <class"),
        ("exp_avg", State(when="beta"),
         "Mine.exp_avg = State(when='beta') names an unknown hyperparameter; update has lr, flag"),
        ("exp_avg", State(begins="flg"), "Mine.exp_avg = State(begins='flg') names an unknown hyperparameter"),
        ("exp_avg", State(exact="always"), "Mine.exp_avg = State(exact='always') names an unknown hyperparameter"),
        ("exp_avg", State(when="param"), "Mine.exp_avg = State(when='param') names an unknown hyperparameter"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_said_of_a_state_and_does_not_fit(name, value, message):
    with pytest.raises(RuleError, match=re.escape(message)):
        define(of_one_state, **{name: value})


def test_a_state_cannot_have_a_name_that_every_rule_has():
    with pytest.raises(RuleError, match="a state cannot be called 'needs', which every rule has"):
        define(lambda param, grad, needs, *, lr=1.0: (param, needs))
    with pytest.raises(RuleError, match="a state cannot be called 'update', which every rule has"):
        define(lambda param, grad, update, *, lr=1.0: (param, update))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"extent": "row"},
            "State(extent='row'): 'elements', 'scalar', 'rows', 'cols', 'left', 'right'; did you mean 'rows'? (",
        ),
        ({"extent": "param"}, "State(extent='param'): 'elements', 'scalar'"),
        ({"begins": None}, "State(begins=None): a number, a hyperparameter's name or 'param'"),
        ({"exact": None}, "State(exact=None): True, False or a hyperparameter's name"),
        ({"when": True}, "State(when=True): a hyperparameter's name or None"),
        (
            {"extent": "scalar", "dtype": "float32"},
            "State(dtype='float32'): None for float64, or 'step' for step's dtype",
        ),
        ({"dtype": "step"}, "State(dtype='step'): only a scalar state has a dtype of its own"),
        (
            {"extent": "scalar", "begins": "param"},
            "State(begins='param'): only a state of its shape can begin at the parameter",
        ),
        (
            {"extent": "scalar", "exact": True},
            "State(exact=True): only a state of the parameter's shape is kept in other formats",
        ),
    ],
    ids=str,
)
def test_a_state_that_makes_no_sense(given, message):
    with pytest.raises(RuleError, match=rf"{re.escape(message)}.*test_rules.py:\d+\)$"):
        State(**given)


class Parent(Rule):
    first = State(begins="param", exact=True)
    second = State(when="flag")

    @staticmethod
    def update(param, grad, first, second, *, lr=1.0, flag=False):
        return param - lr * grad, first, second


def test_a_rule_made_of_another_has_its_states_and_may_say_more():
    class Checked(Parent):
        @classmethod
        def check(cls, **hyper):
            raise ValueError("never")

    class Exact(Parent):
        second = State(when="flag", exact=True)

    class Fewer(Parent):
        @staticmethod
        def update(param, grad, first, third, *, lr=1.0):
            return param - lr * grad, first, third

    class Again(Fewer):
        update = Parent.update

    assert Checked.states == Parent.states == {"first": State(begins="param", exact=True), "second": State(when="flag")}
    assert Exact.states == {**Parent.states, "second": State(when="flag", exact=True)}
    assert Exact.is_exact("second", {}) and not Parent.is_exact("second", {})
    assert Fewer.states == {"first": Parent.first, "third": State()} and Fewer.tensor_states == ("first", "third")
    assert Again.states == Parent.states
    with pytest.raises(
        RuleError, match=r"names an unknown hyperparameter; update has lr; it is a parent's: write second ="
    ):
        type("Mine", (Parent,), {"update": lambda param, grad, second, *, lr=1.0: (param, second)})
    with pytest.raises(RuleError, match=r"Mine.frist is a State, .*; did you mean 'first'"):
        type("Mine", (Parent,), {"frist": State()})


def test_what_is_said_of_states_is_not_to_be_changed():
    with pytest.raises(TypeError):
        AdamW.states["exp_avg"] = State(exact=True)
    with pytest.raises(AttributeError):
        AdamW.states["exp_avg"].exact = True


def test_options_and_chains_pass_on_what_is_said_of_states():
    around = with_options(Parent, **{**OPTIONS, "lookahead": 3})
    assert around.states == {**Parent.states, "slow_param": State(begins="param", exact=True)}
    corrected = with_options(NAdam, **{**OPTIONS, "decay": "corrected"})
    assert corrected.states == {**NAdam.states, "lr_max": State("scalar")}
    assert corrected.scalar_states == ("mu_product", "lr_max")
    twice = chain(RMSprop, RMSprop)
    assert twice.states == {
        "square_avg": State(exact="centered"),
        "momentum_buffer": State(when="momentum"),
        "grad_avg": State(when="centered", exact="centered"),
        "square_avg_2": State(exact="centered_2"),
        "momentum_buffer_2": State(when="momentum_2"),
        "grad_avg_2": State(when="centered_2", exact="centered_2"),
    }
    assert chain(Yogi, Yogi).states["exp_avg_2"] == State(begins="initial_accumulator_value_2")
    assert chain(NAdam).states["mu_product"] == State("scalar", begins=1.0)


@pytest.mark.parametrize("name", OWN)
def test_a_formula_is_called_without_the_states_that_its_defaults_do_without(name):
    """Unless one that it needs comes after them."""
    rule = OWN[name]
    kept = [state for state, one in rule.states.items() if not one.when]
    if [*rule.states][: len(kept)] != kept:
        pytest.skip("an optional state stands before one that is needed")
    given = {"step": 1} if rule.counts_steps else {}
    given |= {hyper: x for hyper, x in filled(rule.hyperparameters, 1e-7).items() if x != rule.hyperparameters[hyper]}
    states = [np.full(state_shape(rule, state, (2, 2)), 0.25) for state in kept]
    ones = np.ones((2, 2))
    expected = rule.function()(ones, ones, *states, *[None] * (len(rule.states) - len(kept)), **given)
    result = rule.function()(ones, ones, *states, **given)
    assert repr(result) == repr(expected)
