"""However tensors are split over processes, their parts are numbered as the wholes, and steps of the parts are the wholes' steps.

One process takes itself for each of several in turn, by torch's fake process group. A thread for each takes the steps, and what they
have to add up they hand each other in memory.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sharding.helpers import cut, part_of, same
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import steprule
from steprule.tensors import totals
from steprule.tensors.numbering import numbering_of

MESHES = [(2,), (3,), (5,), (2, 2), (3, 2), (2, 3)]
STEPS = 3
MAKES = {
    "each": lambda params: steprule.LAMB(params, lr=0.1, clip=0.5, nonfinite="skip"),
    "all": lambda params: steprule.Prodigy(params, clip=0.5, average=0.9, telemetry=1),
    "cautious": lambda params: steprule.AdamW(params, lr=0.1, cautious=True, nonfinite="zero"),
}


@st.composite
def splits(draw):
    """A mesh, shapes of tensors, and how each is cut."""
    mesh = draw(st.sampled_from(MESHES))
    shapes = draw(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
    ways = [
        tuple(draw(st.sampled_from([Replicate(), *map(Shard, range(len(shape)))])) for _ in mesh) for shape in shapes
    ]
    return mesh, shapes, ways


def values(shape, seed):
    generator = np.random.default_rng([seed, *shape])
    return torch.from_numpy(generator.normal(size=shape))


class Ranks:
    """Processes of a mesh, of which this one is each in turn."""

    def __init__(self, shape):
        from torch.testing._internal.distributed.fake_pg import FakeStore

        self.count, self.meshes = prod(shape), []
        for rank in range(self.count):
            if dist.is_initialized():
                dist.destroy_process_group()
            dist.init_process_group("fake", rank=rank, world_size=self.count, store=FakeStore())
            self.meshes.append(init_device_mesh("cpu", shape))
        self._barrier, self._given = threading.Barrier(self.count, timeout=60), [None] * self.count
        self._here = threading.local()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        dist.destroy_process_group()

    def reduced(self, numbers, reach, operation):
        """In the place of the call of torch.distributed, over all."""
        assert reach.mesh is None or reach.mesh.ndim == 1
        self._given[self._here.rank] = numbers
        self._barrier.wait()
        every = np.stack(self._given)
        self._barrier.wait()
        return every.sum(axis=0) if operation == dist.ReduceOp.SUM else every.max(axis=0)

    def run(self, function):
        """A function of the rank, on all at once."""

        def one(rank):
            self._here.rank = rank
            try:
                return function(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with patch.object(totals, "reduced", self.reduced), ThreadPoolExecutor(self.count) as pool:
            return [done.result() for done in [pool.submit(one, rank) for rank in range(self.count)]]


def take_steps(params, make, take):
    optimizer = make(params)
    for step in range(STEPS):
        for number, param in enumerate(params):
            grad = values(param.shape, 10 * step + number + 1)
            if step == 1 and number == 0 and grad.numel() and optimizer._core.services.nonfinite is not None:
                grad.view(-1)[-1] = float("nan")
            param.grad = take(number, grad)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", MAKES)
@settings(max_examples=6, deadline=None)
@given(split=splits())
def test_steps_of_the_parts_of_any_split_are_those_of_the_wholes(name, split):
    mesh, shapes, ways = split
    wholes = [torch.nn.Parameter(values(shape, number)) for number, shape in enumerate(shapes)]
    alone = take_steps(wholes, MAKES[name], lambda number, grad: grad)
    with Ranks(mesh) as ranks:
        parts = [[torch.nn.Parameter(cut(values(shape, number), where, way)) for number, (shape, way) in enumerate(zip(shapes, ways, strict=True))] for where in ranks.meshes]  # fmt: skip
        optimizers = ranks.run(
            lambda rank: take_steps(
                parts[rank], MAKES[name], lambda number, grad: cut(grad, ranks.meshes[rank], ways[number])
            )
        )
        for rank, (own, optimizer) in enumerate(zip(parts, optimizers, strict=True)):
            for number, (whole, part) in enumerate(zip(wholes, own, strict=True)):
                wanted = part_of(whole.detach(), ranks.meshes[rank], ways[number])
                same(wanted, part.detach().to_local(), f"{split}, rank {rank}, tensor {number}")
            for what in ("skipped_steps", "clipped_steps", "zeroed_elements"):
                assert getattr(optimizer, what) == getattr(alone, what), (split, what)
            same(torch.as_tensor(alone.grad_norm), torch.as_tensor(optimizer.grad_norm), f"{split}, norm")


@settings(max_examples=40, deadline=None)
@given(split=splits())
def test_elements_of_the_parts_of_any_split_have_the_numbers_that_they_have_in_the_whole(split):
    mesh, shapes, ways = split
    with Ranks(mesh) as ranks:
        for shape, way in zip(shapes, ways, strict=True):
            every = torch.arange(prod(shape)).reshape(shape)
            found = []
            for where in ranks.meshes:
                part = cut(every, where, way)
                numbering, here = numbering_of(part), part.to_local().flatten()
                found.append(here)
                if numbering is None:  # several cut dimensions that are not the first
                    assert len({one.dim for one in way if one != Replicate()} - {0}) == 2, (split, shape)
                    continue
                place = torch.arange(len(here))
                wanted = numbering.first + place // numbering.run * numbering.stride + place % numbering.run
                assert torch.equal(here, wanted), (split, shape, numbering)
            assert torch.equal(torch.cat(found).unique(), every.flatten()), (split, shape)
