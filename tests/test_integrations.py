"""What callbacks of all frameworks stand on. tests/frameworks run them in the frameworks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steprule
from steprule.integrations.watch import Log, each, release, set_mode, takes_clip, unwrapped
from steprule.services import ClipNorm


class Wrapper:
    """As accelerate's, which hides all but what torch.optim has."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def made(**settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, steprule.AdamW(model.parameters(), lr=0.1, **settings)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_optimizers_are_found_in_wrappers_and_in_one_another():
    _, one = made()
    _, other = made()
    both = steprule.Together([one, torch.optim.SGD([nn.Parameter(torch.ones(1))]), steprule.Together([other])])
    assert unwrapped(Wrapper(Wrapper(both))) is both and list(each(both)) == [one, other]
    foreign = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert unwrapped(Wrapper(foreign)) is foreign and list(each(foreign)) == []
    set_mode(foreign, training=False)  # which has none


def test_modes_reach_all_of_several():
    (model, one), (other_model, other) = made(average=0.5), made()
    both = steprule.Together([one, other])
    train(model, one, 2)
    weights, others = model.weight.detach().clone(), other_model.weight.detach().clone()
    set_mode(both, training=False)
    assert not torch.equal(weights, model.weight) and torch.equal(others, other_model.weight)
    set_mode(both, training=True)
    assert torch.equal(weights, model.weight)


def test_clipping_is_taken_over_where_there_is_none():
    (model, one), (_, other) = made(), made(clip=0.5)
    assert takes_clip(one, ClipNorm(1.0), "max_grad_norm=1.0") and one.clip == ClipNorm(1.0)
    assert takes_clip(other, ClipNorm(1.0), "max_grad_norm=1.0") and other.clip == ClipNorm(0.5)
    assert not takes_clip(torch.optim.SGD(model.parameters()), ClipNorm(1.0), "max_grad_norm=1.0")
    both = steprule.Together([one, other])
    assert not takes_clip(both, ClipNorm(1.0), "max_grad_norm=1.0")
    one.release_gradients(model)
    with pytest.raises(ValueError, match=r"max_grad_norm=1.0 clips .* by one norm, and released gradients are gone"):
        takes_clip(both, ClipNorm(1.0), "max_grad_norm=1.0")


def test_a_framework_says_which_passes_only_accumulate():
    (model, one), (twin, plain) = made(), made()
    is_last = False
    release(one, model, lambda: not is_last)
    release(one, model, lambda: not is_last)  # as a second training of the same trainer does
    for step in range(3):
        for number in range(3):
            is_last = number == 2
            for each_one in (model, twin):
                each_one(torch.full((2, 4), 1.0 + step + number)).square().sum().backward()
            assert (model.weight.grad is not None and type(model.weight.grad) is torch.Tensor) is not is_last
        for its in (one, plain):
            its.step()
            its.zero_grad()
    assert torch.equal(model.weight, twin.weight)
    with pytest.raises(ValueError, match="release=True needs an optimizer of steprule's, not SGD"):
        release(torch.optim.SGD(model.parameters()), model, lambda: False)


def test_each_number_is_told_once():
    log = Log()
    (model, one), (other_model, other) = made(clip=0.1, nonfinite="skip", telemetry=2), made()
    train(model, one)
    assert log.numbers([one]) == {
        "optimizer/grad_norm": pytest.approx(float(one.grad_norm)), "optimizer/clipped_steps": 1, "optimizer/skipped_steps": 0,
    }  # fmt: skip
    train(model, one)
    assert log.numbers([one])["optimizer/update_norm"] == one.telemetry.latest["total"]["update_norm"]
    assert "optimizer/update_norm" not in log.numbers([one])
    train(other_model, other)
    assert log.numbers([other]) == {}
    assert set(log.numbers([one, other])) >= {"optimizer_0/grad_norm", "optimizer_0/clipped_steps"}


def test_a_model_says_what_does_not_decay():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.layer = nn.Parameter(torch.ones(1, 4, 4)), nn.Linear(4, 4)

        def no_weight_decay(self):
            return {"position", "gone"}

    model = Model()

    def undecayed(one, **settings):
        optimizer = steprule.create_optimizer(one, "adamw", weight_decay=0.1, **settings)
        found = [group["param_names"] for group in optimizer.param_groups if group["weight_decay"] == 0]
        return {name.removeprefix("_orig_mod.") for names in found for name in names}

    assert undecayed(model) == undecayed(torch.compile(model)) == {"position", "layer.bias"}
    assert undecayed(model, no_decay="embeddings") == {"position", "layer.bias"}
    assert undecayed(model, no_decay=["*.bias"]) == {"layer.bias"} and undecayed(model, no_decay=False) == set()


def test_a_matrix_that_muon_steps_does_not_decay_either_if_the_model_says_so():
    class Model(nn.Sequential):
        def no_weight_decay(self):
            return {"2.weight"}

    model = Model(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    groups = steprule.create_optimizer(model, "muon", weight_decay=0.1).param_groups
    found = {name: (group["rule"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    assert found["2.weight"] == ("muon", 0.0) and found["4.weight"] == ("muon", 0.1)
