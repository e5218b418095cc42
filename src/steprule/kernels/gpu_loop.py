"""A tile of elements for Triton."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from steprule.formats import ITEM_SIZE, PLACES
from steprule.kernels.languages import TRITON
from steprule.kernels.loop import Loop
from steprule.kernels.names import marked
from steprule.kernels.operands import Operand
from steprule.kernels.source import tally_of
from steprule.trace.expression import Expression
from steprule.trace.program import ADD, Sum

POINTERS = {"bfloat16": "uint16", "float16": "uint16"}
THREADS = 128
"""Threads that share a tile of elements."""


def pointer(address: str, dtype: str) -> str:
    """An address as Triton takes it."""
    return f"{address}.to(tl.pointer_type(tl.{POINTERS.get(dtype, dtype)}))"


@dataclass(frozen=True)
class Shape:
    """How a tile is worked on.

    Attributes:
        each: how many elements a thread works on at a time.
        rounds: how often.
        wide: how many of the widest array are 16 bytes, the most that a thread loads or stores at once.
        registers: how many its numbers take.
        rows: of a tile that is some rows by some columns; 0 for one that is a stretch.
    """

    each: int
    rounds: int
    wide: int
    registers: int
    rows: int = 0

    @classmethod
    def of(cls, loop: GpuLoop) -> Shape:
        """What was fastest on an H200.

        Rounds spare the work before the first, but one cannot load before the last has stored: they pay where few bytes
        are moved. More elements of 4 bytes than `wide` change places before they are stored, which loads of many
        bytes make up for.
        """
        kept = [(array, dtype) for array, dtype in loop.dtypes.items() if array[0] in loop.operands]
        widest = max(ITEM_SIZE[dtype] for (_, suffix), dtype in kept if suffix != "_base")
        is_half = widest == 2
        each = 16 if loop.blockwise and not is_half else 8
        registers = each * len(loop.stage.operands) + 16 * (each == 16)
        return cls(each, 4 if is_half else 1, 16 // widest, registers)

    @property
    def together(self) -> int:
        """Elements that are worked on at a time."""
        return THREADS * self.each

    @property
    def tile(self) -> int:
        """Elements of a tile."""
        return self.together * self.rounds

    @property
    def columns(self) -> int:
        """Those of a tile that has rows."""
        return self.tile // self.rows

    @property
    def at_once(self) -> int:
        """Rows of it that are worked on at a time."""
        return self.together // self.columns


class GpuLoop(Loop):
    """The function ``compute``.

    Attributes:
        tallies: what it returns that is a number for each chunk.
        along: the axis of a tile along which those are added up before its end, and all of it after that; "" for all at once.
    """

    language = TRITON
    along = ""

    @cached_property
    def shape(self) -> Shape:
        """How a tile is worked on."""
        return Shape.of(self)

    @property
    def tallies(self) -> list[str]:
        """What a chunk leaves."""
        return [*self._tallies]

    @property
    def results(self) -> list[str]:
        """All that it returns."""
        return self.tallies

    def where(self) -> list[str]:
        """Where a tile is."""
        return [f"start = tile.to(tl.int64) * {self.shape.tile}"]

    def begin(self) -> list[str]:
        """What results are before the first elements."""
        return [f"{name} = tl.zeros((), tl.float64)" for name in self.tallies]

    def end(self) -> list[str]:
        """What becomes of them after the last."""
        return [f"tl.store(partial_at + {i}, {name})" for i, name in enumerate(self.tallies)]

    def write(self) -> None:
        """Writes the lines."""
        self._tallies: list[str] = []
        super().write()

    def load(self, operand: Operand) -> None:
        """Reads an operand."""
        if operand.format.blockwise:
            self.loads.append(f"{operand.name}_exponent = lib.load({operand.name}_base_at + block, block_inside)")
        super().load(operand)

    def store(self, operand: Operand, x: str) -> None:
        """Writes an operand's new value, and first its block's exponent."""
        if operand.format.blockwise:
            name, kind = operand.name, operand.kind
            self.stores.append(f"{name}_kept = {f'lib.magnitude({x})' if kind == 'positive8' else x}")
            x = f"{name}_kept"
            self.stores.append(f"{name}_top = lib.largest_in_block({x}, inside)")
            self.stores.append(f"{name}_exponent = lib.{kind}_exponent({name}_top)")
            self.stores.append(f"lib.store_exponent({name}_base_at + block, {name}_exponent, block_inside)")
        super().store(operand, x)

    def each(self, expression: Expression) -> str:
        """An expression's value for each element of a tile, even if it is the same for all."""
        value = self.value(expression)
        return f"tl.zeros_like({marked('param')}) + {value}" if expression.scalar else value

    def _leave(self, name: str, value: str) -> None:
        self.body.append(f"{name} = {value}")
        self._tallies.append(name)

    def add_up(self, name: str, one: Sum) -> None:
        """Adds up an expression."""
        assert one.how == ADD, "for a stretch: steprule.kernels.gpu_reading"
        self._leave(
            tally_of(name, one.how), f"lib.sum_of(({self.each(one.expression)}).to(tl.float64), inside{self.along})"
        )

    def measure(self, name: str) -> None:
        """Adds up the squares of new_name as it is stored, in float64."""
        new = self.operands[name].stored().format(f"new_{name}")
        x = f"({new}).to(tl.float64)"
        self._leave(f"total_{name}", f"lib.sum_of({x} * {x}, inside{self.along})")

    def count_zeroed(self, value: str) -> None:
        """Adds up what is 1 where an element counts as zeroed."""
        self._leave("total_zeroed", f"lib.sum_of({value}, inside{self.along})")

    def gather(self, name: str) -> None:
        """Takes the squares and the largest absolute value of seen_name."""
        self._leave(f"total_{name}", f"lib.sum_of(seen_{name} * seen_{name}, inside{self.along})")
        self._leave(f"top_{name}", f"lib.largest_of(seen_{name}, inside{self.along})")

    def count_lost(self, still: str) -> None:
        """Counts elements that stay as they are, which this says."""
        self._leave("total_lost", f"lib.sum_of(tl.where({still}, 1.0, 0.0), inside{self.along})")

    def lose_none(self) -> None:
        """Counts none."""
        self._leave("total_lost", f"lib.sum_of(tl.zeros_like({marked('param')}), inside{self.along})")

    def lines(self) -> list[str]:
        """Those of ``compute``, once they are written."""
        results = [f"return {', '.join(self.results)}"] if self.results else []
        return [*self.loads, *self.body, *self.stores, *results]

    @property
    def random(self) -> list[str]:
        """The random bits that each tensor has; a reading rounds nothing."""
        if not self.stage.outputs:
            return []
        return [f"random_{name}" for name in self.rounded] + ["key"] * self.by_element

    @property
    def by_place(self) -> list[str]:
        """Those of these that are a number for each place of a block."""
        blockwise = [f"random_{name}" for name in self.rounded if self.operands[name].format.blockwise]
        return [name for name in self.random if name in blockwise]

    @property
    def columns(self) -> dict[str, int]:
        """Where each is in a tensor's row of them."""
        places = {name: i * PLACES for i, name in enumerate(self.by_place)}
        others = [name for name in self.random if name not in places]
        return places | {name: len(places) * PLACES + i for i, name in enumerate(others)}

    @property
    def bits(self) -> int:
        """How many a row has, so that those of places are 16 bytes at a time."""
        count = len(self.random) + len(self.by_place) * (PLACES - 1)
        return -(-count // PLACES) * PLACES if self.by_place else count

    @property
    def arrays(self) -> list[str]:
        """The names of its arrays."""
        return [name + suffix for name, suffix in self.dtypes]

    @property
    def aligned(self) -> list[str]:
        """Those of which 16 bytes at a time are read or written, if they lie so."""
        return [name for name in self.arrays if not name.endswith("_base")]

    def given(self, is_aligned: bool) -> dict[str, str]:
        """What ``compute`` is given of arrays, by its arguments' names: from the first element on, and the first block."""
        found = {}
        for (name, suffix), dtype in self.dtypes.items():
            at = pointer(f"{name}{suffix}_at", dtype)
            if suffix == "_base":
                found[f"{name}{suffix}_at"] = f"{at} + first_block"
            else:
                found[f"{name}{suffix}_at"] = f"{f'tl.multiple_of({at}, 16)' if is_aligned else at} + first"
        return found

    @property
    def places(self) -> list[str]:
        """The arguments that say where a tile's elements are."""
        return ["i", "element", "inside", *["block", "block_inside", "place"] * self.blockwise]

    @property
    def passed(self) -> list[str]:
        """The arguments after arrays and before the elements' places."""
        return [*self.writer.hoisted.values(), *self.random, *["grad_factor"] * bool(self.stage.factor)]
