"""Lesson 8: how far each layer moves: sign updates, layer-wise rates, clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from steprule import optimizer as optimizers
from steprule.charts import Axis, Chart, Line, number
from steprule.engine.team import one_thread
from steprule.lessons.digits import digits
from steprule.lessons.follow import Array, follow
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.pieces import Value, sqrt, total_of_all
from steprule.rule import Rule
from steprule.rules.layerwise import LAMB, trust_ratio
from steprule.rules.sgd import SGD, Lion
from steprule.services import ClipNorm
from steprule.services.decide import clip_factor

RULES = {"SGD": optimizers.SGD, "Lion": optimizers.Lion, "Adam": optimizers.Adam, "LAMB": optimizers.LAMB}
LRS = (0.001, 0.003, 0.01, 0.03)
CLIPS = {"off": math.inf, "10": 10.0, "3": 3.0, "1": 1.0}
WIDTHS = (65, 128, 64, 32, 10)
LAYERS = ("layer 1", "layer 2", "layer 3", "layer 4")
STEPS, SPIKE, LOOK, TRAINED_ON = 50, 31, 20, 1000
LOOKS = [*range(0, SPIKE - 1, 2), *range(SPIKE - 1, SPIKE + 4), *range(SPIKE + 5, STEPS + 1, 2)]
BINS = 10.0 ** np.arange(-8, 0.25, 0.25)


class Signs(Rule):
    """Lion without weight decay."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, *, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)
    ) -> tuple[Value, ...]:
        return tuple(Lion.function()(param, grad, exp_avg, lr=lr, betas=betas))


class Layerwise(Rule):
    """LAMB without weight decay."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
    ) -> tuple[Value, ...]:  # fmt: skip
        return tuple(LAMB.function()(param, grad, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps))


class Clipped(Rule):
    """SGD with the gradients of all layers clipped as one vector."""

    @staticmethod
    def update(param: Value, grad: Value, *, lr: float = 0.1, longest: float = 1.0) -> Value:
        factor = clip_factor(sqrt(total_of_all(grad * grad)), longest)
        return SGD.function()(param, factor * grad, None, step=1, lr=lr)[0]


@dataclass(frozen=True)
class Run:
    """What was seen of a training.

    Attributes:
        ratios: update to weight, one row for each step, one column for each layer.
        norms: of all gradients together, before clipping.
        sizes: how far each weight of layer 2 went in one step.
        losses: the validation loss after so many steps.
        updates: the steps of all weights with the bad mini-batch, as one vector.
    """

    ratios: Array
    norms: Array
    sizes: Array
    losses: dict[int, float]
    updates: Array


@cache
def data() -> tuple[Tensor, Tensor]:
    """The digits: images with a 1 at the end for the bias, and labels as rows with one 1."""
    inputs, labels = digits()
    return torch.tensor(inputs), torch.tensor(labels)


def layers() -> list[torch.nn.Parameter]:
    """The first weights of four layers, as He et al. 2015 draw them."""
    random = np.random.default_rng(0)
    shapes = pairwise(WIDTHS)
    return [torch.nn.Parameter(torch.tensor(random.standard_normal(one) * math.sqrt(2 / one[0]))) for one in shapes]


def loss(weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log of the share that the right digit gets."""
    *hidden, last = weights
    for one in hidden:
        inputs = torch.relu(inputs @ one)
    return torch.nn.functional.cross_entropy(inputs @ last, labels)


@cache
def batches() -> list[tuple[Tensor, Tensor]]:
    """The mini-batches, one a step. The images of one of them were not brought to the scale of the others."""
    inputs, labels = data()
    drawn = torch.tensor(np.random.default_rng(1).integers(0, TRAINED_ON, (STEPS, 64)))
    found = [(inputs[chosen], labels[chosen]) for chosen in drawn]
    found[SPIKE - 1][0][:, :64] = found[SPIKE - 1][0][:, :64] * 6 + 5  # pixels from 0 to 16, as they are stored
    return found


@cache
def train(rule: str, lr: float, clip: str) -> Run:
    """Trains the network from the same weights, with the same mini-batches."""
    with one_thread():
        return _train(rule, lr, CLIPS[clip])


