"""What a user's own rules of matrices may get wrong: numbers that mean nothing to a piece, and squares that do not stay squares."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_random_rules import made

from steprule import Optimizer, arrays, pieces
from steprule.rule import RuleError

HEAD = "class Mine(Rule):\n"


def tensors(rule, **given):
    return Optimizer.of(rule)([torch.nn.Parameter(torch.ones(3, 2))], **given)


def of_arrays(rule, **given):
    return type("Mine", (arrays.Optimizer,), {}, rule=rule)([np.ones((3, 2))], **given)


def giving(formula, hyper="n=1"):
    """A rule whose only product is this."""
    return made(
        f"{HEAD}    def update(param, grad, *, step, lr=0.1, {hyper}):\n        return param - lr * {formula}\n"
    )


NUMBERS = {
    "every(n, step, grad, param)": (
        {"n": 3},
        [0, -1, 0.5, 2.5, torch.tensor(0.0)],
        r"every: k=.* must be a whole number of 1 or more",
    ),
    "polar(grad, 'keller', n)": ({"n": 2}, [0, 1.5, 100], r"polar: steps=.* must be a whole number from 1 to 99"),
    "polar(grad, 'cubic5', n)": ({"n": 5}, [4, 6], r"polar: 'cubic5' has exactly 5 steps, got steps="),
    "polar(grad, 'keller', 5, n)": ({"n": 0.0}, [-1e-3], r"polar: eps=-0\.001 must be 0 or above"),
    "decorrelate(grad, n)": ({"n": 2}, [0, 1.5], r"decorrelate: passes=.* must be a whole number of 1 or more"),
    "matmul(inverse_root(gram(grad), n), grad)": ({"n": 0.5}, [0, -1.0], r"inverse_root: root=.* must be above 0"),
    "matmul(inverse_root(gram(grad), 2, n), grad)": ({"n": 0.0}, [-1.0], r"inverse_root: .*eps=-1\.0 0 or above"),
    "top_share(row_mean(grad), n) * grad": ({"n": 1}, [0, 1.5], r"top_share: share=.* must be above 0, and 1 at most"),
}
"""For each formula what its number may be, what it may not, and what is said."""


@pytest.mark.parametrize("make", [tensors, of_arrays])
@pytest.mark.parametrize("formula", NUMBERS)
def test_numbers_that_mean_nothing_to_a_piece_are_refused_when_an_optimizer_is_made(formula, make):
    right, wrong, told = NUMBERS[formula]
    rule = giving(formula, f"n={right['n']!r}")
    make(rule, **right)
    for value in wrong:
        with pytest.raises(
            ValueError, match=rf"^Mine\.update with n={re.escape(repr(value))} calls {told}.*rule .*:3, in "
        ):
            make(rule, n=value)
    for value in (x for x in wrong if isinstance(x, (int, float))):
        with pytest.raises(RuleError, match=rf"^Mine\.update calls {told}.*rule .*:3, in "):
            make(giving(formula.replace("n)", f"{value!r})").replace("every(n,", f"every({value!r},")))


def test_a_set_of_coefficients_that_there_is_not_is_told_with_its_line():
    with pytest.raises(RuleError, match=r"calls polar: coefficients must be .*got 'kelar' \(.*rule .*:3, in "):
        tensors(giving("polar(grad, 'kelar')"))


def test_what_follows_from_several_hyperparameters_names_them():
    rule = giving("every(n * ks[1], step, grad, param)", "n=1, ks=(1, 2)")
    with pytest.raises(ValueError, match=r"with n=1 and ks=\(1, 0\.5\) calls every: k=0\.5 must"):
        tensors(rule, ks=(1, 0.5))
    with pytest.raises(ValueError, match=r"^k=0 must be a whole number"):
        pieces.every(0, 1, 1.0, 2.0)


def test_numbers_that_change_are_looked_at_before_the_step():
    optimizer = tensors(giving("every(n, step, grad, param)"))
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones(3, 2)
    optimizer.step()
    optimizer.param_groups[0]["n"], before = 0.5, param.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"with n=0\.5 calls every"):
            optimizer.step()
    with pytest.raises(ValueError, match="with n=-1 calls every"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))], "n": -1})
    assert torch.equal(param, before) and len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["n"] = 2
    optimizer.step()
    scheduled = tensors(giving("every(n, step, grad, param)"), n=lambda step: 3 - step)
    scheduled.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    scheduled.step()
    scheduled.step()
    with pytest.raises(ValueError, match="with n=0 calls every"):
        scheduled.step()


def squared(state, new, hyper=", side=4"):
    return made(
        f"{HEAD}    a = {state}\n    def update(param, grad, a, *, step, lr=0.1{hyper}):\n        return param - lr * grad, {new}\n"
    )


SUM = "the sum of a square and a number that stands for one"
SHAPES = [
    ('State("left", most="side")', "ema(a, gram(grad), 0.9)", SUM, "gram(grad, side)"),
    ('State("left", most="side")', "gram(grad)", "a matrix of 5 x 5", "gram(grad, side)"),
    ('State("left", most="side")', "every(2, step, inverse_root(gram(grad, 7), 4), a)", "a matrix of 5 x 5", "gram(grad, side)"),
    ('State("right", most="side")', "ema(a, gram(transpose(grad)), 0.9)", SUM, "gram(transpose(grad), side)"),
    ('State("left", most="other")', "ema(a, gram(grad, cols(grad)), 0.9)", SUM, "gram(grad, cols(grad) - 1)"),
    ('State("right", most="other")', "gram(transpose(grad))", "a matrix of 5 x 5", "gram(transpose(grad), rows(grad))"),
    ('State("left")', "largest_eigenvalue(a)", "a matrix of 1 x 1", "such as gram(grad)"),
    ('State("left")', "ema(a, gram(grad, side), 0.9)", SUM, "such as gram(grad)"),
]  # fmt: skip


@pytest.mark.parametrize("make", [tensors, of_arrays])
@pytest.mark.parametrize(("state", "new", "returned", "instead"), SHAPES)
def test_squares_that_a_long_side_would_break_are_refused_when_an_optimizer_is_made(
    state, new, returned, instead, make
):
    kind = re.escape(state.replace('"', "'"))
    with pytest.raises(
        RuleError,
        match=rf"^Mine\.update returned {returned} as a, a {kind}, which is \d x \d beside a matrix of \d x \d.*rule .*:3\).*{re.escape(instead)}",
    ):
        make(squared(state, new))


@pytest.mark.parametrize(
    ("state", "new"),
    [
        ('State("left", most="side")', "ema(a, gram(grad, side), 0.9)"),
        ('State("left", most="side")', "where(rows(grad) > side, a, a + gram(grad))"),
        ('State("right", most="other")', "every(2, step, inverse_root(a + gram(transpose(grad), rows(grad)), 4), a)"),
        ('State("left", most="side")', "a / (1 + largest_eigenvalue(a))"),
    ],
)
def test_squares_that_keep_their_shape_are_not(state, new):
    tensors(squared(state, new))
