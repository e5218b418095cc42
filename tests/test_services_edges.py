"""What happens around services: models that change, optimizers that go, names that collide, checkpoints that lack a part."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from steprule import SGD, AdamW, Optimizer
from steprule.rule import Rule, RuleError
from steprule.services.member import Member
from steprule.services.step import StepServices


def train(model, optimizer, scale=1.0, steps=1):
    first = next(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * model(torch.ones(2, 4, dtype=first.dtype)).float().square().sum()).backward()
        optimizer.step()


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(4, 4).to(dtype)


def test_an_average_follows_its_parameters_to_another_dtype():
    model = layer()
    optimizer = AdamW(model.parameters(), average=0.9)
    train(model, optimizer, steps=2)
    before = optimizer.read(model.weight, "param_average").double()
    optimizer.zero_grad()
    model.double()
    train(model, optimizer)
    after = optimizer.read(model.weight, "param_average")
    assert after.dtype == torch.float64
    torch.testing.assert_close(after, 0.9 * before + 0.1 * model.weight.detach())


def test_an_average_follows_a_change_of_weights():
    model = layer(torch.bfloat16)
    optimizer = AdamW(model.parameters(), average=0.9, states="float32")
    train(model, optimizer, steps=2)
    before = optimizer.read(model.weight, "param_average")
    optimizer.param_groups[0]["weights"] = "24bit"
    train(model, optimizer)
    expected = 0.9 * before + 0.1 * optimizer.read(model.weight)
    torch.testing.assert_close(optimizer.read(model.weight, "param_average"), expected, rtol=1e-4, atol=1e-5)


def test_names_that_two_groups_share_are_told_apart():
    first, second = layer(), layer()
    optimizer = AdamW(
        [{"params": first.named_parameters()}, {"params": second.named_parameters()}], telemetry=1
    )  # fmt: skip
    (first(torch.ones(4)) + second(torch.ones(4))).sum().backward()
    optimizer.step()
    assert len(optimizer.telemetry.latest["parameters"]) == 4


class Named(Rule):
    @staticmethod
    def update(param, grad, param_average, *, lr=0.1):
        return param - lr * grad, param_average


@pytest.mark.parametrize("name", ["clip", "average", "clip_value", "average_weight", "grad_factor", "states"])
def test_a_rule_may_not_use_the_names_of_services(name):
    class Mine(Rule):
        update = staticmethod(lambda param, grad, *, lr=0.1: param - lr * grad)

    Mine.hyperparameters = {**Mine.hyperparameters, name: 1.0}
    with pytest.raises(RuleError, match=name):
        type("MineOptimizer", (Optimizer,), {}, rule=Mine)
    with pytest.raises(RuleError, match="param_average"):
        type("NamedOptimizer", (Optimizer,), {}, rule=Named)


@pytest.mark.parametrize("release", [True, False])
def test_hooks_go_with_their_optimizer(release):
    model = layer() if release else layer(torch.bfloat16)

    def make():
        optimizer = SGD(model.parameters(), lr=1.0, **({} if release else {"grads": "32bit"}))
        if release:
            optimizer.release_gradients(model)
        return optimizer

    gone = weakref.ref(make())
    gc.collect()
    assert gone() is None
    before = model.weight.detach().clone()
    train(model, make())
    assert not torch.equal(model.weight, before)


def test_nothing_waits_for_the_garbage_collector():
    model = layer()
    optimizer = AdamW(model.parameters(), clip=1.0, average=0.9)
    train(model, optimizer, steps=2)
    state = weakref.ref(optimizer.state[model.weight]["exp_avg"])
    gc.disable()
    try:
        del optimizer
        assert state() is None
    finally:
        gc.enable()


def test_averages_survive_a_checkpoint_of_states_and_groups_alone():
    model = layer()
    optimizer = AdamW(model.parameters(), average=0.9)
    train(model, optimizer, steps=5)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["services"]
    resumed = AdamW(model.parameters(), average=0.9)
    resumed.load_state_dict(saved)
    before = resumed.read(model.weight, "param_average")
    train(model, resumed)
    expected = 0.9 * before + 0.1 * model.weight.detach()
    torch.testing.assert_close(resumed.read(model.weight, "param_average"), expected)


@pytest.mark.parametrize("fails", [True, False])
def test_a_measured_batch_that_is_dropped_leaves_nothing(fails):
    model, twin = layer(), layer()
    optimizer, its = (SGD(one.parameters(), lr=0.1, clip=1.0) for one in (model, twin))
    optimizer.release_gradients(model)
    its.release_gradients(twin)
    train(model, optimizer), train(twin, its)
    try:
        with optimizer.measure():
            (1e6 * model(torch.ones(2, 4)).sum()).backward()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    optimizer.step()
    assert optimizer.grad_norm == its.grad_norm
    train(model, optimizer, 1e-2), train(twin, its, 1e-2)
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("released", [False, True], ids=["", "released"])
def test_sums_of_parameters_that_thaw_are_corrected_from_the_next_step_on(released):
    model = layer(torch.bfloat16)
    model.weight.requires_grad_(False)
    optimizer = SGD(model.parameters(), grads="32bit")
    if released:
        optimizer.release_gradients(model)
    train(model, optimizer)
    model.weight.requires_grad_(True)
    train(model, optimizer)
    assert model.weight in optimizer._core.accumulator.low_bits


def test_sparse_gradients_pass_an_accumulator():
    table = nn.Embedding(5, 4, sparse=True).bfloat16()
    before = table.weight.detach().clone()
    optimizer = SGD(table.parameters(), lr=0.5, grads="32bit")
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert torch.equal((before - table.weight).bool().any(1), torch.tensor([False, True, True, False, False]))


def test_copies_accumulate_as_well():
    model = layer(torch.bfloat16)
    optimizer, (weight, _) = copy.deepcopy(
        (SGD(model.parameters(), lr=0.5, grads="24bit"), list(model.parameters()))
    )  # fmt: skip
    assert weight in optimizer._core.accumulator.low_bits


def test_swapped_weights_are_not_copied():
    model = layer()
    optimizer = AdamW(model.parameters(), average=0.9)
    train(model, optimizer)
    with optimizer.averaged(), pytest.raises(RuntimeError, match="swap_average"):
        copy.deepcopy(optimizer)
    with optimizer.averaged(), pytest.raises(RuntimeError, match="swap_average"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.parametrize("divided", [[3], [1, 2], [2, 1]])
def test_processes_that_divide_parameters_otherwise_ask_one_another_the_same(divided):
    """Of parts that kernels step the norms are enough, and a part of the eager fallback reads its largest elements."""

    class Part:
        def __init__(self, places):
            self.members = [Member(str(place), place, torch.empty(1), False) for place in places]
            self.places = places

        def largest(self):
            return {"top_grad": np.array([1.0, math.nan, 2.0])[self.places]} if 0 in self.places else None

    asked = []

    def complete(parts, sums):
        asked.append(
            [
                (part.places, {name: len(own) for name, own in one.items()})
                for part, one in zip(parts, sums, strict=True)
            ]
        )
        return sums

    complete.failed = None
    ends = np.cumsum([0, *divided])
    parts = [Part([*range(begin, end)]) for begin, end in itertools.pairwise(ends.tolist())]
    norms = [np.array([3.0, math.nan, 4.0])[part.places] for part in parts]
    assert StepServices(None, "skip", None, None).not_finite(parts, norms, complete) == ["1"]
    assert asked == [[(part.places, {"top_grad": len(part.places)}) for part in parts]]
