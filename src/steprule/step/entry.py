"""What one parameter needs of a step, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused

from steprule.engine import cpu, gpu
from steprule.formats import FORMATS, weight_format
from steprule.formats.tensors import zeros
from steprule.rule import Rule
from steprule.services.accumulate import Accumulator
from steprule.services.step import StepServices
from steprule.step.listed import Listed, given_name, name_in
from steprule.tensors.memory import (
    DTYPES,
    HALVES,
    MIXABLE,
    is_abstract,
    is_dense,
    is_readable,
    layout,
    missing_bytes,
    name_of,
)
from steprule.tensors.state import (
    AVERAGE,
    arrays_in,
    average_format,
    begin_correction,
    convert,
    counting,
    is_near,
    kept,
    lacking,
    misfit,
    set_arrays,
    state_format,
    step_options,
    weight_arrays,
    wrong_step,
)
from steprule.trace.around import NO_SERVICES, Services
from steprule.trace.tracing import static_settings

Kernel = cpu.Kernel | gpu.Kernel

count_write = torch._C._increment_version  # kernels write through addresses: this tells autograd
_ZERO = torch.zeros((), device="cpu")


@dataclass(frozen=True)
class Job:
    """What a step needs to know of an optimizer.

    Attributes:
        name: the name of its class, for messages.
        base, rule: the rule without its options and with them.
        flags: the names of settings that are no hyperparameters.
        groups, states: its parameter groups, and the state of every parameter.
        services: what surrounds its steps, if anything does.
        accumulator: what corrects its gradients, if anything does.
        check_numbers: says whether groups may go on with other numbers under these names; raises for those that make no sense.
        move_resting_averages: brings the averages of parameters that are not among those given towards them, by a share.
    """

    name: str
    base: type[Rule]
    rule: type[Rule]
    flags: Sequence[str]
    groups: list[dict[str, Any]]
    states: MutableMapping[Tensor, dict[str, Any]]
    services: StepServices | None
    accumulator: Accumulator | None
    check_numbers: Callable[[Sequence[Mapping[str, Any]], set[str]], bool]
    move_resting_averages: Callable[[set[Tensor], Any], None]


class Entry:
    """A parameter with a gradient, at this step.

    Args:
        job: of which it is a part.
        one: the parameter, where the optimizer lists it.

    Raises:
        RuntimeError: the gradient or the state does not fit the parameter.
    """

    def __init__(self, job: Job, one: Listed) -> None:
        self.number, self.group, self.index, self.param, self.place = one
        self.rule = job.rule
        self.services = job.services
        self.accumulator = job.accumulator
        self._states = job.states
        self.grad: Tensor = self.param.grad  # type: ignore[assignment]
        self.names = self.rule.states_for(self.group)
        self.present = tuple(name for name in self.names if name in self.rule.tensor_states)
        self.scalar_states = tuple(name for name in self.names if name in self.rule.scalar_states)
        self.state: dict[str, Any] = job.states.get(self.param, {})
        self.state_before = dict(self.state)
        self.has_begun = False  # whether something of its step has been written
        self.averages = self.services is not None and self.services.average is not None
        self.is_last = True  # of those of its parameter, which moves the average
        self.rests = False  # whether it is known from earlier steps and has no gradient in this one
        self.corrected = (
            self.accumulator is not None
            and self.param in self.accumulator.corrections
            and self.grad.dtype == self.param.dtype
            and not self.grad.is_sparse
        )
        self.is_abstract = is_abstract(self.param)
        self.is_new = all(kept(self.state, name) is None for name in self.present)
        self.who = name_in(self.group, self.number, self.index)
        self._check(job.name)
        self.formats = self._formats()
        self.arrays = arrays_in(self.formats)
        self.keeps_step = self.rule.keeps_step or any(FORMATS[kind].random for kind in self.formats.values())
        self._check_begun(job.base)
        self.is_fast = self._fits_an_engine()
        self.engine = "gpu" if gpu.serves(self.param.device) else "cpu"

    def again(self, group: dict[str, Any], grad: Tensor) -> None:
        """For another step, where all else is as it was.

        Args:
            group: its parameter's.
            grad: its gradient, or if it has none what is laid out like the last.
        """
        self.group, self.grad, self.rests = group, grad, self.param.grad is None
        self.state_before, self.has_begun = dict(self.state), False
        self.is_new = all(kept(self.state, name) is None for name in self.present)

    def let_go(self) -> None:
        """Keeps no gradient alive between two steps."""
        self.grad = _ZERO

    def _served(self) -> Services:
        """What a kernel does besides the rule's formula."""
        return self.services.static(self.group) if self.services is not None else NO_SERVICES

    def kernel_key(self) -> Any:
        """What parameters must have in common to be stepped together."""
        where = self.param.device if self.engine == "gpu" else None
        static = static_settings(self.rule, self.group), self.group.get("maximize", False)
        return (self.engine, where, *static, tuple(self.formats.values()), self._served())

    def kernel(self, gather: bool) -> Kernel:
        """What steps it, with telemetry or without."""
        compiled = gpu.compiled if self.engine == "gpu" else cpu.compiled
        formats = tuple(self.formats.values())
        return compiled(
            self.rule, self.group, self.group.get("maximize", False), formats, replace(self._served(), gather=gather)
        )

    def described(self) -> tuple[str, int, Tensor, bool, str]:
        """The arguments of a `Member`: how services and messages know it."""
        given = given_name(self.group, self.index)
        name, who = given or f"{self.number}.{self.index}", given or self.who
        return name, self.place, self.param, self.group.get("clip") is False, who

    def _check(self, optimizer: str) -> None:
        param, grad, group, who = self.param, self.grad, self.group, self.who
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
        if group.get("differentiable") and getattr(self.state.get("step"), "requires_grad", False):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if group.get("differentiable") and any(group.get(name) for name in ("states", "weights")):
            raise RuntimeError("differentiable=True needs states and weights as they are: states=None, weights=None")
        if problem := misfit(self.rule, self.state, param, who, converted=group.get("states") is not None):
            raise RuntimeError(problem)
        for what, x in (("", param), ("grad", grad), *self.state.items()):
            if isinstance(x, Tensor) and (missing := missing_bytes(x)):
                whose = "the gradient of " if what == "grad" else f"the state {what} of " if what else ""
                raise RuntimeError(
                    f"the storage of {whose}{who} lacks {missing} bytes of those that its shape {tuple(x.shape)} needs: "
                    "it was freed or made smaller"
                )

    def _check_begun(self, base: type[Rule]) -> None:
        """Raises for a step that is no number of steps, and for states that someone has taken out from beside others."""
        step = self.state.get("step")
        if self.keeps_step and step is not None:
            if not isinstance(step, Tensor) or step.numel() != 1:
                raise RuntimeError(f"the state step of {self.who} is {step!r} and must be a tensor of one number")
            if is_near(step) and (problem := wrong_step(step, self.who)):
                raise RuntimeError(problem)
        if missing := lacking(base, self.state, self.group):
            raise RuntimeError(
                f"the state of {self.who} lacks {', '.join(missing)} beside {', '.join(self.state)}: put it back, or "
                "clear that parameter's state to begin anew"
            )

    def written(self) -> list[tuple[str, Tensor]]:
        """What its step writes to, but for the numbers that it counts by; each with its name in errors."""
        names = {*self.present, *self.state_names(), *([AVERAGE] if self.averages else [])}
        names -= {*self.scalar_states, "step"}
        written = [(self.who, self.param)]
        for name, x in self.state.items():
            if name in names and isinstance(x, Tensor):
                written.append((f"the state {name} of {self.who}", x))
        if self.corrected:
            written.append((f"the correction of the gradient of {self.who}", self.correction))
        return written

    def _formats(self) -> dict[str, str]:
        """How each operand is kept: the parameter, the gradient and the states that exist; empty for complex ones."""
        if self.param.dtype not in DTYPES:
            return {}
        dtype, chosen = name_of(self.param.dtype), self.group.get("states")
        formats = {"param": weight_format(self.group.get("weights"), dtype), "grad": name_of(self.grad.dtype)}
        if self.corrected:
            formats["grad"] = self.accumulator.format(dtype)  # type: ignore[union-attr]
        for name in self.present:
            if chosen is not None:
                formats[name] = state_format(self.rule, name, self.group, self.param)
            elif isinstance(self.state.get(name), Tensor):
                formats[name] = DTYPES.get(self.state[name].dtype, dtype)
            else:
                formats[name] = dtype
        if self.averages:
            formats[AVERAGE] = average_format(self.group.get("weights"), dtype)
        return formats

    def _fits_an_engine(self) -> bool:
        """Whether all operands lie in memory as the parameter does, gap-free, in a format that kernels read."""
        param = self.param
        if self.group.get("differentiable") or not self.formats or not is_dense(param):
            return False
        on_gpu = gpu.serves(param.device)
        if param.device.type != "cpu" and not on_gpu:
            return False
        step = self.state.get("step", _ZERO)
        scalars = [self.state.get(name, _ZERO) for name in self.scalar_states]
        if any(
            not isinstance(x, Tensor)
            or x.dtype not in (torch.float32, torch.float64)
            or not (on_gpu or x.device.type == "cpu")
            for x in (*scalars, *([step] if self.keeps_step else []))
        ):
            return False
        kinds = [FORMATS[kind] for kind in self.formats.values()]
        if any(kind.grouped or kind.random == "element" for kind in kinds) and not param.is_contiguous():
            return False  # groups and elements are counted by row
        by_row = self.services is not None and self.services.static(self.group).factor == "row"
        if by_row and param.dim() > 1 and param.numel() and param.stride(0) != param[0].numel():
            return False  # rows that have factors of their own must lie in one stretch
        own = layout(param)
        kept_at = [self.state.get(name + suffix) for name, suffix in arrays_in(self.formats, by_element=True)]
        others = [self.grad, *(x for x in kept_at if isinstance(x, Tensor))]
        if self.corrected:
            others.append(self.correction)
        return all(is_readable(x, param.device) and layout(x) == own for x in (param, *others))

    def make_state(self) -> None:
        """Creates the states that are missing and converts those that are kept otherwise."""
        if not self.state_names() and not any(self.names) and not self.averages:
            return
        self.state = self._states[self.param]
        if self.keeps_step and "step" not in self.state:
            behind = 0 if self.rule.keeps_step or self.is_new else 1
            self.state["step"] = torch.full((), behind, **step_options(self.group, self.param))
        if self.keeps_step:
            self.state["step"] = counting(self.state["step"], self.param)
        if self.is_fast and self.engine == "gpu":
            for number in (*(["step"] if self.keeps_step else []), *self.scalar_states):
                if number in self.state:
                    self.state[number] = self.state[number].to(self.param.device)
        begun = self.param if self.group.get("differentiable") else self.param.detach()  # which autograd is to see
        for name in self.names:  # in update's order, which is torch.optim's
            if name is None or kept(self.state, name) is not None:
                continue
            first = self.rule.begins_at(name, begun, self.group)
            if name in self.scalar_states:
                like = {} if self.rule.states[name].dtype == "step" else {"dtype": torch.float64}
                fresh = torch.empty((), **{**step_options(self.group, self.param), **like})
                self.state[name] = fresh.copy_(_filled(fresh, first))
            elif self.formats and not isinstance(first, Tensor) and first == 0:
                set_arrays(self.state, name, zeros(self.formats[name], self.param))
            else:
                dtype = self.param.dtype if self.param.dtype not in HALVES else torch.float32
                self.state[name] = torch.empty_like(self.param, dtype=dtype, requires_grad=False)
                self.state[name].copy_(begun if first is begun else _filled(self.param, first))
        if not self.formats:
            if self.averages and AVERAGE not in self.state:
                self.state[AVERAGE] = self.param.detach().clone()
            return
        for name in self.present:
            convert(self.state, name, self.formats[name], self.param)
        begin_correction(self.state, self.formats["param"], self.param)
        if AVERAGE in self.formats:
            if AVERAGE not in self.state:
                own = weight_arrays(self.param, self.state)
                set_arrays(self.state, AVERAGE, {name: x.clone() for name, x in own.items()})
            convert(self.state, AVERAGE, self.formats[AVERAGE], self.param)

    def restore_state(self) -> None:
        """Takes back what make_state has done."""
        if not self.state_before:
            self._states.pop(self.param, None)
            return
        state = self._states[self.param]
        state.clear()
        state.update(self.state_before)

    def state_names(self) -> set[str]:
        """What the state consists of."""
        arrays = {name + suffix for name, suffix in self.arrays if name != "grad"} - {"param"}
        return arrays | {*self.scalar_states} | ({"step"} if self.keeps_step else set())

    @property
    def correction(self) -> Tensor:
        """That of the gradient, if it is corrected."""
        assert self.accumulator is not None
        return self.accumulator.corrections[self.param]

    def tensor(self, name: str, suffix: str) -> Tensor:
        """One of the arrays of a kernel."""
        if name == "grad":
            return self.correction if suffix else self.grad
        if suffix or name != "param":
            return self.state[name + suffix]  # type: ignore[no-any-return]
        return self.param

    def count(self) -> None:
        """All that a step is where there are no numbers."""
        if self.keeps_step:
            self.state["step"] += 1
        count_write([self.param])


def _filled(like: Tensor, value: Any) -> Tensor:
    """A tensor of this number, that autograd can go through where it is one; complex numbers have it twice."""
    if isinstance(value, Tensor):
        number = value.double().reshape(()).to(like.device).expand(like.shape)
    else:
        number = torch.full_like(like, float(value), dtype=torch.float64, requires_grad=False)
    return torch.complex(number, number) if like.is_complex() else number
