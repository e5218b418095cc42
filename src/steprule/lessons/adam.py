"""Lesson 5: Adam, its two averages and their correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from steprule.charts import Axis, Chart, Line, number
from steprule.lessons.follow import Array, Way, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.letters import LETTERS, all_pairs, counts, gradient
from steprule.pieces import Value, debias, ema, ema_sq
from steprule.rule import Rule
from steprule.rules.adam import Adam, adam_direction

BETA1 = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
BETA2 = (0.9, 0.99, 0.999, 0.9999)
STEPS = 60
STEADY, NOISY, RARE, REAL = "always 1", "1 with noise", "1 in every 15th step", "a real weight"


class Corrected(Rule):
    """Adam without its options."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> tuple[Value, ...]:  # fmt: skip
        return tuple(
            Adam.function()(param, grad, exp_avg, exp_avg_sq, None, step=step, lr=lr, betas=betas, eps=eps)[:3]
        )


class Uncorrected(Rule):
    """The same as if very many steps had been taken, when nothing is left to be corrected."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> tuple[Value, ...]:  # fmt: skip
        return tuple(Adam.function()(param, grad, exp_avg, exp_avg_sq, None, step=1e9, lr=lr, betas=betas, eps=eps)[:3])


@cache
def real_gradients() -> Array:
    """The gradients of one weight of a small model of text: how likely an e comes after a b."""
    pairs = all_pairs()

    def grads(weights: Array, step: int) -> Array:
        return gradient(weights, counts(pairs[np.arange(32 * (step - 1), 32 * step) % len(pairs)]))

    return follow(Adam, np.zeros((LETTERS, LETTERS)), grads, STEPS, lr=0.1).grads[:, 2, 5]


@cache
def gradients(kind: str) -> Array:
    """One gradient for each step."""
    steps = np.arange(1, STEPS + 1)
    if kind == STEADY:
        return np.ones(STEPS)
    if kind == NOISY:
        return np.array(1 + 2 * np.random.default_rng(0).standard_normal(STEPS))
    if kind == RARE:
        return np.where(steps % 15 == 0, 1.0, 0.0)
    return np.array(real_gradients() / np.abs(real_gradients()).max())


@cache
def walk(rule: type[Rule], kind: str, beta1: float = 0.9, beta2: float = 0.999) -> Way:
    """A weight from 0 on, with a learning rate of 1: distances are in learning rates."""
    grads = gradients(kind)
    return follow(rule, [0.0], lambda w, step: [grads[step - 1]], STEPS, lr=1.0, betas=(beta1, beta2))


def subtracted(way: Way) -> Array:
    """What each step subtracts from the weight, in learning rates."""
    return np.array(-np.diff(way.params[:, 0]))


def screen(beta1: float, beta2: float, kind: str) -> Screen:
    """The gradients with what Adam keeps of them, the steps, and the weight."""
    way, without = (walk(rule, kind, beta1, beta2) for rule in (Corrected, Uncorrected))
    steps = np.arange(1, STEPS + 1)
    mean = [debias(m, beta1, int(t)) for m, t in zip(way.states["exp_avg"][:, 0], steps, strict=True)]
    mean_sq = [debias(v, beta2, int(t)) for v, t in zip(way.states["exp_avg_sq"][:, 0], steps, strict=True)]
    time = Axis("step", 0, STEPS)
    kept = Chart(
        "Gradients, and their averages after correction",
        time,
        Axis("gradient", -3, 5) if kind == NOISY else Axis("gradient", -1.5, 2.5),
        [
            Line("gradient", steps, gradients(kind), 5, line=False, dots=True),
            Line("mean", steps, mean, 0),
            Line("root of the mean square", steps, np.sqrt(mean_sq), 1, short="root"),
        ],
    )
    taken = [
        (name, subtracted(one), style)
        for name, one, style in (("without correction", without, 3), ("corrected", way, 0))
    ]
    far = Chart(
        "What a step subtracts",
        time,
        Axis("learning rates", -6, 8),
        [Line(name, steps, one, style, short=name.partition(" ")[0]) for name, one, style in taken],
    )
    where = Chart(
        "The weight",
        time,
        Axis("learning rates", -300, 150),
        [
            Line("without correction", [0, *steps], without.params[:, 0], 3, short="without"),
            Line("corrected", [0, *steps], way.params[:, 0], 0),
        ],
    )
    first, largest = (np.abs(subtracted(one)) for one in (way, without))
    begun = int(np.flatnonzero(first > 1e-6)[0])
    reading = (
        f"The first gradient that is not 0 comes in step {begun + 1} and moves the weight by {number(first[begun], 3)} learning "
        f"rates, without bias correction by {number(largest[begun], 3)}. The longest of {STEPS} steps is {number(first.max(), 3)} learning rates long, "
        f"without correction {number(largest.max(), 3)}."
    )
    return Screen([kept, far, where], reading)


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    grown = np.allclose(first_steps(0.5), first_steps(500.0))
    sizes = ("They stay nearly the same", "They become 1000 times as long", "They become about 32 times as long")
    return [
        Question(
            "Adam begins with learning rate 0.002 and its usual betas. The first gradient of a weight is -7. What is added "
            "to the weight?",
            float(follow(Adam, [0.0], lambda w, step: [-7.0], 1, lr=0.002).params[1, 0]),
            "Both corrected averages have seen one gradient: the mean is -7, the root of the mean square 7. The first step of "
            "Adam is the learning rate times the sign of the gradient, 0.002 times \u22121, and it is subtracted.",
        ),
        Question(
            "You multiply the loss by 1000. What happens to the steps of Adam?",
            sizes[0] if grown else sizes[1],
            "The mean and the root of the mean square grow alike, and their quotient stays. Only epsilon counts less.",
            sizes,
        ),
        Question(
            "Without bias correction, beta1 is 0 and beta2 is 0.99. How many learning rates long is the first step?",
            float(subtracted(walk(Uncorrected, STEADY, 0.0, 0.99))[0]),
            "The mean is the gradient itself. The mean square is 0.01 of the square, its root 0.1 of the gradient.",
        ),
    ]


def first_steps(size: float) -> Array:
    """Ten steps with gradients of a size, of changing sign."""
    return follow(Adam, [0.0], lambda w, step: [size * (-1) ** (step // 3)], 10).params


def restarted() -> float:
    """The step after very many gradients of 1, when the averages are kept and the number of steps begins anew."""
    weight, *_ = Adam.function()(0.0, 1.0, 1.0, 1.0, None, step=1, lr=1.0)
    return float(-weight)


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    without = subtracted(walk(Uncorrected, STEADY))
    rare = subtracted(walk(Corrected, RARE))
    real = gradients(REAL)
    agreeing = subtracted(walk(Corrected, STEADY))
    noisy = subtracted(walk(Corrected, NOISY))
    return {
        "every step is 1 learning rate": float(agreeing.mean()),
        "first step is 3.2": without[0],
        "6.6 learning rates": without.max(),
        "in step 12": float(without.argmax() + 1),
        "after 60 steps it is 5": float(
            -walk(Uncorrected, STEADY).params[-1, 0] / -walk(Corrected, STEADY).params[-1, 0]
        ),
        "moves the weight by 0.49": rare[14],
        "is 0 in 18": float((real == 0).sum()),
        "after 60 steps the weight has gone 36": float(-walk(Corrected, NOISY).params[-1, 0]),
        "shortest is 0.001": float(np.abs(noisy).min()),
        "as 0.1 of the first gradient": float(walk(Corrected, STEADY).states["exp_avg"][0, 0]),
        "as 0.001 of its square": float(walk(Corrected, STEADY).states["exp_avg_sq"][0, 0]),
        "mean square is 0.01": float(walk(Corrected, STEADY, 0.0, 0.99).states["exp_avg_sq"][0, 0]),
        "only 0.32 times": restarted(),
        "its root 0.1": float(walk(Corrected, STEADY, 0.0, 0.99).states["exp_avg_sq"][0, 0] ** 0.5),
    }


LESSON = Lesson(
    title="Adam",
    question="What do you get when you put momentum and RMSProp together, and why must it be corrected?",
    controls=[
        Control("memory of the mean", BETA1, 0.9, r"\beta_1", "beta1"),
        Control("memory of the mean square", BETA2, 0.999, r"\beta_2", "beta2"),
        Control("the gradients", (STEADY, NOISY, RARE, REAL), NOISY),
    ],
    screen=screen,
    text=[
        "## Two averages of one gradient",
        "Adam keeps two exponentially weighted averages for each weight: of its gradient, as momentum does, and of the gradient's square, as "
        "RMSProp does. A step goes along the mean, divided by the root of the mean square. That quotient has no unit. It is 1 or -1 where all "
        "gradients are the same, and near 0 where they cancel each other. So the learning rate says how far a weight usually goes at most, and "
        "the quotient says how well the gradients agree. (After a long silence the mean square is almost 0, and a step can be several learning rates long.)",
        "Choose the gradients that are always 1: every step is 1 learning rate long. With noise that is twice as large as the mean, "
        "steps are shorter: the shortest is 0.001 learning rates long, and after 60 steps the weight has gone 36 learning rates instead of 60.",
        "## Why it must be corrected",
        "Both averages begin at 0. With the usual betas, 0.9 and 0.999, the mean begins as 0.1 of the first gradient, and the mean "
        "square begins as 0.001 of its square. The two are not wrong by the same factor. The root of 0.001 is 0.03, so the quotient comes out too large: "
        "without correction the first step is 3.2 learning rates long. It gets worse: the mean is most of the way to its final value after 10 steps, the mean "
        "square only after 1000. With gradients of 1 the longest step has 6.6 learning rates, in step 12, and after 60 steps it is 5 "
        "times as far as it should be. Bias correction divides each average by the share that it has really seen, and the first step is "
        "the learning rate times the sign of the gradient.",
        "## Rare gradients",
        "Choose a gradient of 1 in every 15th step, as for a word that is seldom used. The first one moves the weight by 0.49 learning "
        "rates, and the mean goes on moving it while no gradient comes. Lower the memory of the mean square: it then forgets the last "
        "gradient before the next one comes, and each of these gradients moves the weight farther.",
        "The real weight is one of a small model that learns which letter follows which, from the Zen of Python (`import this`). Its "
        "gradient is 0 in 18 of the 60 steps, where the letter before does not occur.",
        "## Written both ways",
        "There are two ways to write an optimizer in Python. Courses write a function of arrays: gradients are given by hand, and "
        "the averages lie beside the weights. torch, the library in which most networks are trained, has an object instead: each tensor of weights, a `Parameter`, carries its gradient, and the optimizer keeps a state "
        "for each parameter. Both are below, in float32. They call the same formula, and end with the same bits.",
    ],
    formulas={"As the paper writes it": Corrected},
    sources=[Adam.function(), adam_direction, ema, ema_sq, debias],
    try_it="""
