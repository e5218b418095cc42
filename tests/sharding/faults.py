"""Faults of one process after the first call of a step: those that wait in the next one are told, and all raise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

import steprule
import steprule.engine.run
from sharding.breaking import give, parameters
from steprule.engine.eager import EagerStep
from steprule.engine.own import OwnNumbers, Planned
from steprule.services.step import StepServices
from steprule.services.work import CpuWork, PlanWork
from steprule.step.loose import Loose
from steprule.step.resting import RestingAverages
from steprule.tensors.exchange import SharedRooms

UNCHANGED, CHANGED = "no parameter has changed here", "parameters have changed here"
Place = tuple[Any, str, Callable[..., bool]]


def at_level(level: int) -> Callable[..., bool]:
    """Whether a method is called for this level."""
    return lambda work, now, *others: now == level


def always(*args: Any) -> bool:
    return True


SUMS: dict[str, tuple[dict[str, Any], Place, str]] = {
    "a sum": ({"clip": 1.0}, (Planned, "run", at_level(1)), UNCHANGED),
    "a number before sums": ({"clip": 1.0}, (Planned, "put", at_level(0)), UNCHANGED),
    "a number after sums": ({"telemetry": 1}, (Planned, "put", at_level(1)), CHANGED),
    "what clips": ({"clip": 1.0}, (StepServices, "multiply", always), UNCHANGED),
    "the first step": ({"clip": 1.0}, (Loose, "prepare", always), UNCHANGED),
    "a sum without a kernel": ({"clip": 1.0}, (EagerStep, "sums", at_level(1)), UNCHANGED),
    "a step that is recorded": ({"telemetry": 1}, (CpuWork, "step", always), CHANGED),
    "a step with elements as 0": ({"nonfinite": "zero"}, (CpuWork, "step", always), CHANGED),
    "a record": ({"telemetry": 1}, (CpuWork, "tallies", always), CHANGED),
    "averages at rest": ({"telemetry": 1, "average": 0.9}, (RestingAverages, "move", always), CHANGED),
}
"""Services, where rank 1 fails, and what the others say of their parameters."""
PRODUCTS: dict[str, Place] = {
    "before the exchange": (Planned, "put", at_level(0)),
    "the pass of the exchange": (Planned, "run", at_level(1)),
    "the exchange": (SharedRooms, "_own_rooms", always),
}


def fails(place: Place, make: Callable[[], Callable[[], Any]], changed: str) -> None:
    """Whether a fault of rank 1 in a step is its own error, and another one everywhere else.

    Args:
        place: where: a class or a module, its method, and what says by the arguments whether it fails.
        make: makes an optimizer, and returns its step.
        changed: what the others say of their parameters.
    """
    kind, name, when = place
    real, armed = getattr(kind, name), [False]

    def broken(*args: Any) -> Any:
        if armed[0] and dist.get_rank() == 1 and when(*args):
            raise ArithmeticError("injected")
        return real(*args)

    with patch.object(kind, name, broken):  # before it is bound
        step = make()
        armed[0] = True
        try:
            step()
        except ArithmeticError as error:
            assert dist.get_rank() == 1 and "injected" in str(error)
        except RuntimeError as error:
            text = str(error)
            assert dist.get_rank() != 1 and "another process failed in the middle" in text and changed in text, text
        else:
            raise AssertionError(f"nothing is said of {name}")
        finally:
            armed[0] = False


def by_column(params: Sequence[Any]) -> None:
    """No kernel of rank 1 takes the first parameter."""
    if dist.get_rank() == 1:
        params[0]._local_tensor = params[0]._local_tensor.t().contiguous().t()


def sums(mesh: Any) -> None:
    """Between calls that add up; where nothing has changed, the next step is taken."""
    for name, (services, place, changed) in SUMS.items():
        params = parameters(mesh)
        if place[0] in (Loose, EagerStep):
            by_column(params)
        optimizer = steprule.LAMB(params, lr=0.1, **services)
        count = 0 if place[0] in (Loose, EagerStep) else 2
        before: list[torch.Tensor] = []

        def make(name: str = name, count: int = count, params: Any = params, optimizer: Any = optimizer, before: Any = before) -> Any:  # fmt: skip
            for step in range(count + 1):
                give(params, step, mesh, (1,) if name == "averages at rest" and step == count else ())
                if step < count:
                    optimizer.step()
            before += [x.to_local().detach().clone() for x in params]
            return optimizer.step

        fails(place, make, changed)
        if changed == UNCHANGED:
            assert all(torch.equal(x, y.to_local()) for x, y in zip(before, params, strict=True)), name
            give(params, 2, mesh)
            optimizer.step()
            assert len({float(state["step"]) for state in optimizer.state.values()}) == 1, name
    params = parameters(mesh)
    optimizer = steprule.LAMB(params, nonfinite="skip")

    def unfinite() -> Any:
        give(params, 0, mesh)
        optimizer.step()
        params[0].grad._local_tensor.fill_(float("nan"))
        return optimizer.step

    fails((PlanWork, "largest", always), unfinite, UNCHANGED)
    give(params, 1, mesh)
    optimizer.step()
    assert optimizer.skipped_steps == 0


def sides(run: Callable[[], Callable[[], Any]]) -> None:
    """Between calls that add up rows and columns, of which one follows from another; each run as for `products`."""
    for number in range(2):
        calls = count()
        fails((OwnNumbers, "_follow", lambda *args, n=number, calls=calls: next(calls) == n), run, UNCHANGED)


def products(run: Callable[[], Callable[[], Any]]) -> None:
    """Around the exchange of parts of matrices; each run makes an optimizer that has stepped, and returns its step."""
    for place in PRODUCTS.values():
        fails(place, run, UNCHANGED)


def spread(make: Callable[..., Callable[[], Any]]) -> None:
    """Between calls of a process group; `make` is given services, and returns an optimizer's step."""
    for services, place, changed in (
        ({"clip": 1.0}, (Planned, "run", at_level(1)), UNCHANGED),
        ({"clip": 1.0}, (steprule.engine.run, "totals_of", lambda works, sums: any(sums)), UNCHANGED),
        ({"telemetry": 1}, (Planned, "put", at_level(1)), CHANGED),
        ({"telemetry": 1}, (CpuWork, "step", always), CHANGED),
        ({"clip": 1.0, "telemetry": 1}, (CpuWork, "tallies", always), CHANGED),
    ):
        fails(place, partial(make, **services), changed)
