"""The plans of one optimizer, and how new ones are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engine import gpu
from steprule.step.entry import Entry, Kinds
from steprule.step.job import Job
from steprule.step.kind import AnyKernel
from steprule.step.listed import Listed, Seen, list_all
from steprule.step.plan import StepPlan
from steprule.tensors.memory import are_apart, find_shared, is_abstract

_NONE: Mapping[int, tuple[Entry, Tensor]] = {}


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

    def let_go(self, groups: list[dict[str, Any]], states: Any) -> None:
        """Drops plans that keep parameters or states alive which have been replaced."""
        if self.current is not None and not self.current.holds_only(groups, states):
            self.current = None
        if self.single:
            own = {param for group in groups for param in group["params"]}
            self.single = {
                param: plan for param, plan in self.single.items() if param in own and plan.holds_only(groups, states)
            }

    def renew(self, job: Job) -> None:
        """Looks at every parameter, makes the plan for those that an engine with kernels takes, and steps."""
        known = self.current.known() if self.current is not None else {}
        self.current = None
        self.current = _step(job, list(list_all(job.groups)), True, known)

    def renew_single(self, job: Job, param: Tensor, listed: Sequence[Listed] = ()) -> None:
        """The same for one parameter alone, or for the part of it that is here.

        Args:
            job: whose.
            param: the parameter.
            listed: where it is listed, with what is to be stepped. Default: as `list_single` has found.
        """
        self.current = None
        if job.accumulator is not None:
            job.accumulator.watch(param)  # it may have been frozen
        plan = _step(job, listed or self.listed[param], whole=False)
        if plan is not None:
            self.single[param] = plan


def make_states(job: Job) -> None:
    """Makes the states of all parameters that have gradients, and steps none."""
    kinds: Kinds = {}
    for one in list_all(job.groups):
        if one.param.grad is not None:
            Entry(job, one, kinds).make_state()


def look(
    job: Job, listed: Sequence[Listed], known: Mapping[int, tuple[Entry, Tensor]] = _NONE
) -> tuple[list[Entry], list[tuple[list[AnyKernel], list[Entry]]]]:
    """What a step of these parameters takes, and the kernels for it; no parameter and no state has changed.

    Args:
        job: whose step.
        listed: the parameters.
        known: what need not be looked at again: the entry of a parameter by its id, and its gradient or what stands in for it.

    Raises:
        RuntimeError: the step cannot be taken.
    """
    if job.accumulator is not None:
        job.accumulator.settle([one.param for one in listed])
    kinds: Kinds = {}
    entries = [_entry(job, one, known, kinds) for one in listed if one.param.grad is not None or id(one.param) in known]
    wrong = _wrong_memory(entries)
    buckets = _sorted_by_kernel(entries)
    if known and (wrong is not None or not all(entry.is_fast and entry.kind.engine == "cpu" for entry in entries)):
        return look(job, listed)  # those without a gradient may lie where others do, and no plan could leave them out
    if wrong is not None:
        raise RuntimeError(wrong)
    gathers = (False, True) if job.services is not None and job.services.telemetry else (False,)
    kernels = [[bucket[0].kind.kernel(gather) for gather in gathers] for bucket in buckets]
    for kind in kinds.values():
        kind.first = None  # which would live as long as the kind
    return entries, list(zip(kernels, buckets, strict=True))


def _step(
    job: Job, listed: Sequence[Listed], whole: bool, known: Mapping[int, tuple[Entry, Tensor]] = _NONE
) -> StepPlan | None:
    """Steps, and returns what can do the next step, if something can.

    Args:
        job, listed, known: as for `look`.
        whole: whether they are all of the optimizer's parameters.
    """
    entries, buckets = look(job, listed, known)
    taken = False
    try:
        for entry in entries:
            if id(entry.param) not in known:
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
    of_kind: dict[int, list[Entry]] = {}  # the same, by what is quicker to look up
    last = {id(entry.param): entry for entry in entries}
    seen: set[int] = set()
    for entry in entries:
        entry.is_last = last[id(entry.param)] is entry
        entry.is_fast = entry.is_fast and (entry.is_last or not entry.kind.averages)
        if id(entry.param) in seen:  # listed twice, stepped twice: after the pass, not during it
            entry.is_fast = entry.is_new = False
        seen.add(id(entry.param))
        if entry.is_fast:
            kind = entry.kind
            if id(kind) not in of_kind:
                of_kind[id(kind)] = buckets.setdefault(kind.key, [])
            of_kind[id(kind)].append(entry)
            if gpu.is_recording(entry.param.device):
                raise RuntimeError(
                    "a CUDA graph cannot record an optimizer's first step, or the first after a change of its parameters, "
                    "groups or states: take one before the recording"
                )
    return list(buckets.values())


def _entry(job: Job, one: Listed, known: Mapping[int, tuple[Entry, Tensor]], kinds: Kinds) -> Entry:
    """What a parameter needs, anew or as it is known."""
    if id(one.param) not in known:
        return Entry(job, one, kinds)
    entry, grad = known[id(one.param)]
    entry.again(one.group, grad)
    return entry


def _wrong_memory(entries: Sequence[Entry]) -> str | None:
    """What is wrong if something lies in the same memory as something else, or has no memory where it should."""
    firsts: dict[int, Entry] = {}
    for entry in entries:
        firsts.setdefault(id(entry.param), entry)
    if not are_apart([x for entry in firsts.values() for x in (*entry.written().values(), entry.grad)]):
        written: list[tuple[str, Tensor]] = []
        grads: list[tuple[str, Tensor, range]] = []
        for entry in firsts.values():
            start = len(written)
            written += [(entry.called(what), x) for what, x in entry.written().items()]
            grads.append((f"the gradient of {entry.who}", entry.grad, range(start, len(written))))
        wrong = find_shared(written, grads)
        if wrong is not None:
            return wrong
    if is_abstract(torch.empty(0, device="cpu")) and not all(entry.kind.is_abstract for entry in entries):
        return "a FakeTensorMode is on, and parameters are no fake tensors: make the model in it as well"
    return None
