"""Matrices of which processes have parts: steps are those of one process that has them whole."""

from __future__ import annotations

from itertools import product

import pytest
from ranks import RANK, run_ranks

from steprule.tensors.exchange import owners_of


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_parts_of_matrices_are_stepped_as_the_wholes(world, tmp_path):
    run_ranks("sharded_matrices.py", world, f"file://{tmp_path}/meeting", RANK, world)


@pytest.mark.parametrize(
    "costs", [[], [3], [1] * 8, [9, 7, 6, 5, 5, 4], [100, 1, 1, 1], [0, 0, 5], [5, 5, 4, 4, 3, 3, 3]]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_work_is_divided_nearly_as_evenly_as_it_can_be(costs, count):
    def longest(owners):
        return max(sum(cost for cost, own in zip(costs, owners, strict=True) if own == rank) for rank in range(count))

    best = min(map(longest, product(range(count), repeat=len(costs))))
    assert 3 * count * longest(owners_of(costs, count)) <= (4 * count - 1) * best  # Graham 1969, theorem 2
