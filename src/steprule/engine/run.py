"""What a step is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from typing import Any, NamedTuple, Protocol

from steprule.trace.norms import Norm
from steprule.trace.program import TENSOR, Program
from steprule.trace.turns import Over

Sums = Mapping[str, Any]
"""Sums over elements by name: for each tensor a list or array of numbers, or a tensor on a device that nobody waits for.

Where a name begins with "top_" or "low_", it is the largest or smallest element in place of the sum. Where processes have some of the
rows or columns of matrices, there are `SideSums` too."""

Gather = Callable[[Sequence[Any]], Any]
"""Gives what all processes have for some numbers, as an array with a row for each process.

All call it at the same places, with as many numbers, whatever parameters they have."""


class Complete(Protocol):
    """Makes sums over the elements that are here those over all there are: what processes have for themselves is added up.

    It is given what was read, works or parts of a step, and what each has found. Without sums it only compares works with those of
    other processes, unless that has been done in this step.

    Where something fails after the first call of a step, others may wait in the next one. So a process goes on to all calls
    of the step, which tell the others, does nothing else, and raises its error in the end. So do those that are told.
    """

    @property
    def failed(self) -> Exception | None:
        """What has failed in this step."""

    def __call__(self, works: Sequence[Any], sums: Sequence[Sums]) -> Sequence[Sums]:
        """Sums over all elements."""

    def keep(self, error: Exception) -> None:
        """Has something have failed; raises it where no other process has to be told, or those that wait are told otherwise."""

    def hear(self) -> None:
        """Takes note of what a call says: that a process has failed."""

    def settle(self, has_changed: bool) -> None:
        """Raises what has failed, if anything has.

        Args:
            has_changed: whether elements have been changed here.
        """


class SideSums(NamedTuple):
    """Sums over the rows or the columns that are here: of elements, for each column or row, or of their numbers, for each tensor.

    Attributes:
        values: float64, one tensor's after another's.
        lengths: how many each tensor has.
        over: what they are over.
    """

    values: Any
    lengths: Any
    over: Over


class Levels(Protocol):
    """The numbers that some tensors have for themselves, and the sums that these follow from, level by level."""

    @property
    def program(self) -> Program | None:
        """What they are a part of."""

    @property
    def rooms(self) -> Any:
        """The matrices that lie between its passes, a `steprule.engine.matrices.BesideRooms`; None where there are none."""

    @property
    def depth(self) -> int:
        """How many levels there are, each of which reads what those before it have found; 0 where there are no numbers."""

    def count(self) -> None:
        """Counts steps, and forgets what held for the last."""

    def run(self, level: int) -> None:
        """Reads elements for a level's sums."""

    def sums(self, level: int) -> Sums:
        """A level's sums; the first one has none."""

    def put(self, level: int, sums: Sums) -> Sums:
        """Takes over these sums, those over all tensors as one number, and computes what follows from them.

        Returns `SideSums` of this, if there are some that the rest of the level needs: then it is called again with these
        over the wholes.
        """

    def join(self, level: int) -> None:
        """Computes a level's matrices, where there are rooms for them; all processes that have parts of them call it."""

    def awaited(self, level: int, turn: int) -> Sums:
        """Zeros in the place of what `sums` gives, and after that `put` for the turn-th time, where something has failed."""

    def take_back(self) -> None:
        """Has steps and numbers be what they were before `count`."""


class Work(Levels, Protocol):
    """Some of the tensors that are stepped together: those of one plan, or one that no kernel steps."""

    @property
    def in_turn(self) -> bool:
        """Whether it shares memory with others in turn, and so is stepped before one of them finds its numbers."""

    @property
    def params(self) -> Sequence[Any]:
        """The tensors, as `sums` has them."""

    def read(self, norm: Norm) -> Sums:
        """The norms of gradients as they are, up to roots: "total_grad", "top_grad" or "low_grad".

        Those of rows are read where each row has a factor, and added up for each tensor.
        """

    def prepare(self) -> None:
        """Raises where the step cannot be taken; nothing has changed yet."""

    def step(self, gather: bool) -> None:
        """Changes elements, and gathers telemetry if that is wanted."""


