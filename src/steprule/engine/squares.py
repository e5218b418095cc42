"""What is computed of whole matrices between passes, by torch's products and eigensolvers: small matrices of one shape at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.engine.told import There, Told, chooses
from steprule.engine.workspace import workspace
from steprule.pieces import decorrelate, eigenbasis, inverse_root, largest_eigenvalue, matmul, polar
from steprule.pieces import gram as gram_of
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, nodes_of
from steprule.trace.extent import NUMBER
from steprule.trace.program import Squares
from steprule.trace.squares import PUT_OFF, held_by

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_STACKED = 64
"""The longest side of matrices that go through products at once: longer ones are faster one by one."""


class SquareRooms:
    """The squares that matrices of a plan have beside them, and what is computed of them.

    Args:
        squares: of each level, None where it has none.
        states: for each state that is a square that of each tensor, by the tensor's number.
        places: of each tensor its place among the optimizer's, by which `every` goes.
        dtype: what all matrices are computed in.
        device: where they are.
        shapes: of each tensor as a matrix.
        stacks: the matrices between passes: a name and a shape give all of that shape.
        members: the tensors of each shape.

    Attributes:
        states: the same.
        told: the numbers that go with them.
    """

    def __init__(
        self,
        squares: Sequence[Squares | None],
        states: Mapping[str, Any],
        places: Sequence[int],
        dtype: torch.dtype,
        device: Any,
        shapes: Sequence[tuple[int, ...]],
        stacks: Callable[[str, tuple[int, ...]], Tensor],
        members: Mapping[tuple[int, ...], Sequence[int]],
    ) -> None:
        self.states, self._shapes, self._stacks = states, shapes, stacks
        self.told = Told(places, dtype, device)
        self._squares = squares
        self._slots = {number: slot for own in members.values() for slot, number in enumerate(own)}
        self.alone, self.last = _in_place(squares)
        self._later: dict[tuple[int, int], Any] = {}
        self._members = members

    @cached_property
    def choices(self) -> list[Expression]:
        """The expressions of which the host decides whether they are computed."""
        return [node for node in _nodes(self._squares) if chooses(node)]

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self.told.select(active)
        self._groups = [*self._grouped(active)]
        self._views: dict[tuple[str, int, int], Tensor] = {}

    def forget(self) -> None:
        """Drops what later levels of a step would have needed that has not come to them."""
        self._later = {}

    def _grouped(self, active: np.ndarray) -> Iterator[list[int]]:
        """The active tensors that go through products at once."""
        most = workspace() // 2
        for shape, members in self._members.items():
            own = [number for number in members if active[number]]
            squares = sum(side * side for side in shape)
            at_once = max(1, most // (16 * squares)) if max(shape) <= MOST_STACKED else 1
            yield from (own[start : start + at_once] for start in range(0, len(own), at_once))

    def run(self, now: Squares, value: Callable[[Expression], Any], there: There | None = None) -> None:
        """Computes what there is to compute after a reading.

        Args:
            now: what.
            value, there: as for `Told.begin`.
        """
        self.told.begin(value, there)
        for place, group in enumerate(self._groups):
            one = Group(self, group, {key: x for (own, key), x in self._later.items() if own == place})
            states = {name: one(new) for name, new in now.states.items() if id(new) not in self.last}
            made = {name: one(new) for name, new in now.made.items()}
            for node in now.later:  # of matrices whose memory others are about to take
                if id(node) not in self.last:
                    one(node)
            states |= {name: one(new) for name, new in now.states.items() if name not in states}
            one.write(made)
            for name, new in now.kept.items():
                one.keep(name, states[name] if name in states else one(new), new)
            later = {(place, id(node)): one(node) for node in now.later}
            self._later = {key: x for key, x in self._later.items() if key[0] != place} | later

    def matrix(self, name: str, group: Sequence[int]) -> Any:
        """A matrix of a group's tensors, or a stack of them, where it lies if possible."""
        key = name, group[0], len(group)
        if key not in self._views:
            stack, slots = self._stack(name, group)
            if len(group) > 1 and slots[-1] - slots[0] + 1 != len(slots):
                return stack[slots]
            self._views[key] = stack[slots[0]] if len(group) == 1 else stack[slots[0] : slots[-1] + 1]
        return self._views[key]

    def put(self, name: str, group: Sequence[int], new: Tensor) -> None:
        """Puts a matrix of a group's tensors in its place."""
        own = self.matrix(name, group)
        if (name, group[0], len(group)) in self._views:
            own.copy_(new)
        else:
            stack, slots = self._stack(name, group)
            stack[slots] = new

    def _stack(self, name: str, group: Sequence[int]) -> tuple[Tensor, list[int]]:
        return self._stacks(name, self._shapes[group[0]]), [self._slots[number] for number in group]


