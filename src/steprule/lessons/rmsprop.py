"""Lesson 4: RMSProp, in the ravine and in the turned ravine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.follow import Way, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.ravine import START, from_above, hessian, loss, turn
from steprule.pieces import Value, ema, ema_sq
from steprule.rule import Rule
from steprule.rules.rmsprop import RMSprop
from steprule.rules.sgd import SGD

ALPHAS = (0.0, 0.5, 0.9, 0.95, 0.99)
EPSILONS = (1e-8, 0.01, 0.1, 1.0, 10.0)
ANGLES = (0, 10, 30, 45)
LR, BEST_LR, STEPS, GOAL = 0.05, 0.074, 120, 1e-3
BEGIN = 1.03 * np.array(START)
"""So that steps of 0.05 do not meet the goal by chance."""


class Plain(Rule):
    """RMSprop without its options, to be printed."""

    @staticmethod
    def update(
        param: Value, grad: Value, square_avg: Value, *, lr: float = 0.05, alpha: float = 0.9, eps: float = 1e-8
    ) -> tuple[Value, ...]:
        new, square_avg, _, _ = RMSprop.function()(param, grad, square_avg, None, None, lr=lr, alpha=alpha, eps=eps)
        return new, square_avg


@cache
def walk(rule: type[Rule], degrees: float, **settings: float) -> Way:
    """Steps down the ravine that is turned, from a start that is turned with it."""
    curvature = hessian(degrees)
    return follow(rule, turn(degrees) @ BEGIN, lambda w, step: curvature @ w, STEPS, **settings)


def arrival(way: Way, degrees: float) -> int | None:
    """After how many steps the loss is below the goal."""
    below = np.flatnonzero(loss(way.params, degrees) < GOAL)
    return int(below[0]) if len(below) else None


def _told(way: Way, degrees: float) -> str:
    steps = arrival(way, degrees)
    return f"not within {STEPS} steps" if steps is None else f"after {steps} steps"


def screen(alpha: float, eps: float, degrees: float) -> Screen:
    """The path from above, how far each weight goes in each step, and the loss, beside those of SGD."""
    way = walk(RMSprop, degrees, lr=LR, alpha=alpha, eps=eps)
    plain = walk(SGD, degrees, lr=BEST_LR)
    steps = np.arange(1, STEPS + 1)
    moves = np.abs(np.diff(way.params, axis=0))
    far = Chart(
        "How far each weight goes in a step",
        Axis("step", 0, STEPS),
        Axis("distance", 1e-16, 10, log=True),
        [Line("weight 1", steps, moves[:, 0], 0), Line("weight 2", steps, moves[:, 1], 1)],
    )
    down = Chart(
        "The loss",
        Axis("step", 0, STEPS),
        Axis("loss", 1e-30, 1e2, log=True),
        [
            Line("SGD", [0, *steps], loss(plain.params, degrees), 5),
            Line("RMSProp", [0, *steps], loss(way.params, degrees), 0),
        ],
    )
    paths = from_above("The path from above", [("SGD", plain.params, 5), ("RMSProp", way.params, 0)], degrees)
    first = np.abs(way.grads[0])
    reading = (
        f"The first gradients are {number(first[0], 3)} and {number(first[1], 3)} in size, and the first step moves the weights by "
        f"{number(moves[0, 0], 3)} and {number(moves[0, 1], 3)}. RMSProp (learning rate {LR}) has a loss below {GOAL} "
        f"{_told(way, degrees)}; SGD with its best learning rate {_told(plain, degrees)}."
    )
    return Screen([paths, far, down], reading)


def first_step(grad: float, **settings: float) -> float:
    """How far the first step goes."""
    way = follow(RMSprop, [0.0], lambda w, step: [grad], 1, **settings)
    return abs(float(way.params[1, 0]))


def quickest() -> float:
    """The learning rate at which SGD needs the fewest steps, found by trying."""
    needed = {lr / 1000: arrival(walk(SGD, 0, lr=lr / 1000), 0) for lr in range(40, 90)}
    return min(needed, key=lambda lr: needed[lr] or STEPS + 1)


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    small, large = (first_step(grad, lr=0.01, alpha=0.9) for grad in (0.5, 50.0))
    sizes = ("They stay as they are", "They become 100 times as large", "They become 10 times as large")
    names = ("plain SGD", "RMSProp", "both of them")
    same = [
        np.allclose(walk(rule, 45, lr=lr).params, walk(rule, 0, lr=lr).params @ turn(45).T)
        for rule, lr in ((SGD, BEST_LR), (RMSprop, LR))
    ]
    return [
        Question(
            "RMSProp begins with learning rate 0.01 and alpha 0.99. The first gradient is 4. How far does the first step go?",
            first_step(4.0, lr=0.01, alpha=0.99),
            "The mean square after one step is 0.01 times 16, its root 0.4. 4 divided by 0.4 is 10, times the learning rate.",
        ),
        Question(
            "You multiply the loss, and so every gradient, by 100. What happens to the steps of RMSProp?",
            sizes[[1, 100, 10].index(round(large / small))],
            "The gradient and the root of its mean square grow alike, and their quotient stays. Only epsilon counts less.",
            sizes,
        ),
        Question(
            "You turn the ravine and the start by 45 degrees. Which method takes its old path, turned as well?",
            names[2 if all(same) else same.index(True)],
            "SGD knows only the gradient, which turns with the ravine. RMSProp looks at each weight by itself, so it matters "
            "how the axes of the weights lie.",
            names,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    straight, turned = walk(RMSprop, 0, lr=LR, alpha=0.9), walk(RMSprop, 45, lr=LR, alpha=0.9)
    plain = walk(SGD, 0, lr=BEST_LR)
    moves = np.abs(np.diff(straight.params, axis=0))
    under = first_step(1e-6, lr=LR, alpha=0.0, eps=1e-4) / LR  # what a root of 0 + 1e-8 would divide by
    return {
        "In this ravine the first gradient of weight 2 is 25": abs(straight.grads[0, 1] / straight.grads[0, 0]),
        "both move by 0.158": float(moves[0].mean()),
        "10 times the learning rate": first_step(1.0, lr=0.01, alpha=0.99) / 0.01,
        "RMSProp needs 30 steps": arrival(straight, 0) or 0,
        "loss is back at 0.033": float(loss(straight.params[-1])),
        "10 degrees RMSProp needs 48": arrival(walk(RMSprop, 10, lr=LR, alpha=0.9), 10) or 0,
        "with 45 it needs 72": arrival(turned, 45) or 0,
        "SGD needs 41": arrival(plain, 0) or 0,
        "that gets there soonest, 0.074": quickest(),
        "0.05 / 10, that is 0.005": first_step(1.0, lr=LR, alpha=0.9, eps=10.0 - 0.1**0.5),
        "moves a weight by 0.01 of": under,
        "0.01 times 16": follow(RMSprop, [0.0], lambda w, step: [4.0], 1, alpha=0.99).states["square_avg"][0, 0] / 0.01,
        "its root 0.4": follow(RMSprop, [0.0], lambda w, step: [4.0], 1, alpha=0.99).states["square_avg"][0, 0] ** 0.5,
        "by 0.4 is 10": first_step(4.0, lr=0.01, alpha=0.99) / 0.01,
    }


LESSON = Lesson(
    title="RMSProp",
    question="What if every weight had a learning rate of its own?",
    controls=[
        Control("how long squares are remembered", ALPHAS, 0.9, r"\alpha", "alpha"),
        Control("epsilon", EPSILONS, 1e-8, r"\epsilon", "eps"),
        Control("the ravine is turned by, in degrees", ANGLES, 0),
    ],
    screen=screen,
    text=[
        "*This picture is geometry only, as in the lesson on momentum: two weights, no data and no noise.*",
        "## Divide by the usual size",
        "In this ravine the first gradient of weight 2 is 25 times that of weight 1. SGD moves the weights by such "
        "steps, and the largest learning rate that the steep direction tolerates is too small for the flat one. RMSProp keeps an "
        "exponentially weighted average of the *squares* of each weight's gradient, and divides the gradient by the root of it. That root, "
        "of the mean square, is the usual size of the gradient, so what is left is about 1 or -1 as long as gradients keep their size. With learning rate 0.05 and `alpha = 0.9` both "
        "move by 0.158 in the first step, whatever their gradients are: see the second chart. (That is more than the learning rate; the next section says why.)",
        "The path goes straight to the goal. RMSProp needs 30 steps until the loss is below 0.001. SGD needs 41 at the learning rate that gets there soonest, 0.074. "
        "(The 0.077 of lesson 3 is best in the long run. The 0.05 of RMSProp was not tuned.) It does not stay there: at the goal gradients are nearly 0, the mean square fades, and what is divided by its root is long again, however small the gradient was: the weights shoot past the goal. After 120 steps the loss is back at 0.033. A learning rate that falls cures this (lesson 7).",
        "## What alpha does",
        "`alpha` is the share of the mean square that a step keeps. At 0 there is no memory, and each step is the learning rate "
        "times the sign of the gradient: the weights cannot rest, and jump around the goal. With a longer memory the large first "
        "gradients are remembered, and steps shrink on the way. The average begins at 0 and RMSProp has no bias "
        "correction. So the first step is too long: the learning rate divided by the root of `1 - alpha`, which with 0.99 is 10 times the learning rate. "
        "Adam mends that.",
        "## What epsilon does",
        "Where a gradient has always been 0, the root is 0 too, and epsilon keeps the division possible. It does more: where epsilon is larger "
        "than the root, it is epsilon that divides, and the method is SGD with the learning rate divided by epsilon. With a divisor of 10 a gradient of 1 "
        "moves a weight by 0.05 / 10, that is 0.005. Raise epsilon and see the path bend into that of SGD.",
        "## Turn the ravine",
        "Now turn the ravine by 45 degrees. Both weights are then half in the steep direction and half in the flat one. Their "
        "gradients have about the same size, and dividing both by nearly the same number cannot tell steep from flat. The advantage is gone: with 10 degrees RMSProp needs 48 steps, and with 45 it needs 72. SGD does not notice that anything has turned. RMSProp and all of its children, Adam among them, depend on how the "
        "axes of the weights happen to lie in the ravine.",
    ],
    formulas={"As torch.optim writes it": Plain},
    sources=[RMSprop.function(), ema_sq, ema],
    try_it="""
