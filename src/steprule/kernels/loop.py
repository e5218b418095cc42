"""What a pass does to one element, as lines: in the same order for every engine, so that they agree to the last bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from steprule.kernels.languages import Language
from steprule.kernels.names import marked
from steprule.kernels.operands import Operand, cast, keeps, operands_of
from steprule.kernels.source import compute_dtype
from steprule.kernels.writer import Writer
from steprule.trace.expression import Expression
from steprule.trace.program import ROW, Stage, Sum


class Loop(ABC):
    """One pass while it is written.

    Args:
        stage: what it computes.
        formats: of each of the stage's operands, keys of `steprule.formats.FORMATS`.

    Attributes:
        language: of the engine.
        real: the dtype of the arithmetic.
        operands: by name.
        dtypes: of each array, (operand, suffix); param's and grad's own come first.
        writer: of its expressions.
        loads, body, stores: lines, in this order.
        blockwise: whether an operand has block exponents.
        rounded: the operands that are rounded by one random number for each step.
        by_element: whether elements have random numbers of their own.
    """

    language: ClassVar[Language]

    def __init__(self, stage: Stage, formats: Sequence[str]) -> None:
        self.stage = stage
        self.real = compute_dtype(formats, stage.wide)
        self.operands = operands_of(stage, formats)
        found = {(one.name, suffix): dtype for one in self.operands.values() for suffix, dtype in one.format.arrays}
        self.dtypes = dict(sorted(found.items(), key=lambda array: array[0] not in (("param", ""), ("grad", ""))))
        # Columns are added up for a few rows at a time, which float32 is enough for.
        for name, side in stage.sides.items():
            self.dtypes[name, ""] = "float64" if side.axis == ROW and side.how else self.real
        stored = self.operands["param"].stored() if "param" in self.operands else "{0}"
        self.writer = Writer(stage, self.real, stored, self.language)
        self.loads: list[str] = []
        self.body: list[str] = []
        self.stores: list[str] = []
        kinds = {name: one.format for name, one in self.operands.items()}
        self.blockwise = any(one.blockwise for one in kinds.values())
        self.rounded = [name for name, one in kinds.items() if one.random == "step"]
        self.by_element = any(one.random == "element" for one in kinds.values())
        self.uses_seed = bool(self.rounded) or self.by_element

    def write(self) -> None:
        """Writes the lines."""
        stage = self.stage
        for operand in self.operands.values():
            self.load(operand)
        for name, new in stage.outputs.items():
            if self.operands[name].format.blockwise or not keeps(name, new):
                self.body.append(f"new_{name} = {self.each(new)}")
                self.store(self.operands[name], cast(self.language, f"new_{name}", self.real, self.operands[name].real))
        for name in stage.measured:
            self.measure(name)
        for name, one in stage.sums.items():
            self.add_up(name, one)
        if stage.counted is not None:
            self.count_zeroed(self.value(stage.counted))
        for name, expression in stage.gathered.items():
            self.body.append(f"seen_{name} = {self.value(expression)}")
            self.gather(name)
        if stage.gathered and self.operands["param"].format.random:  # what is rounded at random counts on average
            self.lose_none()
        elif stage.gathered:
            kept = self.operands["param"].stored().format("seen_param")
            self.count_lost(f"({kept} == {marked('param')}) & (seen_grad != 0)")

    def value(self, expression: Expression) -> str:
        """An expression's value, after lines for what it needs."""
        return self.writer.element(expression, self.body)

    def load(self, operand: Operand) -> None:
        """Reads an operand."""
        self.loads.append(operand.load(self.language, self.real))

    def store(self, operand: Operand, x: str) -> None:
        """Writes an operand's new value."""
        self.stores += operand.store(self.language, x)

    @abstractmethod
    def each(self, expression: Expression) -> str:
        """An expression's value for an element, even if it is the same for all."""

    @abstractmethod
    def add_up(self, name: str, one: Sum) -> None:
        """Adds up an expression, or takes the largest or the smallest of its values."""

    @abstractmethod
    def measure(self, name: str) -> None:
        """Adds up the squares of new_name as it is stored, in float64."""

    @abstractmethod
    def count_zeroed(self, value: str) -> None:
        """Adds up what is 1 where an element counts as zeroed."""

    @abstractmethod
    def gather(self, name: str) -> None:
        """Takes the squares and the largest absolute value of seen_name."""

    @abstractmethod
    def count_lost(self, still: str) -> None:
        """Counts elements that stay as they are, which this says."""

    @abstractmethod
    def lose_none(self) -> None:
        """Counts none."""
