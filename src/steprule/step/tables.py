"""The tables of addresses and numbers that kernels step a set of parameters by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine import gpu
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.matrices import BesideRooms, Rooms
from steprule.engine.own import Planned
from steprule.engine.plan import Plan
from steprule.engine.run import Complete, alone
from steprule.engine.sides import Sides, SideTables
from steprule.formats import FORMATS, row_length
from steprule.formats.parts import whole_of
from steprule.services.member import Member, row_size
from steprule.services.step import StepServices
from steprule.services.work import CpuWork
from steprule.state import matrices_of
from steprule.step.entry import Entry
from steprule.step.kind import AnyKernel
from steprule.tensors.beside import side_dtype
from steprule.tensors.exchange import SharedRooms
from steprule.tensors.numbering import numbering_of
from steprule.trace.extent import KEPT
from steprule.trace.program import ROW

if TYPE_CHECKING:
    from steprule.engine.gpu_own import GpuPlanned
    from steprule.engine.gpu_sides import GpuSides


class Bucket:
    """Parameters under one kernel: their plan, and what runs over it.

    Args:
        kernels: the kernel, with telemetry and without.
        entries: the parameters.
        groups: all parameter groups.
        rows: each parameter's among them.
        services: what goes on around the step, if anything does.
        memory: as `Rooms` takes it. Where it is given they are stepped before or after those that share it.
        complete: what makes sums those over all processes.
    """

    def __init__(
        self,
        kernels: list[AnyKernel],
        entries: list[Entry],
        groups: list[dict[str, Any]],
        rows: list[int],
        services: StepServices | None,
        memory: Tensor | None,
        complete: Complete = alone,
    ) -> None:
        self.kernel, self.rows = kernels[0], sorted(set(rows))
        self.rooms, sides = rooms_of(self.kernel, entries, memory, complete), sides_of(self.kernel, entries)
        self.plan = plan_of(kernels, entries, groups, services, rows, self.rooms, sides)
        self.counter = self.plan.counter.data if isinstance(self.plan, Plan) and entries[0].kind.keeps_step else None
        numbers = numbers_of(self.kernel, self.plan, entries, self.rooms, sides) if self.kernel.program.own else None
        members = [Member(*entry.described()) for entry in entries] if services is not None else []
        params = [entry.param for entry in entries]
        self.work = work_of(kernels, self.plan, numbers, params, members, entries[0].kind.formats)
        self.work.in_turn, self.work.rooms = memory is not None, self.rooms

    def select(self, active: np.ndarray) -> bool:
        """Steps some of the parameters from now on; False if that is none of them."""
        self.plan.select(active)  # type: ignore[union-attr]
        self.work.select(active)
        return bool(active.any())


def rooms_of(kernel: AnyKernel, bucket: list[Entry], memory: Tensor | None, complete: Complete) -> BesideRooms | None:
    """The matrices that lie between a kernel's passes, if there are any."""
    matrices, kind = kernel.program.matrices, bucket[0].kind
    if not kernel.program.joins:
        return None
    dtypes, places = dtypes_of(kernel, bucket), [entry.place for entry in bucket]
    same = {name: one.place for name, one in matrices.items() if one.place}
    states = {name: [entry.state[name] for entry in bucket] for name in kernel.program.square_states}
    squares = [level.squares for level in kernel.program.levels]
    if kind.cut is not None:
        parts = [entry.param for entry in bucket]
        shared = SharedRooms(dtypes, parts, places, kind.rule.stacks, kind.view, complete, same)
        if kernel.program.has_squares:
            shared.keep_squares(squares, states, side_dtype(parts[0]))
        return shared
    rooms = Rooms(dtypes, list(map(room_of, bucket)), kind.device, same, memory, kind.view)
    if kernel.program.has_squares:
        rooms.keep_squares(squares, states, places, side_dtype(bucket[0].param))
    return rooms


def dtypes_of(kernel: AnyKernel, bucket: Sequence[Entry]) -> dict[str, torch.dtype]:
    """What those matrices between passes are kept in that have memory of their own, by name."""
    rooms = bucket[0].kind.rooms
    return {name: getattr(torch, rooms[name]) for name, one in kernel.program.matrices.items() if not one.place}


def room_of(entry: Entry) -> tuple[int, ...]:
    """The shape of what lies between passes: with a view, of a parameter's elements as they lie in memory."""
    shape, view = tuple(entry.param.shape), entry.kind.view
    if view is None:
        return matrix_of(entry)
    # the other axes of what is flattened may lie in any order
    return (shape[0], row_length(shape)) if view.startswith("flatten") else shape


def sides_of(kernel: AnyKernel, bucket: list[Entry]) -> Sides | GpuSides | None:
    """What rows and columns have of their own, if anything does."""
    sides = kernel.stage.sides
    if not sides:
        return None
    here = list(map(_here, bucket))
    if isinstance(kernel, gpu.Kernel):
        from steprule.engine.gpu_sides import GpuSides

        return GpuSides(sides, here, kernel.source, bucket[0].kind.device)
    return Sides(sides, here, kernel.source.real)


def _here(entry: Entry) -> tuple[int, ...]:
    """What is here of a matrix that has numbers of rows or columns."""
    return matrices_of(entry.param.shape, entry.rule.stacks, entry.kind.view)[0]


def matrix_of(entry: Entry) -> tuple[int, ...]:
    """The shape of the matrix that a parameter is, or of the stack of them; or the whole that it is a part of."""
    return matrices_of(whole_of(entry.param).shape, entry.rule.stacks, entry.kind.view)[0]


