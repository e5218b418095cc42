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
from steprule.tensors.totals import DisagreementError

ProcessGroup: Any = getattr(torch.distributed, "ProcessGroup", object)
_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"  # imported by those who use it


class Across:
    """The process group over which an optimizer's parameters are spread.

    A deepcopy has the same; one that was pickled is lost, since a group belongs to its process.

    Args:
        group: it, None where it is lost.
        has_model: whether each process has a model of all parameters, and steps some of them.

    Raises:
        TypeError: group is none.
        ValueError: this process is not in it.
    """

    def __init__(self, group: Any, has_model: bool = False) -> None:
        self.group, self.has_model = group, has_model
        self._told: Complete = alone
        self._awaited: int | None = None
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

    def begin(self, size: int | None, told: Complete = alone) -> None:
        """A step begins.

        Args:
        size: how many numbers its first call of `gather` has; None where it calls none.
        told: what knows what fails after that call.
        """
        self._awaited = size if self.group is not None else None
        self._told = told

    def awaits(self) -> bool:
        """Whether that call is still to come."""
        return self._awaited is not None

    def fail(self) -> None:
        """Tells the others that this process cannot take the step, unless they have had numbers in it."""
        if self._awaited is not None:
            size, self._awaited = self._awaited, None
            self._gather([*[0.0] * size, 1.0])

    def gather(self, numbers: Sequence[Any]) -> np.ndarray:
        """What all processes have for some numbers: float64, a row for each process; a `steprule.engine.run.Gather`.

        There is one number more, which says whether a process cannot take the step, or has failed in it.

        Raises:
            DisagreementError: one cannot, as the first call says.
        """
        is_first, self._awaited = self.awaits(), None
        every = self._gather([*numbers, float(self._told.failed is not None)])
        if every[:, -1].any():
            if is_first:
                raise DisagreementError(True)
            self._told.hear()
        return every[:, :-1]

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


def of_zero() -> Any:
    """The process group of the ZeroRedundancyOptimizer that is just making its optimizer; None where none is.

    It has a `process_group` of its own, and nothing by which it would hand that on.
    """
    if _ZERO not in sys.modules:
        return None
    code, frame = sys.modules[_ZERO].ZeroRedundancyOptimizer.__init__.__code__, sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back  # type: ignore[assignment]
    return frame.f_locals["self"].process_group if frame is not None else None
