"""Matrices that would take too much memory between passes at once are stepped in waves, which share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steprule.engine.matrices import Rooms
from steprule.engine.workspace import workspace
from steprule.step.entry import Entry
from steprule.step.kind import AnyKernel
from steprule.step.tables import dtypes_of, room_of


class Wave(NamedTuple):
    """Parameters that are stepped together.

    Attributes:
        kernels: with telemetry and without.
        entries: the parameters.
        memory: bytes that their matrices share with those of other waves, None where they have their own.
    """

    kernels: list[AnyKernel]
    entries: list[Entry]
    memory: Tensor | None = None


def in_waves(buckets: Sequence[tuple[list[AnyKernel], list[Entry]]]) -> list[Wave]:
    """Cuts buckets so that the matrices of no wave take more than half of the workspace, or are one; the rest is for products.

    Parts of matrices that other processes have too stay together, since those do as much, and so do tensors that wait for each
    other's sums.
    """
    waves = [Wave(*bucket) for bucket in buckets]
    whole = [one for one in waves if _can_come_in_waves(one)]
    most = workspace() // 2
    if sum(sum(_sizes(one)) for one in whole) <= most:
        return waves
    cut = [part for one in whole for part in _parts(one, most)]
    sizes: dict[torch.device, int] = {}
    for one in cut:
        device = one.entries[0].kind.device
        sizes[device] = max(sizes.get(device, 0), Rooms.size_of(_dtypes(one), list(map(room_of, one.entries))))
    memory = {device: torch.empty(size, dtype=torch.uint8, device=device) for device, size in sizes.items()}
    others = [one for one in waves if not any(one is other for other in whole)]
    return [*others, *(one._replace(memory=memory[one.entries[0].kind.device]) for one in cut)]


def _can_come_in_waves(one: Wave) -> bool:
    program = one.kernels[0].program
    waits = any(sum_.of_all for sum_ in program.sums.values())
    return bool(program.matrices) and one.entries[0].kind.cut is None and not waits


def _dtypes(one: Wave) -> dict[str, torch.dtype]:
    return dtypes_of(one.kernels[0], one.entries)


def _sizes(one: Wave) -> Iterator[int]:
    """How many bytes the matrices of each of its parameters take."""
    size = sum(dtype.itemsize for dtype in _dtypes(one).values())
    return (size * entry.param.numel() for entry in one.entries)


def _parts(one: Wave, most: int) -> list[Wave]:
    """Those of one shape are next to each other, since they go through products together."""
    parts: list[list[Entry]] = []
    left = 0
    for entry, size in sorted(zip(one.entries, _sizes(one), strict=True), key=lambda own: room_of(own[0])):
        if not parts or size > left:
            parts.append([])
            left = most
        parts[-1].append(entry)
        left -= size
    return [Wave(one.kernels, part) for part in parts]