def numbers_of(
    kernel: Any, plan: Plan | GpuPlan, bucket: list[Entry], rooms: BesideRooms | None, sides: Any
) -> Planned | GpuPlanned:
    """The numbers that tensors of a plan have for themselves."""
    states = {name: [entry.state[name] for entry in bucket] for name in kernel.program.numbers}
    shapes = [matrix_of(entry) for entry in bucket] if kernel.program.sees_matrix else []
    if bucket[0].kind.view is None:
        sizes = [whole_of(entry.param).numel() for entry in bucket]
    else:  # of one matrix, as the formula sees it
        sizes = [shape[-2] * shape[-1] for shape in shapes]
    extents = {name: KEPT[bucket[0].rule.states[name].extent] for name in states}
    cut = bucket[0].kind.extents_cut
    if isinstance(plan, GpuPlan):
        from steprule.engine.gpu_own import GpuPlanned

        steps = [entry.state["step"] for entry in bucket] if bucket[0].kind.keeps_step else []
        return GpuPlanned(kernel, plan, states, sizes, shapes, rooms, sides, extents, cut, steps)
    arrays = {name: [x.numpy() for x in tensors] for name, tensors in states.items()}
    return Planned(kernel, plan, arrays, torch.get_num_threads, sizes, shapes, rooms, sides, extents, cut)


def work_of(
    kernels: list[Any],
    plan: Plan | GpuPlan,
    numbers: Any,
    params: list[Tensor],
    members: list[Member],
    formats: dict[str, str],
) -> Any:
    """What a step does with a plan."""
    both = kernels[0], kernels[-1]
    if isinstance(plan, GpuPlan):
        from steprule.services.gpu_work import GpuWork

        return GpuWork(both, plan, numbers, params, members, formats)
    return CpuWork(both, plan, numbers, params, members, formats)


def hyper(
    kernel: AnyKernel, groups: list[dict[str, Any]], rows: Collection[int], services: StepServices | None
) -> list[list[Any]]:
    """The numbers of every group, as a kernel takes them: zeros of those that have another kernel, where a number may be a word."""
    extra = services.numbers() if services is not None else {}
    names = {"seed", *(name for name, _ in kernel.program.scalars)}
    own = {
        row: kernel.numbers(
            {**{name: read(groups[row][name], False) for name in names if name in groups[row]}, **extra}
        )
        for row in rows
    }
    none = [0.0] * len(next(iter(own.values())))
    return [own.get(row, none) for row in range(len(groups))]


def plan_of(
    kernels: list[AnyKernel],
    bucket: list[Entry],
    groups: list[dict[str, Any]],
    services: StepServices | None,
    rows: list[int],
    rooms: BesideRooms | None,
    sides: SideTables | None,
) -> Plan | GpuPlan:
    """The plan of kernels for the parameters of a bucket."""
    kernel = kernels[0]
    keeps_step = bucket[0].kind.keeps_step
    steps = [entry.state["step"] for entry in bucket] if keeps_step else []
    tables: dict[str, Any] = {
        "sizes": [entry.param.numel() for entry in bucket],
        "groups": rows,
        "hyper": hyper(kernel, groups, set(rows), services),
        "step_at": list(map(Tensor.data_ptr, steps)) if keeps_step else None,
        "first_steps": [0.0 if entry.is_new else 1.0 for entry in bucket],
        "rows": _rows_of(kernel, bucket),
        "numbers": [entry.place for entry in bucket],
    }
    if any(FORMATS[kind].random == "element" for kind in bucket[0].kind.formats.values()):
        tables["numberings"] = [numbering_of(entry.param) for entry in bucket]
    addresses: dict[tuple[str, str], list[int]] = {}
    for name, suffix in kernel.source.arrays:
        if rooms is not None and name in kernel.program.matrices:
            addresses[name, suffix] = rooms.addresses(name)
        elif sides is not None and name in kernel.stage.sides:
            addresses[name, suffix] = sides.addresses(name)
        else:
            addresses[name, suffix] = [entry.tensor(name, suffix).data_ptr() for entry in bucket]
    others: list[Any] = kernels[1:]
    if isinstance(kernel, gpu.Kernel):
        return kernel.plan(addresses, bucket[0].param.device, others, **tables)
    is_double = [step.dtype == torch.float64 for step in steps]
    return kernel.plan(addresses, others, step_is_double=is_double, **tables)


def _rows_of(kernel: AnyKernel, bucket: list[Entry]) -> list[int] | None:
    """The elements of one row of each parameter, where a kernel wants to know."""
    if kernel.stage.sides:
        return [max(_here(entry)[-1], 1) for entry in bucket]
    wanted = kernel.source.blockwise or kernel.program.factor == ROW
    return [row_size(entry.param) for entry in bucket] if wanted else None


class _Same:
    """Equal to a tensor on a GPU and to no other: comparing numbers would wait for them.

    Args:
        tensor: which is read there in every step.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return self.tensor is (other.tensor if isinstance(other, _Same) else other)


def read(value: Any, all_of_it: bool) -> Any:
    """A setting with tensors and arrays read; tensors on a GPU only if a plan elsewhere needs their numbers."""
    if type(value) is float:
        return value
    if isinstance(value, (tuple, list)):
        return tuple([read(item, all_of_it) for item in value])
    is_held = isinstance(value, Tensor) and (all_of_it or not gpu.serves(value.device))
    return value.item() if is_held or isinstance(value, np.ndarray) else value


def seen(value: Any, all_of_it: bool) -> Any:
    """A setting as `read` gives it, to be compared with later ones, on their left."""
    value = read(value, all_of_it)
    if isinstance(value, tuple):
        return tuple(_Same(item) if isinstance(item, Tensor) else item for item in value)
    return _Same(value) if isinstance(value, Tensor) else value
