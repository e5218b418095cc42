"""Launches of Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

LAUNCH_OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
"""How kernels are compiled: products and sums are fused where the formula's text says so, as on the CPU."""
HAS_LIMIT = torch.version.hip is None
"""Whether the compiler can be told how many registers a thread may use."""


def on(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which launches go to the device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def options(registers: int | None = None) -> dict[str, Any]:
    """How a kernel is compiled whose threads may use so many registers."""
    return {**LAUNCH_OPTIONS, "maxnreg": min(registers, 255)} if registers is not None and HAS_LIMIT else LAUNCH_OPTIONS


class Launch:
    """A launch that always has the same arguments: after the first, Triton need not look at them again.

    Args:
        function: the kernel.
        grid: how many programs, in one or two dimensions.
        arguments: tensors and numbers.
        registers: how many a thread may use; None leaves that to the compiler.
        constants: what the kernel is compiled for, its last arguments.
    """

    def __init__(
        self, function: Any, grid: tuple[int, ...], *arguments: Any, registers: int | None = None, **constants: Any
    ) -> None:
        self._function, self._grid, self._options = function, grid, options(registers)
        self._arguments, self._constants = arguments, constants
        self._again: Callable[..., None] | None = None

    def __call__(self) -> None:
        """Launches it."""
        if self._again is not None:
            self._again(*self._arguments, *self._constants.values())
            return
        compiled = self._function[self._grid](*self._arguments, **self._constants, **self._options)
        if _takes_all(compiled):
            self._again = compiled[(*self._grid, 1, 1)[:3]]


def _takes_all(compiled: Any) -> bool:
    """Whether it is a compiled kernel, not an interpreted one, whose launch takes all arguments, as from Triton 3.3 on."""
    if compiled is None:
        return False
    import triton

    major, minor = map(int, triton.__version__.split(".")[:2])
    return (major, minor) >= (3, 3)
