"""A task of your own for `steprule compare`: a small network that tells two spirals apart.

    steprule compare adam sgd:momentum=0.9 --task examples.task:spirals --lr-grid 0.01,0.03,0.1

The command calls `spirals` and trains the model that it describes with each optimizer, learning rate and seed. To compare
optimizers on a model of yours, copy this file and change the four functions inside. `help(steprule.compare.Task)` explains
each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from steprule.compare import Task


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on two spirals with noise, float32 (count, 2), and which spiral each is on, int64 (count,)."""
    generator = torch.Generator().manual_seed(seed)
    spiral = torch.randint(2, (count,), generator=generator)
    angle = 2 * math.pi * torch.rand(count, generator=generator).sqrt()
    x = torch.stack([angle.cos(), angle.sin()], 1) * (angle * (1 - 2 * spiral) / math.pi)[:, None]
    return x + 0.1 * torch.randn(count, 2, generator=generator), spiral


def spirals() -> Task:
    """Tell two spirals apart with a network of two hidden layers.

    This first paragraph is shown in the report.
    """
    inputs, labels = points(1000, seed=0)
    validation_inputs, validation_labels = points(500, seed=1)  # never trained on

    def make_model(seed: int) -> nn.Module:
        # torch is seeded with the seed before this is called.
        return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:  # at least as many batches as steps
            chosen = torch.randint(len(inputs), (64,))
            yield inputs[chosen], labels[chosen]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, label = batch
        return functional.cross_entropy(model(x), label)

    def evaluate(model: nn.Module) -> dict[str, float]:
        scores = model(validation_inputs)
        return {
            "loss": functional.cross_entropy(scores, validation_labels).item(),
            "accuracy": (scores.argmax(1) == validation_labels).double().mean().item(),
        }

    return Task(
        name="spirals",
        make_model=make_model,
        batches=batches,
        loss=loss,
        evaluate=evaluate,
        target=0.2,  # the validation loss that the optimizers race to
        steps=300,
        eval_every=10,
        optimizers=("sgd:lr=0.3,momentum=0.9", "adam:lr=0.01", "adamw:lr=0.01,weight_decay=0.1"),
    )
