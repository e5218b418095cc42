"""Lessons whose curves are checked against training loops of torch's own."""

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import torch
from test_lessons import drawn, shown

from steprule import arrays


def digits_network():
    """The weights, mini-batches and held-out images of the lesson on scale, and the loss, written once more."""
    from steprule.lessons.digits import digits

    images, labels = map(torch.tensor, digits())
    chosen = np.random.default_rng(1).integers(0, 1000, (50, 64))
    random = np.random.default_rng(0)
    sizes = [(65, 128), (128, 64), (64, 32), (32, 10)]
    weights = [torch.tensor(random.normal(0, (2 / size[0]) ** 0.5, size), requires_grad=True) for size in sizes]

    def loss(images, labels):
        one, two, three, four = weights
        hidden = ((images @ one).clamp(min=0) @ two).clamp(min=0)
        shares = ((hidden @ three).clamp(min=0) @ four).softmax(1)
        return -(shares * labels).sum(1).log().mean()

    def batch_loss(step):
        batch = images[chosen[step]]
        if step == 30:
            batch = torch.cat([batch[:, :-1] * 6 + 5, batch[:, -1:]], 1)
        return loss(batch, labels[chosen[step]])

    return weights, batch_loss, lambda: loss(images[1000:], labels[1000:]).item()


@pytest.mark.parametrize(
    ("rule", "lr", "clip"), [("SGD", 0.03, "3"), ("SGD", 0.03, "off"), ("Adam", 0.001, "1")], ids=str
)
def test_scale_shows_what_torch_trains(rule, lr, clip):
    weights, batch_loss, held_out = digits_network()
    optimizer = getattr(torch.optim, rule)(weights, lr=lr)
    losses, used, ratios = [held_out()], [], []
    for step in range(50):
        before = [one.detach().clone() for one in weights]
        optimizer.zero_grad()
        batch_loss(step).backward()
        torch.nn.utils.clip_grad_norm_(weights, float("inf") if clip == "off" else float(clip))
        used.append(torch.cat([one.grad.flatten() for one in weights]).norm().item())
        optimizer.step()
        losses.append(held_out())
        ratios.append([((new - old).norm() / new.norm()).item() for new, old in zip(weights, before, strict=True)])
    steps, looks = np.arange(1, 51), [*range(0, 30, 2), *range(30, 35), *range(36, 51, 2)]
    chart, pixels = shown("scale", 3, "as chosen", rule, lr, clip)
    assert np.abs(pixels - drawn(chart, looks, np.array(losses)[looks])).max() < 0.2
    chart, pixels = shown("scale", 2, "after clipping", rule, lr, clip)
    assert np.abs(pixels - drawn(chart, steps, used)).max() < 0.2
    for layer in range(4):
        chart, pixels = shown("scale", 0, f"layer {layer + 1}", rule, lr, clip)
        assert np.abs(pixels - drawn(chart, steps, np.array(ratios)[:, layer])).max() < 0.2


@pytest.mark.parametrize(("rule", "lr"), [("Lion", 0.001), ("LAMB", 0.01)], ids=str)
def test_scale_shows_lion_and_lamb(rule, lr):
    weights, batch_loss, _ = digits_network()
    kept = [one.detach().numpy() for one in weights]  # the same memory
    optimizer, ratios, moved = getattr(arrays, rule)(kept, lr=lr), [], []
    for step in range(50):
        before = [one.copy() for one in kept]
        optimizer.step([one.numpy() for one in torch.autograd.grad(batch_loss(step), weights)])
        pairs = list(zip(kept, before, strict=True))
        ratios.append([np.linalg.norm(new - old) / np.linalg.norm(new) for new, old in pairs])
        moved.append(np.abs(kept[1] - before[1]))
    for layer in range(4):
        chart, pixels = shown("scale", 0, f"layer {layer + 1}", rule, lr, "off")
        assert np.abs(pixels - drawn(chart, np.arange(1, 51), np.array(ratios)[:, layer])).max() < 0.2
    counts, _ = np.histogram(moved[19], 10 ** np.arange(-8.125, 0.25, 0.25))
    chart, pixels = shown("scale", 1, "weights", rule, lr, "off")
    assert np.abs(pixels - drawn(chart, 10 ** np.arange(-8, 0.25, 0.25), counts / moved[19].size)).max() < 0.2


def test_scale_leaves_the_number_of_threads_as_it_was():
    from steprule.lessons import scale

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with scale.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
