"""The plans of one optimizer, and how new ones are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engine import gpu
from steprule.services.step import StepServices
from steprule.step.entry import Entry, Job, Kernel
from steprule.step.listed import Listed, Seen, list_all
from steprule.step.plan import StepPlan
from steprule.tensors.memory import find_shared, is_abstract


class Plans:
    """The plan of all parameters, or those of parameters that are stepped one by one.

    Attributes:
        current: what can do the next step, if something can.
        single: the same for every parameter that is stepped by itself.
        listed: where those are listed.
    """

    def __init__(self) -> None:
        self.current: StepPlan | None = None
        self.single: dict[Tensor, StepPlan] = {}
        self.listed: dict[Tensor, list[Listed]] = {}
        self._seen: Seen | None = None

    def forget(self) -> None:
        """Makes the next step look at everything anew."""
        self.current, self.single, self._seen = None, {}, None

    def knows(self, groups: list[dict[str, Any]]) -> bool:
        """Whether `list_single` has seen the parameters of groups as they are."""
        return self._seen is not None and self._seen.holds(groups)

    def list_single(self, groups: list[dict[str, Any]]) -> None:
        """Takes note of parameters that are about to be stepped one by one."""
        self.single, self.listed = {}, {}
        for one in list_all(groups):
            self.listed.setdefault(one.param, []).append(one)
        self._seen = Seen(groups)

    def let_go(self, groups: list[dict[str, Any]], states: Any, services: StepServices | None) -> None:
        """Drops plans that keep parameters or states alive which have been replaced."""
        if self.current is not None and not self.current.holds_only(groups, states):
            if services is not None:
                services.look()  # what decides on a GPU keeps them too
            self.current = None
        if self.single:
            own = {param for group in groups for param in group["params"]}
            self.single = {
                param: plan for param, plan in self.single.items() if param in own and plan.holds_only(groups, states)
            }

    def renew(self, job: Job) -> None:
        """Looks at every parameter, makes the plan for those that an engine with kernels takes, and steps."""
        self.current = None
        self.current = _step(job, list(list_all(job.groups)), whole=True)

    def renew_single(self, job: Job, param: Tensor) -> None:
        """The same for one parameter alone."""
        self.current = None
        if job.accumulator is not None:
            job.accumulator.watch(param)  # it may have been frozen
        plan = _step(job, self.listed[param], whole=False)
        if plan is not None:
            self.single[param] = plan


def make_states(job: Job) -> None:
    """Makes the states of all parameters that have gradients, and steps none."""
    for one in list_all(job.groups):
        if one.param.grad is not None:
            Entry(job, one).make_state()


def look(job: Job, listed: Sequence[Listed]) -> tuple[list[Entry], list[tuple[list[Kernel], list[Entry]]]]:
    """What a step of these parameters takes, and the kernels for it; no parameter and no state has changed.

    Raises:
        RuntimeError: the step cannot be taken.
    """
    if job.accumulator is not None:
        job.accumulator.settle([one.param for one in listed])
    entries = [Entry(job, one) for one in listed if one.param.grad is not None]
    buckets = _sorted_by_kernel(entries)
    _check_memory(entries)
    gathers = (False, True) if job.services is not None and job.services.telemetry else (False,)
    return entries, [([bucket[0].kernel(gather) for gather in gathers], bucket) for bucket in buckets]


def _step(job: Job, listed: Sequence[Listed], whole: bool) -> StepPlan | None:
    """Steps, and returns what can do the next step, if something can."""
    entries, buckets = look(job, listed)
    taken = False
    try:
        for entry in entries:
            entry.make_state()
        plan = StepPlan(job, entries, buckets, whole)
        taken = plan.go()
    finally:
        if not taken:
            begun = {entry.param for entry in entries if entry.has_begun}
            for entry in entries:
                if entry.param not in begun:
                    entry.restore_state()
    return plan if taken and plan.repeats else None


def _sorted_by_kernel(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Those that kernels step, by the kernel that they need."""
    buckets: dict[Any, list[Entry]] = {}
    last = {id(entry.param): entry for entry in entries}
    seen: set[int] = set()
    for entry in entries:
        entry.is_last = last[id(entry.param)] is entry
        entry.is_fast = entry.is_fast and (entry.is_last or not entry.averages)
        if id(entry.param) in seen:  # listed twice, stepped twice: after the pass, not during it
            entry.is_fast = entry.is_new = False
        seen.add(id(entry.param))
        if entry.is_fast:
            buckets.setdefault(entry.kernel_key(), []).append(entry)
            if gpu.is_recording(entry.param.device):
                raise RuntimeError(
                    "a CUDA graph cannot record an optimizer's first step, or the first after a change of its parameters, "
                    "groups or states: take one before the recording"
                )
    return list(buckets.values())


def _check_memory(entries: Sequence[Entry]) -> None:
    """Raises for what lies in the same memory, and for what has no memory where it should."""
    written: list[tuple[str, Tensor]] = []
    grads: list[tuple[str, Tensor, range]] = []
    firsts: dict[int, Entry] = {}
    for entry in entries:
        firsts.setdefault(id(entry.param), entry)
    for entry in firsts.values():
        start = len(written)
        written += entry.written()
        grads.append((f"the gradient of {entry.who}", entry.grad, range(start, len(written))))
    wrong = find_shared(written, grads)
    if wrong is not None:
        raise RuntimeError(wrong)
    if is_abstract(torch.empty(0, device="cpu")) and not all(entry.is_abstract for entry in entries):
        raise RuntimeError("a FakeTensorMode is on, and parameters are no fake tensors: make the model in it as well")
