"""A kernel as text, and what stands above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steprule.kernels.languages import Language
from steprule.rule import Rule
from steprule.trace.program import Stage

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
        grouped: whether numbers share bases, so that chunks must hold whole groups.
        random: whether the seed follows the formula's scalars in the plan's table of hyperparameters.
        tallies: what each chunk leaves in the plan's partials: names that begin with "total_" are sums, those with
            "top_" largest absolute values.
    """

    text: str
    arrays: tuple[tuple[str, str], ...]
    grouped: bool
    random: bool
    tallies: tuple[str, ...]


def title_of(rule: type[Rule]) -> str:
    """The first line of a kernel's docstring."""
    title = f"{rule.__name__}: {(rule.__doc__ or 'a rule of your own.').strip().splitlines()[0]}"
    return title.replace("\\", "/").replace('"', "'")


def head(title: str, stage: Stage, formats: Sequence[str], language: Language) -> str:
    """That docstring."""
    operands = ", ".join(f"{name} {kind}" for name, kind in zip(stage.operands, formats, strict=True))
    return _HEAD.format(title=title, operands=operands, real=compute_dtype(formats), compiler=language.compiler)


def compute_dtype(formats: Sequence[str]) -> str:
    """The dtype of the arithmetic: float64 if any operand has it, else float32."""
    return "float64" if "float64" in formats else "float32"


def indent(lines: Sequence[str], depth: int) -> str:
    """The lines, further to the right."""
    return "\n".join("    " * depth + line for line in lines)
