"""What the scenarios of sharded steps share: the same tensors on every rank, steps of wholes and of parts, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

import steprule
from steprule.services import Average, ClipNorm, ClipQuantile, ClipValue

SHAPES = ((6, 5), (7,), (3, 2, 4), (1, 3))
HAS_FSDP = hasattr(torch.cpu.Stream, "record_event")
"""Whether fully_shard takes models on the CPU; that of torch 2.6 does not."""
ROWS = ((9, 256), (5, 64), (7,))
SPARSE = {"SparseAdam"}
SQUARED = ("SOAP", "Shampoo", "KLShampoo", "KLSOAP", "ASGO", "SPlus", "PSGDKron")
"""Rules with squares beside matrices."""
RULE_SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    **{name: {"lr": 0.05, "precondition_frequency": 3} for name in SQUARED},
}
Way = tuple[Any, Sequence[Any]]
"""A mesh and the placements on it."""

OPTIONS: dict[str, dict[str, Any]] = {
    "cautious": {"cautious": True},
    "cautious decay": {"cautious_decay": True, "weight_decay": 0.1},
    "lookahead": {"lookahead": 2},
    "independent decay": {"decay": "independent", "weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
}
SERVICES: dict[str, dict[str, Any]] = {
    "clip": {"clip": 0.5},
    "clip by the largest": {"clip": ClipNorm(0.05, norm_type=float("inf"))},
    "clip by the smallest": {"clip": ClipNorm(0.001, norm_type=-float("inf"))},
    "clip by value": {"clip": ClipValue(0.1)},
    "clip by quantile": {"clip": ClipQuantile(0.5)},
    "skip": {"nonfinite": "skip"},
    "zero": {"nonfinite": "zero"},
    "average": {"average": Average(0.9, warmup=True)},
    "telemetry": {"telemetry": 1},
    "all": {"clip": 0.5, "nonfinite": "skip", "average": 0.9, "telemetry": 2, "cautious": True},
}
FORMATS: dict[str, dict[str, Any]] = {
    "states bfloat16": {"states": "bfloat16"},
    "states 8bit": {"states": "8bit"},
    "weights 24bit": {"weights": "24bit", "states": "bfloat16"},
    "weights 24bit, states 8bit": {"weights": "24bit", "states": "8bit"},
    "weights 32bit, all": {"weights": "32bit", "states": "8bit", "clip": 0.5, "average": 0.9, "telemetry": 1},
}


def tensors(shapes: Sequence[tuple[int, ...]], seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def part_of(x: torch.Tensor, mesh: Any, placements: Sequence[Any]) -> torch.Tensor:
    """What is here of a tensor that every rank has."""
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            size = x.shape[placement.dim]
            length = -(-size // mesh.size(axis))
            start = min(mesh.get_coordinate()[axis] * length, size)
            x = x.narrow(placement.dim, start, min(length, size - start))
    return x


def cut(x: torch.Tensor, mesh: Any, placements: Sequence[Any] = (Shard(0),)) -> DTensor:
    """As `distribute_tensor`, of a tensor that every rank has: so none waits for another.

    A tensor that has not so many dimensions is cut along its first, and a number is not cut.
    """
    first = Shard(0) if x.dim() else Replicate()
    fitting = [first if isinstance(p, Shard) and p.dim >= x.dim() else p for p in placements]
    part = part_of(x, mesh, fitting).clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(part, mesh, fitting, run_check=False, shape=x.shape, stride=x.stride())


def train(
    make: Callable[[list[Any]], Any],
    shapes: Sequence[tuple[int, ...]],
    take: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
) -> tuple[Any, list[Any]]:
    """Some steps of an optimizer over whole tensors, or over what is taken of them; one gradient is NaN once."""
    params = [torch.nn.Parameter(take(x)) for x in tensors(shapes, 0, dtype)]
    optimizer = make(params)
    guards = optimizer._core.services is not None and optimizer._core.services.nonfinite is not None
    for step in range(4):
        for number, (param, grad) in enumerate(zip(params, tensors(shapes, 1 + step, dtype), strict=True)):
            if step == 2 and number == 0 and guards:
                grad[-1, 0] = float("nan")  # on one rank
            param.grad = take(grad)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, params


def whole(x: Any) -> Any:
    """All of a tensor; of integers as int32, since gloo does not take all kinds."""
    if not isinstance(x, torch.Tensor):
        return x
    if not isinstance(x, DTensor):
        return x.detach() if x.is_floating_point() else x.int()
    part = x.detach().to_local()
    part = part if part.is_floating_point() else part.int()
    if not x.numel():  # which torch 2.6 cannot pad
        return part.new_empty(x.shape)
    made = DTensor.from_local(part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())
    return made.full_tensor()


def same(one: Any, other: Any, what: str, exact: bool = False) -> None:
    """Whether two come to the same: sums over parts are rounded elsewhere, in the last of float64's digits."""
    if isinstance(one, torch.Tensor):
        limits = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 2e-6, "atol": 1e-7}
        torch.testing.assert_close(other, one, **limits, equal_nan=True, msg=lambda message: f"{what}: {message}")
    else:
        assert one == other, (what, one, other)


