"""Lesson 6: L2 regularization inside Adam, and weight decay beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from steprule.charts import Axis, Chart, Heat, Line, number
from steprule.lessons.follow import Array, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.letters import LETTERS, gradient, loss, mini_batches, parts
from steprule.pieces import Value, l2
from steprule.rule import Rule
from steprule.rules.adam import Adam, AdamW
from steprule.rules.sgd import SGD

LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
DECAYS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
STEPS, TRAINING = 300, 200
SMALL, LARGE = 0.3, 3.0
L2, DECOUPLED = "L2", "decoupled"
RULES: Mapping[str, type[Rule]] = {L2: Adam, DECOUPLED: AdamW}


class Inside(Rule):
    """Adam with L2 regularization, without its other options."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1,
    ) -> tuple[Value, ...]:  # fmt: skip
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        return tuple(Adam.function()(param, grad, exp_avg, exp_avg_sq, None, step=step, **settings)[:3])


class Beside(Rule):
    """AdamW, without its other options."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.1,
    ) -> tuple[Value, ...]:  # fmt: skip
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        return tuple(AdamW.function()(param, grad, exp_avg, exp_avg_sq, None, step=step, **settings)[:3])


@cache
def norms(kind: str, lr: float, weight_decay: float) -> Array:
    """What is left of two groups of weights, with small and with large gradients, before and after each step.

    The weights begin at 1, and their gradients are noise: nothing is to be learned. The noise of the large ones is that
    of the small ones, times 10.
    """
    noise = np.random.default_rng(0).standard_normal((STEPS, 1, 200)) * np.array([[SMALL], [LARGE]])
    start = np.ones((2, 200))
    way = follow(RULES[kind], start, lambda w, step: noise[step - 1], STEPS, lr=lr, weight_decay=weight_decay)
    return np.array(np.sqrt((way.params**2).mean(-1)))


@cache
def losses(kind: str) -> Array:
    """The validation loss of the model of letters, for each weight decay (rows) and learning rate (columns)."""
    pairs, held_out = parts()
    batches = mini_batches(pairs, TRAINING)
    way = follow(
        RULES[kind], np.zeros((len(DECAYS), len(LRS), LETTERS, LETTERS)), lambda w, step: gradient(w, batches[step - 1]), TRAINING,
        lr=np.array(LRS)[:, None, None], weight_decay=np.array(DECAYS)[:, None, None, None],
    )  # fmt: skip
    return loss(way.params[-1], held_out)


def best(kind: str) -> tuple[float, float, float]:
    """The least of the losses, the decay and the learning rate that it has."""
    grid = losses(kind)
    row, column = np.unravel_index(int(grid.argmin()), grid.shape)
    return float(grid[row, column]), DECAYS[int(row)], LRS[int(column)]


def best_decay(kind: str, lr: float) -> tuple[float, float]:
    """The least of the losses with this learning rate, and the decay that it has."""
    column = losses(kind)[:, LRS.index(lr)]
    return float(column.min()), DECAYS[int(column.argmin())]


def _heat(title: str, kind: str, lr: float, weight_decay: float) -> Chart:
    grid = losses(kind)
    logs = [1 / 10**0.25, 10**0.25]
    marks: list[Heat | Line] = [
        Heat("loss", LRS, DECAYS, list(grid), 2.5, 3.3),
        Line("", [lr], [weight_decay], "rim", line=False, dots=True),
        Line("your choice", [lr], [weight_decay], "here", line=False, dots=True),
    ]
    across = Axis("learning rate", LRS[0] * logs[0], LRS[-1] * logs[1], log=True)
    return Chart(
        title, across, Axis("weight decay", DECAYS[0] * logs[0], DECAYS[-1] * logs[1], log=True), marks, "none"
    )


def screen(lr: float, weight_decay: float) -> Screen:
    """What is left of weights, the same as a path, and two maps of the loss of a model."""
    inside, beside = (norms(kind, lr, weight_decay) for kind in RULES)
    steps = np.arange(STEPS + 1)
    left = Chart(
        "What is left of weights that are 1 at first",
        Axis("step", 0, STEPS),
        Axis("root mean square of the weights", 0, 1.5),
        [
            Line("L2, large gradients", steps[::5], inside[::5, 1], 1, short="L2, large"),
            Line("L2, small gradients", steps[::5], inside[::5, 0], 3, short="L2, small"),
            Line("decoupled, both alike", steps[::5], beside[::5, 0], 0, short="decoupled"),
        ],
    )
    share = Axis("weights with small gradients", 0, 1.25), Axis("weights with large gradients", 0, 1.25)
    paths = Chart(
        "Both groups of weights against each other",
        *share,
        [
            Line("alike", [0, 1.25], [0, 1.25], "faint"),
            Line("L2", inside[::5, 0], inside[::5, 1], 3, dots=True),
            Line("decoupled", beside[::5, 0], beside[::5, 1], 0, dots=True),
        ],
        "none",
    )
    place = DECAYS.index(weight_decay), LRS.index(lr)
    reading = (
        f"After {STEPS} steps L2 has left {number(inside[-1, 0], 2)} of the weights with small gradients and "
        f"{number(inside[-1, 1], 2)} of those with large ones; decoupled decay has left {number(beside[-1, 0], 2)} and "
        f"{number(beside[-1, 1], 2)}. The model of letters reaches a loss of {losses(L2)[place]:.3f} with L2 and "
        f"{losses(DECOUPLED)[place]:.3f} with decoupled decay."
    )
    maps = [
        _heat("Loss of a model of letters, L2", L2, lr, weight_decay),
        _heat("Loss of a model of letters, decoupled", DECOUPLED, lr, weight_decay),
    ]
    return Screen([left, paths, *maps], reading)


def idle(rule: type[Rule], weight_decay: float, steps: int = 10, lr: float = 0.01) -> float:
    """What is left of a weight of 1 whose gradient is 0."""
    return float(follow(rule, [1.0], lambda w, step: [0.0], steps, lr=lr, weight_decay=weight_decay).params[-1, 0])


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    both = norms(L2, 0.01, 0.1)[-1]
    alike = ("those with small gradients", "those with large gradients", "both alike")
    same = abs(sgd_two_ways(0.1) - 1) < 1e-12
    return [
        Question(
            "Adam with L2 regularization: which weights does it shrink more?",
            alike[0] if both[0] < both[1] else alike[1],
            "What L2 adds to a gradient is divided by the root of the mean square too. Where gradients are large, little is left of it.",
            alike,
        ),
        Question(
            "AdamW, learning rate 0.01 and weight decay 0.1. A weight of 1 has a gradient of 0. What is it after one step?",
            idle(AdamW, 0.1, 1),
            "The learning rate times the weight decay is 0.001, and that share of the weight goes.",
            within=0.0005,
        ),
        Question(
            "Is L2 regularization the same as decoupled weight decay in SGD without momentum?",
            "yes" if same else "no",
            "SGD divides by nothing: the learning rate times the decay times the weight is subtracted in both cases.",
            ("yes", "no"),
        ),
    ]


def sgd_two_ways(weight_decay: float) -> float:
    """A weight of SGD with L2, divided by one that SGD steps and that then loses the share lr times decay."""
    inside = follow(SGD, [1.0], lambda w, step: [0.3], 1, lr=0.01, weight_decay=weight_decay).params[-1, 0]
    plain = follow(SGD, [1.0], lambda w, step: [0.3], 1, lr=0.01).params[-1, 0]
    return float(inside / (plain - 0.01 * weight_decay * 1.0))


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    inside, beside = norms(L2, 0.01, 0.1)[-1], norms(DECOUPLED, 0.01, 0.1)[-1]
    return {
        "L2 leaves 0.39": inside[0],
        "small gradients and 0.92": inside[1],
        "leaves 0.76 of both": beside.mean(),
        "in both maps, 2.50": (best(L2)[0] + best(DECOUPLED)[0]) / 2,
        "with L2 at learning rate 0.1": best(L2)[2],
        "a decay of 0.0003": best(L2)[1],
        "decoupled at learning rate 0.03": best(DECOUPLED)[2],
        "a decay of 0.1: these": best(DECOUPLED)[1],
        "learning rate of 1 the best that L2 can do is 2.76": best_decay(L2, 1.0)[0],
        "and decoupled decay 2.53": best_decay(DECOUPLED, 1.0)[0],
        "moves by 0.01 in each step": 1 - idle(Adam, 0.1, 1),
        "share of 0.001": 1 - idle(AdamW, 0.1, 1),
        "weight decay is 0.001": 1 - idle(AdamW, 0.1, 1),
    }


LESSON = Lesson(
    title="Weight decay and L2 regularization",
    question="Adding a multiple of each weight to its gradient makes the weights smaller. Why is that not weight decay in Adam?",
    controls=[
        Control("learning rate", LRS, 0.01, r"\eta", "lr"),
        Control("weight decay", DECAYS, 0.1, r"\lambda", "weight_decay"),
    ],
    screen=screen,
    text=[
        "## Two ways to make weights smaller",
        "A model that learns its examples by heart often needs large weights for it. There are two old ways to keep weights small. L2 regularization "
        "adds half the sum of their squares, times a factor, to the loss. That adds the factor times each weight to its gradient. Weight decay "
        "takes a share of each weight away in every step, whatever the gradient is. In SGD without momentum they are the same, if the share is the learning rate times the factor: try it on paper. In Adam they are not.",
        "## What Adam does to L2",
        "Adam divides by the root of the mean square of the gradient, and what L2 has added is divided with the rest. A weight "
        "with large gradients then decays slowly, and one with small gradients fast. In the first two charts, gradients are noise "
        "with nothing to learn: of size 3 for one group of weights, and of size 0.3 for the other. With learning rate 0.01 and weight decay "
        "0.1, L2 leaves 0.39 of the weights with small gradients and 0.92 of those with large ones. Decoupled decay, AdamW, "
        "leaves 0.76 of both: only the learning rate and the weight decay count. (Where the learning rate is large the lines go up again: noise alone makes weights larger.)",
        "The plainest case is a weight whose gradient is 0. L2 is then all that Adam sees, and Adam divides by its size: the weight "
        "moves by the learning rate in each step, however small the factor is. With the values above it moves by 0.01 in each step, where AdamW takes a share of 0.001.",
        "## What it does to a model",
        "The maps show a real, small model: which letter follows which in the Zen of Python (`import this`), 729 weights. It is trained on 600 pairs of "
        "letters for 200 steps, and the rest of the text gives the validation loss. Without decay it learns the pairs by heart. Dark is good.",
        "Compare the two maps. The least loss is the same in both maps, 2.50: decoupling does not give a better model here. But it lies elsewhere, with L2 at learning rate 0.1 and a decay of 0.0003, and decoupled at learning rate 0.03 and a decay of 0.1: these are numbers of different kinds, since what "
        "L2 does depends on how large the gradients are. At the far too large learning rate of 1 the best that L2 can do is 2.76, "
        "and decoupled decay 2.53. On large models the difference can be more, or less; measure it on yours.",
    ],
    formulas={"L2 inside Adam": Inside, "Decoupled: AdamW": Beside},
    sources=[Adam.function(), AdamW.function(), l2],
    try_it="""
