"""Lesson 10: Muon: singular values, Newton-Schulz, and what both do for rare letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons import letters
from steprule.lessons.follow import Array, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.letters import LETTERS
from steprule.matrix import oracle
from steprule.pieces import Value, polar
from steprule.rule import Rule
from steprule.rules.adam import Adam
from steprule.rules.muon import Muon
from steprule.rules.sgd import SGD

FIRST = (1.5, 1.875, 2.5, 3.4445)
SECOND = (-0.5, -1.25, -3.0, -4.775)
THIRD = (0.0, 0.375, 1.0, 2.0315)
COUNTS = (1, 2, 3, 5, 8)
OWN, CLASSIC, CUBIC = (3.4445, -4.775, 2.0315), (1.875, -1.25, 0.375), (1.5, -0.5, 0.0)
"""Coefficients: Muon's, and the classical ones of degree 5 and of degree 3."""
STEPS, NOISY_STEPS, LR = 10, 100, 6.0
RARE, COMMON = 15, 50
PLACES = np.linspace(0, 1, 81) ** 2
MUON = {"momentum": 0.9, "weight_decay": 0.0}
SETTINGS: Mapping[str, tuple[type[Rule], float, Mapping[str, Any]]] = {
    "SGD": (SGD, 12.5, {"momentum": 0.9, "dampening": 0.9}),
    "Adam": (Adam, 0.125, {}),
    "norm alone": (Muon, 0.75, {**MUON, "ns_coefficients": (1.0, 0.0, 0.0), "ns_steps": 1}),
    "Muon": (Muon, 0.375, MUON),
}
"""The rule of each name, the least of six learning rates, and other settings. "norm alone" is Muon whose polynomial is x itself."""


class Plain(Rule):
    """Muon without weight decay and without Nesterov's look ahead, its coefficients by name."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, *, lr: float = 1e-3, momentum: float = 0.95, a: float = 3.4445,
        b: float = -4.775, c: float = 2.0315, ns_steps: int = 5,
    ) -> tuple[Value, ...]:  # fmt: skip
        settings = {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "nesterov": False}
        return tuple(Muon.function()(param, grad, exp_avg, ns_coefficients=(a, b, c), ns_steps=ns_steps, **settings))


# The model


@cache
def vectors() -> Array:
    """A vector for each letter, as rows: of length 1, at right angles, and along no axis."""
    return np.array(np.linalg.qr(np.random.default_rng(0).standard_normal((LETTERS, LETTERS)))[0])


@cache
def whole() -> Array:
    """How often each letter follows each, in all of the text."""
    return letters.counts(letters.all_pairs())


@cache
def frequency() -> Array:
    """How often each letter that occurs does."""
    times = whole().sum(1)
    return np.array(times[times > 0])


def gradient(weights: Array, found: Array, rows: Array) -> Array:
    """The gradient of the model whose scores are the letter's vector times the weights."""
    return np.array(rows.T @ letters.gradient(rows @ weights, found))


@cache
def batches() -> list[Array]:
    """Mini-batches, as counts."""
    return letters.mini_batches(letters.all_pairs(), NOISY_STEPS)


def train(name: str, lr: float, noisy: bool = False, one_hot: bool = False, **settings: Any) -> Array:
    """How far the loss of each letter is above its least after training, with a learning rate that falls to 0.

    Args:
        name: the rule and its settings.
        lr: the first learning rate.
        noisy: whether it trains on mini-batches, and not on the whole text.
        one_hot: whether a letter's vector is one axis.
        settings: other settings.
    """
    rule, _, usual = SETTINGS[name]
    found = batches() if noisy else [whole()] * STEPS
    rows = np.eye(LETTERS) if one_hot else vectors()
    way = follow(
        rule, np.zeros((LETTERS, LETTERS)), lambda w, step: gradient(w, found[step - 1], rows), len(found),
        lr=lambda step: lr * (1 - (step - 1) / len(found)), **{**usual, **settings},
    )  # fmt: skip
    return letters.excess(rows @ way.params[-1], whole())


@cache
def best(name: str, noisy: bool = False, one_hot: bool = False, **settings: Any) -> Array:
    """What training leaves with the best of six learning rates, each twice the one before."""
    lrs = [SETTINGS[name][1] * 2**power for power in range(6)]
    return min((train(name, lr, noisy, one_hot, **settings) for lr in lrs), key=mean)


