"""Numbers of rows and columns on the GPU engine: on a GPU, or interpreted where there is none."""

from __future__ import annotations

import pytest
import test_matrix_engine as host
import torch
from engines import GPU_DEVICE

from steprule.engine import gpu

pytest.importorskip("triton")

SHAPES = [(5, 7), (1, 9), (9, 1), (66, 144), (5, 70), (6, 16), (4, 3, 2, 2)]
"""Of which some have whole tiles, tiles that end within rows or columns, and rows that memory is not aligned for."""


@pytest.mark.parametrize("rule", host.RULES)
def test_passes_compute_what_the_formula_says(monkeypatch, rule):
    monkeypatch.setattr(host, "SHAPES", SHAPES)
    monkeypatch.setattr(gpu, "DEVICES", {GPU_DEVICE.type})
    case, generator = host.make(rule, torch.float64)
    for number, chosen in enumerate((range(7), range(7), range(2, 7)), 1):
        case.step(number, chosen, generator)
    plan = case.optimizer._core.plans.current
    assert plan is not None and plan.repeats, "no kernel steps it"
    host.check(case, 1e-9)
