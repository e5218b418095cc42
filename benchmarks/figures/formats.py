"""What formats of states and weights do to numbers."""

from __future__ import annotations

from tables import Columns, source, table

from figures.common import Records, between, format_of, row_of, rows_of, text
from figures.training import spread

CHOSEN = "8bit"
PUBLISHED = ("bitsandbytes", "FlashOptim")


def formats(records: Records) -> str:
    """All schemes that were tried."""
    record = records["formats"]
    columns: Columns = {
        "states": lambda row: f"**{row['scheme']}**" if row["scheme"] == CHOSEN else row["scheme"],
        "bytes of both": lambda row: f"{row['bytes']:.2f}",
        "largest update, of float32's": lambda row: _power(row["largest_update"]),
        "least moved, of float32's": lambda row: f"{row['least_moved']:.2f}",
        "second moment after 10x": lambda row: f"{row['after_10x']:.2f}",
        "after 0.01x": lambda row: f"{row['after_001x']:.2f}",
        "scatter": lambda row: f"{row['scatter']:.0%}",
        "loss on digits, median (range)": spread,
    }
    facts = record["facts"]
    return text(
        table(rows_of(record, kind="stress"), columns),
        "Largest update and least moved: one element of a block is 10 to 10,000 times the others, in "
        f"{facts['stress_steps']:,} steps of AdamW; least moved is over elements down to a hundredth of the largest. The next three columns are "
        f"a second moment over float32's, {facts['slow_steps']:,} steps after gradients grew tenfold and then shrank to a hundredth: the mean "
        "over elements, and the standard deviation after the second change. Losses are those of "
        f"{len(facts['seeds'])} seeds with lr={facts['digits_lr']:g}. Published schemes are emulated, all rounded to nearest but "
        '"8bit" and "bfloat16"; they are not the libraries themselves.',
        source(record),
    )


def formats_safe(records: Records) -> str:
    """How far an update can leap."""
    record = records["formats"]
    ours = row_of(record, kind="stress", scheme=CHOSEN)
    others = [row_of(record, kind="stress", scheme=name)["largest_update"] for name in PUBLISHED]
    return text(
        "One element of a block is 10 to 10,000 times the others. With 8-bit states the largest update is then "
        f"{_power(ours['largest_update'])} times float32's; with emulations of two published 8-bit maps it is {between(others, _power)} times. "
        f"Elements down to a hundredth of the largest move at least {ours['least_moved']:.0%} of the way that they do in float32.",
        source(record),
    )


def _power(x: float) -> str:
    return f"{x:.2f}" if x < 1000 else f"{x:.0e}".replace("e+0", "e")


def formats_averages(records: Records) -> str:
    """How second moments follow a change."""
    record = records["formats"]
    kept = {name: row_of(record, kind="stress", scheme=name) for name in (CHOSEN, "bfloat16")}
    said = [
        f"with {name} states within {max(abs(row[key] - 1) for key in ('after_10x', 'after_001x')):.0%} (single elements scatter by "
        f"{row['scatter']:.0%})"
        for name, row in (("8-bit", kept[CHOSEN]), ("bfloat16", kept["bfloat16"]))
    ]
    return text(
        f"{record['facts']['slow_steps']:,} steps after gradients grew tenfold or shrank to a hundredth, the mean of second moments with "
        f"`betas[1]=0.999` is that of float32, {' and '.join(said)}.",
        source(record),
    )


def decay(records: Records) -> str:
    """Weight decay alone, in every format of weights."""
    record = records["formats"]
    columns: Columns = {"weights": format_of, "mean weight": lambda row: f"{row['mean']:.4f}"}
    facts = record["facts"]
    return text(
        f"Weights of 1 after {facts['decay_steps']} steps of AdamW with `lr={facts['decay_lr']:g}`, `weight_decay={facts['weight_decay']:g}` and "
        "gradients of 0:",
        table(rows_of(record, kind="decay"), columns),
        source(record),
    )
