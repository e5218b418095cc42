"""What a user's own rules of matrices may get wrong: numbers that mean nothing to a piece, and squares that do not stay squares."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_random_rules import made, with_gaps

from steprule import Optimizer, Rule, arrays, pieces
from steprule.engine import gpu, squares
from steprule.engine.eager import oracle
from steprule.rule import RuleError
from steprule.trace.squares import PUT_OFF

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


def test_a_set_of_coefficients_may_be_an_array():
    def optimizer_of(coefficients):
        class Mine(Rule):
            def update(param, grad, *, lr=0.1):
                return param - lr * pieces.polar(grad, coefficients)

        return tensors(Mine)

    with pytest.raises(
        RuleError, match=r"calls polar: coefficients must be three finite numbers, .*test_own_matrices.py:\d+, in "
    ):
        optimizer_of(np.array([[1.5, -0.5]]))
    given, listed = map(optimizer_of, (np.array([[1.5, -0.5, 0.0]]), [[1.5, -0.5, 0.0]]))
    for optimizer in (given, listed):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 2)
        optimizer.step()
    assert torch.equal(*(x.param_groups[0]["params"][0] for x in (given, listed)))


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


SHAPES = [
    ('State("left", most="side")', "ema(a, gram(grad), 0.9)", "makes a of a square of 5 x 5 and a number", "gram(grad, side)"),
    ('State("left", most="side")', "gram(grad)", "returned 5 x 5 numbers as a, which are 1 x 1", "gram(grad, side)"),
    ('State("left", most="side")', "every(2, step, inverse_root(gram(grad, 7), 4), a)", "returned 5 x 5 numbers", "gram(grad, side)"),
    ('State("right", most="side")', "ema(a, gram(transpose(grad)), 0.9)", "makes a of a square of 3 x 3", "gram(transpose(grad), side)"),
    ('State("left", most="other")', "ema(a, gram(grad, cols(grad)), 0.9)", "makes a of a square of 4 x 4", "gram(grad, cols(grad) - 1)"),
    ('State("right", most="other")', "gram(transpose(grad))", "returned 5 x 5 numbers", "gram(transpose(grad), rows(grad))"),
    ('State("left")', "largest_eigenvalue(a)", "returned 1 x 1 numbers as a, which are 5 x 5", "such as gram(grad)"),
    ('State("left")', "ema(a, gram(grad, side), 0.9)", "makes a of a square of 5 x 5", "such as gram(grad)"),
]  # fmt: skip


@pytest.mark.parametrize("make", [tensors, of_arrays])
@pytest.mark.parametrize(("state", "new", "told", "instead"), SHAPES)
def test_squares_that_a_long_side_would_break_are_refused_when_an_optimizer_is_made(state, new, told, instead, make):
    with pytest.raises(
        RuleError,
        match=rf"^Mine\.update {told}.* beside a matrix of \d x \d.*rule .*:3\)\. {re.escape(state[:-1].replace(chr(34), chr(39)))}.*{re.escape(instead)}",
    ):
        make(squared(state, new))


def test_products_that_a_long_side_would_break_are_refused_when_an_optimizer_is_made():
    rule = squared('State("left", most="side")', "ema(a, gram(grad, side), 0.9)")
    tensors(rule)
    text = f"{HEAD}    def update(param, grad, *, lr=0.1, side=4):\n        return param - lr * matmul(row_mean(grad) * gram(grad, side), grad)\n"
    with pytest.raises(
        RuleError,
        match=r"makes param of the product of 5 x 1 and 5 x 3 numbers, for example beside a matrix of 5 x 3 with side=2 .*:2\)\. Where",
    ):
        tensors(made(text))


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


MIXED = [
    "every(3, step, lambda: polar(grad), grad)", "matmul(polar(grad), matmul(transpose(grad), grad))",
    "matmul(gram(polar(grad)), grad)", "matmul(gram(grad), 2 * polar(grad))", "matmul(inverse_root(gram(grad), 2), polar(grad))",
]  # fmt: skip


@pytest.mark.parametrize("formula", MIXED)
def test_matrices_of_several_dtypes_lie_between_passes(formula):
    """Of a side above 32 polar factors are products of bfloat16 on many processors, and squares are float32 ones."""
    rule, generator = giving(formula), torch.Generator().manual_seed(0)
    grad = torch.randn(48, 64, generator=generator)
    moved = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        param = torch.nn.Parameter(torch.zeros(48, 64, dtype=dtype))
        param.grad = grad.to(dtype)
        Optimizer.of(rule)([param], lr=1.0).step()
        moved.append(param.detach().double())
    for one in moved[1:]:  # singular values of bfloat16's products are off by some hundredths, and so are sums of such
        assert (one - moved[0]).norm() <= 0.1 * moved[0].norm()


def test_polar_factors_of_some_steps_are_computed_in_these_alone(monkeypatch):
    calls = []
    monkeypatch.setitem(
        squares._WHOLE, PUT_OFF["polar"], lambda x, *args: calls.append(x.numel() // 20) or squares._polar(x, *args)
    )
    rule = made(
        f"{HEAD}    def update(param, grad, old, *, step, lr=0.1, ns=(3.4445, -4.775, 2.0315), k=4):\n"
        "        old = every(k, step, lambda: polar(decorrelate(grad), ns, 5), old)\n"
        "        return param - lr * old, old\n"
    )
    params = [torch.nn.Parameter(torch.zeros(5, 4, dtype=torch.float64)) for _ in range(2)]
    grads = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer, truth = Optimizer.of(rule)(params), [np.zeros((5, 4))] * 2
    state = [np.zeros((5, 4))] * 2
    for step, grad in enumerate(grads, 1):
        for place, param in enumerate(params):
            param.grad = (place + 1) * grad
            new, its = oracle(
                rule,
                truth[place],
                param.grad.numpy(),
                {"old": state[place]},
                step,
                {**rule.hyperparameters},
                place=place,
            )
            truth[place], state[place] = new, its["old"]
        optimizer.step()
        for param, one in zip(params, truth, strict=True):
            np.testing.assert_allclose(param.detach().numpy(), one, rtol=0, atol=1e-11)
    assert sum(calls) == 2 * 2 + 2 * 2  # of both in the first two steps, then of each in its own two of six


def test_sums_and_counts_of_what_is_no_matrix_are_what_they_are_by_hand():
    formulas = [
        "mean(norm(grad))", "total(lr)", "norm(total(grad))", "rows(row_total(grad)) + 0.1 * cols(row_total(grad))",
        "rows(col_total(grad)) + 0.1 * cols(col_total(grad))", "size(norm(grad)) + 0.1 * size(lr)", "size(row_total(grad))",
        "rows(transpose(grad)) + 0.1 * cols(transpose(grad))",
    ]  # fmt: skip
    texts = [f"{place + 1} * ({text})" for place, text in enumerate(formulas)]
    rule = giving(f"({' + '.join(texts)}) * grad")
    param, grad = np.random.default_rng(0).standard_normal((2, 3, 5))
    weight = torch.nn.Parameter(torch.tensor(param))
    weight.grad = torch.tensor(grad)
    Optimizer.of(rule)([weight]).step()
    np.testing.assert_allclose(weight.detach(), rule.update(param, grad, step=1), rtol=1e-13)
    with pytest.raises(RuleError, match=r"asks rows of one number.*rule .*:3, in .*Write rows\(x\) of a value for"):
        tensors(giving("rows(norm(grad)) * grad"))


@pytest.mark.parametrize(
    ("formula", "each"),
    [("norm(grad)", lambda x: x.norm()), ("row_total(grad)", lambda x: x.sum())],
    ids=["numbers", "rows"],
)
def test_what_there_is_one_of_for_each_tensor_is_added_up_over_all(formula, each):
    """A share of it for each element is rounded as these are. What no kernel steps sees no rows of others."""
    rule = giving(f"total_of_all({formula}) * grad")
    for place in (lambda x: x, with_gaps):
        weights = [torch.nn.Parameter(place(torch.zeros(m, n))) for m, n in ((3, 2), (1, 4), (2, 2))]
        for number, weight in enumerate(weights, 1):
            weight.grad = place(torch.full_like(weight, number))
        optimizer, expected = Optimizer.of(rule)(weights, lr=1.0), sum(each(x.grad) for x in weights)
        no_kernel = place is with_gaps or (gpu.serves(torch.device("cpu")) and not gpu.TAKES_ROWS)
        if no_kernel and "row" in formula:
            with pytest.raises(
                RuntimeError, match=r"^Mine adds up over all parameters .* no kernel can step parameter 0"
            ):
                optimizer.step()
            continue
        optimizer.step()
        for weight in weights:
            torch.testing.assert_close(weight.detach(), -expected * weight.grad, rtol=1e-6, atol=0)
