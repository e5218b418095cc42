"""What must be known of whole tensors before their elements change: sums, and states that are one number for each tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from steprule.engine.matrices import BesideRooms, Value
from steprule.engine.reading import Reading
from steprule.engine.run import SideSums, Sums, summed
from steprule.engine.sides import HostEvaluation, Sides
from steprule.engine.told import There
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.extent import NUMBER, Extent
from steprule.trace.program import COUNTS, EXTENTS, Level, Program
from steprule.trace.turns import Turn, turns_of


class OwnNumbers(ABC):
    """The numbers that tensors of a plan have for themselves, on whatever device they are.

    Args:
        program: their rule's.
        readings: the passes of its levels.
        rooms, sides, cut: as for `Planned`.

    Attributes:
        program, rooms: the same.
        depth: how many levels there are.
    """

    def __init__(
        self, program: Program, readings: Sequence[Any], rooms: BesideRooms | None, sides: Any, cut: Collection[Extent]
    ) -> None:
        self.program, self.depth, self.rooms, self._sides = program, len(program.levels), rooms, sides
        self._readings, self._is_cut = readings, bool(cut)
        self._turns = [turns_of(now, cut) for now in program.levels]
        self._left: Iterator[Turn] = iter(())
        self._squares: Sums = {}

    @abstractmethod
    def count(self) -> None:
        """Counts their steps, and forgets what held for the last."""
        if self.rooms is not None:
            self.rooms.forget()

    @property
    @abstractmethod
    def _inputs(self) -> dict[str, Any]:
        """What is known in this step, by name."""

    @property
    @abstractmethod
    def _count(self) -> int:
        """How many tensors take the step."""

    @abstractmethod
    def _lengths(self, name: str) -> Any:
        """How many numbers of a name each of them has."""

    @staticmethod
    def _passed_on(sums: Any) -> Any:
        """What a reading has found for each tensor, as it is added up over processes and works."""
        return sums

    @abstractmethod
    def _told(self) -> tuple[Value, bytes, There | None]:
        """What `BesideRooms.run` is told."""

    @abstractmethod
    def _part(self, name: str, expression: Expression) -> None:
        """Computes what is made of numbers, rows and columns, and puts it where passes read it."""

    @abstractmethod
    def _keep(self, name: str, numbers: Mapping[str, Expression]) -> None:
        """Keeps a state's new value, and knows it as it is kept."""

    def run(self, level: int) -> None:
        """Reads elements for a level's sums."""
        if 0 < level <= len(self._readings):
            self._readings[level - 1].run()

    def sums(self, level: int) -> Sums:
        """A level's sums, for each tensor."""
        if level >= self.depth:
            return {}
        found: dict[str, Any] = {}
        if 0 < level <= len(self._readings):
            sums = {name.removeprefix("total_"): values for name, values in self._readings[level - 1].sums().items()}
            self._squares = {name: values for name, values in sums.items() if name in self.program.matrices}
            found = {name: self._passed_on(values) for name, values in sums.items() if name not in self._squares}
        now, self._left = self.program.levels[level], iter(self._turns[level])
        if self._sides is not None:
            self._inputs.update({name: self._sides.found(name) for name in now.beside if name in self.program.sums})
        return {**found, **self._follow(now)} if self._is_cut else found

    def join(self, level: int) -> None:
        """Computes a level's matrices; all processes that have parts of them call it."""
        now, rooms = self.program.levels[level] if level < self.depth else None, self.rooms
        if rooms is None or now is None:
            return
        if now.matrices or now.squares is not None:
            value, settings, there = self._told()
            rooms.run(now, value, settings, self._squares, there)
        if level == self.program.last_joined:
            rooms.forget()

    def awaited(self, level: int, turn: int) -> Sums:
        """Zeros in the place of what other processes wait for."""
        found: dict[str, Any] = {} if turn else {name: [0.0] * self._count for name in summed(self.program, level)}
        turns = self._turns[level] if level < self.depth else ()
        for name, over in turns[turn].sums.items() if turn < len(turns) else ():
            lengths = self._lengths(name)
            found[name] = SideSums(np.zeros(int(lengths.sum())), lengths, over)
        return found

    def _follow(self, now: Level) -> Sums:
        """Computes what follows from sums, up to others that wait for those of other processes."""
        turn = next(self._left)
        for name in turn.order:
            if name in now.parts:
                self._part(name, now.parts[name])
            else:
                self._keep(name.removeprefix("new_"), now.numbers)
        return {name: SideSums(self._inputs[name], self._lengths(name), over) for name, over in turn.sums.items()}


