"""Parameters chosen by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from steprule.names import did_you_mean

Pattern = str | Callable[[str, Tensor], bool]
"""What is matched with the whole name ("head.*"), or a function of name and parameter."""


def matches(where: str, pattern: Pattern, named: Mapping[str, Tensor]) -> list[str]:
    """The names that a pattern matches.

    Raises:
        ValueError: there is none.
    """
    test = pattern if callable(pattern) else lambda name, param: fnmatchcase(name, pattern)
    found = [name for name, param in named.items() if test(name, param)]
    if not found:
        hint = did_you_mean(
            str(pattern),
            named,
            otherwise="names are those of model.named_parameters(), which names a shared parameter once",
        )
        raise ValueError(f"{where}: {pattern!r} matches no parameter{hint}")
    return found


def alike(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that differ in a number alone, by one with "*" for the number."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    columns = [list(zip(*(name.split(".") for name in same), strict=True)) for same in found.values()]
    short = [".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in column) for column in columns]
    return dict(zip(short, found.values(), strict=True))


def abbreviated(names: Sequence[str]) -> str:
    """Names that differ in a number alone become one, and of the rest only the first are shown."""
    short = [*alike(names)]
    return ", ".join(short[:4]) + (f" and {len(short) - 4} more" if len(short) > 4 else "")
