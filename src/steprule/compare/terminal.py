"""What a comparison shows in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steprule.compare.results import TaskResult
from steprule.compare.run import Run
from steprule.compare.summary import columns, number

__all__ = ["Watch", "make_console", "table"]


def make_console(stderr: bool = False) -> Console:
    """The console for standard output, or for standard error."""
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)


class Watch:
    """Shows how far the runs are: a bar for each task in a terminal, elsewhere a line for each run that is over.

    Args:
        console: where.
        tasks: the tasks' names.
        run_counts: how many runs each has.
    """

    def __init__(self, console: Console, tasks: Sequence[str], run_counts: Sequence[int]) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs,"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[current]}"),
            console=console,
            refresh_per_second=4,  # the clock that times the steps runs beside it
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {
            name: self._progress.add_task(name, total=count, start=False, current="")
            for name, count in zip(tasks, run_counts, strict=True)
        }
        self._over = dict.fromkeys(tasks, 0)

    def __enter__(self) -> Watch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, task: str, optimizer: str, seed: int) -> Callable[[float], None]:
        """Says which run is next; the result is to be called with the share of it that is over, from 0 to 1."""
        bar, over = self._bars[task], self._over[task]
        self._progress.start_task(bar)
        self._progress.update(bar, current=f"{optimizer} seed {seed}")
        return lambda share: self._progress.update(bar, completed=over + share)

    def end(self, run: Run) -> None:
        """Says that a run is over."""
        self._over[run.task] += 1
        self._progress.update(self._bars[run.task], completed=self._over[run.task], current="")
        if not self._console.is_terminal:
            print(_line(run), file=self._console.file, flush=True)


def _line(run: Run) -> str:
    who = f"{run.task}  {run.optimizer}  seed {run.seed}: "
    if run.status == "failed":
        return f"{who}failed after {run.step_count} steps: {run.failure}"
    if run.status == "diverged":
        return f"{who}diverged after {run.step_count} steps"
    reached = "target not reached" if run.reached_step is None else f"target reached after {run.reached_step} steps"
    return f"{who}loss {number(run.loss[-1])} after {run.step_count} steps in {number(run.seconds[-1])} s, {reached}"


def table(result: TaskResult) -> Table:
    """The ranked optimizers of a task in at most 80 columns: medians, and below them the ranges over the seeds."""
    rows = result.ranked()
    numbers = columns(rows)
    shown = Table(
        title=Text(result.title()),
        title_justify="left",
        caption=Text("Medians, below them the ranges over the seeds; state bytes are those of an element."),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    shown.add_column("optimizer", overflow="fold")
    for column in numbers:
        shown.add_column(Text(column.short), justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        cells = [column.cells[index] for column in numbers]
        settings = "".join(f"\n {setting}" for setting in row.settings)
        shown.add_row(Text(row.name + settings), *(Text(f"{cell.text}\n{_short(cell.spread)}") for cell in cells))
    return shown


def _short(spread: str) -> str:
    return spread if "-" in spread else spread.replace(" to ", "-")
