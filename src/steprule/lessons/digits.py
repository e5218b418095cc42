"""The data of several lessons: small images of handwritten digits, which scikit-learn brings."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from steprule.lessons.follow import Array


class Data(NamedTuple):
    """Digits: pixels with a 1 at the end, for the bias, and labels as rows with one 1."""

    inputs: Array
    labels: Array


@cache
def digits(held_out: bool = False) -> Data:
    """scikit-learn's digits: the three quarters that `steprule compare` trains on, or the rest, which it holds out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    training, rest, *both = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    images, labels = (rest, both[1]) if held_out else (training, both[0])
    inputs = np.hstack([(images - 5) / 6, np.ones((len(images), 1))])
    return Data(inputs, np.eye(10)[labels])


@cache
def mini_batches(count: int, size: int, order: int = 0) -> list[Data]:
    """Mini-batches of the digits to train on, drawn at random with replacement; each order is another drawing."""
    inputs, labels = digits()
    drawn = np.random.default_rng(order).integers(0, len(inputs), (count, size))
    return [Data(inputs[chosen], labels[chosen]) for chosen in drawn]
