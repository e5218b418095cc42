"""Formulas as MathML, which browsers show without any script."""

from __future__ import annotations

from latex2mathml.converter import convert


def mathml(latex: str) -> str:
    """An ``aligned`` environment of `steprule.formula.formula_latex` as a table, one equation a row."""
    body = latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    rows = ""
    for line in body.split(" \\\\\n"):
        left, _, right = line.partition(" &= ")
        rows += f"<tr><td>{_inline(left)}</td><td>{_inline('= ' + right)}</td></tr>"
    return f'<div class="formula" tabindex="0"><table role="presentation">{rows}</table></div>'


def _inline(latex: str) -> str:
    math: str = convert(latex, display="block")
    return math.replace('display="block"', 'display="inline" displaystyle="true"')
