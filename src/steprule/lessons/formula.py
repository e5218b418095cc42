"""A lesson's formula and its source, with the symbols of the controls marked."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from steprule.formula import formula_latex, formula_text
from steprule.lessons.lesson import Control
from steprule.rule import Rule


def formula_html(rule: type[Rule], controls: Sequence[Control]) -> str:
    """A rule's formula as MathML, one row a line; as plain text where latex2mathml is missing."""
    if find_spec("latex2mathml") is None:
        return f'<pre tabindex="0">{_marked(formula_text(rule), controls)}</pre>'
    return equations_html(formula_latex(rule), controls)


def equations_html(latex: str, controls: Sequence[Control] = ()) -> str:
    """The equations of an environment such as `formula_latex` writes, as MathML, one row a line."""
    body = latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    rows = ""
    for line in body.split(" \\\\\n"):
        left, _, right = line.partition(" &= ")
        rows += f"<tr><td>{_math(left, controls)}</td><td>{_math('= ' + right, controls)}</td></tr>"
    return f'<div class="scroll" tabindex="0"><table class="formula" role="presentation">{rows}</table></div>'


def symbol_html(control: Control) -> str:
    """A control's symbol, or nothing."""
    if not control.symbol or find_spec("latex2mathml") is None:
        return ""
    return _math(control.symbol, ())


def _math(latex: str, controls: Sequence[Control]) -> str:
    """MathML in which the symbols of controls are marked."""
    from latex2mathml.converter import convert

    for control in controls:
        if control.symbol:  # in braces, so that an exponent stays outside
            latex = re.sub(re.escape(control.symbol) + r"(?!\w)", lambda found: f"{{{found[0]}}}", latex)
    math: str = convert(latex, display="block")
    for index, control in enumerate(controls):
        if control.symbol:
            inner = re.sub(r"^<math[^>]*><mrow>|</mrow></math>$", "", convert(control.symbol))
            math = math.replace(f"<mrow>{inner}</mrow>", f'<mrow class="k k{index}">{inner}</mrow>')
    return math.replace('display="block"', 'display="inline" displaystyle="true"')


def source_html(sources: Sequence[Callable[..., Any]], controls: Sequence[Control]) -> str:
    """The functions as they stand in the library, without docstrings, the names of controls marked."""
    parts = []
    for function in sources:
        name = f"{function.__module__}.{function.__qualname__}"
        code = _marked(source_of(function), controls)
        parts.append(f'<p><code>{name}</code></p><pre tabindex="0">{code}</pre>')
    return "\n".join(parts)


def _marked(code: str, controls: Sequence[Control]) -> str:
    """Code as HTML in which the names of controls are marked."""
    code = escape(code, quote=False)
    for index, control in enumerate(controls):
        if control.source:
            mark = rf'<mark class="k{index}">\1</mark>'
            code = re.sub(rf"(?<![\w.])({re.escape(control.source)})\b", mark, code)
    return code


def source_of(function: Callable[..., Any]) -> str:
    """A function as it stands in the library, without its docstring."""
    source = re.sub(r'\n\s*""".*?"""(?=\n)', "", inspect.getsource(function), count=1, flags=re.DOTALL)
    return textwrap.dedent(source.replace("  # fmt: skip", "")).rstrip()
