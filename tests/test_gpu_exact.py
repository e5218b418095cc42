"""Division and square root on GPUs: estimates that are refined to the nearest number."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import pytest
import torch

from steprule.compiler.functions import exact
from steprule.compiler.objects import compiled, loaded
from steprule.engine.machine import float32, float32s, int64s, multiply_add

COUNT = 2**20
ULPS = (-2, -1, 0, 1, 2)
"""How far a GPU's estimates may be off; NVIDIA says 1 for reciprocals, and 2**-22.9 of its size for roots'."""


@exact
def _quotients(at):
    plan = int64s(at)
    a, b, estimates, results = float32s(plan[0]), float32s(plan[1]), float32s(plan[2]), float32s(plan[3])
    for i in range(plan[4]):
        r, one = estimates[i], float32(1)
        r = multiply_add(r, multiply_add(-b[i], r, one), r)
        q = a[i] * r
        q = multiply_add(r, multiply_add(-b[i], q, a[i]), q)
        results[i] = multiply_add(r, multiply_add(-b[i], q, a[i]), q)


@exact
def _roots(at):
    plan = int64s(at)
    a, estimates, results = float32s(plan[0]), float32s(plan[1]), float32s(plan[2])
    for i in range(plan[3]):
        q, half = a[i] * estimates[i], estimates[i] * float32(0.5)
        results[i] = multiply_add(multiply_add(-q, q, a[i]), half, q)


@cache
def _run(function):
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(
        loaded(compiled(function, name := f"refined{function.tree.name}"), name)
    )


def _refined(function, *arrays):
    results = np.empty_like(arrays[0])
    plan = np.array([*(x.ctypes.data for x in (*arrays, results)), len(results)])
    _run(function)(plan.ctypes.data)
    return results


def refined_quotients(a, b, estimates):
    """As `steprule.formats.gpu_exact.divide`, from estimates of 1 / b."""
    return _refined(_quotients, a, b, estimates)


def refined_roots(a, estimates):
    """As `steprule.formats.gpu_exact.sqrt`, from estimates of 1 / sqrt(a)."""
    return _refined(_roots, a, estimates)


def numbers(generator, least, most, hard=False):
    """Numbers of all sizes between two kept exponents; hard ones have few bits that are 1, or few that are 0."""
    sizes = generator.integers(least, most, COUNT)
    bits = generator.integers(0, 2**23, COUNT)
    if hard:
        few = generator.integers(0, 8, COUNT) << generator.integers(0, 21, COUNT)
        bits = np.where(generator.integers(0, 2, COUNT) == 0, few, 2**23 - 1 - few)
    return ((sizes << 23) + bits).astype(np.uint32).view(np.float32)


def near(exact, ulps):
    """Numbers so far from the nearest ones."""
    return (exact.astype(np.float32).view(np.int32) + np.int32(ulps)).view(np.float32)


@pytest.mark.parametrize("ulps", ULPS)
@pytest.mark.parametrize("hard", [False, True], ids=["any", "hard"])
def test_refined_quotients_are_the_nearest_numbers(ulps, hard):
    generator = np.random.default_rng(ulps + 2)
    a, b = numbers(generator, 28, 153, hard), numbers(generator, 28, 153)
    a *= generator.choice([-1, 1], COUNT).astype(np.float32)
    estimates = near(1.0 / b.astype(np.float64), ulps)
    assert np.array_equal(refined_quotients(a, b, estimates), a / b)


@pytest.mark.parametrize("ulps", ULPS[1:-1])
def test_refined_roots_are_the_nearest_numbers(ulps):
    generator = np.random.default_rng(ulps + 2)
    a = np.concatenate([numbers(generator, 26, 255), numbers(generator, 26, 255, hard=True)])
    estimates = near(1.0 / np.sqrt(a.astype(np.float64)), ulps)
    assert np.array_equal(refined_roots(a, estimates), np.sqrt(a))


def test_every_root_and_many_quotients_on_a_gpu():
    """Against the compiler's own, all ranges among each other."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from gpu_exact import wrong_quotients, wrong_roots

    assert wrong_roots() == 0
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(8):
        assert wrong_quotients(generator) == 0
