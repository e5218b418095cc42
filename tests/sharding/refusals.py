"""What is refused, is before anything has changed and on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import Shard, distribute_tensor

import steprule
from sharding.helpers import tensors


def refusals(mesh: Any) -> None:
    """What is refused, is before anything has changed and on every rank."""
    from steprule.services import ClipAdaptive

    def refused(
        make: Callable[[list[Any]], Any], placement: Any, *words: str, dtype: torch.dtype = torch.float32
    ) -> None:
        (whole_of_it,) = tensors([(8, 64)], 0, dtype)
        param = torch.nn.Parameter(distribute_tensor(whole_of_it, mesh, [placement]))
        param.grad = param.detach().clone()
        before = param.detach().to_local().clone()
        try:
            make([param]).step()
        except ValueError as error:
            assert all(word in str(error) for word in ("DTensor", "parameter 0 of group 0", *words)), error
        else:
            raise AssertionError(f"taken: {words}")
        assert torch.equal(before, param.detach().to_local())

    refused(lambda p: steprule.AdamW(p, states="8bit"), Shard(1), "rows are cut", 'states="bfloat16"')
    for grads in ("24bit", "32bit", *["float32"] * hasattr(torch.Tensor, "grad_dtype")):
        refused(
            lambda p, grads=grads: steprule.AdamW(p, grads=grads), Shard(0), f"grads={grads!r}", dtype=torch.bfloat16
        )
    refused(lambda p: steprule.AdamW(p, clip=ClipAdaptive(0.1)), Shard(0), "rows", "clip=1.0")

    def switched(params: list[Any]) -> Any:  # as accelerate does
        optimizer = steprule.AdamW([torch.nn.Parameter(torch.zeros(8, 64))], clip=ClipAdaptive(0.1))
        optimizer.param_groups[0]["params"] = params
        return optimizer

    refused(switched, Shard(0), "rows")


def places(square: Any) -> None:
    """Where elements are in the whole must be known by one stride for weights that are rounded at random."""
    (whole_of_it,) = tensors([(4, 6, 8)], 0, torch.bfloat16)
    param = torch.nn.Parameter(distribute_tensor(whole_of_it, square, [Shard(1), Shard(2)]))
    try:
        steprule.AdamW([param], weights="stochastic")
    except ValueError as error:
        assert all(word in str(error) for word in ("DTensor", "parameter 0 of group 0", "stochastic")), error
    else:
        raise AssertionError("taken")
