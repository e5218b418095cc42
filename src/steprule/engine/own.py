"""What must be known of whole tensors before their elements change: sums, and states that are one number for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from steprule.engine.matrices import BesideRooms
from steprule.engine.reading import Reading
from steprule.engine.run import SideSums, Sums, summed
from steprule.engine.sides import HostEvaluation, Sides
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.extent import NUMBER, Extent
from steprule.trace.program import COUNTS, EXTENTS, Level, Program
from steprule.trace.turns import Over, Turn, turns_of


class Planned:
    """The numbers that tensors of a plan have for themselves.

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
        self.program: Program = kernel.program
        self.depth = len(self.program.levels)
        self._kernel, self._plan, self._states, self._of_all = kernel, plan, states, states
        counts = {"numel": plan.sizes if sizes is None else sizes}
        counts |= {"rows": [shape[-2] for shape in shapes], "cols": [shape[-1] for shape in shapes]}
        self._extents = {name: (extents or {}).get(name, NUMBER) for name in states}
        self._counts = {name: np.array(counts[name], np.float64) for name in COUNTS if name in self.program.own}
        self.rooms, self._sides = rooms, sides
        self._computes = [bool(now.order or {*now.known, *now.beside} - {*COUNTS}) for now in self.program.levels]
        self._turns = [turns_of(now, cut) for now in self.program.levels]
        self._is_cut = bool(cut)
        self._left: Iterator[Turn] = iter(())
        self._squares: Sums = {}
        self._settings = [*self.program.settings.values()]
        self._readings = [Reading(one, plan, threads) for one in kernel.readings]
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
        """Counts their steps, and forgets what held for the last."""
        self._kernel.count(self._plan)
        self.__dict__.pop("_evaluation", None)
        if self.rooms is not None:
            self.rooms.forget()

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
            sums = self._readings[level - 1].sums()
            found = {name.removeprefix("total_"): values for name, values in sums.items()}
            self._squares = {name: values for name, values in found.items() if name in self.program.matrices}
            found = {name: values.tolist() for name, values in found.items() if name not in self._squares}
        now, self._left = self.program.levels[level], iter(self._turns[level])
        if self._sides is not None:
            inputs = self._evaluation.inputs
            inputs |= {name: self._sides.found(name) for name in now.beside if name in self.program.sums}
        return {**found, **self._follow(now)} if self._is_cut else found

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

    def join(self, level: int) -> None:
        """Computes a level's matrices; all processes that have parts of them call it."""
        if level >= len(self.program.levels):
            return
        now, rooms = self.program.levels[level], self.rooms
        assert rooms is not None
        if now.matrices or now.squares is not None:
            rooms.run(now, self._value, self._plan.hyper[:, self._settings].tobytes(), self._squares)
        if level == self.program.last_joined:
            rooms.forget()

    def awaited(self, level: int, turn: int) -> Sums:
        """Zeros in the place of what other processes wait for."""
        count = len(self._plan.steps[self._plan.active])
        found: dict[str, Any] = {} if turn else {name: [0.0] * count for name in summed(self.program, level)}
        turns = self._turns[level] if level < len(self._turns) else ()
        for name, over in turns[turn].sums.items() if turn < len(turns) else ():
            lengths = self._lengths(name, count)
            found[name] = SideSums(np.zeros(int(lengths.sum())), lengths, over)
        return found

    def _value(self, expression: Expression) -> Any:
        """An expression's value."""
        return self._evaluation(expression)

    def _follow(self, now: Level) -> Sums:
        """Computes what follows from sums, up to others that wait for those of other processes."""
        inputs, turn = self._evaluation.inputs, next(self._left)
        for name in turn.order:
            with np.errstate(all="ignore"):
                if name in now.parts:
                    inputs[name] = self._part(name, now.parts[name])
                else:
                    inputs[name] = self._keep(name.removeprefix("new_"), now.numbers)
        return {name: self._side_sums(name, over) for name, over in turn.sums.items()}

    def _side_sums(self, name: str, over: Over) -> SideSums:
        """What other processes have other parts of."""
        values = self._evaluation.inputs[name]
        return SideSums(values, self._lengths(name, len(values)), over)

    def _lengths(self, name: str, count: int) -> np.ndarray:
        """How many numbers of a name each of so many tensors has."""
        assert self._sides is not None
        side = self._sides.sides.get(name)
        return np.diff(self._sides.starts[EXTENTS[side.axis]]) if side is not None else np.ones(count, np.int64)

    def _settle(self, now: Level) -> None:
        """Puts the numbers of tensors where passes read them."""
        for name in now.known:
            if name not in self._counts:
                self._plan.own[self._plan.active, self._columns[name]] = self._evaluation.inputs[name]

    def _part(self, name: str, expression: Expression) -> Any:
        """What is made of numbers, rows and columns, put where passes read it."""
        value = self._evaluation(expression)
        if self._sides is not None and name in self.program.last.sides:
            self._sides.put(name, value)
        return value

    def _keep(self, name: str, numbers: Mapping[str, Expression]) -> np.ndarray:
        """Keeps a state's new value, and returns it as it is kept."""
        extent = self._extents[name]
        if extent == NUMBER:
            self._put(name, np.broadcast_to(self._evaluation(numbers[name]), len(self._states[name])))
        else:
            assert self._sides is not None and isinstance(self._evaluation, HostEvaluation)
            every = self._evaluation.spread(numbers[name], extent)
            self._put(name, np.broadcast_to(every, self._sides.starts[extent][-1]))
        return self._kept(name, is_new=True)

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
