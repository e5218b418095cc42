"""Steps of parts come to those of the wholes: every rule, option, service and format, however tensors are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import steprule
from sharding.breaking import refused
from sharding.helpers import (
    FORMATS,
    OPTIONS,
    ROWS,
    RULE_SETTINGS,
    SERVICES,
    SHAPES,
    SPARSE,
    Way,
    compare,
    cut,
    maker,
    same,
    tensors,
    whole,
)  # fmt: skip
from steprule.rules import RULES
from steprule.trace.tracing import program_of

SIDES = ("Adafactor", "CAME", "SM3", "AdamMini", "Mano", "NorMuon", "MuonEq")
"""Rules with numbers of rows or columns."""


def rules(ways: Sequence[Way], elementwise: bool = True) -> None:
    """Every rule is right or refused; those that look at each element by itself once, since any placement is the same to them.

    Args:
        ways: how tensors are cut.
        elementwise: whether those are among them that look at each element by itself.
    """
    assert len(RULES) > 40
    for rule in RULES.values():
        name = rule.__name__
        if name in SPARSE:
            continue
        program = program_of(rule, {**rule.hyperparameters, **RULE_SETTINGS.get(name, {})})
        adds_up = program.sums or program.sees_matrix
        for mesh, placements in ways if adds_up else ways[:1] if elementwise else ():
            cuts = [place for place in placements if isinstance(place, Shard)]
            if name == "Dion2" or (program.matrices and len(cuts) > 1):
                words = "compares rows or columns" if name == "Dion2" and len(cuts) == 1 else "looks at whole"
                params = [torch.nn.Parameter(distribute_tensor(torch.ones(6, 5), mesh, placements))]
                refused(partial(maker(name, {}), params), ValueError, f"{name} {words}", "is a DTensor")
            elif program.sees_matrix:
                # Products of parts add up in another order: in float64 that is out of sight.
                vectors = SHAPES[1:2] if program.takes_vectors else ()
                compare(name, maker(name, {}), (*SHAPES[::3], *vectors), mesh, placements, torch.float64)
            else:
                compare(name, maker(name, {}), SHAPES, mesh, placements, torch.float32)


def options(ways: Sequence[Way]) -> None:
    """Options around a rule, and services."""
    for (name, settings), (mesh, placements) in product({**OPTIONS, **SERVICES}.items(), ways):
        compare(name, maker("AdamW", settings), SHAPES, mesh, placements, torch.float32)


def sides(ways: Sequence[Way]) -> None:
    """Services around rules that have numbers for rows and columns, and an element that is NaN in a largest one."""
    for name, (mesh, placements) in product(("Adafactor", "NorMuon", "SM3"), ways):
        shapes = (*SHAPES[::3], *(SHAPES[1:2] if name != "NorMuon" else ()))
        compare(f"{name}, all", maker(name, SERVICES["all"]), shapes, mesh, placements, torch.float64)
    for name, (mesh, placements) in product(SIDES, ways):  # nothing is here but on one process
        compare(f"{name}, alone", maker(name, {}), ((1, 3),), mesh, placements, torch.float64)
    start, grad = tensors([(6, 5), (6, 5)], 0, torch.float64)
    grad[0, 0], grad[3, 1] = float("nan"), float("inf")
    for mesh, placements in ways:
        found = []
        for take in (lambda x: x, lambda x: cut(x, mesh, placements)):  # noqa: B023
            param = torch.nn.Parameter(take(start.clone()))
            optimizer = steprule.SM3([param])
            param.grad = take(grad)
            optimizer.step()
            found.append([whole(x) for x in (param, *optimizer.state[param].values())])
        for one, other in zip(*found, strict=True):
            same(one, other, "SM3, NaN")


def stacks(mesh: Any) -> None:
    """Rows and columns of tensors of three dimensions and more: right where they are cut along the first, or refused in words."""
    for name, shape, dim in product(SIDES, ((4, 6, 5), (1, 3, 2, 4)), range(3)):
        if dim == 0 and name not in ("Adafactor", "CAME"):
            compare(f"{name} of {shape}", maker(name, {}), (shape,), mesh, [Shard(0)], torch.float64)
            continue
        if dim == 0:
            flat = partial(_flattened, maker(name, {}))
            compare(f"{name} of {shape}, flat", flat, (shape,), mesh, [Shard(0)], torch.float64)
        param = torch.nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [Shard(dim)]))
        what = "beside a stack of matrices" if name in ("Adafactor", "CAME") else "Cut it so, as fully_shard() does"
        make = partial(maker(name, {}), [param])
        refused(make, ValueError, f"{name} looks at rows and columns", what)


def _flattened(make: Callable[[Any], Any], params: list[Any]) -> Any:
    """An optimizer that sees each of them as one matrix."""
    return make([{"params": params, "view": "flatten"}])


def torchs_states(mesh: Any) -> None:
    """What is saved for torch.optim's Adafactor, as that has it: also of a vector of one element, which torch does not reshape."""
    for shape in ((1,), (7,)):
        (start,) = tensors([shape], 0, torch.float32)
        for kind in (steprule.Adafactor, torch.optim.Adafactor):
            param = torch.nn.Parameter(start.clone())
            param.grad = start.clone()
            right = kind([param])
            right.step()
            ours = torch.nn.Parameter(cut(start, mesh))
            ours.grad = cut(start, mesh)
            optimizer = steprule.Adafactor([ours])
            optimizer.step()
            saved = optimizer.state_dict()
            same(
                right.state_dict()["state"][0]["variance"], whole(saved["state"][0]["variance"]), f"variance of {shape}"
            )
            again = steprule.Adafactor([torch.nn.Parameter(cut(start, mesh))])
            again.load_state_dict(saved)
            for name, value in saved["state"][0].items():
                if name != "variance":
                    same(whole(value), whole(again.state_dict()["state"][0][name]), f"{name} of {shape}", exact=True)


