"""Functions of matrices of which processes have parts: each matrix comes to one process, which computes, and its parts go back.

All parts of a plan's matrices travel by one call of torch.distributed, and the results by one more, however many matrices
there are. Which process computes which matrix follows from the matrices that take the step, and so is the same everywhere.
Processes compare those before anything has changed: `steprule.tensors.totals.Totals`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.matrices import Rooms
from steprule.engine.run import Complete, alone
from steprule.formats.parts import cuts_of
from steprule.state import matrices_of
from steprule.tensors.totals import whole_of
from steprule.trace.expression import Expression
from steprule.trace.program import Matrix


def why_apart(param: Tensor) -> str | None:
    """Why the parts of a tensor cannot be brought together; None where they can, or it has none."""
    from torch.distributed.tensor import Shard

    cuts = cuts_of(param)
    if len(cuts) > 1:
        shown = ", ".join(str(cut.placement) for cut in cuts)
        return f"are brought together where they are cut along one dimension of a mesh, and not along {len(cuts)} ({shown})"
    if cuts and type(cuts[0].placement) is not Shard:
        return f"are brought together where they are cut into one stretch for each process, and not as {cuts[0].placement} says"
    return None


def owners_of(costs: Sequence[int], count: int) -> list[int]:
    """Who computes what: the costliest first, each by the process that has the least to do so far.

    Args:
        costs: of each.
        count: of processes.

    >>> owners_of([5, 9, 4, 1], 2)
    [1, 0, 1, 0]
    """
    busy, owners = np.zeros(count), [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[number] = owner = int(busy.argmin())
        busy[owner] += costs[number]
    return owners


class _Whole:
    """A matrix, and which part of it each process has.

    Args:
        part: the one that is here.
        stacks, view: as `matrices_of` takes them.

    Attributes:
        shape: as a tensor.
        matrix: as a matrix, or a stack of them; with a view, as a tensor.
        cost: how long a function of it takes, in some unit.
        sizes: the elements of each process's part.
    """

    def __init__(self, part: Tensor, stacks: bool, view: str | None) -> None:
        whole = whole_of(part)
        (cut,) = cuts_of(whole)
        self.shape, self._dim, count = whole.shape, cut.placement.dim, cut.mesh.size(cut.axis)
        seen = matrices_of(self.shape, stacks, view)
        self.matrix = seen[0] if view is None else tuple(self.shape)
        self.cost = max(min(shape[-2:]) for shape in seen) * whole.numel()
        length = self.shape[self._dim]
        step = -(-length // count)
        self._starts = [min(rank * step, length) for rank in range(count)]
        self._lengths = [min(step, length - start) for start in self._starts]
        self.sizes = [own * (whole.numel() // max(length, 1)) for own in self._lengths]
        here = (
            *self.shape[: self._dim],
            self._lengths[cut.mesh.get_local_rank(cut.axis)],
            *self.shape[self._dim + 1 :],
        )
        if part.shape != here:
            raise RuntimeError(
                f"a process has a part of shape {tuple(part.shape)} of a matrix of shape {tuple(self.shape)} where {cut.placement} "
                f"gives it {here}: distribute_tensor() and fully_shard() make such parts"
            )

    def part(self, matrix: Tensor, rank: int) -> Tensor:
        """A process's part of it."""
        return matrix.view(self.shape).narrow(self._dim, self._starts[rank], self._lengths[rank])


