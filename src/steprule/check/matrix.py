"""Matrices: what a step does with rows, columns, bases and stacks. Two ways are the same within a hundredth of what they move."""

from __future__ import annotations

import torch

from steprule.check.checks import Make, check, each, grad


@check("matrix", cases=each(shape=[(1, 5), (5, 1), (1, 1), (4, 4), (2, 7), (7, 2)]))
def takes_matrices_of_any_shape(make: Make, shape: tuple[int, int]) -> None:
    """Matrices of one row or column, square ones, wide and tall ones are stepped."""
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = make([p], lr=0.01)
    for k in range(3):
        p.grad = grad(p, k)
        optimizer.step()
    assert bool(p.isfinite().all()) and not torch.equal(p, torch.ones(shape)), (
        f"a matrix of {shape} becomes {p.detach()}"
    )


@check("matrix")
def takes_gradients_of_rank_one(make: Make) -> None:
    """A gradient of rank one, such as that of one example, leaves the parameter finite."""
    p = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make([p], lr=0.01)
    for _ in range(3):
        p.grad = torch.outer(torch.arange(1.0, 5.0), torch.ones(4))
        optimizer.step()
    assert bool(p.isfinite().all()), "a gradient of rank one makes the parameter not finite"


@check("matrix", "float64")
def steps_large_matrices_as_in_float64(make: Make) -> None:
    """A float32 matrix with more rows and columns than a tile of products goes as in float64, within a tenth of the way.

    Products of so many are often made in tiles and in bfloat16, and smaller ones not.
    """
    p, q = (torch.nn.Parameter(torch.ones(48, 40, dtype=dtype)) for dtype in (torch.float32, torch.float64))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.1)
        for k in range(3):
            torch.manual_seed(k)
            parameter.grad = grad(torch.ones(48, 40), k).to(parameter)
            optimizer.step()
    off, way = (float(one.detach().norm()) for one in (p.double() - q, q - 1))
    assert off <= 0.1 * way, f"a matrix of (48, 40) is off by {off / way:.2g} of its way"


@check("matrix", "transpose")
def is_the_same_transposed(make: Make) -> None:
    """Stepping the transposed matrix is transposing the step."""
    p, q = torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(6, 4))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.1)
        for k in range(3):
            parameter.grad = grad(p, k) if parameter is p else grad(p, k).t().contiguous()
            optimizer.step()
    assert (p.t() - q).abs().max() <= 0.01 * (p - 1).abs().max(), "the transposed matrix is stepped otherwise"


@check("matrix", "batch")
def steps_a_stack_as_its_matrices(make: Make) -> None:
    """A stack of matrices is stepped as each of them alone."""
    stack, parts = torch.nn.Parameter(torch.ones(3, 4, 6)), [torch.nn.Parameter(torch.ones(4, 6)) for _ in range(3)]
    one, other = make([stack], lr=0.1), make(parts, lr=0.1)
    for k in range(3):
        for part, its in zip((stack, *parts), (grad(stack, k), *grad(stack, k)), strict=True):
            part.grad = its.clone()
        one.step()
        other.step()
    assert (stack - torch.stack([*parts])).abs().max() <= 0.01 * (stack - 1).abs().max(), (
        "a stack is stepped otherwise than its matrices"
    )


@check("matrix", "rotation")
def is_the_same_in_other_bases(make: Make) -> None:
    """Stepping a matrix in other orthogonal bases is rotating the step."""
    p, q = torch.nn.Parameter(torch.zeros(4, 6)), torch.nn.Parameter(torch.zeros(4, 6))
    left, right = (torch.linalg.qr(torch.randn(n, n))[0] for n in (4, 6))
    one, other = make([p], lr=0.1), make([q], lr=0.1)
    for k in range(2):
        p.grad, q.grad = grad(p, k), left @ grad(p, k) @ right
        one.step()
        other.step()
    assert (left @ p @ right - q).abs().max() <= 0.01 * q.abs().max(), "in other bases the matrix is stepped otherwise"


@check("matrix", "orthogonal", cases=lambda subject: [{"least": subject.claims.orthogonal}])
def makes_steps_orthogonal(make: Make, least: float) -> None:
    """The singular values of a first step are near each other, as claimed."""
    p = torch.nn.Parameter(torch.zeros(6, 4))
    p.grad = torch.diag(torch.tensor([1.0, 0.7, 0.5, 0.3])).repeat(2, 1)[:6] + 0.1 * grad(p)
    make([p], lr=0.1).step()
    values = torch.linalg.svdvals(p.detach().double())
    assert values[-1] >= least * values[0], (
        f"the smallest singular value is {values[-1] / values[0]:.2g} of the largest"
    )


@check("matrix", "rotation")
def ignores_the_order_of_rows(make: Make) -> None:
    """Rows and columns in another order are stepped as they were, in that order."""
    p, q = torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(4, 6))
    for parameter in (p, q):
        optimizer = make([parameter], lr=0.1)
        for k in range(3):
            parameter.grad = grad(p, k) if parameter is p else grad(p, k).flip(0, 1)
            optimizer.step()
    assert (p.flip(0, 1) - q).abs().max() <= 0.01 * (q - 1).abs().max(), (
        "rows and columns in another order are stepped otherwise"
    )
