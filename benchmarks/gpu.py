"""Measures the GPU engine against torch's fused AdamW and the copy bandwidth; keeps gpu.json beside this file and prints its table.

    python benchmarks/gpu.py         # about 2 minutes; needs a GPU
    python benchmarks/gpu.py rows    # half a minute: rules with numbers for rows and columns alone, and keeps nothing
    python benchmarks/gpu.py squares # the same for rules with squares beside matrices

What can be known without a GPU, gpu_code.py tells.
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from bench import count
from figures import gpu as figures_of_gpu
from services import FULL, SEVEN_BYTES
from shapes import Shapes, gpt2_small
from torch.optim.swa_utils import get_ema_multi_avg_fn

import steprule
from steprule.formats import BLOCK, FORMATS, ITEM_SIZE

BILLION: Shapes = (
    gpt2_small()
    if record.QUICK
    else [
        (32000, 2048),
        *[(2048, 2048), (2048, 2048), (2048, 2048), (2048, 2048), (8192, 2048), (2048, 8192), (2048,), (2048,)] * 19,
    ]
)
MANY: Shapes = [(256, 64) if i % 2 else (64,) for i in range(1000)]
COPIED = 2**30
"""Bytes of the copy: half of its traffic."""
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


MOVED = {"Adafactor": 24, "CAME": 44, "SM3": 28, "AdamMini": 24, "Mano": 32, "NorMuon": 24, "MuonEq": 36, "Dion2": 40}
"""Bytes of float32 that passes must move for an element; those of products are not among them."""


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
    rounds = 1 if record.QUICK else rounds
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
    """A copy, at the rate that the memory gives."""
    source = torch.empty(COPIED // 4, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def steps(model: str, shapes: Shapes) -> list[record.Record]:
    """A row for each case, and one for each other library, over one model."""
    rows: list[record.Record] = []
    for case, (name, dtype, settings) in CASES.items():
        ours = make(getattr(steprule, name), shapes, dtype, **settings)
        plain = {key: value for key, value in settings.items() if key in MOMENTUM}
        faster = {"foreach": True} if name == "RMSprop" else {"fused": True}
        theirs = make(getattr(torch.optim, name), shapes, "float32", **plain, **faster)
        seconds = interleaved({"ours": ours.step, "theirs": theirs.step, "copy": copying()})
        row = {"ours": in_a_row(ours.step), "theirs": in_a_row(theirs.step)}
        least = count(shapes) * bytes_of(name, dtype, settings) / (2 * COPIED) * seconds["copy"]
        rows.append(
            {
                "kind": "step", "case": case, "model": model, "seconds": seconds, "in_a_row": row,
                "of_copy": least / seconds["ours"], "of_copy_in_a_row": least / row["ours"],
                "torch_takes": seconds["theirs"] / seconds["ours"], "torch_takes_in_a_row": row["theirs"] / row["ours"],
            }
        )  # fmt: skip
        del ours, theirs
        torch.cuda.empty_cache()
    for case, peer in peers().items():
        optimizer = make(peer, shapes, "float32")
        rows.append({"kind": "peer", "case": case, "model": model, "seconds": interleaved({"peer": optimizer.step})})
        del optimizer
        torch.cuda.empty_cache()
    return rows


def many() -> record.Record:
    """AdamW where a step is all overhead."""
    ours = make(steprule.AdamW, MANY, "float32", 8)
    theirs = make(torch.optim.AdamW, MANY, "float32", 8, fused=True)
    seconds = interleaved({"ours": ours.step, "theirs": theirs.step})
    host = {name: host_seconds(one.step) for name, one in (("ours", ours), ("theirs", theirs))}
    return {
        "kind": "many", "case": "AdamW, float32", "model": "1,000 tensors in 8 groups", "seconds": seconds, "host_seconds": host,
    }  # fmt: skip


def with_services() -> record.Record:
    """AdamW with what surrounds a step, against torch's calls."""
    served = make(steprule.AdamW, gpt2_small(), "float32", **{**FULL, "telemetry": None})
    plain = make(torch.optim.AdamW, gpt2_small(), "float32", fused=True)
    params = [p for group in plain.param_groups for p in group["params"]]
    averages, move = [p.detach().clone() for p in params], get_ema_multi_avg_fn(0.999)

    def separately() -> None:
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        if bool(norm.isfinite()):
            plain.step()
        move(averages, [p.detach() for p in params], 1)

    seconds = interleaved({"ours": served.step, "theirs": separately})
    in_row = {"ours": in_a_row(served.step), "theirs": in_a_row(separately)}
    served.cuda_graph = True
    seconds |= interleaved({"graph": served.step})
    in_row["graph"] = in_a_row(served.step)
    return {
        "kind": "services", "case": "clip, skip, average and step", "model": "GPT-2-small", "seconds": seconds, "in_a_row": in_row,
    }  # fmt: skip


