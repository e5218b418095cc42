"""What one of several processes does for tests/test_spread.py: `python spread.py MEETING RANK WORLD`.

Each process steps all tensors by itself; then it steps its share of the same tensors, with the others as its process group.
Both must come to the same.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from sharding import faults
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import steprule
from steprule.services import ClipAdaptive, ClipNorm, ClipQuantile, ClipValue
from steprule.tensors.across import Across

SHAPES = ((6, 5), (7,), (3, 2, 4), (5, 5))
NAN, NONE, NONE_ANYWHERE = 2, 3, 4
"""Steps in which the first gradient is not finite, in which only the first has one, and in which none has."""

DIVIDED: dict[str, tuple[str, dict[str, Any]]] = {
    "Prodigy": ("Prodigy", {"clip": 0.5, "nonfinite": "skip", "telemetry": 2}),
    "DAdaptAdam": ("DAdaptAdam", {"average": 0.9}),
    "DoG": ("DoG", {"nonfinite": "zero", "telemetry": 1}),
    "LAMB, which adds up over each tensor": ("LAMB", {"clip": 0.5, "cautious": True}),
    "8 bits": ("AdamW", {"states": "8bit", "clip": 0.5}),
    "the largest": ("SGD", {"clip": ClipNorm(0.05, norm_type=float("inf")), "nonfinite": "skip"}),
    "the smallest": ("SGD", {"clip": ClipNorm(0.001, norm_type=-float("inf"))}),
    "how many": ("SGD", {"clip": ClipNorm(1.5, norm_type=0.0)}),
    "by parameter": ("SGD", {"clip": ClipNorm(2.5, per_parameter=True), "nonfinite": "skip"}),
    "by row": ("SGD", {"clip": ClipAdaptive(0.5)}),
    "by quantile": ("SGD", {"clip": ClipQuantile(0.5), "nonfinite": "skip"}),
    "by value": ("SGD", {"clip": ClipValue(0.1), "nonfinite": "zero"}),
    "telemetry alone": ("AdamW", {"telemetry": 2}),
    "nothing": ("AdamW", {}),
}
PIECES: dict[str, tuple[str, dict[str, Any]]] = {
    "Prodigy": ("Prodigy", {"clip": 0.5, "nonfinite": "skip"}),
    "DoG": ("DoG", {}),
    "AdamW": ("AdamW", {"clip": ClipNorm(0.02, norm_type=float("inf")), "nonfinite": "zero", "telemetry": 1}),
}
WHOLE_TENSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "LAMB": ("LAMB", {}),
    "cautious": ("AdamW", {"cautious": True}),
    "states": ("AdamW", {"states": "8bit"}),
    "by parameter": ("AdamW", {"clip": ClipNorm(1.0, per_parameter=True)}),
    "by row": ("AdamW", {"clip": ClipAdaptive(0.5)}),
    "how many": ("SGD", {"clip": ClipNorm(1.5, norm_type=0.0)}),
    "the smallest": ("SGD", {"clip": ClipNorm(0.001, norm_type=-float("inf"))}),
    "the small": ("SGD", {"clip": ClipNorm(0.001, norm_type=-1.0)}),
}
"""What pieces of tensors do not have."""


def made(rule: str, params: Any, **settings: Any) -> Any:
    return getattr(steprule, rule)(params, **({"lr": 0.1} if rule == "SGD" else {}), **settings)


def own(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose records are of one optimizer."""
    return copy.deepcopy(settings)


