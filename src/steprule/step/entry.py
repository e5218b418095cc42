"""What one parameter needs of a step, and what is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steprule.formats.parts import cuts_of, detached, whole_of
from steprule.rule import Rule
from steprule.step.job import Job
from steprule.step.kind import ZERO, Kind, look_of
from steprule.step.listed import Listed, given_name, name_in
from steprule.tensors.memory import missing_bytes, too_short
from steprule.tensors.misfit import lacking, wrong_step
from steprule.tensors.state import (
    AVERAGE,
    begin_low_bits,
    begin_state,
    convert,
    counting,
    is_near,
    kept,
    set_arrays,
    step_options,
    weight_arrays,
    widen_numbers,
)

Kinds = dict[tuple[Any, ...], Kind]

count_write = torch._C._increment_version  # kernels write through addresses: this tells autograd
_NONE: dict[str, Any] = {}


class Entry:
    """A parameter with a gradient, at this step.

    Args:
        job: of which it is a part.
        one: the parameter, where the optimizer lists it.
        kinds: what is known of parameters of this step that look alike.

    Raises:
        RuntimeError: the gradient or the state does not fit the parameter.
    """

    __slots__ = (
        "_states", "accumulator", "grad", "group", "has_begun", "index", "is_fast", "is_last", "is_new", "kind", "low_bits",
        "number", "param", "place", "rests", "rule", "services", "state", "state_before",
    )  # fmt: skip

    def __init__(self, job: Job, one: Listed, kinds: Kinds) -> None:
        self.number, self.group, self.index, self.param, self.place = one
        self.services, self.accumulator, self._states = job.services, job.accumulator, job.states
        self.grad: Tensor = self.param.grad  # type: ignore[assignment]
        self.state: dict[str, Any] = job.states.get(self.param, _NONE)
        self.state_before = dict(self.state) if self.state else _NONE
        self.has_begun = False  # whether something of its step has been written
        self.is_last = True  # of those of its parameter, which moves the average
        self.rests = False  # whether it is known from earlier steps and has no gradient in this one
        self.low_bits = self._find_low_bits()
        self.kind = self._find_kind(job, kinds)
        self.rule = self.kind.rule
        self.is_fast, self.is_new = self.kind.is_fast and self._has_addresses(), self.kind.is_new
        self._check_memory()
        if self.state:
            self._check_begun(job.base.chosen(self.group))

    def _find_low_bits(self) -> Tensor | None:
        """Those of the gradient, if it is a sum that has some."""
        if self.accumulator is None or self.grad.dtype != self.param.dtype or self.grad.is_sparse:
            return None
        return self.accumulator.low_bits.get(self.param)

    def _find_kind(self, job: Job, kinds: Kinds) -> Kind:
        """What is the same for all that look like this one."""
        tensors = (self.param, self.grad, self.low_bits) if self.low_bits is not None else (self.param, self.grad)
        looks = tuple(map(look_of, (*tensors, *self.state.values())))
        whole = whole_of(self.param)
        look = (self.number, len(tensors), whole.shape, *cuts_of(whole), *self.state, *looks)
        kind = kinds.get(look) if None not in looks else None
        if kind is None:
            kind = Kind(job, self.group, self.param, self.state, self.low_bits, self.who)
            if None not in looks:
                kinds[look] = kind
        return kind

    @property
    def who(self) -> str:
        """What errors call it."""
        return name_in(self.group, self.number, self.index)

    def again(self, group: dict[str, Any], grad: Tensor) -> None:
        """For another step, where all else is as it was.

        Args:
            group: its parameter's.
            grad: its gradient, or if it has none what is laid out like the last.
        """
        self.group, self.grad, self.rests = group, grad, self.param.grad is None
        self.state_before, self.has_begun = dict(self.state), False
        self.is_new = all(kept(self.state, name) is None for name in self.kind.present)

    def let_go(self) -> None:
        """Keeps no gradient alive between two steps."""
        self.grad = ZERO

    def described(self) -> tuple[str, int, Tensor, bool, str]:
        """The arguments of a `Member`: how services and messages know it."""
        given = given_name(self.group, self.index)
        name, who = given or f"{self.number}.{self.index}", given or self.who
        return name, self.place, self.param, self.group.get("clip") is False, who

    def _has_addresses(self) -> bool:
        """Whether all that it reads and writes lies somewhere: a functional tensor or one of zeros looks as others do, and is nowhere."""
        tensors = self.param, self.grad, *self.state.values()
        return all(x.data_ptr() or not x.numel() for x in tensors if isinstance(x, Tensor))

    def _check_memory(self) -> None:
        """Raises for storages that are too short."""
        for what, x in (("", self.param), ("grad", self.grad), *self.state.items()):
            if isinstance(x, Tensor) and missing_bytes(x):
                whose = "the gradient of " if what == "grad" else f"the state {what} of " if what else ""
                raise RuntimeError(too_short(x, whose + self.who))

    def _check_begun(self, base: type[Rule]) -> None:
        """Raises for a step that is no number of steps, and for states that someone has taken out from beside others."""
        step = self.state.get("step")
        if not self.kind.is_complete and (missing := lacking(base, self.state, self.group)):
            raise RuntimeError(
                f"the state of {self.who} lacks {', '.join(missing)} beside {', '.join(self.state)}: put it back, or "
                "clear that parameter's state to begin anew"
            )
        if self.kind.keeps_step and "step" in self.state:
            if not isinstance(step, Tensor) or step.numel() != 1:
                raise RuntimeError(f"the state step of {self.who} is {step!r} and must be a tensor of one number")
            if is_near(step) and (problem := wrong_step(step, self.who)):
                raise RuntimeError(problem)

    def written(self) -> dict[str, Tensor]:
        """What its step writes to, but for the numbers that it counts by."""
        names = self.kind.written
        written = {"param": self.param}
        if self.state:
            written |= {name: x for name, x in self.state.items() if name in names and isinstance(x, Tensor)}
        return written if self.low_bits is None else {**written, "grad_correction": self.low_bits}

    def called(self, what: str) -> str:
        """What errors call one of these."""
        if what == "grad_correction":
            return f"the low bits of the gradient of {self.who}"
        return self.who if what == "param" else f"the state {what} of {self.who}"

    def make_state(self) -> None:
        """Creates the states that are missing and converts those that are kept otherwise."""
        kind = self.kind
        if not kind.state_names and not any(kind.names) and not kind.averages:
            return
        self.state = self._states[self.param]
        if kind.first is not None and not self.state:
            self.state.update({name: x.clone() for name, x in kind.first.items()})
            if kind.averages:
                self.state[AVERAGE] = self.param.detach().clone()
            return
        self._make_state()
        if not self.state_before and kind.begins_alike:
            kind.first = {name: x for name, x in self.state.items() if name != AVERAGE}

    def _make_state(self) -> None:
        kind = self.kind
        if kind.keeps_step and "step" not in self.state:
            behind = 0 if self.rule.keeps_step or self.is_new else 1
            self.state["step"] = torch.full((), behind, **step_options(self.group, self.param))
        widen_numbers(self.state, self.param, self.group, self.rule)
        if kind.keeps_step:
            self.state["step"] = counting(self.state["step"], self.param)
        if self.is_fast and kind.engine == "gpu":
            for number in (*(["step"] if kind.keeps_step else []), *kind.scalar_states):
                if number in self.state:
                    self.state[number] = self.state[number].to(self.param.device)
        begun = self.param if self.group.get("differentiable") else detached(self.param)  # which autograd is to see
        for name in kind.names:  # in update's order, which is torch.optim's
            if name is None or kept(self.state, name) is not None:
                continue
            begin_state(self.rule, name, self.state, begun, self.group, kind.formats.get(name))
        if not kind.formats:
            if kind.averages and AVERAGE not in self.state:
                self.state[AVERAGE] = self.param.detach().clone()
            return
        for name in kind.present:
            convert(self.state, name, kind.formats[name], self.param)
        begin_low_bits(self.state, kind.formats["param"], self.param)
        if AVERAGE in kind.formats:
            if AVERAGE not in self.state:
                own = weight_arrays(self.param, self.state)
                set_arrays(self.state, AVERAGE, {name: x.clone() for name, x in own.items()})
            convert(self.state, AVERAGE, kind.formats[AVERAGE], self.param)

    def restore_state(self) -> None:
        """Takes back what make_state has done."""
        if not self.state_before:
            self._states.pop(self.param, None)
            return
        state = self._states[self.param]
        state.clear()
        state.update(self.state_before)

    def tensor(self, name: str, suffix: str) -> Tensor:
        """One of the arrays of a kernel."""
        if name == "grad":
            return self.low_bits if suffix else self.grad  # type: ignore[return-value]
        if suffix or name != "param":
            return self.state[name + suffix]  # type: ignore[no-any-return]
        return self.param

    def count(self) -> None:
        """All that a step is where there are no numbers."""
        if self.kind.keeps_step:
            self.state["step"] += 1
        count_write([self.param])
