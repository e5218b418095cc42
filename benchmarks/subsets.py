"""Measures steps of which the parameters change, and first steps; keeps subsets.json beside this file and prints its table.

    python benchmarks/subsets.py    # about 2 minutes

Half of 400 tensors have a gradient, another half in each step, as with experts and layers that are dropped. Contenders take
turns; a time is the least of many, in microseconds, since whatever else a machine does only adds to it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from figures import speed

import steprule

TENSORS, ELEMENTS, STEPS = 400, 256, 2 if record.QUICK else 300
MANY, TIMES = (100, 1) if record.QUICK else (10_000, 5)
CONTENDERS: dict[str, Callable[[Any], Any]] = {
    "AdamW": lambda params: steprule.AdamW(params),
    "AdamW, clip": lambda params: steprule.AdamW(params, clip=1.0),
    "AdamW, clip, average": lambda params: steprule.AdamW(params, clip=1.0, average=0.999),
    "torch fused": lambda params: torch.optim.AdamW(params, fused=True),
}


def parameters(count: int) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
    """Parameters with their gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(ELEMENTS, generator=generator)) for _ in range(count)]
    grads = [torch.randn(ELEMENTS, generator=generator) for _ in range(count)]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params, grads


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e6


def changing() -> dict[str, dict[str, float]]:
    """For each contender a step of all tensors, and one of another half each time."""
    made = {}
    for name, make in CONTENDERS.items():
        params, grads = parameters(TENSORS)
        made[name] = params, grads, make(params)
        made[name][-1].step()
    generator = torch.Generator().manual_seed(1)
    least: dict[str, dict[str, float]] = {name: {"all": float("inf"), "half": float("inf")} for name in made}
    for _ in range(STEPS):
        half = (torch.rand(TENSORS, generator=generator) < 0.5).tolist()
        for name, (params, grads, optimizer) in made.items():
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()  # which selects them again
            least[name]["all"] = min(least[name]["all"], timed(optimizer.step))
            for param, one in zip(params, half, strict=True):
                param.grad = param.grad if one else None
            least[name]["half"] = min(least[name]["half"], timed(optimizer.step))
    return least


def first() -> dict[str, dict[str, float]]:
    """For each contender the first step of many small tensors, and one whose plan is made anew; a tensor."""
    least: dict[str, dict[str, float]] = {name: {"first": float("inf"), "anew": float("inf")} for name in CONTENDERS}
    for _ in range(TIMES):
        for name, make in CONTENDERS.items():
            params, _ = parameters(MANY)
            optimizer = make(params)
            gc.collect()
            least[name]["first"] = min(least[name]["first"], timed(optimizer.step) / MANY)
            if isinstance(optimizer, steprule.Optimizer):
                optimizer._core.plans.forget()
            least[name]["anew"] = min(least[name]["anew"], timed(optimizer.step) / MANY)
    return least


def main() -> None:
    begun = record.head()
    steps, firsts = changing(), first()
    rows = [
        {
            "optimizer": name,
            "all_us": one["all"],
            "half_us": one["half"],
            "first_us": firsts[name]["first"],
            "anew_us": firsts[name]["anew"],
        }
        for name, one in steps.items()
    ]
    kept = record.write(
        "subsets",
        begun,
        rows,
        tensors=TENSORS,
        elements=ELEMENTS,
        steps=STEPS,
        many=MANY,
        threads=torch.get_num_threads(),
    )
    record.show([speed.subsets({"subsets": kept})])


if __name__ == "__main__":
    main()
