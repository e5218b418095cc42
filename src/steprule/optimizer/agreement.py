"""How the processes of an optimizer find that they take the same step, or that none does."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from steprule.engine.run import Complete, Spread, alone
from steprule.formats.parts import cuts_of, is_sharded
from steprule.hyper import MULTIPLIERS
from steprule.optimizer.arguments import is_elsewhere
from steprule.optimizer.core import Core
from steprule.optimizer.disagreement import disagreement
from steprule.optimizer.groups import Groups
from steprule.settings import as_number
from steprule.step.listed import list_all
from steprule.tensors.copies import is_flattened
from steprule.tensors.fingerprint import DisagreementError, Fingerprint
from steprule.tensors.shard import Shards
from steprule.tensors.state import GROUP_OPTIONS
from steprule.tensors.totals import Totals
from steprule.trace.tracing import program_of, sums_of_all

_DEFAULTS = {**GROUP_OPTIONS, **dict.fromkeys(MULTIPLIERS, 1.0), "maximize": False, "clip": None}
"""What groups have besides hyperparameters, and what it is where they have it not."""


class Agreement:
    """What an optimizer says to those of other processes around a step, and hears of them.

    Args:
        groups: its groups.

    Attributes:
        is_sure: whether all processes knew, when they were last asked, that they could take the step.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._told = Totals()  # of whom nothing is added up
        self._is_due = False  # whether others wait for a word in a step that has not begun
        self._have_settings: list[Fingerprint] = []  # of processes that must have the same groups
        self.is_sure = True

    @property
    def _core(self) -> Core:
        return self._groups.core

    @property
    def told(self) -> Totals:
        """What knows what fails while others wait."""
        return self._told if self._core.shards is None else self._core.shards.totals

    @property
    def complete(self) -> Complete:
        """The same, which makes sums over what is here those over all there are."""
        return alone if self._core.shards is None and self._core.across is None else self.told

    def spread(self) -> Spread | None:
        """How numbers of all processes' parameters come about, if these have different ones."""
        across, groups = self._core.across, self._groups.groups or [self._groups.defaults]
        return Spread(across.gather, sums_of_all(self._core.rule, groups)) if across is not None else None

    def find_shards(self) -> list[Tensor]:
        """Takes note of whether some of the parameters, which it returns, are DTensors."""
        core, every = self._core, [param for group in self._groups.groups for param in group["params"]]
        core.shards = (core.shards or Shards()) if any(map(is_sharded, every)) else None
        if core.shards is not None:
            core.shards.know(every)
        core.joins = core.shards is not None and any(
            any(map(cuts_of, group["params"])) for group in self._groups.groups if program_of(core.rule, group).joins
        )
        return every

    # What all must have alike

    def describe(self) -> None:
        """Takes note of what the optimizer is, to be compared with those of other processes in the next step."""
        core, groups = self._core, self._groups.groups
        self._have_settings = []
        if core.release is not None or (core.shards is None and core.across is None):
            return
        spread = self.spread()
        sums = spread.names if spread is not None else ()
        states = [*core.rule.hyperparameters, *core.rule.states]
        rule, services = repr([self._groups.base.__qualname__, core.options, states, sums]), self._services()
        if core.across is not None:  # whose processes have other parameters, and may have other groups
            core.across.own = Fingerprint(rule, services, "")
            if core.across.has_model or any(is_flattened(param) for _, param in self._groups.each()):
                self._have_settings.append(core.across.own)
        if core.shards is not None:
            looks = [(group.get("param_names"), [*map(_look_of, group["params"])]) for group in groups]
            core.shards.totals.own = Fingerprint(rule, services, repr(looks))
            self._have_settings.append(core.shards.totals.own)
        hyper = {name: None for group in groups for name in core.rule.chosen(group).hyperparameters}
        self._describe_settings(groups, {**core.rule.hyperparameters, **hyper, **_DEFAULTS})

    def check_numbers(self, groups: Sequence[Mapping[str, Any]], names: set[str]) -> bool:
        """As `Groups.check_numbers`, and takes note of these numbers."""
        can_go_on = self._groups.check_numbers(groups, names)
        if can_go_on:
            self._describe_settings(groups, names)
        return can_go_on

    def _describe_settings(self, groups: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
        for own in self._have_settings:
            own.update({n: [_plain(group.get(n, _DEFAULTS.get(n))) for group in groups] for n in names})

    def _services(self) -> str:
        services = self._core.services
        if services is None:
            return ""
        every = services.telemetry.every if services.telemetry is not None else None  # how many it keeps may differ
        return repr((services.clip, services.nonfinite, services.average, every))

    # Who waits for whom

    @property
    def compares(self) -> bool:
        """Whether processes compare what they step before anything changes, also where this one has no sums to add up by then."""
        core = self._core
        has_sums = {bool(program_of(core.rule, group).sums) for group in self._groups.groups}
        return core.joins or (core.shards is not None and len(has_sums) > 1)

    def adds_up(self) -> bool:
        """Whether processes wait for each other in the next step, where they have parts."""
        core = self._core
        if core.joins or self._services_add_up:
            return True
        return any(program_of(core.rule, group).sums for group in self._groups.groups)

    def gathers(self) -> bool:
        """Whether they do, where they have other parameters."""
        spread = self.spread()
        return self._services_add_up or (spread is not None and any(spread.names))

    @property
    def _services_add_up(self) -> bool:
        """Whether services add something up in the next step."""
        services = self._core.services
        return services is not None and (services.wants is not None or services.counts)

    @property
    def waits(self) -> bool:
        """Whether processes wait for each other in the next step."""
        self.find_shards()
        return self._waits_for_group or self._waits_for_parts

    @property
    def _waits_for_group(self) -> bool:
        return self._core.across is not None and self.gathers()

    @property
    def _waits_for_parts(self) -> bool:
        core = self._core
        return core.shards is not None and core.release is None and self.adds_up()

    # What is said before a step

    def guard(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Takes a step with hooks, and tells others if one of these fails before it begins.

        Nothing is told of a closure that fails: it may have calls of its own, in which others wait.
        """
        self._is_due = True
        try:
            return step(*args, **kwargs)
        except Exception:
            if self._is_due:
                self.tell()
            raise
        finally:
            self._is_due = False

    def begin(self) -> None:
        """A step begins, whose hooks have run."""
        self._is_due = False

    def tell(self) -> None:
        """Tells others, who wait in the next step for this process, that it does not take it."""
        core = self._core
        with contextlib.suppress(Exception):  # which says that they have been told, or cannot be
            self.find_shards()
            if core.across is not None:
                core.across.begin(self.gathers(), self.told)
                core.across.fail()
        with contextlib.suppress(Exception):
            if core.shards is not None and self._waits_for_parts:
                core.shards.totals.is_open = True
                core.shards.totals.take_part(has_failed=True)

    def ask(self, has_failed: bool, compares: bool) -> None:
        """Finds out whether other processes take the next step too, before anything has changed; all call it, if one `waits`.

        Args:
            has_failed: whether this process cannot take it.
            compares: whether gradients are what they will be in that step.

        Raises:
            RuntimeError: another cannot take it, is another optimizer, or has gradients of other parameters.
        """
        core, found = self._core, None
        self.is_sure = compares
        if not compares:
            with contextlib.suppress(Exception):  # which its step raises
                self.describe()
        if core.across is not None and self._waits_for_group:
            try:
                self.is_sure &= core.across.agree(has_failed, is_sure=compares)
            except DisagreementError as error:
                found = error
        if core.shards is not None and self._waits_for_parts:
            params = dict.fromkeys(one.param for one in list_all(self._groups.groups)) if compares else ()
            places = [place for place, p in enumerate(params) if cuts_of(p) and p.grad is not None]
            key = float(zlib.crc32(repr(places).encode())) if compares else math.nan
            try:
                self.is_sure &= core.shards.totals.agree(key, places, has_failed or found is not None)
            except DisagreementError as error:
                found = found or error
        if found is not None:
            raise RuntimeError(disagreement(found, self._groups))


def _look_of(param: Tensor) -> Any:
    """What all processes must have of a parameter of which others have parts."""
    if not cuts_of(param):
        return None
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    return tuple(param.shape), str(param.dtype), [*map(str, placements)], tuple(mesh.shape)


def _plain(value: Any) -> Any:
    """A setting as the host knows it; nothing of what is on another device, which would have to be waited for."""
    if type(value) is float:
        return value
    if is_elsewhere(value):
        return None
    return as_number(value) if isinstance(value, (float, int, tuple, list, Tensor)) else value
