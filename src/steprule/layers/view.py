"""How a tensor is seen as matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["View"]

WORDS = {
    "matrix": "two axes as they are",
    "stack": "the last two axes are a matrix, those before count matrices",
    "flatten": "the first axis stays, the others become one",
    "transpose": "columns become rows",
    "rows K": "K blocks of equally many rows",
    "columns K": "K blocks of equally many columns",
    "split A B ...": "blocks of A, B, ... rows",
    "interleaved K": "K matrices: row i belongs to number i mod K",
}
"""The steps that a view is made of; the first three can only be the first."""
_STEP = r"matrix|stack|flatten|transpose|(rows|columns|interleaved) [1-9]\d*|split( [1-9]\d*)+"


@dataclass(frozen=True)
class View:
    """How a tensor is seen as matrices of m rows (outputs) and n columns (inputs): steps in words, applied in turn::

        View("rows 3").matrices(qkv)  # [(3, m, n)]: the parts of a fused projection
        View("flatten").matrices(convolution)  # [(out, in * kh * kw)]
        View("stack, transpose").matrices(experts)  # [(E, out, in)] of what is stored as (E, in, out)

    Attributes:
        words: one or more of "matrix", "stack", "flatten", "transpose", "rows K", "columns K", "split A B ..." and
            "interleaved K", with commas between; `steprule.layers.WORDS` says what each does. `str(view)` is the same.

    Raises:
        ValueError: a word is none of these.
    """

    words: str = "matrix"

    def __post_init__(self) -> None:
        steps = [step.split() for step in str(self.words).split(",")]
        object.__setattr__(self, "words", ", ".join(" ".join(step) for step in steps))
        for number, step in enumerate(self.words.split(", ")):
            if not re.fullmatch(_STEP, step):
                raise ValueError(f"view {self.words!r}: {step!r} is no step; use {', '.join(map(repr, WORDS))}")
            if number and step in ("matrix", "stack", "flatten"):
                raise ValueError(f"view {self.words!r}: {step!r} can only be the first step")

    def __str__(self) -> str:
        return self.words

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The matrices, each of shape (..., m, n), in the memory of the tensor.

        "flatten" takes the axes in the order that they have in memory, so that channels_last needs no copy. Then the
        order of columns depends on strides: a gradient or a state is to be laid out as its parameter, as `torch.empty_like(param).copy_(grad)`
        is. What depends on that order, as MUD does of tall matrices, then depends on strides, too.

        Args:
            tensor: the parameter, or a tensor of its shape.

        Raises:
            ValueError: the shape does not fit the view, or the strides allow no view of this order.
        """
        first = self.words.split()[0].rstrip(",")
        wanted, allowed = {
            "stack": ("three or more", tensor.ndim > 2),
            "flatten": ("two or more", tensor.ndim > 1),
        }.get(first, ("two", tensor.ndim == 2))
        if not allowed:
            hint = "" if tensor.ndim < 3 else '; begin with "stack" or "flatten"'
            raise ValueError(f"view {self.words!r} needs {wanted} axes, not shape {tuple(tensor.shape)}{hint}")
        found = [tensor]
        for step in self.words.split(", "):
            name, *numbers = step.split()
            try:
                found = [part for one in found for part in _STEPS[name](one, [*map(int, numbers)])]
            except _Misfit as error:
                raise ValueError(f"view {self.words!r} of shape {tuple(tensor.shape)}: {error}") from None
        return found

    def sizes(self, shape: Sequence[int]) -> list[tuple[int, int, int]]:
        """How many matrices of how many rows and columns a tensor of this shape has, as (count, m, n).

        Raises:
            ValueError: the shape does not fit the view.
        """
        made = self.matrices(torch.empty(tuple(shape), device="meta"))
        return [(math.prod(one.shape[:-2]), *one.shape[-2:]) for one in made]


class _Misfit(Exception):
    """A step that a tensor does not allow."""


def _flatten(one: Tensor, numbers: list[int]) -> list[Tensor]:
    order = sorted(range(1, one.ndim), key=one.stride, reverse=True)
    try:
        return [one.permute(0, *order).view(one.shape[0], math.prod(one.shape[1:]))]
    except RuntimeError:
        raise _Misfit(f"strides {one.stride()} make no one axis of all but the first; copy it") from None


def _rows(one: Tensor, numbers: list[int]) -> list[Tensor]:
    return [torch.unflatten(one, -2, (numbers[0], _part(one, -2, "rows", numbers[0])))]


def _columns(one: Tensor, numbers: list[int]) -> list[Tensor]:
    return [torch.unflatten(one, -1, (numbers[0], _part(one, -1, "columns", numbers[0]))).transpose(-3, -2)]


def _interleaved(one: Tensor, numbers: list[int]) -> list[Tensor]:
    return [torch.unflatten(one, -2, (_part(one, -2, "rows", numbers[0]), numbers[0])).transpose(-3, -2)]


def _split(one: Tensor, numbers: list[int]) -> list[Tensor]:
    if sum(numbers) != one.shape[-2]:
        raise _Misfit(f"{' + '.join(map(str, numbers))} = {sum(numbers)} is not its number of rows, {one.shape[-2]}")
    return [*torch.split(one, numbers, -2)]


def _part(one: Tensor, axis: int, what: str, count: int) -> int:
    if one.shape[axis] % count:
        raise _Misfit(f"{one.shape[axis]} {what} are not {count} equal blocks")
    return one.shape[axis] // count


_STEPS: dict[str, Callable[[Tensor, list[int]], list[Tensor]]] = {
    "matrix": lambda one, numbers: [one],
    "stack": lambda one, numbers: [one],
    "flatten": _flatten,
    "transpose": lambda one, numbers: [one.mT],
    "rows": _rows,
    "columns": _columns,
    "split": _split,
    "interleaved": _interleaved,
}
