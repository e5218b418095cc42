"""The tensor lists that are measured."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]


def gpt2_small() -> Shapes:
    """The 148 parameters of GPT-2-small, 124 million numbers."""
    block: Shapes = [
        (768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,), (768, 3072), (3072,), (3072, 768), (768,),
    ]  # fmt: skip
    return [(50257, 768), (1024, 768), *block * 12, (768,), (768,)]


def small_cnn() -> Shapes:
    """Ten parameters of a small convolutional net, about 400 thousand numbers."""
    return [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 64, 3, 3), (128,), (2304, 128), (128,), (10, 128), (10,)]


def tiny_mlp() -> Shapes:
    """Six parameters of a small perceptron, about 9 thousand numbers."""
    return [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]
