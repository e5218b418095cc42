"""A tile of elements for Triton."""

from __future__ import annotations

from steprule.formats import PLACES
from steprule.kernels.languages import TRITON
from steprule.kernels.loop import Loop
from steprule.kernels.names import marked
from steprule.kernels.operands import Operand
from steprule.kernels.source import tally_of
from steprule.trace.expression import Expression
from steprule.trace.program import ADD, Sum


class GpuLoop(Loop):
    """The function ``compute``.

    Attributes:
        tallies: what it returns.
    """

    language = TRITON

    @property
    def tallies(self) -> list[str]:
        """What a chunk leaves."""
        return [*self._tallies]

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
        self._leave(tally_of(name, one.how), f"lib.sum_of(({self.each(one.expression)}).to(tl.float64), inside)")

    def measure(self, name: str) -> None:
        """Adds up the squares of new_name as it is stored, in float64."""
        new = self.operands[name].stored().format(f"new_{name}")
        x = f"({new}).to(tl.float64)"
        self._leave(f"total_{name}", f"lib.sum_of({x} * {x}, inside)")

    def count_zeroed(self, value: str) -> None:
        """Adds up what is 1 where an element counts as zeroed."""
        self._leave("total_zeroed", f"lib.sum_of({value}, inside)")

    def gather(self, name: str) -> None:
        """Takes the squares and the largest absolute value of seen_name."""
        self._leave(f"total_{name}", f"lib.sum_of(seen_{name} * seen_{name}, inside)")
        self._leave(f"top_{name}", f"lib.largest_of(seen_{name}, inside)")

    def count_lost(self, still: str) -> None:
        """Counts elements that stay as they are, which this says."""
        self._leave("total_lost", f"lib.sum_of(tl.where({still}, 1.0, 0.0), inside)")

    def lose_none(self) -> None:
        """Counts none."""
        self._leave("total_lost", f"lib.sum_of(tl.zeros_like({marked('param')}), inside)")

    def lines(self) -> list[str]:
        """Those of ``compute``, once they are written."""
        results = [f"return {', '.join(self.tallies)}"] if self.tallies else []
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
    def passed(self) -> list[str]:
        """The arguments after arrays and before the elements' places."""
        return [*self.writer.hoisted.values(), *self.random, *["grad_factor"] * bool(self.stage.factor)]
