"""Which weights a model has: those that are trained, or their averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.engine.team import torch_alone
from steprule.rule import Rule
from steprule.step.listed import check_arrays, list_all
from steprule.tensors.average import Aside
from steprule.tensors.state import AVERAGE
from steprule.tensors.uncompiled import uncompiled_context


class Modes:
    """Which weights the model of one optimizer has.

    Args:
        by_rule: whether train() and eval() exchange what the rule's own formulas say, and not the averages of `average`.

    Attributes:
        training: whether it has those that gradients are taken at, and not their average in a rule that has one.
        is_swapped: whether it has the averages that the argument average asked for.
    """

    def __init__(self, by_rule: bool) -> None:
        self.training = True
        self._by_rule = by_rule
        self._aside: dict[Tensor, Aside] = {}
        self._contexts = 0

    @property
    def is_swapped(self) -> bool:
        """Whether weights are aside."""
        return bool(self._aside)

    def must_have_weights(self, what: str) -> None:
        """Raises if the model has averages, which what is going to be done would take for weights."""
        if self.is_swapped:
            back = "swap_average()" if self._by_rule else "train() or swap_average()"
            raise RuntimeError(f"the weights are swapped with their averages: call {back} before {what}")

    def must_be_savable(self) -> None:
        """Raises if a state dict could not say which weights the model has."""
        if self._by_rule:
            self.must_have_weights("state_dict()")

    def must_be_free(self, what: str) -> None:
        """Raises if a context is going to give the weights back, or a state dict has no word for them."""
        if self._by_rule or self._contexts:
            self.must_have_weights(what)

    @property
    def has_trained_weights(self) -> bool:
        """What a state dict says as "train_mode"."""
        return self.training and not self.is_swapped

    def saved(self, param: Tensor, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a state dict has of a parameter's state."""
        return self._aside[param].saved(state) if param in self._aside else state

    def take(self, aside: dict[Tensor, Aside]) -> None:
        """Takes over weights that were loaded: the model is loaded, too, and has their averages."""
        self._aside = aside

    def must_train(self, what: str) -> None:
        """Raises for either kind of average."""
        self.must_have_weights(what)
        if not self.training:
            raise RuntimeError(f"the model has the averaged weights: call train() of the optimizer before {what}")

    @uncompiled_context
    def averaged(self, optimizer: Any) -> Iterator[None]:
        """A context with averages."""
        had_them = self.is_swapped
        if not had_them:
            self.swap("averaged()", optimizer)
        self._contexts += 1
        try:
            yield
        finally:
            self._contexts -= 1
            if self.is_swapped != had_them:  # someone may have called swap_average() within
                self.swap("averaged()", optimizer)

    def exchange(self, optimizer: Any, training: bool) -> None:
        """Gives a model averages, if there are some, or the weights that are trained."""
        if training and self.is_swapped:
            self.swap("train()", optimizer)
        elif not training and not self.is_swapped and any(AVERAGE in state for state in optimizer.state.values()):
            self.swap("eval()", optimizer)

    @torch.no_grad()
    @torch_alone()
    def swap(self, who: str, optimizer: Any) -> None:
        """Exchanges weights and averages.

        Args:
            who: what asks for it.
            optimizer: whose.

        Raises:
            RuntimeError: there is no average yet, or one cannot be exchanged; no weight has changed.
        """
        self._swap(who, optimizer._core.rule, optimizer.param_groups, optimizer.state)
        optimizer._core.weights_have_changed(optimizer.param_groups)

    def _swap(
        self, who: str, rule: type[Rule], groups: list[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        if self.is_swapped:
            for aside in self._aside.values():
                aside.check(who)
            for param, aside in [*self._aside.items()]:
                aside.give_back(param, states.get(param, {}))
                del self._aside[param]  # and if one fails, its weights are still there
            return
        check_arrays(rule, groups, states)
        params = dict.fromkeys(one.param for one in list_all(groups))  # once: one may be listed twice
        averaged = [param for param in params if AVERAGE in states.get(param, {})]
        if not averaged:
            raise RuntimeError(f"{who} needs averages: an optimizer with average=... that has taken a step")
        try:
            for param in averaged:
                self._aside[param] = Aside(param, states[param])
        except Exception:
            for param, aside in self._aside.items():
                aside.give_back(param, states[param])
            self._aside = {}
            raise
