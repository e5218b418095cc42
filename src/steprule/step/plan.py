"""The plans for a set of tensors, and what must still hold for them to be used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steprule.engine import gpu
from steprule.engine.eager import EagerStep
from steprule.engine.own import run_together
from steprule.engine.plan import FULL
from steprule.services.hooks import weakly
from steprule.services.release import check_not_released
from steprule.services.step import Part, StepServices
from steprule.step.entry import Entry, count_write
from steprule.step.job import Job
from steprule.step.kind import Kernel
from steprule.step.listed import PARAMS
from steprule.step.loose import Loose
from steprule.step.resting import Resting
from steprule.step.roster import ADDRESS, GRAD, Roster
from steprule.step.tables import Bucket, hyper, seen
from steprule.tensors.average import start_average
from steprule.tensors.state import FORMAT_OPTIONS
from steprule.trace.tracing import has_own, static_settings

if TYPE_CHECKING:
    from steprule.services.device import OnDevice

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
        self._needs_numbers = not all(bucket[0].kind.engine == "gpu" for _, bucket in buckets)
        self._check_numbers = weakly(job.check_numbers)
        self._move_resting_averages = weakly(job.move_resting_averages)
        self._entries = entries
        self._know_settings(job.flags)
        fast = [entry for _, bucket in buckets for entry in bucket]
        self._know_tensors(job.states, fast)
        self._lay_out(buckets)
        self._know_averages(fast)
        self._on_device = self._decided_on_device()
        if any(entry.rests for entry in fast):
            self._select()

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
        active = {id(entry.param) for entry in fast}
        idle = [p for g in self._groups for p in g["params"] if id(p) not in active] if self._whole else []
        self._roster = Roster(fast, idle)
        self._state_of = states
        self._objects = list(self._objects_now(self._groups, states))
        self.repeats = len(fast) == len(self._entries) and all(set(x.state) == x.kind.state_names for x in fast)
        must_select = any(entry.rests for entry in fast)
        can_select = self.repeats and self._whole and all(entry.kind.engine == "cpu" for entry in fast)
        self._selects = must_select or can_select
        self._is_short = False
        self._known = fast if can_select and idle else []
        if self.repeats or must_select:
            self._roster.remember([entry.grad for entry in fast])

    def _lay_out(self, buckets: list[tuple[list[Kernel], list[Entry]]]) -> None:
        """What kernels run over."""
        self._buckets: list[tuple[Bucket, slice]] = []
        start = 0
        for kernels, bucket in buckets:
            rows = [entry.number if self._whole else 0 for entry in bucket]
            one = Bucket(kernels, bucket, self._groups, rows, self._services)
            self._buckets.append((one, slice(start, start + len(bucket))))
            start += len(bucket)
        self._engage([one for one, _ in self._buckets])

    def _engage(self, buckets: Sequence[Bucket]) -> None:
        """Has the steps that come run over these."""
        self._counters = [one.counter for one in buckets if one.counter is not None]
        self._planned = [one.planned for one in buckets if one.planned is not None]
        self._works = [one.work for one in buckets if one.work is not None]
        self._launchers = [one.launch for one in buckets if one.launch is not None]

    def _know_averages(self, fast: list[Entry]) -> None:
        """How averages move of parameters that take no step."""
        averages = self._services is not None and self._services.average is not None
        self._resting = Resting(fast) if averages and self._selects and Resting.takes(fast) else None
        self._moved = {entry.param for entry in self._entries}

    def _select(self) -> bool:
        """Turns to the parameters that have a gradient now; False if they are those that had one, or others are not known."""
        roster = self._roster
        if not self._selects:
            return False
        check_not_released(chain(roster.params, roster.idle))
        try:
            active = roster.select()
            if active is None:
                return False
            self._engage([one for one, part in self._buckets if one.select(active[part])])
            if self._resting is not None:
                self._resting.select(~active)
            elif self._services is not None and self._services.average is not None:
                self._moved = set(roster.active)
        except BaseException:
            roster.forget()  # half of it is no plan
            raise
        return True

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
        roster, is_short, self._is_short = self._roster, False, False
        if roster.waiting and any(param.grad is not None for param in roster.waiting):
            if self._select():
                return self.run(groups, states, only_ask)
            is_short = True
        try:
            if self._whole:
                lists = [*map(PARAMS, groups)]
                objects = chain(*lists, states.values(), _END)
            else:
                groups, lists, objects = self._groups, [], chain(map(states.get, roster.params), _END)
            tensors: list[Any] = [*map(GRAD, roster.grads_of), *chain.from_iterable(roster.fixed)]
            at = list(map(ADDRESS, tensors))
            if not (
                states is self._state_of
                and all(map(is_, objects, self._objects))
                and roster.same_layout(*tensors)
                and (at == roster.at or self._follow(at, tensors))
                # A key more may be one that a group cannot have; a parameter may have gone to the next group.
                and list(map(len, [*groups, *lists])) == self._lengths
            ):
                return False
            is_changed = self._settings != list(map(self._settings_of, groups))
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError):
            # No gradient, a sparse one, a state that is no tensor, a setting that is no number.
            return self._select() and self.run(groups, states, only_ask)
        if is_changed and not self._refresh(groups):
            return False
        for counter in self._counters:
            if counter[FULL]:
                return False
        if is_short:
            self._is_short = True
            return False
        if only_ask:
            return True
        if self._accumulator is not None:
            self._accumulator.settle(roster.active)
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
        count_write(roster.active)
        return True

    def _follow(self, at: list[int], tensors: list[Tensor]) -> bool:
        """Takes over new addresses of gradients; False if something else has changed."""
        if not self._roster.follow(at, tensors):
            return False
        for bucket, part in self._buckets:
            bucket.plan.set_grads(at[part])
        return True

    def known(self) -> dict[int, tuple[Entry, Tensor]]:
        """Its parameters, if all about them is as it was when others were found to have a gradient too.

        Returns:
            By the id of each its entry, and its gradient or what stands in for that.
        """
        grads = map(GRAD, self._roster.grads_of) if self._is_short else ()
        return {id(entry.param): (entry, grad) for entry, grad in zip(self._known, grads, strict=False)}

    def holds_only(self, groups: list[dict[str, Any]], states: Any) -> bool:
        """Whether all tensors that it keeps alive are the optimizer's still, whose groups and states these are."""
        objects = self._objects_now(groups, states)
        fixed = chain.from_iterable(self._roster.fixed)
        return (
            states is self._state_of
            and all(map(is_, objects, self._objects))
            and all(map(is_, chain(fixed, _END), chain(self._roster.held, _END)))
        )

    def _objects_now(self, groups: list[dict[str, Any]], states: Any) -> Iterator[Any]:
        """What must be the same objects."""
        if self._whole:
            return chain(*map(PARAMS, groups), states.values(), _END)
        return chain(map(states.get, self._roster.params), _END)

    def go(self) -> bool:
        """The first step, with those entries that are not fast; False if services refuse it, and nothing has changed.

        Each entry's `has_begun` says then, or where it raises, whether something of it has been written.
        """
        entries, self._entries = self._entries, []
        alive = [entry for entry in entries if not (entry.kind.is_abstract or entry.rests)]
        loose = [Loose(entry) for entry in alive if not entry.is_fast]
        if self._services is None:
            self._take(False, alive, loose)
        elif not self._serve(self._services, alive, loose):
            return False
        for entry in entries:
            if entry.kind.is_abstract:
                entry.count()
            entry.let_go()
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
        count_write(self._roster.active)
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
                self._move_resting(services.average_weight)
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
            self._move_resting(weight)
        device.finish(gather)

    def _move_resting(self, weight: Any) -> None:
        """Brings averages of parameters that take no step towards them, by this share."""
        if self._resting is not None:
            self._resting.move(weight)
        if self._resting is None or self._roster.idle:
            self._move_resting_averages(self._moved, weight)

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
        for bucket, _ in self._buckets:
            bucket.plan.set_hyper(hyper(bucket.kernel, groups, self._services))
        return True

    def _static_of(self, group: dict[str, Any]) -> tuple[Any, ...]:
        formats = group.get("states"), group.get("weights"), group.get("clip")
        return static_settings(self._rule, group), group.get("maximize", False), group.get("differentiable"), formats


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
