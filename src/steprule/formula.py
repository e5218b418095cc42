"""A rule's formula as a paper prints it, read off the traced expression: whatever can be stepped can be printed."""
# ruff: noqa: RUF001, RUF002, RUF003 - a minus is printed as one

from __future__ import annotations

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from types import FrameType
from typing import Any

from steprule.rule import Rule
from steprule.settings import check_names, check_settings
from steprule.terms import Term, Terms, parts_of
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.program import COUNTS, IN_PLACE
from steprule.trace.tracing import formulas


def formula_text(rule: type[Rule], hyper: Mapping[str, Any] | None = None) -> str:
    """A rule's formula as lines such as ``exp_avg ← beta1·exp_avg + (1 − beta1)·grad``.

    The parameter's new value comes last. After its line a state's new value is written with a prime, ``exp_avg'``; a
    state that stays as it is has no line. What is used several times may have one, and what the formula's function chooses by a
    condition and calls something has: ``direction = grad/norm if norm > 1 else grad``. It is called as in the function, if that
    has a variable for it whose name nothing else has, and ``u``, ``w`` and so on otherwise.
    What only keeps inf and NaN from spreading is left out.

    Args:
        rule: the rule.
        hyper: hyperparameters other than the defaults. A number matters only if a state exists because of it.

    Raises:
        TypeError, ValueError: a hyperparameter is unknown, or its value is out of range.
        RuleError: the rule is none that an engine can run.
    """
    return "\n".join(_Writer(rule, hyper or {}).lines)


def formula_latex(rule: type[Rule], hyper: Mapping[str, Any] | None = None) -> str:
    """The same as one LaTeX environment, ``aligned``, to stand in math mode; it needs the package amsmath.

    A value after the step has the subscript t, one before it t - 1. Arguments and errors as for `formula_text`.
    """
    lines = [re.sub(r"([_^])\{(\w)\}", r"\1\2", line) for line in _LatexWriter(rule, hyper or {}).lines]
    return "\n".join([r"\begin{aligned}", " \\\\\n".join(lines), r"\end{aligned}"])


def formula_symbols(rule: type[Rule], hyper: Mapping[str, Any] | None = None) -> dict[str, str]:
    r"""What `formula_latex` writes for the names in it, such as ``{"lr": r"\eta", "beta1": r"\beta_{1}"}``.

    Symbols are without their times. Arguments and errors as for `formula_text`.
    """
    return _LatexWriter(rule, hyper or {}).used


# For each operation how it is written, how strongly it binds, and how strongly its arguments must. What is missing here
# is written as a function, which binds as names do.
_NAME = 8
_CONDITIONS = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")
_Forms = dict[str, tuple[str, int, tuple[int, ...]]]
_TEXT: _Forms = {
    "where": ("{1} if {0} else {2}", 0, (1, 1, 0)),
    "or": ("{} or {}", 1, (1, 2)),
    "and": ("{} and {}", 2, (2, 3)),
    "not": ("not {}", 3, (3,)),
    **{op: (f"{{}} {sign} {{}}", 4, (5, 5)) for op, sign in zip(_CONDITIONS, "<≤>≥=≠", strict=False)},
    "add": ("{} + {}", 5, (5, 5)),
    "sub": ("{} − {}", 5, (5, 6)),
    "neg": ("−{}", 5, (6,)),
    "mul": ("{}·{}", 6, (6, 6)),
    "div": ("{}/{}", 6, (6, 7)),
    "matmul": ("{} @ {}", 6, (7, 7)),
    "transpose": ("{}ᵀ", 7, (8,)),
    "square": ("{}²", 7, (8,)),
    "pow": ("{}^{}", 7, (8, 8)),
    "sqrt": ("√({})", _NAME, (0,)),
    "abs": ("|{}|", _NAME, (0,)),
    "norm": ("‖{}‖", _NAME, (0,)),
}
_LATEX: _Forms = {
    **_TEXT,
    "where": (r"\begin{{cases}} {1} & \text{{if }} {0} \\ {2} & \text{{otherwise}} \end{{cases}}", 0, (0, 0, 0)),
    "or": (r"{} \lor {}", 1, (1, 2)),
    "and": (r"{} \land {}", 2, (2, 3)),
    "not": (r"\lnot {}", 3, (5,)),
    "le": (r"{} \le {}", 4, (5, 5)),
    "ge": (r"{} \ge {}", 4, (5, 5)),
    "ne": (r"{} \ne {}", 4, (5, 5)),
    "sub": ("{} - {}", 5, (5, 6)),
    "neg": ("-{}", 5, (6,)),
    "mul": ("{} {}", 6, (6, 6)),
    "div": (r"\frac{{{}}}{{{}}}", 7, (0, 0)),
    "div in div": ("{} / {}", 6, (6, 7)),
    "matmul": ("{} {}", 6, (7, 7)),
    "transpose": (r"{}^\top", 7, (8,)),
    "square": ("{}^2", 7, (8,)),
    "pow": ("{}^{{{}}}", 7, (8, 0)),
    "sqrt": (r"\sqrt{{{}}}", _NAME, (0,)),
    "cbrt": (r"\sqrt[3]{{{}}}", _NAME, (0,)),
}
_FENCES = {"abs": (r"\lvert ", r" \rvert"), "norm": (r"\lVert ", r" \rVert"), "floor": (r"\lfloor ", r" \rfloor")}
_FUNCTIONS = {"arctan2": "atan2", "maximum": "max", "minimum": "min"}
_SYMBOLS = {
    "step": "t", "numel": "n", "param": "theta", "grad": "g", "lr": "eta", "eps": "epsilon", "weight_decay": "lambda",
    "momentum": "mu", "dampening": "tau", "exp_avg": "m", "exp_avg_sq": "v", "square_avg": "v", "momentum_buffer": "b",
    "max_exp_avg_sq": r"\hat{v}", "initial_param": "theta0",
}  # fmt: skip
_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "rho", "tau")


