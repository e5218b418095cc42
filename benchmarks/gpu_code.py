"""What can be known of the GPU engine without a GPU: the bytes that kernels move, and what their machine code is like.

    python benchmarks/gpu_code.py    # about 1 minute; needs Triton

Keeps gpu_code.json beside this file and prints its table. No time on a GPU is measured here.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import record
import torch
from figures import gpu as figures_of_gpu
from gpu import CASES, MANY, MOMENTUM, STATES, formats_of

import steprule
from steprule.engine import gpu as engine


def host_without_launches() -> float:
    """The median seconds of Python for a step of 1,000 tensors in 8 groups, all but the launches themselves.

    The parameters are on the CPU, where the GPU engine is made to serve them and to launch nothing.
    """
    engine.DEVICES.add("cpu")
    launcher, engine.Kernel.launcher = engine.Kernel.launcher, lambda self, plan, threads=None: plan.read_hyper  # type: ignore[method-assign]
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in MANY]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer = steprule.AdamW([{"params": params[i::8], "lr": 1e-3 / (i + 1)} for i in range(8)])
    optimizer.step()
    times = []
    for _ in range(2 if record.QUICK else 200):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    engine.DEVICES.discard("cpu")
    engine.Kernel.launcher = launcher  # type: ignore[method-assign]
    return statistics.median(times)


def kernels() -> list[record.Record]:
    """A row for each kernel: the bytes that it moves, and its registers and accesses on each GPU."""
    titles, requests = [], []
    for title, (name, dtype, settings) in CASES.items():
        for served in (False, True) if name == "AdamW" else (False,):
            formats = formats_of(name, dtype, settings)
            titles.append(title + ", clip, skip and average" * served)
            services = {"factor": "tensor", "average": True} if served else {}
            requests.append(
                {
                    "rule": name.lower(), "hyper": MOMENTUM if name == "SGD" else {}, "services": services,
                    "formats": formats + formats[:1] * served,
                }
            )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(record.HERE.parent / "tests" / "ptx.py")]
    answers = json.loads(
        subprocess.run(
            command, input=json.dumps(requests), env=environment, check=True, capture_output=True, text=True
        ).stdout
    )
    rows = []
    for title, request, answer in zip(titles, requests, answers, strict=True):
        # With services ours reads gradients once more. torch reads them for the norm, reads and writes them to clip, and
        # reads both and writes one to average.
        served = bool(request["services"])
        moved = answer["sm_90"]["bytes"] + served * torch.finfo(getattr(torch, request["formats"][1])).bits / 8
        fused = 4 * (3 + 2 * STATES[title.split(",")[0]] + 6 * served)
        rows.append({"kind": "kernel", "kernel": title, "bytes": moved, "torch_fused_bytes": fused, **answer})
    return rows


def main() -> None:
    begun = record.head()
    host = {"kind": "host", "what": "1,000 tensors in 8 groups", "seconds": host_without_launches()}
    kept = record.write("gpu_code", begun, [*kernels(), host])
    record.show([figures_of_gpu.gpu_code({"gpu_code": kept})])


if __name__ == "__main__":
    main()
