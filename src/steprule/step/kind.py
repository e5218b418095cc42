"""What is the same for all parameters that look alike, and is worked out once for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.optim.optimizer import _device_dtype_check_for_fused

from steprule.engine import cpu, gpu
from steprule.engine.matrices import goes_with_view, room_dtype
from steprule.formats import FORMATS, row_length, weight_format
from steprule.formats.parts import cuts_of, sides_cut, whole_of
from steprule.state import matrices_of, no_matrix
from steprule.step.job import Job
from steprule.tensors.memory import (
    DTYPES,
    MIXABLE,
    PLAIN,
    dtype_name,
    is_abstract,
    is_dense,
    is_readable,
    layout,
    unsteppable,
)
from steprule.tensors.misfit import misfit
from steprule.tensors.state import AVERAGE, arrays_in, average_format, kept, state_format
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.extent import KEPT, Extent
from steprule.trace.program import COL, Program
from steprule.trace.tracing import program_of, static_settings

AnyKernel = cpu.Kernel | gpu.Kernel

ZERO = torch.zeros((), device="cpu")

_PLAIN_TYPES = (Tensor, Parameter)


def look_of(x: Any) -> tuple[Any, ...] | None:
    """All that matters of a tensor but for its numbers and where they lie; None where there is more to it."""
    if type(x) not in _PLAIN_TYPES or x.layout is not torch.strided:
        return None
    return x.dtype, x.shape, x.stride(), x.device, x.is_neg(), x.is_conj(), x.is_inference(), x.requires_grad


class Kind:
    """Parameters of one group that look alike, and whose gradients and states do.

    Args:
        job: of which they are a part.
        group: theirs.
        param, state: one of them, and its state.
        low_bits: those of its gradient, if it is a sum that has some.
        who: what errors call it.

    Attributes:
        names: their states, in update's order; None for each that they do without.
        present, scalar_states: those of them that are tensors, and those that are one number.
        averages: whether there are averages of the weights.
        has_low_bits: whether gradients are sums with low bits.
        formats: how each operand is kept: the parameter, the gradient and the states that exist; empty for complex ones.
        arrays: what those consist of, as names and suffixes.
        rooms: how each matrix between passes is kept.
        view: how they are seen as matrices; None for as the rule does.
        cut: the dimension of a mesh along which processes have parts of them, and bring matrices together; None elsewhere.
        sides_cut: of what beside matrices other processes have other numbers, "rows" or "cols".
        state_names: what a state consists of.
        written: which of a state a step writes to, but for the numbers that it counts by.
        is_fast: whether all operands lie in memory as the parameter does, without gaps, in a format that kernels read.
        is_new: whether they have no state yet.
        is_complete: whether no state is missing.
        key: what parameters must have in common to be stepped together.
        first: the state that one of them was given; the others' are copies of it.

    Raises:
        RuntimeError: the gradient or the state does not fit the parameter.
    """

    def __init__(
        self, job: Job, group: dict[str, Any], param: Tensor, state: dict[str, Any], low_bits: Tensor | None, who: str
    ) -> None:
        self.rule, self.group, self.device, self.view = job.rule.chosen(group), group, param.device, group.get("view")
        self.services, self.accumulator = job.services, job.accumulator
        assert param.grad is not None
        self.names = self.rule.states_for(group)
        self.present = tuple(name for name in self.names if name in self.rule.tensor_states)
        self.scalar_states = tuple(name for name in self.names if name in self.rule.scalar_states)
        side_states = {name for name in self.names if name in self.rule.side_states}
        self.sides_cut = sides_cut(whole_of(param)) if program_of(self.rule, group).last.sides else frozenset()
        self.averages = job.services is not None and job.services.average is not None
        self.has_low_bits = low_bits is not None
        self.is_abstract = is_abstract(param)
        self.is_new = all(kept(state, name) is None for name in self.present)
        begun = (name for name in job.base.chosen(group).states_for(group) if name)
        self.is_complete = state.get("step") is not None and all(kept(state, name) is not None for name in begun)
        self._check(job.name, param, param.grad, state, who)
        self.formats = self._formats(param, param.grad, state)
        self.arrays = arrays_in(self.formats)
        self.keeps_step = self.rule.keeps_step or any(FORMATS[kind].random for kind in self.formats.values())
        names = {name + suffix for name, suffix in self.arrays if name != "grad"} - {"param"}
        self.state_names = names | side_states | {*self.scalar_states} | ({"step"} if self.keeps_step else set())
        averages = {AVERAGE} if self.averages else set()
        self.written = {*self.present, *self.state_names, *averages} - {*self.scalar_states, "step"}
        self.is_fast = self._fits_an_engine(param, param.grad, state, low_bits)
        self.engine = "gpu" if gpu.serves(param.device) else "cpu"
        self.cut, self.rooms = self._rooms(whole_of(param))
        self.key = self._key()
        self.first: dict[str, Tensor] | None = None

    @property
    def extents_cut(self) -> frozenset[Extent]:
        """The same as extents."""
        return frozenset(KEPT[side] for side in self.sides_cut)

    @property
    def begins_alike(self) -> bool:
        """Whether what a state begins at, but for an average, does not depend on the parameter's numbers."""
        if not self.is_fast or (self.averages and not self.formats[AVERAGE] == self.formats["param"] in PLAIN):
            return False
        return not any(self.rule.states[name].begins == "param" for name in self.names if name)

    def _served(self) -> Services:
        """What a kernel does besides the rule's formula."""
        return self.services.static(self.group) if self.services is not None else NO_SERVICES

    def _key(self) -> Any:
        where = self.device if self.engine == "gpu" else None
        static = static_settings(self.rule, self.group), self.group.get("maximize", False)
        formats, rooms = tuple(self.formats.values()), tuple(self.rooms.values())
        return (
            self.rule,
            self.engine,
            where,
            *static,
            formats,
            rooms,
            self.view,
            self.cut,
            self.sides_cut,
            self._served(),
        )

    def _rooms(self, whole: Tensor) -> tuple[Any, dict[str, str]]:
        """Who brings matrices together between passes, and what each is kept in."""
        program = program_of(self.rule, self.group)
        if not (program.joins and self.is_fast):
            return None, {}
        shape = matrices_of(whole.shape, self.rule.stacks, self.view)[0]
        dtypes = {name: room_dtype(one, shape, whole.dtype, self.device) for name, one in program.matrices.items()}
        cut = next((one[:2] for one in cuts_of(whole)), None)
        return cut, {name: dtype_name(dtype) for name, dtype in dtypes.items()}

    def kernel(self, gather: bool) -> AnyKernel:
        """What steps it, with telemetry or without."""
        kernel: type[AnyKernel] = gpu.Kernel if self.engine == "gpu" else cpu.Kernel
        formats = (*self.formats.values(), *self.rooms.values())
        return kernel.compiled(
            self.rule, self.group, self.group.get("maximize", False), formats, replace(self._served(), gather=gather)
        )

    def _check(self, optimizer: str, param: Tensor, grad: Tensor, state: dict[str, Any], who: str) -> None:
        group, rule = self.group, self.rule
        if problem := unsteppable(param, who):
            raise RuntimeError(problem)
        for what in ("shape", "dtype", "device"):
            mine, its = getattr(param, what), getattr(grad, what)
            if mine != its and not (what == "dtype" and {mine, its} <= MIXABLE):
                raise RuntimeError(f"the gradient of {who} has the {what} {its}, its parameter {mine}")
        if self.rule.sparse_only and not grad.is_sparse:
            raise RuntimeError(
                f"{self.rule.__name__} does not support dense gradients, please consider Adam instead ({who})"
            )
        if grad.is_sparse and not self.rule.sparse_grads:
            raise RuntimeError(f"{optimizer} does not support sparse gradients ({who})")
        if group.get("fused"):
            _device_dtype_check_for_fused(param)
        if group.get("differentiable") and getattr(state.get("step"), "requires_grad", False):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if group.get("differentiable") and any(group.get(name) for name in ("states", "weights")):
            raise RuntimeError("differentiable=True needs states and weights as they are: states=None, weights=None")
        if program_of(self.rule, group).sees_matrix and (group.get("differentiable") or param.is_complex()):
            what = "complex numbers" if param.is_complex() else "autograd through its steps (differentiable=True)"
            raise RuntimeError(f"{rule.__name__} looks at whole matrices, and does not support {what} ({who})")
        if program_of(self.rule, group).in_some_steps and group.get("capturable"):
            raise RuntimeError(
                f"{rule.__name__} computes some of its states in some steps only, which a recorded graph does not choose: "
                f"capturable=False, and optimizer.cuda_graph = True for steps in graphs ({who})"
            )
        if param.dim() < 2 and not program_of(self.rule, group).takes_vectors:
            raise RuntimeError(no_matrix(rule, who, param.shape))
        if problem := misfit(self.rule, state, param, who, group, converted=group.get("states") is not None):
            raise RuntimeError(problem)

    def _formats(self, param: Tensor, grad: Tensor, state: dict[str, Any]) -> dict[str, str]:
        """How each operand is kept: the parameter, the gradient and the states that exist; empty for complex ones."""
        if param.dtype not in DTYPES:
            return {}
        dtype, chosen = dtype_name(param.dtype), self.group.get("states")
        formats = {"param": weight_format(self.group.get("weights"), dtype), "grad": dtype_name(grad.dtype)}
        if self.has_low_bits:
            formats["grad"] = self.accumulator.format(dtype)  # type: ignore[union-attr]
        for name in self.present:
            if chosen is not None:
                formats[name] = state_format(self.rule, name, self.group, param)
            elif isinstance(state.get(name), Tensor):
                formats[name] = DTYPES.get(state[name].dtype, dtype)
            else:
                formats[name] = dtype
        if self.averages:
            formats[AVERAGE] = average_format(self.group.get("weights"), dtype)
        return formats

    def _keeps_beside(self, program: Program, param: Tensor, state: dict[str, Any]) -> bool:
        """Whether there is an element at all, and passes can compute with what a matrix has beside it: rows, columns and squares."""
        beside = [
            x for name in self.names if name in self.rule.side_states and isinstance(x := state.get(name), Tensor)
        ]
        fits_sides = (gpu.TAKES_ROWS or not gpu.serves(param.device)) and self._served().factor != "row"
        return (
            (fits_sides or not program.last.sides)
            and len(matrices_of(param.shape, self.rule.stacks, self.view)[0]) == 2
            and bool(whole_of(param).numel())
            and all(is_readable(x, param.device) and x.is_contiguous() for x in beside)
        )

    def _sees_rows(self, program: Program, param: Tensor) -> bool:
        """Whether passes over elements find matrices where the view sees them; of convolutions, in any order of columns
        that changes nothing or that the view asks for."""
        if not program.sees_matrix:
            return True
        shape = whole_of(param).shape
        if not goes_with_view(program, self.view, matrices_of(shape, self.rule.stacks, self.view)):
            return False
        has_order = self.view is None and any(one.op == "decorrelate" for one in program.matrices.values())
        is_flat = (self.view or "flatten").startswith("flatten") and not (
            has_order
            or self.rule.stacks
            or program.has_squares
            or any(one.axis == COL for one in program.last.sides.values())
        )
        has_rows = is_flat and param.dim() > 1 and param.stride(0) == row_length(param.shape)
        return param.is_contiguous() or has_rows

    def _fits_an_engine(self, param: Tensor, grad: Tensor, state: dict[str, Any], low_bits: Tensor | None) -> bool:
        """Whether all operands lie in memory as the parameter does, without gaps, in a format that kernels read."""
        if self.group.get("differentiable") or not self.formats or not is_dense(param):
            return False
        program = program_of(self.rule, self.group)
        if not program.by_passes or not self._sees_rows(program, param):
            return False
        if (program.last.sides or program.has_squares) and not self._keeps_beside(program, param, state):
            return False
        on_gpu = gpu.serves(param.device)
        if param.device.type != "cpu" and not on_gpu:
            return False
        step = state.get("step", ZERO)
        scalars = [state.get(name, ZERO) for name in self.scalar_states]
        if any(
            not isinstance(x, Tensor)
            or x.dtype not in (torch.float32, torch.float64)
            or not (on_gpu or x.device.type == "cpu")
            for x in (*scalars, *([step] if self.keeps_step else []))
        ):
            return False
        kinds = [FORMATS[kind] for kind in self.formats.values()]
        if any(kind.blockwise or kind.random == "element" for kind in kinds) and not param.is_contiguous():
            return False  # blocks and elements are counted by row
        by_row = self._served().factor == "row"
        if by_row and param.dim() > 1 and param.numel() and param.stride(0) != param[0].numel():
            return False  # rows that have factors of their own must lie in one stretch
        own = layout(param)
        kept_at = [state.get(name + suffix) for name, suffix in arrays_in(self.formats, by_element=True)]
        others = [grad, *(x for x in kept_at if isinstance(x, Tensor))]
        if low_bits is not None:
            others.append(low_bits)
        return all(is_readable(x, param.device) and layout(x) == own for x in (param, *others))
