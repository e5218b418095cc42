"""What one of several processes does for tests/test_sharded.py: `python sharded.py MEETING RANK WORLD`.

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
from steprule.services import Average, ClipNorm, ClipQuantile, ClipValue
from steprule.trace.tracing import program_of

SHAPES = ((6, 5), (7,), (3, 2, 4), (1, 3))
ROWS = ((9, 256), (5, 64), (7,))
SPARSE = {"SparseAdam"}
RULE_SETTINGS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.1, "momentum": 0.9}}
HAS_FSDP = hasattr(torch.cpu.Stream, "record_event")
"""Whether fully_shard takes models on the CPU; that of torch 2.6 does not."""
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
    # torch 2.6 leaves uneven parts as views of padded ones, which kernels do not take
    is_dense = all(part.to_local().is_contiguous() for part in theirs)
    assert together._core.plans.current is not None or not is_dense, f"{name}: no plan is kept"
    for number, (mine, part) in enumerate(zip(ours, theirs, strict=True)):
        what = f"{name}, {placements}, tensor {number} of {tuple(mine.shape)}"
        same(whole(mine), whole(part), what)
        state, parts = alone.state[mine], together.state[part]
        assert list(state) == list(parts), (what, list(state), list(parts))
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert isinstance(parts[key], DTensor), (what, key, type(parts[key]))
            same(whole(value), whole(parts[key]), f"{what}, state {key}", exact=not value.is_floating_point())
        for key in ("param", "param_average", *together.rule.tensor_states):
            if any(one.startswith(key) for one in ("param", *state)) and (key != "param_average" or key in state):
                same(alone.read(mine, key), whole(together.read(part, key)), f"{what}, read {key}")
        everywhere = [torch.empty_like(whole(part)) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, whole(part).contiguous())
        assert all(torch.equal(x, everywhere[0]) for x in everywhere), f"{what}: ranks differ"
    if alone._core.services is not None:
        for key in ("skipped_steps", "clipped_steps"):
            same(getattr(alone, key), getattr(together, key), f"{name}: {key}")
        same(alone.grad_norm, together.grad_norm, f"{name}: grad_norm")
        if alone._core.services.average is not None:
            with alone.averaged(), together.averaged():
                for mine, part in zip(ours, theirs, strict=True):
                    same(whole(mine), whole(part), f"{name}: averaged")
        if alone.telemetry is not None:
            for key, seen in alone.telemetry.latest["parameters"].items():
                for figure, value in seen.items():
                    same(torch.tensor(float(value)), torch.tensor(float(together.telemetry.latest["parameters"][key][figure])), f"{name}: {key} {figure}")  # fmt: skip


def maker(rule: str, settings: dict[str, Any]) -> Callable[[list[Any]], Any]:
    """What makes an optimizer."""
    return lambda params: getattr(steprule, rule)(params, **{**RULE_SETTINGS.get(rule, {}), **settings})


def rules(ways: Sequence[Way]) -> None:
    """Every rule; those that look at each element by itself once, since any placement is the same to them."""
    for name, rule in RULES.items():
        if name not in SPARSE:
            makes = maker(name, {})
            adds_up = program_of(rule, {**rule.hyperparameters, **RULE_SETTINGS.get(name, {})}).sums
            for mesh, placements in ways if adds_up else ways[:1]:
                compare(name, makes, SHAPES, mesh, placements, torch.float32)


def options(ways: Sequence[Way]) -> None:
    """Options around a rule, and services."""
    for (name, settings), (mesh, placements) in product({**OPTIONS, **SERVICES}.items(), ways):
        compare(name, maker("AdamW", settings), SHAPES, mesh, placements, torch.float32)


def formats(ways: Sequence[Way]) -> None:
    """States and weights in fewer bytes: parts have the values of the whole."""
    for (name, settings), (mesh, placements) in product(FORMATS.items(), ways):
        dtype = torch.bfloat16 if "weights" in settings else torch.float32
        compare(name, maker("AdamW", settings), ROWS, mesh, placements, dtype)


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


def data_parallel() -> None:
    """What DistributedDataParallel cannot do together with release is refused, on every rank."""
    from torch.nn.parallel import DistributedDataParallel

    embedding = DistributedDataParallel(torch.nn.Embedding(20, 8, sparse=True))
    try:
        steprule.SGD(embedding.parameters(), lr=0.1).release_gradients(embedding)
    except ValueError as error:
        assert "sparse=False" in str(error)
    else:
        raise AssertionError("sparse gradients were taken")
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    optimizer.release_gradients(model)
    before = model.module.weight.detach().clone()
    try:
        with model.join(divide_by_initial_world_size=False):
            model(torch.ones(1, 8)).sum().backward()
    except RuntimeError as error:
        assert "divide_by_initial_world_size" in str(error)
    else:
        raise AssertionError("join was taken")
    assert torch.equal(before, model.module.weight)


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


def refusals(mesh: Any) -> None:
    """What is refused, is before anything has changed and on every rank."""
    from steprule.services import ClipAdaptive

    def refused(
        make: Callable[[list[Any]], Any], placement: Any, *words: str, dtype: torch.dtype = torch.float32
    ) -> None:
        (whole_of_it,) = tensors([(8, 64)], 0, dtype)
        param = torch.nn.Parameter(distribute_tensor(whole_of_it, mesh, [placement]))
        param.grad = param.detach().clone()
        before = param.detach().to_local().clone()
        try:
            make([param]).step()
        except ValueError as error:
            assert all(word in str(error) for word in ("DTensor", "parameter 0 of group 0", *words)), error
        else:
            raise AssertionError(f"taken: {words}")
        assert torch.equal(before, param.detach().to_local())

    refused(lambda p: steprule.AdamW(p, states="8bit"), Shard(1), "rows are cut")
    refused(lambda p: steprule.AdamW(p, grads="24bit"), Shard(0), "grads='24bit'", dtype=torch.bfloat16)
    refused(lambda p: steprule.AdamW(p, weights="stochastic"), Shard(0), "stochastic", dtype=torch.bfloat16)
    refused(lambda p: steprule.AdamW(p, clip=ClipAdaptive(0.1)), Shard(0), "rows")

    def switched(params: list[Any]) -> Any:  # as accelerate does
        optimizer = steprule.AdamW([torch.nn.Parameter(torch.zeros(8, 64))], clip=ClipAdaptive(0.1))
        optimizer.param_groups[0]["params"] = params
        return optimizer

    refused(switched, Shard(0), "rows")


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


def released(mesh: Any) -> None:
    """Under FSDP2, backward steps what it has reduced; the numbers are those of steps after it."""
    from torch.distributed.fsdp import fully_shard

    results = []
    for release in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 5))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
        optimizer = steprule.LAMB(model.parameters(), cautious=True, average=0.9, telemetry=1)
        if release:
            optimizer.release_gradients(model)
        for step in range(4):
            torch.manual_seed(step)
            model(torch.randn(8, 13)).square().sum().backward()
            assert release == all(param.grad is None for param in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        with optimizer.averaged():
            results.append([whole(param).clone() for param in model.parameters()])
        results[-1] += [whole(param) for param in model.parameters()]
    for one, other in zip(*results, strict=True):
        same(one, other, "released", exact=True)


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
        weights = [whole(param).clone() for param in model.parameters()]
        dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=place)
        for one, param in zip(weights, model.parameters(), strict=True):
            same(one, whole(param), f"{name}: asking for states moves weights", exact=True)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        again, resumed = made(make)
        again.load_state_dict(state)
        saved_states = {"optimizer": get_optimizer_state_dict(again, resumed, options=options)}
        dcp.load(saved_states, checkpoint_id=place)
        set_optimizer_state_dict(again, resumed, saved_states["optimizer"], options=options)
        for number in range(3, 6):
            step(model, optimizer, number)
            step(again, resumed, number)
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            same(whole(one), whole(other), f"{name}, flat {flat}", exact=True)


def main() -> None:
    """One process among several."""
    meeting, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    flat = init_device_mesh("cpu", (world,))
    if world == 2:
        rules([(flat, [Shard(0)]), (flat, [Shard(1)])])
        options([(flat, [Shard(0)])])
        formats([(flat, [Shard(0)])])
        refusals(flat)
        exchanged(flat)
        loaded(flat)
        data_parallel()
        if HAS_FSDP:
            released(flat)
            together(flat)
            saved(flat)
    else:
        square = init_device_mesh("cpu", (2, 2))
        ways = [(square, [Replicate(), Shard(0)]), (square, [Shard(0), Shard(1)])]
        rules(ways)
        options(ways[1:])
        formats(ways[:1])
        splits(flat)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
