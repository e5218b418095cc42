"""Cuts sums and the new values of scalar states out of a formula: they are known before its elements change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from steprule.trace.expression import MATRIX_OPS, SUM_OPS, Expression, nodes_of
from steprule.trace.extent import ELEMENTS, NUMBER
from steprule.trace.program import Level, Stage, Sum


@dataclass(frozen=True)
class Cut:
    """What was cut out.

    Attributes:
        numbers: for each scalar state its new value, each after those that it is made of.
        sums: the sums by name.
        level: of each of the tensors' own numbers, how many readings of the elements go before it.
    """

    numbers: Mapping[str, Expression]
    sums: Mapping[str, Sum]
    level: Mapping[str, int]

    def levels(self, inputs: Stage) -> tuple[Level, ...]:
        """What goes before the last pass.

        Args:
            inputs: what passes may read.
        """
        depth = max((self.level[name] for name in self.sums), default=0)
        return tuple(self._level(number, inputs) for number in range(depth + 1))

    def _level(self, number: int, inputs: Stage) -> Level:
        known = tuple(name for name, level in self.level.items() if level == number)
        sums = {name: one for name, one in self.sums.items() if name in known}
        reading = Stage(inputs.operands, inputs.scalars, inputs.own, inputs.factor, sums=sums)
        numbers = {name: new for name, new in self.numbers.items() if f"new_{name}" in known}
        return Level(reading if sums else None, numbers, known)


def is_whole(outputs: Mapping[str, Expression]) -> bool:
    """Whether formulas look at rows, columns or the whole of a matrix."""
    return any(
        node.extent not in (NUMBER, ELEMENTS) or node.op in MATRIX_OPS or (node.op == "input" and node.args[0] in ("rows", "cols"))
        for node in nodes_of(outputs.values())
    )


def cut(scalar_states: tuple[str, ...], outputs: dict[str, Expression]) -> Cut:
    """Takes scalar states out of outputs, and makes sums and their new values inputs of what is left."""
    depth: dict[int, int] = {}
    numbers: dict[object, int] = {}
    keys: dict[int, int] = {}
    found: list[Expression] = []
    has_size = False

    def visit(node: Expression) -> None:
        nonlocal has_size
        if id(node) in keys:
            return
        nodes = [arg for arg in node.args if isinstance(arg, Expression)]
        for arg in nodes:
            visit(arg)
        depth[id(node)] = max((depth[id(arg)] for arg in nodes), default=0) + (node.op in SUM_OPS)
        what = (node.op, *(keys[id(arg)] if isinstance(arg, Expression) else repr(arg) for arg in node.args))
        keys[id(node)] = numbers.setdefault(what, len(numbers))  # the same for what is written alike
        found.append(node)
        has_size |= node.op == "input" and node.args[0] == "numel"

    for expression in outputs.values():
        visit(expression)
    kept = [name for name in outputs if name in scalar_states]
    new = {name: outputs.pop(name) for name in kept}
    level = {"numel": 0} if has_size else {}
    level |= dict.fromkeys(kept, 0)
    level |= {f"new_{name}": depth[id(expression)] for name, expression in new.items()}
    places = {id(node): place for place, node in enumerate(found)}
    order = sorted(new, key=lambda name: places[id(new[name])])
    computed = {name: Expression(new[name].op, new[name].args, NUMBER) for name in order}
    sums: dict[str, Sum] = {}
    names: dict[int, str] = {}
    for node in found:
        if node.op in SUM_OPS:
            key = keys[id(node)]
            if key not in names:
                names[key] = f"sum{len(names)}"
                sums[names[key]] = Sum(node.args[0], of_all=node.op == "total_of_all")
                level[names[key]] = depth[id(node)]
            node.op, node.args = "input", (names[key],)
    for name, one in computed.items():
        if one.op in SUM_OPS:
            one.op, one.args = "input", (names[keys[id(new[name])]],)
    for name, expression in new.items():
        if expression.op not in ("input", "constant") or expression.args[0] in sums:
            expression.op, expression.args = "input", (f"new_{name}",)
    return Cut(computed, sums, level)
