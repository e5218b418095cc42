"""What a formula may not do, and what the message says."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

import steprule.pieces
from steprule import Optimizer, Rule, RuleError, State, arrays, ema, exp, norm, sqrt, total, total_of_all, where
from steprule.catalog import KERNELS, kernel_text
from steprule.formula import formula_text
from steprule.kernels.cpu_pass import write_pass
from steprule.rules import AdamW
from steprule.trace.expression import Expression
from steprule.trace.extent import ELEMENTS
from steprule.trace.tracing import check_formula, trace


def define(body, states=""):
    """Traces a rule whose update has this body, and looks at it as when an optimizer is made."""
    arguments = f"param, grad{states}, *, step, lr=0.1, betas=(0.9, 0.99), flag=False"
    namespace = {
        **vars(steprule.pieces),
        "np": np,
        "torch": torch,
        "math": math,
        "random": random,
        "count": itertools.count(1).__next__,
    }
    source = f"def update({arguments}):\n    {body}\n"
    exec(compile(source, "my_rule.py", "exec"), namespace)
    rule = type("Mine", (Rule,), {"update": staticmethod(namespace["update"])})
    program = trace(rule, rule.hyperparameters)
    check_formula(rule, rule.hyperparameters)
    return program


def refusal(body, states=""):
    """The message for a rule whose update has this body."""
    with pytest.raises(RuleError) as caught:
        define(body, states)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "what", "instead"),
    [
        ("return param if grad > 0 else grad", "branches on a number", "where(condition, a, b)"),
        ("return param if lr > 0 else grad", "branches on a number", "where(condition, a, b)"),
        ("return max(param, grad)", "branches on a number", "where(condition, a, b)"),
        ("return param - math.sqrt(lr) * grad", "turns a symbol into one number", "steprule.pieces"),
        ("return param - np.sqrt(grad)", "calls numpy.sqrt", "steprule.pieces"),
        ("return param - np.linalg.norm(grad)", "calls numpy.", "steprule.pieces"),
        ("return param - torch.sqrt(grad)", "calls torch.sqrt", "steprule.pieces"),
        ("return param - grad.norm()", "asks an operand for .norm", "steprule.pieces"),
        ("return param - grad[0]", "indexes an operand", "where(condition, a, b)"),
        ("return param - sum(g for g in grad)", "loops over elements", "over the whole tensor"),
        ("param -= lr * grad; return param", "changes an operand in place", "avg = avg + x"),
        ("lr *= 2; return param", "changes a number in place", "avg = avg + x"),
        ("return param - grad * 'x'", "computes with 'x'", "numbers, operands"),
    ],
)
def test_a_refusal_says_what_where_and_what_to_write(body, what, instead):
    message = refusal(body)
    assert what in message and instead in message and "my_rule.py:2, in update" in message


MISTAKES = {
    # what there is under another name
    "grad.clamp(-1, 1)": "clip(x, low, high)", "torch.clamp(grad, -1, 1)": "clip(x, low, high)",
    "np.clip(grad, -1, 1)": "clip(...)", "grad.clamp_(min=0)": "clip(x, low, high)", "grad.clamp_min(0)": "maximum(x, low)",
    "grad.square()": "x * x", "grad.rsqrt()": "1 / sqrt(x)", "grad.pow(2)": "and **", "grad.sign()": "sign(...)",
    "param.lerp(grad, lr)": "ema(avg, value, beta)", "param.addcdiv(grad, param)": "x + value * a / b",
    "torch.tanh(grad)": "exp(2 * x)", "torch.maximum(param, grad)": "maximum(...)", "np.where(grad > 0, grad, 0)": "where(...)",
    "torch.max(grad, param)": "maximum(a, b)", "param.add(grad)": "and **", "param.mul_(lr)": "as in avg = avg * 0.9: nothing changes in place",
    "np.float64(0.5) * grad": "plain Python numbers", "np.sqrt(grad)": "sqrt(...)", "math.exp(lr)": "steprule.pieces",
    "torch.zeros_like(grad)": "a plain number", "grad.clone()": "x itself", "grad.float()": "x itself",
    "torch.isfinite(grad)": "math.inf", "torch.logical_and(grad > 0, param > 0)": "(a > 0) & (b > 0)",
    "np.arctan2(grad, param)": "atan2(y, x)", "torch.arctan2(grad, param)": "atan2(y, x)", "grad.normal_()": "no random numbers",
    "grad.floor_()": "floor(x)", "torch.nan_to_num_(grad)": "math.inf", "torch.erf(grad)": "functions of steprule.pieces: abs, at_first, atan2",
    # sums and shapes
    "grad / grad.norm()": "norm(x), over the whole tensor", "grad.mean(dim=1)": "row_mean(x), col_mean(x)",
    "grad - torch.sum(grad)": "total(x)", "np.mean(grad)": "mean(x)", "mean(grad, 1)": "row_mean(x), col_mean(x)",
    "norm(grad, dim=0)": "row_mean(x), col_mean(x)", "grad.var()": "mean(x)", "grad.shape[0] * grad": "size(x)",
    "grad.numel() * grad": "size(x)", "len(grad) * grad": "size(x), rows(x) or cols(x)", "grad.view(-1)": "size(x)", "grad.amax()": "whole tensor",
    "grad.max()": "largest absolute value", "grad.topk(3)": "whole tensor", "sorted(grad)": "over the whole tensor",
    # matrices
    "grad @ param": "multiplies m x n by m x n", "2 @ grad": "a * b, the product with a number",
    "grad @ transpose(col_mean(grad))": "row_total(a * transpose(b)), which is", "transpose(row_mean(grad)) @ grad": "col_total(transpose(a) * b)",
    "row_mean(grad) @ col_mean(grad)": "a * b, which is the product of a column", "col_mean(grad) @ transpose(col_mean(grad))": "total(a * transpose(b))",
    "grad / largest_eigenvalue(gram(grad))": "total(x) of the matrix that largest_eigenvalue gives", "f'{grad:.2f}'": "formats grad by '.2f'", "grad.T": "a subclass of torch.optim.Optimizer", "torch.matmul(grad, param)": "inverse_root(x, root) of whole matrices",
    "torch.linalg.svd(grad)": "inverse_root(x, root) of whole matrices", "grad[0]": "over the whole tensor", "grad[grad > 0]": "where(condition, a, b)",
    # random numbers
    "torch.randn_like(grad)": "no random numbers", "grad.bernoulli(0.5)": "no random numbers", "torch.dropout(grad, 0.5, True)": "no random numbers",
    # rounding and bits
    "grad // 1": "floor(x)", "1 // grad": "floor(x)", "grad % 2": "floor(x)", "divmod(grad, 2)[0]": "floor(x)", "round(grad)": "floor(x)",
    "math.floor(grad)": "floor(x)", "torch.round(grad)": "floor(x)", "floor(grad)": "hyperparameters and the step", "grad << 1": "2**n",
    "2 >> grad": "2**n", "grad ^ 1": "2**n",
    # truth
    "grad if grad > 0 else param": "where(condition, a, b)", "grad if lr > 0 else param": "True or False may be branched on",
    "grad if step == 1 else param": "at_first(step, first, later)", "where(grad > 0 and param > 0, grad, 0)": "where(condition",
    "where(grad > 0 & param > 0, grad, 0)": "parentheses", "where(~grad, grad, 0)": "parentheses", "where(0 < grad < 1, grad, 0)": "where(condition",
    "max(grad, 0)": "where(condition", "int(step) * grad": "floor(x)", "[grad][step]": "a number, as in range(5)",
    "[grad for _ in range(step)][0]": "loops are unrolled", "math.cos(step / 9) * grad": "lr=lambda step: 0.1 / step", "betas * grad": "beta1, beta2 = betas",
    # what is no formula at all
    "grad + undefined": "NameError: name 'undefined' is not defined (", "grad + graad": "did you mean 'grad'?", "sqr(grad)": "did you mean 'sqrt'?", "tanh(grad)": "is not defined (my_rule.py:2, in update). Write 1 - 2 / (1 + exp(2 * x)) (steprule.pieces",
    "cos(step) * grad": "Write a hyperparameter whose default is a function of the step, as in turn=lambda step: math.cos(0.01 * step)", "betas[2] * grad": "IndexError", "{}['x'] * grad": "KeyError",
    "grad / 0.0 / (1 / 0)": "ZeroDivisionError",
    "sqrt(grad, 2)": "takes 1 positional argument", "grad * 'x'": "numbers, operands", "grad * [1, 2]": "numbers, operands", "grad()": "not callable",
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_line_and_what_to_write(mistake):
    message = refusal(f"x = {mistake}\n    return param - lr * x")
    assert MISTAKES[mistake] in message and "my_rule.py:2, in update" in message


def test_the_step_is_asked_for():
    """As is what there is in steprule.pieces."""

    class Mine(Rule):
        def update(param, grad, *, lr=0.1):
            return param - lr * grad / step  # noqa: F821

    class Other(Rule):
        def update(param, grad, *, lr=0.1):
            return param - lr * row_mean(grad)  # noqa: F821

    with pytest.raises(
        RuleError,
        match=r"'step' is not defined \(.*test_trace.py:\d+, in .*\)\. Write step after the \*: update\(param, grad, \*, step, lr=",
    ):
        trace(Mine, Mine.hyperparameters)
    with pytest.raises(RuleError, match=r"Write from steprule.pieces import row_mean"):
        trace(Other, Other.hyperparameters)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a, b, c = betas", "ValueError: not enough values to unpack"),
        ("assert flag, 'only with the flag'", "AssertionError: only with the flag"),
        ("raise OSError('mine')", "OSError: mine"),
    ],
    ids=["unpacking", "assertion", "any"],
)
def test_whatever_a_formula_raises_is_told_with_its_line(line, told):
    message = refusal(f"{line}\n    return param - lr * grad")
    assert told in message and "my_rule.py:2, in update" in message


DEEP = (
    "grad = sqrt(grad + lr)",
    "grad = 0.99 * grad + 0.01 * param",
    "step = sqrt(step + lr)",
    "grad = where(grad > param, lr * grad, grad)",
)


@pytest.mark.parametrize("line", DEEP)
def test_a_long_loop_is_compiled_and_printed_or_refused_when_the_optimizer_is_made(line):
    def loop(rounds):
        source = f"def update(param, grad, *, step, lr=0.1):\n    for _ in range({rounds}):\n        {line}\n    return param - lr * step * grad\n"
        namespace = dict(vars(steprule.pieces))
        exec(compile(source, "my_rule.py", "exec"), namespace)
        return type("Mine", (Rule,), {"update": staticmethod(namespace["update"])})

    rule = loop(64)
    for engine in KERNELS:
        compile(kernel_text(rule, engine), "kernel", "exec")
    assert len(formula_text(rule)) < 3000
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(
        RuleError, match=r"^Mine.update nests \d+ operations in one another; 200 is the most \(my_rule.py:1\)"
    ) as caught:
        Optimizer.of(loop(300))([weight])
    assert "use fewer rounds" in str(caught.value)


def test_operations_that_are_written_out_count_for_more():
    assert steprule.pieces.cbrt(Expression("input", ("grad",), ELEMENTS)).depth > 1


def test_what_is_used_twice_is_looked_at_once():
    program = define(
        "for _ in range(60): exp_avg = exp_avg * grad - exp_avg\n    return param, exp_avg", states=", exp_avg"
    )
    assert not program.nonnegative


def test_an_expression_prints_as_a_formula():
    seen = []

    class Mine(Rule):
        def update(param, grad, m, *, lr=0.1, beta=0.9):
            m = ema(m, grad, beta)
            seen.extend([repr(grad), str(m), f"{where(m > 0, -m, sqrt(m))}"])
            return param - lr * m, m

    trace(Mine, Mine.hyperparameters)
    assert seen[:3] == [
        "grad",
        "m + ((1.0 - beta) * (grad - m))",
        "where((m + ...) > 0.0, neg(m + ...), sqrt(m + ...))",
    ]


def test_a_list_of_new_values_is_as_good_as_a_tuple():
    class Mine(Rule):
        def update(param, grad, mean, *, lr=0.1):
            return [param - lr * grad, mean + grad]

    assert {*trace(Mine, Mine.hyperparameters).last.outputs} == {"param", "mean"}


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ("return param - lr / count() * grad", "1.0 became 2.0"),
        ("return param - lr * (grad + 0.01 * random.random())", r"[\d.e-]+ became [\d.e-]+"),
        ("return param - lr * torch.rand(()) * grad", r"0\.\d+ became 0\.\d+"),
        ("return param - lr * (grad if count() % 2 else 0.0 - grad)", "grad became an operation 'sub'"),
        ("return param - lr * (grad if count() % 2 else lr)", "grad became lr"),
    ],
)
def test_what_changes_from_call_to_call_is_not_frozen(body, change):
    with pytest.raises(
        RuleError, match=rf"not the same formula when it is asked for twice: ({change}) \(my_rule.py:1\)"
    ):
        define(body)
    assert "must be a state, a hyperparameter or depend on step; rules have no random numbers" in refusal(body)


def test_the_wrong_number_of_values():
    message = refusal("return param, grad", states=", exp_avg, exp_avg_sq")
    assert "Mine.update returned 2 values and must return 3: param, exp_avg, exp_avg_sq (my_rule.py:1)" in message


def test_nothing_for_a_state():
    assert "returned None for exp_avg" in refusal("return param, None", states=", exp_avg")
    assert "returned None for param" in refusal("return None, exp_avg", states=", exp_avg")


def test_what_is_no_tuple_of_numbers():
    message = refusal("return {'param': param, 'm': m}", states=", m")
    assert message == "Mine.update returned a dict: return a tuple, param, m (my_rule.py:1)"
    assert refusal("return 'x'") == "Mine.update returned 'x' for param, which is no number (my_rule.py:1)"
    assert "returned '0.5' for m, which is no number" in refusal("return param, '0.5'", states=", m")


@pytest.mark.parametrize(
    "body",
    [
        "m = grad if m is None else ema(m, grad, 0.9); return param - lr * m, m",
        "m = ema(m, grad, 0.9) if m is not None else grad; return param - lr * m, m",
        "begins = None is m; return param - lr * grad, (grad if begins else m)",
    ],
    ids=["is None", "is not None", "kept"],
)
def test_a_state_is_never_none(body):
    message = refusal(body, states=", m")
    assert message.startswith("Mine.update asks whether m is None, and it never is: it begins at 0 (my_rule.py:1)")
    assert "at_first(step, grad, ema(...))" in message and "State(when=...)" in message


def test_none_may_be_asked_for_elsewhere():
    body = "scale = None\n    if flag is None or scale is None: scale = 1.0\n    return param - lr * scale * grad, grad"
    assert set(define(body, states=", m").last.outputs) == {"param", "m"}


def test_a_parameter_may_be_a_state_that_begins_at_it():
    class Late(Rule):
        old = State(begins="param")

        def update(param, grad, old, *, lr=0.1):
            return old, param - lr * grad

    assert Optimizer.of(Late)([torch.nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    "body",
    [
        "return -lr * grad, m",
        "m = ema(m, grad, 0.9); return -lr * m, m",
        "return m, param - lr * grad",
        "return ema(m, grad, 0.9), param - lr * m",
    ],
)
def test_the_update_is_not_the_parameter(body):
    message = refusal(body, states=", m")
    assert "Mine.update returned a new param that does not depend on the old one (my_rule.py:1)" in message
    assert "as in return param - lr * update, and not the update, new values in the order param, m;" in message


def test_such_mistakes_are_told_when_an_optimizer_is_made():
    class Mine(Rule):
        def update(param, grad, *, lr=0.1):
            return -lr * grad

    class OfArrays(arrays.Optimizer, rule=Mine): ...

    for _ in range(2):  # and it stays refused
        with pytest.raises(RuleError, match="does not depend on the old one"):
            Optimizer.of(Mine)([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(RuleError, match="does not depend on the old one"):
        OfArrays([np.ones(2)])


def test_a_step_from_the_first_weights_is_a_step():
    class Mine(Rule):
        first = State(begins="param")

        def update(param, grad, first, total, *, lr=0.1):
            return first - lr * total, first, total + grad

    assert Optimizer.of(Mine)([torch.nn.Parameter(torch.ones(2))])


def test_a_value_for_every_element_is_no_number():
    class Mine(Rule):
        count = State("scalar")

        def update(param, grad, count, *, lr=0.1):
            return param - lr * grad, count + abs(grad)

    with pytest.raises(
        RuleError, match=r"returned a value for each element as count.*test_trace.py:\d+\). Write a sum"
    ):
        trace(Mine, Mine.hyperparameters)


def test_sums_come_before_what_is_made_of_them():
    """A sum of something that a sum is in takes a reading more; equal ones are taken once."""

    class Mine(Rule):
        seen = State("scalar")

        def update(param, grad, seen, *, lr=0.1):
            unit = grad / norm(grad)
            seen = seen + total(abs(unit)) + norm(grad)
            return param - lr * unit * total_of_all(seen * abs(grad)), seen

    formula = trace(Mine, Mine.hyperparameters)
    assert formula.operands == ("param", "grad")
    assert {*formula.own} == {"seen", "new_seen", "sum0", "sum1", "sum2"}
    assert [level.known for level in formula.levels] == [("seen",), ("sum0",), ("new_seen", "sum1"), ("sum2",)]
    assert [[*reading.sums] for reading in formula.readings] == [["sum0"], ["sum1"], ["sum2"]]
    assert [one.of_all for one in formula.sums.values()] == [False, False, True]
    assert formula.numbers["seen"].scalar and "seen" not in formula.last.outputs


def test_flags_and_missing_states_may_be_branched_on():
    class Mine(Rule):
        exp_avg = State(when="flag")

        def update(param, grad, exp_avg, *, lr=0.1, flag=False):
            return (param - lr * grad if exp_avg is None or not flag else param), exp_avg

    assert trace(Mine, {"lr": 0.1, "flag": False}).operands == ("param", "grad")
    assert trace(Mine, {"lr": 0.1, "flag": True}).operands == ("param", "grad", "exp_avg")


def test_scalars_are_hoisted_and_literals_typed():
    class Mine(Rule):
        def update(param, grad, *, step, lr=0.1):
            return param - 2 * lr / (1 + step) * where(grad > 0.5, exp(grad), 3) ** 2

    source = write_pass("Mine", trace(Mine, Mine.hyperparameters).last, ["float32", "float32"]).text
    loop = source[source.index("for i in range") : source.index("@exact\ndef run")]
    assert "((2.0 * lr) / (1.0 + step))" in source.split("def update")[0]
    assert not any(character.isdigit() for line in loop.splitlines()[1:] for character in line.replace("s", "")
                   if "float32" not in line and "t0" not in line and "s0" not in line and "s1" not in line
                   and "s2" not in line), loop  # fmt: skip


def test_operands_may_bear_the_kernels_own_names():
    class Mine(Rule):
        def update(param, grad, s0, t0, size, i, *, lr=0.1, exp=2.0):
            return param - lr * grad + s0 + t0, s0 + grad, t0 * exp, size + 1, i + 2

    formula = trace(Mine, Mine.hyperparameters)
    compile(write_pass("Mine", formula.last, ["float32"] * 6).text, "kernel", "exec")


def test_the_kernel_reads_as_the_formula():
    formula = trace(AdamW, AdamW.hyperparameters)
    source = write_pass("AdamW", formula.last, ["float32"] * 4).text
    assert "multiply_add(s2, (grad - exp_avg), exp_avg)" in source
    assert "s2 = (1.0 - betas_0)" in source
    assert "s3 = 1.0 / (1.0 - (betas_0 ** step))" in source


@pytest.mark.parametrize("text", ["(grad > 0) - (grad < 0)", "(grad > 0) + (param > 0)", "-(grad > 0)"])
def test_comparisons_are_no_numbers_to_add(text):
    """NumPy and torch take some of these for a union, and refuse others."""
    update = eval(f"lambda param, grad, *, step, lr=0.1: param - lr * ({text})")
    rule = type("Mine", (Rule,), {"update": staticmethod(update)})
    with pytest.raises(RuleError, match=r"adds, subtracts or negates comparisons.*where\(condition, 1\.0, 0\.0\)"):
        trace(rule, rule.hyperparameters)


def test_comparisons_are_factors():
    update = eval(
        "lambda param, grad, *, step, lr=0.1: param - lr * ((grad > 0) * grad + where((step > 1) & (grad > 0), 1, 0))"
    )
    rule = type("Mine", (Rule,), {"update": staticmethod(update)})
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = Optimizer.of(rule)([param])
    for _ in range(2):
        param.grad = torch.tensor([-1.0, 0.0, 2.0])
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.0, 0.0, -0.5]))
