"""Measures low-memory formats against torch's float32 fused AdamW; keeps low_memory.json beside this file and prints its table.

python benchmarks/low_memory.py    # about 3 minutes
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import record
import torch
from bench import count, make
from figures import speed
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
    if not sys.platform.startswith("linux") or (record.QUICK and name != "float32"):
        return None
    code = _PEAK.format(folder=str(record.HERE), name=name)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def main() -> None:
    begun = record.head()
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
        dtype, settings = CONTENDERS.get(name, ("float32", {}))
        row: dict[str, Any] = {
            "optimizer": "steprule" if name in CONTENDERS else name,
            "dtype": dtype,
            "weights": settings.get("weights"),
            "states": settings.get("states"),
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
    kept = {"low_memory": record.write("low_memory", begun, rows, scale_gb_per_s=bandwidth / 1e9, elements=size)}
    record.show([speed.low_memory(kept)])


if __name__ == "__main__":
    main()
