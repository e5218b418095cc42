"""A loop over elements for the CPU engine, for operands of which some are quantized block-wise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steprule.kernels.cpu_loop import CpuLoop, in_tuple
from steprule.kernels.operands import Operand
from steprule.kernels.source import indent
from steprule.trace.program import Stage

_UPDATE = '''
@fast
def compute(first, block, size, {rooms}, {addresses}, numbers{tally_arguments}):
    """The new values of a block's elements, and its exponents."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{between}
{return_tallies}

@fast
def encode(first, block, size, {rooms}, {addresses}, numbers):
    """Their codes."""
    {scalar_names} = numbers
{exponents}
    for j in range(size):
        i = first + j
{after}


@apart
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose blocks all are full.

    Each block is encoded after the next has been computed, since finding the largest of a block takes a while.
    """
{room_lines}
{start_tallies}    first = before = block = 0
    count = before_count = 0
    left = row
    while first < size:
        count = min(left, size - first, BLOCK)
        half = block % 2 * (4 * BLOCK)
        if count == BLOCK:
            {tallies}compute(first, block, BLOCK, {halves}, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, block, count, {halves}, {addresses}, numbers{tally_arguments})
        half = 4 * BLOCK - half
        if before_count == BLOCK:
            encode(before, block - 1, BLOCK, {halves}, {addresses}, numbers)
        else:
            encode(before, block - 1, before_count, {halves}, {addresses}, numbers)
        before, before_count = first, count
        first += count
        left = left - count if left > count else row
        block += 1
    half = (block + 1) % 2 * (4 * BLOCK)
    encode(before, block - 1, before_count, {halves}, {addresses}, numbers)
{give_tallies}
'''

_READING = '''
@fast
def compute(first, block, size, {addresses}, numbers{tally_arguments}):
    """What a block's elements add to the sums."""
    {scalar_names} = numbers
{before}    for j in range(size):
        i = first + j
{body}
{return_tallies}

@apart
def update(size, row, {addresses}, numbers):
    """A chunk of rows of this length, or of a tensor whose blocks all are full."""
{start_tallies}    first = block = 0
    left = row
    while first < size:
        count = min(left, size - first, BLOCK)
        if count == BLOCK:
            {tallies}compute(first, block, BLOCK, {addresses}, numbers{tally_arguments})
        else:
            {tallies}compute(first, block, count, {addresses}, numbers{tally_arguments})
        first += count
        left = left - count if left > count else row
        block += 1
{give_tallies}
'''


class CpuBlocks(CpuLoop):
    """The functions ``compute`` and ``encode``, which work through a block, and ``update``, which does through a chunk."""

    in_block = "size"
    """What the template calls the number of a block's elements."""

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        encodes = any(self.operands[name].format.blockwise for name in stage.outputs)
        self.template = _UPDATE if encodes or stage.gathered else _READING
        self._exponents: list[str] = []  # lines that read them
        self._between: list[str] = []  # between a block's numbers and its codes
        self._codes: list[str] = []
        self._rooms: dict[str, str] = {}  # and what makes each
        self._lanes: dict[str, str] = {}  # rooms that all blocks share

    def load(self, operand: Operand) -> None:
        """Reads an operand."""
        super().load(operand)
        if operand.format.blockwise:
            name = operand.name
            self._exponents.append(f"{name}_exponent = load_{name}_base({name}_base_at, block)")
            self.before.append(self._exponents[-1])

    def store(self, operand: Operand, x: str) -> None:
        """Writes an operand's new value: in a room, where it waits for its block's exponent."""
        if not operand.format.blockwise:
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
        self._between.append(f"store_{name}_base({name}_base_at, block, {kind}_exponent({name}_top))")
        self._codes += operand.store(self.language, f"load_new_{name}({name}_room, j)")

    def gather(self, name: str) -> None:
        """Takes squares and largest in vectors of their own, since a block's end is no place to add up lanes."""
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
            between.append(f"for j in range({self.in_block}, BLOCK):")
            between += [f"    store_seen_{name}(seen_{name}_room, j, float32(0))" for name in seen]
            between += [f"tally_block({name}_lanes, seen_{name}_room)" for name in seen]
        return {
            **fields,
            "exponents": indent(self._exponents, 1),
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
