"""Runs a rule's formula in each engine on the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steprule.engine import cpu, gpu
from steprule.engine.eager import step_tensors
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.plan import Plan
from steprule.rule import Rule

Operands = dict[str, torch.Tensor]


def random_operands(rule: type[Rule], hyper: Mapping[str, Any], size: int, dtype: torch.dtype, seed: int) -> Operands:
    """Operands as after some steps: averages of squares are positive, magnitudes span several decades."""
    generator = torch.Generator().manual_seed(seed)
    operands = {}
    for name in ("param", "grad", *filter(None, rule.states_for(hyper))):
        spread = torch.randn(size, generator=generator, dtype=torch.float64)
        value = torch.randn(size, generator=generator, dtype=torch.float64) * 10**spread
        if "sq" in name or "square" in name:
            value = value**2
        operands[name] = value.to(dtype)
    if "grad_avg" in operands:  # a mean square is at least the square of the mean
        operands["square_avg"] = (operands["square_avg"].double() + operands["grad_avg"].double() ** 2).to(dtype)
    return operands


def run_cpu(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False, threads: int = 1
) -> Operands:
    """One step by the compiled kernel, on copies."""
    fresh = {name: value.clone() for name, value in operands.items()}
    dtypes = [str(value.dtype).removeprefix("torch.") for value in fresh.values()]
    kernel = cpu.compiled(rule, hyper, maximize, dtypes)
    plan = make_plan(kernel, [fresh], hyper, step)
    kernel.launcher(plan, lambda: threads)()
    return fresh


def make_plan(kernel: cpu.Kernel, tensors: Sequence[Operands], hyper: Mapping[str, Any], step: int) -> Plan:
    return Plan(
        addresses=[[row[name + suffix].data_ptr() for row in tensors] for name, suffix in kernel.source.arrays],
        sizes=[row["param"].numel() for row in tensors],
        groups=[0] * len(tensors),
        hyper=[kernel.numbers(hyper)],
        step_at=None,
        step_is_double=[],
        first_steps=[step - 1.0] * len(tensors),
    )


def run_eager(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False
) -> Operands:
    """One step by the eager engine, on copies."""
    fresh = {name: value.clone() for name, value in operands.items()}
    states = [name and fresh[name] for name in rule.states_for(hyper)]
    step_tensors(rule, fresh["param"], fresh["grad"], states, step, hyper, maximize)
    return fresh


def as_float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


GPU_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the GPU engine's kernels are run; on the CPU it is Triton's interpreter that runs them."""


def run_gpu(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False
) -> Operands:
    """One step by the GPU engine's kernel, on copies."""
    fresh = {name: value.to(GPU_DEVICE, copy=True) for name, value in operands.items()}
    dtypes = [str(value.dtype).removeprefix("torch.") for value in fresh.values()]
    kernel = gpu.compiled(rule, hyper, maximize, dtypes)
    kernel.launcher(make_gpu_plan(kernel, [fresh], hyper, step))()
    return {name: value.cpu() for name, value in fresh.items()}


def make_gpu_plan(
    kernel: gpu.Kernel, tensors: Sequence[Operands], hyper: Mapping[str, Any], step: int, **options: Any
) -> GpuPlan:
    return GpuPlan(
        GPU_DEVICE,
        kernel.source,
        addresses=[[row[name + suffix].data_ptr() for row in tensors] for name, suffix in kernel.source.arrays],
        sizes=[row["param"].numel() for row in tensors],
        groups=[0] * len(tensors),
        hyper=[kernel.numbers(hyper)],
        first_steps=[step - 1.0] * len(tensors),
        **options,
    )
