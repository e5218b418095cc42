"""Printed formulas: the text is read back and computes what the rule computes."""
# ruff: noqa: RUF001 - a minus is printed as one

from __future__ import annotations

import ast
import itertools
import math
import re
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from settings import IDS, VARIANTS, sees_matrix

from steprule import Rule, State, ema, ema_sq, pieces, sqrt
from steprule.formula import formula_latex, formula_text
from steprule.hyper import filled
from steprule.rule import DECAYS
from steprule.rules import SGD, AdamW, Adan, Lion, Scion
from steprule.rules.options import with_options
from steprule.state import state_shape
from steprule.trace.expression import Expression
from steprule.trace.extent import NUMBER

SYMBOLS = {
    "·": "*", "−": "-", "^": "**", "ᵀ": ".T", "²": "**2", "√": "sqrt", "∞": "inf", "≤": "<=", "≥": ">=", "≠": "!=", " = ": " == "
}  # fmt: skip


class Arrays(ast.NodeTransformer):
    """Choices and conditions as functions of arrays."""

    def visit_IfExp(self, node):
        return self.call("where", node.test, node.body, node.orelse)

    def visit_BoolOp(self, node):
        return self.call(f"logical_{type(node.op).__name__.lower()}", *node.values)

    def visit_UnaryOp(self, node):
        return self.call("logical_not", node.operand) if isinstance(node.op, ast.Not) else self.generic_visit(node)

    def visit_BinOp(self, node):
        if isinstance(node.op, ast.MatMult):
            return self.call("matmul", node.left, node.right)
        return self.generic_visit(node)

    def call(self, name, *args):
        call = ast.Call(ast.Name(name, ast.Load()), [self.visit(arg) for arg in args], [])
        return ast.copy_location(call, args[0])


class Exact(ast.NodeTransformer):
    """Numbers as fractions."""

    def visit_Constant(self, node):
        return ast.copy_location(ast.Call(ast.Name("Fraction", ast.Load()), [ast.Constant(str(node.value))], []), node)


def read(text, values, functions, transformer):
    """The new values of what the lines are about."""
    known, new = dict(values), {}
    for line in text.splitlines():
        target, sign, expression = re.split("( ← | = )", line, maxsplit=1)
        for symbol, meaning in SYMBOLS.items():
            expression = expression.replace(symbol, meaning)
        expression = re.sub(r"‖([^‖]*)‖", r"norm(\1)", expression)
        expression = re.sub(r"\|([^|]*)\|", r"abs(\1)", re.sub(r"(\w)'", r"\1_after", expression))
        tree = ast.fix_missing_locations(transformer.visit(ast.parse(expression, mode="eval")))
        value = eval(compile(tree, line, "eval"), {"__builtins__": {}}, {**functions, **known})
        assert target not in new and (sign == " ← " or target not in known), line
        if sign == " ← ":
            assert target in values, line
            new[target] = known[f"{target}_after"] = value
        else:
            known[target] = value
    return {name: new.get(name, values[name]) for name in values}


ARRAY_FUNCTIONS = {
    **{name: getattr(np, name) for name in ("sqrt", "exp", "log", "abs", "sign", "floor", "cbrt", "where", "mean", "inf")},
    **{f"logical_{name}": getattr(np, f"logical_{name}") for name in ("and", "or", "not")},
    "max": np.maximum, "min": np.minimum, "atan2": np.arctan2, "norm": np.linalg.norm, "total": np.sum, "total_of_all": np.sum,
    **{name: getattr(pieces, name) for name in ("row_mean", "col_mean", "decorrelate", "matmul", "gram", "transpose", "eigenbasis", "inverse_root", "largest_eigenvalue", "every")},
    "row_total": pieces.row_total, "col_total": pieces.col_total, "row_largest": pieces.row_largest, "col_largest": pieces.col_largest, "top_share": pieces.top_share,
    "polar": pieces.polar,
}  # fmt: skip


