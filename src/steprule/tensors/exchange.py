"""Functions of matrices of which processes have parts: each matrix comes to one process, which computes, and its parts go back.

All parts of a plan's matrices, and of the squares beside them, travel by one call of torch.distributed, and the results by one more,
however many matrices there are. Which process computes which matrix follows from the matrices that take the step, and so is the same
everywhere. Processes compare those before anything has changed: `steprule.tensors.totals.Totals`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steprule.engine.matrices import Rooms, Value
from steprule.engine.run import Complete, alone
from steprule.engine.told import There
from steprule.formats.parts import cuts_of, stretch, whole_of
from steprule.state import matrices_of
from steprule.trace.program import Level, Squares


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


class _Cut:
    """How processes have a tensor: each a stretch of one of its dimensions.

    Args:
        shape: the whole tensor's.
        dim: the dimension.
        count: of processes.

    Attributes:
        sizes: the elements of each process's part.
    """

    def __init__(self, shape: Sequence[int], dim: int, count: int) -> None:
        self.shape, self._dim = tuple(shape), dim
        self._stretches = [stretch(self.shape[dim], count, rank) for rank in range(count)]
        self.sizes = [prod(self.shape_of(rank)) for rank in range(count)]

    def shape_of(self, rank: int) -> tuple[int, ...]:
        """The shape of a process's part."""
        return (*self.shape[: self._dim], len(self._stretches[rank]), *self.shape[self._dim + 1 :])

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """A process's part of it."""
        own = self._stretches[rank]
        return whole.view(self.shape).narrow(self._dim, own.start, len(own))


def _cut_of(part: Tensor) -> _Cut:
    """How processes have the matrix that a part belongs to.

    Raises:
        RuntimeError: the part is not what its placement says.
    """
    whole = whole_of(part)
    (cut,) = cuts_of(whole)
    made = _Cut(whole.shape, cut.placement.dim, cut.mesh.size(cut.axis))
    here = made.shape_of(cut.mesh.get_local_rank(cut.axis))
    if part.shape != here:
        raise RuntimeError(
            f"a process has a part of shape {tuple(part.shape)} of a matrix of shape {made.shape} where {cut.placement} "
            f"gives it {here}: distribute_tensor() and fully_shard() make such parts"
        )
    return made


class _Shared(NamedTuple):
    """Tensors of one name, one for each parameter, of which processes have parts.

    Attributes:
        cuts: how each is cut.
        parts: what is here of each.
    """

    cuts: Sequence[_Cut]
    parts: Sequence[Tensor]


