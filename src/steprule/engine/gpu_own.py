"""The GPU engine's sums and scalar states: as `steprule.engine.own`, but the host never waits for one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading
from steprule.engine.gpu_sides import GpuEvaluation, GpuSides
from steprule.engine.matrices import BesideRooms
from steprule.engine.run import SideSums, Sums, summed
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.extent import NUMBER, Extent
from steprule.trace.program import COUNTS, EXTENTS, Level, Program
from steprule.trace.turns import Over, Turn, turns_of

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


class GpuPlanned:
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
    ) -> None:
        self.program: Program = kernel.program
        self.depth = len(self.program.levels)
        self._plan = plan
        device, own = plan.device, self.program.own
        self._readings = [
            GpuReading(one.launcher(plan), Combination(plan.first_chunk, one.source.tallies, plan.partials))
            for one in kernel.readings
        ]
        self._rows = dict(zip(own, plan.own, strict=True))
        counts = {"numel": plan.lengths if sizes is None else sizes}
        counts |= {"rows": [shape[-2] for shape in shapes], "cols": [shape[-1] for shape in shapes]}
        for name in self._rows.keys() & set(COUNTS):
            self._rows[name].copy_(torch.tensor(counts[name], device=device))
        self.rooms = rooms
        self._turns, self._is_cut = [turns_of(now, cut) for now in self.program.levels], bool(cut)
        self._left: Iterator[Turn] = iter(())
        self._squares: Sums = {}
        self._settings = self.program.settings
        self._sides = sides
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
        """Counts their steps, and forgets what held for the last."""
        plan, program = self._plan, self.program
        plan.read_hyper()
        self._steps.fetch()
        plan.steps += 1
        self._steps.put()
        if self._new or self._sides is not None:
            for kept in self._kept:
                kept.fetch()
            columns = plan.hyper.index_select(0, plan.groups).T
            inputs = {scalar_name(*scalar): columns[i] for i, scalar in enumerate(program.scalars)}
            inputs |= {"step": plan.steps, **self._rows, **self._old}
            self._evaluation = GpuEvaluation(inputs, self._constants, plan.device, self._sides)

    def take_back(self) -> None:
        """As if steps had not been counted, and no number had followed from them."""
        self._plan.steps -= 1
        self._steps.put()
        for kept in self._kept:
            kept.put()

    def run(self, level: int) -> None:
        """Reads elements for a level's sums."""
        if 0 < level <= len(self._readings):
            self._readings[level - 1].run()

    def sums(self, level: int) -> Sums:
        """A level's sums, for each tensor."""
        if level >= len(self.program.levels):
            return {}
        found: dict[str, Any] = {}
        if 0 < level <= len(self._readings):
            sums = {name.removeprefix("total_"): value for name, value in self._readings[level - 1].sums().items()}
            self._squares = {name: value for name, value in sums.items() if name in self.program.matrices}
            found = {name: value for name, value in sums.items() if name not in self._squares}
        now, self._left = self.program.levels[level], iter(self._turns[level])
        if self._sides is not None:
            beside = {name: self._sides.found(name) for name in now.beside if name in self.program.sums}
            self._evaluation.inputs.update(beside)
        return {**found, **self._follow(now)} if self._is_cut else found

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

    def join(self, level: int) -> None:
        """Computes a level's matrices; all processes that have parts of them call it."""
        now = self.program.levels[level] if level < len(self.program.levels) else None
        if self.rooms is not None and now is not None and now.matrices:
            settings = self._plan.settings(self._settings)
            known = b"".join(x.tobytes() for x in settings.values())
            self.rooms.run(now, Evaluation(settings), known, self._squares)
        if self.rooms is not None and level == self.program.last_joined:
            self.rooms.forget()

    def awaited(self, level: int, turn: int) -> Sums:
        """Zeros in the place of what other processes wait for."""
        found: dict[str, Any] = {} if turn else {name: [0.0] * self._plan.count for name in summed(self.program, level)}
        turns = self._turns[level] if level < len(self._turns) else ()
        for name, over in turns[turn].sums.items() if turn < len(turns) else ():
            lengths = self._lengths(name, self._plan.count)
            found[name] = SideSums(np.zeros(int(np.sum(lengths))), lengths, over)
        return found

    def _follow(self, now: Level) -> Sums:
        """Computes what follows from sums, up to others that wait for those of other processes."""
        turn = next(self._left)
        for name in turn.order:
            if name in now.parts:
                self._part(name, now.parts[name])
            else:
                self._keep(name.removeprefix("new_"), now.numbers)
        return {name: self._side_sums(name, over) for name, over in turn.sums.items()}

    def _side_sums(self, name: str, over: Over) -> SideSums:
        """What other processes have other parts of."""
        values = self._evaluation.inputs[name]
        return SideSums(values, self._lengths(name, len(values)), over)

    def _lengths(self, name: str, count: int) -> Any:
        """How many numbers of a name each of so many tensors has."""
        assert self._sides is not None
        side = self._sides.sides.get(name)
        return self._sides.lengths[EXTENTS[side.axis]] if side is not None else np.ones(count, np.int64)

    @property
    def constants(self) -> bytes:
        """The settings that functions of matrices are made for."""
        settings = self._plan.settings(self._settings) if self.rooms is not None else {}
        return b"".join(x.tobytes() for x in settings.values())

    def _part(self, name: str, expression: Expression) -> None:
        """What is made of numbers, rows and columns, put where passes read it."""
        value = self._evaluation(expression)
        if name in self._rows:
            self._rows[name].copy_(value)
            return
        self._evaluation.inputs[name] = value
        if self._sides is not None and name in self.program.last.sides:
            self._sides.put(name, value)

    def _keep(self, name: str, numbers: Mapping[str, Expression]) -> None:
        """Keeps a state's new value, and knows it as it is kept."""
        new = self._new[name]
        new.numbers.copy_(self._evaluation.spread(numbers[name], self._extents[name]))
        new.put()
        self._evaluation.inputs[f"new_{name}"] = new.numbers


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
