"""Lesson 7: how the learning rate changes during training, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.digits import Data, digits
from steprule.lessons.follow import Array, moves
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.network import begin, gradient, loss
from steprule.pieces import Value, ema, where
from steprule.rule import Rule
from steprule.rules.adam import Adam
from steprule.rules.sgd import SGD

STEPS, BATCH, WARMUP = 400, 16, 40
PEAKS = (0.003, 0.01, 0.03, 0.1)
DECAYS = (0.9, 0.98, 0.99)
LOOKS = (*range(11), *range(12, 40, 4), *range(40, STEPS + 1, 20))
WHOLE = tuple(range(0, STEPS + 1, 20))
CONSTANT, LINEAR, COSINE, STABLE = "constant", "linear", "cosine", "stable, then down"
WITHOUT, WITH = "none", f"{WARMUP} steps"
WARMUPS = {WITHOUT: 0, WITH: WARMUP}


def constant(done: float) -> float:
    """The same throughout."""
    return 1.0


def linear(done: float) -> float:
    """Down to 0 in a straight line."""
    return 1 - done


def cosine(done: float) -> float:
    """Down to 0 along half a wave."""
    return (1 + math.cos(math.pi * done)) / 2


def stable_then_down(done: float) -> float:
    """The same until the last fifth, which goes down to 0."""
    return min(1.0, (1 - done) / 0.2)


SHAPES = {CONSTANT: constant, LINEAR: linear, COSINE: cosine, STABLE: stable_then_down}


def learning_rate(step: int, shape: str, warmup: int, peak: float) -> float:
    """The learning rate of a step, from 1: up to the peak in the warm-up, and along a shape in the rest."""
    if step <= warmup:
        return peak * step / warmup
    return peak * SHAPES[shape]((step - 1 - warmup) / (STEPS - warmup))


LOSS = Axis("validation loss", 0.07, 10, log=True, named={one: number(one) for one in (0.1, 0.3, 1.0, 3.0, 10.0)})


class Averaged(Rule):
    """SGD, with the average that `average=` keeps."""

    @staticmethod
    def update(
        param: Value, grad: Value, average: Value, *, step: Value, lr: float = 0.01, decay: float = 0.99
    ) -> tuple[Value, ...]:
        param = SGD.function()(param, grad, None, step=step, lr=lr)[0]
        return param, where(step == 1, param, ema(average, param, decay))


class Run(NamedTuple):
    """The validation losses of one training at the steps of LOOKS.

    Attributes:
        weights: of the weights.
        averages: of their average, by its decay, at the steps of WHOLE.
    """

    weights: Array
    averages: Mapping[float, Array]


Setting = tuple[str, str, float]  # shape, warm-up, peak
SETTINGS: Sequence[Setting] = list(product(SHAPES, WARMUPS, PEAKS))


@cache
def runs() -> Mapping[Setting, Run]:
    """Trainings of one network by Adam, from the same weights with the same mini-batches, all at once."""
    from threadpoolctl import threadpool_limits  # which scikit-learn needs itself

    with threadpool_limits(1):  # for matrices as small as these further threads only wait for each other
        return _runs()


def _runs() -> Mapping[Setting, Run]:
    data, held_out = digits(), digits(held_out=True)
    batches = _batches(len(data.inputs))
    weights = np.tile(begin(), (len(SETTINGS), 1))
    found, averaged = [loss(weights, held_out)], {decay: [loss(weights, held_out)] for decay in DECAYS}
    averages = dict.fromkeys(DECAYS, weights)
    steps = moves(
        Adam, weights,
        lambda w, step: gradient(w, Data(data.inputs[batches[step - 1]], data.labels[batches[step - 1]])),
        lr=lambda step: np.array([[learning_rate(step, shape, WARMUPS[warmup], peak)] for shape, warmup, peak in SETTINGS]),
    )  # fmt: skip
    for step, (weights, _, _) in enumerate(islice(steps, STEPS), 1):
        for decay in DECAYS:
            averages[decay] = weights if step == 1 else ema(averages[decay], weights, decay)
        if step in LOOKS:
            found.append(loss(weights, held_out))
        if step in WHOLE:
            for decay in DECAYS:
                averaged[decay].append(loss(averages[decay], held_out))
    return {
        setting: Run(one, {decay: np.array(averaged[decay])[:, index] for decay in DECAYS})
        for index, (setting, one) in enumerate(zip(SETTINGS, np.array(found).T, strict=True))
    }


def _batches(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which images each step looks at: all in a random order, then all in another one."""
    random = np.random.default_rng(0)
    rows: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    while len(rows) < STEPS:
        order = random.permutation(count)
        rows += [order[at : at + BATCH] for at in range(0, count - BATCH + 1, BATCH)]
    return np.array(rows[:STEPS])


