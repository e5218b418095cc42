"""The comparison itself, from the command's arguments to its exit code."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steprule.compare.errors import UsageError, defined, told
from steprule.compare.imports import import_function, suggestion
from steprule.compare.report import page
from steprule.compare.results import Comparison, TaskResult, machine, make_folder, write_text
from steprule.compare.run import Budget, train
from steprule.compare.spec import Spec, check, parse
from steprule.compare.tasks import TASKS, Task, described
from steprule.compare.terminal import Watch, make_console, table

__all__ = ["compare"]


def compare(
    optimizers: Sequence[str],
    tasks: Sequence[str],
    seeds: int = 3,
    steps: int | None = None,
    seconds: float | None = None,
    lr_grid: str | None = None,
    target: float | None = None,
    out: Path | None = None,
    threads: int = 1,
    as_json: bool = False,
    report: bool = True,
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
        out: the folder for report.html and results.json, which must not hold such files; None for a new one, called
            after the date, in steprule-report.
        threads: of torch, for a run.
        as_json: whether standard output gets the results as JSON and nothing else; the rest goes to standard error.
        report: whether there is a folder at all.

    Returns:
        The exit code: 0, 1 if a run failed with an exception or the report could not be written, 130 if stopped by Ctrl-C.

    Raises:
        UsageError: an argument cannot be right. Nothing has been trained then.
    """
    _check(steps, seconds, target, out, report)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own tasks and optimizers lie here
    torch.set_num_threads(threads)
    grid = _learning_rates(lr_grid)
    loaded = [_load(name) for name in _unlike("--task", tasks)]
    _unlike("--task", [task.name for task in loaded])
    prepared = [_prepare(task, optimizers, grid, steps, seconds, target) for task in loaded]
    plans, results = [plan for plan, _ in prepared], [result for _, result in prepared]
    given = {"seeds": seeds, "steps": steps, "seconds": seconds, "lr_grid": lr_grid, "target": target}
    settings = {
        "optimizers": {task.name: list(map(str, plan)) for task, plan in zip(loaded, plans, strict=True)},
        **given,
        "seeds": list(range(seeds)),
        "lr_grid": grid or None,
        "threads": threads,
    }
    comparison = Comparison(
        settings, machine(), results, _command_line(optimizers, tasks, {**given, "threads": threads})
    )
    folder = make_folder(out, comparison.date) if report else None
    return _Session(comparison, folder, as_json).run(plans, seeds)


def _check(steps: int | None, seconds: float | None, target: float | None, out: Path | None, report: bool) -> None:
    """Raises for options that cannot be right, or not together."""
    if steps is not None and seconds is not None:
        raise UsageError("--steps and --seconds exclude each other: leave out one of the two")
    if out is not None and not report:
        raise UsageError("--out and --no-report exclude each other: leave out one of the two")
    for name, value in (("--target", target), ("--seconds", seconds)):
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name} {value} must be a finite number")


def _command_line(optimizers: Sequence[str], tasks: Sequence[str], options: Mapping[str, Any]) -> str:
    """What to type to run the comparison again."""
    words = ["steprule", "compare", *optimizers]
    for task in tasks:
        words += ["--task", task]
    for name, value in options.items():
        if value is not None:
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