def tensors(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def train(params: Sequence[Any], mine: Sequence[int], optimizer: Any, spoil: bool) -> None:
    """Six steps; only tensors with these numbers get gradients."""
    services = optimizer._core.services
    rests = services is None or services.wants is not None  # where it is not, such a step counts
    for step in range(6):
        for number, (param, grad) in enumerate(zip(params, tensors(1 + step), strict=True)):
            if step == NAN and number == 0 and spoil:
                grad[-1, 0] = float("nan")
            has_one = number in mine and not (step == NONE and number) and not (step == NONE_ANYWHERE and rests)
            param.grad = grad if has_one else None
        optimizer.step()


def same(one: Any, other: Any, what: str) -> None:
    """Whether two come to the same: sums are rounded elsewhere, in the last of float64's digits."""
    one, other = (torch.as_tensor(x).detach() for x in (one, other))
    torch.testing.assert_close(other, one, rtol=2e-6, atol=1e-7, equal_nan=True, msg=lambda text: f"{what}: {text}")


def same_everywhere(numbers: Sequence[Any], what: str) -> None:
    own = torch.tensor([float(one) for one in numbers], dtype=torch.float64)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    assert all(torch.equal(x.nan_to_num(7.0), every[0].nan_to_num(7.0)) for x in every), (what, every)


def same_services(alone: Any, ours: Any, what: str) -> None:
    for key in ("skipped_steps", "clipped_steps", "zeroed_elements", "grad_norm"):
        same(getattr(alone, key), getattr(ours, key), f"{what}: {key}")
    same_everywhere([ours.skipped_steps, ours.clipped_steps, ours.zeroed_elements, ours.grad_norm], what)
    if alone.telemetry is not None:
        assert len(ours.telemetry.records) >= len(alone.telemetry.records), what
        for one, other in zip(alone.telemetry.records, ours.telemetry.records, strict=False):
            for figure, value in one["total"].items():
                same(value, other["total"][figure], f"{what}: {figure} of step {one['step']}")
            for name, figures in other["parameters"].items():
                assert figures["weight_norm"] > 0, (what, name)


def divided(rank: int) -> None:
    """Whole tensors, of which each process steps some; all of them are one process's in the end."""
    for shares in ([0, 2], [1, 3]), ([0, 1, 2, 3], []):
        for name, (rule, settings) in DIVIDED.items():
            what = f"{name}, divided {shares}"
            whole = [torch.nn.Parameter(x) for x in tensors(0)]
            ours = [torch.nn.Parameter(x) for x in tensors(0)]
            alone = made(rule, whole, **own(settings))
            mine = shares[rank]
            optimizer = made(
                rule, [{"params": [ours[number] for number in mine]}], **own(settings), process_group=dist.group.WORLD
            )
            spoil = settings.get("nonfinite") is not None
            train(whole, range(len(whole)), alone, spoil)
            train(ours, mine, optimizer, spoil)
            for number in mine:
                same(whole[number], ours[number], f"{what}, tensor {number}")
                for key, value in alone.state[whole[number]].items():
                    same(value, optimizer.state[ours[number]][key], f"{what}, tensor {number}, {key}")
            same_services(alone, optimizer, what)


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))


def fit(net: Any, optimizer: Any, spoil: Callable[[int], None] = lambda step: None) -> None:
    for step in range(5):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(8, 6)).square().sum().backward()
        spoil(step)
        optimizer.step()


def with_zero() -> None:
    """ZeroRedundancyOptimizer has its keywords in its groups, too, and a process group that nobody hands on."""
    for rule, settings in (*DIVIDED.values(), ("Prodigy", {"lr": 0.5})):
        if "average" in settings:
            continue
        whole, net = model(), model()
        first, guards = [next(one.parameters()) for one in (whole, net)], "nonfinite" in settings

        def spoil(step: int, first: Any = first, spoils: bool = guards) -> None:
            for one in first if step == NAN and spoils else ():
                if one.grad is not None:
                    one.grad[0, 0] = float("nan")

        alone = made(rule, whole.parameters(), **own(settings))
        keywords = {**({"lr": 0.1} if rule == "SGD" else {}), **own(settings)}
        zero = ZeroRedundancyOptimizer(net.parameters(), getattr(steprule, rule), **keywords)
        assert zero.optim.process_group is dist.group.WORLD
        fit(whole, alone, spoil)
        fit(net, zero, spoil)
        for one, other in zip(whole.parameters(), net.parameters(), strict=True):
            same(one, other, f"ZeRO, {rule}")
        same_services(alone, zero.optim, f"ZeRO, {rule}")
    only = torch.nn.Linear(3, 1, bias=False)  # one parameter, and so none for the others
    fitted = ZeroRedundancyOptimizer(only.parameters(), steprule.Prodigy, clip=1.0)
    for _ in range(2):
        only(torch.ones(2, 3)).sum().backward()
        fitted.step()
    same_everywhere([fitted.optim.grad_norm, only.weight.detach().sum()], "one parameter")
    resumed()
    for name, settings in {"AdamW": {"average": 0.9}, "ScheduleFreeAdamW": {}}.items():
        with refused(ValueError, "would exchange those of this process's parameters only"):
            ZeroRedundancyOptimizer(model().parameters(), getattr(steprule, name), **settings)
    assert steprule.AdamW(model().parameters()).process_group is None


