"""DistributedDataParallel around optimizers: what it and others do with communication hooks and sparse gradients is right or refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

import steprule
from sharding.breaking import refused
from sharding.helpers import same
from sharding.models import net, own_inputs

MAKES: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: steprule.SGD(params, lr=0.1, momentum=0.9),
    "services": lambda params: steprule.SGD(params, lr=0.1, average=0.9, nonfinite="skip"),
}


def weights(model: Any) -> torch.Tensor:
    """All of them."""
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def joined() -> None:
    """A process that has run out of inputs steps nothing while others do, and has their weights in the end; divided otherwise is refused."""
    for make, counts in product(MAKES.values(), ((2, 4), (3, 0))):
        found = []
        for release in (False, True):
            model = DistributedDataParallel(net())
            optimizer = make(model.parameters())
            if release:
                optimizer.release_gradients(model)
            with model.join():
                for step in range(counts[dist.get_rank()]):
                    model(own_inputs(step)).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
            found.append(weights(model))
        same(*found, f"join, {counts}", exact=True)
    model = DistributedDataParallel(net())
    optimizer = MAKES["SGD"](model.parameters())
    optimizer.release_gradients(model)
    before = weights(model)

    def divided() -> None:
        with model.join(divide_by_initial_world_size=False):
            for step in range(dist.get_rank()):  # the first process has no inputs
                model(own_inputs(step)).sum().backward()

    refused(divided, RuntimeError, "leave out divide_by_initial_world_size=False")
    same(before, weights(model), "join", exact=True)


def other_hooks() -> None:
    """PostLocalSGDOptimizer comes to what it does around torch.optim; release does not take a module that has a hook."""
    (subgroup, _), found = dist.new_subgroups(1), []
    for kind in (torch.optim.SGD, steprule.SGD):
        model = DistributedDataParallel(net())
        model.register_comm_hook(PostLocalSGDState(None, subgroup, 2), post_localSGD_hook)
        own = kind(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = PostLocalSGDOptimizer(own, PeriodicModelAverager(period=2, warmup_steps=2))
        for step in range(6):
            model(own_inputs(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(weights(model))
    same(*found, "PostLocalSGDOptimizer")
    released = steprule.SGD(model.parameters(), lr=0.1)
    released.release_gradients(DistributedDataParallel(model.module))
    for optimizer, module in ((own, model), (steprule.SGD(model.parameters(), lr=0.1), released._core.release._model)):
        refused(lambda own=optimizer, module=module: own.release_gradients(module), ValueError, "has one already")  # type: ignore[misc]
        model(own_inputs(7)).square().mean().backward()
        optimizer.step()  # as if it had not been called
        assert optimizer._core.release is None


def sparse() -> None:
    """Sparse gradients are averaged as dense ones are; they are not released."""
    makes: dict[str, Callable[[Any], Any]] = {
        "SGD": lambda params: steprule.SGD(params, lr=0.1),
        "Adagrad": lambda params: steprule.Adagrad(params, lr=0.1, clip=0.5),
        "SparseAdam": lambda params: steprule.SparseAdam(params, nonfinite="skip"),
    }
    for name, make in makes.items():
        found = []
        for ranks in (range(2), [dist.get_rank()]):
            torch.manual_seed(0)
            embedding = torch.nn.Embedding(20, 8, sparse=True)
            model = embedding if len(ranks) == 2 else DistributedDataParallel(embedding)
            optimizer = make(model.parameters())
            for step in range(3):
                rows = [torch.tensor([step + rank, 3]) for rank in ranks]
                (model(torch.cat(rows)).square().sum() / len(ranks)).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(weights(model))
        same(*found, f"sparse, {name}")
    refused(lambda: steprule.SGD(model.parameters(), lr=0.1).release_gradients(model), ValueError, "sparse=False")
