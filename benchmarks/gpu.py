"""Measures the GPU engine against torch's fused AdamW and the copy bandwidth; prints a table and keeps it beside this file.

    python benchmarks/gpu.py

Without a GPU it tells what can be known without one: the bytes that kernels move, and what their machine code is like.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import count, publish
from rich.table import Table
from services import FULL, SEVEN_BYTES
from shapes import Shapes, gpt2_small
from torch.optim.swa_utils import get_ema_multi_avg_fn

import steprule

HERE = Path(__file__).parent
BILLION: Shapes = [
    (32000, 2048),
    *[(2048, 2048), (2048, 2048), (2048, 2048), (2048, 2048), (8192, 2048), (2048, 8192), (2048,), (2048,)] * 19,
]
MANY: Shapes = [(256, 64) if i % 2 else (64,) for i in range(1000)]
MOMENTUM = {"momentum": 0.9}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AdamW, float32": ("AdamW", "float32", {}),
    "Adam, float32": ("Adam", "float32", {}),
    "SGD, float32": ("SGD", "float32", MOMENTUM),
    "RMSprop, float32": ("RMSprop", "float32", {}),
    "AdamW, 7 bytes (24-bit weights, 8-bit states)": ("AdamW", "bfloat16", SEVEN_BYTES),
    "AdamW, float32 weights, 8-bit states": ("AdamW", "float32", {"states": "8bit"}),
    "AdamW, bfloat16 stochastic, bfloat16 states": (
        "AdamW",
        "bfloat16",
        {"weights": "stochastic", "states": "bfloat16"},
    ),
}
STATES = {"AdamW": 2, "Adam": 2, "SGD": 1, "RMSprop": 1}
"""How many each has; torch has RMSprop fused in no version, so its foreach is taken."""


def make(optimizer_class: Any, shapes: Shapes, dtype: str, groups: int = 1, **settings: Any) -> Any:
    """An optimizer over random parameters on the GPU with random gradients, two steps behind it."""
    generator = torch.Generator("cuda").manual_seed(0)
    wanted = getattr(torch, dtype)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, device="cuda", dtype=wanted)) for shape in shapes
    ]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, device="cuda", dtype=wanted)
    parts = [{"params": params[i::groups], "lr": 1e-3 / (i + 1)} for i in range(groups)]
    optimizer = optimizer_class(parts, **settings)
    for _ in range(2):
        optimizer.step()
    return optimizer


def interleaved(contenders: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """The median seconds that the GPU takes for a call of each, every contender once a round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 3):
        for name, call in contenders.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            if round_number >= 3:
                times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def in_a_row(call: Callable[[], object], steps: int = 20, rounds: int = 5) -> float:
    """The median seconds that the GPU takes for each of many calls, none of which waits for the one before."""
    times = interleaved({"all": lambda: [call() for _ in range(steps)]}, rounds)
    return times["all"] / steps


