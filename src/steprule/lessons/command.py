"""What ``steprule lesson`` does."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from steprule.catalog import width
from steprule.lessons import LESSONS, find
from steprule.lessons.page import page
from steprule.names import did_you_mean


def show_all() -> None:
    """Prints the lessons, by number."""
    for number, one in enumerate(LESSONS, 1):
        first = f"{number}  {one:13}"
        print(textwrap.fill(find(one).question, width(), initial_indent=first, subsequent_indent=" " * len(first)))


def write(given: str, output: Path | None, need: Callable[..., None]) -> Path:
    """Writes the page of a lesson; returns its path.

    Args:
        given: the lesson's name or number.
        output: the file; None for one in this folder that is called after the lesson.
        need: is called with the modules that the lesson takes, and ends the program if one is missing.

    Raises:
        ValueError: there is no such lesson, or the file cannot be written or, if it is named, is there already.
    """
    numbers = {str(number): one for number, one in enumerate(LESSONS, 1)}
    name = numbers.get(given, given.lower())
    if name not in LESSONS:
        raise ValueError(f"there is no lesson {given!r}; there are {', '.join(LESSONS)}{did_you_mean(name, LESSONS)}")
    need(*find(name).needs)
    file = f"steprule-lesson-{name}.html"
    path, text = output or Path(file), page(name)
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder; name a file, such as {path / file}")
    if output is not None and path.exists():
        raise ValueError(f"{path} is there already; name another file, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error
    return path
