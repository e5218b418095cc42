"""Steps of several processes."""

from __future__ import annotations

from tables import Columns, source, table, times

from figures.common import Records, row_of, text


def sharded(records: Records) -> str:
    """Steps of parameters that are cut."""
    record = records["sharded"]
    fused = row_of(record, optimizer="torch fused", what="float32")["ms"]
    columns: Columns = {
        "AdamW, GPT-2-small in two halves": lambda row: f"{row['optimizer']}: {row['what']}",
        "a step": lambda row: f"{row['ms']:.1f} ms",
        "torch `fused=True`, float32, takes": lambda row: times(fused / row["ms"]),
        "bytes an element": lambda row: f"{row['bytes']:.2f}",
        "collectives a step": lambda row: "" if row["calls"] is None else str(row["calls"]),
        "bytes in them": lambda row: "" if row["sent"] is None else f"{row['sent']:,}",
    }
    return text(
        table(record["rows"], columns),
        "Two processes with one thread each; a time is that of the slower one. torch's clipping is `clip_grad_norm_` and `full_tensor()` of its result.",
        source(record),
    )
