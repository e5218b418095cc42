"""Lesson 1: the gradient of a mini-batch against that of all the data, on handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.digits import digits
from steprule.lessons.follow import Array
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.pieces import Value
from steprule.rule import Rule
from steprule.rules.sgd import SGD

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LRS = (0.02, 0.05, 0.1, 0.2)
FIRST, LATER = "at the first step", "after 100 steps of all data"
TRAINED = {"batch 1": 1, "batch 16": 16, "batch 64": 64, "all data": None}
STEPS, EPOCHS, ARROWS, DRAWS = 400, 5, 20, 100


class Plain(Rule):
    """SGD without momentum and decay, to be printed."""

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1) -> Value:
        return SGD.function()(param, grad, None, step=1, lr=lr)[0]


def shares(weights: Array, inputs: Array) -> Array:
    """How likely each digit is, for each image: a model without hidden layers."""
    scores = inputs @ weights
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.array(powers / powers.sum(1, keepdims=True))


def loss(weights: Array) -> float:
    """The mean of -log of the share that the right digit gets, over all images."""
    inputs, labels = digits()
    return float(-np.log(np.maximum((shares(weights, inputs) * labels).sum(1), 1e-300)).mean())


def gradient(weights: Array, chosen: Any) -> Array:
    """The gradient of that loss over some of the images."""
    inputs, labels = digits()
    return np.array(inputs[chosen].T @ (shares(weights, inputs[chosen]) - labels[chosen]) / len(inputs[chosen]))


@cache
def train(name: str, lr: float) -> tuple[Array, Array]:
    """Steps of SGD from weights of 0: after how many the loss was looked at, and what it was."""
    from threadpoolctl import threadpool_limits  # which scikit-learn needs itself

    with threadpool_limits(1):  # for matrices as small as these further threads only wait for each other
        return _train(TRAINED[name], lr)


def _train(batch: int | None, lr: float) -> tuple[Array, Array]:
    count = len(digits().inputs)
    size = batch or count
    last = max(STEPS, EPOCHS * count // size)
    looks = {*np.linspace(0, STEPS, 81).astype(int), *np.linspace(0, EPOCHS * count // size, 81).astype(int)}
    random, weights = np.random.default_rng(0), np.zeros((65, 10))
    order = np.arange(0)
    seen = {0: loss(weights)}
    for step in range(1, last + 1):
        if len(order) < size:
            order = random.permutation(count)
        chosen, order = order[:size], order[size:]
        weights = SGD.function()(weights, gradient(weights, chosen), None, step=step, lr=lr)[0]
        if step in looks:
            seen[step] = loss(weights)
    return np.array(list(seen)), np.array(list(seen.values()))


class Spread(NamedTuple):
    """The gradients of all examples at one place.

    Attributes:
        each: one row for each.
        full: their mean.
        single: how far they lie from it, as a root mean square.
        plane: two directions as columns: along the mean, and across it where they lie furthest apart.
    """

    each: Array
    full: Array
    single: float
    plane: Array


@cache
def spread(place: str) -> Spread:
    """The gradients of single examples at the first step or later."""
    inputs, labels = digits()
    weights = np.zeros((65, 10))
    for _ in range(0 if place == FIRST else 100):
        weights = SGD.function()(weights, gradient(weights, slice(None)), None, step=1, lr=0.1)[0]
    errors = shares(weights, inputs) - labels
    each = (inputs[:, :, None] * errors[:, None, :]).reshape(len(inputs), -1)
    full = each.mean(0)
    along = full / np.linalg.norm(full)
    rest = each - full
    single = float(np.sqrt((rest**2).sum(1).mean()))
    rest = rest - np.outer(rest @ along, along)
    across = rest[0]
    for _ in range(30):  # what is longest along the direction of largest spread comes to lie in it
        across = rest.T @ (rest @ across)
        across = across / np.linalg.norm(across)
    return Spread(each, full, single, np.stack([along, across], axis=1))


def expected(place: str, batch: float) -> float:
    """How far a batch's gradient lies from the full one, as a root mean square: what single ones do, over sqrt(batch)."""
    return spread(place).single / math.sqrt(batch)


@cache
def drawn(place: str, batch: int) -> Array:
    """The gradients of batches drawn at random, with replacement."""
    each = spread(place).each
    random = np.random.default_rng(batch)
    counts = random.multinomial(batch, np.full(len(each), 1 / len(each)), size=DRAWS)
    return np.array(counts @ each / batch)


@cache
def measured(place: str, batch: int) -> float:
    """The same as `expected`, measured on the batches that were drawn."""
    return float(np.sqrt(((drawn(place, batch) - spread(place).full) ** 2).sum(1).mean()))


def _arrows(place: str, batch: int) -> Chart:
    """Gradients of batches as arrows from one point, and the full one."""
    plane = spread(place).plane
    tips = drawn(place, batch)[:ARROWS] @ plane
    full = spread(place).full @ plane
    shafts = [Line("", [0.0, x], [0.0, y], 0) for x, y in tips]
    ends = Line(f"{ARROWS} batches", tips[:, 0], tips[:, 1], 0, line=False, dots=True)
    whole = Line("all data", [0.0, full[0]], [0.0, full[1]], 1, dots=True)
    return Chart(
        "Gradients from the same weights, in 2 of 650 directions",
        Axis("along the gradient of all data", -3.5, 5),
        Axis("across it, where spread is largest", -3, 3),
        [*shafts, ends, whole],
        "none",
    )


