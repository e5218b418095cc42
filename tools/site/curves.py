"""The loss of each rule on the small model of letters that lessons use."""

from __future__ import annotations

from functools import cache

import numpy as np

from steprule.charts import Axis, Chart, Line, figure, number
from steprule.lessons import letters
from steprule.lessons.follow import Array, follow
from steprule.rule import Rule
from steprule.rules import OWN

STEPS, BATCH = 200, 64
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BESIDE = ("sgd", "adamw")


@cache
def batches() -> list[Array]:
    """The pairs of letters of each step, the same for every rule."""
    pairs, _ = letters.parts()
    random = np.random.default_rng(0)
    return [letters.counts(pairs[random.integers(0, len(pairs), BATCH)]) for _ in range(STEPS)]


@cache
def best(name: str) -> tuple[float, Array]:
    """The learning rate of the grid that ends lowest, and the loss over all training pairs after each step."""
    pairs, _ = letters.parts()
    everything = letters.counts(pairs)
    found = []
    for lr in GRID:
        with np.errstate(all="ignore"):
            way = follow(
                OWN[name], np.zeros((letters.LETTERS,) * 2), lambda w, step: letters.gradient(w, batches()[step - 1]),
                STEPS, lr=lr,
            ).params  # fmt: skip
            losses = letters.loss(way, everything)
        if np.isfinite(losses).all():
            found.append((float(losses[-10:].mean()), lr, losses))
    _, lr, losses = min(found, key=lambda one: one[0])
    return lr, losses


def curve(rule: type[Rule]) -> str:
    """The chart and a sentence that says what it is of."""
    name = rule.__name__.lower()
    lr, losses = best(name)
    steps = np.arange(STEPS + 1)
    lines = [
        Line(OWN[one].__name__, steps, best(one)[1], style)
        for one, style in zip(BESIDE, (5, 1), strict=True)
        if one != name
    ]
    chart = Chart(
        "Training loss", Axis("step", 0, STEPS), Axis("loss", 1.8, 3.4), [*lines, Line(rule.__name__, steps, losses, 0)]
    )
    others = " and ".join(f"{OWN[one].__name__} with {number(best(one)[0])}" for one in BESIDE if one != name)
    grid = ", ".join(number(one) for one in GRID)
    edge = " That is an end of the grid: a learning rate beyond it may do better." if lr in (GRID[0], GRID[-1]) else ""
    said = (
        f"A table of 27 by 27 weights learns which letter follows which in the Zen of Python, from mini-batches of {BATCH} pairs. Each "
        f"optimizer has the learning rate of {grid} that ends lowest, and the defaults otherwise: {rule.__name__} {number(lr)}, {others}.{edge} "
        "One task and one seed: it shows how a rule moves, not which is better."
    )
    return f"{figure(chart)}\n\n{said}"
