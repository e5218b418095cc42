"""Parameters that are spread over processes: what is known of those that other processes have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engine.run import Complete, alone
from steprule.formats.parts import is_sharded
from steprule.tensors.fingerprint import DisagreementError, Fingerprint

ProcessGroup: Any = getattr(torch.distributed, "ProcessGroup", object)
_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"
_CHECKPOINT = "torch.distributed.checkpoint.state_dict"


class Across:
    """The process group over which an optimizer's parameters are spread.

    A deepcopy has the same; one that was pickled is lost, since a group belongs to its process.

    Args:
        group: it, None where it is lost.
        has_model: whether each process has a model of all parameters, and steps some of them.

    Attributes:
        own: what all processes must have alike. The first call of a step says whether they do.

    Raises:
        TypeError: group is none.
        ValueError: this process is not in it.
    """

    def __init__(self, group: Any, has_model: bool = False) -> None:
        self.group, self.has_model = group, has_model
        self.own = Fingerprint()
        self._told: Complete = alone
        self._awaits, self._size = False, 0
        if group is None:
            return
        if not isinstance(group, ProcessGroup) or ProcessGroup is object:
            raise TypeError(
                f"process_group={group!r} must be a process group of torch.distributed, such as "
                "torch.distributed.group.WORLD, of which this process is a member"
            )
        self._ranks = torch.distributed.get_process_group_ranks(group)
        if torch.distributed.get_rank() not in self._ranks:
            raise ValueError(f"process_group={group!r} does not have this process, rank {torch.distributed.get_rank()}")

    def __repr__(self) -> str:
        return f"{len(self._ranks)} processes" if self.group is not None else "lost: a pickled copy has none"

    def __deepcopy__(self, memo: Any) -> Across:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Across, (None, self.has_model)

    def check(self) -> None:
        """Raises where the group is lost."""
        if self.group is None:
            raise RuntimeError(
                "this optimizer is a pickled copy of one with process_group=..., and a process group cannot be pickled: set "
                "optimizer.process_group = torch.distributed.group.WORLD, or whatever it was, before step()"
            )

    def begin(self, awaits: bool, told: Complete = alone) -> None:
        """A step begins.

        Args:
            awaits: whether it calls `gather`.
            told: what knows what fails after its first call.
        """
        self._awaits = awaits and self.group is not None
        self._told = told

    def awaits(self) -> bool:
        """Whether that call is still to come."""
        return self._awaits

    def fail(self) -> None:
        """Tells the others that this process cannot take the step, unless they have had numbers in it."""
        if self._awaits:
            self._open((), has_failed=True)

    def gather(self, numbers: Sequence[Any]) -> np.ndarray:
        """What all processes have for some numbers: float64, a row for each process; a `steprule.engine.run.Gather`.

        There is one number more, which says whether a process has failed in this step; two more in its first call.

        Raises:
            DisagreementError: one cannot take the step, or has something else to gather, as the first call says.
        """
        if self._awaits:
            return self._open(numbers)
        every = self._gather([*numbers, float(self._told.failed is not None)])
        if every[:, -1].any():
            self._told.hear()
        return every[:, :-1]

    def _open(self, numbers: Sequence[Any], has_failed: bool = False) -> np.ndarray:
        """A step's first call, which is as long as the one of the step before."""
        self._awaits = False
        is_new = has_failed or len(numbers) != self._size
        every = self._gather([*([0.0] * self._size if is_new else numbers), float(is_new), float(self.own.mark)])
        if not every[:, -2].any() and _are_alike(every)[-1]:
            return every[:, :-2]
        # and so it is new in all processes
        self.agree(has_failed, len(numbers))
        self._size = len(numbers)
        return self._gather(numbers)

    def agree(self, has_failed: bool, size: int = 0, is_sure: bool = True) -> bool:
        """Compares what processes have, and returns whether all are sure; all call it at the same place.

        Args:
            has_failed: whether this process cannot take the step.
            size: how many numbers it then gathers first.
            is_sure: whether it is known that it can.

        Raises:
            DisagreementError: it is not the same, or one of them has failed; in all processes.
        """
        every = self._gather([float(has_failed), float(is_sure), size, *self.own.numbers])
        if every[:, 0].any():
            raise DisagreementError(has_failed=True)
        is_sized, *are_alike = _are_alike(every)[2:]
        self.own.check(are_alike, lambda numbers: _are_alike(self._gather(numbers)))
        if not is_sized:
            raise DisagreementError(topics=["services"])
        return bool(every[:, 1].all())

    def _gather(self, numbers: Sequence[Any]) -> np.ndarray:
        from torch.distributed import all_gather, get_backend_config

        devices = [one.partition(":")[0] for one in str(get_backend_config(self.group)).split(",")]
        # The same on a process that has no parameters, and so by the group and not by where they are.
        place = "cpu" if "cpu" in devices else devices[0]
        own = torch.tensor([float(one) for one in numbers], dtype=torch.float64, device=place)
        every = [torch.empty_like(own) for _ in self._ranks]
        all_gather(every, own, group=self.group)
        return torch.stack(every).cpu().numpy()

    def is_over(self, group: Any) -> bool:
        """Whether these are the processes of another group, where None has this one alone."""
        distributed = torch.distributed
        others = [distributed.get_rank()] if group is None else distributed.get_process_group_ranks(group)
        return self.group is None or self._ranks == others

    def shares(self, group: Any) -> bool:
        """Whether another group has several of these processes."""
        return (
            self.group is not None
            and len({*torch.distributed.get_process_group_ranks(group)}.intersection(self._ranks)) > 1
        )

    def knows(self, param: Tensor) -> bool:
        """Whether a parameter is a DTensor that other processes of the group have too."""
        if not is_sharded(param) or self.group is None:
            return False
        members = param.device_mesh.mesh.flatten().tolist()  # type: ignore[attr-defined]
        return len(set(members).intersection(self._ranks)) > 1


def _are_alike(every: np.ndarray) -> list[bool]:
    """Of each number, whether all processes have the same."""
    return (every == every[0]).all(axis=0).tolist()  # type: ignore[no-any-return]


def of_zero() -> Any:
    """The process group of the ZeroRedundancyOptimizer that is just making its optimizer; None where none is.

    It has a `process_group` of its own, and nothing by which it would hand that on.
    """
    frame = _calling(_ZERO, "__init__")
    return frame.f_locals["self"].process_group if frame is not None else None


def asks_for_states() -> bool:
    """Whether torch.distributed.checkpoint is just having states made, by a step of which nothing is to come.

    It does so in those processes that have none, and so in each that has no parameters, as often as it looks at them. Others need not
    be there: so processes cannot ask each other, and what they have in their gradients does not tell.
    """
    return _calling(_CHECKPOINT) is not None


def _calling(module: str, function: str | None = None) -> Any:
    """The frame of the function of a module, or of any, that is just being called; None where none is."""
    frame = sys._getframe(1)
    while frame is not None and (
        frame.f_globals.get("__name__") != module or function not in (None, frame.f_code.co_name)
    ):
        frame = frame.f_back  # type: ignore[assignment]
    return frame
