"""Runs a rule's formula in each engine on the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from interpreter import hasten

from steprule.engine import cpu, gpu
from steprule.engine.eager import EagerStep
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.own import Planned
from steprule.engine.plan import Plan
from steprule.engine.run import find_numbers
from steprule.rule import Rule
from steprule.trace.tracing import nonnegative_states

Operands = dict[str, torch.Tensor]


def random_operands(
    rule: type[Rule], hyper: Mapping[str, Any], size: int, dtype: torch.dtype, seed: int, is_first: bool = False
) -> Operands:
    """Operands as after some steps: what cannot be negative is not, magnitudes span several decades.

    Scalar states are 0-dim tensors.

    Args:
        rule, hyper: which operands there are.
        size, dtype: of those that are tensors.
        seed: another one gives others.
        is_first: whether states are what they begin at.
    """
    generator = torch.Generator().manual_seed(seed)
    operands = {}
    for name in ("param", "grad", *filter(None, rule.states_for(hyper))):
        first = rule.begins_at(name, operands.get("param"), hyper) if name in rule.states else 0.0
        spread = torch.randn(size, generator=generator, dtype=torch.float64)
        value = torch.randn(size, generator=generator, dtype=torch.float64) * 10**spread
        if "sq" in name or "square" in name:
            value = value**2
        elif name in nonnegative_states(rule, hyper):
            value = value.abs()
        if name in rule.scalar_states:
            share = float(torch.rand((), generator=generator, dtype=torch.float64))
            value = torch.tensor(first if is_first else (first or 1.0) * (0.2 + 0.7 * share), dtype=torch.float64)
        elif is_first and name in rule.states:
            value = value * 0 + first
        kept = dtype
        if name in rule.scalar_states:
            kept = torch.float32 if rule.states[name].dtype == "step" else torch.float64
        operands[name] = value.clamp(-torch.finfo(kept).max, torch.finfo(kept).max).to(kept)
    if "grad_avg" in operands:  # a mean square is at least the square of the mean
        operands["square_avg"] = (operands["square_avg"].double() + operands["grad_avg"].double() ** 2).to(dtype)
    return operands


def run_cpu(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False, threads: int = 1
) -> Operands:
    """One step by the compiled kernel, on copies."""
    fresh = {name: value.clone() for name, value in operands.items()}
    kernel = cpu.Kernel.compiled(rule, hyper, maximize, dtypes_of(rule, fresh))
    step_cpu(kernel, make_plan(kernel, [fresh], hyper, step), [fresh], threads)
    return fresh


def dtypes_of(rule: type[Rule], operands: Operands) -> list[str]:
    """What a kernel for these operands is asked for."""
    return [str(x.dtype).removeprefix("torch.") for name, x in operands.items() if name not in rule.scalar_states]


def step_cpu(kernel: cpu.Kernel, plan: Plan, tensors: Sequence[Mapping[Any, torch.Tensor]], threads: int = 1) -> None:
    """One step of a plan's tensors, of which each has its scalar states by name."""
    if kernel.program.own:
        states = {name: [one[name].numpy() for one in tensors] for name in kernel.program.numbers}
        find_numbers([Planned(kernel, plan, states, lambda: threads)])
    kernel.launcher(plan, lambda: threads)()


def make_plan(kernel: cpu.Kernel, tensors: Sequence[Operands], hyper: Mapping[str, Any], step: int) -> Plan:
    return kernel.plan(
        addresses_of(kernel, tensors),
        sizes=[row["param"].numel() for row in tensors],
        hyper=[kernel.numbers(hyper)],
        first_steps=[step - 1.0] * len(tensors),
    )


def addresses_of(kernel: Any, tensors: Sequence[Operands]) -> dict[tuple[str, str], list[int]]:
    return {(name, suffix): [row[name + suffix].data_ptr() for row in tensors] for name, suffix in kernel.source.arrays}


def run_eager(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False
) -> Operands:
    """One step by the eager fallback, on copies."""
    fresh = {name: value.clone() for name, value in operands.items()}
    states = [name and fresh[name] for name in rule.states_for(hyper)]
    part = EagerStep(rule, fresh["param"], fresh["grad"], states, step, hyper, maximize)
    if part.depth:
        find_numbers([part])
    part.write()
    return fresh


def as_float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


GPU_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the GPU engine's kernels are run; on the CPU it is Triton's interpreter that runs them."""
if GPU_DEVICE.type == "cpu" and gpu.is_available():
    hasten()


def run_gpu(
    rule: type[Rule], hyper: Mapping[str, Any], operands: Operands, step: int, maximize: bool = False
) -> Operands:
    """One step by the GPU engine's kernel, on copies."""
    fresh = {name: value.to(GPU_DEVICE, copy=True) for name, value in operands.items()}
    kernel = gpu.Kernel.compiled(rule, hyper, maximize, dtypes_of(rule, fresh))
    step_gpu(kernel, make_gpu_plan(kernel, [fresh], hyper, step), [fresh])
    return {name: value.cpu() for name, value in fresh.items()}


def step_gpu(kernel: gpu.Kernel, plan: GpuPlan, tensors: Sequence[Mapping[Any, torch.Tensor]]) -> None:
    """One step of a plan's tensors, of which each has its scalar states by name."""
    if kernel.program.own:
        from steprule.engine.gpu_own import GpuPlanned

        states = {name: [one[name] for one in tensors] for name in kernel.program.numbers}
        find_numbers([GpuPlanned(kernel, plan, states)])
    kernel.launcher(plan)()


def make_gpu_plan(
    kernel: gpu.Kernel, tensors: Sequence[Operands], hyper: Mapping[str, Any], step: int, **options: Any
) -> GpuPlan:
    return kernel.plan(
        addresses_of(kernel, tensors),
        GPU_DEVICE,
        sizes=[row["param"].numel() for row in tensors],
        hyper=[kernel.numbers(hyper)],
        first_steps=[step - 1.0] * len(tensors),
        **options,
    )
