"""The numbers that products and eigensolvers are told: those of the host, and those of a GPU that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steprule.elementwise import is_due, whole_number
from steprule.trace.expression import Expression, inputs_of
from steprule.trace.extent import NUMBER

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class There(NamedTuple):
    """Numbers of tensors that lie on a GPU.

    Attributes:
        value: what an expression is there, for each tensor or for all.
        fixed: the inputs that the host knows as well, and that stay as they are till settings change.
        apart: computes what the host waits for, and no graph records.
    """

    value: Callable[[Expression], Tensor]
    fixed: frozenset[str]
    apart: Callable[[Callable[[], Tensor]], Tensor]


class Told:
    """Numbers of a plan's tensors, as what is computed of several matrices at once takes them.

    What the host knows for good is a float. On a GPU all else is a tensor, so that a graph may record what is done with it; but what is
    to be computed at all the host decides, and for this it also knows the step.

    Args:
        places: of each tensor its place among the optimizer's, by which `every` goes.
        dtype: of the matrices.
        device: where they are.
    """

    def __init__(self, places: Sequence[int], dtype: torch.dtype, device: Any) -> None:
        self._places, self._dtype, self._device = np.array(places), dtype, device
        self._there: There | None = None
        self._inputs: dict[int, set[str]] = {}
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def select(self, active: np.ndarray) -> None:
        """As the plan's."""
        self._active, self._turns = np.flatnonzero(active).tolist(), np.cumsum(active) - 1

    def begin(self, value: Callable[[Expression], Any], there: There | None) -> None:
        """Takes over the numbers of a level.

        Args:
            value: what an expression is that the host knows, for each active tensor, or one number for all.
            there: what is on a GPU, for plans there.
        """
        self._value, self._there = value, there
        self._known: dict[Any, Any] = {}

    def forget(self) -> None:
        """Drops what holds for the settings so far."""
        self._kept = {}

    def of(self, expression: Expression, group: Sequence[int]) -> Any:
        """One number for a group of tensors: a float, or a tensor on the device; (k, 1, 1) if each has its own."""
        if not self._knows(expression):
            return self._of_device(expression, group)
        numbers = self.of_each(expression, group)
        return numbers[0] if numbers.count(numbers[0]) == len(numbers) else self.tensor(numbers)

    def of_each(self, expression: Expression, group: Sequence[int]) -> list[float]:
        """A number for each tensor of a group, which the host knows."""
        if id(expression) not in self._known:
            found = np.asarray(self._value(expression), np.float64).reshape(-1)
            self._known[id(expression)] = float(found[0]) if (found == found[0]).all() else found
        numbers = self._known[id(expression)]
        return [numbers] * len(group) if isinstance(numbers, float) else numbers[self._turns[group]].tolist()

    def due(self, node: Expression, group: Sequence[int]) -> list[bool]:
        """Of which of a group's tensors it is the step, as an `every` says."""
        k, step, _, _, stagger = node.args
        key = id(k), id(step), stagger
        if key not in self._known:
            often, steps = (self.of_each(one, self._active) for one in (k, step))
            for one in {*often}:
                whole_number("k", one)
            places = self._places[self._active] if stagger else 0
            self._known[key] = is_due(np.array(often), np.array(steps), places)
        return self._known[key][self._turns[group]].tolist()  # type: ignore[no-any-return]

    def holds(self, condition: Expression, group: Sequence[int]) -> list[float] | None:
        """Of which of a group's tensors a condition holds; None where only the device knows."""
        return self.of_each(condition, group) if self._knows(condition, "step") else None

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Computes what the host may wait for."""
        return compute() if self._there is None else self._there.apart(compute)

    def choices(self, nodes: Iterable[Expression], value: Callable[[Expression], Any], there: There) -> Hashable:
        """What the host decides in a step of the active tensors: of each of these nodes, of which of them it is computed."""
        self.begin(value, there)
        own = self._active
        every = (self.due(node, own) if node.op == "every" else self.holds(node.args[0], own) for node in nodes)
        return tuple(None if one is None else tuple(one) for one in every)

    def tensor(self, numbers: Sequence[float]) -> Tensor:
        """A number for each matrix of a stack."""
        import torch

        key = tuple(numbers)
        if key in self._kept:
            return self._kept[key]
        made = torch.tensor(numbers, dtype=self._dtype, device=self._device).view(-1, 1, 1)
        if self._there is not None:  # which could not be brought there while a graph is recorded
            self._kept[key] = made
        return made

    def _knows(self, expression: Expression, *more: str) -> bool:
        """Whether the host knows all that an expression is made of."""
        if self._there is None:
            return True
        if id(expression) not in self._inputs:
            self._inputs[id(expression)] = inputs_of(expression)
        return self._inputs[id(expression)] <= self._there.fixed | {*more}

    def _of_device(self, expression: Expression, group: Sequence[int]) -> Tensor:
        import torch

        assert self._there is not None
        found = self._there.value(expression)
        if not found.dim():
            return found.to(self._dtype)
        key = "places", *group
        if key not in self._kept:
            self._kept[key] = torch.from_numpy(self._turns[group]).to(self._device)
        own = found[self._kept[key]].to(self._dtype)
        return own[0] if len(group) == 1 else own.view(-1, 1, 1)


class HostSteps:
    """The numbers of tensors' steps on a GPU, as the host counts them along. It reads them where somebody else may have changed them.

    Args:
        kept: where they are kept, 0-dim.

    Attributes:
        now: of each tensor that of the step that it takes, float64.
    """

    def __init__(self, kept: Sequence[Tensor]) -> None:
        self._kept = kept
        self._versions: list[int] | None = None
        self.now = np.zeros(len(kept))

    def next(self) -> np.ndarray:
        """Those of the step that comes."""
        versions = [x._version for x in self._kept]
        if versions != self._versions:
            import torch

            self.now = torch.stack([x.detach().double() for x in self._kept]).cpu().numpy()
            self._versions = versions
        return self.now + 1

    def count(self) -> None:
        """A step is taken."""
        self.now = self.next()

    def take_back(self) -> None:
        """It is not taken."""
        self.now = self.now - 1

    def forget(self) -> None:
        """Reads them for the step that comes."""
        self._versions = None


def chooses(node: Expression) -> bool:
    """Whether the host decides what of it is computed."""
    return node.op == "every" or (node.op == "where" and node.args[0].extent == NUMBER)
