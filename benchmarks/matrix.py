"""Measures rules of whole matrices on the CPU, beside torch.optim.Muon and the memory; keeps matrix.json and prints its tables.

    python benchmarks/matrix.py    # about 3 minutes

Times are those of whole steps, with as many threads as torch takes. Some are measured once more in a process in which
ONEDNN_MAX_CPU_ISA hides the processor's bfloat16 products, as on processors that have none. There torch's step takes so long
that of GPT-2-small's matrices only one layer's are stepped, and once.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import record
import torch
from bench import count, make
from figures import matrix
from rules import bytes_moved, timed
from shapes import Shapes, gpt2_small
from timing import interleaved

import steprule
from steprule.matrix.how import plan_for
from steprule.rules import RULES

ISA = "ONEDNN_MAX_CPU_ISA"
HIDDEN = "AVX2"
MANY = {16: 2} if record.QUICK else {16: 64, 32: 48, 64: 24}
"""How many small matrices of a side are stepped together."""
WIDTH = 32 if record.QUICK else 768
LAYER: Shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
LAYERS = 12
SWEPT = [16] if record.QUICK else [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
RULES_OF_MEMORY = ["adammini"] if record.QUICK else ["adafactor", "came", "sm3", "adammini", "mano"]
SECONDS, BATCH_SECONDS = 1.0, 0.01
"""About how long the slowest contender is measured, and without a break."""
TOO_LONG = 8.0
"""Seconds from which on a step is timed once, after the first."""


def cases() -> list[tuple[str, str, Shapes]]:
    """What is stepped with the processor as it is: the kind of row, a label and the shapes."""
    many = [("set", f"{many} of {side} x {side}", [(side, side)] * many) for side, many in MANY.items()]
    one = ("set", "256 x 256", [(256, 256)])
    layer = ("set", "a layer of GPT-2-small", LAYER)
    every = ("set", "GPT-2-small", LAYER * LAYERS)
    swept = [shape for side in SWEPT for shape in ((side, side), (3 * side, side), (side, 4 * side))]
    sweep = [("sweep", f"{m} x {n}", [(m, n)]) for m, n in swept]
    if record.QUICK:
        return [*many, layer, sweep[0]]
    return [*many, one, layer] if os.environ.get(ISA) else [*many, one, layer, every, *sweep]


def step(kind: str, label: str, shapes: Shapes) -> dict[str, Any]:
    """Matrices stepped by torch's Muon and steprule's, and by rules that multiply less."""
    makers: dict[str, Any] = {"torch": torch.optim.Muon, "muon": steprule.Muon}
    if kind == "set":
        makers |= {"mud": steprule.MUD, "dion2": steprule.Dion2}
    steps = {name: make(one, shapes).step for name, one in makers.items()}
    turns = [{name: timed(one) for name, one in steps.items()}]
    slowest = max(turns[0].values())
    if slowest < SECONDS:
        rounds = max(3, min(11, int(SECONDS / slowest)))
        seconds = interleaved(steps, rounds, max(1, int(BATCH_SECONDS / slowest)))
    else:
        turns += [{name: timed(one) for name, one in steps.items()} for _ in range(2 * (slowest < TOO_LONG))]
        rounds, seconds = len(turns), {name: statistics.median(turn[name] for turn in turns) for name in steps}
    hows = {plan_for(one, shapes.count(one), torch.device("cpu")) for one in shapes}
    del steps
    gc.collect()  # optimizers refer to themselves
    return {
        "kind": kind,
        "label": label,
        "isa": os.environ.get(ISA, ""),
        "tensors": len(shapes),
        "elements": count(shapes),
        "rounds": rounds,
        "how": "; ".join(
            f"{how.form}, {str(how.dtype).removeprefix('torch.')}{', at once' if how.batched else ''}"
            for how in sorted(hows, key=str)
        ),
        **{f"{name}_ms": one * 1e3 for name, one in seconds.items()},
    }


def memory(name: str) -> list[dict[str, Any]]:
    """A rule with numbers for rows and columns on GPT-2-small's tensors, on one thread and on all of them."""
    rule = RULES[name]
    shapes = [shape for shape in gpt2_small() if len(shape) > 1 or not rule.matrices_only]
    size, threads = count(shapes), torch.get_num_threads()
    in_pass, in_readings = bytes_moved(rule, rule.hyperparameters)
    scaled = torch.randn(size)
    contenders = {
        "steprule": make(getattr(steprule, rule.__name__), shapes).step,
        "scale": lambda: scaled.mul_(1.0000001),
        "sum": scaled.sum,
    }
    rows = []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        seconds = interleaved(contenders, rounds=11)
        limit = in_pass / 8 * seconds["scale"] + in_readings / 4 * seconds["sum"]
        rows.append(
            {
                "kind": "memory",
                "rule": rule.__name__,
                "threads": number,
                "tensors": len(shapes),
                "elements": size,
                "bytes": in_pass + in_readings,
                "bytes_of_readings": in_readings,
                "ms": seconds["steprule"] * 1e3,
                "scale_gb_per_s": 8 * size / seconds["scale"] / 1e9,
                "sum_gb_per_s": 4 * size / seconds["sum"] / 1e9,
                "of_scale": (in_pass + in_readings) / 8 * seconds["scale"] / seconds["steprule"],
                "of_memory": limit / seconds["steprule"],
            }
        )
    torch.set_num_threads(threads)
    contenders.clear()
    gc.collect()
    return rows


def main() -> None:
    if "--rows" in sys.argv:
        print(json.dumps([step(*case) for case in cases()]))
        return
    if record.QUICK:
        torch.set_num_threads(1)  # which wait for one another where others are at work
    begun = record.head()
    rows = [row for name in RULES_OF_MEMORY for row in memory(name)]
    rows += [step(*case) for case in cases()]
    if not record.QUICK:  # importing torch again takes longer than all the rest
        command, environment = [sys.executable, __file__, "--rows"], {**os.environ, ISA: HIDDEN}
        rows += json.loads(subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout)
    kept = record.write("matrix", begun, rows, threads=torch.get_num_threads())
    record.show(one({"matrix": kept}) for one in (matrix.matrices, matrix.matrices_sweep, matrix.matrices_memory))


if __name__ == "__main__":
    main()
