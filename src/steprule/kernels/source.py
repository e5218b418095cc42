"""A kernel as text, and what stands above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.kernels.languages import Language
from steprule.rule import Rule
from steprule.trace.expression import Expression
from steprule.trace.program import ADD, LARGEST, SMALLEST, Stage, Sum

_HEAD = '''"""{title}

Operands: {operands}; computed in {real}.
Written by steprule from the rule's formula, compiled by {compiler}; safe to delete.
"""

'''


@dataclass(frozen=True)
class Source:
    """A kernel as text.

    Attributes:
        text: the file.
        arrays: the arrays that it works on, as (operand, suffix); param's and grad's own come first.
        blockwise: whether an operand has block exponents, so that chunks must hold whole blocks.
        random: whether the seed follows the formula's scalars in the plan's table of hyperparameters.
        real: the dtype of the arithmetic.
        tallies: what each chunk leaves in the plan's partials: names that begin with "total_" are sums, those with
            "top_" the largest and those with "low_" the smallest values; see `tally_of`.
    """

    text: str
    arrays: tuple[tuple[str, str], ...]
    blockwise: bool
    random: bool
    tallies: tuple[str, ...]
    real: str


def title_of(rule: type[Rule]) -> str:
    """The first line of a kernel's docstring."""
    title = f"{rule.__name__}: {(rule.__doc__ or 'a rule of your own.').strip().splitlines()[0]}"
    return title.replace("\\", "/").replace('"', "'")


def head(title: str, stage: Stage, formats: Sequence[str], language: Language) -> str:
    """That docstring."""
    operands = ", ".join(f"{name} {kind}" for name, kind in zip(stage.operands, formats, strict=True))
    return _HEAD.format(
        title=title, operands=operands, real=compute_dtype(formats, stage.wide), compiler=language.compiler
    )


def compute_dtype(formats: Sequence[str], wide: bool = False) -> str:
    """The dtype of the arithmetic: float64 if any operand has it or that is wanted, else float32."""
    return "float64" if wide or "float64" in formats else "float32"


def tally_of(name: str, how: str) -> str:
    """What a sum is called where chunks leave their parts of it."""
    return {ADD: "total_", LARGEST: "top_", SMALLEST: "low_"}[how] + name


def squared(one: Sum, stage: Stage) -> Expression | None:
    """What is squared and added up in float64, by one operation that languages have for it."""
    x = one.expression
    return x.args[0] if stage.wide and x.op == "mul" and x.args[0] is x.args[1] else None


def indent(lines: Sequence[str], depth: int) -> str:
    """The lines, further to the right."""
    return "\n".join("    " * depth + line for line in lines)
