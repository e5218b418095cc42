"""What one of several processes does for tests/test_sharded.py: `python sharded.py MEETING RANK WORLD [SCENARIO...]`.

Each process makes the same whole tensors and steps them by itself; then it steps its parts of the same tensors together with
the others. Both must come to the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from sharding import (
    agreeing,
    breaking,
    checkpoints,
    disagreeing,
    faults,
    models,
    numbered,
    refusals,
    replicas,
    scaled,
    steps,
)
from sharding.helpers import HAS_FSDP, Way
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

NEED_FSDP = (
    "released",
    "together",
    "saved",
    "not taken",
    "behind tensor parallelism",
    "copies",
    "gathered",
    "converted",
    "swapped",
    "assigned",
    "made before",
    "model of two rules",
)


def scenarios(world: int) -> dict[str, Callable[[], None]]:
    """What so many processes do."""
    flat = init_device_mesh("cpu", (world,))
    if world == 2:
        return {
            "rules": lambda: steps.rules([(flat, [Shard(0)]), (flat, [Shard(1)])]),
            "options": lambda: steps.options([(flat, [Shard(0)])]),
            "sides": lambda: steps.sides([(flat, [Shard(0)]), (flat, [Shard(1)])]),
            "stacks": lambda: steps.stacks(flat),
            "torch's states": lambda: steps.torchs_states(flat),
            "formats": lambda: steps.formats([(flat, [Shard(0)])]),
            "stochastic": lambda: numbered.stochastic([(flat, [Shard(0)]), (flat, [Shard(1)])]),
            "resting": lambda: numbered.resting(flat),
            "numbers": lambda: numbered.numbers(flat, None),
            "missing": lambda: breaking.missing(flat),
            "failing": lambda: breaking.failing(flat),
            "faults": lambda: faults.sums(flat),
            "calls": lambda: breaking.calls(flat),
            "one rank only": lambda: breaking.one_rank_only(flat),
            "come and go": lambda: breaking.come_and_go(flat),
            "twice": lambda: breaking.twice(flat),
            "small": lambda: breaking.small(flat),
            "moved": lambda: breaking.moved(flat),
            "not taken": lambda: breaking.not_taken(flat),
            "refused after loading": lambda: breaking.refused_after_loading(flat),
            "plain is not finite": lambda: breaking.plain_is_not_finite(flat),
            "nothing is counted": lambda: disagreeing.nothing_is_counted(flat),
            "errors say what differs": lambda: disagreeing.errors_say_what_differs(flat),
            "other optimizers": lambda: agreeing.other_optimizers(flat),
            "other settings": lambda: agreeing.other_settings(flat),
            "several optimizers": lambda: agreeing.several(flat),
            "model of two rules": lambda: agreeing.model_of_two_rules(flat),
            "hooks fail": lambda: agreeing.hooks_fail(flat),
            "one fails": lambda: disagreeing.one_fails(flat),
            "several fail": lambda: disagreeing.several_fail(flat),
            "several disagree": lambda: disagreeing.several_disagree(flat),
            "idle": lambda: disagreeing.idle(flat),
            "asked for states": lambda: disagreeing.asked_for_states(flat),
            "unreduced gradients": lambda: disagreeing.unreduced_gradients(flat),
            "extremes": lambda: disagreeing.extremes(flat),
            "refusals": lambda: refusals.refusals(flat),
            "scaled": lambda: scaled.scaled(flat),
            "exchanged": lambda: steps.exchanged(flat),
            "cut otherwise": lambda: steps.cut_otherwise(flat),
            "released": lambda: steps.released(flat),
            "copies": lambda: models.copies(flat),
            "swapped": lambda: models.swapped(flat),
            "assigned": lambda: models.assigned(flat),
            "made before": lambda: models.made_before(flat),
            "converted": lambda: checkpoints.converted(flat),
            "gathered": lambda: checkpoints.gathered(flat),
            "micro-batches": models.micro_batches,
            "loaded": lambda: checkpoints.loaded(flat),
            "recut": lambda: checkpoints.recut(flat),
            "together": lambda: checkpoints.together(flat),
            "joined": replicas.joined,
            "other hooks": replicas.other_hooks,
            "sparse": replicas.sparse,
            "saved": lambda: checkpoints.saved(flat),
        }
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    ways: list[Way] = [(square, [Replicate(), Shard(0)]), (square, [Shard(0), Shard(1)])]
    return {
        "rules": lambda: steps.rules(ways, elementwise=False),
        "options": lambda: steps.options(ways[1:]),
        "sides": lambda: steps.sides(ways[:1]),
        "formats": lambda: steps.formats(ways[:1]),
        "splits": lambda: steps.splits(flat),
        "scaled over several meshes": lambda: scaled.several_meshes(square),
        "meshes": lambda: steps.meshes(square),
        "stochastic": lambda: numbered.stochastic([(flat, [Shard(0)]), ways[1]]),
        "numbers": lambda: numbered.numbers(flat, square),
        "behind tensor parallelism": lambda: numbered.behind_tensor_parallelism(square),
        "missing": lambda: breaking.missing(flat),
        "missing in replicas": lambda: breaking.missing_in_replicas(square),
        "small": lambda: breaking.small(flat),
        "other replicas": lambda: agreeing.replicas(square),
        "another mesh": lambda: breaking.another_mesh(flat, square),
        "other orders": breaking.other_orders,
        "refusals of places": lambda: refusals.places(square),
    }


def main() -> None:
    """One process among several, for all scenarios or those that are named."""
    meeting, rank, world, *names = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(world))
    for name, run in scenarios(int(world)).items():
        if name in (names or [name]) and (HAS_FSDP or name not in NEED_FSDP):
            run()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
