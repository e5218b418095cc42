"""The problem whose trajectories trajectories.json keeps: tensors and fixed gradients, rebuilt from a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHAPES: tuple[tuple[int, ...], ...] = ((4, 3), (5,), (1,))
STEPS = 20

Arrays = list[NDArray[np.float64]]


def problem(seed: int, zeros: bool = False) -> tuple[Arrays, list[Arrays]]:
    """Three float64 tensors and their gradients at each of 20 steps.

    An element's gradients keep to a scale of their own, of 0.01 to 10, and wander about a drift away from 0, so
    that some change their sign from step to step and methods that estimate a distance find one. The gradients
    do not depend on the tensors: a mistake cannot correct itself.

    Args:
        seed: of the random numbers, at least 0.
        zeros: whether the last tensor begins at 0, for methods that divide by its norm.

    Returns:
        The tensors, of the shapes SHAPES, and for each step a list of gradients of the same shapes.
    """
    random = np.random.RandomState(seed)  # unlike Generator's, its numbers are the same in every NumPy
    params = [random.normal(size=shape) for shape in SHAPES]
    scales = [10 ** random.uniform(-2, 1, size=shape) for shape in SHAPES]
    drifts = [np.sign(random.normal(size=shape)) * 0.7 for shape in SHAPES]
    grads = [
        [scale * (drift + random.normal(size=scale.shape)) for scale, drift in zip(scales, drifts, strict=True)]
        for _ in range(STEPS)
    ]
    if zeros:
        params[-1] = np.zeros_like(params[-1])
    return params, grads
