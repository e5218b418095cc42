"""What a lesson is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from steprule.charts import Chart
from steprule.rule import Rule


@dataclass(frozen=True)
class Control:
    """What the reader moves: a slider over numbers, or a choice of texts.

    Attributes:
        label: what it is called.
        values: its positions.
        initial: which of them the page begins with.
        symbol: how the formula writes it, in LaTeX; empty if the formula has no such symbol.
        source: its name in the source; empty if it has none.
    """

    label: str
    values: Sequence[Any]
    initial: Any
    symbol: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.initial not in self.values:
            raise ValueError(f"{self.label} begins at {self.initial!r}, which is none of its values")

    @property
    def is_choice(self) -> bool:
        """Whether it is a choice of texts."""
        return isinstance(self.values[0], str)


@dataclass(frozen=True)
class Screen:
    """What there is to see at one combination of the controls' values: charts, and a sentence that reads them."""

    charts: Sequence[Chart]
    reading: str


@dataclass(frozen=True)
class Question:
    """A question that the page checks.

    Attributes:
        text: the question.
        answer: the right number, or the right one of choices; computed.
        why: why it is right.
        choices: what there is to choose from; empty if a number is asked for.
        within: by how much a number may be off, as a share of it.
    """

    text: str
    answer: float | str
    why: str
    choices: Sequence[str] = ()
    within: float = 0.01

    def __post_init__(self) -> None:
        if self.choices and self.answer not in self.choices:
            raise ValueError(f"the answer {self.answer!r} is none of the choices")


@dataclass(frozen=True)
class Lesson:
    """One lesson; `steprule.lessons` says how it is written."""

    title: str
    question: str
    controls: Sequence[Control]
    screen: Callable[..., Screen]
    text: Sequence[str]
    formulas: Mapping[str, type[Rule]]
    sources: Sequence[Callable[..., Any]]
    try_it: str
    output: str
    wrong: Sequence[str]
    questions: Callable[[], Sequence[Question]]
    references: Sequence[str]
    claims: Callable[[], Mapping[str, float]]
    given: Sequence[float] = ()
    needs: Sequence[str] = ()
    about_code: str = ""
    symbols: Mapping[str, str] = field(default_factory=dict)
    in_code: Mapping[str, str] = field(default_factory=dict)

    def positions(self) -> list[tuple[Any, ...]]:
        """Every combination of the controls' values, the last control's changing fastest."""
        return list(product(*(control.values for control in self.controls)))

    def initial(self) -> int:
        """Which of the positions the page begins with."""
        return self.positions().index(tuple(control.initial for control in self.controls))
