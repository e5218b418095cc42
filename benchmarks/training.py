"""Trains both of compare's tasks with every rule, each with the best of five learning rates, and keeps the table.

    python benchmarks/training.py [digits|chars]

The learning rates are multiples of each rule's default (`BASE` where that is far off for these tasks); the best is that of
the lowest validation loss with seed 0, which then runs with seeds 1 and 2 as well. 200 and 350 steps without a schedule
say how a rule starts, and nothing about long runs.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from steprule.compare.run import Budget, Run, train
from steprule.compare.spec import parse
from steprule.compare.tasks import TASKS
from steprule.rules import OWN

HERE = Path(__file__).parent
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
BASE = {"sgd": 0.03, "lars": 1.0}
SETTINGS = {"sgd": "momentum=0.9"}
SEEDS = (0, 1, 2)
LEFT_OUT = {"sparseadam": "takes sparse gradients only"}
INTRODUCTION = """Validation losses of `steprule compare`'s two tasks after {steps} steps (`benchmarks/training.py`): five learning rates
for each rule, the best by seed 0 (a star: at the edge of the grid), then the median and the spread of three seeds. No
schedule, no weight decay but the default. It says how rules start on two small tasks, and nothing beyond. In the order of
the sum of their ranks on both; where spreads overlap, the order says nothing either. State bytes are those an element.

"""


def measure(task_name: str, rule_name: str) -> dict[str, Any]:
    """The best learning rate's final losses, and the others' with the first seed."""
    task = TASKS[task_name]()
    base = BASE.get(rule_name, OWN[rule_name].hyperparameters["lr"])
    budget = Budget(steps=task.steps)

    def run(lr: float, seed: int) -> Run:
        others = SETTINGS.get(rule_name)
        spec = parse(f"{rule_name}:lr={lr:.6g}" + (f",{others}" if others else ""))
        return train(task, spec, seed, budget, 0.0, lambda share: None)

    grid = {lr: run(lr, SEEDS[0]) for lr in (base * factor for factor in FACTORS)}
    best = min(grid, key=lambda lr: grid[lr].final_loss)
    runs = [grid[best], *(run(best, seed) for seed in SEEDS[1:])]
    return {
        "lr": best,
        "at_the_edge": best in (min(grid), max(grid)),
        "grid": {f"{lr:.6g}": _finite(one.final_loss) for lr, one in grid.items()},
        "losses": [_finite(one.final_loss) for one in runs],
        "accuracies": [one.accuracy[-1] if one.accuracy else None for one in runs],
        "errors": [one.error for one in runs if one.error],
        "state_bytes": runs[0].state_bytes,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table, in the order of the tasks' median losses."""
    lines = [
        "| rule | state bytes | " + " | ".join(f"{task}: lr | loss, median (min to max)" for task in results) + " |"
    ]
    lines.append("|---|---|" + "---|---|" * len(results))
    names = [name for name in OWN if all(name in results[task] for task in results)]

    def key(name: str) -> float:
        return sum(_rank(results[task], name) for task in results)

    for name in sorted(names, key=key):
        first = results[next(iter(results))][name]
        cells = [name, f"{first['state_bytes']:.3g}" if first["state_bytes"] is not None else "-"]
        for task in results:
            one = results[task][name]
            losses = [math.inf if loss is None else loss for loss in one["losses"]]
            edge = "*" if one["at_the_edge"] else ""
            cells += [
                f"{one['lr']:.3g}{edge}",
                f"{statistics.median(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rank(results: dict[str, Any], name: str) -> int:
    medians = {one: statistics.median(math.inf if x is None else x for x in results[one]["losses"]) for one in results}
    return sorted(medians, key=lambda one: medians[one]).index(name)


def main() -> None:
    torch.set_num_threads(1)
    for task_name in sys.argv[1:] or list(TASKS):
        path = HERE / f"training_{task_name}.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        for rule_name in OWN:
            if rule_name not in LEFT_OUT and rule_name not in results:
                results[rule_name] = measure(task_name, rule_name)
                print(task_name, rule_name, results[rule_name]["lr"], results[rule_name]["losses"], flush=True)
                path.write_text(json.dumps(results, indent=1) + "\n")
    paths = {name: HERE / f"training_{name}.json" for name in TASKS}
    if all(path.exists() for path in paths.values()):
        introduction = INTRODUCTION.format(steps=" and ".join(str(task().steps) for task in TASKS.values()))
        results = {name: json.loads(path.read_text()) for name, path in paths.items()}
        (HERE / "training.md").write_text(introduction + table(results))


if __name__ == "__main__":
    main()
