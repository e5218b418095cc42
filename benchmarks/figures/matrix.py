"""Polar factors."""

from __future__ import annotations

from tables import Columns, source, table, times

from figures.common import Record, Records, between, rows_of, text

ISAS = ("", "AVX2")


def polar(records: Records) -> str:
    """Polar factors beside torch's, where bfloat16 is fast and where it is not."""
    record = records["matrix"]
    rounds = between((row["rounds"] for row in record["rows"]), str)
    columns: Columns = {
        "matrices": _matrices,
        "computed": lambda row: row["how"],
        "in": lambda row: f"{row['ms']:.3g} ms",
        "torch takes": lambda row: times(row["torch_ms"] / row["ms"]) if row["torch_ms"] else "",
        "torch.optim.Muon's whole step takes": lambda row: times(row["step_ms"] / row["ms"]),
    }
    return text(
        *(table(rows_of(record, isa=isa), columns) for isa in ISAS if rows_of(record, isa=isa)),
        f"Thread CPU time of one thread, medians of {rounds} rounds. The second table is of the same processor with "
        "`ONEDNN_MAX_CPU_ISA=AVX2`, as of one without bfloat16 products.",
        source(record),
    )


def _matrices(row: Record) -> str:
    if row["label"]:
        return str(row["label"])
    rows, columns = row["shape"]
    return f"{row['count']} of {rows} x {columns}"
