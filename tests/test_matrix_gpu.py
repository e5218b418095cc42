"""Symmetric products by Triton, in its interpreter where there is no GPU."""

import pytest
import torch
from bounds import UNIT

from steprule.matrix import gpu
from steprule.matrix.gpu import Tile
from steprule.matrix.how import How
from steprule.matrix.polar import Chain, polar

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TILE = Tile(32, 16, 4, 2)


@pytest.fixture(autouse=True)
def quick_interpreter():
    if DEVICE == "cpu":
        from interpreter import hasten

        hasten()


def unit_of(dtype):
    """Of the last rounding; the interpreter cuts off bits of bfloat16 where a GPU rounds."""
    return UNIT[str(dtype).removeprefix("torch.")] * (2 if DEVICE == "cpu" and dtype == torch.bfloat16 else 1)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (2, 33, 16), (1, 70, 40), (3, 32, 50), (40, 30)], ids=str)
@pytest.mark.parametrize("by_columns", [False, True])
def test_gram_matrices(shape, dtype, by_columns):
    x = random(*shape).to(dtype)
    x = x.mT.contiguous().mT if by_columns else x
    rows = shape[-2]
    whole = torch.full((*shape[:-2], rows + 2, rows + 3), float("nan"), dtype=dtype, device=DEVICE)
    out = whole[..., 1:-1, 1:-2]
    assert gpu.symmetric_product(x, x.mT, out, tile=TILE) is out
    wide = x.double()
    bound = unit_of(dtype) * (wide @ wide.mT).abs() + shape[-1] * UNIT["float32"] * (wide.abs() @ wide.abs().mT) + 1e-7
    assert ((out.double() - wide @ wide.mT).abs() <= bound).all()
    upper = torch.ones(rows, rows, dtype=torch.bool).triu(TILE.side).to(DEVICE)
    assert torch.equal(out.masked_fill(~upper, 0), out.mT.masked_fill(~upper, 0))
    assert whole.isnan().sum() == whole.numel() - out.numel()  # and nothing beside it is written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 65])
def test_all_terms(rows, dtype):
    a = random(2, rows, 9)
    a = (a @ a.mT / 9).to(dtype)
    out = gpu.symmetric_product(a, a, torch.empty_like(a), a, alpha=0.5, beta=-3.0, diagonal=2.0, tile=TILE)
    wide = a.double()
    exact = 0.5 * wide @ wide - 3 * wide + 2 * torch.eye(rows, device=DEVICE)
    bound = unit_of(dtype) * exact.abs() + (rows + 4) * UNIT["float32"] * (
        0.5 * wide.abs() @ wide.abs() + 3 * wide.abs() + 2
    )
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", [1, 7, 64, 100])
def test_corners_are_those_of_a_lower_triangle(rows):
    """Every tile once, on or below the diagonal: else memory would keep what was there."""
    out = torch.full((rows, rows), float("nan"), device=DEVICE)
    ones = torch.ones(rows, 1, device=DEVICE)
    assert (gpu.symmetric_product(ones, ones.mT, out, tile=Tile(16, 16, 4, 2)) == 1).all()


def test_float64_is_torchs():
    x = random(2, 5, 7).double()
    assert torch.allclose(gpu.symmetric_product(x, x.mT, x.new_empty(2, 5, 5)), x @ x.mT, rtol=1e-14)


@pytest.mark.parametrize("form", ["symmetric", "gram"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("shape", [(2, 36, 40), (1, 40, 36)], ids=str)
def test_polar_factors_by_triton_and_by_torch(monkeypatch, form, batched, shape):
    calls, own = [], gpu.symmetric_product
    monkeypatch.setattr(gpu, "symmetric_product", lambda *a, **k: calls.append(1) or own(*a, **{**k, "tile": TILE}))
    monkeypatch.setattr(gpu, "DEVICES", {DEVICE})
    x, how = random(*shape), How(form, torch.float32, batched)
    found, count = polar(x, how=how), len(calls)
    monkeypatch.setattr(gpu, "DEVICES", set())
    assert count > 0 and (found - polar(x, how=how)).abs().max() < 1e-4
    assert len(calls) == count


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["plain", "symmetric", "gram"])
def test_graphs_capture_it_and_nothing_waits(form):
    x = random(4, 256, 300)
    how = How(form, torch.float16 if form == "gram" else torch.bfloat16, True)
    chain = Chain(how, (256, 300), x.device, "keller")
    wanted, out = polar(x, how=how), torch.empty(4, 256, 300, dtype=torch.bfloat16, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain(x, out)
    out.zero_()
    graph.replay()
    assert torch.equal(out, wanted.bfloat16())
    torch.cuda.set_sync_debug_mode("error")
    try:
        polar(x, how=how)
    finally:
        torch.cuda.set_sync_debug_mode("default")
