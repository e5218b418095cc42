"""A traced rule: the stages of its step, in order."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steprule.trace.expression import Expression, inputs_of, scalar_name
from steprule.trace.extent import COLS, NUMBER, ROWS, Extent

TENSOR, ROW, COL = "tensor", "row", "col"
"""What has a number for itself: each tensor, each index of its first dimension, or each column of the matrix that it is."""
EXTENTS: Mapping[str, Extent] = {TENSOR: NUMBER, ROW: ROWS, COL: COLS}
"""What such numbers are, by what has them."""
ADD, LARGEST, SMALLEST = "add", "largest", "smallest"
"""How elements become one number. Where there are none, the sum is 0, and so is the largest; the smallest is inf."""


@dataclass(frozen=True)
class Sum:
    """One number that elements become.

    Attributes:
        expression: of what. Of what is never negative, where the largest is wanted.
        how: `ADD`, `LARGEST` or `SMALLEST`.
        axis: of each `TENSOR`, of each `ROW` or of each `COL`.
        of_all: whether it is over the elements of all tensors, and not of each.
    """

    expression: Expression
    how: str = ADD
    axis: str = TENSOR
    of_all: bool = False


COUNTS = ("numel", "rows", "cols")
"""The tensors' own numbers that say how many elements, rows and columns each has. Where there are matrices all are there."""
IN_PLACE = frozenset(("polar", "decorrelate"))
"""Functions of a matrix that are a matrix of its shape."""


@dataclass(frozen=True)
class Matrix:
    """A matrix for each tensor between two passes, of the tensor's shape: a function of what the first has stored in its place.

    Attributes:
        op: which, one of `IN_PLACE`; "" if it stays as it was stored, or is made of others; see `Squares`.
        of: of what, a value for each element; None for what no pass stores.
        others: its other arguments: numbers, as expressions, and what is none, as it was given.
        is_part: whether it is of a share of the rows or columns, and the rest is 0.
        place: the matrix whose memory it takes, which nothing needs any more; "" for memory of its own.
    """

    op: str
    of: Expression | None
    others: tuple[Any, ...] = ()
    is_part: bool = False
    place: str = ""


@dataclass(frozen=True)
class Squares:
    """What is computed of whole matrices after a pass, by products and functions of squares.

    Their inputs are states that are squares, matrices that passes have stored, and numbers, rows and columns that are known by then.

    Attributes:
        made: for each matrix that passes read afterwards what it is.
        states: for each state that is a square its new value, in the rule's order.
        kept: the states that take their new values then, since nothing needs the old ones any more.
        later: the expressions that later `Squares` need as well, by identity.
        read: the states that are squares whose old values are read then, and by none before.
    """

    made: Mapping[str, Expression] = field(default_factory=dict)
    states: Mapping[str, Expression] = field(default_factory=dict)
    kept: Mapping[str, Expression] = field(default_factory=dict)
    later: tuple[Expression, ...] = ()
    read: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """Numbers that rows or columns have.

    Attributes:
        axis: `ROW` or `COL`.
        how: what a pass does with them: it reads them (""), or finds them as a sum does, `ADD` or `LARGEST`.
    """

    axis: str
    how: str = ""


@dataclass(frozen=True)
class Stage:
    """One pass over all elements of all tensors: it stores operands, or adds up what must be known before they change.

    Attributes:
        operands: "param", "grad" and the states that exist, in order.
        scalars: the hyperparameters as (name, index) pairs, index None for plain numbers; step apart.
        own: the numbers that each tensor has for itself besides the step, all of them scalars: "numel", how many
            elements it has; its scalar states, and as "new_..." their new values; its sums.
        factor: what has a ``grad_factor`` for itself, `TENSOR` or `ROW`; "" where there is none.
        outputs: for each operand that it stores its new value.
        sums: what it adds up, by name.
        counted: what is 1 where an element counts as zeroed and 0 elsewhere, or None.
        gathered: "grad", "update" and "param" as telemetry wants them, or none.
        wide: whether it computes in float64, whatever the operands are.
        sides: the numbers of rows and columns, by name, which all passes of a program know.
        measured: those of the outputs whose squares it adds up as well, for each tensor.
    """

    operands: tuple[str, ...]
    scalars: tuple[tuple[str, int | None], ...]
    own: tuple[str, ...] = ()
    factor: str = ""
    outputs: Mapping[str, Expression] = field(default_factory=dict)
    sums: Mapping[str, Sum] = field(default_factory=dict)
    counted: Expression | None = None
    gathered: Mapping[str, Expression] = field(default_factory=dict)
    wide: bool = False
    sides: Mapping[str, Side] = field(default_factory=dict)
    measured: tuple[str, ...] = ()

    def expressions(self) -> list[Expression]:
        """All that it computes."""
        counted = [self.counted] if self.counted is not None else []
        return [
            *self.outputs.values(),
            *self.gathered.values(),
            *counted,
            *(one.expression for one in self.sums.values()),
        ]


