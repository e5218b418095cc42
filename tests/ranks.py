"""Programs that several processes run together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import steprule


def run_ranks(name: str, count: int, *arguments: object) -> None:
    """Runs a program of this folder in several processes at once, which must all end well.

    Args:
        name: the program's file.
        count: how many processes.
        arguments: what each is told; RANK stands for its rank.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(steprule.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    program = Path(__file__).with_name(name)
    ranks = [
        subprocess.Popen(
            [sys.executable, program, *(str(rank) if x is RANK else str(x) for x in arguments)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    errors = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, [error[-3000:] for error in errors]


RANK = object()
