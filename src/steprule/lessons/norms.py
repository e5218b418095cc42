"""Lesson 12: how long weights get, what their length does to a step, and what a fixed norm does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from steprule import wrappers
from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.decay import Beside
from steprule.lessons.digits import Data, digits, mini_batches
from steprule.lessons.follow import Array, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.rule import Rule
from steprule.rules.adam import Adam, AdamW
from steprule.rules.sgd import SGD
from steprule.wrappers import hyperball
from steprule.wrapping import wrap

LRS = (0.01, 0.03, 0.1)
DECAYS = (0.1, 0.3, 1.0, 3.0)
STAYS, FALLS = "stays", "falls to a tenth"
STEPS, CUT, BATCH, SCALE, WINDOW = 500, 250, 32, 8.0, 10
BETAS = (0.9, 0.95)
FIXED = wrap(Adam, wrappers.hyperball)
SHORT = wrap(SGD, wrappers.hyperball)
"""Hyperball around the shortest rule, to be printed."""


def lengths(weights: Array) -> Array:
    """The norm of each matrix of a stack."""
    return np.array(np.sqrt((weights * weights).sum((-2, -1), keepdims=True)))


def _shares(weights: Array, inputs: Array) -> Array:
    """How likely each digit is, by the direction of the weights alone."""
    scores = inputs @ (SCALE * weights / lengths(weights))
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.array(powers / powers.sum(-1, keepdims=True))


def loss(weights: Array, data: Data) -> Array:
    """The mean of -log of the share that the right digit gets."""
    return np.array(-np.log((_shares(weights, data.inputs) * data.labels).sum(-1)).mean(-1))


def gradient(weights: Array, data: Data) -> Array:
    """The gradient of that loss: what is left of the one of the direction once its part along the weights is taken out."""
    length = lengths(weights)
    direction = weights / length
    whole = SCALE * data.inputs.T @ ((_shares(weights, data.inputs) - data.labels) / len(data.inputs))
    return np.array((whole - direction * (direction * whole).sum((-2, -1), keepdims=True)) / length)


def begin() -> Array:
    """The first weights."""
    return np.random.default_rng(1).standard_normal((65, 10)) / math.sqrt(65)


def batch_gradient(weights: Array, step: int) -> Array:
    """The gradient of the step's mini-batch."""
    return gradient(weights, mini_batches(STEPS, BATCH)[step - 1])


def _rate(lr: Any, after: str) -> Callable[[int], Any]:
    return lambda step: lr * (0.1 if after == FALLS and step > CUT else 1.0)


@cache
def decayed(after: str) -> Array:
    """The weights of AdamW on the way, for each step, weight decay (none comes first) and learning rate."""
    decays = np.array([0.0, *DECAYS])[:, None, None, None]
    start = np.tile(begin(), (len(decays), len(LRS), 1, 1))
    lr = np.array(LRS)[:, None, None]
    settings = {"lr": _rate(lr, after), "weight_decay": decays, "betas": BETAS}
    return follow(AdamW, start, batch_gradient, STEPS, **settings).params


@cache
def fixed(lr: float, after: str) -> Array:
    """The weights of Adam with a fixed norm on the way."""
    settings = {"lr": _rate(lr, after), "betas": BETAS}
    return follow(FIXED, begin(), batch_gradient, STEPS, **settings).params


def way(lr: float, weight_decay: float, after: str) -> Array:
    """The weights of AdamW on the way, with this learning rate and weight decay."""
    return np.array(decayed(after)[:, [0.0, *DECAYS].index(weight_decay), LRS.index(lr)])


def moved(weights: Array) -> Array:
    """Update to weight in each step."""
    return np.array((lengths(np.diff(weights, axis=0)) / lengths(weights[1:])).ravel())


def balance(lr: float, weight_decay: float, beta1: float = 0.0) -> float:
    """The update to weight at which steps lengthen weights as much as decay shortens them; beta1 is Adam's."""
    return math.sqrt(2 * lr * weight_decay * (1 - beta1) / (1 + beta1))


def share(weights: Array, first: int, last: int = STEPS) -> float:
    """The mean update to weight in these steps, in percent."""
    return 100 * float(moved(weights[first : last + 1]).mean())