def _losses(title: str, label: str, high: float, lr: float, examples: bool) -> Chart:
    count = len(digits().inputs)
    lines = []
    for style, (name, size) in enumerate(TRAINED.items()):
        steps, losses = train(name, lr)
        x = steps * (size or count) if examples else steps
        lines.append(Line(name, x[x <= high], losses[x <= high], style))
    return Chart(title, Axis(label, 0, high), Axis("loss over all data", 0.03, 5, log=True), lines)


def screen(batch: int, lr: float, place: str) -> Screen:
    """Gradients of batches, how far they lie apart, and what comes of it."""
    sizes = np.array(BATCHES, float)
    far = Chart(
        "How far a batch's gradient is off",
        Axis("batch size", 0.8, 640, log=True),
        Axis("distance from the full gradient", 0.05, 12, log=True),
        [
            Line("one over the root", sizes, [expected(place, size) for size in sizes], "faint"),
            Line("measured", sizes, [measured(place, size) for size in BATCHES], 0, line=False, dots=True),
            Line("your batch", [batch], [measured(place, batch)], 1, line=False, dots=True),
        ],
        "none",
    )
    count = len(digits().inputs)
    full = float(np.linalg.norm(spread(place).full))
    reading = (
        f"The gradient of all {count:,} images has length {number(full, 3)}. Batches of {batch} are typically {number(measured(place, batch), 3)} "
        f"off, {number(measured(place, batch) / full, 2)} times as much; the law of the root says "
        f"{number(expected(place, batch), 3)}. An epoch is {-(-count // batch):,} steps."
    )
    return Screen(
        [
            _arrows(place, batch),
            far,
            _losses("Loss by steps", "step", STEPS, lr, False),
            _losses("Loss by images looked at", "images", EPOCHS * count, lr, True),
        ],
        reading,
    )


