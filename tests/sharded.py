"""What one of several processes does for tests/test_sharded.py: `python sharded.py CASES MEETING RANK WORLD`.

Each process makes the same whole tensors and steps them by itself; then it steps its parts of the same tensors together with
the others. Both must come to the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import steprule
from steprule.registry import RULES
from steprule.services import Average, ClipQuantile, ClipValue

SHAPES = ((6, 5), (7,), (3, 2, 4), (1, 3))
ROWS = ((9, 256), (5, 64), (7,))
SPARSE = {"SparseAdam"}
RULE_SETTINGS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Muon": None}

RULES_ALONE: dict[str, dict[str, Any]] = {name: {} for name in RULES if name not in SPARSE}
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
    "clip by the largest": {"clip": steprule.services.ClipNorm(0.05, norm_type=float("inf"))},
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


def train(
    make: Callable[[list[Any]], Any],
    shapes: Sequence[tuple[int, ...]],
    cut: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
) -> tuple[Any, list[Any]]:
    """Some steps of an optimizer over whole tensors, or over what cut makes of them; one gradient is NaN once."""
    params = [torch.nn.Parameter(cut(x)) for x in tensors(shapes, 0, dtype)]
    optimizer = make(params)
    guards = optimizer._core.services is not None and optimizer._core.services.nonfinite is not None
    for step in range(4):
        for number, (param, grad) in enumerate(zip(params, tensors(shapes, 1 + step, dtype), strict=True)):
            if step == 2 and number == 0 and guards:
                grad[-1, 0] = float("nan")  # on one rank
            param.grad = cut(grad)
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
    name: str, make: Callable[[list[Any]], Any], shapes: Any, mesh: Any, placements: Any, dtype: torch.dtype
) -> None:
    """The same steps with whole tensors and with parts, and all that is left behind by them."""
    alone, ours = train(make, shapes, lambda x: x, dtype)

    def cut(x: torch.Tensor) -> torch.Tensor:
        fitting = [Shard(0) if isinstance(p, Shard) and p.dim >= x.dim() else p for p in placements]
        return distribute_tensor(x, mesh, fitting)

    together, theirs = train(make, shapes, cut, dtype)
    assert together._core.plans.current is not None, f"{name}: no plan is kept"
    for number, (mine, part) in enumerate(zip(ours, theirs, strict=True)):
        what = f"{name}, {placements}, tensor {number} of {tuple(mine.shape)}"
        same(whole(mine), whole(part), what)
        state, parts = alone.state[mine], together.state[part]
        assert list(state) == list(parts), (what, list(state), list(parts))
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert isinstance(parts[key], DTensor), (what, key, type(parts[key]))
            same(whole(value), whole(parts[key]), f"{what}, state {key}", exact=not value.is_floating_point())
        everywhere = [torch.empty_like(whole(part)) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, whole(part).contiguous())
        assert all(torch.equal(x, everywhere[0]) for x in everywhere), f"{what}: ranks differ"
    if alone._core.services is not None:
        for key in ("skipped_steps", "clipped_steps"):
            same(getattr(alone, key), getattr(together, key), f"{name}: {key}")
        same(alone.grad_norm, together.grad_norm, f"{name}: grad_norm")
        if alone.telemetry is not None:
            for key, seen in alone.telemetry.latest["parameters"].items():
                for figure, value in seen.items():
                    same(torch.tensor(float(value)), torch.tensor(float(together.telemetry.latest["parameters"][key][figure])), f"{name}: {key} {figure}")  # fmt: skip


def maker(rule: str, settings: dict[str, Any]) -> Callable[[list[Any]], Any]:
    return lambda params: getattr(steprule, rule)(params, **{**RULE_SETTINGS.get(rule, {}), **settings})


def rules_and_services(meshes: Sequence[tuple[Any, Sequence[Any]]]) -> None:
    """Every rule, option and service."""
    cases = {name: maker(name, {}) for name in RULES_ALONE}
    cases |= {name: maker("AdamW", settings) for name, settings in {**OPTIONS, **SERVICES}.items()}
    for (name, make), (mesh, placements) in product(cases.items(), meshes):
        compare(name, make, SHAPES, mesh, placements, torch.float32)


def formats(meshes: Sequence[tuple[Any, Sequence[Any]]]) -> None:
    """States and weights in fewer bytes: parts have the values of the whole."""
    for (name, settings), (mesh, placements) in product(FORMATS.items(), meshes):
        dtype = torch.bfloat16 if "weights" in settings else torch.float32
        compare(name, maker("AdamW", settings), ROWS, mesh, placements, dtype)


def main() -> None:
    cases, meeting, rank, world = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    flat = init_device_mesh("cpu", (world,))
    if world == 2:
        rules_and_services([(flat, [Shard(0)]), (flat, [Shard(1)])])
        formats([(flat, [Shard(0)])])
    else:
        square = init_device_mesh("cpu", (2, 2))
        rules_and_services([(flat, [Shard(0)]), (square, [Replicate(), Shard(0)]), (square, [Shard(0), Shard(1)])])
        formats([(flat, [Shard(0)]), (square, [Replicate(), Shard(0)])])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