def resumed() -> None:
    """ZeroRedundancyOptimizer's own checkpoints: counts, norms and functions of the step go on, there and in one process."""

    def begun() -> tuple[Any, Any]:
        net = model()
        given = {"lr": lambda step: 0.1 / step, "clip": ClipQuantile(0.5), "nonfinite": "skip"}
        return net, ZeroRedundancyOptimizer(net.parameters(), steprule.AdamW, **given)

    net, zero = begun()
    fit(net, zero, lambda step: next(net.parameters()).grad.fill_(float("nan")) if step == NAN else None)
    zero.consolidate_state_dict(0)
    saved = [zero.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, 0)
    other, loaded = begun()
    one = model()
    alone = steprule.AdamW(one.parameters(), lr=lambda step: 0.1 / step, clip=ClipQuantile(0.5), nonfinite="skip")
    for again, optimizer in (other, loaded), (one, alone):
        again.load_state_dict(net.state_dict())
        optimizer.load_state_dict(copy.deepcopy(saved[0]))
        fit(again, optimizer)
    fit(net, zero)
    for mine, its, single in zip(net.parameters(), other.parameters(), one.parameters(), strict=True):
        assert torch.equal(mine, its)
        same(mine, single, "loaded in one process")
    assert (zero.optim.skipped_steps, zero.optim.clipped_steps) == (
        loaded.optim.skipped_steps,
        loaded.optim.clipped_steps,
    )
    assert zero.optim.param_groups[0]["lr"] == loaded.optim.param_groups[0]["lr"] == 0.1 / 11
    assert alone.skipped_steps == 1 and alone.clipped_steps == zero.optim.clipped_steps


@contextmanager
def refused(kind: type[Exception], text: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"nothing says that {text}")


def with_fsdp(rank: int) -> None:
    """FSDP's flat pieces: `clip` and others see all of them, and what needs a tensor is refused."""
    group = dist.group.WORLD
    for original in (False, True):

        def wrapped(original: bool = original) -> Any:
            return FullyShardedDataParallel(model(), use_orig_params=original, device_id=torch.device("cpu"))

        for name, (rule, settings) in PIECES.items():
            what = f"FSDP, use_orig_params={original}, {name}"
            whole, net, guards = model(), wrapped(), "nonfinite" in settings
            alone = made(rule, whole.parameters(), **own(settings))
            optimizer = made(rule, net.parameters(), **own(settings), process_group=group)
            # The last element of all: of a flat piece another one follows that no parameter has.
            last, mine = [*whole.parameters()][-1], [param for param in net.parameters() if param.numel()][-1]
            places = [(last, -1), (mine, -1 if original else -2)] if rank == 1 else [(last, -1)]

            def spoil(step: int, places: Any = places, spoils: bool = guards) -> None:
                for param, place in places if step == NAN and spoils else ():
                    if param.grad is not None:
                        param.grad.view(-1)[place] = float("nan")

            fit(whole, alone, spoil)
            fit(net, optimizer, spoil)
            same_services(alone, optimizer, what)
            with FullyShardedDataParallel.summon_full_params(net):
                wanted, flat = (torch.cat([x.detach().flatten() for x in one.parameters()]) for one in (whole, net))
                same(wanted, flat[: len(wanted)], what)
        for rule, settings in PIECES.values():
            with refused(ValueError, "process_group=torch.distributed.group.WORLD"):
                made(rule, wrapped().parameters(), **own(settings))
        for rule, settings in WHOLE_TENSORS.values():
            with refused(ValueError, "a step here would see only its own part"):
                made(rule, wrapped().parameters(), **own(settings), process_group=group)