class _Writer:
    """Writes a rule's lines, each after those that it refers to."""

    forms = _TEXT
    arrow, equals = " ← ", " = "

    def __init__(self, rule: type[Rule], hyper: Mapping[str, Any]) -> None:
        check_names(rule.__name__, hyper, rule.hyperparameters)
        hyper = {**rule.hyperparameters, **hyper}
        check_settings(rule, hyper)
        with _Locals() as named:
            traced, scalars = formulas(rule, hyper)
        terms = Terms()
        outputs = {name: terms.of(traced[name]) for name in (*rule.states, "param") if name in traced}
        self.lines: list[str] = []
        self._operands = ("grad", *outputs)
        words = {scalar_name(*scalar): _singular(*scalar) for scalar in scalars}
        taken = Counter([*self._operands, *words.values()])
        self._words = {name: text if taken[text] == 1 else name for name, text in words.items()}
        self._symbols = self._choose_symbols()
        letters = itertools.chain("uwqyzhk", (f"u{i}" for i in itertools.count(1)))
        self._called = {
            terms.of(x): name for name, x in named if self._is_free(name)
        }  # the outermost function is the last
        self._locals = (name for name in letters if self._is_free(name) and name not in self._called.values())
        self._names: dict[Term, str] = {}  # what has been written
        self._outputs: dict[Term, str] = {}
        for name, term in outputs.items():
            if term.op not in ("input", "constant", "text"):
                self._outputs.setdefault(term, name)
        seen: set[Term] = set()
        parts = [part for term in outputs.values() for part in parts_of(term, seen)]
        uses = Counter(arg for part in parts for arg in part.args)
        self._lines_of_own = set(self._outputs)
        for part in parts:
            is_long = part.op in IN_PLACE or self._size(part) >= 2 + part.scalar
            is_guard = part.op == "where" and part in self._called  # which would hide what it is in
            if (uses[part] > 1 and part.op not in _CONDITIONS and is_long) or is_guard:
                self._lines_of_own.add(part)
        self._depth = 0  # fractions around what is being written
        for name, term in outputs.items():
            text = self._write(term)
            if self._outputs.get(term) != name and term.args != (name,):
                self.lines.append(self._target(name) + self.arrow + text)

    def _write(self, term: Term, strength: int = 0) -> str:
        """A term as part of another one that needs it to bind as strongly as that."""
        if term in self._names:
            return self._names[term]
        if term not in self._lines_of_own:
            text, own = self._compose(term)
            return text if own >= strength else self._fenced(text)
        depth, self._depth = self._depth, 0
        text, _ = self._compose(term)
        self._depth = depth
        if term in self._outputs:
            name = self._outputs[term]
            self._names[term] = self._new(name)
            self.lines.append(self._target(name) + self.arrow + text)
        else:
            self._names[term] = self._local(self._name(term))
            self.lines.append(self._names[term] + self.equals + text)
        return self._names[term]

    def _name(self, term: Term) -> str:
        """What a line of no state is called: as a variable of the function, with a number if another line is called so, or a letter."""
        name = self._called.get(term)
        if name is None:
            return next(self._locals)
        numbered = itertools.chain([name], (f"{name}{number}" for number in itertools.count(2)))
        return next(one for one in numbered if self._is_free(one) and self._local(one) not in self._names.values())

    def _size(self, term: Term) -> int:
        """The operations in a term that are written out there."""
        return sum(1 for _ in parts_of(term, self._lines_of_own - {term}))

    def _compose(self, term: Term) -> tuple[str, int]:
        """A term's text and how strongly it binds."""
        op, args = term.op, term.args[:4] if term.op == "every" else term.args
        if op == "input":
            return self._old(args[0]), _NAME
        if op == "constant":
            return self._number(args[0])
        if op == "text":
            return self._text(args[0]), _NAME
        if op == "polar":
            return self._function(op, self._of_polar(*args)), _NAME
        if op == "div" and self._depth and "div in div" in self.forms:
            op = "div in div"
        if op not in self.forms:
            return self._function(_FUNCTIONS.get(op, op), [self._write(arg) for arg in args]), _NAME
        form, own, needed = self.forms[op]
        if op == "mul" and args[0].op == "div":  # (a/b)·c rather than a/b·c
            needed = (7, 6)
        elif op == "mul" and not args[0].scalar:  # element by element, which a product of matrices must not look like
            needed = tuple(7 if arg.op == "matmul" else 6 for arg in args)
        elif op == "matmul" and args[0].op == "matmul":
            needed = (6, 7)
        self._depth += op == "div"
        texts = [self._write(arg, strength) for arg, strength in zip(args, needed, strict=True)]
        self._depth -= op == "div"
        return self._filled(op, form, texts), own

    def _of_polar(self, x: Term, steps: Term, eps: Term, *coefficients: Term) -> list[str]:
        """The arguments of a polar factor in the order in which a rule writes them."""
        whole, count, least, *given = (self._write(arg) for arg in (x, steps, eps, *coefficients))
        return [whole, given[0] if len(given) == 1 else f"({', '.join(given)})", count, least]

    # What is different in LaTeX

    def _choose_symbols(self) -> dict[str, str]:
        return self._words | {name: name for name in (*self._operands, "step", *COUNTS)}

    def _text(self, value: Any) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value)

    def _is_free(self, name: str) -> bool:
        """Whether no operand, hyperparameter or count is called so."""
        return self._local(name) not in {*self._symbols.values(), *map(self._local, self._symbols)}

    def _old(self, name: str) -> str:
        return self._symbols.get(name, name)

    def _new(self, name: str) -> str:
        return f"{name}'"

    def _target(self, name: str) -> str:
        return name

    def _local(self, name: str) -> str:
        return name

    def _fenced(self, text: str, left: str = "(", right: str = ")") -> str:
        return left + text + right

    def _function(self, name: str, args: list[str]) -> str:
        return name + self._fenced(", ".join(args))

    def _filled(self, op: str, form: str, args: list[str]) -> str:
        if op in ("abs", "norm") and form[0] in args[0]:  # |a − |b|| cannot be read
            return self._function(op, args)
        return form.format(*args)

    def _number(self, value: float) -> tuple[str, int]:
        return "∞" if value == math.inf else str(_rounded(value)).lower().removesuffix(".0"), _NAME


