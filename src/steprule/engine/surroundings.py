"""What users put around a step for their model, and what a step does not see of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def undisturbed() -> contextlib.AbstractContextManager[Any]:
    """A context in which torch's operations keep their operands' dtypes, and make tensors that can change later.

    Under autocast products would be of bfloat16 or float16. What is made in inference mode cannot be written to outside of it.
    """
    import torch

    without_autocast: contextlib.AbstractContextManager[Any] = torch._C._DisableAutocast()
    return _outside_inference(without_autocast) if torch.is_inference_mode_enabled() else without_autocast


@contextlib.contextmanager
def _outside_inference(around: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    import torch

    records = torch.is_grad_enabled()  # which leaving inference mode would turn on
    with around, torch.inference_mode(False), torch.set_grad_enabled(records):
        yield


def in_peace(function: Callable[P, T]) -> Callable[P, T]:
    """A function that is always called `undisturbed`."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        with undisturbed():
            return function(*args, **kwargs)

    return called