def replicated(rank: int) -> None:
    """FSDP's replicas are counted once: the group is that over which it has cut, if it has, and any other is refused."""
    where, single = torch.device("cpu"), [dist.new_group([one]) for one in range(2)]
    whole = model()
    fit(whole, steprule.Prodigy(whole.parameters(), clip=0.5))
    wanted = torch.cat([x.detach().flatten() for x in whole.parameters()])
    for original in (False, True):
        for strategy in ("NO_SHARD", "HYBRID_SHARD"):
            groups: Any = None if strategy == "NO_SHARD" else (single[rank], dist.group.WORLD)
            net = FullyShardedDataParallel(
                model(), groups, ShardingStrategy[strategy], use_orig_params=original, device_id=where
            )
            with refused(ValueError, "parameter 0 of group 0 to them more than once, as replicas"):
                steprule.Prodigy(net.parameters(), process_group=dist.group.WORLD)
            later = steprule.Prodigy(model().parameters(), process_group=dist.group.WORLD)
            with refused(ValueError, "parameter 0 of group 1 to them more than once, as replicas"):
                later.add_param_group({"params": [*net.parameters()]})
            over = {} if groups is None else {"process_group": net.process_group}
            fit(net, steprule.Prodigy(net.parameters(), clip=0.5, **over))
            with FullyShardedDataParallel.summon_full_params(net):
                found = torch.cat([x.detach().flatten() for x in net.parameters()])
                same(wanted, found[: len(wanted)], f"FSDP, use_orig_params={original}, {strategy}")


def averaged(rank: int) -> None:
    """DistributedDataParallel's replicas would be counted twice; parts of its parameters, as a ZeroRedundancyOptimizer has them, are not."""
    net = DistributedDataParallel(model())
    for make in (lambda **given: steprule.Prodigy(net.parameters(), **given), lambda **given: steprule.AdamW(net.parameters(), clip=1.0, **given)):  # fmt: skip
        with refused(ValueError, "DistributedDataParallel has the same parameters in each of them"):
            make(process_group=dist.group.WORLD)
        optimizer = make()
        with refused(ValueError, "DistributedDataParallel has the same parameters in each of them"):
            optimizer.process_group = dist.group.WORLD
        fit(net, optimizer)
    alone = dist.new_group([0]), dist.new_group([1])
    steprule.Prodigy(net.parameters(), process_group=alone[rank])
    steprule.Prodigy([*net.parameters()][rank::2], process_group=dist.group.WORLD)


def loaded(rank: int) -> None:
    """Checkpoints of FSDP1: steps go on in another model and optimizer, by torch's tools and by each process's own state dict."""
    where, single = torch.device("cpu"), [dist.new_group([one]) for one in range(2)]
    ways = {
        "flat": {},
        "original": {"use_orig_params": True},
        "replicas": {
            "process_group": (single[rank], dist.group.WORLD),
            "sharding_strategy": ShardingStrategy.HYBRID_SHARD,
        },
    }
    rules = {"Prodigy": {"clip": ClipQuantile(0.5), "nonfinite": "skip"}, "AdamW": {"average": 0.9}}

    def begun(way: dict[str, Any], rule: str) -> tuple[Any, Any]:
        net = FullyShardedDataParallel(model(), device_id=where, **way)
        over = {} if rule != "Prodigy" else {"process_group": net.process_group}
        return net, made(rule, net.parameters(), **own(rules[rule]), **over)

    cases = [("flat", *case) for case in product(rules, (False, True))]
    # torch's tools ask rank 0 in groups of replicas, which it may not be in
    for name, rule, by_torch in [*cases, ("original", "Prodigy", True), ("replicas", "Prodigy", False)]:
        way = ways[name]
        net, optimizer = begun(way, rule)
        fit(net, optimizer)
        other, again = begun(way, rule)
        if by_torch:
            saved = get_state_dict(net, optimizer)
            set_state_dict(other, again, model_state_dict=saved[0], optim_state_dict=saved[1])
        else:
            other.load_state_dict(net.state_dict())
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for one in ((net, optimizer), (other, again)):
            fit(*one)
        assert optimizer.clipped_steps == again.clipped_steps
        with FullyShardedDataParallel.summon_full_params(net), FullyShardedDataParallel.summon_full_params(other):
            for one, two in zip(net.parameters(), other.parameters(), strict=True):
                assert torch.equal(one, two), (name, rule, by_torch)


