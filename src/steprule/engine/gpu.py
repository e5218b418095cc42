"""The GPU engine: a rule compiled by Triton to one launch over all tensors.

Before it a small one counts the steps and computes what no element changes. Both take all that they need from tables on
the device, so that nothing waits for it and a CUDA graph can record them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steprule.engine.cpu import cache_folder, logger, temporary_folder
from steprule.engine.gpu_plan import GpuPlan, Number, on
from steprule.kernels.gpu_pass import GpuSource, write_pass
from steprule.kernels.source import title_of
from steprule.rule import Rule
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.program import Program, Stage, hyper_of
from steprule.trace.tracing import static_settings, trace

DEVICES = {"cuda"}
"""The types of device that it serves."""
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""How kernels are compiled: products and sums are fused where the formula's text says so, as on the CPU."""
if torch.version.hip is None:
    OPTIONS["maxnreg"] = 168  # ptxas would rather keep some numbers in memory than use more than 128
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


class Kernel:
    """A compiled formula.

    Attributes:
        stage: what it computes.
        program: all that a step computes, if this is the kernel of its last pass.
        source: its text; source.arrays is the order of a plan's addresses.
        path: the file it was made from.
        readings: kernels that go before it, for sums over elements.
    """

    program: Program
    readings: tuple[Kernel, ...] = ()

    def __init__(self, stage: Stage, source: GpuSource, path: Path, module: Any) -> None:
        self.stage = stage
        self.source = source
        self.path = path
        self.prepare, self.update = module.prepare, module.update

    def numbers(self, hyper: Mapping[str, Any]) -> list[Number]:
        """A plan's row for these hyperparameters, among them ``seed`` if roundings are random.

        Tensors on a device are left there.
        """
        values = [*hyper_of(self.stage, hyper)] + [hyper.get("seed", 0)] * self.source.random
        return [x if isinstance(x, Tensor) and x.device.type in DEVICES else float(x) for x in values]

    def launcher(self, plan: GpuPlan) -> Callable[[], None]:
        """What takes every tensor of the plan one step further; returns before that is done.

        Where tensors have numbers for themselves, `steprule.engine.gpu_own` counts steps and sees to these.

        Args:
            plan: its addresses must be valid whenever the launcher is called, and till the device is through.
        """
        prepare = self.prepare[(-(-plan.count // TENSORS_AT_ONCE),)]
        update = self.update[(plan.chunk_count,)]

        def launch() -> None:
            if not self.stage.own:
                plan.read_hyper()
            with on(plan.device):
                prepare(
                    plan.step_at, plan.steps, plan.own, plan.groups, plan.numbers, plan.hyper, plan.scalars, plan.bits,
                    plan.skip, plan.count, SIZE=TENSORS_AT_ONCE, **OPTIONS,
                )  # fmt: skip
                if plan.chunk_count:
                    update(
                        plan.addresses, plan.sizes, plan.chunks, plan.scalars, plan.bits, plan.factors, plan.partials,
                        plan.skip, plan.count, **OPTIONS,
                    )  # fmt: skip

        return launch


_kernels: dict[Any, Kernel] = {}


def compiled(
    rule: type[Rule],
    hyper: Mapping[str, Any],
    maximize: bool,
    formats: Sequence[str],
    services: Services = NO_SERVICES,
) -> Kernel:
    """The kernel for a rule, made when first asked for; arguments and errors as for `steprule.engine.cpu.compiled`."""
    key = (rule, static_settings(rule, hyper), maximize, tuple(formats), services)
    if key not in _kernels:
        _kernels[key] = _compile(rule, trace(rule, hyper, maximize, services), tuple(formats))
    return _kernels[key]


def _compile(rule: type[Rule], program: Program, formats: tuple[str, ...]) -> Kernel:
    kernel = _kernel(rule, program.last, formats)
    kernel.program = program
    kernel.readings = tuple(_kernel(rule, reading, formats) for reading in program.readings)
    return kernel


def _kernel(rule: type[Rule], stage: Stage, formats: tuple[str, ...]) -> Kernel:
    source = write_pass(title_of(rule), stage, formats)
    return Kernel(stage, source, *load_kernel(rule.__name__, source.text))


def load_kernel(name: str, text: str) -> tuple[Path, Any]:
    """The kernel's file and module. Triton keeps what it makes of it in a cache of its own."""
    file_name = f"{name.lower()}_gpu_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    for folder in (cache_folder(), temporary_folder()):
        if folder is None:
            continue
        path = folder / file_name
        try:
            if not (path.is_file() and path.read_text() == text):
                with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".draft", delete=False) as draft:
                    draft.write(text)
                os.replace(draft.name, path)
            return path, _import(path)
        except OSError as error:
            logger.warning("steprule: cannot use the kernel cache %s (%s)", folder, error)
    raise OSError(f"no folder can be written to keep {name} in; set STEPRULE_CACHE to one")


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"steprule_kernel_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