def some_hyper(rule, hyper):
    """The same flags, and numbers that make every term count."""
    changed, conditions = {}, {state.when for state in rule.states.values()}
    for name, value in hyper.items():
        if type(value) in (int, float) and value == 0 and name not in conditions:
            try:
                rule.check(**{**hyper, **changed, name: 0.3})
            except ValueError:
                continue
            changed[name] = 0.3
    return filled({**hyper, **changed}, 2.0**-52)


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_the_text_computes_what_the_rule_computes(rule, hyper):
    check_text(rule, some_hyper(rule, hyper))


@pytest.mark.parametrize("rule", [SGD, AdamW, Lion, Adan], ids=lambda rule: rule.__name__)
def test_so_does_that_of_a_rule_with_options_around_it(rule):
    tested = 0
    for decay, cautious, cautious_decay, lookahead in itertools.product([None, *DECAYS], *[[False, True]] * 2, [0, 2]):
        options = dict(cautious=cautious, cautious_decay=cautious_decay, lookahead=lookahead)
        options["lookahead_alpha"] = 0.3 if lookahead else 0.5
        try:
            chained = with_options(rule, decay=decay, **options)
        except ValueError:  # options that do not go together
            continue
        tested += chained is not rule
        hyper = {name: {**options, **chained.hyperparameters}[name] for name in chained.hyperparameters}
        hyper |= {"lookahead": 2} if lookahead else {}
        check_text(chained, some_hyper(chained, hyper))
        check_latex(formula_latex(chained))
    assert tested > 20


def check_text(rule, hyper):
    text = formula_text(rule, hyper)
    shape = (4, 5) if sees_matrix(rule, hyper) else (5,)
    scalars = {"numel": float(np.prod(shape)), "rows": 4.0, "cols": 5.0}
    for name, value in hyper.items():
        if isinstance(value, tuple):
            scalars |= {f"{name.removesuffix('s')}{i}": one for i, one in enumerate(value, 1)}
        elif type(value) in (int, float):
            scalars[name] = value
    random = np.random.default_rng(0)
    for step in (1, 2, 7, 1000):
        operands = {name: random.normal(size=shape) for name in ("param", "grad")}
        for name in filter(None, rule.states_for(hyper)):
            operands[name] = random.uniform(0.1, 2, state_shape(rule, name, shape))
        param, grad, *states = operands.values()
        states = iter(states)
        given = tuple(name and next(states) for name in rule.states_for(hyper))
        with np.errstate(all="ignore"):
            expected = rule.evaluate(param, grad, given, float(step), hyper)
            found = read(text, operands | {"step": float(step)} | scalars, ARRAY_FUNCTIONS, Arrays())
        for name, value in zip(("param", *rule.states_for(hyper)), expected, strict=True):
            if name:
                assert np.isfinite(value).all()
                np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{name} in\n{text}")


# Any formula. Fractions have no rounding, so that what is read back must be the same number.

COMPARISONS = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip
BINARY = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
}  # fmt: skip
PIECES = {
    "neg": lambda _, x: -x, "abs": lambda _, x: abs(x), "square": lambda _, x: x**2, "cube": lambda _, x: x**3,
    "sign": lambda p, x: p.sign(x), "ema": lambda p, a, x, b: p.ema(a, x, b), "ema_sq": lambda p, a, x, b: p.ema_sq(a, x, b),
    "l2": lambda p, g, x, w: p.l2(g, x, w), "maximum": lambda p, a, b: p.maximum(a, b),
    "minimum": lambda p, a, b: p.minimum(a, b), "trust": lambda p, a, b: p.where(b > 0, a / p.where(b > 0, b, 1), 1),
    "guard": lambda p, a, b: p.where(b > 1, a / p.maximum(b, 1), 2),
}  # fmt: skip
ARITIES = {"neg": 1, "abs": 1, "square": 1, "cube": 1, "sign": 1, "ema": 3, "ema_sq": 3, "l2": 3}


def sign(x):
    return Fraction((x > 0) - (x < 0))


