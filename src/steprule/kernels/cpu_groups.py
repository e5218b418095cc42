"""A loop over elements for Numba, for operands of which some have a base for each group of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steprule.kernels.cpu_loop import CpuLoop, in_tuple
from steprule.kernels.operands import Operand
from steprule.kernels.source import indent
from steprule.trace.program import Stage

_UPDATE = '''
@njit(forceinline=True, **FAST)
def compute(first, group, size, {rooms}, {addresses}, numbers{tally_arguments}):
    """The new values of numbers that share a base, and that base."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{between}
{return_tallies}

@njit(forceinline=True, **FAST)
def encode(first, group, size, {rooms}, {addresses}, numbers):
    """Their codes."""
    {scalar_names} = numbers
{bases}
    for j in range(size):
        i = first + j
{after}


@njit(**FAST)
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose groups all are full.

    Each group is encoded after the next has been computed, since finding the largest of a group takes a while.
    """
{room_lines}
{start_tallies}    first = before = group = 0
    count = before_count = 0
    left = row
    while first < size:
        count = min(left, size - first, GROUP)
        half = group % 2 * (4 * GROUP)
        if count == GROUP:
            {tallies}compute(first, group, GROUP, {halves}, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, group, count, {halves}, {addresses}, numbers{tally_arguments})
        half = 4 * GROUP - half
        if before_count == GROUP:
            encode(before, group - 1, GROUP, {halves}, {addresses}, numbers)
        else:
            encode(before, group - 1, before_count, {halves}, {addresses}, numbers)
        before, before_count = first, count
        first += count
        left = left - count if left > count else row
        group += 1
    half = (group + 1) % 2 * (4 * GROUP)
    encode(before, group - 1, before_count, {halves}, {addresses}, numbers)
{give_tallies}
'''

_READING = '''
@njit(forceinline=True, **FAST)
def compute(first, group, size, {addresses}, numbers{tally_arguments}):
    """What numbers that share a base add to the sums."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{return_tallies}

@njit(**FAST)
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose groups all are full."""
{start_tallies}    first = group = 0
    left = row
    while first < size:
        count = min(left, size - first, GROUP)
        if count == GROUP:
            {tallies}compute(first, group, GROUP, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, group, count, {addresses}, numbers{tally_arguments})
        first += count
        left = left - count if left > count else row
        group += 1
{give_tallies}
'''


class CpuGroups(CpuLoop):
    """The functions ``compute`` and ``encode``, which work through a group, and ``update``, which does through a chunk."""

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        self.template = _UPDATE if stage.outputs else _READING
        self._bases: list[str] = []  # lines that read them
        self._between: list[str] = []  # between a group's numbers and its codes
        self._codes: list[str] = []
        self._rooms: dict[str, str] = {}  # and what makes each
        self._lanes: dict[str, str] = {}  # rooms that all groups share

    def load(self, operand: Operand) -> None:
        """Reads an operand."""
        super().load(operand)
        if operand.format.grouped:
            name = operand.name
            self._bases.append(f"{name}_base = load_{name}_base({name}_base_at, group)")
            self.before.append(self._bases[-1])

    def store(self, operand: Operand, x: str) -> None:
        """Writes an operand's new value: in a room, where it waits for its group's base."""
        if not operand.format.grouped:
            super().store(operand, x)
            return
        name, kind = operand.name, operand.kind
        self._room(f"load_new_{name}, store_new_{name}", f"room_for_{name}")
        self._rooms[f"{name}_room"] = f"room_for_{name}"
        self.before.append(f"{name}_top = uint32(0)")
        if kind == "positive8":
            self.stores.append(f"{x} = magnitude({x})")
        self.stores.append(f"store_new_{name}({name}_room, j, {x})")
        self.stores.append(f"{name}_top = larger_magnitude({name}_top, {x})")
        self._between.append(f"store_{name}_base({name}_base_at, group, {kind}_base({name}_top))")
        self._codes += operand.store(self.language, f"load_new_{name}({name}_room, j)")

    def gather(self, name: str) -> None:
        """Takes squares and largest in vectors of their own, since a group's end is no place to add up lanes."""
        self.body.append(f"store_seen_{name}(seen_{name}_room, j, seen_{name})")
        self._given[f"total_{name}"] = f"lanes_total({name}_lanes)"
        self._given[f"top_{name}"] = f"lanes_top({name}_lanes)"
        self._room(f"_, store_seen_{name}", f"room_for_seen_{name}", f"lanes_for_{name}")
        self._rooms[f"seen_{name}_room"] = f"room_for_seen_{name}"
        self._rooms[f"{name}_lanes"] = self._lanes[f"{name}_lanes"] = f"lanes_for_{name}"

    def fields(self) -> dict[str, Any]:
        """What the templates have places for."""
        fields, carried = super().fields(), in_tuple(self.carried)
        between = list(self._between)
        if seen := self.stage.gathered:
            between.append("for j in range(size, GROUP):")
            between += [f"    store_seen_{name}(seen_{name}_room, j, float32(0))" for name in seen]
            between += [f"tally_group({name}_lanes, seen_{name}_room)" for name in seen]
        return {
            **fields,
            "bases": indent(self._bases, 1),
            "between": indent(between, 1),
            "after": indent(self._codes or ["pass"], self.depth),
            "rooms": ", ".join(self._rooms),
            "room_lines": indent([f"{room} = {maker}(0)" for room, maker in self._rooms.items()], 1),
            "halves": ", ".join(room if room in self._lanes else f"{room} + half" for room in self._rooms),
            "tallies": f"{carried} = " if carried else "",
            "tally_arguments": f", {carried}".rstrip(",") if carried else "",
            "start_tallies": fields["start_tallies"] + "".join(f"    clear_lanes({room})\n" for room in self._lanes),
            "return_tallies": f"    return {carried}\n" if carried else "",
        }
