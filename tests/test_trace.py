"""What a formula may not do, and what the message says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steprule import Rule, RuleError, exp, norm, total, total_of_all, where
from steprule.engine.codegen import write_kernel
from steprule.engine.trace import trace
from steprule.rules import AdamW


def refusal(body, states=""):
    """The message for a rule whose update has this body."""
    arguments = f"param, grad{states}, *, step, lr=0.1, flag=False"
    namespace = {"np": np, "torch": torch, "math": math, "where": where}
    source = f"def update({arguments}):\n    {body}\n"
    exec(compile(source, "my_rule.py", "exec"), namespace)
    rule = type("Mine", (Rule,), {"update": staticmethod(namespace["update"])})
    with pytest.raises(RuleError) as caught:
        trace(rule, rule.hyperparameters)
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
        ("return param - grad[0]", "indexes an operand", "formula of one element"),
        ("return param - sum(g for g in grad)", "loops over elements", "formula of one element"),
        ("param -= lr * grad; return param", "changes an operand in place", "avg = avg + x"),
        ("return param - grad * 'x'", "computes with 'x'", "numbers, operands"),
    ],
)
def test_a_refusal_says_what_where_and_what_to_write(body, what, instead):
    message = refusal(body)
    assert what in message and instead in message and "my_rule.py:2, in update" in message


def test_the_wrong_number_of_values():
    message = refusal("return param, grad", states=", exp_avg, exp_avg_sq")
    assert "Mine.update returned 2 values and must return 3: param, exp_avg, exp_avg_sq (my_rule.py:1)" in message


def test_nothing_for_a_state():
    assert "returned None for exp_avg" in refusal("return param, None", states=", exp_avg")
    assert "returned None for param" in refusal("pass")


def test_a_value_for_every_element_is_no_number():
    class Mine(Rule):
        scalar_states = ("count",)

        def update(param, grad, count, *, lr=0.1):
            return param - lr * grad, count + abs(grad)

    with pytest.raises(
        RuleError, match=r"returned a value for every element as count.*test_trace.py:\d+\). Write a sum"
    ):
        trace(Mine, Mine.hyperparameters)


def test_sums_come_before_what_is_made_of_them():
    """A sum of something that a sum is in takes a reading more; equal ones are taken once."""

    class Mine(Rule):
        scalar_states = ("seen",)

        def update(param, grad, seen, *, lr=0.1):
            unit = grad / norm(grad)
            seen = seen + total(abs(unit)) + norm(grad)
            return param - lr * unit * total_of_all(seen * abs(grad)), seen

    formula = trace(Mine, Mine.hyperparameters)
    assert formula.operands == ("param", "grad")
    assert {*formula.own} == {"seen", "new_seen", "sum0", "sum1", "sum2"}
    assert formula.levels == {"seen": 0, "sum0": 1, "sum1": 2, "new_seen": 2, "sum2": 3}
    assert [[*reading.sums] for reading in formula.readings] == [["sum0"], ["sum1"], ["sum2"]]
    assert [one.of_all for one in formula.sums.values()] == [False, False, True]
    assert formula.scalar_outputs["seen"].scalar and "seen" not in formula.outputs


def test_flags_and_missing_states_may_be_branched_on():
    class Mine(Rule):
        state_when = {"exp_avg": "flag"}

        def update(param, grad, exp_avg, *, lr=0.1, flag=False):
            return (param - lr * grad if exp_avg is None or not flag else param), exp_avg

    assert trace(Mine, {"lr": 0.1, "flag": False}).operands == ("param", "grad")
    assert trace(Mine, {"lr": 0.1, "flag": True}).operands == ("param", "grad", "exp_avg")


def test_scalars_are_hoisted_and_literals_typed():
    class Mine(Rule):
        def update(param, grad, *, step, lr=0.1):
            return param - 2 * lr / (1 + step) * where(grad > 0.5, exp(grad), 3) ** 2

    source = write_kernel("Mine", trace(Mine, Mine.hyperparameters), ["float32", "float32"]).text
    loop = source[source.index("for i in range") : source.index("@cfunc")]
    assert "((2.0 * lr) / (1.0 + step))" in source.split("def update")[0]
    assert not any(character.isdigit() for line in loop.splitlines()[1:] for character in line.replace("s", "")
                   if "float32" not in line and "t0" not in line and "s0" not in line and "s1" not in line
                   and "s2" not in line), loop  # fmt: skip


def test_operands_may_bear_the_kernels_own_names():
    class Mine(Rule):
        def update(param, grad, s0, t0, size, i, *, lr=0.1, exp=2.0):
            return param - lr * grad + s0 + t0, s0 + grad, t0 * exp, size + 1, i + 2

    formula = trace(Mine, Mine.hyperparameters)
    compile(write_kernel("Mine", formula, ["float32"] * 6).text, "kernel", "exec")


def test_the_kernel_reads_as_the_formula():
    formula = trace(AdamW, AdamW.hyperparameters)
    source = write_kernel("AdamW", formula, ["float32"] * 4).text
    assert "multiply_add(s2, (grad - exp_avg), exp_avg)" in source
    assert "s2 = (1.0 - betas_0)" in source
    assert "s3 = 1.0 / (1.0 - (betas_0 ** step))" in source
