"""The oracle of the matrix rules beside published packages."""

from __future__ import annotations

from tables import Columns, source, table

from figures.common import Records, text


def references(records: Records) -> str:
    """What other packages make of the same gradients."""
    record = records["references"]
    facts = record["facts"]
    columns: Columns = {
        "rule": lambda row: row["rule"],
        "package": lambda row: f"{row['package']} {row['version'].partition('+')[0]}",
        "called": lambda row: row["name"],
        "difference / movement": lambda row: (
            "rounding" if row["difference"] <= facts["rounding"] else f"{row['difference']:.1g}"
        ),
        "what the package does otherwise": lambda row: row["why"],
    }
    shapes = ", ".join(f"{m} x {n}" for m, n in facts["shapes"])
    return text(
        f"After each of {facts['steps']} steps of matrices of {shapes}, the largest difference of a weight as a part of the largest "
        f"movement; of SOAP, KL-Shampoo and SPlus on square matrices alone. Rounding is at most {facts['rounding']:.0e}.",
        table(record["rows"], columns),
        source(record),
    )