class SharedRooms(Rooms):
    """The matrices of a plan whose parts lie in the processes of one dimension of a mesh.

    Args:
        dtypes: of each function of matrices, by name.
        parts: of each tensor that which is here.
        places: of each tensor its place among all.
        stacks: whether the last two dimensions are the matrix, and those before them count matrices.
        view: how all of them are seen as matrices.
        told: what knows whether something has failed in this step.

    Attributes:
        key: what must be the same in all processes, of the tensors that take the next step.

    Raises:
        RuntimeError: processes have other parts than their placements say.
    """

    def __init__(
        self, dtypes: Mapping[str, torch.dtype], parts: Sequence[Tensor], places: Sequence[int], stacks: bool,
        view: str | None = None, told: Complete = alone,
    ) -> None:  # fmt: skip
        self._view, self._told = view, told
        (cut,) = cuts_of(whole_of(parts[0]))
        self._group, self._rank = cut.mesh.get_group(cut.axis), cut.mesh.get_local_rank(cut.axis)
        self._dtypes, self._listed = dtypes, places
        self._wholes = [_Whole(part, stacks, view) for part in parts]
        self._pieces = {
            name: [torch.empty(part.shape, dtype=dtype, device=part.device) for part in parts]
            for name, dtype in dtypes.items()
        }
        self.select(np.ones(len(parts), bool))

    def addresses(self, name: str) -> list[int]:
        """Where the part of each tensor's matrix begins that is here."""
        return [piece.data_ptr() for piece in self._pieces[name]]

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        super().select(active)
        self._chosen = np.flatnonzero(active).tolist()
        ranks = range(self._group.size())
        owners = owners_of([self._wholes[i].cost for i in self._chosen], len(ranks))
        self._given: list[list[int]] = [[] for _ in ranks]
        for i, owner in zip(self._chosen, owners, strict=True):
            self._given[owner].append(i)
        mine = self._given[self._rank]
        self._sent = [sum(self._wholes[i].sizes[self._rank] for i in given) for given in self._given]
        self._received = [sum(self._wholes[i].sizes[rank] for i in mine) for rank in ranks]
        self.key = (
            tuple(self._listed[i] for i in self._chosen), tuple(tuple(self._wholes[i].shape) for i in self._chosen),
            tuple(self._dtypes.values()),
        )  # fmt: skip
        self._mine: dict[tuple[int, ...], list[int]] = {}
        for i in mine:
            self._mine.setdefault(self._wholes[i].matrix, []).append(i)

    def run(
        self,
        functions: Mapping[str, Matrix],
        value: Callable[[Expression], Any],
        settings: bytes,
        squares: Mapping[str, Any],
    ) -> None:
        """As `Rooms.run`: every process of the group must call it. The squares are those of parts, and say nothing."""
        for dtype in dict.fromkeys(self._dtypes[name] for name in functions):
            self._run({name: one for name, one in functions.items() if self._dtypes[name] == dtype}, value)

    def _run(self, functions: Mapping[str, Matrix], value: Callable[[Expression], Any]) -> None:
        """The same for those of one dtype. A number more for each process says whether something has failed, there and back."""
        told, first = self._told, next(self._pieces[name][0] for name in functions)
        flag = first.new_full((1,), float(told.failed is not None))
        pieces = [
            piece
            for given in self._given
            for piece in (*(self._pieces[name][i].view(-1) for i in given for name in functions), flag)
        ]
        sent, received = ([size * len(functions) + 1 for size in sizes] for sizes in (self._sent, self._received))
        try:
            here = torch.cat(pieces)
        except Exception as error:  # such as for want of memory, while others wait for this
            told.keep(error)
            here = first.new_ones(sum(sent))
        there = here.new_empty(sum(received))
        self._travel(here, sent, there, received)
        flags = torch.stack([one[-1] for one in torch.split(there, received)]).amax()
        try:
            if told.failed is None:
                self._compute(there, functions, value)
        except Exception as error:
            told.keep(error)
        for one in torch.split(there, received):
            one[-1:] = flags if told.failed is None else 1.0
        self._travel(there, received, here, sent)
        if torch.stack([one[-1] for one in torch.split(here, sent)]).any():
            told.hear()
            return
        for piece, new in zip(pieces, torch.split(here, [piece.numel() for piece in pieces]), strict=True):
            piece.copy_(new)

    def _compute(self, there: Tensor, functions: Mapping[str, Matrix], value: Callable[[Expression], Any]) -> None:
        """Puts the functions of this process's matrices in their place."""
        stacks, parts = self._unpacked(there, functions)
        for part, arrived in parts:
            part.copy_(arrived)
        for name, one in functions.items():
            for call in self._made(name, one, value, self._mine, stacks):
                call(None)
        for part, leaving in parts:
            leaving.copy_(part)

    def _unpacked(
        self, there: Tensor, functions: Mapping[str, Matrix]
    ) -> tuple[dict[Any, Tensor], list[tuple[Tensor, Tensor]]]:
        """Stacks of the matrices that are computed here; and each part of them, there and as it travels."""
        stacks: dict[Any, Tensor] = {}
        matrices: dict[Any, Tensor] = {}
        for name in functions:
            for shape, members in self._mine.items():
                stacks[name, shape] = stack = there.new_empty((len(members), *shape))
                matrices |= {(name, i): one for i, one in zip(members, stack, strict=True)}
        parts, start = [], 0
        for rank in range(len(self._given)):
            for i, name in product(self._given[self._rank], functions):
                part = self._wholes[i].part(matrices[name, i], rank)
                parts.append((part, there[start : start + part.numel()].view(part.shape)))
                start += part.numel()
            start += 1
        return stacks, parts

    def _travel(self, start: Tensor, sent: Sequence[int], goal: Tensor, received: Sequence[int]) -> None:
        """Sends some numbers to each process of the group, and receives some of each."""
        from torch.distributed import all_to_all_single

        size = start.element_size()
        there, here = ([count * size for count in counts] for counts in (received, sent))
        all_to_all_single(goal.view(torch.uint8), start.view(torch.uint8), there, here, group=self._group)
