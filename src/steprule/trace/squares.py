"""Cuts functions of whole matrices that have several arguments, or are squares, out of a formula."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from steprule.trace.expression import MATRIX_OPS, SUM_OPS, Expression, inputs_of, nodes_of
from steprule.trace.extent import COLS, ELEMENTS, NUMBER, PLAIN, ROWS
from steprule.trace.program import IN_PLACE, Matrix, Squares

PUT_OFF: Mapping[str, str] = {op: f"{op} in some steps" for op in IN_PLACE}
"""What functions of a matrix are called that are computed where `every` is, and not between passes."""
_WHOLE = (MATRIX_OPS - IN_PLACE) | {*PUT_OFF.values()}


def put_off(outputs: Mapping[str, Expression]) -> None:
    """Gives functions of a matrix that only new values of `every` are made of a name for that: in other steps nothing wants them."""
    always: set[int] = set()
    left = [*outputs.values()]
    while left:
        node = left.pop()
        if id(node) not in always:
            always.add(id(node))
            args = (arg for place, arg in enumerate(node.args) if not (node.op == "every" and place == 2))
            left += [arg for arg in args if isinstance(arg, Expression)]
    for node in nodes_of(outputs.values()):
        if node.op in PUT_OFF and id(node) not in always:
            node.op = PUT_OFF[node.op]


def is_whole(node: Expression) -> bool:
    """Whether it is computed of whole matrices, and by no pass."""
    is_leaf = node.op in ("input", "constant")
    return node.op in _WHOLE or (node.extent not in PLAIN and not is_leaf)


def fits_passes(node: Expression) -> bool:
    """Whether passes, with what is computed of whole matrices between them, can compute this node."""
    if node.op in SUM_OPS or node.op in IN_PLACE:
        return node.args[0].extent in PLAIN
    extents = {node.extent, *(arg.extent for arg in node.args if isinstance(arg, Expression))}
    return not is_whole(node) or (node.extent != NUMBER and extents.isdisjoint((ROWS, COLS)))


def readings_before(node: Expression, depth: Mapping[int, int]) -> int:
    """How many passes go before what is computed of whole matrices: those that store its arguments are among them."""
    nodes = [arg for arg in node.args if isinstance(arg, Expression)]
    return max((depth[id(arg)] + (arg.extent == ELEMENTS and not is_whole(arg)) for arg in nodes), default=0)


@dataclass
class SquareCut:
    """What of a formula is computed of whole matrices.

    Args:
        depth: of each expression, how many readings go before it.
        keys: for each a number, the same for what is written alike.
        matrices: to which those are added that lie between passes.
        level: likewise, after how many readings each is known.
    """

    depth: Mapping[int, int]
    keys: Mapping[int, int]
    matrices: dict[str, Matrix]
    level: dict[str, int]
    made: dict[str, Expression] = field(default_factory=dict)
    states: dict[str, tuple[int, Expression]] = field(default_factory=dict)
    _inner: dict[int, Expression] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    def cut(self, found: Sequence[Expression], outputs: dict[str, Expression], squares: Sequence[str]) -> None:
        """Takes new values of squares out of outputs, and makes inputs of the matrices that passes read.

        Args:
            found: all expressions, each after its arguments.
            outputs: for the parameter and each state its new value.
            squares: the states that are squares.
        """
        for name in squares:
            if name in outputs:
                new = outputs.pop(name)
                self.states[name] = self.depth[id(new)], self._copied(new)
        for name, (level, new) in self.states.items():
            if held_by(new, self._kept_as()) - {name}:
                self.states[name] = level, Expression("copy", (new,), new.extent)
        for node in [one for one in found if not is_whole(one)]:
            node.args = tuple(self._seen(arg) if isinstance(arg, Expression) else arg for arg in node.args)
        for name, new in outputs.items():
            outputs[name] = self._seen(new)

    def _kept_as(self) -> dict[int, set[str]]:
        """The states that become each of the expressions that are some state's new value, by identity."""
        found: dict[int, set[str]] = {}
        for name, (_, new) in self.states.items():
            found.setdefault(id(new), set()).add(name)
        return found

    def _seen(self, node: Expression) -> Expression:
        """What a pass reads in the place of an argument."""
        if not is_whole(node) or node.extent != ELEMENTS:
            return node
        key = self.keys[id(node)]
        if key not in self._names:
            self._names[key] = name = self._new(None, self.depth[id(node)])
            self.made[name] = self._copied(node)
        return Expression("input", (self._names[key],), ELEMENTS)

    def _copied(self, node: Expression) -> Expression:
        """What is computed of whole matrices, apart from the formula: of what passes store, and of numbers."""
        if node.extent != ELEMENTS and not is_whole(node):
            return node
        key = self.keys[id(node)]
        if key not in self._inner:
            if is_whole(node):
                args = tuple(self._copied(arg) if isinstance(arg, Expression) else arg for arg in node.args)
                self._inner[key] = Expression(node.op, args, node.extent)
            else:
                name = self._new(node, self.depth[id(node)] + 1)
                self._inner[key] = Expression("input", (name,), ELEMENTS)
        return self._inner[key]

    def _new(self, of: Expression | None, level: int) -> str:
        name = f"matrix{len(self.matrices)}"
        self.matrices[name], self.level[name] = Matrix("", of), level
        return name

    def levels(self, depth: int, passes: Mapping[str, Sequence[int]]) -> list[Squares | None]:
        """What is computed after each of the readings; matrices share memory where they can.

        Args:
            depth: how many readings there are.
            passes: for each matrix the numbers of the passes that read it; that of the last is depth + 1.
        """
        walk = _Walk(self._kept_as())
        now: list[tuple[dict[str, Expression], dict[str, Expression]]] = []
        for number in range(depth + 1):
            states = {name: new for name, (level, new) in self.states.items() if level == number}
            made = {name: new for name, new in self.made.items() if self.level[name] == number}
            for root in (*states.values(), *made.values()):
                walk.visit(root, number)
            now.append((made, states))
        kept = {name: max(level, walk.reads.get(name, 0)) for name, (level, _) in self.states.items()}
        for name, number in kept.items():
            walk.use(self.states[name][1], number)
        self._share(walk.reads, passes)
        return [
            Squares(
                made,
                states,
                {name: self.states[name][1] for name, level in kept.items() if level == number},
                tuple(one for one, last in walk.later.values() if walk.when[id(one)] <= number < last),
                tuple(name for name in self.states if walk.first.get(name) == number),
            )
            if made or states or number in kept.values()
            else None
            for number, (made, states) in enumerate(now)
        ]

    def _share(self, reads: Mapping[str, int], passes: Mapping[str, Sequence[int]]) -> None:
        """Gives matrices the memory of others that nothing needs by then. Pass n comes at 2 n, what follows it at 2 n + 1."""
        last: dict[str, int] = {}
        for name in self.matrices:
            times = [2 * number for number in passes.get(name, ())]
            last[name] = max([*times, *([2 * reads[name] + 1] if name in reads else [])], default=0)
        begins = {name: 2 * self.level[name] + (name in self.made) for name, one in self.matrices.items() if not one.op}
        free_at: dict[str, int] = {}  # for each memory when it is free

        def give(name: str, place: str) -> None:
            self.matrices[name] = Matrix("", self.matrices[name].of, place="" if place == name else place)
            free_at[place] = max(last[name], begins[name])

        def is_free(place: str, name: str) -> bool:
            return free_at[place] < begins[name] or (free_at[place] == begins[name] and name in self.made)

        places: dict[str, str] = {}
        for name in sorted(begins, key=lambda name: (begins[name], self._stays(name) is None)):
            stays = places.get(self._stays(name) or "")
            others = [place for place in free_at if is_free(place, name)]
            place = stays if stays in others else others[0] if others else name
            places[name] = place
            give(name, place)

    def _stays(self, name: str) -> str | None:
        """The stored matrix that one is where it is not computed anew: it had better be in its place already."""
        new = self.made.get(name)
        old = new.args[3] if new is not None and new.op == "every" else None
        return old.args[0] if old is not None and old.op == "input" else None


