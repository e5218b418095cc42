"""What a step notices of tensors that were changed, moved or replaced, by either comparison: kernels write to addresses."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from steprule.tensors import places
from steprule.tensors.places import Places

FUNCTIONS = places._functions()
IS_NEW = TorchVersion(torch.__version__) >= (2, 7)


@pytest.fixture(params=["compiled", "guards"], autouse=True)
def _comparison(request, monkeypatch):
    if request.param == "guards":
        monkeypatch.setattr(places, "_functions", lambda: None)
    elif FUNCTIONS is None:
        pytest.skip("this torch has no functions for it")


@pytest.mark.skipif(not sys.platform.startswith("linux") or not IS_NEW, reason="torch has functions for it there")
def test_new_versions_of_torch_have_the_functions_for_it():
    assert FUNCTIONS is not None


class Sub(torch.Tensor):
    pass


def with_numbers(x, y):
    """One's numbers in the other's place, as `.data = ` has it."""
    x.data = y


def in_inference(x):
    with torch.inference_mode():
        return torch.ones_like(x)


def taking_class(x):
    x.__class__ = Sub


# Each changes a tensor of 4 rows and 6 columns. What begins at the same address is seen by its look alone.
LOOKS = {
    "smaller": lambda x: with_numbers(x, x.detach()[:2]),
    "narrower": lambda x: with_numbers(x, x.detach()[:, :5]),
    "transposed": lambda x: with_numbers(x, x.detach().t()),
    "reshaped": lambda x: with_numbers(x, x.detach().view(6, 4)),
    "flat": lambda x: with_numbers(x, x.detach().view(24)),
    "with a dimension more": lambda x: with_numbers(x, x.detach().unsqueeze(0)),
    "with a last dimension more": lambda x: with_numbers(x, x.detach().unsqueeze(-1)),
    "of another dtype": lambda x: with_numbers(x.requires_grad_(False), x.detach().view(torch.int32)),
    "of a narrower dtype": lambda x: with_numbers(x, x.detach().view(torch.bfloat16)[:, ::2]),
    "negative": lambda x: with_numbers(x, torch._neg_view(x.detach())),
    "of inference mode": lambda x: with_numbers(x, in_inference(x)),
    "of another class": taking_class,
    "transposed in place": lambda x: x.detach_().t_(),
    "with a dimension more in place": lambda x: x.detach_().unsqueeze_(0),
    "with other strides in place": lambda x: x.detach_().as_strided_((4, 6), (1, 4)),
    "resized": lambda x: x.detach_().resize_(2, 6),
    "swapped with its transpose": lambda x: torch.utils.swap_tensors(x, x.detach().t()),
}


def make(kind):
    """Three tensors as they are in a step."""
    tensors = [torch.ones(4, 6), torch.ones(4, 6), torch.zeros(())]
    return [nn.Parameter(x) if kind == "parameter" else x for x in tensors]


@pytest.mark.parametrize("which", LOOKS)
@pytest.mark.parametrize("kind", ["parameter", "tensor"])
def test_a_tensor_that_looks_otherwise_is_noticed(which, kind):
    tensors = make(kind)
    mine = Places(tensors)
    assert mine.moved(tensors) == 0
    LOOKS[which](tensors[1])
    assert mine.moved(tensors) == -1


def test_what_is_no_tensor_of_the_kind_is_noticed():
    tensors = make("tensor")
    mine = Places(tensors)
    others = (
        None,
        3,
        1.0,
        "x",
        [],
        nn.Parameter(torch.ones(4, 6)),
        torch.ones(4, 6, device="meta"),
        torch.ones(4, 6).to_sparse(),
        torch.ones(4, 6).to_sparse_csr(),
    )
    for other in others:
        assert mine.moved([tensors[0], other, tensors[2]]) == -1
    assert mine.moved(tensors) == 0


def test_a_list_of_another_length_is_noticed():
    tensors = make("tensor")
    mine = Places(tensors)
    for others in ([], tensors[:2], [*tensors, tensors[0]]):
        try:
            assert mine.moved(others) == -1
        except TypeError:  # as torch's guards say it
            assert not isinstance(mine.moved.func, type(places._compiled()))


def test_it_tells_how_far_the_last_is_that_lies_elsewhere():
    tensors = make("parameter")
    mine = Places(tensors)
    before = mine.at.copy()
    for moved in (2, 1):
        old = tensors[moved - 1].detach()  # whose memory no other gets
        tensors[moved - 1].data = old.clone()
        assert mine.moved(tensors) == max(moved, 2)
        assert mine.now.tolist() == [x.data_ptr() for x in tensors]
    assert (mine.at == before).all()
    mine.at[:] = mine.now
    assert mine.moved(tensors) == 0
    tensors[2].untyped_storage().resize_(0)
    assert mine.moved(tensors) == 3
    assert mine.now[2] == 0


def test_tensors_that_torch_turns_into_others_on_the_way_are_compared_as_well():
    numbers = torch.ones(3, dtype=torch.complex64)
    tensors = [numbers, torch._neg_view(torch.ones(3)), in_inference(torch.ones(3))]
    mine = Places(tensors)
    assert mine.moved(tensors) == 0
    assert mine.moved([numbers.conj(), *tensors[1:]]) == -1


def test_it_keeps_no_tensor():
    tensors = make("tensor")
    mine = Places(tensors)
    kept = [*tensors, torch.Tensor]
    before = [sys.getrefcount(x) for x in kept]
    for _ in range(1000):
        mine.moved(tensors)
    after = [sys.getrefcount(x) for x in kept]
    assert all(abs(now - then) < 100 for now, then in zip(after, before, strict=True))
