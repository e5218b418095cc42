"""Lesson 11: Shampoo and SOAP, which turn with the ravine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from steprule import arrays
from steprule.charts import Axis, Chart, Line
from steprule.lessons import network
from steprule.lessons.digits import digits, mini_batches
from steprule.lessons.follow import Array, Way, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.lessons.ravine import from_above, hessian, loss, turn
from steprule.pieces import eigenbasis, inverse_root
from steprule.rule import Rule
from steprule.rules.adam import Adam
from steprule.rules.kronecker import SOAP, Shampoo

ANGLES = (0, 10, 30, 45)
EVERY = (10, 30, 100)
NAMES = ("Shampoo", "SOAP")
RULES: Mapping[str, type[Rule]] = {"Adam": Adam, "Shampoo": Shampoo, "SOAP": SOAP}
STEPS, LR, BETAS, GOAL = 80, 0.05, (0.8, 0.9), 1e-3
TRAINING, LOOK, BATCH = 60, 5, 64
LRS = (0.02, 0.04)
"""For the network. Half the one and twice the other are worse for each of these optimizers."""
NEURONS = 1.03 * np.array([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
"""Where four neurons begin; the first is that of lesson 4."""


@cache
def walk(name: str, degrees: float, frequency: int = 10) -> Way:
    """Steps of the four neurons down the ravine that is turned. Shampoo and SOAP have a matrix for the two inputs alone."""
    curvature = hessian(degrees)
    settings: dict[str, Any] = {"lr": LR, "betas": BETAS}
    if name != "Adam":
        settings |= {"weight_decay": 0.0, "max_precond_dim": 2, "precondition_frequency": frequency}
    if name == "Shampoo":
        settings |= {"root": 2.0}
    return follow(RULES[name], NEURONS @ turn(degrees).T, lambda w, step: w @ curvature, STEPS, **settings)


def first_neuron(name: str, degrees: float, frequency: int = 10) -> Array:
    """The way of the first neuron."""
    return np.array(walk(name, degrees, frequency).params[:, 0])


def arrival(name: str, degrees: float, frequency: int = 10) -> int:
    """After how many steps the first neuron's loss is below the goal."""
    return int(np.flatnonzero(loss(first_neuron(name, degrees, frequency), degrees) < GOAL)[0])


@cache
def train(name: str, frequency: int = 0, order: int = 0) -> Array:
    """The validation loss of the network that reads digits, after every few steps, with the better of two learning rates."""
    from threadpoolctl import threadpool_limits  # which scikit-learn needs itself

    with threadpool_limits(1):  # for matrices as small as these further threads only wait for each other
        return min((_train(name, frequency, order, lr) for lr in LRS), key=lambda losses: float(losses[-1]))


def _train(name: str, frequency: int, order: int, lr: float) -> Array:
    whole = network.begin()
    ends = np.cumsum([taken * given for taken, given in network.LAYERS])[:-1]
    layers = [part.reshape(shape) for part, shape in zip(np.split(whole, ends), network.LAYERS, strict=True)]
    settings: dict[str, Any] = {"lr": lambda step: lr * (1 - (step - 1) / TRAINING), "betas": (0.9, 0.95)}
    if name != "Adam":
        settings |= {"weight_decay": 0.0, "precondition_frequency": frequency}
    optimizer = getattr(arrays, name)(layers, **settings)  # which are parts of the whole
    losses = [float(network.loss(whole, digits(True)))]
    for step, batch in enumerate(mini_batches(TRAINING, BATCH, order), 1):
        grads = np.split(network.gradient(whole, batch), ends)
        optimizer.step([grad.reshape(layer.shape) for grad, layer in zip(grads, layers, strict=True)])
        if step % LOOK == 0:
            losses.append(float(network.loss(whole, digits(True))))
    return np.array(losses)


def screen(name: str, degrees: float, frequency: int) -> Screen:
    """The path from above, the loss of the ravine, and that of a network."""
    adam, other = first_neuron("Adam", degrees), first_neuron(name, degrees, frequency)
    steps, looks = np.arange(STEPS + 1), np.arange(0, TRAINING + 1, LOOK)
    paths = from_above("A neuron's path from above", [("Adam", adam, 5), ("the chosen one", other, 0)], degrees)
    down = Chart(
        "The loss of the ravine",
        Axis("step", 0, STEPS),
        Axis("loss", 1e-8, 1e2, log=True),
        [
            Line("Adam", steps, loss(adam, degrees), 5),
            Line("the chosen one", steps, loss(other, degrees), 0, short="chosen"),
        ],
    )
    real = Chart(
        "The validation loss of a network for digits",
        Axis("step", 0, TRAINING),
        Axis("loss", 0.1, 10, log=True),
        [
            Line("Adam", looks, train("Adam"), 5),
            Line("the chosen one", looks, train(name, frequency), 0, short="chosen"),
        ],
    )
    reading = (
        f"In the ravine, turned by {degrees} degrees, Adam has a loss below {GOAL} after {arrival('Adam', degrees)} steps and {name} after "
        f"{arrival(name, degrees, frequency)}. The network's loss after {TRAINING} steps is {train('Adam')[-1]:.3f} with Adam and {train(name, frequency)[-1]:.3f} with {name}."
    )
    return Screen([paths, down, real], reading)


