"""Measures a step with what surrounds it against the same from torch; keeps services.json beside this file and prints its tables.

python benchmarks/services.py    # about 3 minutes
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import record
import torch
from bench import count, make
from figures import speed
from shapes import gpt2_small, tiny_mlp
from timing import interleaved
from torch.optim.swa_utils import get_ema_multi_avg_fn

import steprule

SEVEN_BYTES = {"weights": "24bit", "states": "8bit"}
FULL = {"clip": 1.0, "nonfinite": "skip", "average": 0.999, "telemetry": 1}


def torch_steps() -> dict[str, Callable[[], Any]]:
    """The usual calls around torch's fused AdamW."""
    optimizer = make(torch.optim.AdamW, gpt2_small(), fused=True)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    averages = [p.detach().clone() for p in params]
    move_averages = get_ema_multi_avg_fn(0.999)

    def clipped() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    def full(by_norm: bool = False) -> None:
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        if bool(norm.isfinite()) if by_norm else all(bool(torch.isfinite(p.grad).all()) for p in params):
            optimizer.step()
        move_averages(averages, [p.detach() for p in params], 1)
        for p in params:
            p.grad.norm(), p.detach().norm()

    return {
        "torch step": optimizer.step,
        "torch clip + step": clipped,
        "torch all": full,
        "torch all, by norm": lambda: full(by_norm=True),
    }


_PEAK = """
import steprule, sys, torch
from steprule.compare.tasks import CharTransformer, _classify
width, layers, batch, release = {arguments}
torch.manual_seed(0)
model = CharTransformer(width, layers)
optimizer = steprule.AdamW(model.parameters())
if release:
    optimizer.release_gradients(model)
characters = torch.randint(0, 90, (batch, 33))
def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
def train():
    optimizer.zero_grad()
    _classify(model, (characters[:, :-1], characters[:, 1:])).backward()
    optimizer.step()
train(), train()
optimizer.zero_grad()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
train()
print(status("VmHWM") - before, sum(p.numel() for p in model.parameters()))
"""


def peaks() -> list[dict[str, Any]]:
    """By how much resident memory rises in a training step of the transformer, with and without gradient release."""
    rows: list[dict[str, Any]] = []
    if not sys.platform.startswith("linux"):
        return rows
    wide = (64, 1, 2) if record.QUICK else (1024, 8, 2)
    for label, width, layers, batch in (("of `steprule compare`", 64, 2, 32), ("wider and deeper", *wide)):
        risen = []
        for release in (False, True):
            code = _PEAK.format(arguments=(width, layers, batch, release))
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            output = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment
            )
            risen.append([int(number) for number in output.stdout.split()])
        rows.append(
            {
                "kind": "memory",
                "model": label,
                "elements": risen[0][1],
                "kept_mb": risen[0][0] / 1e6,
                "released_mb": risen[1][0] / 1e6,
                "gradients_mb": risen[0][1] * 4 / 1e6,
            }
        )
    return rows


def main() -> None:
    begun = record.head()
    size = count(gpt2_small())
    scaled = torch.randn(size)
    rows = []
    for label, dtype, settings in (("float32", "float32", {}), ("7 bytes", "bfloat16", SEVEN_BYTES)):
        chosen: dict[str, dict[str, Any]] = {
            "step": {},
            "clip and skip": {"clip": 1.0, "nonfinite": "skip"},
            "telemetry every step": {"telemetry": 1},
            "telemetry every 10th": {"telemetry": 10},
            "average": {"average": 0.999},
            "all": FULL,
        }
        optimizers = {
            name: make(steprule.AdamW, gpt2_small(), dtype, **settings, **more) for name, more in chosen.items()
        }
        contenders: dict[str, Callable[[], Any]] = {name: one.step for name, one in optimizers.items()}
        contenders |= torch_steps() | {"scale": lambda: scaled.mul_(1.0000001)}
        for name, one in (("ten steps", "step"), ("telemetry every 10th", "telemetry every 10th")):
            contenders[name] = lambda step=optimizers[one].step: [step() for _ in range(10)]
        seconds = interleaved(contenders, rounds=11)
        seconds["telemetry every 10th"] *= seconds["step"] / seconds.pop("ten steps")
        bandwidth = 8 * size / seconds["scale"] / 1e9
        seconds["all, torch checks the norm only"] = seconds["all"]
        torch_s = {
            "step": seconds["torch step"],
            "clip and skip": seconds["torch clip + step"],
            "all": seconds["torch all"],
            "all, torch checks the norm only": seconds["torch all, by norm"],
        }
        for name in (*chosen, "all, torch checks the norm only"):
            rows.append(
                {
                    "kind": "step",
                    "model": "GPT-2-small",
                    "format": label,
                    "what": name,
                    "ms": seconds[name] * 1e3,
                    "of_plain": seconds[name] / seconds["step"],
                    "torch_ms": torch_s[name] * 1e3 if name in torch_s else None,
                    "vs_torch": torch_s[name] / seconds[name] if name in torch_s else None,
                    "scale_gb_per_s": bandwidth,
                }
            )
    tiny = {name: make(steprule.AdamW, tiny_mlp(), **more) for name, more in (("step", {}), ("all", FULL))}
    tiny["torch step"] = make(torch.optim.AdamW, tiny_mlp(), fused=True)
    seconds = interleaved({name: one.step for name, one in tiny.items()}, 400, 20)
    for name in ("step", "all"):
        rows.append(
            {
                "kind": "step",
                "model": "tiny MLP",
                "format": "float32",
                "what": name,
                "ms": seconds[name] * 1e3,
                "of_plain": seconds[name] / seconds["step"],
                "torch_ms": seconds["torch step"] * 1e3 if name == "step" else None,
                "vs_torch": seconds["torch step"] / seconds[name] if name == "step" else None,
            }
        )
    kept = {"services": record.write("services", begun, rows + peaks())}
    record.show(one(kept) for one in (speed.services, speed.release_memory))


if __name__ == "__main__":
    main()