class _LatexWriter(_Writer):
    forms = _LATEX
    arrow = equals = " &= "
    used: dict[str, str]

    def _choose_symbols(self) -> dict[str, str]:
        self.used = {}
        symbols: dict[str, str] = {}
        for name in ("step", *COUNTS, *self._operands, *self._words):
            words = self._words.get(name, name)
            symbol = _subscripted(_SYMBOLS.get(words, words))
            is_taken = symbol in symbols.values()
            symbols[name] = rf"\mathrm{{{words}}}".replace("_", r"\_") if is_taken or not symbol else symbol
        return symbols

    def _text(self, value: Any) -> str:
        return rf"\text{{{value}}}".replace("_", r"\_")

    def _old(self, name: str) -> str:
        symbol = self.used[self._words.get(name, name)] = super()._old(name)
        return _at(symbol, "t" if name == "grad" else "t-1") if name in self._operands else symbol

    def _new(self, name: str) -> str:
        self.used[name] = self._symbols[name]
        return _at(self._symbols[name], "t")

    _target = _new

    def _is_free(self, name: str) -> bool:
        return super()._is_free(name) and self._symbol(name) not in self._symbols.values()

    def _symbol(self, name: str) -> str:
        """A letter, or a word that stands upright."""
        return _subscripted(name) or rf"\mathrm{{{name}}}".replace("_", r"\_")

    def _local(self, name: str) -> str:
        return _at(self._symbol(name), "t")

    def _fenced(self, text: str, left: str = "(", right: str = ")") -> str:
        is_tall = any(command in text for command in (r"\frac", r"\sqrt", r"\begin"))
        return rf"\left{left}{text}\right{right.lstrip()}" if is_tall else left + text + right

    def _function(self, name: str, args: list[str]) -> str:
        if name in _FENCES:
            return self._fenced(args[0], *_FENCES[name])
        command = rf"\{name}" if name in ("max", "min", "exp", "log") else rf"\operatorname{{{name}}}"
        return command.replace("_", r"\_") + self._fenced(", ".join(args))

    def _filled(self, op: str, form: str, args: list[str]) -> str:
        if op in _FENCES:
            return self._function(op, args)
        if op == "matmul" and r"\mathrm" in "".join(args):
            form = r"{} \, {}"
        if op == "mul" and re.search(r"\\mathrm\{\S*  |  (\d|\\mathrm)", "  ".join(args)):
            form = r"{} \cdot {}"  # words and numbers side by side would run together
        if op == "where" and args[2].startswith(r"\begin{cases} "):  # further cases
            form, args[2] = form.partition("{2}")[0] + "{2}", args[2].removeprefix(r"\begin{cases} ")
        return form.format(*args)

    def _number(self, value: float) -> tuple[str, int]:
        text, own = super()._number(value)
        digits, power, exponent = text.replace("∞", r"\infty").partition("e")
        if not power or not digits[0].isdigit():
            return text.replace("∞", r"\infty"), own
        ten = f"10^{{{int(exponent)}}}"
        return (ten, 7) if digits == "1" else (rf"{digits} \cdot {ten}", 6)