class Group(Evaluation):
    """Expressions of whole matrices of some tensors that go through products at once: (m, n) of one, (k, m, n) of several.

    Args:
        rooms: whose.
        group: the tensors.
        known: what has been computed already, by identity of the expression.
        whole: the group that this is a part of, and which of its tensors are here.
    """

    def __init__(
        self,
        rooms: SquareRooms,
        group: Sequence[int],
        known: Mapping[int, Any],
        whole: tuple[Group, list[int]] | None = None,
    ) -> None:
        super().__init__({})
        self._rooms, self._group, self._whole = rooms, group, whole
        self._values.update(known)
        self._read: dict[str, Any] = {}

    def __call__(self, expression: Expression) -> Any:
        """The expression's value."""
        if expression.extent == NUMBER:
            return self._rooms.told.of(expression, self._group)
        if expression.op == "input":
            return self._operand(expression.args[0])
        if self._whole is not None and id(expression) not in self._values:
            whole, chosen = self._whole
            if id(expression) in whole._values or id(expression) in self._rooms.alone:
                self._values[id(expression)] = self._part(whole(expression), chosen)
        return super().__call__(expression)

    def _part(self, x: Tensor, chosen: list[int]) -> Tensor:
        return x[chosen[0]] if len(chosen) == 1 else x[chosen]

    def _operand(self, name: str) -> Any:
        """A state, or a matrix that lies between passes."""
        if name not in self._read:
            if self._whole is not None:
                self._read[name] = self._part(self._whole[0]._operand(name), self._whole[1])
            elif name not in self._rooms.states:
                self._read[name] = self._rooms.matrix(name, self._group)
            else:
                import torch

                own = [self._rooms.states[name][number] for number in self._group]
                self._read[name] = own[0] if len(own) == 1 else torch.stack(own)
        return self._read[name]

    def compute(self, expression: Expression) -> Any:
        """An operation on the values of its arguments."""
        op, args = expression.op, expression.args
        if op == "every":
            return self._every(expression)
        if op == "add" and (found := averaged_product(expression)) is not None:
            return self._average(expression, *found)
        if op == "transpose":
            return self(args[0]).mT
        if op == "copy":
            return self(args[0]).clone()
        if op == "gram":
            x, most = self(args[0]), self(args[1]) if len(args) > 1 else None
            return gram_of(x, most) if most is not None and x.shape[-2] > most else _gram(x)
        if op == "where" and args[0].extent == NUMBER:
            return self._where(*args)
        if op in _DECOMPOSED:
            return self._rooms.told.apart(partial(_DECOMPOSED[op], *map(self, args)))
        if op in _WHOLE:
            return _WHOLE[op](*(self(arg) if isinstance(arg, Expression) else arg for arg in args))
        return self.operate(op, map(self, args))

    def _every(self, node: Expression) -> Any:
        """Something new for those of the tensors whose step it is."""
        due, (_, _, new, old, _) = self._rooms.told.due(node, self._group), node.args
        if not any(due) or all(due):
            return self(new if due[0] else old)
        chosen = [place for place, one in enumerate(due) if one]
        part = Group(self._rooms, [self._group[place] for place in chosen], {}, (self, chosen))
        result = self(old).clone()
        result[chosen] = part(new)
        return result

    def _where(self, condition: Expression, one: Expression, other: Expression) -> Any:
        """One of two, of which the other is not computed if no tensor takes it, and the host knows that."""
        told = self._rooms.told
        holds = told.holds(condition, self._group)
        if holds is None:
            return self.operate("where", [told.of(condition, self._group) != 0, self(one), self(other)])
        if all(holds) or not any(holds):
            return self(one if holds[0] else other)
        return self.operate("where", [told.tensor(holds) != 0, self(one), self(other)])

    def _average(self, expression: Expression, state: Expression, weight: Expression, new: Expression) -> Any:
        """An average of products, by one call: where nothing else reads the state that is averaged, where it lies."""
        from steprule.matrix.products import product, symmetric_product

        old, share = self(state), self(weight)
        if not isinstance(share, float) or old.shape[-1] == 1:
            return self.operate("add", [old, share * (self(new) - old)])
        left = self(new.args[0])
        right = left.mT if new.op == "gram" else self(new.args[1])
        is_alone = len(self._group) == 1
        out = old if is_alone and id(expression) in self._rooms.alone else old.new_empty(old.shape)
        multiply = symmetric_product if is_alone and new.op == "gram" else product
        return multiply(left, right, out, old, alpha=share, beta=1 - share)

    def write(self, made: Mapping[str, Any]) -> None:
        """Puts matrices where passes read them."""
        read = {x.untyped_storage().data_ptr() for x in self._read.values()}
        moved = []
        for name, x in made.items():
            own = self._rooms.matrix(name, self._group)
            if (x.data_ptr(), x.stride()) != (own.data_ptr(), own.stride()):  # or it is in its place already
                moved.append((name, x.clone() if x.untyped_storage().data_ptr() in read else x))
        for name, x in moved:
            self._rooms.put(name, self._group, x)

    def keep(self, name: str, new: Any, expression: Expression) -> None:
        """Gives a state its new value."""
        import torch

        own = [self._rooms.states[name][number] for number in self._group]
        if len(own) == 1:
            if new is not own[0]:
                own[0].copy_(new)
            self._values[id(expression)] = own[0]
        elif new is not self._read.get(name):
            torch._foreach_copy_(own, [*new.expand(len(own), *own[0].shape)])


