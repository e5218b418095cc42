"""Passes that add up before the first element changes: a rule's, and the norms that services want to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from steprule.engine.cpu import Kernel
from steprule.engine.plan import Plan, stretches
from steprule.engine.run import Sums
from steprule.trace.norms import Norm
from steprule.trace.program import ROW


class Reading:
    """A pass that adds up.

    Args:
        kernel: its kernel.
        plan: what it works through.
        threads: says how many threads may work; no sum depends on it.

    Attributes:
        plan: that plan.
        run: reads elements.
    """

    def __init__(self, kernel: Kernel, plan: Plan, threads: Callable[[], int]) -> None:
        self.plan = plan
        self.run = kernel.worker(plan, threads)
        self._tallies = kernel.source.tallies
        self._columns = dict(zip(self._tallies, plan.left(len(self._tallies)).T, strict=True))

    def sums(self) -> Sums:
        """What the last run has found, for each tensor; overwritten by the next."""
        return self._columns if self.plan.is_one_each else self.plan.tallied(self._tallies)

    def pieces(self) -> np.ndarray:
        """What each piece of a norm came to, a stretch or a row, in order; overwritten by the next run."""
        return self.plan.left(1)[self.plan.active_pieces, 0]


def norms(
    norm: Norm,
    dtype: str,
    addresses: np.ndarray,
    sizes: Sequence[int],
    rows: Sequence[int],
    threads: Callable[[], int],
) -> Reading:
    """The reading of a norm, each piece's sum by itself in `Reading.pieces`.

    Args:
        norm: which.
        dtype: of the operand.
        addresses: int64, the address of each tensor's first element, read anew in every run.
        sizes: each tensor's number of elements.
        rows: the elements of one row of each tensor, for a norm of rows.
        threads: as for `Reading`.
    """
    kernel, chunks = Kernel.of_norm(norm, dtype), stretches(sizes, rows if norm.axis == ROW else None)
    plan = Plan(addresses, sizes, hyper=[[]], first_steps=[0.0] * len(sizes), tallies=1, chunks=chunks)
    return Reading(kernel, plan, threads)
