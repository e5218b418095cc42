"""What the lessons on Muon, Shampoo, SOAP and norms show is what optimizers of arrays do, step by step."""

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from test_lessons import drawn, shown, steps_of

from steprule import arrays
from steprule.lessons import letters, muon, norms, soap
from steprule.lessons.digits import digits
from steprule.lessons.page import page
from steprule.matrix.coefficients import PUBLISHED

OWN = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize(
    ("coefficients", "steps"), [(OWN, 5), ((1.875, -1.25, 0.375), 8), ((2.5, -3.0, 1.0), 2)], ids=str
)
def test_muon_shows_the_polynomial_and_the_update(coefficients, steps):
    a, b, c = coefficients
    x = places = np.linspace(0, 1, 81) ** 2
    for _ in range(steps):
        x = a * x + b * x**3 + c * x**5
    chart, pixels = shown("muon", 0, "all steps", *coefficients, steps)
    assert np.abs(pixels - drawn(chart, places, x)).max() < 0.2
    weights = np.zeros((27, 27))
    optimizer = arrays.Muon(
        [weights], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, ns_coefficients=coefficients, ns_steps=steps
    )
    optimizer.step([muon.seen()[1]])
    sizes = np.linalg.svd(weights, compute_uv=False)
    chart, pixels = shown("muon", 1, "update", *coefficients, steps)
    within = sizes > 1e-4  # what the axis shows
    assert within.sum() > 15
    assert np.abs(pixels - drawn(chart, np.arange(1, 28), sizes))[within].max() < 0.2


def test_the_coefficients_of_the_text():
    """Muon's are the published ones; those at which values come to rest leave 1 as it is, and are flat there."""
    assert PUBLISHED["keller"].triples[0] == muon.OWN
    for a, b, c in (muon.CLASSIC, muon.CUBIC):
        assert a + b + c == 1 and a + 3 * b + 5 * c == 0


def test_what_muon_has_left_is_what_training_leaves():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((27, 27)))[0]
    found = letters.counts(letters.all_pairs())
    often = found.sum(1)[found.sum(1) > 0]
    shares = np.where(found > 0, found / np.maximum(found.sum(1, keepdims=True), 1), 1.0)
    least = -(found * np.log(shares)).sum() / found.sum()

    def gradient(weights):
        return q.T @ letters.gradient(q @ weights, found)

    weights = np.zeros((27, 27))
    optimizer = arrays.Muon([weights], lr=lambda step: 6 * (11 - step) / 10, weight_decay=0.0, momentum=0.9, ns_steps=3)
    for _ in range(10):
        optimizer.step([gradient(weights)])
    left = muon.screen(*OWN, 3).charts[3].marks[3].y
    assert (left * often).sum() / often.sum() == pytest.approx(letters.loss(q @ weights, found) - least, rel=1e-6)
    weights, momentum = np.zeros((2, 27, 27))  # and with the norm alone
    for step in range(1, 11):
        grad = gradient(weights)
        momentum = 0.9 * momentum + 0.1 * grad
        ahead = 0.9 * momentum + 0.1 * grad
        weights = weights - 12 * (11 - step) / 10 * ahead / np.linalg.norm(ahead)
    left = muon.train("norm alone", 12)
    assert (left * often).sum() / often.sum() == pytest.approx(letters.loss(q @ weights, found) - least, rel=1e-6)


@pytest.mark.parametrize("degrees", [0, 30])
@pytest.mark.parametrize("name", ["Shampoo", "SOAP"])
def test_the_ravine_shows_shampoo_and_soap(name, degrees):
    turned = np.radians(degrees)
    axes = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    curvature = axes @ np.diag([1.0, 25.0]) @ axes.T
    start = 1.03 * np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]) @ axes.T
    settings = {
        "lr": 0.05,
        "betas": (0.8, 0.9),
        "weight_decay": 0.0,
        "max_precond_dim": 2,
        "precondition_frequency": 30,
    }
    settings |= {"root": 2.0} if name == "Shampoo" else {}
    way = steps_of(getattr(arrays, name), start, lambda w, step: w @ curvature, 80, **settings)[:, 0]
    chart, pixels = shown("soap", 0, "the chosen one", name, degrees, 30)
    assert np.abs(pixels - drawn(chart, way[:, 0], way[:, 1])).max() < 0.2


