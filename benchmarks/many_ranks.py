"""Counts what a step of one among up to 1,024 processes sends, and measures the processor's time that it takes; keeps
many_ranks.json and prints its tables.

    python benchmarks/many_ranks.py    # about 3 minutes

There is one process, which takes itself for one of many by torch's fake process group: collectives are called, and nothing is
sent. GPT-2-small's parameters are DTensors cut along their first dimension, as FSDP2 cuts them. Of 1,024 processes, the first
has some of each parameter, and the last of few. Times are medians of time.process_time, of one thread.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cut
import record
import torch
import torch.distributed as dist
from figures import sharded as figures_of_shards
from shapes import gpt2_small

import steprule
from steprule.catalog import find
from steprule.memory import Param, need

ROUNDS = 3 if record.QUICK else 25
ALL = (((2,), 0), ((16,), 0), ((128,), 0), ((1024,), 0), ((1024,), 1023), ((32, 32), 0))
MESHES = ALL[-1:] if record.QUICK else ALL
"""The dimensions of a mesh, and which process of it is looked at. Parameters are cut over the last dimension."""
WORLDS = (2,) if record.QUICK else (1, 2, 4)
PLAIN = "plain"
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("AdamW", {}),
    "clip": ("AdamW", {"clip": 1.0}),
    "clip and skip": ("AdamW", {"clip": 1.0, "nonfinite": "skip"}),
    "telemetry": ("AdamW", {"telemetry": 1}),
    "LAMB": ("LAMB", {}),
    "Prodigy": ("Prodigy", {}),
    "8-bit states": ("AdamW", {"states": "8bit"}),
}
FORMATS: tuple[tuple[str, dict[str, str | None]], ...] = (
    ("float32", {"states": None, "weights": None}),
    ("float32", {"states": "8bit", "weights": None}),
    ("bfloat16", {"states": None, "weights": None}),
    ("bfloat16", {"states": "8bit", "weights": "24bit"}),
    ("bfloat16", {"states": "bfloat16", "weights": "32bit"}),
)
"""A parameter's dtype, and formats."""


def contenders(mesh: Any) -> dict[tuple[str, str], Callable[[], Any]]:
    """Steps to be measured, by the optimizer and what it does; each over parameters of its own."""

    def made() -> list[torch.nn.Parameter]:
        return cut.parameters(gpt2_small(), torch.float32, mesh)

    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for what, (rule, settings) in OURS.items():
        found["steprule", what] = getattr(steprule, rule)(made(), **settings).step
    found["torch foreach", PLAIN] = torch.optim.AdamW(made(), foreach=True).step
    found["torch fused", PLAIN] = torch.optim.AdamW(made(), fused=True).step
    params = made()
    theirs = torch.optim.AdamW(params, fused=True)

    def clipped() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        theirs.step()

    found["torch fused", "clip"] = clipped
    return found


def measure(shape: tuple[int, ...], rank: int) -> list[dict[str, Any]]:
    """The rows of one process."""
    torch.set_num_threads(1)
    cut.meet(rank, torch.Size(shape).numel())
    steps = contenders(dist.init_device_mesh("cpu", shape))
    counted = {}
    for key, step in steps.items():
        step(), step()
        with cut.Counting() as counted[key]:
            step()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(ROUNDS):
        for key, step in steps.items():
            begin = time.process_time()
            step()
            times[key].append(time.process_time() - begin)
    return [
        {
            "mesh": list(shape), "rank": rank, "optimizer": optimizer, "what": what, "calls": counted[optimizer, what].calls,
            "sent": counted[optimizer, what].bytes, "ms": 1000 * statistics.median(own), "low": 1000 * min(own),
        }
        for (optimizer, what), own in times.items()
    ]  # fmt: skip


def memory(world: int) -> list[dict[str, Any]]:
    """Bytes of what the first of these processes keeps for AdamW, as counted and as `steprule.memory` says."""
    cut.meet(0, world)
    mesh, rows = dist.init_device_mesh("cpu", (world,)), []
    for dtype, formats in FORMATS:
        params = cut.parameters(gpt2_small(), getattr(torch, dtype), mesh)
        optimizer = steprule.AdamW(params, **formats)  # type: ignore[arg-type]
        optimizer.step()
        shapes = [Param(tuple(param._local_tensor.shape)) for param in params]  # type: ignore[attr-defined]
        said = need(find("adamw"), shapes, dtype, dtype, formats["states"], formats["weights"], {}).total
        rows.append(
            {
                "world": world, "dtype": dtype, **formats, "bytes": cut.bytes_here(optimizer.state, params), "said": said,
                "elements": sum(torch.Size(shape).numel() for shape in gpt2_small()),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Starts a process for each mesh, and keeps what they find."""
    if len(sys.argv) > 1:
        print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
        return
    begun, rows = record.head(), []
    for what, arguments in [
        *[("measure", one) for one in MESHES],
        *[("memory", (world,)) for world in WORLDS],
    ]:
        done = subprocess.run(
            [sys.executable, __file__, what, json.dumps(arguments)], stdout=subprocess.PIPE, check=True, text=True
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    kept = record.write("many_ranks", begun, rows, rounds=ROUNDS)
    record.show([one({"many_ranks": kept}) for one in (figures_of_shards.many_ranks, figures_of_shards.sharded_bytes)])


if __name__ == "__main__":
    main()
