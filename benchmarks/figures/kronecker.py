"""Steps of rules with a square at each side of a matrix."""

from __future__ import annotations

from tables import Columns, source, table, times

from figures.common import Record, Records, text


def kronecker(records: Records) -> str:
    """Each rule beside other packages' optimizers of its name."""
    record = records["kronecker"]
    own = {(row["rule"], row["matrices"]): row["ms"] for row in record["rows"] if row["who"] == "steprule"}
    columns: Columns = {
        "rule": lambda row: row["rule"],
        "matrices": lambda row: row["matrices"],
        "of": lambda row: row["who"],
        "a step takes": lambda row: f"{row['ms']:.3g} ms",
        "steprule takes, of that": lambda row: times(own[row["rule"], row["matrices"]] / row["ms"]),
        "the longest, beside the median": lambda row: times(row["largest"]),
        "memory of a step": _memory,
    }
    facts = record["facts"]
    peers = " and ".join(f"{name} {version}" for name, version in facts["peers"].items())
    return text(
        table(record["rows"], columns),
        f"Thread CPU time of one thread, means of {facts['steps']} steps; sides above {facts['most']} have no square where an optimizer can be told. "
        f"Bases and roots are made in one of 10 steps, PSGD's fit in all.{f' {peers}, without torch.compile.' if peers else ''}",
        source(record),
    )


def _memory(row: Record) -> str:
    return "not recorded" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f} MB"
