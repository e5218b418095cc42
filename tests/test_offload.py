"""Optimizers on the host for parameters that are elsewhere: on a GPU, or, where there is none, beside their copies."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

import steprule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    (steprule.AdamW, torch.float32, {"lr": 0.01}),
    (
        steprule.AdamW,
        torch.bfloat16,
        {"lr": 0.01, "states": "8bit", "weights": "24bit", "clip": 0.5, "nonfinite": "skip"},
    ),
    (steprule.Muon, torch.float32, {"lr": 0.01}),
    (torch.optim.SGD, torch.float32, {"lr": 0.1, "momentum": 0.9}),
]


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(3))).to(DEVICE, dtype)


def groups_of(model):
    first, *others = model.parameters()
    return [{"params": [first], "lr": 0.02}, {"params": others}]


def beside(optimizer_class, dtype, settings):
    """An offloaded optimizer of a model, and one of copies of its parameters on the CPU."""
    model, host = model_of(dtype), model_of(dtype).cpu()
    return (
        model,
        steprule.Offloaded(groups_of(model), optimizer_class, **settings),
        host,
        optimizer_class(groups_of(host), **settings),
    )


def backward(model, host, number, meanwhile=lambda params: None):
    """The same gradients for both, by a backward pass of the model."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(number)).to(next(model.parameters()))
    model(x).float().square().sum().backward()
    for param, other in zip(model.parameters(), host.parameters(), strict=True):
        other.grad = param.grad.to("cpu", copy=True)
    for one in (model, host):
        meanwhile(list(one.parameters()))


def equal(model, host):
    return all(torch.equal(p.cpu(), q) for p, q in zip(model.parameters(), host.parameters(), strict=True))


@pytest.mark.parametrize(("optimizer_class", "dtype", "settings"), CASES, ids=str)
def test_weights_are_those_of_the_cpu(optimizer_class, dtype, settings):
    model, ours, host, theirs = beside(optimizer_class, dtype, settings)
    scheduler, other = (torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in (ours, theirs))
    for number in range(5):
        ours.zero_grad()
        backward(model, host, number)
        for one in (ours, theirs, scheduler, other):
            one.step()
        assert equal(model, host)
    assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]
    kept = ours.state_dict()["state"]
    assert kept.keys() == theirs.state_dict()["state"].keys()
    assert all(x.device.type == "cpu" for state in kept.values() for x in state.values() if torch.is_tensor(x))


def change_gradients(params):
    torch.nn.utils.clip_grad_norm_(params, 0.1)


def add_to_a_gradient(params):
    params[1].grad.add_(1.0)


def drop_a_gradient(params):
    params[1].grad = None


def give_another_gradient(params):
    params[0].grad = torch.ones_like(params[0])


def change_weights(params):
    with torch.no_grad():
        params[0].mul_(0.5)


@pytest.mark.parametrize(
    "meanwhile", [change_gradients, add_to_a_gradient, drop_a_gradient, give_another_gradient, change_weights]
)
def test_what_changes_after_backward_is_copied_anew(meanwhile):
    model, ours, host, theirs = beside(*CASES[0])
    for number in range(3):
        ours.zero_grad()
        backward(model, host, number, meanwhile if number == 1 else lambda params: None)
        ours.step()
        theirs.step()
        assert equal(model, host)


def test_gradients_add_up_over_backward_passes_and_a_scaler_unscales_them():
    model, ours, host, theirs = beside(*CASES[0])
    scaler, other = torch.amp.GradScaler(DEVICE, init_scale=64.0), torch.amp.GradScaler("cpu", init_scale=64.0)
    for number in range(3):
        for one, optimizer, by in ((model, ours, scaler), (host, theirs, other)):
            optimizer.zero_grad()
            for part in range(2):
                x = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * number + part)).to(
                    next(one.parameters())
                )
                by.scale(one(x).square().sum()).backward()
            by.unscale_(optimizer)
            by.step(optimizer)
            by.update()
    for param, other_param in zip(model.parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(param.cpu(), other_param)


def test_weights_that_are_changed_by_way_of_data_are_taken_when_asked_for():
    model, ours, host, theirs = beside(*CASES[0])
    for one in (model, host):
        next(one.parameters()).data = torch.full_like(next(one.parameters()), 0.25)
    ours.take_weights()
    backward(model, host, 0)
    ours.step()
    theirs.step()
    assert equal(model, host)
    with torch.no_grad():
        ours.inner.param_groups[0]["params"][0].fill_(3.0)
    ours.give_weights()
    assert (next(model.parameters()) == 3.0).all()


def test_checkpoints_are_those_of_the_optimizer_itself():
    model, ours, host, theirs = beside(*CASES[1])
    backward(model, host, 0)
    ours.step()
    theirs.step()
    saved = copy.deepcopy(ours.state_dict())
    again = steprule.Offloaded(groups_of(model), steprule.AdamW, **{**CASES[1][2], "lr": 1.0})
    again.load_state_dict(saved)
    assert [group["lr"] for group in again.param_groups] == [0.02, 0.01]
    theirs.load_state_dict(saved)
    backward(model, host, 1)
    again.step()
    theirs.step()
    assert equal(model, host)


def test_a_group_more():
    model, host = model_of(), model_of().cpu()
    both = []
    for one, make in ((model, lambda p, **s: steprule.Offloaded(p, steprule.AdamW, **s)), (host, steprule.AdamW)):
        first, *others = one.parameters()
        optimizer = make([first], lr=0.01)
        optimizer.add_param_group({"params": others, "lr": 0.1})
        both.append(optimizer)
    assert both[0].param_groups[1]["betas"] == (0.9, 0.999)
    backward(model, host, 0)
    for one in both:
        one.step()
    assert equal(model, host)


def test_gradients_and_optimizers_are_not_kept():
    model, ours, host, _ = beside(*CASES[0])
    backward(model, host, 0)
    ours.step()
    grad = weakref.ref(next(model.parameters()).grad)
    model.zero_grad()
    assert grad() is None
    kept = weakref.ref(ours)
    del ours
    gc.collect()
    assert kept() is None
    backward(model, host, 1)  # whose hooks have nothing to do


def test_what_is_refused():
    model = model_of()
    with pytest.raises(TypeError, match=r"takes a class of optimizers such as steprule.AdamW, not 'adamw'"):
        steprule.Offloaded(model.parameters(), "adamw")
    with pytest.raises(ValueError, match="Invalid learning rate"):
        steprule.Offloaded(model.parameters(), steprule.AdamW, lr=-1.0)
    optimizer = steprule.Offloaded(model.parameters(), steprule.AdamW)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(optimizer)
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][1:]
    with pytest.raises(RuntimeError, match="group 0 has other parameters than Offloaded"):
        optimizer.step()


@pytest.mark.gpu
def test_the_gpu_has_nothing_but_weights_and_gradients():
    params = [torch.nn.Parameter(torch.randn(1024, 1024, device="cuda")) for _ in range(4)]
    before = torch.cuda.memory_allocated()
    optimizer = steprule.Offloaded(params, steprule.AdamW)
    for _ in range(3):
        sum(param.square().sum() for param in params).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 1024 * 1024
    assert all(x.is_pinned() for group in optimizer.inner.param_groups for x in group["params"])
