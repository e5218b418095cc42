"""Weights that are rounded at random: the number of an element is drawn by its place in the whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import steprule
from sharding.helpers import Way, compare, maker, same, tensors, whole
from steprule.formats import Numbering
from steprule.tensors.numbering import numbering_of

SHAPES = ((9, 64), (33, 7), (1, 3), (13,), (3, 4, 5), (2, 300, 130))
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"states": "bfloat16", "average": 0.9},
    "clip": {"nonfinite": "zero", "telemetry": 2},
}


def stochastic(ways: Sequence[Way]) -> None:
    """To the last bit, whatever the placement, the engine and the format of states."""
    for (name, settings), (mesh, placements) in product(SETTINGS.items(), ways):
        make = maker("AdamW", {**settings, "weights": "stochastic", "lr": 1e-3})
        compare(f"stochastic, {name}", make, SHAPES, mesh, placements, torch.bfloat16, exact=True)
    mesh, placements = ways[0]
    make = maker("SGD", {"weights": "stochastic"})
    compare("float16", make, SHAPES, mesh, placements, torch.float16, exact=True)
    rows = [place for place in placements if not isinstance(place, Shard) or place.dim == 0]
    if len(rows) == len(placements):
        make = maker("AdamW", {"weights": "stochastic", "states": "8bit"})
        compare("8bit", make, SHAPES, mesh, placements, torch.bfloat16, exact=True)


def resting(mesh: Any) -> None:
    """Averages of what has no gradient are rounded at random too; so is what the eager fallback steps."""
    found = []
    for cut in (lambda x: x, lambda x: distribute_tensor(x, mesh, [Shard(1)])):
        values = tensors([(6, 40), (12, 8), (5, 9)], 0, torch.bfloat16)
        values[1] = values[1].t()  # whose parts have gaps, or lie by column
        params = [torch.nn.Parameter(cut(x)) for x in values]
        optimizer = steprule.AdamW(params, weights="stochastic", average=0.5, lr=1e-2)
        for step in range(5):
            for number, (param, grad) in enumerate(zip(params, tensors([x.shape for x in values], step, torch.bfloat16), strict=True)):  # fmt: skip
                param.grad = None if (step + number) % 3 == 0 and step else cut(grad)
            optimizer.step()
        found.append([whole(x) for param in params for x in (param, optimizer.state[param]["param_average"])])
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        same(one, other, f"resting, {number}", exact=True)


def numbers(mesh: Any, square: Any) -> None:
    """Where each element of a part is, against a tensor that holds the answer."""
    strided = torch.distributed.tensor.placement_types._StridedShard
    cases = [(mesh, [Shard(dim)]) for dim in range(3)]
    if square is not None:
        cases += [(square, [one, two]) for one, two in product((Replicate(), Shard(0), Shard(1)), repeat=2)]
        cases += [(square, [Shard(1), Shard(2)]), (square, [strided(0, split_factor=2), Shard(0)])]
        cases += [(square, [Shard(2), Shard(0)]), (square, [strided(1, split_factor=2), Shard(1)])]
    for (where, placements), shape in product(cases, [(12, 8, 6), (5, 3, 7), (1, 4, 2), (3, 1, 1)]):
        is_strided = any(isinstance(place, strided) for place in placements)
        if is_strided and shape != (12, 8, 6):
            continue  # which torch cannot distribute
        count = shape[0] * shape[1] * shape[2]
        made = distribute_tensor(torch.arange(count).reshape(shape), where, placements)
        here, numbering = made.to_local().flatten(), numbering_of(made)
        if numbering is None:
            assert placements == [Shard(1), Shard(2)], placements
            continue
        assert isinstance(numbering, Numbering)
        first, run, stride = numbering
        place = torch.arange(len(here))
        assert torch.equal(here, first + place // run * stride + place % run), (placements, shape, numbering)


def behind_tensor_parallelism(square: Any) -> None:
    """FSDP2 cuts what tensor parallelism has cut: places are known all the same."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    results: list[list[torch.Tensor]] = []
    for is_cut in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 8), torch.nn.LayerNorm(8)).bfloat16()
        if is_cut:
            parallelize_module(model, square["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
            fully_shard(model, mesh=square["dp"])
        params: list[Any] = list(model.parameters())
        optimizer = steprule.AdamW(params, weights="stochastic", lr=1e-2)
        for step in range(3):
            for param, grad in zip(params, tensors([x.shape for x in params], step, torch.bfloat16), strict=True):
                param.grad = distribute_tensor(grad, param.device_mesh, param.placements) if is_cut else grad
            optimizer.step()
        results.append([whole(param) for param in params])
    for one, other in zip(*results, strict=True):
        same(one, other, "FSDP2 and tensor parallelism", exact=True)
