"""With which processes sums over parts of a tensor are added up."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steprule.formats.parts import cuts_of, side_of
from steprule.trace.extent import ELEMENTS, KEPT, Extent


class Reach(NamedTuple):
    """Processes that add up together: those along a dimension of a mesh, or all there are."""

    device: str
    mesh: Any = None
    dim: int = 0

    @property
    def group(self) -> Any:
        """Their process group; None for all."""
        return None if self.mesh is None else self.mesh.get_group(self.dim)

    def order(self) -> tuple[Any, ...]:
        """By what those of a process are sorted, in all alike: all processes first, so that one call tells them all.

        Meshes of one name, or of none, go by how far apart their processes are: in a grid that is the same in all of its rows, and
        another in all of its columns. What is left goes by which processes they are. So it never matters how parameters are listed.
        """
        if self.mesh is None:
            return False, self.device
        ranks = self.mesh.mesh.flatten().tolist()
        steps = [rank - ranks[0] for rank in ranks]
        return True, tuple(self.mesh.mesh_dim_names or ()), self.dim, steps, ranks, self.device


def reaches_of(param: Tensor, over: Extent = ELEMENTS) -> dict[Reach, float]:
    """With whom sums over elements, rows or columns of a tensor are added up, and how much of them each process adds.

    Nothing where no other process has other ones. With all processes, if these have a part in each sum.
    """
    cuts = cuts_of(param)
    own = cuts
    if over != ELEMENTS and not any(cut.placement.is_partial() for cut in cuts):  # a partial parameter is refused later
        own = [cut for cut in cuts if KEPT[side_of(param.dim(), cut.placement.dim)] == over]
    if own and len(own) == len(cuts) and (mesh := own[0].mesh).size() == torch.distributed.get_world_size():
        return {Reach(mesh.device_type): math.prod(mesh.size(cut.axis) for cut in own) / mesh.size()}
    return {Reach(cut.mesh.device_type, cut.mesh, cut.axis): 1.0 for cut in own}


def reduced(numbers: np.ndarray, reach: Reach, operation: Any) -> np.ndarray:
    """Numbers made those of all processes that add up together."""
    from torch.distributed import all_reduce

    there = torch.from_numpy(numbers).to(reach.device)
    all_reduce(there, operation, group=reach.group)
    return there.cpu().numpy()
