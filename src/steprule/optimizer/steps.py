"""How an optimizer takes its steps: by plans that hold, or after a look at everything."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engine.surroundings import in_peace
from steprule.engine.team import torch_alone
from steprule.formats.parts import local, whole_of
from steprule.optimizer.agreement import Agreement
from steprule.optimizer.arguments import is_elsewhere, is_torchs
from steprule.optimizer.checkpoint import check_notes, notes_in, take_notes
from steprule.optimizer.core import Core
from steprule.optimizer.disagreement import disagreement
from steprule.optimizer.groups import Groups
from steprule.optimizer.schedules import KEY as SCHEDULES
from steprule.rules.options import OPTIONS
from steprule.services.release import check_not_released
from steprule.step.job import Job
from steprule.step.listed import given_name, list_all, name_in
from steprule.step.plans import look, make_states
from steprule.tensors.across import asks_for_states
from steprule.tensors.average import move_resting_average
from steprule.tensors.copies import drop_copies
from steprule.tensors.fingerprint import DisagreementError
from steprule.tensors.memory import is_abstract
from steprule.tensors.replaced import check_not_replaced
from steprule.tensors.shard import Shards
from steprule.tensors.state import AVERAGE


class Steps:
    """The steps of one optimizer.

    Args:
        groups: its groups.

    Attributes:
        agreement: with the steps of other processes.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self.agreement = Agreement(groups)

    @property
    def _core(self) -> Core:
        return self._groups.core

    @in_peace
    def take(self) -> None:
        """Takes one step of all parameters, or closes one whose parameters were stepped inside backward."""
        core, groups = self._core, self._groups
        if core.release is not None:
            core.modes.must_train("step()")
            check_not_replaced(() if core.release.stepped else self.agreement.find_shards())
            with torch.no_grad():
                core.release.step(self.move_resting_averages)
        else:
            if core.plans.current is None:
                self.agreement.find_shards()
            try:
                self._take() if core.shards is None else self._take_together(core.shards)
            except DisagreementError as error:
                raise RuntimeError(disagreement(error, self._groups)) from None
        if core.shards is not None:
            drop_copies([param for group in groups.groups for param in group["params"]])
        if core.schedules is not None:
            core.schedules.count(core.schedules.calls + 1)
            groups.set_scheduled_if_possible()
        if core.across is not None and core.across.has_model:
            groups.note()  # for its checkpoints, which know of states and groups only

    def _take_over_notes(self) -> None:
        """Has services and schedules be as a ZeroRedundancyOptimizer has loaded them, which writes into groups only."""
        groups, (notes, numbers) = self._groups.groups, self._core.noted
        for group, number in zip([one for one in groups if SCHEDULES in one], numbers, strict=True):
            group[SCHEDULES] = number  # and not that of the optimizer that was saved
        if any(group.get(name) is not value for group in groups for name, value in notes.items()):
            loaded = {"param_groups": groups, "state": dict(self._groups.states)}
            check_notes(notes_in(loaded))
            take_notes(self._groups, loaded)

    def _take(self) -> None:
        """Steps, by the plan that there is if it holds."""
        core = self._core
        if core.across is not None:
            told = self.agreement.told
            told.begin(core.across.awaits)
            core.across.begin(self.agreement.gathers(), told)
        try:
            if core.across is not None and core.across.has_model:
                self._take_over_notes()
            core.modes.must_train("step()")
            self._groups.insist_on_schedules()
            current = core.plans.current
            if current is None or not current.run(*self.here()):
                with torch.set_grad_enabled(self._groups.defaults.get("differentiable", False)), torch_alone():
                    self._take_anew()
        except Exception:
            if core.across is not None:
                with contextlib.suppress(DisagreementError):
                    core.across.fail()
            raise

    def _take_together(self, shards: Shards) -> None:
        """Steps parts: all processes do, or none where they would wait for each other.

        Raises:
            RuntimeError: another process cannot take the step, or not for the same parameters.
        """
        totals, services = shards.totals, self._core.services
        if services is not None and services.already is not None:  # which torch agrees on over one mesh only
            services.already = torch.tensor(float(totals.has_any(bool(services.already))), device="cpu")
        totals.begin()
        totals.is_open = self.agreement.adds_up()
        try:
            self._take()
            totals.take_part()
        except DisagreementError:
            raise
        except Exception:
            with contextlib.suppress(Exception):  # which says that they have been told, or cannot be
                totals.take_part(has_failed=True)
            raise
        finally:
            totals.is_open = False
            shards.let_go()

    def _take_anew(self) -> None:
        """Looks at everything, makes a plan and steps."""
        self._look()
        if not self._groups.groups:  # all taken out
            self._core.plans.current = None
            if self._core.across is not None:
                raise RuntimeError(
                    "param_groups is empty, and the other processes of process_group wait for what this one has: keep a group "
                    'with "params": []'
                )
            return
        job = self.job()  # what cannot be brought here has left states as they are
        try:
            self._core.plans.renew(job)
        finally:
            self._keep()

    def here(self, steps: bool = True) -> tuple[list[dict[str, Any]], Any]:
        """Groups and states as a step takes them: with this process's parts in the places of DTensors.

        Args:
            steps: whether parts are to have gradients, for which processes may wait for each other.
        """
        groups, shards = self._groups, self._core.shards
        return (groups.groups, groups.states) if shards is None else shards.here(groups.groups, groups.states, steps)

    def _keep(self) -> None:
        """Gives the optimizer the states that a step has made of parts."""
        if self._core.shards is not None:
            beside = {name: one.extent for name, one in self._core.rule.states.items() if one.extent != "elements"}
            self._core.shards.keep(self._groups.states, {"step": "scalar", **beside})

    def _look(self) -> None:
        """Raises where a step of all parameters cannot be taken now, and completes groups."""
        self.check_ready(self._groups.groups)
        self._groups.look()
        self._core.given.let_go(self._groups.groups)
        every = self.agreement.find_shards()
        check_not_released(every)
        check_not_replaced(every if self._core.across is None else ())  # else others may have gradients
        self.agreement.describe()

    @in_peace
    def check(self) -> None:
        """Raises what the next step would refuse; no parameter and no state has changed."""
        core, groups = self._core, self._groups
        if core.release is not None:  # whose parameters have stepped inside backward
            self.look_before_release()
            core.release.check_own()
            return
        groups.insist_on_schedules()
        current = core.plans.current
        try:
            if current is None or not current.run(*self.here(), only_ask=True):
                with torch.no_grad(), torch_alone():
                    self._look()
                    job = self.job()
                    look(job, list(list_all(job.groups)))
        finally:
            self._let_go()
        if core.services is not None and core.services.nonfinite == "raise":
            wrong = [
                given_name(group, index) or name_in(group, number, index)
                for number, group, index, param, _ in list_all(groups.groups)
                if param.grad is not None and not _is_finite(local(param.grad))
            ]
            if wrong:
                core.services.refuse(wrong)

    @in_peace
    def take_one(self, param: Tensor) -> None:
        """Steps one parameter, inside backward."""
        plans, shards, states = self._core.plans, self._core.shards, self._groups.states
        part = param
        if shards is not None:
            part, states = shards.bring(param, states.get(param)), shards.states
        current = plans.single.get(param)
        if current is None or not current.run(self._groups.groups, states):
            self._take_one_anew(param, part)
        if shards is not None:
            shards.let_go(param)

    def _take_one_anew(self, param: Tensor, part: Tensor) -> None:
        """Looks at everything about one parameter, of which a part is here, makes a plan and steps."""
        plans = self._core.plans
        with torch.no_grad(), torch_alone():
            listed = plans.listed[param]
            self.check_ready([one.group for one in listed])
            for one in listed:  # others are looked at when their turn comes, and all together where groups have changed
                self._groups.look_at(one.group)
            self._groups.check_constants(listed)
            job = self.job()
            try:
                plans.renew_single(job, param, [one._replace(param=part) for one in listed])
            finally:
                self._keep()
                self._let_go()

    def _let_go(self) -> None:
        """Keeps no gradient of a part alive between two steps."""
        if self._core.shards is not None:
            self._core.shards.let_go()

    def let_go_of_replaced(self) -> None:
        """Frees parameters and states that have been replaced; waits for no other process."""
        self._core.plans.let_go(*self.here(steps=False))
        self._core.given.let_go(self._groups.groups)
        self._let_go()

    def look_before_release(self) -> None:
        """Looks at groups and schedules, once in a step whose parameters are then stepped one by one."""
        core, groups = self._core, self._groups
        core.modes.must_train("backward()")
        groups.insist_on_schedules()
        if not core.plans.knows(groups.groups):
            groups.look()
            self.agreement.find_shards()
            core.plans.list_single(groups.groups)

    def must_be_closed(self, what: str) -> None:
        """Raises if backward has stepped parameters, and step() has not been called since."""
        if self._core.release is not None:
            self._core.release.must_be_closed(what)

    def check_ready(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raises where a step of these groups cannot be taken now."""
        if any(group.get("capturable") for group in groups):
            self._groups.optimizer._accelerator_graph_capture_health_check()
        self._core.modes.must_train("step()")
        if self._core.across is not None:
            self._core.across.check()

    def job(self) -> Job:
        """What a step needs to know."""
        core, groups, agreement = self._core, self._groups, self.agreement
        return Job(
            groups.name, groups.base, core.rule, (*groups.flags, *groups.fixed), *self.here(), core.services,
            core.accumulator, agreement.check_numbers, agreement.complete, self.move_resting_averages, agreement.spread(),
            agreement.compares, core.in_graph,
        )  # fmt: skip

    @torch_alone()
    def move_resting_averages(self, stepped: set[Tensor], weight: Any) -> None:
        """Moves the averages of all parameters but those that were stepped towards the weights, by this share."""
        assert self._core.services is not None
        self._keep()  # what this step has made, which is looked for where the optimizer has it
        every, states = self.here()
        moved = set(map(whole_of, stepped))
        owners = {param: group for group in every for param in group["params"]}
        for param, group in owners.items():
            state = states.get(param, {})
            if whole_of(param) not in moved and AVERAGE in state:
                move_resting_average(param, group, state, weight, lambda: self._core.known("averaged"))
        self._keep()  # averages that were in another format

    def only_asks_for_states(self) -> bool:
        """Whether a step is the one by which torch.distributed.checkpoint has states made: the first, with lr and gradients of 0."""
        core, groups = self._core, self._groups.groups
        is_plain = core.services is None and core.schedules is None and core.options == OPTIONS
        if is_plain and is_torchs(self._groups.base):  # where it is a step as torch.optim's, and moves nothing
            return False
        if self._groups.states and not self._groups.base.begins_early:
            return False
        rates = [group.get("lr") for group in groups]
        if any(is_elsewhere(lr) or not isinstance(lr, float | Tensor) for lr in rates):
            return False
        if any(lr.any() if isinstance(lr, Tensor) else lr for lr in rates):
            return False
        steps = [self._groups.states.get(p, {}).get("step", 0) for _, p in self._groups.each()]
        if any(float(step) > 0 for step in steps):
            return False
        if core.across is not None:
            return asks_for_states()
        self.agreement.find_shards()
        if core.shards is not None:  # whose parts here may be 0 and others not
            return not core.shards.totals.has_any(not self._has_only_zeros())
        return self._has_only_zeros()

    def _has_only_zeros(self) -> bool:
        """Whether there are gradients, and all that are here are 0."""
        groups = self._groups.groups
        grads = [local(p.grad) for group in groups for p in group["params"] if p.grad is not None]
        return bool(grads) and not any(is_abstract(grad) or grad.is_sparse or grad.any() for grad in grads)

    @in_peace
    def make_states(self) -> None:
        """Makes the states of all parameters that have gradients, and steps none."""
        self.agreement.find_shards()
        with torch.no_grad():
            make_states(self.job())
            self._keep()


def _is_finite(grad: Tensor) -> bool:
    return is_abstract(grad) or bool((grad.coalesce().values() if grad.is_sparse else grad).isfinite().all())