class Numbers:
    """The pieces, of fractions."""

    def __getattr__(self, name):
        return {"maximum": max, "minimum": min, "sign": sign}.get(name) or getattr(pieces, name)


LEAVES = ("param", "grad", "u", "step", "lr", 0.0, 0.5, 1.0, 2.0, -1.0, -0.25)


@st.composite
def trees(draw):
    def tree(depth):
        op = draw(st.sampled_from([*LEAVES, *BINARY, "where", *PIECES] if depth else LEAVES))
        if op in LEAVES:
            return op
        if op == "where":
            return op, condition(depth - 1), tree(depth - 1), tree(depth - 1)
        return op, *(tree(depth - 1) for _ in range(ARITIES.get(op, 2)))

    def condition(depth):
        op = draw(st.sampled_from([*COMPARISONS, *["not", "and", "or"] * (depth > 0)]))
        return op, *(
            (tree if op in COMPARISONS else condition)(depth - 1 if depth else 0)
            for _ in range(1 if op == "not" else 2)
        )

    return tree(4)


def build(tree, leaf, p):
    """The tree's value, computed with the pieces p."""
    if not isinstance(tree, tuple):
        return leaf(tree)
    op, *args = tree
    values = [build(arg, leaf, p) for arg in args]
    if op in ("and", "or", "not"):
        if isinstance(p, Numbers):
            return not values[0] if op == "not" else all(values) if op == "and" else any(values)
        return ~values[0] if op == "not" else values[0] & values[1] if op == "and" else values[0] | values[1]
    if op in COMPARISONS | BINARY:
        return (COMPARISONS | BINARY)[op](*values)
    value = p.where(*values) if op == "where" else PIECES[op](p, *values)
    return Fraction(value) if isinstance(p, Numbers) else value


def rule_of(*trees):
    """One that makes the parameter and the state u what the trees say."""

    def update(param, grad, u, *, step, lr=0.5):
        operands = {"param": param, "grad": grad, "u": u, "step": step, "lr": lr}
        constants = {x: Expression("constant", (x,), NUMBER) for x in LEAVES if not isinstance(x, str)}
        return tuple(build(tree, (operands | constants).__getitem__, pieces) for tree in trees)

    return type("Mine", (Rule,), {"update": staticmethod(update)})


@settings(max_examples=300, deadline=None)
@given(trees(), trees(), st.lists(st.fractions(-3, 3, max_denominator=4), min_size=5, max_size=5))
def test_any_formula_can_be_read_back(tree, state_tree, numbers):
    values = dict(zip(("param", "grad", "u", "step", "lr"), numbers, strict=True))
    rule = rule_of(tree, state_tree)
    text = formula_text(rule)
    check_latex(formula_latex(rule))
    functions = {"Fraction": Fraction, "abs": abs, "max": max, "min": min, "sign": sign, "inf": math.inf}
    leaf = {**values, **{x: Fraction(x) for x in LEAVES if not isinstance(x, str)}}.__getitem__
    try:
        expected = [build(one, leaf, Numbers()) for one in (tree, state_tree)]
        found = read(text, values, functions, Exact())
    except ZeroDivisionError:  # perhaps in a line whose value is not used then
        assume(False)
    assert [found["param"], found["u"]] == expected, text


# The words


def test_sgd():
    assert formula_text(SGD) == "param ← param − lr·(grad + weight_decay·param)"
    assert formula_text(SGD, {"momentum": 0.9}).splitlines() == [
        "momentum_buffer ← momentum·momentum_buffer + (1 if step = 1 else 1 − dampening)·(grad + weight_decay·param)",
        "param ← param − lr·momentum_buffer'",
    ]
    assert formula_text(SGD, {"momentum": 0.9, "nesterov": True}).splitlines() == [
        "u = grad + weight_decay·param",
        "momentum_buffer ← momentum·momentum_buffer + (1 if step = 1 else 1 − dampening)·u",
        "param ← param − lr·(u + momentum·momentum_buffer')",
    ]
    assert formula_latex(SGD, {"momentum": 0.9}).splitlines() == [
        r"\begin{aligned}",
        r"b_t &= \mu b_{t-1} + \left(\begin{cases} 1 & \text{if } t = 1 \\ 1 - \tau & \text{otherwise} \end{cases}\right)"
        r" (g_t + \lambda \theta_{t-1}) \\",
        r"\theta_t &= \theta_{t-1} - \eta b_t",
        r"\end{aligned}",
    ]


