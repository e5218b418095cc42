"""The GPU engine: times on a device, and what its machine code is like."""

from __future__ import annotations

from record import Record
from tables import Columns, ratio, share, source, span, table, times

from figures.common import Records, between, row_of, rows_of, text


def gpu(records: Records) -> str:
    """Steps alone and in a row."""
    record = records["gpu"]
    columns: Columns = {
        "": lambda row: f"{row['case']}, {row['model']}",
        "a step alone": lambda row: span(row["seconds"]["ours"]),
        "of the copy's bandwidth": lambda row: share(row["of_copy"]),
        "in a row": lambda row: span(row["in_a_row"]["ours"]),
        "of the copy's": lambda row: share(row["of_copy_in_a_row"]),
        "torch, float32, takes alone": lambda row: times(row["torch_takes"]),
        "in a row it takes": lambda row: times(row["torch_takes_in_a_row"]),
    }
    return text(
        table(rows_of(record, kind="step"), columns),
        "A step alone has the host's time before its first launch; in a row, no step waits for the one before. The copy is one of 1 GiB in "
        "the same run. torch's is `fused=True`, and `foreach=True` for RMSprop, which has no other.",
        _others(record),
        source(record),
    )


def _others(record: Record) -> str:
    """What is beside the table."""
    many, served = (row_of(record, kind=kind) for kind in ("many", "services"))
    sentences = [
        f"{many['case']}, {many['model']}: a step takes {span(many['seconds']['ours'])}, of that the host {span(many['host_seconds']['ours'])}; "
        f"`fused=True` takes {span(many['seconds']['theirs'])}, its host {span(many['host_seconds']['theirs'])}.",
        f"AdamW with {served['case']} over {served['model']} takes {_both(served, 'ours')}, with "
        f"`cuda_graph` {_both(served, 'graph')}, torch's calls {_both(served, 'theirs')}.",
        *(
            f"{row['case']} over the hidden matrices of {row['model']}: {_both(row, 'ours')}, with "
            f"`cuda_graph` {_both(row, 'graph')}, torch.optim.Muon {_both(row, 'theirs')}; with bfloat16 and 24-bit weights and an 8-bit "
            f"momentum {span(row['in_a_row']['fewer_bytes'])} in a row."
            for row in rows_of(record, kind="matrix")
        ),
        *(
            f"{row['case']} over the hidden matrices of {row['model']}: {_both(row, 'ours')}, {share(row['of_copy_in_a_row'])} of the copy's bandwidth, "
            f"with `cuda_graph` {_both(row, 'graph')}"
            + (f", torch.optim.{row['case']} {_both(row, 'theirs')}." if "theirs" in row["seconds"] else ".")
            for row in rows_of(record, kind="rows")
        ),
        *(
            f"{row['case']} takes {span(row['seconds']['peer'])} over {row['model']}."
            for row in rows_of(record, kind="peer")
        ),
    ]
    return " ".join(sentences)


def _both(row: Record, name: str) -> str:
    """A time of a step alone and of one in a row."""
    return f"{span(row['seconds'][name])} alone and {span(row['in_a_row'][name])} in a row"


def gpu_summary(records: Records) -> str:
    """The table in a sentence."""
    record = records["gpu"]
    rows = rows_of(record, kind="step")
    models = dict.fromkeys(row["model"] for row in rows)
    reached = " and ".join(
        f"{between((row['of_copy_in_a_row'] for row in rows if row['model'] == model), share)} over {model}"
        for model in models
    )
    fused = [row for row in rows if not row["case"].startswith("RMSprop")]
    same, fewer = (
        between((row["torch_takes_in_a_row"] for row in fused if row["case"].endswith(", float32") == is_same), ratio)
        for is_same in (True, False)
    )
    return text(
        f"Steps in a row reach {reached} of a copy's bandwidth. torch's `fused=True` takes {same} times as long as a step in float32, and in float32 "
        f"{fewer} times as long as a step in fewer bytes.",
        source(record),
    )


def gpu_code(records: Records) -> str:
    """What is known of kernels without a GPU."""
    record = records["gpu_code"]
    host = row_of(record, kind="host")
    columns: Columns = {
        "kernel": lambda row: row["kernel"],
        "bytes an element": lambda row: f"{row['bytes']:.2f}",
        "torch's calls, float32": lambda row: f"{row['torch_fused_bytes']:g}",
        **{
            f"{one}: instructions an element, waits, registers, bytes spilled": lambda row, one=one: (
                f"{row[one]['instructions']:.1f}, {row[one]['waits']}, {row[one]['update']['registers']}, {row[one]['update']['spills']}"
            )
            for one in ("sm_80", "sm_90")
        },
    }
    return text(
        table(rows_of(record, kind="kernel"), columns),
        f"{host['what']}: without the launches, the host takes {span(host['seconds'])} a step.",
        "Kernels are compiled for GPUs that are not there, and nothing is timed on one. Instructions are those of a thread where all elements "
        "of a tile are there, divided by its elements; at a wait it stops until all threads of the tile are as far. Bytes are those that a step moves; torch's are those of `fused=True`, and of "
        "clipping and averaging beside it where the kernel does that.",
        source(record),
    )
