"""Cuts out of a formula what must be known before its elements change: sums, new values of scalar states, functions of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from steprule.trace.expression import MATRIX_OPS, SUM_OPS, Expression, nodes_of, operations, reads
from steprule.trace.extent import ELEMENTS, NUMBER
from steprule.trace.program import COUNTS, IN_PLACE, Level, Matrix, Stage, Sum


@dataclass(frozen=True)
class Cut:
    """What was cut out.

    Attributes:
        numbers: for each scalar state its new value, each after those that it is made of.
        sums: the sums by name.
        matrices: the functions of matrices by name.
        level: of each of the tensors' own numbers, and of each matrix, how many readings of the elements go before it.
        early: the states that a reading stores, with its number and the new value.
    """

    numbers: Mapping[str, Expression] = field(default_factory=dict)
    sums: Mapping[str, Sum] = field(default_factory=dict)
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    level: Mapping[str, int] = field(default_factory=dict)
    early: Mapping[str, tuple[int, Expression]] = field(default_factory=dict)

    @property
    def own(self) -> tuple[str, ...]:
        """The tensors' own numbers."""
        return tuple(name for name in self.level if name not in self.matrices)

    def levels(self, inputs: Stage) -> tuple[Level, ...]:
        """What goes before the last pass.

        Args:
            inputs: what passes may read.
        """
        depth = max((self.level[name] for name in (*self.sums, *self.matrices)), default=0)
        return tuple(self._level(number, inputs) for number in range(depth + 1))

    def _level(self, number: int, inputs: Stage) -> Level:
        known = tuple(name for name in self.own if self.level[name] == number)
        sums = {name: one for name, one in self.sums.items() if name in known}
        matrices = {name: one for name, one in self.matrices.items() if self.level[name] == number}
        stored = {name: new for name, (level, new) in self.early.items() if level == number}
        stored |= {name: one.of for name, one in matrices.items()}
        reading = Stage(inputs.operands, inputs.scalars, inputs.own, inputs.factor, stored, sums)
        numbers = {name: new for name, new in self.numbers.items() if f"new_{name}" in known}
        return Level(reading if sums or stored else None, numbers, known, matrices)


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
    """Whether passes over elements, with functions of matrices between them that leave their shape, compute formulas."""
    return all(
        node.extent in (NUMBER, ELEMENTS) and (node.op not in MATRIX_OPS or node.op in IN_PLACE)
        for node in nodes_of(outputs.values())
    )


def cut(scalar_states: tuple[str, ...], outputs: dict[str, Expression]) -> Cut:
    """Takes out of outputs what is known or stored before the last pass, and makes it inputs of what is left."""
    depth: dict[int, int] = {}
    numbers: dict[object, int] = {}
    keys: dict[int, int] = {}
    found: list[Expression] = []

    def visit(node: Expression) -> None:
        if id(node) in keys:
            return
        nodes = [arg for arg in node.args if isinstance(arg, Expression)]
        for arg in nodes:
            visit(arg)
        depth[id(node)] = max((depth[id(arg)] for arg in nodes), default=0) + (
            node.op in SUM_OPS or node.op in IN_PLACE
        )
        what = (node.op, *(keys[id(arg)] if isinstance(arg, Expression) else repr(arg) for arg in node.args))
        keys[id(node)] = numbers.setdefault(what, len(numbers))  # the same for what is written alike
        found.append(node)

    for expression in outputs.values():
        visit(expression)
    kept = [name for name in outputs if name in scalar_states]
    new = {name: outputs.pop(name) for name in kept}
    asked = {node.args[0] for node in found if node.op == "input"}
    level = {
        name: 0 for name in COUNTS if name in asked or "rows" in asked or not IN_PLACE.isdisjoint(operations(found))
    }
    level |= dict.fromkeys(kept, 0)
    level |= {f"new_{name}": depth[id(expression)] for name, expression in new.items()}
    places = {id(node): place for place, node in enumerate(found)}
    order = sorted(new, key=lambda name: places[id(new[name])])
    computed = {name: Expression(new[name].op, new[name].args, NUMBER) for name in order}
    sums: dict[str, Sum] = {}
    matrices: dict[str, Matrix] = {}
    names: dict[int, str] = {}
    for node in found:
        if node.op in SUM_OPS or node.op in IN_PLACE:
            key = keys[id(node)]
            if key not in names:
                if node.op in SUM_OPS:
                    names[key] = f"sum{len(sums)}"
                    sums[names[key]] = Sum(node.args[0], of_all=node.op == "total_of_all")
                else:
                    names[key] = f"matrix{len(matrices)}"
                    matrices[names[key]] = Matrix(node.op, node.args[0], node.args[1:])
                level[names[key]] = depth[id(node)]
            node.op, node.args = "input", (names[key],)
    for name, one in computed.items():
        if one.op in SUM_OPS:
            one.op, one.args = "input", (names[keys[id(new[name])]],)
    for name, expression in new.items():
        if expression.op not in ("input", "constant") or expression.args[0] in sums:
            expression.op, expression.args = "input", (f"new_{name}",)
    early = _stored_early(outputs, sums, matrices, level, {name: depth[id(one)] for name, one in outputs.items()})
    for name in early:
        del outputs[name]
    return Cut(computed, sums, matrices, level, early)


def _stored_early(
    outputs: Mapping[str, Expression],
    sums: Mapping[str, Sum],
    matrices: Mapping[str, Matrix],
    level: Mapping[str, int],
    depth: Mapping[str, int],
) -> dict[str, tuple[int, Expression]]:
    """The states that the pass before a function of matrices may store, since no later pass reads them: one reading less."""
    last = max((level[name] for name in (*sums, *matrices)), default=0)
    read = {number: [sums[name].expression for name in sums if level[name] == number] for number in range(1, last + 1)}
    for name, one in matrices.items():
        read[level[name]].append(one.of)
    writing = sorted({level[name] for name in matrices})
    early: dict[str, tuple[int, Expression]] = {}
    for name, new in outputs.items():
        others = [one for other, one in outputs.items() if other != name]
        for number in writing if name != "param" else ():
            later = [*others, *(one for after in range(number + 1, last + 1) for one in read[after])]
            if depth[name] < number and not any(reads(one, (name,)) for one in later):
                early[name] = number, new
                break
    return early
