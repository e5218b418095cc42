"""Rules of whole matrices on the CPU."""

from __future__ import annotations

from tables import Columns, share, source, span, table, times

from figures.common import Records, between, count, rows_of, text

ISAS = {"": "as it is", "AVX2": "without bfloat16 products"}


def matrices(records: Records) -> str:
    """Muon beside torch's, and two rules that multiply less."""
    record = records["matrix"]
    columns: Columns = {
        "matrices": lambda row: row["label"],
        "processor": lambda row: ISAS[row["isa"]],
        "Muon": lambda row: span(row["muon_ms"] / 1e3),
        "torch.optim.Muon takes": lambda row: times(row["torch_ms"] / row["muon_ms"]),
        "Muon takes, of MUD": lambda row: times(row["muon_ms"] / row["mud_ms"]),
        "of Dion2": lambda row: times(row["muon_ms"] / row["dion2_ms"]),
        "products": lambda row: row["how"],
    }
    rounds = between((row["rounds"] for row in rows_of(record, kind="set")), str)
    return text(
        table(rows_of(record, kind="set"), columns),
        f"Whole steps in float32 on {record['facts']['threads']} threads, medians of {rounds} rounds. Without bfloat16 products is the same "
        "processor with `ONEDNN_MAX_CPU_ISA=AVX2`.",
        source(record),
    )


def matrices_sweep(records: Records) -> str:
    """Single matrices of many shapes in a sentence."""
    record = records["matrix"]
    rows = rows_of(record, kind="sweep")
    ratios = {row["label"]: row["torch_ms"] / row["muon_ms"] for row in rows}
    least = min(ratios, key=ratios.__getitem__)
    return text(
        f"For one matrix of each of {len(rows)} shapes between {rows[0]['label']} and {rows[-1]['label']} torch.optim.Muon takes "
        f"{between(ratios.values(), times)} as long; the least is that of {least}.",
        source(record),
    )


def matrices_memory(records: Records) -> str:
    """Rules with numbers of rows and columns beside what memory allows."""
    record = records["matrix"]
    rows = rows_of(record, kind="memory")
    columns: Columns = {
        "rule": lambda row: row["rule"],
        "bytes": lambda row: str(row["bytes"]),
        "of these in readings": lambda row: str(row["bytes_of_readings"]),
        "threads": lambda row: str(row["threads"]),
        "step": lambda row: span(row["ms"] / 1e3),
        "of the scale's": lambda row: share(row["of_scale"]),
        "of the memory's": lambda row: share(row["of_memory"]),
        "in-place scale": lambda row: f"{row['scale_gb_per_s']:.0f} GB/s",
        "sum": lambda row: f"{row['sum_gb_per_s']:.0f} GB/s",
    }
    return text(
        table(rows, columns),
        f"GPT-2-small ({count(rows[0]['elements'])} elements; Mano its matrices alone) in float32. Bytes: the fewest that a step can move for an element. "
        "Of the scale's: the share of the bandwidth of an in-place scale. Of the memory's: the share of what memory allows, if "
        "readings are as fast as torch's `sum`, and the rest as the scale.",
        source(record),
    )