@dataclass(frozen=True)
class Level:
    """What is known before elements change: a pass that adds up, and what follows from its sums for each tensor.

    Attributes:
        reading: the pass, or None where nothing need be added up.
        numbers: for each state of numbers, rows or columns that can be computed then its new value, in an order in which each
            comes after those that it is made of.
        known: which of the tensors' own numbers are known from here on.
        beside: which of the numbers of rows and columns.
        matrices: the functions of matrices that are computed then, by the operand that each is.
        parts: what else is computed then of numbers, rows and columns, by name.
        order: the new states, as "new_...", and the parts, each after what it is made of.
        squares: what is computed of whole matrices then, if anything is.
    """

    reading: Stage | None
    numbers: Mapping[str, Expression]
    known: tuple[str, ...]
    beside: tuple[str, ...] = ()
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    parts: Mapping[str, Expression] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    squares: Squares | None = None

    @property
    def fetched(self) -> list[str]:
        """The matrices that the pass has stored for functions of whole ones, and the squares that are read then and not before."""
        stored = [name for name, one in self.matrices.items() if one.of is not None]
        return [*stored, *(self.squares.read if self.squares is not None else ())]

    @property
    def returned(self) -> list[str]:
        """The matrices that passes read afterwards, and the squares that have their new values."""
        made = [name for name, one in self.matrices.items() if one.op or one.of is None]
        return [*made, *(self.squares.kept if self.squares is not None else ())]