def screen(lr: float, weight_decay: float, after: str) -> Screen:
    """Norms, update to weight, and the loss: without decay, with it, and with a fixed norm."""
    ways = {
        "no decay": way(lr, 0.0, after),
        "decay": way(lr, weight_decay, after),
        "fixed norm": fixed(lr, after),
    }
    styles = dict(zip(ways, (5, 1, 0), strict=True))
    looks = np.arange(0, STEPS + 1, WINDOW)
    middles = looks[1:] - WINDOW // 2
    time = Axis("step", 0, STEPS)
    long = Chart(
        "How long the weights are",
        time,
        Axis("norm of the weights", 0.2, 50, log=True),
        [Line(name, looks, lengths(one).ravel()[looks], styles[name]) for name, one in ways.items()],
    )
    expected = [balance(_rate(lr, after)(step), weight_decay, BETAS[0]) for step in middles]
    shares = {name: moved(one).reshape(-1, WINDOW).mean(1) for name, one in ways.items()}
    far = Chart(
        f"How far they move, means of {WINDOW} steps",
        time,
        Axis("norms: update / weights", 1e-4, 1, log=True),
        [
            Line("balance", middles, expected, "faint"),
            *(Line(name, middles, one, styles[name]) for name, one in shares.items()),
        ],
    )
    falling = Chart(
        "The validation loss",
        time,
        Axis("loss", 0.1, 10, log=True),
        [Line(name, looks, loss(one[looks], digits(True)), styles[name]) for name, one in ways.items()],
    )
    norms = [number(float(lengths(one)[-1].item()), 3) for one in ways.values()]
    moves = [number(share(one, STEPS - 50), 2) for one in ways.values()]
    ends = [f"{float(loss(one[-1], digits(True))):.3f}" for one in ways.values()]
    reading = (
        f"The weights begin with norm {number(float(lengths(begin()).item()), 3)}. At the end it is {norms[0]} without decay, {norms[1]} with it and {norms[2]} with "
        f"a fixed norm. In the last 50 steps an update is {moves[0]}%, {moves[1]}% and {moves[2]}% as long as the weights; decay is in balance at "
        f"{number(100 * expected[-1], 2)}%. The loss ends at {ends[0]}, {ends[1]} and {ends[2]}."
    )
    return Screen([long, far, falling], reading)


def longer(length: float, step: float) -> float:
    """The length of weights after a step across them."""
    after = follow(SGD, [[length, 0.0]], lambda w, _: [[0.0, -step]], 1, lr=1.0).params[-1]
    return float(lengths(after).item())