def host_seconds(call: Callable[[], object], rounds: int = 50) -> float:
    """The median seconds until a call comes back, whatever the GPU is doing."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def copying() -> Callable[[], object]:
    """A copy of 1 GiB: 2 GiB of traffic, at the rate that the memory gives."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def on_a_gpu() -> None:
    """What issues ask for, in one run."""
    table = Table(
        "what", "a step alone", "of the copy's bandwidth", "in a row", "of the copy's", "torch fused, float32, alone", "in a row",
        "torch takes alone", "in a row",
    )  # fmt: skip
    kept: dict[str, Any] = {}
    for shapes_name, shapes in (("GPT-2-small", gpt2_small()), ("1B parameters", BILLION)):
        for title, (name, dtype, settings) in CASES.items():
            ours = make(getattr(steprule, name), shapes, dtype, **settings)
            plain = {key: value for key, value in settings.items() if key in MOMENTUM}
            faster = {"foreach": True} if name == "RMSprop" else {"fused": True}
            theirs = make(getattr(torch.optim, name), shapes, "float32", **plain, **faster)
            times = interleaved({"ours": ours.step, "theirs": theirs.step, "copy": copying()})
            row = {"ours": in_a_row(ours.step), "theirs": in_a_row(theirs.step)}
            least = count(shapes) * bytes_of(name, dtype, settings) / (2 * 2**30) * times["copy"]
            what = f"{title}, {shapes_name}"
            kept[what] = {
                "seconds": times, "in_a_row": row, "of_copy": least / times["ours"], "of_copy_in_a_row": least / row["ours"],
                "torch_takes": times["theirs"] / times["ours"], "torch_takes_in_a_row": row["theirs"] / row["ours"],
            }  # fmt: skip
            table.add_row(
                what, f"{times['ours'] * 1e3:.3g} ms", f"{least / times['ours']:.1%}", f"{row['ours'] * 1e3:.3g} ms",
                f"{least / row['ours']:.1%}", f"{times['theirs'] * 1e3:.3g} ms", f"{row['theirs'] * 1e3:.3g} ms",
                f"{times['theirs'] / times['ours']:.2f}x", f"{row['theirs'] / row['ours']:.2f}x",
            )  # fmt: skip
            del ours, theirs
            torch.cuda.empty_cache()
        for what, peer in peers().items():
            optimizer = make(peer, shapes, "float32")
            seconds = interleaved({"peer": optimizer.step})["peer"]
            kept[f"{what}, {shapes_name}"] = {"seconds": {"peer": seconds}}
            table.add_row(f"{what}, {shapes_name}", *[""] * 4, f"{seconds * 1e3:.3g} ms")
            del optimizer
            torch.cuda.empty_cache()
    ours, theirs = (make(one, MANY, "float32", 8, **kw) for one, kw in ((steprule.AdamW, {}), (torch.optim.AdamW, {"fused": True})))  # fmt: skip
    times = interleaved({"ours": ours.step, "theirs": theirs.step})
    host = {name: host_seconds(one.step) for name, one in (("ours", ours), ("theirs", theirs))}
    kept["1,000 tensors in 8 groups"] = {"seconds": times, "host_seconds": host}
    table.add_row(
        "AdamW, 1,000 tensors in 8 groups", f"{times['ours'] * 1e3:.3g} ms, host {host['ours'] * 1e3:.3g} ms", "", "", "",
        f"{times['theirs'] * 1e3:.3g} ms, host {host['theirs'] * 1e3:.3g} ms", "", f"{times['theirs'] / times['ours']:.2f}x",
    )  # fmt: skip
    served = make(steprule.AdamW, gpt2_small(), "float32", **{**FULL, "telemetry": None})
    plain = make(torch.optim.AdamW, gpt2_small(), "float32", fused=True)
    params = [p for group in plain.param_groups for p in group["params"]]
    averages, move = [p.detach().clone() for p in params], get_ema_multi_avg_fn(0.999)

    def separately() -> None:
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        if bool(norm.isfinite()):
            plain.step()
        move(averages, [p.detach() for p in params], 1)

    times = interleaved({"ours": served.step, "theirs": separately})
    kept["clip + guard + average + step"] = {"seconds": times}
    table.add_row(
        "AdamW, GPT-2-small: clip + guard + average + step", f"{times['ours'] * 1e3:.3g} ms", "", "", "",
        f"{times['theirs'] * 1e3:.3g} ms", "", f"{times['theirs'] / times['ours']:.2f}x",
    )  # fmt: skip
    publish(
        "gpu", [{"what": what, **row} for what, row in kept.items()], table, facts=f" {torch.cuda.get_device_name()};"
    )


def peers() -> dict[str, Any]:
    """The others that are installed, as classes of optimizers."""
    found = {}
    for title, module, name in (
        ("bitsandbytes AdamW8bit", "bitsandbytes.optim", "AdamW8bit"),
        ("torchao AdamW8bit", "torchao.optim", "AdamW8bit"),
        ("optimi AdamW", "optimi", "AdamW"),
    ):
        with contextlib.suppress(ImportError):
            found[title] = getattr(importlib.import_module(module), name)
    return found