class SharedRooms:
    """The matrices of a plan whose parts lie in the processes of one dimension of a mesh: `steprule.engine.matrices.BesideRooms`.

    Args:
        dtypes: of each function of matrices, by name.
        parts: of each tensor that which is here.
        places: of each tensor its place among all.
        stacks: whether the last two dimensions are the matrix, and those before them count matrices.
        view: how all of them are seen as matrices.
        told: what knows whether something has failed in this step.
        shared: those that take the memory of others, which dtypes lack.

    Attributes:
        key: what must be the same in all processes, of the tensors that take the next step.

    Raises:
        RuntimeError: processes have other parts than their placements say.
    """

    def __init__(
        self, dtypes: Mapping[str, torch.dtype], parts: Sequence[Tensor], places: Sequence[int], stacks: bool,
        view: str | None = None, told: Complete = alone, shared: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._view, self._told, self._dtypes, self._places, self._same = view, told, dtypes, places, shared or {}
        (cut,) = cuts_of(whole_of(parts[0]))
        self._group, self._rank = cut.mesh.get_group(cut.axis), cut.mesh.get_local_rank(cut.axis)
        self._cuts = list(map(_cut_of, parts))
        seen = [matrices_of(one.shape, stacks, view) for one in self._cuts]
        self._shapes = [one.shape if view is not None else own[0] for one, own in zip(self._cuts, seen, strict=True)]
        self._costs = [max(min(one[-2:]) for one in own) * sum(map(prod, own)) for own in seen]
        own_parts = {
            name: [torch.empty(part.shape, dtype=dtype, device=part.device) for part in parts]
            for name, dtype in dtypes.items()
        }
        names = [*dtypes, *self._same]
        self._shared = {name: _Shared(self._cuts, own_parts[self._same.get(name, name)]) for name in names}
        self._squares: Sequence[Squares | None] = ()
        self._states: Sequence[str] = ()
        self.forget()
        self.select(np.ones(len(parts), bool))

    def keep_squares(
        self, squares: Sequence[Squares | None], states: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> None:
        """Has squares beside the matrices, of which each process has some rows.

        Args:
            squares: of each level, None where it has none.
            states: for each state that is a square what is here of each tensor's.
            dtype: what all matrices are computed in.
        """
        self._squares, self._states, self._dtype = squares, [*states], dtype
        for name, own in states.items():
            cuts = [_Cut((x.shape[-1], x.shape[-1]), 0, self._group.size()) for x in own]
            self._shared[name] = _Shared(cuts, own)
        self._costs = [sum(shape) ** 3 for shape in self._shapes]
        self.select(self._active)

    def addresses(self, name: str) -> list[int]:
        """Where the part of each tensor's matrix begins that is here."""
        return [part.data_ptr() for part in self._shared[name].parts]

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active, chosen = active, np.flatnonzero(active).tolist()
        ranks = range(self._group.size())
        self._given: list[list[int]] = [[] for _ in ranks]
        for i, owner in zip(chosen, owners_of([self._costs[i] for i in chosen], len(ranks)), strict=True):
            self._given[owner].append(i)
        self._mine = self._given[self._rank]
        shapes = tuple(self._cuts[i].shape for i in chosen)
        self.key = tuple(self._places[i] for i in chosen), shapes, tuple(self._dtypes.values())

    def forget(self) -> None:
        """Lets go of the matrices of this process, which are here as wholes from the first level that has some to the last."""
        self._rooms: Rooms | None = None
        self._wholes: dict[str, Mapping[int, Tensor]] = {}

    def run(
        self, now: Level, value: Value, settings: bytes, measured: Mapping[str, Any], there: There | None = None
    ) -> None:
        """See `BesideRooms.run`. Every process of the group must call it; what is measured is of parts, and says nothing."""
        for names in self._by_dtype(now.fetched):
            self._bring(names)
        self._attempt(lambda: self._own_rooms().run(now, value, settings, {}, there))
        back = [(names, *self._travel(names, is_owner=True)) for names in self._by_dtype(now.returned)]
        if any(bool(flags.any()) for _, _, flags in back):
            self._told.hear()
            return
        for names, arrived, _ in back:
            self._put(names, arrived)

    def _bring(self, names: Sequence[str]) -> None:
        """Has tensors of one dtype come to their owners."""
        arrived, _ = self._travel(names)

        def put() -> None:
            self._own_rooms()
            self._put(names, arrived, is_owner=True)

        self._attempt(put)

    def _attempt(self, act: Callable[[], None]) -> None:
        """Does something, unless something has failed. If it fails, others are told with the next parts that they are sent."""
        if self._told.failed is None:
            try:
                act()
            except Exception as error:  # such as for want of memory, while others wait for this
                self._told.keep(error)

    def _own_rooms(self) -> Rooms:
        """What computes this process's matrices."""
        if self._rooms is None:
            device = next(iter(self._shared.values())).parts[0].device
            rooms = Rooms(self._dtypes, self._shapes, device, self._same, view=self._view, chosen=self._mine)
            self._wholes = {name: rooms.matrices(name) for name in (*self._dtypes, *self._same)}
            if self._squares:
                states = {name: self._whole_squares(name) for name in self._states}
                rooms.keep_squares(self._squares, states, self._places, self._dtype)
                self._wholes |= states
            rooms.select(self._active)
            self._rooms = rooms
        return self._rooms

    def _whole_squares(self, name: str) -> dict[int, Tensor]:
        """Room for this process's squares of a name."""
        cuts, parts = self._shared[name]
        return {i: parts[i].new_empty(cuts[i].shape) for i in self._mine}

    def _by_dtype(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Names of tensors of the same dtype."""
        dtypes = {name: self._shared[name].parts[0].dtype for name in names}
        for dtype in dict.fromkeys(dtypes.values()):
            yield [name for name in names if dtypes[name] == dtype]

    def _parts(self, names: Sequence[str], rank: int, is_owner: bool) -> Iterator[Tensor]:
        """The parts of tensors that travel between this process and another: as their owner has them, or as the other way round."""
        for i, name in product(self._mine if is_owner else self._given[rank], names):
            cuts, parts = self._shared[name]
            yield cuts[i].part(self._wholes[name][i], rank) if is_owner else parts[i]

    def _sizes(self, names: Sequence[str], is_owner: bool) -> list[int]:
        """How many elements travel between this process and each, and a number more."""
        pairs = [
            (self._mine, rank) if is_owner else (self._given[rank], self._rank) for rank in range(len(self._given))
        ]
        return [
            1 + sum(self._shared[name].cuts[i].sizes[part] for i, name in product(own, names)) for own, part in pairs
        ]

    def _travel(self, names: Sequence[str], is_owner: bool = False) -> tuple[list[Tensor], Tensor]:
        """Sends parts of tensors of one dtype to their owners, or from these.

        A number more for each process says whether something has failed; if it has, what goes with it means nothing.

        Args:
            names: of the tensors.
            is_owner: whether they go from their owners.

        Returns:
            What each process has sent, and these numbers.
        """
        from torch.distributed import all_to_all_single

        first = self._shared[names[0]].parts[0]
        sent, received = self._sizes(names, is_owner), self._sizes(names, not is_owner)
        ranks, packed = range(len(self._given)), []

        def pack() -> None:
            flag = first.new_zeros(1)
            parts = [x.reshape(-1) for rank in ranks for x in (*self._parts(names, rank, is_owner), flag)]
            packed.append(torch.cat(parts))

        self._attempt(pack)
        leaving = packed[0] if packed else first.new_ones(sum(sent))
        arrived, size = leaving.new_empty(sum(received)), leaving.element_size()
        there, here = ([count * size for count in counts] for counts in (received, sent))
        all_to_all_single(arrived.view(torch.uint8), leaving.view(torch.uint8), there, here, group=self._group)
        each = torch.split(arrived, received)
        return [one[:-1] for one in each], torch.stack([one[-1] for one in each])

    def _put(self, names: Sequence[str], arrived: Sequence[Tensor], is_owner: bool = False) -> None:
        """Puts parts that have travelled in their place."""
        for rank, numbers in enumerate(arrived):
            parts = list(self._parts(names, rank, is_owner))
            new = torch.split(numbers, [part.numel() for part in parts])
            if parts:
                torch._foreach_copy_(parts, [own.view(part.shape) for own, part in zip(new, parts, strict=True)])