def test_norms_shows_adamw_and_a_fixed_norm():
    data = digits()
    chosen = np.random.default_rng(0).integers(0, len(data.inputs), (500, 32))

    def gradient(weights, step):
        return norms.gradient(weights, type(data)(data.inputs[chosen[step]], data.labels[chosen[step]]))

    rate = lambda step: 0.03 if step <= 250 else 0.003  # noqa: E731
    way = steps_of(arrays.AdamW, norms.begin(), gradient, 500, lr=rate, betas=(0.9, 0.95), weight_decay=1.0)
    lengths = np.sqrt((way**2).sum((1, 2)))
    chart, pixels = shown("norms", 0, "decay", 0.03, 1.0, "falls to a tenth")
    assert np.abs(pixels - drawn(chart, np.arange(0, 501, 10), lengths[::10])).max() < 0.2
    fixed = norms.fixed(0.03, "falls to a tenth")
    sizes = np.sqrt((fixed**2).sum((1, 2)))
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-12)
    angles = np.arccos(np.clip((fixed[1:] * fixed[:-1]).sum((1, 2)) / sizes[0] ** 2, -1, 1))
    assert angles.max() < 0.031 and angles[300:].max() < 0.0031


def test_the_gradient_of_the_normalized_model_is_that_of_its_loss_and_across_the_weights():
    data, weights = digits(), norms.begin()
    along = np.random.default_rng(2).standard_normal(weights.shape)
    slope = (norms.loss(weights + 1e-6 * along, data) - norms.loss(weights - 1e-6 * along, data)) / 2e-6
    grad = norms.gradient(weights, data)
    assert (grad * along).sum() == pytest.approx(slope, rel=1e-6)
    assert abs((grad * weights).sum()) < 1e-12


def test_lengths_balance_as_the_formula_says():
    """Gradients that are noise, straight across the weights: after many steps the share is the balance's."""
    random, weights = np.random.default_rng(0), np.random.default_rng(1).standard_normal((20, 20))
    optimizer, shares = arrays.AdamW([weights], lr=0.02, betas=(0.9, 0.95), weight_decay=0.5), []
    for step in range(600):
        noise, before = random.standard_normal(weights.shape), weights.copy()
        optimizer.step([noise - weights * (noise * weights).sum() / (weights**2).sum()])
        if step >= 300:
            shares.append(np.linalg.norm(weights - before) / np.linalg.norm(weights))
    assert np.mean(shares) == pytest.approx(norms.balance(0.02, 0.5, 0.9), rel=0.1)


def test_bases_of_a_turned_ravine_are_its_directions_however_often_they_are_computed():
    for degrees in (10, 45):
        assert len({soap.arrival("SOAP", degrees, often) for often in soap.EVERY}) == 1
        found = soap.found(degrees)
        np.testing.assert_allclose(np.abs(found.T @ soap.turn(degrees)), [[0, 1], [1, 0]], atol=1e-9)


@pytest.mark.parametrize("name", ["Adam", "Shampoo", "SOAP"])
def test_the_better_learning_rate_is_between_worse_ones(name):
    frequency = 0 if name == "Adam" else 10
    best = soap.train(name, frequency)[-1]
    assert all(soap._train(name, frequency, 0, lr)[-1] > best for lr in (min(soap.LRS) / 2, max(soap.LRS) * 2))


def test_the_momentum_is_called_as_in_the_code_beside_it():
    pytest.importorskip("latex2mathml")
    assert "<code>momentum_buffer</code> in the code" in page("muon") and "<code>exp_avg</code> in" not in page("muon")