import numpy as np
import torch
import steprule
from steprule import arrays

start = np.array([0.5, -1.5, 2.0], np.float32)

# Explicit: arrays, and gradients given by hand.
weights = start.copy()
explicit = arrays.Adam([weights], lr=0.01)
for step in range(100):
    explicit.step([2 * weights])

# As torch has it: parameters that carry their gradients.
parameter = torch.nn.Parameter(torch.tensor(start))
optimizer = steprule.Adam([parameter], lr=0.01)
for step in range(100):
    optimizer.zero_grad()
    (parameter**2).sum().backward()
    optimizer.step()

print(np.array_equal(weights, parameter.detach().numpy()))
for name in ("exp_avg", "exp_avg_sq"):
    print(name, np.array_equal(explicit.state[0][name], optimizer.state[parameter][name].numpy()))
""",
    output="""
True
exp_avg True
exp_avg_sq True
""",
    wrong=[
        "*The step count is lost.* If you save the averages and not the number of steps, old averages are corrected as if they were new: the mean is divided by 0.1 and the "
        "mean square by 0.001 once more. The next step is then only 0.32 times as long as it should be. Save the whole state.",
        "*The learning rate of SGD is kept.* A step of Adam is up to about a learning rate long in *every* weight. In networks 0.001 is usual, and 0.1 hardly ever works.",
        "*Epsilon is too large.* Where gradients are about as large as epsilon, the quotient is smaller than it should be, and the steps shrink. The "
        "default is `1e-8`.",
        "*L2 regularization is called weight decay.* In Adam they are not the same; the next lesson is about that.",
    ],
    questions=questions,
    references=[
        "Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, arXiv:1412.6980: algorithm 1, and section 3 for the correction.",
        "Reddi, Kale and Kumar 2018, On the Convergence of Adam and Beyond, arXiv:1904.09237: what a short memory of squares can do to rare gradients.",
    ],
    claims=claims,
    about_code="`amsgrad` keeps the largest mean square instead of the last, and `max_exp_avg_sq` is what it keeps; `l2` belongs to lesson 6. Leave them out, and what remains is the formula.",
    given=(-1, 0.9, 0.999, 15, 60, 10, 1000, 0.03, 0.002, 7, 0.99, 32),
)