import numpy as np
from steprule.arrays import Adam, AdamW

for make in (Adam, AdamW):
    for weight_decay in (0.1, 0.001):
        weight = np.ones(1)
        optimizer = make([weight], lr=0.01, weight_decay=weight_decay)
        for step in range(10):
            optimizer.step([np.zeros(1)])  # a gradient of 0
        print(make.__name__, weight_decay, weight.round(4))
""",
    output="""
Adam 0.1 [0.9003]
Adam 0.001 [0.9004]
AdamW 0.1 [0.99]
AdamW 0.001 [0.9999]
""",
    wrong=[
        "*`weight_decay` of Adam is taken for that of AdamW.* In torch.optim and here Adam's is L2. A value for one means nothing for the other.",
        "*The learning rate goes down, and the decay with it.* In AdamW as torch has it the share is the learning rate times the decay. A schedule "
        'that ends at 0 ends the decay, too. (Lesson 7 is on such plans for the learning rate.) `decay="independent"` takes the same share in every step, whatever the learning rate is.',
        "*Everything decays.* Numbers that are added in a layer (biases), and the scales of normalization layers, are usually left out. "
        '`steprule.create_optimizer(model, "adamw", weight_decay=0.1)` does so.',
        "*Decay is lost in bfloat16.* In this format of 16 bits a weight cannot show a change by a share of 0.001, and stays as it is: lesson 9.",
    ],
    questions=questions,
    references=[
        "Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101: algorithm 2, proposition 2, and figure 2 for such maps.",
        "Kingma and Ba 2015, Adam, arXiv:1412.6980: algorithm 1.",
    ],
    claims=claims,
    given=(7, 9, 0.3, 729, 600, 200, 16),
)
