"""Parameters of which this process has a part, and what a step sends to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from shapes import Shapes
from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """Counts collectives, torch.distributed's and those of DTensors, and the bytes that they are given.

    Attributes:
        calls, bytes: how many there were, and what was in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls what is done with its part, and that comes here
        if func.namespace in ("c10d", "_c10d_functional") and not func._opname.startswith(("wait", "_wrap")):
            self.calls += 1
            self.bytes += sum(x.nbytes for x in _tensors(args[0]))
        return func(*args, **(kwargs or {}))


def _tensors(x: Any) -> Iterable[torch.Tensor]:
    return [x] if isinstance(x, torch.Tensor) else [y for one in x for y in _tensors(one)]


def rows_here(rows: int, parts: int, place: int) -> int:
    """How many of these rows the process at this place has of a tensor that is cut in so many parts."""
    most = -(-rows // parts)
    return max(min(most, rows - place * most), 0)


def parameters(shapes: Shapes, dtype: torch.dtype, mesh: Any) -> list[torch.nn.Parameter]:
    """Parameters with gradients, cut along their first dimension over the last dimension of a mesh, as FSDP2 and HSDP do."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    parts, place = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    params = []
    for shape in shapes:
        here, strides = (rows_here(shape[0], parts, place), *shape[1:]), torch.empty(shape, device="meta").stride()
        param, grad = (
            DTensor.from_local(
                torch.randn(here).mul_(0.02).to(dtype), mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides
            )
            for _ in range(2)
        )  # fmt: skip
        params.append(torch.nn.Parameter(param))
        params[-1].grad = grad
    return params


def bytes_here(states: Mapping[Any, Mapping[str, Any]], params: Iterable[torch.nn.Parameter]) -> int:
    """The bytes of this process's weights, gradients and states; a state's single numbers are left out."""
    own = [x for state in states.values() for x in state.values() if isinstance(x, torch.Tensor) and x.dim()]
    every = [*own, *params, *(param.grad for param in params)]
    return sum(getattr(x, "_local_tensor", x).nbytes for x in every)


def meet(rank: int, world: int) -> None:
    """Has this process take itself for one of many, which send nothing: collectives leave tensors as they are."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
