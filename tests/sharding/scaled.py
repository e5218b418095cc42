"""GradScaler around steps of parts: what one process finds in its part of a gradient decides for all, as it does for the whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist

import steprule
from sharding.helpers import cut, same, tensors, whole

SHAPES = ((6, 4), (5,), (8, 3))
BAD = 2
"""The step in which a gradient is not finite."""
MAKES: dict[str, Callable[[Any], Any]] = {
    "torch's scaler alone": lambda params: steprule.AdamW(params, lr=0.1),
    "sums": lambda params: steprule.LAMB(params, lr=0.1),
    "skip": lambda params: steprule.AdamW(params, lr=0.1, clip=0.5, nonfinite="skip", average=0.9),
    "clip": lambda params: steprule.LAMB(params, lr=0.1, clip=0.5, telemetry=1),
    "zero": lambda params: steprule.AdamW(params, lr=0.1, nonfinite="zero"),
}


def scaled(mesh: Any) -> None:
    """Weights, the scale and what was skipped are those of one process, and weights those of steps without a scaler."""
    for (name, make), bad in product(MAKES.items(), (0, 7)):
        plain = steps(name, make, None, bad, how="plain")
        for how in ("scaled", "unscaled before"):
            alone, ours = (steps(name, make, where, bad, how) for where in (None, mesh))
            for one, other in zip(alone, ours, strict=True):
                same(one, other, f"{name}, {how}, row {bad}")
            for one, other in zip(plain[: len(SHAPES)], ours, strict=False):
                same(one, other, f"{name}, {how}, row {bad}, beside plain steps")


def steps(name: str, make: Callable[[Any], Any], mesh: Any, bad: int, how: str) -> list[Any]:
    """Four steps, of wholes or of parts, and what they leave behind; the last gradient has an inf in this row once."""
    take: Callable[[torch.Tensor], Any] = torch.clone if mesh is None else partial(cut, mesh=mesh)
    params = [torch.nn.Parameter(take(x)) for x in tensors(SHAPES, 0, torch.float32)]
    optimizer, scaler = (
        make(params),
        torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2, enabled=how != "plain"),
    )
    scales = []
    for step in range(4):
        scaler.scale(torch.ones(()))  # which makes its scale
        grads = tensors(SHAPES, 1 + step, torch.float32)
        if step == BAD:
            grads[-1][bad, 0] = float("inf")
        for param, grad in zip(params, grads, strict=True):
            param.grad = take(grad * scaler.get_scale())
        if how == "unscaled before":
            scaler.unscale_(optimizer)
        if how != "plain" or step != BAD or name == "zero":
            scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        optimizer.zero_grad()
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, scales)
    assert every == [scales] * len(every), every
    taken = int(optimizer.state[params[0]]["step"])
    assert taken == (4 if name == "zero" else 3), f"{name}, {how}: {taken} steps were taken"
    return [*map(whole, params), torch.tensor(scales), optimizer.skipped_steps, optimizer.grad_norm]


def several_meshes(square: Any) -> None:
    """torch's scaler has processes agree over the mesh of the first gradient only; where services look at gradients, all do."""
    for unscales, made_finite in ((False, False), (True, False), (True, True)):
        meshes = square["dp"], square["tp"]
        params = [torch.nn.Parameter(cut(x, mesh)) for x, mesh in zip(tensors([(4, 4)] * 2, 0, torch.float32), meshes, strict=True)]  # fmt: skip
        optimizer, scaler = steprule.AdamW(params, nonfinite="skip"), torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(2):
            scaler.scale(torch.ones(()))
            grads = tensors([(4, 4)] * 2, 1 + step, torch.float32)
            if not step:
                grads[1][0, 0] = float("inf")
            for param, grad, mesh in zip(params, grads, meshes, strict=True):
                param.grad = cut(grad, mesh)
            if unscales:
                scaler.unscale_(optimizer)
            if made_finite:
                params[1].grad._local_tensor.nan_to_num_(posinf=1.0)
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == 4.0 and optimizer.skipped_steps == 1, (unscales, made_finite, step)
        assert all(float(optimizer.state[param]["step"]) == 1 for param in params)