def test_adamw():
    assert formula_text(AdamW, {"amsgrad": True}).splitlines() == [
        "exp_avg ← beta1·exp_avg + (1 − beta1)·grad",
        "exp_avg_sq ← beta2·exp_avg_sq + (1 − beta2)·grad²",
        "max_exp_avg_sq ← max(max_exp_avg_sq, exp_avg_sq')",
        "param ← param − lr·(exp_avg'/(1 − beta1^step)/(√(max_exp_avg_sq'/(1 − beta2^step)) + eps) + weight_decay·param)",
    ]
    assert formula_latex(AdamW).splitlines() == [
        r"\begin{aligned}",
        r"m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\",
        r"v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\",
        r"\theta_t &= \theta_{t-1} - \eta \left(\frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}"
        r" + \lambda \theta_{t-1}\right)",
        r"\end{aligned}",
    ]


def printed(update, printer=formula_text, **attributes):
    return printer(type("Mine", (Rule,), {"update": staticmethod(update), **attributes}))


def test_pieces_that_are_traced_as_arithmetic_are_recognized():
    def update(param, grad, total, count, *, step, lr=0.1, eps=1e-30):
        length = pieces.norm(grad) / pieces.mean(grad) + pieces.size(grad) * pieces.total_of_all(param)
        angle = pieces.atan2(-grad, pieces.cbrt(param))
        return param - lr * pieces.sign(angle) / pieces.floor(step), total + length, pieces.at_first(step, 1e-30, count)

    text = printed(update, total=State("scalar"), count=State("scalar")).splitlines()
    assert text == [
        "total ← total + ‖grad‖/mean(grad) + numel·total_of_all(param)",
        "count ← 1e-30 if step = 1 else count",
        "param ← param − lr·sign(atan2(−grad, cbrt(param)))/floor(step)",
    ]
    assert printed(update, formula_latex, total=State("scalar"), count=State("scalar")).splitlines()[1:-1] == [
        r"\mathrm{total}_t &= \mathrm{total}_{t-1} + \frac{\lVert g_t \rVert}{\operatorname{mean}(g_t)} + n"
        r" \operatorname{total\_of\_all}(\theta_{t-1}) \\",
        r"\mathrm{count}_t &= \begin{cases} 10^{-30} & \text{if } t = 1 \\ \mathrm{count}_{t-1} & \text{otherwise} \end{cases} \\",
        r"\theta_t &= \theta_{t-1} - \frac{\eta \operatorname{sign}\left(\operatorname{atan2}\left(-g_t,"
            r" \sqrt[3]{\theta_{t-1}}\right)\right)}"
        r"{\lfloor t \rfloor}",
    ]  # fmt: skip


