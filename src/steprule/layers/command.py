"""What `steprule roles` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from steprule.layers.roles import roles
from steprule.memory import made_by


def show(model: str, overrides: Sequence[str], heads: bool, as_json: bool) -> None:
    """Prints the table of a model's roles, or every row as JSON.

    Raises:
        ValueError: there is no such model, an override makes no sense, or a parameter is unknown.
    """
    pairs = []
    for text in overrides:
        pattern, equals, word = text.rpartition("=")
        if not equals or not pattern or not word:
            raise ValueError(f"--set {text!r} must be PATTERN=WORD, such as '*.wq=transpose'")
        pairs.append((pattern, word))
    table = roles(made_by(model), overrides=pairs, heads=heads)
    if not as_json:
        print(table)
        return
    rows = [
        {
            "names": row.names, "shape": row.shape, "role": row.role, "view": str(row.view) if row.view else None,
            "matrices": row.view.sizes(row.shape) if row.view else [], "why": row.why, "is_doubtful": row.is_doubtful,
        }
        for row in table
    ]  # fmt: skip
    print(json.dumps({"rows": rows, "frozen": table.frozen, "notes": table.notes}, indent=2))
