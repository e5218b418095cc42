"""Steps of the matrix rules worked by hand: numbers that no program wrote.

The polar factor of [[a, b], [c, d]] is M + C over a number that makes its rows of length 1, where C is [[d, -c], [-b, a]]
if the determinant is positive and its negative if it is negative. So

    [[2, 0], [3, 2]]  has  [[.8, -.6], [.6, .8]],    a nuclear norm of 1.6 + 1.8 + 1.6 = 5, and
    [[3, 2], [2, 0]]  has  [[.6, .8], [.8, -.6]],    and 5 as well.

Bases turn by U = [[.8, -.6], [.6, .8]]: U diag(a, b) has the left basis U and the right basis I.

Where a rule multiplies by .2 sqrt(2), lr is a multiple of sqrt(2) that makes the product simple.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Matrix = list[list[float]]


class Hand(NamedTuple):
    """One example: the oracle's settings, a start, and for each step a gradient and the weights after it."""

    settings: dict[str, Any]
    start: Any
    grads: list[Any]
    expected: list[Any]


EXACT: dict[str, Any] = {"coefficients": None}
"""The polar factor itself, without Newton-Schulz."""
ROOT = 2**0.5

START: Matrix = [[1.0, 0.0], [0.0, 2.0]]
ONES: Matrix = [[1.0, 1.0], [1.0, 1.0]]
RANK_1: Matrix = [[1.0, 7.0], [-2.0, 14.0]]
FIRST: Matrix = [[2.0, 0.0], [3.0, 2.0]]
SECOND: Matrix = [[2.0, 2.0], [0.5, -1.0]]
"""Averages with beta = .5 are FIRST / 2, and then FIRST / 4 + SECOND / 2 = [[1.5, 1], [1, 0]]."""

