"""Numbers of rows and columns where processes have parts of a matrix: in which order they become those of the whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from steprule.trace.expression import SUM_OPS, Expression, inputs_of, nodes_of
from steprule.trace.extent import COLS, ROWS, Extent
from steprule.trace.program import ADD, COL, LARGEST, ROW, Level, Program

_OVER: Mapping[str, Extent] = {ROW: COLS, COL: ROWS}
"""What elements are added up along, for each row or each column."""


@dataclass(frozen=True)
class Over:
    """What a sum is over that processes have parts of.

    Attributes:
        extent: `ROWS` or `COLS`.
        how: `ADD` or `LARGEST`.
    """

    extent: Extent
    how: str = ADD


@dataclass(frozen=True)
class Turn:
    """What follows from one another without other processes.

    Attributes:
        order: new states, as "new_...", and parts, as `Level.order` has them.
        sums: those that are over what is here only, and must be made sums over the wholes before the next turn.
    """

    order: tuple[str, ...] = ()
    sums: Mapping[str, Over] = field(default_factory=dict)


def turns_of(level: Level, cut: Collection[Extent]) -> tuple[Turn, ...]:
    """What a level computes, in as few turns as there can be.

    Args:
        level: of a program.
        cut: whether processes have some of the rows, or some of the columns. Where they do, the first turn comes before sums
            over elements are completed, with which its own are, and the second after that.
    """
    if not cut:
        return (Turn(level.order),)
    known: dict[str, int] = {}
    orders: list[list[str]] = [[], []]
    sums: list[dict[str, Over]] = [{}, {}]

    def send(name: str, turn: int, over: Over) -> None:
        sums[turn][name], known[name] = over, turn + 1
        if turn + 1 == len(orders):
            orders.append([])
            sums.append({})

    for name, one in level.reading.sums.items() if level.reading is not None else ():
        if one.axis not in _OVER:
            known[name] = 1
        elif _OVER[one.axis] in cut:
            send(name, 0, Over(_OVER[one.axis], one.how))
    for name in level.order:
        expression = _made(level, name)
        known[name] = turn = max((known.get(other, 0) for other in inputs_of(expression)), default=0)
        orders[turn].append(name)
        if expression.op in SUM_OPS and expression.args[0].extent in cut:
            send(name, turn, Over(expression.args[0].extent, LARGEST if expression.op.endswith("largest") else ADD))
    return tuple(Turn(tuple(order), one) for order, one in zip(orders, sums, strict=True))


def ranks(program: Program, cut: Collection[Extent]) -> bool:
    """Whether rows or columns are compared with each other that are not all here."""
    made = [one for level in program.levels for one in (*level.parts.values(), *level.numbers.values())]
    return any(node.op == "top_share" and node.args[0].extent in cut for node in nodes_of(made))


def _made(level: Level, name: str) -> Expression:
    return level.parts[name] if name in level.parts else level.numbers[name.removeprefix("new_")]
