"""DTensors, of which this process has a part: the part, and DTensors that are cut like others.

Operations on bits are done on parts: torch's DTensor does not have all of them, and some give wrong numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTENSOR = "torch.distributed.tensor"  # imported by those who use it


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor."""
    return _DTENSOR in sys.modules and isinstance(x, sys.modules[_DTENSOR].DTensor)


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


def local(x: Any) -> Any:
    """The part of a DTensor that is here; anything else is whole."""
    return x._local_tensor if is_sharded(x) else x


def cut_as(param: Any, value: Tensor) -> Tensor:
    """A tensor cut as a parameter is, or whole if that is; all processes call this where a DTensor is cut in another way."""
    if value.dtype == torch.int16:
        return cut_as(param, value.int()).short()
    if not is_sharded(param):
        return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    made, mesh = sys.modules[_DTENSOR], param.device_mesh
    if not is_sharded(value) or value.device_mesh != mesh:  # type: ignore[attr-defined]
        whole = value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
        value = made.DTensor.from_local(whole.to(param.device), mesh, [made.Replicate()] * mesh.ndim, run_check=False)
    return value.redistribute(mesh, param.placements)  # type: ignore[attr-defined, no-any-return]


def cut_like(whole: Any, part: Tensor) -> Tensor:
    """A DTensor that is cut as another one is, and has this part here.

    Args:
        whole: the other one.
        part: of the shape of that one's part, or block exponents: rows by blocks.
    """
    shape, stride = whole.shape, whole.stride()
    if part.shape != whole._local_tensor.shape:
        shape = torch.Size([whole.shape[0], part.shape[-1]])
        stride = torch.empty(shape, device="meta").stride()
    made = sys.modules[_DTENSOR].DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=shape, stride=stride
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
