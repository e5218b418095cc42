"""Passes of the CPU engine without a compiler: NumPy computes what their text says, so that thousands of formulas take no minutes."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from steprule.engine import cpu
from steprule.engine.plan import FULL, Plan
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import scalar_name
from steprule.trace.program import ADD, COL, LARGEST, ROW


@contextmanager
def interpreted():
    """Has kernels that are made within compute by NumPy; they take float64, and no services."""

    def make(self, stage, source, path, module):
        self.stage, self.source, self.path, self.module = stage, source, path, module

    def count(_, plan):
        for tensor, (at, is_double) in enumerate(zip(plan._step_at.tolist(), plan._step_kind, strict=True)):
            kept = (ctypes.c_double if is_double else ctypes.c_float).from_address(at)
            kept.value += 1
            plan.steps[tensor] = kept.value
        plan.counter[FULL] = 0

    def worker(self, plan, threads):
        return lambda: [run(self, plan, tensor) for tensor in np.arange(len(plan.sizes))[plan.active]]

    def launcher(self, plan, threads):
        work = worker(self, plan, threads)
        return work if self.stage.own else lambda: (count(self, plan), work())

    given = {"__init__": make, "load": staticmethod(lambda name, text, what: (Path(), None)), "count": count}
    with patch.multiple(cpu.Kernel, **given, worker=worker, launcher=launcher):
        yield


def run(kernel: cpu.Kernel, plan: Plan, tensor: int) -> None:
    """One pass over one tensor."""
    stage = kernel.stage
    size = int(plan.sizes[tensor])
    if not size:  # as where other processes have all of it
        return
    cols = int(plan._cut.rows[tensor]) if stage.sides else size
    shapes = {ROW: (size // max(cols, 1), 1), COL: (1, cols)}
    at = dict(zip((name for name, _ in kernel.source.arrays), plan.addresses[:, tensor].tolist(), strict=True))
    arrays = {name: np.ctypeslib.as_array((ctypes.c_double * size).from_address(at[name])) for name in stage.operands}
    arrays = {name: x.reshape(-1, max(cols, 1)) for name, x in arrays.items()}
    sides = {
        name: np.ctypeslib.as_array((ctypes.c_double * max(shapes[one.axis])).from_address(at[name]))
        for name, one in stage.sides.items()
    }
    read = {name: sides[name].reshape(shapes[one.axis]) for name, one in stage.sides.items() if not one.how}
    numbers = plan.hyper[plan.groups[tensor]].tolist()
    inputs = {scalar_name(*scalar): x for scalar, x in zip(stage.scalars, numbers, strict=False)}
    inputs |= {**arrays, **read, "step": float(plan.steps[tensor])}
    inputs |= dict(zip(stage.own, plan.own[tensor].tolist(), strict=True))
    value = Evaluation(inputs)
    with np.errstate(all="ignore"):
        new = {name: np.broadcast_to(value(one), arrays["param"].shape).copy() for name, one in stage.outputs.items()}
        tallies = {f"total_{name}": np.sum(np.square(new[name])) for name in stage.measured}
        for name, one in stage.sums.items():
            x = np.broadcast_to(value(one.expression), arrays["param"].shape)
            if one.axis in (ROW, COL):
                join = {ADD: np.sum, LARGEST: np.max}[one.how]
                sides[name][:] = join(x, axis=1 if one.axis == ROW else 0)
            else:
                tallies[f"total_{name}"] = np.sum(x)
    for name, x in new.items():
        arrays[name][:] = x
    places = np.flatnonzero(plan.piece_tensors == tensor)
    assert len(places) <= 1, "for tensors of one piece"
    for column, name in enumerate(kernel.source.tallies):
        plan.left(len(kernel.source.tallies))[places, column] = tallies[name]
