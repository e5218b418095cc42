"""A small model of real text: which letter follows which, in the Zen of Python."""

from __future__ import annotations

import codecs
import contextlib
import io
from functools import cache
from typing import Any

import numpy as np

from steprule.lessons.follow import Array

LETTERS = 27
_TRAINED_ON = 600


@cache
def zen() -> Any:
    """The Zen of Python as numbers: 0 for what is no letter, and 1 to 26."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints itself when it is imported
        import this

    text = codecs.decode(this.s, "rot13").lower()
    return np.array([ord(letter) - 96 if "a" <= letter <= "z" else 0 for letter in text])


def counts(pairs: Any) -> Array:
    """How often each letter follows each."""
    found = np.zeros((LETTERS, LETTERS))
    np.add.at(found, (pairs[:, 0], pairs[:, 1]), 1.0)
    return found


def all_pairs() -> Any:
    """Every letter of the text with the one after it."""
    letters = zen()
    return np.stack([letters[:-1], letters[1:]], axis=1)


def mini_batches(pairs: Any, count: int, size: int = 64) -> list[Array]:
    """Mini-batches of pairs, drawn at random with replacement, as counts."""
    random = np.random.default_rng(0)
    return [counts(pairs[random.integers(0, len(pairs), size)]) for _ in range(count)]


@cache
def parts() -> tuple[Any, Array]:
    """The pairs to train on, and the counts of those that are kept for validation."""
    pairs = all_pairs()
    return pairs[:_TRAINED_ON], counts(pairs[_TRAINED_ON:])


def _log_shares(weights: Array) -> Array:
    highest = weights.max(-1, keepdims=True)
    return np.array(weights - highest - np.log(np.exp(weights - highest).sum(-1, keepdims=True)))


def loss(weights: Array, found: Array) -> Array:
    """The mean of -log of the share that the model gives to the letter that came; weights[..., before, after]."""
    return np.array(-(_log_shares(weights) * found).sum((-1, -2)) / found.sum())


def gradient(weights: Array, found: Array) -> Array:
    """The gradient of that loss."""
    shares = np.exp(weights - weights.max(-1, keepdims=True))
    shares *= found.sum(-1, keepdims=True) / shares.sum(-1, keepdims=True)
    return np.array((shares - found) / found.sum())


def excess(weights: Array, found: Array) -> Array:
    """For each letter of these counts that occurs, how far its loss is above the least that there is."""
    occurs = found.sum(1) > 0
    shares = found[occurs] / found[occurs].sum(1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.array((shares * (logs - _log_shares(weights)[occurs])).sum(1))
