"""DTensors, of which this process has a part: the part, and DTensors that are cut like others.

Operations on bits are done on parts: torch's DTensor does not have all of them, and some give wrong numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steprule.state import SQUARES, Extent, matrix_shape

_DTENSOR = "torch.distributed.tensor"  # imported by those who use it


_WHOLE = "_steprule_whole"


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor."""
    return _DTENSOR in sys.modules and isinstance(x, sys.modules[_DTENSOR].DTensor)


def whole_of(part: Tensor) -> Tensor:
    """The DTensor that a part belongs to; any other tensor is the whole itself."""
    return getattr(part, _WHOLE, part)


def mark_part(part: Tensor, whole: Tensor) -> None:
    """Makes a tensor a part of a DTensor."""
    setattr(part, _WHOLE, whole)


def detached(param: Tensor) -> Tensor:
    """A tensor in the same memory without what autograd knows of it, and a part of the same DTensor."""
    own = param.detach()
    if whole_of(param) is not param:
        mark_part(own, whole_of(param))
    return own


class MeshCut(NamedTuple):
    """A dimension of a mesh along which processes have other parts of a DTensor, and how they do."""

    mesh: Any
    axis: int
    placement: Any


def cuts_of(param: Any) -> list[MeshCut]:
    """The dimensions of meshes along which processes have other parts of a tensor, which may be no DTensor."""
    if not is_sharded(param):
        return []
    mesh, placements = param.device_mesh, param.placements
    return [MeshCut(mesh, i, x) for i, x in enumerate(placements) if not x.is_replicate() and mesh.size(i) > 1]


def side_of(dims: int, dim: int) -> Extent:
    """Which of the numbers beside a matrix are cut where a tensor of so many dimensions is cut along one: a vector is one row."""
    return "rows" if dim == 0 and dims > 1 else "cols"


def sides_cut(param: Any) -> frozenset[Extent]:
    """Which of a matrix processes have parts of: "rows", "cols" or both."""
    return frozenset(side_of(param.dim(), cut.placement.dim) for cut in cuts_of(param))


def stretch(length: int, count: int, rank: int) -> range:
    """Which of so many rows the rank-th of so many processes has: all have as many, but for the last of those that have some.

    >>> [stretch(5, 4, rank) for rank in range(4)]
    [range(0, 2), range(2, 4), range(4, 5), range(5, 5)]
    """
    step = -(-length // count)
    return range(min(rank * step, length), min((rank + 1) * step, length))


def square_rows(whole: Any, side: int) -> range:
    """Which rows of a square are here, beside a DTensor of which processes along one dimension of a mesh have parts."""
    (cut,) = cuts_of(whole)
    return stretch(side, cut.mesh.size(cut.axis), cut.mesh.get_local_rank(cut.axis))


def placements_beside(whole: Any, extent: Extent) -> list[Any]:
    """How a state of rows, columns or squares is cut beside a DTensor: (rows, 1) as the rows are, (1, columns) as these are,
    and squares by their rows wherever the DTensor is cut."""
    made, goal = sys.modules[_DTENSOR], 1 if extent == "cols" else 0
    found = []
    for place in whole.placements:
        dim = getattr(place, "dim", None)
        if extent in SQUARES:
            found.append(made.Replicate() if dim is None else made.Shard(goal))
        elif dim is None or side_of(whole.dim(), dim) != extent:
            found.append(made.Replicate())
        elif dim == goal:
            found.append(place)
        else:  # of a vector
            strided = {"split_factor": place.split_factor} if hasattr(place, "split_factor") else {}
            found.append(type(place)(goal, **strided))
    return found


def local(x: Any) -> Any:
    """The part of a DTensor that is here; anything else is whole."""
    return x._local_tensor if is_sharded(x) else x


def cut_as(param: Any, value: Tensor, extent: Extent = "elements") -> Tensor:
    """A tensor cut as a parameter is, or whole if that is; all processes call this where a DTensor is cut in another way.

    Args:
        param: the parameter.
        value: the tensor.
        extent: of a state that it is.
    """
    if value.dtype == torch.int16:
        return cut_as(param, value.int(), extent).short()
    if not is_sharded(param):
        return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    made, mesh = sys.modules[_DTENSOR], param.device_mesh
    if not is_sharded(value) or value.device_mesh != mesh:  # type: ignore[attr-defined]
        whole = value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
        value = made.DTensor.from_local(whole.to(param.device), mesh, [made.Replicate()] * mesh.ndim, run_check=False)
    placements = param.placements if extent == "elements" else placements_beside(param, extent)
    return value.redistribute(mesh, placements)  # type: ignore[attr-defined, no-any-return]


def cut_like(whole: Any, part: Tensor, extent: Extent = "elements") -> Tensor:
    """A DTensor that is cut as another one is, and has this part here.

    Args:
        whole: the other one.
        part: of the shape of that one's part, or block exponents: rows by blocks.
        extent: of a state that it is a part of, beside a matrix that the other one is.
    """
    shape, stride, placements = whole.shape, whole.stride(), whole.placements
    if extent != "elements":
        placements, (rows, cols) = placements_beside(whole, extent), matrix_shape(shape, stacks=False)
        square = (part.shape[-1], part.shape[-1])
        whole_shape = {"rows": (rows, 1), "cols": (1, cols)}.get(extent, square)
        shape = torch.Size(whole_shape) if cuts_of(whole) else part.shape
    elif part.shape != whole._local_tensor.shape:
        shape = torch.Size([whole.shape[0], part.shape[-1]])
    if shape is not whole.shape:
        stride = torch.empty(shape, device="meta").stride()
    made = sys.modules[_DTENSOR].DTensor.from_local(
        part, whole.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return made.detach()  # type: ignore[no-any-return]


_BITS = ("_base", "_correction")
"""The ends of the names of states that may be int16, which the backends of torch.distributed do not send."""


def sendable(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's states with int32 in the place of int16."""
    return _cast(state, torch.int16, torch.int32)


def as_kept(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's states with int16 again."""
    return _cast(state, torch.int32, torch.int16)


def _cast(state: Mapping[str, Any], kind: torch.dtype, other: torch.dtype) -> dict[str, Any]:
    return {
        name: x.to(other) if isinstance(x, Tensor) and x.dtype == kind and name.endswith(_BITS) else x
        for name, x in state.items()
    }
