"""What all figures need: rows of records, and numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from record import Record

Records = Mapping[str, Record]
Figure = Callable[[Records], str]


def rows_of(record: Record, **wanted: Any) -> list[Record]:
    """The rows that have these values."""
    return [row for row in record["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def row_of(record: Record, **wanted: Any) -> Record:
    """The one row that has these values.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = rows_of(record, **wanted)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows have {wanted}, where one is needed")
    return found[0]


def text(*parts: str) -> str:
    """Paragraphs and tables, one below the other."""
    return "\n\n".join(parts)


def count(elements: float) -> str:
    """About how many, "124M"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if elements >= size:
            return f"{elements / size:.3g}{letter}"
    return f"{elements:g}"


def between(numbers: Iterable[float], show: Callable[[float], str]) -> str:
    """The range of numbers, "1.02x to 1.06x"."""
    low, high = (show(f(list_)) for list_ in [list(numbers)] for f in (min, max))
    return low if low == high else f"{low} to {high}"


def format_of(row: Record) -> str:
    """What a row of a format is called."""
    if row.get("optimizer", "steprule") != "steprule":
        return f"{row['optimizer']}, {row['dtype']}"
    chosen = [f'`{name}="{row[name]}"`' for name in ("weights", "states") if row[name]]
    return ", ".join([row["dtype"], *chosen])
