"""Polar factors of stacks: against the same polynomial in float64, within bounds that rounding gives."""

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from bounds import UNIT

from steprule.matrix import coefficients, oracle
from steprule.matrix import decorrelated as decorrelated_module
from steprule.matrix import how as how_module
from steprule.matrix import polar as polar_module
from steprule.matrix.coefficients import PUBLISHED, polar_express, polynomial
from steprule.matrix.how import FORMS, How, fast_bfloat16, plan_for
from steprule.matrix.polar import EPS, Chain, normalize, polar, segments, split
from steprule.matrix.products import product, symmetric_product

SHAPES = [(3, 5, 9), (2, 40, 16), (1, 1, 7), (2, 7, 1), (1, 1, 1), (2, 33, 33)]
HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
HOWS = [
    How(form, dtype, batched) for form, dtype, batched in itertools.product(FORMS, (HALF, FLOAT, DOUBLE), (True, False))
]
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (HALF, FLOAT, DOUBLE, torch.float16)}


def chained(x, out, how, norms=None, coefficients="keller", steps=None):
    """As the engine calls it: with a place for the result, and norms that it has read."""
    Chain(how, (x.shape[1], x.shape[2]), x.device, coefficients, steps)(x, out, norms, EPS)
    return out


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values, columns):
    """A float64 matrix with them."""
    rows = len(values)
    left, _ = torch.linalg.qr(random(rows, rows).double())
    right, _ = torch.linalg.qr(random(columns, rows, seed=1).double())
    return left * torch.as_tensor(values).double() @ right.mT


def error_bound(matrix, triples, unit, summed=UNIT["float32"]):
    """How far, in the Frobenius norm, rounding may take the plain form from the exact polynomial.

    What step k rounds is carried through the exact steps after it. Their composition f is an odd function of singular values, and as a
    function of matrices has the same Lipschitz constant in the Frobenius norm: the largest |f'| up to the largest
    singular value. `summed` is the rounding of one addition within a product.
    """
    rows, columns = sorted(matrix.shape)
    spectrum = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    spectrum /= np.linalg.norm(spectrum)
    off, total, size = 2 * unit * np.linalg.norm(spectrum), 0.0, np.linalg.norm
    local, tops = [off], [spectrum.max() + off]
    for a, b, c in triples:
        s = spectrum + off  # no smaller than any singular value of what has been computed
        square = s**2
        of_gram = unit * size(square) + columns * summed * size(s) ** 2
        full = abs(b) * square + abs(c) * square**2
        of_square = (abs(b) + abs(c) * (2 * square.max() + of_gram)) * of_gram
        of_square += 3 * unit * size(full) + rows * summed * abs(c) * size(square) ** 2
        here = of_square * s.max() + 3 * unit * size((abs(a) + full + of_square) * s)
        here += rows * summed * size(full + of_square) * size(s)
        spectrum = a * spectrum + b * spectrum**3 + c * spectrum**5
        grid = np.linspace(0, s.max(), 2001)
        off = here + off * np.abs(a + 3 * b * grid**2 + 5 * c * grid**4).max()
        local.append(here)
        tops.append(np.abs(spectrum).max() + off)
    for k, (here, top) in enumerate(zip(local, tops, strict=True)):
        x = np.linspace(0, top, 2001)
        slope = np.ones_like(x)
        for a, b, c in triples[k:]:
            slope *= a + 3 * b * x**2 + 5 * c * x**4
            x = a * x + b * x**3 + c * x**5
        total += here * np.abs(slope).max()
    return total


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].start == "norm"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_and_float64_are_the_polynomial(name, shape):
    stack = random(*shape)
    kept, triples = stack.clone(), polynomial(name)
    exact = oracle.polar(stack.numpy(), name)
    for how in HOWS:
        if how.dtype == HALF:
            continue
        unit = UNIT[NAMES[how.dtype]]
        found = polar(stack, name, how=how)
        assert found.dtype == how.dtype and found.shape == stack.shape and torch.equal(stack, kept)
        for one, matrix, want in zip(found.double().numpy(), stack, exact, strict=True):
            # The Gram form takes the same steps on fewer products with the matrix, and up to four times as many of Gram matrices.
            bound = error_bound(matrix, triples, unit, unit) * (4 if how.form == "gram" else 1)
            assert np.linalg.norm(one - want) <= bound, how


def test_the_bound_means_something():
    """It is a small part of the result in float32, and what it bounds is not much smaller."""
    matrix = random(33, 33)
    exact = oracle.polar(matrix.numpy())
    bound = error_bound(matrix, polynomial("keller"), UNIT["float32"])
    error = np.linalg.norm(polar(matrix[None], how=How("plain", FLOAT, False))[0].double().numpy() - exact)
    assert bound < 1e-2 * np.linalg.norm(exact)
    assert bound / 1e4 < error < bound