def formats(ways: Sequence[Way]) -> None:
    """States and weights in fewer bytes: parts have the values of the whole."""
    for (name, settings), (mesh, placements) in product(FORMATS.items(), ways):
        dtype = torch.bfloat16 if "weights" in settings else torch.float32
        compare(name, maker("AdamW", settings), ROWS, mesh, placements, dtype, exact="clip" not in settings)
    narrow = init_device_mesh("cpu", (dist.get_world_size(), 1))  # along whose second dimension nothing is cut
    compare(
        "a process along rows",
        maker("AdamW", {"states": "8bit"}),
        ROWS,
        narrow,
        [Shard(0), Shard(1)],
        torch.float32,
        exact=True,
    )


def splits(mesh: Any) -> None:
    """However a matrix is cut, also unevenly and into nothing, the step is that of the whole."""
    for rows, columns in product((1, 3, 8, 13), (1, 7, 33)):
        for placement in (Shard(0), Shard(1), Replicate()):
            compare(
                "LAMB",
                maker("LAMB", {"clip": 0.5, "cautious": True}),
                ((rows, columns),),
                mesh,
                [placement],
                torch.float32,
            )


def meshes(square: Any) -> None:
    """Parameters that look alike, and of which other processes have parts: along the other dimension of a mesh, or none."""
    ways: list[list[Way]] = [
        [(square, [Replicate(), Shard(0)]), (square, [Shard(0), Replicate()])],
        [(square["tp"], [Shard(0)]), (square["dp"], [Shard(0)])],
        [(square["tp"], [Replicate()]), (square["tp"], [Shard(0)])],
    ]
    settings = {"Muon": {}, "Adafactor": {"clip": 0.5}, "LAMB": {"clip": 0.5, "cautious": True}}
    for (rule, given), cuts, shape in product(settings.items(), ways, ((4, 4), (1, 3))):
        found = []
        for is_cut in (False, True):
            takes = [partial(cut, mesh=mesh, placements=places) if is_cut else torch.clone for mesh, places in cuts]
            every = [tensors([shape] * 2, seed, torch.float64) for seed in range(3)]
            params = [torch.nn.Parameter(take(x)) for take, x in zip(takes, every[0], strict=True)]
            optimizer = maker(rule, given)(params)
            for grads in every[1:]:
                for param, take, grad in zip(params, takes, grads, strict=True):
                    param.grad = take(grad)
                optimizer.step()
            found.append([whole(param) for param in params])
        for number, (one, other) in enumerate(zip(*found, strict=True)):
            same(one, other, f"{rule}, {cuts[number]}, {shape}")


