"""Measures low-memory formats against torch's float32 fused AdamW; prints a table and keeps it beside this file.

python benchmarks/low_memory.py
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import torch
from bench import HERE, count, make, publish
from rich.table import Table
from shapes import Shapes, gpt2_small
from timing import interleaved

import steprule
from steprule.engine.cpu import available_threads

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16, to nearest": ("bfloat16", {}),
    "bfloat16 stochastic, states bfloat16": ("bfloat16", {"weights": "stochastic", "states": "bfloat16"}),
    "bfloat16 24bit, states bfloat16": ("bfloat16", {"weights": "24bit", "states": "bfloat16"}),
    "bfloat16 32bit, states 8bit": ("bfloat16", {"weights": "32bit", "states": "8bit"}),
    "bfloat16 24bit, states 8bit": ("bfloat16", {"weights": "24bit", "states": "8bit"}),
    "bfloat16 stochastic, states 8bit": ("bfloat16", {"weights": "stochastic", "states": "8bit"}),
    "float32, states 8bit": ("float32", {"states": "8bit"}),
}


def storage(optimizer: Any) -> tuple[int, int]:
    """The bytes of weights, gradients and states, and how many of them a step must move."""
    weights = grads = states = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            weights += p.untyped_storage().nbytes()
            grads += p.grad.untyped_storage().nbytes()
            tensors = (x for name, x in optimizer.state[p].items() if name != "step")
            states += sum(x.untyped_storage().nbytes() for x in tensors)
    return weights + grads + states, 2 * weights + grads + 2 * states


_PEAK = """
import json, sys
sys.path.insert(0, {folder!r})
from low_memory import CONTENDERS, make
from shapes import gpt2_small
import steprule, torch
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
name = {name!r}
if name == "torch fused":
    optimizer = make(torch.optim.AdamW, gpt2_small(), fused=True)
else:
    dtype, settings = CONTENDERS[name]
    optimizer = make(steprule.AdamW, gpt2_small(), dtype, **settings)
optimizer.step()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
optimizer.step()
print(json.dumps(status("VmHWM") - before))
"""


def peak(name: str) -> int | None:
    """The bytes by which resident memory rises during a step, in a process of its own; None where Linux has none."""
    if not sys.platform.startswith("linux"):
        return None
    code = _PEAK.format(folder=str(HERE), name=name)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def main() -> None:
    shapes = gpt2_small()
    size = count(shapes)
    peaks = {name: peak(name) for name in (*CONTENDERS, "torch fused")}

    torch.set_num_threads(1)  # in cache, on one core: what the arithmetic alone takes
    small: Shapes = [(32, 768)]
    in_cache = interleaved(
        {
            name: make(steprule.AdamW, small, dtype, **s)._core.plans.current.go
            for name, (dtype, s) in CONTENDERS.items()
        },
        400,
        5,
    )
    torch.set_num_threads(available_threads())

    optimizers = {name: make(steprule.AdamW, shapes, dtype, **s) for name, (dtype, s) in CONTENDERS.items()}
    optimizers["torch fused"] = make(torch.optim.AdamW, shapes, fused=True)
    scaled = torch.randn(size)
    contenders = {name: optimizer.step for name, optimizer in optimizers.items()}
    contenders["in-place scale"] = lambda: scaled.mul_(1.0000001)
    seconds = interleaved(contenders, rounds=21)
    bandwidth = 8 * size / seconds["in-place scale"]
    rows = []
    for name, optimizer in optimizers.items():
        kept, moved = storage(optimizer)
        row: dict[str, Any] = {
            "what": name,
            "bytes": kept / size,
            "moved": moved / size,
            "ms": seconds[name] * 1e3,
            "vs_fused": seconds["torch fused"] / seconds[name],
            "of_scale": moved / seconds[name] / bandwidth,
            "peak_bytes": peaks[name],
        }
        if name in in_cache:
            row["in_cache_ns"] = in_cache[name] / (32 * 768) * 1e9
            row["cores_to_memory"] = math.ceil(row["in_cache_ns"] * 1e-9 / (moved / size / bandwidth))
        rows.append(row)

    table = Table(
        "AdamW, GPT-2-small", "bytes a parameter", "moved a step", "step", "torch fused takes", "of the scale's bandwidth",
        "in cache, one core", "cores to be memory-bound", "memory rises by",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["what"], f"{row['bytes']:.2f}", f"{row['moved']:.2f}", f"{row['ms']:.1f} ms", f"{row['vs_fused']:.2f}x",
            f"{row['of_scale']:.0%}", f"{row['in_cache_ns']:.2f} ns" if "in_cache_ns" in row else "",
            str(row.get("cores_to_memory", "")), f"{row['peak_bytes'] / 1e6:.1f} MB" if row["peak_bytes"] is not None else "",
        )  # fmt: skip
    publish("low_memory", rows, table, facts=f" scale {bandwidth / 1e9:.0f} GB/s;")


if __name__ == "__main__":
    main()
