"""Cuts out of a formula what must be known before its elements change: sums, new values of states of numbers, rows and columns,
and functions of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from steprule.matrix.coefficients import published
from steprule.trace.expression import MATRIX_OPS, SUM_OPS, Expression, inputs_of, nodes_of, operations, reads
from steprule.trace.extent import COLS, ELEMENTS, NUMBER, PLAIN, ROWS, Extent
from steprule.trace.program import (
    ADD,
    COUNTS,
    EXTENTS,
    IN_PLACE,
    LARGEST,
    TENSOR,
    Level,
    Matrix,
    Side,
    Squares,
    Stage,
    Sum,
)
from steprule.trace.squares import SquareCut, fits_passes, is_whole, passes_that_read, put_off, readings_before

_AXES = {extent: axis for axis, extent in EXTENTS.items()}


@dataclass
class Cut:
    """What was cut out.

    Attributes:
        numbers: for each state of numbers, rows or columns its new value.
        sums: the sums of elements by name.
        matrices: the functions of matrices by name.
        parts: what else is made of numbers, rows and columns before a pass, by name.
        sides: the numbers of rows and columns that passes read or find.
        level: of each number of a tensor, of its rows or columns, and of each matrix, how many readings of the elements go
            before it.
        own: those that are one number for each tensor.
        early: the states that a reading stores, with its number and the new value.
        order: the new states, as "new_...", and the parts, each after what it is made of.
        squares: what is computed of whole matrices after each reading.
    """

    numbers: dict[str, Expression] = field(default_factory=dict)
    sums: dict[str, Sum] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    parts: dict[str, Expression] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)
    level: dict[str, int] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    early: dict[str, tuple[int, Expression]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    squares: list[Squares | None] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """How many readings go before the last pass."""
        return max((self.level[name] for name in (*self.sums, *self.matrices)), default=0)

    def levels(self, inputs: Stage) -> tuple[Level, ...]:
        """What goes before the last pass.

        Args:
            inputs: what passes may read.
        """
        return tuple(self._level(number, inputs) for number in range(self.depth + 1))

    def _level(self, number: int, inputs: Stage) -> Level:
        now = [name for name, level in self.level.items() if level == number and name not in self.matrices]
        known, beside = (tuple(name for name in now if (name in self.own) == own) for own in (True, False))
        sums = {name: one for name, one in self.sums.items() if self.level[name] == number}
        matrices = {name: one for name, one in self.matrices.items() if self.level[name] == number}
        stored = {name: new for name, (level, new) in self.early.items() if level == number}
        stored |= {name: one.of for name, one in matrices.items() if one.of is not None}
        measured = tuple(name for name, one in matrices.items() if one.op == "polar")
        reading = replace(inputs, outputs=stored, sums=sums, counted=None, gathered={}, measured=measured)
        order = tuple(name for name in self.order if self.level[name] == number)
        states = [name.removeprefix("new_") for name in order if name not in self.parts]
        numbers = {name: self.numbers[name] for name in states}
        parts = {name: self.parts[name] for name in order if name in self.parts}
        squares = self.squares[number] if self.squares else None
        return Level(reading if sums or stored else None, numbers, known, beside, matrices, parts, order, squares)


def sees_matrix(outputs: Mapping[str, Expression]) -> bool:
    """Whether formulas look at rows, columns or the whole of a matrix."""
    return any(
        node.extent not in (NUMBER, ELEMENTS)
        or node.op in MATRIX_OPS
        or (node.op == "input" and node.args[0] in ("rows", "cols"))
        for node in nodes_of(outputs.values())
    )


def takes_vectors(outputs: Mapping[str, Expression]) -> bool:
    """Whether formulas mean something for a vector, and multiply no matrices."""
    return (MATRIX_OPS - {"transpose"}).isdisjoint(operations(outputs.values()))


def goes_by_passes(outputs: Mapping[str, Expression]) -> bool:
    """Whether passes over elements, with functions of matrices between them, compute formulas."""
    return all(map(fits_passes, nodes_of(outputs.values())))


def cut(states: Mapping[str, Extent], outputs: dict[str, Expression]) -> Cut:
    """Takes out of outputs what is known or stored before the last pass, and makes it inputs of what is left.

    Args:
        states: those that are no elements.
        outputs: for the parameter and each state its new value; those of `states` are taken out.
    """
    put_off(outputs)
    return _Cutter(states, outputs).cut()


class _Cutter:
    """One cut.

    Attributes:
        found: all expressions, each after its arguments.
        depth: of each, how many readings go before it.
        keys: for each a number, the same for what is written alike.
    """

    def __init__(self, states: Mapping[str, Extent], outputs: dict[str, Expression]) -> None:
        self._states, self._outputs = states, outputs
        self.found: list[Expression] = []
        self.depth: dict[int, int] = {}
        self.keys: dict[int, int] = {}
        self._written: dict[object, int] = {}
        self._names: dict[int, str] = {}
        self._cut = Cut()

    def cut(self) -> Cut:
        """Cuts."""
        cut, outputs = self._cut, self._outputs
        for expression in outputs.values():
            self._visit(expression)
        depths = {name: self.depth[id(one)] for name, one in outputs.items()}
        places = {id(node): place for place, node in enumerate(self.found)}
        asked = {node.args[0] for node in self.found if node.op == "input"}
        # Tensors with numbers of their own are counted before the first pass, as matrices, rows and columns need.
        squares = SquareCut(self.depth, self.keys, cut.matrices, cut.level)
        squares.cut(self.found, outputs, [name for name, extent in self._states.items() if extent not in PLAIN])
        has_matrices = bool(cut.matrices or squares.states) or not IN_PLACE.isdisjoint(operations(self.found))
        has_sides = any(node.extent in (ROWS, COLS) for node in self.found)
        all_counts = "rows" in asked or has_matrices or has_sides
        extents: dict[str, Extent] = {name: NUMBER for name in COUNTS if name in asked or all_counts}
        cut.level.update(dict.fromkeys(extents, 0))
        new = {name: outputs.pop(name) for name in list(outputs) if name in self._states}
        extents |= {name: self._states[name] for name in new}
        cut.level |= dict.fromkeys(new, 0)
        extents |= {f"new_{name}": self._states[name] for name in new}
        cut.level |= {f"new_{name}": self.depth[id(one)] for name, one in new.items()}
        cut.numbers.update({name: _copy(one) for name, one in new.items()})
        at: dict[str, int] = {f"new_{name}": places[id(one)] for name, one in new.items()}
        self._name_sums(extents, at, places)
        for name, one in cut.numbers.items():
            if one.op in SUM_OPS or one.op in IN_PLACE:
                one.op, one.args = "input", (self._names[self.keys[id(new[name])]],)
        for name, one in new.items():
            if one.op not in ("input", "constant") or one.args[0] in (*cut.sums, *cut.parts):
                one.op, one.args = "input", (f"new_{name}",)
        self._name_sides(at, places)
        made = {**{f"new_{name}": one for name, one in cut.numbers.items()}, **cut.parts}
        later = {name: any(at.get(other) == at[name] for other in inputs_of(made[name]) - {name}) for name in at}
        # A state may be a part, and a part a state's new value: whichever reads the other comes after it.
        cut.order = tuple(sorted(at, key=lambda name: (at[name], later[name])))
        cut.own = tuple(name for name in cut.level if extents.get(name) == NUMBER)
        cut.early = _stored_early(cut, outputs, {name: depths[name] for name in outputs})
        for name in cut.early:
            del outputs[name]
        if squares.made or squares.states:
            passes = passes_that_read([*cut.matrices], _by_pass(cut, outputs))
            cut.squares = squares.levels(cut.depth, passes)
        return cut

    def _visit(self, node: Expression) -> None:
        if id(node) in self.keys:
            return
        nodes = [arg for arg in node.args if isinstance(arg, Expression)]
        for arg in nodes:
            self._visit(arg)
        reads_elements = node.op in IN_PLACE or (node.op in SUM_OPS and node.args[0].extent == ELEMENTS)
        before = max((self.depth[id(arg)] for arg in nodes), default=0) + reads_elements
        self.depth[id(node)] = readings_before(node, self.depth) if is_whole(node) else before
        what = (node.op, *(self.keys[id(arg)] if isinstance(arg, Expression) else repr(arg) for arg in node.args))
        self.keys[id(node)] = self._written.setdefault(what, len(self._written))
        self.found.append(node)

    def _name_sums(self, extents: dict[str, Extent], at: dict[str, int], places: Mapping[int, int]) -> None:
        """Makes sums and functions of matrices inputs."""
        cut, names = self._cut, self._names
        for node in self.found:
            if node.op not in SUM_OPS and node.op not in IN_PLACE:
                continue
            key = self.keys[id(node)]
            if key not in names:
                if node.op in IN_PLACE:
                    name = f"matrix{len(cut.matrices)}"
                    is_part = _leaves_out_zeros(node) and "top_share" in operations([node.args[0]])
                    cut.matrices[name] = Matrix(node.op, node.args[0], node.args[1:], is_part)
                elif node.args[0].extent == ELEMENTS:
                    name = f"sum{len(cut.sums)}"
                    how = LARGEST if node.op.endswith("largest") else ADD
                    axis = _AXES[node.extent]
                    cut.sums[name] = Sum(node.args[0], how, axis, node.op == "total_of_all")
                    if axis != TENSOR:
                        cut.sides[name] = Side(axis, how)
                    extents[name] = node.extent
                else:
                    name = f"part{len(cut.parts)}"
                    cut.parts[name] = _copy(node)
                    extents[name], at[name] = node.extent, places[id(node)]
                names[key], cut.level[name] = name, self.depth[id(node)]
            node.op, node.args = "input", (names[key],)

    def _name_sides(self, at: dict[str, int], places: Mapping[int, int]) -> None:
        """Makes what has a value for each row or column an input where elements are computed from it."""
        cut = self._cut
        names: dict[tuple[int, bool], str] = {}
        for node in self.found:
            if node.extent != ELEMENTS:
                continue
            for number, arg in enumerate(node.args):
                if not isinstance(arg, Expression) or arg.extent not in (ROWS, COLS):
                    continue
                # A product is cheaper than a quotient, and its factor is exact to float64.
                is_divisor = node.op == "div" and number == 1
                key = self.keys[id(arg)], is_divisor
                if key not in names:
                    name = names[key] = f"part{len(cut.parts)}"
                    one = Expression("constant", (1.0,), NUMBER)
                    cut.parts[name] = Expression("div", (one, arg), arg.extent) if is_divisor else arg
                    cut.level[name], at[name] = self.depth[id(arg)], places[id(arg)]
                    cut.sides[name] = Side(_AXES[arg.extent])
                part = Expression("input", (names[key],), arg.extent)
                node.args = (*node.args[:number], part, *node.args[number + 1 :])
                node.op = "mul" if is_divisor else node.op
        for name, extent in self._states.items():
            if extent in (ROWS, COLS) and not cut.sides:  # what no pass reads belongs to rows or columns as well
                cut.sides[f"new_{name}"] = Side(_AXES[extent])


def _by_pass(cut: Cut, outputs: Mapping[str, Expression]) -> Iterator[tuple[int, Expression]]:
    """What passes compute, with the number of each."""
    yield from ((cut.level[name], one.expression) for name, one in cut.sums.items())
    yield from ((cut.level[name], one.of) for name, one in cut.matrices.items() if one.of is not None)
    yield from cut.early.values()
    yield from ((cut.depth + 1, new) for new in outputs.values())


def _copy(x: Expression) -> Expression:
    return Expression(x.op, x.args, x.extent)


def _stored_early(
    cut: Cut, outputs: Mapping[str, Expression], depth: Mapping[str, int]
) -> dict[str, tuple[int, Expression]]:
    """The states that the pass before a function of matrices may store, since no later pass reads them: one reading less."""
    last = max((cut.level[name] for name in (*cut.sums, *cut.matrices)), default=0)
    read: dict[int, list[Expression]] = {number: [] for number in range(1, last + 1)}
    for name, one in cut.sums.items():
        read[cut.level[name]].append(one.expression)
    for name, matrix in cut.matrices.items():
        if matrix.of is not None:
            read[cut.level[name]].append(matrix.of)
    writing = sorted({cut.level[name] for name, matrix in cut.matrices.items() if matrix.of is not None})
    early: dict[str, tuple[int, Expression]] = {}
    for name, new in outputs.items():
        others = [one for other, one in outputs.items() if other != name]
        for number in writing if name != "param" else ():
            later = [*others, *(one for after in range(number + 1, last + 1) for one in read[after])]
            if depth[name] < number and not any(reads(one, (name,)) for one in later):
                early[name] = number, new
                break
    return early


def _leaves_out_zeros(node: Expression) -> bool:
    """Whether a function of a matrix is the same without rows that are 0: not where it asks which side is the shorter."""
    word = node.args[-1]
    return node.op == "polar" and (isinstance(word, Expression) or published(word).start == "norm")
