"""The options of ``steprule check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Optimizer = Annotated[
    str | None,
    typer.Argument(
        show_default=False, help="package:Class for any torch optimizer, torch.AdamW, or a name of steprule's."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=VALUE]...", show_default=False, help="What it is made with, such as lr=3e-3."),
]
Claim = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=VALUE]",
        help="What is said of it, such as maximize, decay=decoupled, formula=lion, drop_in_for=torch.optim.AdamW or "
        "params=2d. May be given several times. What is not claimed is not checked; what a rule shows of itself is claimed.",
    ),
]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CHECK=REASON", help="A check that is expected to fail, and why. If it passes, that is a failure."
    ),
]
Tier = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TIER",
        show_default="all but distributed",
        help="manners, state, numbers, matrix, cost or distributed. May be given several times.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--check", metavar="CHECK", help="Only this check. May be given several times."),
]
Other = Annotated[
    str | None,
    typer.Option("--compare", metavar="OTHER", help="Check nothing; say how the numbers of OTHER differ."),
]
Report = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Write a report: .json, .xml for JUnit, .md or .txt. May be given several times."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="What torch is seeded with before each check.")]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="Check the checks, on broken optimizers that ship with them.")
]
