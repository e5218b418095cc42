"""A lesson's formula and its source, with the symbols of the controls marked."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from steprule.formula import formula_latex, formula_symbols, formula_text
from steprule.lessons.lesson import Control, Lesson
from steprule.rule import Rule

MEANINGS = {
    "param": "the weights",
    "grad": "the gradient",
    "exp_avg": "the average of gradients, also called first moment",
    "exp_avg_sq": "the average of their squares, also called second moment",
    "square_avg": "the average of squares of gradients",
    "momentum_buffer": "the sum of gradients that momentum keeps",
    "lr": "the learning rate",
    "beta1": "the share that the average of gradients keeps",
    "beta2": "the share that the average of squares keeps",
    "alpha": "the share that the average of squares keeps",
    "momentum": "the share that the sum of gradients keeps",
    "eps": "epsilon, a small number against dividing by 0",
    "weight_decay": "the weight decay",
}
"""What the names in formulas stand for, where a lesson says nothing else."""


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


def symbol_html(symbol: str) -> str:
    """A symbol in LaTeX as MathML; nothing where there is none, or where latex2mathml is missing."""
    return _math(symbol, ()) if symbol and find_spec("latex2mathml") is not None else ""


def symbols_html(lesson: Lesson) -> str:
    """What the symbols of a lesson's formulas stand for, those of controls marked."""
    if find_spec("latex2mathml") is None:
        return ""
    symbols = {name: symbol for rule in lesson.formulas.values() for name, symbol in formula_symbols(rule).items()}
    meanings = {**MEANINGS, **lesson.symbols}
    items = ""
    for name, symbol in symbols.items():
        if name == "step":
            continue
        marks = [index for index, control in enumerate(lesson.controls) if control.symbol == symbol]
        math = symbol_html(symbol)
        shown = f'<mark class="k{marks[0]}">{math}</mark>' if marks else math
        called = lesson.in_code.get(name, name)
        code = f", <code>{called}</code> in the code" if name not in ("param", "grad") else ""
        items += f"<li>{shown} {escape(meanings[name])}{code}</li>"
    time = "the number of the step, from 1; what has it as its index is the value after that step, and with t \u2212 1 the value before"
    return f"<ul>{items}<li>{symbol_html('t')} {lesson.symbols.get('step', time)}</li></ul>"


def _math(latex: str, controls: Sequence[Control]) -> str:
    """MathML in which the symbols of controls are marked."""
    from latex2mathml.converter import convert

    for control in controls:
        if control.symbol:  # in braces, so that an exponent stays outside
            letter = r"(?<![\\\w])" if control.symbol[0].isalpha() else ""  # by itself, and in no command's name
            latex = re.sub(letter + re.escape(control.symbol) + r"(?!\w)", lambda found: f"{{{found[0]}}}", latex)
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
