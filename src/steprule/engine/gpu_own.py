"""The GPU engine's sums and scalar states: as `steprule.engine.own`, but the host never waits for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from steprule.engine.gpu import Kernel
from steprule.engine.gpu_launch import on
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.gpu_reading import Combination, GpuReading
from steprule.engine.matrices import Rooms
from steprule.engine.run import Sums
from steprule.trace.evaluate import Evaluation
from steprule.trace.expression import Expression, scalar_name
from steprule.trace.program import COUNTS, Program

_TILE = 128


@triton.jit  # type: ignore[untyped-decorator]
def fetch(kept_at, are_double, numbers, skip, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers that are kept one by one, float32 or float64, brought together."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.load(kept_at + i, mask=i < size, other=0)
    is_double = tl.load(are_double + i, mask=i < size, other=0) != 0
    narrow = tl.load(at.to(tl.pointer_type(tl.float32)), mask=(i < size) & ~is_double, other=0.0)
    wide = tl.load(at.to(tl.pointer_type(tl.float64)), mask=(i < size) & is_double, other=0.0)
    tl.store(numbers + i, tl.where(is_double, wide, narrow.to(tl.float64)), mask=i < size)


@triton.jit  # type: ignore[untyped-decorator]
def put(kept_at, are_double, numbers, skip, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Puts numbers in their place, and leaves them here as they are kept there; nothing where the step is skipped."""
    if tl.load(skip) == 0:
        i = tl.program_id(0) * TILE + tl.arange(0, TILE)
        at = tl.load(kept_at + i, mask=i < size, other=0)
        is_double = tl.load(are_double + i, mask=i < size, other=0) != 0
        wide = tl.load(numbers + i, mask=i < size, other=0.0)
        narrow = wide.to(tl.float32)
        tl.store(at.to(tl.pointer_type(tl.float32)), narrow, mask=(i < size) & ~is_double)
        tl.store(at.to(tl.pointer_type(tl.float64)), wide, mask=(i < size) & is_double)
        tl.store(numbers + i, tl.where(is_double, wide, narrow.to(tl.float64)), mask=i < size)