HAND: dict[str, list[Hand]] = {
    "muon": [
        # .95 W - .1 O
        Hand(
            {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.5, "nesterov": False, **EXACT},
            START,
            [FIRST, SECOND],
            [[[0.87, 0.06], [-0.06, 1.82]], [[0.7665, -0.023], [-0.137, 1.789]]],
        ),
        # One step of 2x - 1.5x^3 + .5x^5 takes .6 to 1.2 - .324 + .03888 = .91488 and .8 to .99584. Nesterov's mix is
        # .75 G first, and then G1 / 8 + .75 G2 = .75 [[0, 4], [3, 0]].
        Hand(
            {"lr": 0.1, "momentum": 0.5, "coefficients": [(2.0, -1.5, 0.5)], "eps": 0.0},
            START,
            [[[3.0, 0.0], [0.0, 4.0]], [[-0.5, 4.0], [3.0, -2 / 3]]],
            [[[0.908512, 0.0], [0.0, 1.900416]], [[0.908512, -0.099584], [-0.091488, 1.900416]]],
        ),
        # Rows of a quarter each: 4 x 1 has the factor sqrt(4 / 1) = 2, 1 x 4 has 1.
        Hand(
            {"lr": 0.1, **EXACT},
            [[1.0], [1.0], [1.0], [1.0]],
            [[[3.0], [3.0], [3.0], [-3.0]]],
            [[[0.9], [0.9], [0.9], [1.1]]],
        ),
        Hand({"lr": 0.1, **EXACT}, [[1.0] * 4], [[[3.0, 3.0, 3.0, -3.0]]], [[[0.95, 0.95, 0.95, 1.05]]]),
        # .2 sqrt(4) = .4 both ways; sqrt(m / n) = 1/2 for 1 x 4.
        Hand(
            {"lr": 0.1, "scale": "match_rms_adamw", **EXACT},
            [[1.0] * 4],
            [[[3.0, 3.0, 3.0, -3.0]]],
            [[[0.98, 0.98, 0.98, 1.02]]],
        ),
        Hand(
            {"lr": 0.1, "scale": "spectral", **EXACT},
            [[1.0] * 4],
            [[[3.0, 3.0, 3.0, -3.0]]],
            [[[0.975, 0.975, 0.975, 1.025]]],
        ),
    ],
    "normuon": [
        # The polar factor of u (1, 1) is u (1, 1) / (|u| sqrt(2)). First u = (.6, .8): v = (.09, .16), O / sqrt(v) is
        # sqrt(2) everywhere, and .4 of that over its norm is .2. Then u = (.8, .6) with (1, -1): v = (.205, .17), and
        # the rows are in the ratio of .8 / sqrt(.205) to .6 / sqrt(.17), over the root of twice their squares' sum.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5, **EXACT},
            START,
            [[[3.0, 3.0], [4.0, 4.0]], [[0.5, -3.5], [-0.5, -3.5]]],
            [
                [[0.93, -0.02], [-0.02, 1.88]],
                [
                    [
                        0.8835 - 0.032 / 0.205**0.5 / (1.28 / 0.205 + 0.72 / 0.17) ** 0.5,
                        -0.019 + 0.032 / 0.205**0.5 / (1.28 / 0.205 + 0.72 / 0.17) ** 0.5,
                    ],
                    [
                        -0.019 - 0.024 / 0.17**0.5 / (1.28 / 0.205 + 0.72 / 0.17) ** 0.5,
                        1.786 + 0.024 / 0.17**0.5 / (1.28 / 0.205 + 0.72 / 0.17) ** 0.5,
                    ],
                ],
            ],
        ),
    ],
    "adamuon": [
        # Signs [[1, 1], [1, -1]], then [[1, 0], [0, -1]], then the first again. v = .25; then .625 beside .125; then
        # .5625 beside .3125. O / sqrt(v) of norm .4: .2 everywhere; then .4 / sqrt(2) on the diagonal; then
        # .2 sqrt(5 / 7) on the diagonal and .6 / sqrt(7) beside it.
        Hand(
            {"lr": 0.1, "momentum": 0.5, "eps": 0.0, "weight_decay": 0.0, **EXACT},
            START,
            [[[2.0, 4.0], [6.0, -2.0]], [[1.0, -2.0], [-3.0, -4.0]], [[1.0, 8.0], [8.0, -1.0]]],
            [
                [[0.98, -0.02], [-0.02, 2.02]],
                [[0.98 - 0.02 * ROOT, -0.02], [-0.02, 2.02 + 0.02 * ROOT]],
                [
                    [0.98 - 0.02 * ROOT - 0.02 * (5 / 7) ** 0.5, -0.02 - 0.06 / 7**0.5],
                    [-0.02 - 0.06 / 7**0.5, 2.02 + 0.02 * ROOT + 0.02 * (5 / 7) ** 0.5],
                ],
            ],
        ),
    ],
    "muoneq": [
        # Rows of length 1: [[1, 0], [.96, .28]], whose polar factor is [[.8, -.6], [.6, .8]]; then
        # [[0, 1], [.28, .96]] of B = [[0, 4], [7, 24]], whose is [[-.6, .8], [.8, .6]]. .9 W - .1 O.
        Hand(
            {"lr": 0.25 * ROOT, "momentum": 0.5, "weight_decay": 0.2 * ROOT, "nesterov": False, "eps": 0.0, **EXACT},
            START,
            [[[2.0, 0.0], [24.0, 7.0]], [[-1.0, 4.0], [-5.0, 20.5]]],
            [[[0.82, 0.06], [-0.06, 1.72]], [[0.798, -0.026], [-0.134, 1.488]]],
        ),
        # The same turned over: columns.
        Hand(
            {"lr": 0.25 * ROOT, "weight_decay": 0.0, "normalize": "c", "eps": 0.0, **EXACT},
            START,
            [[[2.0, 24.0], [0.0, 7.0]]],
            [[[0.92, -0.06], [0.06, 1.92]]],
        ),
        # Rows of squares 5, 20 and columns of 5, 20: [[1, 2], [2, 4]] becomes [[.2, .2], [.2, .2]], of rank 1, whose
        # polar factor is .5 everywhere.
        Hand(
            {"lr": 0.25 * ROOT, "weight_decay": 0.0, "normalize": "rc", "eps": 0.0, **EXACT},
            START,
            [[[1.0, 2.0], [2.0, 4.0]]],
            [[[0.95, -0.05], [-0.05, 1.95]]],
        ),
    ],
    "mud": [
        # Rows (1, 0) and (.6, .8): (.6, .8) - .6 (1, 0) = (0, .8). Then (.6, .8) and (1, 0):
        # (1, 0) - .6 (.6, .8) = (.64, -.48). .9 W - .1 Q.
        Hand(
            {"lr": 0.25 * ROOT, "momentum": 0.5, "weight_decay": 0.2 * ROOT, "nesterov": False, "eps": 0.0},
            START,
            [[[2.0, 0.0], [3.0, 4.0]], [[2.0, 4.0], [3.5, -2.0]]],
            [[[0.8, 0.0], [0.0, 1.7]], [[0.66, -0.08], [-0.08, 1.59]]],
        ),
    ],
    "mano": [
        # Columns (6, 0) and (0, 6): what is left of M is [[0, 1], [-2, 0]]. .5 W - 4 [[0, 1], [-1, 0]]. Then rows
        # (3, -4) / 5 and (4, 3) / 5: M = [[1, 1], [1, -1]] leaves multiples of (.8, .6) and (.6, -.8).
        Hand(
            {"lr": 10 * ROOT, "momentum": 0.5, "weight_decay": 0.05 / ROOT},
            [[6.0, 0.0], [0.0, 6.0]],
            [[[5.0, 1.0], [-2.0, 7.0]], [[-1.5, 0.5], [2.0, -4.5]]],
            [[[3.0, -4.0], [4.0, 3.0]], [[-1.7, -4.4], [-0.4, 4.7]]],
        ),
    ],
    "dion2": [
        # The second row, (3, -4); then, with half of it left, M = [[3, 4], [2, -2]]: the first. .95 W everywhere.
        Hand(
            {"lr": 0.1, "fraction": 0.5, "ef_decay": 0.5, "weight_decay": 0.5, **EXACT},
            START,
            [[[1.0, 2.0], [3.0, -4.0]], [[2.0, 2.0], [0.5, 0.0]]],
            [[[0.95, 0.0], [-0.06, 1.98]], [[0.8425, -0.08], [-0.057, 1.881]]],
        ),
    ],
    "polargrad": [
        # Nuclear norms of 2.5.
        Hand(
            {"lr": 0.1, "momentum": 0.5},
            START,
            [FIRST, SECOND],
            [[[0.8, 0.15], [-0.15, 1.8]], [[0.65, -0.05], [-0.35, 1.95]]],
        ),
        # Polar first: half of [[.8, -.6], [.6, .8]] times 5; then, of [[3, 2], [2, 0]], a quarter of the first and half
        # of [[.6, .8], [.8, -.6]] is [[.5, .25], [.55, -.1]], times 5.
        Hand(
            {"lr": 0.1, "momentum": 0.5, "polar_first": True},
            START,
            [FIRST, [[3.0, 2.0], [2.0, 0.0]]],
            [[[0.8, 0.15], [-0.15, 1.8]], [[0.55, 0.025], [-0.425, 1.85]]],
        ),
    ],
    "scion": [
        # .9 W - .3 O
        Hand(
            {"lr": 0.1, "momentum": 0.5, "radius": 3.0, **EXACT},
            START,
            [FIRST, SECOND],
            [[[0.66, 0.18], [-0.18, 1.56]], [[0.414, -0.078], [-0.402, 1.584]]],
        ),
        # .9 W - .4 sign(G) / 2
        Hand(
            {"lr": 0.1, "momentum": 1.0, "radius": 4.0, "kind": "sign"},
            START,
            [[[2.0, 0.0], [3.0, -2.0]]],
            [[[0.7, 0.0], [-0.2, 2.0]]],
        ),
        # Columns of length sqrt(2), times sqrt(2): (1.2, 1.6) and (0, 2). Rows of an embedding the same.
        Hand(
            {"lr": 0.1, "momentum": 1.0, "radius": ROOT, "kind": "col", "unconstrained": True, "eps": 0.0},
            START,
            [[[3.0, 0.0], [4.0, 2.0]]],
            [[[0.88, 0.0], [-0.16, 1.8]]],
        ),
        Hand(
            {"lr": 0.1, "momentum": 1.0, "radius": ROOT, "kind": "embedding", "unconstrained": True, "eps": 0.0},
            START,
            [[[3.0, 4.0], [0.0, 2.0]]],
            [[[0.88, -0.16], [0.0, 1.8]]],
        ),
        Hand(
            {"lr": 0.1, "momentum": 1.0, "radius": ROOT, "kind": "bias", "eps": 0.0},
            [1.0, 2.0],
            [[3.0, 4.0]],
            [[0.78, 1.64]],
        ),
    ],
    "adafactor": [
        # Mean squares of all rows and columns are 25: U = G / 5, of RMS 1; .8 W - .5 U. RMS(W) is then .5. With beta
        # 1/2 the means are (25 + 1225) / 2 = 625: U = G / 25, of RMS 1.4, is clipped to G / 35; .8 W - .25 U.
        Hand(
            {"lr": 0.5, "beta2_decay": -1.0, "weight_decay": 0.4},
            ONES,
            [[[1.0, 7.0], [7.0, 1.0]], [[49.0, 7.0], [7.0, 49.0]]],
            [[[0.7, 0.1], [0.1, 0.7]], [[0.21, 0.03], [0.03, 0.21]]],
        ),
        # Squares of rank 1 are their own estimate: U has the signs.
        Hand({"lr": 0.5, "weight_decay": 0.4}, ONES, [RANK_1], [[[0.3, 0.3], [1.3, 0.3]]]),
    ],
    "adafactor_paper": [
        # The same U without RMS(W), averaged: .25 U, and .25 of the last plus .25 U.
        Hand(
            {
                "lr": 0.5,
                "beta1": 0.5,
                "decay_rate": 1.0,
                "eps": (0.0, 1e-3),
                "weight_decay": 0.4,
                "scale_parameter": False,
            },
            ONES,
            [[[1.0, 7.0], [7.0, 1.0]], [[49.0, 7.0], [7.0, 49.0]]],
            [[[0.75, 0.45], [0.45, 0.75]], [[0.225, 0.135], [0.135, 0.225]]],
        ),
        Hand(
            {"lr": 0.5, "beta1": 0.5, "eps": (0.0, 1e-3), "weight_decay": 0.4},
            ONES,
            [RANK_1],
            [[[0.55, 0.55], [1.05, 0.55]]],
        ),
    ],
    "came": [
        # V = 25 / 4: u of RMS 2 is clipped to G / 5; m is half of it, and so is what u lacks, whose squares are .01 and
        # .49, in rows .5, averaged .125: S = .0625. Then V = (3 + 1) / 4 of 6.25 again, u = [[1.4, .2], [.2, 1.4]], m =
        # [[.75, .45], [.45, .75]], u - m of squares .4225 and .0625: .75 of .125 and .25 of .485 is .215, S = .1075.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.75, 0.75), "eps": (0.0, 0.0), "weight_decay": 0.5},
            ONES,
            [[[1.0, 7.0], [7.0, 1.0]], [[3.5, 0.5], [0.5, 3.5]]],
            [
                [[0.91, 0.67], [0.67, 0.91]],
                [
                    [0.8645 - 0.075 / 0.1075**0.5, 0.6365 - 0.045 / 0.1075**0.5],
                    [0.6365 - 0.045 / 0.1075**0.5, 0.8645 - 0.075 / 0.1075**0.5],
                ],
            ],
        ),
        # Signs; m is half of them, S = .25 .25, and m over its root is twice the signs.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.0, 0.75), "eps": (0.0, 0.0)},
            ONES,
            [RANK_1],
            [[[0.8, 0.8], [1.2, 0.8]]],
        ),
    ],
    "adammini": [
        # Mean squares 25 and 100; then (25 + 2 * 3025) / 3 = 45^2 and 100 of the corrected averages, and (G1 + 2 G2) / 3.
        Hand(
            {"lr": 0.3, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5},
            ONES,
            [[[1.0, 7.0], [-14.0, 2.0]], [[-77.0, 11.0], [2.0, 14.0]]],
            [[[0.79, 0.43], [1.27, 0.79]], [[1.0115, 0.3655 - 29 / 450], [1.1795, 0.3715]]],
        ),
        # Whole: the mean square is (1 + 49 + 49 + 1) / 4 = 25.
        Hand(
            {"lr": 0.5, "eps": 0.0, "blocks": "whole"},
            ONES,
            [[[1.0, 7.0], [7.0, -1.0]]],
            [[[0.9, 0.3], [0.3, 1.1]]],
        ),
    ],
    "sm3": [
        # Rows' maxima 16 and 25, columns' 9 and 25; the lesser ones [[9, 16], [9, 25]] and G^2 make 25 everywhere.
        Hand(
            {"lr": 0.2, "momentum": 0.5},
            ONES,
            [[[3.0, 4.0], [0.0, 5.0]], [[4.0, 3.0], [4.0, 0.0]]],
            [[[0.9, 0.9], [1.0, 0.9]], [[0.77, 0.79], [0.92, 0.85]]],
        ),
    ],
    "soap": [
        # The bases are those of U diag(2, 1), and nothing moves. U [[1, -2], [3, 4]] then gives U times its signs, and
        # U [[-1, -2], [3, -4]] gives (g + 2 h) / 3 over the root of (g^2 + 2 h^2) / 3: [[-1/3, -1], [1, -1/3]].
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[-1.0, -4.0], [3.0, 2.0]], [[-2.6, 0.8], [1.8, -4.4]]],
            [
                START,
                [[0.931, 0.133], [-0.133, 1.881]],
                [[0.95 * (0.931 + 0.26 / 3), 0.18335], [-0.18335, 0.95 * (1.881 + 0.26 / 3)]],
            ],
        ),
        # Adam's first step is the signs. Then the bases are U and I: m / 2 is diag(1, .5), and v / 2 is carried to half of
        # [[1.0784, .2304], [.9216, .2696]]. U diag(1, .5) makes m diag(1, .5) and the diagonal of v 1.0392 and .2598: the same
        # quotient twice, corrected by 1 / sqrt(.75).
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5, "carried": True},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[0.8, -0.3], [0.6, 0.4]]],
            [
                [[0.85, 0.1], [-0.1, 1.8]],
                [
                    [0.8075 - 0.08 / 0.7794**0.5, 0.095 + 0.06 / 0.7794**0.5],
                    [-0.095 - 0.06 / 0.7794**0.5, 1.71 - 0.08 / 0.7794**0.5],
                ],
            ],
        ),
    ],
    "klsoap": [
        # L and R begin at U diag(4, 1) U' and diag(4, 1), both over 4 sqrt(2.5): the bases of soap, and its carried steps.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[0.8, -0.3], [0.6, 0.4]]],
            [
                [[0.85, 0.1], [-0.1, 1.8]],
                [
                    [0.8075 - 0.08 / 0.7794**0.5, 0.095 + 0.06 / 0.7794**0.5],
                    [-0.095 - 0.06 / 0.7794**0.5, 1.71 - 0.08 / 0.7794**0.5],
                ],
            ],
        ),
    ],
    "klshampoo": [
        # With eigenvalues of 1/4, half of U [[.5, .5], [1, 1]] is multiplied by 4. Then they are 1/8 + 2 mean(g^2) of
        # rows, .625 and 2.125, and of columns, 1.375 twice; m is U.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5, "init_factor": 0.25},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[-0.2, -0.2], [1.1, 1.1]], [[1.7, -1.1], [0.65, 1.05]]],
            [
                START,
                [[0.988, 0.038], [-0.209, 1.691]],
                [
                    [0.9386 - 0.076 / 0.859375**0.5, 0.0361 + 0.057 / 2.921875**0.5],
                    [-0.19855 - 0.057 / 0.859375**0.5, 1.60645 - 0.076 / 2.921875**0.5],
                ],
            ],
        ),
    ],
    "klshampoo_exact": [
        # Factors of I / 2 become I / 4 + diag(4, 1) / 2.
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5, "init_factor": 0.25},
            START,
            [[[2.0, 0.0], [0.0, 1.0]]],
            [[[0.95 - 0.4 / 9, 0.0], [0.0, 1.9 - 0.2 / 3]]],
        ),
        # A mean square of 1: factors of I become I / 2 + diag(.36, .64).
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.5, "init_factor": None},
            START,
            [[[1.2, 0.0], [0.0, 1.6]]],
            [[[0.95 - 0.06 / 0.86, 0.0], [0.0, 1.9 - 0.08 / 1.14]]],
        ),
    ],
    "shampoo": [
        # U diag(16, 1) becomes U, of length sqrt(2); Adam's signs have a length of 2.
        Hand(
            {"lr": 0.05 * ROOT, "eps": 0.0, "graft_eps": 0.0, "weight_decay": 0.5 * ROOT},
            START,
            [[[12.8, -0.6], [9.6, 0.8]]],
            [[[0.87, 0.06], [-0.06, 1.82]]],
        ),
    ],
    "asgo": [
        # A quarter of diag(4, 1) has the inverse root diag(1, 2), which makes U of half of U diag(2, 1). Then V is
        # diag(1, .8125^2).
        Hand(
            {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.5, "scale": "none"},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[0.0, 1.375], [-1.0, 0.0]]],
            [
                [[0.87, 0.06], [-0.06, 1.82]],
                [[0.7865, 0.057 - 0.05375 / 0.8125], [-0.037, 1.729 - 0.02 / 0.8125]],
            ],
        ),
        # U again, of length sqrt(2), is made .4 long: .9 W - .1 U.
        Hand(
            {"lr": 0.25 * ROOT, "betas": (0.5, 0.75), "eps": 0.0, "weight_decay": 0.2 * ROOT},
            START,
            [[[1.6, -0.6], [1.2, 0.8]]],
            [[[0.82, 0.06], [-0.06, 1.72]]],
        ),
    ],
    "splus": [
        # Signs, and then U times the same signs; lr 2 / (m + n) is .1.
        Hand(
            {"lr": 0.2, "b1": 0.5, "weight_decay": 0.5},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[-1.0, -4.0], [3.0, 2.0]]],
            [[[0.855, 0.095], [-0.095, 1.805]], [[0.79325, 0.22325], [-0.22325, 1.69575]]],
        ),
        # The same with .9 W in place of .95 of what has moved.
        Hand(
            {"lr": 0.2, "b1": 0.5, "weight_decay": 0.5, "in_turn": True},
            START,
            [[[1.6, -0.6], [1.2, 0.8]], [[-1.0, -4.0], [3.0, 2.0]]],
            [[[0.8, 0.1], [-0.1, 1.7]], [[0.7, 0.23], [-0.23, 1.51]]],
        ),
    ],
    "psgdkron": [
        # V = I: Q of both sides is I - .1 (diag(4, 1) - I) / 5 = diag(.94, 1), and .94^4 2 = 1.56149792.
        Hand(
            {"lr": 0.1, "noise": lambda t, shape: np.eye(*shape)},
            START,
            [[[2.0, 0.0], [0.0, 1.0]]],
            [[[0.843850208, 0.0], [0.0, 1.9]]],
        ),
    ],
    "psgdkron_quad": [
        # X X' / 2 + I / 2 is diag(2.5, 1) on both sides, and .7 / 2 / (2.5 + 1) = .1: Q is diag(.85^2, 1), and all of them .85^8.
        Hand(
            {"lr": 0.1, "precond_lr": 0.7, "damping": 0.5, "weight_decay": 0.5},
            START,
            [[[2.0, 0.0], [0.0, 1.0]]],
            [[[0.95 - 0.2 * 0.85**8, 0.0], [0.0, 1.8]]],
        ),
    ],
}
"""By the oracle's names."""