class _Session:
    """A comparison that runs: where its results go.

    Args:
        comparison: what is to be run.
        folder: for the report, None for no report.
        as_json: whether standard output is for JSON alone.
    """

    def __init__(self, comparison: Comparison, folder: Path | None, as_json: bool) -> None:
        self.comparison, self.folder, self.as_json = comparison, folder, as_json
        self.console = make_console(stderr=as_json)
        self.unwritten: dict[str, str] = {}  # why each file could not be written when last tried

    def run(self, plans: Sequence[Sequence[Spec]], seeds: int) -> int:
        """Trains every task; returns the exit code."""
        comparison, counts = self.comparison, [seeds * len(plan) for plan in plans]
        if not self._keep("results.json", comparison.to_json(summary=False)):
            raise UsageError(f"the folder {str(self.folder)!r} cannot be written to: {self.unwritten['results.json']}")
        for result, plan in zip(comparison.results, plans, strict=True):
            if told := _by_default(result.task, plan):
                self._say(told)
        try:
            with Watch(self.console, [result.task.name for result in comparison.results], counts) as watch:
                for result, plan in zip(comparison.results, plans, strict=True):
                    self._train(result, plan, seeds, watch)
        except KeyboardInterrupt:
            comparison.interrupted = True
            comparison.results = [result for result in comparison.results if result.runs]
            done = sum(len(result.runs) for result in comparison.results)
            if not done:
                self._say("Stopped by Ctrl-C before a run was over: nothing is kept.")
                self._keep_nothing()
                return 130
            self._say(f"Stopped by Ctrl-C: {done} of {sum(counts)} runs were over, and only those are kept.")
        self._write()
        failed = self._tell_failures()
        for name, reason in self.unwritten.items():
            _complain(f"{name} cannot be written: {reason}; make room, or name another folder with --out")
        return 130 if comparison.interrupted else 1 if failed or self.unwritten else 0

    def _keep(self, name: str, text: str) -> bool:
        """Writes a file of the report; whether it could. There is nothing to write without a folder."""
        if self.folder is not None:
            try:
                write_text(self.folder / name, text)
                self.unwritten.pop(name, None)
            except OSError as error:
                self.unwritten[name] = str(error.strerror)
        return name not in self.unwritten

    def _keep_nothing(self) -> None:
        if self.folder is not None:
            (self.folder / "results.json").unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _say(self, text: str) -> None:
        print(text, file=self.console.file, flush=True)

    def _train(self, result: TaskResult, plan: Sequence[Spec], seeds: int, watch: Watch) -> None:
        """Trains one task, and keeps what is there after every run."""
        for seed in range(seeds):  # all optimizers with one seed first: half a comparison is one too
            for spec in plan:
                progress = watch.begin(result.task.name, str(spec), seed)
                run = train(result.task, spec, seed, result.budget, result.target, progress)
                result.runs.append(run)
                was_told = bool(self.unwritten)
                if not self._keep("results.json", self.comparison.to_json(summary=False)) and not was_told:
                    _complain(f"results.json cannot be written: {self.unwritten['results.json']}; the runs go on")
                watch.end(run)
            if len(plan) > 1 and result.failure:  # the task is at fault: other seeds would tell nothing new
                return

    def _write(self) -> None:
        """Writes and shows what came of it."""
        comparison, folder = self.comparison, self.folder
        try:
            text = comparison.to_json()
            if self._keep("results.json", text) and folder is not None:
                self._keep("report.html", page(comparison))
            if self.as_json:
                print(text, end="", flush=True)
            for result in comparison.results:
                if not self.as_json and not result.failure:
                    self.console.print(table(result, self.console.width))
                    self.console.print(result.sentence() + "\n")
        except Exception:
            if folder is not None and not self.unwritten:
                self._say(f"All runs are in {folder / 'results.json'}; what failed is their summary.")
            raise
        if folder is not None and not self.unwritten:
            self._say(f"Report: {folder / 'report.html'}")

    def _tell_failures(self) -> bool:
        """Says on standard error what failed, once where everything failed the same way."""
        failed = False
        for result in self.comparison.results:
            if result.failure:
                runs = f"all {len(result.runs)} runs" if len(result.runs) > 1 else "the only run"
                _complain(f"the task {result.task.name!r}: {runs} failed: {result.failure}")
                failed = True
                continue
            for run in result.runs:
                if run.status == "failed":
                    _complain(f"{run.task}  {run.optimizer}  seed {run.seed} failed: {run.failure}")
                    failed = True
        if failed and self.folder is not None and not self.unwritten:
            _complain(f"tracebacks are in {self.folder / 'results.json'}")
        return failed


