"""Two processes that train together: what they end with is what one process ends with."""

from __future__ import annotations

import copy
import importlib

import torch

from steprule.check.checks import Make, check, each, grad


@check("distributed", "ddp", processes=2)
def steps_as_one_under_ddp(make: Make) -> None:
    """DistributedDataParallel: both processes have the parameters that one process has with the mean gradient."""
    alone, rank = copy.deepcopy(model := torch.nn.Linear(4, 3, bias=False)), torch.distributed.get_rank()
    both = torch.nn.parallel.DistributedDataParallel(model)
    one, other = make(both.parameters(), lr=0.01), make(alone.parameters(), lr=0.01)
    for k in range(3):
        (both(torch.eye(4)[2 * rank : 2 * rank + 2]).sin().sum() * (k + 1)).backward()
        (alone(torch.eye(4)).sin().sum() * (k + 1) / 2).backward()
        one.step()
        other.step()
    torch.distributed.broadcast(alone.weight.data, 0)
    assert torch.allclose(model.weight, alone.weight, 1e-4, 1e-5), "a process ends otherwise than the first one alone"


@check("distributed", "fsdp2", processes=2, cases=each(rows=[4, 5, 1]))
def steps_as_one_under_fsdp2(make: Make, rows: int) -> None:
    """fully_shard: shards of equal and unequal sizes, and empty ones, are stepped as the whole parameter."""
    p, model = torch.nn.Parameter(torch.ones(rows, 4)), torch.nn.Linear(4, rows, bias=False)
    mesh, _ = torch.distributed.device_mesh.init_device_mesh("cpu", (2,)), model.weight.data.fill_(1.0)
    importlib.import_module("torch.distributed.fsdp").fully_shard(model, mesh=mesh)
    one, other, w = make(model.parameters(), lr=0.01), make([p], lr=0.01), model.weight
    for k in range(3):
        p.grad = grad(p, k)
        w.grad = torch.distributed.tensor.distribute_tensor(p.grad, w.device_mesh, w.placements)  # type: ignore[attr-defined]
        one.step()
        other.step()
    whole = w.full_tensor()  # type: ignore[attr-defined]
    assert torch.allclose(whole, p, 1e-4, 1e-5), "shards end otherwise than the whole parameter"
