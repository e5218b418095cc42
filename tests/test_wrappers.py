"""Objects made of (a wrapper, the optimizer's class) that find attributes by `__getattr__`, as Lightning's and Fabric's: all that is
called on one reads and changes what the optimizer does."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch

import steprule


class Wrapper:
    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Wrapped" + type(optimizer).__name__, (Wrapper, type(optimizer)), {})

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def made(name="AdamW", **settings):
    model = torch.nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimizer = getattr(steprule, name)(model.parameters(), **settings)
    return model, optimizer, Wrapper(optimizer)


def train(model, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 4), 1.0 + step)).square().sum().backward()
        optimizer.step()


def test_the_rule_is_that_with_its_options():
    _, optimizer, wrapper = made(decay="initial", cautious=True)
    assert wrapper.rule is optimizer.rule is not steprule.AdamW.rule
    assert "initial_param" in wrapper.rule.states and "initial_param" not in steprule.AdamW.rule.states


def test_counts_and_norms_are_the_optimizers():
    model, optimizer, wrapper = made(clip=1e-3, nonfinite="skip", telemetry=1)
    train(model, wrapper)
    assert float(wrapper.grad_norm) == float(optimizer.grad_norm) > 0
    assert wrapper.clipped_steps == optimizer.clipped_steps == 3 and wrapper.skipped_steps == 0
    assert wrapper.telemetry is optimizer.telemetry and wrapper.clip is optimizer.clip
    wrapper.clip = 1e9
    assert optimizer.clip.max_norm == 1e9
    train(model, wrapper, 1)
    assert optimizer.clipped_steps == 3


def test_averages_are_exchanged_once():
    model, optimizer, wrapper = made(average=0.5)
    train(model, wrapper)
    weights, average = model.weight.detach().clone(), optimizer.read(model.weight, "param_average")
    assert torch.equal(wrapper.read(model.weight, "param_average"), average)
    with wrapper.averaged():
        assert torch.equal(model.weight, average)
        for one in (optimizer, wrapper):
            with pytest.raises(RuntimeError, match="swapped"):
                one.step()
            assert one.state_dict()["param_groups"][0]["train_mode"] is False
    assert torch.equal(model.weight, weights)
    wrapper.swap_average()
    optimizer.swap_average()
    assert torch.equal(model.weight, weights)


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW", "ScheduleFreeRAdam"])
def test_schedule_free_modes_are_the_optimizers(name):
    model, optimizer, wrapper = made(name)
    train(model, wrapper, 8)  # RAdam's first ones move nothing
    weights = model.weight.detach().clone()
    wrapper.eval()
    assert not torch.equal(model.weight, weights)
    for one in (optimizer, wrapper):
        with pytest.raises(RuntimeError, match=r"train\(\)"):
            one.step()
    optimizer.train()
    torch.testing.assert_close(model.weight.detach(), weights)
    train(model, wrapper, 1)


def test_states_are_saved_and_loaded():
    model, optimizer, wrapper = made(clip=1e-3, average=0.5, lr=lambda step: 0.1 / step)
    train(model, wrapper)
    saved = copy.deepcopy(optimizer.state_dict())
    assert repr(wrapper.state_dict()) == repr(saved)
    other_model, other, other_wrapper = made(clip=1e-3, average=0.5, lr=lambda step: 0.1 / step)
    other_model.load_state_dict(model.state_dict())
    other_wrapper.load_state_dict(saved)
    assert not {"state", "param_groups", "_core"} & set(vars(other_wrapper))
    now = other.state_dict()
    now["param_groups"][0]["schedules"] = saved["param_groups"][0]["schedules"]  # which is each optimizer's own number
    assert repr(now) == repr(saved)
    train(model, optimizer)
    train(other_model, other)
    assert torch.equal(model.weight, other_model.weight)


def test_gradients_are_released_by_the_optimizer():
    model, optimizer, wrapper = made("SGD", lr=0.1, momentum=0.9)
    twin = copy.deepcopy(model)
    plain = steprule.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    wrapper.release_gradients(model)
    del wrapper
    gc.collect()
    wrapper = Wrapper(optimizer)
    for one, its in ((model, wrapper), (twin, plain)):
        for step in range(3):
            with its.accumulate():
                one(torch.full((2, 4), 1.0 + step)).sum().backward()
            one(torch.full((2, 4), 2.0)).square().sum().backward()
            its.step()
            its.zero_grad()
    assert torch.equal(model.weight, twin.weight) and model.weight.grad is None


def test_groups_are_added_to_the_optimizer():
    _, optimizer, wrapper = made(average=0.5)
    more = torch.nn.Parameter(torch.ones(2))
    wrapper.add_param_group({"params": [more], "lr": 0.5})
    assert len(optimizer.param_groups) == 2 and optimizer.param_groups[1]["params"] == [more]
    more.grad = torch.ones(2)
    wrapper.step()
    assert more.max() < 1


def test_copies_of_the_wrapped_one_go_on():
    model, optimizer, wrapper = made(clip=1.0, average=0.5)
    train(model, wrapper)
    other_model, other = pickle.loads(pickle.dumps((model, wrapper._optimizer)))
    train(model, optimizer)
    train(other_model, other)
    assert torch.equal(model.weight, other_model.weight)


def test_an_attribute_that_would_do_nothing_is_refused():
    _, _, wrapper = made()
    with pytest.raises(AttributeError, match="lr"):
        wrapper.lr = 0.5


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}, {"nonfinite": "skip"}], ids=["plain", "clip", "skip"])
def test_a_scaler_that_is_given_the_wrapper_unscales(settings):
    kept = []
    for wraps in (True, False):
        model, optimizer, wrapper = made("SGD", lr=0.1, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(model(torch.ones(2, 4)).sum()).backward()
        scaler.step(wrapper if wraps else optimizer)
        kept.append(model.weight.detach())
    torch.testing.assert_close(*kept)