def compare(
    name: str,
    make: Callable[[list[Any]], Any],
    shapes: Any,
    mesh: Any,
    placements: Any,
    dtype: torch.dtype,
    exact: bool = False,
) -> None:
    """The same steps with whole tensors and with parts, and all that is left behind by them.

    Args:
        name: what errors call it.
        make: makes the optimizer.
        shapes: of the tensors.
        mesh, placements: of the parts.
        dtype: of the tensors.
        exact: whether no sum of several tensors' or processes' elements is a part of the step.
    """
    alone, ours = train(make, shapes, lambda x: x, dtype)
    together, theirs = train(make, shapes, lambda x: cut(x, mesh, placements), dtype)
    assert together._core.plans.current is not None, f"{name}: no plan is kept"
    for number, (mine, part) in enumerate(zip(ours, theirs, strict=True)):
        what = f"{name}, {placements}, tensor {number} of {tuple(mine.shape)}"
        every = whole(part).contiguous()
        same(whole(mine), every, what, exact)
        state, parts = alone.state[mine], together.state[part]
        assert list(state) == list(parts), (what, list(state), list(parts))
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert isinstance(parts[key], DTensor), (what, key, type(parts[key]))
            same(whole(value), whole(parts[key]), f"{what}, state {key}", exact or not value.is_floating_point())
        in_formats = any(isinstance(x, torch.Tensor) and x.dtype != dtype and x.dim() for x in state.values())
        for key in ("param", "param_average", *together.rule.tensor_states) if in_formats else ():
            if any(one.startswith(key) for one in ("param", *state)) and (key != "param_average" or key in state):
                same(alone.read(mine, key), whole(together.read(part, key)), f"{what}, read {key}", exact)
        everywhere = [torch.empty_like(every) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, every)
        assert all(torch.equal(x, everywhere[0]) for x in everywhere), f"{what}: ranks differ"
    if alone._core.services is not None:
        for key in ("skipped_steps", "clipped_steps"):
            same(getattr(alone, key), getattr(together, key), f"{name}: {key}")
        same(alone.grad_norm, together.grad_norm, f"{name}: grad_norm")
        if alone._core.services.average is not None:
            with alone.averaged(), together.averaged():
                for mine, part in zip(ours, theirs, strict=True):
                    same(whole(mine), whole(part), f"{name}: averaged", exact)
        if alone.telemetry is not None:
            for key, seen in alone.telemetry.latest["parameters"].items():
                for figure, value in seen.items():
                    same(torch.tensor(float(value)), torch.tensor(float(together.telemetry.latest["parameters"][key][figure])), f"{name}: {key} {figure}")  # fmt: skip


def maker(rule: str, settings: dict[str, Any]) -> Callable[[list[Any]], Any]:
    """What makes an optimizer."""
    return lambda params: getattr(steprule, rule)(params, **{**RULE_SETTINGS.get(rule, {}), **settings})
