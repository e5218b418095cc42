"""Steps as functions of lists, whose states the caller owns: to the bits of the optimizer's."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest
import torch
from torch import nn
from torch.optim.adamw import adamw as torchs_adamw

import steprule
from steprule import functional
from steprule.rules import OWN

MATRICES = [(6, 5), (4, 8)]


def states_of(rule, settings, number):
    """A list for each state, of None where it is kept."""
    kept = rule.states_for(settings)
    lists = [[None] * number if name in kept else [] for name in rule.states]
    return [*lists, *([[None] * number] if rule.keeps_step else [])]


def equal(state, other):
    return torch.equal(torch.as_tensor(state), torch.as_tensor(other))


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_rule_steps_as_its_optimizer_does(name):
    rule, torch_seed = OWN[name], torch.Generator().manual_seed(0)
    mine = [torch.randn(shape, generator=torch_seed) for shape in MATRICES]
    its = [nn.Parameter(x.clone()) for x in mine]
    optimizer = getattr(steprule, rule.__name__)(its)
    settings = {one: optimizer.param_groups[0][one] for one in rule.hyperparameters}
    lists = states_of(rule, settings, 2)
    for step in range(4):
        grads = [torch.randn(shape, generator=torch_seed) for shape in MATRICES]
        grads = [grad.to_sparse() if rule.sparse_only else grad for grad in grads]
        if step == 2:
            grads[1] = None
            settings["weight_decay" if "weight_decay" in settings else "lr"] = 0.01
        optimizer.param_groups[0].update(settings)
        for param, grad in zip(its, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
        getattr(functional, name)(mine, grads, *lists, **settings)
        for a, b in zip(mine, its, strict=True):
            assert torch.equal(a, b)
    names = [*rule.states, *(["step"] if rule.keeps_step else [])]
    for state, values in zip(names, lists, strict=True):
        for value, param in zip(values, its, strict=False):
            assert equal(value, optimizer.state[param][state]), state


def given(number=2, requires_grad=False):
    params = [torch.full((3,), 1.0 + k, requires_grad=requires_grad) for k in range(number)]
    states = [[torch.zeros(3) for _ in params] for _ in "12"]
    return params, states, [torch.tensor(0.0) for _ in params]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_it_is_called_as_torchs(amsgrad):
    sides = [(*given(requires_grad=True), [torch.zeros(3) for _ in "12"] if amsgrad else []) for _ in "12"]
    for step in range(3):
        grads = [torch.full((3,), 0.5 - step), torch.full((3,), 0.1 * step)]
        for function, (params, (avgs, sqs), steps, most) in zip((functional.adamw, torchs_adamw), sides, strict=True):
            both = {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.1, "amsgrad": amsgrad, "maximize": False}
            betas = {"betas": (0.9, 0.99)} if function is functional.adamw else {"beta1": 0.9, "beta2": 0.99}
            with torch.no_grad():
                function(params, grads, avgs, sqs, most, steps, **both, **betas)
        for mine, its in zip(sides[0], sides[1], strict=True):
            torch.testing.assert_close(mine, its)
    assert all(param.grad is None for param in sides[0][0]) and sides[0][2][0].item() == 3


def test_states_are_those_of_the_caller():
    """Given back later, moved, or begun anew: what is in the lists counts, and nothing else."""
    (param,), ((avg,), (sq,)), (step,) = given(1)
    saved = [x.clone() for x in (param, avg, sq, step)]
    grads, results = [torch.tensor([1.0, -2.0, 3.0])], []
    for way in ("first", "the same tensors", "other tensors", "other memory", "None"):
        if way == "other tensors":
            avg, sq, step = (x.clone() for x in saved[1:])
        elif way == "None":
            avg = sq = step = None
        else:
            for mine, old in zip((avg, sq, step), saved[1:], strict=True):
                mine.copy_(old)
        if way == "other memory":
            param.data = saved[0].clone()
        param.copy_(saved[0])
        lists = [avg], [sq], [], [step]
        for _ in "12":
            functional.adamw([param], grads, *lists, lr=0.1)
        results.append([param.clone(), lists[0][0].clone(), lists[3][0].clone()])
    assert all(torch.equal(a, b) for one in results[1:] for a, b in zip(one, results[0], strict=True))
    assert results[0][2].item() == 2


def test_a_parameter_without_gradients_waits():
    params, grads = [torch.ones(3), torch.ones(3)], [torch.ones(3), None]
    lists = [None, None], [None, None], [], [None, None]
    functional.adamw(params, grads, *lists)
    steps = dict(functional._KNOWN)
    functional.adamw(params, grads, *lists)
    assert lists[0][1] is None and lists[3][0].item() == 2 and torch.equal(params[1], torch.ones(3))
    assert all(functional._KNOWN[key] is one for key, one in steps.items())  # no plan was made anew


def test_nothing_keeps_tensors_alive():
    before = len(functional._KNOWN)
    params, grads = [torch.ones(3)], [torch.ones(3)]
    functional.sgd(params, grads, [], lr=0.1)
    assert len(functional._KNOWN) == before + 1
    grad = weakref.ref(grads.pop())
    gc.collect()
    assert grad() is None
    del params
    gc.collect()
    assert len(functional._KNOWN) == before


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        ({"grads": [torch.ones(3)]}, {}, ValueError, "grads has 1 elements and must have 2"),
        ({"grads": [torch.ones(3), torch.ones(4)]}, {}, ValueError, r"grads\[1\] is of \(4,\)"),
        ({"params": []}, {}, ValueError, "params is empty"),
        ({"params": torch.ones(3)}, {}, TypeError, "params must be a list of tensors, not Tensor"),
        ({"exp_avgs": (None, None)}, {}, TypeError, "exp_avgs must be a list"),
        ({"exp_avgs": [None, torch.ones(3)]}, {}, ValueError, "exp_avgs has None at 0, and other states have tensors"),
        ({"exp_avgs": [torch.ones(4), torch.ones(3)]}, {}, RuntimeError, "exp_avg"),
        ({"max_exp_avg_sqs": [None, None]}, {}, ValueError, "max_exp_avg_sqs has 2 elements and must have 0: adamw has no"),
        ({}, {"amsgrad": True}, ValueError, "max_exp_avg_sqs has 0 elements and must have 2"),
        ({}, {"lr": -1.0}, ValueError, "learning rate: -1.0"),
        ({}, {"lr": lambda step: 0.1}, TypeError, "must be a value"),
        ({}, {"clip": 1.0}, TypeError, "unexpected keyword argument 'clip'"),
        ({"state_steps": [1, 1]}, {}, TypeError, r"state_steps\[0\]=1 must be a tensor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(change, settings, error, words):
    params, states, steps = given()
    all_of_it = {"params": params, "grads": [torch.ones(3)] * 2, "exp_avgs": states[0], "exp_avg_sqs": states[1]}
    lists = {**all_of_it, "max_exp_avg_sqs": [], "state_steps": steps, **change}
    before = [param.clone() for param in params]
    for _ in "12":
        with pytest.raises(error, match=words):
            functional.adamw(**lists, **settings)
    assert all(map(torch.equal, params, before)) and steps[0].item() == 0


def test_names_and_signatures():
    assert "adamw" in dir(functional) and functional.adamw.__name__ == "adamw"
    assert list(inspect.signature(functional.rprop).parameters)[:4] == ["params", "grads", "prevs", "step_size_list"]
    assert "Takes one step of Lion" in functional.lion.__doc__
    with pytest.raises(AttributeError, match="did you mean 'adamw'"):
        _ = functional.adamww