@pytest.mark.parametrize("shape", [(1, 33, 50), (1, 64, 64), (1, 7, 7)], ids=str)
def test_bfloat16_is_bit_for_bit_what_torch_does(shape):
    from torch.optim._muon import _zeropower_via_newtonschulz

    x = random(*shape).bfloat16()
    norms = x.norm().float().view(1)  # torch rounds it
    want = _zeropower_via_newtonschulz(x[0].clone(), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    assert torch.equal(chained(x, torch.empty_like(x), How("plain", HALF, False), norms)[0], want)


HARD = {
    "power law": with_singular_values(np.arange(1, 65.0) ** -1, 128),
    "condition 1e4": with_singular_values(np.logspace(0, -4, 64), 256),
    "rank 4": with_singular_values([1, 0.9, 0.8, 0.7] + [0] * 60, 128),
    "gauss": random(64, 128).double(),
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "cans"])
@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", [HALF, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_singular_values_where_the_polynomial_has_them(name, case, dtype, form):
    """With the Gram form and bfloat16 this fails where more than one step is taken on a Gram matrix that is not fresh."""
    found = polar(HARD[case].float()[None], name, how=How(form, dtype, False))[0].double()
    exact = oracle.polar(HARD[case].numpy(), name)
    top, most = (np.linalg.norm(x, 2) for x in (found.numpy(), exact))
    start = 1.0 if PUBLISHED[name].start == "norm" else np.linalg.norm(exact, 2)
    grid = np.abs(oracle.singular_values(np.linspace(0, start, 4001), name)).max()
    # In the Gram form a step rounds four products: the square, the factor so far, and the Gram matrix from both sides. Two more
    # are before and after all steps.
    assert top <= max(grid, most) * (1 + (4 * len(polynomial(name)) + 2) * UNIT[NAMES[dtype]])


def test_coefficients_without_room_above_1_are_computed_in_float32():
    rows = random(50, 1, 30)
    assert polar(rows, "cans").dtype == FLOAT
    assert polar(rows, "cans").norm(dim=(1, 2)).max() < 1.2
    assert not polar(rows, "cans", how=How("plain", HALF, True)).float().norm(dim=(1, 2)).max() < 1e6


@pytest.mark.parametrize("name", ["polar_express", "deepseek", "you"])
def test_well_conditioned_matrices_get_near_their_polar_factor(name):
    """Singular values from 0.02 on: in the interval of the polynomials, whose error there is that of a number."""
    values = np.linspace(0.2, 1, 24)
    matrix = with_singular_values(values, 40)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    wanted = left @ right
    numbers = oracle.singular_values(np.linspace(values.min(), values.max(), 4001) / np.linalg.norm(values), name)
    off = np.linalg.norm((polar(matrix[None], name)[0] - wanted).numpy(), 2)
    assert off <= np.abs(numbers - 1).max() + 1e-9
    assert off < {"polar_express": 1e-4, "deepseek": 1e-2, "you": 0.15}[name]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_degenerate_matrices(how):
    ones = torch.zeros(4, 6, 9)
    ones[1] = 1
    ones[2, 0, 0] = math.nan
    found = polar(ones, how=how)
    assert not found[0].any() and not found[3].any()
    assert found[2].isnan().all()
    # What rounding adds to one singular value may grow as small ones do, by 3.4445 a step.
    assert how.dtype == HALF or (found[1] - found[1, 0, 0]).abs().max() <= 3.4445**5 * 4 * UNIT[NAMES[how.dtype]]
    assert polar(torch.zeros(0, 3, 4), how=how).shape == (0, 3, 4)
    assert polar(torch.zeros(2, 0, 4), how=how).shape == (2, 0, 4)
    assert polar(torch.zeros(2, 4, 0), how=how).shape == (2, 4, 0)


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("size", [1e30, 1e-30, 3e38, 1e-40])
def test_the_size_of_elements_changes_nothing(how, size):
    x = (random(2, 6, 9) * 0.2).clamp(-1, 1)
    huge = x * size
    wanted = polar(huge.double(), how=How("plain", DOUBLE, True), eps=0)
    found = polar(huge, how=how, eps=0).double()
    assert (found - wanted).abs().max() < {HALF: 0.2, FLOAT: 1e-3, DOUBLE: 1e-9}[how.dtype]


