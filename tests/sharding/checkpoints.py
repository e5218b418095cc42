"""Sharded optimizers are saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import steprule
from sharding.breaking import refused
from sharding.helpers import FORMATS, ROWS, maker, same, tensors, train, whole
from steprule.services import Average, ClipQuantile


def saved(mesh: Any) -> None:
    """A distributed checkpoint keeps all that the next steps depend on."""
    import tempfile

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    cases: dict[str, Callable[[Any], Any]] = {
        "8bit": lambda params: steprule.AdamW(params, states="8bit", average=Average(0.9, warmup=True)),
        "numbers": lambda params: steprule.Prodigy(params),
        "schedule": lambda params: steprule.AdamW(params, lr=lambda step: 0.01 / step, clip=ClipQuantile(0.5)),
        "independent decay": lambda params: steprule.AdamW(params, decay="independent", weight_decay=0.1),
        "modes": lambda params: steprule.ScheduleFreeAdamW(params),
        "averages": lambda params: steprule.AdamW(params, average=0.9),
    }
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)

    def made(make: Callable[[Any], Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 48), torch.nn.Tanh(), torch.nn.Linear(48, 64))
        fully_shard(model, mesh=mesh)
        return model, make(model.parameters())

    def step(model: Any, optimizer: Any, number: int) -> None:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(8, 13)).square().mean().backward()
        optimizer.step()

    for (name, make), flat in product(cases.items(), (False, True)):
        options, place = (
            StateDictOptions(flatten_optimizer_state_dict=flat),
            f"{folder[0]}/{name} {flat}".replace(" ", "-"),
        )
        model, optimizer = made(make)
        for number in range(3):
            step(model, optimizer, number)
        if name == "averages":  # and the trained weights are among the states
            optimizer.swap_average()
        weights = [whole(param).clone() for param in model.parameters()]
        states = get_optimizer_state_dict(model, optimizer, options=options)
        dcp.save({"model": model.state_dict(), "optimizer": states}, checkpoint_id=place)
        for one, param in zip(weights, model.parameters(), strict=True):
            same(one, whole(param), f"{name}: asking for states moves weights", exact=True)
        again, resumed = made(make)
        saved_states = {
            "optimizer": get_optimizer_state_dict(again, resumed, options=options),
            "model": again.state_dict(),
        }
        dcp.load(saved_states, checkpoint_id=place)
        again.load_state_dict(saved_states["model"])
        set_optimizer_state_dict(again, resumed, saved_states["optimizer"], options=options)
        for one, param in zip(weights, again.parameters(), strict=True):
            same(one, whole(param), f"{name}: loaded", exact=True)
        if name == "averages":
            for swapped in (optimizer, resumed):
                swapped.swap_average()
            assert not any(map(torch.equal, weights, map(whole, again.parameters())))
        for number in range(3, 6):
            step(model, optimizer, number)
            step(again, resumed, number)
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            same(whole(one), whole(other), f"{name}, flat {flat}", exact=True)


def loaded(mesh: Any) -> None:
    """States in float32 are taken over into fewer bytes as those of a whole are."""
    for name, settings in FORMATS.items():
        found = []
        for cut in (lambda x: x, lambda x: distribute_tensor(x, mesh, [Shard(0)])):
            dtype = torch.bfloat16 if "weights" in settings else torch.float32
            first, params = train(maker("AdamW", settings), ROWS, cut, dtype)
            second = maker("AdamW", settings)([torch.nn.Parameter(param.detach().clone()) for param in params])
            second.load_state_dict(first.plain_state_dict())
            found.append(
                [whole(second.read(param, key)) for param in second.state for key in ("exp_avg", "exp_avg_sq")]
            )
        for one, other in zip(*found, strict=True):
            same(one, other, f"{name}: loaded", exact=True)


def recut(mesh: Any) -> None:
    """8-bit states of whole rows are taken over by parts of rows, whose group has other ones: with the values that they had."""
    dtype = torch.bfloat16
    start, *grads = (tensors([(6, 256)], seed, dtype)[0] for seed in range(4))

    def begun(take: Any, **settings: Any) -> tuple[Any, Any]:
        param = torch.nn.Parameter(take(start))
        states = {"states": "bfloat16"} if take is columns else {}
        return param, steprule.AdamW([{"params": [param], **states}], weights="24bit", **settings)

    def step(param: Any, optimizer: Any, take: Any, grad: torch.Tensor) -> None:
        param.grad = take(grad)
        optimizer.step()

    whole_rows, columns = (partial(distribute_tensor, device_mesh=mesh, placements=[Shard(dim)]) for dim in (0, 1))
    for take in (torch.clone, whole_rows):
        param, optimizer = begun(take, states="8bit")
        for grad in grads[:2]:
            step(param, optimizer, take, grad)
        found = []
        for other in (torch.clone, columns):
            ours, loaded = begun(other, states="bfloat16" if other is torch.clone else "8bit")
            loaded.load_state_dict(optimizer.state_dict())
            found.append(whole(loaded.read(ours, "exp_avg")))
            step(ours, loaded, other, grads[2])
            found += [whole(ours), whole(loaded.state[ours]["exp_avg_sq"])]
        for one, two in zip(found[:3], found[3:], strict=True):
            same(one, two, "recut", exact=True)


def together(mesh: Any) -> None:
    """Several optimizers as one, saved and loaded by torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    def made() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 48), torch.nn.Tanh(), torch.nn.Linear(48, 64))
        fully_shard(model, mesh=mesh)
        one, two, three, four = model.parameters()
        first = steprule.AdamW([one, three], states="8bit", clip=1.0)
        return model, steprule.Together([first, steprule.SGD([two, four], lr=0.1, momentum=0.9)])

    def step(model: Any, optimizer: Any, number: int) -> None:
        torch.manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(8, 13)).square().mean().backward()
        optimizer.step()

    model, optimizer = made()
    for number in range(3):
        step(model, optimizer, number)
    saved_states = get_optimizer_state_dict(model, optimizer)
    again, resumed = made()
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, resumed, saved_states)
    for number in range(3, 6):
        step(again, resumed, number)
        step(model, optimizer, number)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        same(whole(one), whole(other), "together", exact=True)


