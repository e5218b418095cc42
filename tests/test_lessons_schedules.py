"""What the lesson on schedules shows is what the optimizers do, told the learning rate step by step."""

import math
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import torch
from test_lessons import drawn, shown

import steprule
from steprule.lessons import network, schedules
from steprule.lessons.digits import digits

RATES = {  # of step t of 400, written once more, from 1
    ("constant", "none"): lambda t: 1.0,
    ("linear", "40 steps"): lambda t: t / 40 if t <= 40 else (401 - t) / 360,
    ("cosine", "40 steps"): lambda t: t / 40 if t <= 40 else math.cos(math.pi * (t - 41) / 720) ** 2,
    ("stable, then down", "none"): lambda t: 1.0 if t <= 321 else (401 - t) / 80,
}


def network_of_torch():
    """The network of the lesson by torch, and its losses on a mini-batch and on what is held out."""
    parts = iter(np.split(network.begin(), np.cumsum([65 * 24, 25 * 24])))
    layers = []
    for taken, given in ((64, 24), (24, 24), (24, 10)):
        matrix = next(parts).reshape(taken + 1, given)
        layer = torch.nn.Linear(taken, given).double()
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(matrix[:-1].T))
            layer.bias.copy_(torch.tensor(matrix[-1]))
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])

    def loss(data, chosen=slice(None)):
        inputs, labels = torch.tensor(data.inputs[chosen, :-1]), torch.tensor(data.labels[chosen])
        return torch.nn.functional.cross_entropy(model(inputs), labels)

    return model, loss


@pytest.mark.parametrize(("shape", "warmup"), RATES, ids=[" ".join(one) for one in RATES])
def test_what_is_shown_is_what_adam_and_its_average_do(shape, warmup):
    model, loss = network_of_torch()
    data, held_out = digits(), digits(held_out=True)
    rate = RATES[shape, warmup]
    optimizer = steprule.Adam(model.parameters(), lr=lambda step: 0.01 * rate(step), average=0.98)
    random, order, losses, averages = np.random.default_rng(0), [], [], []
    for step in range(401):
        with torch.no_grad():
            losses.append(loss(held_out).item())
            if step % 20 == 0:
                with optimizer.averaged() if step else torch.no_grad():
                    averages.append(loss(held_out).item())
        order = order if len(order) >= 16 else random.permutation(1347)
        chosen, order = order[:16], order[16:]
        optimizer.zero_grad()
        loss(data, chosen).backward()
        optimizer.step()
    steps = np.arange(0, 401, 20)
    chosen = (shape, warmup, 0.01, 0.98)
    for line, values in (("weights", np.array(losses)[steps]), ("average", averages)):
        chart, pixels = shown("schedules", 1, line, *chosen)
        assert np.abs(pixels - drawn(chart, steps, values)).max() < 0.2
    early = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 20, 24, 28, 32, 36, 40]
    chart, pixels = shown("schedules", 2, "without" if warmup == "none" else "warm-up", *chosen)
    assert np.abs(pixels - drawn(chart, early, np.array(losses)[early])).max() < 0.2
    chart, pixels = shown("schedules", 0, "", *chosen)
    assert np.abs(pixels - drawn(chart, np.arange(1, 401), [rate(t) for t in range(1, 401)])).max() < 0.2


def test_the_gradient_of_the_network_is_that_of_its_loss():
    random = np.random.default_rng(0)
    weights, along = random.standard_normal((2, 3, network.begin().size)) * 0.2
    data = digits(held_out=True)
    slope = (network.loss(weights + 1e-6 * along, data) - network.loss(weights - 1e-6 * along, data)) / 2e-6
    assert (network.gradient(weights, data) * along).sum(-1) == pytest.approx(slope, rel=1e-5)


def test_what_is_said_of_the_peak_of_003_holds_for_other_orders_of_the_batches(monkeypatch):
    def batches(count, seed=0):
        random = np.random.default_rng(seed)
        rows = [
            order[at : at + 16]
            for order in (random.permutation(count) for _ in range(5))
            for at in range(0, count - 15, 16)
        ]
        return np.array(rows[:400])  # fmt: skip

    assert (batches(1347) == schedules._batches(1347)).all()
    monkeypatch.setattr(schedules, "SETTINGS", [one for one in schedules.SETTINGS if one[2] == 0.03])
    for seed in range(4):
        monkeypatch.setattr(schedules, "_batches", lambda count, seed=seed: batches(count, seed))
        found = schedules._runs()
        ends = {key[:2]: run.weights[-1] for key, run in found.items()}
        constant = found["constant", "40 steps", 0.03]
        falling = [ends[shape, "40 steps"] for shape in ("linear", "cosine", "stable, then down")]
        assert max(falling) < constant.weights[-1]
        assert constant.averages[0.99][-1] < 0.7 * constant.weights[-1]
        assert ends["cosine", "40 steps"] < ends["cosine", "none"]


def test_rates_end_near_0_and_peak_where_the_warm_up_ends():
    for shape in ("linear", "cosine", "stable, then down"):
        rates = [schedules.learning_rate(step, shape, 40, 2.0) for step in range(1, 401)]
        assert max(rates) == 2.0 == rates[39]
        assert 0 < rates[-1] < 0.03
        assert all(one >= two for one, two in pairwise(rates[39:]))
