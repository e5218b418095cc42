"""Measures a step with what surrounds it against the same from torch; prints a table and keeps it beside this file.

python benchmarks/services.py
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import HERE, count, make, processor
from rich.console import Console
from rich.table import Table
from shapes import gpt2_small, tiny_mlp
from timing import interleaved
from torch.optim.swa_utils import get_ema_multi_avg_fn

import steprule
from steprule.engine.cpu import available_threads

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

    def full() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        if all(bool(torch.isfinite(p.grad).all()) for p in params):
            optimizer.step()
        move_averages(averages, [p.detach() for p in params], 1)
        for p in params:
            p.grad.norm(), p.detach().norm()

    return {"torch step": optimizer.step, "torch clip + step": clipped, "torch all": full}


def main() -> None:
    size = count(gpt2_small())
    scaled = torch.randn(size)
    rows = []
    for label, dtype, settings in (("float32", "float32", {}), ("7 bytes", "bfloat16", SEVEN_BYTES)):
        chosen: dict[str, dict[str, Any]] = {
            "step": {},
            "clip + guard": {"clip": 1.0, "nonfinite": "skip"},
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
        contenders["telemetry every 10th"] = lambda one=optimizers["telemetry every 10th"]: [
            one.step() for _ in range(10)
        ]
        seconds = interleaved(contenders, rounds=11)
        seconds["telemetry every 10th"] /= 10
        bandwidth = 8 * size / seconds["scale"] / 1e9
        torch_s = {"clip + guard": seconds["torch clip + step"], "all": seconds["torch all"], "step": seconds["torch step"]}
        for name in chosen:
            rows.append(
                {
                    "what": f"AdamW, GPT-2-small, {label}: {name}",
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
                "what": f"AdamW, tiny MLP: {name}",
                "ms": seconds[name] * 1e3,
                "of_plain": seconds[name] / seconds["step"],
                "torch_ms": seconds["torch step"] * 1e3 if name == "step" else None,
                "vs_torch": seconds["torch step"] / seconds[name] if name == "step" else None,
            }
        )
    table = Table("what", "steprule", "of the plain step", "torch's calls", "torch takes")
    for row in rows:
        table.add_row(
            row["what"],
            f"{row['ms']:.3g} ms",
            f"{row['of_plain']:.3f}x",
            f"{row['torch_ms']:.3g} ms" if row["torch_ms"] else "",
            f"{row['vs_torch']:.2f}x" if row["vs_torch"] else "",
        )
    machine = (
        f"{processor()}, {available_threads()} cores; scale {rows[0]['scale_gb_per_s']:.0f} GB/s; "
        f"Python {platform.python_version()}, torch {torch.__version__}, steprule {steprule.__version__}"
    )
    console = Console(width=150, record=True)
    console.print(machine)
    console.print(table)
    Path(HERE / "services.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    Path(HERE / "services.txt").write_text(console.export_text())


if __name__ == "__main__":
    main()
