"""Several optimizers as one: another rule for each part of a model, behind torch.optim's interface."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Steps several optimizers as one, steprule's or any others::

        optimizer = Together([
            steprule.AdamW(embeddings, lr=1e-3),
            steprule.SGD(others, lr=0.1, momentum=0.9),
        ])

    Schedulers see all their groups. Services that look at all gradients, such as clip, look at those of each optimizer.

    Args:
        optimizers: at least one; no parameter may be in two.

    Attributes:
        optimizers: them.
        param_groups: the groups of all, in order: the very dicts of theirs.

    Raises:
        ValueError: there is none, or a parameter is in two.
        TypeError: one is no optimizer.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        if not isinstance(optimizers, Iterable):
            raise TypeError(f"optimizers must be a list of optimizers, not {optimizers!r}")
        self.optimizers = list(optimizers)
        if not self.optimizers:
            raise ValueError("optimizers is empty: Together needs at least one")
        owner: dict[torch.Tensor, int] = {}
        for number, optimizer in enumerate(self.optimizers):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise TypeError(f"optimizers[{number}] must be an optimizer, not {optimizer!r}")
            for param in (param for group in optimizer.param_groups for param in group["params"]):
                if owner.setdefault(param, number) != number:
                    raise ValueError(
                        f"a parameter of shape {tuple(param.shape)} is in optimizers[{owner[param]}] and in "
                        f"optimizers[{number}]; each must be in one"
                    )
        super().__init__(self.param_groups, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in order: the very dicts of theirs."""
        return [group for one in self.optimizers for group in one.param_groups]

    @param_groups.setter
    def param_groups(self, _: Any) -> None:
        """Nothing: torch.optim makes a list of its own."""

    @property
    def state(self) -> defaultdict[torch.Tensor, Any]:
        """The states of all, to be read: the very dicts of theirs."""
        return defaultdict(dict, {param: state for one in self.optimizers for param, state in one.state.items()})

    @state.setter
    def state(self, _: Any) -> None:
        """Nothing, as well."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a step of each.

        Args:
            closure: evaluates the model again, calls backward and returns the loss. It is called once, before all steps.

        Returns:
            What closure returned, or None.
        """
        closure = _closure(*args, **kwargs)
        loss = None
        if closure is not None:
            kwargs = {}
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step(**kwargs)  # closure=None is torch.distributed.checkpoint's way to ask for states
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def train(self) -> None:
        """That of those that have one, such as ScheduleFreeAdamW."""
        self._tell("train")

    def eval(self) -> None:
        """That of those that have one."""
        self._tell("eval")

    def _tell(self, what: str) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, what):
                getattr(optimizer, what)()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not here: add it to one of `optimizers`.

        Raises:
            TypeError: it is called from outside.
        """
        if not any(param_group is group for group in self.param_groups):  # as torch.optim's constructor does
            raise TypeError("Together takes no param_group: add it to one of its optimizers")

    def state_dict(self) -> dict[str, Any]:
        """The states and groups of all, as torch.optim's: parameters are numbered through."""
        saved: dict[str, Any] = {"state": {}, "param_groups": []}
        for optimizer in self.optimizers:
            own = optimizer.state_dict()
            before = sum(len(group["params"]) for group in saved["param_groups"])
            numbers = {old: old + before for group in own["param_groups"] for old in group["params"]}
            saved["state"] |= {numbers.get(key, key): state for key, state in own["state"].items()}
            saved["param_groups"] += [
                {**group, "params": [numbers[old] for old in group["params"]]} for group in own["param_groups"]
            ]
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: it is of other optimizers; nothing has changed.
        """
        saved = state_dict.get("optimizers")  # as it once was
        if saved is None:
            saved = self._split(state_dict)
        elif len(saved) != len(self.optimizers):
            raise ValueError(f"state_dict holds {len(saved)} optimizers where there are {len(self.optimizers)}")
        before = [optimizer.state_dict() for optimizer in self.optimizers]
        done: list[int] = []
        try:
            for number, (optimizer, own) in enumerate(zip(self.optimizers, saved, strict=True)):
                optimizer.load_state_dict(own)
                done.append(number)
        except Exception:
            for number in done:
                self.optimizers[number].load_state_dict(before[number])
            raise

    def _split(self, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """What each of the optimizers has in a state dict of all."""
        for key in ("param_groups", "state"):
            if key not in state_dict:
                raise ValueError(f"state_dict is not that of a Together: it has no {key!r}")
        groups = list(state_dict["param_groups"])
        sizes = [len(optimizer.param_groups) for optimizer in self.optimizers]
        if len(groups) != sum(sizes):
            raise ValueError(f"state_dict holds {len(groups)} groups where there are {sum(sizes)}")
        parts = []
        for size in sizes:
            own, groups = groups[:size], groups[size:]
            numbers = {str(number) for group in own for number in group["params"]}  # JSON has texts as keys
            state = {number: x for number, x in state_dict["state"].items() if str(number) in numbers}
            parts.append({"state": state, "param_groups": own})
        return parts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}


def _closure(closure: Callable[[], Any] | None = None) -> Callable[[], Any] | None:
    return closure
