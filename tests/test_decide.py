"""What services decide: the same numbers from floats, arrays and tensors, and those of NumPy and torch to the last bit."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from steprule.services import Average, ClipAdaptive
from steprule.services.decide import average_weight, clip_factor, joined, quantile, roots, row_factors

NORMS = [0.0, 1e-9, 0.3, 1.0, 7.7, 1e20, math.inf, math.nan]
AVERAGES = [Average(0.999), Average(0.0), Average(0.9, warmup=True), Average(0.99, bias_correction=True)]


def same(mine, theirs):
    return np.array_equal(np.asarray(mine), np.asarray(theirs), equal_nan=True)


@pytest.mark.parametrize("longest", [0.0, 0.5, 1.0, 1e9])
def test_a_factor_is_the_same_from_floats_arrays_and_tensors(longest):
    """Where what is divided is a tensor: torch would multiply by a reciprocal otherwise."""
    factors = [clip_factor(norm, longest) for norm in NORMS]
    with np.errstate(all="ignore"):
        expected = np.minimum(longest / (np.array(NORMS) + 1e-6), 1.0)
    assert same(factors, expected) and all(type(factor) is float for factor in factors)
    assert same(clip_factor(np.array(NORMS), longest), expected)
    number = torch.tensor(longest, dtype=torch.float64)
    assert same(clip_factor(torch.tensor(NORMS, dtype=torch.float64), number), expected)
    several = torch.rand(1000, dtype=torch.float64)
    assert same(clip_factor(several, number), clip_factor(several.numpy(), longest))


def test_row_factors_are_the_same_from_arrays_and_tensors():
    clip = ClipAdaptive(0.02, 1e-3)
    norms, weights = np.array([0.0, 0.1, 5.0, math.nan, math.inf]), np.array([3.0, 0.0, 1.0, 1.0, 2.0])
    factors = row_factors(clip, norms, weights)
    assert same(factors, [1.0, 0.02 * 1e-3 / 0.1, 0.02 / 5.0, 1.0, 0.0])
    assert same(row_factors(clip, torch.from_numpy(norms), torch.from_numpy(weights)), factors)


@pytest.mark.parametrize("average", AVERAGES, ids=str)
def test_a_weight_is_the_same_from_numbers_and_tensors(average):
    weights = [average_weight(average, n) for n in range(50)]
    assert weights[0] == 1.0
    decay = average.decay
    for n in range(1, 50):
        if average.warmup:
            assert weights[n] == 1 - min(decay, (1 + n) / (10 + n))
        elif average.bias_correction:
            assert weights[n] == (1 - decay) / (1 - decay ** (n + 1))
        else:
            assert weights[n] == 1 - decay
    on_device = [float(average_weight(average, torch.tensor(float(n), dtype=torch.float64))) for n in range(50)]
    if average.warmup or average.bias_correction:  # whose last bits are torch's
        assert on_device == pytest.approx(weights, rel=1e-14)
    else:
        assert on_device == weights


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 0.0, 3.0, -1.0, math.inf, -math.inf])
def test_norms_are_numpys(norm_type, recwarn):
    drawn = np.random.default_rng(0)
    for count in (1, 2, 37, 400):
        norms = drawn.lognormal(0, 4, count)
        assert joined(norms, norm_type) == float(np.linalg.norm(norms, norm_type))
        tensor = float(joined(torch.from_numpy(norms), norm_type))
        assert tensor == pytest.approx(joined(norms, norm_type), rel=1e-12)
    sums = np.array([4.0, 0.0, math.inf, math.nan])
    with np.errstate(all="ignore"):
        expected = sums if norm_type in (0.0, math.inf, -math.inf) else sums ** (1 / norm_type)
    assert same(roots(sums, norm_type), expected)
    assert joined(np.array([1e300, 1e300]), 2.0) == math.inf
    assert not recwarn.list


def test_quantiles_are_numpys():
    drawn = random.Random(0)
    for _ in range(500):
        numbers = [drawn.lognormvariate(0, 5) for _ in range(drawn.randint(1, 100))]
        share = drawn.choice([0, 1, 0.5, 0.1, 0.25, drawn.random()])
        assert quantile(numbers, share) == float(np.quantile(numbers, share))
