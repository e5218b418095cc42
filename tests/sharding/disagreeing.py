"""Steps that processes would take differently: all refuse them, nothing has changed, nobody waits, and the next step is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import steprule
from sharding.breaking import LATER, give, parameters, refused
from sharding.helpers import cut, same, tensors, whole
from steprule import Rule, State
from steprule.pieces import Value, norm
from steprule.services import Average, ClipNorm


class Measured(Rule):
    """Some groups have a sum, and others none."""

    decay = "own"

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1, measured: bool = False) -> Value:
        return param - lr * (grad / norm(grad) if measured else grad)


class Numbered(Rule):
    """The same, with a number that needs no sum."""

    decay, mu = "own", State("scalar", begins=1.0)

    @staticmethod
    def update(param: Value, grad: Value, mu: Value, *, lr: float = 0.1, measured: bool = False) -> tuple[Value, ...]:
        mu = 0.9 * mu
        return param - lr * mu * (grad / norm(grad) if measured else grad), mu


def in_groups(rule: type[Rule]) -> Callable[[Any], Any]:
    return lambda params: steprule.Optimizer.of(rule)(
        [{"params": [param], "measured": number == 1} for number, param in enumerate(params)]
    )


MAKES: dict[str, Callable[[Any], Any]] = {
    "sums of each tensor": lambda params: steprule.LAMB(params),
    "sums of all tensors": lambda params: steprule.Prodigy(params),
    "an average": lambda params: steprule.LAMB(params, average=Average(0.5)),
    "telemetry": lambda params: steprule.AdamW(params, telemetry=1),
    "telemetry and sums": lambda params: steprule.LAMB(params, telemetry=1),
    "sums in one group": in_groups(Measured),
    "numbers in all groups, and sums in one": in_groups(Numbered),
    "elements taken as 0": lambda params: steprule.AdamW(params, nonfinite="zero"),
}
FAILED = "another process cannot take this step"


def all_of(optimizer: Any) -> list[Any]:
    """What a step changes here."""
    states = [optimizer.state[x] for group in optimizer.param_groups for x in group["params"] if x in optimizer.state]
    params = [x for group in optimizer.param_groups for x in group["params"]]
    found = [
        x.to_local() if isinstance(x, DTensor) else x for x in (*params, *(x for one in states for x in one.values()))
    ]
    services = optimizer._core.services
    counts = [services.ledger.steps, services.ledger.averaged, services.ledger.clipped] if services is not None else []
    return [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in found] + counts


def unchanged(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def refused_whole(optimizer: Any, what: str, *words: str) -> None:
    """Whether a step is refused and leaves no trace."""
    before = all_of(optimizer)
    refused(optimizer.step, RuntimeError, *words)
    assert unchanged(before, all_of(optimizer)), what


def nothing_is_counted(mesh: Any) -> None:
    """Steps, numbers and counts are those of before, where the comparison comes with sums of the formula or after the step."""
    rank = dist.get_rank()
    for name, make in MAKES.items():
        for without in ((1,), (0, 1, 2)):
            params = parameters(mesh)
            optimizer = make(params)
            give(params, 0, mesh, without if rank == 1 else ())
            refused_whole(optimizer, f"{name}, the first", LATER[0])
            for step in range(2):
                give(params, step, mesh)
                optimizer.step()
            give(params, 2, mesh, without if rank == 1 else ())
            refused_whole(optimizer, name, LATER[0])
            give(params, 3, mesh)
            optimizer.step()
            assert {float(optimizer.state[x]["step"]) for x in params} == {3.0}, name
            whole_params, alone = parameters(None), []
            alone = make(whole_params)
            for step in (0, 1, 3):
                give(whole_params, step, None)
                alone.step()
            for mine, part in zip(whole_params, params, strict=True):
                same(whole(mine), whole(part), name)


def errors_say_what_differs(mesh: Any) -> None:
    """Other services, or another number of parameters, are not taken for another process's error."""
    rank = dist.get_rank()
    params = parameters(mesh)
    other = steprule.AdamW(params, clip=ClipNorm(1.0, norm_type=float("inf") if rank else 2.0))
    give(params, 0, mesh)
    refused_whole(other, "services", "have optimizers with different services")
    params, more = parameters(mesh), parameters(mesh)
    optimizer = steprule.AdamW(params, clip=1.0)
    for late in (False, True):
        if late and rank:
            optimizer.add_param_group({"params": more})
        give([*params, *more], 0, mesh)
        if late:
            refused_whole(
                optimizer, "parameters", "some processes have 3 parameters in this optimizer, and some have 6"
            )
        else:
            optimizer.step()


