from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steprule import debias, ema, exp, log, maximum, minimum, running_ema, sign, sqrt, where
from steprule.pieces import abs as absolute
from steprule.pieces import (
    at_first,
    atan2,
    cbrt,
    clip,
    debiased_beta,
    ema_sq,
    floor,
    l2,
    mean,
    norm,
    size,
    total,
    total_of_all,
)

# The source article's table; it rounds on the way, so each average is checked from the one before it.
TEMPERATURES = [100, 114, 118, 117, 120, 122]
AVERAGES = [30, 55.2, 74.04, 86.9, 96.83, 104.38]


def test_the_articles_table():
    for before, temperature, after in zip([0, *AVERAGES], TEMPERATURES, AVERAGES, strict=False):
        assert ema(before, temperature, 0.7) == pytest.approx(after, abs=0.03)


def test_the_articles_table_in_one_call():
    assert running_ema(TEMPERATURES, 0.7) == pytest.approx(AVERAGES, abs=0.03)


def test_bias_correction_by_hand():
    # v1 = 0.1 * 10 = 1, corrected 1 / 0.1 = 10; v2 = 0.9 + 0.1 * 20 = 2.9, corrected 2.9 / 0.19
    assert running_ema([10.0, 20.0], 0.9, bias_correction=True) == pytest.approx([10.0, 2.9 / 0.19])
    assert debias(2.9, 0.9, 2) == pytest.approx(2.9 / 0.19)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 0.9999), st.integers(1, 60))
def test_a_constant_series_has_its_value_as_debiased_average(value, beta, length):
    assert running_ema([value] * length, beta, bias_correction=True) == pytest.approx([value] * length, rel=1e-9)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_a_series_of_vectors(make):
    series = make([[100.0, 1.0], [114.0, 2.0], [118.0, 3.0]])
    averages = running_ema(series, 0.7)
    assert type(averages) is type(series) and averages.shape == series.shape
    assert averages[:, 0].tolist() == pytest.approx(running_ema([100.0, 114.0, 118.0], 0.7))
    assert averages[:, 1].tolist() == pytest.approx(running_ema([1.0, 2.0, 3.0], 0.7))
    assert series[1, 0] == 114.0  # untouched


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_a_senseless_beta(beta):
    with pytest.raises(ValueError, match=f"Invalid beta value: {beta}"):
        running_ema([1.0], beta)


VALUES = [-2.5, -0.0, 0.0, 1.0, 3.0, math.inf, math.nan]


@pytest.mark.parametrize("make", [float, np.array, lambda v: torch.tensor(v, dtype=torch.float64)])
@pytest.mark.parametrize("value", VALUES)
def test_functions_agree_whatever_carries_the_numbers(make, value):
    x = make(value)
    pairs = [
        (sign(x), np.sign(value)),
        (absolute(x), np.abs(value)),
        (maximum(x, make(1.0)), np.maximum(value, 1.0)),
        (minimum(make(1.0), x), np.minimum(1.0, value)),
        (where(x > 0, 5.0, 7.0), 5.0 if value > 0 else 7.0),
        (sqrt(absolute(x)), np.sqrt(abs(value))),
    ]
    for result, expected in pairs:
        assert float(result) == expected or (math.isnan(result) and math.isnan(expected))


def test_exp_and_log_of_tensors_and_numbers():
    assert float(log(exp(torch.tensor(2.0, dtype=torch.float64)))) == pytest.approx(2.0)
    assert log(exp(2.0)) == pytest.approx(2.0)
    assert float(maximum(torch.tensor(2.0), 3.0)) == 3.0


MAKERS = [np.array, lambda v: torch.tensor(v, dtype=torch.float64)]
each_maker = pytest.mark.parametrize("make", MAKERS, ids=["numpy", "torch"])


@each_maker
def test_sums_over_a_tensor(make):
    x = make([[3.0, -4.0], [0.0, 12.0]])
    assert [float(f(x)) for f in (total, mean, norm, size, total_of_all)] == [11.0, 2.75, 13.0, 4.0, 11.0]
    assert float(total(make([]))) == 0.0


@pytest.mark.parametrize("make", [lambda x: np.array(x, np.float32), lambda x: torch.tensor(x, dtype=torch.float32)])
def test_sums_are_taken_in_float64(make):
    """In float32 the ones would be lost."""
    assert float(total(make([1e8, 1.0, 1.0, -1e8]))) == 2.0


@pytest.mark.parametrize("make", [float, *MAKERS], ids=["float", "numpy", "torch"])
def test_the_other_functions(make):
    assert float(cbrt(make(27.0))) == pytest.approx(3.0) and float(cbrt(make(0.0))) == 0.0
    assert float(atan2(make(1.0), make(0.0))) == pytest.approx(math.pi / 2)
    assert float(atan2(make(-2.0), make(2.0))) == pytest.approx(-math.pi / 4)
    assert float(atan2(make(0.0), make(0.0))) == 0.0
    assert [float(clip(make(x), -1.0, 2.0)) for x in (-5.0, 0.5, 3.0)] == [-1.0, 0.5, 2.0]
    assert [float(floor(make(x))) for x in (-0.5, 2.0, 2.9)] == [-1.0, 2.0, 2.0]
    assert float(l2(make(1.0), make(3.0), 0.5)) == 2.5
    assert math.isinf(float(ema_sq(make(math.inf), make(1.0), 0.9))) and math.isinf(
        float(ema_sq(make(1.0), make(1e300), 0.9))
    )


def test_no_decay_asks_for_no_weight():
    """A weight that is not finite would make 0 times it NaN."""
    assert l2(1.0, math.inf, 0.0) == 1.0


def test_a_debiased_beta_is_a_debiased_average():
    plain = unbiased = 0.0
    for step, value in enumerate([3.0, -1.0, 2.0, 7.0], 1):
        plain, unbiased = ema(plain, value, 0.9), ema(unbiased, value, debiased_beta(0.9, step))
        assert unbiased == pytest.approx(debias(plain, 0.9, step))
    assert [at_first(step, 1.0, 2.0) for step in (1, 2, 3)] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("step", [0, 0.0, -1])
def test_an_average_of_nothing_has_no_bias_to_correct(step):
    with pytest.raises(ValueError, match=f"Invalid step value: {step}; an average has seen at least 1 value"):
        debias(1.0, 0.9, step)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"jan": 100}, "not a dict with 'jan' in it"),
        ([1, None], "not a list with None in it"),
        ("12", "not a str with '1'"),
    ],
)
def test_a_series_of_something_else_than_numbers(series, message):
    with pytest.raises(TypeError, match=f"running_ema takes a sequence of numbers, {message}"):
        running_ema(series, 0.5)


def test_help_shows_every_function_of_formulas():
    import pydoc

    from steprule import pieces
    from steprule.names import HOME

    assert sorted({*HOME["pieces"], "Value", "abs"}) == pieces.__all__
    told = pydoc.plain(pydoc.render_doc(pieces))
    assert all(f"\n    {name}(" in told for name in pieces.__all__ if name != "Value")
