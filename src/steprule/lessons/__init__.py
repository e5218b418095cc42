"""Lessons on optimizers: each is one page that answers one question with what the shipped rules compute.

How a lesson is written. It is one file here, with one `Lesson` called LESSON, and one entry in `LESSONS`:

- ``controls``: what the reader moves, each a `Control` with its values, its symbol in the formula and its name in the source.
- ``screen``: a function that takes a value of each control and returns a `Screen`, its charts and a sentence on them. It is
  called for every combination of values, and gets its numbers from optimizers of `steprule.arrays` or from the functions of
  `steprule.rules` and `steprule.pieces`: a lesson has no formula of an optimizer of its own. Charts keep their axes and the
  number of their marks; what differs between two combinations is found by comparison, and the page swaps it in.
- ``formulas``: rules by what their headings call them, printed by `steprule.formula`. A rule of three lines that calls the
  shipped one with the other hyperparameters left out prints what the lesson is about; ``sources`` are the shipped functions, shown as they are.
- ``text``, ``wrong``: paragraphs, with ``code`` between backticks, *emphasis* between stars, and headings that begin with
  "## ". The terms of `steprule.lessons.glossary` are linked where they come first.
- ``try_it``, ``output``: a program and what it prints.
- ``questions``: three, whose answers are computed. ``ANSWERS`` in tests/test_lessons.py has them as they are on paper.
- ``claims``: a function that returns each phrase of the texts that states a number, with that number computed. A test rounds
  the computed one to the phrase's digits, and finds numbers from 4 on, or with digits behind the point, that stand in a text
  (code aside), and neither in a claim nor in ``given``.
- ``given``: the numbers of the texts that are chosen and not computed, such as settings.
- ``symbols``: what names in the formulas stand for, where `steprule.lessons.formula.MEANINGS` does not say it.
- ``in_code``: what the source calls them, where it is another rule's than the formula.
- ``about_code``: which part of the source belongs to the lesson, where it is not all of it.
- ``needs``: modules that not every installation has.

What several lessons compute with: `follow` takes a rule's steps; `ravine` is a loss of two weights; `letters`, `network` and
`digits` are models and data; `few_bits` belongs to the lesson on bytes.

`steprule.lessons.averages` is the shortest example.
"""

from __future__ import annotations

from importlib import import_module

from steprule.lessons.lesson import Lesson

LESSONS = (
    "noise",
    "averages",
    "momentum",
    "rmsprop",
    "adam",
    "decay",
    "schedules",
    "scale",
    "bytes",
    "muon",
    "soap",
    "norms",
)
"""The names of the lessons, in the order in which they are read. Each is a module here."""


def find(name: str) -> Lesson:
    """The lesson of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in LESSONS:
        raise ValueError(f"there is no lesson {name!r}; there are {', '.join(LESSONS)}")
    found: Lesson = import_module(f"{__name__}.{name}").LESSON
    return found
