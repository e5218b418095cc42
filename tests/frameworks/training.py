"""A small model and its data, and what is seen of its training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

EPOCHS, BATCHES = 2, 3
RANK, WORLD = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
ROWS = 4 // WORLD  # of a batch, in each process
INPUTS = torch.randn(BATCHES * 4, 256, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS[:, :8].sum(1, keepdim=True) + 1
DATA = torch.utils.data.TensorDataset(INPUTS, TARGETS)


def loader() -> Any:
    """The batches of an epoch."""
    return torch.utils.data.DataLoader(DATA, batch_size=ROWS)


def divided() -> Any:
    """The batches of one of several processes, for frameworks that divide nothing, or shuffle."""
    rows = torch.utils.data.DistributedSampler(DATA, WORLD, RANK, shuffle=False)
    return torch.utils.data.DataLoader(DATA, ROWS, sampler=rows)


def net() -> nn.Module:
    """The same each time. Its rows are long enough for formats of 8 bits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 4), nn.Tanh(), nn.Linear(4, 1))


@dataclass
class Wish:
    """How to train."""

    path: Path  # of a folder
    epochs: int = EPOCHS
    resumes: bool = False
    releases: bool = False
    averages: bool = False
    poisons: bool = False
    """Whether the second backward pass of all gives NaN."""


class Seen:
    """What an optimizer was given, step by step, and where it began."""

    def __init__(self, keeps: bool = True) -> None:
        self.keeps = keeps
        self.weights: list[torch.Tensor] = []
        self.grads: list[list[torch.Tensor | None]] = []

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Before a step, whose closure may be what makes the gradients."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # the first is the optimizer
        if closure is None:
            self.note(optimizer)
            return None

        def noted() -> Any:
            loss = closure()
            self.note(optimizer)
            return loss

        return (args[0], noted), {}

    def note(self, optimizer: Any) -> None:
        """Keeps what is there; released gradients are gone."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if not self.weights:
            self.weights = [p.detach().clone() for p in params]
        self.grads.append([p.grad.detach().clone() if self.keeps and p.grad is not None else None for p in params])


@dataclass
class Trained:
    """What a user has in hand after training: `handle` is what the framework gives for the optimizer."""

    model: nn.Module
    handle: Any
    optimizer: Any
    seen: Seen


def begin(model: nn.Module, optimizer: Any, wish: Wish) -> Seen:
    """Looks at each step, and spoils a gradient if asked to."""
    seen = Seen(keeps=not wish.releases)
    if WORLD == 1:
        optimizer.register_step_pre_hook(seen)
    if wish.poisons:
        passes = []
        first = next(p for p in model.parameters() if p.requires_grad)
        first.register_hook(lambda grad: grad * float("nan") if passes.append(0) or len(passes) == 2 else grad)
    return seen


def by_hand(model: Any, optimizer: Any, wish: Wish) -> None:
    """A loop as everybody has it."""
    if wish.releases:
        optimizer.release_gradients(model)
    for _ in range(wish.epochs):
        for inputs, targets in loader():
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
