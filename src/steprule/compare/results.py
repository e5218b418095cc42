"""All that a comparison found, and its files: results.json and report.html."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from steprule.compare.errors import UsageError
from steprule.compare.run import Budget, Run
from steprule.compare.summary import Row, answer, at_the_edge, leaders, rank, rows, sentence
from steprule.compare.tasks import Task

__all__ = ["Comparison", "TaskResult", "machine", "make_folder", "write_text"]


@dataclass
class TaskResult:
    """A task and the runs of it that are over.

    Attributes:
        task: what was trained.
        target: the validation loss to reach.
        budget: of each run.
        lr_grid: the learning rates that each optimizer was given; empty if it kept its own.
        parameters, elements: of the model, those that are trained.
        batch_size: the first dimension of the first tensor of a batch, None if there is none.
        runs: in the order they were made.
    """

    task: Task
    target: float
    budget: Budget
    lr_grid: Sequence[float]
    parameters: int = 0
    elements: int = 0
    batch_size: int | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def by(self) -> Literal["steps", "seconds"]:
        """What decides who was first: what the budget is given in."""
        return "steps" if self.budget.seconds is None else "seconds"

    def ranked(self) -> list[Row]:
        """A row for each optimizer, at its best learning rate of the grid if there is one."""
        return rank(rows(self.runs), self.by, best_lr=bool(self.lr_grid))

    def all_rows(self) -> list[Row]:
        """A row for each optimizer and learning rate, ranked."""
        return rank(rows(self.runs), self.by, best_lr=False)

    def sentence(self) -> str:
        """Who was first, and whose learning rate may not be the best."""
        ranked, tried = self.ranked(), Counter(row.label for row in self.all_rows())
        edge = at_the_edge([row for row in ranked if tried[row.label] > 1], self.lr_grid)
        return f"{sentence(ranked, self.by, self.target)} {edge}".rstrip()

    def answer(self) -> str:
        """The same in a few words."""
        return answer(self.ranked(), self.by)

    def leaders(self) -> list[Row]:
        """Who was first, or cannot be told apart from who was."""
        return leaders(self.ranked(), self.by)

    @property
    def failure(self) -> str | None:
        """What every run failed with, if it is the same."""
        failures = {run.failure if run.status == "failed" else None for run in self.runs}
        return failures.pop() if len(failures) == 1 else None

    def title(self) -> str:
        """The task and what was asked of it, in a few words."""
        length = (
            f"{self.budget.steps} steps" if self.budget.seconds is None else f"{self.budget.seconds:g} s of training"
        )
        return f"{self.task.name}: target loss {self.target:g}, {length}"


@dataclass
class Comparison:
    """A whole comparison.

    Attributes:
        settings: what was asked for, by the name of the option.
        machine: what it ran on, as machine() returns it.
        results: one a task.
        command: the command line that repeats it.
        date: when it began, with the time zone.
        interrupted: whether it was stopped before all runs were over.
    """

    settings: dict[str, Any]
    machine: dict[str, str]
    results: list[TaskResult]
    command: str = ""
    date: datetime = field(default_factory=lambda: datetime.now().astimezone())
    interrupted: bool = False

    def to_json(self, summary: bool = True) -> str:
        """Everything, as JSON; infinite numbers ("never", "diverged") are null.

        Args:
            summary: whether what the runs amount to is in it.
        """
        tasks = []
        for result in self.results:
            task: dict[str, Any] = {
                "name": result.task.name,
                "description": result.task.description,
                "parameters": result.parameters,
                "elements": result.elements,
                "batch_size": result.batch_size,
                "target": result.target,
                "steps": result.budget.steps,
                "seconds": result.budget.seconds,
                "eval_every": result.task.eval_every,
                "ranked_by": result.by,
            }
            if summary:
                task["answer"] = result.answer()
                task["sentence"] = result.sentence()
                task["table"] = [asdict(row) for row in result.ranked()]
                task["all_rows"] = [asdict(row) for row in result.all_rows()]
            tasks.append({**task, "runs": [asdict(run) for run in result.runs]})
        everything = {
            "format": 1,
            "interrupted": self.interrupted,
            "command": self.command,
            "date": self.date.isoformat(timespec="seconds"),
            "settings": self.settings,
            "machine": self.machine,
            "tasks": tasks,
        }
        return json.dumps(_finite(everything), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Writes a file so that at any time there is either the old one or the new one, whole."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def make_folder(out: Path | None, date: datetime) -> Path:
    """Makes the folder for a report, which replaces no other report.

    Args:
        out: the folder, which may be there if no report is in it; None for a new one in steprule-report.
        date: what a new one is called after.

    Raises:
        UsageError: the folder cannot be made, or holds a report.
    """
    try:
        if out is not None:
            if out.exists() and not out.is_dir():
                raise UsageError(f"--out {str(out)!r} is a file; name a folder")
            out.mkdir(parents=True, exist_ok=True)
            held = " and ".join(name for name in ("results.json", "report.html") if (out / name).exists())
            if held:
                raise UsageError(f"--out {str(out)!r} holds a report already; name another folder, or remove {held}")
            return out
        number = 1
        while True:
            folder = Path("steprule-report", f"{date:%Y-%m-%d-%H%M%S}" + f"-{number}" * (number > 1))
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                if not folder.is_dir():
                    raise
            number += 1
    except OSError as error:
        what = f"--out {str(out)!r}" if out is not None else "the folder steprule-report"
        raise UsageError(f"{what}: {error.strerror}; name another folder with --out") from error


def machine() -> dict[str, str]:
    """Versions and hardware, by what they are called."""
    facts = {"Python": platform.python_version()}
    for package in ("steprule", "torch", "numpy", "llvmlite"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["system"] = platform.platform()
    facts["processor"] = f"{_processor()}, {os.cpu_count()} cores"
    if torch.accelerator.is_available():
        facts["accelerator"] = str(torch.accelerator.current_accelerator())
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
