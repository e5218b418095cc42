"""What an optimizer consists of besides torch.optim's state, param_groups and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from steprule.optimizer.modes import Modes
from steprule.optimizer.schedules import Schedules
from steprule.rule import Rule
from steprule.rules.options import OPTIONS, with_options
from steprule.services.accumulate import Accumulator
from steprule.services.release import Release
from steprule.services.step import StepServices
from steprule.step.plans import Plans
from steprule.tensors.across import Across
from steprule.tensors.copies import drop_copies, drop_flat_copies
from steprule.tensors.shard import Shards

NOTES = ("services", "calls", "train_mode")
"""What groups have besides settings."""


class Given:
    """The parameters that an optimizer was made for or was given by `add_param_group`.

    Vectors are kept until they are seen to be gone: who has a weak reference to a tensor has `torch.utils.swap_tensors` fail,
    by which `module.to()` moves DTensors.

    Attributes:
        groups: in how many groups they were.
        had_matrices: whether some had more than one dimension.
    """

    def __init__(self) -> None:
        self._vectors: dict[int, Tensor] = {}
        self.groups, self.had_matrices = 0, False

    def add(self, params: Iterable[Tensor]) -> None:
        """Takes note of these, which are a group."""
        self.groups += 1
        for param in params:
            if is_lazy(param) or param.dim() < 2:
                self._vectors[id(param)] = param
            else:
                self.had_matrices = True

    def has(self, vector: Tensor) -> bool:
        """Whether this is one of them."""
        return id(vector) in self._vectors

    def let_go(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Keeps those only that are in these groups."""
        own = {id(param) for group in groups for param in group["params"]}
        self._vectors = {key: param for key, param in self._vectors.items() if key in own}