def held_by(node: Expression, kept_as: Mapping[int, set[str]]) -> set[str]:
    """The inputs whose memory a value may be, and not memory of its own: it would change where they do.

    Args:
        node: an expression.
        kept_as: the states that become each expression, by identity: in their memory it stays what it is. Of one that lies
            there transposed the name has a mark.
    """
    if node.op == "input":
        held = {node.args[0]}
    elif node.op == "transpose":
        held = {f"{name}'" for name in held_by(node.args[0], kept_as)}
    elif node.op in ("every", "where"):
        new, old = node.args[2:4] if node.op == "every" else node.args[1:]
        held = held_by(new, kept_as) | held_by(old, kept_as)
    else:
        held = set()
    return held - kept_as.get(id(node), set())


class _Walk:
    """Follows what is computed after which reading, as it is going to be: what is computed once is not computed again.

    Attributes:
        when: of each expression after which reading it is computed.
        first, reads: of each matrix and state after which reading it is read first, and last.
        later: of what is needed once more after later readings the last of those.
    """

    def __init__(self, kept_as: Mapping[int, set[str]]) -> None:
        self._kept_as = kept_as
        self.when: dict[int, int] = {}
        self.first: dict[str, int] = {}
        self.reads: dict[str, int] = {}
        self.later: dict[int, tuple[Expression, int]] = {}

    def visit(self, node: Expression, number: int, only_now: set[int] | None = None) -> None:
        """Computes one after a reading; if only_now, a set of what is computed there, no one may count on it afterwards."""
        if not is_whole(node):
            for name in inputs_of(node):
                self._read(name, number)
            return
        if id(node) in self.when or (only_now is not None and id(node) in only_now):
            self.use(node, number)
            return
        for place, arg in enumerate(node.args):
            if isinstance(arg, Expression):
                in_some_steps = node.op == "every" and place == 2
                self.visit(arg, number, set() if in_some_steps and only_now is None else only_now)
        if only_now is None:
            self.when[id(node)] = number
        else:
            only_now.add(id(node))

    def _read(self, name: str, number: int) -> None:
        self.first.setdefault(name, number)
        self.reads[name] = max(self.reads.get(name, 0), number)

    def use(self, node: Expression, number: int) -> None:
        """Takes note of what is needed once more."""
        if self.when.get(id(node), number) == number:
            return
        last = self.later.get(id(node), (node, 0))[1]
        self.later[id(node)] = node, max(last, number)
        for name in held_by(node, self._kept_as):
            self._read(name.rstrip("'"), number)


def passes_that_read(names: Sequence[str], by_pass: Iterator[tuple[int, Expression]]) -> dict[str, list[int]]:
    """For each matrix the passes that read it."""
    found: dict[str, list[int]] = {}
    for number, expression in by_pass:
        for name in inputs_of(expression).intersection(names):
            found.setdefault(name, []).append(number)
    return found
