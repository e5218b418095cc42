"""Which weights a model has: those that are trained, or their averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.engine.team import torch_alone
from steprule.rule import Rule
from steprule.step.listed import check_arrays, list_all
from steprule.tensors.average import Aside
from steprule.tensors.state import AVERAGE


class Modes:
    """Which weights the model of one optimizer has.

    Attributes:
        training: whether it has those that gradients are taken at, and not their average in a rule that has one.
        is_swapped: whether it has the averages that the argument average asked for.
    """

    def __init__(self) -> None:
        self.training = True
        self._aside: dict[Tensor, Aside] = {}

    @property
    def is_swapped(self) -> bool:
        """Whether weights are aside."""
        return bool(self._aside)

    def must_have_weights(self, what: str) -> None:
        """Raises if the model has averages, which what is going to be done would take for weights."""
        if self.is_swapped:
            raise RuntimeError(f"the weights are swapped with their averages: call swap_average() before {what}")

    def must_train(self, what: str) -> None:
        """Raises for either kind of average."""
        self.must_have_weights(what)
        if not self.training:
            raise RuntimeError(f"the model has the averaged weights: call train() of the optimizer before {what}")

    @contextlib.contextmanager
    def averaged(self, swap: Callable[[str], None]) -> Iterator[None]:
        """A context with averages; `swap` exchanges them for whoever it is told."""
        had_them = self.is_swapped
        if not had_them:
            swap("averaged()")
        try:
            yield
        finally:
            if self.is_swapped != had_them:  # someone may have called swap_average() within
                swap("averaged()")

    @torch.no_grad()
    @torch_alone()
    def swap(
        self, who: str, rule: type[Rule], groups: list[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Exchanges weights and averages.

        Args:
            who: what asks for it.
            rule, groups, states: the optimizer's.

        Raises:
            RuntimeError: there is no average yet, or one cannot be exchanged; no weight has changed.
        """
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