class Core:
    """All that belongs to one optimizer and not to its class, but for torch.optim's state, param_groups and defaults.

    It is one object, which the optimizer's `__init__` or `__setstate__` makes, and no class has one. Frameworks wrap an optimizer
    in an object that has its class among its own and finds attributes by `__getattr__`: such a wrapper finds the same one, so
    that what is called on it reads and changes what the optimizer does.

    Args:
        base: the rule, without options.
        options: what goes around its formula, by the names of `steprule.rules.options.OPTIONS`.

    Attributes:
        options: those of the constructor. lookahead and lookahead_alpha are settings of groups as well, which hold.
        rule: the rule with its options.
        services: clipping, averages and the like, if some were asked for.
        accumulator: what sums gradients over micro-batches, if grads was given.
        release: what steps parameters inside backward, from `release_gradients` on.
        across: what parameters are spread over, if process_group was given.
        arguments: what a ZeroRedundancyOptimizer has given the constructor for the whole optimizer.
        noted: what was last written into groups besides settings, and the numbers of their functions.
        schedules: hyperparameters that are functions of the step, if some are.
        is_made: whether the constructor is over.
        given: the parameters that it was made for.
        completed: groups that have all settings.
        begun_with: for each parameter the constants that it began with, by their names in `Rule.constants`.
        has_modes: whether train() and eval() exchange what formulas of its rule say.
        modes: which weights the model has.
        plans: what can do the next steps, if something can.
        shards: the parts of its parameters that are here, where some are DTensors.
        joins: whether some of these are of matrices that processes bring together.
        in_graph: whether steps are to be replayed by CUDA graphs.
    """

    def __init__(self, base: type[Rule], options: dict[str, Any]) -> None:
        self.options = options
        self.rule = with_options(base, **options)
        self.services: StepServices | None = None
        self.accumulator: Accumulator | None = None
        self.release: Release | None = None
        self.across: Across | None = None
        self.arguments: dict[str, Any] = {}
        self.noted: tuple[dict[str, Any], list[int]] = {}, []
        self.schedules: Schedules | None = None
        self.has_modes = base.evaluated is not None
        self.is_made = False
        self.given = Given()
        self.completed: list[dict[str, Any]] = []
        self.begun_with: dict[Tensor, dict[str, float]] = {}
        self.modes = Modes(by_rule=self.has_modes)
        self.plans = Plans()
        self.shards: Shards | None = None
        self.joins = False
        self.in_graph = False

    @property
    def calls(self) -> int:
        """How many steps functions of the step have seen."""
        return self.schedules.calls if self.schedules is not None else 0

    def was_given(self, name: str, value: Any) -> bool:
        """Whether a group has this value since a ZeroRedundancyOptimizer puts the constructor's arguments into all groups."""
        given = self.arguments.get(name, self)
        return value is given or (type(value) is type(given) and bool(value == given))

    def forget_plans(self, groups: Sequence[dict[str, Any]]) -> None:
        """Makes the next step look at everything anew: called where a plan could not see a change.

        Args:
            groups: the optimizer's.
        """
        self.plans.forget()
        self.completed = [group for group in self.completed if any(group is other for other in groups)]

    def weights_have_changed(self, groups: Sequence[dict[str, Any]]) -> None:
        """To be called where something else than a step has written weights.

        Args:
            groups: the optimizer's.
        """
        self.forget_plans(groups)
        params = [param for group in groups for param in group["params"]]
        drop_copies(params)
        drop_flat_copies(params)

    def notes(self) -> dict[str, Callable[[], Any]]:
        """What the next step depends on besides states and settings, by the names of `NOTES`: to be asked only when it is
        needed, since a GPU may be waited for."""
        notes: dict[str, Callable[[], Any]] = {}
        if self.services is not None:
            notes["services"] = self.services.state_dict
        if self.schedules is not None:
            notes["calls"] = lambda: self.calls
        if self.has_modes or (self.services is not None and self.services.average is not None):
            notes["train_mode"] = lambda: self.modes.has_trained_weights
        return notes

    def known(self, name: str) -> int:
        """One of the numbers that services count."""
        if self.services is None:
            return 0
        return int(getattr(self.services.ledger.on_host(), name))

    def grad_norm(self) -> Tensor:
        """The norm of the last step's gradients, where it is known."""
        norm = self.services.ledger.norm if self.services is not None else math.nan
        return norm.float() if isinstance(norm, Tensor) else torch.tensor(norm, dtype=torch.float32, device="cpu")

    def saved(self) -> dict[str, Any]:
        """What a copy needs to be made like it; nothing where it is as made for the rule alone."""
        self.modes.must_have_weights("copying")
        if self.release is not None:
            self.release.tell_of_copies()
        own = {
            "options": self.options,
            "services": self.services,
            "schedules": self.schedules,
            "grads": self.accumulator.kind if self.accumulator is not None else None,
            "across": self.across,
            "arguments": self.arguments,
            "begun_with": self.begun_with,
            "training": self.modes.training,
        }
        return {name: value for name, value in own.items() if value != _PLAIN[name]}

    @classmethod
    def restored(cls, base: type[Rule], saved: Mapping[str, Any]) -> Core:
        """The core of a copy, whose parameters have no hooks."""
        own = {**_PLAIN, **saved}
        core = cls(base, own["options"])
        core.across, core.arguments = own["across"], own["arguments"]
        core.services, core.schedules, core.begun_with = own["services"], own["schedules"], dict(own["begun_with"])
        core.accumulator = Accumulator(own["grads"]) if own["grads"] is not None else None
        core.modes.training = own["training"]
        core.is_made = True
        return core


_PLAIN: Mapping[str, Any] = {
    "options": OPTIONS, "services": None, "schedules": None, "grads": None, "across": None, "arguments": {}, "begun_with": {},
    "training": True,
}  # fmt: skip
"""What `Core.saved` would say of an optimizer that was made for its rule alone."""


class RuleOf:
    """A class's rule; asked of an optimizer, the rule with its options around it."""

    def __init__(self, rule: type[Rule]) -> None:
        self._rule = rule

    def __get__(self, instance: Any, owner: type) -> type[Rule]:
        return self._rule if instance is None else instance._core.rule
