from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steprule import debias, ema, exp, log, maximum, minimum, running_ema, sign, sqrt, where
from steprule.pieces import abs as absolute

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