def loss_after(name: str, lr: float, steps: int) -> float:
    """The loss after so many steps."""
    looked, losses = train(name, lr)
    return float(losses[list(looked).index(steps)])


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    alike = abs(loss_after("batch 64", 0.05, STEPS) / loss_after("all data", 0.05, STEPS) - 1) < 0.02
    choices = ("nearly the same loss", "a much lower loss with all data", "a much lower loss with batches of 64")
    return [
        Question(
            "You go from batches of 16 to batches of 64. By what is the distance of their gradients from the full one multiplied?",
            expected(FIRST, 64) / expected(FIRST, 16),
            "Four times as many examples, and the distance shrinks by the root of four.",
        ),
        Question(
            "Your batches have 8 examples, and you want gradients that are a tenth as far off. How many examples do you need?",
            (spread(FIRST).single / (expected(FIRST, 8) / 10)) ** 2,
            "A tenth of the distance takes a hundred times as many examples. That is why large batches pay off less and less.",
        ),
        Question(
            "Learning rate 0.05, 400 steps. What do you get with batches of 64, compared to all of the data in each step?",
            choices[0] if alike else choices[1],
            "At this learning rate the noise of 64 examples hardly matters, and each step takes a twentieth of the work.",
            choices,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    inputs, _ = digits()
    first, later = (float(np.linalg.norm(spread(place).full)) for place in (FIRST, LATER))
    return {
        "1,347 images": len(inputs),
        "650 weights": spread(FIRST).full.size,
        "has length 1.19": first,
        "single image is typically 7.6 off": expected(FIRST, 1),
        "16 images are 1.9 off": expected(FIRST, 16),
        "64 images 0.95": expected(FIRST, 64),
        "shrunk to 0.14": later,
        "still 2.9 off": expected(LATER, 1),
        "21 times as much": expected(LATER, 1) / later,
        "batches of 64 reach 0.22": loss_after("batch 64", 0.05, STEPS),
        "all data reach 0.22": loss_after("all data", 0.05, STEPS),
        "five epochs bring single images to 0.05": loss_after("batch 1", 0.05, EPOCHS * len(inputs)),
        "five steps with all data only to 1.98": loss_after("all data", 0.05, EPOCHS),
        "with single images the loss is 0.46": loss_after("batch 1", 0.2, 200),
        "after 200 steps and 1.30": loss_after("batch 1", 0.2, 400),
    }


LESSON = Lesson(
    title="Mini-batch noise",
    question="How can a few examples stand in for all of them, and what does it cost?",
    controls=[
        Control("examples in a batch", BATCHES, 16),
        Control("learning rate", LRS, 0.05, r"\eta", "lr"),
        Control("where the gradients are taken", (FIRST, LATER), FIRST),
    ],
    screen=screen,
    text=[
        "## Ask a few instead of all",
        "The gradient says, for each weight, how the loss changes when that weight grows. The loss is a mean over all examples. So the full "
        "gradient is a mean as well, and it takes a pass over all data. A mini-batch is a poll: draw a few examples at random and take the "
        "mean of *their* gradients. On average over all draws that is the full gradient. A single draw is off by some noise.",
        "The picture is of real data: 1,347 images of handwritten digits, and a model without hidden layers, 650 weights. The arrows are the gradients of "
        "20 batches, all from the same weights. You see two directions out of 650. In each of the others there is a little more noise, and the distances below count all of them.",
        "## The root of the batch size",
        "At the first step the full gradient has length 1.19. The gradient of a single image is typically 7.6 off, which is the root of the mean squared distance: nearly all of it is noise. "
        "Batches of 16 images are 1.9 off, those of 64 images 0.95. Four times as many examples halve the noise, wherever you are in training: it shrinks as one "
        "over the root of the batch size, the line in the second chart. (The examples are drawn independently here. Batches that take a large part of the data, and no example twice, are nearer still.) A larger batch gives a better gradient, and each further example helps less than the one before.",
        "## What noise does to training",
        "Look at the loss by steps. At learning rate 0.05, after 400 steps, batches of 64 reach 0.22 and all data reach 0.22. A step with 64 images takes a twentieth of "
        "the work, so the noise was nearly free. Now look at the loss by images looked at: five epochs bring single images to 0.05, and "
        "five steps with all data only to 1.98. Many rough steps beat a few exact ones.",
        "Noise has a price where the learning rate is large. Set it to 0.2: with single images the loss is 0.46 after 200 steps and 1.30 after 400. In "
        "these steps it does not settle, since each image pulls the weights its own way. With a smaller learning rate many noisy steps average out.",
        "## Near the end, a step is mostly noise",
        "Take the gradients after 100 steps. The full gradient has shrunk to 0.14, and single images are still 2.9 off, 21 times as much. The noise has shrunk as well, but the "
        "full gradient has shrunk faster. That is one reason to lower the learning rate towards the end (lesson 7), and one for the averages that are in nearly every "
        "optimizer. The next lesson is on averages that remember a single number.",
        "One thing the charts leave out: hardware. A graphics card often computes the gradient of 64 images in about the time of one. On such hardware compare losses by steps, not by images.",
    ],
    formulas={"SGD, as it is written": Plain},
    sources=[SGD.function()],
    try_it="""
import numpy as np
from sklearn.datasets import load_digits
from steprule.arrays import SGD

images, labels = load_digits(return_X_y=True)
images = images / 16  # another scale than in the charts, so other numbers

def gradient(weights, chosen):
    likely = np.exp(images[chosen] @ weights)
    likely /= likely.sum(1, keepdims=True)
    return images[chosen].T @ (likely - np.eye(10)[labels[chosen]]) / len(chosen)

random, weights = np.random.default_rng(0), np.zeros((64, 10))
full = gradient(weights, np.arange(len(images)))
for batch in (1, 16, 256):
    noise = 0
    for draw in range(2000):
        chosen = random.integers(0, len(images), batch)
        noise += ((gradient(weights, chosen) - full) ** 2).sum() / 2000
    print(batch, "noise squared, times the batch size:", round(batch * noise, 1))

optimizer = SGD([weights], lr=0.5)
for step in range(200):
    chosen = random.integers(0, len(images), 16)
    optimizer.step([gradient(weights, chosen)])
print("right:", round(((images @ weights).argmax(1) == labels).mean(), 2))
""",
    output="""
1 noise squared, times the batch size: 13.4
16 noise squared, times the batch size: 13.2
256 noise squared, times the batch size: 13.4
right: 0.95
""",
    wrong=[
        "*The batch grows and the learning rate stays.* With less noise a larger learning rate is possible, and fewer steps make an epoch. If you keep the "
        "learning rate, an epoch brings the weights less far. Multiplying it by the same factor as the batch size is a common first try for SGD.",
        "*Batches are not drawn at random.* Sorted data gives batches of one class, and their gradients are off in the same direction for "
        "many steps in a row. Shuffle before each epoch.",
        "*The loss of a batch is taken for the loss.* It is as noisy as the gradient. Compare losses over many batches, or the validation loss.",
        "*Gradients are added instead of averaged.* Then each step grows with the batch size, and a learning rate that suits batches of 16 is four times too large for batches of 64.",
    ],
    questions=questions,
    references=[
        "Robbins and Monro 1951, A Stochastic Approximation Method, Annals of Mathematical Statistics 22: steps along noisy values, and how they must shrink.",
        "Bottou, Curtis and Nocedal 2018, Optimization Methods for Large-Scale Machine Learning, arXiv:1606.04838: section 4.2, how noise and learning rate set the loss that is reached.",
        "McCandlish, Kaplan and Amodei 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162: section 2, from which batch size on noise no longer matters.",
    ],
    claims=claims,
    about_code="Only the line `return param - lr * grad, None` belongs to this lesson. With momentum and weight decay at 0 the rest does nothing; lessons 3 and 6 come back to it.",
    given=(7, 64, 20, 16, 400, 0.2, 100, 8),
    needs=("sklearn",),
)
