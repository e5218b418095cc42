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


class Counting:
    """Counts calls of torch.distributed and the bytes that they are given."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0
        self._all_reduce = dist.all_reduce

    def __enter__(self) -> Counting:
        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.bytes += tensor.nbytes
            return self._all_reduce(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self

    def __exit__(self, *_: object) -> None:
        dist.all_reduce = self._all_reduce


def parameters(dtype: torch.dtype, mesh: Any) -> list[torch.nn.Parameter]:
    """Halves of GPT-2-small's parameters, with gradients."""
    from torch.distributed.tensor import DTensor, Shard

    params = []
    for shape in gpt2_small():
        local = (-(-shape[0] // WORLD) if dist.get_rank() == 0 else shape[0] - -(-shape[0] // WORLD), *shape[1:])
        strides = torch.empty(shape, device="meta").stride()
        made = [
            DTensor.from_local(
                torch.randn(local).mul_(0.02).to(dtype), mesh, [Shard(0)], shape=torch.Size(shape), stride=strides
            )
            for _ in range(2)
        ]
        param = torch.nn.Parameter(made[0])
        param.grad = made[1]
        params.append(param)
    return params


def state_bytes(optimizer: Any, params: list[torch.nn.Parameter]) -> float:
    """Bytes an element of this process's weights, gradients and states."""
    tensors = [
        x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor) and x.dim()
    ]
    tensors += [*params, *(param.grad for param in params)]
    mine = [getattr(x, "_local_tensor", x) for x in tensors]
    return sum(x.nbytes for x in mine) / sum(param._local_tensor.numel() for param in params)  # type: ignore[attr-defined]


def measure(mesh: Any) -> list[dict[str, Any]]:
    """All contenders in turn."""
    contenders: dict[str, Callable[[], Any]] = {}
    rows = []
    for name, (dtype, settings) in KINDS.items():
        params = parameters(dtype, mesh)
        optimizer = steprule.AdamW(params, lr=1e-4, **settings)
        optimizer.step()
        with Counting() as counted:
            optimizer.step()
        rows.append(
            {
                "optimizer": "steprule",
                "what": name,
                "bytes": state_bytes(optimizer, params),
                "calls": counted.calls,
                "sent": counted.bytes,
            }
        )
        contenders[f"steprule {name}"] = optimizer.step
    for kind in ("fused", "foreach"):
        params = parameters(torch.float32, mesh)
        theirs = torch.optim.AdamW(params, lr=1e-4, **{kind: True})
        theirs.step()
        rows.append(
            {
                "optimizer": f"torch {kind}",
                "what": "float32",
                "bytes": state_bytes(theirs, params),
                "calls": 0,
                "sent": 0,
            }
        )
        contenders[f"torch {kind} float32"] = theirs.step
        if kind == "fused":

            def clipped(params: Any = params, theirs: Any = theirs) -> None:
                torch.nn.utils.clip_grad_norm_(params, 1.0).full_tensor()  # type: ignore[attr-defined]
                theirs.step()

            rows.append(
                {
                    "optimizer": "torch fused",
                    "what": "float32, clip",
                    "bytes": rows[-1]["bytes"],
                    "calls": None,
                    "sent": None,
                }
            )
            contenders["torch fused float32, clip"] = clipped
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            dist.barrier()
            begin = time.perf_counter()
            call()
            spent = torch.tensor(time.perf_counter() - begin)
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            times[name].append(spent.item())
    for row in rows:
        row["ms"] = 1000 * statistics.median(times[f"{row['optimizer']} {row['what']}"])
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
