"""torch.distributed.checkpoint's state dicts of optimizers, plain and flattened: it knows torch.optim's two keys, and gets states
by a step with learning rates and gradients of 0."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import steprule
from steprule.services import Average, ClipQuantile

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
WAYS = ["set", "flattened", "file"]


def model():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(torch.linspace(-1, 1, param.numel()).reshape(param.shape))
    return net


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        net(torch.full((2, 4), 1.0 + step)).square().sum().backward()
        optimizer.step()


def carry(way, source, target, folder):
    """Takes a model and an optimizer to others as distributed training does."""
    options = StateDictOptions(flatten_optimizer_state_dict=way == "flattened")
    saved = {"model": get_model_state_dict(source[0]), "optimizer": get_optimizer_state_dict(*source, options=options)}
    if way == "file":
        dcp.save(saved, checkpoint_id=folder)
        saved = {"model": get_model_state_dict(target[0]), "optimizer": get_optimizer_state_dict(*target)}
        dcp.load(saved, checkpoint_id=folder)
    set_model_state_dict(target[0], saved["model"])
    set_optimizer_state_dict(*target, saved["optimizer"], options=options)


def served(net):
    return steprule.AdamW(net.parameters(), clip=ClipQuantile(0.5, window=4), average=Average(0.9, warmup=True))


MADE = {
    "AdamW": lambda net: steprule.AdamW(net.parameters()),
    "services": served,
    "a function as lr": lambda net: steprule.AdamW(net.parameters(), lr=lambda step: 0.1 / step),
    "ScheduleFreeAdamW": lambda net: steprule.ScheduleFreeAdamW(net.parameters(), lr=0.1),
    "independent decay": lambda net: steprule.AdamW(net.parameters(), decay="independent", weight_decay=0.1),
    "Together": lambda net: steprule.Together(
        [steprule.AdamW(net[0].parameters(), clip=0.5), steprule.SGD(net[1].parameters(), lr=0.1, momentum=0.9)]
    ),
}
CASES = pytest.mark.parametrize("case", MADE)


@CASES
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_bit_for_bit(way, case, tmp_path):
    nets = [model(), model()]
    optimizers = [MADE[case](net) for net in nets]
    train(nets[0], optimizers[0], range(3))
    carry(way, (nets[0], optimizers[0]), (nets[1], optimizers[1]), tmp_path)
    assert optimizers[1].param_groups[0].get("lr") == optimizers[0].param_groups[0].get("lr")
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, range(3, 6))
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    notes = [repr([g.get("services") for g in one.state_dict()["param_groups"]]) for one in optimizers]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("way", WAYS)
def test_schedule_free_weights_are_known_for_what_they_are(way, tmp_path):
    nets = [model(), model()]
    optimizers = [MADE["ScheduleFreeAdamW"](net) for net in nets]
    train(nets[0], optimizers[0], range(3))
    optimizers[0].eval()
    carry(way, (nets[0], optimizers[0]), (nets[1], optimizers[1]), tmp_path)
    with pytest.raises(RuntimeError, match="averaged weights"):
        optimizers[1].step()
    for optimizer in optimizers:
        optimizer.train()
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@CASES
def test_to_be_asked_for_states_moves_nothing(case):
    net = model()
    optimizer, before = MADE[case](net), [param.detach().clone() for param in net.parameters()]
    saved = get_optimizer_state_dict(net, optimizer)
    assert all(map(torch.equal, before, net.parameters()))
    counted = 1 if case == "AdamW" else 0  # as torch.optim's
    assert all(state and float(state["step"]) == counted for state in saved["state"].values() if "step" in state)
    assert len(saved["state"]) == 4
    for group in optimizer.param_groups:
        assert group.get("services", {}).get("steps", 0) == 0 and group.get("calls", 0) == 0
    if counted:
        return
    other = model()
    plain = MADE[case](other)
    train(net, optimizer, range(3)), train(other, plain, range(3))
    assert all(map(torch.equal, net.parameters(), other.parameters()))


@pytest.mark.parametrize("case", ["Lion", "a function as lr", "services"])
def test_a_first_step_with_lr_and_gradients_of_0_is_one(case):
    """Unless it is called as torch.distributed.checkpoint does."""
    net = torch.nn.Linear(2, 2)
    optimizer = {
        "Lion": lambda params: steprule.Lion(params, lr=0.0, weight_decay=0.25, decay="independent"),
        "a function as lr": lambda params: steprule.Lion(params, lr=lambda step: (step - 1) * 0.5),
        "services": lambda params: steprule.Lion(params, lr=0.0, nonfinite="skip", telemetry=1),
    }[case](net.parameters())
    before = net.weight.detach().clone()
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    if case == "Lion":
        assert torch.equal(net.weight, 0.75 * before)
    elif case == "services":
        assert float(optimizer.grad_norm) == 0 and optimizer.telemetry.latest["step"] == 1
    else:
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_first_step_with_lr_0_and_gradients_is_one():
    for mine in (True, False):
        net = model()
        optimizer = (steprule if mine else torch.optim).AdamW(net.parameters(), lr=0.0)
        train(net, optimizer, [0])
        states = [float(state["step"]) for state in optimizer.state.values()]
        assert states == [1.0] * 4
