"""Checkpoints of several processes, loaded by as many, by fewer and by one."""

from __future__ import annotations

import pytest
from ranks import RANK, run_ranks


@pytest.mark.parametrize("ways", ["some", pytest.param("every", marks=pytest.mark.long)])
def test_a_run_goes_on_with_another_number_of_processes(ways, tmp_path):
    """States, corrections, numbers, averages, counts and modes are saved by four, and loaded by four, three, two and one."""
    run_ranks("sharded_checkpoints.py", 4, tmp_path, RANK, ways)