def _complain(text: str) -> None:
    print(f"steprule compare: {text}", file=sys.stderr, flush=True)


def _by_default(task: Task, plan: Sequence[Spec]) -> str:
    """What to say of optimizers that are run with the learning rate that they have by default; empty if there are none."""
    own_lrs = {(spec := parse(text)).name: (text, dict(spec.settings).get("lr")) for text in task.optimizers}
    rates = {
        spec.name: lr for spec in plan if (lr := spec.default_lr) not in (None, own_lrs.get(spec.name, ("", None))[1])
    }
    if not rates:
        return ""
    which = ", ".join(f"{name} {lr:g}" for name, lr in rates.items())
    theirs = [text for name, (text, _) in own_lrs.items() if name in rates]
    own = f", such as {' and '.join(theirs)}" if theirs else ""
    return f"{task.name}: no lr is given, so defaults are taken: {which}. Name what suits the task{own}; or --lr-grid tries several."


def _learning_rates(text: str | None) -> list[float]:
    try:
        grid = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise UsageError(f"--lr-grid {text!r} must be numbers with commas between, such as 1e-3,3e-3,1e-2") from None
    _unlike("--lr-grid", list(map(str, grid)))
    return grid


_OWN_TASK = "or module:function for your own"


def _load(text: str) -> Task:
    if text.lower() in TASKS:
        return described(TASKS[text.lower()](), TASKS[text.lower()])
    if ":" not in text:
        several = "; give --task once for each" if "," in text else suggestion(text, TASKS)
        raise UsageError(f"unknown --task {text!r}{several}{'' if several[-1] == '?' else ','} {_OWN_TASK}")
    make, function = import_function(
        text, f"--task {text!r}", "look like digits, chars, chars-large or module:function"
    )
    try:
        task = make()
    except Exception as error:
        raise UsageError(f"--task {text!r}: {function}() failed: {told(error)}") from error
    if not isinstance(task, Task):
        raise UsageError(f"--task {text!r}: {function}() returned {type(task).__name__}, not a steprule.compare.Task")
    return described(task, make)


def _prepare(
    task: Task,
    optimizers: Sequence[str],
    grid: Sequence[float],
    steps: int | None,
    seconds: float | None,
    target: float | None,
) -> tuple[list[Spec], TaskResult]:
    """The task's optimizers with each learning rate of the grid, known to work with its model, and no runs yet."""
    specs = [parse(text, divide=True) for text in optimizers or task.optimizers]
    for spec in specs:
        if grid and optimizers and "lr" in dict(spec.settings):
            raise UsageError(f"optimizer {str(spec)!r} has an lr of its own beside --lr-grid: leave out one of the two")
    if grid:
        specs = [spec.with_lr(lr) for spec in specs for lr in grid]
    _unlike("optimizer", list(map(str, specs)))
    what = "make_model"
    try:
        model = task.make_model(0)
        what = "batches"
        batch = next(iter(task.batches(0)), None)
    except Exception as error:
        raise UsageError(f"the task {task.name!r}: {what}(0) failed: {told(error)}") from error
    if not isinstance(model, nn.Module):
        where = defined(task.make_model)
        raise UsageError(f"the task {task.name!r}: make_model(0) must return a torch.nn.Module, not {model!r}{where}")
    for spec in specs:
        check(spec, model, lambda model: task.loss(model, batch))
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    budget = Budget(steps=steps or task.steps) if seconds is None else Budget(seconds=seconds)
    goal = task.target if target is None else target
    return specs, TaskResult(task, goal, budget, grid, len(trained), sum(trained), _batch_size(batch))


def _batch_size(batch: Any) -> int | None:
    """The first dimension of a batch's first tensor."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else None
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for size in map(_batch_size, parts) if size is not None), None)


def _unlike(what: str, names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name!r} is given twice")
    return names
