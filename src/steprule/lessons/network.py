"""A small network that reads digits: two hidden layers with ReLU. Several of them are computed at once."""

from __future__ import annotations

import math

import numpy as np

from steprule.lessons.digits import Data
from steprule.lessons.follow import Array

HIDDEN = 24
LAYERS = ((65, HIDDEN), (HIDDEN + 1, HIDDEN), (HIDDEN + 1, 10))
"""What each layer takes and gives. The last of what it takes is 1, for the bias."""


def begin() -> Array:
    """The first weights: random, so large that each layer keeps the size of what it takes (He and others 2015)."""
    random = np.random.default_rng(1)
    gains = (math.sqrt(2), math.sqrt(2), 1.0)
    layers = []
    for (taken, given), gain in zip(LAYERS, gains, strict=True):
        layer = random.standard_normal((taken - 1, given)) * gain / math.sqrt(taken - 1)
        layers += [layer.ravel(), np.zeros(given)]
    return np.concatenate(layers)


def _layers(weights: Array) -> list[Array]:
    ends = np.cumsum([taken * given for taken, given in LAYERS])
    parts = np.split(weights, ends[:-1], axis=-1)
    return [part.reshape(*weights.shape[:-1], *shape) for part, shape in zip(parts, LAYERS, strict=True)]


def _forward(weights: Array, inputs: Array) -> tuple[list[Array], Array]:
    """What each layer takes, and how likely each digit is."""
    *hidden, last = _layers(weights)
    taken = [inputs]
    for layer in hidden:
        found = np.maximum(taken[-1] @ layer, 0)
        taken.append(np.concatenate([found, np.ones((*found.shape[:-1], 1))], axis=-1))
    scores = taken[-1] @ last
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return taken, powers / powers.sum(-1, keepdims=True)


def loss(weights: Array, data: Data) -> Array:
    """The mean of -log of the share that the right digit gets, of each network.

    Args:
        weights: those of a network along the last axis.
        data: the images.
    """
    shares = (_forward(weights, data.inputs)[1] * data.labels).sum(-1)
    return np.array(-np.log(np.maximum(shares, 1e-300)).mean(-1))


def gradient(weights: Array, data: Data) -> Array:
    """The gradient of that loss, of the shape of the weights."""
    layers = _layers(weights)
    taken, shares = _forward(weights, data.inputs)
    error = (shares - data.labels) / len(data.inputs)
    found: list[Array] = []
    for layer, given in zip(reversed(layers), reversed(taken), strict=True):
        found.insert(0, (given.swapaxes(-1, -2) @ error).reshape(*weights.shape[:-1], -1))
        error = (error @ layer.swapaxes(-1, -2))[..., :-1] * (given[..., :-1] > 0)
    return np.concatenate(found, axis=-1)
