"""A parameter that no kernel steps: the eager fallback does."""

from __future__ import annotations

import logging
import math
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.eager import EagerStep
from steprule.engine.run import Sums, find_numbers, summed
from steprule.engine.whole import WholeStep
from steprule.formats import FIRST_ELEMENT_KEY, FORMATS
from steprule.formats.parts import cuts_of, whole_of
from steprule.hyper import multiplied
from steprule.kernels.source import tally_of
from steprule.services.clip import ClipAdaptive
from steprule.services.decide import row_factors
from steprule.services.member import Member, row_size
from steprule.services.step import StepServices
from steprule.step.entry import Entry
from steprule.tensors.memory import HALF_DTYPES, PLAIN
from steprule.tensors.numbering import numbering_of
from steprule.tensors.state import AVERAGE, encode_rounded, read_state
from steprule.trace.norms import Norm
from steprule.trace.program import ROW, Program
from steprule.trace.tracing import couples, program_of

logger = logging.getLogger("steprule")
_told: set[str] = set()
"""The optimizers whose stacks have been spoken of."""


class Loose(Member):
    """A parameter that the eager fallback steps; see `steprule.engine.run.Work` and `steprule.services.member.Part`.

    Args:
        entry: what it needs.
        is_first: whether it has not been listed before. What is listed twice is stepped twice, one after the other.

    Attributes:
        factor: what the gradient is to be multiplied by: a number, or a tensor with one for each row.
    """

    in_turn, rooms = False, None

    def __init__(self, entry: Entry, is_first: bool) -> None:
        super().__init__(*entry.described())
        program = program_of(entry.rule, entry.group)
        whole = whole_of(self.param)
        if cuts_of(whole) and program.sees_matrix and whole.numel():
            raise RuntimeError(
                f"{entry.who} is a DTensor that no kernel can step, and without one a step would see only a part of its matrix: parts "
                "of parameter, gradient and states must be contiguous, and listed once; on a GPU, numbers of rows or columns need kernels "
                "that STEPRULE_GPU_ROWS=1 turns on"
            )
        if program.sees_matrix and whole.numel() and couples(entry.rule, entry.group):
            raise RuntimeError(
                f"{entry.rule.__name__} adds up over all parameters and sees rows and columns, and no kernel can step {entry.who}: without "
                "one a step would add up this parameter alone. Let parameter, gradient and states be contiguous, and list it once; "
                "on a GPU, numbers of rows or columns need kernels that STEPRULE_GPU_ROWS=1 turns on"
            )
        if cuts_of(whole) and program.sums and not is_first:
            raise RuntimeError(
                f"{entry.who} is a DTensor that is listed twice: what is added up of it for its second step would have to be "
                "after the first, in the middle of a step. List it once"
            )
        self._entry = entry
        self._tell_of_stacks()
        self._has_own = is_first and bool(program.own)
        self._program = program if self._has_own and not program.sees_matrix else None
        self._part: EagerStep | WholeStep | None = None
        self.factor: Any = 1.0
        self.exempt = np.array([True]) if self.free else None
        self.by_row = entry.services is not None and entry.services.limited == ROW and not self.free
        self.counts: dict[str, np.ndarray] = {}
        self._wide: dict[str, Tensor] = {}

    def _tell_of_stacks(self) -> None:
        """Says once for each optimizer that a stack of matrices takes the fallback, and how it would not."""
        entry, name = self._entry, self._entry.rule.__name__
        if entry.rule.stacks and self.param.dim() > 2 and entry.kind.view is None and name not in _told:
            _told.add(name)
            logger.warning(
                "steprule: %s steps %s, a stack of matrices, by torch's operations. view='flatten' makes it one matrix, which kernels step, "
                "with fewer numbers beside it",
                name,
                entry.who,
            )

    # As services see it

    @property
    def params(self) -> list[Tensor]:
        """Its parameter."""
        return [self.param]

    @property
    def members(self) -> list[Loose]:
        """Itself, so that parts of a step are alike."""
        return [self]

    @cached_property
    def grad(self) -> Tensor:
        """Its gradient, with the low bits if it has some."""
        return self._wide_grad()

    def _wide_grad(self) -> Tensor:
        entry = self._entry
        if entry.kind.has_low_bits and entry.accumulator is not None:
            return entry.accumulator.wide(self.param, entry.grad)
        return entry.grad

    def _values(self) -> Tensor:
        return self.grad.coalesce().values() if self.grad.is_sparse else self.grad.detach()

    def read(self, norm: Norm) -> Sums:
        """The sum of the gradient's elements."""
        values, p = self._values(), norm.p
        values = values.to(torch.complex128 if values.is_complex() else torch.float64)
        finite = torch.isfinite(values)
        name = tally_of("grad", norm.how)
        if norm.zero:
            values = torch.where(finite, values, 0)
        elif norm.check and not finite.all():
            return {name: np.array([math.nan])}
        if not values.numel():  # as kernels have it
            return {name: np.array([math.inf if p == -math.inf else 0.0])}
        value = torch.linalg.vector_norm(values, p).item()
        return {name: np.array([value if p in (0.0, math.inf, -math.inf) else _power(value, p)])}

    def largest(self) -> Sums:
        """The largest element of the gradient."""
        values = self._values().abs()
        return {"top_grad": np.array([values.max().item() if values.numel() else 0.0])}

    def clip_rows(self, clip: ClipAdaptive, inverse: float) -> bool:
        """Sets each row's factor."""
        if not self.param.numel():
            return False
        grad, param = (
            x.reshape(-1, row_size(self.param)).to(torch.complex128 if x.is_complex() else torch.float64)
            for x in (self.grad.to_dense() if self.grad.is_sparse else self.grad.detach(), self.param.detach())
        )
        assert self._entry.services is not None
        if self._entry.services.nonfinite == "zero":
            grad = torch.where(torch.isfinite(grad), grad, 0)
        norms = [torch.linalg.vector_norm(x, dim=1).cpu().numpy() for x in (grad, param)]
        own = row_factors(clip, norms[0] * inverse, norms[1])
        factors = torch.from_numpy(own * inverse)
        self.factor = factors.reshape([-1] + [1] * (self.param.dim() - 1)) if self.param.dim() > 1 else factors.item()
        return bool((own < 1.0).any())

    def here(self, x: Any) -> Any:
        """Numbers, which the host has."""
        return x

    def set_factors(self, factors: Any) -> None:
        """Sets what the gradient is multiplied by."""
        self.factor = float(np.asarray(factors).reshape(()))

    def set_weight(self, weight: float) -> None:
        """Nothing: the eager fallback asks the services."""

    def tallies(self) -> Sums:
        """What the step has counted."""
        return self.counts

    def _served_grad(self, services: StepServices) -> Tensor:
        """The gradient as the formula is to see it; the parameter's own is left alone."""
        grad = self.grad
        if grad.is_sparse:
            grad, factor = grad.coalesce(), self.factor
            if isinstance(factor, Tensor):  # of rows
                factor = factor.flatten()[grad.indices()[0].cpu()]
                factor = factor.reshape([-1] + [1] * (grad.values().dim() - 1))
            values = self._serve(grad.values(), services, factor)
            return torch.sparse_coo_tensor(
                grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
            )
        return self._serve(grad, services, self.factor)

    def _serve(self, values: Tensor, services: StepServices, factor: Any) -> Tensor:
        if services.nonfinite == "zero":
            finite = torch.isfinite(values)
            self.counts["total_zeroed"] = np.array([float((~finite).sum())])
            values = torch.where(finite, values, 0)
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        if isinstance(factor, Tensor):
            factor = factor.to(values.device, torch.promote_types(values.dtype, torch.float32).to_real())
        values = values * factor
        if services.clip is not None and not services.limited and not self.free:
            values = values.clamp(-services.clip.clip_value, services.clip.clip_value)
        return values

    def _gather(self, before: Tensor, after: Tensor, kept: Tensor, is_random: bool) -> None:
        """Counts what a kernel would.

        Args:
            before, after: the weights before and after the step.
            kept: after as it is stored.
            is_random: whether storing rounds at random.
        """
        grad = self._values()
        if "total_zeroed" in self.counts:
            grad = torch.where(torch.isfinite(grad), grad, 0)
        for name, x in (("grad", grad), ("update", after - before), ("param", after)):
            wide = x.abs().double()
            self.counts[f"total_{name}"] = np.array([wide.square().sum().item()])
            self.counts[f"top_{name}"] = np.array([wide.max().item() if wide.numel() else 0.0])
        dense = self.grad.to_dense() if self.grad.is_sparse else self.grad
        moves = (dense != 0) & (torch.isfinite(dense) if "total_zeroed" in self.counts else True)
        lost = 0.0 if is_random else float(((kept == before) & moves).sum())
        self.counts["total_lost"] = np.array([lost])

    # Its step

    @property
    def program(self) -> Program | None:
        """What its step does, where sums are a part of it."""
        if self._part is None:
            return self._program
        return self._part.program if isinstance(self._part, EagerStep) else None

    @property
    def depth(self) -> int:
        """How many levels of sums there are."""
        return len(self.program.levels) if self.program is not None else 0

    def prepare(self) -> None:
        """Makes the step, where something of it must be known before anything changes; it takes memory.

        It cannot be known where the parameter is listed for a second time.
        """
        if self._has_own:
            self._part = self._eager_step()

    def count(self) -> None:
        """Nothing: the eager fallback is given the step."""

    def take_back(self) -> None:
        """Nothing: `step` changes numbers."""

    def run(self, level: int) -> None:
        """Nothing: `sums` reads elements."""

    def sums(self, level: int) -> Sums:
        """As `EagerStep`."""
        return self._part.sums(level)  # type: ignore[union-attr]

    def put(self, level: int, sums: Sums) -> Sums:
        """As `EagerStep`."""
        return self._part.put(level, sums)  # type: ignore[union-attr]

    def join(self, level: int) -> None:
        """Nothing: there are no rooms."""

    def awaited(self, level: int, turn: int) -> Sums:
        """As `EagerStep`, which there may not be yet."""
        return {} if turn else {name: [0.0] for name in summed(self.program, level)}

    def _eager_step(self) -> EagerStep | WholeStep:
        """Its step: nothing has changed yet."""
        entry = self._entry
        rule, group, state = entry.rule, entry.group, entry.state
        grad = self._wide_grad() if entry.services is None else self._served_grad(entry.services)
        if entry.kind.keeps_step:
            step = state["step"] + 1
            step = step.double() if group.get("capturable") or step.device.type != "cpu" else float(step)
        else:
            step = 1 if entry.is_new else 2
        own = {name: state[name] for name in entry.kind.names if name in state}
        own["param"] = self.param
        if any(kind not in PLAIN for kind in entry.kind.formats.values()) or (
            entry.services is not None and self.param.dtype in HALF_DTYPES
        ):
            self._wide = {name: self._read(name) for name in ("param", *entry.kind.present)}
        operands = {**own, **self._wide}
        states = [name and operands[name] for name in entry.kind.names]
        settings = multiplied(
            {name: self._plain(x) for name, x in group.items() if name != "params"}, rule.hyperparameters
        )
        if program_of(rule, group).sees_matrix:
            maximize, place, view = group.get("maximize", False), entry.place, entry.kind.view
            return WholeStep(rule, operands["param"], grad, states, step, settings, maximize, place, view)
        whole = whole_of(self.param)
        size = None if whole is self.param else whole.numel()
        return EagerStep(rule, operands["param"], grad, states, step, settings, group.get("maximize", False), size)

    def step(self, gather: bool) -> None:
        """Takes it; made now where no other parameter need wait for what this one's sums are."""
        entry = self._entry
        if self._part is None:
            self._part = self._eager_step()
            if self.depth:
                find_numbers([self])
        part = self._part
        before = self._read("param") if gather else None
        entry.has_begun = True
        part.write()
        if entry.kind.keeps_step:
            entry.state["step"] += 1
        for name, value in self._wide.items():
            self._store(name, value)
        new = self._wide.get("param")
        self._move_average(new)
        if before is not None:
            is_random = bool(entry.kind.formats) and bool(FORMATS[entry.kind.formats["param"]].random)
            after = self._read("param")
            self._gather(before, after if new is None else new, after, is_random)
        self._wide, self._part = {}, None

    def _read(self, name: str) -> Tensor:
        """As `Optimizer.read`."""
        return read_state({**self._entry.state, "param": self.param.detach()}, name, self.param.shape)

    def _store(self, name: str, value: Tensor) -> None:
        entry = self._entry
        step = int(entry.state["step"]) if entry.kind.keeps_step else 1  # which a GPU is waited for to say
        operand, place = [*entry.kind.formats].index(name), self.place + FIRST_ELEMENT_KEY
        arrays = encode_rounded(
            entry.kind.formats[name], value, entry.group.get("seed", 0), step, operand, place,
            partial(numbering_of, self.param),
        )  # fmt: skip
        for suffix, array in arrays.items():
            entry.tensor(name, suffix).copy_(array)

    def _move_average(self, new: Tensor | None) -> None:
        """Brings the average towards the new weights, given where they are rounded at random."""
        entry, services = self._entry, self._entry.services
        if services is None or not entry.kind.averages or not entry.is_last:
            return
        if not entry.kind.formats:  # complex
            entry.state[AVERAGE].lerp_(self.param.detach(), services.weight)
            return
        weight = FORMATS[entry.kind.formats["param"]]
        if new is None or not (weight.random or len(weight.arrays) > 1):
            new = self._read("param")
        average = self._read(AVERAGE)
        self._store(AVERAGE, average + services.weight * (new - average))

    def _plain(self, value: Any) -> Any:
        """Hyperparameters as floats, or as tensors where autograd or a graph must see them."""
        if isinstance(value, (tuple, list)):
            return tuple(self._plain(item) for item in value)
        if not isinstance(value, Tensor):
            return value.item() if isinstance(value, np.ndarray) else value
        if self._entry.group.get("differentiable") or self._entry.group.get("capturable"):
            return value.reshape(())
        return value.item()


def _power(norm: float, p: float) -> float:
    """The sum of powers that a norm is the root of."""
    try:
        return float(norm**p)
    except (OverflowError, ZeroDivisionError):
        return math.inf
