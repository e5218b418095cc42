"""Checkpoints of several processes, loaded by as many, by fewer and by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import steprule


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    """States, corrections, numbers, averages, counts and modes are saved by four, and loaded by four, three, two and one."""
    program = Path(__file__).with_name("sharded_checkpoints.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(steprule.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, tmp_path, str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(4)
    ]
    errors = [rank.communicate(timeout=400)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, [error[-3000:] for error in errors]
