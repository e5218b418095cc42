"""Optimizers that are not the same on all processes: all raise before anything has changed, nobody waits, and the next step is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard
from torch.optim.optimizer import register_optimizer_step_pre_hook

import steprule
from sharding.breaking import LATER, give, parameters, refused
from sharding.disagreeing import FAILED, all_of, unchanged
from sharding.helpers import cut, tensors
from steprule.services import Average, ClipNorm

Make = Callable[[list[Any], bool], Any]


def with_settings(rule: str, one: dict[str, Any], other: dict[str, Any], **both: Any) -> Make:
    return lambda params, is_other: getattr(steprule, rule)(params, **both, **(other if is_other else one))


def with_rules(one: str, other: str, **both: Any) -> Make:
    return lambda params, is_other: getattr(steprule, other if is_other else one)(params, **both)


def with_params(change: Callable[[list[Any]], Any], rule: str = "LAMB") -> Make:
    return lambda params, is_other: getattr(steprule, rule)(change(params) if is_other else params)


MATRICES = ((6, 4), (8, 3))
INF = float("inf")
SERVICES, RULES = (
    "have optimizers with different services (here ",
    "have optimizers with different rules or options (here ",
)
PARAMETERS = "parameters of different shapes, dtypes, names or placements"
OTHERS: dict[str, tuple[Make, str]] = {
    "lr": (with_settings("LAMB", {"lr": 0.1}, {"lr": 0.2}), "(here lr is 0."),
    "lr in a tensor": (with_settings("AdamW", {"lr": 0.1}, {"lr": torch.tensor(0.2)}, clip=1.0), "(here lr is"),
    "betas": (with_settings("LAMB", {}, {"betas": (0.9, 0.95)}), "(here betas is (0.9, 0.9"),
    "maximize": (with_settings("LAMB", {}, {"maximize": True}), "(here maximize is"),
    "a flag of the rule": (with_settings("AdamW", {}, {"amsgrad": True}, clip=1.0), "(here amsgrad is"),
    "formats": (with_settings("LAMB", {}, {"states": "bfloat16"}), "(here states is"),
    "clip": (with_settings("LAMB", {}, {"clip": 1.0}), SERVICES),
    "how much": (with_settings("AdamW", {"clip": 1.0}, {"clip": 0.5}), f"{SERVICES}AdamW, clip=ClipNorm("),
    "which norm": (with_settings("AdamW", {"clip": 1.0}, {"clip": ClipNorm(1.0, norm_type=INF)}), SERVICES),
    "skip": (with_settings("AdamW", {}, {"nonfinite": "skip"}, clip=1.0), SERVICES),
    "average": (with_settings("LAMB", {"average": 0.9}, {"average": Average(0.9, warmup=True)}), SERVICES),
    "telemetry": (with_settings("LAMB", {}, {"telemetry": 1}), SERVICES),
    "cautious": (with_settings("LAMB", {}, {"cautious": True}), RULES),
    "rules with sums": (with_rules("LAMB", "Adafactor"), RULES),
    "rules beside a service": (with_rules("SGD", "AdamW", lr=0.1, clip=1.0), RULES),
    "products": (with_rules("LAMB", "Muon"), RULES),
    "steps of products": (with_settings("Muon", {}, {"ns_steps": 4}), "(here ns_steps is"),
    "order": (with_params(lambda params: params[::-1]), PARAMETERS),
    "order of matrices": (with_params(lambda params: params[::-1], "Muon"), PARAMETERS),
    "groups": (with_params(lambda params: [{"params": params[:1]}, {"params": params[1:]}]), "or in different groups"),
}  # fmt: skip


def refused_whole(optimizer: Any, what: str, *words: str) -> None:
    """Whether a step is refused by an error that says why, and leaves no trace."""
    before = all_of(optimizer)
    try:
        refused(optimizer.step, RuntimeError, *words)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error
    assert unchanged(before, all_of(optimizer)), what


def other_optimizers(mesh: Any) -> None:
    """The last process has another one."""
    is_other = dist.get_rank() == dist.get_world_size() - 1
    for name, (make, words) in OTHERS.items():
        params = parameters(mesh, MATRICES)
        optimizer, same = make(params, is_other), make(params, False)
        give(params, 0, mesh)
        refused_whole(optimizer, name, words, "the step was not taken")
        same.step()
    named = parameters(mesh, ((6, 4), (6, 4)))
    order = [("b", named[1]), ("a", named[0])] if is_other else [("a", named[0]), ("b", named[1])]
    give(named, 0, mesh)
    refused_whole(steprule.LAMB(order), "names", PARAMETERS)


CHANGES: dict[str, Any] = {
    "lr": 0.2, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1, "lr_mult": 2.0, "states": "bfloat16", "maximize": True,
}  # fmt: skip


def other_settings(mesh: Any) -> None:
    """The last process is given other settings between two steps; they are found by the one call that a step has."""
    is_other = dist.get_rank() == dist.get_world_size() - 1
    for rule, services in (("LAMB", {}), ("AdamW", {"clip": ClipNorm(1.0, norm_type=INF)})):
        params = parameters(mesh)
        optimizer = getattr(steprule, rule)(params, lr=0.1, **services)
        (group,) = optimizer.param_groups
        group["lr_mult"] = 1.0
        for name, value in CHANGES.items():
            give(params, 0, mesh)
            optimizer.step()
            before, has_one = group.get(name), name in group
            if is_other:
                group[name] = value
            refused_whole(optimizer, f"{rule}, {name}", f"(here {name} is {group[name]!r})" if has_one else name)
            group[name] = value
            optimizer.step()  # all have it
            group[name] = before
    params = parameters(mesh)
    optimizer = steprule.AdamW(params, clip=1.0)
    give(params, 0, mesh)
    optimizer.step()
    optimizer.clip = 0.5 if is_other else 1.0
    refused_whole(optimizer, "clip", SERVICES)
    optimizer.clip = 0.5
    optimizer.step()


def hooks_fail(mesh: Any) -> None:
    """A hook that raises on one process before the step is an error on all."""
    is_other = dist.get_rank() == 1

    def broken(*args: Any) -> None:
        if is_other:
            raise ZeroDivisionError("hook")

    params, others = parameters(mesh), parameters(mesh)
    optimizer = steprule.LAMB(params)
    together = steprule.Together([steprule.LAMB(params), steprule.AdamW(others, clip=1.0)])
    for one in (optimizer, together):
        for late in (False, True):
            hooks = [one.register_step_pre_hook(broken)]
            if one is optimizer:
                hooks.append(register_optimizer_step_pre_hook(broken))
            for hook in hooks:
                give(params, late, mesh)
                give(others, late, mesh)
                refused(one.step, ZeroDivisionError if is_other else RuntimeError, "hook" if is_other else FAILED)
                hook.remove()
            one.step()


def several(mesh: Any) -> None:
    """Another setting or rule in the second of several optimizers is found before the first has stepped."""
    is_other = dist.get_rank() == 1
    for late in (False, True):
        first, second = parameters(mesh), parameters(mesh, MATRICES)
        rate = 0.2 if is_other and not late else 0.1
        both = steprule.Together([steprule.LAMB(first), steprule.Together([steprule.Muon(second, lr=rate)])])
        group = both.param_groups[1]
        for step in range(1 + late):
            give(first, step, mesh)
            give(second, step, mesh)
            if step < late:
                both.step()
        group["lr"] = 0.2 if is_other else 0.1
        before = [x.detach().to_local().clone() for x in (*first, *second)]
        refused(both.step, RuntimeError, f"(here lr is {group['lr']})")
        assert all(map(torch.equal, before, (x.to_local() for x in (*first, *second))))
        group["lr"] = 0.1
        both.step()
    swapped = [steprule.LAMB(first), steprule.Adafactor(second)]
    refused(steprule.Together(swapped[::-1] if is_other else swapped).step, RuntimeError, "the step was not taken")

    def broken(*args: Any) -> None:
        if is_other:
            raise ZeroDivisionError("hook")

    plain = steprule.SGD(parameters(mesh), lr=0.1)  # whose step waits for nobody
    three = steprule.Together([plain, steprule.Together([steprule.Muon(second)]), steprule.LAMB(first)])
    hook = plain.register_step_pre_hook(broken)
    refused(three.step, ZeroDivisionError if is_other else RuntimeError, "hook" if is_other else FAILED)
    hook.remove()
    three.step()
    if is_other:  # a hook of one process only, such as one that logs
        three.optimizers[2].register_step_pre_hook(lambda *args: None)
    three.step()
    give(first, 0, mesh, (1,) if is_other else ())
    refused(three.step, RuntimeError, *LATER)


def model_of_two_rules(mesh: Any) -> None:
    """An optimizer of Muon and AdamW under FSDP2, whose second rule has another lr on one process."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(7, 6), torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
    fully_shard(model, mesh=mesh)
    for wrong in (True, False):
        rate = 0.2 if wrong and dist.get_rank() else 0.1
        optimizer = steprule.create_optimizer(model, "muon", adamw_lr=rate)
        model(torch.arange(7)).square().sum().backward()
        if wrong:
            refused_whole(optimizer, "adamw_lr", "(here lr is ")
        else:
            optimizer.step()


