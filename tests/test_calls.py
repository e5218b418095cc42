"""What a step costs in Python: functions of steprule that a step calls whose plan still holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import steprule
from steprule.tensors.places import _functions

SRC = f"{Path(steprule.__file__).parent}/"


def called(function):
    """The names of steprule's functions that it calls. Comprehensions are left out: from Python 3.12 on they are no calls."""
    names = []

    def note(frame, event, arg):
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(SRC)
            and code.co_name not in ("<listcomp>", "<dictcomp>", "<setcomp>")
        ):
            names.append(code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return names


@pytest.mark.parametrize("options, calls", [({}, 3), ({"clip": 1.0}, 24)], ids=["plain", "clip"])
def test_the_second_step_calls_few_functions(options, calls):
    """Where a step calls fewer than here, lower the number. With the comprehension, the plain step's 3 calls are 4."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    optimizer = steprule.AdamW(model.parameters(), lr=1e-3, **options)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    names = called(optimizer.step)
    assert "step" in names and len(names) <= calls + (_functions() is None), names
    assert called(optimizer.step) == names
