"""Errors that name the argument and the value, and say what to do instead."""

from __future__ import annotations

import re

import pytest
import torch

import steprule


def made(**settings):
    return steprule.AdamW([torch.nn.Parameter(torch.ones(3))], **settings)


CASES = {
    "gradients for step": (lambda: made().step([torch.ones(3)]), TypeError, r"not a list: it reads gradients from param.grad"),
    "gradients for a clipped step": (lambda: made(clip=1.0).step(torch.ones(3)), TypeError, "takes a closure that returns the loss, or nothing"),
    "read of no parameter": (lambda: made().read("exp_avg"), TypeError, "read\\(\\) takes one of the optimizer's parameters .* not 'exp_avg'"),
    "another word for raise": (lambda: made(nonfinite="error"), ValueError, "nonfinite value: 'error'; did you mean 'raise'"),
    "True is not near to raise": (lambda: made(nonfinite=True), ValueError, "nonfinite value: True; it can be None, 'skip'"),
    "another number of bits": (lambda: made(states="4bit"), ValueError, "states value: '4bit'; it can be None, 'float32'"),
    "8 bits of another kind": (lambda: made(states="float8"), ValueError, "states value: 'float8'; did you mean '8bit'"),
    "32 bits of weights": (lambda: made(weights="float32"), ValueError, "weights value: 'float32'; did you mean '32bit'"),
    "negative clip": (lambda: made(clip=-1), ValueError, "^clip=-1 must be above 0"),
    "clip that is no number": (lambda: made(clip=float("nan")), ValueError, "^clip=nan must be above 0"),
    "telemetry of no steps": (lambda: made(telemetry=0), ValueError, "^telemetry=0 must be an int of 1 or more .*, or None"),
    "average of all": (lambda: made(average=1.0), ValueError, r"^average=1.0 must be in \[0, 1\): the share"),
    "class in place of a rule": (lambda: steprule.Optimizer.of(steprule.AdamW), TypeError, "not AdamW: pass AdamW.rule$"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_message(case):
    function, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        function()


def test_gradients_for_step_change_nothing():
    optimizer = made()
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones(3)
    with pytest.raises(TypeError, match=re.escape("steprule.arrays have step(grads)")):
        optimizer.step([torch.ones(3)])
    assert torch.equal(param, torch.ones(3)) and not optimizer.state


def test_a_sum_over_all_parameters_is_not_released():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"Prodigy .* needs a sum over all parameters before any of them is updated"):
        steprule.Prodigy(model.parameters()).release_gradients(model)
