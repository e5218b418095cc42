"""The GPU engine's sums and scalar states: as `steprule.engine.own`, but the host never waits for one of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_graph import apart, check_not_recorded
from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading
from steprule.engine.gpu_sides import GpuEvaluation, GpuSides
from steprule.engine.matrices import BesideRooms, Rooms, Value
from steprule.engine.own import OwnNumbers
from steprule.engine.run import SideSums, Sums
from steprule.engine.told import HostSteps, There
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.extent import NUMBER, Extent
from steprule.trace.program import COUNTS, EXTENTS

_TILE = 128


@triton.jit  # type: ignore[untyped-decorator]
def fetch(kept_at, are_double, numbers, skip, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers that are kept one by one, float32 or float64, brought together."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.load(kept_at + i, mask=i < size, other=0)
    is_double = tl.load(are_double + i, mask=i < size, other=0) != 0
    narrow = tl.load(at.to(tl.pointer_type(tl.float32)), mask=(i < size) & ~is_double, other=0.0)
    wide = tl.load(at.to(tl.pointer_type(tl.float64)), mask=(i < size) & is_double, other=0.0)
    tl.store(numbers + i, tl.where(is_double, wide, narrow.to(tl.float64)), mask=i < size)


@triton.jit  # type: ignore[untyped-decorator]
def put(kept_at, are_double, numbers, skip, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Puts numbers in their place, and leaves them here as they are kept there; nothing where the step is skipped."""
    if tl.load(skip) == 0:
        i = tl.program_id(0) * TILE + tl.arange(0, TILE)
        at = tl.load(kept_at + i, mask=i < size, other=0)
        is_double = tl.load(are_double + i, mask=i < size, other=0) != 0
        wide = tl.load(numbers + i, mask=i < size, other=0.0)
        narrow = wide.to(tl.float32)
        tl.store(at.to(tl.pointer_type(tl.float32)), narrow, mask=(i < size) & ~is_double)
        tl.store(at.to(tl.pointer_type(tl.float64)), wide, mask=(i < size) & is_double)
        tl.store(numbers + i, tl.where(is_double, wide, narrow.to(tl.float64)), mask=i < size)


