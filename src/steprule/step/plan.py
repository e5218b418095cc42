"""The plans for a set of tensors, and what must still hold for them to be used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import is_, itemgetter, methodcaller
from typing import Any, cast

import torch
from torch import Tensor

from steprule.engine.gpu_graph import Repeated, StepGraph, wrong_devices
from steprule.engine.plan import FULL
from steprule.engine.run import NOTHING, Around, alone, take_step
from steprule.formats.parts import whole_of
from steprule.hyper import MULTIPLIERS
from steprule.services.hooks import weakly
from steprule.services.host import OnHost, OnHosts
from steprule.services.release import check_not_released
from steprule.step.entry import Entry, count_write
from steprule.step.job import Job
from steprule.step.kind import AnyKernel
from steprule.step.listed import PARAMS_OF
from steprule.step.loose import Loose
from steprule.step.resting import RestingAverages
from steprule.step.roster import GRAD, Roster
from steprule.step.tables import Bucket, hyper, seen
from steprule.step.waves import Wave, in_waves
from steprule.tensors.average import start_average
from steprule.tensors.replaced import check_not_replaced
from steprule.tensors.state import GROUP_OPTIONS
from steprule.trace.tracing import static_settings

_modes = torch._C._len_torch_dispatch_stack
_CLIP = methodcaller("get", "clip")
_GET: Callable[[Any, dict[str, Any]], tuple[Any, ...]] = itemgetter.__call__
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
        self, job: Job, entries: list[Entry], buckets: list[tuple[list[AnyKernel], list[Entry]]], whole: bool = True
    ) -> None:
        self._rule, self._services, self._accumulator = job.rule, job.services, job.accumulator
        self._whole = whole
        self._groups = job.groups if whole else [entries[0].group]
        self._needs_numbers = not all(bucket[0].kind.engine == "gpu" for _, bucket in buckets)
        self._check_numbers, self._complete, self._spread = weakly(job.check_numbers), job.complete, job.spread
        self._compares = job.compares
        self._entries = entries
        self._know_settings(job.flags)
        waves = in_waves(buckets)
        fast = [entry for wave in waves for entry in wave.entries]
        self._know_tensors(job.states, fast)
        averages = job.services is not None and job.services.average is not None and whole
        self._averages = (
            RestingAverages(self._roster, entries, fast, self._selects, weakly(job.move_resting_averages))
            if averages
            else None
        )
        self._around: Around = NOTHING
        if job.services is not None and job.spread is not None:
            self._around = OnHosts(job.services, self._averages, job.spread.gather)
        elif job.services is not None:
            self._around = job.services.release or OnHost(job.services, self._averages)
        self._launchers: list[Callable[[], None]] | None
        self._lay_out(waves)
        self._graph_key: list[Any] = []
        if job.in_graph and entries:
            self._launchers = [partial(weakly(self._take_in_graph), self._graph_of(entries), self._launchers)]
            self._graph_key = self._graph_key_now()
        if any(entry.rests for entry in fast):
            self._select()

    def _know_settings(self, flags: Sequence[str]) -> None:
        """What groups are, to be compared with later ones."""
        groups = self._groups
        more = (*self._rule.hyperparameters, *flags, *GROUP_OPTIONS, *MULTIPLIERS)
        every = [{**self._rule.chosen(group).hyperparameters, **dict.fromkeys(more)} for group in groups]
        names = ([name for name in own if name in group] for own, group in zip(every, groups, strict=True))
        self._names = [(*own, own[0]) for own in names]  # two at least, of which an itemgetter gives a tuple
        self._getters = [itemgetter(*own) for own in self._names]
        self._clips = list(map(_CLIP, groups))
        self._settings = list(map(self._plain, map(_GET, self._getters, groups)))
        self._static = [self._static_of(group) for group in groups]
        self._lengths = list(map(len, [*groups, *(map(PARAMS_OF, groups) if self._whole else ())]))

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

    def _lay_out(self, waves: Sequence[Wave]) -> None:
        """What kernels run over."""
        self._buckets: list[tuple[Bucket, slice]] = []
        start = 0
        for kernels, bucket, memory in waves:
            rows = [entry.number if self._whole else 0 for entry in bucket]
            one = Bucket(kernels, bucket, self._groups, rows, self._services, memory, self._complete)
            self._buckets.append((one, slice(start, start + len(bucket))))
            start += len(bucket)
        self._engage([one for one, _ in self._buckets])

    def _engage(self, buckets: Sequence[Bucket]) -> None:
        """Has the steps that come run over these."""
        self._counters = [one.counter for one in buckets if one.counter is not None]
        self._works = [one.work for one in buckets]
        is_plain = self._services is None and not any(work.depth for work in self._works)
        is_plain &= self._spread is None or not any(self._spread.names)
        is_plain &= not (self._compares and self._works)
        self._launchers = [work.launch for work in self._works] if is_plain else None
        if isinstance(self._around, OnHost):
            self._around.forget()

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
            if self._spread is None and not active.any():
                check_not_replaced(map(whole_of, chain(roster.params, roster.idle)))
            self._engage([one for one, part in self._buckets if one.select(active[part])])
            if self._averages is not None:
                self._averages.select(active)
        except BaseException:
            roster.forget()  # half of it is no plan
            raise
        return True

    def _graph_of(self, entries: Sequence[Entry]) -> StepGraph:
        """What replays its steps.

        Raises:
            RuntimeError: the host has a part in them.
        """
        devices = {entry.param.device for entry in entries}
        wrong = wrong_devices(devices)
        if wrong is None and not self.repeats:
            wrong = "no kernel takes all parameters as they are, with the settings and states that they have"
        elif wrong is None and (self._spread is not None or self._complete is not alone):
            wrong = "processes have parts of parameters, and exchange numbers by way of the host"
        elif wrong is None and self._services is not None and not self._decided_on_device():
            is_raise = self._services.nonfinite == "raise"
            counted = "the host counts the steps of this rule, and waits to hear which are skipped"
            wrong = 'nonfinite="raise" has the host wait for each step' if is_raise else counted
        if wrong is not None:
            raise RuntimeError(f"cuda_graph=True does not go with this step: {wrong}. Set optimizer.cuda_graph = False")
        return StepGraph(next(iter(devices)), [work.numbers for work in self._works if work.numbers is not None])

    def _decided_on_device(self) -> bool:
        """Whether the services' decisions are made on the GPU, where the host need not know them."""
        services = self._services
        if services is None or not (self.repeats and self._works and not self._needs_numbers and self._whole):
            return False
        if self._spread is not None or (self._complete is not alone and self._may_add_up()):
            # Numbers come by way of the host, and all processes ask for them at the same places, also with a new plan.
            return False
        if (services.guards or services.rescales) and any(work.program.has_squares for work in self._works):
            return False  # the host counts steps, and must know of those that are refused
        return services.nonfinite != "raise" and services.release is None

    def _may_add_up(self) -> bool:
        """Whether a step may add something up."""
        services = self._services
        assert services is not None
        asks = (
            self._compares
            or services.wants is not None
            or services.rescales
            or services.telemetry is not None
            or services.counts
        )
        return asks or any(work.depth for work in self._works)

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
                lists = [*map(PARAMS_OF, groups)]
                objects = chain(*lists, states.values(), _END)
            else:
                groups, lists, objects = self._groups, [], chain(map(states.get, roster.params), _END)
            tensors: list[Any] = [*map(GRAD, roster.grads_of), *chain.from_iterable(roster.fixed)]
            # A key more may be one that a group cannot have; a parameter may have gone to the next group.
            if not (
                states is self._state_of
                and all(map(is_, objects, self._objects))
                and list(map(len, [*groups, *lists])) == self._lengths
            ):
                return False
            moved = roster.moved(tensors) if not _modes() else -1
            if moved > 0 and not self._follow(moved, tensors):
                return False
            is_changed = self._settings != list(map(_GET, self._getters, groups))
            if self._services is not None and not is_changed:
                is_changed = self._clips != list(map(_CLIP, groups))
        except (AttributeError, RuntimeError, TypeError, ValueError, KeyError):
            moved = -1  # a setting that is no number
        if moved < 0:  # no gradient, a sparse one, a state that is no tensor
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
            if self._accumulator is not None:
                self._accumulator.check_own()
            return True
        if self._accumulator is not None:
            self._accumulator.settle(roster.active)
        if self._launchers is None:
            takes = self._works or self._spread is not None or not self._rests_all()
            if takes and take_step(self._works, self._around, self._complete, None, self._spread, self._compares):
                count_write(roster.active)
            return True
        for launch in self._launchers:  # all that `take_step` would do, without the cost of a call
            launch()
        count_write(roster.active)
        return True

    def _graph_key_now(self) -> list[Any]:
        """What a graph of its launches holds for."""
        return [work.graph_key for work in self._works]

    def _take_in_graph(self, graph: StepGraph, launchers: Sequence[Callable[[], None]] | None) -> None:
        """Takes a step, or has it replayed; launchers as without a graph."""

        def step() -> None:
            if launchers is None:
                take_step(self._works, self._around)
            for launch in launchers or ():
                launch()

        graph.take(step, cast(Repeated, self._around), self._graph_key)

    def _follow(self, moved: int, tensors: list[Tensor]) -> bool:
        """Takes over new addresses of gradients; False if something else has changed."""
        at = self._roster.follow(moved, tensors)
        if at is None:
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
            return chain(*map(PARAMS_OF, groups), states.values(), _END)
        return chain(map(states.get, self._roster.params), _END)

    def go(self) -> bool:
        """The first step, with those entries that are not fast; False if services refuse it, and nothing has changed.

        Each entry's `has_begun` says then, or where it raises, whether something of it has been written.
        """
        entries, self._entries = self._entries, []
        services, around = self._services, self._around
        alive = [entry for entry in entries if not (entry.kind.is_abstract or entry.rests)]
        first = {id(entry.param): entry for entry in reversed(entries)}
        loose = [Loose(entry, first[id(entry.param)] is entry) for entry in alive if not entry.is_fast]
        works = [*self._works, *loose]
        starts_averages = False
        if services is not None:
            starts_averages = services.look().averaged == 0 and services.average is not None
        is_idle = services is not None and not works and self._spread is None and self._rests_all()
        begin = partial(self._begin, alive)
        if not is_idle and not take_step(works, around, self._complete, begin, self._spread, self._compares):
            return False
        for entry in alive if starts_averages else ():
            start_average(entry.param, entry.state)
        if loose and isinstance(around, OnHost):
            around.forget()  # whom no kernel steps
        if self._decided_on_device():
            from steprule.services.device import OnDevice

            assert services is not None
            self._around = OnDevice(services, self._works, self._averages)
        for entry in entries:
            if entry.kind.is_abstract:
                entry.count()
            entry.let_go()
        return True

    def _rests_all(self) -> bool:
        """Takes note of a step that nothing takes; False where it counts all the same.

        It does where averages move, and where other processes may have gradients and do not say so.
        """
        assert self._services is not None
        self._services.look()
        if self._services.wants is None and self._complete is not alone:
            return False
        self._services.rest()
        return self._services.average is None

    def _begin(self, entries: Sequence[Entry]) -> None:
        """From here on what kernels step has changed."""
        for entry in entries:
            entry.has_begun |= entry.is_fast
        count_write(self._roster.active)

    def _plain(self, settings: tuple[Any, ...]) -> tuple[Any, ...]:
        """A group's settings with tensors and arrays read, since those may be filled in place."""
        return tuple(seen(value, self._needs_numbers) for value in settings)

    def _refresh(self, groups: list[dict[str, Any]]) -> bool:
        """Takes over new numbers; False if the change calls for other kernels."""
        changed: set[str] = set()
        settings = []
        for names, before, now in zip(self._names, self._settings, map(_GET, self._getters, groups), strict=True):
            mine = list(before)
            for place, (name, old, new) in enumerate(zip(names, before, now, strict=True)):
                if old is not new and old != new:
                    mine[place] = seen(new, self._needs_numbers)
                    changed.add(name)
            settings.append(tuple(mine))
        known = {name: x for group in groups for name, x in self._rule.chosen(group).hyperparameters.items()}
        is_numbers = all(isinstance(known.get(name), (float, int, tuple)) for name in changed)
        is_numbers &= "lookahead" not in changed  # which is whole
        if not is_numbers or not self._check_numbers(groups, changed):
            return False  # and all is looked at
        if [self._static_of(group) for group in groups] != self._static:
            return False
        self._settings = settings
        for bucket, _ in self._buckets:
            bucket.plan.set_hyper(hyper(bucket.kernel, groups, bucket.rows, self._services))
        if self._graph_key:
            self._graph_key = self._graph_key_now()
        return True

    def _static_of(self, group: dict[str, Any]) -> tuple[Any, ...]:
        formats = group.get("states"), group.get("weights"), group.get("clip")
        return static_settings(self._rule, group), group.get("maximize", False), group.get("differentiable"), formats
