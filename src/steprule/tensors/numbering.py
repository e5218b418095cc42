"""Where the elements of a part are in the whole."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
from torch import Tensor

from steprule.formats import Numbering
from steprule.formats.parts import is_sharded, local, stretch, whole_of


def numbering_of(param: Tensor) -> Numbering | None:
    """How a tensor's elements are numbered in the whole that it is a part of; None if not by one stride.

    Args:
        param: a part, a DTensor of which one is here, or any other tensor, which is whole.
    """
    whole = whole_of(param)
    part, size = local(whole), local(whole).numel()
    if not size or not is_sharded(whole) or part.shape == whole.shape:
        return Numbering.of_whole(size)
    places = [_indices_here(whole, dim) for dim in range(whole.dim())]
    if [len(here) for here in places] != list(part.shape):
        return None  # cut by someone else's rules
    last = max(dim for dim, here in enumerate(places) if len(here) < whole.shape[dim])
    within = math.prod(whole.shape[last + 1 :])  # elements of one index of the last dimension that is cut
    if (np.diff(places[last]) != 1).any():
        return None
    strides = [math.prod(whole.shape[dim + 1 :]) for dim in range(last)]
    outer = [here * stride for here, stride in zip(places, strides, strict=False)]
    starts = reduce(np.add.outer, outer, np.array(int(places[last][0]) * within)).reshape(-1)
    run = len(places[last]) * within
    distances = np.diff(starts)
    stride = int(distances[0]) if len(distances) else run
    if (distances != stride).any():
        return None
    first = int(starts[0])
    return Numbering(first, size, size) if stride == run else Numbering(first, run, stride)


def _indices_here(whole: Tensor, dim: int) -> np.ndarray:
    """Which indices of a DTensor's dimension the part that is here has."""
    mesh, placements = whole.device_mesh, whole.placements  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    here = np.arange(whole.shape[dim])
    for number, place in enumerate(placements):
        if getattr(place, "dim", None) == dim:
            count = getattr(place, "split_factor", 1)  # what FSDP2 cuts after tensor parallelism did
            pieces = [_chunk(here, count, piece) for piece in range(count)]
            here = np.concatenate([_chunk(piece, mesh.size(number), coordinate[number]) for piece in pieces])
    return here


def _chunk(here: np.ndarray, count: int, rank: int) -> np.ndarray:
    own = stretch(len(here), count, rank)
    return here[own.start : own.stop]