class Planned(OwnNumbers):
    """Those of a plan of the CPU engine.

    Args:
        kernel: their kernel.
        plan: their plan, whose table `own` this fills.
        states: for each scalar state of each tensor a 0-dim array over the memory where it is kept.
        threads: says how many threads may work.
        sizes: how many elements each tensor has, or the one that it is a part of. Default: as the plan has it.
        shapes: what each tensor is as a matrix, where the formula asks for rows or columns.
        rooms: the matrices, where it has functions of them.
        sides: what rows and columns have, where they have numbers.
        extents: of the states that are not numbers; these are arrays with one for each row or column.
        cut: whether other processes have other rows of the tensors, or other columns.
    """

    def __init__(
        self,
        kernel: Any,
        plan: Any,
        states: Mapping[str, Sequence[np.ndarray]],
        threads: Callable[[], int],
        sizes: Sequence[int] | None = None,
        shapes: Sequence[Sequence[int]] = (),
        rooms: BesideRooms | None = None,
        sides: Sides | None = None,
        extents: Mapping[str, Extent] | None = None,
        cut: Collection[Extent] = (),
    ) -> None:
        super().__init__(kernel.program, [Reading(one, plan, threads) for one in kernel.readings], rooms, sides, cut)
        self._kernel, self._plan, self._states, self._of_all = kernel, plan, states, states
        counts = {"numel": plan.sizes if sizes is None else sizes}
        counts |= {"rows": [shape[-2] for shape in shapes], "cols": [shape[-1] for shape in shapes]}
        self._extents = {name: (extents or {}).get(name, NUMBER) for name in states}
        self._counts = {name: np.array(counts[name], np.float64) for name in COUNTS if name in self.program.own}
        self._computes = [bool(now.order or {*now.known, *now.beside} - {*COUNTS}) for now in self.program.levels]
        self._settings = [*self.program.settings.values()]
        self._columns = {name: number for number, name in enumerate(self.program.own)}
        for name, values in self._counts.items():
            plan.own[:, self._columns[name]] = values

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._states = {name: list(compress(kept, active)) for name, kept in self._of_all.items()}
        if self.rooms is not None:
            self.rooms.select(active)
        if self._sides is not None:
            self._sides.select(active)

    def count(self) -> None:
        """See `OwnNumbers`."""
        super().count()
        self._kernel.count(self._plan)
        self.__dict__.pop("_evaluation", None)

    @cached_property
    def _evaluation(self) -> Evaluation:
        """What computes expressions in this step, made where there are some: many steps have none."""
        plan, program, active = self._plan, self.program, self._plan.active
        hyper = plan.hyper[plan.groups[active]].T
        inputs = {scalar_name(*scalar): hyper[position] for position, scalar in enumerate(program.scalars)}
        inputs |= {"step": plan.steps[active].copy(), **{name: counts[active] for name, counts in self._counts.items()}}
        inputs |= {name: self._kept(name) for name in self._states}
        return Evaluation(inputs) if self._sides is None else HostEvaluation(inputs, self._sides)

    def _kept(self, name: str, is_new: bool = False) -> np.ndarray:
        """What is kept of a state: a number for each tensor, or all of its rows' or columns'."""
        kept = self._states[name]
        if self._extents[name] == NUMBER:
            return np.array([float(one) for one in kept])
        assert self._sides is not None
        room = self._sides.room((name, is_new), self._sides.starts[self._extents[name]][-1])
        return np.concatenate([one.reshape(-1) for one in kept], out=room) if kept else room

    def take_back(self) -> None:
        """As if steps had not been counted, and no number had followed from them."""
        self._plan.take_back_steps()
        for name in self._states:
            self._put(name, self._evaluation.inputs[name])

    def put(self, level: int, sums: Sums) -> Sums:
        """Takes over sums, and computes what follows from them; new scalar states as they are once they are kept."""
        if sums:
            values = ((name, one.values if isinstance(one, SideSums) else one) for name, one in sums.items())
            self._evaluation.inputs.update((name, np.asarray(one, np.float64)) for name, one in values)
        if level >= len(self.program.levels):
            return {}
        now = self.program.levels[level]
        if self._computes[level]:
            if waiting := self._follow(now):
                return waiting
            self._settle(now)
        return {}

    @property
    def _inputs(self) -> dict[str, Any]:
        return self._evaluation.inputs

    @property
    def _count(self) -> int:
        return len(self._plan.steps[self._plan.active])

    def _lengths(self, name: str) -> np.ndarray:
        assert self._sides is not None
        side = self._sides.sides.get(name)
        return np.diff(self._sides.starts[EXTENTS[side.axis]]) if side is not None else np.ones(self._count, np.int64)

    @staticmethod
    def _passed_on(sums: np.ndarray) -> list[float]:
        return sums.tolist()  # type: ignore[no-any-return]

    def _told(self) -> tuple[Value, bytes, None]:
        return self._value, self._plan.hyper[:, self._settings].tobytes(), None

    def _value(self, expression: Expression) -> Any:
        """An expression's value."""
        return self._evaluation(expression)

    def _follow(self, now: Level) -> Sums:
        with np.errstate(all="ignore"):
            return super()._follow(now)

    def _settle(self, now: Level) -> None:
        """Puts the numbers of tensors where passes read them."""
        for name in now.known:
            if name not in self._counts:
                self._plan.own[self._plan.active, self._columns[name]] = self._evaluation.inputs[name]

    def _part(self, name: str, expression: Expression) -> None:
        self._evaluation.inputs[name] = value = self._evaluation(expression)
        if self._sides is not None and name in self.program.last.sides:
            self._sides.put(name, value)

    def _keep(self, name: str, numbers: Mapping[str, Expression]) -> None:
        extent = self._extents[name]
        if extent == NUMBER:
            self._put(name, np.broadcast_to(self._evaluation(numbers[name]), len(self._states[name])))
        else:
            assert self._sides is not None and isinstance(self._evaluation, HostEvaluation)
            every = self._evaluation.spread(numbers[name], extent)
            self._put(name, np.broadcast_to(every, self._sides.starts[extent][-1]))
        self._evaluation.inputs[f"new_{name}"] = self._kept(name, is_new=True)

    def _put(self, name: str, values: np.ndarray) -> None:
        """Puts numbers, laid out as `_kept` has them, where a state is kept."""
        kept, extent = self._states[name], self._extents[name]
        if extent == NUMBER:
            for place, value in zip(kept, values.tolist(), strict=True):
                place[...] = value
            return
        assert self._sides is not None
        starts = self._sides.starts[extent]
        for place, start, end in zip(kept, starts, starts[1:], strict=False):
            place.reshape(-1)[:] = values[start:end]
