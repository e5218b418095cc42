"""Momentum decorrelation against the paper's steps, one by one in float64."""

import numpy as np
import pytest
import torch

from steprule.matrix.decorrelated import decorrelated


def by_the_paper(matrix, passes):
    if matrix.shape[0] > matrix.shape[1]:
        return by_the_paper(matrix.T, passes).T
    q = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for _ in range(passes):
        q = np.linalg.solve(np.tril(q @ q.T), q)
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
    return q


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (4, 1), (20, 20)], ids=str)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_is_the_papers(shape, passes, dtype):
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # as `room_dtype` has it
    found = decorrelated(stack.to(wide), passes)
    assert found.dtype == wide
    close = 1e-9 if dtype == torch.float64 else 2e-3 if shape == (20, 20) else 2e-4
    for one, matrix in zip(found.double().numpy(), stack.double().numpy(), strict=True):
        assert np.abs(one - by_the_paper(matrix, passes)).max() < close


def test_zeros_give_zeros():
    stack = torch.randn(2, 4, 6)
    stack[0] = 0
    stack[1, 2] = 0
    found = decorrelated(stack)
    assert not found[0].any() and not found[1, 2].any() and found.isfinite().all()
    assert torch.linalg.vector_norm(found[1, [0, 1, 3]], dim=-1).numpy() == pytest.approx(1)
    for empty in (torch.zeros(1, 3, 0), torch.zeros(0, 3, 2)):
        assert decorrelated(empty).shape == empty.shape


@pytest.mark.parametrize("size", [1e30, 1e-30, 3e38])
def test_the_size_of_elements_changes_nothing(size):
    stack = (torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) / 4).clamp(-1, 1)
    assert torch.allclose(decorrelated(stack * size), decorrelated(stack), rtol=1e-3, atol=1e-5)