def pieces(params: Sequence[torch.Tensor], rank: int) -> torch.nn.Parameter:
    """This process's half of all tensors laid end to end, as DeepSpeed has it."""
    flat = torch.cat([x.detach().flatten() for x in params])
    return torch.nn.Parameter(flat.chunk(2)[rank].clone())


def replaced(rank: int) -> None:
    """Flat pieces that a trainer puts in the place of parameters after the optimizer was made."""
    group = dist.group.WORLD
    for name, (rule, settings) in PIECES.items():
        whole = [torch.nn.Parameter(x) for x in tensors(0)]
        alone, optimizer = made(rule, whole, **own(settings)), made(rule, whole, **own(settings), process_group=group)
        part = pieces(whole, rank)
        optimizer.param_groups[0]["params"] = [part]
        for step in range(4):
            grads = tensors(1 + step)
            if step == NAN and settings.get("nonfinite"):
                grads[-1][-1, -1] = float("nan")  # on the last rank
            for param, grad in zip(whole, grads, strict=True):
                param.grad = grad
            part.grad = pieces(grads, rank).detach()
            alone.step()
            optimizer.step()
        same(pieces(whole, rank), part, f"replaced, {name}")
        same_services(alone, optimizer, f"replaced, {name}")
        late = made(rule, whole, **own(settings))
        late.param_groups[0]["params"] = [part]
        with refused(ValueError, "process_group=torch.distributed.group.WORLD"):
            late.step()
        late.process_group = group
        late.step()
    before = part.detach().clone()
    others = {"average": ("AdamW", {"average": 0.9}), "eval": ("ScheduleFreeAdamW", {})}
    for rule, settings in (*WHOLE_TENSORS.values(), *others.values()):
        late = made(rule, tensors_as_params(), **own(settings), process_group=group)
        late.param_groups[0]["params"] = [part]
        with refused(ValueError, "a step here would see only its own part"):
            late.step()
    first, *rest = tensors_as_params()
    for lose in (lambda late: late.param_groups.pop(), lambda late: late.param_groups[1].update(params=[])):
        late = steprule.SGD([{"params": [first]}, {"params": rest}], lr=0.1, clip=1.0, process_group=group)
        late.param_groups[0]["params"] = [part]
        lose(late)
        with refused(ValueError, "needs all parameters in one group"):
            late.step()
    assert torch.equal(before, part)


def tensors_as_params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(x) for x in tensors(0)]


def share(rank: int) -> list[torch.nn.Parameter]:
    """One of two tensors."""
    return [torch.nn.Parameter(x) for x in tensors(0)][2 * rank : 2 * rank + 1]


def scaled(rank: int) -> None:
    """A GradScaler of each process, of which one finds what is not finite: all skip, and go on with the same scale."""
    for unscales in (False, True):
        (param,) = share(rank)
        optimizer = steprule.SGD([param], lr=0.1, clip=1.0, process_group=dist.group.WORLD)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(4):
            param.grad = torch.ones_like(param) * 4
            scaler.scale(torch.ones(()))
            if step == 1 and rank == 1:
                param.grad.view(-1)[3] = float("inf")
            if unscales:
                scaler.unscale_(optimizer)
                param.grad.nan_to_num_(posinf=1.0)  # which the scaler has found all the same
            before = param.detach().clone()
            scaler.step(optimizer)
            assert torch.equal(before, param) is (step == 1), (unscales, step)
            scaler.update()
            same_everywhere([scaler.get_scale(), optimizer.grad_norm, optimizer.skipped_steps], f"scaled {step}")
        assert scaler.get_scale() == 2.0 and optimizer.skipped_steps == 1
        param.grad = None
        optimizer.step()
        assert optimizer.grad_norm == 0


