"""What callbacks of all frameworks have in common: they find the optimizers, take over clipping, and tell what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from steprule.optimizer import Optimizer
from steprule.services.clip import Clip
from steprule.together import Together


def unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, out of a framework's wrapper."""
    while not isinstance(optimizer, (Optimizer, Together)) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def each(optimizer: Any) -> Iterator[Optimizer]:
    """The optimizers of steprule's in one, which may be several."""
    if isinstance(optimizer, Optimizer):
        yield optimizer
    elif isinstance(optimizer, Together):
        for one in optimizer.optimizers:
            yield from each(one)


def set_mode(optimizer: Any, training: bool) -> None:
    """Gives a model the weights that are trained, or their averages; other packages' optimizers may have the methods, too."""
    method = getattr(optimizer, "train" if training else "eval", None)
    if callable(method):
        method()


def takes_clip(optimizer: Any, clip: Clip, what: str) -> bool:
    """Has an optimizer clip in place of its trainer, if it can; it may have a clip of its own already.

    Args:
        optimizer: any.
        clip: what the trainer would do.
        what: the trainer's setting, for errors.

    Raises:
        ValueError: gradients are released, which a trainer cannot clip, and this is several optimizers in one.
    """
    if isinstance(optimizer, Optimizer):
        if optimizer.clip is None:
            optimizer.clip = clip
        return True
    if any(one._core.release is not None for one in each(optimizer)):
        raise ValueError(
            f"{what} clips the gradients of all optimizers of a Together by one norm, and released gradients are gone by then: "
            "leave it out, and give each of the optimizers its own clip=..."
        )
    return False


def release(optimizer: Any, model: nn.Module, waits: Callable[[], bool]) -> None:
    """Turns gradient release on, unless it is on already.

    Args:
        optimizer: one of steprule's.
        model: the module that is called, with DistributedDataParallel that.
        waits: whether the backward pass under way only accumulates.

    Raises:
        ValueError: the optimizer cannot release gradients.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"release=True needs an optimizer of steprule's, not {type(optimizer).__name__}")
    if optimizer._core.release is None:
        optimizer.release_gradients(model)
    assert optimizer._core.release is not None
    optimizer._core.release.waits = waits


class Log:
    """What optimizers have to say, each number once."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}

    def numbers(self, optimizers: list[Any]) -> dict[str, float]:
        """Norms, counts and new records of telemetry. With several optimizers, names begin with "optimizer_0" and so on.

        Reading a number that is on a GPU waits for it.
        """
        several = [one for optimizer in optimizers for one in each(optimizer)]
        found: dict[str, float] = {}
        for number, one in enumerate(several):
            prefix = "optimizer" if len(several) == 1 else f"optimizer_{number}"
            found |= {f"{prefix}/{name}": value for name, value in _counts(one).items()}
            telemetry = one.telemetry
            records = telemetry.records if telemetry is not None else []
            if telemetry is not None and records and self._told.get(number) != records[-1]["step"]:
                self._told[number] = records[-1]["step"]
                telemetry.write(_Into(found), prefix)
        return found


class _Into:
    """A writer of TensorBoard's kind that fills a dict."""

    def __init__(self, found: dict[str, float]) -> None:
        self._found = found

    def add_scalar(self, tag: str, value: float, _: int) -> None:
        self._found[tag] = value


def _counts(optimizer: Optimizer) -> dict[str, float]:
    """The numbers of one optimizer that its services know."""
    services = optimizer._core.services
    norm = float(optimizer.grad_norm)
    found = {} if math.isnan(norm) else {"grad_norm": norm}
    if services is not None and services.clip is not None:
        found["clipped_steps"] = optimizer.clipped_steps
    if services is not None and services.nonfinite is not None:
        found["skipped_steps"] = optimizer.skipped_steps
    return found