def found(degrees: float) -> Array:
    """The eigenbasis of Shampoo's matrix after the first step in the ravine."""
    return np.array(eigenbasis(walk("Shampoo", degrees).states["right"][0]))


def is_turned(name: str) -> bool:
    """Whether a path in the ravine, turned by 45 degrees, is the straight one's, turned."""
    return bool(np.allclose(first_neuron(name, 45), first_neuron(name, 0) @ turn(45).T, atol=1e-4))


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    names = ("Adam", "Shampoo", "both of them")
    same = [is_turned(name) for name in names[:2]]
    squares = follow(Shampoo, np.zeros((30, 50)), lambda w, step: np.ones((30, 50)), 1).states
    return [
        Question(
            "A gradient has covariance 16 along one direction and 4 along another. Shampoo with a matrix for one side multiplies by the inverse root of the covariance. By "
            "what is the second direction multiplied, divided by what the first is?",
            float(np.divide(*np.diag(inverse_root(np.diag([4.0, 16.0]), 2)))),
            "The roots are 4 and 2, their inverses 1/4 and 1/2.",
        ),
        Question(
            "You turn the ravine and the start by 45 degrees. Which method takes its old path, turned as well?",
            names[2 if all(same) else same.index(True)],
            "The covariance turns with the ravine, and its root too. Adam looks at each weight by itself.",
            names,
        ),
        Question(
            "A weight is a matrix of 30 rows and 50 columns. How many numbers do Shampoo's two covariances have together?",
            float(squares["left"][0].size + squares["right"][0].size),
            "30 times 30 for the rows and 50 times 50 for the columns, beside 1,500 weights. For long sides that is too much.",
            within=0.001,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    right = walk("Shampoo", 45).states["right"][0]
    values = np.linalg.eigvalsh(right)
    return {
        "straight ravine Adam needs 26": arrival("Adam", 0),
        "by 45 degrees it needs 73": arrival("Adam", 45),
        "along the steep one is 625": values[1] / values[0],
        "lies at 135 degrees": float(np.degrees(np.arctan2(*found(45)[::-1, 0])) % 180),
        "Shampoo needs 26": max(arrival("Shampoo", degrees, often) for degrees in ANGLES for often in EVERY),
        "SOAP needs 26": arrival("SOAP", 0),
        "and 56 steps in the turned": arrival("SOAP", 45),
        "three layers with 65": network.LAYERS[0][0],
        "25 and 25 inputs": network.LAYERS[2][0],
        "steps Adam has a loss of 0.234": train("Adam")[-1],
        "Shampoo 0.142": train("Shampoo", 10)[-1],
        "and SOAP 0.215": train("SOAP", 10)[-1],
        "never again, they have 0.158": train("Shampoo", 100)[-1],
        "and 0.201": train("SOAP", 100)[-1],
        "order Adam has 0.206": train("Adam", order=1)[-1],
        "and Shampoo 0.130": train("Shampoo", 10, order=1)[-1],
        "would need 2.5 billion": 50_000**2 / 1e9,
        "beside 1,500 weights": 30 * 50,
    }


LESSON = Lesson(
    title="Shampoo and SOAP",
    question="Adam's advantage is gone where the ravine is turned. Can an optimizer turn with it?",
    controls=[
        Control("optimizer", NAMES, "Shampoo"),
        Control("the ravine is turned by, in degrees", ANGLES, 45),
        Control("roots or bases are computed every so many steps", EVERY, 10, r"\mathrm{precondition\_frequency}", "precondition_frequency"),
    ],
    screen=screen,
    text=[
        "## The ravine of lesson 4, turned",
        "RMSProp and Adam divide each weight's gradient by its usual size. In a ravine along the axes that is the right thing. If the ravine is turned, both weights have gradients of the same size, and nothing is gained: in the straight ravine Adam needs 26 steps until the loss is below 0.001, and turned by 45 degrees it needs 73. "
        "What Adam knows of the past is one number for each weight. It cannot say that two weights go together.",
        "How gradients go together is in their covariance, the mean of the products of all pairs. (Their means are not subtracted.) Its eigenvectors are the directions in which gradients vary independently, and its eigenvalues are their mean squares there. With it, one can divide by the usual size *along the ravine's own directions*.",
        "## Where the covariance comes from",
        "For all pairs of weights it has far too many numbers. But weights come as matrices, and the rows of one, its neurons, all see the same inputs. So they sit in one ravine. The model above has four neurons with two inputs each, and one covariance of the two inputs, `G.T @ G` averaged over steps, is learned from all of "
        "them. After the first step in the turned ravine its value along the steep one is 625 times that along the flat one, and its first eigenvector lies at 135 degrees, exactly across the floor at 45.",
        "## Shampoo: divide by the root",
        "Shampoo multiplies the momentum by the inverse root of the covariance. Along each eigenvector that is a division by the usual size, as Adam does along each axis. Shampoo needs 26 steps in each of these ravines; its path is that of the straight ravine, turned. "
        "A real layer's rows and columns both have a covariance. Each side then divides by the fourth root, so that both together do by the square root. How far a step goes is another matter: here it is as long as Adam's would be, which is called grafting, and so Adam's learning rate can stay.",
        "## SOAP: Adam in the eigenbasis",
        "SOAP takes the eigenvectors alone. It turns the gradient into their basis, is Adam there, with a second moment for each pair of directions, and turns the step back. Choose it: SOAP needs 26 steps in the straight ravine, and 56 steps in the turned one. Better than Adam, but why not 26? In its first step it knows no "
        "basis yet, and does what Adam does. The second moments of that step are an even mix of steep and flat, and they count in the basis too, until they are forgotten. With real noise and thousands of steps this does not matter. Some codes skip the first step instead.",
        "## How often",
        "Eigenvectors and roots of matrices are costly, so they are computed every 10 steps or fewer, and used in between. In the ravine, whose directions never change, that makes no difference.",
        "The third chart is a real network: digits, three layers with 65, 25 and 25 inputs. After 60 steps Adam has a loss of 0.234, Shampoo 0.142 and SOAP 0.215 with new roots or bases every 10 steps. "
        "(Each has the better of the learning rates 0.02 and 0.04, which falls to 0.) With roots or bases of the first two steps and never again, they have 0.158 and 0.201: choose 100. So in a short training old directions are good enough. "
        "Small differences are chance, too: with the mini-batches in another order Adam has 0.206 and Shampoo 0.130. SOAP is not better than Adam here for certain, and Shampoo is.",
        "One step of these methods costs more than one of Adam. Whether it pays is a question of time, and depends on the size of the matrices and of the batch: the larger the batch, the less the optimizer's own time counts.",
    ],
    formulas={"Shampoo": Shampoo, "SOAP": SOAP},
    sources=[Shampoo.function(), SOAP.function()],
    try_it="""
import numpy as np
from steprule.arrays import Adam, Shampoo

neurons = 1.03 * np.array([[-1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])

def steps_needed(make, degrees, **settings):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.array([[cos, -sin], [sin, cos]])
    curvature = axes @ np.diag([1.0, 25.0]) @ axes.T
    weights = neurons @ axes.T
    optimizer = make([weights], lr=0.05, betas=(0.8, 0.9), **settings)
    for step in range(1, 121):
        optimizer.step([weights @ curvature])
        if weights[0] @ curvature @ weights[0] / 2 < 0.001:
            return step

one_side = {"root": 2.0, "max_precond_dim": 2, "weight_decay": 0.0}
for degrees in (0, 45):
    print(degrees, steps_needed(Adam, degrees), steps_needed(Shampoo, degrees, **one_side))
""",
    output="""
0 26 26
45 73 26
""",
    wrong=[
        "*The second moments stay in the old basis when a new one comes.* Then they belong to other directions, and steps are wrong until they are forgotten. steprule carries them along.",
        "*A long side gets a matrix.* A vocabulary of 50,000 would need 2.5 billion numbers for it. Sides above `max_precond_dim` are left alone, as if their covariance were the identity.",
        "*Shampoo runs without grafting, at Adam's learning rate.* Roots say in which direction to go. How far is left to the learning rate, and Adam's is then a wrong one.",
        "*Steps are counted, and not seconds.* Measure both, on your model: `steprule compare` does.",
    ],
    questions=questions,
    references=[
        "Gupta, Koren and Singer 2018, Shampoo, arXiv:1802.09568: algorithm 1.",
        "Shi and others 2023, A Distributed Data-Parallel PyTorch Implementation of Shampoo, arXiv:2309.06497: grafting, and how often roots are computed.",
        "Vyas and others 2024, SOAP, arXiv:2409.11321: algorithm 3, and that Shampoo is Adafactor in its eigenbasis.",
    ],
    claims=claims,
    given=(4, 0.001, 45, 10, 60, 100, 0.02, 0.04, 50000, 16, 30, 50),
    needs=("sklearn",),
    symbols={
        "left": "the covariance of rows", "right": "the covariance of columns", "left_root": "its inverse root", "right_root": "its inverse root",
        "left_basis": "the eigenvectors of the rows' covariance", "right_basis": "those of the columns' covariance",
        "shampoo_beta": "the share that covariances keep", "root": "4 for the fourth root", "graft_eps": "epsilon of the Adam whose length a step has",
        "precondition_frequency": "every how many steps roots or bases are computed", "max_precond_dim": "the longest side that has a covariance",
    },
    about_code="`gram` is a matrix times its transpose, and `every(k, step, new, old)` the new value in one of k steps. Squares, roots and quotients are taken element by element. `where` leaves out what is nothing but rounding.",
)  # fmt: skip
