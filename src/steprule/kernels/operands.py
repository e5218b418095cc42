"""One operand's loads and stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.formats import FORMATS, HALVES, Format
from steprule.kernels.languages import Language
from steprule.kernels.names import marked
from steprule.trace.expression import Expression
from steprule.trace.program import Stage


@dataclass(frozen=True)
class Operand:
    """An operand of a pass.

    Attributes:
        name: its name.
        kind: how it is kept, a key of `steprule.formats.FORMATS`.
        place: its number, which its random numbers depend on.
    """

    name: str
    kind: str
    place: int

    @property
    def format(self) -> Format:
        """How it is kept."""
        return FORMATS[self.kind]

    @property
    def real(self) -> str:
        """What it is once read, and before it is written: float64 or float32."""
        return "float64" if self.format.arrays[0][1] == "float64" else "float32"

    def arrays(self) -> list[tuple[str, str]]:
        """Its arrays as (operand, suffix)."""
        return [(self.name, suffix) for suffix, _ in self.format.arrays]

    def load(self, language: Language, real: str) -> str:
        """The line that reads it, as this dtype."""
        own = [language.load.format(array=name + suffix) for name, suffix in self.arrays() if suffix != "_base"]
        value = self.format.load.format(*own, exponent=f"{self.name}_exponent")
        return f"{marked(self.name)} = {cast(language, value, self.real, real)}"

    def store(self, language: Language, x: str) -> list[str]:
        """The lines that write it, if x is its new value; block exponents are not written by the element."""
        random, lines = self._random(language), []
        for (name, suffix), text in zip(self.arrays(), self.format.store, strict=False):
            value = text.format(x=x, exponent=f"{self.name}_exponent", random=random)
            lines.append(language.store.format(array=name + suffix, value=value))
        return lines

    def _random(self, language: Language) -> str:
        if self.format.random == "element":
            return language.element_random
        return language.weyl.format(f"random_{self.name}") if self.format.blockwise else f"random_{self.name}"

    def stored(self) -> str:
        """What a new value, {0}, is once stored: rounded if that loses anything for good, and as it is otherwise."""
        dtype = self.format.arrays[0][1]
        plain = len(self.format.arrays) == 1 and not self.format.random and dtype in HALVES
        return f"from_{dtype}(to_{dtype}({{0}}))" if plain else "{0}"


def operands_of(stage: Stage, formats: Sequence[str]) -> dict[str, Operand]:
    """Those of a pass, by name."""
    kinds = zip(stage.operands, formats, strict=True)
    return {name: Operand(name, kind, place) for place, (name, kind) in enumerate(kinds)}


def keeps(name: str, expression: Expression) -> bool:
    """Whether an operand's new value is its old one, which need not be written."""
    return expression.op == "input" and expression.args[0] == name


def cast(language: Language, x: str, dtype: str, wanted: str) -> str:
    """What has this dtype as another one."""
    return x if dtype == wanted else language.cast.format(x=x, dtype=wanted)