class Spread(NamedTuple):
    """How numbers of all parameters come about where each process has others.

    Attributes:
        gather: what all processes have.
        names: for each level the sums over all tensors, the same in all processes.
    """

    gather: Gather
    names: Sequence[Sequence[str]]


class Around(Protocol):
    """What is asked before a step and told of it afterwards."""

    @property
    def wants(self) -> Norm | None:
        """The norm of gradients that it wants to know; None for nothing."""

    @property
    def gathers(self) -> bool:
        """Whether telemetry looks at the step that comes."""

    @property
    def counts(self) -> bool:
        """Whether the step leaves sums behind it."""

    def ask(self, works: Sequence[Any], sums: Sequence[Sums], complete: Complete) -> bool:
        """Says what gradients are multiplied by, and whether the step is taken.

        On a device it always is, and changes nothing where kernels find that it is to be skipped.

        Args:
            works: of the step.
            sums: what each has read.
            complete: for what else it reads.
        """

    def note(self, works: Sequence[Any], gathered: bool, complete: Complete) -> None:
        """Takes note of a step that was taken."""


class _Alone:
    """`Complete` for one process."""

    failed = None

    def __call__(self, works: Sequence[Any], sums: Sequence[Sums]) -> Sequence[Sums]:
        return sums

    def keep(self, error: Exception) -> None:
        raise error

    def hear(self) -> None:
        """Nothing: there is nobody else."""

    def settle(self, has_changed: bool) -> None:
        """Nothing: `keep` raises."""


alone: Complete = _Alone()


def take_step(
    works: Sequence[Work],
    around: Around,
    complete: Complete = alone,
    begin: Callable[[], None] | None = None,
    spread: Spread | None = None,
    compares: bool = False,
) -> bool:
    """Steps some tensors; False if the step is refused, and nothing has changed.

    Args:
        works: all of the tensors.
        around: the services.
        complete: makes sums over what is here those over all.
        begin: for a step that no plan has taken before, called when all has been looked at and nothing has changed yet.
        spread: for processes that have different parameters. One that has none takes part.
        compares: whether works are compared with those of other processes before anything changes.
    """
    wants = around.wants
    sums = complete(works, [work.read(wants) for work in works]) if wants is not None else ()
    try:
        if not around.ask(works, sums, complete):  # clipping, the check for non-finite gradients, the average's weight
            return False
        for work in works if begin is not None else ():
            work.prepare()
    except Exception as error:
        complete.keep(error)
    together = [work for work in works if not work.in_turn]
    numbered = [work for work in together if work.depth]
    if wants is None:  # else works were compared with the norms
        asks = compares or around.counts
        if asks or not numbered:  # else all have sums, of which the first are compared before anything changes
            complete(works if asks else (), ())
        if spread is not None and around.counts and not any(spread.names):
            spread.gather(())
    if numbered or spread is not None:
        find_numbers(numbered, complete, spread)
    gather, has_changed = around.gathers, complete.failed is None
    try:
        if begin is not None and has_changed:
            begin()
        for work in together if has_changed else ():
            work.step(gather)
        for work in works if has_changed and len(together) < len(works) else ():
            if work.in_turn:  # whose tensors are whole in this process
                find_numbers([work])
                work.step(gather)
    except Exception as error:
        complete.keep(error)
    around.note(works, gather, complete)
    if complete.failed is not None:
        complete.settle(has_changed)
    return True


def find_numbers(works: Sequence[Levels], complete: Complete = alone, spread: Spread | None = None) -> None:
    """Counts steps, and level by level brings all numbers that tensors have for themselves to where elements can change.

    If that fails, steps and the numbers that tensors have are taken back. What other processes say comes before any element changes.
    But a pass that stores momentum before products has done so where these fail, as for want of memory.
    """
    has_found, counted = False, list[Levels]()
    try:
        for work in works if complete.failed is None else ():
            work.count()
            counted.append(work)
        _find_levels(works, complete, spread)
        has_found = complete.failed is None
    finally:
        for work in counted if not has_found else ():
            work.take_back()


