"""The oracle of the matrix rules beside published packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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


def matrix_oracles(records: Records) -> str:
    """Of each rule that looks at rows and columns: its pseudo-code, its steps worked by hand, and the packages that it was held to."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import papers_factored
    import papers_kronecker
    import papers_matrix
    from hand_matrix import HAND
    from papers_words import PAPER_OF
    from settings import sees_matrix

    from steprule.rules import OWN

    sys.path.pop(0)
    record = records["references"]
    rows = []
    for name in (name for name, rule in OWN.items() if sees_matrix(rule)):
        paper = PAPER_OF.get(name, name)
        file = next(one for one in (papers_matrix, papers_factored, papers_kronecker) if hasattr(one, paper))
        held = [row for row in record["rows"] if row["rule"].partition("_")[0] == name]
        agreeing = dict.fromkeys(row["package"] for row in held if row["difference"] <= record["facts"]["rounding"])
        apart = dict.fromkeys(f"{row['package']}: {row['why']}" for row in held if row["why"])
        rows.append(
            {
                "rule": name,
                "code": ", ".join(f"`{one}`" for one in dict.fromkeys((paper, *(row["rule"] for row in held)))),
                "file": f"`{file.__name__}.py`",
                "hand": len(HAND[paper]),
                "agreeing": ", ".join(agreeing) or "none",
                "apart": "; ".join(apart) or "none",
            }
        )
    columns: dict[str, Any] = {
        "rule": lambda row: row["rule"],
        "pseudo-code, in tests": lambda row: f"{row['code']} in {row['file']}",
        "steps by hand": lambda row: str(row["hand"]),
        "packages that agree with it": lambda row: row["agreeing"],
        "differences that are explained": lambda row: row["apart"],
    }
    return text(table(rows, columns), source(record))
