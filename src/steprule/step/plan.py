"""The plans for a set of tensors, and what must still hold for them to be used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter, le
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine import gpu
from steprule.engine.eager import EagerStep
from steprule.engine.gpu_plan import GpuPlan
from steprule.engine.own import Planned, run_together
from steprule.engine.plan import FULL, Plan
from steprule.services.hooks import weakly
from steprule.services.member import Member
from steprule.services.step import Part, StepServices
from steprule.step.entry import Entry, Job, Kernel, count_write
from steprule.step.listed import PARAMS
from steprule.step.loose import Loose
from steprule.step.tables import hyper, launcher_of, plan_of, planned_of, seen, work_of
from steprule.tensors.average import start_average
from steprule.tensors.memory import missing_bytes, span
from steprule.tensors.state import FORMAT_OPTIONS
from steprule.trace.tracing import has_own, static_settings

if TYPE_CHECKING:
    from steprule.engine.gpu_own import GpuPlanned
    from steprule.services.device import OnDevice

_ADDRESS = Tensor.data_ptr
_STORAGE, _BYTES, _OFFSET = Tensor.untyped_storage, torch.UntypedStorage.nbytes, Tensor.storage_offset
_GRAD = attrgetter("grad")
_END = (object(),)  # where one list ends before the other, it is compared with something else


class StepPlan:
    """The plans for a set of tensors, and what must still hold for them to be used again.

    Looked at in every step, since anyone may replace a tensor, move its memory or lay it out anew: kernels write to
    addresses, and know nothing of whose memory that is by now.

    Args:
        job: whose.
        entries: the parameters of this step.
        buckets: the kernels for those that kernels step, with telemetry and without, each with its entries.
        whole: whether they are all that have a gradient. If not, they are one released parameter, listed once or more:
            where it is listed has been looked at before, and only its first group is known here.

    Attributes:
        repeats: whether it can be used again.
    """

    def __init__(
        self, job: Job, entries: list[Entry], buckets: list[tuple[list[Kernel], list[Entry]]], whole: bool = True
    ) -> None:
        self._rule, self._services, self._accumulator = job.rule, job.services, job.accumulator
        self._whole = whole
        self._groups = job.groups if whole else [entries[0].group]
        self._needs_numbers = not all(bucket[0].engine == "gpu" for _, bucket in buckets)
        self._check_numbers = weakly(job.check_numbers)
        self._move_resting_averages = weakly(job.move_resting_averages)
        self._stepped = {entry.param for entry in entries}
        self._entries = entries
        self._know_settings(job.flags)
        self._know_tensors(job.states, [entry for _, bucket in buckets for entry in bucket])
        self._lay_out(buckets)
        self._on_device = self._decided_on_device()

    def _know_settings(self, flags: Sequence[str]) -> None:
        """What groups are, to be compared with later ones."""
        groups = self._groups
        keys = [name for name in (*self._rule.hyperparameters, *flags, *FORMAT_OPTIONS) if name in groups[0]]
        self._keys = keys
        settings_of = itemgetter(*keys, keys[0])
        self._settings_of: Callable[[dict[str, Any]], tuple[Any, ...]] = settings_of
        if self._services is not None:
            self._settings_of = lambda group: (*settings_of(group), group.get("clip"))
        self._settings = [self._plain(group) for group in groups]
        self._static = [self._static_of(group) for group in groups]
        self._lengths = list(map(len, [*groups, *(map(PARAMS, groups) if self._whole else ())]))

    def _know_tensors(self, states: Any, fast: list[Entry]) -> None:
        """What tensors are and where they lie, to be compared with later ones."""
        self._params = [entry.param for entry in fast]
        active = set(map(id, self._params))
        self._idle = [p for g in self._groups for p in g["params"] if id(p) not in active] if self._whole else []
        self._state_of = states
        self._objects = list(self._objects_now(self._groups, states))
        self.repeats = len(fast) == len(self._entries) and all(set(x.state) == x.state_names() for x in fast)
        corrections = [entry.correction for entry in fast if entry.corrected]
        self._fixed = (self._params, *(entry.state.values() for entry in fast), corrections)
        self._held = list(chain.from_iterable(self._fixed))  # so that no other state can take their places
        if self.repeats:
            tensors = [*self._held, *(entry.grad for entry in fast)]
            self._at = list(map(_ADDRESS, tensors))
            spans = np.array([one for one in map(span, self._held) if one[0] != one[1]], np.uint64).reshape(-1, 2)
            self._starts, self._ends = np.sort(spans, 0).T  # of what is written
            self._grad_sizes = np.array([end - start for start, end in (span(entry.grad) for entry in fast)], np.uint64)
            self._same_layout = _layout_check(tensors)
            self._needed = [entry.grad.numel() * entry.grad.element_size() for entry in fast]  # bytes, without a gap

    def _lay_out(self, buckets: list[tuple[list[Kernel], list[Entry]]]) -> None:
        """What kernels run over."""
        self._plans: list[tuple[Kernel, Plan | GpuPlan, slice]] = []
        self._counters: list[Any] = []
        self._works: list[Any] = []
        self._launchers: list[Callable[[], None]] = []
        self._planned: list[Planned | GpuPlanned] = []
        start = 0
        for kernels, bucket in buckets:
            kernel, services = kernels[0], self._services
            rows = [entry.number if self._whole else 0 for entry in bucket]
            plan = plan_of(kernels, bucket, self._groups, services, rows)
            self._plans.append((kernel, plan, slice(start, start + len(bucket))))
            start += len(bucket)
            if isinstance(plan, Plan) and bucket[0].keeps_step:
                self._counters.append(plan.counter.data)
            if kernel.program.own:
                self._planned.append(planned_of(kernel, plan, bucket))
            if services is not None:
                members = [Member(*entry.described()) for entry in bucket]
                self._works.append(work_of(kernels, plan, members, bucket[0].formats))
            else:
                self._launchers.append(launcher_of(kernel, plan))

    def _decided_on_device(self) -> OnDevice | None:
        """What decides for the services on the GPU, where the host need not know."""
        services = self._services
        if services is None or not (self.repeats and self._works and not self._needs_numbers and self._whole):
            return None
        if services.nonfinite == "raise" or services.release is not None:
            return None
        from steprule.services.device import OnDevice

        return OnDevice(services, self._works)

    def run(self, groups: list[dict[str, Any]], states: Any, only_ask: bool = False) -> bool:
        """Steps and returns True, or changes nothing and returns False if something is not as it was.

        Args:
            groups, states: of the optimizer, as they are now.
            only_ask: return True without stepping.
        """
        try:
            if self._whole:
                lists = [*map(PARAMS, groups)]
                objects = chain(*lists, states.values(), _END)
            else:
                groups, lists, objects = self._groups, [], chain(map(states.get, self._params), _END)
            tensors: list[Any] = [*chain.from_iterable(self._fixed), *map(_GRAD, self._params)]
            at = list(map(_ADDRESS, tensors))
            if not (
                states is self._state_of
                and all(map(is_, objects, self._objects))
                and self._same_layout(*tensors)
                and (at == self._at or self._follow(at, tensors))
                # A key more may be one that a group cannot have; a parameter may have gone to the next group.
                and list(map(len, [*groups, *lists])) == self._lengths
            ):
                return False
            is_changed = self._settings != list(map(self._settings_of, groups))
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError):
            return False  # no gradient, a sparse one, a state that is no tensor, a setting that is no number
        if is_changed and not self._refresh(groups):
            return False
        for counter in self._counters:
            if counter[FULL]:
                return False
        if self._idle and any(param.grad is not None for param in self._idle):
            return False
        if only_ask:
            return True
        if self._accumulator is not None:
            self._accumulator.settle(self._params)
        if self._on_device is not None:
            self._serve_on(self._on_device)
            return True
        if self._services is not None:
            self._serve(self._services)
            return True
        if self._planned:  # as `_take` does, without the cost of a call
            run_together(self._planned)
        for launch in self._launchers:
            launch()
        count_write(self._params)
        return True

    def _follow(self, at: list[int], tensors: list[Tensor]) -> bool:
        """Takes over new addresses of gradients.

        False if it is others that have changed, or a gradient's memory was freed or lies where something is written.
        """
        first = len(self._held)
        if at[:first] != self._at[:first] or at.count(0) != self._at.count(0):
            return False
        grads = tensors[first:]
        is_plain = all(map(le, self._needed, map(_BYTES, map(_STORAGE, grads)))) and not any(map(_OFFSET, grads))
        if not is_plain and any(map(missing_bytes, grads)):
            return False
        starts = np.array(at[first:], np.uint64)
        before = self._starts.searchsorted(starts + self._grad_sizes)  # how many begin before its end, how many end
        if not np.array_equal(before, self._ends.searchsorted(starts, "right")):  # before it begins
            return False
        for _, plan, part in self._plans:
            plan.set_grads(at[first:][part])
        self._at = at
        return True

    def holds_only(self, groups: list[dict[str, Any]], states: Any) -> bool:
        """Whether all tensors that it keeps alive are the optimizer's still, whose groups and states these are."""
        objects = self._objects_now(groups, states)
        fixed = chain.from_iterable(self._fixed)
        return (
            states is self._state_of
            and all(map(is_, objects, self._objects))
            and all(map(is_, chain(fixed, _END), chain(self._held, _END)))
        )

    def _objects_now(self, groups: list[dict[str, Any]], states: Any) -> Iterator[Any]:
        """What must be the same objects."""
        if self._whole:
            return chain(*map(PARAMS, groups), states.values(), _END)
        return chain(map(states.get, self._params), _END)

    def go(self) -> bool:
        """The first step, with those entries that are not fast; False if services refuse it, and nothing has changed.

        Each entry's `has_begun` says then, or where it raises, whether something of it has been written.
        """
        entries, self._entries = self._entries, []
        alive = [entry for entry in entries if not entry.is_abstract]
        loose = [Loose(entry) for entry in alive if not entry.is_fast]
        if self._services is None:
            self._take(False, alive, loose)
        elif not self._serve(self._services, alive, loose):
            return False
        for entry in entries:
            if entry.is_abstract:
                entry.count()
        return True

    def _take(self, gather: bool, entries: Sequence[Entry] = (), loose: Sequence[Loose] = ()) -> None:
        """The step itself, once services have agreed."""
        steps = _prepare(entries, loose) if loose else []
        for entry in entries:  # from here on what kernels step has changed
            entry.has_begun |= entry.is_fast
        if self._planned or steps:
            run_together([*self._planned, *(step for step in steps if step is not None)])
        for launch in self._launchers:
            launch()
        for work in self._works:
            work.launch(gather)
        count_write(self._params)
        for one, step in zip(loose, steps, strict=True):
            one.finish(step, gather) if step is not None else one.step(gather)

    def _serve(self, services: StepServices, entries: Sequence[Entry] = (), loose: Sequence[Loose] = ()) -> bool:
        """Steps with services; False if they refuse."""
        services.look()
        around = services.release or services
        parts: list[Part] = [*self._works, *loose]
        if not parts:
            services.rest()
            if services.average is None:
                return True
        if not around.begin(parts):
            return False
        gather = services.gathers
        self._take(gather, entries, loose)
        if services.average is not None:
            for entry in entries if services.averaged == 0 else ():
                start_average(entry.param, entry.state)
            if self._whole:
                self._move_resting_averages(self._stepped, services.average_weight)
        around.finish(parts, gather)
        if self._on_device is not None:
            self._on_device.fill()
        return True

    def _serve_on(self, device: OnDevice) -> None:
        """Steps with services that decide on the device; what a CUDA graph records is never gathered."""
        assert self._services is not None
        gather = self._services.gathers and not gpu.is_recording(device.device)
        weight = device.begin()
        self._take(gather)
        if weight is not None:
            self._move_resting_averages(self._stepped, weight)
        device.finish(gather)

    def _plain(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """A group's settings with tensors and arrays read, since those may be filled in place."""
        return tuple(seen(value, self._needs_numbers) for value in self._settings_of(group))

    def _refresh(self, groups: list[dict[str, Any]]) -> bool:
        """Takes over new numbers; False if the change calls for other kernels."""
        settings = [self._plain(group) for group in groups]
        changed = {
            name
            for before, now in zip(self._settings, settings, strict=True)
            for name, old, new in zip(self._keys, before, now, strict=False)
            if old is not new and old != new
        }
        is_numbers = all(isinstance(self._rule.hyperparameters.get(name), (float, int, tuple)) for name in changed)
        is_numbers &= "lookahead" not in changed  # which is whole
        if not is_numbers or not self._check_numbers(groups, changed):
            return False  # and all is looked at
        if [self._static_of(group) for group in groups] != self._static:
            return False
        self._settings = settings
        for kernel, plan, _ in self._plans:
            plan.set_hyper(hyper(kernel, groups, self._services))
        return True

    def _static_of(self, group: dict[str, Any]) -> tuple[Any, ...]:
        formats = group.get("states"), group.get("weights"), group.get("clip")
        return static_settings(self._rule, group), group.get("maximize", False), group.get("differentiable"), formats


def _layout_check(tensors: list[Tensor]) -> Callable[..., bool]:
    """A function of as many tensors that says whether each has the kind, dtype, shape and strides of these.

    torch.compile's guards do that in one call.
    """
    sizes: list[Any] = [list(x.shape) for x in tensors]
    strides: list[Any] = [list(x.stride()) for x in tensors]
    guards = torch._C._dynamo.guards.TensorGuards(
        *tensors,
        dynamic_dims_sizes=sizes,
        dynamic_dims_strides=strides,
    )
    return guards.check


def _prepare(entries: Sequence[Entry], loose: Sequence[Loose]) -> list[EagerStep | None]:
    """The steps of the loose ones; None where it need not be known before anything changes, and takes memory.

    Nor can it where a parameter is listed twice.
    """
    steps: list[EagerStep | None] = []
    before: set[Tensor] = set()
    for entry in entries:
        if not entry.is_fast:
            has_sums = has_own(entry.rule, entry.group) and entry.param not in before
            steps.append(loose[len(steps)].prepare() if has_sums else None)
        before.add(entry.param)
    return steps