def test_eps_is_torchs():
    """So small a matrix is not normalized, and the polynomial is a straight line there."""
    x = random(1, 6, 9)
    x *= 1e-12 / x.norm()
    for how in HOWS:
        assert polar(x, how=how).double().norm() == pytest.approx(
            1e-5 * 3.4445**5, rel=10 * UNIT[NAMES[how.dtype]] + 1e-4
        )


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("given", [HALF, FLOAT, DOUBLE, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 8, 5)], ids=str)
def test_where_the_result_goes_changes_nothing(how, given, shape):
    x = random(*shape).to(given)
    wanted = polar(x, how=how)
    unit = UNIT[NAMES[how.dtype]]
    far = 0.2 if how.dtype == HALF else 2 * max(error_bound(one.double(), polynomial(), unit, unit) for one in x)
    out = torch.full(shape, math.nan, dtype=how.dtype)
    assert torch.equal(chained(x, out, how), wanted)
    by_columns = torch.full(shape[:1] + shape[:0:-1], math.nan, dtype=how.dtype).mT
    assert (chained(x, by_columns, how) - wanted).abs().max() <= far  # torch adds up in another order
    other = torch.full(shape, math.nan, dtype=DOUBLE)
    assert (chained(x, other, how) - wanted).abs().max() <= far
    strided = torch.full((shape[0], 2 * shape[1], 3 * shape[2]), math.nan, dtype=given)[:, ::2, ::3]
    strided.copy_(x)
    assert (polar(strided, how=how) - wanted).abs().max() <= far
    place = x.clone()
    chained(place, place, how)
    assert (place.double() - wanted.double()).abs().max() <= far + 2 * UNIT[str(given).removeprefix("torch.")]


@pytest.mark.parametrize("given", [HALF, FLOAT, torch.float16], ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_products_of_a_wider_dtype_lose_nothing(given, batched):
    x = random(2, 6, 9).to(given)
    for scale in (1.0, 2.0**-14):  # norms that are read at once, and such as are scaled first
        found = polar(x * scale, how=How("plain", DOUBLE, batched), eps=0)
        assert np.abs(found.numpy() - oracle.polar((x * scale).double().numpy(), eps=0)).max() < 1e-12


def test_norms_that_the_caller_has_read():
    x = random(3, 6, 9)
    norms = torch.linalg.vector_norm(x, dim=(1, 2))
    for how in HOWS:
        out = torch.empty(x.shape, dtype=how.dtype)
        assert torch.allclose(chained(x, out, how, norms), polar(x, how=how), rtol=0.1, atol=0.02)
        halved = chained(x, out, how, 2 * norms.double(), [(1.0, 0.0, 0.0)], 1)
        assert torch.linalg.vector_norm(halved.double(), dim=(1, 2)).numpy() == pytest.approx(0.5, rel=0.01)


def test_parameters_that_require_gradients():
    x = random(1, 6, 9).requires_grad_()
    assert not polar(x).requires_grad


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
@pytest.mark.parametrize("rows", [513, 640])
def test_symmetric_products_are_the_whole_ones(rows, dtype):
    a = random(rows, 70).to(dtype)
    whole, half = (way(a, a.mT, torch.empty(rows, rows, dtype=dtype)) for way in (product, symmetric_product))
    unit = UNIT[NAMES[dtype]]
    bound = unit * whole.abs() + 70 * UNIT["float32"] * (a.abs() @ a.abs().mT)
    assert ((whole.double() - half.double()).abs() <= 2 * bound).all()
    assert torch.equal(half, half.mT)
    q = torch.empty_like(half)
    found = symmetric_product(half, half, q, half, alpha=0.5, beta=-3.0, diagonal=2.0)
    exact = 0.5 * half.double() @ half.double() - 3 * half.double() + 2 * torch.eye(rows)
    bound = 4 * unit * (exact.abs() + 3 * half.abs()) + rows * UNIT["float32"] * 0.5 * (half.abs() @ half.abs())
    assert found is q and ((found - exact).abs() <= bound).all()


def test_segments():
    def lengths(form, dtype, steps=5):
        return [len(one) for one in segments(polynomial("keller", steps), How(form, dtype, True))]

    assert lengths("plain", HALF) == lengths("symmetric", FLOAT) == [1] * 5
    assert lengths("gram", HALF) == [1, 2, 2]
    assert lengths("gram", FLOAT, 7) == [2, 3, 2]
    assert lengths("gram", HALF, 1) == lengths("gram", FLOAT, 1) == [1]


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [True, False])
def test_split_knows_the_memory(shape, form, batched):
    """No tensors but those that it counts are as large as a matrix."""
    count, how = 5, How(form, FLOAT, batched)
    each = 4 * (54 + (4 if form == "gram" else 2) * 36)
    slices = list(split(shape, count, how, 2 * each + 1))
    assert [one.stop - one.start for one in slices] == ([2, 2, 1] if batched else [5])
    assert [one.start for one in slices[1:]] == [one.stop for one in slices[:-1]]
    assert list(split(shape, 2, how, 1)) == ([slice(0, 1), slice(1, 2)] if batched else [slice(0, 2)])