class _Locals:
    """What local variables are, in a formula's function and in those that it calls, when these return: expressions alone."""

    _HOMES = ("steprule.rules", "steprule.transforms", "steprule.wrappers", "steprule.lessons")

    def __enter__(self) -> list[tuple[str, Expression]]:
        self._found: list[tuple[str, Expression]] = []
        self._before = sys.getprofile()
        sys.setprofile(self._look)
        return self._found

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _look(self, frame: FrameType, event: str, _: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "return" and (module.startswith(self._HOMES) or module.partition(".")[0] != "steprule"):
            self._found += ((name, x) for name, x in frame.f_locals.items() if isinstance(x, Expression))


def _rounded(value: float) -> float:
    """0.1 for 1 - 0.9, which is 0.09999999999999998, and so on: a number without the rounding error of 1 - beta."""
    beta = 1 - value
    short = float(1 - Decimal(repr(beta))) if 0 < value < 1 and 1 - beta == value else value
    return short if len(repr(short)) + 3 < len(repr(value)) else value


def _singular(name: str, index: int | None) -> str:
    """beta1 for betas[0]."""
    return name if index is None else f"{name.removesuffix('s')}{index + 1}"


def _subscripted(word: str) -> str:
    r"""\beta_{1} for beta1 and u_{1} for u1; nothing for what is no letter's name."""
    stem = word.rstrip("0123456789")
    letter = rf"\{stem}" if stem in _GREEK else stem
    if stem == word:
        return letter if len(word) == 1 or letter[0] == "\\" else ""
    return rf"{letter}_{{{word[len(stem) :]}}}" if len(stem) == 1 or letter[0] == "\\" else ""


def _at(symbol: str, time: str) -> str:
    """The symbol at a time; what has the index 0 never changes."""
    if symbol.endswith("_{0}"):
        return symbol
    return f"{symbol[:-1]},{time}}}" if re.search(r"_\{\d+\}$", symbol) else f"{symbol}_{{{time}}}"
