"""Measures steps of the rules with a square at each side of a matrix, beside other packages'; keeps kronecker.json and prints its table.

    python benchmarks/kronecker.py    # about four minutes; compares with pytorch_optimizer and heavyball where they are installed

One thread, whose CPU time is taken, and all in turn, one step each. A step is the mean of 20, since others make all bases in the same steps.
heavyball is run without torch.compile.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import record
import torch
from figures import kronecker

import steprule

Shape = tuple[int, int]
Make = Callable[[list[torch.nn.Parameter]], Any]

STEPS = 3 if record.QUICK else 20
MOST = 2048
"""The longest side that has a square, for all that can be told."""
PEERS = ("pytorch_optimizer", "heavyball")
WIDTH = 32 if record.QUICK else 768
SETS: dict[str, list[Shape]] = {
    "48 of 32 x 32": [(32, 32)] * (2 if record.QUICK else 48),
    "24 of 64 x 256": [(8, 32) if record.QUICK else (64, 256)] * (2 if record.QUICK else 24),
    "a layer of GPT-2-small": [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)],
}


def contenders() -> dict[str, dict[str, Make]]:
    """For each rule who has it: "steprule", and what it is called in other packages that are installed."""
    own = {"precondition_frequency": 10, "max_precond_dim": MOST}
    found: dict[str, dict[str, Make]] = {
        "SOAP": {"steprule": lambda p: steprule.SOAP(p, **own)},
        "Shampoo": {"steprule": lambda p: steprule.Shampoo(p, **own)},
        "KL-Shampoo": {"steprule": lambda p: steprule.KLShampoo(p, **own)},
        "KL-SOAP": {"steprule": lambda p: steprule.KLSOAP(p, **own)},
        "PSGD-Kron": {"steprule": lambda p: steprule.PSGDKron(p, max_precond_dim=MOST)},
        "SPlus": {"steprule": lambda p: steprule.SPlus(p, **own)},
    }
    po, heavyball = map(package, PEERS)
    if po is not None:
        shampoo = {"preconditioning_compute_steps": 10, "start_preconditioning_step": 1}  # in blocks of 512
        kron = {"pre_conditioner_update_probability": 1.0, "max_size_triangular": MOST}
        found["SOAP"]["pytorch_optimizer.SOAP"] = lambda p: po.SOAP(
            p, precondition_frequency=10, max_precondition_dim=MOST
        )
        found["Shampoo"]["pytorch_optimizer.ScalableShampoo"] = lambda p: po.ScalableShampoo(p, **shampoo)
        found["PSGD-Kron"]["pytorch_optimizer.Kron"] = lambda p: po.Kron(p, **kron)
        found["SPlus"]["pytorch_optimizer.SPlus"] = lambda p: po.SPlus(p, inverse_steps=10, max_dim=MOST)
    if heavyball is not None:
        often = {"preconditioner_update_probability": 1.0, "max_size_triangular": MOST}
        found["SOAP"]["heavyball.SOAP"] = lambda p: heavyball.SOAP(p, **own)
        found["KL-Shampoo"]["heavyball.KLShampoo"] = lambda p: heavyball.KLShampoo(p, **own)
        found["KL-SOAP"]["heavyball.KLSOAP"] = lambda p: heavyball.KLSOAP(p, **own)
        found["PSGD-Kron"]["heavyball.PSGDKron"] = lambda p: heavyball.PSGDKron(p, **often)
        found["PSGD-Kron"]["heavyball.PSGDPRO"] = lambda p: heavyball.PSGDPRO(p, **often)
    return found


def package(name: str) -> Any:
    """A package, or None with a word where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: nothing is compared with it", file=sys.stderr)
        return None


class Contender:
    """An optimizer of matrices, and how long its steps took."""

    def __init__(self, make: Make, shapes: Sequence[Shape]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        for param in self._params:
            param.grad = torch.randn(param.shape, generator=generator)
        self._optimizer = make(self._params)
        self.seconds: list[float] = []

    def step(self, number: int) -> None:
        """Takes a step, of a gradient of its own."""
        torch.manual_seed(number)
        for param in self._params:
            if param.grad is None:  # heavyball drops them
                param.grad = torch.empty_like(param)
            param.grad.normal_()
        begin = time.thread_time()
        self._optimizer.step()
        self.seconds.append(time.thread_time() - begin)

    def peak(self, number: int) -> int | None:
        """The bytes that a step takes beside weights, gradients and states; None where the system does not tell."""
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = _status("VmRSS")
            self.step(number)
            return _status("VmHWM") - before
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measured(rule: str, makes: dict[str, Make], label: str) -> list[dict[str, Any]]:
    """A row for each that has a rule."""
    running = {name: Contender(make, SETS[label]) for name, make in makes.items()}
    for number in range(-2, STEPS):
        for one in running.values():
            one.step(number + 2)
    rows = []
    for name, one in running.items():
        seconds = one.seconds[2:]
        rows.append({
            "rule": rule, "who": name, "matrices": label, "ms": statistics.mean(seconds) * 1e3,
            "largest": max(seconds) / statistics.median(seconds), "peak_bytes": one.peak(STEPS + 2),
        })  # fmt: skip
    return rows


def main() -> None:
    torch.set_num_threads(1)
    begun = record.head()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = contenders()
        rows = [
            row for label in SETS for rule, makes in found.items() for row in measured(rule, makes, label)
        ]  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in PEERS if name in sys.modules}
    kept = record.write("kronecker", begun, rows, steps=STEPS, most=MOST, peers=versions)
    record.show([kronecker.kronecker({"kronecker": kept})])


if __name__ == "__main__":
    main()