def across(kind: str, factor: float) -> float:
    """Update to weight in the first step, where weights that only count by their direction are so many times as long."""
    rule: type[Rule] = AdamW if kind == "AdamW" else FIXED
    settings: dict[str, Any] = {"weight_decay": 0.0} if kind == "AdamW" else {}
    steps = follow(rule, factor * begin(), batch_gradient, 1, lr=0.01, **settings)
    return float(moved(steps.params)[0])


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    sizes = ("nothing: the share stays", "it becomes half as large", "it becomes a quarter as large")
    ratio = round(across("AdamW", 1.0) / across("AdamW", 2.0))
    return [
        Question(
            "Weights have norm 4. A step of length 3 goes straight across them, and there is no decay. What is their norm then?",
            longer(4.0, 3.0),
            "Across means at a right angle, so 16 and 9 add up to 25. Each such step makes weights longer, whatever its sign.",
        ),
        Question(
            "AdamW without momentum (\u03b2\u2081 = 0), learning rate 0.01, weight decay 0.5, and gradients always across the weights. After a long time, how long is an "
            "update, divided by the weights?",
            balance(0.01, 0.5),
            "The root of 2 times 0.01 times 0.5. How large gradients are does not matter.",
        ),
        Question(
            "A normalization layer follows, so that only the direction of the weights counts. You begin with weights twice as long. What "
            "happens to the share that Adam's first step moves them by?",
            sizes[{1: 0, 2: 1, 4: 2}[ratio]],
            "Adam's first step is as long as before, since it does not depend on the size of the gradient, and the weights are twice as long. With "
            "a fixed norm the share would stay: it is the learning rate.",
            sizes,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    bare, decays, held = way(0.03, 0.0, STAYS), way(0.03, 0.3, STAYS), fixed(0.03, STAYS)
    fallen, follows = way(0.03, 0.3, FALLS), fixed(0.03, FALLS)
    held_out = digits(True)
    return {
        "from 3.04": float(lengths(bare)[0].item()),
        "to 15.3": float(lengths(bare)[-1].item()),
        "is 1.7% as": share(bare, 130, 170),
        "and at the end 1.1%": share(bare, STEPS - 50),
        "predicts 3.1%": 100 * balance(0.03, 0.3, 0.9),
        "measured are 3.0%": share(decays, 200),
        "a factor of 0.23": balance(1.0, 1.0, 0.9) / balance(1.0, 1.0),
        "and decay 1 predict 3.2%": 100 * balance(0.01, 1.0, 0.9),
        "and give 3.1%": share(way(0.01, 1.0, STAYS), 200),
        "that is 56 steps": 1 / (2 * 0.03 * 0.3),
        "norm is 3.04 in every": float(lengths(held).max()),
        "no share above 3.0%": 100 * float(moved(held).max()),
        "the fixed norm is 0.28%": share(follows, CUT, CUT + 1),
        "that of decay 0.29%": share(fallen, CUT, CUT + 1),
        "stays there, at 0.30%": share(follows, STEPS - 50),
        "balance is at 0.97%": 100 * balance(0.003, 0.3, 0.9),
        "goes from 4.61": float(lengths(fallen)[CUT].item()),
        "to 3.80": float(lengths(fallen)[-1].item()),
        "at the end is 0.43%": share(fallen, STEPS - 50),
        "takes about 556 steps": 1 / (2 * 0.003 * 0.3),
        "the loss ends at 0.131": float(loss(follows[-1], held_out)),
        "with decay at 0.138": float(loss(fallen[-1], held_out)),
        "without both at 0.132": float(loss(way(0.03, 0.0, FALLS)[-1], held_out)),
        "9 add up to 25": longer(4.0, 3.0) ** 2,
    }


LESSON = Lesson(
    title="Weight decay's balance and fixed norms",
    question="How long do weights get, and what does their length do to a step?",
    controls=[
        Control("learning rate", LRS, 0.03, r"\eta", "lr"),
        Control("weight decay", DECAYS, 0.3, r"\lambda", "weight_decay"),
        Control(f"the learning rate after step {CUT}", (STAYS, FALLS), STAYS),
    ],
    screen=screen,
    text=[
        "## Only the direction counts",
        "Most matrices of a large network are followed by a normalization layer, which divides what they give by its size. Make such weights twice as long, and the network gives the same as before. The "
        "model above is the smallest of this kind: it reads digits with one layer, whose weights are divided by their norm (the root of the sum of their squares) first.",
        "What a step does then is to turn the weights. The angle is about the norm of the update divided by that of the weights, the share of lesson 8. So the learning rate alone does not say how fast such weights learn. Their length is "
        "the other half of it.",
        "## Without decay, weights grow",
        "A loss that does not change along the weights has a gradient across them, at a right angle. A step across makes weights longer, as the longest side of a right triangle is longer than each of the others. With learning rate 0.03 and no decay the norm goes from 3.04 "
        "to 15.3 (the gray line). An update around step 150 is 1.7% as long as the weights, and at the end 1.1%, though the learning rate has not changed. Growing weights are a "
        "schedule that nobody wrote.",
        "## With decay, a balance",
        "Weight decay shortens the weights by the share \u03b7 \u03bb in each step. Steps lengthen them the more, the shorter they are. So the norm comes to a balance, where both are equal. Without momentum the share is then `sqrt(2 * lr * weight_decay)`. "
        "Momentum makes single updates shorter, as they are means, and successive ones alike; with `betas[0]` at 0.9 that is a factor of 0.23. For learning rate 0.03 and decay 0.3 this "
        "predicts 3.1%; measured are 3.0%. Neither the loss nor the size of the gradients plays a part.",
        "Only the product of the two counts: learning rate 0.01 and decay 1 predict 3.2% and give 3.1%. So for such weights decay does not make the model simpler. It sets how fast they turn, and how soon the balance is there: in about `1 / (2 * lr * weight_decay)` steps, "
        "that is 56 steps here. With small values of both, training ends before.",
        "## A fixed norm",
        "Hyperball leaves out the detour. It takes the direction of any rule's update, here Adam's, makes it as long as the learning rate times the norm that the weights began with, adds it, and scales the weights back to that norm. The "
        "norm is 3.04 in every step, and no share above 3.0% occurs: the learning rate is the share. (Where a step is not straight across, the share is a little smaller.) There is no weight decay to choose, and no time until a balance.",
        "## When the learning rate falls",
        "Choose *falls to a tenth*. The shares fall with it: in the next step that of the fixed norm is 0.28%, that of decay 0.29%. The fixed norm stays there, at 0.30%. Decay does not: its next balance is at 0.97%, and for that the weights must become shorter. "
        "From step 250 to step 500 their norm goes from 4.61 to 3.80, and the share at the end is 0.43%. To get to the balance takes about 556 steps, since decay is slower too.",
        "## Is it better?",
        "Here hardly: when the learning rate falls, the loss ends at 0.131, with decay at 0.138, and without both at 0.132. Each has its best learning rate elsewhere, and this is one small model. What a fixed norm gives for certain is a learning rate that means something: the same "
        "angle in the first step and in the last, in a narrow layer and in a wide one.",
    ],
    formulas={"AdamW": Beside, "A fixed norm, around SGD": SHORT},
    sources=[AdamW.function(), hyperball],
    try_it="""
import numpy as np
from steprule.arrays import AdamW
from steprule.wrappers import hyperball

random = np.random.default_rng(0)

def across(weights):
    noise = random.standard_normal(weights.shape)
    return noise - weights * (noise * weights).sum() / (weights**2).sum()

for decay in (0.0, 0.5, 2.0, None):
    weights, radius = random.standard_normal((20, 20)), 0.0
    optimizer = AdamW([weights], lr=0.01, betas=(0.0, 0.99), weight_decay=decay or 0.0)
    for step in range(1000):
        before = weights.copy()
        if decay is None:
            change, radius = hyperball(across(weights), weights, radius, lr=0.01)
            weights += change
        else:
            optimizer.step([across(weights)])
    norm = np.linalg.norm(weights)
    print(f"decay {decay}: norm {norm:.1f}, update / weights {np.linalg.norm(weights - before) / norm:.3f}")
""",
    output="""
decay 0.0: norm 20.9, update / weights 0.010
decay 0.5: norm 2.0, update / weights 0.096
decay 2.0: norm 1.0, update / weights 0.201
decay None: norm 18.1, update / weights 0.010
""",
    wrong=[
        "*Weight decay is set to 0, because the model does not overfit.* Where normalization follows, the weights then grow and the updates shrink in comparison. If that is what you want, say so in the schedule.",
        "*A learning rate is carried from AdamW to a fixed norm.* There it is a share of the norm, in one it is a distance for each weight. Look at the share that AdamW settles at, and begin with that.",
        "*Every parameter gets a fixed norm.* Gains of normalization layers, biases and the last layer mean something by their length, and a bias that begins at 0 has none. Wrap the rule of the hidden matrices.",
        "*The learning rate is tuned, then the decay, one after the other.* In the balance only their product counts. Make one 10 times as large and the other a tenth, and the balance is the same; only the way there differs.",
    ],
    questions=questions,
    references=[
        "van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, arXiv:1706.05350: the effective learning rate.",
        "Kosson, Messmer and Jaggi 2024, Rotational Equilibrium, arXiv:2305.17212: the balance, for SGD, AdamW and Lion.",
        "Wen and others 2026, Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization, arXiv:2606.16899: hyperball.",
    ],
    claims=claims,
    given=(8, 150, 250, 500, 0.03, 0.9, 0.01, 10, 4, 16, 0.5),
    needs=("sklearn",),
    symbols={"radius": "the norm that the weights began with"},
)
