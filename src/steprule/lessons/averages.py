"""Lesson 2: exponentially weighted averages and their bias correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from steprule.charts import Axis, Bars, Chart, Line, number
from steprule.lessons.lesson import Control, Lesson, Question, Screen
from steprule.pieces import Value, debias, ema, running_ema
from steprule.rule import Rule

SALES = [100.0, 114.0, 118.0, 117.0, 120.0, 122.0]
DAYS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class Average(Rule):
    """The average by itself, in the form of a rule, so that it is printed as rules are."""

    @staticmethod
    def update(
        param: Value, grad: Value, exp_avg: Value, corrected: Value, *, step: Value, beta: float = 0.7
    ) -> tuple[Value, ...]:
        exp_avg = ema(exp_avg, grad, beta)
        return param, exp_avg, debias(exp_avg, beta, step)


JUMP = [float(one) for one in 100 + 30 * (np.arange(60) >= 30) + 10 * np.random.default_rng(0).standard_normal(60)]
"""Noisy sales, that are higher from day 30 on."""


@cache
def weights(beta: float, count: int) -> list[float]:
    """How much each of so many values counts in the last average: what becomes of a 1 among zeros."""
    averages = running_ema(list(np.eye(count)), beta)
    return [float(share) for share in averages[-1]]


def screen(beta: float) -> Screen:
    """The sales with their averages, and how much each day counts on the last one."""
    plain = running_ema(SALES, beta)
    corrected = running_ema(SALES, beta, bias_correction=True)
    shares = weights(beta, len(SALES))
    lines = [
        Line("sales", DAYS, SALES, 5, line=False, dots=True),
        Line("plain", DAYS, plain, 0, dots=True),
        Line("corrected", DAYS, corrected, 1, dots=True),
    ]
    sales = Chart("Six days of sales and their average", Axis("day", 0.5, 6.5), Axis("sales (a day)", 0, 130), lines)
    bars = [Bars("share", DAYS, shares, 0)]
    share = Chart(
        "What each day counts in the plain average of day 6",
        Axis("day", 0.5, 6.5),
        Axis("share of the average", 0, 1),
        bars,
        "none",
    )
    change = Chart(
        "Sixty days on which sales jump once",
        Axis("day", 0, 60),
        Axis("sales (a day)", 60, 170),
        [
            Line("sales", np.arange(60), JUMP, 5, line=False, dots=True),
            Line("corrected", np.arange(60), running_ema(JUMP, beta, bias_correction=True), 1),
        ],
    )
    reading = (
        f"With beta {number(beta)} the average spans about {number(1 / (1 - beta), 3)} days. On day 6 the days together count "
        f"{sum(shares):.2f}, so the plain average is {plain[-1]:.2f}; divided by {sum(shares):.2f}, the corrected one is "
        f"{corrected[-1]:.2f}."
    )
    return Screen([sales, share, change], reading)


def questions() -> Sequence[Question]:
    """The three questions, with their answers computed."""
    return [
        Question(
            "A running average with beta 0.9 begins at 0, and the first value is 50. What is the plain average after it?",
            running_ema([50.0], 0.9)[0],
            "0.9 of the 0 that was there, and 0.1 of the new value.",
        ),
        Question(
            "And what is the same average with bias correction?",
            running_ema([50.0], 0.9, bias_correction=True)[0],
            "The plain average, 5, divided by 1 \u2212 0.9, the share that is not still on the 0. After one value that is the value itself.",
        ),
        Question(
            "You raise beta from 0.7 to 0.98. What happens to the line of a corrected average?",
            "It becomes smoother and follows a change later",
            "It spans about 50 values instead of about 3. Noise averages out, and news does too.",
            (
                "It becomes smoother and follows a change later",
                "It becomes smoother and follows a change sooner",
                "It jumps more from day to day",
            ),
        ),
    ]


def claims() -> Mapping[str, float]:
    """The numbers of the texts, computed."""
    plain = running_ema(SALES, 0.7)
    corrected = running_ema(SALES, 0.7, bias_correction=True)
    shares = weights(0.7, 6)
    return {
        "we get 30": plain[0],
        "then 55.2": plain[1],
        "74.04": plain[2],
        "86.93": plain[3],
        "96.85": plain[4],
        "104.39": plain[5],
        "today counts 0.3": shares[-1],
        "yesterday 0.21": shares[-2],
        "the day before 0.147": shares[-3],
        "together they count 0.657": sum(weights(0.7, 3)),
        "74.04 / 0.657 is 112.69": corrected[2],
        "says 108.24": corrected[1],
        "after 44 values": float(np.argmax(1 - 0.9 ** np.arange(100) > 0.99)),
        "on day 6 the days together count 0.882": sum(weights(0.7, 6)),
        "spans about 3.3 values": 1 / (1 - 0.7),
        "about 50 values": 1 / (1 - 0.98),
        "about 3. Noise": 1 / (1 - 0.7),
        "The plain average, 5,": running_ema([50.0], 0.9)[0],
    }


LESSON = Lesson(
    title="Exponentially weighted averages",
    question="How do you average numbers that keep coming, and remember only one?",
    controls=[Control("how much of the past is kept", BETAS, 0.7, r"\beta", "beta")],
    screen=screen,
    text=[
        "## One number that remembers",
        "A shop sells 100, 114, 118, 117, 120 and 122 pieces on six days. You want to know how it is doing, without the noise "
        "of single days, and you do not want to keep a list. So you keep one number, the average so far. Every evening you take "
        "the share `beta` of it, and the share `1 - beta` of the new day. That is an exponentially weighted average.",
        "With `beta = 0.7`, beginning at 0, we get 30 on the first evening, then 55.2, 74.04, 86.93, 96.85 and 104.39. Move the "
        "slider and look at the line called plain.",
        "## Why exponentially",
        "Each evening everything older is multiplied by `beta` once more. So today counts 0.3, yesterday 0.21, the day before "
        "0.147, and so on: the bars. No day drops out suddenly; each fades. Roughly, an average with `beta` spans "
        "`1 / (1 - beta)` values: these count about two thirds, and everything older counts the rest. With 0.7 it spans about 3.3 values, with 0.98 about 50 values. A larger `beta` gives a "
        "smoother line, which also follows a change later: the third chart, sixty days on which sales jump once, shows both.",
        "## Why the first days are wrong",
        "The plain average of the first evening is 30, and the shop never sold as little as that. The average began at 0, and "
        "that 0 still counts. After three days the days have counted 0.3, 0.21 and 0.147; together they count 0.657. The "
        "rest still lies on the 0 of the start, which was no day of sales.",
        "The cure is bias correction: divide by what the days together count. That is `1 - beta**t` after `t` values. On "
        "day 3, 74.04 / 0.657 is 112.69. On day 2 the corrected average says 108.24, where the plain one says 55.2. Later the correction "
        "fades: on day 6 the days together count 0.882, and with `beta` 0.9 the divisor is above 0.99 after 44 values.",
        "What has this to do with optimizers? Momentum, the next lesson, keeps such an average of gradients for every weight of a model (or a sum that is a multiple of it). "
        "Adam, lesson 5, keeps two. The values that come in are gradients instead of sales.",
    ],
    formulas={"As Kingma and Ba write it": Average},
    sources=[ema, debias],
    try_it="""
