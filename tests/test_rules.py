"""The formulas: two steps of a scalar by hand, and the signature's promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steprule import Rule, RuleError
from steprule.engine.eager import oracle
from steprule.rules import RULES, SGD, Adam, AdamW, RMSprop


def two_steps(rule, grads, param=1.0, maximize=False, **changed):
    """The parameter after each step, from all-zero states."""
    hyper = {**rule.hyperparameters, **changed}
    states = {name: np.zeros(1) for name in rule.states_for(hyper) if name}
    value, history = np.array([param]), []
    for step, grad in enumerate(grads, 1):
        value, states = oracle(rule, value, np.array([grad]), states, step, hyper, maximize)
        history.append(float(value[0]))
    return history


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


@pytest.mark.parametrize("rule", RULES.values())
def test_maximize_is_minimising_the_negated_gradient(rule):
    decay = {"weight_decay": 0.1}
    assert two_steps(rule, [1.0, -2.0], maximize=True, **decay) == two_steps(rule, [-1.0, 2.0], **decay)


@pytest.mark.parametrize("rule", RULES.values())
def test_every_rule_names_its_paper(rule):
    assert rule.__doc__ and any(year in rule.__doc__ for year in map(str, range(1950, 2030)))


def test_what_is_read_off_a_signature():
    assert AdamW.states == ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    assert list(AdamW.hyperparameters) == ["lr", "betas", "eps", "weight_decay", "amsgrad"]
    assert AdamW.states_for({**AdamW.hyperparameters}) == ("exp_avg", "exp_avg_sq", None)
    assert SGD.states_for({**SGD.hyperparameters, "momentum": 0.9}) == ("momentum_buffer",)


def test_a_rule_without_update():
    with pytest.raises(RuleError, match=r"Empty has no update\(param, grad, ...\)"):
        type("Empty", (Rule,), {})


def define(update, **attributes):
    return type("Mine", (Rule,), {"update": update, **attributes})


def test_signatures_that_do_not_fit():
    with pytest.raises(RuleError, match=r"must begin with \(param, grad, ...\), not \(weight, grad\).*test_rules.py"):
        define(lambda weight, grad: weight)
    with pytest.raises(RuleError, match="needs a default for the hyperparameter lr"):
        define(lambda param, grad, *, lr: param)
    with pytest.raises(RuleError, match=r"name its arguments instead of taking \*\*rest"):
        define(lambda param, grad, **rest: param)
    with pytest.raises(RuleError, match="take step after the"):
        define(lambda param, grad, step: param)
    with pytest.raises(RuleError, match="names the unknown state 'momentum'; update's states are exp_avg"):
        define(lambda param, grad, exp_avg, *, lr=1.0: (param, exp_avg), state_when={"momentum": "lr"})
    with pytest.raises(RuleError, match="names the unknown hyperparameter 'beta'; update has lr"):
        define(lambda param, grad, exp_avg, *, lr=1.0: (param, exp_avg), state_when={"exp_avg": "beta"})
