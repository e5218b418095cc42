"""What one of four processes does for tests/test_sharded_checkpoints.py: `python sharded_checkpoints.py FOLDER RANK [every]`.

Four processes train and save. Then four, three, two and one of them meet anew, load it all into parameters that are cut among
so many, or not cut, and go on as the four did. Gradients are the same everywhere, so that nothing but the optimizers' own sums
could differ.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from packaging.version import Version
from sharding.helpers import cut, part_of
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import steprule
from steprule.services import Average, ClipQuantile

SHAPES = {"wide": (10, 300), "bias": (7,), "short": (3, 256)}
"""Of 4 processes, some have less of these than others or nothing. The last block of a row of "wide" is no whole one."""
BEFORE, AFTER = range(3), range(3, 6)
WORLDS = (4, 3, 2, 1)
WAYS = (
    ("cut", "cut", False),
    ("cut", "whole", True),
    ("whole", "cut", True),
    ("square", "cut", False),
    ("cut", "square", False),
)
"""How it was saved, how it is loaded, and whether state dicts are flattened."""
SOME = {4: (0, 2, 4), 3: (0, 1, 3), 2: (0, 2, 3), 1: (0, 1)}
"""The numbers of those that so many processes try, if not all: every one, and but for the last each by fewer than have saved."""
SQUARES = {"wide": (Shard(0), Shard(1)), "bias": (Replicate(), Shard(0)), "short": (Shard(1), Replicate())}
"""How four processes in two rows of two have what is square: FSDP2 of tensor parallelism, replicas of parts, parts of replicas."""
COLUMNS = 3 * (10 + 8) * 2.0**-24
"""The same for columns, whose 10 numbers are added up in float32, in three steps of some 8 roundings."""
NORMS = 3000 * 2.0**-53
"""How far norms may be off, as a part of themselves: they are roots of sums of float64 in another order."""


def tensors(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """The same on every process, one for each of `SHAPES`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES.values()]