def test_plans():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert plan_for((768, 3072), 12, cpu, dtype=HALF) == How("gram", HALF, False)
    assert plan_for((3072, 768), 12, cpu, dtype=HALF) == plan_for((768, 3072), 12, cpu, dtype=HALF)
    assert plan_for((16, 16), 60, cpu) == How("plain", FLOAT, True)
    assert plan_for((768, 768), 1, cpu, dtype=FLOAT) == How("symmetric", FLOAT, False)
    for dtype, least in ((HALF, 512), (FLOAT, 384)):  # where blocks of rows begin to pay
        assert [plan_for((n, n), 1, cpu, dtype=dtype).form for n in (least - 1, least)] == ["plain", "symmetric"]
    assert plan_for((768, 768), 9, cuda).batched and plan_for((768, 768), 9, cuda).dtype == HALF
    with pytest.raises(ValueError, match="dtype must be one of"):
        plan_for((768, 768), 9, cpu, dtype=torch.int32)


@pytest.mark.parametrize("limit", ["AVX2", "avx512_core", "AVX512_CORE_BF16", "ALL", None])
def test_the_dtype_follows_the_processor(monkeypatch, limit):
    """Not that of a process: oneDNN reads its limit once, and so do we."""
    if limit is None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        fast_bfloat16.cache_clear()
        try:
            fast = has and limit in ("AVX512_CORE_BF16", "ALL", None) and torch.backends.mkldnn.is_available()
            assert fast_bfloat16() == fast
            assert plan_for((256, 256), 2, torch.device("cpu")).dtype == (HALF if fast else FLOAT)
        finally:
            fast_bfloat16.cache_clear()


def test_polynomials():
    for name, one in PUBLISHED.items():
        assert polynomial(name) == list(one.triples) and polynomial(name, len(one.triples)) == list(one.triples)
    assert polynomial() == [(3.4445, -4.7750, 2.0315)] * 5
    assert polynomial("polar_express", 10) == [*polar_express(1.01), (1.875, -1.25, 0.375), (1.875, -1.25, 0.375)]
    assert polar_express(1.0)[3][2] == 0.51004894012372 and polar_express(2.0)[0][1] == -23.595886519098837 / 8
    assert polynomial((1, 2, 3)) == [(1.0, 2.0, 3.0)] * 5
    assert polynomial([(1, 2, 3), (4, 5, 6)]) == [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]


@pytest.mark.parametrize("name", [name for name, one in PUBLISHED.items() if one.repeats])
def test_more_steps_keep_singular_values_near_1(name):
    x = np.linspace(0.05, 0.95, 2001)
    few, more = (oracle.singular_values(x, polynomial(name, len(PUBLISHED[name].triples) + extra)) for extra in (0, 4))
    assert np.abs(more - 1).max() <= max(np.abs(few - 1).max(), 0.35)


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"coefficients": "kelner"}, "one of keller"),
        ({"coefficients": (1.0, 2.0)}, "three finite numbers"),
        ({"coefficients": [(1.0, 2.0, math.nan)]}, "three finite numbers"),
        ({"coefficients": []}, "three finite numbers"),
        ({"steps": 0}, "steps=0 must be a whole number from 1 to 99"),
        ({"steps": 100}, "steps=100 must"),
        ({"steps": 2.5}, r"steps=2\.5 must"),
        ({"steps": True}, "steps=True must"),
        ({"coefficients": "deepseek", "steps": 5}, "at least 10 steps, got steps=5"),
        ({"coefficients": "cubic5", "steps": 6}, "exactly 5 steps, got steps=6"),
        ({"eps": -1.0}, "eps must not be negative"),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        polar(torch.ones(2, 3, 4), **arguments)


def test_stacks_that_are_refused():
    for bad in (torch.ones(3, 4), torch.ones(1, 3, 4, dtype=torch.int32), torch.ones(1, 3, 4, dtype=torch.complex64)):
        with pytest.raises(ValueError, match="stack must be"):
            polar(bad)
    with pytest.raises(ValueError, match="safety"):
        polar_express(0.9)


@pytest.mark.parametrize(
    "module",
    [coefficients, how_module, decorrelated_module, oracle, polar_module],
    ids=lambda one: one.__name__,
)
def test_examples_run(module):
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert tried and not failed


def test_normalize_by_powers_of_2_as_on_a_gpu(monkeypatch):
    """What a GPU does, which does not look at norms first."""
    x = random(3, 4, 5)
    x[1] *= 1e25
    for dtype in (HALF, FLOAT):
        out = torch.empty(3, 4, 5, dtype=dtype)
        monkeypatch.setattr("steprule.matrix.polar.SAFE", math.inf)
        normalize(x, None, 0.0, out)
        exact = x.double() / torch.linalg.vector_norm(x.double(), dim=(1, 2), keepdim=True)
        assert ((out - exact).abs() <= 4 * UNIT[NAMES[dtype]] * exact.abs() + 1e-7).all()