INF = math.inf
p = pieces


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (lambda x, g, step, lr: (g**3) ** 2 + (g**2) ** 3 + (2.0**step) ** lr, "(grad^3)² + (grad²)^3 + (2^step)^lr"),
        (lambda x, g, step, lr: (g * g) * (g * g), "(grad²)²"),
        (lambda x, g, step, lr: (g / x) * lr - g / (x * lr), "(grad/param)·lr − grad/(param·lr)"),
        (lambda x, g, step, lr: x - (g - lr) + (-g) * x, "param − (grad − lr) + (−grad)·param"),
        (lambda x, g, step, lr: abs(g) + 1 / abs(g), "|grad| + 1/|grad|"),
        (
            lambda x, g, step, lr: p.where(g > 0, p.where(x >= 0, 1, g), p.where(x <= 0, 2, g)),
            "(1 if param ≥ 0 else grad) if grad > 0 else 2 if param ≤ 0 else grad",
        ),
        (lambda x, g, step, lr: p.where(~((g > 0) | (x > 0)), x, g), "param if not (grad > 0 or param > 0) else grad"),
        (lambda x, g, step, lr: p.where(~(g > 0) & (x > 0), x, g), "param if not grad > 0 and param > 0 else grad"),
        (
            lambda x, g, step, lr: p.where(((g > 0) | (x > 0)) & (x != 1), x, g),
            "param if (grad > 0 or param > 0) and param ≠ 1 else grad",
        ),
        (
            lambda x, g, step, lr: p.where((g > 0) | (x > 0) & (x != 1), x, g),
            "param if grad > 0 or param > 0 and param ≠ 1 else grad",
        ),
        (
            lambda x, g, step, lr: p.where(g * x > 0, 1, 2) - p.where(g * x > 0, 3, g),
            "(1 if grad·param > 0 else 2) − (3 if grad·param > 0 else grad)",
        ),
        (lambda x, g, step, lr: p.where(step == 1, 0 * g, g), "0 if step = 1 else grad"),
        # What is recognized, and what only looks like it.
        (lambda x, g, step, lr: p.where(g < 0, -p.log(abs(g) / x), p.log(abs(g) / x)), None),
        (
            lambda x, g, step, lr: p.where((g > 0) & (g < INF), p.sqrt(g), g),
            "√(grad) if grad > 0 and grad < ∞ else grad",
        ),
        (lambda x, g, step, lr: p.where(g > 1, p.maximum(g, 2), x), "max(grad, 2) if grad > 1 else param"),
        (lambda x, g, step, lr: p.where(g > 1, p.maximum(g, 1), x), "grad if grad > 1 else param"),
        (lambda x, g, step, lr: p.where(g > 1, 2 / p.where(g > 1, g, 1), x), "2/grad if grad > 1 else param"),
        (
            lambda x, g, step, lr: p.where(g > 1, p.total(p.where(g > 1, 1, 0)), x),
            "total(1 if grad > 1 else 0) if grad > 1 else param",
        ),
        (lambda x, g, step, lr: p.log(p.maximum(g, 1e-300)) + p.maximum(g, 1e-3), "log(grad) + max(grad, 0.001)"),
        (
            lambda x, g, step, lr: p.ema(x, g, lr) + (x + lr * (g - x)),
            "lr·param + (1 − lr)·grad + param + lr·(grad − param)",
        ),
        (lambda x, g, step, lr: p.ema_sq(x, g, lr), "lr·param + (1 − lr)·grad²"),
        (lambda x, g, step, lr: p.l2(g, x, lr), "grad + lr·param"),
        (lambda x, g, step, lr: x * p.matmul(p.gram(g), x), "param·(gram(grad) @ param)"),
        (
            lambda x, g, step, lr: lr * p.matmul(p.matmul(p.gram(g), g * x), p.gram(p.transpose(x))),
            "lr·gram(grad) @ (grad·param) @ gram(paramᵀ)",
        ),
        (lambda x, g, step, lr: p.where(lr == 0, g, g + step * x), "grad if lr = 0 else grad + step·param"),
    ],
)
def test_one_line(formula, text):
    def update(param, grad, *, step, lr=0.1):
        return formula(param, grad, step, lr)

    if text is None:  # shared, so that it has a line
        u = "u = log(|grad|/param)"
        assert printed(update).splitlines() == [u, "param ← −u if grad < 0 else u"]
    else:
        assert printed(update) == f"param ← {text}"


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        (
            lambda x, g, start, rate: (g / start + 1) / (g / start + 1 + g / x) * rate,
            [
                r"u_t &= \frac{g_t}{\theta_0} + 1 \\",
                r"\theta_t &= \frac{u_t}{u_t + g_t / \theta_{t-1}} \cdot \mathrm{some\_rate}",
            ],
        ),
        (
            lambda x, g, start, rate: 2.5e-5 * (2 * p.where(g > 0, 1, p.where(g < 0, 2, p.where(g == 0, x, 3)))) * x,
            [
                r"\theta_t &= 2.5 \cdot 10^{-5} \cdot 2 \left(\begin{cases} 1 & \text{if } g_t > 0 \\ 2 & \text{if } g_t < 0 \\"
                r" \theta_{t-1} & \text{if } g_t = 0 \\ 3 & \text{otherwise} \end{cases}\right) \theta_{t-1}",
            ],
        ),
        (
            lambda x, g, start, rate: abs(x / g) ** rate + p.norm(x) + rate * x * rate,
            [
                r"\theta_t &= \left\lvert \frac{\theta_{t-1}}{g_t}\right\rvert^{\mathrm{some\_rate}} + \lVert \theta_{t-1} \rVert"
                r" + \mathrm{some\_rate} \cdot \theta_{t-1} \cdot \mathrm{some\_rate}"
            ],
        ),
    ],
)
def test_lines_of_latex(formula, latex):
    def update(param, grad, initial_param, *, some_rate=0.1):
        return formula(param, grad, initial_param, some_rate), initial_param

    assert printed(update, formula_latex).splitlines()[1:-1] == latex


