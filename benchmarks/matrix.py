"""Measures polar factors against torch's on the CPU; keeps matrix.json beside this file and prints its table.

python benchmarks/matrix.py    # about a quarter of an hour

Everything is measured twice: as the processor is, and in a process in which ONEDNN_MAX_CPU_ISA hides its bfloat16 products, as on
processors that have none. One thread, whose CPU time is taken: other processes disturb it little.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import record
import torch
from figures import matrix
from timing import interleaved
from torch.optim._muon import _zeropower_via_newtonschulz as torchs

from steprule.matrix.how import plan_for
from steprule.matrix.polar import polar

KELLER = (3.4445, -4.7750, 2.0315)
COUNTS = {16: (1, 64), 32: (1, 48), 64: (1, 24), 128: (1, 8), 256: (1, 4), 512: (1,), 768: (1,), 1024: (1,)}
"""How many matrices of a side are measured at once."""
ASPECTS = (1, 3, 4)
LAYER = "the four hidden matrices of a layer of GPT-2-small"
ROUNDS, LEAST_SECONDS = 7, 0.02
SLOW = 1.0
"""Seconds from which on a step is timed in three rounds, and without torch's Newton-Schulz alone, which is nearly all of it."""
LARGEST = {"AVX2": 256}
"""The longest sides that are measured alone where torch takes seconds for others."""
ISA = "ONEDNN_MAX_CPU_ISA"


def cases() -> list[tuple[str, list[tuple[int, int, int]]]]:
    """Labels, and (count, rows, columns) of what is measured together."""
    most = LARGEST.get(os.environ.get(ISA, ""), max(COUNTS))
    sides = [side for side in COUNTS if side <= (32 if record.QUICK else most)]
    found = [("", [(count, side, aspect * side)]) for side in sides for aspect in ASPECTS for count in COUNTS[side]]
    width = 32 if record.QUICK else 768
    layer = [(1, 3 * width, width), (1, width, width), (1, 4 * width, width), (1, width, 4 * width)]
    return [*found, (LAYER, layer)]


def measured(label: str, groups: list[tuple[int, int, int]]) -> dict[str, Any]:
    """One row."""
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(group, generator=generator) for group in groups]
    params = [torch.nn.Parameter(one.clone()) for stack in stacks for one in stack]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    step = torch.optim.Muon(params).step
    contenders = {
        "step": step,
        "torch": lambda: [torchs(one, KELLER, 5, 1e-7) for stack in stacks for one in stack],
        "steprule": lambda: [polar(stack) for stack in stacks],
    }
    begin = time.thread_time()
    step()
    taken = time.thread_time() - begin
    rounds, batch = (3, 1) if taken > SLOW else (ROUNDS, max(1, int(LEAST_SECONDS / taken)))
    if taken > SLOW:
        del contenders["torch"]
    seconds = interleaved(contenders, rounds, batch, clock=time.thread_time)
    count, *shape = groups[0]
    hows = {plan_for(one[1:], one[0], torch.device("cpu")) for one in groups}
    return {
        "isa": os.environ.get(ISA, ""),
        "label": label,
        "count": count,
        "shape": shape,
        "rounds": rounds,
        "how": "; ".join(
            f"{how.form}, {str(how.dtype).removeprefix('torch.')}{', at once' if how.batched else ''}"
            for how in sorted(hows, key=str)
        ),
        "ms": seconds["steprule"] * 1e3,
        "torch_ms": seconds["torch"] * 1e3 if "torch" in seconds else None,
        "step_ms": seconds["step"] * 1e3,
    }


def main() -> None:
    torch.set_num_threads(1)
    if "--rows" in sys.argv:
        print(json.dumps([measured(*case) for case in cases()]))
        return
    begun = record.head()
    rows = []
    for isa in ("", "AVX2"):
        environment = {name: value for name, value in os.environ.items() if name != ISA} | ({ISA: isa} if isa else {})
        command = [sys.executable, __file__, "--rows"]
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
        rows += json.loads(done.stdout)
    kept = record.write("matrix", begun, rows)
    record.show([matrix.polar({"matrix": kept})])


if __name__ == "__main__":
    main()
