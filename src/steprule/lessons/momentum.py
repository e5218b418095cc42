"""Lesson 3: momentum in a ravine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.follow import Way, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.ravine import FLAT, START, STEEP, from_above, loss
from steprule.pieces import Value, ema
from steprule.rule import Rule
from steprule.rules.sgd import SGD

LRS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.11, 0.14)
MOMENTA = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
SUM, AVERAGE = "sum (heavy ball)", "average (EMA)"
STEPS = 60


class HeavyBall(Rule):
    """SGD with its momentum and nothing else, to be printed."""

    @staticmethod
    def update(
        param: Value, grad: Value, momentum_buffer: Value, *, lr: float = 0.01, momentum: float = 0.9
    ) -> tuple[Value, ...]:
        return tuple(SGD.function()(param, grad, momentum_buffer, step=2, lr=lr, momentum=momentum))


class AverageMomentum(Rule):
    """A step along the average of the gradients instead of their sum."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, *, lr: float = 0.01, momentum: float = 0.9
    ) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, momentum)
        return param - lr * exp_avg, exp_avg


RULES: Mapping[str, type[Rule]] = {SUM: HeavyBall, AVERAGE: AverageMomentum}


def walk(lr: float, momentum: float, convention: str = SUM, steps: int = STEPS) -> Way:
    """Steps down the ravine."""
    return follow(RULES[convention], START, lambda w, step: [FLAT, STEEP] * w, steps, lr=lr, momentum=momentum)


@cache
def factors(lr: float, momentum: float, curvature: float, convention: str = SUM) -> tuple[complex, complex]:
    """By what a step multiplies the distance to the goal in the long run: two numbers, the larger one first.

    A step is linear here, so it is the matrix that two trial steps show, and these are its eigenvalues.
    """
    columns = []
    for weight, kept in ((1.0, 0.0), (0.0, 1.0)):
        columns.append(RULES[convention].function()(weight, curvature * weight, kept, lr=lr, momentum=momentum))
    one, two = sorted(np.linalg.eigvals(np.array(columns).T), key=abs, reverse=True)
    return complex(one), complex(two)


def behavior(lr: float, momentum: float, curvature: float, convention: str) -> str:
    """How the weight moves along a direction, in words."""
    factor = factors(lr, momentum, curvature, convention)[0]
    if abs(factor) > 1 + 1e-9:
        return f"flies apart: the distance grows to {abs(factor):.2f} of itself in each step"
    if abs(factor) > 1 - 1e-9:
        return "swings forever"
    straight = "creeps" if factor.real > 0 else "jumps from side to side"
    kind = "swings" if abs(factor.imag) > 1e-6 else straight
    return f"{kind}, and the distance shrinks to {abs(factor):.3f} of itself in each step"


def screen(lr: float, momentum: float, convention: str) -> Screen:
    """The path from above, both directions by themselves, and the loss."""
    way = walk(lr, momentum, convention).params
    plain = walk(lr, 0.0).params
    steps = np.arange(STEPS + 1)
    apart = Chart(
        "The two directions by themselves",
        Axis("step", 0, STEPS),
        Axis("distance to the goal, signed", -1.2, 1.2),
        [Line("flat", steps, way[:, 0], 0), Line("steep", steps, way[:, 1], 1)],
    )
    down = Chart(
        "The loss",
        Axis("step", 0, STEPS),
        Axis("loss", 1e-8, 1e3, log=True),
        [Line("plain SGD", steps, loss(plain), 5), Line("momentum", steps, loss(way), 0)],
    )
    rate = lr * in_the_end(momentum, convention)
    flat, steep = (behavior(lr, momentum, curvature, convention) for curvature in (FLAT, STEEP))
    reading = (
        f"Along the flat direction the weight {flat}. Along the steep one it {steep}. After {STEPS} steps the loss is "
        f"{number(float(loss(way[-1])), 2)}. A gradient that stays the same moves the weight by {number(rate, 3)} times itself "
        "in each step, in the end: the effective learning rate."
    )
    return Screen(
        [from_above("The path from above", [("plain SGD", plain, 5), ("path", way, 0)]), apart, down], reading
    )


@cache
def in_the_end(momentum: float, convention: str = SUM) -> float:
    """How far a step goes at last where the gradient is always 1, and the learning rate too."""
    way = follow(RULES[convention], [0.0], lambda w, step: [1.0], 800, lr=1.0, momentum=momentum).params
    return float(way[-2, 0] - way[-1, 0])


