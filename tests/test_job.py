"""A step without an optimizer: a `Job` says all that it needs to know."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import nn

import steprule
from steprule import rules
from steprule.engine.run import alone
from steprule.step.job import Job
from steprule.step.plans import Plans

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
LAYOUTS = {"compiled": lambda x: x, "eager": lambda x: x.repeat_interleave(2, -1)[:, ::2]}


class Asked:
    """Those whom a step asks."""

    def __init__(self):
        self.numbers = []

    def check(self, groups, names):
        self.numbers.append(set(names))
        return True

    def move(self, stepped, weight):
        raise AssertionError("there is no average")


def job_of(params, asked):
    groups = [{"params": params, **SETTINGS}]
    rule = rules.AdamW
    return Job("Mine", rule, rule, (), groups, defaultdict(dict), None, None, asked.check, alone, asked.move)


def pair(layout):
    torch.manual_seed(0)
    values = [torch.randn(4, 3), torch.randn(2, 5)]
    return [[nn.Parameter(LAYOUTS[layout](x.clone())) for x in values] for _ in range(2)]


def set_grads(*both):
    for params in zip(*both, strict=True):
        grad = torch.randn(params[0].shape)
        for param in params:
            param.grad = torch.empty_like(param).copy_(grad)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_job_steps_as_the_optimizer_does(layout):
    mine, its = pair(layout)
    asked, plans = Asked(), Plans()
    job, optimizer = job_of(mine, asked), steprule.AdamW(its, **SETTINGS)
    for step in range(3):
        set_grads(mine, its)
        for groups in (job.groups, optimizer.param_groups):
            groups[0]["lr"] = 0.1 / (step + 1)
        if plans.current is None or not plans.current.run(job.groups, job.states):
            plans.renew(job)
        optimizer.step()
    for one, other in zip(mine, its, strict=True):
        assert torch.equal(one, other)
        for name, state in optimizer.state[other].items():
            assert torch.equal(job.states[one][name], state)
    assert (plans.current is not None) == (layout == "compiled")
    assert asked.numbers == [{"lr"}] * 2 * (layout == "compiled")


@torch.no_grad()
def test_a_job_may_step_one_parameter_after_the_other():
    mine, its = pair("compiled")
    plans, job = Plans(), job_of(mine, Asked())
    optimizer = steprule.AdamW(its, **SETTINGS)
    plans.list_single(job.groups)
    assert plans.knows(job.groups)
    for _ in range(2):
        set_grads(mine, its)
        for param in mine:
            if param not in plans.single or not plans.single[param].run(job.groups, job.states):
                plans.renew_single(job, param)
        optimizer.step()
    assert all(map(torch.equal, mine, its)) and set(plans.single) == set(mine)
    job.groups[0]["params"] = mine[:1]
    plans.let_go(job.groups, job.states)
    assert set(plans.single) == {mine[0]} and not plans.knows(job.groups)


@torch.no_grad()
def test_messages_have_the_name_that_the_job_gives():
    (param, _), _ = pair("compiled")
    param.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 3), (4, 3), check_invariants=False)
    with pytest.raises(RuntimeError, match="Mine does not support sparse gradients"):
        Plans().renew(job_of([param], Asked()))
