"""A loop over elements for the CPU engine, for operands of which each number lies by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steprule.kernels.languages import LLVM
from steprule.kernels.loop import Loop
from steprule.kernels.source import indent, squared, tally_of
from steprule.trace.expression import Expression
from steprule.trace.program import ADD, SMALLEST, Stage, Sum

_UPDATE = '''
@apart
def update(size, {addresses}, numbers):
    """One tensor's chunk."""
    {scalar_names} = numbers
{before}{start_tallies}    for i in range(size):
{body}
{give_tallies}
'''

_UPDATE_IN_STRIPS = '''
@apart
def update(size, {addresses}, numbers):
    """What one tensor's chunk adds to the sums; roots and divisions by themselves, in float32's vectors."""
    {scalar_names} = numbers
{before}{start_tallies}{room_lines}
    first = 0
    while first < size:
        count = min(2 * BLOCK, size - first)
        for j in range(count):
            i = first + j
{body}
        for j in range(count):
{after}
        first += count
{give_tallies}
'''


class CpuLoop(Loop):
    """The function ``update``, which works through a chunk.

    Attributes:
        accessors: what reads and writes arrays, and makes rooms for some numbers.
        before: lines before the loop.
        carried: variables that elements add to, and what they begin at.
    """

    language = LLVM
    template = _UPDATE
    depth = 2

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        arrays = [f"{name}{suffix}" for name, suffix in self.dtypes]
        dtypes = enumerate(self.dtypes.values())
        self.accessors = [f"load_{arrays[i]}, store_{arrays[i]} = array({dtype!r}, {i})" for i, dtype in dtypes]
        self._scratches = 0
        self.before: list[str] = []
        self.carried: dict[str, str] = {}
        self._given: dict[str, str] = {}
        self._ends: dict[str, str] = {}

    def _room(self, accessors: str, *makers: str) -> None:
        """Adds what makes rooms for float32 numbers, and what reads and writes those of the first."""
        scratches = [f"scratch({self._scratches + number})" for number in range(len(makers))]
        self.accessors.append(f"{accessors} = array('float32', {len(self.dtypes) + self._scratches})")
        self.accessors.append(f"{', '.join(makers)} = {', '.join(scratches)}")
        self._scratches += len(makers)

    @property
    def tallies(self) -> dict[str, str]:
        """What a chunk leaves, and its value at the end."""
        return {**self._given, **self._ends}

    def carry(self, name: str, start: str, end: str) -> None:
        """Adds a variable that elements add to."""
        self.carried[name], self._ends[name] = start, end

    def each(self, expression: Expression) -> str:
        """An expression's value for an element, even if it is the same for all."""
        value = self.value(expression)
        return f"{self.real}({value})" if expression.scalar else value

    def add_up(self, name: str, one: Sum) -> None:
        """Adds up an expression, or takes the largest or the smallest of its values."""
        tally, square = tally_of(name, one.how), squared(one, self.stage)
        if square is not None:
            self.body.append(f"{tally} = add_square({tally}, {self.value(square)})")
            self.carry(tally, "0.0", tally)
        elif one.how == ADD:
            self._add_up(name, self.value(one.expression))
        elif one.how == SMALLEST:
            self.body.append(f"{tally} = smaller({tally}, float64({self.value(one.expression)}))")
            self.carry(tally, "inf", tally)
        elif self.real == "float64":
            self.body.append(f"{tally} = larger({tally}, {self.value(one.expression)})")
            self.carry(tally, "0.0", tally)
        else:
            self._take_largest(tally, self.value(one.expression))

    def _take_largest(self, tally: str, value: str) -> None:
        self.body.append(f"{tally} = larger_magnitude({tally}, {value})")
        self.carry(tally, "uint32(0)", f"float64_of({tally})")

    def _add_up(self, name: str, value: str) -> None:
        self.body.append(f"total_{name} = add_up(total_{name}, float64({value}))")
        self.carry(f"total_{name}", "0.0", f"total_{name}")

    def _count(self, name: str, value: str) -> None:
        self.body.append(f"{name} = add_up({name}, {value})")
        self.carry(name, f"{self.real}(0)", f"float64({name})")

    def measure(self, name: str) -> None:
        """Adds up the squares of new_name as it is stored, in float64."""
        new = self.operands[name].stored().format(f"new_{name}")
        self.body.append(f"total_{name} = add_square(total_{name}, float64({new}))")
        self.carry(f"total_{name}", "0.0", f"total_{name}")

    def count_zeroed(self, value: str) -> None:
        """Adds up what is 1 where an element counts as zeroed."""
        self._count("total_zeroed", value)

    def gather(self, name: str) -> None:
        """Takes the squares and the largest absolute value of seen_name."""
        total, top = f"total_{name}", f"top_{name}"
        self.body.append(f"{total} = add_square({total}, seen_{name})")
        self.carry(total, f"{self.real}(0)", f"float64({total})")
        self._take_largest(top, f"float32(seen_{name})")

    def count_lost(self, still: str) -> None:
        """Counts elements that stay as they are, which this says."""
        self._count("total_lost", f"{self.real}(1) if {still} else {self.real}(0)")

    def lose_none(self) -> None:
        """Counts none."""
        self._given["total_lost"] = "0.0"

    @property
    def addresses(self) -> list[str]:
        """The arguments of ``update`` between the sizes and the numbers that no element changes."""
        extra = ["start", "parameter"] * self.by_element + ["grad_factor"] * bool(self.stage.factor)
        return [f"{name}{suffix}_at" for name, suffix in self.dtypes] + extra

    @property
    def numbers(self) -> list[str]:
        """Those numbers."""
        random = [f"random_{name}" for name in self.rounded] + ["seed", "step"] * self.by_element
        return [*self.writer.hoisted.values(), *random]

    def update(self) -> str:
        """The text of ``update``, once the lines are written."""
        return self.template.format(**self.fields())

    def fields(self) -> dict[str, Any]:
        """What the templates have places for."""
        key = ["key = random_bits(seed, step, parameter + FIRST_ELEMENT_KEY)"] * self.by_element
        given = in_tuple(self.tallies.values())
        return {
            "addresses": ", ".join(self.addresses),
            "scalar_names": in_tuple(self.numbers) or "()",
            "before": "".join(f"    {line}\n" for line in self.before + key),
            "body": indent(self.loads + self.body + self.stores, self.depth),
            "start_tallies": "".join(f"    {name} = {start}\n" for name, start in self.carried.items()),
            "give_tallies": f"    return {given}\n" if given else "",
        }


class CpuStrips(CpuLoop):
    """A reading whose elements are divided or rooted, which then wait in a room to be added up."""

    template = _UPDATE_IN_STRIPS
    depth = 3

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        super().__init__(stage, formats)
        self._after: list[str] = []

    def _add_up(self, name: str, value: str) -> None:
        self._room(f"load_part_{name}, store_part_{name}", f"room_for_{name}")
        self.body.append(f"store_part_{name}({name}_room, j, {value})")
        self._after.append(f"total_{name} = add_up(total_{name}, float64(load_part_{name}({name}_room, j)))")
        self.carry(f"total_{name}", "0.0", f"total_{name}")

    def fields(self) -> dict[str, Any]:
        """What the template has places for."""
        rooms = [f"{name}_room = room_for_{name}(0)" for name in self.stage.sums]
        return {**super().fields(), "room_lines": indent(rooms, 1), "after": indent(self._after, self.depth)}


def in_tuple(texts: Any) -> str:
    """With a comma after each, as a tuple of one needs it."""
    return "".join(f"{text}, " for text in texts).rstrip()