@dataclass(frozen=True)
class Program:
    """All that a step of a rule does, or a pass that only adds up.

    Attributes:
        levels: what comes before elements change, in order. The first has no pass.
        last: the pass that changes them, or the one that adds up.
        nonnegative: the states that are seen to stay at 0 or above: sums, averages and maxima of squares, and such.
        extreme: the running maxima and minima among the states, and those that they are compared with.
        sees_matrix: whether a tensor is a matrix to it, and not any number of elements.
        by_passes: whether passes over elements compute it, with functions of matrices between them. If not there are none.
        takes_vectors: whether it means something for a tensor of fewer than two dimensions.
        in_some_steps: whether some of it is computed in some steps only, which the host must know.
    """

    levels: tuple[Level, ...]
    last: Stage
    nonnegative: frozenset[str]
    extreme: frozenset[str]
    sees_matrix: bool = False
    by_passes: bool = True
    takes_vectors: bool = True
    in_some_steps: bool = False

    @property
    def operands(self) -> tuple[str, ...]:
        """Those of all passes."""
        return self.last.operands

    @property
    def scalars(self) -> tuple[tuple[str, int | None], ...]:
        """Those of all passes."""
        return self.last.scalars

    @property
    def own(self) -> tuple[str, ...]:
        """The numbers that each tensor has for itself."""
        return self.last.own

    @property
    def factor(self) -> str:
        """What has a ``grad_factor`` for itself."""
        return self.last.factor

    @cached_property
    def readings(self) -> tuple[Stage, ...]:
        """The passes that go before the last."""
        return tuple(level.reading for level in self.levels if level.reading is not None)

    @cached_property
    def sums(self) -> Mapping[str, Sum]:
        """All sums by name."""
        return {name: one for reading in self.readings for name, one in reading.sums.items()}

    @cached_property
    def matrices(self) -> Mapping[str, Matrix]:
        """All functions of matrices by name, in the order of the operands that they are."""
        found = {name: one for level in self.levels for name, one in level.matrices.items()}
        return {name: found[name] for name in self.operands if name in found}

    @property
    def joins(self) -> bool:
        """Whether something is computed of whole matrices, or of squares, between passes."""
        return self.last_joined >= 0

    @cached_property
    def last_joined(self) -> int:
        """The last level that computes something of matrices."""
        joined = [number for number, one in enumerate(self.levels) if one.matrices or one.squares is not None]
        return joined[-1] if joined else -1

    @cached_property
    def has_squares(self) -> bool:
        """Whether something is computed of whole matrices between passes."""
        return any(level.squares is not None for level in self.levels)

    @cached_property
    def square_states(self) -> tuple[str, ...]:
        """The states that are squares beside a matrix, if passes compute it."""
        return tuple(name for level in self.levels if level.squares is not None for name in level.squares.kept)

    @cached_property
    def settings(self) -> Mapping[str, int]:
        """The places among `scalars` of those that functions of matrices, and what is computed of squares, are told, by name."""
        told = [x for one in self.matrices.values() for x in one.others if isinstance(x, Expression)]
        squares = [level.squares for level in self.levels if level.squares is not None]
        told += [x for one in squares for x in (*one.made.values(), *one.states.values())]
        names = {name for x in told for name in inputs_of(x)}
        return {name: place for place, one in enumerate(self.scalars) if (name := scalar_name(*one)) in names}

    @cached_property
    def early(self) -> Mapping[str, Expression]:
        """For each state that a reading stores its new value."""
        stored = {name: new for reading in self.readings for name, new in reading.outputs.items()}
        return {name: new for name, new in stored.items() if name not in self.matrices}

    @cached_property
    def numbers(self) -> Mapping[str, Expression]:
        """For each state of numbers, rows or columns its new value."""
        return {name: new for level in self.levels for name, new in level.numbers.items()}

    def check(self) -> None:
        """Raises where a stage reads what is not there yet, or what it needs is gone.

        A pass may read operands, hyperparameters, the step and those of the numbers of tensors, rows and columns that the levels
        before it have made known; of rows and columns those that are among its `sides`. Numbers may read no elements. Nothing
        reads an operand after the pass that stores it, but for a matrix. Every sum and every number has one place. Levels add up
        elements or find the largest of rows and columns, from which numbers follow; the last pass may also find the largest and
        the smallest of tensors.

        Raises:
            AssertionError: it does; the message says which.
        """
        if not self.by_passes:
            return
        constants = {"step", *(scalar_name(*scalar) for scalar in self.scalars)}
        elements = {*self.operands, *(["grad_factor"] if self.last.factor else [])} - self.matrices.keys()
        known = set(constants)
        own = [name for level in self.levels for name in level.known]
        readable = {*constants, *own, *self.last.sides}
        stored: set[str] = set()
        for number, level in enumerate(self.levels):
            if level.reading is not None:
                _check_reads(
                    f"the pass of level {number}", level.reading.expressions(), known & readable | elements, stored
                )
                stored |= set(level.reading.outputs) - self.matrices.keys()
            elements |= set(level.matrices)
            fresh = {**{f"new_{name}": new for name, new in level.numbers.items()}, **level.parts}
            assert set(level.order) == set(fresh), f"level {number} makes {[*fresh]} in the order {level.order}"
            made = fresh.keys() | set(level.reading.sums if level.reading is not None else ())
            said = {*level.known, *level.beside}
            assert made <= said, f"level {number} makes {made - said} and does not say so"
            known |= said - fresh.keys()
            for name in level.order:
                _check_reads(f"{name} of level {number}", [fresh[name]], known, stored)
                known.add(name)
        assert sorted(own) == sorted(self.own), f"levels know {own}, and tensors have {self.own}"
        _check_reads("the last pass", self.last.expressions(), known & readable | elements, stored)
        changed = set() if self.last.sums else {*self.operands} - {"grad", *self.matrices, *self.early}
        assert set(self.last.outputs) == changed, f"the last pass stores {[*self.last.outputs]}"
        for name, one in self.sums.items():
            assert one.how == ADD or (one.how == LARGEST and one.axis != TENSOR), (
                f"levels add up tensors; {name} is {one.how} of each {one.axis}"
            )
        for name, one in self.last.sums.items():
            assert one.how in (ADD, LARGEST, SMALLEST) and one.axis in (TENSOR, ROW), (
                f"{name} is {one.how} of each {one.axis}"
            )
            assert not one.of_all, f"the last pass cannot wait for {name} of all tensors"


def _check_reads(who: str, expressions: Sequence[Expression], known: set[str], stored: set[str]) -> None:
    for name in _names(expressions):
        assert name in known, f"{who} reads {name}, which is not known yet"
        assert name not in stored, f"{who} reads {name}, which has been stored by then"


def _names(expressions: Sequence[Expression]) -> Iterator[str]:
    for expression in expressions:
        yield from inputs_of(expression)


def hyper_of(stage: Stage | Program, hyper: Mapping[str, Any]) -> list[Any]:
    """What stands for the scalars of a stage: numbers and 1-element tensors."""
    return [hyper[name] if index is None else operator.getitem(hyper[name], index) for name, index in stage.scalars]