def screen(shape: str, warmup: str, peak: float, decay: float) -> Screen:
    """The learning rate, the loss on the way, the first steps, and the loss at the end for all peaks."""
    steps = np.array(LOOKS)
    chosen, plain = runs()[shape, warmup, peak], runs()[CONSTANT, warmup, peak]
    every = range(1, STEPS + 1)
    rates = [learning_rate(step, shape, WARMUPS[warmup], 1.0) for step in every]
    rate = Chart(
        "The learning rate", Axis("step", 0, STEPS), Axis("share of the peak", 0, 1.1), [Line("", every, rates, 0)], "none"
    )  # fmt: skip
    whole = np.isin(steps, WHOLE)
    way = Chart(
        "Loss by steps",
        Axis("step", 0, STEPS),
        LOSS,
        [
            Line("constant rate", steps[whole], plain.weights[whole], "faint", short="constant"),
            Line("weights", steps[whole], chosen.weights[whole], 0),
            Line("average", WHOLE, chosen.averages[decay], 1),
        ],
    )
    early = steps <= WARMUP
    start = Chart(
        "The first 40 steps, with and without warm-up",
        Axis("step", 0, WARMUP),
        LOSS,
        [
            Line("without", steps[early], runs()[shape, WITHOUT, peak].weights[early], 3),
            Line("warm-up", steps[early], runs()[shape, WITH, peak].weights[early], 0),
        ],
    )
    marks = [
        Line(name, PEAKS, [runs()[name, warmup, one].weights[-1] for one in PEAKS], style, short=name.partition(",")[0])
        for style, name in ((0, COSINE), (2, LINEAR), (4, STABLE), (3, CONSTANT))
    ]
    averages = [runs()[CONSTANT, warmup, one].averages[decay][-1] for one in PEAKS]
    here = Line("your choice", [peak], [chosen.weights[-1]], 5, line=False, dots=True)
    end = Chart(
        "Loss at the end",
        Axis("peak", 0.002, 0.15, log=True, named={one: number(one) for one in PEAKS}),
        Axis("validation loss", 0.07, 1.8, log=True, named={one: number(one) for one in (0.1, 0.2, 0.5, 1.0)}),
        [*marks, Line("constant, averaged", PEAKS, averages, 1, short="averaged"), here],
        "none",
    )
    reading = (
        f"At the end the weights have a validation loss of {chosen.weights[-1]:.3f}, and their average of "
        f"{chosen.averages[decay][-1]:.3f}. With a constant rate and the same warm-up it is {plain.weights[-1]:.3f}, and "
        f"{plain.averages[decay][-1]:.3f} averaged. The largest loss in the first {WARMUP} steps is "
        f"{chosen.weights[early].max():.2f}."
    )
    return Screen([rate, way, start, end], reading)


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    run = runs()[CONSTANT, WITH, 0.03]
    better = run.averages[0.99][-1] < 0.8 * run.weights[-1]
    choices = ("the last weights", "the average of the weights", "neither, they are the same")
    return [
        Question(
            "The peak is 0.01, and the warm-up takes 40 steps. What is the learning rate in step 10?",
            learning_rate(10, CONSTANT, WARMUP, 0.01),
            "It goes up in a straight line, and step 10 is a quarter of the way.",
        ),
        Question(
            "A cosine schedule without warm-up begins at 0.02. What is the learning rate when half of the steps are done?",
            0.02 * cosine(0.5),
            "Half a wave is symmetrical, so in its middle it is at half of its height.",
        ),
        Question(
            "The learning rate has been 0.03 all the time, after a warm-up. Which has the lower validation loss here?",
            choices[1] if better else choices[0],
            "At a constant rate the weights keep moving around by as much as the noise pushes them. Their average does so much less.",
            choices,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""

    def end(shape: str, warmup: str, peak: float, decay: float = 0.0) -> float:
        run = runs()[shape, warmup, peak]
        return float(run.averages[decay][-1] if decay else run.weights[-1])

    stable = runs()[STABLE, WITH, 0.03].weights
    return {
        "2,410 weights": begin().size,
        "450 images": len(digits(held_out=True).inputs),
        "the loss is 0.22": end(CONSTANT, WITH, 0.03),
        "The cosine brings it to 0.12": end(COSINE, WITH, 0.03),
        "the straight line to 0.13": end(LINEAR, WITH, 0.03),
        "from 0.25": float(stable[LOOKS.index(320)]),
        "to 0.18 there": float(stable[-1]),
        "the cosine ends at 0.20": end(COSINE, WITH, 0.003),
        "constant rate at 0.17": end(CONSTANT, WITH, 0.003),
        "constant rate at 0.14": end(CONSTANT, WITH, 0.01),
        "cosine at 0.10": end(COSINE, WITH, 0.01),
        "at 0.03 the constant rate has 0.22": end(CONSTANT, WITH, 0.03),
        "and the cosine 0.12": end(COSINE, WITH, 0.03),
        "begins at 3.1": float(stable[0]),
        "goes up to 7.5": float(runs()[COSINE, WITHOUT, 0.1].weights[:11].max()),
        "come down to 1.9": float(runs()[COSINE, WITH, 0.1].weights[10]),
        "the cosine reaches 0.71": end(COSINE, WITHOUT, 0.1),
        "with it 0.43": end(COSINE, WITH, 0.1),
        "it is 0.16": end(COSINE, WITHOUT, 0.03),
        "against 0.12": end(COSINE, WITH, 0.03),
        "no longer helps: 0.19": end(COSINE, WITHOUT, 0.003),
        "with it 0.20": end(COSINE, WITH, 0.003),
        "the loss is 0.13 without": end(CONSTANT, WITHOUT, 0.01),
        "and 0.14 with it": end(CONSTANT, WITH, 0.01),
        "the average has 0.13": end(CONSTANT, WITH, 0.03, 0.99),
        "where the weights have 0.22": end(CONSTANT, WITH, 0.03),
        "the weights have 0.12": end(COSINE, WITH, 0.03),
        "their average has 0.12": end(COSINE, WITH, 0.03, 0.99),
        "too short: 0.21": end(CONSTANT, WITH, 0.03, 0.9),
        "with 0.98 it is 0.14": end(CONSTANT, WITH, 0.003, 0.98),
        "with 0.99 it is 0.16": end(CONSTANT, WITH, 0.003, 0.99),
    }


TRY_IT = """
import math
import torch
from steprule import SGD

def cosine(step):
    return 0.5 * (1 + math.cos(math.pi * (step - 1) / 100)) / 2

for name, lr in (("constant", 0.5), ("cosine", cosine)):
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.ones(10000))  # the best value of each is 0
    optimizer = SGD([weights], lr=lr, average=0.9)
    for step in range(100):
        weights.grad = weights.detach() + torch.randn(10000)  # a gradient and its noise
        optimizer.step()
    off = weights.detach().square().mean().sqrt().item()
    with optimizer.averaged():
        average = weights.detach().square().mean().sqrt().item()
    print(f"{name}: the weights are {off:.2f} off, their average {average:.2f}")
"""

LESSON = Lesson(
    title="Schedules, warm-up and averages of weights",
    question="How should the learning rate change during training, and what can an average of the weights do instead?",
    controls=[
        Control("schedule", tuple(SHAPES), COSINE, "", "shape"),
        Control("warm-up", tuple(WARMUPS), WITH, "", "warmup"),
        Control("peak of the learning rate", PEAKS, 0.03, "", "peak"),
        Control("how much of the past the average keeps", DECAYS, 0.99, r"\mathrm{decay}"),
    ],
    screen=screen,
    text=[
        "## Large steps first, small ones at the end",
        "At a constant learning rate the weights come near a place where the loss is low, and then keep moving around it. Each mini-batch pulls them its own way, "
        "as in lesson 1, and the learning rate says how far. A large rate gets there soon and stays far off; a small rate takes long. A schedule has both: large steps first, "
        "small ones at the end.",
        "The picture is of real training: images of handwritten digits, and a network with two layers of 24 numbers before the last, 2,410 weights. "
        "Adam trains it for 400 steps with batches of 16. The loss is that of 450 images that it has not seen. Everything but the learning rate is the same in all trainings.",
        "Choose a constant rate with warm-up and a peak of 0.03: the loss is 0.22 at the end, and it goes up and down on the way. The cosine brings it to 0.12, and the straight line to 0.13. "
        "*Stable, then down* does what a constant rate does until the last fifth, where the loss falls from 0.25 in step 320 to 0.18 there. Its advantage is another one: you need not know beforehand when "
        "training ends. Go on as long as you like, then lower the rate.",
        "The fourth chart shows the end of all trainings. With a peak of 0.003 the cosine ends at 0.20, and the constant rate at 0.17: steps were small already, and smaller ones do not get there in time. "
        "With 0.01 it is the other way round, the constant rate at 0.14 and the cosine at 0.10. A schedule that falls bears a larger peak: at 0.03 the constant rate has 0.22, and the cosine 0.12. So tune both together.",
        "## Warm-up",
        "A warm-up begins with a small rate and raises it to the peak in the first steps. Look at the third chart with a peak of 0.1. The loss begins at 3.1. Without warm-up it goes up to 7.5 "
        "within ten steps, and with warm-up it has come down to 1.9 by then. "
        "The first step of Adam is a learning rate long in every weight whose gradient is not 0, even if that is small or mere noise (lesson 5), and near random weights the gradient often changes so fast that long steps miss. At the end the cosine reaches 0.71 without warm-up, and with it 0.43. "
        "With a peak of 0.03 it is 0.16 against 0.12. With 0.003 warm-up no longer helps: 0.19 without, and with it 0.20. With a constant rate nothing of it is left at the end: with a peak of 0.01 the loss is 0.13 without and 0.14 with it, and other orders of the mini-batches turn this round. Why warm-up helps is still being studied. That it allows a larger peak is seen again and again.",
        "## Averages of weights",
        "If the weights move around a good place, why not take the middle? Keep an exponentially weighted average of the weights beside them, as in lesson 2. Training goes on with the weights themselves; the average is only for use. "
        "With a constant rate of 0.03 and warm-up the average has 0.13, where the weights have 0.22. That is about what the cosine and the straight line reach, and it does not take a known end.",
        "Where the rate has fallen, hardly anything is left to be averaged out: with the cosine the weights have 0.12, and their average has 0.12. The average has a length to tune as well. With a `decay` of 0.9 it spans ten steps, which is too short: 0.21. A long one remembers weights of long ago, "
        "which matters where training is slow: with a peak of 0.003 and a constant rate, with 0.98 it is 0.14, and with 0.99 it is 0.16.",
        "Schedule-Free optimizers go one step further. They take gradients between the weights and their average, and need no rate that falls and no known end: `steprule.ScheduleFreeAdamW`. A warm-up still helps them.",
        "Other orders of the mini-batches give other losses, by some hundredths, and more with a peak of 0.1. What is said here of the peak of 0.03 holds for each of four orders.",
    ],
    formulas={"SGD with an average of the weights": Averaged},
    sources=[learning_rate, linear, cosine, stable_then_down, ema],
    try_it=TRY_IT,
    output="""
constant: the weights are 0.57 off, their average 0.22
cosine: the weights are 0.17 off, their average 0.17
""",
    wrong=[
        "*Training stops before the schedule does.* Half-way through a cosine the rate is half of the peak, and the loss is not what it could be. Make the schedule as long as the training, or choose one that goes down when you say so.",
        "*Steps and epochs are mixed up.* A warm-up of 40 is short in steps and endless in epochs. Count what your program counts: `scheduler.step()` of torch once a step, or once an epoch.",
        "*Two peaks are compared under one schedule only.* The best peak of a constant rate need not be that of a cosine.",
        "*The average is far behind.* A decay of 0.9999 spans 10,000 steps. In a training of 5,000 steps more than half of it is the weights of the start. `Average(0.9999, warmup=True)` begins with shorter averages.",
        "*The average is used with the statistics of the weights.* Batch normalization keeps means and variances of what it has seen. They belong to the weights they were taken with, not to the average: "
        "compute them anew (`torch.optim.swa_utils.update_bn`).",
        "*Only the model is saved.* The average is in the state of the optimizer.",
    ],
    questions=questions,
    references=[
        "Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983: equation 5, the cosine.",
        "Goyal and others 2017, Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, arXiv:1706.02677: section 2.2, warm-up.",
        "H\u00e4gele and others 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, arXiv:2405.18392: a stable rate with a short decay, and averages of weights beside it.",
        "Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging, SIAM Journal on Control and Optimization 30(4).",
        "Defazio and others 2024, The Road Less Scheduled, arXiv:2405.15682: Schedule-Free, algorithm 1 and equation 7.",
    ],
    claims=claims,
    symbols={"average": "the average of the weights", "decay": "how much of the past the average keeps"},
    given=(5, 10, 5000, 0.99, 24, 400, 16, 0.03, 0.003, 0.01, 320, 40, 0.9, 0.9999, 10000, 0.02),
    about_code="The schedules are plain functions of the share of training that is done. An optimizer takes such a function of the step as its `lr`.",
    needs=("sklearn",),
)
