"""What is out of the ordinary on one process or on all, and must come to the right numbers or to an error on every process."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import steprule
from sharding.helpers import cut, same, tensors, whole

SHAPES = ((6, 4), (5,), (8, 3))
LATER = "Give them gradients of 0", "for parameter 1 of group 0"


def parameters(mesh: Any, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Any]:
    """The same whole tensors, or where there is a mesh DTensors."""
    return [torch.nn.Parameter(x if mesh is None else cut(x, mesh)) for x in tensors(shapes, 0, torch.float32)]


def give(params: Sequence[Any], step: int, mesh: Any, without: Sequence[int] = ()) -> None:
    """Gives gradients to all but some parameters."""
    every = [x if mesh is None else cut(x, mesh) for x in tensors([x.shape for x in params], 1 + step, torch.float32)]
    for number, (param, grad) in enumerate(zip(params, every, strict=True)):
        param.grad = None if number in without else grad


def alike(mesh: Any, steps: Callable[[list[Any], Any], Any], what: str, shapes: Any = SHAPES) -> None:
    """Whether steps of parts come to those of wholes, with the averages that there are."""
    found = []
    for where in (None, mesh):
        params = parameters(where, shapes)
        optimizer = steps(params, where)
        found.append([whole(x).clone() for x in params])
        names = [name for name in ("param_average", "exp_avg") if name in optimizer.state[params[0]]]
        found[-1] += [whole(optimizer.state[x][name]).clone() for x in params if optimizer.state[x] for name in names]
    for number, (one, other) in enumerate(zip(*found, strict=True)):
        same(one, other, f"{what}, {number}")


def refused(step: Callable[[], Any], kind: type[Exception], *words: str) -> None:
    """Whether this raises, on every rank and with these words."""
    try:
        step()
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"taken: {words}")


def missing(mesh: Any) -> None:
    """A gradient that one process lacks is an error on all, nothing hangs, and later steps go on."""
    rank = dist.get_rank()
    makes: dict[str, Callable[[Any], Any]] = {
        "sums": lambda params: steprule.LAMB(params),
        "clip": lambda params: steprule.AdamW(params, clip=1.0, average=0.9),
        "telemetry": lambda params: steprule.AdamW(params, telemetry=1, nonfinite="skip"),
        "rows and columns": lambda params: steprule.Adafactor(params),
    }
    for make in makes.values():
        params = parameters(mesh)
        optimizer = make(params)
        give(params, 0, mesh, (1,) if rank == 1 else ())
        refused(optimizer.step, RuntimeError, *LATER)
        for step in range(2):
            give(params, step, mesh)
            optimizer.step()
        for without, words in (((1,), LATER), (range(3), LATER[:1])):
            before = [x.detach().to_local().clone() for x in params]
            give(params, 2, mesh, without if rank == 1 else ())
            refused(optimizer.step, RuntimeError, *words)
            assert all(map(torch.equal, before, (x.detach().to_local() for x in params)))
            give(params, 3, mesh)
            optimizer.step()
        give(params, 4, mesh, (1,))  # on all
        optimizer.step()
    params = parameters(mesh)
    optimizer = steprule.AdamW(params)  # which adds nothing up, as torch's
    for step in range(3):
        give(params, step, mesh, (1,) if step and rank == 1 else ())
        optimizer.step()
    assert [float(optimizer.state[x]["step"]) for x in params] == [3.0, 1.0 if rank == 1 else 3.0, 3.0]


def missing_in_replicas(square: Any) -> None:
    """Gradients that all processes of one replica lack are an error in the other replica, too; one call tells, also of both dimensions."""
    counted, real = [0], dist.all_reduce

    def counting(*arguments: Any, **named: Any) -> Any:
        counted[0] += 1
        return real(*arguments, **named)

    makes: dict[str, Callable[[Any], Any]] = {
        "clip": lambda params: steprule.AdamW(params, clip=1.0),
        "sums": lambda params: steprule.LAMB(params),
        "matrices": lambda params: steprule.Muon(params),
    }
    ways = {
        "replicas": (Replicate(), Shard(0)),
        "replicas of replicas": (Shard(0), Replicate()),
        "parts of parts": (Shard(0), Shard(1)),
    }
    for (name, make), (way, placements) in product(makes.items(), ways.items()):
        if name == "matrices" and way == "parts of parts":
            continue
        every = tensors([(6, 4), (8, 3)], 0, torch.float32)
        params = [torch.nn.Parameter(cut(x, square, placements)) for x in every]
        optimizer = make(params)
        for step, lacks in enumerate((False, True, False, False)):
            mine = square.get_local_rank(placements.index(Replicate()) if Replicate() in placements else 0)
            for number, (param, x) in enumerate(zip(params, every, strict=True)):
                param.grad = None if lacks and number == 1 and mine == 1 else cut(x + step, square, placements)
            before = [x.to_local().detach().clone() for x in params]
            if lacks:
                refused(optimizer.step, RuntimeError, "for parameter 1 of group 0", LATER[0])
                assert all(map(torch.equal, before, (x.to_local() for x in params))), (name, way)
                continue
            counted[0], dist.all_reduce = 0, counting
            optimizer.step()
            dist.all_reduce = real
        assert counted[0] == 1, (name, way, counted)
        for param in params:
            found: list[Any] = [None] * 4
            place = [square.get_local_rank(dim) for dim, one in enumerate(placements) if one != Replicate()]
            dist.all_gather_object(found, (place, param.to_local().detach()))
            assert all(torch.equal(x, y) for one, x in found for other, y in found if one == other), (name, way)


def failing(mesh: Any) -> None:
    """Where one process cannot take a step, the others do not wait for it."""
    params = parameters(mesh)
    optimizer = steprule.AdamW(params, clip=1.0)
    for step in range(2):
        give(params, step, mesh)
        optimizer.step()
    kept = optimizer.state[params[0]]["exp_avg"]
    if dist.get_rank() == 1:
        optimizer.state[params[0]]["exp_avg"] = torch.zeros(3)
    give(params, 2, mesh)
    refused(
        optimizer.step, RuntimeError, "exp_avg" if dist.get_rank() == 1 else "another process cannot take this step"
    )
    optimizer.state[params[0]]["exp_avg"] = kept
    give(params, 2, mesh)
    optimizer.step()


def calls(mesh: Any) -> None:
    """A step calls torch.distributed once for all numbers of a level, also where gradients come and go."""
    for make, levels in (
        (lambda params: steprule.AdamW(params, clip=1.0, nonfinite="skip", average=0.9), 1),
        (lambda params: steprule.Adafactor(params), 2),  # sums of squares, and the RMS of the update
        (lambda params: steprule.SM3(params), 1),
    ):
        _calls(mesh, make, levels)


def _calls(mesh: Any, make: Callable[[Any], Any], levels: int) -> None:
    count, real = [0], dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        return real(*arguments, **named)

    params = parameters(mesh)
    optimizer = make(params)
    dist.all_reduce = counted
    try:
        seen = []
        for step in range(8):
            give(params, step, mesh, (1,) if step in (5, 6) else ())
            count[0] = 0
            optimizer.step()
            seen.append(count[0])
    finally:
        dist.all_reduce = real
    assert seen[2:5] == [levels] * 3, seen
    more = levels + 2  # whether others have changed too, whether all have the same, and the sums
    assert seen[5:] == [more, levels, more], seen


def one_rank_only(mesh: Any) -> None:
    """A part that lies by column on one rank is stepped by another engine there, and counted in the same order."""

    def steps(params: list[Any], where: Any) -> Any:
        if where is not None and dist.get_rank() == 0:
            by_row = params[0]._local_tensor
            params[0]._local_tensor = by_row.t().contiguous().t()
        optimizer = steprule.LAMB(params, clip=0.5, average=0.9)
        for step in range(3):
            give(params, step, where)
            optimizer.step()
        return optimizer

    alike(mesh, steps, "by column on one rank")


def come_and_go(mesh: Any) -> None:
    """Parameters without a gradient in the first step, or in any; the states of others stay."""

    def steps(params: list[Any], where: Any) -> Any:
        optimizer = steprule.AdamW(params, clip=0.5, average=0.9)
        for step, without in enumerate([(1,), (), (0,), (0, 1, 2), (2,), ()]):
            give(params, step, where, without)
            optimizer.step()
        return optimizer

    alike(mesh, steps, "come and go")


def twice(mesh: Any) -> None:
    """A parameter that is listed twice is stepped twice; where a step adds up over it, that is refused."""

    def listed(rule: str, params: list[Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(steprule, rule)([*params, params[0]], lr=0.1, clip=0.5)

    def steps(params: list[Any], where: Any) -> Any:
        optimizer = listed("AdamW", params)
        for step in range(3):
            give(params, step, where)
            optimizer.step()
        return optimizer

    alike(mesh, steps, "twice")
    params = parameters(mesh)
    optimizer = listed("LAMB", params)
    for step in range(2):
        give(params, step, mesh)
        before = [x.to_local().detach().clone() for x in params]
        refused(optimizer.step, RuntimeError, "parameter 3 of group 0 is a DTensor that is listed twice")
        assert all(torch.equal(x, y.to_local()) for x, y in zip(before, params, strict=True))
        assert not any(optimizer.state.values())


def small(mesh: Any) -> None:
    """Tensors of no dimension and of no element; what is one number for the whole is no DTensor."""

    def steps(params: list[Any], where: Any) -> Any:
        optimizer = steprule.LAMB(params, clip=0.5, average=0.9, telemetry=1, nonfinite="skip")
        for step in range(3):
            give(params, step, where)
            optimizer.step()
        assert all(type(state["step"]) is torch.Tensor for state in optimizer.state.values())
        return optimizer

    alike(mesh, steps, "small", ((), (1,), (0, 4), (3, 0), (2, 1)))


def moved(mesh: Any) -> None:
    """States of wholes are taken over by parts, and the reverse."""
    for first, second in ((None, mesh), (mesh, None)):
        params, others = parameters(first), parameters(second)
        optimizer, other = (steprule.AdamW(x, average=0.9) for x in (params, others))
        for step in range(3):
            give(params, step, first)
            optimizer.step()
        other.load_state_dict(optimizer.state_dict())
        with torch.no_grad():
            for mine, theirs in zip(params, others, strict=True):
                theirs.copy_(whole(mine) if second is None else cut(whole(mine), second))
        for one, own, where in ((optimizer, params, first), (other, others, second)):
            give(own, 3, where)
            one.step()
        for mine, theirs in zip(params, others, strict=True):
            same(whole(mine), whole(theirs), "moved", exact=True)
            same(whole(optimizer.state[mine]["exp_avg"]), whole(other.state[theirs]["exp_avg"]), "moved", exact=True)


def not_taken(mesh: Any) -> None:
    """What cannot be right is refused before anything has changed."""
    from torch.distributed._composable.replicate import replicate
    from torch.distributed.fsdp import fully_shard

    params = parameters(mesh)
    refused(lambda: steprule.AdamW(params, differentiable=True), ValueError, "differentiable", "DTensor")
    optimizer = steprule.LAMB(params)
    before = params[0].detach().to_local().clone()
    with torch.no_grad():
        for param in params:
            param.grad = cut(torch.ones(param.shape), mesh)
    refused(lambda: [setattr(params[0], "grad", torch.ones(6, 4)), optimizer.step()], RuntimeError, "DTensor")
    assert torch.equal(before, params[0].detach().to_local())

    def model() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

    ignoring, replicated = model(), model()
    fully_shard(ignoring, mesh=mesh, ignored_params={ignoring[1].weight})
    replicate(replicated)
    for one, number in ((ignoring, 2), (replicated, 0)):
        release = steprule.AdamW(one.parameters()).release_gradients
        refused(lambda release=release, one=one: release(one), ValueError, f"parameter {number} of group 0", "DTensor")  # type: ignore[misc]


def another_mesh(mesh: Any, square: Any) -> None:
    """A gradient over another mesh is no gradient of the part that is here."""
    params = parameters(mesh)
    optimizer = steprule.AdamW(params)
    give(params, 0, mesh)
    optimizer.step()
    before = params[2].detach().to_local().clone()
    give(params, 1, mesh)
    params[2].grad = cut(torch.ones(8, 3), square, [Shard(0), Replicate()])
    refused(optimizer.step, RuntimeError, "its gradient is cut over")
    assert torch.equal(before, params[2].detach().to_local())


def other_orders() -> None:
    """Parameters over meshes without names, in another order on some ranks: all say so, though each waits for others first."""
    rank = dist.get_rank()
    rows, columns = (
        next(mesh for mesh in meshes if mesh.get_coordinate() is not None)
        for meshes in [[DeviceMesh("cpu", ranks) for ranks in each] for each in (([0, 1], [2, 3]), ([0, 2], [1, 3]))]
    )
    params = [torch.nn.Parameter(cut(*case)) for case in zip(tensors(SHAPES[:2], 0, torch.float32), (rows, columns), strict=True)]  # fmt: skip
    for is_wrong in (True, False):
        optimizer = steprule.LAMB(params[::-1] if is_wrong and rank in (1, 2) else params)
        for param in params:
            param.grad = param.detach().clone()
        if is_wrong:
            refused(optimizer.step, RuntimeError, "parameters of different shapes")
        else:
            optimizer.step()


def refused_after_loading(mesh: Any) -> None:
    """A step that is refused for its gradients leaves loaded states as they are; and what holds between steps is not made anew."""
    first, grad = tensors([(6, 5)] * 2, 0, torch.float64)
    other = init_device_mesh("cpu", (1, mesh.size()))
    for begins in (False, True):
        params = [torch.nn.Parameter(distribute_tensor(first, mesh, [Shard(0)])) for _ in range(2)]
        optimizers = [steprule.AdamW(params, clip=1.0) for _ in range(2)]

        def step(optimizer: Any, params: Any = params) -> None:
            for param in params:
                param.grad = distribute_tensor(grad, mesh, [Shard(0)])
            optimizer.step()

        for _ in range(3):
            step(optimizers[0])
        if begins:
            step(optimizers[1])
        optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        params[0].grad = distribute_tensor(grad, other, [Replicate(), Shard(0)])
        refused(optimizers[1].step, RuntimeError, "its gradient is cut over")
        assert [float(optimizers[1].state[param]["step"]) for param in params] == [3.0, 3.0]
        step(optimizers[1])
        optimizers[1].zero_grad()
        assert optimizers[1]._core.plans.current is not None
        held = weakref.ref(params[1])
        optimizers[1].state.pop(params[1])
        optimizers[1].param_groups[0]["params"] = params[:1]
        del optimizers[0], params[1]
        optimizers[0].zero_grad()
        gc.collect()
        assert held() is None


def plain_is_not_finite(mesh: Any) -> None:
    """A gradient of a parameter that is no DTensor is not finite on one process: all refuse the step; on all, all skip it."""
    first, grad = tensors([(6, 5)] * 2, 0, torch.float64)
    params = [torch.nn.Parameter(distribute_tensor(first, mesh, [Shard(0)])), torch.nn.Parameter(first.clone())]
    optimizer = steprule.AdamW(params, nonfinite="skip")

    def step(value: float) -> None:
        params[0].grad, params[1].grad = distribute_tensor(grad, mesh, [Shard(0)]), grad.clone()
        params[1].grad[0, 0] = value
        optimizer.step()

    step(1.0)
    before = [whole(param).clone() for param in params]
    refused(lambda: step(math.nan if dist.get_rank() == 1 else 1.0), RuntimeError, "not all of them have a gradient")
    step(math.nan)
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(whole(param), one) for param, one in zip(params, before, strict=True))
    step(1.0)
    assert not torch.equal(params[1].detach(), before[1])
