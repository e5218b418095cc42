"""What one of several processes does for tests/test_sharded.py: `python sharded.py MEETING RANK WORLD`.

Each process makes the same whole tensors and steps them by itself; then it steps its parts of the same tensors together with
the others. Both must come to the same.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from sharding.checkpoints import loaded, saved, together
from sharding.refusals import data_parallel, refusals
from sharding.steps import exchanged, formats, options, released, rules, splits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard


def main() -> None:
    """One process among several."""
    meeting, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    flat = init_device_mesh("cpu", (world,))
    if world == 2:
        rules([(flat, [Shard(0)]), (flat, [Shard(1)])])
        options([(flat, [Shard(0)])])
        formats([(flat, [Shard(0)])])
        refusals(flat)
        exchanged(flat)
        released(flat)
        loaded(flat)
        together(flat)
        data_parallel()
        saved(flat)
    else:
        square = init_device_mesh("cpu", (2, 2))
        ways = [(square, [Replicate(), Shard(0)]), (square, [Shard(0), Shard(1)])]
        rules(ways)
        options(ways[1:])
        formats(ways[:1])
        splits(flat)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
