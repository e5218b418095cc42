"""Measures steps of two processes that have a half of each parameter, as FSDP2 cuts them; keeps sharded.json and prints its table.

    python benchmarks/sharded.py    # about 2 minutes

GPT-2-small's parameters are DTensors cut along their first dimension. Each process has one thread. Contenders take turns, and a
time is the median of the slower process's. torch's calls for clipping are those around its `fused=True`.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cut
import record
import torch
import torch.distributed as dist
from figures import sharded as figures_of_shards
from shapes import gpt2_small

import steprule

WORLD, ROUNDS = 2, 1 if record.QUICK else 15
KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "float32, clip and skip": (torch.float32, {"clip": 1.0, "nonfinite": "skip"}),
    "float32, all services": (torch.float32, {"clip": 1.0, "nonfinite": "skip", "average": 0.999, "telemetry": 1}),
    "7 bytes": (torch.bfloat16, {"weights": "24bit", "states": "8bit"}),
    "7 bytes, clip and skip": (
        torch.bfloat16,
        {"weights": "24bit", "states": "8bit", "clip": 1.0, "nonfinite": "skip"},
    ),
}


def halves(dtype: torch.dtype, mesh: Any) -> list[torch.nn.Parameter]:
    """Halves of GPT-2-small's parameters, with gradients."""
    return cut.parameters(gpt2_small(), dtype, mesh)


def row(optimizer: str, what: str, step: Callable[[], Any], states: Any, params: list[torch.nn.Parameter]) -> Any:
    """What can be counted of a contender: bytes an element here, and what a step sends."""
    step()
    with cut.Counting() as counted:
        step()
    elements = sum(param._local_tensor.numel() for param in params)  # type: ignore[attr-defined]
    kept = cut.bytes_here(states, params) / elements
    return {"optimizer": optimizer, "what": what, "bytes": kept, "calls": counted.calls, "sent": counted.bytes}


def measure(mesh: Any) -> list[dict[str, Any]]:
    """All contenders in turn."""
    contenders: dict[str, Callable[[], Any]] = {}
    rows = []

    def enter(optimizer: str, what: str, step: Callable[[], Any], states: Any, params: Any) -> None:
        contenders[f"{optimizer} {what}"] = step
        rows.append(row(optimizer, what, step, states, params))

    for name, (dtype, settings) in KINDS.items():
        params = halves(dtype, mesh)
        optimizer = steprule.AdamW(params, lr=1e-4, **settings)
        enter("steprule", name, optimizer.step, optimizer.state, params)
    for kind in ("fused", "foreach"):
        params = halves(torch.float32, mesh)
        theirs = torch.optim.AdamW(params, lr=1e-4, **{kind: True})
        enter(f"torch {kind}", "float32", theirs.step, theirs.state, params)
        if kind == "fused":

            def clipped(params: Any = params, theirs: Any = theirs) -> None:
                torch.nn.utils.clip_grad_norm_(params, 1.0).full_tensor()  # type: ignore[attr-defined]
                theirs.step()

            enter("torch fused", "float32, clip", clipped, theirs.state, params)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            dist.barrier()
            begin = time.perf_counter()
            call()
            spent = torch.tensor(time.perf_counter() - begin)
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            times[name].append(spent.item())
    for one in rows:
        one["ms"] = 1000 * statistics.median(times[f"{one['optimizer']} {one['what']}"])
    return rows


def rank(number: int, port: str, place: str) -> None:
    """What one process does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(number), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = measure(dist.init_device_mesh("cpu", (WORLD,)))
    if number == 0:
        Path(place).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Starts the processes, and keeps what they find."""
    if len(sys.argv) > 1:
        rank(int(sys.argv[1]), *sys.argv[2:])
        return
    begun = record.head()
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, place = str(free.getsockname()[1]), str(Path(folder, "rows.json"))
        free.close()
        command = [sys.executable, __file__]
        started = [subprocess.Popen([*command, str(number), port, place]) for number in range(WORLD)]
        if any(one.wait() for one in started):
            raise SystemExit("a process failed")
        rows = json.loads(Path(place).read_text(encoding="utf-8"))
    kept = record.write("sharded", begun, rows, processes=WORLD, threads=1)
    record.show([figures_of_shards.sharded({"sharded": kept})])


if __name__ == "__main__":
    main()