def _find_levels(works: Sequence[Levels], complete: Complete, spread: Spread | None) -> None:
    names = spread.names if spread is not None else ()
    for level in range(max([len(names), *(work.depth for work in works)])):
        sums: Sequence[Sums] = ()
        try:
            for work in works if complete.failed is None else ():
                work.run(level)
            sums = [work.sums(level) for work in works] if complete.failed is None else ()
        except Exception as error:
            complete.keep(error)
        sums = complete(works, sums if complete.failed is None else [work.awaited(level, 0) for work in works])
        waiting: Sequence[Sums] = ()
        totals: dict[str, Any] = {}
        try:
            totals = totals_of(works, sums)
        except Exception as error:
            complete.keep(error)
        try:
            if spread is not None and level < len(names) and names[level]:
                every = spread.gather([totals.get(name, 0.0) for name in names[level]])
                totals = {name: sum_of_parts([own.tolist()]) for name, own in zip(names[level], every.T, strict=True)}
            waiting = [
                work.put(
                    level,
                    {name: totals[name] if _is_of_all(work, name) else x for name, x in own.items()} if totals else own,
                )
                for work, own in (zip(works, sums, strict=True) if complete.failed is None else ())
            ]
        except Exception as error:
            complete.keep(error)
        _take_turns(works, level, waiting, complete)
        for work in works:
            if work.rooms is not None and (complete.failed is None or work.rooms.key is not None):
                try:
                    work.join(level)
                except Exception as error:
                    complete.keep(error)


def _take_turns(works: Sequence[Levels], level: int, waiting: Sequence[Sums], complete: Complete) -> None:
    """Makes sums of a level those over the wholes that follow from other ones of it."""
    for turn in count(1):
        if complete.failed is not None:
            waiting = [work.awaited(level, turn) for work in works]
        if not any(waiting):
            return
        sums = complete(works, waiting)
        try:
            if complete.failed is None:
                waiting = [work.put(level, own) if own else {} for work, own in zip(works, sums, strict=True)]
        except Exception as error:
            complete.keep(error)


def nothing(work: Any, names: Sequence[str]) -> Sums:
    """In the place of what a work has found, where that has failed."""
    return {name: [0.0] * len(work.params) for name in names}


def summed(program: Program | None, level: int) -> list[str]:
    """The names of a level's sums of each tensor."""
    levels = program.levels if program is not None else ()
    reading = levels[level].reading if level < len(levels) else None
    return [name for name, one in reading.sums.items() if one.axis == TENSOR] if reading is not None else []


def totals_of(works: Sequence[Levels], sums: Sequence[Sums]) -> dict[str, Any]:
    """Where the formula wants a sum over all tensors, the sum of each tensor's."""
    of_all: dict[str, list[Any]] = {}
    for work, own in zip(works, sums, strict=True):
        for name, values in own.items():
            if _is_of_all(work, name):
                of_all.setdefault(name, []).append(values)
    return {name: sum_of_parts(values) for name, values in of_all.items()}


def _is_of_all(work: Levels, name: str) -> bool:
    """Whether a work's sum is over all tensors; another rule's of that name may not be."""
    one = work.program.sums.get(name) if work.program is not None else None
    return one is not None and one.of_all


def sum_of_parts(parts: Sequence[Any]) -> Any:
    """The sum of all numbers of all parts, lists or tensors: the same whatever their order, however they are divided."""
    numbers = list(chain.from_iterable(x if isinstance(x, list) else [x] for x in parts))
    places = {getattr(x, "device", None) for x in numbers}
    if places == {None}:
        return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)
    import torch

    if len(places) == 1 or not any(isinstance(x, list) for x in parts):
        place = numbers[0].device
    else:  # what the host must know it has to wait for
        place = torch.device("cpu")
    wide = [torch.as_tensor(x, dtype=torch.float64, device=getattr(x, "device", "cpu")).reshape(-1) for x in numbers]
    return torch.cat([x.to(place, non_blocking=place.type != "cpu") for x in wide]).sort().values.sum()


class _Nothing:
    """Around a step without services."""

    wants, gathers, counts, repeats = None, False, False, True

    def repeat(self) -> None:
        """Remembers none."""

    def ask(self, works: Sequence[Any], sums: Sequence[Sums], complete: Complete) -> bool:
        """Takes every step."""
        return True

    def note(self, works: Sequence[Any], gathered: bool, complete: Complete) -> None:
        """Remembers none."""


NOTHING = _Nothing()