from steprule import running_ema

sales = [100, 114, 118, 117, 120, 122]
for correction in (False, True):
    averages = running_ema(sales, beta=0.7, bias_correction=correction)
    print([round(average, 2) for average in averages])
""",
    output="""
[30.0, 55.2, 74.04, 86.93, 96.85, 104.39]
[100.0, 108.24, 112.69, 114.39, 116.42, 118.31]
""",
    wrong=[
        "*The roles of beta are swapped.* Some libraries ask for the share of the new value, often called alpha, instead of the "
        "share of the past. `alpha = 0.1` there is `beta = 0.9` here.",
        "*The correction is forgotten.* With `beta = 0.999` the first average is a thousandth of the "
        "first value. Adam (lesson 5) divides by the root of such an average. Without the correction its first steps would be far too long.",
        "*The correction is applied to what is kept.* Only what you use is divided. If the divided number is kept and averaged "
        "on, it is corrected again every day.",
    ],
    questions=questions,
    references=[
        "Kingma and Ba 2015, Adam, arXiv:1412.6980: section 3 derives the bias correction.",
        "Roberts 1959, Control chart tests based on geometric moving averages, Technometrics 1(3): where the average comes from.",
    ],
    claims=claims,
    about_code="The code is the formula, rearranged: \u03b2a + (1 \u2212 \u03b2)v is the same as a + (1 \u2212 \u03b2)(v \u2212 a).",
    symbols={
        "grad": "the new value",
        "exp_avg": "the average as it is kept",
        "corrected": "the average after bias correction",
        "beta": "how much of the past is kept",
        "step": "how many values there were, with this one; what has it as its index is the value after this one, and \u03b2 with it is a power",
    },
    given=(*SALES, 0.7, 0.9, 0.98, 0.1, 0.99),
)
