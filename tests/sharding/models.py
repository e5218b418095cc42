"""Models of FSDP and of DistributedDataParallel around an optimizer: what it writes, they compute with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import steprule
from sharding.breaking import refused
from sharding.helpers import same, whole

MAKES: dict[str, Callable[[Any], Any]] = {
    "average": lambda params: steprule.AdamW(params, lr=0.1, average=0.5),
    "Schedule-Free": lambda params: steprule.ScheduleFreeAdamW(params, lr=0.1),
}


LOOK = 3


def net() -> Any:
    """The same on every rank."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def keeping(mesh: Any) -> Any:
    """One whose modules all keep whole copies after a forward pass."""
    model = net()
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh, reshard_after_forward=False)
    return model


def copies(mesh: Any) -> None:
    """A model that keeps whole copies of weights computes with what is written in parts, and trains on from there."""
    where = torch.device("cpu")
    models: dict[str, Callable[[], Any]] = {
        "FSDP2": lambda: fully_shard(net(), mesh=mesh),
        "FSDP2 that keeps copies": lambda: keeping(mesh),
        "FSDP1": lambda: FullyShardedDataParallel(net(), use_orig_params=True, device_id=where),
        "FSDP1, flat": lambda: FullyShardedDataParallel(net(), device_id=where),
    }
    for rule, make in MAKES.items():
        alone = seen(net(), make)
        for name, model in models.items():
            found = seen(model(), make)
            expected = alone if len(found) == len(alone) else [*alone[:LOOK], *alone[LOOK + 1 :]]
            for number, (one, other) in enumerate(zip(expected, found, strict=True)):
                same(one, other, f"{name}, {rule}, {number}")


def swapped(mesh: Any) -> None:
    """Modules exchange what DTensors consist of where they go to another place, as from the meta device: the optimizer goes on."""
    makes: dict[str, Callable[[Any], Any]] = {**MAKES, "sums": lambda params: steprule.LAMB(params, cautious=True)}
    starts = [param.detach() for param in net().parameters()]

    def filled(model: Any) -> None:
        model.to_empty(device="cpu")
        with torch.no_grad():
            for param, start in zip(model.parameters(), starts, strict=True):
                param.copy_(distribute_tensor(start, param.device_mesh, param.placements))

    expected: dict[str, Any] = {}
    for (name, make), how in product(makes.items(), ("", "meta", "between", "released")):
        model: Any = net()
        if how == "meta":
            model = model.to("meta")
        fully_shard(model, mesh=mesh)
        optimizer = make(model.parameters())
        if how == "released":
            optimizer.release_gradients(model)
        if how in ("meta", "released"):
            filled(model)
        for step in range(4):
            model(own_inputs(step)).square().sum().backward()
            if how == "released" and step:  # in the first, hooks are found to be gone
                assert all(param.grad is None for param in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            if how == "between":
                model._apply(torch.clone)
        found = [whole(param) for param in model.parameters()]
        for one, other in zip(expected.setdefault(name, found), found, strict=True):
            same(one, other, f"{name}, {how}", exact=True)


def seen(model: Any, make: Callable[[Any], Any]) -> list[torch.Tensor]:
    """What a model makes of the same inputs before, between and after its steps, each time without gradients; the one numbered
    `LOOK` comes between backward and a step."""
    optimizer, results = make(model.parameters()), []
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))

    def look() -> None:
        with torch.no_grad():
            results.append(model(x).clone())

    for step in range(4):
        model(x).square().sum().backward()
        if step == 2 and not isinstance(model, FullyShardedDataParallel):  # which nothing finds in every step
            look()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2:
            look()
        if isinstance(optimizer, steprule.ScheduleFreeAdamW):
            optimizer.eval()
            look()
            optimizer.train()
        elif step < 2:
            with optimizer.averaged():
                look()
        else:
            optimizer.swap_average()
            look()
            optimizer.swap_average()
    look()
    return results


def micro_batches() -> None:
    """Where the forward pass of a micro-batch is on the other side of accumulate() than its backward pass, release steps as step() does."""
    for how in ("forward outside", "forward outside of no_sync", "backward outside"):
        same(*(accumulated(how, release) for release in (False, True)), how, exact=True)
    refused(lambda: accumulated("both outside", True), RuntimeError, "second backward pass before step()")


def accumulated(how: str, release: bool) -> torch.Tensor:
    """The weights after three steps of two micro-batches each."""
    model = DistributedDataParallel(net(), bucket_cap_mb=1e-5)
    optimizer = steprule.SGD(model.parameters(), lr=0.05, momentum=0.9)
    within: Any = model.no_sync
    if release:
        optimizer.release_gradients(model)
        within = model.no_sync if "no_sync" in how else optimizer.accumulate
    for step in range(3):
        with within() if how == "backward outside" else nullcontext():
            loss = model(own_inputs(2 * step)).square().mean()
        with within() if "forward outside" in how else nullcontext():
            loss.backward()
        model(own_inputs(2 * step + 1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def own_inputs(number: int) -> torch.Tensor:
    """Others on every rank."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * number + dist.get_rank()))


def made_before(mesh: Any) -> None:
    """An optimizer whose parameters are no longer the model's says so, and one that has no gradients yet does not."""
    where = torch.device("cpu")
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    ways: dict[str, Callable[[Any], Any]] = {
        "FSDP2": lambda model: fully_shard(model, mesh=mesh),
        "tensor parallelism": lambda model: parallelize_module(model, mesh, plan),
        "FSDP1, flat": lambda model: FullyShardedDataParallel(model, device_id=where),
    }
    others = steprule.AdamW([torch.nn.Parameter(torch.ones(8, 6)) for _ in range(2)])
    for way in ways.values():
        model = net()
        optimizer = steprule.AdamW(model.parameters(), clip=1.0)
        model = way(model)
        model(torch.ones(4, 6)).sum().backward()
        for _ in range(2):
            refused(optimizer.step, RuntimeError, "Make the optimizer afterwards")
        others.step()


def assigned(mesh: Any) -> None:
    """load_state_dict(assign=True) puts other parameters in the place of a model's: an optimizer that has none of its own left says so."""
    for name, make in {**MAKES, "released": steprule.AdamW, "torch": torch.optim.AdamW}.items():
        model: Any = fully_shard(net(), mesh=mesh)
        optimizer = make(model.parameters())
        if name == "released":
            optimizer.release_gradients(model)
        for step in range(3):
            if step == 1:
                model.load_state_dict({key: x.clone() for key, x in model.state_dict().items()}, assign=True)
            model(own_inputs(step)).square().sum().backward()
            if not step or name == "torch":
                optimizer.step()
            else:
                refused(optimizer.step, RuntimeError, "load_state_dict(assign=True)", "Make the optimizer afterwards")
            optimizer.zero_grad()
        again = make(model.parameters())
        again.load_state_dict(optimizer.state_dict())
        model(own_inputs(3)).square().sum().backward()
        again.step()
        assert all(float(again.state[param]["step"]) == 2 for param in model.parameters()), name