def nearer(lr: float, momentum: float) -> int:
    """How many steps it takes until both directions are a thousand times nearer to the goal, and stay so."""
    way = follow(SGD, START, lambda w, step: [FLAT, STEEP] * w, 200, lr=lr, momentum=momentum).params
    return int(np.flatnonzero(np.abs(way).max(1) > 1e-3)[-1]) + 1


def edge(test: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """Where a test that fails at low and holds at high begins to hold."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if test(middle) else (middle, high)
    return high


def critical(lr: float, curvature: float) -> float:
    """The momentum from which on a weight swings."""
    return edge(lambda momentum: abs(factors(lr, momentum, curvature)[0].imag) > 1e-9)


def largest_lr(momentum: float) -> float:
    """The learning rate from which on the steep direction flies apart."""
    return edge(lambda lr: abs(factors(lr, momentum, STEEP)[0]) > 1 + 1e-12, low=1e-3)


def best_plain() -> float:
    """The best learning rate of plain SGD: from there on the steep direction is the slower one."""
    return edge(lambda lr: abs(factors(lr, 0.0, STEEP)[0]) > abs(factors(lr, 0.0, FLAT)[0]))


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    calmer = abs(factors(0.01, 0.8, STEEP)[0]) < abs(factors(0.01, 0.9, STEEP)[0])
    slower = abs(factors(0.005, 0.9, STEEP)[0]) < abs(factors(0.01, 0.9, STEEP)[0]) - 1e-9
    choices = ("a smaller momentum", "a smaller learning rate", "neither of them")
    return [
        Question(
            "The learning rate is 0.01 and the momentum 0.9, as a sum. The gradient of a weight is 1 in every step. How far does "
            "the weight go in one step, in the end?",
            0.01 * in_the_end(0.9),
            "The sum of 1, 0.9, 0.81 and so on is 10. The effective learning rate is 0.01 / (1 \u2212 0.9).",
        ),
        Question(
            "You read of a training with momentum 0.95 and learning rate 0.002, as a sum. Your library averages instead. Which "
            "learning rate gives you the same path?",
            0.002 * in_the_end(0.95) / in_the_end(0.95, AVERAGE),
            "The average is the sum times 1 \u2212 0.95, so the learning rate must be 20 times as large.",
        ),
        Question(
            "Learning rate 0.01, momentum 0.9: along the steep direction the weight swings around its goal for a long time. What makes "
            "the swinging die out in fewer steps?",
            choices[0] if calmer and not slower else choices[1] if slower else choices[2],
            "While a weight swings, each step multiplies the swing by the root of the momentum, whatever the learning rate is. A "
            "smaller learning rate makes it swing more slowly, for as many steps.",
            choices,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    lr = best_plain()
    return {
        "weight 2 is 25 times": STEEP / FLAT,
        "flies apart above 0.08": largest_lr(0),
        "best learning rate is 0.077": lr,
        "leaves 0.923 of": abs(factors(lr, 0.0, FLAT)[0]),
        "takes 87 steps": nearer(lr, 0.0),
        "27 steps get as near": nearer(1 / 9, 4 / 9),
        "is 0.25 for the steep direction": critical(0.01, STEEP),
        "0.81 for the flat one": critical(0.01, FLAT),
        "momentum of 0.9 it is 10 times": in_the_end(0.9),
        "0.99 it is 100 times": in_the_end(0.99),
        "with 0.9 that is 0.949": abs(factors(0.01, 0.9, STEEP)[0]),
        "up to 0.152": largest_lr(0.9),
        "0.81 and so on is 10": in_the_end(0.9),
        "20 times as large": in_the_end(0.95) / in_the_end(0.95, AVERAGE),
    }


LESSON = Lesson(
    title="Momentum",
    question="The latest gradient already says which way is down. Why do past ones help?",
    controls=[
        Control("learning rate", LRS, 0.02, r"\eta", "lr"),
        Control("momentum", MOMENTA, 0.8, r"\mu", "momentum"),
        Control("what is kept of past gradients", (SUM, AVERAGE), SUM),
    ],
    screen=screen,
    text=[
        "*This picture is geometry only: two weights, a loss made of two parabolas, no data and no noise. It shows one thing that "
        "happens in large models as well, and not how large models train.*",
        "## A ravine",
        "The loss above is a ravine. Its curvature along weight 2 is 25 times that along weight 1, so its condition number is 25. "
        "Plain SGD subtracts the learning rate times the gradient; the gray path is what it does with your learning rate. Set the momentum to 0 and raise the learning rate: the weight "
        "jumps between the walls, and flies apart above 0.08. The flat direction, meanwhile, still "
        "creeps. One learning rate must serve both directions.",
        "In a ravine like this one the weights move along each eigen-direction as if the other were not there. Here the two directions are simply the two axes. That is the second "
        "chart. A step multiplies the distance to the goal by a factor, one for each direction. In the long run the best learning rate "
        "is 0.077. Then each step leaves 0.923 of the distance along the slower direction, and it takes 87 steps to get a thousand times nearer.",
        "## Keep moving",
        "Momentum keeps a sum of past gradients, in which older ones count less. It is the average of lesson 2 applied to gradients, except that the new one is added in full: each step multiplies the sum by `momentum` "
        "and adds the new gradient. Where the learning rate is large, the gradient across the ravine changes its sign again and again, and the sum stays small. Along "
        "the ravine the gradients agree, and the sum grows. With learning rate 1/9 and momentum 4/9, the best for this ravine, 27 steps get as near.",
        "Does this also average out the noise of lesson 1? Less than one would think. Compared with its length a step is less noisy, but the noise of each gradient acts in full, spread over the "
        "steps that follow. To have less of it you need a smaller effective learning rate (below) or a larger batch. What momentum cures is the ravine.",
        "## Too much of it",
        "A weight with momentum is like a ball with friction. With little momentum it creeps to the goal. With much it runs past it, "
        "and swings. In between lies critical damping, `momentum = (1 - sqrt(lr * curvature))**2` (Goh 2017, below, derives it). With learning rate 0.01 it "
        "is 0.25 for the steep direction and 0.81 for the flat one. Try 0.9: both directions swing, and each step multiplies the "
        "swing by the root of the momentum, whatever the learning rate is; with 0.9 that is 0.949.",
        "## The effective learning rate",
        "Where the gradient stays the same, the sum becomes `1 / (1 - momentum)` times as large as one gradient. With a "
        "momentum of 0.9 it is 10 times, with 0.99 it is 100 times the learning rate that you wrote. So "
        "compare `lr / (1 - momentum)`, not `lr`, when you compare two trainings.",
        "Some libraries and papers keep an exponentially weighted average instead of a sum. That is the same path with another number in "
        "front: the average is the sum times `1 - momentum`. Choose the average above: to get the path back, the learning rate "
        "must be multiplied by `1 / (1 - momentum)`.",
    ],
    formulas={"As torch.optim writes it": HeavyBall},
    sources=[SGD.function()],
    try_it="""
import numpy as np
from steprule import ema
from steprule.arrays import SGD

curvature = np.array([1.0, 25.0])
weights = np.array([-1.0, 1.0])
optimizer = SGD([weights], lr=0.02, momentum=0.8)
others, average = weights.copy(), np.zeros(2)
for step in range(60):
    optimizer.step([curvature * weights])           # a sum
    average = ema(average, curvature * others, 0.8)  # an average
    others -= 0.02 / (1 - 0.8) * average
print(abs(weights).max() < 1e-3, np.allclose(weights, others))
""",
    output="True True",
    wrong=[
        "*Momentum goes from 0.9 to 0.99 and the learning rate stays.* The effective learning rate is then ten times as large.",
        "*Two conventions are mixed up.* A learning rate that was found with a sum is far too small for an average. Look for a "
        "factor of `1 - momentum` in front of the gradient. In torch.optim and here `dampening=momentum` makes an average of the "
        "sum, except that the first gradient counts in full, so that the first steps are longer.",
        "*Swinging is taken for noise.* A training loss that goes up and down with a steady beat may have too much momentum. A smaller "
        "learning rate makes the beat slower, but does not make it die out in fewer steps.",
        "*Momentum is expected to allow any learning rate.* It does allow more: up to 0.152 with momentum 0.9 here, instead of 0.08.",
    ],
    questions=questions,
    references=[
        "Polyak 1964, Some methods of speeding up the convergence of iteration methods: the heavy ball.",
        "Sutskever, Martens, Dahl and Hinton 2013, On the importance of initialization and momentum in deep learning: equations 1 and 2, and 3 and 4 for Nesterov's.",
        "Goh 2017, Why Momentum Really Works, Distill: the damping of each eigen-direction, and noise.",
    ],
    claims=claims,
    symbols={
        "momentum_buffer": "the sum of past gradients",
        "momentum": "the momentum, which plays the part of \u03b2 in lesson 2",
    },
    given=(2017, 4, 9, 0.01, 0.9, 0.95, 0.002, 0.99),
)
