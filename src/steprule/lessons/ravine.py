"""The ravine of the lessons on momentum and RMSProp: a loss of two weights, steep along one and flat along the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steprule.charts import Axis, Chart, Line
from steprule.lessons.follow import Array

FLAT, STEEP = 1.0, 25.0
START = (-1.0, 1.0)
ACROSS = Axis("weight 1", -1.775, 1.775)  # the scale of both axes is the same
UP = Axis("weight 2", -1.25, 1.25)
_LEVELS = (0.02, 0.2, 0.8, 2.0, 4.5, 9.0, 15.0)


def turn(degrees: float) -> Array:
    """The matrix whose columns are the flat and the steep direction of a ravine that is turned."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def hessian(degrees: float = 0) -> Array:
    """The curvature as a matrix: the gradient at w is this times w."""
    axes = turn(degrees)
    return np.array(axes @ np.diag([FLAT, STEEP]) @ axes.T)


def loss(weights: Any, degrees: float = 0) -> Any:
    """Half the curvature times the square, along each direction."""
    return 0.5 * np.einsum("...i,ij,...j", weights, hessian(degrees), weights)


def contours(degrees: float = 0) -> list[Line]:
    """Lines of equal loss."""
    around = np.linspace(0, 2 * np.pi, 73)
    circle = np.array([np.cos(around), np.sin(around)])
    lines = []
    for level in _LEVELS:
        x, y = turn(degrees) @ (np.sqrt(2 * level / np.array([[FLAT], [STEEP]])) * circle)
        lines.append(Line("", x, y, "faint"))
    return lines


def from_above(title: str, ways: Sequence[tuple[str, Array, int]], degrees: float = 0) -> Chart:
    """Paths over the ravine: the name, the weights and the style of each."""
    paths = [Line(name, way[:, 0], way[:, 1], style, dots=True) for name, way, style in ways]
    goal = Line("", [0.0], [0.0], 5, line=False, dots=True)
    return Chart(title, ACROSS, UP, [*contours(degrees), goal, *paths], "none")