class GpuPlanned(OwnNumbers):
    """As `steprule.engine.own.Planned`, of a plan on a GPU.

    Args:
        kernel: their kernel.
        plan: their plan, whose tables `steps` and `own` this fills.
        states: for each scalar state that of each tensor, float32 or float64, on the plan's device.
        sizes: how many elements each tensor has, or the one that it is a part of. Default: as the plan has it.
        shapes: what each tensor is as a matrix, where the formula asks for rows or columns.
        rooms: the matrices, where it has functions of them.
        sides: what rows and columns have, where they have numbers.
        extents: of the states that are not numbers; these are contiguous tensors with one for each row or column.
        cut: whether other processes have other rows of the tensors, or other columns.
        steps: where each tensor's step is kept. Default: in the plan.
    """

    def __init__(
        self,
        kernel: Kernel,
        plan: GpuPlan,
        states: Mapping[str, Sequence[Tensor]],
        sizes: Sequence[int] | None = None,
        shapes: Sequence[Sequence[int]] = (),
        rooms: BesideRooms | None = None,
        sides: GpuSides | None = None,
        extents: Mapping[str, Extent] | None = None,
        cut: Collection[Extent] = (),
        steps: Sequence[Tensor] = (),
    ) -> None:
        readings = [
            GpuReading(one.launcher(plan), Combination(plan.first_chunk, one.source.tallies, plan.partials))
            for one in kernel.readings
        ]
        super().__init__(kernel.program, readings, rooms, sides, cut)
        self._plan = plan
        device, own = plan.device, self.program.own
        self._rows = dict(zip(own, plan.own, strict=True))
        counts = {"numel": plan.lengths if sizes is None else sizes}
        counts |= {"rows": [shape[-2] for shape in shapes], "cols": [shape[-1] for shape in shapes]}
        self._counts = {name: np.array(counts[name], np.float64) for name in COUNTS if name in own}
        for name, values in self._counts.items():
            self._rows[name].copy_(torch.from_numpy(values).to(device))
        self._settings = self.program.settings
        self._fixed = frozenset((*self._settings, *self._counts))
        self._steps_here = HostSteps(steps or plan.own_steps.unbind()) if self.program.has_squares else None
        self._constants: dict[str, Tensor] = {}
        self._steps = _Kept(plan.step_at, torch.ones_like(plan.step_at, dtype=torch.int32), plan.steps, plan.skip)
        extents = extents or {}
        self._extents = {name: extents.get(name, NUMBER) for name in self.program.numbers}
        scalars = [name for name in own if self._extents.get(name) == NUMBER]
        first = own.index(scalars[0]) if scalars else 0  # the others follow it
        beside = [name for name, extent in self._extents.items() if extent != NUMBER]
        in_own = plan.own[first : first + len(scalars)].view(-1)
        self._kept = [
            _Kept.of([x for name in names for x in states[name]], numbers, plan.skip)
            for names, numbers in ((scalars, in_own), (beside, None))
        ]
        self._new: dict[str, _Kept] = {}
        self._old: dict[str, Tensor] = {}
        for names, kept in zip((scalars, beside), self._kept, strict=True):
            start = 0
            for name in names:
                end = start + sum(x.numel() for x in states[name])
                self._old[name] = kept.numbers[start:end]
                self._new[name] = kept.part(start, end, self._rows.get(f"new_{name}"))
                start = end

    def count(self) -> None:
        """See `OwnNumbers`."""
        super().count()
        plan, program = self._plan, self.program
        plan.read_hyper()
        if self._new or self._sides is not None or program.has_squares:
            for kept in self._kept:
                kept.fetch()
            columns = plan.hyper.index_select(0, plan.groups).T
            inputs = {scalar_name(*scalar): columns[i] for i, scalar in enumerate(program.scalars)}
            inputs |= {"step": plan.steps, **self._rows, **self._old}
            self._evaluation = GpuEvaluation(inputs, self._constants, plan.device, self._sides)
        self.count_here()  # after all that may fail for want of memory
        self._steps.fetch()
        plan.steps += 1
        self._steps.put()

    def count_here(self) -> None:
        """Counts their steps where the host has to know them."""
        if self._steps_here is not None:
            check_not_recorded(self._plan.device)
            self._steps_here.count()

    def forget_steps(self) -> None:
        """Has the host read them, where a step may be half taken."""
        if self._steps_here is not None:
            self._steps_here.forget()

    def take_back(self) -> None:
        """As if steps had not been counted, and no number had followed from them."""
        if self._steps_here is not None:
            self._steps_here.take_back()
        self._plan.steps -= 1
        self._steps.put()
        for kept in self._kept:
            kept.put()

    def put(self, level: int, sums: Sums) -> Sums:
        """Takes over sums, and computes what follows from them; new scalar states as they are once they are kept."""
        for name, value in sums.items():
            one = value.values if isinstance(value, SideSums) else value
            if name not in self._rows:
                self._evaluation.inputs[name] = one
                continue
            row = self._rows[name]
            row.copy_(one, non_blocking=True) if isinstance(one, Tensor) else row.fill_(one)
        return self._follow(self.program.levels[level]) if level < len(self.program.levels) else {}

    @property
    def _inputs(self) -> dict[str, Any]:
        return self._evaluation.inputs

    @property
    def _count(self) -> int:
        return self._plan.count

    def _lengths(self, name: str) -> Any:
        assert self._sides is not None
        side = self._sides.sides.get(name)
        return self._sides.lengths[EXTENTS[side.axis]] if side is not None else np.ones(self._count, np.int64)

    def _told(self) -> tuple[Value, bytes, There | None]:
        settings = self._plan.settings(self._settings)
        if self._steps_here is None:
            return Evaluation(settings), _known(settings), None
        there = There(self._evaluation, self._fixed, apart)
        return self._here(settings, self._steps_here.now), _known(settings), there

    def choices(self) -> Hashable:
        """What the host decides in the step that comes."""
        squares = self.rooms.square_rooms if isinstance(self.rooms, Rooms) else None
        if squares is None or self._steps_here is None:
            return ()
        here = self._here(self._plan.settings(self._settings), self._steps_here.next())
        return squares.told.choices(squares.choices, here, There(here, self._fixed, apart))

    def _here(self, settings: Mapping[str, Any], steps: np.ndarray) -> Evaluation:
        """What computes numbers of what the host knows."""
        return Evaluation({**settings, **self._counts, "step": steps})

    @property
    def graph_key(self) -> bytes:
        """The settings that functions of matrices are made for."""
        return _known(self._plan.settings(self._settings)) if self.rooms is not None else b""

    def _part(self, name: str, expression: Expression) -> None:
        value = self._evaluation(expression)
        if name in self._rows:
            self._rows[name].copy_(value)
            return
        self._inputs[name] = value
        if self._sides is not None and name in self.program.last.sides:
            self._sides.put(name, value)

    def _keep(self, name: str, numbers: Mapping[str, Expression]) -> None:
        new = self._new[name]
        new.numbers.copy_(self._evaluation.spread(numbers[name], self._extents[name]))
        new.put()
        self._evaluation.inputs[f"new_{name}"] = new.numbers


def _known(settings: Mapping[str, np.ndarray]) -> bytes:
    """Settings as they are compared with those of the step before."""
    return b"".join(x.tobytes() for x in settings.values())


class _Kept:
    """Numbers that are kept apart from each other, and where they are brought together.

    Args:
        kept_at: their addresses.
        are_double: 1 for those that are float64, 0 for float32.
        numbers: float64, as many; None for memory of its own.
        skip: as a plan's.
    """

    def __init__(self, kept_at: Tensor, are_double: Tensor, numbers: Tensor | None, skip: Tensor) -> None:
        size = len(kept_at)
        if numbers is None:
            numbers = torch.zeros(size, dtype=torch.float64, device=skip.device)
        self.numbers, self._kept_at, self._are_double, self._skip = numbers, kept_at, are_double, skip
        arguments = (-(-size // _TILE),), kept_at, are_double, numbers, skip, size
        self._launches = [Launch(function, *arguments, TILE=_TILE) for function in (fetch, put)]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], numbers: Tensor | None, skip: Tensor) -> _Kept:
        """Those of contiguous tensors, one's after another's."""
        places = [x.data_ptr() + x.element_size() * np.arange(x.numel(), dtype=np.int64) for x in tensors]
        are_double = np.repeat([x.dtype == torch.float64 for x in tensors], [len(one) for one in places]).astype(
            np.int32
        )
        every = np.concatenate([np.zeros(0, np.int64), *places])
        return cls(torch.from_numpy(every).to(skip.device), torch.from_numpy(are_double).to(skip.device), numbers, skip)

    def part(self, start: int, end: int, numbers: Tensor | None) -> _Kept:
        """Where some of them are kept, for other numbers."""
        return _Kept(self._kept_at[start:end], self._are_double[start:end], numbers, self._skip)

    def fetch(self) -> None:
        """Brings them together."""
        self._run(0)

    def put(self) -> None:
        """Puts them where they are kept, and leaves them here as they are kept there; nothing where the step is skipped."""
        self._run(1)

    def _run(self, number: int) -> None:
        if len(self._kept_at):
            with on(self._skip.device):
                self._launches[number]()