def _train(rule: str, lr: float, clip: float) -> Run:
    weights = layers()
    optimizer = RULES[rule](list(zip(LAYERS, weights, strict=True)), lr=lr, clip=ClipNorm(clip), telemetry=1)
    inputs, labels = (one[TRAINED_ON:] for one in data())
    losses, changes = {}, {}

    def look(steps: int) -> None:
        if steps in LOOKS:
            with torch.no_grad():
                losses[steps] = loss(weights, inputs, labels).item()

    look(0)
    for step, batch in enumerate(batches(), 1):
        before = [one.detach().clone() for one in weights] if step in (LOOK, SPIKE) else []
        optimizer.zero_grad()
        loss(weights, *batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        look(step)
        if before:
            changes[step] = [(new.detach() - old).numpy() for new, old in zip(weights, before, strict=True)]
    records = optimizer.telemetry.records
    ratios = [[one["parameters"][layer]["update_to_weight"] for layer in LAYERS] for one in records]
    norms = [one["total"]["grad_norm"] for one in records]
    updates = np.concatenate([one.ravel() for one in changes[SPIKE]])
    return Run(np.array(ratios), np.array(norms), np.abs(changes[LOOK][1]), losses, updates)


def screen(rule: str, lr: float, clip: str) -> Screen:
    """Update to weight, single weights, gradients and loss."""
    run, without = train(rule, lr, clip), train(rule, lr, "off")
    steps = np.arange(1, STEPS + 1)
    time = Axis("step", 0, STEPS)
    ratios = Chart(
        "How far each layer moves",
        time,
        Axis("lengths: update / weights", 3e-5, 1, log=True),
        [Line(name, steps, run.ratios[:, index], index) for index, name in enumerate(LAYERS)],
    )
    nearest = np.abs(np.log10(run.sizes[run.sizes > 0])[:, None] - np.log10(BINS)).argmin(1)
    shares = np.bincount(nearest, minlength=len(BINS)) / run.sizes.size
    single = Chart(
        f"How far single weights of layer 2 move in step {LOOK}",
        Axis("distance", 1e-8, 1, log=True),
        Axis("share of the weights in each bin", 0, 1.05),
        [Line("learning rate", [lr, lr], [0, 1.05], 5), Line("weights", BINS, shares, 0)],
        "none",
    )
    used = [norm * clip_factor(float(norm), CLIPS[clip]) for norm in run.norms]
    gradients = Chart(
        "The gradients of all layers together",
        time,
        Axis("length", 0.1, 1000, log=True),
        [Line("gradient", steps, run.norms, 5), Line("after clipping", steps, used, 1, short="clipped")],
    )
    falling = Chart(
        "The validation loss",
        time,
        Axis("loss", 0.1, 10, log=True),
        [
            Line("without clipping", LOOKS, list(without.losses.values()), 5, short="without"),
            Line("as chosen", LOOKS, list(run.losses.values()), 0, short="chosen"),
        ],
    )
    at = run.ratios[LOOK - 1]
    reading = (
        f"In step {LOOK} layer 1 moves by {number(100 * at[0], 2)}% of its length and layer 4 by {number(100 * at[3], 2)}%; the largest "
        f"share is {number(at.max() / at.min(), 2)} times the smallest. In step {SPIKE} the images have the wrong scale: the gradient is "
        f"{run.norms[SPIKE - 1] / run.norms[SPIKE - 2]:.0f} times as long as the one before. The loss goes from {run.losses[SPIKE - 1]:.2f} "
        f"to {run.losses[SPIKE]:.2f}, and is {run.losses[STEPS]:.2f} at the end."
    )
    return Screen([ratios, single, gradients, falling], reading)


def first_ratio(lr: float, size: float) -> float:
    """Update to weight of a layer whose weights are all of this size, in Lion's first step."""
    first, after = follow(Lion, size * np.tile([1.0, -1.0], 50), lambda w, step: np.arange(1.0, 101.0), 1, lr=lr).params
    return math.dist(after, first) / math.hypot(*first)


def clipped_step(lr: float, longest: float, length: float, one: float) -> float:
    """How far SGD moves a weight with this gradient, where the gradient of all weights has that length."""
    others = math.sqrt(length**2 - one**2)
    return -float(follow(Clipped, [0.0, 0.0], lambda w, step: [one, others], 1, lr=lr, longest=longest).params[1, 0])


def is_lion_the_same(one: float, other: float) -> bool:
    """Whether Lion goes the same way with gradients clipped at one length or another, all of them being longer."""
    ways = []
    for clip in (one, other):
        weights = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
        optimizer = optimizers.Lion([weights], lr=0.01, clip=clip)
        random = np.random.default_rng(0)
        for _ in range(20):
            weights.grad = torch.tensor(random.standard_normal(20))
            optimizer.step()
        ways.append(weights.detach().numpy().copy())
    return bool(np.allclose(ways[0], ways[1], rtol=0, atol=1e-12))


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    lion = ("They stay the same", "They become half as long", "They become a quarter as long")
    return [
        Question(
            "The weights of a layer are 0.05 or -0.05. Lion takes its first step, with learning rate 0.001 and no weight decay. What is the "
            "length of the update, divided by that of the weights?",
            first_ratio(0.001, 0.05),
            "Each weight moves by 0.001, which is 0.02 of 0.05. How many weights there are does not matter.",
        ),
        Question(
            "Gradients are clipped at length 5, and the gradient of all layers together has length 20. How far does SGD with "
            "learning rate 0.1 move a weight whose gradient is 3?",
            clipped_step(0.1, 5.0, 20.0, 3.0),
            "All gradients are multiplied by 5 / 20, a quarter. The weight moves by 0.1 times 0.75.",
        ),
        Question(
            "Lion, and every gradient is longer than 1. Instead of at 1 you clip at 0.5. What happens to the steps?",
            lion[0] if is_lion_the_same(1.0, 0.5) else lion[1],
            "All gradients are halved, and so is the mean of which Lion takes the sign. The sign stays.",
            lion,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    off, ten, three = (train("SGD", 0.03, clip) for clip in ("off", "10", "3"))
    lion, lamb = train("Lion", 0.001, "off"), train("LAMB", 0.01, "off")
    adam, calm = (train("Adam", 0.001, clip) for clip in ("off", "10"))
    ratios = 100 * off.ratios
    lengths = [one.detach().norm().item() for one in layers()]
    moved = off.sizes[off.sizes > 0]
    away, near = (float(np.linalg.norm(one.updates)) for one in (off, ten))
    return {
        "18,880 weights": sum(one.numel() for one in layers()),
        "layer 1 by 0.37%": ratios[0, 0],
        "layer 4 by 2.03%": ratios[0, 3],
        "5.4 times as much": ratios[0, 3] / ratios[0, 0],
        "length 16.0": lengths[0],
        "and those of layer 4 only 4.3": lengths[3],
        "less far than 0.0000045": np.percentile(moved, 5),
        "farther than 0.0010": np.percentile(moved, 95),
        "About 17.5% of the weights": 100 * (off.sizes == 0).mean(),
        "layer 2, by 0.74%": 100 * lion.ratios[0, 1],
        "layer 4, by 0.39%": 100 * lion.ratios[0, 3],
        "typical size of 0.12": lengths[1] / math.sqrt(WIDTHS[1] * WIDTHS[2]),
        "in layer 4 of 0.24": lengths[3] / math.sqrt(WIDTHS[3] * WIDTHS[4]),
        "smallest share in all 50 steps is 0.997%": 100 * lamb.ratios.min(),
        "the largest 1.000%": 100 * lamb.ratios.max(),
        "22 times as long": off.norms[SPIKE - 1] / off.norms[SPIKE - 2],
        "13% of its length": ratios[SPIKE - 1, 3],
        "goes from 0.97": off.losses[SPIKE - 1],
        "to 5.5": off.losses[SPIKE],
        "only that one gradient is clipped, to a share of 0.25": near / away,
        "still goes up to 1.47": ten.losses[SPIKE],
        "which clips 7 of": float((three.norms > 3).sum()),
        "goes from 1.00": three.losses[SPIKE - 1],
        "to 1.05": three.losses[SPIKE],
        "At the end it is 0.64": ten.losses[STEPS],
        "and 0.65 with these bounds": three.losses[STEPS],
        "instead of 0.88": off.losses[STEPS],
        "all 50 gradients": float((train("SGD", 0.03, "1").norms > 1).sum()),
        "Lion goes from 0.602": lion.losses[SPIKE - 1],
        "to 0.598": lion.losses[SPIKE],
        "Adam from 0.93": adam.losses[SPIKE - 1],
        "to 0.91": adam.losses[SPIKE],
        "by 0.12% at the end": 100 * adam.ratios[-1, 3],
        "instead of 0.14%": 100 * calm.ratios[-1, 3],
        "Adam ends at 0.62": adam.losses[STEPS],
        "and with clipping at 0.52": calm.losses[STEPS],
        "bound of 1 Adam ends at 0.40": train("Adam", 0.001, "1").losses[STEPS],
        "which is 0.02 of": first_ratio(0.001, 0.05),
        "0.1 times 0.75": clipped_step(1.0, 5.0, 20.0, 3.0),
    }


LESSON = Lesson(
    title="Sign updates, layer-wise rates and clipping",
    question="How far does each layer move in a step, and what decides that?",
    controls=[
        Control("optimizer", tuple(RULES), "SGD"),
        Control("learning rate", LRS, 0.03, r"\eta", "lr"),
        Control("longest gradient allowed", tuple(CLIPS), "off", r"\mathrm{longest}", "longest"),
    ],
    screen=screen,
    text=[
        "## Length of the update, divided by length of the weights",
        "A weight that is 10 hardly notices a change of 0.01. A weight that is 0.01 is gone after it. So the size of an update says little by itself. Compare it "
        "with what it changes: for each layer, the length of the update (the root of the sum of its squares) divided by the length of the weights. "
        "The first chart shows this share in each step. It is what steprule's telemetry calls `update_to_weight`.",
        "The picture is of real training: images of handwritten digits, and a network of four layers. A layer multiplies what comes in with a matrix of weights. Here a matrix has a row for each number that comes in, and each column is a neuron, which gives one number (PyTorch keeps matrices the other way round, with a neuron in each row); "
        "between layers numbers below 0 are set to 0, which is called ReLU. Layers 1 to 4 give 128, 64, 32 and 10 numbers, which takes 18,880 weights. All "
        "optimizers begin with the same weights and see the same mini-batches.",
        "## SGD: the gradient decides",
        "With SGD an update is as long as the gradient makes it, and gradients differ from layer to layer. With learning rate 0.03 the first step "
        "moves layer 1 by 0.37% of its length and layer 4 by 2.03%, 5.4 times as much. The weights of layer 1 have length 16.0, and those of layer 4 only 4.3. One learning rate has to serve both. "
        "Within a layer it is the same; the second chart counts the weights of layer 2 by how far they move in step 20. Of those that move, one in twenty goes less far than 0.0000045, and one in twenty farther than 0.0010, more than 200 times as far. "
        "About 17.5% of the weights do not move at all and are left out: they belong to neurons whose number is set to 0 for every image of the mini-batch, so that their gradient is 0.",
        "## Lion: the learning rate decides",
        "Choose Lion and 0.001. Lion takes the sign of a mean of gradients, so each weight whose mean is not 0 moves by exactly the learning rate, up or down. (\u03b2\u2081 makes the mean that a step uses, and \u03b2\u2082 the one that is kept.) The second chart is a single peak. "
        "The share is about the learning rate divided by the typical size of the layer's weights, and a little less where some weights do not move. In layer 2 weights have a typical size of 0.12, and in layer 4 of 0.24 (root mean square). So in the first step Lion moves layer 2, by 0.74%, the most, "
        "and layer 4, by 0.39%, the least. With SGD layer 4 moved the most. Adam is between the two: its steps are near the learning rate where gradients agree, and shorter where they do not.",
        "## LAMB: the share is set",
        "LAMB takes the step of Adam and multiplies it, layer by layer, by the trust ratio: the length of the layer's weights divided by the length of the step. Then the learning rate *is* the share. With 0.01 the "
        "smallest share in all 50 steps is 0.997%, and the largest 1.000%. LARS does the same to the gradient of SGD, before it enters the momentum. Such layer-wise "
        "rates were made for batches of many thousands, where learning rates are large and one layer that moves too far spoils the training.",
        "## Clipping: a brake for spikes",
        "In step 31 something goes wrong, as it does in real data: the pixels of this mini-batch were not brought to the scale of the others. With SGD and 0.03 the gradient is 22 times as long as the one before. Layer 4 "
        "moves by 13% of its length, and the loss goes from 0.97 to 5.5 in one step.",
        "Clipping by norm takes the gradients of all layers as one vector. If it is longer than allowed, all are multiplied by one factor (`total_of_all` in the formula below is a sum over all layers). In SGD without momentum this changes the length of the step and not its direction. Allow 10: "
        "only that one gradient is clipped, to a share of 0.25. The loss still goes up to 1.47. Allow 3, which clips 7 of the gradients: it goes from 1.00 to 1.05. At the end it is 0.64 and 0.65 with these bounds, instead of 0.88. Allow 1: "
        "now all 50 gradients are clipped. Every step is as long as the others, and the loss falls slowly, as with a smaller learning rate.",
        "## Clipping with Adam, Lion and LAMB",
        "Here the length of gradients hardly matters, if it changes by the same factor in every step. Halve all gradients, and the quotient of Adam and the sign of Lion stay as they are. With 0.001 the loss of "
        "Lion goes from 0.602 to 0.598 in step 31, and that of Adam from 0.93 to 0.91. The harm comes later. The mean square of Adam remembers the spike, and further steps are too short: layer 4 moves "
        "by 0.12% at the end instead of 0.14% if you allow 10, which clips this one gradient and no other. In this run Adam ends at 0.62, and with clipping at 0.52. A lower bound changes long gradients more than short ones, and the long ones come early: "
        "with a bound of 1 Adam ends at 0.40. With learning rates that are too large here, such as 0.03 for Adam, clipping makes no clear difference.",
    ],
    formulas={"Sign updates: Lion": Signs, "Layer-wise rates: LAMB": Layerwise, "Clipping, for SGD": Clipped},
    sources=[Lion.function(), LAMB.function(), trust_ratio, clip_factor],
    try_it="""
import torch
from steprule import LAMB, SGD, Lion

for make in (SGD, Lion, LAMB):
    large = torch.nn.Parameter(torch.full((100,), 1.0))
    small = torch.nn.Parameter(torch.full((100,), 0.1))
    optimizer = make([("large", large), ("small", small)], lr=0.01, telemetry=1)
    large.grad = small.grad = torch.linspace(-1, 1, 100)
    optimizer.step()
    for name, seen in optimizer.telemetry.latest["parameters"].items():
        print(make.__name__, name, f"{seen['update_to_weight']:.3f}")

weight = torch.nn.Parameter(torch.zeros(2))
optimizer = SGD([weight], lr=1.0, clip=1.0)
weight.grad = torch.tensor([30.0, -40.0])
optimizer.step()
print([round(one, 2) for one in weight.tolist()], "of a gradient of length", float(optimizer.grad_norm))
""",
    output="""
SGD large 0.006
SGD small 0.058
Lion large 0.010
Lion small 0.100
LAMB large 0.010
LAMB small 0.010
[-0.6, 0.8] of a gradient of length 50.0
""",
    wrong=[
        "*A learning rate is carried from one optimizer to another.* 0.03 is good for SGD here and far too much for Lion, where 0.001 is good. Compare the shares, not the learning rates.",
        "*The bound is too low.* If every step is clipped, SGD moves by the learning rate times the bound, whatever the gradient is. Log how often gradients are clipped: steprule counts `clipped_steps`.",
        "*Single elements are clipped instead.* `ClipValue` makes large elements smaller and leaves the small ones, so the direction changes. With `ClipNorm` it does not.",
        "*Biases and scales of normalization layers get a trust ratio.* A bias, a number that a layer adds, that begins at 0 has no length to compare with; the ratio is 1 then, "
        "and tiny once the bias is tiny. It is usual to leave such parameters to Adam.",
        "*Gradients are clipped before they are complete.* Where a batch is too large for memory, its gradient is the sum of those of several smaller ones. Add them all up, then clip. "
        "Where the loss was multiplied by a scale, as in training with float16, divide by it first.",
    ],
    questions=questions,
    references=[
        "Bernstein, Wang, Azizzadenesheli and Anandkumar 2018, signSGD, arXiv:1802.04434: algorithm 1.",
        "Chen and others 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675: Lion, algorithm 2.",
        "You, Gitman and Ginsburg 2017, Large Batch Training of Convolutional Networks, arXiv:1708.03888: LARS, algorithm 1, and how shares differ between layers.",
        "You and others 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962: LAMB, algorithm 2.",
        "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063: algorithm 1, clipping by norm.",
    ],
    claims=claims,
    given=(128, 64, 32, 200, 10, 0.01, 0.03, 4, 20, 31, 0.05, 5, 0.1, 0.5),
    needs=("sklearn",),
    symbols={"longest": "the longest gradient allowed"},
)
