"""Trains compare's two small tasks with every rule, each with the best of five learning rates; keeps training.json and prints its table.

    python benchmarks/training.py    # about 10 minutes on two cores

The learning rates are multiples of each rule's default (`BASE` where that is far off for these tasks); the best is that of
the lowest validation loss with seed 0, which then runs with seeds 1 and 2 as well. 200 and 350 steps without a schedule
say how a rule starts, and nothing about long runs. Every run has one thread, so its losses do not depend on how many go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import record
import torch
from figures import training as figures_of_training

from steprule.compare.run import Budget, train
from steprule.compare.spec import parse
from steprule.compare.tasks import TASKS
from steprule.engine.cpu import available_threads
from steprule.rules import OWN

FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
BASE = {"sgd": 0.03, "lars": 1.0}
SETTINGS = {"sgd": ",momentum=0.9"}
SEEDS = (0, 1) if record.QUICK else (0, 1, 2)
SMALL = ("digits", "chars")
LEFT_OUT = {"sparseadam": "takes sparse gradients only"}


class Wanted(NamedTuple):
    """A run to do."""

    task: str
    spec: str
    seed: int


def steps_of(task: str) -> int:
    return 1 if record.QUICK else TASKS[task]().steps


def final(wanted: Wanted) -> dict[str, Any]:
    """Trains once; what came of it."""
    run = train(
        TASKS[wanted.task](),
        parse(wanted.spec, divide=True),
        wanted.seed,
        Budget(steps=steps_of(wanted.task)),
        0.0,
        lambda share: None,
    )
    return {
        "loss": run.final_loss if math.isfinite(run.final_loss) else None,
        "accuracy": run.accuracy[-1] if run.accuracy else None,
        "error": run.error,
        "state_bytes": run.state_bytes,
    }


def trained(runs: Iterable[Wanted]) -> dict[Wanted, dict[str, Any]]:
    """Trains all, as many at a time as there are cores, each in one thread."""
    wanted = list(runs)
    found = {}
    with ProcessPoolExecutor(available_threads(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for number, (one, result) in enumerate(zip(wanted, pool.map(final, wanted), strict=True)):
            print(
                f"{number + 1} of {len(wanted)}: {one.task}, {one.spec}, seed {one.seed}: {result['loss']}", flush=True
            )
            found[one] = result
    return found


def main() -> None:
    begun = record.head()
    names = [name for name in OWN if name not in LEFT_OUT]
    names = names[:2] if record.QUICK else names
    pairs = [(task, name) for task in SMALL for name in names]

    def wanted(task: str, name: str, lr: float, seed: int) -> Wanted:
        return Wanted(task, f"{name}:lr={lr:.6g}{SETTINGS.get(name, '')}", seed)

    rates = {name: [BASE.get(name, OWN[name].hyperparameters["lr"]) * factor for factor in FACTORS] for name in names}
    done = trained(wanted(task, name, lr, SEEDS[0]) for task, name in pairs for lr in rates[name])

    def loss(task: str, name: str, lr: float) -> float | None:
        found: float | None = done[wanted(task, name, lr, SEEDS[0])]["loss"]
        return found

    def key(found: float | None) -> float:
        return math.inf if found is None else found

    best = {(task, name): min(rates[name], key=lambda lr: key(loss(task, name, lr))) for task, name in pairs}
    done |= trained(wanted(task, name, best[task, name], seed) for task, name in pairs for seed in SEEDS[1:])
    rows = []
    for task, name in pairs:
        lr = best[task, name]
        runs = [done[wanted(task, name, lr, seed)] for seed in SEEDS]
        rows.append(
            {
                "task": task,
                "rule": name,
                "lr": lr,
                "at_the_edge": lr in (min(rates[name]), max(rates[name])),
                "grid": {f"{one:.6g}": loss(task, name, one) for one in rates[name]},
                "losses": [run["loss"] for run in runs],
                "accuracies": [run["accuracy"] for run in runs],
                "errors": [run["error"] for run in runs if run["error"]],
                "state_bytes": runs[0]["state_bytes"],
            }
        )
    steps = {task: steps_of(task) for task in SMALL}
    kept = record.write("training", begun, rows, steps=steps, factors=FACTORS, seeds=SEEDS, threads=1)
    record.show([figures_of_training.training({"training": kept})])


if __name__ == "__main__":
    main()