def mean(left: Array) -> float:
    """The mean over the text of what is left."""
    return float((left * frequency()).sum() / frequency().sum())


def rare(left: Array) -> float:
    """The mean over rare letters."""
    return float(left[frequency() < RARE].mean())


def common(left: Array) -> float:
    """The mean over common letters."""
    return float(left[frequency() >= COMMON].mean())


# What the charts show


def singular(matrix: Array) -> Array:
    """The singular values of a matrix divided by its norm."""
    return np.array(np.linalg.svd(matrix / np.linalg.norm(matrix), compute_uv=False))


def after(values: Any, coefficients: Any, steps: int) -> Array:
    """What steps of Newton-Schulz make of singular values; infinite beyond all charts."""
    with np.errstate(all="ignore"):
        found = oracle.singular_values(np.array(values), coefficients, steps)
        return np.where(np.abs(found) < 1e6, found, np.inf)


def is_usable(coefficients: Any, steps: int) -> bool:
    """Whether singular values stay small enough for training."""
    return bool(np.abs(after(PLACES, coefficients, steps)).max() < 10)


@cache
def seen() -> tuple[Array, Array]:
    """A gradient and the momentum after 40 steps of Muon with mini-batches."""
    start, few = np.zeros((LETTERS, LETTERS)), batches()
    way = follow(Muon, start, lambda w, step: gradient(w, few[step - 1], vectors()), 40, lr=0.3, nesterov=False)
    return np.array(way.grads[-1]), np.array(way.states["momentum_buffer"][-1])


def first_moves(coefficients: Any = (1.0, 0.0, 0.0), steps: int = 1) -> Array:
    """How far the first step moves the scores of each letter, with those of the most frequent as 1; by default that of SGD."""
    update = polar(gradient(np.zeros((LETTERS, LETTERS)), whole(), vectors()), coefficients, steps)
    moves = np.linalg.norm(vectors() @ update, axis=1)[whole().sum(1) > 0]
    return np.array(moves / moves[frequency().argmax()])


def by_letter(title: str, up: Axis, dots: Mapping[str, Array]) -> Chart:
    """A dot for each letter, from rare to common."""
    across = Axis("how often the letter occurs", 0.8, 250, log=True)
    styles = {"SGD": 1, "Adam": 2, "norm alone": 4}
    lines = [Line(name, frequency(), one, styles.get(name, 0), line=False, dots=True) for name, one in dots.items()]
    return Chart(title, across, up, lines, "none")


def screen(a: float, b: float, c: float, ns_steps: int) -> Screen:
    """The polynomial, singular values, first moves of letters, and what is left to learn."""
    coefficients = (a, b, c)
    all_steps = after(PLACES, coefficients, ns_steps)
    one = Chart(
        "What becomes of a singular value",
        Axis("singular value before", 0, 1),
        Axis("after", -0.5, 1.75),
        [
            Line("as it was", PLACES, PLACES, "faint"),
            Line("one step", PLACES, after(PLACES, coefficients, 1), 5),
            Line("all steps", PLACES, all_steps, 0),
        ],
    )
    grad, momentum = map(singular, seen())
    update = np.sort(np.abs(after(momentum, coefficients, ns_steps)))[::-1]
    places = np.arange(1, LETTERS + 1)
    spectrum = Chart(
        "Singular values, from the largest on",
        Axis("which one", 1, LETTERS),
        Axis("singular value", 1e-4, 10, log=True),
        [
            Line("gradient", places, grad, 1),
            Line("momentum", places, momentum, 2),
            Line("update", places, update, 0),
        ],
    )
    usable = is_usable(coefficients, ns_steps)
    moves = first_moves(coefficients, ns_steps) if usable else np.full(len(frequency()), np.nan)
    left = train("Muon", LR, ns_coefficients=coefficients, ns_steps=ns_steps) if usable else moves
    yours = "Muon, with your coefficients"
    up = Axis("share of the most frequent letter's", 1e-3, 10, log=True)
    first = by_letter("How far the first step moves a letter's scores", up, {"SGD": first_moves(), yours: moves})
    up = Axis("loss above the least that there is", 1e-3, 10, log=True)
    others = {name: best(name) for name in ("SGD", "Adam", "norm alone")}
    last = by_letter(f"What is left to learn after {STEPS} steps", up, {**others, yours: left})
    reading = "After 1 step " if ns_steps == 1 else f"After {ns_steps} steps "
    if usable:
        reading += (
            f"{(update > 0.1).sum()} of {LETTERS} singular values of the momentum are above 0.1, and the largest is {number(update[0], 3)}. "
            f"After {STEPS} steps of training at learning rate {number(LR)} the rare letters, those that occur less than {RARE} times, are {number(rare(left), 2)} "
            f"above their least loss; {', '.join(f'with {name} {number(rare(one), 2)}' for name, one in others.items())}."
        )
    else:
        largest = float(np.abs(all_steps).max())
        size = number(largest, 2) if largest < np.inf else "more than a million"
        reading += f"some singular value is {size} in size: such an update is of no use, and no training is shown."
    return Screen([one, spectrum, first, last], reading)


