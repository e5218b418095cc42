"""What processes must have alike to step together, as a few numbers that they can compare."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

TOPICS = ("rule", "services", "parameters", "settings")
_MARKS = 2**20
"""How many marks there are: the sum of the squares of thousands of processes' marks is exact in float64."""


class DisagreementError(RuntimeError):
    """Processes cannot take a step together; nothing has been added up.

    Attributes:
        has_failed: whether that is because one of them cannot take it at all.
        has_changed: whether elements have been changed here by then; None where nothing has changed at all.
        counts: how many parameters the processes have, the fewest and the most.
        places: the parameters of which some processes have a gradient and others have none, by their places.
        topics: which of `TOPICS` processes do not have alike.
        settings: the settings of parameter groups that they do not have alike, where all else is.
    """

    def __init__(
        self, has_failed: bool = False, counts: tuple[int, int] = (0, 0), places: Sequence[int] = (),
        topics: Sequence[str] = (), settings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__("processes do not step the same parameters")
        self.has_failed, self.counts, self.places = has_failed, counts, places
        self.topics, self.settings = topics, settings
        self.has_changed: bool | None = None


class Fingerprint:
    """What an optimizer is, of which all processes must have the same.

    Args:
        texts: of what is the same in every step, one for each of `TOPICS` but the last.

    Attributes:
        numbers: one for each of `TOPICS`.
        mark: one number below 2**20, which tells nearly all of them apart.
    """

    def __init__(self, *texts: str) -> None:
        self._texts = [*map(_checksum, texts)] or [0] * (len(TOPICS) - 1)
        self._settings: dict[str, int] = {}
        self.update({})

    def update(self, settings: Mapping[str, Any]) -> None:
        """Takes over settings of parameter groups, which may change from step to step: by name what all groups have."""
        self._settings.update((name, _checksum(repr((name, values)))) for name, values in settings.items())
        self.numbers = [*self._texts, sum(self._settings.values()) % 2**32]
        self.mark = _checksum(repr(self.numbers)) % _MARKS

    def check(self, are_alike: Iterable[bool], compare: Callable[[Sequence[float]], Iterable[bool]]) -> None:
        """Raises where processes do not have the same.

        Args:
            are_alike: of each of `numbers`, whether all processes have the same.
            compare: finds that out of others; all processes call it.

        Raises:
            DisagreementError: they have not, in all processes.
        """
        topics, settings = _unlike(TOPICS, are_alike), []
        if topics == ["settings"]:  # of which the same rule has as many
            settings = _unlike(self._settings, compare([*self._settings.values()]))
        if topics:
            raise DisagreementError(topics=topics, settings=settings)


def said(flag: bool, mark: int | None, is_largest: bool) -> list[float]:
    """A flag, and a mark if there is one, to be added up over processes, or of which the largest are taken."""
    if mark is None:
        return [float(flag)]
    return [float(flag), float(mark), float(-mark)] if is_largest else [float(flag), 1.0, float(mark), float(mark**2)]


def is_raised(heard: Sequence[float], is_largest: bool) -> bool:
    """Whether any process has raised its flag, or has another mark.

    Args:
        heard: what has become of `said`. The sum of squares is as small as it can be where all marks are alike.
        is_largest: as it was there.
    """
    flag, *marks = heard
    if flag > 0 or not marks:
        return flag > 0
    if is_largest:
        return marks[0] != -marks[1]
    count, total, squares = map(int, marks)
    return total**2 != count * squares


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())


def _unlike(names: Iterable[str], are_alike: Iterable[bool]) -> list[str]:
    return [name for name, alike in zip(names, are_alike, strict=True) if not alike]
