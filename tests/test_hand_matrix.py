"""The oracle of the matrix rules against steps worked by hand and torch.optim, and what its pieces promise."""

from __future__ import annotations

import numpy as np
import papers
import papers_factored
import papers_kronecker
import papers_matrix
import pytest
import torch
from hand_matrix import HAND

CASES = [(rule, number) for rule in HAND for number in range(len(HAND[rule]))]
MODULES = (papers_matrix, papers_factored, papers_kronecker)


@pytest.mark.parametrize(("rule", "number"), CASES)
def test_the_oracle_is_what_a_hand_makes(rule, number):
    settings, start, grads, expected = HAND[rule][number]
    history = papers.PAPERS[rule]([np.array(start)], [[np.array(g)] for g in grads], **settings)
    for step, (found, wanted) in enumerate(zip(history, expected, strict=True), 1):
        np.testing.assert_allclose(found[0], wanted, rtol=1e-13, atol=1e-15, err_msg=f"after step {step}")


def test_every_rule_has_an_example():
    entered = {
        name for name in papers.PAPERS for module in MODULES if getattr(module, name, None) and name in vars(module)
    }
    assert entered - set(vars(papers)) == set(HAND)


SHAPES = [(4, 6), (6, 4), (5, 5), (1, 7), (7, 1)]
MUON = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8}
ADAFACTOR = {"lr": 0.3, "beta2_decay": -0.7, "weight_decay": 0.1}


def in_torch(optimizer_class, options, start, grads):
    param = torch.tensor(start)
    optimizer = optimizer_class([param], **options)
    history = []
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
        history.append(param.numpy().copy())
    return history


def assert_like_torch(rule, options, optimizer_class, its_options, shape):
    """Twelve steps; in the last, lr is above 1 / sqrt(t)."""
    random = np.random.default_rng(sum(shape))
    start = random.normal(size=shape)
    grads = [random.normal(size=shape) * 10 ** random.uniform(-2, 1) for _ in range(12)]
    expected = in_torch(optimizer_class, its_options, start, grads)
    found = [one[0] for one in papers.PAPERS[rule]([start], [[g] for g in grads], **options)]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 and later have Muon")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_in_float64(shape, scale, nesterov, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours = {**MUON, "nesterov": nesterov, "scale": scale, "start": "clamped"}
    its = {**MUON, "nesterov": nesterov, "adjust_lr_fn": scale}
    assert_like_torch("muon", ours, torch.optim.Muon, its, shape)


@pytest.mark.parametrize("shape", [*SHAPES, (5,)])
@pytest.mark.parametrize("options", [{}, {"d": 1.5}, {"eps": (0.5, 0.9)}], ids=["", "d", "eps"])
def test_adafactor_is_torchs(shape, options):
    assert_like_torch("adafactor", {**ADAFACTOR, **options}, torch.optim.Adafactor, {**ADAFACTOR, **options}, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_polar_factor_is_orthogonal_and_nearest(shape):
    """Of X = OH, H is symmetric and positive."""
    x = np.random.default_rng(0).normal(size=shape)
    x = x if shape[0] >= shape[1] else x.T
    o = papers_matrix.polar(x)
    np.testing.assert_allclose(o.T @ o, np.eye(x.shape[1]), atol=1e-13)
    h = o.T @ x
    np.testing.assert_allclose(h, h.T, atol=1e-13)
    assert np.linalg.eigvalsh(h).min() > 0


def test_a_polar_factor_keeps_singular_values_of_0():
    assert (papers_matrix.polar(np.zeros((3, 2))) == 0).all()
    np.testing.assert_allclose(papers_matrix.polar(np.full((2, 8), 3.0)), np.full((2, 8), 0.25), rtol=1e-14)


LISTS = {
    "keller": (papers_matrix.KELLER, 0.5),  # Jordan 2024: singular values about uniform in (0.5, 1.5)
    "you": (papers_matrix.YOU, 0.5),
    "cans": (papers_matrix.CANS, 0.5),
    "cubic": (papers_matrix.CUBIC, 0.5),
    # Near 1, a distance e becomes e^2 / 2 in each of its last two steps.
    "deepseek": (papers_matrix.DEEPSEEK, (0.5**2 / 2) ** 2 / 2),
    "polar express": (papers_matrix.polar_express(8), 1e-12),
}


@pytest.mark.parametrize("name", LISTS)
def test_newton_schulz_is_a_polynomial_of_the_singular_values(name):
    """The singular vectors stay, and the values come as near to 1 as the list is made for."""
    coefficients, away = LISTS[name]
    random = np.random.default_rng(1)
    u, v = (np.linalg.qr(random.normal(size=(5, 5)))[0] for _ in range(2))
    s = np.array([1.0, 0.7, 0.4, 0.15, 0.1])
    found = u.T @ papers_matrix.newton_schulz(u * s @ v.T, coefficients, eps=0.0) @ v
    x = s / np.linalg.norm(s)
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
    np.testing.assert_allclose(found, np.diag(x), rtol=1e-12, atol=1e-13)
    assert np.abs(x - 1).max() < away
