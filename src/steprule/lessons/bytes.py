"""Lesson 9: small steps of a weight that has few bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steprule.charts import Axis, Bars, Bits, Chart, Line, number
from steprule.formats import BLOCK, SHORTEST_ROW, bytes_of
from steprule.formats.tensors import round_bfloat16
from steprule.lessons.decay import Beside
from steprule.lessons.few_bits import (
    CAUSES,
    DECAYING,
    EVERY,
    FULL,
    HALF,
    KEPT,
    LRS,
    PUSHED,
    RANDOM,
    SMALL,
    SPLIT,
    STEPS,
    TRAINING,
    WEIGHTS,
    chance,
    each,
    exact,
    losses,
    mean_square,
    moves,
    needs,
    place,
    spacing,
    walk,
)
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.rules.adam import AdamW

STYLES = {FULL: 5, HALF: 1, RANDOM: 2, SPLIT: 0, SMALL: 3}


def _bits(kind: str, row: int) -> Chart:
    """The bits of the first weight, every second step."""
    steps = range(0, STEPS + 1, 2)
    words = walk(kind).stored[row, ::2]
    lowest = 0 if kind == FULL else 16
    parts_of = {
        "sign": ([31], 3),
        "exponent": (range(30, 22, -1), 1),
        "mantissa": (range(22, lowest - 1, -1), 0),
        "8 low bits": (range(15, 7, -1) if kind == SPLIT else [], 2),
    }
    marks = [
        Bits(name, steps, list(rows), [(words >> bit) & 1 for bit in rows], style)
        for name, (rows, style) in parts_of.items()
    ]
    named = {float(bit): str(bit) for bit in (31, 23, 16, 8, 0)}
    return Chart(
        "The bits of the weight", Axis("step", -1, STEPS + 1), Axis("bit", -0.5, 31.5, named=named), marks, "none"
    )


def _value(lr: float, cause: str) -> Chart:
    row, steps = place(lr, cause), np.arange(STEPS + 1)
    ticks = [1 + 100 * lr * n for n in range(4)] if cause == PUSHED else [1 - 20 * lr * n for n in range(4)]
    named = {tick: number(tick) for tick in ticks}
    lines = [Line("exact", steps[::10], exact(lr, cause)[::10], 5, line=False, dots=True)]
    lines += [Line(kind, steps, walk(kind).values[row, :, 0], STYLES[kind]) for kind in (HALF, RANDOM, SPLIT)]
    rim = 0.03 * (max(ticks) - min(ticks))
    across = Axis("step", 0, STEPS)
    return Chart("The weight", across, Axis("weight", min(ticks) - rim, max(ticks) + rim, named=named), lines)


def _error(lr: float, cause: str) -> Chart:
    row, steps = place(lr, cause), np.arange(0, STEPS + 1, 4)
    truth = exact(lr, cause)[::4]
    paths = {kind: walk(kind).values[row, ::4, 0] for kind in (HALF, RANDOM, SPLIT, FULL)}
    paths[f"mean of {WEIGHTS:,} stochastic"] = walk(RANDOM).values[row, ::4].mean(-1)
    lines = []
    for name, path in paths.items():
        off = np.abs(path - truth)
        off[off == 0] = np.nan  # which has no logarithm
        lines.append(Line(name, steps, off, STYLES.get(name, 3), short=name.partition(" of")[0]))
    return Chart("How far it is off", Axis("step", 0, STEPS), Axis("distance from exact", 1e-9, 1, log=True), lines)


def _sizes(lr: float, cause: str) -> Chart:
    """Half a spacing against the update, for weights of every size."""
    powers = 2.0 ** np.arange(-8, 4)
    edges = np.repeat(powers, 2)[1:-1]
    steps = {kind: np.repeat([spacing(kind, float(power)) / 2 for power in powers[:-1]], 2) for kind in (HALF, SPLIT)}
    grad, decay = CAUSES[cause]
    update = np.array(
        [abs(float(AdamW.function()(w, grad, 0.0, 0.0, None, step=1, lr=lr, weight_decay=decay)[0] - w)) for w in edges]
    )
    lines = [
        Line("half a spacing, bfloat16", edges, steps[HALF], STYLES[HALF], short="bfloat16"),
        Line("half a spacing, 24 bits", edges, steps[SPLIT], STYLES[SPLIT], short="24 bits"),
        Line("update", edges, update, 5),
    ]
    across = Axis("size of the weight", float(powers[0]), float(powers[-1]), log=True)
    return Chart("What is lost, by the weight's size", across, Axis("size of a change", 1e-8, 0.1, log=True), lines)


def _model(lr: float) -> Chart:
    steps = np.arange(0, TRAINING + 1, EVERY)
    lines = [
        Line(kind, steps, losses(kind)[LRS.index(lr)], STYLES[kind], short=kind.replace(", 8-bit states", " + 8"))
        for kind in KEPT
    ]
    return Chart("A model of letters", Axis("step", 0, TRAINING), Axis("validation loss", 2.4, 3.4), lines)


def _memory() -> Chart:
    names, places = list(needs()), list(np.arange(1.0, 1 + len(needs())))
    heights: dict[tuple[str, int | str], list[float]] = {
        ("states", 0): [each(one.total) for one in needs().values()],
        ("gradients", "faint"): [each(one.weight_bytes + one.grad_bytes) for one in needs().values()],
        ("weights", 1): [each(one.weight_bytes) for one in needs().values()],
    }
    bars = [Bars(name, places, tops, style) for (name, style), tops in heights.items()]
    named = {at: name for at, name in zip(places, names, strict=True)}
    return Chart(
        "What AdamW takes",
        Axis("bits of each weight / of each number of the states", 0.5, len(names) + 0.5, named=named),
        Axis("bytes for each weight", 0, 17, named={n: str(n) for n in (0, 4, 8, 12, 16)}),
        bars,
        "none",
    )


def screen(kind: str, lr: float, cause: str) -> Screen:
    """A weight's bits, its way, and what few bits do to a model and to memory."""
    row, truth = place(lr, cause), exact(lr, cause)
    update = abs(truth[1] - truth[0])
    half = spacing(HALF, 1.0 if cause == PUSHED else 0.99) / 2
    fate = "so bfloat16 loses it" if update < half else "so bfloat16 makes a whole spacing of it"
    ends = {kind: number(float(walk(kind).values[row, -1, 0])) for kind in KEPT if kind != SMALL}
    reading = (
        f"The first update is {number(update, 3)}. Half a spacing of bfloat16 is {number(half, 2)} there, {fate}. After {STEPS} steps the "
        f"exact weight is {number(truth[-1])}, in {kind if kind != RANDOM else 'bfloat16 with stochastic rounding'} it is {ends[kind]}, and the mean of {WEIGHTS:,} weights with stochastic "
        f"rounding is {number(float(walk(RANDOM).values[row, -1].mean()))}."
    )
    charts = [_bits(kind, row), _value(lr, cause), _sizes(lr, cause), _error(lr, cause), _model(lr), _memory()]
    return Screen(charts, reading)


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    choices = ("both", "only that of 0.01", "only that of 1", "neither")
    found = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}
    return [
        Question(
            "bfloat16 has 7 bits of mantissa. How far is the next larger number from 1?",
            spacing(HALF),
            "Seven bits divide the way from 1 to 2 into 128 equal parts, and 1/128 is 0.0078125.",
        ),
        Question(
            "A bfloat16 weight is 1, and an update would make it 1 + 1/1024. With which probability does stochastic rounding move it up?",
            chance(1 / 1024),
            "The update is an eighth of the spacing, 1/128. The weight goes a whole spacing up once in 8 times, and stays in the others.",
        ),
        Question(
            "AdamW with learning rate 0.001, bfloat16 rounded to nearest. One weight is 1, another 0.01, and both have a gradient of \u22121. Which one moves?",
            choices[found[moves(1.0, 0.001), moves(0.01, 0.001)]],
            "Both are to move by 0.001. That is less than half a spacing at 1, and much more than one at 0.01, where numbers lie closer together.",
            choices,
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    at = LRS.index(0.001)
    pushed, decaying = place(0.001, PUSHED), place(0.001, DECAYING)
    ends = {kind: walk(kind).values[:, -1] for kind in (HALF, RANDOM, SPLIT)}
    faster = walk(HALF).values[place(0.004, PUSHED), :, 0]
    return {
        "1/128 is 0.0078125": spacing(HALF),
        "next one after 1 is 1.0078": 1 + spacing(HALF),
        "by less than 0.0039": spacing(HALF) / 2,
        "In bfloat16 the weight is 1": ends[HALF][pushed, 0],
        "instead of 1.2": float(exact(0.001, PUSHED)[-1]),
        "each step becomes 0.0078": float(faster[1] - faster[0]),
        "stops at 2 after 128": float(np.argmax(faster == 2)),
        "exact one is at 1.51": float(exact(0.004, PUSHED)[128]),
        "smaller than 0.5": 0.5 if moves(0.499, 0.001) and not moves(0.501, 0.001) else float("nan"),
        "takes 0.0001 of the weight": 1 - float(exact(0.001, DECAYING)[1]),
        "it should be 0.98": float(exact(0.001, DECAYING)[-1]),
        "bfloat16 it is still 1": ends[HALF][decaying, 0],
        "with probability 0.128": chance(0.001),
        "the mean of 1,000 such weights is 1.199": float(ends[RANDOM][pushed].mean()),
        "typically 0.04 off": float(ends[RANDOM][pushed].std()),
        "(and averages in float32) is at most 0.00005": float(
            np.abs(walk(SPLIT).values[pushed, :, 0] - exact(0.001, PUSHED)).max()
        ),
        "with float32 it ends 0.00001": abs(float(walk(FULL).values[pushed, -1, 0] - exact(0.001, PUSHED)[-1])),
        "256 times smaller": spacing(HALF) / spacing(SPLIT),
        "starts at 3.30": losses(FULL)[at, 0],
        "comes to 2.68": losses(FULL)[at, -1],
        "bfloat16 to 3.01": losses(HALF)[at, -1],
        "stochastic rounding it comes to 2.68": losses(RANDOM)[at, -1],
        "24 bits to 2.68": losses(SPLIT)[at, -1],
        "8-bit states (see below) as well to 2.68": losses(SMALL)[at, -1],
        "bfloat16 comes to 2.51": losses(HALF)[-1, -1],
        "float32 to 2.54": losses(FULL)[-1, -1],
        **bytes_claimed(),
        "stops at 0.25": mean_square(None),
        "instead of 0.99": mean_square("float32"),
    }


def bytes_claimed() -> Mapping[str, float]:
    """The same for memory."""
    memory = {name: each(one.total) for name, one in needs().items()}
    plain, small = needs()["32 / 32"], needs()["24 / 8"]
    return {
        "AdamW takes 16 bytes": memory["32 / 32"],
        "4 for the weight": each(plain.weight_bytes),
        "4 for its gradient": each(plain.grad_bytes),
        "8 for the two averages": each(plain.state_bytes),
        "halves it: 8 bytes": memory["16 / 16"],
        "one byte more: 9": memory["24 / 16"],
        "comes down to 7.03": memory["24 / 8"],
        "without low bits to 6.03": memory["16 / 8"],
        "two averages take 2.03": each(small.state_bytes),
        "1.016 bytes for a number": bytes_of("signed8", (1024, 1024)) / 1024**2,
        "128 numbers next to each other": BLOCK,
        "rows of fewer than 32": SHORTEST_ROW,
    }


LESSON = Lesson(
    title="Training in fewer bytes",
    question="What happens to small steps when a weight has few bits, and how can training go on?",
    controls=[
        Control("how the weight is kept", (FULL, HALF, RANDOM, SPLIT), HALF),
        Control("learning rate", LRS, 0.001, r"\eta", "lr"),
        Control("what moves the weight", tuple(CAUSES), PUSHED),
    ],
    screen=screen,
    text=[
        "## A weight has neighbors",
        "A number in a computer has a sign, an exponent and a mantissa. The exponent says between which two powers of two it lies, and "
        "the mantissa says where. float32 has 23 bits of mantissa. bfloat16 is the first half of a float32: 16 bits, of which 7 "
        "are mantissa. It takes half the memory and reaches as far, but its numbers are sparse: the next one after 1 is 1.0078.",
        "What lies between two neighbors is rounded to the nearer one. A step that changes a weight of 1 by less than 0.0039, half the "
        "spacing, leaves it as it was. The weight has not moved, so the next step is lost in the same way. With learning rate 0.001 and a "
        "gradient of \u22121, AdamW adds 0.001 in each step. In bfloat16 the weight is 1 after 200 steps, instead of 1.2. Look at its bits: none ever changes.",
        "Larger steps are not right either. A learning rate of 0.004 is a little more than half a spacing, and each step becomes 0.0078. The "
        "weight goes nearly twice as fast as it should, and stops at 2 after 128 steps, when the exact one is at 1.51. Above 2 the spacing is "
        "twice as large, and from there on every step is lost.",
        "## What counts is the step against the weight",
        "The spacing grows with the weight: these are the stairs in the third chart. An update that lies below them is lost. With learning rate 0.001, weights "
        "smaller than 0.5 move, and larger ones stand still. Weight decay is worse off, since it takes a share of the weight. With a decay of 0.1 each such step "
        "takes 0.0001 of the weight, and half a spacing is about 1/512 to 1/256 of it. So the decay is lost for weights of every size. Choose weight decay alone: after 200 steps "
        "it should be 0.98, and in bfloat16 it is still 1.",
        "## How training can go on",
        "*Round at random.* Stochastic rounding takes the lower or the upper neighbor, the nearer one more often, so that the mean is right. `round_bfloat16` below does it with one addition: it adds 16 random bits to those that are cut off, and a carry moves the weight up. So the probability is the distance to the lower neighbor, divided by the spacing. An update of 0.001 moves "
        "a weight of 1 with probability 0.128, and then by a whole spacing. A single weight wanders: after 200 steps it is typically 0.04 off. On average nothing is "
        "lost: the mean of 1,000 such weights is 1.199. It costs no memory.",
        "*Keep more bits.* The model computes with 16 bits, and the optimizer keeps 8 more. A step puts them together, adds the update, and takes "
        "them apart again. The spacing is 256 times smaller, and the last bit is rounded up or down by turns that are spread evenly, so that smaller updates are not lost either and errors cancel: in all 200 steps the weight with 24 bits (and averages in float32) is at most 0.00005 off, and with float32 it ends 0.00001 off. The chart shows the bits "
        "as they are stored. The low bits are a number from \u2212128 to 127 that is added, so the 16 bits alone are always the nearest bfloat16. Many training "
        "programs keep a float32 copy of each weight instead, which takes 4 bytes more.",
        "## What it does to a model",
        "One weight is not a model. The fifth chart shows the one of letters from the lesson on weight decay, 729 weights, trained for 1500 steps with a weight decay of "
        "0.1. The loss starts at 3.30. With learning rate 0.001, float32 comes to 2.68, and bfloat16 to 3.01: its weights begin at 0, and stall once they have grown. "
        "With stochastic rounding it comes to 2.68, with 24 bits to 2.68, and with 8-bit states (see below) as well to 2.68.",
        "With large steps none of this shows. At learning rate 0.01 bfloat16 comes to 2.51, float32 to 2.54: float32 has begun to learn its examples by heart, "
        "and weights that stall do not. That is luck. Real trainings end with small learning rates, and few bits are felt there.",
        "## What it saves",
        "In float32 AdamW takes 16 bytes for each weight of a large matrix: 4 for the weight, 4 for its gradient, and 8 for the two averages, its optimizer state. bfloat16 throughout "
        "halves it: 8 bytes. (What the layers hand to each other, the activations, comes on top, and an optimizer cannot change it.) The low bits are one byte more: 9.",
        'The averages do not need 16 bits. With `states="8bit"` each number is a code of one byte, and a block of 128 numbers next to each other in a row shares an exponent of two bytes. Each '
        "code holds the sign, how many powers of two the number lies below that exponent, and 3 bits of mantissa, rounded at random. That is 1.016 bytes for a number. So the two averages take 2.03, and "
        "AdamW with 24-bit weights comes down to 7.03, without low bits to 6.03. What it costs: a single number is off by up to an eighth, and by more if it is far smaller than the largest of its block. Vectors and rows of fewer than 32 "
        "numbers keep float32 states, as an exponent for each block would cost too much there. `steprule memory` counts this for your model.",
    ],
    formulas={"AdamW": Beside},
    sources=[AdamW.function(), round_bfloat16, bytes_of],
    try_it="""
import torch
import steprule

for weights in (None, "stochastic", "24bit"):
    weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    weight.grad = torch.zeros_like(weight)
    optimizer = steprule.AdamW([weight], lr=1e-3, weight_decay=0.1, weights=weights)
    for step in range(200):
        optimizer.step()
    kept = optimizer.read(weight)  # with the bits that the optimizer keeps
    print(weights, round(kept.mean().item(), 3), round(kept.std().item(), 3))
""",
    output="""
None 1.0 0.0
stochastic 0.98 0.009
24bit 0.98 0.0
""",
    wrong=[
        "*Only the learning rate is looked at.* Whether a step is lost depends on the step against the weight. Small weights train on, large ones stand still, and the loss "
        "still goes down. Nothing tells you.",
        "*The schedule ends at a learning rate near 0.* In bfloat16 the last part of it then moves few weights or none.",
        "*Averages are kept in bfloat16 and rounded to nearest.* They stall like weights. With gradients of 1 and `beta2 = 0.999`, Adam's mean square stops at 0.25 after 5,000 "
        "steps, instead of 0.99, and steps become nearly twice as long. torch.optim's averages stall too, and so do steprule's if bfloat16 weights come without the argument `states`. `states=\"bfloat16\"` rounds at random.",
        "*Only the model is saved.* The low bits are in the state of the optimizer. Without it each weight is rounded to bfloat16.",
        "*Each replica rounds with random numbers of its own.* The copies of a weight then drift apart. Here the random bits depend on the seed, the step, the "
        "parameter and the place of the element alone, and are equal everywhere.",
    ],
    questions=questions,
    references=[
        "Gupta, Agrawal, Gopalakrishnan and Narayanan 2015, Deep Learning with Limited Numerical Precision, arXiv:1502.02551: stochastic rounding, and training with it.",
        "Micikevicius and others 2018, Mixed Precision Training, arXiv:1710.03740: a float32 copy of the weights, and why updates are lost without it.",
        "Zamirai, Zhang, Aberger and De Sa 2020, Revisiting BFloat16 Training, arXiv:2010.06192: lost updates, stochastic rounding, and keeping what is cut off.",
        "Dettmers, Lewis, Shleifer and Zettlemoyer 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861: states in 8 bits, with other codes than here.",
    ],
    claims=claims,
    about_code="`AdamW.update` knows nothing of formats: it computes in float32. `round_bfloat16` then cuts 16 bits off, and `bytes_of` counts what a state takes.",
    given=(-1, 200, 23, 7, 0.001, 0.004, 0.1, 127, -128, 24, 729, 1500, 5000, 0.01, 512, 1024),
)
