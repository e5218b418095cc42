"""The GPU engine: a rule compiled by Triton to one launch over all tensors.

Before it a small one counts the steps and computes what no element changes. Both take all that they need from tables on
the device, so that nothing waits for it and a CUDA graph can record them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steprule.engine.gpu_launch import Launch, on
from steprule.engine.gpu_plan import GpuPlan, Number
from steprule.engine.kernel import Kernel as _Kernel
from steprule.kernels.cache import load_for_triton
from steprule.kernels.gpu_pass import GpuSource, write_pass
from steprule.trace.program import ROW, Stage

DEVICES = {"cuda"}
"""The types of device that it serves."""
TAKES_ROWS = os.environ.get("STEPRULE_GPU_ROWS") == "1"
"""Whether it takes rules whose rows or columns have numbers of their own. On an H200 its kernels were wrong where a row ends within
a tile. That is mended, and has not been seen right on a GPU yet."""
TENSORS_AT_ONCE = 128
"""Tensors that one program of the small launch takes."""


@cache
def is_available() -> bool:
    """Whether Triton is installed; torch's builds for GPUs bring it."""
    return importlib.util.find_spec("triton") is not None


def serves(device: torch.device) -> bool:
    """Whether tensors there are stepped by this engine."""
    return device.type in DEVICES and is_available()


def is_recording(device: torch.device) -> bool:
    """Whether a CUDA graph records what is launched there."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Kernel(_Kernel):
    """A pass compiled by Triton."""

    source: GpuSource
    write = staticmethod(write_pass)
    load = staticmethod(load_for_triton)

    def __init__(self, stage: Stage, source: GpuSource, path: Path, module: ModuleType) -> None:
        super().__init__(stage, source, path, module)
        self.prepare, self.update = module.prepare, module.update

    @staticmethod
    def number(value: Any) -> Number:
        """A hyperparameter as a plan takes it; tensors on a device are left there."""
        return value if isinstance(value, Tensor) and value.device.type in DEVICES else float(value)

    def plan(
        self,
        addresses: Mapping[tuple[str, str], Any],
        device: torch.device,
        others: Sequence[Kernel] = (),
        **tables: Any,
    ) -> GpuPlan:
        """What this kernel and its readings work through, and others with the same arrays.

        Args:
            addresses: for each array, (operand, suffix), the address of each tensor's first element.
            device: where they are.
            others: those kernels.
            tables: what else a `GpuPlan` is made of and no kernel says.
        """
        of_arrays = [addresses[array] for array in self.source.arrays]
        return GpuPlan(device, self.sources(others), of_arrays, by_row=self.stage.factor == ROW, **tables)

    def launcher(self, plan: GpuPlan) -> Callable[[], None]:
        """What takes every tensor of the plan one step further; returns before that is done.

        Where tensors have numbers for themselves, `steprule.engine.gpu_own` counts steps and sees to these.

        Args:
            plan: its addresses must be valid whenever the launcher is called, and till the device is through.
        """
        prepare = Launch(
            self.prepare, (-(-plan.count // TENSORS_AT_ONCE),),
            plan.step_at, plan.steps, plan.own, plan.groups, plan.numbers, plan.hyper, plan.scalars, plan.bits,
            plan.skip, plan.count, SIZE=TENSORS_AT_ONCE,
        )  # fmt: skip
        update = Launch(
            self.update, (plan.chunk_count,),
            plan.addresses, plan.sizes, plan.chunks, plan.scalars, plan.bits, plan.factors, plan.partials,
            plan.skip, plan.count, registers=self.source.registers,
        )  # fmt: skip

        def launch() -> None:
            if not self.stage.own:
                plan.read_hyper()
            with on(plan.device):
                prepare()
                if plan.chunk_count:
                    update()

        return launch
