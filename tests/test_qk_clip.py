"""QK-clip: the largest logit of each head is the limit after a step, and heads below it stay as they are."""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch

import steprule
from steprule.services import QKClip

SIZE, INPUTS = 3, 6


def attention(heads, key_heads, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda count: torch.nn.Parameter(torch.randn(count * SIZE, INPUTS, generator=generator, dtype=torch.float64))  # noqa: E731
    bias = lambda count: torch.nn.Parameter(torch.randn(count * SIZE, generator=generator, dtype=torch.float64))  # noqa: E731
    return [make(heads), bias(heads)], [make(key_heads), bias(key_heads)]


def logits(query, key, heads, key_heads, x):
    """(batch, heads, queries, keys)."""
    q = torch.nn.functional.linear(x, *query).unflatten(-1, (heads, SIZE)).transpose(-3, -2)
    k = torch.nn.functional.linear(x, *key).unflatten(-1, (key_heads, SIZE)).transpose(-3, -2)
    return q @ k.repeat_interleave(heads // key_heads, -3).transpose(-1, -2)


def inputs(seed=1):
    return torch.randn(2, 5, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def still(params):
    """An optimizer that steps and moves nothing."""
    optimizer = steprule.SGD(params, lr=0.0)
    for param in params:
        param.grad = torch.ones_like(param)
    return optimizer


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_largest_logit_of_each_head_is_the_limit_afterwards(key_heads):
    query, key = attention(4, key_heads)
    before = logits(query, key, 4, key_heads, inputs()).detach()
    most = before.amax((0, 2, 3))
    tau = float(most.sort().values[1:3].mean())  # two heads are above
    optimizer = still([*query, *key])
    clip = QKClip(optimizer, tau)
    seen = clip.watch(query, key, 4, key_heads)
    x = inputs()
    seen(logits(query, key, 4, key_heads, x[:1]))  # micro-batches
    seen(logits(query, key, 4, key_heads, x[1:]).amax((0, 2, 3)))
    optimizer.step()
    torch.testing.assert_close(clip.largest[0].double(), most, rtol=1e-6, atol=0)
    # The limit is met by factors in float32.
    after = logits(query, key, 4, key_heads, x).detach()
    scale = torch.where(most > tau, tau / most, 1.0)[:, None, None]
    torch.testing.assert_close(after, before * scale, rtol=1e-6, atol=1e-9)
    for now, was in zip((*query, *key), chain(*attention(4, key_heads)), strict=True):
        assert (now.abs() <= was.abs()).all()
    kept = [param.detach().clone() for param in (*query, *key)]
    optimizer.step()  # which has seen nothing
    assert all(map(torch.equal, kept, (*query, *key)))


def test_as_many_keys_as_queries_share_the_factor():
    query, key = attention(2, 2)
    old = copy.deepcopy((query, key))
    optimizer = still([*query, *key])
    QKClip(optimizer, 4.0).watch(query, key, 2)(torch.tensor([16.0, 4.0]))
    optimizer.step()
    for now, was in zip((*query, *key), (*old[0], *old[1]), strict=True):
        assert torch.equal(now[:SIZE], was[:SIZE] * 0.5) and torch.equal(now[SIZE:], was[SIZE:])


def test_rows_of_a_fused_matrix_and_half_precision():
    fused = torch.nn.Parameter(torch.ones(9, 4, dtype=torch.bfloat16))
    optimizer = still([fused])
    clip = QKClip(optimizer, 1.0)
    clip.watch((fused, slice(0, 3)), (fused, slice(3, 6)), heads=1)(torch.tensor([4.0]))
    optimizer.step()
    assert fused[:6].eq(0.5).all() and fused[6:].eq(1.0).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -5.0])
def test_logits_that_are_no_numbers_change_nothing(value):
    query, key = attention(1, 1)
    kept = copy.deepcopy([*query, *key])
    optimizer = still([*query, *key])
    QKClip(optimizer, 1.0).watch(query, key, 1)(torch.tensor([value]))
    optimizer.step()
    assert all(map(torch.equal, kept, (*query, *key)))


def test_what_makes_no_sense_is_refused():
    query, key = attention(2, 2)
    optimizer = still([*query, *key])
    with pytest.raises(ValueError, match="Invalid tau value: 0"):
        QKClip(optimizer, 0)
    clip = QKClip(optimizer)
    with pytest.raises(ValueError, match="heads=2 must be a multiple of key_heads=4"):
        clip.watch(query, key, 2, 4)
    with pytest.raises(ValueError, match=r"query: 6 rows of a parameter of shape \(6, 6\) are not those of 4 heads"):
        clip.watch(query, key, 4)
    with pytest.raises(ValueError, match="is not one of the optimizer's"):
        clip.watch(torch.nn.Parameter(torch.ones(6, 6)), key, 2)
    half = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="weights='24bit', whose low bits QKClip would not multiply"):
        QKClip(steprule.SGD([half], weights="24bit")).watch(half, half, 2)
    seen = clip.watch(query, key, 2)
    for wrong in (torch.ones(3), torch.ones(2, 2), torch.ones(1, 3, 5, 5)):
        with pytest.raises(ValueError, match="are neither"):
            seen(wrong)


def test_processes_use_the_largest_logits_of_all(monkeypatch):
    """With a stand-in for the exchange."""
    query, key = attention(2, 2)
    old = copy.deepcopy(query)
    optimizer = still([*query, *key])
    clip = QKClip(optimizer, 4.0)
    clip.watch(query, key, 2)(torch.tensor([1.0, 2.0]))
    monkeypatch.setattr("steprule.services.qk_clip.processes", lambda: 2)
    others = torch.tensor([16.0, -torch.inf])

    def reduce(x, how):
        assert how is torch.distributed.ReduceOp.MAX
        x.copy_(torch.maximum(x, others))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    optimizer.step()
    assert clip.largest[0].tolist() == [16.0, 2.0]
    assert torch.equal(query[0][:SIZE], old[0][:SIZE] * 0.5) and torch.equal(query[0][SIZE:], old[0][SIZE:])
