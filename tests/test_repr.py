"""What an optimizer prints of itself."""

from __future__ import annotations

import copy

import pytest
import torch

import steprule
from steprule.services import Telemetry


def parameter(dtype=torch.float32):
    return torch.nn.Parameter(torch.ones(3, dtype=dtype))


def warmup(step):
    return step / 10


def whole(optimizer):
    """The lines that hold for all groups."""
    return [line.strip() for line in repr(optimizer).partition("All groups")[2].splitlines()[1:-1]]


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({"clip": 1.0}, ["clip: ClipNorm(max_norm=1.0, norm_type=2.0, per_parameter=False)"]),
        ({"nonfinite": "skip"}, ["nonfinite: 'skip'"]),
        ({"average": 0.9}, ["average: Average(decay=0.9, warmup=False, bias_correction=False)"]),
        ({"telemetry": Telemetry(2)}, ["telemetry: Telemetry(every=2, keep=1000)"]),
        ({"decay": "independent", "cautious": True}, ["decay: 'independent'", "cautious: True"]),
        ({"clip": 2.0, "nonfinite": "zero"}, ["clip: ClipNorm(max_norm=2.0, norm_type=2.0, per_parameter=False)", "nonfinite: 'zero'"]),
        ({}, []),
    ],
    ids=["clip", "nonfinite", "average", "telemetry", "options", "two services", "nothing"],
)  # fmt: skip
def test_what_was_asked_for_is_shown(settings, lines):
    assert whole(steprule.AdamW([parameter()], **settings)) == lines


def test_sums_of_gradients_are_shown():
    assert whole(steprule.SGD([parameter(torch.bfloat16)], grads="32bit")) == ["grads: '32bit'"]


def test_a_function_is_shown_beside_its_value():
    optimizer = steprule.AdamW([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}], lr=warmup)
    first, second = repr(optimizer).split("Parameter Group 1")
    assert "    lr: 0.1, from warmup(step)\n" in first and "    lr: 0.5\n" in second
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones(3)
    optimizer.step()
    assert "    lr: 0.2, from warmup(step)\n" in repr(optimizer)


def test_lookahead_is_a_setting_of_groups():
    assert "    lookahead: 5\n" in repr(steprule.AdamW([parameter()], lookahead=5))


def test_notes_for_checkpoints_are_not_shown():
    optimizer = steprule.AdamW([parameter()], clip=1.0, lr=warmup)
    before = repr(optimizer)
    optimizer.state_dict()
    assert repr(optimizer) == before == repr(copy.deepcopy(optimizer))
