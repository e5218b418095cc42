"""The CPU engine: a rule compiled by LLVM to one pass over all tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from steprule.engine.kernel import Kernel as _Kernel
from steprule.engine.plan import Plan
from steprule.engine.team import run_together
from steprule.kernels.cache import load_for_cpu
from steprule.kernels.cpu_pass import write_pass
from steprule.kernels.source import Source
from steprule.trace.program import ROW, Stage

PARALLEL_FROM = 65536
"""Elements from which several threads are worth waking."""


class Kernel(_Kernel):
    """A pass compiled by LLVM."""

    source: Source
    write = staticmethod(write_pass)
    load = staticmethod(load_for_cpu)

    def __init__(self, stage: Stage, source: Source, path: Path, code: Any) -> None:
        super().__init__(stage, source, path, code)
        self._address = int(code)
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._address)

    def plan(self, addresses: Mapping[tuple[str, str], Any], others: Sequence[Kernel] = (), **tables: Any) -> Plan:
        """What this kernel and its readings work through, and others with the same arrays.

        Args:
            addresses: for each array, (operand, suffix), the address of each tensor's first element.
            others: those kernels.
            tables: what else a `Plan` is made of and no kernel says.
        """
        stage, sources = self.stage, self.sources(others)
        tallies = max(len(source.tallies) for source in sources)
        of_arrays = [addresses[array] for array in self.source.arrays]
        in_rows = bool(stage.sides)
        tallies = max(tallies, int(in_rows))  # columns are added up by pieces, too
        return Plan(
            of_arrays, by_row=stage.factor == ROW, in_rows=in_rows, tallies=tallies, own=len(stage.own), **tables
        )

    def launcher(self, plan: Plan, threads: Callable[[], int]) -> Callable[[], None]:
        """What takes every tensor of the plan one step further.

        Args:
            plan: its addresses must be valid whenever the launcher is called.
            threads: says how many threads may work on it; the result does not depend on it.
        """
        run, address = self._run, self._address
        if self.stage.own:
            return self.worker(plan, threads)
        if plan.size < PARALLEL_FROM:
            return partial(run, plan.both_header)

        def launch() -> None:
            workers = min(threads(), plan.chunk_count)
            if workers == 1:
                run(plan.both_header)
            else:
                run(plan.count_header)
                run_together(address, plan.work_header, workers)

        return launch

    def count(self, plan: Plan) -> None:
        """Counts the plan's steps."""
        self._run(plan.count_header)

    def worker(self, plan: Plan, threads: Callable[[], int]) -> Callable[[], None]:
        """As `launcher`, for steps that have been counted."""

        def work() -> None:
            plan.counter[0] = 0
            workers = min(threads(), plan.chunk_count) if plan.size >= PARALLEL_FROM else 1
            if workers == 1:
                self._run(plan.work_header)
            else:
                run_together(self._address, plan.work_header, workers)

        return work


def available_threads() -> int:
    """How many threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