def matrices() -> list[record.Record]:
    """Muon over the hidden matrices of each model, against torch's."""
    rows: list[record.Record] = []
    for model, shapes in (("GPT-2-small", gpt2_small()), ("1B parameters", BILLION)):
        hidden = [shape for shape in shapes if len(shape) == 2 and max(shape) < 30000]
        ours = make(steprule.Muon, hidden, "float32")
        theirs = make(torch.optim.Muon, hidden, "float32")
        seconds = interleaved({"ours": ours.step, "theirs": theirs.step}, 10)
        in_row = {"ours": in_a_row(ours.step, 5, 3), "theirs": in_a_row(theirs.step, 5, 3)}
        ours.cuda_graph = True
        seconds |= interleaved({"graph": ours.step}, 10)
        in_row["graph"] = in_a_row(ours.step, 5, 3)
        del ours, theirs
        torch.cuda.empty_cache()
        seven = make(steprule.Muon, hidden, "bfloat16", **SEVEN_BYTES)
        in_row["fewer_bytes"] = in_a_row(seven.step, 5, 3)
        rows.append({"kind": "matrix", "case": "Muon", "model": model, "seconds": seconds, "in_a_row": in_row})
        del seven
        torch.cuda.empty_cache()
    return rows


def rows() -> list[record.Record]:
    """Rules with numbers for rows and columns over the hidden matrices of GPT-2-small; torch has one of them."""
    hidden = [shape for shape in gpt2_small() if len(shape) == 2 and max(shape) < 30000]
    least = count(hidden) / (2 * COPIED)
    found: list[record.Record] = []
    for name, moved in MOVED.items():
        ours = make(getattr(steprule, name), hidden, "float32")
        contenders: dict[str, Any] = {"ours": ours.step}
        if name == "Adafactor":
            contenders["theirs"] = make(torch.optim.Adafactor, hidden, "float32", foreach=True).step
        seconds = interleaved({**contenders, "copy": copying()}, 10)
        row = {"ours": in_a_row(ours.step, 10, 3)}
        host = {"ours": host_seconds(ours.step, 20)}
        if "theirs" in contenders:
            row["theirs"] = in_a_row(contenders["theirs"], 10, 3)
        ours.cuda_graph = True
        seconds |= interleaved({"graph": ours.step}, 10)
        row["graph"] = in_a_row(ours.step, 10, 3)
        found.append(
            {
                "kind": "rows", "case": name, "model": "GPT-2-small", "seconds": seconds, "in_a_row": row,
                "host_seconds": host,
                "of_copy_in_a_row": moved * least * seconds["copy"] / row["ours"],
            }
        )  # fmt: skip
        del ours, contenders
        torch.cuda.empty_cache()
    return found


def squares() -> list[record.Record]:
    """Rules with squares beside matrices over the hidden ones of GPT-2-small: a step is the mean of twenty, since bases come in turn."""
    hidden = [shape for shape in gpt2_small() if len(shape) == 2 and max(shape) < 30000]
    found: list[record.Record] = []
    for name in ("SOAP", "Shampoo", "SPlus", "PSGDKron"):
        every = {} if name == "PSGDKron" else {"precondition_frequency": 10}
        ours = make(getattr(steprule, name), hidden, "float32", **every)
        row = {"ours": in_a_row(ours.step, 20, 3)}
        ours.cuda_graph = True
        for _ in range(20):  # each of ten steps is taken as it is, and recorded
            ours.step()
        row["graph"] = in_a_row(ours.step, 20, 3)
        found.append({"kind": "squares", "case": name, "model": "GPT-2-small", "in_a_row": row})
        del ours
        torch.cuda.empty_cache()
    return found


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
    total = 0.0
    for place, kind in enumerate(formats_of(name, dtype, settings)):
        for suffix, array in FORMATS[kind].arrays:
            total += ITEM_SIZE[array] * (1 if place == 1 else 2) / (BLOCK if suffix == "_base" else 1)
    return total


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU that torch can use; gpu_code.py tells what can be known without one")
    apart = {"rows": rows, "squares": squares}
    if len(sys.argv) > 1:
        for row in apart[sys.argv[1]]():
            print(row)
        return
    begun = record.head()
    every = [
        *steps("GPT-2-small", gpt2_small()),
        *steps("1B parameters", BILLION),
        many(),
        with_services(),
        *matrices(),
        *rows(),
    ]
    kept = record.write("gpu", begun, every)
    record.show([figures_of_gpu.gpu({"gpu": kept})])


if __name__ == "__main__":
    main()