# Texts


def needed(coefficients: Any, value: float, goal: float) -> int:
    """How many steps a singular value takes to pass the goal."""
    return next(count for count in range(1, 99) if after(value, coefficients, count) > goal)


def step_length(size: float) -> float:
    """How long Muon's first step is with a gradient of this size."""
    grad = size * (np.eye(3) + 0.5)
    return float(np.linalg.norm(follow(Muon, np.zeros((3, 3)), lambda w, _: grad, 1, lr=1.0).params[-1]))


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    sizes = ("They stay as they are", "They become 10 times as long", "They become 100 times as long")
    return [
        Question(
            "The coefficients are 1.5, \u22120.5 and 0. What does one step make of a singular value of 0.2?",
            float(after(0.2, CUBIC, 1)),
            "1.5 times 0.2 is 0.3, and 0.5 times the cube of 0.2 is 0.004.",
            within=0.002,
        ),
        Question(
            "With 1.875, \u22121.25 and 0.375 a small singular value becomes 1.875 times as large in a step. How many steps take 0.001 past 0.4?",
            needed(CLASSIC, 0.001, 0.4),
            "It has to grow to 400 times its size, and 1.875 to the power of 10 is the first that is larger.",
            within=0.001,
        ),
        Question(
            "You multiply the loss, and so every gradient, by 10. What happens to the steps of Muon?",
            sizes[[1, 10, 100].index(round(step_length(10.0) / step_length(1.0)))],
            "The momentum is divided by its norm before anything else. Only its directions are left.",
            sizes,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    grad, momentum = map(singular, seen())
    inside = after(np.linspace(0.01, 1, 2000), OWN, 5)
    return {
        "Of the gradient 8": float((grad < 1e-9).sum()),
        "the largest is 0.80": momentum[0],
        "and the median 0.036": float(np.median(momentum)),
        "(The last 2": float((momentum < 1e-9).sum()),
        "what is no letter, 178": whole()[0].sum(),
        "and `z`, 1": whole()[26].sum(),
        "moves by 0.024 of": float(first_moves().min()),
        "no letter less than 0.25": float(first_moves(OWN, 5).min()),
        "leaves 1 as 1": float(after(1.0, CLASSIC, 8)),
        "needs 10 steps": needed(CLASSIC, 0.001, 0.4),
        "are past it after 5": needed(OWN, 0.001, 0.4),
        "makes 1 into 0.701": float(after(1.0, OWN, 1)),
        "from 0.01 on end between 0.68": float(inside.min()),
        "and 1.13": float(inside.max()),
        "Of the momentum 22": float((after(momentum, OWN, 5) > 0.6).sum()),
        "have 320": len(LESSON.positions()),
        "and in 153": sum(not is_usable((a, b, c), steps) for a, b, c, steps in LESSON.positions()),
        "SGD leaves rare letters 1.84": rare(best("SGD")),
        "Adam 1.07": rare(best("Adam")),
        "and Muon 0.13": rare(best("Muon")),
        "SGD leaves common letters 0.314": common(best("SGD")),
        "and Muon 0.010": common(best("Muon")),
        "as they are, leaves 0.45": rare(best("norm alone")),
        "would leave 0.66": rare(train("SGD", 400)),
        "common ones 2.8": common(train("SGD", 400)),
        "Adam leaves 0.010": rare(best("Adam", one_hot=True)),
        "leaves 0.13 with": rare(best("Muon", one_hot=True)),
        "0.5 and 0 leaves 0.68": rare(train("Muon", LR, ns_coefficients=CUBIC, ns_steps=1)),
        "learning rate leaves 0.20": rare(best("Muon", ns_coefficients=CUBIC, ns_steps=1)),
        "is 0.081": mean(best("SGD", True)),
        "with Adam 0.070": mean(best("Adam", True)),
        "with the norm alone 0.065": mean(best("norm alone", True)),
        "and with Muon 0.066": mean(best("Muon", True)),
        "Without it Muon ends at 0.110": mean(best("Muon", True, momentum=0.0)),
        "cube of 0.2 is 0.004": 1.5 * 0.2 - float(after(0.2, CUBIC, 1)),
    }


LESSON = Lesson(
    title="Muon",
    question="What if a step went equally far in every direction of a matrix?",
    controls=[
        Control("coefficient of x:", FIRST, OWN[0], "a", "a"),
        Control("of x cubed:", SECOND, OWN[1], "b", "b"),
        Control("of x to the 5th:", THIRD, OWN[2], "c", "c"),
        Control("steps of Newton-Schulz", COUNTS, 5, r"\mathrm{ns\_steps}", "ns_steps"),
    ],
    screen=screen,
    text=[
        "## Singular values",
        "A weight matrix turns what comes in into what goes out. An update of it does so too: it takes some direction of the input, and adds a multiple of it along some direction of the output. Any matrix is a sum of such pairs of directions, which are at right angles to each "
        "other, each pair with a factor. The factors are the singular values. They say how far the update goes for each pair.",
        "The model above guesses the next letter of a text, the Zen of Python. Each of 27 letters (what is no letter, such as a space, counts as one) is a fixed vector of random direction; vectors are at right angles. The weights, 27 times 27, turn a letter's vector into 27 scores. The "
        "second chart shows the singular values of the gradient of a mini-batch, of the momentum and of the update, the first two divided by their norm.",
        "They are far from equal. Of the gradient 8 are 0: a letter that is not in the mini-batch has no direction in it. The momentum has seen more letters. Its values fall smoothly; the largest is 0.80 and the median 0.036. (The last 2 are 0, since two letters do not occur in the text.) "
        "A step along it goes far in a few directions and hardly anywhere in most.",
        "## Why large is not important",
        "In this model the gradient is a sum over letters: how often the letter comes, times how wrong its scores are, along its vector. So a large singular value means a frequent letter, not an important one. Most often comes what is no letter, 178 times, and `z`, 1 time, is the rarest. "
        "In the first step of SGD the letter that moves least moves by 0.024 of what the most frequent does: see the third chart. With Muon no letter less than 0.25 of that.",
        "Wang and others (below) report the same of language models: facts that the data seldom mentions are learned better with Muon than with Adam.",
        "## Newton-Schulz",
        "Muon makes all singular values about 1 and leaves the directions. A library function for singular values would do it, slowly. Newton-Schulz needs only products of matrices: it takes X, the momentum divided by its norm, and repeats `X = a X + (b A + c A A) X` with `A = X Xᵀ`. No singular "
        "value is known on the way, but each becomes `a x + b x**3 + c x**5`. That is the first chart. What a matrix goes through is what each number goes through.",
        "Near 0 only `a` counts: a small value becomes `a` times as large. And `a + b + c` is what becomes of 1. The classical coefficients are 1.875, \u22121.25 and 0.375. Their curve is flat at 1 and leaves 1 as 1, so that values come to rest there. But to bring 0.001 past 0.4 it needs 10 steps. With those of Muon, 3.4445, \u22124.775 "
        "and 2.0315, values are past it after 5. The price is that a step makes 1 into 0.701: values do not come to rest, and those from 0.01 on end between 0.68 and 1.13. For training that is equal enough. Of the momentum 22 of the 27 are above 0.6 then.",
        "Raise `c` or `b`, and many curves leave the chart: beyond some value a step makes large ones larger. The sliders have 320 positions, and in 153 of them the update is of no use. That is also why X is divided by its norm first. It makes all singular values 1 at most.",
        "## Rare letters learn too",
        "The last chart trains the model on the whole text, without noise, for 10 steps with a learning rate that falls to 0. For each letter it shows how far the loss is above the least that there is. With the best of six learning rates each, SGD leaves rare letters 1.84 above it, "
        "Adam 1.07 and Muon 0.13. (Rare means less than 15 times.) SGD leaves common letters 0.314 above it, and Muon 0.010. (Common means 50 times or more.)",
        "There are two reasons. Steps of Muon do not become shorter with the gradient. That much is had without Newton-Schulz: momentum that is divided by its norm, with singular values as they are, leaves 0.45. The rest of the way is due to equal singular values. "
        "Without them the learning rate must be small enough for frequent letters, and so is too small for rare ones: at 400 SGD would leave 0.66, and of common ones 2.8.",
        "Adam makes single weights equal, not directions. Here letters are mixed in all weights, and Adam cannot tell them apart: it is the turned ravine of lesson 4. If each letter's vector is an axis instead, so that a letter has weights of its own, Adam leaves 0.010. Muon does not care, and leaves 0.13 with "
        "these vectors as well.",
        "Your coefficients train at learning rate 6. There a single step with 1.5, \u22120.5 and 0 leaves 0.68 of the rare letters' loss. But do not believe that five steps are needed: the same single step at its own best learning rate leaves 0.20.",
        "## What noise changes",
        "With mini-batches of 64, and 100 steps, the loss of the text above its least is 0.081 with SGD, with Adam 0.070, with the norm alone 0.065 and with Muon 0.066. Nothing is left of the advantage: a small singular value may be a rare letter or "
        "noise, and Muon makes both large. Momentum takes noise out first, which is why Muon has it before the orthogonalization. Without it Muon ends at 0.110.",
    ],
    formulas={"Muon": Plain},
    sources=[Muon.function(), oracle.polar],
    try_it="""
import numpy as np
from steprule import polar
from steprule.arrays import Muon

random = np.random.default_rng(0)
gradient = random.standard_normal((6, 4)) * [10, 1, 0.1, 0.01]
print(np.linalg.svd(gradient, compute_uv=False).round(2))
for steps in (1, 3, 5, 8):
    print(steps, np.linalg.svd(polar(gradient, "keller", steps), compute_uv=False).round(2))

weights = np.zeros((6, 4))
optimizer = Muon([weights], lr=1.0, weight_decay=0.0)
optimizer.step([gradient])
print("update", np.linalg.svd(weights, compute_uv=False).round(2))
""",
    output="""
[2.553e+01 1.880e+00 1.900e-01 1.000e-02]
1 [0.7  0.25 0.03 0.  ]
3 [0.99 0.72 0.3  0.02]
5 [1.1  0.8  0.7  0.21]
8 [1.09 1.09 0.76 0.71]
update [1.35 0.98 0.86 0.26]
""",
    wrong=[
        "*A learning rate is carried from Adam.* An update's singular values are about 1, times a factor of the shape, whatever the gradient is. With `adjust_lr_fn=\"match_rms_adamw\"` it has the size of AdamW's updates, and takes about AdamW's learning rate.",
        "*Muon gets all parameters.* Vectors have no singular values. Embeddings and heads are usually left to AdamW: a row of an embedding that is not in the mini-batch should rest.",
        "*Several matrices are kept as one.* Query, key and value stacked into one matrix have singular values together. Divide such a parameter, or have it divided: `steprule.divide`.",
        "*The gradient is orthogonalized without momentum.* Directions that are only noise then get steps as long as the others.",
        "*A matrix comes in with singular values above 1.* Divide by the norm, and leave room for rounding: some coefficients have nothing to spare there.",
    ],
    questions=questions,
    references=[
        "Jordan and others 2024, Muon: An optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon: the algorithm and its coefficients.",
        "Bernstein and Newhouse 2024, Old Optimizer, New Norm, arXiv:2409.20325: why such a step is steepest descent in the spectral norm.",
        "Wang and others 2025, Muon Outperforms Adam in Tail-End Associative Memory Learning, arXiv:2509.26030: rare facts.",
        "Amsel and others 2025, The Polar Express, arXiv:2505.16932: the best coefficients for each step.",
    ],
    claims=claims,
    given=(27, 1.875, -1.25, 0.375, 0.001, 0.4, 3.4445, -4.775, 2.0315, 15, 50, 4, 64, 100, 1.5, -0.5, 0.3, 0.5, 0.6, 400, 6),
    symbols={
        "exp_avg": "the momentum, an average of gradients",
        "rows": "how many rows a matrix has", "cols": "how many columns it has", "a": "the first coefficient", "b": "the second coefficient", "c": "the third coefficient", "ns_steps": "how many steps",
    },
    in_code={"exp_avg": "momentum_buffer"},
    about_code="`polar` has the float64 version of what runs: rows and columns are exchanged where a matrix is tall. On a GPU the same products are computed in fewer bits.",
)  # fmt: skip