def gathered(mesh: Any) -> None:
    """States in 8 and 16 bits are gathered and broadcast, and go between parts and wholes, also as they once were saved."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    again = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    for settings in ({"states": "8bit"}, {"weights": "32bit", "states": "bfloat16"}):

        def made(is_cut: bool, settings: dict[str, Any] = settings) -> tuple[Any, Any]:
            torch.manual_seed(0)
            dtype = torch.bfloat16 if "weights" in settings else torch.float32
            model = torch.nn.Sequential(torch.nn.Linear(130, 50), torch.nn.Linear(50, 7)).to(dtype)
            return model, steprule.AdamW((fully_shard(model, mesh=mesh) if is_cut else model).parameters(), **settings)

        def step(model: Any, optimizer: Any) -> Any:
            every = list(model.parameters())
            for param, grad in zip(every, tensors([x.shape for x in every], 1, every[0].dtype), strict=True):
                is_cut = isinstance(param, DTensor)
                param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if is_cut else grad
            optimizer.step()
            return [{name: whole(x) for name, x in optimizer.state[param].items()} for param in every]

        (model, optimizer), (alone, by_itself) = made(True), made(False)
        step(model, optimizer)
        right = step(alone, by_itself)
        found = get_optimizer_state_dict(model, optimizer, options=full)
        if dist.get_rank() == 0:
            for own, (name, _) in zip(right, model.named_parameters(), strict=True):
                for key, value in own.items():
                    same(value, whole(found["state"][name][key]).to(value.dtype), f"gathered {key}", exact=True)
        broadcast = made(True)
        set_optimizer_state_dict(*broadcast, found, options=again)
        loaded = [broadcast]
        for (source, states), is_cut in product([(alone, by_itself), (model, optimizer)], (False, True)):
            loaded.append(made(is_cut))
            loaded[-1][1].load_state_dict(states.state_dict())
            old = {number: states.state[param] for number, param in enumerate(source.parameters())}  # with int16
            loaded.append(made(is_cut))
            loaded[-1][1].load_state_dict({**states.state_dict(), "state": old})
        for number, (other, resumed) in enumerate(loaded):
            for own, param in zip(right, other.parameters(), strict=True):
                for key, value in own.items():
                    same(value, whole(resumed.state[param][key]), f"{number}, {key}", exact=True)


def converted(mesh: Any) -> None:
    """A distributed checkpoint is loaded in the format in which it was saved, and changes formats and services by a state dict."""
    import tempfile

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)

    def made(settings: dict[str, Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = fully_shard(torch.nn.Linear(130, 50, bias=False).bfloat16(), mesh=mesh)
        return model, steprule.AdamW(model.parameters(), **settings)

    def step(model: Any, optimizer: Any) -> None:
        (grad,) = tensors([(50, 130)], 1, torch.bfloat16)
        model.weight.grad = distribute_tensor(grad, mesh, [Shard(0)])
        optimizer.step()

    def load(settings: dict[str, Any], place: str) -> tuple[Any, Any]:
        model, optimizer = made(settings)
        found = {"optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.load(found, checkpoint_id=place)
        set_optimizer_state_dict(model, optimizer, found["optimizer"])
        return model, optimizer

    formats: list[dict[str, Any]] = [
        {"weights": "24bit", "states": "8bit", "average": 0.5},
        {"weights": "32bit", "clip": 1.0},
        {},
    ]
    for number, (settings, others) in enumerate(product(formats, formats)):
        place = f"{folder[0]}/{number}"
        model, optimizer = made(settings)
        step(model, optimizer)
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=place)
        other, loaded = load(settings, place)
        other.load_state_dict(model.state_dict())
        ours, theirs = (steprule.AdamW(x.parameters(), **others) for x in (model, other))
        ours.load_state_dict(optimizer.state_dict())
        theirs.load_state_dict(loaded.state_dict())
        for _ in range(2):
            step(model, ours)
            step(other, theirs)
        for name in ("param", "exp_avg", "exp_avg_sq"):
            one, same_one = ours.read(model.weight, name), theirs.read(other.weight, name)
            same(whole(one), whole(same_one), f"{settings} as {others}: {name}", exact=True)
    low = {"weights": "24bit"}, {"weights": "32bit"}  # which torch would cast into each other
    for number, (settings, others) in enumerate((low, low[::-1])):
        model, optimizer = made(settings)
        step(model, optimizer)
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=f"{folder[0]}/low{number}")
        words = f"saved with weights={settings['weights']!r}"
        refused(lambda: load(others, f"{folder[0]}/low{number}"), ValueError, words)  # noqa: B023
