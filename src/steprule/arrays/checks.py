"""What arrays must be to be stepped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steprule.engine.overlap import first_overlap

Array = np.ndarray[Any, Any]


def check_apart(written: Sequence[tuple[str, Array]], grads: Sequence[tuple[str, Array, range]] = ()) -> None:
    """Raises if two arrays have an element in common.

    Args:
        written: with their names.
        grads: that are only read, and may have some in common; and which of written are of the same parameter. A gradient
            may be one of those, each element at its place.
    """
    arrays, first = [*(x for _, x in written), *(x for _, x, _ in grads)], len(written)

    def share(a: int, b: int) -> bool:
        a, b = sorted((a, b))
        if a >= first or (b >= first and a in grads[b - first][2] and _place(arrays[a]) == _place(arrays[b])):
            return False
        return bool(np.shares_memory(arrays[a], arrays[b]))

    both = first_overlap([_span(x) for x in arrays], share)
    if both is not None and both[1] >= first:
        raise ValueError(
            f"{grads[both[1] - first][0]} lies in the memory of {written[both[0]][0]}, which is written while it is read: "
            "give a copy() of it"
        )
    if both is not None:
        one, other = (written[number][0] for number in both)
        raise ValueError(
            f"{one} and {other} lie in the same memory, which would be stepped twice: give one of them only, or a copy()"
        )


def _place(x: Array) -> tuple[Any, ...]:
    """Where x lies and how."""
    return x.__array_interface__["data"], x.dtype, x.shape, x.strides


def _span(x: Array) -> tuple[int, int]:
    """Where x's memory begins and ends."""
    start: int = x.__array_interface__["data"][0]
    reach = [(size - 1) * stride for size, stride in zip(x.shape, x.strides, strict=True)]
    end = start + sum(max(one, 0) for one in reach) + x.itemsize
    return (start + sum(min(one, 0) for one in reach), end) if x.size else (start, start)


def count_of(index: int, step: Any) -> int:
    """A number of steps.

    Raises:
        ValueError: it is none.
    """
    if step is None or isinstance(step, str) or not float(step).is_integer() or float(step) < 0:
        raise ValueError(
            f"the state step of params[{index}] is {step!r} and must be a number of steps, 0 to begin anew"
        )
    return int(step)


def check_param(index: int, param: Any) -> None:
    """Raises for what cannot be stepped in place."""
    if isinstance(param, (list, tuple)):
        raise TypeError(
            f"params[{index}] must be a NumPy array, not {type(param).__name__}: step changes it in place, so make one with "
            "numpy.array(x, dtype=numpy.float32) and keep it"
        )
    if not isinstance(param, np.ndarray):
        raise TypeError(f"params[{index}] must be a NumPy array, not {type(param).__name__}")
    if param.dtype.name not in ("float16", "float32", "float64") or not param.dtype.isnative:
        raise TypeError(
            f"params[{index}] must hold float16, float32 or float64, not {param.dtype}: make it with .astype(numpy.float32)"
        )
    if not param.flags.writeable:
        raise ValueError(f"params[{index}] is read-only: give a copy, numpy.array(x)")


def as_grads(params: Sequence[Array], grads: Sequence[Any]) -> list[Array | None]:
    """Gradients as arrays of their parameters' dtypes; those that are, as they are.

    Raises:
        ValueError: there is not one for each parameter, or one is no array of numbers of its parameter's shape.
        TypeError: a parameter is no array of floats any more.
    """
    if len(grads) != len(params):
        hint = ""
        if isinstance(grads, np.ndarray):
            hint = ": give a list of gradients, as in step([grad])"
        raise ValueError(f"step got {len(grads)} gradients for {len(params)} params{hint}")
    return [None if grad is None else _as_grad(index, params[index], grad) for index, grad in enumerate(grads)]


def _as_grad(index: int, param: Array, grad: Any) -> Array:
    check_param(index, param)
    given = grad
    if isinstance(grad, (list, tuple, int, float, np.generic)):
        try:
            given = np.asarray(grad)
        except ValueError as error:  # rows of several lengths
            raise ValueError(f"grads[{index}] is a {type(grad).__name__} that cannot be an array: {error}") from None
    if not isinstance(given, np.ndarray):
        raise ValueError(f"grads[{index}] must be a NumPy array, a list of numbers or None, not {type(grad).__name__}")
    if given.shape != param.shape:
        raise ValueError(f"grads[{index}] has shape {given.shape}, its parameter {param.shape}")
    if given.dtype == param.dtype:
        return given
    if given.dtype.kind not in "fiu" and given.size:
        raise ValueError(f"grads[{index}] has dtype {given.dtype} and must hold real numbers, such as {param.dtype}")
    return given.astype(param.dtype)
