"""Optimizers of other packages, held to the checks of `steprule check`."""

from __future__ import annotations

from typing import Any

from tables import Columns, source, table

from figures.common import Records, text


def conformance(records: Records) -> str:
    """What fails, check by check, with a program for each package."""
    record = records["conformance"]
    rows, facts = record["rows"], record["facts"]
    columns: Columns = {
        "package": lambda row: f"{row['package']} {facts['packages'][row['package']].partition('+')[0]}",
        "optimizer": called,
        "passed": lambda row: str(row["passed"]),
        "failed": lambda row: str(row["failed"]),
        "as expected": lambda row: str(row["expected"]),
        "not claimed": lambda row: str(row["skipped"]),
    }
    parts = [table(rows, columns)]
    for check, says in facts["says"].items():
        failing = [(row, one) for row in rows for one in row["failures"] if one["check"] == check]
        if failing:
            parts += [f"### {check}", f"{says} {_torchs(rows, check)}", *_by_package(failing)]
    return text(*parts, f"Each check began with seed {facts['seed']}.", source(record))


def called(row: dict[str, Any]) -> str:
    """An optimizer and what it is made with."""
    given = ", ".join(f"{name}={value!r}" for name, value in row["settings"].items())
    return f"`{row['optimizer']}`" + f" ({given})" * bool(given)


def _torchs(rows: list[dict[str, Any]], check: str) -> str:
    """Whether AdamW of torch does it."""
    adamw = next((row for row in rows if row["package"] == "torch" and row["optimizer"] == "AdamW"), None)
    if adamw is None:
        return ""
    fails = check in [one["check"] for one in adamw["failures"]]
    return f"`torch.optim.AdamW` {'does not do' if fails else 'does'} so."


def _by_package(failing: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """For each package the optimizers, what happens, and the program of the first."""
    parts = []
    for package in dict.fromkeys(row["package"] for row, _ in failing):
        own = [(row, one) for row, one in failing if row["package"] == package]
        names = ", ".join(called(row) for row, _ in own)
        (row, one), program = own[0], next(one["reproducer"] for _, one in own if "reproducer" in one)
        happens = one["reason"].replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
        first = f" (`{row['optimizer']}`)" if len(own) > 1 else ""
        parts.append(f'**{package}**: {names}. What happens{first}: {happens}.\n\n??? note "A program that shows it"')
        code = "\n".join(f"    {line}" for line in f"``` {{ .python .no-run }}\n{program}\n```".split("\n"))
        parts.append(code)
    return parts