def test_two_states_with_one_value():
    def update(param, grad, first, second):
        value = first + 2 * grad
        return param - value, value, value

    assert printed(update).splitlines() == [
        "first ← first + 2·grad",
        "second ← first'",
        "param ← param − first'",
    ]


def test_names_do_not_collide():
    def update(param, grad, u, m, exp_avg, *, beta1=0.5, betas=(0.1, 0.2)):
        beta1_2 = grad + beta1 * param
        beta1 = beta1_2  # a name that the hyperparameter has
        del beta1_2
        return param - beta1 / (1 + beta1 * betas[0]), u + beta1, m, exp_avg * grad

    assert printed(update).splitlines() == [
        "w = grad + beta1·param",
        "u ← u + w",
        "exp_avg ← exp_avg·grad",
        "param ← param − w/(1 + w·betas_0)",
    ]
    latex = printed(update, formula_latex)
    assert r"\mathrm{exp\_avg}_t" in latex and r"\theta_t" in latex and r"\mathrm{betas\_0}" in latex


def test_lines_are_called_as_the_variables_of_the_function():
    def update(param, grad, u, exp_avg, *, lr=0.1, eps=1e-8):
        w = abs(grad) + eps
        exp_avg = exp_avg + w * w
        m, used_once = w / (exp_avg + w), 2 * grad
        safe_step = pieces.where(exp_avg > 0, m, used_once)  # has a line although it is used once
        return param - lr * safe_step + (u - 2 * grad) / (1 + abs(u - 2 * grad)), u + m, exp_avg

    assert printed(update).splitlines() == [
        "w = |grad| + eps",
        "exp_avg ← exp_avg + w²",
        "m = w/(exp_avg' + w)",
        "u ← u + m",
        "safe_step = m if exp_avg' > 0 else 2·grad",
        "q = u − 2·grad",
        "param ← param − lr·safe_step + q/(1 + |q|)",
    ]
    before = sys.getprofile()
    latex = printed(update, formula_latex)  # where m is exp_avg
    assert sys.getprofile() is before
    assert r"\mathrm{safe\_step}_t &= \begin{cases}" in latex and r"m_t &= m_{t-1} + w_t^2" in latex


def test_what_an_impossible_choice_says_is_left_out():
    def update(param, grad, *, lr=0.1):
        length = pieces.norm(grad)
        return param - lr * pieces.where(length == 0, 0.0, grad / pieces.where(length == 0, 1.0, length))

    assert printed(update).splitlines()[-1] == "param ← param − lr·(0 if ‖grad‖ = 0 else grad/‖grad‖)"


