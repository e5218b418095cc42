"""Measures steprule against torch.optim and the memory; keeps bench.json beside this file and prints its tables.

    python benchmarks/bench.py    # about 4 minutes

Every number is a median; every ratio is between contenders that took turns in one run.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import record
import torch
from figures import speed
from shapes import Shapes, gpt2_small, small_cnn, tiny_mlp
from timing import interleaved

import steprule

# The fewest bytes an element that a rule can move in float32: param and states read and written, grad read.
RULES: dict[str, tuple[dict[str, float], int]] = {
    "AdamW": ({}, 28),
    "Adam": ({}, 28),
    "SGD": ({"momentum": 0.9}, 20),
    "RMSprop": ({}, 20),
}


def make(optimizer_class: Any, shapes: Shapes, dtype: str = "float32", **settings: Any) -> Any:
    """An optimizer over random parameters with random gradients, one step behind it."""
    generator = torch.Generator().manual_seed(0)
    wanted = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(wanted)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(wanted)
    optimizer = optimizer_class(params, **settings)
    optimizer.step()
    return optimizer


def count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def large_models() -> list[dict[str, Any]]:
    """Each rule on GPT-2-small's tensors: torch fused, torch's default and the bandwidth limit."""
    rows = []
    shapes = gpt2_small()
    size = count(shapes)
    scaled = torch.randn(size)
    for name, (settings, bytes_moved) in RULES.items():
        peer = getattr(torch.optim, name)
        contenders = {
            "steprule": make(getattr(steprule, name), shapes, **settings).step,
            "torch default": make(peer, shapes, **settings).step,
            "in-place scale": lambda: scaled.mul_(1.0000001),
        }
        if name != "RMSprop":  # torch has no fused RMSprop
            contenders["torch fused"] = make(peer, shapes, fused=True, **settings).step
        seconds = interleaved(contenders, rounds=11)
        bandwidth = {
            key: size * (8 if key == "in-place scale" else bytes_moved) / s / 1e9 for key, s in seconds.items()
        }
        ours = seconds["steprule"]
        rows.append(
            {
                "kind": "step",
                "rule": name,
                "model": "GPT-2-small",
                "tensors": len(shapes),
                "elements": size,
                "steprule_us": ours * 1e6,
                "gb_per_s": bandwidth["steprule"],
                "of_scale": bandwidth["steprule"] / bandwidth["in-place scale"],
                "vs_fused": seconds["torch fused"] / ours if "torch fused" in seconds else None,
                "vs_default": seconds["torch default"] / ours,
            }
        )
    return rows


def small_models() -> list[dict[str, Any]]:
    """AdamW where a step is all overhead, with gradients in place and with new ones every step."""
    rows = []
    for label, shapes, rounds, batch in [
        ("tiny MLP", tiny_mlp(), 400, 20),
        ("small CNN", small_cnn(), 400, 5),
    ]:
        ours = make(steprule.AdamW, shapes)
        ours.step()
        chosen = ours._core.plans.current
        seconds = interleaved(
            {
                "steprule": ours.step,
                "torch fused": make(torch.optim.AdamW, shapes, fused=True).step,
                "torch default": make(torch.optim.AdamW, shapes).step,
                "no hooks": functools.partial(chosen.run, ours.param_groups, ours.state),
                "kernel": chosen.go,
            },
            rounds,
            batch,
        )
        rows.append(
            {
                "kind": "step",
                "rule": "AdamW",
                "model": label,
                "tensors": len(shapes),
                "elements": count(shapes),
                "steprule_us": seconds["steprule"] * 1e6,
                "vs_fused": seconds["torch fused"] / seconds["steprule"],
                "vs_default": seconds["torch default"] / seconds["steprule"],
                "no_hooks_us": seconds["no hooks"] * 1e6,
                "kernel_us": seconds["kernel"] * 1e6,
            }
        )
    return rows


def training_steps() -> list[dict[str, Any]]:
    """Whole steps - forward, backward, step - where torch's threads have just been at work."""
    rows = []
    models: dict[str, Any] = {
        "CNN, batch 64": (
            lambda: torch.nn.Sequential(
                torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, padding=1),
                torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(1024, 256),
                torch.nn.ReLU(), torch.nn.Linear(256, 10),
            ),
            torch.randn(64, 1, 8, 8),
        ),
        "MLP 4 x 1024, batch 64": (
            lambda: torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(4)]),
            torch.randn(64, 1024),
        ),
    }  # fmt: skip
    for label, (build, data) in models.items():

        def trainer(optimizer_class: Any, build: Any = build, data: Any = data, **settings: Any) -> Any:
            torch.manual_seed(0)
            model = build()
            optimizer = optimizer_class(model.parameters(), **settings)

            def train(step: bool = True) -> None:
                optimizer.zero_grad()
                model(data).square().mean().backward()
                if step:
                    optimizer.step()

            return train

        ours = trainer(steprule.AdamW)
        seconds = interleaved(
            {
                "steprule": ours,
                "torch fused": trainer(torch.optim.AdamW, fused=True),
                "torch default": trainer(torch.optim.AdamW),
                "no step": lambda ours=ours: ours(step=False),
            },
            rounds=150,
        )
        rows.append(
            {
                "kind": "training step",
                "model": label,
                "steprule_us": seconds["steprule"] * 1e6,
                "vs_fused": seconds["torch fused"] / seconds["steprule"],
                "vs_default": seconds["torch default"] / seconds["steprule"],
                "our_part_us": (seconds["steprule"] - seconds["no step"]) * 1e6,
                "fused_part_us": (seconds["torch fused"] - seconds["no step"]) * 1e6,
            }
        )
    return rows


_FIRST = """
import time; begin = time.perf_counter()
import torch
torch_s = time.perf_counter() - begin
{extra}
print(torch_s, time.perf_counter() - begin - torch_s)
"""
_STEP = """
p = torch.nn.Parameter(torch.zeros(10)); p.grad = torch.ones(10)
from steprule import AdamW
AdamW([p]).step()
"""
_TORCH_STEP = """
p = torch.nn.Parameter(torch.zeros(10)); p.grad = torch.ones(10)
torch.optim.AdamW([p]).step()
"""


def start_up() -> list[dict[str, Any]]:
    """Imports and first steps, each in processes of their own."""

    def seconds(extra: str, cache: str, repeats: int = 1 if record.QUICK else 5) -> float:
        environment = {**os.environ, "STEPRULE_CACHE": cache}
        return statistics.median(
            float(
                subprocess.run(
                    [sys.executable, "-c", _FIRST.format(extra=extra)], env=environment, capture_output=True, check=True
                ).stdout.split()[1]
            )
            for _ in range(repeats)
        )

    with tempfile.TemporaryDirectory() as folder:
        imported = seconds("import steprule; from steprule import AdamW", folder)
        first = seconds(_STEP, folder, repeats=1)
        later = seconds(_STEP, folder)
        peer = seconds(_TORCH_STEP, folder)
    found = {
        "import": imported, "first step, compiled": first, "first step, cached": later, "torch's first step": peer,
    }  # fmt: skip
    return [{"kind": "start", "what": what, "seconds": seconds} for what, seconds in found.items()]


def main() -> None:
    begun = record.head()
    rows = small_models() + training_steps() + large_models() + start_up()
    kept = {"bench": record.write("bench", begun, rows)}
    record.show(one(kept) for one in (speed.speed, speed.training_steps, speed.first_step))


if __name__ == "__main__":
    main()