def formats_of(name: str, dtype: str, settings: dict[str, Any]) -> list[str]:
    weights = settings.get("weights")
    states = {"8bit": ["signed8", "positive8"], "bfloat16": ["bfloat16 dithered"] * 2}
    kept = states.get(settings.get("states", ""), [dtype] * STATES[name])
    return [f"{dtype} {weights}" if weights else dtype, dtype, *kept]


def bytes_of(name: str, dtype: str, settings: dict[str, Any]) -> float:
    """What a kernel moves for each element of a parameter."""
    from steprule.formats import FORMATS, GROUP, ITEM_SIZE

    total = 0.0
    for place, kind in enumerate(formats_of(name, dtype, settings)):
        for suffix, array in FORMATS[kind].arrays:
            total += ITEM_SIZE[array] * (1 if place == 1 else 2) / (GROUP if suffix == "_base" else 1)
    return total


def host_without_launches() -> float:
    """The median seconds of Python for a step of 1,000 tensors in 8 groups, all but the launches themselves.

    The parameters are on the CPU, where the GPU engine is made to serve them and to launch nothing.
    """
    from steprule.engine import gpu

    gpu.DEVICES.add("cpu")
    launcher, gpu.Kernel.launcher = gpu.Kernel.launcher, lambda self, plan, threads=None: plan.read_hyper  # type: ignore[method-assign]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in MANY]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = steprule.AdamW([{"params": params[i::8], "lr": 1e-3 / (i + 1)} for i in range(8)])
    optimizer.step()
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    gpu.DEVICES.discard("cpu")
    gpu.Kernel.launcher = launcher  # type: ignore[method-assign]
    return statistics.median(times)


def without_a_gpu() -> None:
    """No time on a GPU is measured here."""
    titles, requests = [], []
    for title, (name, dtype, settings) in CASES.items():
        for served in (False, True) if name == "AdamW" else (False,):
            formats = formats_of(name, dtype, settings)
            titles.append(title + ", clip + guard + average" * served)
            services = {"factor": "tensor", "average": True} if served else {}
            requests.append(
                {
                    "rule": name.lower(), "hyper": MOMENTUM if name == "SGD" else {}, "services": services,
                    "formats": formats + formats[:1] * served,
                }
            )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE.parent / "tests" / "ptx.py")]
    answers = json.loads(
        subprocess.run(
            command, input=json.dumps(requests), env=environment, check=True, capture_output=True, text=True
        ).stdout
    )
    table = Table(
        "kernel (no GPU: not measured)", "bytes an element", "torch fused, float32", "torch moves",
        *(f"{one}: registers, 16-byte accesses, bytes spilled" for one in ("sm_80", "sm_90")),
    )  # fmt: skip
    kept = []
    for title, request, answer in zip(titles, requests, answers, strict=True):
        # With services ours reads gradients once more. torch reads them for the norm, reads and writes them to clip, and
        # reads both and writes one to average.
        moved = (
            answer["sm_90"]["bytes"]
            + bool(request["services"]) * torch.finfo(getattr(torch, request["formats"][1])).bits / 8
        )
        fused = 4 * (3 + 2 * STATES[title.split(",")[0]] + 6 * bool(request["services"]))
        codes = [
            f"{answer[one]['update']['registers']}, {answer[one]['update']['wide_loads']} + "
            f"{answer[one]['update']['wide_stores']}, {answer[one]['update']['spills']}"
            for one in ("sm_80", "sm_90")
        ]
        table.add_row(title, f"{moved:.2f}", f"{fused}", f"{fused / moved:.2f}x", *codes)
        kept.append({"measured": False, "kernel": title, "bytes": moved, "torch_fused_bytes": fused, **answer})
    host = host_without_launches()
    kept.append({"measured": True, "what": "host seconds but for launches, 1,000 tensors in 8 groups", "seconds": host})
    line = f"1,000 tensors in 8 groups, one plan: {host * 1e3:.3g} ms of the host per step, but for the two launches (measured)"
    publish("gpu", kept, table, line, facts=" no GPU, no time on one is measured;")


if __name__ == "__main__":
    on_a_gpu() if torch.cuda.is_available() else without_a_gpu()
