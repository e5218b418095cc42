"""Whether things lie in the same memory: what is written for one of them must not be another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def first_overlap(spans: Sequence[tuple[int, int]], share: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The first two that have an element in common, by their numbers in ascending order, or None.

    Args:
        spans: where each begins and ends; those that are empty share nothing.
        share: whether two have an element in common, for spans that overlap: there may be gaps in them.
    """
    reached: list[int] = []  # those that go on where the next begins
    for number in sorted(range(len(spans)), key=spans.__getitem__):
        start, end = spans[number]
        if start == end:
            continue
        reached = [other for other in reached if spans[other][1] > start]
        for other in reached:
            if share(other, number):
                return min(other, number), max(other, number)
        reached.append(number)
    return None