def one_fails(mesh: Any) -> None:
    """What is found on one process only, before its first step or by a function of the step, is told to the others."""
    rank = dist.get_rank()

    def spoil_setting(optimizer: Any, params: Any) -> None:
        optimizer.param_groups[0]["lr"] = -1.0

    def spoil_gradient(optimizer: Any, params: Any) -> None:
        params[0].grad = torch.ones(6, 4)

    for number, spoil in enumerate((spoil_setting, spoil_gradient)):
        for late in (False, True):
            params = parameters(mesh)
            optimizer = steprule.LAMB(params, lr=0.1)
            for step in range(2 * late):
                give(params, step, mesh)
                optimizer.step()
            give(params, 2, mesh)
            if rank == 1:
                spoil(optimizer, params)
            before = all_of(optimizer)
            words = [FAILED] if rank == 0 else []
            refused(optimizer.step, ValueError if rank and not number else RuntimeError, *words)
            assert unchanged(before, all_of(optimizer))
            optimizer.param_groups[0]["lr"] = 0.1
            give(params, 2, mesh)
            optimizer.step()

    broken = [rank == 1]

    def rate(step: int) -> float:
        if step == 2 and broken[0]:
            raise ZeroDivisionError("no rate")
        return 0.1

    params = parameters(mesh)
    optimizer = steprule.AdamW(params, lr=rate, clip=1.0)
    give(params, 0, mesh)
    optimizer.step()
    give(params, 1, mesh)
    refused(optimizer.step, ZeroDivisionError if rank else RuntimeError, "no rate" if rank else FAILED)
    broken[0] = False
    optimizer.step()
    assert float(optimizer.state[params[0]]["step"]) == 2.0


def several_fail(mesh: Any) -> None:
    """What one of several optimizers refuses on one process is told by the first for which others wait."""
    rank = dist.get_rank()
    makes: list[Callable[[Any], Any]] = [
        lambda params: steprule.AdamW(params, nonfinite="raise"),
        lambda params: steprule.AdamW(params),
    ]
    for make in makes:
        first, second = parameters(mesh), parameters(mesh)
        both = steprule.Together([steprule.AdamW(first, clip=1.0), steprule.Together([make(second)])])
        for step in range(2):
            give(first, step, mesh)
            give(second, step, mesh)
            both.step()
        before = [all_of(both.optimizers[0]), all_of(both.optimizers[1].optimizers[0])]  # type: ignore[attr-defined]
        if rank == 1 and make is makes[0]:
            second[0].grad._local_tensor.fill_(float("nan"))
        elif rank == 1:
            second[0].grad = torch.ones(6, 4)
        words = ("not finite" if make is makes[0] else "its gradient is no DTensor") if rank else FAILED
        refused(both.step, RuntimeError, words)
        after = [all_of(both.optimizers[0]), all_of(both.optimizers[1].optimizers[0])]  # type: ignore[attr-defined]
        assert all(map(unchanged, before, after))
        give(second, 2, mesh)
        both.step()