def averaged_product(node: Expression) -> tuple[Expression, Expression, Expression] | None:
    """The state, the weight and the product, if this is ``state + weight (product - state)``."""
    state, change = node.args
    if state.op != "input" or change.op != "mul" or change.args[0].extent != NUMBER or change.args[1].op != "sub":
        return None
    new, again = change.args[1].args
    return (state, change.args[0], new) if again is state and new.op in ("gram", "matmul") else None


def _in_place(squares: Sequence[Squares | None]) -> tuple[set[int], set[int]]:
    """The averages of products that may take the memory of the states that they are new values of, by identity.

    Returns:
        All of them; and those that must be computed after all else, since other functions read the old values.
    """
    levels = [one for one in squares if one is not None]
    readers: dict[int | str, set[int]] = {}
    for node in _nodes(squares):
        for arg in node.args:
            if isinstance(arg, Expression):
                readers.setdefault(arg.args[0] if arg.op == "input" else id(arg), set()).add(id(node))
    alone, last = set(), set()
    for one in levels:
        for name, new in one.states.items():
            average = averaged_product(new) if new.op == "add" else None
            if average is None or average[0].args[0] != name or name not in one.kept or name in _read_by(average[2]):
                continue
            if readers[name] > {id(new), id(new.args[1].args[1])}:
                last |= set() if id(new) in readers else {id(new)}
            else:
                alone.add(id(new))
    return alone | last, last


def _nodes(squares: Sequence[Squares | None]) -> list[Expression]:
    """All that is computed of whole matrices."""
    levels = [one for one in squares if one is not None]
    return nodes_of([node for one in levels for node in (*one.made.values(), *one.states.values())])


def _read_by(product: Expression) -> set[str]:
    """The states and matrices that a product reads where they lie."""
    return {name.rstrip("'") for x in product.args for name in held_by(x, {})}


def _gram(x: Tensor) -> Tensor:
    from steprule.matrix.products import product, symmetric_product

    out = x.new_empty((*x.shape[:-1], x.shape[-2]))
    return symmetric_product(x, x.mT, out) if x.dim() == 2 else product(x, x.mT, out)


def _polar(x: Tensor, steps: Any, eps: Any, *coefficients: Any) -> Tensor:
    given = coefficients[0] if len(coefficients) == 1 else coefficients
    return polar(x, given, None if steps is None else int(steps), float(eps))  # type: ignore[no-any-return]


_WHOLE: Mapping[str, Callable[..., Any]] = {
    "matmul": matmul,
    "largest_eigenvalue": largest_eigenvalue,
    PUT_OFF["polar"]: _polar,
    PUT_OFF["decorrelate"]: lambda x, passes: decorrelate(x, int(passes)),
}
_DECOMPOSED: Mapping[str, Callable[..., Any]] = {"eigenbasis": eigenbasis, "inverse_root": inverse_root}
"""Of which the host wants to know more than the result, such as how many eigenvalues are 0."""