class GpuPlanned:
    """As `steprule.engine.own.Planned`, of a plan on a GPU.

    Args:
        kernel: their kernel.
        plan: their plan, whose tables `steps` and `own` this fills.
        states: for each scalar state that of each tensor: one number, float32 or float64, on the plan's device.
        sizes: how many elements each tensor has, or the one that it is a part of. Default: as the plan has it.
        shapes: what each tensor is as a matrix, where the formula asks for rows or columns.
        rooms: the matrices, where it has functions of them.
    """

    def __init__(
        self,
        kernel: Kernel,
        plan: GpuPlan,
        states: Mapping[str, Sequence[Tensor]],
        sizes: Sequence[int] | None = None,
        shapes: Sequence[Sequence[int]] = (),
        rooms: Rooms | None = None,
    ) -> None:
        self.program: Program = kernel.program
        self.depth = len(self.program.levels)
        self._plan = plan
        device, own = plan.device, self.program.own
        self._readings = [
            GpuReading(one.launcher(plan), Combination(plan.first_chunk, one.source.tallies, plan.partials))
            for one in kernel.readings
        ]
        self._rows = dict(zip(own, plan.own, strict=True))
        counts = {"numel": plan.lengths if sizes is None else sizes}
        counts |= {"rows": [shape[-2] for shape in shapes], "cols": [shape[-1] for shape in shapes]}
        for name in self._rows.keys() & set(COUNTS):
            self._rows[name].copy_(torch.tensor(counts[name], device=device))
        self._rooms = rooms
        self._squares: Sums = {}
        self._settings = self.program.settings
        self._names = [name for name in own if name in self.program.numbers]
        kept = [states[name] for name in self._names]
        self._kept_at = torch.tensor([[x.data_ptr() for x in row] for row in kept], dtype=torch.int64, device=device)
        self._are_double = torch.tensor([[x.dtype == torch.float64 for x in row] for row in kept], device=device).int()
        self._steps_are_double = torch.ones(plan.count, dtype=torch.int32, device=device)
        self._constants: dict[str, Tensor] = {}

    def count(self) -> None:
        """Counts their steps, and forgets what held for the last."""
        plan, program, names = self._plan, self.program, self._names
        plan.read_hyper()
        self._bring(fetch, plan.step_at, self._steps_are_double, plan.steps)
        plan.steps += 1
        self._bring(put, plan.step_at, self._steps_are_double, plan.steps)
        if names:
            first = program.own.index(names[0])  # the others follow it
            self._bring(fetch, self._kept_at, self._are_double, plan.own[first : first + len(names)])
            columns = plan.hyper.index_select(0, plan.groups).T
            hyper = {scalar_name(*scalar): columns[i] for i, scalar in enumerate(program.scalars)}
            self._evaluation = _Evaluation({**hyper, "step": plan.steps, **self._rows}, self._constants, plan.device)

    def take_back(self) -> None:
        """As if steps had not been counted, and no number had followed from them."""
        plan, names = self._plan, self._names
        plan.steps -= 1
        self._bring(put, plan.step_at, self._steps_are_double, plan.steps)
        if names:
            first = self.program.own.index(names[0])
            self._bring(put, self._kept_at, self._are_double, plan.own[first : first + len(names)])

    def run(self, level: int) -> None:
        """Reads elements for a level's sums."""
        if 0 < level <= len(self._readings):
            self._readings[level - 1].run()

    def sums(self, level: int) -> Sums:
        """A level's sums, for each tensor."""
        if not 0 < level <= len(self._readings):
            return {}
        found = {name.removeprefix("total_"): value for name, value in self._readings[level - 1].sums().items()}
        self._squares = {name: value for name, value in found.items() if name in self.program.matrices}
        return {name: value for name, value in found.items() if name not in self._squares}

    def put(self, level: int, sums: Sums) -> None:
        """Takes over sums, and computes what follows from them; new scalar states as they are once they are kept."""
        for name, value in sums.items():
            row = self._rows[name]
            row.copy_(value, non_blocking=True) if isinstance(value, Tensor) else row.fill_(value)
        if level >= len(self.program.levels):
            return
        now = self.program.levels[level]
        for name, expression in now.numbers.items():
            place, row = self._names.index(name), self._rows[f"new_{name}"]
            row.copy_(self._evaluation(expression))
            self._bring(put, self._kept_at[place], self._are_double[place], row)
        if self._rooms is not None and now.matrices:
            settings = self._plan.settings(self._settings)
            known = b"".join(x.tobytes() for x in settings.values())
            self._rooms.run(now.matrices, Evaluation(settings), known, self._squares)

    @property
    def constants(self) -> bytes:
        """The settings that functions of matrices are made for."""
        return (
            b"".join(x.tobytes() for x in self._plan.settings(self._settings).values())
            if self._rooms is not None
            else b""
        )

    def _bring(self, function: Any, kept_at: Tensor, are_double: Tensor, numbers: Tensor) -> None:
        size = numbers.numel()
        with on(self._plan.device):
            function[(-(-size // _TILE),)](kept_at, are_double, numbers, self._plan.skip, size, TILE=_TILE)


class _Evaluation(Evaluation):
    """Expressions whose constants are on the device, since torch would wait for it to bring them there.

    Args:
        inputs: tensors by name.
        constants: that are there already, to which others are added.
        device: where.
    """

    def __init__(self, inputs: dict[str, Any], constants: dict[str, Tensor], device: torch.device) -> None:
        super().__init__(inputs)
        self._constants, self._device = constants, device

    def __call__(self, expression: Expression) -> Any:
        """The expression's value, a number for each tensor or one for all."""
        if expression.op != "constant":
            return super().__call__(expression)
        value = expression.args[0]
        if repr(value) not in self._constants:
            dtype = torch.bool if isinstance(value, bool) else torch.float64
            self._constants[repr(value)] = torch.full((), value, dtype=dtype, device=self._device)
        return self._constants[repr(value)]