def test_a_state_that_another_needs_comes_first_and_one_that_stays_has_no_line():
    def update(param, grad, first, second, kept, *, lr=0.1):
        second = second + grad
        return param - lr * first * kept, first + abs(abs(second) + grad), second, kept

    assert printed(update).splitlines() == [
        "second ← second + grad",
        "first ← first + abs(|second'| + grad)",
        "param ← param − lr·first·kept",
    ]


def test_bad_hyperparameters():
    with pytest.raises(TypeError, match="unexpected argument 'momentun'; did you mean 'momentum'"):
        formula_text(SGD, {"momentun": 0.9})
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        formula_latex(SGD, {"lr": -1})


# LaTeX


def check_latex(latex):
    plain = re.sub(r"\\[{}_]", "", latex)
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        assert depth >= 0, latex
    assert depth == 0, latex
    stack = []
    for kind, name in re.findall(r"\\(begin|end|left|right)\b(?:\{(\w+)\})?", plain):
        if kind in ("begin", "left"):
            stack.append(({"begin": "end", "left": "right"}[kind], name))
        else:
            assert stack.pop() == (kind, name), latex
    assert not stack, latex
    assert latex.count(r"\begin{aligned}") == 1
    assert not re.search(r"[^\x20-\x7e\n]|  ", latex), latex
    for words in re.findall(r"(?:mathrm|operatorname)\{((?:[^{}])*)\}", latex):
        assert re.fullmatch(r"(\\_|\w)+", words) and "_" not in words.replace(r"\_", ""), latex
    for script in "^_":  # x^a^b is an error
        assert not re.search(rf"\{script}(\w|{{[^{{}}]*}})\{script}", latex), latex


def matters_not(rule):
    """torch.optim's Rprop only begins with lr, and some of Scion's norms have no eps."""
    return (
        {"lr"}
        if any(state.begins == "lr" for state in rule.states.values())
        else {"eps"} & {*rule.hyperparameters}
        if rule is Scion
        else set()
    )


LATEX_NAMES = {"lr": r"\\eta|\\mathrm{lr}", "eps": r"\\epsilon", "weight_decay": r"\\lambda", "momentum": r"\\mu"}


@pytest.mark.parametrize(("rule", "hyper"), VARIANTS, ids=IDS)
def test_latex_is_well_formed_and_has_every_hyperparameter(rule, hyper):
    text, latex = formula_text(rule, hyper), formula_latex(rule, hyper)
    check_latex(latex)
    assert latex.count("&= ") == len(text.splitlines())
    names = {name for name, value in hyper.items() if type(value) in (int, float)}
    names |= {
        f"{name.removesuffix('s')}{i}" for name, value in hyper.items() if isinstance(value, tuple) for i in (1, 2)
    }
    shown = {name for name in names if re.search(rf"\b{name}(\b|²)", text)}
    assert not {"lr", "weight_decay", "eps", "beta1", "beta2", "eta1"} & (names - shown) - matters_not(rule)
    for name in shown:
        stem, index = re.fullmatch(r"(.*?)(\d*)", name).groups()
        escaped = name.replace("_", r"\\_")
        pattern = LATEX_NAMES.get(name, rf"\\mathrm{{{escaped}}}|\\?\b{stem}(_{index})?\b|\\tau\b")
        assert re.search(pattern, latex), (name, latex)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_an_average_with_a_number_for_beta_prints_both_weights(beta):
    class Mine(Rule):
        def update(param, grad, m, v, *, lr=0.1):
            m, v = ema(m, grad, beta), ema_sq(v, grad, beta)
            return param - lr * m / sqrt(v), m, v

    rest = f"{round(1 - beta, 4)}"
    lines = formula_text(Mine).splitlines()
    assert lines[:2] == [f"m ← {beta}·m + {rest}·grad", f"v ← {beta}·v + {rest}·grad²"]
    assert f"{beta} m_{{t-1}} + " in formula_latex(Mine)