class Case:
    """An optimizer that is saved and loaded.

    Args:
        make: makes it for a model.
        dtype: that of the weights.
        eval: whether it is saved after eval().
        square: whether it is also saved and loaded where two dimensions are cut, as 8-bit states cannot be.
        squares: whether states that are as long as they are wide are squares beside matrices.
        bound: how far what steps leave behind may be off.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        dtype: torch.dtype = torch.float32,
        eval: bool = False,
        square: bool = False,
        bound: float = 0.0,
        squares: bool = False,
    ) -> None:
        self.make, self.dtype, self.eval, self.square, self.bound = make, dtype, eval, square, bound
        self.squares = squares


def of(rule: str, **settings: Any) -> Callable[[Any], Any]:
    return lambda model: getattr(steprule, rule)(model.parameters(), **settings)


def together(model: Any) -> Any:
    first = steprule.AdamW([model.wide, model.bias], states="8bit", lr=lambda step: 0.01 / step)
    return steprule.Together([first, steprule.SGD([model.short], lr=0.1, momentum=0.9, clip=0.5)])


def normuon(model: Any) -> Any:
    return steprule.Together([steprule.NorMuon([model.wide, model.short]), steprule.AdamW([model.bias])])


def soap(model: Any) -> Any:
    """In a schedule that steps go on in the middle of; of the longest side there is one number, which one process has."""
    squared = steprule.SOAP([model.wide, model.short], precondition_frequency=4, max_precond_dim=260)
    return steprule.Together([squared, steprule.AdamW([model.bias])])


CASES = {
    "8 bits": Case(of("AdamW", states="8bit", lr=lambda step: 0.01 / step, average=Average(0.9, warmup=True))),
    "7 bytes": Case(of("AdamW", weights="24bit", states="8bit", average=0.9), torch.bfloat16),
    "8 bytes": Case(of("AdamW", weights="32bit", states="bfloat16"), torch.bfloat16, square=True),
    "services": Case(of("AdamW", clip=ClipQuantile(0.5, window=4), nonfinite="skip", average=0.9), square=True),
    "no states": Case(of("SGD", lr=lambda step: 0.1 / step, clip=ClipQuantile(0.5, window=4), nonfinite="zero")),
    "numbers": Case(of("Prodigy"), square=True),
    "a number a tensor": Case(of("NovoGrad", lr=0.01)),
    "options": Case(of("AdamW", lookahead=2, amsgrad=True, decay="independent", weight_decay=0.1), square=True),
    "rows and columns": Case(of("Adafactor"), square=True, bound=COLUMNS),
    "products and rows": Case(normuon),
    "squares": Case(soap, squares=True),
    "modes": Case(of("ScheduleFreeAdamW", lr=0.1), eval=True),
    "together": Case(together),
}


class Model(torch.nn.Module):
    """Parameters that are cut over a mesh, or whole.

    Args:
        case: whose model it is.
        mesh: None for whole ones.
    """

    def __init__(self, case: Case, mesh: Any) -> None:
        super().__init__()
        self.mesh, self.case = mesh, case
        for name, values in zip(SHAPES, tensors(0, case.dtype), strict=True):
            setattr(self, name, torch.nn.Parameter(self.cut(values)))

    def placements(self, x: torch.Tensor) -> Sequence[Any]:
        """How a whole tensor, what is like it, or its state of rows, columns or squares is cut."""
        if self.case.squares and x.shape[0] == x.shape[-1]:
            return (Shard(0),)
        for name, shape in SHAPES.items():
            ways = (Shard(0),) if self.mesh.ndim == 1 else SQUARES[name]
            if tuple(x.shape) == shape:
                return ways
            by_row = Shard(0) if len(shape) > 1 else None  # a vector is one row
            if tuple(x.shape) == (shape[0] if by_row else 1, 1):
                return [way if way == by_row else Replicate() for way in ways]
            if tuple(x.shape) == (1, shape[-1]):
                return [Replicate() if way in (by_row, Replicate()) else Shard(1) for way in ways]
        return (Shard(0),)

    def part(self, x: torch.Tensor) -> torch.Tensor:
        """What this process has of a whole tensor."""
        return part_of(x, self.mesh, self.placements(x)) if self.mesh is not None and x.dim() else x

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """A whole tensor as a DTensor."""
        return cut(x, self.mesh, self.placements(x)) if self.mesh is not None else x


def train(model: Model, optimizer: Any, steps: range) -> None:
    is_guarded = "nonfinite" in repr(optimizer)
    for step in steps:
        for param, grad in zip(model.parameters(), tensors(1 + step, torch.float32), strict=True):
            if is_guarded and step == 1:
                grad[-1] = float("nan")
            param.grad = model.cut(grad.to(param.dtype))
        optimizer.step()
        optimizer.zero_grad()


def numbers(x: Any) -> Any:
    """Settings and notes without tensors."""
    if isinstance(x, dict):
        return {key: numbers(value) for key, value in x.items() if key not in ("params", "schedules")}
    return x.tolist() if isinstance(x, torch.Tensor) else list(x) if isinstance(x, tuple) else x


def everything(model: Model, optimizer: Any, take: Callable[[Any], Any]) -> dict[str, Any]:
    """All that a step depends on, with what `take` makes of tensors, and all that services count."""
    return {
        "weights": {name: take(param.detach()).clone() for name, param in model.named_parameters()},
        "states": {
            name: {key: take(value).clone() for key, value in optimizer.state.get(param, {}).items()}
            for name, param in model.named_parameters()
        },
        "groups": [numbers(group) for group in optimizer.state_dict()["param_groups"]],
    }


def here(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(x: torch.Tensor) -> torch.Tensor:
    """The whole of what processes have parts of."""
    if not isinstance(x, DTensor):
        return x
    if x.device_mesh.ndim > 1:
        return (x if x.is_floating_point() else x.int()).full_tensor().to(x.dtype)  # gloo sends no int16
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, x.to_local())
    (placement,) = x.placements
    return torch.cat(parts, placement.dim) if isinstance(placement, Shard) else parts[0]


def compare(what: str, one: Any, other: Any, part: Callable[[Any], Any] = lambda x: x, bound: float = 0.0) -> None:
    """Raises unless the same is in both, tensors to the last bit: the numbers that a sum gives are rounded to float32, which
    leaves nothing of the order in which it was added up in float64.

    Args:
        part: what the other one has of the first one's tensors.
        bound: how far tensors may be off where it is not the last bit, which are of numbers around 1.
    """
    if isinstance(one, dict):
        assert set(one) == set(other), (what, list(one), list(other))
        for key, value in one.items():
            compare(f"{what}, {key}", value, other[key], part, bound)
    elif isinstance(one, list):
        assert len(one) == len(other), (what, one, other)
        for number, value in enumerate(one):
            compare(f"{what}, {number}", value, other[number], part, bound)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, part(one), rtol=bound, atol=bound, msg=lambda text: f"{what}: {text}")
    elif isinstance(one, float):
        torch.testing.assert_close(other, one, rtol=NORMS, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")
    else:
        assert one == other, (what, one, other)


def made(mesh: Any, *kinds: str) -> dict[str, tuple[Model, Any]]:
    models = {name: Model(case, mesh) for name, case in CASES.items() if case.square or "square" not in kinds}
    return {name: (model, CASES[name].make(model)) for name, model in models.items()}


def asked(runs: dict[str, tuple[Model, Any]], is_flat: bool) -> dict[str, Any]:
    """What there is to save; to be asked for it moves nothing."""
    found, options = {}, StateDictOptions(flatten_optimizer_state_dict=is_flat)
    for name, (model, optimizer) in runs.items():
        before = everything(model, optimizer, here)
        states = get_optimizer_state_dict(model, optimizer, options=options)
        found[name] = {"model": model.state_dict(), "optimizer": states}
        after = everything(model, optimizer, here)
        if not any(before["states"].values()):  # torch has had them made
            before["states"] = after["states"]
        compare(f"{name}: asked", before, after)
    return found


def save(folder: Path, mesh: Any, kind: str) -> None:
    """Three steps, checkpoints, and three steps to be compared with; one checkpoint is written after these."""
    runs = made(mesh, kind)
    for name, (model, optimizer) in runs.items():
        train(model, optimizer, BEFORE)
        if CASES[name].eval:
            optimizer.eval()
    was = {name: everything(*run, gathered) for name, run in runs.items()}
    with Later() as later:
        for is_flat in sorted({is_flat for source, _, is_flat in WAYS if source == kind}):
            (later.save if is_flat else dcp.save)(asked(runs, is_flat), checkpoint_id=folder / f"{kind}-{is_flat}")
        for name, (model, optimizer) in runs.items():
            if CASES[name].eval:
                optimizer.train()
            train(model, optimizer, AFTER)
    became = {name: everything(*run, gathered) for name, run in runs.items()}
    if dist.get_rank() == 0:
        torch.save((was, became), folder / f"{kind}.pt")
    dist.barrier()


class Later:
    """Asynchronous saving that writes nothing before the end of the context."""

    def __enter__(self) -> Later:
        self._may_write, self._saving = threading.Event(), []
        self._write = write = dcp.FileSystemWriter.write_data

        def later(*args: Any) -> Any:
            self._may_write.wait()
            return write(*args)

        self._later, self._group = later, dist.new_group(backend="gloo")  # steps use the other one meanwhile
        return self

    def save(self, states: dict[str, Any], checkpoint_id: Path) -> None:
        """What is written is what there is now; before 2.7, torch wrote what tensors on CPUs had become."""
        if Version(torch.__version__) < Version("2.7"):
            dcp.save(states, checkpoint_id=checkpoint_id)
            return
        dcp.FileSystemWriter.write_data = self._later
        self._saving.append(dcp.async_save(states, checkpoint_id=checkpoint_id, process_group=self._group))

    def __exit__(self, *error: object) -> None:
        self._may_write.set()
        for one in self._saving:
            one.result()
        dcp.FileSystemWriter.write_data = self._write


def load(folder: Path, mesh: Any, kind: str, target: str, is_flat: bool) -> None:
    """What was saved is there, and the next steps are those that were taken after it was saved."""
    was, became = torch.load(folder / f"{kind}.pt")
    runs, options = made(mesh, kind, target), StateDictOptions(flatten_optimizer_state_dict=is_flat)
    what = f"{kind} of {WORLDS[0]}, {target} of {dist.get_world_size()}, flat {is_flat}"
    found = asked(runs, is_flat)
    dcp.load(found, checkpoint_id=folder / f"{kind}-{is_flat}")
    for name, (model, optimizer) in runs.items():
        model.load_state_dict(found[name]["model"])
        set_optimizer_state_dict(model, optimizer, found[name]["optimizer"], options=options)
        compare(f"{what}, {name}: loaded", was[name], everything(model, optimizer, here), model.part)
        if CASES[name].eval:
            optimizer.train()
        train(model, optimizer, AFTER)
        bound = CASES[name].bound
        compare(f"{what}, {name}: resumed", became[name], everything(model, optimizer, here), model.part, bound)


def main() -> None:
    """One process among four, of which fewer and fewer go on."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            return
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
        mesh = init_device_mesh("cpu", (world,))
        if world == WORLDS[0]:
            meshes = {"cut": mesh, "square": init_device_mesh("cpu", (2, 2)), "whole": None}
            for kind, one in meshes.items():
                save(folder, one, kind)
        ways = WAYS if "every" in sys.argv else [WAYS[number] for number in SOME[world]]
        for kind, target, is_flat in ways:
            if target != "square" or world == WORLDS[0]:
                load(folder, {**meshes, "cut": mesh}[target], kind, target, is_flat)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
