"""Interleaved timing: every contender once a round, so that what the machine does meanwhile hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from record import QUICK


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    batch: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds a call of each contender takes.

    Args:
        contenders: what to call, by name.
        rounds: how often each is timed.
        batch: calls in a row in one timing, for what is too short to time alone.
        clock: what tells the time. `time.thread_time` leaves out what other processes take, if all runs in one thread.

    A quick run takes one round of one call.
    """
    if QUICK:
        rounds = batch = 1
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = clock()
            for _ in range(batch):
                call()
            times[name].append((clock() - begin) / batch)
    return {name: statistics.median(values) for name, values in times.items()}
