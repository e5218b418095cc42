"""Every rule beside the memory and other libraries."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from record import Record
from tables import Columns, ratio, share, source, table, times

from figures.common import Records, between, count, text

LIBRARIES = ("torch", "timm", "pytorch_optimizer", "heavyball", "optimi", "own package")
"""The columns; the last is a package of the rule's authors, or one that has this rule alone."""


def rules(records: Records) -> str:
    """The table of all rules."""
    record = records["rules"]
    rows = record["rows"]
    columns: Columns = {
        "rule": lambda row: row["rule"] + r"\*" * (row["rule"] == "sparseadam"),
        "lines": lambda row: f"{row['lines']}" + f" ({row['lines_with_shared']})" * _is_shared(row),
        "bytes": lambda row: str(row["bytes"]),
        "of the scale's": lambda row: share(row["of_scale"]),
        "of the memory's": lambda row: share(row["of_memory"]),
        **{one: lambda row, one=one: _peer(row, one) for one in LIBRARIES},
    }
    return text(table(rows, columns), *_notes(record), source(record))


def _is_shared(row: Record) -> bool:
    return row["lines_with_shared"] > row["lines"]


def _peer(row: Record, library: str) -> str:
    return f"{times(row['takes'][library])} {row['ways'][library]}".strip() if library in row["takes"] else ""


def _notes(record: Record) -> list[str]:
    """What the columns mean."""
    facts, rows = record["facts"], record["rows"]
    reading = statistics.median(row["sum_gb_per_s"] for row in rows)
    alone, together = (statistics.median(row[key] for row in rows) for key in ("lines", "lines_with_shared"))
    peers = ", ".join(f"{name} {version}" for name, version in sorted(facts["peers"].items())) or "none"
    return [
        "A library's column says how many times as long as steprule's its step takes, in the fastest of its ways: `fused=True`, "
        "`foreach=True`, or its default where nothing is said.",
        "Bytes: the fewest that a step can move for an element in float32. Operands are read and written once, and read again for "
        "sums over tensors. Of the scale's: the share of the bandwidth of an in-place scale in the same run, in the median "
        f"{facts['scale_gb_per_s']:.1f} GB/s. Of the memory's: the share of what memory allows, if sums are read as fast as torch's "
        f"`sum` reads, in the median {reading:.1f} GB/s, and the rest moves as fast as the scale.",
        f"Lines: those of the signature and the statements of `update`, in the median {alone:g}; in parentheses with the functions "
        f"that rules share, in the median {together:g}.",
        r"\* The two embeddings alone, with gradients that hold one row in 8: too few elements to keep the memory busy, and the rows "
        "lie apart.",
        *(f"{row['rule']}, {one}: not measured, {why}" for row in rows for one, why in row["failed"].items()),
        f"Each rule steps {count(facts['elements'])} elements in {facts['tensors']} tensors on {facts['threads']} threads; times are medians "
        f"of {facts['rounds']} rounds. Other libraries: {peers}{', heavyball compiled' * facts['heavyball_compiled']}.",
    ]


def rules_summary(records: Records) -> str:
    """The table in sentences."""
    record = records["rules"]
    rows = [row for row in record["rows"] if row["rule"] != "sparseadam"]
    once = [row["of_scale"] for row in rows if not row["bytes_of_readings"]]
    more = [row["of_memory"] for row in rows if row["bytes_of_readings"]]
    took: dict[str, list[float]] = {"torch's `fused=True`": [], "torch's other ways": [], "other libraries": []}
    fused, other, libraries = took
    for row in rows:
        for library, one in row["takes"].items():
            way = libraries if library != "torch" else fused if row["ways"][library] == "fused" else other
            took[way].append(one)
    return text(
        f"The {len(once)} rules that read each element once reach {between(once, share)} of the bandwidth of an in-place scale. The "
        f"{len(more)} that first add up over tensors reach {between(more, share)} of what memory allows. For the same algorithm {_took(took)}.",
        source(record),
    )


def _took(took: dict[str, list[float]]) -> str:
    def said(numbers: Iterable[float]) -> str:
        return between(numbers, ratio)

    return ", ".join(
        f"{way} {'take' if way.endswith('s') else 'takes'} {said(one)} times as long"
        for way, one in took.items()
        if one
    )
