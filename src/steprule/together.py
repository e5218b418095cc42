"""Several optimizers as one: another rule for each part of a model, behind torch.optim's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        if not self.optimizers:
            raise ValueError("optimizers is empty: Together needs at least one")
        owner: dict[torch.Tensor, int] = {}
        for number, optimizer in enumerate(self.optimizers):
            for param in (param for group in optimizer.param_groups for param in group["params"]):
                if owner.setdefault(param, number) != number:
                    raise ValueError(
                        f"a parameter of shape {tuple(param.shape)} is in optimizers[{owner[param]}] and in "
                        f"optimizers[{number}]; each must be in one"
                    )
        super().__init__([{"params": group["params"]} for one in self.optimizers for group in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step of each; returns what closure, called once and before them, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only the constructor's own; add a group to one of `optimizers`, which is seen at the next step.

        Raises:
            TypeError: it is called from outside.
        """
        if hasattr(self, "_optimizer_step_pre_hooks") and len(self.param_groups) >= sum(
            len(one.param_groups) for one in self.optimizers
        ):
            raise TypeError("Together takes no param_group: add it to one of its optimizers")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state dicts of all, under "optimizers"."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: it is of another number of optimizers; nothing has changed.
        """
        saved = state_dict["optimizers"]
        if len(saved) != len(self.optimizers):
            raise ValueError(f"state_dict holds {len(saved)} optimizers where there are {len(self.optimizers)}")
        for optimizer, own in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(own)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}