def refusals(rank: int) -> None:
    """Errors come in all processes, and before anything has changed."""
    group, (param,) = dist.group.WORLD, share(rank)
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = steprule.SGD([param], lr=0.1, nonfinite="raise", process_group=group)
    both = steprule.Together([steprule.SGD([other], lr=0.1), optimizer])
    for one in (optimizer, both):
        param.grad, other.grad = torch.full_like(param, float("nan") if rank else 1.0), torch.ones(2)
        before = param.detach().clone()
        others = "those of process 1" if one is optimizer else "another process cannot take this step"
        with refused(RuntimeError, "gradients are not finite: parameter 0" if rank else others):
            one.step()
        assert torch.equal(before, param) and torch.equal(other, torch.ones(2))
    param.grad = torch.ones_like(param)
    both.step()
    assert not torch.equal(before, param) and not torch.equal(other, torch.ones(2))
    mesh = dist.init_device_mesh("cpu", (2,))
    for place in (Shard(0), Replicate()):
        with refused(ValueError, "leave out process_group"):
            steprule.AdamW(
                [torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [place]))], process_group=group
            )
    alone = dist.new_group([0])
    if rank == 0:
        assert steprule.AdamW([param], process_group=alone).process_group is alone
    else:
        with refused(TypeError, "of which this process is a member"):
            steprule.AdamW([param], process_group=dist.GroupMember.NON_GROUP_MEMBER)


def failing(rank: int) -> None:
    """Where one process cannot take a step, the others do not wait for it, nothing has changed, and all go on as if it had not been."""

    def everything(optimizer: Any) -> list[Any]:
        every = [param for group in optimizer.param_groups for param in group["params"]]
        states = [x for param in every for x in optimizer.state.get(param, {}).values()]
        return [torch.as_tensor(x).detach().clone() for x in (*every, *states)]

    def setting(optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] = "fast"

    def groups(optimizer: Any) -> None:
        optimizer.param_groups = []

    for rule, settings in (
        ("AdamW", {"clip": 1.0, "average": 0.9}),
        ("AdamW", {"nonfinite": "zero"}),
        ("AdamW", {"telemetry": 1}),
        ("Prodigy", {}),
        ("Prodigy", {"nonfinite": "skip", "telemetry": 1}),
    ):
        ours, twin = (made(rule, share(rank), **own(settings), process_group=dist.group.WORLD) for _ in range(2))

        def give(step: int, *optimizers: Any) -> None:
            for optimizer in optimizers:
                for param in optimizer.param_groups[0]["params"]:
                    param.grad = tensors(1 + step, [param.shape])[0]

        for step, spoil in enumerate((setting, groups, setting, groups)):
            give(step, ours, twin)
            kept, rate = ours.param_groups, ours.param_groups[0]["lr"]
            if rank == 1:
                spoil(ours)
            with refused(Exception, "" if rank else "another process cannot take this step"):
                ours.step()
            ours.param_groups, kept[0]["lr"] = kept, rate
            for before, after in zip(everything(twin), everything(ours), strict=True):
                assert torch.equal(before, after), (rule, settings, step)
            give(step, ours)
            ours.step()
            twin.step()
        same_services(twin, ours, f"{rule}, {settings}")


def failing_later(rank: int) -> None:
    """Where one process fails after the first call, the others are told in the next."""

    def make(**services: Any) -> Callable[[], Any]:
        optimizer = made("Prodigy", share(rank), **services, process_group=dist.group.WORLD)
        for step in range(2):
            for param in optimizer.param_groups[0]["params"]:
                param.grad = tensors(1 + step, [param.shape])[0]
            if not step:
                optimizer.step()
        return optimizer.step  # type: ignore[no-any-return]

    faults.spread(make)


