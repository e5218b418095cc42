"""The comparison itself, from the command's arguments to its exit code."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from steprule.compare.errors import UsageError, told
from steprule.compare.report import page
from steprule.compare.results import Comparison, TaskResult, machine, write_text
from steprule.compare.run import Budget, train
from steprule.compare.spec import Spec, check, import_dotted, parse, suggestion
from steprule.compare.tasks import TASKS, Task
from steprule.compare.terminal import Watch, make_console, table

__all__ = ["compare"]


def compare(
    optimizers: Sequence[str],
    tasks: Sequence[str],
    seeds: int,
    steps: int | None,
    seconds: float | None,
    lr_grid: str | None,
    target: float | None,
    out: Path,
    threads: int,
) -> int:
    """Trains every task with every optimizer and seed, shows who reached the target first and writes the report.

    Args:
        optimizers: specifications, see steprule.compare.spec.parse; none for each task's own.
        tasks: names of TASKS, or ``module:function`` with a function that returns a Task.
        seeds: how many seeds, counted from 0.
        steps: how many steps each run takes; None for the task's own.
        seconds: how long each run trains, instead of steps.
        lr_grid: learning rates with commas between, for every optimizer to be run with each.
        target: the validation loss to reach; None for the task's own.
        out: the folder for report.html and results.json.
        threads: of torch, for a run.

    Returns:
        The exit code: 0, 1 if a run failed with an exception, 130 if stopped by Ctrl-C.

    Raises:
        UsageError: an argument cannot be right. Nothing has been trained then.
    """
    _check(steps, seconds, target)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own tasks and optimizers lie here
    torch.set_num_threads(threads)
    grid = _learning_rates(lr_grid)
    loaded = [_load(name) for name in _unlike("--task", tasks)]
    _unlike("--task", [task.name for task in loaded])
    plans = [_specs(task, optimizers, grid) for task in loaded]
    results = [_result(task, target, steps, seconds, grid) for task in loaded]
    settings = {
        "optimizers": {task.name: list(map(str, plan)) for task, plan in zip(loaded, plans, strict=True)},
        "seeds": list(range(seeds)),
        "steps": steps,
        "seconds": seconds,
        "lr_grid": grid or None,
        "target": target,
        "threads": threads,
    }
    _folder(out)
    comparison = Comparison(settings, machine(), results)
    console = make_console()
    counts = [seeds * len(plan) for plan in plans]
    try:
        with Watch(console, [task.name for task in loaded], counts) as watch:
            for result, plan in zip(results, plans, strict=True):
                _run(comparison, result, plan, seeds, watch, out)
    except KeyboardInterrupt:
        if not _stop(comparison, sum(counts)):
            return 130
    return _report(comparison, console, out)


def _check(steps: int | None, seconds: float | None, target: float | None) -> None:
    """Raises for a length or a target that cannot be right."""
    if steps is not None and seconds is not None:
        raise UsageError("--steps and --seconds exclude each other")
    for name, value in (("--target", target), ("--seconds", seconds)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value} must be a finite number")


def _result(
    task: Task, target: float | None, steps: int | None, seconds: float | None, grid: list[float]
) -> TaskResult:
    """A task's result before its first run."""
    budget = Budget(seconds=seconds) if seconds is not None else Budget(steps=steps or task.steps)
    return TaskResult(task, task.target if target is None else target, budget, grid)


def _stop(comparison: Comparison, planned: int) -> bool:
    """Keeps what is there when Ctrl-C comes; False if that is nothing."""
    comparison.interrupted = True
    comparison.results = [result for result in comparison.results if result.runs]
    done = sum(len(result.runs) for result in comparison.results)
    print(f"Stopped by Ctrl-C: {done} of {planned} runs were over, and only those are kept.", flush=True)
    return done > 0


def _folder(out: Path) -> None:
    """Makes the folder for the report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {str(out)!r}: {error.strerror}") from error


def _run(comparison: Comparison, result: TaskResult, plan: Sequence[Spec], seeds: int, watch: Watch, out: Path) -> None:
    """Trains one task, and keeps what is there after every run."""
    for seed in range(seeds):  # all optimizers with one seed first: half a comparison is one too
        for spec in plan:
            progress = watch.begin(result.task.name, str(spec), seed)
            run = train(result.task, spec, seed, result.budget, result.target, progress)
            result.runs.append(run)
            write_text(out / "results.json", comparison.to_json(summary=False))  # whatever comes after
            watch.end(run)


def _report(comparison: Comparison, console: Console, out: Path) -> int:
    """Writes and shows what came of it; returns the exit code."""
    try:
        write_text(out / "results.json", comparison.to_json())
        write_text(out / "report.html", page(comparison))
        for result in comparison.results:
            console.print(table(result))
            print(result.sentence() + "\n")
    except Exception:
        print(f"All runs are in {out / 'results.json'}; what failed is their summary.", flush=True)
        raise
    failed = [run for result in comparison.results for run in result.runs if run.status == "failed"]
    for run in failed:
        print(f"{run.task}  {run.optimizer}  seed {run.seed} failed: {run.failure}")
    print(f"Report: {out / 'report.html'}", flush=True)
    return 130 if comparison.interrupted else 1 if failed else 0


def _learning_rates(text: str | None) -> list[float]:
    try:
        grid = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise UsageError(f"--lr-grid {text!r} must be numbers with commas between, such as 1e-3,3e-3,1e-2") from None
    _unlike("--lr-grid", list(map(str, grid)))
    return grid


def _load(text: str) -> Task:
    module, colon, function = text.partition(":")
    if not colon:
        if text not in TASKS:
            raise UsageError(f"unknown --task {text!r}{suggestion(text, TASKS)}, or module:function for your own")
        return TASKS[text]()
    if not module or not function:
        raise UsageError(f"--task {text!r} must look like digits, chars or module:function")
    make = import_dotted(module, function, f"--task {text!r}", _function_names)
    if not callable(make):
        kind = type(make).__name__
        raise UsageError(f"--task {text!r}: {function} has the type {kind} and is no function that returns a Task")
    try:
        task = make()
    except Exception as error:
        raise UsageError(f"--task {text!r}: {function}() failed: {told(error)}") from error
    if not isinstance(task, Task):
        raise UsageError(f"--task {text!r}: {function}() returned {task!r}, not a steprule.compare.Task")
    return task


def _function_names(module: Any) -> list[str]:
    own = (name for name, one in vars(module).items() if getattr(one, "__module__", None) == module.__name__)
    return [name for name in own if callable(getattr(module, name)) and not name.startswith("_")]


def _specs(task: Task, optimizers: Sequence[str], grid: Sequence[float]) -> list[Spec]:
    """The task's optimizers, each with each learning rate of the grid, known to work with its model."""
    specs = [parse(text) for text in optimizers or task.optimizers]
    for spec in specs:
        if grid and optimizers and "lr" in dict(spec.settings):
            raise UsageError(f"optimizer {str(spec)!r} has an lr of its own beside --lr-grid")
    if grid:
        specs = [spec.with_lr(lr) for spec in specs for lr in grid]
    _unlike("optimizer", list(map(str, specs)))
    try:
        model = task.make_model(0)
    except Exception as error:
        raise UsageError(f"the task {task.name!r}: make_model(0) failed: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"the task {task.name!r}: make_model(0) returned {model!r}, not a torch.nn.Module")
    for spec in specs:
        check(spec, model)
    return specs


def _unlike(what: str, names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name!r} is given twice")
    return names
