"""Tables in Markdown, numbers as texts show them, and the line that says where they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from record import Record

Columns = Mapping[str, Callable[[Any], str]]
UNKNOWN = "not recorded"
BUSY = 0.5
"""A machine is busy if its load is this much above the number of cores: a script that has just ended may fill all of them."""


def table(rows: Iterable[Any], columns: Columns) -> str:
    """A Markdown table. Columns that begin with a number are aligned to the right.

    Args:
        rows: what the rows are made of.
        columns: for each heading what a row has there.
    """
    cells = [[show(row) for show in columns.values()] for row in rows]
    firsts = [next((line[place] for line in cells if line[place]), "") for place in range(len(columns))]
    rule = ["---:" if place and first[:1].isdigit() else "---" for place, first in enumerate(firsts)]
    return "\n".join(f"| {' | '.join(line)} |" for line in ([*columns], rule, *cells))


def ratio(x: float) -> str:
    """How many times, with a digit more where it is near 1."""
    return f"{x:.2f}" if x < 2 else f"{x:.1f}" if x < 10 else f"{x:.0f}"


def times(x: float | None) -> str:
    """How many times as long or as much, "1.02x"; nothing for None."""
    return "" if x is None else f"{ratio(x)}x"


def share(x: float | None) -> str:
    """A percentage."""
    return "" if x is None else f"{x:.0%}"


def span(seconds: float) -> str:
    """A time in the unit that suits it, with two digits or more."""
    unit, name = next((one for one in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if abs(seconds) >= one[0]), (1e-9, "ns"))
    value = seconds / unit
    return f"{value:.2f} s" if name == "s" else f"{value:.0f} {name}" if value >= 10 else f"{value:.1f} {name}"


def source(*records: Record) -> str:
    """The line under a figure: machine, date, commit and versions.

    Raises:
        ValueError: the records are of different machines, whose numbers do not belong in one table.
    """
    machines = {_machine(record["machine"]) for record in records}
    if len(machines) > 1:
        raise ValueError(f"one table needs one machine, and these are {len(machines)}: {'; '.join(sorted(machines))}")
    parts = [
        machines.pop(),
        _versions(records),
        " and ".join(sorted({record["date"][:10] for record in records})),
        "commit " + " and ".join(sorted({_commit(record["commit"]) for record in records})),
    ]
    busy = max((record["load"] or 0) - (record["machine"]["cores"] or 0) for record in records)
    return f"*{'; '.join(parts)}{'; on a busy machine' if busy > BUSY else ''}.*"


def _machine(machine: Record) -> str:
    if machine["processor"] is None:
        return f"machine {UNKNOWN}"
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    memory = f", {machine['memory_gib']:.0f} GiB" if machine["memory_gib"] else ""
    gpu = f"{machine['gpu']} on " if machine["gpu"] else ""
    return f"{gpu}{machine['processor']}, {cores}{memory}"


def _versions(records: tuple[Record, ...]) -> str:
    shown = []
    for name, title in {
        "python": "Python",
        "torch": "torch",
        "numba": "Numba",
        "llvmlite": "llvmlite",
        "triton": "Triton",
    }.items():
        found = sorted({record["versions"][name] for record in records if record["versions"].get(name)})
        shown += [f"{title} {' and '.join(found)}"] * bool(found)
    return ", ".join(shown) or f"versions {UNKNOWN}"


def _commit(commit: Record) -> str:
    return f"{commit['hash'][:9]}{' with changes' if commit['dirty'] else ''}" if commit["hash"] else UNKNOWN
