"""The tensor lists that are measured."""

from __future__ import annotations

from record import QUICK

Shapes = list[tuple[int, ...]]


def gpt2_small() -> Shapes:
    """The 148 parameters of GPT-2-small, 124 million elements; far fewer in a quick run."""
    width = 32 if QUICK else 768
    square, wide = (width, width), 4 * width
    block: Shapes = [
        (width,), (width,), (width, 3 * width), (3 * width,), square, (width,),
        (width,), (width,), (width, wide), (wide,), (wide, width), (width,),
    ]  # fmt: skip
    return [(50257 * width // 768, width), (4 * width // 3, width), *block * 12, (width,), (width,)]


def small_cnn() -> Shapes:
    """Ten parameters of a small convolutional net, about 400 thousand elements."""
    return [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 64, 3, 3), (128,), (2304, 128), (128,), (10, 128), (10,)]


def tiny_mlp() -> Shapes:
    """Six parameters of a small perceptron, about 9 thousand elements."""
    return [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]
