"""The lessons: the pages themselves, and the list of them."""

from __future__ import annotations

from html import escape

from steprule.lessons import LESSONS, find
from steprule.lessons.page import page


def pages() -> dict[str, str]:
    """The text of each page, by its path."""
    return {f"learn/{name}.html": _linked(name) for name in LESSONS}


def _linked(name: str) -> str:
    """A lesson's page with a way to its neighbors."""
    place = LESSONS.index(name)
    links = [("index.html", "All lessons")]
    if place:
        links.append((f"{LESSONS[place - 1]}.html", f"← {find(LESSONS[place - 1]).title}"))
    if place + 1 < len(LESSONS):
        links.append((f"{LESSONS[place + 1]}.html", f"{find(LESSONS[place + 1]).title} →"))
    row = " · ".join(f'<a href="{target}">{escape(text)}</a>' for target, text in links)
    return page(name).replace("<header>", f"<header><nav><p>{row}</p></nav>", 1)


def table() -> str:
    """The lessons with their questions."""
    rows = [
        f"| {place} | [{find(name).title}]({name}.html) | {find(name).question} |"
        for place, name in enumerate(LESSONS, 1)
    ]
    return "\n".join(["| | lesson | question |", "|---:|---|---|", *rows])