def others(rank: int) -> None:
    """Optimizers that are not the same on all processes refuse together, and so where a hook fails on one."""
    group = dist.group.WORLD
    cases: tuple[tuple[str, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]], ...] = (
        ("different services (here AdamW, clip=", ("AdamW", {"clip": 1.0}), ("AdamW", {"clip": 0.5})),
        ("different services", ("AdamW", {"clip": 1.0}), ("AdamW", {"nonfinite": "zero"})),
        ("different services", ("Prodigy", {}), ("Prodigy", {"telemetry": 1})),
        ("different rules or options (here", ("Prodigy", {}), ("DoG", {})),
        ("different rules or options (here", ("AdamW", {"clip": 1.0}), ("SGD", {"clip": 1.0})),
        ("different rules or options", ("AdamW", {"clip": 1.0}), ("AdamW", {"clip": 1.0, "cautious": True})),
    )
    for text, *each in cases:
        (rule, settings), (param,) = each[rank], share(rank)
        param.grad, before = torch.ones_like(param), param.detach().clone()
        for wrong in (True, False):
            rule, settings = each[rank if wrong else 0]
            optimizer = made(rule, [param], **own(settings), process_group=group)
            with refused(RuntimeError, text) if wrong else nullcontext():
                optimizer.step()
            assert torch.equal(before, param) is wrong, text
    (param,) = share(rank)
    optimizer = steprule.AdamW([{"params": [param]}, *([{"params": []}] if rank else [])], lr=0.1 + rank, clip=1.0, process_group=group)  # fmt: skip
    param.grad = torch.ones_like(param)
    optimizer.step()  # whose groups are each process's own
    optimizer.clip = 2.0 if rank else 1.0
    with refused(RuntimeError, "different services"):
        optimizer.step()
    optimizer.clip = 2.0
    optimizer.step()

    def broken(*args: Any) -> None:
        if rank:
            raise ZeroDivisionError("hook")

    for one in (optimizer, steprule.Together([optimizer, steprule.SGD(share(rank), lr=0.1)])):
        hook = one.register_step_pre_hook(broken)
        with refused(ZeroDivisionError if rank else RuntimeError, "hook" if rank else "another process cannot"):
            one.step()
        hook.remove()
        one.step()
    net = model()
    zero = ZeroRedundancyOptimizer(net.parameters(), steprule.AdamW, lr=0.1 + rank, clip=1.0)
    flat = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    piece = steprule.AdamW(flat.parameters(), lr=0.1 + rank, clip=1.0, process_group=group)
    for its, one in (net, zero), (flat, piece):  # whose groups are the same everywhere
        with refused(RuntimeError, f"(here lr is {0.1 + rank})"):
            fit(its, one)
        one.param_groups[0]["lr"] = 0.1
        fit(its, one)


def asks(rank: int) -> None:
    """How often processes wait for each other: twice more where they have not agreed yet on what they gather."""
    counted = []
    gather = Across._gather
    Across._gather = lambda self, numbers: counted.append(len(numbers)) or gather(self, numbers)  # type: ignore
    for rule, settings, wanted in (
        ("AdamW", {}, [0, 0, 0]),
        ("AdamW", {"average": 0.9, "clip": ClipValue(1.0)}, [0, 0, 0]),
        ("AdamW", {"clip": 1.0, "nonfinite": "skip"}, [3, 1, 1]),
        ("AdamW", {"telemetry": 2}, [0, 2, 0]),  # before anything changes, and what was counted
        ("AdamW", {"clip": 1.0, "telemetry": 3}, [3, 1, 2]),
        ("Prodigy", {}, [3, 1, 1]),
        ("LAMB", {}, [0, 0, 0]),
    ):
        for mine in (share(rank), share(rank) if rank else []):
            optimizer = made(rule, [{"params": mine}], **own(settings), process_group=dist.group.WORLD)
            found = []
            for _ in range(3):
                counted.clear()
                for param in mine:
                    param.grad = torch.ones_like(param)
                optimizer.step()
                found.append(len(counted))
            assert found == wanted, (rule, settings, found)
    Across._gather = gather  # type: ignore[method-assign]


def warmed_up(rank: int) -> None:
    """A first step with a rate of 0 is one also where the gradients of a process are 0, or where it has no parameters."""
    for mine in (share(rank), share(rank) if rank else []):
        optimizer = made("AdamW", [{"params": mine}], lr=0.0, clip=1.0, process_group=dist.group.WORLD)
        for step in range(2):
            for param in mine:
                param.grad = torch.full_like(param, float(step or len(mine) == rank))
            optimizer.step(closure=None)
            optimizer.param_groups[0]["lr"] = 0.1
            same_everywhere([optimizer.grad_norm], f"step {step} of a warm-up")
        assert [float(optimizer.state[param]["step"]) for param in mine] == [2.0] * len(mine)


def main(meeting: str, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    divided(rank)
    with_zero()
    with_fsdp(rank)
    replicated(rank)
    averaged(rank)
    loaded(rank)
    replaced(rank)
    scaled(rank)
    refusals(rank)
    failing(rank)
    failing_later(rank)
    others(rank)
    asks(rank)
    warmed_up(rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