def replicas(square: Any) -> None:
    """The last of four processes has another lr: all that add up with it, or with one that does, raise, and others step."""
    ways: dict[str, tuple[Any, Any, bool]] = {
        "a replica": (square, (Replicate(), Shard(0)), True),
        "two dimensions": (square, (Shard(0), Shard(1)), True),
        "one dimension": (square["tp"], (Shard(0),), dist.get_rank() >= 2),
    }
    for name, (mesh, placements, is_told) in ways.items():
        params = [torch.nn.Parameter(cut(x, mesh, placements)) for x in tensors(MATRICES, 0, torch.float32)]
        optimizer = steprule.LAMB(params, lr=0.2 if dist.get_rank() == 3 else 0.1)
        for param in params:
            param.grad = param.detach().clone()
        refused_whole(optimizer, name, "(here lr is ") if is_told else optimizer.step()
    shapes = tensors(MATRICES, 0, torch.float32)
    params = [torch.nn.Parameter(cut(x, square[dim], (Shard(0),))) for x, dim in zip(shapes, ("tp", "dp"), strict=True)]
    for param in params:
        param.grad = param.detach().clone()
    is_other = dist.get_rank() == 3
    for make in (
        lambda: steprule.LAMB(params, lr=0.2 if is_other else 0.1),
        lambda: steprule.LAMB(params[::-1] if is_other else params),
    ):
        refused_whole(make(), "two meshes", "the step was not taken")
    steprule.LAMB(params).step()