def several_disagree(mesh: Any) -> None:
    """A gradient that one process lacks in the second of several optimizers is found before the first has stepped."""
    makes: dict[str, Callable[[Any], Any]] = {
        "clip": lambda params: steprule.AdamW(params, clip=1.0),
        "sums": lambda params: steprule.LAMB(params),
        "matrices": lambda params: steprule.Muon(params),
    }
    for name, make in makes.items():
        for first in (lambda params: steprule.AdamW(params), lambda params: torch.optim.SGD(params, lr=0.1)):
            params, others = parameters(mesh), parameters(mesh)[:: 2 if name == "matrices" else 1]
            both = steprule.Together([first(params), make(others)])
            for step in range(3):
                give(params, step, mesh)
                give(others, step, mesh, (1,) if dist.get_rank() == 1 else ())
                before = [whole(x).clone() for x in (*params, *others)]
                refused(both.step, RuntimeError, *LATER)
                assert all(map(torch.equal, before, map(whole, (*params, *others)))), name
                give(others, step, mesh)
                both.step()
                assert not any(map(torch.equal, before, map(whole, (*params, *others)))), name


def idle(mesh: Any) -> None:
    """A process without gradients counts a step that nobody compares, so that all record the same ones."""
    params = parameters(mesh)
    optimizer = steprule.AdamW(params, telemetry=2)
    for step in range(4):
        give(params, step, mesh, (0, 1, 2) if dist.get_rank() == 1 and step in (0, 2) else ())
        optimizer.step()
    assert [record["step"] for record in optimizer.telemetry.records] == [2, 4]


def asked_for_states(mesh: Any) -> None:
    """Gradients of 0 are a request for states only where those of all processes are 0."""
    for has_some in (False, True):
        params = parameters(mesh)
        optimizer = steprule.LAMB(params, lr=0.0)
        for param in params:
            param.grad = torch.zeros_like(param)
        if has_some and dist.get_rank() == 0:
            params[0].grad._local_tensor.fill_(1.0)
        optimizer.step(closure=None)
        assert {float(optimizer.state[x]["step"]) for x in params} == {float(has_some)}


def unreduced_gradients(mesh: Any) -> None:
    """Gradients that are sums over processes are added up once in a step, also where one process makes its plan anew."""
    rank, world = dist.get_rank(), dist.get_world_size()
    start = tensors([(6, 4), (8,)], 0, torch.float32)
    grads = [[tensors([(6, 4), (8,)], 1 + 10 * step + one, torch.float32) for one in range(world)] for step in range(5)]
    results = []
    for where in (None, mesh):
        first = distribute_tensor(start[0], mesh, [Replicate()]) if where is not None else start[0].clone()
        second = distribute_tensor(start[1], mesh, [Shard(0)]) if where is not None else start[1].clone()
        params = [torch.nn.Parameter(first), torch.nn.Parameter(second)]
        optimizer = steprule.AdamW(params, clip=1.0, average=0.9)
        for step, every in enumerate(grads):
            if where is None:
                for number, param in enumerate(params):
                    param.grad = torch.stack([one[number] for one in every]).sum(0)
            else:
                for number, param in enumerate(params):
                    param.grad = DTensor.from_local(every[rank][number].clone(), mesh, [Partial()])
                if step == 2 and rank == 1:
                    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"].clone()
                if step == 3:
                    with patch.object(DTensor, "redistribute", side_effect=AssertionError("others are waited for")):
                        optimizer.zero_grad(set_to_none=False)
                    assert all(part.here.grad is None for part in optimizer._core.shards._parts.values())
                    for number, param in enumerate(params):
                        param.grad._local_tensor.copy_(every[rank][number])
            optimizer.step()
        results.append([whole(x).clone() for x in params])
    for one, other in zip(*results, strict=True):
        same(one, other, "gradients that are sums")


def extremes(mesh: Any) -> None:
    """Norms whose squares are no float64 are compared as others are, however parameters are divided among kernels."""
    params = [torch.nn.Parameter(cut(torch.full((4,), 1.0, dtype=torch.float64), mesh)) for _ in range(2)]
    if dist.get_rank() == 0:
        params[0]._local_tensor = torch.ones(4, dtype=torch.float64)[::2]  # which no kernel takes
    optimizer = steprule.SGD(params, lr=1e-160, clip=1e200, nonfinite="skip")
    for _ in range(2):
        for param in params:
            param.grad = cut(torch.full((4,), 6e153, dtype=torch.float64), mesh)
        optimizer.step()
    assert optimizer.skipped_steps == 0