def exchanged(mesh: Any) -> None:
    """Parameters that become DTensors after the optimizer was made are looked at again."""
    (start, grad) = tensors([(6, 5), (6, 5)], 0, torch.float32)
    results = []
    for is_cut in (False, True):
        plain = torch.nn.Parameter(start.clone())
        optimizer = steprule.LAMB([plain], clip=0.5)
        param = torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)])) if is_cut else plain
        optimizer.param_groups[0]["params"] = [param]
        for _ in range(3):
            param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if is_cut else grad.clone()
            optimizer.step()
        results.append(whole(param))
    same(*results, "exchanged")


def cut_otherwise(mesh: Any) -> None:
    """Gradients that are cut along another dimension than their parameters are brought to where these are, laid out as they are."""
    for rule in ("Muon", "Adafactor", "SOAP", "LAMB"):
        found = []
        for is_cut in (False, True):
            first, *grads = tensors([(6, 5)] * 4, 0, torch.float64)
            param = torch.nn.Parameter(distribute_tensor(first, mesh, [Shard(0)]) if is_cut else first)
            optimizer = maker(rule, {})([param])
            for grad in grads:
                param.grad = distribute_tensor(grad, mesh, [Shard(1)]) if is_cut else grad
                optimizer.step()
            found.append(whole(param))
        same(*found, f"{rule}, cut otherwise")


def released(mesh: Any) -> None:
    """Under FSDP2, backward steps what it has reduced: the numbers are those of steps after it, and of one process with all inputs.

    Gradients of micro-batches wait as parts in accumulate(), and as wholes where FSDP2 does not reduce them.
    """
    from torch.distributed.fsdp import fully_shard

    def inputs(number: int, rank: int) -> torch.Tensor:
        return torch.randn(8, 13, generator=torch.Generator().manual_seed(10 * number + rank), dtype=torch.float64)

    def run(is_cut: bool, release: bool, waiting: str = "") -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 5)).double()
        for layer in (model[0], model[2], model) if is_cut else ():
            fully_shard(layer, mesh=mesh)
        optimizer = steprule.LAMB(model.parameters(), cautious=True, average=0.9, telemetry=1, nonfinite="zero")
        if release:
            optimizer.release_gradients(model)

        def backward(number: int) -> None:
            mine = [dist.get_rank()] if is_cut else range(mesh.size())
            batch = torch.cat([inputs(number, rank) for rank in mine])
            (model(batch).square().sum() / len(mine)).backward()

        for step in range(4):
            with optimizer.accumulate() if release and waiting == "parts" else nullcontext():
                if waiting == "wholes" and is_cut:
                    model.set_requires_gradient_sync(False)
                if waiting:
                    backward(2 * step)
                if waiting == "wholes" and is_cut:
                    model.set_requires_gradient_sync(True)
            backward(2 * step + 1)
            assert release == all(param.grad is None for param in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        with optimizer.averaged():
            found = [whole(param).clone() for param in model.parameters()]
        record = optimizer.telemetry.latest["total"]
        every = [record] * mesh.size()
        dist.all_gather_object(every, record)
        assert all(str(one) == str(record) for one in every), every
        return [*found, *(whole(param).clone() for param in model.parameters())]

    for waiting in ("", "parts", "wholes"):
        alone, after, inside = (run(*how, waiting) for how in ((False, False), (True, False), (True, True)))
        for one, other in zip(after, inside, strict=True):
            same(one, other, f"released, {waiting}", exact=True)
        for one, other in zip(alone, inside, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-13)  # some thousands of roundings
