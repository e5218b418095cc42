"""What one of several processes does for tests/test_release.py and tests/test_accumulate.py: `python ddp.py MODULE FOLDER RANK WORLD`.

It runs all scenarios of a test module, and writes down what became of each.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import RANK, run_ranks


def outcomes_of(module: str, folder: Path, world: int) -> dict[str, list[str]]:
    """What became of a module's `SCENARIOS`, functions of the rank, in so many processes: for each a list, "" where it passed."""
    run_ranks("ddp.py", world, module, folder, RANK, world)
    outcomes = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    return {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}


def main() -> None:
    """One process."""
    module, folder, rank, world = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    scenarios = importlib.import_module(module).SCENARIOS
    outcomes = dict.fromkeys(scenarios, "")
    for name, scenario in scenarios.items():
        try:
            scenario(rank)
        except (Exception, pytest.fail.Exception):
            outcomes[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
