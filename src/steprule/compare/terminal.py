"""What a comparison shows in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steprule.compare.results import TaskResult
from steprule.compare.run import Run
from steprule.compare.summary import Column, columns, number

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


_CAPTION = "Medians, below them the ranges over the seeds; state bytes are those of an element."


def table(result: TaskResult, width: int = 80) -> Table | Text:
    """The ranked optimizers of a task: medians, and below them the ranges over the seeds.

    Args:
        result: the task's.
        width: how many columns there are. Where a table would break a name, there is a line for each number.
    """
    rows = result.ranked()
    numbers = columns(rows)
    names = ["\n ".join([row.name, *row.settings]) for row in rows]
    taken = sum(max(map(len, _lines(column))) + 1 for column in numbers)
    room = min(width, 80) - taken - 2
    if max(len(_INDENT + part) for name in names for line in name.split("\n") for part in _parts(line)) > room:
        return _listing(result, numbers, names, width)
    shown = Table(
        title=Text(result.title()),
        title_justify="left",
        caption=Text(_CAPTION),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    shown.add_column("optimizer", no_wrap=True)
    for column in numbers:
        shown.add_column(Text(column.short), justify="right", no_wrap=True)
    for index, name in enumerate(names):
        cells = [column.cells[index] for column in numbers]
        shown.add_row(Text(_folded(name, room)), *(Text(f"{cell.text}\n{_short(cell.spread)}") for cell in cells))
    return shown


def _listing(result: TaskResult, numbers: Sequence[Column], names: Sequence[str], width: int) -> Text:
    """The same with a line for each number."""
    headings = [column.short.replace("\n", " ") for column in numbers]
    wide = max(map(len, headings))
    parts = [result.title()]
    for index, name in enumerate(names):
        lines = [_folded(name, width)]
        for heading, column in zip(headings, numbers, strict=True):
            text, spread = column.cells[index]
            lines.append(f"  {heading:{wide}} {text} {_short(spread)}".rstrip())
        parts.append("\n".join(lines))
    return Text("\n\n".join([*parts, _CAPTION.replace("below", "behind")]))


def _lines(column: Column) -> Iterator[str]:
    """All lines of a column, of which the longest sets its width."""
    yield from column.short.split("\n")
    for cell in column.cells:
        yield from (cell.text, _short(cell.spread))


def _parts(line: str) -> list[str]:
    """A name or a setting in parts, between which a line may be broken."""
    return re.split(r"(?<=[=_])|(?<=[.,])(?=[A-Za-z])", line)


def _folded(name: str, width: int) -> str:
    """A name and settings with more lines, each of so many columns if no part is longer."""
    lines = []
    for line in name.split("\n"):
        lines.append("")
        for part in _parts(line):
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append(_INDENT)
            lines[-1] += part
    return "\n".join(lines)


_INDENT = "  "
"""Of a line that goes on."""


def _short(spread: str) -> str:
    return spread if "-" in spread else spread.replace(" to ", "-")