import numpy as np
from steprule.arrays import SGD, RMSprop

def steps_needed(make, degrees, **settings):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.array([[cos, -sin], [sin, cos]])
    curvature = axes @ np.diag([1.0, 25.0]) @ axes.T
    weights = axes @ np.array([-1.03, 1.03])
    optimizer = make([weights], **settings)
    for step in range(1, 121):
        optimizer.step([curvature @ weights])
        if weights @ curvature @ weights / 2 < 1e-3:
            return step

for degrees in (0, 45):
    print(degrees, steps_needed(SGD, degrees, lr=0.074), steps_needed(RMSprop, degrees, lr=0.05, alpha=0.9))
""",
    output="""
0 41 30
45 41 72
""",
    wrong=[
        "*SGD's learning rate is kept.* The steps of SGD have the size of learning rate times gradient, those of RMSProp about the "
        "learning rate itself. In a network 0.1 may suit SGD where RMSProp wants 0.001. (In this ravine gradients happen to be near 1, so the two are alike.)",
        "*Epsilon is taken for a detail.* Where gradients are as small as `1e-6`, an epsilon of `1e-4` moves a weight by 0.01 of the "
        "learning rate. Some libraries add epsilon inside the root, where `1e-8` acts like `1e-4` here.",
        "*The weights do not come to rest.* With a short memory or noisy gradients a step stays about as long as the learning rate, "
        "however near the goal is. Let the learning rate decay.",
        "*The first steps are too long.* There is no bias correction. Begin with a smaller learning rate and raise it (a warm-up, lesson 7), or take Adam.",
    ],
    questions=questions,
    references=[
        "Tieleman and Hinton 2012, Neural Networks for Machine Learning, lecture 6e: where RMSProp comes from.",
        "Graves 2013, Generating Sequences With Recurrent Neural Networks, arXiv:1308.0850: equations 38 to 41, with a mean "
        "subtracted; `centered=True` here.",
        "Duchi, Hazan and Singer 2011, Adaptive Subgradient Methods, JMLR 12: section 1.1, the sum of squares that RMSProp forgets.",
    ],
    claims=claims,
    about_code="`where(avg < math.inf, ...)` only keeps an average that has overflowed at infinity, and `centered` subtracts a mean first; leave both out and what remains is the formula.",
    symbols={"alpha": "how long squares are remembered: the \u03b2 of lesson 2"},
    given=(120, 7, 0.077, 0.99, 45, 0.001, 4, 0.1, 100, 0.05),
)
