"""What `steprule roles` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence

from steprule.layers.roles import roles_of
from steprule.memory import made_by


def said_in(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Patterns and words, of texts such as "*.wq=transpose".

    Raises:
        ValueError: a text is none.
    """
    pairs = []
    for text in texts:
        pattern, equals, word = text.rpartition("=")
        if not equals or not pattern or not word:
            raise ValueError(f"--set {text!r} must be PATTERN=WORD, such as '*.wq=transpose'")
        pairs.append((pattern, word))
    return pairs


def show(model: str, overrides: Sequence[str], heads: bool, as_json: bool) -> None:
    """Prints the table of a model's roles, or every row as JSON.

    Raises:
        ValueError: there is no such model, an override makes no sense, or a parameter is unknown.
    """
    table = roles_of(made_by(model), said_in(overrides), "--set", heads=heads)
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
